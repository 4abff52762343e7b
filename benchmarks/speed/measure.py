"""How each case is measured: which processes are started, what they are asked in turn, and what is kept of it."""

import contextlib
import functools
import statistics
import sys
from collections.abc import Callable

from benchmarks.speed import off_policy, policy_gradients, report, search
from benchmarks.speed.bench import PURERL, Bench, ask_each, run_in_turn
from benchmarks.speed.cases import DQN_UPDATE, TRAININGS
from benchmarks.speed.report import NO_TARGET
from benchmarks.speed.workers import Start, Worker, run_python

COMPILE_REPEATS = 3


def measure_training(bench: Bench, case: str) -> None:
    """Trace, compile and run seconds, env steps per second and peak memory of purerl and rejax, taking turns."""
    as_it_comes, equals = bench.as_it_comes(case), bench.equals()
    measure_compilation(bench, case, [PURERL, *as_it_comes[:1], *equals])
    with contextlib.ExitStack() as stack:
        starts = [PURERL, *as_it_comes, *equals]
        workers = {start.name: stack.enter_context(Worker(start, case)) for start in starts}
        ask_each(bench, workers, "build", case=case, quick=bench.quick)
        ask_each(bench, workers, "run", seed=0)  # the first run touches fresh memory, so it does not count
        memory = ask_each(bench, workers, "peak_memory")
        seconds = run_in_turn(bench, workers)
    env_steps = TRAININGS[case].seeds * TRAININGS[case].steps(bench.quick)
    for side, values in seconds.items():
        bench.report.add(case, side, "run", "s", values)
        bench.report.add(case, side, "env steps", "1/s", [env_steps / x for x in values])
        bench.report.add(case, side, "peak memory", "MiB", [memory[side]])
    compare(bench, case, seconds, [start.name for start in as_it_comes], [start.name for start in equals])


def compare(
    bench: Bench, case: str, seconds: dict[str, list[float]], as_it_comes: list[str], equals: list[str]
) -> None:
    """purerl's speed over that of rejax's faster start as it comes, and over that at equal devices and flags."""
    work = TRAININGS[case]
    target = f">= {work.target}x" + (f" (aim {work.aim}x)" if work.aim > work.target else "")
    equal_target = NO_TARGET if work.equal_target is None else f">= {work.equal_target}x"
    found = []
    for what, starts, goal, text in (
        ("as it comes", as_it_comes, work.target, target),
        ("equal devices and flags", equals, work.equal_target, equal_target),
    ):
        rivals = {side: seconds[side] for side in starts if side in seconds}
        if not rivals:
            bench.report.judge(case, f"env steps/s against rejax, {what}", "not run", text, None)
            continue
        ratio = report.ratio(seconds["purerl"], rivals)
        bench.report.add(case, f"purerl / {ratio.rival}", f"env steps, {what}", "x", ratio.values)
        reached = None if goal is None else ratio.median >= goal
        label = f"env steps/s against rejax, {what} ({ratio.rival})"
        bench.report.judge(case, label, f"{ratio.median:.2f}x", text, reached)
        found.append(ratio)
    if len(found) == 2:
        bench.report.words.append(report.in_words(case, *found))


def measure_compilation(bench: Bench, case: str, starts: list[Start]) -> None:
    """Seconds of tracing and of compiling, each time in a fresh process."""
    built: dict[str, list[dict[str, float]]] = {start.name: [] for start in starts}
    for start in starts * (1 if bench.quick else COMPILE_REPEATS):
        with Worker(start, case) as worker:
            built[start.name].append(worker.ask("build", case=case, quick=bench.quick))
    for side, answers in built.items():
        for phase in answers[0]:
            bench.report.add(case, side, phase, "s", [seconds[phase] for seconds in answers])
        if len(answers[0]) > 1:
            bench.report.add(case, side, "trace and compile", "s", [sum(seconds.values()) for seconds in answers])
    totals = {side: [sum(seconds.values()) for seconds in answers] for side, answers in built.items()}
    if (most := TRAININGS[case].compile_target) is not None:
        judge_compilation(bench, case, totals, most)


def judge_compilation(bench: Bench, case: str, seconds: dict[str, list[float]], most: float) -> None:
    """purerl's seconds of tracing and compiling over those of rejax with the same devices and flags."""
    what, target, rival = "compile time over rejax's, equal devices and flags", f"<= {most}x", "rejax, equal"
    if rival not in seconds:
        bench.report.judge(case, what, "not run", target, None)
        return
    ratio = report.ratio(seconds[rival], {"purerl": seconds["purerl"]})
    bench.report.add(case, f"purerl / {rival}", "trace and compile", "x", ratio.values)
    bench.report.judge(case, what, f"{ratio.median:.2f}x", target, ratio.median <= most)


def measure_profile(bench: Bench) -> None:
    """Milliseconds of one PPO update by kernel, purerl and rejax taking turns, at equal devices and flags."""
    with contextlib.ExitStack() as stack:
        starts = [PURERL, *bench.equals()]
        workers = {start.name: stack.enter_context(Worker(start, "profile")) for start in starts}
        ask_each(bench, workers, "build", case="profile", quick=bench.quick)
        rounds = [ask_each(bench, workers, "profile") for _ in range(bench.repeats)]
    middle: dict[str, report.Split] = {}
    for side in workers:
        profiles = sorted((answers[side] for answers in rounds), key=lambda profile: profile["seconds"])
        splits = [report.split(profile) for profile in profiles]
        middle[side] = splits[len(splits) // 2]
        names = {"update": "whole update", "products": "kernels with a matrix product", "others": "other kernels"}
        for part, measure in (names | {"starting": "starting kernels"}).items():
            bench.report.add("profile", side, measure, "ms", [1e3 * getattr(parts, part) for parts in splits])
        bench.report.add("profile", side, "started in an update", "kernels", [parts.kernels for parts in splits])
        bench.report.tables.append(report.kernel_table("profile", side, profiles[len(profiles) // 2]))
    if len(middle) == 2:
        bench.report.words.append(report.in_the_way(middle, TRAININGS["ppo-1"].aim))


def measure_imports(bench: Bench) -> None:
    """Seconds from a running interpreter to an importable, usable library, each time in a fresh process."""
    use_purerl = ("from purerl import ppo", 'from purerl import ppo; ppo.Config(env="CartPole-v1")')
    probes = [("purerl", sys.executable, code) for code in ("import jax", "import purerl", *use_purerl)]
    if rejax := bench.pythons["rejax"]:
        use_rejax = ("import jax", "from rejax import PPO", 'from rejax import PPO; PPO.create(env="CartPole-v1")')
        probes += [("rejax", rejax, code) for code in use_rejax]
    for _, python, code in probes:
        import_seconds(python, code)  # the first time reads from disk and may write bytecode, so it does not count
    rounds = [[import_seconds(python, code) for _, python, code in probes] for _ in range(bench.repeats)]
    for (side, _, code), seconds in zip(probes, zip(*rounds, strict=True), strict=True):
        bench.report.add("import", side, code, "s", list(seconds))


def import_seconds(python: str, code: str) -> float:
    """Seconds that the code takes in a fresh process, the start of the interpreter not included."""
    timed = f"import time\nstarted = time.perf_counter()\n{code}\nprint(time.perf_counter() - started)"
    return float(run_python(python, timed).split()[-1])


def measure_shares(bench: Bench) -> None:
    """Milliseconds per update of each part of PPO's and DQN's update, shares of the whole, and of the matmul peak."""
    for case in ("ppo-1", "dqn-1"):
        measure_parts(bench, f"shares {case}", TRAININGS[case].algorithm)


def measure_parts(bench: Bench, case: str, algorithm: str) -> None:
    """One algorithm's shares. The parts take turns, so that a slow moment of the machine hits all of them."""
    with Worker(PURERL, case) as worker:
        facts = worker.ask("build_parts", algorithm=algorithm, quick=bench.quick)
        rounds = [{name: worker.ask("run_part", name=name) for name in facts["parts"]} for _ in range(bench.repeats)]
        peaks = [worker.ask("matmul_peak") for _ in range(1 if bench.quick else bench.repeats)]
    for times in rounds:
        times["policy"] = times["rollout"] - times["env"]
        times["rest"] = times["update"] - times["rollout"] - times["gradient"]
    bench.report.add(case, "purerl", "whole update", "ms", [1e3 * times["update"] for times in rounds])
    names = {"env": "env steps", "policy": "policy in the rollout", "gradient": "gradient steps", "rest": "the rest"}
    for part, measure in names.items():
        bench.report.add(case, "purerl", measure, "ms", [1e3 * times[part] for times in rounds])
        bench.report.add(
            case, "purerl", measure, "% of update", [100 * times[part] / times["update"] for times in rounds]
        )
    speeds = [facts["flops"] / times["gradient"] for times in rounds]
    bench.report.add(case, "purerl", "matrix-product peak", "GFLOP/s", [peak / 1e9 for peak in peaks])
    bench.report.add(case, "purerl", "matrix products in gradient steps", "GFLOP/s", [speed / 1e9 for speed in speeds])
    bench.report.add(case, "purerl", "gradient steps", "% of peak", [100 * speed / max(peaks) for speed in speeds])


def measure_replay(bench: Bench) -> None:
    """Bytes per transition of 1e6 CartPole transitions; DQN's env steps/s with a full memory of 1e4 and of 1e6."""
    capacities = {"capacity 1e4": 10_000, "capacity 1e6": 1_000_000}
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(PURERL, "replay")) for name in capacities}
        size = workers["capacity 1e6"].ask("replay_bytes", capacity=1_000_000)
        for name, capacity in capacities.items():
            workers[name].ask("build_full_replay", capacity=capacity, quick=bench.quick)
            workers[name].ask("run", seed=0)
        rounds = [{name: worker.ask("run", seed=0) for name, worker in workers.items()} for _ in range(bench.repeats)]
    env_steps = DQN_UPDATE * (2 if bench.quick else 38)
    for name in capacities:
        bench.report.add("replay", "purerl", f"env steps, {name}", "1/s", [env_steps / times[name] for times in rounds])
    ratios = [times["capacity 1e4"] / times["capacity 1e6"] for times in rounds]
    bench.report.add("replay", "purerl", "env steps, capacity 1e6 over 1e4", "x", ratios)
    bench.report.add("replay", "purerl", "memory per transition", "bytes", [size])
    kept = statistics.median(ratios)
    what = "DQN's env steps/s with a full memory of 1e6 over those with 1e4"
    bench.report.judge("replay", what, f"{kept:.2f}x", ">= 0.9x", kept >= 0.9)
    what = "bytes per transition of 1e6 CartPole transitions"
    bench.report.judge("replay", what, f"{size:.2f}", "<= 50", size <= 50, timed=False)


def measure_metrics(bench: Bench) -> None:
    """Bytes of PPO's metrics for small and for large updates, at an equal number of updates."""
    with Worker(PURERL, "metrics") as worker:
        small = worker.ask("metrics_bytes", num_envs=4, num_steps=128, num_updates=100)
        large = worker.ask("metrics_bytes", num_envs=64, num_steps=512, num_updates=100)
    bench.report.add("metrics", "purerl", "100 updates of 4 envs x 128 steps", "bytes", [small])
    bench.report.add("metrics", "purerl", "100 updates of 64 envs x 512 steps", "bytes", [large])
    what = "bytes of metrics, 64 x 512 against 4 x 128"
    bench.report.judge("metrics", what, f"{large} against {small}", "equal", small == large, timed=False)


def measure_tabular(bench: Bench) -> None:
    """Env steps per second of 1,000 trainings side by side, and of their env alone."""
    work = {"env": "mdp/frozen_lake_4x4_slippery", "seeds": 1000, "env_steps": 2_000 if bench.quick else 100_000}
    with contextlib.ExitStack() as stack:
        learner, env = (stack.enter_context(Worker(PURERL, f"tabular {side}")) for side in ("learner", "env"))
        learner.ask("build_seeds", algorithm="q_learning", seeds_at_once=500, tuned=False, **work)
        env.ask("build_env_alone", **work)
        rounds = [(learner.ask("rate"), env.ask("rate")) for _ in range(1 + bench.repeats)][1:]
    learning, alone = (list(rates) for rates in zip(*rounds, strict=True))
    bench.report.add("tabular", "purerl", "env steps, Q-learning, 1,000 seeds", "1/s", learning)
    bench.report.add("tabular", "purerl", "env steps, the env alone with uniform actions", "1/s", alone)
    bench.report.add("tabular", "purerl", "Q-learning over the env alone", "x", [x / y for x, y in rounds])
    rate, share = statistics.median(learning), statistics.median([x / y for x, y in rounds])
    value = f"{rate / 1e6:.1f}M, {share:.2f} of the env alone"
    what = "env steps/s of 1,000 seeds of Q-learning on FrozenLake"
    bench.report.judge("tabular", what, value, ">= 20M, or half of the env alone", rate >= 20e6 or share >= 0.5)


def measure_planning(bench: Bench) -> None:
    """Seconds of a sweep whose cost is that of the transitions, not of all pairs of states."""
    with Worker(PURERL, "planning") as worker:
        worker.ask("build_sweep", num_states=100_000, num_actions=4, num_successors=4)
        seconds = [worker.ask("run", seed=seed) for seed in range(1 + bench.repeats)][1:]
    bench.report.add("planning", "purerl", "one sweep, 1.6 million transitions", "ms", [1e3 * x for x in seconds])
    value, what = statistics.median(seconds), "seconds of a sweep over 100,000 states, 4 actions, 4 successors"
    bench.report.judge("planning", what, f"{value:.4f}", "<= 0.5", value <= 0.5)


def measure_pqn(bench: Bench) -> None:
    """Env steps per second of PQN over DQN's, one seed, each with its own tuned settings."""
    for env, steps in (("CartPole-v1", 60_000), ("Breakout-MinAtar", 20_000)):
        steps = 12_000 if bench.quick else steps  # a little more than DQN's prefill
        work = {"env": env, "seeds": 1, "seeds_at_once": 1, "tuned": True}
        with contextlib.ExitStack() as stack:
            sides = {name: stack.enter_context(Worker(PURERL, f"pqn {name}")) for name in ("pqn", "dqn")}
            for name, worker in sides.items():
                worker.ask("build_seeds", algorithm=name, env_steps=steps * (4 if name == "pqn" else 1), **work)
            rounds = [{name: worker.ask("rate") for name, worker in sides.items()} for _ in range(1 + bench.repeats)][
                1:
            ]
        for name in sides:
            bench.report.add("pqn", "purerl", f"env steps, {name.upper()} on {env}", "1/s", [x[name] for x in rounds])
        ratios = [x["pqn"] / x["dqn"] for x in rounds]
        bench.report.add("pqn", "purerl", f"PQN over DQN on {env}", "x", ratios)
        if env == "CartPole-v1":
            ratio = statistics.median(ratios)
            what = "env steps/s of PQN over DQN on CartPole"
            bench.report.judge("pqn", what, f"{ratio:.1f}x", ">= 5x", ratio >= 5)


CASES: dict[str, Callable[[Bench], None]] = {
    **{case: functools.partial(measure_training, case=case) for case in TRAININGS},
    "profile": measure_profile,
    "import": measure_imports,
    "shares": measure_shares,
    "replay": measure_replay,
    "metrics": measure_metrics,
    "tabular": measure_tabular,
    "planning": measure_planning,
    "pqn": measure_pqn,
    **policy_gradients.CASES,
    **off_policy.CASES,
    **search.CASES,
}
