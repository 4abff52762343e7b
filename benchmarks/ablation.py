"""What do DQN's two stabilisers buy? Trains it with and without its memory and its target network.

    python -m benchmarks.ablation                 seeds 0-9 of all four variants, about five minutes on two cores
    python -m benchmarks.ablation --fresh         from the beginning, instead of going on with an interrupted run

MountainCar-v0 with its tuned settings, which were found with both. Without replay, the memory holds the newest 128
transitions, from which a batch of 128 is drawn with replacement, all from one or two episodes; learning then begins
after 128 steps in place of 1,000. Without target network, the target is copied after every gradient step in place of
every 300th, so that each step moves what the next one aims at.

Final policies act greedily for 100 episodes. Results go to benchmarks/results/ablation: `dqn.csv` with each seed's
score and its standard error over episodes, and `dqn.png` with the learning curves.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tyro

import purerl
from benchmarks import learning, provenance
from purerl import dqn, plot

ENV = "MountainCar-v0"

NO_REPLAY = {"batch_size": 128, "buffer_size": 128, "learning_starts": 128}
NO_TARGET = {"target_update_period": 1, "tau": 1.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "replay and target": {},
    "no target": NO_TARGET,
    "no replay": NO_REPLAY,
    "neither": NO_REPLAY | NO_TARGET,
}


@dataclass
class Options:
    """Trains DQN with and without its memory and its target network."""

    num_seeds: int = 10
    """Seeds of each variant."""
    num_episodes: int = 100
    """Evaluation episodes a seed."""
    total_timesteps: int = 120_000
    """Env steps of each training."""
    out: Path = Path("benchmarks/results/ablation")
    """Where results go."""
    work: Path = Path("runs/ablation")
    """Where the runs live, so that an interrupted one can go on."""
    fresh: bool = False
    """Discard what is in the run folders instead of going on with it."""


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.ablation", description=__doc__)
    purerl.use_all_cores()
    folders = {name: options.work / name.replace(" ", "_") for name in VARIANTS}
    learning.prepare(list(folders.values()), options.fresh)
    facts = provenance.provenance("benchmarks.ablation", devices=True)
    axes = plt.subplots(figsize=(8, 4.5), layout="constrained")[1]
    rows: list[list[Any]] = [["variant", "seed", "mean", "se"]]
    for name, changes in VARIANTS.items():
        config = purerl.tuned("dqn", ENV).replace(total_timesteps=options.total_timesteps, **changes)
        run = learning.trained(dqn, config, range(options.num_seeds), folders[name])
        returns = learning.evaluate(run, options.num_episodes)
        scores = returns.mean(1)
        low, high = plot.bootstrap_interval(scores)
        label = f"{name}: {plot.iqm(scores):.1f} [{low:.1f}, {high:.1f}] in the end"
        print(f"{label}; mean {scores.mean():.1f} +- {learning.standard_error(scores):.1f}", flush=True)
        rows += [
            [name, seed, f"{x.mean():.3f}", f"{learning.standard_error(x):.3f}"]
            for seed, x in zip(run.seeds, returns, strict=True)
        ]
        plot.learning_curve(plot.read_metrics(folders[name]), config, label=label, ax=axes, show_seeds=False)
    axes.set_title(f"DQN on {ENV}, {options.num_seeds} seeds: IQM and 95 % interval", fontsize="medium")
    provenance.save_figure(plot.figure_of(axes), options.out / "dqn.png", facts)
    provenance.write_csv(options.out / "dqn.csv", facts, rows)


if __name__ == "__main__":
    main()
