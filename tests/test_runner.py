"""The runner: resume after every kind of end, refusal before anything is lost, and what it leaves on disk."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from purerl import checkpoint, dqn, logs, mbpo, plot, ppo, runner, sac
from purerl.run import memory, warm_start
from tests import tiny

CONFIG = tiny.config(ppo)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, runner.Run]:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, tiny.run(ppo, CONFIG, out=folder)


def test_leaves_what_it_promises(finished: tuple[Path, runner.Run]) -> None:
    folder, run = finished
    stored = json.loads((folder / "config.json").read_text())
    assert stored["algorithm"] == "ppo" and stored["config"]["num_envs"] == 2 and stored["seeds"] == list(tiny.SEEDS)
    columns = logs.read_csv(folder / "metrics.csv")
    assert len(columns["seed"]) == len(tiny.SEEDS) * CONFIG.num_updates
    np.testing.assert_array_equal(columns["env_steps"], columns["update"] * 16)
    by_seed = plot.read_metrics(folder)
    np.testing.assert_array_equal(
        by_seed["entropy"].astype(np.float32), run.metrics["entropy"]
    )  # the text loses no bit
    assert checkpoint.steps(folder / "checkpoints")[-1] == CONFIG.num_updates


def test_load_gives_the_final_states(finished: tuple[Path, runner.Run]) -> None:
    folder, run = finished
    loaded = runner.load(folder)
    assert loaded.config == CONFIG and loaded.finished and loaded.seeds == run.seeds
    tiny.assert_same_bits(loaded.states, run.states)


class Signaller:
    """A logger that sends this process a signal at one update."""

    def __init__(self, number: int, update: int):
        self.number, self.update = number, update

    def write(self, update: int, env_steps: int, seeds: Any, metrics: Any) -> None:
        if update == self.update:
            signal.raise_signal(self.number)

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_finishes_the_chunk_saves_and_resumes(
    number: int, finished: tuple[Path, runner.Run], tmp_path: Path
) -> None:
    folder, said = tmp_path / "run", []
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = tiny.run(ppo, CONFIG, out=folder, loggers=[lambda: Signaller(number, 1)], say=said.append)
    assert not run.finished and any(signal.Signals(number).name in line and "--resume" in line for line in said)
    assert checkpoint.steps(folder / "checkpoints")[-1] == run.updates
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    tiny.run(ppo, CONFIG, out=folder, resume=True)
    assert (folder / "metrics.csv").read_bytes() == (finished[0] / "metrics.csv").read_bytes()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """What was saved is kept, and the handlers are as they were."""

    class Impatient(Signaller):
        def write(self, update: int, env_steps: int, seeds: Any, metrics: Any) -> None:
            super().write(update, env_steps, seeds, metrics)
            super().write(update, env_steps, seeds, metrics)

    folder, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(ppo, CONFIG, out=folder, loggers=[lambda: Impatient(signal.SIGINT, 1)])
    assert signal.getsignal(signal.SIGINT) is handler and checkpoint.steps(folder / "checkpoints") == [0]


def test_signals_are_left_alone_where_they_do_not_reach_or_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread, and before the training of a program that ignores SIGINT, as one in the background does."""
    runs: list[runner.Run] = []
    thread = threading.Thread(target=lambda: runs.append(tiny.run(ppo, CONFIG)))
    thread.start()
    thread.join()
    check, handler = memory.check_program, signal.signal(signal.SIGINT, signal.SIG_IGN)

    def interrupted(*arguments: Any) -> str:
        signal.raise_signal(signal.SIGINT)
        return check(*arguments)

    monkeypatch.setattr(memory, "check_program", interrupted)
    try:
        runs.append(tiny.run(ppo, CONFIG))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
    assert [(run.finished, run.stop_signal) for run in runs] == [(True, None)] * 2


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_that_is_lost_while_it_compiles_counts_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, handler = memory.check_program, signal.getsignal(signal.SIGINT)

    def lose(*arguments: Any) -> str:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return check(*arguments)

    monkeypatch.setattr(memory, "check_program", lose)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(ppo, CONFIG, out=tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is handler and checkpoint.steps(tmp_path / "run" / "checkpoints") == [0]


KILLED = """
import sys
from purerl import ppo, runner
from tests import tiny
runner.use_all_cores()
tiny.run(ppo, tiny.config(ppo, total_timesteps=160_000), out=sys.argv[1], checkpoint_seconds=0.0)
"""


@pytest.mark.thorough
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """SIGKILL between two checkpoints: the rows after the last one are cut and written again, to the same bytes."""
    config = tiny.config(ppo, total_timesteps=160_000)
    tiny.run(ppo, config, out=tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(killed)], cwd=Path(__file__).parent.parent)
    try:
        deadline = time.monotonic() + 120
        while not any(step > 0 for step in checkpoint.steps(killed / "checkpoints")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert 0 < checkpoint.steps(killed / "checkpoints")[-1] < config.num_updates
    with (killed / "metrics.csv").open("a") as file:
        file.write("0,99999,12")  # a row that the crash cut short
    tiny.run(ppo, config, out=killed, resume=True)
    assert (killed / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def damage(folder: Path) -> None:
    """Flips one byte in the middle of the largest file."""
    file = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def test_on_chunk_sees_all_and_ends_it_early(finished: tuple[Path, runner.Run], tmp_path: Path) -> None:
    """Every update once, and states that can be looked at; what was stopped goes on to the same end."""
    seen: list[int] = []

    def look(updates: int, states: Any, metrics: dict[str, np.ndarray]) -> None:
        seen.append(metrics["entropy"].shape[1])
        assert sum(seen) == updates and states.updates.tolist() == [updates] * len(tiny.SEEDS)

    def stop(updates: int, *rest: Any) -> bool:
        look(updates, *rest)
        return updates >= 3

    said: list[str] = []
    stopped = tiny.run(ppo, CONFIG, out=tmp_path / "run", on_chunk=stop, say=said.append)
    assert not stopped.finished and stopped.stop_signal is None and 3 <= stopped.updates < CONFIG.num_updates
    assert f"Stopped by on_chunk after update {stopped.updates} of 6: go on with --resume" in said[-1]
    whole = tiny.run(ppo, CONFIG, out=tmp_path / "run", resume=True, on_chunk=look)
    assert whole.finished and sum(seen) == CONFIG.num_updates
    tiny.assert_same_bits(whole.states, finished[1].states)


def test_it_goes_on_beyond_its_end(tmp_path: Path) -> None:
    """Without annealing it is the run that was longer from the start; config.json has the new length and it is said."""
    config, said = CONFIG.replace(anneal_learning_rate=False), list[str]()
    longer = config.replace(total_timesteps=2 * config.total_timesteps)
    tiny.run(ppo, config, out=tmp_path / "run")
    whole = tiny.run(ppo, longer, out=tmp_path / "whole")
    with pytest.raises(runner.RunError, match=r"differs in total_timesteps \(96 there, 192 here\)"):
        tiny.run(ppo, longer, out=tmp_path / "run", resume=True)
    extended = tiny.run(ppo, longer, out=tmp_path / "run", resume=True, extend=True, say=said.append)
    assert extended.finished and extended.updates == 2 * config.num_updates
    tiny.assert_same_bits(extended.states, whole.states)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    assert "total_timesteps = 192 in place of 96" in said[0] and "at the old end 50% of the way" in said[0]
    assert runner.load(tmp_path / "run").config == longer
    with pytest.raises(runner.RunError, match=r"differs in total_timesteps \(192 there, 96 here\)"):
        tiny.run(ppo, config, out=tmp_path / "run", resume=True, extend=True)
    with pytest.raises(runner.RunError, match=r"differs in .*total_timesteps \(192 there, 960 here\).*gamma"):
        tiny.run(ppo, longer.replace(total_timesteps=960, gamma=0.5), out=tmp_path / "run", resume=True, extend=True)


def test_it_starts_from_the_weights_of_another_run(finished: tuple[Path, runner.Run], tmp_path: Path) -> None:
    """Weights alone: three seeds for four, in turns; and after a kill before its first checkpoint as well."""
    config = CONFIG.replace(num_envs=4, total_timesteps=32)  # one update
    options: dict[str, Any] = {"seeds": (5, 6, 7, 8), "out": tmp_path / "warm"}
    warm = tiny.run(ppo, config, start_from=finished[0], checkpoint_seconds=0.0, **options)
    fresh = jax.vmap(ppo.init, (0, None))(jax.numpy.stack([jax.random.key(seed) for seed in (5, 6, 7, 8)]), config)
    start = warm_start.with_weights(fresh, warm_start.learned(finished[1].states), range(4), "there")
    in_turns = jax.tree.map(lambda x: x[jax.numpy.array([0, 1, 2, 0])], finished[1].states.params)
    tiny.assert_same_bits(start.params, in_turns)
    tiny.assert_same_bits(start._replace(params=fresh.params), fresh)
    expected = jax.jit(jax.vmap(ppo.update, (0, None)))(start, config)[0]
    for x, y in zip(jax.tree.leaves(warm.states.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    shutil.rmtree(tmp_path / "warm" / "checkpoints")
    again = tiny.run(ppo, config, resume=True, **options)
    tiny.assert_same_bits(again.states, warm.states)


def test_weights_that_do_not_fit_are_named(finished: tuple[Path, runner.Run], tmp_path: Path) -> None:
    wide, options = CONFIG.replace(actor_hidden_sizes=(9,)), {"out": tmp_path / "run", "start_from": finished[0]}
    where = r"\['params'\]\.actor\.weights\['params'\]\['body'\]\['Dense_0'\]\['bias'\]"
    with pytest.raises(runner.RunError, match=rf"{where} is float32\[8\] there and float32\[9\] here"):
        tiny.run(ppo, wide, **options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(runner.RunError, match="is a run of ppo, not of dqn"):
        tiny.run(dqn, tiny.config(dqn), **options)
    with pytest.raises(runner.RunError, match="missing holds no run"):
        tiny.run(ppo, CONFIG, out=tmp_path / "other", start_from=tmp_path / "missing")
    with pytest.raises(runner.RunError, match="leave out start_from"):
        tiny.run(ppo, CONFIG, out=finished[0], start_from=finished[0], resume=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("algorithm", [sac, mbpo])
def test_all_that_was_learned_comes_along(algorithm: Any) -> None:
    """Targets, statistics and the ensemble too; optimisers, memories and environments do not."""
    config = tiny.config(algorithm, **({"normalize_obs": True} if algorithm is sac else {}))
    fresh, trained = (
        jax.jit(jax.vmap(algorithm.init, (0, None)))(jax.random.split(jax.random.key(seed), 2), config)
        for seed in (0, 1)
    )
    warm = warm_start.with_weights(fresh, warm_start.learned(trained), range(2), "there")
    tiny.assert_same_bits((warm.params, warm.target_critic), (trained.params, trained.target_critic))
    if algorithm is sac:
        tiny.assert_same_bits(warm.obs_stats, trained.obs_stats)
        tiny.assert_same_bits((warm.replay, warm.opt_state, warm.key), (fresh.replay, fresh.opt_state, fresh.key))
    else:
        model = warm.model
        tiny.assert_same_bits(
            (model.params, model.obs_stats, model.target_stats),
            (trained.model.params, trained.model.obs_stats, trained.model.target_stats),
        )
        tiny.assert_same_bits((model.replay, model.opt_state), (fresh.model.replay, fresh.model.opt_state))


def test_an_error_of_the_users_files_is_not_the_disks(tmp_path: Path) -> None:
    """A hook that finds no file, or loses a connection, says so itself."""

    def hook(*_: Any) -> None:
        raise ConnectionResetError("the dashboard is gone")

    with pytest.raises(ConnectionResetError, match="the dashboard is gone"):
        tiny.run(ppo, CONFIG, out=tmp_path / "run", on_chunk=hook)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] > 0


class Failing:
    """A logger, and a hook, that fails at one update; what it opened is closed."""

    def __init__(self, update: int):
        self.update, self.closed = update, False

    def __call__(self, updates: int, *_: Any) -> None:
        if updates >= self.update:
            raise ZeroDivisionError("my own mistake")

    write = __call__

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("kind", ["on_chunk", "loggers"])
def test_an_error_in_a_hook_or_logger_ends_it_saved(
    kind: str, finished: tuple[Path, runner.Run], tmp_path: Path
) -> None:
    """With the error as it is, the state of that chunk, and rows up to it."""
    failing, said = Failing(3), list[str]()
    options: dict[str, Any] = {"on_chunk": failing} if kind == "on_chunk" else {"loggers": [lambda: failing]}
    with pytest.raises(ZeroDivisionError, match="my own mistake"):
        tiny.run(ppo, CONFIG, out=tmp_path / "run", say=said.append, **options)
    last = checkpoint.steps(tmp_path / "run" / "checkpoints")[-1]
    assert last >= 3 and f"Ended by an error after update {last} of 6: go on with --resume" in said[-1]
    assert failing.closed == (kind == "loggers")
    assert logs.read_csv(tmp_path / "run" / "metrics.csv")["update"].max() == last
    whole = tiny.run(ppo, CONFIG, out=tmp_path / "run", resume=True)
    tiny.assert_same_bits(whole.states, finished[1].states)
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (finished[0] / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_chunk": 3}, r"on_chunk must be a function of \(updates, states, metrics\), but is 3"),
        ({"loggers": [3]}, "A logger must be a name or a function that opens one, but is 3"),
    ],
)
def test_hooks_are_functions(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(runner.RunError, match=message):
        tiny.run(ppo, CONFIG, out=tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_a_hook_that_answers_something_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="on_chunk must return True to end the run, False or None to go on, but gave 1"):
        tiny.run(ppo, CONFIG, on_chunk=lambda *_: 1)


def test_damaged_checkpoint_falls_back_to_the_one_before(finished: tuple[Path, runner.Run], tmp_path: Path) -> None:
    folder, said = copy_of(finished[0], tmp_path / "run"), []
    earlier, last = checkpoint.steps(folder / "checkpoints")
    damage(folder / "checkpoints" / str(last))
    run = tiny.run(ppo, CONFIG, out=folder, resume=True, say=said.append)
    assert any(f"Falling back to the checkpoint of update {earlier}" in line for line in said)
    tiny.assert_same_bits(run.states, finished[1].states)
    assert (folder / "metrics.csv").read_bytes() == (finished[0] / "metrics.csv").read_bytes()


def test_all_checkpoints_damaged_is_said_and_nothing_removed(finished: tuple[Path, runner.Run], tmp_path: Path) -> None:
    folder = copy_of(finished[0], tmp_path / "run")
    for step in checkpoint.steps(folder / "checkpoints"):
        damage(folder / "checkpoints" / str(step))
    before = sorted(folder.rglob("*"))
    with pytest.raises(checkpoint.CheckpointError, match="holds no checkpoint that can be read"):
        tiny.run(ppo, CONFIG, out=folder, resume=True)
    assert sorted(folder.rglob("*")) == before


def test_refuses_before_it_touches_anything(finished: tuple[Path, runner.Run], tmp_path: Path) -> None:
    folder = finished[0]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def never() -> Any:
        raise AssertionError("a logger was opened before the run was checked")

    cases = [
        ("is not empty", lambda: tiny.run(ppo, CONFIG, out=folder, loggers=[never])),
        ("There is no folder", lambda: tiny.run(ppo, CONFIG, out=tmp_path / "missing", resume=True)),
        ("holds no run", lambda: tiny.run(ppo, CONFIG, out=tmp_path, resume=True)),
        ("is a run of ppo, not of dqn", lambda: tiny.run(dqn, tiny.config(dqn), out=folder, resume=True)),
        (
            r"differs in gamma \(0.99 there, 0.5 here\)",
            lambda: tiny.run(ppo, CONFIG.replace(gamma=0.5), out=folder, resume=True),
        ),
        ("differs in seeds", lambda: tiny.run(ppo, CONFIG, seeds=(4,), out=folder, resume=True)),
        ("seeds must be", lambda: tiny.run(ppo, CONFIG, seeds=())),
        ("seeds must be", lambda: tiny.run(ppo, CONFIG, seeds=(1, 1))),
        ("seeds must be", lambda: tiny.run(ppo, CONFIG, seeds=3)),
        ("resume needs", lambda: tiny.run(ppo, CONFIG, resume=True)),
        ("must be a module", lambda: tiny.run("ppo", CONFIG)),
        ("needs a Config of its own", lambda: tiny.run(dqn, CONFIG)),
    ]
    for message, call in cases:
        with pytest.raises(runner.RunError, match=message):
            call()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_too_little_memory_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And leaves no folder behind that would stand in the way of a smaller run."""
    monkeypatch.setattr(memory, "free_bytes", lambda devices: 1_000)
    with pytest.raises(runner.RunError, match=r"MB for the states of 3 seed\(s\); 0.0 MB free"):
        tiny.run(ppo, CONFIG, out=tmp_path / "run")
    states = jax.eval_shape(jax.vmap(ppo.init, (0, None)), jax.random.split(jax.random.key(0), 3), CONFIG)
    monkeypatch.setattr(memory, "free_bytes", lambda devices: memory.tree_bytes(states) + 1)  # but not for work on them
    with pytest.raises(runner.RunError, match=r"Memory: 0.\d MB for 3 seed\(s\); 0.0 MB free. Train fewer seeds"):
        tiny.run(ppo, CONFIG, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_non_finite_numbers_stop_the_run_and_keep_the_last_good_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(
        runner.NonFiniteError, match=r"Seed \d left the finite numbers at update [12].*checkpoint of update \d"
    ):
        tiny.run(ppo, CONFIG.replace(learning_rate=1e38, max_grad_norm=1e38), out=folder)
    good = runner.load(folder)
    assert all(np.isfinite(x).all() for x in tiny.arrays(good.states.params))


def test_save_never_overwrites_and_load_checks(tmp_path: Path) -> None:
    tree = {"key": jax.random.key(3), "x": np.arange(6, dtype=np.float32)}
    checkpoint.save(tmp_path / "tree", tree)
    tiny.assert_same_bits(checkpoint.load(tmp_path / "tree", tree), tree)
    with pytest.raises(FileExistsError, match="exists already"):
        checkpoint.save(tmp_path / "tree", tree)
    with pytest.raises(checkpoint.CheckpointError, match="other shapes"):
        checkpoint.load(tmp_path / "tree", {**tree, "x": np.arange(7, dtype=np.float32)})
    with pytest.raises(checkpoint.CheckpointError, match="There is no checkpoint"):
        checkpoint.load(tmp_path / "none", tree)


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (0, 3, 5, 9):
        checkpoint.save_step(tmp_path, step, {"x": np.zeros(2)})
    assert checkpoint.steps(tmp_path) == [5, 9]


@pytest.mark.parametrize(
    "algorithm, more", [(ppo, {"num_envs": 64, "num_steps": 32}), (dqn, {"num_steps": 16})], ids=["ppo", "dqn"]
)
def test_metrics_do_not_grow_with_what_an_update_holds(algorithm: Any, more: dict[str, int]) -> None:
    """The same number of updates, each of many times the env steps: the same bytes."""

    def size(config: Any) -> int:
        metrics = jax.eval_shape(algorithm.train, jax.random.key(0), config).metrics
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(metrics))

    small = tiny.config(algorithm)
    large = small.replace(total_timesteps=1_000_000, **({"buffer_size": 1000} if algorithm is dqn else {}), **more)
    large = large.replace(total_timesteps=large.env_steps(small.num_updates))
    assert large.num_updates == small.num_updates and size(large) == size(small)


def test_tensorboard(tmp_path: Path) -> None:
    """Its files lie in the run's folder, which is new when the logger is opened."""
    pytest.importorskip("tensorboardX")
    folder = tmp_path / "run"
    tiny.run(ppo, CONFIG, out=folder, loggers=[lambda: logs.TensorBoardLogger(folder / "tensorboard")])
    assert any(path.stat().st_size for path in (folder / "tensorboard").iterdir())
    logger = logs.TensorBoardLogger(tmp_path / "alone", config={"gamma": 0.5})
    logger.write(1, 16, [0, 1, 4], {"loss": np.array([1.0, np.nan, 4.0])})
    logger.close()
    events = tiny.tensorboard_events(tmp_path / "alone")
    values = [(event.step, value) for event in events for value in event.summary.value]
    scalars = {value.tag: (step, value.simple_value) for step, value in values if not value.tensor.string_val}
    assert scalars == {"loss/seed_0": (16, 1.0), "loss/seed_4": (16, 4.0), "loss/mean": (16, 2.5)}
    (text,) = [value.tensor.string_val[0].decode() for _, value in values if value.tensor.string_val]
    assert "| gamma | 0.5 |" in text


def test_use_all_cores_after_jax_has_started() -> None:
    """In a process whose JAX runs with one device it says what to do; with as many as cores it is content."""
    code = (
        "import jax, purerl; jax.config.update('jax_num_cpu_devices', {}); jax.devices(); print(purerl.use_all_cores())"
    )
    cores = len(os.sched_getaffinity(0))
    environment = {**os.environ, "XLA_FLAGS": ""}
    for devices, expected in ((cores, None), (cores + 1, "before the first JAX operation")):
        command = [sys.executable, "-c", code.format(devices)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert (result.returncode == 0) == (expected is None)
        assert (expected or str(cores)) in result.stdout + result.stderr
