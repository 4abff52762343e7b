"""A run's folder: reading never writes, what is damaged stays, objects are found again, and one process writes."""

import builtins
import errno
import json
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from purerl import checkpoint, logs, mdp, plot, ppo, runner, value_iteration
from purerl.core.types import static
from purerl.run import folder as run_folder
from purerl.run import lock, objects, provenance
from tests import tiny
from tests.toy_envs import Chain

CONFIG = tiny.config(value_iteration)
walk = mdp.Tabular(mdp.random_walk(5))  # found by its name in this module


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    tiny.run(value_iteration, CONFIG, out=folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def spoil(checkpoints: Path) -> tuple[int, int]:
    """A newest checkpoint without its data, one half written, a file of a number's name and one of another.

    Returns the steps of the good one and of the spoilt one.
    """
    earlier, last = checkpoint.steps(checkpoints)
    shutil.rmtree(checkpoints / str(last) / "ocdbt.process_0")
    shutil.rmtree(checkpoints / str(last) / "d")
    (checkpoints / f"{last + 1}.orbax-checkpoint-tmp").mkdir()
    (checkpoints / "99").write_text("a file")
    (checkpoints / "notes.txt").write_text("mine")
    return earlier, last


def test_reading_never_writes(folder: Path) -> None:
    earlier, _ = spoil(folder / "checkpoints")
    before = contents(folder)
    assert runner.load(folder).updates == earlier
    assert contents(folder) == before


def test_a_run_that_goes_on_moves_damage_aside_and_says_so(folder: Path, whole: Path) -> None:
    earlier, last = spoil(folder / "checkpoints")
    spoilt, said = contents(folder / "checkpoints" / str(last)), []
    tiny.run(value_iteration, CONFIG, out=folder, resume=True, say=said.append)
    assert f"Going on from update {earlier} of {last}." in said
    assert [line for line in said if f"{last} is now damaged-0" in line]
    moved = contents(folder / "checkpoints" / "damaged-0")
    assert list(moved.values()) == list(spoilt.values())
    assert (folder / "checkpoints" / "damaged-1").is_dir() and (folder / "checkpoints" / "notes.txt").is_file()
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_a_passing_read_error_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = checkpoint.steps(folder / "checkpoints")[-1]
    load, calls = checkpoint.load, []

    def fails_once(path: Path, like: Any) -> Any:
        calls.append(path)
        if len(calls) == 1:
            raise checkpoint.CheckpointError("input/output error")
        return load(path, like)

    monkeypatch.setattr(checkpoint, "load", fails_once)
    tiny.run(value_iteration, CONFIG, out=folder, resume=True)
    like = runner._states_like(value_iteration, CONFIG, len(tiny.SEEDS))
    tiny.assert_same_bits(
        load(folder / "checkpoints" / "damaged-0", like), load(folder / "checkpoints" / str(last), like)
    )


def test_a_checkpoint_that_its_run_removes_meanwhile_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has listed the last two; before it reads, the writer saves two more and removes both."""
    load, last = checkpoint.load, checkpoint.steps(folder / "checkpoints")[-1]

    def overtaken(path: Path, like: Any) -> Any:
        monkeypatch.setattr(checkpoint, "load", load)
        tree = load(path, like)
        for step in (last + 1, last + 2):
            checkpoint.save_step(folder / "checkpoints", step, tree)
        return load(path, like)

    monkeypatch.setattr(checkpoint, "load", overtaken)
    like = (runner._states_like(value_iteration, CONFIG, len(tiny.SEEDS)), None)
    step, _, problems = checkpoint.load_latest(folder / "checkpoints", like)
    assert step == last + 2 and not problems


def test_a_file_in_the_place_of_a_checkpoint_does_not_stop_saving(tmp_path: Path) -> None:
    (tmp_path / "3").write_text("a file")
    checkpoint.save_step(tmp_path, 3, {"x": np.zeros(2)})
    assert checkpoint.steps(tmp_path) == [3] and (tmp_path / "damaged-0").read_text() == "a file"


def test_stopped_before_its_first_checkpoint_it_starts_from_update_0(folder: Path, whole: Path) -> None:
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints" / "0.orbax-checkpoint-tmp").mkdir(parents=True)
    (folder / "metrics.csv").unlink()
    with pytest.raises(checkpoint.CheckpointError, match="holds no checkpoint yet"):
        runner.load(folder)
    said: list[str] = []
    run = tiny.run(value_iteration, CONFIG, out=folder, resume=True, say=said.append)
    assert run.finished and any("starting from update 0" in line for line in said)
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_metrics_lost_before_the_checkpoint_are_said(folder: Path) -> None:
    path, said = folder / "metrics.csv", []
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:4])  # the last update lacks two of its three seeds
    tiny.run(value_iteration, CONFIG, out=folder, resume=True, say=said.append)
    assert any("has the rows of 5 updates in place of 6" in line for line in said)
    assert plot.read_metrics(folder)["update"].shape == (3, 5)
    assert len(path.read_text().splitlines()) == 1 + 3 * 5  # of the last update no row is left alone
    path.unlink()
    tiny.run(value_iteration, CONFIG, out=folder, resume=True, say=said.append)
    assert any("has the rows of 0 updates in place of 6" in line for line in said)
    path.write_text("seed,update,env_steps,other\n")
    with pytest.raises(runner.RunError, match="has the columns seed,update,env_steps,other"):
        tiny.run(value_iteration, CONFIG, out=folder, resume=True)


def test_a_row_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("seed,update,env_steps,x\n0,1,8,0.5\n0,2,1")
    assert plot.read_metrics(tmp_path)["env_steps"].tolist() == [[8.0]]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: "{", "config.json is damaged"),
        (lambda content: "[]", "config.json is damaged"),
        (lambda content: json.dumps({**content, "seeds": 3}), "it has no seeds"),
        (lambda content: json.dumps({**content, "algorithm": "nonsense"}), "There is no algorithm named 'nonsense'"),
        (
            lambda content: json.dumps({**content, "config": {**content["config"], "spin": 1, "up": 2}}),
            "is of another version of value_iteration: it has no field spin, up now",
        ),
        (lambda content: json.dumps({**content, "config": {**content["config"], "gamma": 2.0}}), "gamma must be"),
    ],
)
def test_a_damaged_config_is_one_sentence(change: Any, message: str, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(runner.RunError, match=message) as error:
        runner.load(folder)
    assert "\n" not in str(error.value)


def test_config_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(runner.RunError, match="the disk is full"):
        tiny.run(value_iteration, CONFIG, out=tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


class FullFile:
    """A file on a disk with no room left."""

    def __init__(self, file: Any):
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    close = flush


def test_a_full_disk_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """First at the rows of metrics.csv, whose file fails again when it is closed; then at a checkpoint."""
    shutil.rmtree(folder / "checkpoints")
    opened = logs.CsvLogger.__init__

    def on_a_full_disk(self: Any, *arguments: Any) -> None:
        opened(self, *arguments)
        self.file = FullFile(self.file)

    with monkeypatch.context() as patch:
        patch.setattr(logs.CsvLogger, "__init__", on_a_full_disk)
        with pytest.raises(runner.StoppedError, match=r"cannot be written: the disk is full.*--resume"):
            tiny.run(value_iteration, CONFIG, out=folder, resume=True)

    class FullCheckpointer:
        def save(self, path: Path, content: Any) -> None:
            partial = path.with_name(f"{path.name}.orbax-checkpoint-tmp")
            partial.mkdir(parents=True)
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']")

    monkeypatch.setattr(checkpoint, "_checkpointer", FullCheckpointer)
    with pytest.raises(runner.StoppedError, match=r"cannot be written: the disk is full.*--resume"):
        tiny.run(value_iteration, CONFIG, out=folder, resume=True)
    assert not list((folder / "checkpoints").iterdir())
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything compiles."""
    monkeypatch.setattr(runner._Loop, "advance", None)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(runner.RunError, match=r"cannot be the run's folder: .*file is a file"):
            tiny.run(value_iteration, CONFIG, out=out)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(runner.RunError, match="may not be written to"):
        tiny.run(value_iteration, CONFIG, out=tmp_path / "run")


HOLDER = """
import sys, time
from pathlib import Path
from purerl.run import lock
with lock.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_writes_and_a_dead_one_does_not_hold(folder: Path) -> None:
    before = contents(folder)
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(runner.RunError, match=f"Process {process.pid} is training in"):
            tiny.run(value_iteration, CONFIG, out=folder, resume=True)
        assert runner.load(folder).finished
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert {path: x for path, x in contents(folder).items() if path.name != lock.FILE} == {
        path: x for path, x in before.items() if path.name != lock.FILE
    }
    assert tiny.run(value_iteration, CONFIG, out=folder, resume=True).finished


class Corridor(Chain):
    """A chain that can be made longer."""

    def __init__(self, length: int = 3):
        self.default_params = {"goal": length, "limit": 5}


def make(config: Any, folder: Path) -> Path:
    """A folder with the config.json of a run that has not begun."""
    folder.mkdir()
    run_folder.write(folder, ppo, config, [0], run_folder.Options())
    return folder


def test_env_objects_are_found_again(tmp_path: Path) -> None:
    """An instance that stands in a module, and one of a class that is made without arguments."""
    for i, env in enumerate((walk, Corridor(), Chain())):
        folder = make(tiny.config(ppo, env=env), tmp_path / str(i))
        found = run_folder.load(folder)[1].env
        assert found is env if env is walk else vars(found) == vars(env)
    assert run_folder.label(folder) == "ppo Chain (1 seeds)"
    params = {"goal": jnp.int32(4), "limit": jnp.int32(9)}
    for name, given in (("all", params), ("some", {"limit": jnp.int32(9)})):
        folder = make(config := tiny.config(ppo, env=Chain(), env_params=given), tmp_path / name)
        assert run_folder.load(folder)[1].env_params == config.env_params


def test_env_params_come_back_as_the_env_makes_them(tmp_path: Path) -> None:
    """Empty arrays keep their shape and bytes their dtype, all alike or one an env; whatever integers the seeds are."""
    own = {"grid": jnp.zeros((0, 3)), "tiles": jnp.arange(4, dtype=jnp.uint8)}
    for name, params in (("alike", own), ("own", {**own, "grid": jnp.zeros((2, 0, 3))})):
        numbers = json.loads(json.dumps(jax.tree.map(lambda x: np.asarray(x).tolist(), params)))
        for field in own:
            made = run_folder._like(numbers[field], own[field])
            assert (made.shape, made.dtype) == (params[field].shape, params[field].dtype), name
    folder = tmp_path / "run"
    tiny.run(ppo, tiny.config(ppo), seeds=np.arange(2), out=folder)
    assert run_folder.load(folder)[2] == [0, 1]
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config.json.tmp").write_text("{")
    run_folder.check_free(tmp_path / "killed")


def test_an_env_object_that_no_path_leads_to_is_given(tmp_path: Path) -> None:
    """Rebuilt without its argument it would be another env, so config.json names only its type."""
    env = Corridor(length=7)
    folder = make(tiny.config(ppo, env=env), tmp_path / "run")
    with pytest.raises(runner.RunError, match=r"no import path for env, a Corridor: give the object, .*env=\.\.\."):
        run_folder.load(folder)
    assert run_folder.load(folder, env=env)[1].env is env
    assert run_folder.check_same(folder, ppo, tiny.config(ppo, env=env), [0])[0] == run_folder.Options()
    stored = make(tiny.config(ppo, env=walk), tmp_path / "other")
    with pytest.raises(runner.RunError, match=r"another env.*test_folder:walk.*Chain"):
        run_folder.load(stored, env=Chain())
    with pytest.raises(runner.RunError, match="differs in env"):
        run_folder.check_same(stored, ppo, tiny.config(ppo, env=Chain()), [0])


def test_a_run_of_an_env_object_goes_on_and_loads(tmp_path: Path) -> None:
    """`mdp.Tabular(...)` made on the spot, in another process or not: the object is given."""
    config = tiny.config(value_iteration, env=mdp.Tabular(mdp.random_walk(5)))
    run = tiny.run(value_iteration, config, out=tmp_path / "run")
    again = config.replace(env=mdp.Tabular(mdp.random_walk(5)))
    assert tiny.run(value_iteration, again, out=tmp_path / "run", resume=True).finished
    tiny.assert_same_bits(runner.load(tmp_path / "run", env=again.env).states, run.states)
    assert plot.runs([tmp_path / "run"]).get_legend().get_texts()[0].get_text() == "value_iteration Tabular (3 seeds)"


def double(x: Any) -> Any:
    return 2 * x


@struct.dataclass
class WithNetwork:
    """Any static field may hold an object."""

    network: Any = static(None)
    table: Any = None


def test_any_static_object_is_stored_alike() -> None:
    for value, expected in (
        (None, None),
        (double, {"import": "tests.test_folder:double"}),
        (Chain, {"import": "tests.toy_envs:Chain"}),
        (Chain(), {"import": "tests.toy_envs:Chain", "call": True}),
        (lambda x: x, {"import": None, "type": "function"}),
    ):
        assert run_folder.config_dict(WithNetwork(value))["network"] == expected
        if expected and expected["import"]:
            found = objects.rebuilt(expected)
            assert type(found) is Chain if "call" in expected else found is value
    assert run_folder.config_dict(WithNetwork(table=jnp.ones(2)))["table"] == [1.0, 1.0]


def test_a_script_has_no_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it again would run it again; and what a console showed last stands in builtins for a moment."""
    kind = type("Local", (), {"__module__": "__main__"})
    monkeypatch.setitem(vars(builtins), "_", shown := Corridor(9))
    assert objects.stored(kind()) == {"import": None, "type": "Local"}
    assert objects.stored(shown)["import"] is None


ALGORITHM = '''"""Sweeps of one's own."""
from flax import struct
from purerl.algorithms.value_iteration import *
from purerl.algorithms import value_iteration as parent
from purerl.core.types import static


@struct.dataclass
class Config(parent.Config):
    spin: int = static(3, low=1)
    """A field of its own."""
'''


def test_own_algorithms_by_file_and_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(ALGORITHM)
    (tmp_path / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    by_file, by_name = objects.algorithm_named(str(tmp_path / "mine.py")), objects.algorithm_named("mine")
    assert objects.algorithm_path(by_file) == str(tmp_path / "mine.py") and objects.algorithm_path(by_name) == "mine"
    for one, other in ((by_file, by_name), (by_name, by_file)):
        assert objects.same_algorithm(objects.algorithm_path(one), other)
        assert not objects.same_algorithm(objects.algorithm_path(one), ppo)
    assert objects.short_name(by_file) == objects.short_name(by_name) == "mine"
    assert objects.algorithm_named(str(tmp_path / "mine.py")) is by_file
    with pytest.raises(TypeError, match=r"empty.py is no algorithm: it lacks Config, init"):
        objects.algorithm_named(str(tmp_path / "empty.py"))
    with pytest.raises(ImportError, match="There is no file"):
        objects.algorithm_named("./missing.py")
    folder = tmp_path / "run"
    folder.mkdir()
    run_folder.write(folder, by_file, by_file.Config(spin=5), [0], run_folder.Options())
    assert run_folder.load(folder)[:2] == (by_file, by_file.Config(spin=5))
    (tmp_path / "mine.py").rename(tmp_path / "moved.py")
    monkeypatch.delitem(sys.modules, by_file.__name__)
    with pytest.raises(runner.RunError, match=r"algorithm of .* is not to be found. There is no file"):
        run_folder.load(folder)
    assert run_folder.load(folder, by_file)[0] is by_file


def test_resume_uses_what_was_stored(tmp_path: Path) -> None:
    """Seeds of any kind, and as many at once as before: 4 on each of two devices, of which 2 were asked for."""
    said: list[str] = []
    seeds = (7, 2, 11)
    tiny.run(value_iteration, CONFIG, seeds, out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["seeds_at_once"] == 2
    options = {"out": tmp_path / "run", "resume": True, "progress": False, "say": said.append}
    runner.train(value_iteration, CONFIG, seeds=seeds, **options)
    assert not [line for line in said if "differ" in line]
    runner.train(value_iteration, CONFIG, seeds=seeds, seeds_at_once=1, **options)
    assert any("seeds_at_once is 1 and was 2: numbers may differ" in line for line in said)
    assert runner.load(tmp_path / "run").seeds == list(seeds)


def test_other_code_than_it_was_begun_with_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(provenance, "source_hash", lambda: "0" * 12)
    tiny.run(value_iteration, CONFIG, out=folder, resume=True, say=said.append)
    assert any("Other code than it was begun with" in line and "000000000000 now" in line for line in said)


def test_source_hash_changes_with_any_file(tmp_path: Path) -> None:
    package = Path(shutil.copytree(provenance.PACKAGE, tmp_path / "purerl", ignore=shutil.ignore_patterns("*.pyc")))
    before = provenance.source_hash()
    assert provenance.source_hash(package) == before and len(before) == 12
    with (package / "core" / "returns.py").open("a") as file:
        file.write("#")
    assert provenance.source_hash(package) != before


def test_tensorboard_hides_what_comes_again(folder: Path) -> None:
    """A planner's rows are drawn over updates. The event that TensorBoard reads as "forget steps from here on"."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import SessionLog

    last = checkpoint.steps(folder / "checkpoints")[-1]
    tiny.run(value_iteration, CONFIG, out=folder, resume=True, loggers=["tensorboard"])
    events = tiny.tensorboard_events(folder / "tensorboard")
    assert [e.step for e in events if e.session_log.status == SessionLog.START] == [last + 1]


def test_wandb_goes_on_with_the_same_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        calls.append(options)
        return types.SimpleNamespace(log=lambda row, step: None, finish=lambda: None)

    module = types.ModuleType("wandb")
    module.init = init
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for _ in range(2):
        tiny.run(value_iteration, CONFIG, out=folder, resume=True, loggers=["wandb"])
    first, second = calls
    assert first["id"] == second["id"] and len(first["id"]) == 8 and second["resume"] == "allow"


def test_a_logger_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(runner.RunError, match="no logger named 'tensorbord'; there are tensorboard, wandb"):
        tiny.run(value_iteration, CONFIG, out=tmp_path / "run", loggers=["tensorbord"])
    with pytest.raises(runner.RunError, match="name one with out"):
        tiny.run(value_iteration, CONFIG, loggers=["tensorboard"])
    assert not (tmp_path / "run").exists()
