"""What figure 3 and table 1 of the PPO paper (arXiv:1707.06347) share: settings, resumable runs, and their scores.

A run is one method in one env, all seeds of it together. Once it is finished its results stand in OUT/ENV/METHOD: what
it was (config.json), its scores, its learning curve. From these alone pictures and tables are made, so that calling a
benchmark again neither trains nor evaluates again, and what one machine has finished another can add to. They show
every run that is finished, whichever code finished it; what this code has not finished is trained when it is asked for.
"""

import csv
import dataclasses
import importlib
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from benchmarks import learning, provenance
from purerl.run import folder as run_folder
from purerl.run import plot
from purerl.run.errors import RunError
from purerl.run.provenance import source_hash

# The paper's networks, discount and batch of 2,048 steps, here of 16 envs; Brax's observations have no common scale.
COMMON: dict[str, Any] = {
    "num_envs": 16,
    "num_steps": 128,
    "actor_hidden_sizes": (64, 64),
    "critic_hidden_sizes": (64, 64),
    "activation": "tanh",
    "normalize_obs": True,
    "gamma": 0.99,
}
# Minibatches of 64, ten epochs, Adam at 3e-4, no entropy bonus, and the critic not clipped, as in the paper.
PPO: dict[str, Any] = COMMON | {
    "num_epochs": 10,
    "num_minibatches": 32,
    "learning_rate": 3e-4,
    "anneal_learning_rate": False,
    "gae_lambda": 0.95,
    "clip_value": False,
    "ent_coef": 0.0,
    "normalize_reward": True,
}


class Method(NamedTuple):
    """fields: of the algorithm's Config, besides env and budget."""

    label: str
    algorithm: str
    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The label as options and folders have it, such as "a2c_trust_region"."""
        return re.sub(r"\W+", "_", self.label).strip("_").lower()

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"purerl.algorithms.{self.algorithm}")

    @property
    def settings(self) -> dict[str, Any]:
        """Every field of its Config by name, defaults too, besides env, budget and networks of the user's own."""
        fields = [field for field in dataclasses.fields(self.module.Config) if not field.metadata.get("network")]
        values = {field.name: field.default for field in fields} | dict(self.fields)
        return {name: x for name, x in values.items() if name not in ("env", "env_params", "total_timesteps")}


@dataclass
class Options:
    """Which runs are trained, and where."""

    envs: tuple[str, ...] = ()
    """Those to train in, such as brax/hopper; all where none is named."""
    methods: tuple[str, ...] = ()
    """Those to train, such as ppo_clip; all where none is named."""
    first_seed: int = 0
    """The first seed."""
    num_seeds: int = 3
    """Seeds of each run."""
    total_timesteps: int = 1_000_000
    """Env steps of each training."""
    num_episodes: int = 30
    """Evaluation episodes a seed; 0 evaluates nothing."""
    seeds_at_once: int = 1
    """Seeds that a device runs vmapped."""
    report: bool = False
    """Train nothing: picture and tables of the runs that are finished."""
    out: Path = Path("benchmarks/results")
    """Where results go."""
    work: Path = Path("runs")
    """Where the runs live, so that an interrupted one can go on."""
    fresh: bool = False
    """Train anew: discard what is in the folders of these runs, and their results. Not with --report."""

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_seeds)


class Scores(NamedTuple):
    """Of a finished run, `[num_seeds]`: mean return in the last tenth of training, and of the final policy or NaN.

    episodes: evaluation episodes of each seed. source: the hash of the code that trained it, or "unknown".
    """

    last_tenth: np.ndarray
    greedy: np.ndarray
    episodes: int
    source: str


SCORES = ("last_tenth", "greedy")  # the columns of a number a seed


class Run(NamedTuple):
    """One method in one env."""

    method: Method
    env: str
    options: Options

    @property
    def folder(self) -> Path:
        return self.options.work / self.method.name / self.env.replace("/", "-")

    @property
    def results(self) -> Path:
        """Where what it came to is kept."""
        return self.options.out / self.env.replace("/", "-") / self.method.name

    @property
    def config(self) -> Any:
        return self.method.module.Config(
            env=self.env, total_timesteps=self.options.total_timesteps, **self.method.fields
        )

    def scores(self) -> Scores | None:
        """None where it is not finished; whichever code finished it. Exits where its results are of other settings."""
        path = self.results / "scores.csv"
        if not path.exists():
            return None
        try:
            run_folder.check_same(self.results, self.method.module, self.config, list(self.options.seeds))
        except RunError as error:
            sys.exit(f"{error} Give --out another folder, or discard this one.")
        rows = read_csv(path)
        last, greedy = (np.array([float(row[name]) for row in rows]) for name in SCORES)
        return Scores(last, greedy, int(rows[0]["episodes"]), learning.source_of(self.results))

    @property
    def stands(self) -> bool:
        """Whether the code that is here has finished it, with as many evaluation episodes: nothing is to be done."""
        scores = self.scores()
        if scores is None:
            return False
        return scores.episodes == self.options.num_episodes and scores.source == source_hash()

    def curve(self) -> dict[str, np.ndarray]:
        """Training returns in 100 windows, as metrics of each seed that `plot.learning_curve` takes."""
        rows = read_csv(self.results / "curve.csv")
        returns = np.array([[float(row[f"seed_{seed}"]) for row in rows] for seed in self.options.seeds])
        steps = np.array([float(row["env_steps"]) for row in rows])
        begun = np.maximum.accumulate(~np.isnan(returns), axis=1)  # before the first episode ended there is no return
        whole = {"env_steps": np.tile(steps, (len(returns), 1)), "episodes": begun.astype(float)}
        return {"episode_return": returns} | whole

    def finish(self, facts: Mapping[str, str]) -> None:
        """Trains it, or goes on with it, and writes its results; exits with one sentence where it cannot."""
        options = self.options
        run = learning.trained(self.method.module, self.config, options.seeds, self.folder, options.seeds_at_once)
        greedy = np.full(len(run.seeds), np.nan)
        if options.num_episodes:
            greedy = learning.evaluate(run, options.num_episodes).mean(1)
        metrics = plot.read_metrics(self.folder)
        updates, values = plot.smooth(metrics, "episode_return")
        steps = [self.config.env_steps(int(update)) for update in updates]
        curve = [[step, *(f"{x:.3f}" for x in row)] for step, row in zip(steps, values.T, strict=True)]
        (self.results / "scores.csv").unlink(missing_ok=True)  # which says that all the rest is there
        provenance.write_csv(
            self.results / "curve.csv", facts, [["env_steps", *(f"seed_{seed}" for seed in run.seeds)], *curve]
        )
        with provenance.whole(self.results / run_folder.CONFIG) as partial:
            shutil.copyfile(self.folder / run_folder.CONFIG, partial)
        scores = zip(run.seeds, last_tenth(metrics), greedy, strict=True)
        rows = [[seed, options.num_episodes, *values] for seed, *values in scores]
        provenance.write_csv(self.results / "scores.csv", facts, [["seed", "episodes", *SCORES], *rows])


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a table that `provenance.write_csv` wrote, without the facts."""
    with path.open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def title(env: str) -> str:
    """An env's name without its suite and backend."""
    return env.removeprefix("brax/").partition("/")[0]


def last_tenth(metrics: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean return of the episodes that ended in the last tenth of the env steps, `[num_seeds]`; NaN where none did.

    metrics: `[num_seeds, updates]`, as a run's folder has them. Every episode counts the same.
    """
    steps = metrics["env_steps"]
    late = 10 * (steps[:, -1:] - steps) < steps[:, -1:]
    episodes = np.where(late, metrics["episodes"], 0.0)
    total, number = np.where(episodes > 0, episodes * metrics["episode_return"], 0.0).sum(1), episodes.sum(1)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)


def chosen(methods: Sequence[Method], envs: Sequence[str], options: Options) -> list[Run]:
    """The runs to train, env by env; exits with one sentence where a name is none of these."""
    by_name = {method.name: method for method in methods}
    for what, named, known in (("env", options.envs, envs), ("method", options.methods, by_name)):
        if unknown := [name for name in named if name not in known]:
            sys.exit(f"There is no {what} {', '.join(unknown)} here; there are {', '.join(known)}.")
    if options.num_seeds < 1 or options.num_episodes < 0:
        sys.exit("--num-seeds must be at least 1, and --num-episodes not negative.")
    picked = [by_name[name] for name in options.methods or by_name]
    return [Run(method, env, options) for env in options.envs or envs for method in picked]


def prepare(runs: Sequence[Run], options: Options) -> None:
    """Sees to it that nothing of other code is gone on with, as `learning.prepare`; --fresh discards results too."""
    if not options.report:
        results = [run.results for run in runs if options.fresh]
        learning.prepare([*(run.folder for run in runs), *results], options.fresh)


def finished(methods: Sequence[Method], envs: Sequence[str], options: Options) -> dict[str, dict[str, Scores]]:
    """Scores of the finished runs, by env and the method's label."""
    found = {env: {method.label: Run(method, env, options).scores() for method in methods} for env in envs}
    return {env: {label: x for label, x in row.items() if x is not None} for env, row in found.items()}


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """IQM of `[num_seeds]` and the ends of its 95 % bootstrap interval: of three seeds mean, lowest and highest."""
    low, high = plot.bootstrap_interval(values)
    return float(plot.iqm(values)), float(low), float(high)


def score_rows(results: Mapping[str, Mapping[str, Scores]], seeds: Sequence[int]) -> list[list[Any]]:
    """A row for each seed of each finished run."""
    rows: list[list[Any]] = [["env", "method", "seed", *SCORES, "episodes", "source"]]
    for env, row in results.items():
        for label, (last, greedy, *origin) in row.items():
            values = zip(seeds, last, greedy, strict=True)
            rows += [[env, label, seed, *(f"{x:.3f}" for x in pair), *origin] for seed, *pair in values]
    return rows


def source_lines(results: Mapping[str, Mapping[str, Scores]]) -> list[str]:
    """Markdown of one line that names the runs of other code than is here; empty where there are none."""
    now = source_hash()
    runs = [(x.source, f"{label} on {title(env)}") for env, row in results.items() for label, x in row.items()]
    by_source = {source: [name for of, name in runs if of == source] for source, _ in runs if source != now}
    parts = [
        f"source {source}: {'all' if len(names) == len(runs) else ', '.join(names)}"
        for source, names in by_source.items()
    ]
    return ["", f"Runs of other code than is here now (source {now}): {'; '.join(parts)}."] if parts else []


def settings_lines(methods: Sequence[Method]) -> list[str]:
    """Markdown of what each method is trained with: the fields that are equal in all, then each one's others."""
    settings = [method.settings for method in methods]
    shared = {name: x for name, x in settings[0].items() if all(name in own and own[name] == x for own in settings)}
    lines = ["", "## Settings", "", f"All: {_fields(shared)}.", ""]
    for method, values in zip(methods, settings, strict=True):
        own = {name: x for name, x in values.items() if name not in shared}
        lines.append(f"- {method.label}: `{method.algorithm}`, {_fields(own)}.")
    return lines


def _fields(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name} = {value!r}`" for name, value in values.items()) or "no field"
