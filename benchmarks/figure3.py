"""Is PPO the best of the policy gradients? Figure 3 of its paper (arXiv:1707.06347), on Brax in place of MuJoCo.

    python -m benchmarks.figure3                                        all seven envs, three seeds of 1M steps
    python -m benchmarks.figure3 --envs brax/hopper --methods ppo_clip  one env, one method
    python -m benchmarks.figure3 --report                               nothing trained: results of what is finished

The physics is Brax's `spring` backend; of the swimmer it is `generalized`, the only one that it has. Settings are the
paper's where it has any, and the same for all envs: batches of 2,048 steps, tanh networks of 64-64, gamma 0.99. A2C,
which takes one gradient step a batch, has batches of 256. Observations and rewards are normalised by running
statistics, since those of Brax have no common scale. Also not the paper's: the learning rates of A2C and of TRPO's
critic fall linearly to 0, those of PPO and of vanilla PG do not; TRPO's critic learns with Adam at 2.5e-4, in ten
epochs of 32 minibatches. CEM counts each episode as 1,000 steps, so that it makes 15 generations; its training return
is that of all its candidates, which fall short of the policy between them. `figure3.md` lists every setting.

Results go to benchmarks/results/figure3 after every run: `figure3.png` in the paper's layout, `figure3.csv` with each
seed's scores, in the last tenth of training and of the final greedy policy, and `figure3.md` with the paper's beside
them; each run's own in the folder ENV/METHOD, with command, machine and code. An interrupted benchmark goes on where it
was when called again; runs that other code began are refused, or with --fresh trained anew. What other code has
finished is shown all the same, and `figure3.md` says which runs those are. Three seeds do not divide
among two cores: two processes, each on one core (`taskset -c 0`) and with half of the envs, take three quarters of the
time; --report then puts everything together.
To see it work in a few minutes, into folders of its own:

    python -m benchmarks.figure3 --envs brax/inverted_pendulum --total-timesteps 20480 --work /tmp/work --out /tmp/out
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure

import purerl
from benchmarks import ppo_paper, provenance
from benchmarks.ppo_paper import COMMON, Method, Run, Scores
from purerl.run import plot

# The cheapest first, so that the most is known the soonest. Brax has no swimmer with springs.
ENVS = (
    "brax/inverted_pendulum",
    "brax/inverted_double_pendulum",
    "brax/reacher",
    "brax/hopper",
    "brax/swimmer",
    "brax/halfcheetah",
    "brax/walker2d",
)
# Learning rate and batch: a compromise of inverted_pendulum, reacher and hopper, found on seeds 1000 and 1001.
A2C: dict[str, Any] = COMMON | {
    "num_steps": 16,
    "n_step": 16,
    "gae_lambda": 0.95,
    "learning_rate": 2e-3,
    "ent_coef": 0.0,
    "normalize_reward": True,
}
# A linear policy. The deviations: on the same three envs, seeds 1000 to 1003, better than 1 and 0.5; so were 64
# candidates than 32, which were also tried with 0.5 and 0.2.
CEM: dict[str, Any] = {"num_steps": 1000, "normalize_obs": True, "initial_std": 0.3, "extra_std": 0.15}
METHODS = (
    Method("A2C", "a2c", A2C),
    Method("A2C + trust region", "a2c", A2C | {"trust_region": True}),
    Method("PPO (clip)", "ppo", ppo_paper.PPO),
    Method(
        "Vanilla PG, adaptive",
        "reinforce",
        COMMON
        | {
            "episodes": "bootstrap",
            "baseline": "value",
            "learning_rate": 1e-3,
            "adapt_learning_rate": True,
            "target_kl": 0.002,
            "normalize_reward": True,
        },
    ),
    Method(
        "TRPO",
        "trpo",
        COMMON
        | {
            "delta": 0.01,
            "damping": 0.1,
            "cg_steps": 10,
            "gae_lambda": 0.97,
            "num_epochs": 10,
            "num_minibatches": 32,
            "normalize_reward": True,
        },
    ),
    Method("CEM", "cem", CEM),
)
OURS = "PPO (clip)"  # the method whose standing is told
FIRST, WITHIN, BEHIND, MISSING = VERDICTS = ("first", "within its interval of the first", "behind", "missing")
# Mean of the last tenth of 1M steps, read off the paper's figure.
PAPER: dict[str, dict[str, float]] = {
    env: dict(zip(("A2C", "A2C + trust region", "CEM", OURS, "Vanilla PG, adaptive", "TRPO"), scores, strict=True))
    for env, scores in {
        "brax/inverted_pendulum": (1000, 968, 570, 955, 992, 881),
        "brax/inverted_double_pendulum": (6411, 6736, 100, 7310, 214, 182),
        "brax/reacher": (-25, -26.5, -76.7, -7.1, -11.6, -115.9),
        "brax/swimmer": (28.6, 36.1, 8.1, 106, 60.9, 121),
        "brax/hopper": (682, 1052, 486, 2130, 2096, 1981),
        "brax/halfcheetah": (994, 915, -399, 1810, 574, -90),
        "brax/walker2d": (761, 690, 715, 3072, 1249, 958),
    }.items()
}


@dataclass
class Options(ppo_paper.Options):
    """Trains the methods of the PPO paper's figure 3 on Brax."""

    out: Path = Path("benchmarks/results/figure3")
    """Where results go."""
    work: Path = Path("runs/figure3")
    """Where the runs live, so that an interrupted one can go on."""


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.figure3", description=__doc__)
    purerl.use_all_cores()
    runs = ppo_paper.chosen(METHODS, ENVS, options)
    ppo_paper.prepare(runs, options)
    facts = provenance.provenance("benchmarks.figure3", devices=True)
    for run in [] if options.report else runs:
        if not run.stands:
            print(f"{run.method.label} on {run.env}", flush=True)
            run.finish(facts)
            write(options, facts)
    print(write(options, facts))


def write(options: Options, facts: Mapping[str, str]) -> str:
    """Writes picture and tables of the runs that are finished, whichever; returns the text of figure3.md."""
    results = ppo_paper.finished(METHODS, ENVS, options)
    provenance.write_csv(options.out / "figure3.csv", facts, ppo_paper.score_rows(results, options.seeds))
    figure = draw(results, options)
    provenance.save_figure(figure, options.out / "figure3.png", facts)
    plt.close(figure)
    text = markdown(results, options)
    provenance.write_text(options.out / "figure3.md", text)
    return text


def draw(results: Mapping[str, Mapping[str, Scores]], options: Options) -> Figure:
    """Two rows of panels, one an env; the last place holds the legend. An env without a finished run says so."""
    columns = (len(results) + 2) // 2
    figure, grid = plt.subplots(2, columns, figsize=(3.4 * columns, 6), layout="constrained", squeeze=False)
    colors = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    lines: dict[str, Any] = {}
    for panel, (env, finished) in zip(grid.flat, results.items(), strict=False):
        panel.set_title(ppo_paper.title(env), fontsize="medium")
        for method, color in zip(METHODS, colors, strict=False):
            if method.label in finished:
                panel.set_prop_cycle(color=[color])
                plot.learning_curve(Run(method, env, options).curve(), ax=panel, show_seeds=False)
                lines.setdefault(method.label, panel.lines[-1])
        panel.set_ylabel("")
        if not finished:
            panel.text(0.5, 0.5, "no run finished", ha="center", transform=panel.transAxes, color="0.4")
            panel.set(xticks=[], yticks=[])
    for panel in grid.flat[len(results) :]:
        panel.set_axis_off()
    labels = [method.label for method in METHODS if method.label in lines]
    grid.flat[-1].legend([lines[label] for label in labels], labels, loc="center", frameon=False)
    figure.suptitle(f"Return of training episodes, {options.num_seeds} seeds: IQM and 95 % interval", fontsize="medium")
    return figure


def standing(scores: Mapping[str, np.ndarray], method: str) -> tuple[str, str]:
    """Who is first among the finished methods of an env, and how one does.

    scores: of each finished method, `[num_seeds]`; one with a NaN counts as not finished. Returns the first one's
    label, or "-" where there is none, and one of VERDICTS.
    """
    intervals = {label: ppo_paper.interval(x) for label, x in scores.items() if np.isfinite(x).all()}
    first = max(intervals, key=lambda label: intervals[label][0], default="-")
    if method not in intervals:
        return first, MISSING
    (best, _, _), (mean, _, high) = intervals[first], intervals[method]
    return first, FIRST if mean == best else WITHIN if high >= best else BEHIND


def markdown(results: Mapping[str, Mapping[str, Scores]], options: Options) -> str:
    labels = [method.label for method in METHODS]
    lines = [
        "# Figure 3 of the PPO paper, on Brax",
        "",
        f"Mean return of the episodes that ended in the last tenth of {options.total_timesteps:,} env steps, seeds",
        f"{options.seeds[0]}-{options.seeds[-1]}: IQM [95 % bootstrap interval], which of three seeds are their mean,",
        "lowest and highest; in round brackets what the paper's figure shows. A dash is a run that is not finished.",
        "",
        "The scores themselves cannot be compared with the paper's, which are of MuJoCo's v1 tasks: Brax is",
        "another simulator, with rewards and start states of its own. The order of the methods can be compared.",
        "",
        f"| env | {' | '.join(labels)} | first | {OURS} |",
        f"|{'---|' * (len(labels) + 3)}",
    ]
    verdicts: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for env, finished in results.items():
        scores = {label: x.last_tenth for label, x in finished.items()}
        paper = PAPER.get(env, {})
        first, verdict = standing(scores, OURS)
        verdicts[verdict].append(ppo_paper.title(env))
        missing = f" (of {len(scores)} of {len(labels)} methods)" if len(scores) < len(labels) else ""
        cells = [cell(scores.get(label), paper.get(label)) for label in labels]
        lines.append(f"| {ppo_paper.title(env)} | {' | '.join(cells)} | {first} | {verdict}{missing} |")
    lines += ["", f"{OURS}:", ""]
    lines += [
        f"- {verdict} on {len(envs)} of {len(results)}: {', '.join(envs)}" for verdict, envs in verdicts.items() if envs
    ]
    lines += ppo_paper.source_lines(results)
    return "\n".join([*lines, *ppo_paper.settings_lines(METHODS)]) + "\n"


def cell(scores: np.ndarray | None, paper: float | None) -> str:
    """Such as "994.1 [981.0, 1000.0] (910)"; a dash where the run is missing."""
    here = "-" if scores is None else "{:.1f} [{:.1f}, {:.1f}]".format(*ppo_paper.interval(scores))
    return here if paper is None else f"{here} ({paper:g})"


if __name__ == "__main__":
    main()
