"""The command line as its users call it: what it prints, what it leaves, and one sentence where the input is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import matplotlib.image
import numpy as np
import pytest

import purerl
from purerl import plot, render
from purerl.run import cli, runner
from purerl.run import folder as run_folder
from tests import tiny

TINY = [
    f"--{name.replace('_', '-')}={value}" for name, value in tiny.FIELDS["ppo"].items() if "hidden_sizes" not in name
]
TINY += ["--actor-hidden-sizes", "8", "--critic-hidden-sizes", "8", "--num-seeds", "3", "--seeds-at-once", "2"]


@pytest.fixture(autouse=True)
def _cores_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "use_all_cores", lambda: 2)  # JAX runs already, with the devices of conftest


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["purerl", *arguments])
    monkeypatch.setenv("COLUMNS", "160")
    cli.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, by `purerl train`."""
    path = tmp_path_factory.mktemp("cli") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "use_all_cores", lambda: 2)
        call(patch, "train", "ppo", *TINY, "--learning-rate", "1e-3", "--out", str(path))
    return path


def test_train_leaves_a_run(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "config.json",
        "metrics.csv",
        "curve.png",
        "checkpoints",
    }
    _, config, seeds, _ = run_folder.load(folder)
    assert config == tiny.config(tiny_ppo(), learning_rate=1e-3) and seeds == [0, 1, 2]
    assert matplotlib.image.imread(folder / "curve.png").std() > 0


def test_a_planner_trains_evaluates_and_plots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Value iteration has no episodes and no env steps: its residual is what there is to show."""
    out = str(tmp_path / "run")
    call(monkeypatch, "train", "value_iteration", "--env", "mdp/frozen_lake_4x4", "--max-sweeps", "8", "--out", out)
    call(monkeypatch, "evaluate", out, "--num-episodes", "4")
    call(monkeypatch, "plot", out, "--metric", "start_value")
    printed = capsys.readouterr().out
    assert "8 updates" in printed and "residual (last tenth)" in printed and "mean 1.00" in printed
    assert "env steps" not in printed
    assert matplotlib.image.imread(tmp_path / "run" / "curve.png").std() > 0


def test_an_env_may_need_other_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tile features, the default, do not cover numbered states, so the env alone would be refused."""
    flags = ("--env", "mdp/gridworld", "--features", "one_hot", "--total-timesteps", "2000", "--num-seeds", "1")
    call(monkeypatch, "train", "linear_q", *flags, "--out", str(tmp_path / "run"))
    assert run_folder.load(tmp_path / "run")[1].env == "mdp/gridworld"


def tiny_ppo():
    from purerl import ppo

    return ppo


def test_train_says_what_it_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    call(monkeypatch, "train", "ppo", *TINY, "--out", str(tmp_path / "run"))
    printed = capsys.readouterr().out
    for text in (
        "Tuned settings of ppo for CartPole-v1",
        "Memory:",
        "return of the final policy",
        "env steps/s",
        "Curve:",
    ):
        assert text in printed


def test_evaluate_plot_and_resume(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    call(monkeypatch, "evaluate", str(folder), "--num-episodes", "4")
    assert "IQM" in capsys.readouterr().out
    call(monkeypatch, "plot", str(folder), str(folder), "--out", str(folder.parent / "two.png"))
    assert matplotlib.image.imread(folder.parent / "two.png").std() > 0
    call(monkeypatch, "train", "--resume", str(folder))
    assert "Going on from update 6 of 6" in capsys.readouterr().out


def test_export_writes_a_program_or_a_policy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Of the seed that is named; both act alike."""
    files = [tmp_path / "one.stablehlo", tmp_path / "one.policy"]
    for file in files:
        call(monkeypatch, "export", str(folder), "--seed", "2", "--out", str(file))
    assert "its obs is float32[4]" in capsys.readouterr().out
    run = runner.load(folder)
    policy = run.algorithm.policy(jax.tree.map(lambda x: x[2], run.states), run.config)
    program, loaded = jax.export.deserialize(bytearray(files[0].read_bytes())), purerl.load_policy(files[1])
    for obs in jax.numpy.eye(4):
        assert policy(jax.random.key(0), obs) == program.call(obs) == loaded(jax.random.key(0), obs)


def test_the_best_policies_are_evaluated_rendered_and_exported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = str(tmp_path / "run")
    call(monkeypatch, "train", "ppo", *TINY, "--eval-every", "32", "--eval-episodes", "2", "--out", out)
    call(monkeypatch, "train", "--resume", out)
    run, shown = runner.load(out), list[Any]()
    monkeypatch.setattr(cli, "_evaluations", lambda run, **_: shown.append(run.states) or np.ones((3, 2)))
    call(monkeypatch, "evaluate", out, "--best", "--num-episodes", "2")
    tiny.assert_same_bits(shown[0], run.best)
    assert "best policies" in capsys.readouterr().out
    pictured: list[Any] = []
    monkeypatch.setattr(render, "save", lambda path, algorithm, state, *rest: pictured.append(state) or path)
    call(monkeypatch, "render", out, "--best", "--seed", "1")
    tiny.assert_same_bits(pictured[0], jax.tree.map(lambda x: x[1], run.best))
    call(monkeypatch, "export", out, "--best", "--seed", "1", "--out", str(tmp_path / "one.policy"))
    assert (tmp_path / "one.policy").read_bytes() == (tmp_path / "run/checkpoints/best/1.policy").read_bytes()


def test_several_runs_leave_each_curve_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "curve.png").read_bytes()
    call(monkeypatch, "plot", str(folder), str(folder))
    assert (folder / "curve.png").read_bytes() == before
    assert matplotlib.image.imread(folder / "comparison.png").std() > 0
    (folder / "comparison.png").unlink()


def test_drawn_actions_are_shown_where_they_earn_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Further apart than a tenth and than noise explains; a seed in which they are the same shows both all the same."""
    greedy = np.tile(np.array([-500.0, 100.0, 2.0]), (4, 1)).T
    noisy = np.array([[-154.0] * 4, [101.0] * 4, [-100.0, 100.0, -90.0, 90.0]])
    np.testing.assert_array_equal(cli._differ_by_much(greedy, noisy), [True, False, False])
    for drawn, shown in ((noisy, True), (greedy, False)):
        with monkeypatch.context() as patch:
            patch.setattr(cli, "_evaluations", lambda *_, deterministic, d=drawn, **__: greedy if deterministic else d)
            call(patch, "train", "--resume", str(folder))
        printed = capsys.readouterr().out
        assert "-500.00" in printed and ("-154.00" in printed) == ("drawn actions" in printed) == shown


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    call(monkeypatch, "--version")
    assert capsys.readouterr().out == f"purerl {purerl.__version__}, jax {jax.__version__}\n"


def test_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    call(monkeypatch, "list")
    printed = capsys.readouterr().out
    for text in ("dqn", "ppo", "discrete and continuous", "CartPole-v1", "brax/ant"):
        assert text in printed


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
WORLDS = "from purerl import mdp\nwalk = mdp.Tabular(mdp.random_walk(5))\n"


@pytest.mark.parametrize("name", ["./my_algorithm.py", "my_algorithm"])
def test_an_algorithm_and_an_env_of_ones_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "my_algorithm.py").write_text(ALGORITHM)
    (tmp_path / "worlds.py").write_text(WORLDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for module in ("my_algorithm", "worlds"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as status:
        call(monkeypatch, "train", name, "--help")
    printed = capsys.readouterr().out
    assert status.value.code == 0 and "A field of its own" in printed and "Discount factor" in printed
    flags = ("--env", "worlds:walk", "--spin", "4", "--max-sweeps", "8", "--seeds", "5", "3")
    call(monkeypatch, "train", name, *flags, "--out", "run")
    assert "my_algorithm Tabular" in capsys.readouterr().out
    call(monkeypatch, "train", "--resume", "run")
    assert "Going on from update 8 of 8" in capsys.readouterr().out
    call(monkeypatch, "plot", "run")
    algorithm, config, seeds, _ = run_folder.load("run")
    assert config == algorithm.Config(env=sys.modules["worlds"].walk, spin=4, max_sweeps=8) and seeds == [5, 3]
    command = [sys.executable, "-m", "purerl", "evaluate", "run", "--num-episodes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(run_folder.__file__).parents[2])}
    other = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert other.returncode == 0 and "my_algorithm Tabular, update 8" in other.stdout


def test_plotting_needs_the_folder_alone(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run of an algorithm and an env that are not there any more, over the env steps of metrics.csv."""
    path = Path(shutil.copytree(folder, tmp_path / "run"))
    stored = json.loads((path / "config.json").read_text())
    stored["algorithm"], stored["config"]["env"] = "/nowhere/gone.py", {"import": "gone:Corridor", "call": True}
    (path / "config.json").write_text(json.dumps(stored))
    shutil.rmtree(path / "checkpoints")
    call(monkeypatch, "plot", str(path))
    ax = plot.runs([path])
    assert ax.get_xlabel() == "env steps" and ax.get_legend().get_texts()[0].get_text() == "gone Corridor (3 seeds)"
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), 16 * np.arange(1, 7))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_the_exit_status(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """128 + its number, with the state saved and no table; the run that goes on ends with 0 and the table."""
    show = runner._Loop.show

    def show_and_stop(loop: Any, *rows: Any) -> None:
        signal.raise_signal(number)
        show(loop, *rows)

    out = str(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as status:
        patch.setattr(runner._Loop, "show", show_and_stop)
        call(monkeypatch, "train", "ppo", *TINY, "--learning-rate", "1e-3", "--out", out)
    assert status.value.code == 128 + number
    printed = capsys.readouterr().out
    assert f"Stopped by {signal.Signals(number).name}" in printed and "final policy" not in printed
    call(monkeypatch, "train", "--resume", out)
    assert "final policy" in capsys.readouterr().out


def test_failing_in_training_is_status_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--learning-rate", "1e38", "--max-grad-norm", "1e38", "--out", str(tmp_path / "run"))
    with pytest.raises(SystemExit) as status:
        call(monkeypatch, "train", "ppo", *TINY, *flags)
    assert status.value.code == 1


def test_an_interrupt_leaves_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Without the interpreter's own end, which crashes while XLA compiles in other threads."""

    def interrupted(arguments: Any) -> None:
        raise KeyboardInterrupt

    statuses: list[int] = []
    monkeypatch.setattr(cli, "train", interrupted)
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(cli, "tune", interrupted)
    call(monkeypatch, "train", "ppo")
    assert statuses == [130] and capsys.readouterr().err == "purerl: Stopped by SIGINT.\n"
    call(monkeypatch, "tune", "ppo")
    assert "The same command goes on" in capsys.readouterr().err


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_it_compiles_is_one_line(tmp_path: Path) -> None:
    """In a process of its own, which the interrupt reaches once it has said where the run will be."""
    command = [sys.executable, "-u", "-m", "purerl", "train", "ppo", "--num-seeds", "1", "--out", str(tmp_path / "run")]
    root = Path(run_folder.__file__).parents[2]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=root, **pipes)
    try:
        assert process.stdout is not None
        while "Run folder" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and error == "purerl: Stopped by SIGINT.\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("trian ppo", "There is no command 'trian'; did you mean train?"),
        ("train", "Name an algorithm"),
        ("train pppo", "There is no algorithm named 'pppo'; did you mean ppo"),
        ("train rainbow", "There is no algorithm named 'rainbow'; there are value_iteration, "),
        ("train ppo --env CartPol-v1", "did you mean CartPole-v1"),
        ("train ppo --env HalfCheetah-v5", "is an env of Gymnasium, which steps on the host"),
        ("train dqn --env Pendulum-v1", "dqn acts in discrete action spaces only"),
        ("train ppo --num-envs 0", "num_envs must be at least 1"),
        ("train ppo --num-minibatches 3", "num_minibatches = 3 must divide num_envs * num_steps = 512"),
        ("train ppo --total-timesteps 5", "total_timesteps = 5 is less than the 512 env steps of the first update"),
        ("train dqn --buffer-size 50", "buffer_size = 50 is smaller than batch_size = 128"),
        ("train ppo --num-seeds 0", "seeds must be"),
        ("train ppo --seeds 4 2 --num-seeds 3", "The seeds are 4 2, as listed: leave out --num-seeds"),
        ("train ppo --resume missing", "There is no folder missing to resume"),
        ("train dqn --resume FOLDER", "is a run of ppo, not of dqn"),
        ("train ppo --resume FOLDER --gamma 0.5", "differs in gamma (0.99 there, 0.5 here)"),
        ("train --resume FOLDER --num-seeds 2", "differs in seeds"),
        ("train ppo --out FOLDER", "is not empty"),
        ("evaluate missing", "holds no run"),
        ("plot", "Name at least one folder"),
        ("plot FOLDER --metric nonsense", "no column 'nonsense'"),
        ("render FOLDER --seed 9", "has no seed 9"),
        ("export FOLDER --seed 9", "has no seed 9"),
        ("evaluate FOLDER --best", "has no best policies: they come with purerl train ... --eval-every STEPS"),
        ("train ppo --eval-episodes 3", "eval_episodes is 3, but there are no evaluations: say eval_every"),
        ("train ppo --eval-every 0", "eval_every must be at least 1, but is 0"),
        ("export FOLDER --out FOLDER/config.json", "config.json exists already"),
        ("evaluate FOLDER --num-episodes 0", "num_episodes must be at least 1, but is 0"),
        ("train ./missing.py", "There is no file"),
        ("train tests.tiny", "tests.tiny is no algorithm: it lacks Config, init, update, policy, train"),
        ("train ppo --env tests.toy_envs:Chian", "There is no Chian in tests.toy_envs"),
        ("train ppo --env no_such_module:Chain", "'no_such_module' cannot be imported"),
        ("train ppo --out FOLDER/config.json", "config.json is a file"),
        ("train ppo --out FOLDER/config.json/run", "config.json is a file"),
        ("train dqn --buffer-size 100000000000", "2^31 entries or more"),
        ("plot FOLDER --out missing/curve.png", "No such file or directory"),
    ],
)
def test_wrong_input_is_one_sentence(
    arguments: str,
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as exit_status:
        call(monkeypatch, *[word.replace("FOLDER", str(folder)) for word in arguments.split()])
    error = capsys.readouterr().err
    assert exit_status.value.code == 2 and error.startswith("purerl: ") and message in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.rglob("checkpoints"))
