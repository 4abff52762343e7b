"""Clip, KL penalty, or nothing? Table 1 of the PPO paper (arXiv:1707.06347), on Brax in place of MuJoCo.

    python -m benchmarks.table1                           eleven surrogates, four envs, three seeds of 1M steps
    python -m benchmarks.table1 --methods clip_0_2        one of them
    python -m benchmarks.table1 --report                  nothing trained: results of what is finished

PPO with each surrogate, all else as in benchmarks/figure3.py. In every env a random policy's score counts 0 and the
best seed's 1; what a surrogate gets is its mean over envs and seeds. The score of a seed is the mean return of the
episodes that ended in the last tenth of training, where the paper takes the last 100 episodes; a seed that diverged
has the random policy's. That policy, uniform over the actions, plays 100 episodes, of which OUT/ENV/random.csv keeps
the mean; --report plays only where there is none yet.

Results go to benchmarks/results/table1 after every run: `table1.csv` with each seed's scores, `table1.md` with the
paper's column and the rank correlation with it, and `table1.png`. An interrupted benchmark goes on where it was when
called again; runs that other code began are refused, or with --fresh trained anew. What other code has finished is
shown all the same, and `table1.md` says which runs those are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import tyro
from matplotlib.figure import Figure

import purerl
from benchmarks import ppo_paper, provenance
from benchmarks.ppo_paper import Method, Scores
from purerl import envs, ppo
from purerl.core.rollout import episodes
from purerl.core.types import Array, PRNGKey, memoryless
from purerl.run.provenance import source_hash

ENVS = ("brax/inverted_pendulum", "brax/reacher", "brax/hopper", "brax/swimmer")
RANDOM_EPISODES = 100


def _method(label: str, surrogate: str, **fields: float) -> Method:
    return Method(label, "ppo", ppo_paper.PPO | {"surrogate": surrogate} | fields)


# In the paper's order, with its normalised scores over seven MuJoCo tasks.
TABLE = (
    (_method("no clip or penalty", "none"), -0.39),
    (_method("clip 0.1", "clip", clip_eps=0.1), 0.76),
    (_method("clip 0.2", "clip", clip_eps=0.2), 0.82),
    (_method("clip 0.3", "clip", clip_eps=0.3), 0.70),
    (_method("adaptive KL 0.003", "adaptive_kl", target_kl=0.003), 0.68),
    (_method("adaptive KL 0.01", "adaptive_kl", target_kl=0.01), 0.74),
    (_method("adaptive KL 0.03", "adaptive_kl", target_kl=0.03), 0.71),
    (_method("fixed KL 0.3", "kl", kl_coef=0.3), 0.62),
    (_method("fixed KL 1", "kl", kl_coef=1.0), 0.71),
    (_method("fixed KL 3", "kl", kl_coef=3.0), 0.72),
    (_method("fixed KL 10", "kl", kl_coef=10.0), 0.69),
)


@dataclass
class Options(ppo_paper.Options):
    """Trains PPO with each surrogate of the paper's table 1 on Brax."""

    num_episodes: int = 0
    """Evaluation episodes a seed; 0 evaluates nothing."""
    out: Path = Path("benchmarks/results/table1")
    """Where results go."""
    work: Path = Path("runs/table1")
    """Where the runs live, so that an interrupted one can go on."""


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.table1", description=__doc__)
    purerl.use_all_cores()
    runs = ppo_paper.chosen([method for method, _ in TABLE], ENVS, options)
    ppo_paper.prepare(runs, options)
    facts = provenance.provenance("benchmarks.table1", devices=True)
    for run in [] if options.report else runs:
        if not run.stands:
            print(f"{run.method.label} on {run.env}", flush=True)
            run.finish(facts)
            write(options, facts)
    print(write(options, facts))


def zero_score(env: str, options: Options, facts: Mapping[str, str]) -> float:
    """The random policy's score as random.csv keeps it; played where it is missing, or of other code unless a report.

    Writes random.csv where it plays.
    """
    path = options.out / env.replace("/", "-") / "random.csv"
    row = ppo_paper.read_csv(path)[0] if path.exists() else None
    if row is None or not (options.report or row["source"] == source_hash()):
        row = {"episodes": str(RANDOM_EPISODES), "mean": str(random_score(env)), "source": source_hash()}
        provenance.write_csv(path, facts, [list(row), list(row.values())])
    return float(row["mean"])


def random_score(env: str) -> float:
    """Mean return of uniform actions over RANDOM_EPISODES episodes."""
    bound = envs.bind(ppo.Config(env=env))

    def act(key: PRNGKey, obs: Array) -> Array:
        return bound.sample(key)[0]

    policy = memoryless(act, bound.to_units)
    play = jax.jit(lambda key: episodes(key, bound, policy, RANDOM_EPISODES).returns)
    return float(play(jax.random.key(2**31 - 1)).mean())


def write(options: Options, facts: Mapping[str, str]) -> str:
    """Writes picture and tables of the runs that are finished, whichever; returns the text of table1.md."""
    results = ppo_paper.finished([method for method, _ in TABLE], ENVS, options)
    zero = {env: zero_score(env, options, facts) for env, row in results.items() if row}
    rows = ppo_paper.score_rows(results, options.seeds)
    rows += [[env, "random policy", "", f"{score:.3f}", "", RANDOM_EPISODES, ""] for env, score in zero.items()]
    provenance.write_csv(options.out / "table1.csv", facts, rows)
    scaled = normalised(results, zero)
    figure = draw(averages(scaled))
    provenance.save_figure(figure, options.out / "table1.png", facts)
    plt.close(figure)
    text = markdown(results, zero, scaled, options)
    provenance.write_text(options.out / "table1.md", text)
    return text


def normalised(
    results: Mapping[str, Mapping[str, Scores]], zero: Mapping[str, float]
) -> dict[str, dict[str, np.ndarray]]:
    """Scores `[num_seeds]` by label, in each env in which all surrogates are finished and some seed beats random.

    zero: score of the random policy, which becomes 0, as does that of a seed that diverged; that of the env's best
    seed, of whichever surrogate, becomes 1.
    """
    scaled: dict[str, dict[str, np.ndarray]] = {}
    for env, row in results.items():
        scores = {label: np.where(np.isfinite(x.last_tenth), x.last_tenth, zero[env]) for label, x in row.items()}
        best = max((float(x.max()) for x in scores.values()), default=0.0)
        if len(row) == len(TABLE) and best > zero[env]:
            scaled[env] = {label: (x - zero[env]) / (best - zero[env]) for label, x in scores.items()}
    return scaled


def averages(scaled: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Mean over these envs of each surrogate, `[num_seeds]`; empty where there is no env."""
    labels = next(iter(scaled.values()), {})
    return {label: np.mean([row[label] for row in scaled.values()], axis=0) for label in labels}


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of `[num_seeds]` and the ends of its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def rank_correlation(scores: Mapping[str, np.ndarray]) -> float:
    """Spearman's, of our means with the paper's."""
    ours, paper = [scores[method.label].mean() for method, _ in TABLE], [paper for _, paper in TABLE]
    return float(scipy.stats.spearmanr(ours, paper).statistic)


def draw(scores: Mapping[str, np.ndarray]) -> Figure:
    """Bars of the normalised scores with their intervals, the paper's as diamonds; without scores no bars."""
    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for i, (method, _) in enumerate(TABLE):
        if method.label in scores:
            mean, low, high = mean_interval(scores[method.label])
            error = np.maximum([[mean - low], [high - mean]], 0)
            ax.bar(i, mean, yerr=error, color="C0", ecolor="0.3", capsize=3, label="Brax, 95 % interval")
    ax.plot([paper for _, paper in TABLE], "D", color="C1", label="the paper, MuJoCo")
    handles = {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    ax.legend(handles.values(), handles, frameon=False)
    ax.axhline(0, color="0.4", lw=0.8)
    ax.set_xticks(range(len(TABLE)), [method.label for method, _ in TABLE], rotation=40, ha="right")
    ax.set_ylabel("normalised score")
    ax.grid(alpha=0.3, axis="y")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def markdown(
    results: Mapping[str, Mapping[str, Scores]],
    zero: Mapping[str, float],
    scaled: Mapping[str, Mapping[str, np.ndarray]],
    options: Options,
) -> str:
    names, scores = [ppo_paper.title(env) for env in results], averages(scaled)
    lines = [
        "# Table 1 of the PPO paper, on Brax",
        "",
        "Normalised score: in each env the random policy has 0 and the best of all seeds 1; mean over envs and seeds,",
        "[95 % bootstrap interval over seeds], of three seeds lowest and highest. It counts the envs in which all",
        f"surrogates are finished and some seed is better than random, {len(scaled)} of {len(results)}. Beside it the",
        "paper's, over seven MuJoCo tasks. Then the return in each env, mean over the seeds",
        f"{options.seeds[0]}-{options.seeds[-1]}: of the episodes that ended in the last tenth of",
        f"{options.total_timesteps:,} env steps, where the paper takes the last 100 episodes. A dash is what is not",
        "finished. A seed whose score is no number has diverged: normalised it counts as the random policy, 0, and the",
        "mean return is that of the others.",
        "",
        f"| surrogate | here | paper | {' | '.join(names)} |",
        f"|{'---|' * (len(names) + 3)}",
    ]
    for method, paper in TABLE:
        label = method.label
        here = "{:.2f} [{:.2f}, {:.2f}]".format(*mean_interval(scores[label])) if label in scores else "-"
        cells = [cell(row[label].last_tenth) if label in row else "-" for row in results.values()]
        lines.append(f"| {label} | {here} | {paper:.2f} | {' | '.join(cells)} |")
    cells = [f"{zero[env]:.1f}" if env in zero else "-" for env in results]
    lines.append(f"| random policy | 0 | 0 | {' | '.join(cells)} |")
    if scores:
        lines += ["", f"Rank correlation of the two columns (Spearman): {rank_correlation(scores):.2f}."]
    lines += ppo_paper.source_lines(results)
    return "\n".join([*lines, *ppo_paper.settings_lines([method for method, _ in TABLE])]) + "\n"


def cell(scores: np.ndarray) -> str:
    """Mean of `[num_seeds]` and the number that diverged, such as "994.1", "994.1 (1 diverged)" or "3 diverged"."""
    whole = scores[np.isfinite(scores)]
    diverged = f"{len(scores) - len(whole)} diverged"
    return diverged if not len(whole) else f"{whole.mean():.1f}{f' ({diverged})' if len(whole) < len(scores) else ''}"


if __name__ == "__main__":
    main()
