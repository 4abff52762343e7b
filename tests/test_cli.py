"""The command line as its users call it: what it prints, what it leaves, and one sentence where the input is wrong."""

import sys
from pathlib import Path

import matplotlib.image
import pytest

from purerl.run import cli, runner
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
    assert {path.name for path in folder.iterdir()} == {"config.json", "metrics.csv", "curve.png", "checkpoints"}
    _, config, seeds = runner.read_config(folder)
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
    assert runner.read_config(tmp_path / "run")[1].env == "mdp/gridworld"


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


def test_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    call(monkeypatch, "list")
    printed = capsys.readouterr().out
    for text in ("dqn", "ppo", "discrete and continuous", "CartPole-v1", "brax/ant"):
        assert text in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("trian ppo", "There is no command 'trian'; did you mean train?"),
        ("train", "Name an algorithm"),
        ("train pppo", "There is no algorithm named 'pppo'; did you mean ppo?"),
        ("train ppo --env CartPol-v1", "did you mean CartPole-v1"),
        ("train dqn --env Pendulum-v1", "dqn acts in discrete action spaces only"),
        ("train ppo --num-envs 0", "num_envs must be at least 1"),
        ("train ppo --num-minibatches 3", "num_minibatches = 3 must divide num_envs * num_steps = 512"),
        ("train ppo --total-timesteps 5", "total_timesteps = 5 is less than the 512 env steps of the first update"),
        ("train dqn --buffer-size 50", "buffer_size = 50 is smaller than batch_size = 128"),
        ("train ppo --num-seeds 0", "seeds must be"),
        ("train ppo --resume missing", "There is no folder missing to resume"),
        ("train dqn --resume FOLDER", "is a run of ppo, not of dqn"),
        ("train ppo --resume FOLDER --gamma 0.5", "differs in gamma (0.99 there, 0.5 here)"),
        ("train --resume FOLDER --num-seeds 2", "differs in seeds"),
        ("train ppo --out FOLDER", "is not empty"),
        ("evaluate missing", "holds no run"),
        ("plot", "Name at least one folder"),
        ("plot FOLDER --metric nonsense", "no column 'nonsense'"),
        ("render FOLDER --seed 9", "has no seed 9"),
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
        call(monkeypatch, *[str(folder) if word == "FOLDER" else word for word in arguments.split()])
    error = capsys.readouterr().err
    assert exit_status.value.code == 2 and error.startswith("purerl: ") and message in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.rglob("checkpoints"))
