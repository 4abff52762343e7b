"""The cases of SAC and TD3: SAC beside Stable-Baselines3 and SBX, where its time goes, its memory, and a second core.

Both beside rejax are cases like PPO's and DQN's, in `measure`. For each case one function starts the processes and asks
them in turn, and one says what their answers mean.
"""

import contextlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.speed import report
from benchmarks.speed.bench import PURERL, Bench, ask_each, run_in_turn
from benchmarks.speed.cases import WORK
from benchmarks.speed.policy_gradients import measure_cores
from benchmarks.speed.report import number
from benchmarks.speed.workers import Start, Worker, side_start

# The bars beside each library, and their names in the report.
LEAST_OVER = {"sb3": ("Stable-Baselines3", 2.5), "sbx": ("SBX", 1.5)}
MOST_BYTES, LEAST_KEPT = 110.0, 0.85
CAPACITIES = {"capacity 1e4": 10_000, "capacity 1e6": 1_000_000}
WRITE_AND_DRAW, TRAIN = "writing one and drawing a batch", "SAC's env steps"
PARTS = {
    "target": "target, forward",
    "critics": "critics, forward and backward",
    "actor": "actor through the critics, forward and backward",
    "adam": "Adam and the targets' move",
    "draw": "batch from the memory",
    "whole": "whole gradient step",
    "collect": "env step with the policy, into the memory",
}


def rivals(bench: Bench) -> list[Start]:
    """Stable-Baselines3 with PyTorch's threads as they come and with one, and SBX as it comes and as purerl starts."""
    starts = []
    if (sb3 := bench.pythons["sb3"]) is not None:
        command = (sb3, "-m", "benchmarks.speed.sides.sb3", "DummyVecEnv")
        starts += [Start("sb3", command, {}), Start("sb3 OMP_NUM_THREADS=1", command, {"OMP_NUM_THREADS": "1"})]
    if (sbx := bench.pythons["sbx"]) is not None:
        starts += [side_start("sbx", "sbx", sbx), side_start("sbx", "sbx, equal", sbx, **bench.equal)]
    return starts


def measure_sac(bench: Bench) -> None:
    """Env steps per second of SAC with layers of 256, of Stable-Baselines3's and of SBX's."""
    others = rivals(bench)
    with contextlib.ExitStack() as stack:
        workers = {start.name: stack.enter_context(Worker(start, "sac-256")) for start in [PURERL, *others]}
        ask_each(bench, workers, "build", case="sac-256", quick=bench.quick)
        torch = {name: worker for name, worker in workers.items() if name.startswith("sb3")}
        for side, threads in ask_each(bench, torch, "threads").items():
            bench.report.add("sac-256", side, "PyTorch's threads", "threads", [threads])
        ask_each(bench, workers, "run", seed=0)  # the first run touches fresh memory and SBX compiles in it
        seconds = run_in_turn(bench, workers)
    conclude_sac(bench, seconds)


def conclude_sac(bench: Bench, seconds: Mapping[str, list[float]]) -> None:
    """SAC's speed over that of each library's faster start, from seconds of the same env steps."""
    env_steps = WORK["sac-256"].steps(bench.quick)
    for side, values in seconds.items():
        bench.report.add("sac-256", side, "env steps", "1/s", [env_steps / x for x in values])
    words = f"takes {number(env_steps / statistics.median(seconds['purerl']))} env steps per second"
    for library, (name, least) in LEAST_OVER.items():
        what, target = f"env steps/s of SAC, 256-256, over {name}'s", f">= {least}x"
        starts = {side: values for side, values in seconds.items() if side.startswith(library)}
        if not starts:
            bench.report.judge("sac-256", what, "not run", target, None)
            continue
        ratio = report.ratio(seconds["purerl"], starts)
        bench.report.add("sac-256", f"purerl / {ratio.rival}", "env steps", "x", ratio.values)
        bench.report.judge("sac-256", what, f"{ratio.median:.2f}x", target, ratio.median >= least)
        words += f", {ratio.median:.2f} times those of {name} at its fastest ({ratio.rival})"
    bench.report.words.append(f"sac-256: with 256-256 networks SAC {words}.")


def measure_parts(bench: Bench) -> None:
    """Microseconds of each part of a gradient step of SAC with layers of 256, and the peaks of the matrix product."""
    with Worker(PURERL, "sac-parts") as worker:
        facts = worker.ask("build_parts", algorithm="sac", quick=bench.quick)
        rounds = [{name: worker.ask("run_part", name=name) for name in PARTS} for _ in range(bench.repeats)]
        repeats = range(1 if bench.quick else bench.repeats)
        peaks = {
            "chain": [worker.ask("chain_speed", size=WORK["sac-256"].hidden_size) for _ in repeats],
            "large": [worker.ask("matmul_peak") for _ in repeats],
        }
    conclude_parts(bench, facts["flops"], rounds, peaks)


def conclude_parts(
    bench: Bench, flops: float, rounds: list[dict[str, float]], peaks: Mapping[str, list[float]]
) -> None:
    """What share of the peak a gradient step reaches, and what its parts take.

    flops: of the matrix products of a gradient step. rounds: seconds of each part of PARTS, per gradient step. peaks:
    FLOP/s of a chain of products of the size of a layer, and of a large one.
    """
    case, whole = "sac-parts", [times["whole"] for times in rounds]
    for name, measure in PARTS.items():
        bench.report.add(case, "purerl", measure, "us", [1e6 * times[name] for times in rounds])
        bench.report.add(
            case, "purerl", measure, "% of gradient step", [100 * times[name] / times["whole"] for times in rounds]
        )
    reached = [flops / seconds for seconds in whole]
    bench.report.add(case, "purerl", "matrix products of a gradient step", "MFLOP", [flops / 1e6])
    bench.report.add(case, "purerl", "matrix products of a gradient step", "GFLOP/s", [x / 1e9 for x in reached])
    shares = {}
    for name, measure in {"chain": "chained products of 256 x 256", "large": "large product"}.items():
        bench.report.add(case, "purerl", measure, "GFLOP/s", [x / 1e9 for x in peaks[name]])
        values = [100 * speed / max(peaks[name]) for speed in reached]
        bench.report.add(case, "purerl", f"gradient step over {measure}", "% of peak", values)
        shares[name] = statistics.median(values)
    bench.report.words.append(parts_in_words(rounds, shares, flops / max(peaks["chain"])))


def parts_in_words(rounds: list[dict[str, float]], shares: Mapping[str, float], least: float) -> str:
    """What share of the peak is reached and what holds the rest. least: seconds of the products at the chain's peak."""
    middle = {name: 1e6 * statistics.median(times[name] for times in rounds) for name in PARTS}
    each = ", ".join(f"{middle[name]:.0f} us {PARTS[name]}" for name in PARTS if name not in ("whole", "collect"))
    return (
        f"sac-parts: a gradient step of {middle['whole']:.0f} us reaches {shares['chain']:.0f} % of the peak of "
        f"chained products of 256 x 256 and {shares['large']:.0f} % of that of a large product. At the former its "
        f"products would take {1e6 * least:.0f} us. Its parts, each by itself: {each}. Beside it an env step takes "
        f"{middle['collect']:.0f} us."
    )


def measure_hopper(bench: Bench) -> None:
    """Bytes of a transition of hopper; the speed of a full memory of 1e4 and of 1e6, alone and in SAC's training."""
    env, steps, updates = "brax/hopper", 500 if bench.quick else 20_000, 1 if bench.quick else 4
    sizes, seconds = measure_capacities(bench, "build_memory", {"env": env, "batch_size": 256, "steps": steps})
    env_steps, learning = measure_capacities(bench, "build_full_sac", {"env": env, "num_updates": updates})
    rates = {
        WRITE_AND_DRAW: {name: [steps / x for x in seconds[name]] for name in CAPACITIES},
        TRAIN: {name: [env_steps[name] / x for x in learning[name]] for name in CAPACITIES},
    }
    conclude_hopper(bench, sizes["capacity 1e6"], rates)


def measure_capacities(
    bench: Bench, build: str, work: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """By capacity: what `build` answers for this work, and the seconds of the repetitions, which take turns."""
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(PURERL, f"hopper-replay {name}")) for name in CAPACITIES}
        built = {name: workers[name].ask(build, capacity=capacity, **work) for name, capacity in CAPACITIES.items()}
        ask_each(bench, workers, "run", seed=0)
        return built, run_in_turn(bench, workers)


def conclude_hopper(bench: Bench, size: float, rates: Mapping[str, Mapping[str, list[float]]]) -> None:
    """size: bytes of a transition. rates: steps per second of each measure, by capacity."""
    case = "hopper-replay"
    for measure, of in rates.items():
        for name, values in of.items():
            bench.report.add(case, "purerl", f"{measure}, {name}", "1/s", values)
        small, large = (of[name] for name in CAPACITIES)
        ratios = [x / y for x, y in zip(large, small, strict=True)]
        bench.report.add(case, "purerl", f"{measure}, capacity 1e6 over 1e4", "x", ratios)
        kept, what = statistics.median(ratios), f"{measure}: speed with a memory of 1e6 transitions of hopper over 1e4"
        bench.report.judge(case, what, f"{kept:.2f}x", f">= {LEAST_KEPT}x", kept >= LEAST_KEPT)
    bench.report.add(case, "purerl", "memory per transition", "bytes", [size])
    what = "bytes per transition of 1e6 transitions of hopper"
    bench.report.judge(case, what, f"{size:.2f}", f"<= {MOST_BYTES:.0f}", size <= MOST_BYTES, timed=False)


def measure_second_core(bench: Bench) -> None:
    """The second core of SAC and TD3."""
    measure_cores(bench, "off-policy-cores", ("sac", "td3"), "Pendulum-v1", 1_400 if bench.quick else 3_000)


CASES: dict[str, Callable[[Bench], Any]] = {
    "sac-256": measure_sac,
    "sac-parts": measure_parts,
    "hopper-replay": measure_hopper,
    "off-policy-cores": measure_second_core,
}
