"""The off-policy methods beside PPO: which runs are trained and for how long, verdicts by hand, what is left behind."""

import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from benchmarks import off_policy, ppo_paper
from benchmarks.off_policy import Task
from benchmarks.ppo_paper import Method
from purerl.run import settings

ENV, OTHER = "Pendulum-v1", "MountainCarContinuous-v0"
TOWERS = {"actor_hidden_sizes": (8,), "critic_hidden_sizes": (8,)}
FIELDS = {"total_timesteps": 800, "learning_starts": 200, "batch_size": 4, "iterations_per_update": 100, **TOWERS}
PPO = Method("PPO", "ppo", TOWERS | {"num_envs": 2, "num_steps": 200, "num_epochs": 1})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks, of which only one has settings, and of SAC alone."""
    shipped = {"sac": {ENV: settings.Setting(FIELDS)}}
    monkeypatch.setattr(off_policy, "TASKS", {ENV: Task(2, -1e5), OTHER: Task(2, None)})
    monkeypatch.setattr(off_policy, "PPO", PPO)
    monkeypatch.setattr(settings, "shipped", lambda name: shipped.get(name, {}))


def test_settings_keep_to_the_budgets() -> None:
    budgets = {"inverted_pendulum": 100_000, "reacher": 200_000, "hopper": 300_000, "halfcheetah": 300_000}
    for env in off_policy.TASKS:
        found = list(off_policy.runs(env, off_policy.Options()))
        assert found[-1].method is off_policy.PPO
        assert "sac" in [run.method.algorithm for run in found]
        assert all(run.options.total_timesteps <= budgets[ppo_paper.title(env)] for run in found[:-1])
        assert all("total_timesteps" not in run.method.fields for run in found)


def test_verdicts() -> None:
    tasks = off_policy.TASKS
    assert tasks["brax/reacher"].bar == -12 and tasks["brax/hopper"].bar is None
    assert off_policy.verdict("brax/reacher", np.array([-10.0, -14.0]), None) == "-12.0 reached"
    assert off_policy.verdict("brax/reacher", np.array([-10.0, -14.1]), np.array([-100.0])) == "-12.0 NOT reached"
    assert off_policy.verdict("brax/hopper", np.array([5.0, 6.0]), np.array([4.0, 7.0])) == "5.5 reached"
    assert off_policy.verdict("brax/hopper", np.array([5.0, 5.9]), np.array([4.0, 7.0])) == "5.5 NOT reached"
    assert off_policy.verdict("brax/hopper", np.array([5.0]), None) == "PPO's run is missing"


def test_budgets_that_differ_are_drawn_over_a_logarithm() -> None:
    panel = off_policy.draw("brax/hopper", [off_policy.ppo_run("brax/hopper", off_policy.Options())]).axes[0]
    assert panel.get_xscale() == "log"
    assert panel.get_legend().get_texts()[0].get_text() == "PPO (clip), 3 seeds"


@pytest.mark.thorough
def test_trains_once_and_reports(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("purerl.run.runner.use_all_cores", lambda: 2)
    monkeypatch.chdir(tmp_path)
    ppo = ppo_paper.Run(PPO, ENV, ppo_paper.Options(out=tmp_path / "ppo", work=tmp_path / "work", total_timesteps=800))
    defaults = {"num_seeds": 3, "total_timesteps": 1_000_000}
    options = ppo_paper.Options(out=tmp_path / "ppo")
    assert {name: getattr(options, name) for name in defaults} == defaults  # what PPO's results are read with

    def call(*words: str) -> str:
        arguments = ["--num-episodes=2", f"--out={tmp_path / 'out'}", f"--ppo={tmp_path / 'ppo'}", "--work=work"]
        monkeypatch.setattr(sys, "argv", ["off_policy", *arguments, *words])
        off_policy.main()
        return capsys.readouterr().out

    text = call()
    assert "SAC on Pendulum-v1" in text
    assert "| Pendulum-v1 | SAC | 800 | 2 | " in text and "-100000.0 reached" in text
    assert "| PPO" not in text and ppo.scores() is None
    rows = ppo_paper.read_csv(tmp_path / "out" / "off_policy.csv")
    assert [(row["env"], row["method"], row["env_steps"], row["seed"]) for row in rows] == [
        (ENV, "SAC", "800", "0"),
        (ENV, "SAC", "800", "1"),
    ]
    assert all(float(row["greedy"]) < -100 for row in rows)
    for name in (ENV, OTHER):
        assert matplotlib.image.imread(tmp_path / "out" / f"{name}.png").shape[1] > 500

    def trained_again(*_: Any) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(ppo_paper.Run, "finish", trained_again)
    assert "SAC on Pendulum-v1" not in call()
    assert "| Pendulum-v1 | SAC |" in call("--report")
