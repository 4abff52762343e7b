"""How good a policy is, over a fixed number of whole episodes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from purerl import envs
from purerl.core.rollout import Evaluation, episodes
from purerl.core.types import PRNGKey


def check_state(algorithm: Any, state: Any, config: Any) -> None:
    """Raises TypeError unless `state` is one State of `algorithm`, with the params that `config` asks for."""
    if not hasattr(algorithm, "init"):
        raise TypeError(f"The algorithm must be a module such as purerl.ppo, but is {algorithm!r}.")
    expected = jax.eval_shape(algorithm.init, jax.random.key(0), config)
    name = algorithm.__name__.split(".")[-1]
    if type(state) is not type(expected):
        given = f"{type(state).__module__.split('.')[-1]}.{type(state).__name__}"
        raise TypeError(f"A {name}.State is needed, but a {given} was given.")
    if jax.tree.structure(state.params) != jax.tree.structure(expected.params):
        raise TypeError(f"The state's params are made otherwise than those of this {name}.Config: it is of another.")
    for (path, leaf), own in zip(
        jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(expected.params), strict=True
    ):
        where, shape = f"state.params{jax.tree_util.keystr(path)}", list(jnp.shape(leaf))
        if shape and shape[1:] == list(own.shape):
            raise TypeError(
                f"{where} has the shape {shape} in place of {list(own.shape)}, as of {shape[0]} seeds: take one, "
                "or to evaluate many, jax.vmap(lambda state, key: evaluate(algorithm, state, config, key))."
            )
        if shape != list(own.shape):
            raise TypeError(f"{where} has the shape {shape}, but {list(own.shape)} by this {name}.Config.")


def evaluate(
    algorithm: Any,
    state: Any,
    config: Any,
    key: PRNGKey,
    *,
    num_episodes: int = 128,
    deterministic: bool = True,
    max_steps: int = 100_000,
) -> Evaluation:
    """Runs num_episodes episodes side by side, each from its own start state to its end.

    algorithm: its module. state, config: of one training; for many seeds, vmap over state and key. deterministic: the
    policy's mode in place of a draw. max_steps: where an episode that never ends is cut.
    Where training gave each env its own params, the episodes take turns with them.
    Raises TypeError where the state is of another algorithm, of another Config, or of many seeds, and ValueError where
    num_episodes or max_steps is less than 1.
    """
    for field, value in (("num_episodes", num_episodes), ("max_steps", max_steps)):
        if value < 1:
            raise ValueError(f"{field} must be at least 1, but is {value}.")
    return _evaluate(algorithm, state, envs.with_tables(config), key, num_episodes, deterministic, max_steps)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _evaluate(
    algorithm: Any, state: Any, config: Any, key: PRNGKey, num_episodes: int, deterministic: bool, max_steps: int
) -> Evaluation:
    check_state(algorithm, state, config)
    policy = algorithm.policy(state, config, deterministic=deterministic)
    return episodes(key, envs.bind(config), policy, num_episodes, max_steps)
