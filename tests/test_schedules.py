"""What changes over a training, by number: the functions, and that each algorithm follows them."""

import dataclasses
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl import dqn, ppo
from purerl.core import schedules
from tests import tiny


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


# ---------------------------------------------------------------------------------------------------------------------
# Inside each algorithm

ANNEALED = {
    "epsilon_start": 0.9,
    "epsilon_end": 0.1,
    "exploration_fraction": 0.5,
    "anneal_learning_rate": True,
    "anneal_clip_eps": True,
}
ONE_GRADIENT_STEP = {
    "num_steps": 1,
    "n_step": 1,
    "num_epochs": 1,
    "num_minibatches": 1,
    "iterations_per_update": 1,
    "gradient_steps": 1,
    "policy_delay": 1,
    "planning_steps": 0,
}
# In a single step of CartPole all candidates earn the same.
TOLD_APART = {"es": {"num_steps": 500}}
# What the learning rate moves, where it does not move every parameter.
MOVED = {"trpo": lambda params: params.critic}
PROGRESS = (0.0, 0.25, 0.5, 0.75)  # of four updates, the last one included
CLIPPED = "clipped"  # the first update again, with next to nothing left of its gradient


def fields_of(algorithm: ModuleType, fields: dict[str, Any]) -> dict[str, Any]:
    """Those of the fields that the algorithm's Config has."""
    known = {field.name for field in dataclasses.fields(algorithm.Config)}
    return {name: value for name, value in fields.items() if name in known}


def algorithms_with(field: str) -> list[str]:
    return [name for name in purerl.ALGORITHMS if fields_of(getattr(purerl, name), {field: None})]


class Seen(NamedTuple):
    """One update at some progress. epsilon: each that actions were drawn with. change: of what learning_rate moves."""

    epsilon: list[float]
    metrics: dict[str, jax.Array]
    change: np.ndarray


@pytest.fixture(
    scope="module", params=sorted({*algorithms_with("epsilon_start"), *algorithms_with("anneal_learning_rate")})
)
def updates(request: pytest.FixtureRequest) -> dict[Any, Seen]:
    """One and the same update at each PROGRESS, of one gradient step on the same data: only the schedules differ.

    And once more as CLIPPED, where gradients can be.

    Whatever epsilon is, the action is 0, so that it shows nowhere but in what is recorded.
    """
    algorithm, used = getattr(purerl, request.param), []
    moved = MOVED.get(request.param, lambda params: params)

    def record(key: Any, q: jax.Array, epsilon: Any, **ties: Any) -> jax.Array:
        jax.debug.callback(lambda value: used.append(float(value)), epsilon, ordered=True)
        return jnp.zeros(q.shape[:-1], jnp.int32)

    config = tiny.config(
        algorithm, **fields_of(algorithm, {**ANNEALED, **ONE_GRADIENT_STEP, **TOLD_APART.get(request.param, {})})
    )
    config = config.replace(total_timesteps=config.env_steps(4))
    assert config.num_updates == 4
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(algorithm, "epsilon_greedy"):
            patch.setattr(algorithm, "epsilon_greedy", record)
        start = jax.jit(lambda key: algorithm.init(key, config))(jax.random.key(0))
        update = jax.jit(lambda state, config: algorithm.update(state, config))
        seen = {}
        for case in (*PROGRESS, CLIPPED):
            jax.effects_barrier()
            used.clear()
            progress, fields = (0.0, fields_of(algorithm, {"max_grad_norm": 1e-7})) if case == CLIPPED else (case, {})
            state, metrics = update(start._replace(updates=jnp.int32(4 * progress)), config.replace(**fields))
            jax.effects_barrier()
            before, after = (np.concatenate([x.ravel() for x in tiny.arrays(moved(s.params))]) for s in (start, state))
            seen[case] = Seen(list(used), metrics, after - before)
    return seen


@pytest.mark.parametrize("updates", algorithms_with("epsilon_start"), indirect=True)
def test_epsilon_in_use(updates: dict[Any, Seen]) -> None:
    """From .9 to .1 over the first half: what the metric says, and what every action is drawn with."""
    for progress, epsilon in ((0.0, 0.9), (0.25, 0.5), (0.5, 0.1), (0.75, 0.1)):
        assert updates[progress].metrics["epsilon"] == pytest.approx(epsilon)
        assert updates[progress].epsilon
        np.testing.assert_allclose(updates[progress].epsilon, epsilon, rtol=1e-6)


@pytest.mark.parametrize("updates", algorithms_with("anneal_learning_rate"), indirect=True)
def test_learning_rate_in_use(updates: dict[Any, Seen], request: pytest.FixtureRequest) -> None:
    """The first step of Adam, and every step of a table, is in proportion to the learning rate: 1, 3/4, 1/2, 1/4.

    An actor that climbs the critic which has just moved has another gradient each time. It shows only where that is
    not far above Adam's 1e-8.
    """
    assert np.abs(updates[0.0].change).max() > 0
    climbs = request.node.callspec.params["updates"] in purerl.FAMILIES["continuous control"]
    for progress in PROGRESS:
        expected = (1 - progress) * updates[0.0].change
        np.testing.assert_allclose(updates[progress].change, expected, rtol=1e-2 if climbs else 2e-3, atol=1e-7)


@pytest.mark.parametrize("updates", algorithms_with("max_grad_norm"), indirect=True)
def test_clipped_gradients_in_use(updates: dict[Any, Seen]) -> None:
    """Adam's first step is g / (|g| + 1e-5): of every parameter's, a norm of 1e-7 leaves little over a hundredth."""
    whole, clipped = (np.abs(updates[case].change) for case in (0.0, CLIPPED))
    assert clipped.max() > 0
    assert (clipped <= 0.02 * whole + 1e-6).all() and whole.max() > 1e-4


def test_dqn_moves_epsilon_within_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four iterations an update, four updates, epsilon from 1 to 0 over all of it: 16 values."""
    used = []

    def record(key: Any, q: jax.Array, epsilon: Any) -> jax.Array:
        jax.debug.callback(lambda value: used.append(float(value)), epsilon, ordered=True)
        return jnp.zeros(q.shape[:-1], jnp.int32)

    monkeypatch.setattr(dqn, "epsilon_greedy", record)
    config = tiny.config(
        dqn,
        num_steps=1,
        total_timesteps=16 + 2 * 4 * 4,
        epsilon_start=1.0,
        epsilon_end=0.0,
        exploration_fraction=1.0,
    )
    assert config.num_updates == 4
    metrics = dqn.train(jax.random.key(0), config).metrics
    jax.effects_barrier()
    np.testing.assert_allclose(used, np.arange(16, 0, -1) / 16, atol=1e-6)
    np.testing.assert_allclose(metrics["epsilon"], np.array([13, 9, 5, 1]) / 16, atol=1e-6)


@pytest.mark.parametrize(("anneal", "expected"), [(True, [0.4, 0.3, 0.2, 0.1]), (False, [0.4] * 4)])
def test_clip_eps_in_use(anneal: bool, expected: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Four updates: clip_eps falls from .4 by a quarter of it each, or stays.

    The gradient in place of the loss's is 3 for one parameter, whatever is clipped and however long the step.
    """
    used = []

    def record(params: Any, batch: Any, beta: Any, clip_eps: Any, config: Any) -> Any:
        jax.debug.callback(lambda value: used.append(float(value)), clip_eps, ordered=True)
        return 3 * params.critic["params"]["body"]["Dense_1"]["bias"].sum(), {}

    monkeypatch.setattr(ppo, "loss", record)
    config = tiny.config(
        ppo, num_epochs=1, num_minibatches=1, clip_eps=0.4, anneal_clip_eps=anneal, total_timesteps=4 * 16
    )
    metrics = ppo.train(jax.random.key(0), config).metrics
    jax.effects_barrier()
    np.testing.assert_allclose(metrics["grad_norm"], [3.0] * 4, rtol=1e-6)
    np.testing.assert_allclose(used, expected, rtol=1e-6)
