"""The learning benchmark on entries of a few updates: what it writes, what it refuses, and its figures by hand."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from benchmarks import learning, provenance
from purerl.run import runner, settings
from purerl.run.provenance import source_hash
from tests import tiny

ENV = "mdp/cliff_walking"
FIELDS = {name: value for name, value in tiny.FIELDS["q_learning"].items() if name != "env"}
FIELDS |= {"epsilon_end": 0.5}
SHIPPED = {
    ENV: settings.Setting(
        FIELDS,
        bar=-1e6,
        source="a bar for the test",
        variants={
            "high": settings.Setting(FIELDS, bar=0.0, source="out of reach"),
            "noisy": settings.Setting(FIELDS, bar=-1e6, source="a bar for the test", evaluate="epsilon"),
        },
    )
}
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learning")


@pytest.fixture(scope="module")
def call(home: Path) -> Iterator[Call]:
    """Runs the benchmark's command; returns its exit status, or the sentence it ends with."""

    def run(*words: str) -> Any:
        arguments = [*words, "--num-seeds=3", "--first-seed=4", "--num-episodes=5"]
        patch.setattr(sys, "argv", ["learning", *arguments, f"--out={home / 'out'}", f"--work={home / 'work'}"])
        with pytest.raises(SystemExit) as status:
            learning.main()
        return status.value.code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "use_all_cores", lambda: 2)
        patch.setattr(settings, "shipped", lambda name: SHIPPED if name == "q_learning" else {})
        yield run


@pytest.fixture(scope="module")
def out(call: Call, home: Path) -> Path:
    """Results of all entries and variants; the exit status is 1, since one is under its bar."""
    assert call("--all") == 1
    return home / "out"


def table(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """A result's comment lines as facts, and its rows."""
    lines = path.read_text().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("#"))
    return facts, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def begun_by(config: Path, source: str) -> dict[str, Any]:
    """Makes config.json say which code began the run; returns what it holds."""
    stored = json.loads(config.read_text())
    stored["versions"]["source"] = source
    config.write_text(json.dumps(stored))
    return stored


def test_it_writes_what_it_measured(out: Path) -> None:
    """Each entry and variant in its folder, and a row of the summary for it."""
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    folder = "q_learning/mdp-cliff_walking"
    names = [f"{folder}/{variant}{name}" for variant in ("", "high/", "noisy/") for name in ("scores.csv", "curve.csv")]
    names += [name.replace("curve.csv", "curve.png") for name in names if "curve" in name]
    assert written == {"summary.csv", "summary.md", *names}
    rows = {row["variant"]: row for row in table(out / "summary.csv")[1]}
    assert {name: row["reached"] for name, row in rows.items()} == {"": "True", "high": "False", "noisy": "True"}
    assert {name: row["actions"] for name, row in rows.items()} == {
        "": "greedy",
        "high": "greedy",
        "noisy": "epsilon 0.5",
    }
    assert {name: row["under_bar"] for name, row in rows.items()} == {"": "0", "high": "3", "noisy": "0"}
    assert rows["high"]["bar_source"] == "out of reach" and rows[""]["seeds"] == "4-6"
    assert rows["noisy"]["source"] == source_hash()


def test_its_figures_are_those_of_the_scores(out: Path) -> None:
    """With epsilon the episodes of a seed differ, on this env greedy ones cannot; errors by their definition."""
    folder = out / "q_learning" / "mdp-cliff_walking"
    greedy, noisy = table(folder / "scores.csv")[1], table(folder / "noisy" / "scores.csv")[1]
    assert all(float(row["se"]) == 0 for row in greedy) and all(float(row["se"]) > 0 for row in noisy)
    for row in noisy:  # the standard deviation beside it divides by the number of episodes, the error by one less
        assert float(row["se"]) == pytest.approx(float(row["std"]) / np.sqrt(5 - 1), abs=2e-3)
    means = np.array([float(row["mean"]) for row in noisy])
    summary = next(row for row in table(out / "summary.csv")[1] if row["variant"] == "noisy")
    assert float(summary["mean"]) == pytest.approx(means.mean(), abs=0.01)
    assert float(summary["se"]) == pytest.approx(np.sqrt(((means - means.mean()) ** 2).sum() / 2 / 3), abs=0.01)
    assert (float(summary["lowest"]), summary["worst_seed"]) == (
        pytest.approx(means.min(), abs=0.01),
        noisy[int(means.argmin())]["seed"],
    )


def test_each_file_says_what_made_it(out: Path) -> None:
    folder = out / "q_learning" / "mdp-cliff_walking"
    picture = Image.open(folder / "curve.png").info
    for facts in (table(folder / "scores.csv")[0], table(folder / "curve.csv")[0], picture):
        assert set(provenance.KEYS) <= set(facts) and facts["source"] == source_hash()
        assert facts["command"].startswith("python -m benchmarks.learning --all --num-seeds=3")
    assert matplotlib.image.imread(folder / "curve.png").std() > 0
    assert (
        len(table(folder / "curve.csv")[1]) == 6 and f"| q_learning | {ENV} | - |" in (out / "summary.md").read_text()
    )


def test_the_work_of_other_code_is_refused(call: Call, out: Path, home: Path, capsys: pytest.CaptureFixture) -> None:
    """The same code's finished run is evaluated again; any other is refused, or with --fresh trained anew."""
    config = home / "work" / "q_learning_mdp-cliff_walking_4-6" / "config.json"
    stored = begun_by(config, source_hash())
    assert call("q_learning", ENV) == 0 and "Going on from update 6 of 6" in capsys.readouterr().out
    before = (out / "summary.csv").read_bytes()
    del stored["versions"]["source"]
    for text, told in ((stored | {"versions": {"source": "0123456789ab"}}, "0123456789ab"), (stored, "unknown")):
        config.write_text(json.dumps(text))
        message = call("q_learning", ENV)
        assert isinstance(message, str) and f"{config.parent} (source {told})" in message
        assert "--fresh" in message and "\n" not in message
    config.write_text("{")
    assert "(source unknown)" in call("q_learning", ENV)
    assert (out / "summary.csv").read_bytes() == before
    capsys.readouterr()
    assert call("q_learning", ENV, "--fresh") == 0
    assert f"Training anew: {config.parent} is discarded" in capsys.readouterr().out


def test_a_run_of_other_settings_is_one_sentence(
    call: Call, out: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_by(home / "work" / "q_learning_mdp-cliff_walking_4-6" / "config.json", source_hash())
    changed = {ENV: settings.Setting({**FIELDS, "gamma": 0.5}, bar=0.0, source="a bar for the test")}
    monkeypatch.setattr(settings, "shipped", lambda name: changed)
    message = call("q_learning", ENV)
    assert isinstance(message, str) and "differs in gamma" in message


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "Name pairs of algorithm and env"),
        (("ppo",), "Name pairs of algorithm and env"),
        (("q_learning", "nowhere"), f"no tuned settings of q_learning for nowhere; there are for: {ENV}"),
        (("q_learning", f"{ENV}:x"), "has no variant 'x'; it has: high, noisy"),
    ],
)
def test_what_there_is_not_is_one_sentence(call: Call, words: tuple[str, ...], message: str) -> None:
    status = call(*words)
    assert message in status and "\n" not in status


def test_a_summary_keeps_the_rows_of_other_entries(tmp_path: Path) -> None:
    """Rows of before, also those that lack a column of today, stay; that of the same entry is replaced."""
    (tmp_path / "summary.csv").write_text(
        "algorithm,env,variant,env_steps,mean,bar,reached,source\nppo,A,,1000,3.0,2,True,\nppo,B,,1000,4.0,2,True,abc\n"
    )
    row = {name: "" for name in learning._COLUMNS} | {"algorithm": "ppo", "env": "B", "env_steps": 7, "mean": "9.0"}
    learning.write_summary(tmp_path, {**row, "bar": 1, "bar_source": "a paper", "reached": False})
    rows = table(tmp_path / "summary.csv")[1]
    assert [(row["env"], row["mean"], row["env_steps"]) for row in rows] == [("A", "3.0", "1000"), ("B", "9.0", "7")]
    assert tuple(rows[0]) == learning._COLUMNS
    text = (tmp_path / "summary.md").read_text()
    assert "- ppo B, 1: a paper." in text and "- ppo A" not in text and "**no**" in text


def test_standard_error_of_one_value_is_nan() -> None:
    assert np.isnan(learning.standard_error(np.array([3.0])))
    np.testing.assert_allclose(learning.standard_error(np.array([1.0, 2.0, 6.0])), np.sqrt(14 / 2 / 3))
