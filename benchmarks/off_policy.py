"""What does a memory of the past gain? DDPG, TD3 and SAC beside PPO on Brax.

    python -m benchmarks.off_policy                                  four envs, all methods
    python -m benchmarks.off_policy --envs brax/hopper --methods sac one env, one method
    python -m benchmarks.off_policy --report                         nothing trained: results of what is finished

The off-policy methods learn with the settings that purerl ships for the env (`purerl/tuned`), for a budget of the env's
own. PPO's runs are those of figure 3, 1M steps of three seeds with that figure's settings, whose results are read and
never trained here. The physics is Brax's `spring` backend.

Results go to benchmarks/results/off_policy after every run: a picture of the learning curves for each env, each seed's
scores in the last tenth of training and of the final greedy policy (off_policy.csv), and off_policy.md; each run's own
in the folder ENV/METHOD, with command, machine and code. An interrupted benchmark goes on where it was when called
again; runs that other code began are refused, or with --fresh trained anew. Two processes, each on one core
(`taskset -c 0`) and with half of the runs, share the work; --report then puts everything together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure

import purerl
from benchmarks import figure3, ppo_paper, provenance
from benchmarks.ppo_paper import Method, Run, Scores
from purerl.run import plot, settings


class Task(NamedTuple):
    """num_seeds: of each off-policy method. bar: of the mean over seeds of the final policies; None for PPO's mean."""

    num_seeds: int
    bar: float | None


TASKS = {
    "brax/inverted_pendulum": Task(5, 950.0),
    "brax/reacher": Task(5, -12.0),
    "brax/hopper": Task(3, None),
    "brax/halfcheetah": Task(3, None),
}
ALGORITHMS = ("ddpg", "td3", "sac")
PPO = next(method for method in figure3.METHODS if method.label == figure3.OURS)


@dataclass
class Options:
    """Trains DDPG, TD3 and SAC on Brax, each for the budget that its settings name."""

    envs: tuple[str, ...] = ()
    """Those to train in, such as brax/hopper; all where none is named."""
    methods: tuple[str, ...] = ()
    """Those to train, such as sac; all that have settings for the env where none is named."""
    num_episodes: int = 30
    """Evaluation episodes a seed."""
    report: bool = False
    """Train nothing: pictures and tables of the runs that are finished."""
    out: Path = Path("benchmarks/results/off_policy")
    """Where results go."""
    ppo: Path = Path("benchmarks/results/figure3")
    """Where PPO's results are."""
    work: Path = Path("runs/off_policy")
    """Where the runs live, so that an interrupted one can go on."""
    fresh: bool = False
    """Train anew: discard what is in the folders of these runs, and their results. Not with --report."""


def run_of(algorithm: str, env: str, options: Options) -> Run | None:
    """None where purerl ships no settings of the algorithm for the env."""
    entry = settings.shipped(algorithm).get(env)
    if entry is None:
        return None
    fields = dict(entry.fields)
    common = ppo_paper.Options(
        num_seeds=TASKS[env].num_seeds,
        total_timesteps=fields.pop("total_timesteps"),
        num_episodes=options.num_episodes,
        out=options.out,
        work=options.work,
    )
    return Run(Method(algorithm.upper(), algorithm, fields), env, common)


def ppo_run(env: str, options: Options) -> Run:
    """The run of figure 3."""
    return Run(PPO, env, ppo_paper.Options(out=options.ppo))


def runs(env: str, options: Options) -> Iterator[Run]:
    """Every run of an env, finished or not, PPO's last."""
    yield from (run for name in ALGORITHMS if (run := run_of(name, env, options)) is not None)
    yield ppo_run(env, options)


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.off_policy", description=__doc__)
    purerl.use_all_cores()
    to_train = [
        run
        for env in options.envs or TASKS
        for run in runs(env, options)
        if run.method is not PPO and (not options.methods or run.method.algorithm in options.methods)
    ]
    ppo_paper.prepare(to_train, ppo_paper.Options(report=options.report, fresh=options.fresh))
    facts = provenance.provenance("benchmarks.off_policy", devices=True)
    for run in [] if options.report else to_train:
        if not run.stands:
            print(f"{run.method.label} on {run.env}", flush=True)
            run.finish(facts)
            write(options, facts)
    print(write(options, facts))


def write(options: Options, facts: Mapping[str, str]) -> str:
    """Writes pictures and tables of the runs that are finished, whichever; returns the text of off_policy.md."""
    finished = {env: [(run, x) for run in runs(env, options) if (x := run.scores()) is not None] for env in TASKS}
    rows: list[list[Any]] = [["env", "method", "env_steps", "seed", *ppo_paper.SCORES, "episodes", "source"]]
    for env, scores in finished.items():
        for run, (last, greedy, *origin) in scores:
            name = [env, run.method.label, run.options.total_timesteps]
            values = zip(run.options.seeds, last, greedy, strict=True)
            rows += [[*name, seed, *(f"{x:.3f}" for x in pair), *origin] for seed, *pair in values]
        figure = draw(env, [run for run, _ in scores])
        provenance.save_figure(figure, options.out / f"{ppo_paper.title(env)}.png", facts)
        plt.close(figure)
    provenance.write_csv(options.out / "off_policy.csv", facts, rows)
    text = markdown(finished)
    provenance.write_text(options.out / "off_policy.md", text)
    return text


def draw(env: str, finished: Sequence[Run]) -> Figure:
    """Return of training episodes over the logarithm of env steps, each method's curve as long as its budget."""
    figure, panel = plt.subplots(figsize=(6, 4), layout="constrained")
    panel.set_xscale("log")
    colors = dict(
        zip(
            [*(name.upper() for name in ALGORITHMS), PPO.label],
            ("tab:blue", "tab:orange", "tab:green", "0.35"),
            strict=True,
        )
    )
    lines = {}
    for run in finished:
        panel.set_prop_cycle(color=[colors[run.method.label]])
        plot.learning_curve(run.curve(), ax=panel, show_seeds=False)
        lines[f"{run.method.label}, {run.options.num_seeds} seeds"] = panel.lines[-1]
    panel.legend(lines.values(), lines.keys(), frameon=False, fontsize="small")
    panel.set_title(f"{env}: IQM and 95 % interval of training episodes", fontsize="medium")
    return figure


def verdict(env: str, greedy: np.ndarray, ppo: np.ndarray | None) -> str:
    """Whether the mean of the final policies `[num_seeds]` reaches the bar, or where there is none PPO's mean."""
    bar = TASKS[env].bar
    if bar is None:
        if ppo is None:
            return "PPO's run is missing"
        bar = float(ppo.mean())
    return f"{bar:.1f} {'reached' if greedy.mean() >= bar else 'NOT reached'}"


def spread(scores: np.ndarray) -> str:
    """Such as "994.1 [981.0, 1000.0]": of the seeds the mean, the lowest and the highest."""
    return f"{scores.mean():.1f} [{scores.min():.1f}, {scores.max():.1f}]"


def markdown(finished: Mapping[str, Sequence[tuple[Run, Scores]]]) -> str:
    lines = [
        "# Off-policy methods beside PPO, on Brax",
        "",
        "Mean return of the final policies, which act by their mode: of the seeds the mean, in square brackets the",
        "lowest and the highest. The number beside a verdict is the bar; where an env has none of its own it is the",
        "mean of PPO's final policies after 1M steps.",
        "",
        "| env | method | env steps | seeds | final policies | last tenth of training | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for env, scores in finished.items():
        ppo = next((x.greedy for run, x in scores if run.method is PPO), None)
        for run, x in scores:
            result = "-" if run.method is PPO else verdict(env, x.greedy, ppo)
            budget = f"{run.options.total_timesteps:,} | {run.options.num_seeds}"
            cells = f"{budget} | {spread(x.greedy)} | {spread(x.last_tenth)} | {result}"
            lines.append(f"| {ppo_paper.title(env)} | {run.method.label} | {cells} |")
    lines += ppo_paper.source_lines({env: {run.method.label: x for run, x in row} for env, row in finished.items()})
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
