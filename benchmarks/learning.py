"""Do the algorithms learn? Trains the settings that purerl ships over many seeds, against their bars.

    python -m benchmarks.learning ppo CartPole-v1                     one entry, seeds 0-9
    python -m benchmarks.learning ppo CartPole-v1 dqn MountainCar-v0  several
    python -m benchmarks.learning dqn CartPole-v1:double              a variant of an entry
    python -m benchmarks.learning --all                               all entries and variants

The final policy of each seed, never the best checkpoint, acts for 100 episodes: greedily, or with the training's last
epsilon where the entry says so. The mean over seeds must reach the bar. Beside it stand its standard error over seeds,
the IQM with its 95 % bootstrap interval, the worst seed, and how many seeds are under the bar.

Results go to benchmarks/results/learning: summary.csv and summary.md with a row for each entry, and in the folder
ALGORITHM/ENV, or ALGORITHM/ENV/VARIANT, the seeds' scores and the learning curves as CSV and as a picture.
The exit status is 1 where an entry is under its bar. An interrupted run goes on where it was when called again; a run
that other code began is refused, or with --fresh trained anew.
"""

import csv
import importlib
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro

import purerl
from benchmarks import provenance
from purerl.run import plot, runner, settings
from purerl.run.provenance import source_hash

_ENTRY = ("algorithm", "env", "variant", "env_steps", "seeds")
_SCORES = ("actions", "episodes", "mean", "se", "iqm", "low", "high", "lowest", "worst_seed", "under_bar")
_VERDICT = ("bar", "bar_source", "reached", "run_seconds", "env_steps_per_second")
_COLUMNS = _ENTRY + _SCORES + _VERDICT + provenance.KEYS


@dataclass
class Options:
    """Trains tuned entries over many seeds and exits with 1 where one is under its bar."""

    entries: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Pairs ALGORITHM ENV; an env may carry a variant, ENV:VARIANT."""
    all: bool = False
    """Every entry and variant that purerl ships."""
    first_seed: int = 0
    """The first seed."""
    num_seeds: int = 10
    """Seeds trained at once."""
    num_episodes: int = 100
    """Evaluation episodes a seed."""
    seeds_at_once: int = 1
    """Seeds that a device runs vmapped."""
    out: Path = Path("benchmarks/results/learning")
    """Where results go."""
    work: Path = Path("runs/learning")
    """Where the runs live, so that an interrupted one can go on."""
    fresh: bool = False
    """Discard what is in the run folders instead of going on with it."""

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_seeds)


class Entry(NamedTuple):
    algorithm: str
    env: str
    variant: str

    @property
    def setting(self) -> settings.Setting:
        return settings.entry(*self)

    @property
    def bar(self) -> float:
        bar = self.setting.bar
        assert bar is not None  # a test holds each shipped entry to it
        return bar

    @property
    def folder(self) -> Path:
        """Of its results, below those of all entries."""
        return Path(self.algorithm, self.env.replace("/", "-"), self.variant)

    def run_folder(self, options: Options) -> Path:
        """A folder for each entry and range of seeds, side by side: a run's folder holds nothing but the run."""
        name = "_".join(part.replace("/", "-") for part in self if part)
        return options.work / f"{name}_{options.seeds[0]}-{options.seeds[-1]}"


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.learning", description=__doc__)
    if options.num_seeds < 1 or options.num_episodes < 1:
        sys.exit("--num-seeds and --num-episodes must be at least 1.")
    purerl.use_all_cores()
    entries = list(all_entries()) if options.all else parse(options.entries)
    prepare([entry.run_folder(options) for entry in entries], options.fresh)
    facts = provenance.provenance("benchmarks.learning", devices=True)
    rows = []
    for entry in entries:
        rows.append(run_entry(entry, options, facts))
        write_summary(options.out, rows[-1])
    for row in rows:
        verdict = "reached" if row["reached"] else "NOT reached"
        print(f"{row['algorithm']} {row['env']} {row['variant']}: mean {row['mean']}, bar {row['bar']} {verdict}")
    sys.exit(0 if all(row["reached"] for row in rows) else 1)


def all_entries() -> Iterator[Entry]:
    for algorithm in purerl.ALGORITHMS:
        for env, setting in settings.shipped(algorithm).items():
            yield from (Entry(algorithm, env, variant) for variant in ("", *setting.variants))


def parse(words: Sequence[str]) -> list[Entry]:
    """Entries from ALGORITHM ENV[:VARIANT] pairs; exits with one sentence where there is no such entry."""
    if not words or len(words) % 2:
        sys.exit("Name pairs of algorithm and env, such as `ppo CartPole-v1`, or give --all.")
    entries = [
        Entry(algorithm, *env.partition(":")[::2]) for algorithm, env in zip(words[::2], words[1::2], strict=True)
    ]
    for entry in entries:
        try:
            settings.entry(*entry)
        except KeyError as error:
            sys.exit(str(error.args[0]))
    return entries


def prepare(folders: Sequence[Path], fresh: bool) -> None:
    """Sees to it that what the run folders hold is the work of the code that is here now.

    fresh: discards them. Else exits with one sentence where one was begun by other code, or by code that kept no
    record of itself: its policies would be evaluated and reported as those of this code.
    """
    now, others = source_hash(), []
    for folder in folders:
        if fresh and folder.exists():
            print(f"Training anew: {folder} is discarded.")
            shutil.rmtree(folder)
        begun_by = source_of(folder) if (folder / "config.json").exists() else now
        others += [f"{folder} (source {begun_by})"] if begun_by != now else []
    if others:
        sys.exit(
            f"Refused, and nothing trained or evaluated: other code than this (source {now}) began "
            f"{', '.join(others)}; give --fresh to discard and train anew."
        )


def source_of(folder: Path) -> str:
    """The hash of the code that began a run, by its config.json; "unknown" where that does not say or is damaged."""
    try:
        return str(json.loads((folder / "config.json").read_text())["versions"]["source"])
    except (ValueError, KeyError, TypeError):
        return "unknown"


def trained(algorithm: Any, config: Any, seeds: Sequence[int], folder: Path, seeds_at_once: int = 1) -> runner.Run:
    """The finished run in this folder, begun or gone on with; exits with one sentence where it cannot be finished."""
    resume = (folder / "config.json").exists()
    try:
        run = runner.train(algorithm, config, seeds=seeds, out=folder, resume=resume, seeds_at_once=seeds_at_once)
    except runner.RunError as error:
        sys.exit(str(error))
    if not run.finished:
        sys.exit("Interrupted: call the same command again to go on.")
    return run


def run_entry(entry: Entry, options: Options, facts: Mapping[str, str]) -> dict[str, Any]:
    """Trains, evaluates and writes one entry; returns its row of the summary."""
    algorithm = importlib.import_module(f"purerl.algorithms.{entry.algorithm}")
    config, folder = settings.tuned(*entry), entry.run_folder(options)
    run = trained(algorithm, config, options.seeds, folder, options.seeds_at_once)
    scores = evaluate(run, options.num_episodes, deterministic=entry.setting.evaluate == "greedy")
    provenance.write_csv(options.out / entry.folder / "scores.csv", facts, score_rows(run.seeds, scores))
    write_curve(options.out / entry.folder, entry, plot.read_metrics(folder), config, facts)
    return summary_row(entry, run, scores, facts)


def evaluate(run: runner.Run, num_episodes: int, *, deterministic: bool = True) -> np.ndarray:
    """Returns of the final policies, `[num_seeds, num_episodes]`, each seed with an evaluation key of its own."""

    def one(state: Any, seed: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(2**31 - 1), seed)
        return purerl.evaluate(
            run.algorithm, state, run.config, key, num_episodes=num_episodes, deterministic=deterministic
        ).returns

    states = jax.device_put(run.states, jax.devices()[0])
    return np.asarray(jax.jit(lambda s, i: jax.lax.map(lambda x: one(*x), (s, i)))(states, np.array(run.seeds)))


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of `[N]` independent values; NaN where there is one alone."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def actions(entry: Entry, config: Any) -> str:
    """How the final policies act: "greedy", or such as "epsilon 0.05"."""
    return "greedy" if entry.setting.evaluate == "greedy" else f"epsilon {config.epsilon_end:g}"


def summary_row(entry: Entry, run: runner.Run, scores: np.ndarray, facts: Mapping[str, str]) -> dict[str, Any]:
    means = scores.mean(1)
    low, high = plot.bootstrap_interval(means)
    steps = run.config.env_steps(run.updates) * len(run.seeds)
    whole = next(iter(run.metrics.values())).shape[1] == run.updates  # a resumed run's time is not that of the whole
    figures = {"mean": means.mean(), "se": standard_error(means), "iqm": plot.iqm(means), "low": low, "high": high}
    return {
        **entry._asdict(),
        "env_steps": run.config.env_steps(run.updates),
        "seeds": f"{run.seeds[0]}-{run.seeds[-1]}",
        "actions": actions(entry, run.config),
        "episodes": scores.shape[1],
        **{name: f"{value:.2f}" for name, value in figures.items()},
        "lowest": f"{means.min():.2f}",
        "worst_seed": run.seeds[int(means.argmin())],
        "under_bar": int((means < entry.bar).sum()),
        "bar": entry.bar,
        "bar_source": entry.setting.source,
        "reached": bool(means.mean() >= entry.bar),
        "run_seconds": f"{run.run_seconds:.0f}" if whole else "",
        "env_steps_per_second": f"{steps / run.run_seconds:.0f}" if whole else "",
        **facts,
    }


def score_rows(seeds: Sequence[int], scores: np.ndarray) -> Iterator[list[Any]]:
    """One row a seed: mean return over its episodes, the mean's standard error, standard deviation, lowest, highest."""
    yield ["seed", "episodes", "mean", "se", "std", "lowest", "highest"]
    for seed, x in zip(seeds, scores, strict=True):
        figures = (x.mean(), standard_error(x), x.std(), x.min(), x.max())
        yield [seed, len(x), *(f"{value:.3f}" for value in figures)]


def write_curve(out: Path, entry: Entry, metrics: dict[str, np.ndarray], config: Any, facts: Mapping[str, str]) -> None:
    """Training returns of each seed in 100 windows as `curve.csv`, and their picture `curve.png`."""
    updates, values = plot.smooth(metrics, "episode_return")
    seeds = metrics["seed"][:, 0].astype(int)
    rows: list[Sequence[Any]] = [["env_steps", *(f"seed_{seed}" for seed in seeds)]]
    for update, row in zip(updates, values.T, strict=True):
        rows.append([config.env_steps(int(update)), *(f"{value:.2f}" for value in row)])
    provenance.write_csv(out / "curve.csv", facts, rows)
    ax = plot.learning_curve(metrics, config)
    ax.axhline(entry.bar, color="0.4", lw=1, ls="--")
    ax.annotate(
        "bar",
        (1, entry.bar),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color="0.4",
        fontsize="small",
    )
    name = " ".join(part for part in entry if part)
    ax.set_title(f"{name}, {len(seeds)} seeds: IQM and 95 % interval", fontsize="medium")
    figure = plot.figure_of(ax)
    provenance.save_figure(figure, out / "curve.png", facts)
    plt.close(figure)


def write_summary(out: Path, row: dict[str, Any]) -> None:
    """Puts the row into summary.csv, in place of an older one of the same entry, and writes summary.md from it."""
    path = out / "summary.csv"
    table = {}
    if path.exists():
        with path.open(newline="") as file:
            table = {tuple(old[name] for name in Entry._fields): old for old in csv.DictReader(file)}
    table[tuple(row[name] for name in Entry._fields)] = {name: str(value) for name, value in row.items()}
    ordered = [{name: table[key].get(name, "") for name in _COLUMNS} for key in sorted(table)]
    provenance.write_csv(path, {}, [_COLUMNS, *(list(row.values()) for row in ordered)])
    (out / "summary.md").write_text(markdown(ordered))


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    columns = ["algorithm", "env", "variant", "env steps", "seeds", "actions", "episodes a seed", "mean", "IQM [95 %]"]
    columns += ["worst seed", "bar", "seeds under it", "reached"]
    lines = [
        "# Learning results",
        "",
        "Returns of the final policies, which act greedily or with the epsilon given. The mean over seeds, +- its",
        "standard error, is held against the bar; IQM with its 95 % interval. Commands, dates, machines, versions and",
        "the hash of the code stand in summary.csv.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for row in rows:
        reached = "yes" if row["reached"] == "True" else "**no**"
        interval = f"{row['iqm']} [{row['low']}, {row['high']}]"
        cells = [row["algorithm"], row["env"], row["variant"] or "-", f"{int(row['env_steps']):,}", row["seeds"]]
        cells += [row["actions"], row["episodes"], f"{row['mean']} +- {row['se']}", interval]
        cells += [f"{row['lowest']} (seed {row['worst_seed']})", row["bar"], row["under_bar"], reached]
        lines.append(f"| {' | '.join(cells)} |")
    sources = {
        f"{' '.join(row[field] for field in Entry._fields if row[field])}, {row['bar']}": row["bar_source"]
        for row in rows
        if row["bar_source"]  # results from before the bars had sources stay as they were measured
    }
    lines += ["", "## Where the bars come from", ""] if sources else []
    lines += [f"- {bar}: {source}." for bar, source in sources.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
