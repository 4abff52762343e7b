"""The speed benchmark's arithmetic and report from made-up times, and its processes with a made-up library."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.speed import kernels, measure, report
from benchmarks.speed.report import Report
from benchmarks.speed.workers import ROOT, Start, Worker, WorkerError

# Seconds of three repetitions. Of rejax as it comes the start with NPROC is the faster by its median, although the
# other has the fastest single run. The medians of the ratios are 2.5 and 1.25, where ratios of medians would be 2 and
# 1.5.
SECONDS = {
    "purerl": [1.0, 2.0, 4.0],
    "rejax": [1.0, 9.0, 90.0],
    "rejax NPROC=16": [4.0, 5.0, 3.0],
    "rejax, equal": [3.0, 2.5, 4.0],
}
COMES, EQUAL = ["rejax", "rejax NPROC=16"], ["rejax, equal"]


def compared(quick: bool = False) -> Report:
    found = Report({"command": "python -m benchmarks.speed"}, 5, quick)
    measure.compare(measure.Bench(5, quick, "python", {}, found), "ppo-16", SECONDS, COMES, EQUAL)
    found.seconds["ppo-16"] = 61.4
    return found


def tables(text: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of a text, each line by its columns."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("| "):
            found[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif found[-1]:
            found.append([])
    return [[dict(zip(rows[0], row, strict=True)) for row in rows[2:]] for rows in found if rows]


def test_both_ratios_are_medians_over_repetitions() -> None:
    first, second = compared().rows
    assert (first.side, first.measure) == ("purerl / rejax NPROC=16", "env steps, as it comes")
    assert first.values == [4.0, 2.5, 0.75]
    assert (second.side, second.measure) == ("purerl / rejax, equal", "env steps, equal devices and flags")
    assert second.values == [3.0, 1.25, 1.0]


def test_report_shows_both_ratios(tmp_path: Path) -> None:
    report.write(compared(), tmp_path)
    targets, rows = tables((tmp_path / "speed.md").read_text())
    assert [(x["measured"], x["target"], x["result"]) for x in targets] == [
        ("2.50x", ">= 2.0x", "reached"),
        ("1.25x", "-", "no target"),
    ]
    assert [(x["side"], x["median"], x["min"], x["max"]) for x in rows] == [
        ("purerl / rejax NPROC=16", "2.5", "0.75", "4"),
        ("purerl / rejax, equal", "1.25", "1", "3"),
    ]
    words = (tmp_path / "speed.md").read_text()
    assert "2.50 times the env steps per second of a user of rejax (rejax NPROC=16)" in words
    assert "1.25 times remain" in words and "ppo-16 61 s" in words


def test_csv_holds_the_same_numbers(tmp_path: Path) -> None:
    report.write(compared(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.csv", "speed.md"]
    comment, *lines = (tmp_path / "speed.csv").read_text().splitlines()
    assert comment == "# command: python -m benchmarks.speed"
    assert [(x["case"], float(x["median"])) for x in csv.DictReader(lines)] == [("ppo-16", 2.5), ("ppo-16", 1.25)]


def test_quick_run_judges_no_time(tmp_path: Path) -> None:
    found = compared(quick=True)
    found.judge("metrics", "bytes", "1 against 2", "equal", False, timed=False)
    report.write(found, tmp_path)
    text = (tmp_path / "speed.md").read_text()
    assert "no measurement" in text
    assert [x["result"] for x in tables(text)[0]] == ["not measured", "no target", "NOT reached"]


def test_without_rejax_nothing_is_compared() -> None:
    found = Report({}, 5, False)
    measure.compare(measure.Bench(5, False, None, {}, found), "ppo-1", {"purerl": [1.0]}, [], [])
    assert [verdict.result() for verdict in found.verdicts] == ["not measured", "not measured"]
    assert not found.rows and not found.words


def test_words_do_not_call_a_loss_a_gain() -> None:
    slower, faster = report.Ratio("rejax", [1.1]), report.Ratio("rejax, equal", [1.4])
    assert "it is 1.40 times: they do not help rejax" in report.in_words("dqn-1", slower, faster)


# A program as XLA prints it, cut down: 11 updates, each with a loop of 128 turns that holds a fused matrix product.
PROGRAM = """\
HloModule jit_train, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  ROOT %dot.9 = f32[4]{0} dot(%p, %p), metadata={op_name="jit(train)/while/body/Dense_0/dot_general"}
}

%inner.body (q: (f32[4])) -> (f32[4]) {
  %ynn_fusion = f32[4,64]{1,0} fusion(%q), kind=kCustom, calls=%fused, metadata={op_name="jit(f)/while/dot_general"}
  ROOT %copy.1 = f32[4]{0} copy(%ynn_fusion)
}

%outer.body (r: (f32[4])) -> (f32[4]) {
  %while.2 = (f32[4]{0}) while(%r), condition=%c, body=%inner.body, backend_config={"known_trip_count":{"n":"128"}}
  ROOT %add.3 = f32[4]{0} add(%while.2, %while.2), metadata={op_name="jit(train)/while/body/closed_call/add"}
}

ENTRY %main (s: f32[4]) -> f32[4] {
  %init.1 = f32[4]{0} negate(%s)
  ROOT %while.1 = (f32[4]{0}) while(%init.1), body=%outer.body, backend_config={"known_trip_count":{"n":"11"}}
}
"""


def test_kernels_of_an_update() -> None:
    """Loops are no kernels, what runs once a training is left out, and the fastest call stands for all."""
    seconds = {"while.1": [1.0], "while.2": [0.1] * 11, "init.1": [0.5]}
    seconds |= {"ynn_fusion": [3e-6, 2e-6, 1e-6, 99.0] * 352, "copy.1": [1e-6] * 1408, "add.3": [4e-6] * 11}
    found = {x["name"]: x for x in kernels.summarize(seconds, kernels.parse(PROGRAM), 11)}
    assert found.keys() == {"ynn_fusion", "copy.1", "add.3"}
    assert found["ynn_fusion"] == {
        "name": "ynn_fusion",
        "shape": "f32[4,64]",
        "what": "dot_general",
        "loop": "128",
        "product": True,
        "calls": 128.0,
        "seconds": 1e-6,
    }
    assert [found["add.3"][x] for x in ("loop", "what", "product", "calls")] == ["", "add", False, 1.0]
    assert not found["copy.1"]["product"]


def profiled(update: float) -> dict[str, object]:
    facts = {"shape": "f32[4]", "what": "", "loop": ""}
    made = [("dot", True, 10, 11e-6), ("copy", False, 100, 1e-6), ("add", False, 100, 3e-6)]
    return {
        "seconds": update,
        "kernels": [
            {"name": name, "product": product, "calls": calls, "seconds": seconds, **facts}
            for name, product, calls, seconds in made
        ],
    }


@pytest.mark.parametrize(("update", "scale"), [(500e-6, 1.0), (150e-6, 0.5)])
def test_shares_of_an_update(update: float, scale: float) -> None:
    """Less the cheapest kernel's 1 us a call, products take 100 us and the rest 200 us, or what the update leaves."""
    parts = report.split(profiled(update))
    assert parts == pytest.approx((update, scale * 100e-6, scale * 200e-6, update - scale * 300e-6, 210))
    *lines, whole = report.kernel_table("profile", "purerl", profiled(update)).lines
    assert math.isclose(sum(float(line[-1]) for line in lines), 100, abs_tol=0.2) and whole[-1] == "100.0"
    assert [line[0] for line in lines] == ["add", "dot", "copy", "0 others", "starting them all"]


def test_what_is_in_the_way() -> None:
    ours, theirs = report.split(profiled(500e-6)), report.split(profiled(600e-6))
    text = report.in_the_way({"purerl": ours, "rejax": theirs}, 1.5)
    assert "1.5 times rejax's speed is 0.40 ms" in text and "purerl is 0.10 ms over that" in text


LIBRARY = """
from benchmarks.speed.sides import Side, serve

class Fake(Side):
    def build(self, case, quick):
        print("noise of a library")
        self.train = lambda seed: sum(range(100_000))
        return {"compile": 0.25}

serve(Fake())
"""


def test_worker_answers_and_tells_what_failed() -> None:
    with Worker(Start("fake", (sys.executable, "-c", LIBRARY), {}), "ppo-1") as worker:
        with pytest.raises(WorkerError, match=r"ppo-1: fake failed in run: AttributeError(.|\n)*in run"):
            worker.ask("run", seed=0)
        assert worker.ask("build", case="ppo-1", quick=True) == {"compile": 0.25}
        assert 0 < worker.ask("run", seed=0) < 10
        assert worker.ask("peak_memory") > 1


def test_benchmark_starts_without_jax() -> None:
    """A worker begins with its parent's peak memory; and where rejax lives there is no purerl."""
    parent = "import sys, benchmarks.speed.__main__; sys.exit('jax' in sys.modules)"
    shared = "import sys, benchmarks.speed.kernels, benchmarks.speed.cases, benchmarks.speed.sides"
    for code in (parent, f"{shared}; sys.exit(any(x.partition('.')[0] in ('jax', 'purerl') for x in sys.modules))"):
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
