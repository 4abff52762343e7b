"""What evaluate says of a state that is not one of its algorithm."""

from typing import Any

import jax
import numpy as np
import pytest

import purerl
from purerl import dqn, value_iteration
from tests import tiny

CONFIG = tiny.config(value_iteration)


@pytest.fixture(scope="module")
def state() -> Any:
    return value_iteration.train(jax.random.key(0), CONFIG).state


def evaluate(state: Any, config: Any = CONFIG, algorithm: Any = value_iteration, **options: Any) -> Any:
    return purerl.evaluate(algorithm, state, config, jax.random.key(1), **{"num_episodes": 2, **options})


def test_wrong_state_is_one_sentence(state: Any) -> None:
    many = jax.tree.map(lambda x: jax.numpy.stack([x, x, x]), state)
    cases = [
        (
            lambda: evaluate(state, tiny.config(dqn), dqn),
            r"A dqn.State is needed, but a value_iteration.State was given",
        ),
        (lambda: evaluate((1, 2)), r"A value_iteration.State is needed, but a builtins.tuple was given"),
        (lambda: evaluate(many), r"shape \[3, 16\] in place of \[16\], as of 3 seeds: take one"),
        (lambda: evaluate(state, CONFIG.replace(env="mdp/gridworld")), r"has the shape \[16\], but \[\d+\] by this"),
        (lambda: evaluate(state._replace(params={"x": state.params})), "params are made otherwise"),
    ]
    for call, message in cases:
        with pytest.raises(TypeError, match=message):
            call()
    for options in ({"num_episodes": 0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="must be at least 1, but is 0"):
            evaluate(state, **options)


def test_vmap_around_evaluate(state: Any) -> None:
    many = jax.tree.map(lambda x: jax.numpy.stack([x, x]), state)
    keys = jax.random.split(jax.random.key(1), 2)

    def one(state: Any, key: Any) -> Any:
        return purerl.evaluate(value_iteration, state, CONFIG, key, num_episodes=2).returns

    assert jax.vmap(one)(many, keys).shape == (2, 2)


def test_a_key_of_the_old_kind(state: Any) -> None:
    """`jax.random.PRNGKey(1)` gives the episodes of `jax.random.key(1)`."""
    old = purerl.evaluate(value_iteration, state, CONFIG, jax.random.PRNGKey(1), num_episodes=2)
    np.testing.assert_array_equal(old.returns, evaluate(state).returns)
