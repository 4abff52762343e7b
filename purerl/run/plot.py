"""Learning curves of one run or many, with the interquartile mean over seeds and its bootstrap interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from purerl.run import folder as run_folder
from purerl.run import logs
from purerl.run.errors import RunError

_BOOTSTRAP_SAMPLES = 2000


def iqm(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean along an axis: the mean of the middle half, entries cut in part where 4 does not divide.

    Source: Agarwal et al. (2021), arXiv:2108.13264, section 4.3. One to three values are averaged as they are.
    """
    ordered = np.sort(values, axis=axis)
    num = ordered.shape[axis]
    if num < 4:
        return ordered.mean(axis)
    edges = np.arange(num + 1) / num
    weights = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0, None)
    return np.tensordot(weights / weights.sum(), ordered, axes=(0, axis))


def bootstrap_interval(
    values: np.ndarray, *, confidence: float = 0.95, samples: int = _BOOTSTRAP_SAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the IQM over seeds.

    values: `[num_seeds, ...]`. Seeds are drawn with replacement, whole curves at a time.
    Returns the lower and upper end, `[...]`.
    """
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(values), size=(samples, len(values)))
    estimates = np.stack([iqm(values[draw]) for draw in draws])
    tail = 100 * (1 - confidence) / 2
    return np.percentile(estimates, tail, axis=0), np.percentile(estimates, 100 - tail, axis=0)


def smooth(metrics: Mapping[str, Any], name: str, points: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """A metric of one or many seeds in at most `points` windows of equal length.

    metrics: as `train` returns them, each `[num_updates]` or `[num_seeds, num_updates]`. Means over episodes count each
    episode once; a window in which no episode ended, or no evaluation took place, keeps the value before it, and those
    before the first are NaN. Any other NaN is a training that diverged: it makes its window NaN and all after it.
    Returns the index of each window's last update (from 1), `[W]`, and the values, `[num_seeds, W]`. Raises ValueError
    where a metric has more axes.
    """
    values = np.atleast_2d(np.asarray(metrics[name], float))
    if values.ndim > 2:
        raise ValueError(f"{name} must be [updates] or [seeds, updates], but is {list(values.shape)}.")
    if name.startswith("episode_"):
        weights = np.atleast_2d(np.asarray(metrics["episodes"], float))
    else:
        weights = np.isfinite(values).astype(float) if name == logs.EVAL_RETURN else np.ones_like(values)
    ends = np.unique(np.linspace(0, values.shape[1], min(points, values.shape[1]) + 1).round().astype(int))
    sums = np.add.reduceat(np.where(weights > 0, values * weights, 0.0), ends[:-1], axis=1)
    counts = np.add.reduceat(weights, ends[:-1], axis=1)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    diverged = np.logical_or.accumulate(np.isnan(means) & (counts > 0), axis=1)
    for i in range(1, means.shape[1]):
        means[:, i] = np.where(counts[:, i] > 0, means[:, i], means[:, i - 1])
    return ends[1:], np.where(diverged, np.nan, means)


def learning_curve(
    metrics: Mapping[str, Any],
    config: Any = None,
    *,
    name: str | None = None,
    label: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    show_seeds: bool = True,
) -> Axes:
    """Draws a metric over training: each seed thin, their IQM bold, its 95 % bootstrap interval as a band.

    metrics: as `train` returns them, of one seed, vmapped over many, or over configs and then seeds: `[updates]`,
    `[seeds, updates]` or `[configs, seeds, updates]`. A sweep of configs gets one line and band each, without the
    seeds. A line ends where one of its seeds becomes NaN. config: where given, the x axis counts env steps, as it does
    for the metrics of a run's folder; without it, or where there are none, updates. name: which metric; None means the
    return of the episodes, or the first metric of an algorithm that never acts. label: for the legend; of a sweep one a
    config, which are numbered where it is None.
    Raises ValueError where the axes or the labels are others.
    """
    name = logs.headline(metrics) if name is None else name
    curves = _curves(metrics, name, label)
    in_env_steps = False
    ax = plt.subplots(figsize=(7, 4), layout="constrained")[1] if ax is None else ax
    for one, text in curves:
        updates, values = smooth(one, name)
        env_steps = _env_steps(one, config, updates)
        in_env_steps = bool(env_steps.any())
        x = env_steps if in_env_steps else updates
        (line,) = ax.plot(x, iqm(values), lw=2, label=text)
        if len(values) > 1 and show_seeds and len(curves) == 1:
            ax.plot(x, values.T, color=line.get_color(), lw=0.6, alpha=0.35)
        if len(values) > 1:
            ax.fill_between(x, *bootstrap_interval(values), color=line.get_color(), alpha=0.2, lw=0)
    ax.set_xlabel("env steps" if in_env_steps else "updates")
    ax.set_ylabel(name.replace("_", " "))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if in_env_steps:
        ax.xaxis.set_major_formatter(lambda value, _: _short(value))
    if any(text is not None for _, text in curves):
        ax.legend(frameon=False)
    return ax


def _env_steps(metrics: Mapping[str, Any], config: Any, updates: np.ndarray) -> np.ndarray:
    """Env steps of a seed after each of these updates; zeros where nothing tells, or the algorithm takes none."""
    if config is not None:
        return np.array([config.env_steps(int(update)) for update in updates])
    return np.atleast_2d(metrics["env_steps"])[0, updates - 1] if "env_steps" in metrics else np.zeros(len(updates))


def _curves(
    metrics: Mapping[str, Any], name: str, label: str | Sequence[str] | None
) -> Sequence[tuple[Mapping[str, Any], str | None]]:
    """The metrics of each config with its label; without an axis of configs, all of them with the one label."""
    shape = np.shape(metrics[name])
    if len(shape) not in (1, 2, 3):
        known = "[updates], [seeds, updates] or [configs, seeds, updates]"
        raise ValueError(f"A learning curve is drawn of {known}, but {name} is {list(shape)}.")
    if len(shape) < 3:
        if label is not None and not isinstance(label, str):
            raise ValueError(f"label must be one name, but is {label!r}.")
        return [(metrics, label)]
    labels = [f"config {i}" for i in range(shape[0])] if label is None else label
    if isinstance(labels, str) or len(labels) != shape[0]:
        raise ValueError(f"label must be {shape[0]} names, one a config, but is {label!r}.")
    return [({key: np.asarray(x)[i] for key, x in metrics.items()}, text) for i, text in enumerate(labels)]


def runs(folders: Sequence[str | Path], *, name: str | None = None, ax: Axes | None = None) -> Axes:
    """The learning curves of several run folders in one picture, seeds in the legend; name: as in `learning_curve`.

    Where no metric is named, the evaluations of a run that was evaluated all along are a dashed line of its color.
    """
    ax = plt.subplots(figsize=(8, 4.5), layout="constrained")[1] if ax is None else ax
    for folder in folders:
        metrics = read_metrics(folder)
        column = logs.headline(metrics) if name is None else name
        if column not in metrics:
            raise RunError(f"{folder}/metrics.csv has no column {column!r}; it has {', '.join(metrics)}.")
        label = run_folder.label(folder)
        label = f"{Path(folder).name}: {label}" if len(folders) > 1 else label
        before = len(ax.lines)
        learning_curve(metrics, name=column, label=label, ax=ax, show_seeds=len(folders) == 1)
        if name is None and logs.EVAL_RETURN in metrics:
            _evaluations(ax, metrics, f"{label}, greedy policy", ax.lines[before].get_color())
    ax.set_title("IQM over seeds, 95 % bootstrap interval", fontsize="medium")
    return ax


def _evaluations(ax: Axes, metrics: Mapping[str, np.ndarray], label: str, color: Any) -> None:
    """The IQM over seeds of each evaluation, with its band where there are several."""
    there = np.isfinite(metrics[logs.EVAL_RETURN]).all(0)
    if not there.any():
        return
    values = metrics[logs.EVAL_RETURN][:, there]
    x = (metrics["env_steps"] if metrics["env_steps"].any() else metrics["update"])[0, there]
    ax.plot(x, iqm(values), "o--", lw=1.2, ms=3, color=color, label=label)
    if len(values) > 1:
        ax.fill_between(x, *bootstrap_interval(values), color=color, alpha=0.1, lw=0)
    ax.legend(frameon=False)


def value_map(
    value: Any,
    shape: tuple[int, int],
    *,
    actions: Any = None,
    arrows: str = "↑→↓←",
    numbers: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draws the values of a gridworld's states, and what a policy does in each.

    value: `[S]`, row by row; NaN leaves a cell blank, such as a wall. shape: rows and columns, with S = rows * columns.
    actions: `[S]`, the action in each state, drawn as its character of `arrows`; -1 draws none. arrows: in the order of
    `mdp.grid`, up, right, down, left; FrozenLake's are "←↓→↑". numbers: write values.
    Raises ValueError where value or actions do not fill the grid, or an action has no arrow.
    """
    value = np.asarray(value, float)
    if value.shape != (shape[0] * shape[1],):
        raise ValueError(f"value must be [{shape[0] * shape[1]}] to fill a grid of {shape}, but is {value.shape}.")
    actions = np.full(value.size, -1) if actions is None else np.asarray(actions)
    if actions.shape != value.shape or actions.max() >= len(arrows):
        raise ValueError(f"actions must be [{value.size}] numbers below {len(arrows)}, but is {actions.tolist()}.")
    cell = 0.62 if numbers else 0.42
    size = (cell * shape[1] + 0.4, cell * shape[0] + 0.4)
    ax = plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax
    grid = np.ma.masked_invalid(value.reshape(shape))
    colors = plt.get_cmap("viridis").with_extremes(bad="0.85")
    ax.imshow(grid, cmap=colors)
    brighter = grid.min() + 0.6 * (grid.max() - grid.min())  # where black is easier to read than white
    for (y, x), v in np.ndenumerate(value.reshape(shape)):
        action, color = actions.reshape(shape)[y, x], "black" if v > brighter else "white"
        both = numbers and action >= 0
        if numbers and np.isfinite(v):
            ax.text(x, y + 0.22 * both, f"{v:.2g}", ha="center", va="center", color=color, fontsize="x-small")
        if action >= 0 and np.isfinite(v):
            ax.text(x, y - 0.18 * both, arrows[action], ha="center", va="center", color=color, fontsize="medium")
    ax.set_xticks(np.arange(shape[1] + 1) - 0.5, labels=[])
    ax.set_yticks(np.arange(shape[0] + 1) - 0.5, labels=[])
    ax.grid(color="white", lw=0.5)
    ax.tick_params(length=0)
    return ax


def figure_of(ax: Axes) -> Figure:
    """The figure that axes are drawn in."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def read_metrics(folder: str | Path) -> dict[str, np.ndarray]:
    """metrics.csv of a run's folder as `[num_seeds, updates]` arrays, seeds in the file's order."""
    path = Path(folder) / "metrics.csv"
    if not path.is_file():
        raise RunError(f"{folder} holds no metrics: there is no {path.name} in it.")
    columns = logs.read_csv(path)
    num_seeds = len(np.unique(columns["seed"]))
    if len(columns["seed"]) == 0:
        raise RunError(f"{path} has no rows yet.")
    complete = len(columns["seed"]) // num_seeds * num_seeds
    return {name: column[:complete].reshape(-1, num_seeds).T for name, column in columns.items()}


def _short(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
