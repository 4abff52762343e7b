"""What changes over a training, by number: the functions, and that each algorithm follows them."""

from types import SimpleNamespace

import pytest

from purerl.core import schedules


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1.0), (0.25, 0.8), (0.5, 0.6), (1.0, 0.2), (1.5, 0.2), (-0.5, 1.0)]
)
def test_linear(fraction, expected):
    assert schedules.linear(1.0, 0.2, fraction) == pytest.approx(expected)


def test_linear_ends_exactly():
    assert schedules.linear(3.0, 1.0, 0.0) == 3.0
    assert schedules.linear(3.0, 1.0, 1.0) == 1.0


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 0.9), (0.25, 0.5), (0.5, 0.1), (0.75, 0.1), (1.0, 0.1)])
def test_epsilon(progress, expected):
    """From .9 to .1 over the first half."""
    config = SimpleNamespace(epsilon_start=0.9, epsilon_end=0.1, exploration_fraction=0.5)
    assert schedules.epsilon(progress, config) == pytest.approx(expected)


def test_epsilon_without_a_fall():
    config = SimpleNamespace(epsilon_start=0.9, epsilon_end=0.1, exploration_fraction=0.0)
    assert schedules.epsilon(0.01, config) == pytest.approx(0.1)


@pytest.mark.parametrize(("anneal", "expected"), [(True, [2.0, 1.5, 0.0]), (False, [2.0, 2.0, 2.0])])
def test_learning_rate(anneal, expected):
    config = SimpleNamespace(learning_rate=2.0, anneal_learning_rate=anneal)
    assert [schedules.learning_rate(progress, config) for progress in (0.0, 0.25, 1.0)] == expected
