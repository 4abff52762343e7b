"""What `train` compiles: an env's tables are arguments of the program, and no constants in it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs, evaluate, mdp, q_learning, value_iteration
from tests import tiny

KEY = jax.random.key(0)


def random_model(num_states: int) -> mdp.MDP:
    """Three actions, each of which leads to four states, made by NumPy: a garnet of thousands of states takes long."""
    rng, shape = np.random.default_rng(0), (num_states, 3, 4)
    successor, reward = rng.integers(num_states, size=shape), rng.normal(size=shape).astype(np.float32)
    start = np.full(num_states, 1 / num_states, np.float32)
    return mdp.MDP(
        successor.astype(np.int32), np.full(shape, 0.25, np.float32), reward, np.zeros(num_states, bool), start
    )


LARGE, SMALL = random_model(4000), random_model(6)


def constants(jaxpr: Any) -> list[int]:
    """Sizes of the arrays that are part of a program, in entries, those of its loops and calls included."""
    sizes = [np.size(atom.val) for eqn in jaxpr.eqns for atom in eqn.invars if hasattr(atom, "val")]
    for part in jax.tree.leaves([list(eqn.params.values()) for eqn in jaxpr.eqns]):
        sizes += [np.size(x) for x in getattr(part, "consts", ())]
        inner = getattr(part, "jaxpr", part)
        sizes += constants(inner) if hasattr(inner, "eqns") else []
    return sizes


def largest_constant(function: Any, *args: Any) -> int:
    """Entries of the largest array in the programs that a function runs, apart from what it passes to them."""
    return max(constants(jax.make_jaxpr(function)(*args).jaxpr), default=0)


@pytest.mark.parametrize("algorithm", [q_learning, value_iteration], ids=["q_learning", "value_iteration"])
def test_tables_are_no_constants(algorithm: Any) -> None:
    config = tiny.config(algorithm, env=mdp.Tabular(LARGE))
    assert largest_constant(algorithm.train, KEY, config) < 1000
    state = algorithm.init(KEY, config)
    assert largest_constant(lambda key: evaluate(algorithm, state, config, key, num_episodes=2), KEY) < 1000
    # The counting sees tables that do stand in the program.
    assert largest_constant(jax.jit(lambda key: algorithm.train.__wrapped__(key, config)), KEY) >= LARGE.reward.size


@pytest.mark.parametrize("model", [LARGE, SMALL], ids=["large", "small"])
def test_tables_are_the_envs_own(model: mdp.MDP) -> None:
    """What comes out is what comes out with the same tables as env_params, of one training or of many vmapped."""
    config = tiny.config(q_learning, env=mdp.Tabular(model))
    given = q_learning.train(KEY, config.replace(env_params=model))
    tiny.assert_same_bits(q_learning.train(KEY, config), given)
    keys = jnp.stack([KEY, KEY])
    many = jax.vmap(q_learning.train, (0, None))(keys, config)
    tiny.assert_same_bits(jax.tree.map(lambda x: x[1], many), given)


def test_tables_stay_with_their_env() -> None:
    """A Config that was trained with keeps no tables: with another env it takes those of that one."""
    config = tiny.config(q_learning, env=mdp.Tabular(LARGE))
    q_learning.train(KEY, config)
    assert config.env_params is None and envs.with_tables(config).env_params is not None
    like = mdp.Tabular(LARGE._replace(reward=LARGE.reward + 1.0))
    for env in (like, mdp.Tabular(SMALL), "mdp/cliff_walking"):
        after = q_learning.train(KEY, config.replace(env=env))
        tiny.assert_same_bits(after, q_learning.train(KEY, tiny.config(q_learning, env=env)))
        tiny.assert_same_bits(envs.bind(config.replace(env=env)).params, envs.make(env).default_params)


def test_tables_that_were_given_stay_given() -> None:
    """Params of the user's own are never overwritten by the env's, nor are small ones moved."""
    own = LARGE._replace(reward=LARGE.reward * 2)
    config = tiny.config(q_learning, env=mdp.Tabular(LARGE), env_params=own)
    tiny.assert_same_bits(envs.with_tables(config).env_params, own)
    assert (
        q_learning.train(KEY, config).state.params
        != q_learning.train(KEY, config.replace(env_params=None)).state.params
    ).any()
    assert envs.with_tables(tiny.config(q_learning)).env_params is None
