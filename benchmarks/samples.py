"""What a solved Pendulum costs in env steps: MBPO, PETS, SAC, PPO and CEM, from what `benchmarks.learning` wrote.

    python -m benchmarks.learning mbpo Pendulum-v1 pets Pendulum-v1 sac Pendulum-v1 ppo Pendulum-v1 cem Pendulum-v1
    python -m benchmarks.samples                      nothing is trained: picture and table from those curves

Each curve is the mean over seeds of the returns while learning, exploration included. A method's price is where that
mean first reaches a level and, as a median of five points says, stays there. Results go to benchmarks/results/samples:
`samples.csv` and `samples.png`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure

from benchmarks import provenance
from purerl import plot

METHODS = ("mbpo", "pets", "sac", "ppo", "cem")
ENV = "Pendulum-v1"
LEVELS = (-400.0, -300.0, -250.0, -200.0)
LEAST_OVER_SAC = 2.0


@dataclass
class Options:
    """Compares what has been trained."""

    curves: Path = Path("benchmarks/results/learning")
    """Where the curves are."""
    out: Path = Path("benchmarks/results/samples")
    """Where results go."""


class Curve(NamedTuple):
    """env_steps: `[points]`. returns: of each seed while learning, `[seeds, points]`; NaN before an episode ended."""

    env_steps: np.ndarray
    returns: np.ndarray


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.samples", description=__doc__)
    curves = {name: read(options.curves / name / ENV / "curve.csv") for name in METHODS}
    facts = provenance.provenance("benchmarks.samples")
    table = {name: [price(curve, level) for level in LEVELS] for name, curve in curves.items()}
    rows: list[list[Any]] = [["method", *(f"env steps to {level:g}" for level in LEVELS)]]
    rows += [[name, *(f"{steps:.0f}" for steps in prices)] for name, prices in table.items()]
    provenance.write_csv(options.out / "samples.csv", facts, rows)
    provenance.save_figure(draw(curves), options.out / "samples.png", facts)
    for row in rows:
        print(" | ".join(row))
    for level, ours, sacs in zip(LEVELS, table["pets"], table["sac"], strict=True):
        verdict = "reached" if sacs / ours >= LEAST_OVER_SAC else "NOT reached"
        print(f"{level:g}: SAC takes {sacs / ours:.1f} times PETS's env steps, bar {LEAST_OVER_SAC:g}: {verdict}")


def read(path: Path) -> Curve:
    """A curve as `benchmarks.learning` writes it; exits with one sentence where there is none."""
    if not path.exists():
        raise SystemExit(f"There is no {path}: train it first, by `python -m benchmarks.learning`.")
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    numbers = np.array([[float(x) for x in line.split(",")] for line in lines[1:]])
    return Curve(numbers[:, 0], numbers[:, 1:].T)


def price(curve: Curve, level: float) -> float:
    """Env steps at which the mean over seeds first reaches the level, with the median of that and the next four points.

    NaN where it never does.
    """
    mean = curve.returns.mean(0)
    for i, steps in enumerate(curve.env_steps):
        if mean[i] >= level and np.median(mean[i : i + 5]) >= level:
            return float(steps)
    return float("nan")


def draw(curves: Mapping[str, Curve]) -> Figure:
    """Means over seeds with bands of a standard error, on a logarithmic axis."""
    ax = plt.subplots(figsize=(7, 4), layout="constrained")[1]
    for name, (env_steps, returns) in curves.items():
        mean, error = returns.mean(0), returns.std(0, ddof=1) / np.sqrt(len(returns))
        ax.plot(env_steps, mean, label=name.upper())
        ax.fill_between(env_steps, mean - error, mean + error, alpha=0.3, lw=0)
    ax.axhline(LEVELS[-1], color="0.4", lw=1, ls="--")
    ax.set(xscale="log", xlabel="env steps", ylabel="return while learning")
    ax.set_title(f"{ENV}: means of ten seeds and their standard errors", fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return plot.figure_of(ax)


if __name__ == "__main__":
    main()
