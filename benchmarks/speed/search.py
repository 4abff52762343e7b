"""The cases of search and planning: CEM beside its env alone, PETS beside mbrl-lib, and where PETS's time goes."""

import contextlib
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.speed import report
from benchmarks.speed.bench import PURERL, Bench, ask_each, run_in_turn
from benchmarks.speed.cases import TUNE, WORK
from benchmarks.speed.report import number
from benchmarks.speed.workers import Start, Worker, side_start

LEAST_OF_ENV, LEAST_OVER_MBRL, LEAST_OVER_ZOO, MOST_SECONDS = 0.8, 5.0, 10.0, 90.0
WHOLE_TRAINING = 3_000  # env steps, for which there is a bar in seconds
PARTS = {"planning": "planning", "training": "training the model", "env": "env steps"}


def measure_cem(bench: Bench) -> None:
    """Env steps per second of a generation of CEM and of the env alone, on all devices."""
    with Worker(PURERL, "cem") as worker:
        worker.ask("build_generations", population=256, generations=1 if bench.quick else 20)
        conclude_cem(bench, [worker.ask("rates") for _ in range(bench.repeats)])


def conclude_cem(bench: Bench, rounds: list[dict[str, float]]) -> None:
    """CEM's share of the env's own speed; rounds: env steps per second of "search" and "env"."""
    for name, side in (("search", "CEM"), ("env", "the env alone")):
        bench.report.add("cem", side, "env steps", "1/s", [rates[name] for rates in rounds])
    shares = [rates["search"] / rates["env"] for rates in rounds]
    bench.report.add("cem", "CEM / the env alone", "env steps", "x", shares)
    share, what = statistics.median(shares), "env steps/s of CEM, population 256, over those of the env alone"
    bench.report.judge("cem", what, f"{share:.2f}x", f">= {LEAST_OF_ENV}x", share >= LEAST_OF_ENV)
    speed = number(statistics.median(rates["search"] for rates in rounds))
    bench.report.words.append(f"cem: CEM takes {speed} env steps per second, {share:.2f} times those of the env alone.")


def rivals(bench: Bench) -> list[Start]:
    """mbrl-lib with PyTorch's threads as they come and with one."""
    if (mbrl := bench.pythons["mbrl"]) is None:
        return []
    command = (mbrl, "-m", "benchmarks.speed.sides.mbrl")
    return [Start("mbrl", command, {}), Start("mbrl OMP_NUM_THREADS=1", command, {"OMP_NUM_THREADS": "1"})]


def measure_pets(bench: Bench) -> None:
    """Env steps per second of PETS and of mbrl-lib's, on equal work."""
    with contextlib.ExitStack() as stack:
        workers = {start.name: stack.enter_context(Worker(start, "pets")) for start in [PURERL, *rivals(bench)]}
        ask_each(bench, workers, "build", case="pets", quick=bench.quick)
        torch = {name: worker for name, worker in workers.items() if name.startswith("mbrl")}
        for side, threads in ask_each(bench, torch, "threads").items():
            bench.report.add("pets", side, "PyTorch's threads", "threads", [threads])
        ask_each(bench, {"purerl": workers["purerl"]}, "run", seed=0)  # the first run touches fresh memory
        seconds = run_in_turn(bench, workers)
    conclude_pets(bench, seconds)


def conclude_pets(bench: Bench, seconds: Mapping[str, list[float]]) -> None:
    """PETS's speed over that of mbrl-lib's faster start, from seconds of the same env steps."""
    env_steps = WORK["pets"].steps(bench.quick)
    for side, values in seconds.items():
        bench.report.add("pets", side, "env steps", "1/s", [env_steps / x for x in values])
    what, target = "env steps/s of PETS over mbrl-lib's", f">= {LEAST_OVER_MBRL:g}x"
    others = {side: values for side, values in seconds.items() if side.startswith("mbrl")}
    words = f"pets: PETS takes {number(env_steps / statistics.median(seconds['purerl']))} env steps per second"
    if not others:
        bench.report.judge("pets", what, "not run", target, None)
    else:
        ratio = report.ratio(seconds["purerl"], others)
        bench.report.add("pets", f"purerl / {ratio.rival}", "env steps", "x", ratio.values)
        bench.report.judge("pets", what, f"{ratio.median:.2f}x", target, ratio.median >= LEAST_OVER_MBRL)
        words += f", {ratio.median:.2f} times those of mbrl-lib at its fastest ({ratio.rival})"
    bench.report.words.append(f"{words}.")


def measure_parts(bench: Bench) -> None:
    """Seconds of a whole training of PETS on Pendulum, of the parts of its update, and the matrix-product peak."""
    env_steps = 250 if bench.quick else WHOLE_TRAINING
    with Worker(PURERL, "pets-parts") as worker:
        worker.ask("build_pets", env_steps=env_steps)
        whole = [worker.ask("run", seed=seed) for seed in range(2 if bench.quick else bench.repeats)]
        worker.ask("build_parts", algorithm="pets", quick=bench.quick)
        flops = worker.ask("pets_flops")
        rounds = [
            {name: worker.ask("run_part", name=name) for name in ("update", *PARTS)} for _ in range(bench.repeats)
        ]
        peaks = [worker.ask("matmul_peak") for _ in range(1 if bench.quick else bench.repeats)]
    conclude_parts(bench, env_steps, whole, flops, rounds, peaks)


def conclude_parts(
    bench: Bench,
    env_steps: int,
    whole: list[float],
    flops: Mapping[str, float],
    rounds: list[dict[str, float]],
    peaks: list[float],
) -> None:
    """Where PETS's time goes, and the bar in seconds.

    whole: seconds of trainings of env_steps. flops: of the matrix products of an update's plans and gradient steps.
    rounds: seconds of an update and of each part of it. peaks: FLOP/s of a large product on one device.
    """
    case = "pets-parts"
    bench.report.add(case, "purerl", f"a training of {env_steps} env steps", "s", whole)
    shares, reached = {}, {}
    for name, measure in PARTS.items():
        values = [100 * times[name] / times["update"] for times in rounds]
        bench.report.add(case, "purerl", measure, "ms an update", [1e3 * times[name] for times in rounds])
        bench.report.add(case, "purerl", measure, "% of an update", values)
        shares[name] = statistics.median(values)
    for name, operations in flops.items():
        values = [100 * operations / times[name] / max(peaks) for times in rounds]
        bench.report.add(case, "purerl", f"{PARTS[name]}: matrix products", "MFLOP an update", [operations / 1e6])
        bench.report.add(case, "purerl", f"{PARTS[name]}: matrix products", "% of peak", values)
        reached[name] = statistics.median(values)
    bench.report.add(case, "purerl", "large product", "GFLOP/s", [x / 1e9 for x in peaks])
    seconds, what = statistics.median(whole), f"seconds of {WHOLE_TRAINING} env steps of PETS on Pendulum"
    bench.report.judge(case, what, f"{seconds:.1f}", f"<= {MOST_SECONDS:g}", seconds <= MOST_SECONDS)
    bench.report.words.append(
        f"pets-parts: {env_steps} env steps of PETS take {seconds:.1f} s. Of an update {shares['planning']:.0f} % are "
        f"planning, {shares['training']:.0f} % training the model, {shares['env']:.0f} % env steps; planning reaches "
        f"{reached['planning']:.0f} % and training {reached['training']:.0f} % of one device's matrix-product peak."
    )


def measure_tune(bench: Bench) -> None:
    """Seconds of a whole search by purerl, and of trials of the same search by RL Zoo, two at a time."""
    trials = 4 if bench.quick else TUNE["trials"]
    ours, theirs = list[float](), list[list[float]]()
    with contextlib.ExitStack() as stack:
        zoo = [stack.enter_context(Worker(start, "tune")) for start in zoos(bench)]
        for worker in zoo:
            worker.ask("build", case="tune", quick=bench.quick)
        for repeat in range(bench.repeats):
            with Worker(PURERL, "tune") as worker:  # a fresh one, since it compiles in each search
                found = worker.ask("search", trials=trials, quick=bench.quick, seed=repeat)
            ours.append(found["seconds"])
            pairs = zip(zoo, found["fields"][: len(zoo)], strict=True)
            with ThreadPoolExecutor() as both:
                answers = both.map(lambda pair: pair[0].ask("trial", fields=pair[1]), pairs)
                theirs.append([answer["seconds"] for answer in answers])
    conclude_tune(bench, trials, ours, theirs)


def zoos(bench: Bench) -> list[Start]:
    """A process of RL Zoo for each of two cores."""
    if (python := bench.pythons["zoo"]) is None:
        return []
    return [side_start("zoo", f"zoo {core}", python, OMP_NUM_THREADS="1") for core in (0, 1)]


def conclude_tune(bench: Bench, trials: int, ours: list[float], theirs: list[list[float]]) -> None:
    """How much faster purerl's search is. ours: seconds of whole searches. theirs: of trials side by side, `[R, 2]`."""
    what, target = f"speed of a search of {trials} trials over RL Zoo's", f">= {LEAST_OVER_ZOO:g}x"
    bench.report.add("tune", "purerl", f"{trials} trials", "s", ours)
    words = f"tune: {trials} trials of PPO take {number(statistics.median(ours))} s"
    if not theirs or not theirs[0]:
        bench.report.judge("tune", what, "not run", target, None)
    else:
        whole = [trials * statistics.mean(pair) / len(pair) for pair in theirs]
        bench.report.add("tune", "zoo", "a trial, two at a time", "s", [statistics.mean(pair) for pair in theirs])
        bench.report.add("tune", "zoo", f"{trials} trials, scaled from two", "s", whole)
        ratios = [there / here for here, there in zip(ours, whole, strict=True)]
        bench.report.add("tune", "purerl / zoo", "trials", "x", ratios)
        ratio = statistics.median(ratios)
        bench.report.judge("tune", what, f"{ratio:.1f}x", target, ratio >= LEAST_OVER_ZOO)
        words += f", and would take RL Zoo {number(statistics.median(whole))} s on the same two cores, {ratio:.1f} x"
    bench.report.words.append(f"{words}.")


CASES: dict[str, Callable[[Bench], Any]] = {
    "cem": measure_cem,
    "pets": measure_pets,
    "pets-parts": measure_parts,
    "tune": measure_tune,
}
