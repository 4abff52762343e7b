"""What it costs that several processes train one run: two on this machine and, on paper, those of a cluster.

    python -m benchmarks.processes

Exchanges: the time that processes take to tell each other the rows of a chunk and the states of a checkpoint, by size.
Whole runs: 8 seeds of PPO on CartPole by one process on two cores, and by two processes with a core each, in turns. The
estimate takes the bytes of PPO's states and rows for the seeds, and for time the bandwidth measured here or that of a
slower network. Results go to benchmarks/results/processes: `exchanges.csv`, `runs.csv` and `estimate.csv`.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks import provenance

PROCESSES = 2
SIZES = (3, 30_000, 1_000_000, 10_000_000)  # float32 numbers of one process
SEEDS, STEPS = 8, 200_000
# What the estimate is of: a chunk lasts a second, in which a seed makes some 20 updates; a checkpoint every 30 s.
CLUSTER_SEEDS, CLUSTER_PROCESSES, UPDATES_A_CHUNK, CHUNK_SECONDS, CHECKPOINT_SECONDS = 1000, 64, 20, 1.0, 30.0
PROCESSES_A_HOST, HOST_BYTES_A_SECOND = 8, 25e9 / 8  # a network of 25 Gbit/s between hosts of eight GPUs each


@dataclass
class Options:
    """Measures on this machine, with nothing beside it."""

    out: Path = Path("benchmarks/results/processes")
    """Where results go."""
    repeats: int = 5
    """Runs of either kind, and exchanges of each size."""


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.processes", description=__doc__)
    exchanges, runs = together(["exchange", str(options.repeats)]), list[dict[str, Any]]()
    for _ in range(options.repeats):
        runs.append({"processes": 1, **together(["run"], count=1)[0]})
        two = together(["run"])
        runs.append({"processes": 2, "seconds": max(said["seconds"] for said in two), "bytes": two[0]["bytes"]})
    facts = provenance.provenance("benchmarks.processes")
    medians = [max(said["seconds"][i] for said in exchanges) for i in range(len(SIZES))]
    rows: list[list[Any]] = [["float32 numbers a process", "milliseconds", "MB a second received"]]
    rows += [
        [size, f"{1e3 * seconds:.2f}", f"{4e-6 * size * (PROCESSES - 1) / seconds:.0f}"]
        for size, seconds in zip(SIZES, medians, strict=True)
    ]
    report(options.out / "exchanges.csv", facts, rows)
    alone, shared = (statistics.median(run["seconds"] for run in runs if run["processes"] == n) for n in (1, 2))
    rows = [["processes", "median seconds of the run, compiling apart", "all"]]
    for n, median in ((1, alone), (2, shared)):
        rows.append([n, f"{median:.2f}", " ".join(f"{run['seconds']:.2f}" for run in runs if run["processes"] == n)])
    report(options.out / "runs.csv", facts, rows)
    report(options.out / "estimate.csv", facts, estimate(runs[0]["bytes"], medians[0]))


def report(path: Path, facts: dict[str, str], rows: list[list[Any]]) -> None:
    provenance.write_csv(path, facts, rows)
    for row in rows:
        print(" | ".join(map(str, row)))
    print()


def estimate(size: dict[str, int], latency: float) -> list[list[Any]]:
    """Seconds that a cluster would spend on exchanges, and their part of the training time.

    size: bytes of one seed's rows in an update and of its state. latency: seconds of an exchange of nothing between two
    processes; a ring of P takes P - 1 such steps. Every process of a host receives all over the host's one network.
    """
    rows: list[list[Any]] = [["what", "MB of all seeds", "seconds", "every seconds", "share of the time"]]
    for what, one, every, exchanges in (
        ("rows of a chunk", size["rows"] * UPDATES_A_CHUNK, CHUNK_SECONDS, 2),
        ("states of a checkpoint", size["state"], CHECKPOINT_SECONDS, size["leaves"]),
    ):
        received = one * CLUSTER_SEEDS
        wire = received * PROCESSES_A_HOST / HOST_BYTES_A_SECOND
        seconds = exchanges * latency * (CLUSTER_PROCESSES - 1) / (PROCESSES - 1) + wire
        rows.append([what, f"{received / 1e6:.1f}", f"{seconds:.2f}", f"{every:g}", f"{seconds / every:.1%}"])
    return rows


def together(task: list[str], count: int = PROCESSES) -> list[dict[str, Any]]:
    """What each process says of a task, each on cores of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", "from benchmarks import processes; processes.work()", port, str(count)]
    started = [
        subprocess.Popen([*command, str(index), *task], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for index in range(count)
    ]
    said = [process.communicate(timeout=600)[0] for process in started]
    for process in started:
        if process.returncode:
            raise SystemExit(f"A process of {' '.join(task)} ended with {process.returncode}.")
    return [json.loads(text.splitlines()[-1]) for text in said]


def work() -> None:
    """One process of a task: it prints what it measured as JSON."""
    port, count, index, task, *more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[index % len(cores) :: count])
    from purerl.run import processes

    if count > 1:
        processes.connect(f"localhost:{port}", count, index, say=lambda _: None)
    import jax
    import numpy as np

    import purerl
    from purerl import ppo, runner

    purerl.use_all_cores()
    if task == "exchange":
        medians = []
        for size in SIZES:
            numbers, times = np.zeros(size, np.float32), list[float]()
            for _ in range(int(more[0]) + 1):  # the first compiles
                started = time.perf_counter()
                processes.gather(numbers)
                times.append(time.perf_counter() - started)
            medians.append(statistics.median(times[1:]))
        print(json.dumps({"seconds": medians}), flush=True)
        return
    config = purerl.tuned("ppo", "CartPole-v1").replace(total_timesteps=STEPS)
    began = list[float]()
    run = runner.train(
        ppo,
        config,
        seeds=range(SEEDS),
        progress=False,
        say=lambda _: None,
        on_chunk=lambda *_: began.append(time.perf_counter()),
    )
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(run.states._replace(key=0))]
    per_seed = {
        "rows": 4 * len(run.metrics),
        "state": sum(leaf.nbytes for leaf in leaves) // SEEDS,
        "leaves": len(leaves),
    }
    print(json.dumps({"seconds": began[-1] - began[0], "bytes": per_seed}), flush=True)


if __name__ == "__main__":
    main()
