"""A search in one picture: its scores in order, which fields matter, and the scores along each field."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from purerl.run.ranges import Range
from purerl.run.tune import Trial


def draw(trials: Sequence[Trial], ranges: Mapping[str, Range], title: str) -> Figure:
    """The picture. trials: with a score, in the order of their numbers or any other."""
    trials = sorted(trials)
    columns = min(4, max(2, len(ranges)))
    rows = 1 + -(-len(ranges) // columns)
    figure = plt.figure(figsize=(3.2 * columns, 2.9 * rows), layout="constrained")
    figure.suptitle(f"{title}: {len(trials)} trials")
    grid = figure.add_gridspec(rows, 2 * columns)
    split = columns + columns // 2 if columns > 2 else columns
    _history(figure.add_subplot(grid[0, :split]), trials)
    _importance(figure.add_subplot(grid[0, split:]), trials, ranges)
    for i, (name, searched) in enumerate(ranges.items()):
        row, column = divmod(i, columns)
        _slice(figure.add_subplot(grid[1 + row, 2 * column : 2 * column + 2]), trials, name, searched)
    return figure


def _history(ax: Axes, trials: Sequence[Trial]) -> None:
    for pruned, color, label in ((True, "0.7", "left early"), (False, "C0", "trained to the end")):
        shown = [trial for trial in trials if trial.pruned == pruned]
        if shown:
            ax.scatter([t.number for t in shown], [t.rung_scores[-1] for t in shown], s=14, color=color, label=label)
    whole = [trial for trial in trials if not trial.pruned]
    best = np.maximum.accumulate([trial.rung_scores[-1] for trial in whole])
    ax.step([trial.number for trial in whole], best, where="post", color="C1", label="best so far")
    ax.set_xlabel("trial")
    ax.set_ylabel("mean return")
    ax.legend(frameon=False, fontsize="small")
    _plain(ax)


def _importance(ax: Axes, trials: Sequence[Trial], ranges: Mapping[str, Range]) -> None:
    """How much of what sets the better trials apart is each field's: Optuna's PED-ANOVA (arXiv:2304.10255)."""
    shares = importances(trials, ranges)
    names = sorted(shares, key=lambda name: shares[name])
    ax.barh(names, [shares[name] for name in names], color="C0")
    ax.set_xlabel("importance")
    _plain(ax)


def importances(trials: Sequence[Trial], ranges: Mapping[str, Range]) -> dict[str, float]:
    """By field, from the scores at the first rung, which all trials reached; they sum to 1.

    Empty where fewer than four trials, or one score alone, tell nothing.
    """
    import optuna

    if len(trials) < 4 or len({trial.rung_scores[0] for trial in trials}) == 1:
        return {}
    distributions = {name: searched.distribution() for name, searched in ranges.items()}
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        params = {name: x if not isinstance(x, tuple) else json.dumps(x) for name, x in trial.fields.items()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=trial.rung_scores[0])
        )
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    return dict(found)


def _slice(ax: Axes, trials: Sequence[Trial], name: str, searched: Range) -> None:
    values: list[Any] = [trial.fields[name] for trial in trials]
    if searched.choices:
        labels = [str(choice) for choice in searched.choices]
        values = [labels.index(str(value)) for value in values]
        ax.set_xticks(range(len(labels)), labels, fontsize="small", rotation=30 if max(map(len, labels)) > 4 else 0)
    elif searched.log:
        ax.set_xscale("log")
    colors = ["0.7" if trial.pruned else "C0" for trial in trials]
    ax.scatter(values, [trial.rung_scores[-1] for trial in trials], s=14, c=colors)
    ax.set_xlabel(name)
    ax.set_ylabel("mean return")
    _plain(ax)


def _plain(ax: Axes) -> None:
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
