"""The speed benchmark's arithmetic and report from made-up times, and its processes with a made-up library."""

import csv
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.speed import cases, kernels, measure, off_policy, policy_gradients, report, search
from benchmarks.speed.__main__ import libraries_of
from benchmarks.speed.bench import PURERL, Bench, ask_each
from benchmarks.speed.report import Report
from benchmarks.speed.workers import ROOT, Start, Worker, WorkerError, WorkerTimeout

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
    measure.compare(Bench(5, quick, {"rejax": "python"}, {}, found), "ppo-16", SECONDS, COMES, EQUAL)
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
    measure.compare(Bench(5, False, {"rejax": None}, {}, found), "ppo-1", {"purerl": [1.0]}, [], [])
    assert [verdict.result() for verdict in found.verdicts] == ["not measured", "not measured"]
    assert not found.rows and not found.words


def test_words_do_not_call_a_loss_a_gain() -> None:
    slower, faster = report.Ratio("rejax", [1.1]), report.Ratio("rejax, equal", [1.4])
    assert "it is 1.40 times: they do not help rejax" in report.in_words("dqn-1", slower, faster)


def bench(sb3: str | None = None) -> Bench:
    return Bench(5, False, {"sb3": sb3}, {}, Report({}, 5, False))


def verdicts(bench: Bench) -> list[tuple[str, str, str]]:
    return [(verdict.value, verdict.target, verdict.result()) for verdict in bench.report.verdicts]


# The start with one thread is the faster by its median, although the other has the fastest single run.
A2C_SECONDS = {"a2c": [1.0, 2.0, 4.0], "ppo": [3.0, 3.0, 4.0]}
SB3_SECONDS = {"sb3 DummyVecEnv": [5.0, 90.0, 90.0], "sb3 DummyVecEnv OMP_NUM_THREADS=1": [40.0, 20.0, 36.0]}


def test_a2c_against_ppo_and_the_fastest_rival() -> None:
    found = bench("python")
    policy_gradients.conclude_a2c(found, A2C_SECONDS | SB3_SECONDS)
    assert verdicts(found) == [("1.50x", ">= 2.0x", "NOT reached"), ("10.0x", ">= 10.0x", "reached")]
    rows = {(row.side, row.unit): row.values for row in found.report.rows}
    assert rows["a2c", "1/s"] == [102_400, 51_200, 25_600]
    assert rows["a2c / ppo", "x"] == [3.0, 1.5, 1.0]
    assert rows["a2c / sb3 DummyVecEnv OMP_NUM_THREADS=1", "x"] == [40.0, 10.0, 9.0]
    (words,) = found.report.words
    assert "51,200 env steps per second, 1.50 times those of PPO" in words
    assert "10.0 times those of Stable-Baselines3's A2C at its fastest (sb3 DummyVecEnv OMP_NUM_THREADS=1)" in words


def test_a2c_without_stable_baselines() -> None:
    found = bench()
    assert policy_gradients.sb3_starts(found) == []
    policy_gradients.conclude_a2c(found, A2C_SECONDS)
    assert verdicts(found) == [("1.50x", ">= 2.0x", "NOT reached"), ("not run", ">= 10.0x", "not measured")]
    assert "Stable" not in found.report.words[0]


def test_stable_baselines_is_started_in_four_ways() -> None:
    starts = policy_gradients.sb3_starts(bench("python"))
    assert [(start.command[-1], start.variables) for start in starts] == [
        (vec_env, threads) for vec_env in ("DummyVecEnv", "SubprocVecEnv") for threads in ({}, {"OMP_NUM_THREADS": "1"})
    ]
    assert len({start.name for start in starts}) == 4


def test_update_of_trpo_over_that_of_ppo() -> None:
    found = bench()
    policy_gradients.conclude_trpo(found, {"trpo": [0.98, 0.588, 0.392], "ppo": [0.196, 0.196, 0.392]})
    assert verdicts(found) == [("3.00x", "<= 3.0x", "reached")]
    assert [row.values for row in found.report.rows[:2]] == [pytest.approx([5, 3, 2]), pytest.approx([1, 1, 2])]
    assert "TRPO, acting included, takes 3.00 ms and one of PPO 1.00 ms" in found.report.words[0]


def test_second_core_is_judged_for_each() -> None:
    found = bench()
    policy_gradients.conclude_cores(
        found, "two-cores", {"a2c": ([1.0, 2.0], [1.8, 3.6]), "ppo": ([2.0, 2.0], [2.0, 4.0])}
    )
    assert verdicts(found) == [("1.80x", ">= 1.8x", "reached"), ("1.50x", ">= 1.8x", "NOT reached")]
    assert "a2c 1.80, ppo 1.50" in found.report.words[0]


# At its median SBX is the faster as it comes, although its other start has the fastest single run.
SAC_SECONDS = {
    "purerl": [1.0, 2.0, 4.0],
    "sb3": [9.0, 9.0, 90.0],
    "sb3 OMP_NUM_THREADS=1": [2.0, 5.0, 12.0],
    "sbx": [1.5, 3.0, 6.4],
    "sbx, equal": [1.0, 4.0, 8.0],
}


def test_sac_against_each_library_at_its_fastest() -> None:
    found = bench()
    off_policy.conclude_sac(found, SAC_SECONDS)
    assert verdicts(found) == [("2.50x", ">= 2.5x", "reached"), ("1.50x", ">= 1.5x", "reached")]
    rows = {(row.side, row.unit): row.values for row in found.report.rows}
    assert rows["purerl", "1/s"] == [3500, 1750, 875]
    assert rows["purerl / sb3 OMP_NUM_THREADS=1", "x"] == [2.0, 2.5, 3.0]
    assert rows["purerl / sbx", "x"] == [1.5, 1.5, 1.6]
    (words,) = found.report.words
    assert "1,750 env steps per second, 2.50 times those of Stable-Baselines3 at its fastest" in words
    assert "1.50 times those of SBX at its fastest (sbx)" in words


def test_sac_alone() -> None:
    found = bench()
    off_policy.conclude_sac(found, {"purerl": [1.0, 2.0, 4.0]})
    assert [verdict.result() for verdict in found.report.verdicts] == ["not measured"] * 2
    assert "Stable" not in found.report.words[0]


def test_sac_beside_each_library_in_two_ways() -> None:
    found = Bench(5, False, {"sb3": "torch", "sbx": "jax"}, {"JAX_NUM_CPU_DEVICES": "2"}, Report({}, 5, False))
    assert [(start.name, start.command[0], start.variables) for start in off_policy.rivals(found)] == [
        ("sb3", "torch", {}),
        ("sb3 OMP_NUM_THREADS=1", "torch", {"OMP_NUM_THREADS": "1"}),
        ("sbx", "jax", {}),
        ("sbx, equal", "jax", {"JAX_NUM_CPU_DEVICES": "2"}),
    ]
    assert off_policy.rivals(Bench(5, False, {"sb3": None, "sbx": None}, {}, Report({}, 5, False))) == []


def test_share_of_the_peak() -> None:
    """12 MFLOP in 1 ms are 12 GFLOP/s; the best repetition of each peak counts, and the median of the steps."""
    found = bench()
    seconds = dict(zip(off_policy.PARTS, (1e-4, 5e-4, 2e-4, 1e-4, 5e-5, 1e-3, 4e-5), strict=True))
    rounds = [seconds, seconds | {"whole": 2e-3}, seconds | {"whole": 5e-4}]
    off_policy.conclude_parts(found, 12e6, rounds, {"chain": [20e9, 24e9], "large": [48e9, 30e9]})
    rows = {(row.measure, row.unit): row.values for row in found.report.rows}
    assert rows["matrix products of a gradient step", "GFLOP/s"] == pytest.approx([12, 6, 24])
    assert rows["critics, forward and backward", "us"] == pytest.approx([500] * 3)
    assert rows["critics, forward and backward", "% of gradient step"] == pytest.approx([50, 25, 100])
    assert rows["gradient step over chained products of 256 x 256", "% of peak"] == pytest.approx([50, 25, 100])
    assert rows["gradient step over large product", "% of peak"] == pytest.approx([25, 12.5, 50])
    (words,) = found.report.words
    assert "a gradient step of 1000 us reaches 50 % of the peak of chained" in words and "would take 500 us" in words
    assert "500 us critics, forward and backward" in words and "an env step takes 40 us" in words


def test_memory_of_hopper_is_judged_by_speed_and_size() -> None:
    found = bench()
    alone = {"capacity 1e4": [10.0, 20.0, 40.0], "capacity 1e6": [9.0, 17.0, 20.0]}
    training = {"capacity 1e4": [10.0, 10.0, 10.0], "capacity 1e6": [9.0, 8.0, 7.0]}
    off_policy.conclude_hopper(found, 111.0, {off_policy.WRITE_AND_DRAW: alone, off_policy.TRAIN: training})
    assert verdicts(found) == [
        ("0.85x", ">= 0.85x", "reached"),
        ("0.80x", ">= 0.85x", "NOT reached"),
        ("111.00", "<= 110", "NOT reached"),
    ]


def test_compile_time_is_judged_against_that_of_rejax() -> None:
    found = bench()
    seconds = {"purerl": [2.0, 4.0, 3.0], "rejax": [9.0, 9.0, 9.0], "rejax, equal": [1.0, 4.0, 2.0]}
    measure.judge_compilation(found, "sac-1", seconds, 1.3)
    measure.judge_compilation(found, "td3-1", {"purerl": [1.0]}, 1.3)
    assert verdicts(found) == [("1.50x", "<= 1.3x", "NOT reached"), ("not run", "<= 1.3x", "not measured")]


def test_compile_time_is_judged_against_that_of_ppo() -> None:
    found = bench()
    seconds = {"trpo": [4.0, 3.0, 9.0], "a2c": [1.0, 2.0, 3.0], "ppo": [2.0, 3.0, 6.0]}
    policy_gradients.conclude_compile(found, seconds)
    assert [verdict.what for verdict in found.report.verdicts] == [
        f"compile time of {algorithm} over PPO's" for algorithm in ("trpo", "a2c")
    ]
    assert verdicts(found) == [("1.50x", "<= 1.3x", "NOT reached"), ("0.50x", "<= 1.3x", "reached")]
    assert "PPO is traced and compiled in 3.0 s; so many times that take trpo 1.50, a2c 0.50" in found.report.words[0]


def test_terms_are_shown_for_the_cases_that_ran() -> None:
    found = bench()
    policy_gradients.conclude_trpo(found, {"trpo": [1.0], "ppo": [1.0]})
    text = "\n".join(report.markdown(found.report))
    assert cases.SAME_TRPO in text and cases.SAME_WORK not in text and cases.SAME_A2C not in text
    assert cases.SAME_WORK in "\n".join(report.markdown(compared()))


def test_a_library_is_made_for_the_cases_that_need_it() -> None:
    assert libraries_of(measure.CASES) == list(cases.LIBRARIES)
    assert libraries_of(["a2c", "trpo"]) == ["sb3"] and libraries_of(["ppo-1"]) == ["rejax"]
    assert libraries_of(["trpo", "two-cores", "compile", "sac-parts", "hopper-replay", "off-policy-cores"]) == []
    assert libraries_of(["sac-256"]) == ["sb3", "sbx"] and libraries_of(["sac-1"]) == libraries_of(["td3-1"]) == [
        "rejax"
    ]
    assert libraries_of(["cem", "pets", "pets-parts"]) == ["mbrl"] and libraries_of(["cem", "pets-parts"]) == []
    named = [library.cases for library in cases.LIBRARIES.values()] + list(cases.TERMS.values())
    assert {case for group in named for case in group} <= measure.CASES.keys()


class Hangs:
    def ask(self, do: str) -> float:
        raise WorkerTimeout("it did not finish")


def test_a_rival_that_hangs_is_left_out() -> None:
    found = bench()
    workers = dict.fromkeys(("rejax, equal", "sb3 DummyVecEnv"), Hangs())
    assert ask_each(found, workers, "run") == {} and not workers
    assert found.report.notes == ["it did not finish"] * 2
    with pytest.raises(WorkerTimeout):
        ask_each(found, {"a2c": Hangs()}, "run")


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


WITH_A_CHILD = """
import subprocess
from benchmarks.speed.sides import Side, serve

class Parent(Side):
    def build(self, case, quick):
        return {"child": subprocess.Popen(["sleep", "60"]).pid}

serve(Parent())
"""


def runs(process: int) -> bool:
    """Whether it exists and is no zombie that waits for its reaper."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system shows no processes in /proc")
def test_worker_ends_with_all_that_it_started() -> None:
    with Worker(Start("parent", (sys.executable, "-c", WITH_A_CHILD), {}), "a2c") as worker:
        child = worker.ask("build", case="a2c", quick=True)["child"]
        assert runs(child)
    deadline = time.monotonic() + 10
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(child)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to a core")
def test_one_core_is_one_device() -> None:
    with Worker(PURERL, "two-cores") as worker:
        assert worker.ask("use_cores", cores=1) == 1
        with pytest.raises(WorkerError, match="2 cores are needed, but this process may use 1"):
            worker.ask("use_cores", cores=2)


def test_benchmark_starts_without_jax() -> None:
    """A worker begins with its parent's peak memory; and where rejax lives there is no purerl."""
    parent = "import sys, benchmarks.speed.__main__; sys.exit('jax' in sys.modules)"
    shared = "import sys, benchmarks.speed.kernels, benchmarks.speed.cases, benchmarks.speed.sides"
    for code in (parent, f"{shared}; sys.exit(any(x.partition('.')[0] in ('jax', 'purerl') for x in sys.modules))"):
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_cem_is_judged_by_its_share_of_the_env() -> None:
    found = bench()
    search.conclude_cem(
        found, [{"search": 8.0, "env": 10.0}, {"search": 6.0, "env": 10.0}, {"search": 9.0, "env": 10.0}]
    )
    assert verdicts(found) == [("0.80x", ">= 0.8x", "reached")]
    search.conclude_cem(found, [{"search": 7.9, "env": 10.0}])
    assert verdicts(found)[1] == ("0.79x", ">= 0.8x", "NOT reached")


def test_pets_is_judged_against_the_faster_start_of_mbrl() -> None:
    found = bench()
    seconds = {"purerl": [1.0, 2.0, 1.0], "mbrl": [9.0, 9.0, 9.0], "mbrl OMP_NUM_THREADS=1": [5.0, 12.0, 6.0]}
    search.conclude_pets(found, seconds)
    search.conclude_pets(found, {"purerl": [1.0]})
    assert verdicts(found) == [("6.00x", ">= 5x", "reached"), ("not run", ">= 5x", "not measured")]
    rows = {(row.side, row.unit): row.values for row in found.report.rows if row.side == "mbrl"}
    assert rows["mbrl", "1/s"] == pytest.approx([700 / 9] * 3)
    starts = search.rivals(Bench(5, False, {"mbrl": "torch"}, {}, Report({}, 5, False)))
    assert [(start.name, start.command[0], start.variables) for start in starts] == [
        ("mbrl", "torch", {}),
        ("mbrl OMP_NUM_THREADS=1", "torch", {"OMP_NUM_THREADS": "1"}),
    ]
    assert search.rivals(Bench(5, False, {"mbrl": None}, {}, Report({}, 5, False))) == []


def test_a_search_is_judged_against_trials_that_are_scaled() -> None:
    """Two trials at a time on two cores: 64 of them take 32 times as long as one."""
    found = bench()
    search.conclude_tune(found, 64, [100.0, 50.0, 80.0], [[60.0, 40.0], [50.0, 50.0], [30.0, 70.0]])
    search.conclude_tune(found, 64, [100.0], [[]])
    assert verdicts(found) == [("20.0x", ">= 10x", "reached"), ("not run", ">= 10x", "not measured")]
    assert "64 trials of PPO take 80 s, and would take RL Zoo 1,600 s" in found.report.words[0]


def test_parts_of_pets() -> None:
    """Of updates of 2 s half is planning; 1 GFLOP in half a second are a tenth of a peak of 20 GFLOP/s."""
    found = bench()
    rounds = [{"update": 2.0, "planning": 1.0, "training": 0.5, "env": 0.02}] * 3
    search.conclude_parts(found, 3000, [91.0, 80.0, 89.0], {"planning": 4e9, "training": 1e9}, rounds, [20e9, 15e9])
    assert verdicts(found) == [("89.0", "<= 90", "reached")]
    rows = {(row.measure, row.unit): row.values for row in found.report.rows}
    assert rows["planning", "% of an update"] == pytest.approx([50] * 3)
    assert rows["training the model", "ms an update"] == pytest.approx([500] * 3)
    assert rows["planning: matrix products", "% of peak"] == pytest.approx([20] * 3)
    assert rows["training the model: matrix products", "% of peak"] == pytest.approx([10] * 3)
    (words,) = found.report.words
    assert "50 % are planning, 25 % training the model, 1 % env steps" in words and "reaches 20 %" in words
