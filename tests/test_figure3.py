"""Figure 3 and table 1 of the PPO paper on a gymnax env: scores and verdicts by hand, what is missing, resuming."""

import csv
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from benchmarks import figure3, learning, ppo_paper, provenance, table1
from benchmarks.ppo_paper import Method, Scores
from purerl import envs, plot, ppo, runner
from purerl.core.rollout import unroll
from purerl.run.provenance import source_hash

ENV, OTHER = "MountainCarContinuous-v0", "Pendulum-v1"
TOWERS = {"actor_hidden_sizes": (8,), "critic_hidden_sizes": (8,), "num_envs": 16, "num_steps": 50}
METHODS = (
    Method("PPO (clip)", "ppo", TOWERS | {"num_epochs": 1, "num_minibatches": 1}),
    Method("A2C", "a2c", TOWERS),
)
FIGURE3 = figure3.METHODS  # of which the tests that train have shorter ones
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figure3")


@pytest.fixture(scope="module")
def call(home: Path) -> Iterator[Call]:
    """Runs figure3 on Pendulum alone; returns what it exits with, None where it just ends. 200 steps are an episode."""

    def run(*words: str, work: str = "work", module: Any = figure3) -> Any:
        arguments = ["--num-seeds=2", "--total-timesteps=6400", "--num-episodes=3", *words]
        patch.setattr(sys, "argv", ["figure3", *arguments, f"--out={home / 'out'}", f"--work={home / work}"])
        try:
            return module.main()
        except SystemExit as stop:
            return stop.code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("purerl.run.runner.use_all_cores", lambda: 2)
        patch.setattr(figure3, "ENVS", (OTHER, ENV))
        patch.setattr(figure3, "METHODS", METHODS)
        yield run


@pytest.fixture(scope="module")
def out(call: Call, home: Path) -> Path:
    """Results of one finished run of four."""
    assert call("--envs", OTHER, "--methods", "ppo_clip") is None
    return home / "out"


def of(*last_tenth: float, source: str = "") -> Scores:
    """Scores of a run of the code that is here, or of another source."""
    return Scores(np.array(last_tenth), np.zeros(len(last_tenth)), 0, source or source_hash())


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))


def test_last_tenth_by_hand() -> None:
    """Of 20 updates the last two count: (1 x 10 + 3 x 20) / 4 = 17.5; the second seed's last episode ended before."""
    episodes, returns = np.zeros((2, 20)), np.full((2, 20), np.nan)
    episodes[:, 17], returns[:, 17] = 5, -100.0
    episodes[0, 18:], returns[0, 18:] = (1, 3), (10.0, 20.0)
    metrics = {"env_steps": np.tile(np.arange(1.0, 21.0) * 7, (2, 1)), "episodes": episodes, "episode_return": returns}
    np.testing.assert_array_equal(ppo_paper.last_tenth(metrics), [17.5, np.nan])


def test_last_tenth_does_not_hide_divergence() -> None:
    """An episode that ended with NaN makes the score NaN; that others ended with a number does not mend it."""
    metrics = {"env_steps": np.arange(1.0, 31.0)[None], "episodes": np.ones((1, 30))}
    returns = np.ones((1, 30))
    returns[0, 28] = np.nan
    assert np.isnan(ppo_paper.last_tenth({**metrics, "episode_return": returns})).all()
    returns[0, 28], returns[0, 26] = 4.0, np.nan  # before the last tenth
    np.testing.assert_allclose(ppo_paper.last_tenth({**metrics, "episode_return": returns}), [2.0])


@pytest.mark.parametrize(
    "ours, others, verdict",
    [
        ([3.0, 4.0, 5.0], [[1.0, 2.0, 4.9]], "first"),
        ([3.0, 4.0, 5.0], [[4.5, 4.6, 5.5]], "within its interval of the first"),  # 4.87 <= 5
        ([3.0, 4.0, 5.0], [[4.0, 6.0, 6.0]], "behind"),  # 5.33 > 5, though the intervals overlap
        ([3.0, 4.0, 5.0], [[np.nan, 9.0, 9.0]], "first"),
        ([3.0, np.nan, 5.0], [[1.0, 2.0, 3.0]], "missing"),
    ],
)
def test_standing(ours: list[float], others: list[list[float]], verdict: str) -> None:
    scores = {"ours": np.array(ours)} | {f"{i}": np.array(x) for i, x in enumerate(others)}
    assert figure3.standing(scores, "ours") == ("ours" if verdict == "first" else "0", verdict)


def test_standing_among_few() -> None:
    assert figure3.standing({"other": np.ones(3)}, "ours") == ("other", "missing")
    assert figure3.standing({}, "ours") == ("-", "missing")


def test_interval_of_three_seeds() -> None:
    assert ppo_paper.interval(np.array([1.0, 5.0, 4.0])) == (pytest.approx(10 / 3), 1.0, 5.0)


def test_the_table_says_who_is_first() -> None:
    """By hand: PPO's mean is 4 in [3, 5]; A2C's 2, then 4.5; the paper's scores stand beside them."""
    results = {
        "brax/hopper": {"PPO (clip)": of(3, 4, 5), "A2C": of(1, 2, 3)},
        "brax/reacher": {"PPO (clip)": of(3, 4, 5), "A2C": of(4, 4.5, 5)},
        "brax/swimmer": {"A2C": of(1, 2, 3)},
    }
    text = figure3.markdown(results, figure3.Options())
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "| 2.0 [1.0, 3.0] (682) | - (1052) | 4.0 [3.0, 5.0] (2130) |" in lines["hopper"]
    assert lines["hopper"].endswith("| PPO (clip) | first (of 2 of 6 methods) |")
    assert lines["reacher"].endswith("| A2C | within its interval of the first (of 2 of 6 methods) |")
    assert lines["swimmer"].endswith("| A2C | missing (of 1 of 6 methods) |")
    verdicts = [line for line in text.splitlines() if " of 3: " in line]
    within = "- within its interval of the first on 1 of 3: reacher"
    assert verdicts == ["- first on 1 of 3: hopper", within, "- missing on 1 of 3: swimmer"]


def test_methods_and_envs_are_those_of_the_paper() -> None:
    """Every method has a number of the paper's beside it in each env, and a name of its own for its folders."""
    assert [env for env in figure3.ENVS if len(figure3.PAPER[env]) != 6] == []
    assert set(figure3.ENVS) == set(figure3.PAPER) and set(table1.ENVS) < set(figure3.ENVS)
    for methods in (figure3.METHODS, [method for method, _ in table1.TABLE]):
        names = [method.name for method in methods]
        assert len(set(names)) == len(names) and all(name.replace("_", "").isalnum() for name in names)
    labels = {method.label for method in figure3.METHODS}
    assert figure3.OURS in labels and labels <= set(figure3.PAPER["brax/hopper"])


@pytest.mark.parametrize("method", [*figure3.METHODS, *(method for method, _ in table1.TABLE)], ids=lambda m: m.name)
def test_settings_are_configs(method: Method) -> None:
    """Each trains for a million steps less than one update: at most 2,048 steps, or 64 whole episodes of a search."""
    config = method.module.Config(env=OTHER, total_timesteps=1_000_000, **method.fields)
    most = 64_000 if method.algorithm == "cem" else 2048
    assert config.env_steps(1) <= most and config.env_steps(config.num_updates) > 1_000_000 - most


def test_what_is_missing_is_shown_as_missing(out: Path) -> None:
    """One run of four is finished: its panel has a line, the other env says that it has none, dashes in the table."""
    written = rows(out / "figure3.csv")
    assert [(row["env"], row["method"], row["seed"]) for row in written] == [(OTHER, "PPO (clip)", x) for x in "01"]
    text = (out / "figure3.md").read_text()
    assert f"| {OTHER} | " in text and f"| {ENV} | - | - | - | missing (of 0 of 2 methods) |" in text
    assert "| PPO (clip) | first (of 1 of 2 methods) |" in text
    assert matplotlib.image.imread(out / "figure3.png").std() > 0


def test_scores_are_those_of_the_run(out: Path, home: Path) -> None:
    """In the last of 8 updates 16 episodes of a seed end; the policy's own greedy evaluation stands beside them."""
    folder = home / "work" / "ppo_clip" / OTHER
    with (folder / "metrics.csv").open(newline="") as file:
        last = [row for row in csv.DictReader(file) if row["update"] == "8"]
    written = rows(out / "figure3.csv")
    for row, metrics in zip(written, last, strict=True):
        assert metrics["episodes"] == "16"
        assert float(row["last_tenth"]) == pytest.approx(float(metrics["episode_return"]), abs=1e-3)
    run = runner.load(folder)
    greedy = learning.evaluate(run, 3).mean(1)
    np.testing.assert_allclose([float(row["greedy"]) for row in written], greedy, atol=1e-3)


def test_the_picture_has_a_panel_an_env(out: Path, home: Path) -> None:
    options = figure3.Options(num_seeds=2, total_timesteps=6400, num_episodes=3, out=home / "out")
    figure = figure3.draw(ppo_paper.finished(METHODS, (OTHER, ENV), options), options)
    first, second, *_, last = figure.axes
    assert (first.get_title(), second.get_title()) == (OTHER, ENV)
    assert len(first.lines) == 1 and not second.lines and second.texts[0].get_text() == "no run finished"
    assert not second.get_xticks().size and not second.get_yticks().size and first.get_xticks().size
    assert first.lines[0].get_xdata()[-1] == 6400
    legend = last.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["PPO (clip)"]
    plt.close(figure)


def test_a_curve_begins_with_the_first_episode_and_ends_where_it_diverges(home: Path) -> None:
    """Windows before any episode ended hold no return, which is no divergence; a NaN after one is."""
    options = figure3.Options(num_seeds=2, out=home / "curves")
    run = ppo_paper.Run(METHODS[0], OTHER, options)
    rows = [["env_steps", "seed_0", "seed_1"], [1, "nan", 2.0], [2, 3.0, 2.0], [3, 4.0, "nan"], [4, 5.0, "nan"]]
    provenance.write_csv(run.results / "curve.csv", {}, rows)
    updates, values = plot.smooth(run.curve(), "episode_return")
    assert list(updates) == [1, 2, 3, 4]
    np.testing.assert_array_equal(values, [[np.nan, 3, 4, 5], [2, 2, np.nan, np.nan]])


def test_a_finished_run_is_not_trained_again(
    call: Call, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Nor is anything with --report, which writes what is there."""

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("trained")

    before = rows(out / "figure3.csv")
    monkeypatch.setattr(learning, "trained", forbidden)
    assert call("--envs", OTHER, "--methods", "ppo_clip") is None and call("--report") is None
    assert rows(out / "figure3.csv") == before and "| PPO (clip) | first" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="trained"):
        call()


def test_an_interrupted_run_goes_on(
    call: Call, out: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Without scores it is not finished: it goes on, comes to the same, and is written before the next, which stops."""
    scores, before = home / "out" / OTHER / "ppo_clip" / "scores.csv", rows(out / "figure3.csv")
    exact = rows(scores)
    scores.unlink()
    (out / "figure3.csv").unlink()
    trained = learning.trained

    def only_ppo(algorithm: Any, *arguments: Any) -> Any:
        return trained(algorithm, *arguments) if algorithm is ppo else sys.exit("stopped")

    monkeypatch.setattr(learning, "trained", only_ppo)
    assert call("--envs", OTHER) == "stopped"
    assert "Going on from update 8 of 8" in capsys.readouterr().out and rows(scores) == exact
    assert rows(out / "figure3.csv") == before


def test_a_report_discards_nothing(call: Call, out: Path, home: Path) -> None:
    assert call("--report", "--fresh") is None and (home / "out" / OTHER / "ppo_clip" / "scores.csv").exists()


def test_another_number_of_episodes_is_evaluated_anew(
    call: Call, out: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = figure3.Options(num_seeds=2, total_timesteps=6400, num_episodes=3, out=home / "out")
    assert ppo_paper.Run(METHODS[0], OTHER, options).stands
    other = ppo_paper.Run(METHODS[0], OTHER, replace(options, num_episodes=2))
    assert not other.stands and other.scores() is not None
    monkeypatch.setattr(ppo_paper.Run, "finish", lambda *_: sys.exit("evaluated"))
    assert call("--envs", OTHER, "--methods", "ppo_clip", "--num-episodes=2") == "evaluated"


def test_fresh_discards_the_results_of_the_runs(
    call: Call, out: Path, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else they would count as finished and nothing would be trained; those of other runs stay."""
    kept, other = tmp_path / "kept", out / ENV / "ppo_clip" / "scores.csv"
    shutil.copytree(home, kept)
    other.parent.mkdir(parents=True)
    other.write_text("")

    def stop(*_: Any) -> Any:
        sys.exit("trained")

    monkeypatch.setattr(learning, "trained", stop)
    try:
        assert call("--envs", OTHER, "--methods", "ppo_clip", "--fresh") == "trained"
        assert not (out / OTHER / "ppo_clip").exists() and other.exists()
    finally:
        shutil.rmtree(home)
        shutil.copytree(kept, home)


def test_what_is_written_anew_is_not_finished_meanwhile(out: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old scores beside a new curve or config would pass for the new run's; a copy that fails leaves the old one."""
    folder = out / OTHER / "ppo_clip"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    options = figure3.Options(num_seeds=2, total_timesteps=6400, num_episodes=0, out=out, work=home / "work")

    def fail(_: Path, to: Path) -> None:
        assert not (folder / "scores.csv").exists()
        to.write_text("{")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", fail)
        with pytest.raises(OSError, match="disk full"):
            ppo_paper.Run(METHODS[0], OTHER, options).finish({})
    left = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "scores.csv").write_bytes(before["scores.csv"])
    assert set(left) == {"config.json", "curve.csv"} and left["config.json"] == before["config.json"]


def test_text_and_picture_are_whole_or_not_written(tmp_path: Path) -> None:
    """A write that fails half-way leaves the old file, and nothing beside it."""

    class Half:
        def savefig(self, path: Path, **_: Any) -> None:
            path.write_text("half")
            raise OSError("disk full")

    provenance.write_text(tmp_path / "a.md", "old")
    (tmp_path / "b.png").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        provenance.save_figure(Half(), tmp_path / "b.png", {})
    with pytest.raises(UnicodeEncodeError):
        provenance.write_text(tmp_path / "a.md", "new" * 10_000 + "\ud800")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.md": "old", "b.png": "old"}


def test_runs_of_other_code_or_settings_are_refused(call: Call, out: Path, home: Path) -> None:
    """But what other code has finished is shown, a report or not, and told."""
    configs = [home / "work" / "ppo_clip" / OTHER / "config.json", out / OTHER / "ppo_clip" / "config.json"]
    text = configs[0].read_text()
    assert configs[1].read_text() == text and json.loads(text)["versions"]["source"] == source_hash()
    stored = json.loads(text)
    stored["versions"]["source"] = "0123456789ab"
    for config in configs:
        config.write_text(json.dumps(stored))
    before = rows(out / "figure3.csv")
    assert "other code" in call("--envs", OTHER) and rows(out / "figure3.csv") == before
    options = figure3.Options(num_seeds=2, total_timesteps=6400, num_episodes=3, out=home / "out")
    assert not ppo_paper.Run(METHODS[0], OTHER, options).stands
    assert {row["source"] for row in before} == {source_hash()}
    told = f"Runs of other code than is here now (source {source_hash()}): source 0123456789ab: all."
    assert told not in (out / "figure3.md").read_text()
    (out / "figure3.csv").unlink()
    assert told in figure3.write(options, {})
    assert rows(out / "figure3.csv") == [row | {"source": "0123456789ab"} for row in before]
    assert call("--report") is None and told in (out / "figure3.md").read_text()
    for config in configs:
        config.write_text(text)
    message = call("--envs", OTHER, "--methods", "ppo_clip", "--total-timesteps=7200")
    assert "differs in total_timesteps" in message and "--out" in message and "\n" not in message


def test_runs_of_other_code_are_named() -> None:
    """Both tables list them by source; nothing is said where all are of this code."""
    results = {"brax/hopper": {"A2C": of(1, source="abc"), "TRPO": of(1)}, "brax/reacher": {"TRPO": of(1, source="de")}}
    line = f"Runs of other code than is here now (source {source_hash()}): "
    line += "source abc: A2C on hopper; source de: TRPO on reacher."
    assert line in figure3.markdown(results, figure3.Options()).splitlines()
    assert line in table1.markdown(results, {}, {}, table1.Options()).splitlines()
    assert ppo_paper.source_lines({"brax/hopper": {"A2C": of(1)}, "brax/reacher": {}}) == []


@pytest.mark.parametrize(
    "methods", [figure3.METHODS, [method for method, _ in table1.TABLE]], ids=["figure3", "table1"]
)
def test_every_setting_is_listed(methods: list[Method]) -> None:
    """Each number of each Config, defaults too, stands in the common line or in the method's own."""
    _, _, _, common, _, *own = ppo_paper.settings_lines(methods)
    for method, line in zip(methods, own, strict=True):
        config = method.module.Config(env=OTHER, total_timesteps=1_000_000, **method.fields)
        names = {field.name for field in dataclasses.fields(config) if not field.metadata.get("network")}
        for name in names - {"env", "env_params", "total_timesteps"}:
            assert (f"`{name} = {getattr(config, name)!r}`" in common) != (f"`{name} = " in line), name
            assert f"`{name} = {getattr(config, name)!r}`" in common + line


def test_settings_of_the_default_that_matter_are_listed() -> None:
    lines = {line.partition(":")[0].strip("- "): line for line in ppo_paper.settings_lines(FIGURE3)}
    assert "`anneal_learning_rate = True`" in lines["A2C"] and "`n_step = 16`" in lines["A2C"]
    assert "`anneal_learning_rate = False`" in lines["PPO (clip)"]
    assert "`learning_rate = 0.00025`" in lines["TRPO"] and "`max_grad_norm = 0.5`" in lines["TRPO"]
    assert "`normalize_obs = True`" in lines["All"] and "`extra_std = 0.15`" in lines["CEM"]


@pytest.mark.parametrize(
    "words, message",
    [
        (("--envs", "Acrobot-v1"), f"There is no env Acrobot-v1 here; there are {OTHER}, {ENV}."),
        (("--methods", "sarsa"), "There is no method sarsa here; there are ppo_clip, a2c."),
        (("--num-seeds=0",), "--num-seeds must be at least 1, and --num-episodes not negative."),
        (("--num-episodes=-1",), "--num-seeds must be at least 1, and --num-episodes not negative."),
    ],
)
def test_what_there_is_not_is_one_sentence(call: Call, words: tuple[str, ...], message: str) -> None:
    assert call(*words) == message


def test_normalisation_by_hand() -> None:
    """Random -10 becomes 0, the best seed 10 becomes 1; an env that lacks a surrogate does not count."""
    labels = [method.label for method, _ in table1.TABLE]

    def row(*best: float) -> dict[str, Scores]:
        return {label: of(-10.0, 0.0) for label in labels} | {labels[1]: of(*best)}

    partial = {labels[0]: of(1.0, 1.0)}
    scaled = table1.normalised({"a": row(10.0, 5.0), "b": row(30.0, 30.0), "c": partial}, {"a": -10, "b": -10, "c": 0})
    assert list(scaled) == ["a", "b"]
    np.testing.assert_allclose(scaled["a"][labels[0]], [0, 0.5])
    np.testing.assert_allclose(scaled["a"][labels[1]], [1, 0.75])
    np.testing.assert_allclose(scaled["b"][labels[0]], [0, 0.25])
    means = table1.averages(scaled)
    np.testing.assert_allclose(means[labels[0]], [0, 0.375])
    np.testing.assert_allclose(means[labels[1]], [1, 0.875])
    assert table1.averages({}) == {}


@pytest.mark.parametrize("diverged", [0, 5])
def test_a_diverged_seed_counts_as_random(diverged: int) -> None:
    """Wherever it stands it counts 0 and is told, and all else stays what it was."""
    labels = [method.label for method, _ in table1.TABLE]
    row = {label: of(-10.0 + i, 10.0) for i, label in enumerate(labels)} | {labels[diverged]: of(np.nan, 10.0)}
    scaled = table1.normalised({"brax/hopper": row}, {"brax/hopper": -10.0})
    for i, label in enumerate(labels):
        np.testing.assert_allclose(scaled["brax/hopper"][label], [0.0 if i == diverged else i / 20, 1.0])
    text = table1.markdown({"brax/hopper": row}, {"brax/hopper": -10.0}, scaled, table1.Options())
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert lines[labels[diverged]].startswith(f"| {labels[diverged]} | 0.50 [0.00, 1.00] |")
    assert lines[labels[diverged]].endswith("| 10.0 (1 diverged) |") and lines[labels[4]].endswith("| 2.0 |")
    assert "nan" not in text and "counts as the random policy, 0" in text
    assert np.isfinite(table1.rank_correlation(table1.averages(scaled)))
    figure = table1.draw(table1.averages(scaled))
    heights = [table1.averages(scaled)[label].mean() for label in labels]
    bars = [patch.get_height() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    np.testing.assert_allclose(bars, heights)
    plt.close(figure)


def test_nothing_is_divided_by_where_no_seed_beats_random() -> None:
    """Such an env does not count: with nothing to reach, 0 and 1 would be the same, or the order turned round."""
    labels = [method.label for method, _ in table1.TABLE]
    worse = {label: of(-20.0, np.nan) for label in labels}
    nothing = {label: of(np.nan, np.nan) for label in labels}
    results = {"brax/hopper": worse, "brax/reacher": nothing}
    assert table1.normalised(results, {"brax/hopper": -10.0, "brax/reacher": 0.0}) == {}
    assert table1.cell(np.full(2, np.nan)) == "2 diverged"


def test_words_and_number_are_of_the_mean() -> None:
    """Of four seeds the IQM would be 3."""
    mean, low, high = table1.mean_interval(np.array([0.0, 2.0, 4.0, 14.0]))
    assert mean == 5.0 and 0.0 <= low < 2.0 and 10.0 < high <= 14.0
    assert table1.mean_interval(np.array([1.0, 5.0, 4.0])) == (pytest.approx(10 / 3), 1.0, 5.0)
    label = table1.TABLE[1][0].label
    row = {method.label: i * np.array([0.0, 2.0, 4.0, 14.0]) for i, (method, _) in enumerate(table1.TABLE)}
    scaled = {"brax/hopper": row}
    text = table1.markdown({"brax/hopper": {}}, {}, scaled, table1.Options())
    assert f"| {label} | 5.00 [" in text and "where the paper takes the last 100 episodes" in text


def test_rank_correlation_is_one_for_the_papers_order() -> None:
    exact = {method.label: np.exp([10 * score, 10 * score]) for method, score in table1.TABLE}
    assert table1.rank_correlation(exact) == pytest.approx(1.0)
    assert table1.rank_correlation({label: -x for label, x in exact.items()}) == pytest.approx(-1.0)


def test_table_of_a_partial_run() -> None:
    """The raw scores of what is finished, a dash for the rest, and no correlation."""
    labels = [method.label for method, _ in table1.TABLE]
    results = {"brax/reacher": {labels[2]: of(-7.0, -9.0)}, "brax/hopper": {}}
    text = table1.markdown(results, {"brax/reacher": -43.21}, {}, table1.Options())
    assert f"| {labels[2]} | - | 0.82 | -8.0 | - |" in text and "| random policy | 0 | 0 | -43.2 | - |" in text
    assert "0 of 2" in text and "Rank correlation" not in text
    figure = table1.draw({})
    assert not figure.axes[0].patches
    plt.close(figure)


def test_random_score_is_that_of_uniform_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Pendulum about -1,200; the mean of episodes stepped here by hand agrees within four standard errors."""
    env = envs.bind(ppo.Config(env=OTHER, num_envs=64, num_minibatches=1))

    def act(key: jax.Array, _: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (64, 1), minval=-1.0, maxval=1.0)

    key = jax.random.key(3)
    rewards = jax.jit(lambda: unroll(key, env, env.reset(key), act, 200)[1].reward)()
    returns = np.asarray(rewards).sum(0)
    error = np.hypot(returns.std() / 8, returns.std() / 10)
    assert abs(table1.random_score(OTHER) - returns.mean()) < 4 * error


class Squares:
    """Twenty steps, each paying the square of an action in [-3, 3]."""

    default_params = None

    def observation_space(self, _: Any) -> envs.Box:
        return envs.Box(-1.0, 1.0, (1,))

    def action_space(self, _: Any) -> envs.Box:
        return envs.Box(-3.0, 3.0, (1,))

    def reset(self, key: jax.Array, _: Any) -> Any:
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key: jax.Array, time: jax.Array, action: jax.Array, _: Any) -> Any:
        return jnp.zeros(1), time + 1, action[0] ** 2, jnp.bool_(False), time >= 19

    def max_episode_steps(self, _: Any) -> int:
        return 20


def test_random_actions_are_in_the_units_of_the_env() -> None:
    """3 a step (9 / 3), so 60 an episode, with a standard error of 1.2; in [-1, 1] it would be 7, clipped twice 140."""
    assert table1.random_score(Squares()) == pytest.approx(60, abs=5)  # type: ignore[arg-type]


def test_the_random_score_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is played once by each code, and by a report only where there is none."""
    played: list[str] = []

    def play(env: str) -> float:
        played.append(env)
        return -12.5

    monkeypatch.setattr(table1, "random_score", play)
    options = table1.Options(out=tmp_path)
    report = replace(options, report=True)
    assert table1.zero_score("brax/hopper", report, {}) == -12.5 and played == ["brax/hopper"]
    assert [table1.zero_score("brax/hopper", x, {}) for x in (report, options)] == [-12.5] * 2 and len(played) == 1
    path = tmp_path / "brax-hopper" / "random.csv"
    path.write_text(path.read_text().replace(source_hash(), "0123456789ab"))
    assert table1.zero_score("brax/hopper", report, {}) == -12.5 and len(played) == 1
    assert table1.zero_score("brax/hopper", options, {}) == -12.5 and len(played) == 2


def test_table1_by_its_command(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two surrogates in one env: the best seed has 1, and picture, table and scores are written."""
    monkeypatch.setattr(table1, "ENVS", (OTHER,))
    fields = METHODS[0].fields
    table = ((METHODS[0], 0.82), (Method("clip 0.1", "ppo", dict(fields) | {"learning_rate": 1e-2}), 0.76))
    monkeypatch.setattr(table1, "TABLE", table)
    assert call("--num-episodes=0", work="table1", module=table1) is None
    text, written = (home / "out" / "table1.md").read_text(), rows(home / "out" / "table1.csv")
    assert {row["greedy"] for row in written[:4]} == {"nan"}
    assert "1 of 1" in text and "Rank correlation" in text
    assert [row["method"] for row in written] == ["PPO (clip)"] * 2 + ["clip 0.1"] * 2 + ["random policy"]
    best, zero = max(float(row["last_tenth"]) for row in written[:4]), float(written[4]["last_tenth"])
    mean = np.mean([(float(row["last_tenth"]) - zero) / (best - zero) for row in written[:2]])
    assert f"| PPO (clip) | {mean:.2f} [" in text
    assert matplotlib.image.imread(home / "out" / "table1.png").std() > 0
