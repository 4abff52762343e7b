"""How good a policy is, over a fixed number of whole episodes."""

import functools
from typing import Any

import jax

from purerl import envs
from purerl.core.rollout import Evaluation, episodes
from purerl.core.types import PRNGKey


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
    """
    return _evaluate(algorithm, state, envs.with_tables(config), key, num_episodes, deterministic, max_steps)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _evaluate(
    algorithm: Any, state: Any, config: Any, key: PRNGKey, num_episodes: int, deterministic: bool, max_steps: int
) -> Evaluation:
    policy = algorithm.policy(state, config, deterministic=deterministic)
    return episodes(key, envs.bind(config), policy, num_episodes, max_steps)
