"""Interquartile mean, bootstrap interval and smoothing by hand-computed numbers and SciPy."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from purerl import plot, value_iteration


def test_iqm_is_the_trimmed_mean() -> None:
    values = np.random.default_rng(0).normal(size=(12, 3))
    np.testing.assert_allclose(plot.iqm(values), scipy.stats.trim_mean(values, 0.25))


def test_iqm_cuts_entries_in_part() -> None:
    """Six values: the middle half is 3 of them, so half of the 2nd, the 3rd, the 4th, and half of the 5th."""
    np.testing.assert_allclose(plot.iqm(np.array([0.0, 1.0, 2.0, 4.0, 9.0, 100.0])), (0.5 + 2 + 4 + 4.5) / 3)


def test_bootstrap_interval_covers() -> None:
    """Of 200 samples of 20 normal draws, about 95 in 100 intervals must hold the true centre; 88 are too few."""
    rng = np.random.default_rng(1)
    intervals = [plot.bootstrap_interval(rng.normal(size=20), samples=200, seed=i) for i in range(200)]
    assert 0.88 < np.mean([low <= 0 <= high for low, high in intervals]) <= 1.0


def test_smooth_counts_each_episode_once() -> None:
    """Windows of two updates: (1 x 10 + 3 x 20) / 4 = 17.5; the second has no episode and keeps it; then 4."""
    metrics = {"episodes": [1, 3, 0, 0, 2, 0], "episode_return": [10.0, 20.0, np.nan, np.nan, 4.0, np.nan]}
    updates, values = plot.smooth(metrics, "episode_return", points=3)
    np.testing.assert_array_equal(updates, [2, 4, 6])
    np.testing.assert_allclose(values, [[17.5, 17.5, 4.0]])


def test_smooth_is_nan_before_the_first_episode() -> None:
    metrics = {"episodes": [0, 1], "episode_return": [np.nan, 5.0]}
    np.testing.assert_array_equal(plot.smooth(metrics, "episode_return")[1], [[np.nan, 5.0]])


def test_smooth_shows_divergence() -> None:
    """From the window of the first NaN on, the metric is NaN; another seed's stays as it is."""
    loss = np.array([[1.0, 2.0, 3.0, np.nan, 5.0, 6.0], [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]])
    values = plot.smooth({"loss": loss}, "loss", points=3)[1]
    np.testing.assert_array_equal(values, [[1.5, np.nan, np.nan], [1.0, 2.0, 3.0]])


def test_smooth_shows_a_return_that_is_not_finite() -> None:
    """Where episodes ended and their mean is NaN, that is no gap to fill; nor is it filled once none ends."""
    metrics = {"episodes": [2, 1, 0, 3], "episode_return": [4.0, np.nan, np.nan, 5.0]}
    np.testing.assert_array_equal(plot.smooth(metrics, "episode_return")[1], [[4.0, np.nan, np.nan, np.nan]])


def test_smooth_takes_one_training_or_many_seeds() -> None:
    with pytest.raises(ValueError, match=r"loss must be \[updates\] or \[seeds, updates\], but is \[2, 3, 4\]"):
        plot.smooth({"loss": np.zeros((2, 3, 4))}, "loss")


def sweep(*shape: int) -> dict[str, np.ndarray]:
    """Metrics of nested trainings whose returns rise by the number of the config, seeds a little apart."""
    returns = np.ones(shape) * np.arange(shape[-1])
    returns *= np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
    return {"episodes": np.ones(shape), "episode_return": returns + np.arange(shape[-2])[:, None]}


def test_a_sweep_has_one_band_a_config() -> None:
    """Three configs of four seeds: each its bold line, its band and its label, and no lines of seeds."""
    ax = plot.learning_curve(sweep(3, 4, 40), label=["a", "b", "c"])
    assert len(ax.lines) == len(ax.collections) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "c"]
    for i, line in enumerate(ax.lines):
        np.testing.assert_allclose(line.get_ydata(), (i + 1) * np.arange(40) + 1.5)
    assert len({line.get_color() for line in ax.lines}) == 3
    unnamed = plot.learning_curve(sweep(2, 4, 40))
    assert [text.get_text() for text in unnamed.get_legend().get_texts()] == ["config 0", "config 1"]
    alone = plot.learning_curve(sweep(2, 1, 40), label=("a", "b"))
    assert len(alone.lines) == 2 and not alone.collections


@pytest.mark.parametrize(
    "shape, label, message",
    [
        ((2, 2, 3, 5), None, r"\[updates\], \[seeds, updates\] or \[configs, seeds, updates\], but .* \[2, 2, 3, 5\]"),
        ((3, 4, 5), "one", r"label must be 3 names, one a config, but is 'one'"),
        ((3, 4, 5), ["a", "b"], r"label must be 3 names, one a config, but is \['a', 'b'\]"),
        ((4, 5), ["a", "b"], r"label must be one name, but is \['a', 'b'\]"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(shape: tuple[int, ...], label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot.learning_curve(sweep(*shape), label=label)


def test_value_map_writes_each_cell() -> None:
    """Two rows of three: values and arrows where there is a policy, a blank cell for NaN."""
    ax = plot.value_map([0.0, 1.0, np.nan, 3.0, 4.0, 5.0], (2, 3), actions=[0, 1, 2, 3, -1, 0])
    texts = {(round(t.get_position()[0]), round(t.get_position()[1])): [] for t in ax.texts}
    for t in ax.texts:
        texts[round(t.get_position()[0]), round(t.get_position()[1])].append(t.get_text())
    assert texts == {(0, 0): ["0", "↑"], (1, 0): ["1", "→"], (0, 1): ["3", "←"], (1, 1): ["4"], (2, 1): ["5", "↑"]}
    with pytest.raises(ValueError, match=r"value must be \[6\] to fill a grid of \(2, 3\), but is \(5,\)"):
        plot.value_map(np.zeros(5), (2, 3))
    for actions in ([0, 1], [0, 1, 2, 3, 4, 0]):
        with pytest.raises(ValueError, match=r"actions must be \[6\] numbers below 4, but is"):
            plot.value_map(np.zeros(6), (2, 3), actions=actions)


def test_a_planner_shows_its_first_metric() -> None:
    """It has no episodes and no env steps, so the curve is that of the residual over updates."""
    config = value_iteration.Config(max_sweeps=5)
    ax = plot.learning_curve({"residual": np.arange(5.0), "sweeps": np.arange(5)}, config)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("updates", "residual")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), np.arange(5))


@pytest.mark.parametrize("num_seeds", [1, 5])
def test_learning_curve_draws_seeds_line_and_band(num_seeds: int) -> None:
    metrics = {
        "episodes": np.ones((num_seeds, 40)),
        "episode_return": np.arange(num_seeds * 40.0).reshape(num_seeds, 40),
    }
    ax = plot.learning_curve({name: x if num_seeds > 1 else x[0] for name, x in metrics.items()})
    assert ax.get_xlabel() == "updates" and len(ax.lines) == (1 if num_seeds == 1 else 1 + num_seeds)
    assert len(ax.collections) == (num_seeds > 1)
