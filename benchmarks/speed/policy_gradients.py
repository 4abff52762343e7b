"""The cases of the policy gradients: what each costs beside PPO, on two cores beside one, and beside Stable-Baselines3.

For each case one function starts the processes and asks them in turn, and one says what their answers mean.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterable, Mapping

from benchmarks.speed import report
from benchmarks.speed.bench import PURERL, Bench, ask_each, run_in_turn
from benchmarks.speed.cases import A2C, LIKE_A2C, TRPO, WORK
from benchmarks.speed.report import number
from benchmarks.speed.workers import Start, Worker, side_start
from purerl import FAMILIES

ALGORITHMS = FAMILIES["policy gradients"]
LEAST_OVER_PPO, LEAST_OVER_SB3 = 2.0, 10.0
MOST_UPDATE, LEAST_CORES, MOST_COMPILE = 3.0, 1.8, 1.3


def sb3_starts(bench: Bench) -> list[Start]:
    """Stable-Baselines3 with both of its ways to hold 64 envs, each with PyTorch's threads as they come and one."""
    python = bench.pythons["sb3"]
    if python is None:
        return []
    command = (python, "-m", "benchmarks.speed.sides.sb3")
    return [
        Start(" ".join(["sb3", vec_env, *(f"{name}={value}" for name, value in threads.items())]), command, threads)
        for vec_env, command in ((vec_env, (*command, vec_env)) for vec_env in ("DummyVecEnv", "SubprocVecEnv"))
        for threads in ({}, {"OMP_NUM_THREADS": "1"})
    ]


def build_both(bench: Bench, case: str, workers: Mapping[str, Worker], settings: Mapping[str, object]) -> None:
    """Asks the worker of each algorithm that has settings for one seed of the case's work."""
    for algorithm, chosen in settings.items():
        env_steps = WORK[case].steps(bench.quick)
        workers[algorithm].ask("build_cartpole", algorithm=algorithm, env_steps=env_steps, settings=chosen)


def measure_a2c(bench: Bench) -> None:
    """Env steps per second of A2C with 64 envs, of PPO on the same data, and of Stable-Baselines3's A2C."""
    ours, rivals = ([side_start("purerl", name) for name in ("a2c", "ppo")], sb3_starts(bench))
    with contextlib.ExitStack() as stack:
        workers = {start.name: stack.enter_context(Worker(start, "a2c")) for start in [*ours, *rivals]}
        build_both(bench, "a2c", workers, {"a2c": A2C, "ppo": LIKE_A2C})
        others = {start.name: workers[start.name] for start in rivals}
        ask_each(bench, others, "build", case="a2c", quick=bench.quick)
        for side, threads in ask_each(bench, others, "threads").items():
            bench.report.add("a2c", side, "PyTorch's threads", "threads", [threads])
        workers = {start.name: workers[start.name] for start in ours} | others
        ask_each(bench, workers, "run", seed=0)  # the first run touches fresh memory, so it does not count
        seconds = run_in_turn(bench, workers)
    conclude_a2c(bench, seconds)


def conclude_a2c(bench: Bench, seconds: Mapping[str, list[float]]) -> None:
    """A2C's speed over PPO's and over that of Stable-Baselines3's fastest start, from seconds of the same env steps."""
    env_steps = WORK["a2c"].steps(bench.quick)
    for side, values in seconds.items():
        bench.report.add("a2c", side, "env steps", "1/s", [env_steps / x for x in values])
    over_ppo = report.ratio(seconds["a2c"], {"ppo": seconds["ppo"]})
    bench.report.add("a2c", "a2c / ppo", "env steps", "x", over_ppo.values)
    what, target = "env steps/s of A2C over PPO's, 64 envs x 8 steps", f">= {LEAST_OVER_PPO}x"
    bench.report.judge("a2c", what, f"{over_ppo.median:.2f}x", target, over_ppo.median >= LEAST_OVER_PPO)
    words = (
        f"a2c: with 64 envs A2C takes {number(env_steps / statistics.median(seconds['a2c']))} env steps per second, "
        f"{over_ppo.median:.2f} times those of PPO with 4 epochs on the same data"
    )
    what, target = "env steps/s of A2C over Stable-Baselines3's", f">= {LEAST_OVER_SB3}x"
    rivals = {side: values for side, values in seconds.items() if side.startswith("sb3")}
    if not rivals:
        bench.report.judge("a2c", what, "not run", target, None)
        bench.report.words.append(f"{words}.")
        return
    over_sb3 = report.ratio(seconds["a2c"], rivals)
    bench.report.add("a2c", f"a2c / {over_sb3.rival}", "env steps", "x", over_sb3.values)
    bench.report.judge("a2c", what, f"{over_sb3.median:.1f}x", target, over_sb3.median >= LEAST_OVER_SB3)
    bench.report.words.append(
        f"{words}, and {over_sb3.median:.1f} times those of Stable-Baselines3's A2C at its fastest ({over_sb3.rival})."
    )


def measure_trpo(bench: Bench) -> None:
    """Milliseconds of an update of TRPO and of PPO on equal data, acting included."""
    with contextlib.ExitStack() as stack:
        starts = [side_start("purerl", name) for name in ("trpo", "ppo")]
        workers = {start.name: stack.enter_context(Worker(start, "trpo")) for start in starts}
        build_both(bench, "trpo", workers, {"trpo": TRPO, "ppo": TRPO})
        ask_each(bench, workers, "run", seed=0)
        seconds = run_in_turn(bench, workers)
    conclude_trpo(bench, seconds)


def conclude_trpo(bench: Bench, seconds: Mapping[str, list[float]]) -> None:
    """The time of TRPO's update over that of PPO's, from seconds of equally many updates."""
    updates = WORK["trpo"].steps(bench.quick) / (TRPO["num_envs"] * TRPO["num_steps"])
    for side, values in seconds.items():
        bench.report.add("trpo", side, "one update", "ms", [1e3 * x / updates for x in values])
    ratio = report.ratio(seconds["ppo"], {"trpo": seconds["trpo"]})
    bench.report.add("trpo", "trpo / ppo", "one update", "x", ratio.values)
    what, target = "time of TRPO's update over PPO's, 4 envs x 128 steps", f"<= {MOST_UPDATE}x"
    bench.report.judge("trpo", what, f"{ratio.median:.2f}x", target, ratio.median <= MOST_UPDATE)
    trpo, ppo = (f"{1e3 * statistics.median(seconds[side]) / updates:.2f} ms" for side in ("trpo", "ppo"))
    bench.report.words.append(
        f"trpo: on equal data an update of TRPO, acting included, takes {trpo} and one of PPO {ppo}: the second-order "
        f"step costs {ratio.median:.2f} times PPO's epochs."
    )


def measure_two_cores(bench: Bench) -> None:
    """The second core of the policy gradients."""
    measure_cores(bench, "two-cores", ALGORITHMS, "CartPole-v1", 20_000 if bench.quick else 100_000)


def measure_cores(bench: Bench, case: str, algorithms: Iterable[str], env: str, env_steps: int) -> None:
    """Env steps per second of 16 seeds of each algorithm on two cores and on one."""
    rates = {}
    work = {"env": env, "seeds": 16, "env_steps": env_steps, "tuned": False}
    for algorithm in algorithms:
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(PURERL, f"{case} {algorithm}")) for _ in range(2)]
            for cores, worker in enumerate(workers, start=1):
                worker.ask("use_cores", cores=cores)
                worker.ask("build_seeds", algorithm=algorithm, **work)
            rounds = [[worker.ask("rate") for worker in workers] for _ in range(1 + bench.repeats)][1:]
        rates[algorithm] = tuple(list(values) for values in zip(*rounds, strict=True))
    conclude_cores(bench, case, rates)


def conclude_cores(bench: Bench, case: str, rates: Mapping[str, tuple[list[float], ...]]) -> None:
    """What the second core brings, from each algorithm's env steps per second on one core and on two."""
    gains = {}
    for algorithm, (one, two) in rates.items():
        for cores, values in (("one core", one), ("two cores", two)):
            bench.report.add(case, algorithm, f"env steps of 16 seeds, {cores}", "1/s", values)
        ratios = [x / y for x, y in zip(two, one, strict=True)]
        bench.report.add(case, algorithm, "two cores over one", "x", ratios)
        gains[algorithm] = gain = statistics.median(ratios)
        what = f"env steps/s of 16 seeds of {algorithm} on two cores over one"
        bench.report.judge(case, what, f"{gain:.2f}x", f">= {LEAST_CORES}x", gain >= LEAST_CORES)
    each = ", ".join(f"{algorithm} {gain:.2f}" for algorithm, gain in gains.items())
    bench.report.words.append(f"{case}: with a second core sixteen seeds run so many times as fast: {each}.")


def measure_compile(bench: Bench) -> None:
    """Seconds of tracing and compiling each algorithm, each time in a fresh process; the algorithms take turns."""
    seconds: dict[str, list[float]] = {algorithm: [] for algorithm in ALGORITHMS}
    for _ in range(bench.repeats):
        for algorithm in ALGORITHMS:
            with Worker(PURERL, f"compile {algorithm}") as worker:
                phases = worker.ask("build_cartpole", algorithm=algorithm, env_steps=50_000, settings={})
            seconds[algorithm].append(sum(phases.values()))
    conclude_compile(bench, seconds)


def conclude_compile(bench: Bench, seconds: Mapping[str, list[float]]) -> None:
    """Each algorithm's compile time over PPO's of the same repetition."""
    described = []
    for algorithm, values in seconds.items():
        bench.report.add("compile", algorithm, "trace and compile", "s", values)
        if algorithm == "ppo":
            continue
        ratio = report.ratio(seconds["ppo"], {algorithm: values})
        bench.report.add("compile", f"{algorithm} / ppo", "trace and compile", "x", ratio.values)
        what = f"compile time of {algorithm} over PPO's"
        bench.report.judge("compile", what, f"{ratio.median:.2f}x", f"<= {MOST_COMPILE}x", ratio.median <= MOST_COMPILE)
        described.append(f"{algorithm} {ratio.median:.2f}")
    bench.report.words.append(
        f"compile: PPO is traced and compiled in {statistics.median(seconds['ppo']):.1f} s; so many times that take "
        f"{', '.join(described)}."
    )


CASES: dict[str, Callable[[Bench], None]] = {
    "a2c": measure_a2c,
    "trpo": measure_trpo,
    "two-cores": measure_two_cores,
    "compile": measure_compile,
}
