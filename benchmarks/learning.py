"""Do the algorithms learn? Trains entries of `purerl.run.settings.TUNED` over many seeds against their bars.

    python -m benchmarks.learning ppo CartPole-v1                     one entry, seeds 0-9
    python -m benchmarks.learning ppo CartPole-v1 dqn MountainCar-v0  several
    python -m benchmarks.learning dqn CartPole-v1:double              a variant of an entry
    python -m benchmarks.learning --all                               all entries and variants

The final policy of each seed, never the best checkpoint, acts greedily for 100 episodes. Reported are the mean over
seeds, which must reach the bar, and the IQM with its 95 % bootstrap interval. Results go to benchmarks/results: for
each entry a CSV of the seeds' scores, a CSV and a picture of the learning curves, a row of summary.csv and summary.md.
The exit status is 1 where an entry is under its bar. An interrupted run goes on where it was when called again.
"""

import csv
import datetime
import importlib
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro

import purerl
from purerl.run import plot, runner, settings

_ENTRY = ("algorithm", "env", "variant", "env_steps", "seeds")
_SCORES = ("mean", "iqm", "low", "high", "lowest_seed", "bar", "reached", "run_seconds", "env_steps_per_second")
_PROVENANCE = ("command", "date", "machine", "versions")


@dataclass
class Options:
    """Trains tuned entries over many seeds and exits with 1 where one is under its bar."""

    entries: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Pairs ALGORITHM ENV; an env may carry a variant, ENV:VARIANT."""
    all: bool = False
    """Every entry and variant of the table."""
    first_seed: int = 0
    """The first seed."""
    num_seeds: int = 10
    """Seeds trained at once."""
    num_episodes: int = 100
    """Evaluation episodes a seed."""
    seeds_at_once: int = 1
    """Seeds that a device runs vmapped."""
    out: Path = Path("benchmarks/results")
    """Where results go."""
    work: Path = Path("runs/learning")
    """Where the runs live, so that an interrupted one can go on."""
    fresh: bool = False
    """Discard what is in the run folders instead of going on with it."""


class Entry(NamedTuple):
    algorithm: str
    env: str
    variant: str

    @property
    def name(self) -> str:
        return "_".join(part.replace("/", "-") for part in self if part)


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.learning", description=__doc__)
    purerl.use_all_cores()
    entries = list(all_entries()) if options.all else parse(options.entries)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for entry in entries:
        rows.append(run_entry(entry, options))
        write_summary(options.out, rows[-1])
    for row in rows:
        verdict = "reached" if row["reached"] else "NOT reached"
        print(f"{row['algorithm']} {row['env']} {row['variant']}: mean {row['mean']}, bar {row['bar']} {verdict}")
    sys.exit(0 if all(row["reached"] for row in rows) else 1)


def all_entries() -> Iterator[Entry]:
    for (algorithm, env), setting in settings.TUNED.items():
        yield Entry(algorithm, env, "")
        yield from (Entry(algorithm, env, variant) for variant in setting.variants)


def parse(words: Sequence[str]) -> list[Entry]:
    """Entries from ALGORITHM ENV[:VARIANT] pairs; exits with one sentence where there is no such entry."""
    if not words or len(words) % 2:
        sys.exit("Name pairs of algorithm and env, such as `ppo CartPole-v1`, or give --all.")
    entries = [
        Entry(algorithm, *env.partition(":")[::2]) for algorithm, env in zip(words[::2], words[1::2], strict=True)
    ]
    for entry in entries:
        try:
            settings.tuned(*entry)
        except KeyError as error:
            sys.exit(str(error.args[0]))
    return entries


def run_entry(entry: Entry, options: Options) -> dict[str, Any]:
    """Trains, evaluates and writes one entry; returns its row of the summary."""
    algorithm = importlib.import_module(f"purerl.algorithms.{entry.algorithm}")
    config, setting = settings.tuned(*entry), settings.TUNED[entry.algorithm, entry.env]
    seeds = list(range(options.first_seed, options.first_seed + options.num_seeds))
    folder = options.work / entry.name
    if options.fresh and folder.exists():
        shutil.rmtree(folder)
    resume = (folder / "config.json").exists()
    run = runner.train(algorithm, config, seeds=seeds, out=folder, resume=resume, seeds_at_once=options.seeds_at_once)
    if not run.finished:
        sys.exit("Interrupted: call the same command again to go on.")
    scores = evaluate(run, options.num_episodes)
    write_scores(options.out / f"{entry.name}.csv", run.seeds, scores)
    write_curve(options.out, entry, plot.read_metrics(folder), config)
    return summary_row(entry, run, scores.mean(1), setting.bar)


def evaluate(run: runner.Run, num_episodes: int) -> np.ndarray:
    """Returns of the final policies, `[num_seeds, num_episodes]`, each seed with an evaluation key of its own."""

    def one(state: Any, seed: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(2**31 - 1), seed)
        return purerl.evaluate(run.algorithm, state, run.config, key, num_episodes=num_episodes).returns

    states = jax.device_put(run.states, jax.devices()[0])
    return np.asarray(jax.jit(lambda s, i: jax.lax.map(lambda x: one(*x), (s, i)))(states, np.array(run.seeds)))


def summary_row(entry: Entry, run: runner.Run, means: np.ndarray, bar: float) -> dict[str, Any]:
    low, high = plot.bootstrap_interval(means)
    steps = run.config.env_steps(run.updates) * len(run.seeds)
    whole = next(iter(run.metrics.values())).shape[1] == run.updates  # a resumed run's time is not that of the whole
    figures = {"mean": means.mean(), "iqm": plot.iqm(means), "low": low, "high": high, "lowest_seed": means.min()}
    return {
        **entry._asdict(),
        "env_steps": run.config.env_steps(run.updates),
        "seeds": f"{run.seeds[0]}-{run.seeds[-1]}",
        **{name: f"{value:.2f}" for name, value in figures.items()},
        "bar": bar,
        "reached": bool(means.mean() >= bar),
        "run_seconds": f"{run.run_seconds:.0f}" if whole else "",
        "env_steps_per_second": f"{steps / run.run_seconds:.0f}" if whole else "",
        **provenance(),
    }


def provenance(module: str = "benchmarks.learning") -> dict[str, str]:
    """The command, day, machine and versions that made a result."""
    packages = ("purerl", "jax", "flax", "optax", "gymnax", "brax")
    versions = " ".join(f"{name} {version(name)}" for name in packages)
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    return {
        "command": command,
        "date": f"{datetime.date.today()}",
        "machine": machine(),
        "versions": f"python {platform.python_version()} {versions}",
    }


def machine() -> str:
    """Processor, its core count and the devices JAX runs on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")),
            cpu,
        )
    return f"{cpu}, {len(jax.devices())} x {jax.devices()[0].device_kind}"


def write_scores(path: Path, seeds: Sequence[int], scores: np.ndarray) -> None:
    """One row a seed: mean, standard deviation, lowest and highest return over the evaluation episodes."""
    with path.open("w", newline="") as file:
        file.write("".join(f"# {name}: {value}\n" for name, value in provenance().items()))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "episodes", "mean", "std", "lowest", "highest"])
        for seed, x in zip(seeds, scores, strict=True):
            writer.writerow([seed, len(x), *(f"{value:.3f}" for value in (x.mean(), x.std(), x.min(), x.max()))])


def write_curve(out: Path, entry: Entry, metrics: dict[str, np.ndarray], config: Any) -> None:
    """Training returns of each seed in 100 windows as `<name>_curve.csv`, and their picture `<name>.png`."""
    updates, values = plot.smooth(metrics, "episode_return")
    seeds = metrics["seed"][:, 0].astype(int)
    with (out / f"{entry.name}_curve.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["env_steps", *(f"seed_{seed}" for seed in seeds)])
        for update, row in zip(updates, values.T, strict=True):
            writer.writerow([config.env_steps(int(update)), *(f"{value:.2f}" for value in row)])
    ax = plot.learning_curve(metrics, config)
    bar = settings.TUNED[entry.algorithm, entry.env].bar
    ax.axhline(bar, color="0.4", lw=1, ls="--")
    ax.annotate(
        "bar", (1, bar), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.4", fontsize="small"
    )
    name = " ".join(part for part in entry if part)
    ax.set_title(f"{name}, {len(seeds)} seeds: IQM and 95 % interval", fontsize="medium")
    figure = plot.figure_of(ax)
    figure.savefig(out / f"{entry.name}.png", dpi=110)
    plt.close(figure)


def write_summary(out: Path, row: dict[str, Any]) -> None:
    """Puts the row into summary.csv, in place of an older one of the same entry, and writes summary.md from it."""
    path = out / "summary.csv"
    table = {}
    if path.exists():
        with path.open(newline="") as file:
            table = {tuple(old[name] for name in Entry._fields): old for old in csv.DictReader(file)}
    table[tuple(row[name] for name in Entry._fields)] = {name: str(value) for name, value in row.items()}
    ordered = [table[key] for key in sorted(table)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _ENTRY + _SCORES + _PROVENANCE, lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)
    (out / "summary.md").write_text(markdown(ordered))


def markdown(rows: list[dict[str, str]]) -> str:
    lines = [
        "# Learning results",
        "",
        "Final policies, greedy, 100 episodes a seed. Mean over seeds against the bar; IQM with its 95 % interval.",
        "Commands, dates, machines and versions stand in summary.csv.",
        "",
        "| algorithm | env | variant | env steps | seeds | mean | IQM [95 %] | lowest seed | bar | reached |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        reached = "yes" if row["reached"] == "True" else "**no**"
        interval = f"{row['iqm']} [{row['low']}, {row['high']}]"
        steps, variant = f"{int(row['env_steps']):,}", row["variant"] or "-"
        cells = (row["algorithm"], row["env"], variant, steps, row["seeds"], row["mean"], interval)
        lines.append(f"| {' | '.join((*cells, row['lowest_seed'], row['bar'], reached))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
