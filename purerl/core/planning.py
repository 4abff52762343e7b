"""Planning by the cross-entropy method: a search over sequences of actions, in a model of any kind.

A Config has population, num_elites, planning_iterations and momentum. Actions are on the scale [-1, 1].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from purerl.core.types import PRNGKey
from purerl.envs import BoundEnv

# (key, sequences `[P, H, D]`) -> the return of each, `[P]`.
Score = Callable[[PRNGKey, Array], Array]


class Plan(NamedTuple):
    """actions: to take now and in the H - 1 steps after it. promised: the return that the model expects of them."""

    actions: Float[Array, "H D"]
    promised: Float[Array, ""]


def plan(key: PRNGKey, start: Float[Array, "H D"], score: Score, config: Any) -> Plan:
    """The mean of a normal distribution over sequences, fitted planning_iterations times to its best draws.

    start: the first mean, with a standard deviation of 1/2. Draws lie within two standard deviations of the mean, which
    are at most the way to the nearer bound, so that none leaves [-1, 1]. momentum of the old mean and variance stays.
    Source: Chua et al. (2018), arXiv:1805.12114, and the code of its authors.
    """
    promise_key, search_key = jax.random.split(key)

    def iteration(carry: tuple[Array, Array], key: PRNGKey) -> tuple[tuple[Array, Array], None]:
        mean, var = carry
        draw_key, score_key = jax.random.split(key)
        std = jnp.minimum(jnp.sqrt(var), (1 - jnp.abs(mean)) / 2)
        noise = jax.random.truncated_normal(draw_key, -2.0, 2.0, (config.population, *mean.shape))
        drawn = mean[None] + std[None] * noise
        returns = score(score_key, drawn)
        # top_k would take what is no number for the largest of all.
        _, best = jax.lax.top_k(jnp.where(jnp.isnan(returns), -jnp.inf, returns), config.num_elites)
        fit = drawn[best].mean(0), drawn[best].var(0)
        mean, var = (config.momentum * old + (1 - config.momentum) * new for old, new in zip(carry, fit, strict=True))
        return (mean, var), None

    keys = jax.random.split(search_key, config.planning_iterations)
    (mean, _), _ = jax.lax.scan(iteration, (start, jnp.full(start.shape, 0.25)), keys)
    return Plan(mean, score(promise_key, mean[None])[0])


def shifted(actions: Float[Array, "H D"]) -> Float[Array, "H D"]:
    """A plan one step later: without its first action, and with a last one in the middle."""
    return jnp.concatenate([actions[1:], jnp.zeros_like(actions[:1])])


def true_returns(key: PRNGKey, env: BoundEnv, state: Any, sequences: Float[Array, "P H D"]) -> Float[Array, " P"]:
    """The sum of rewards of each sequence in the env itself, from `state` on: of one env, without a leading axis.

    Rewards count until the env terminates; a time limit does not end them. Each sequence meets chance of its own.
    """
    num, horizon = sequences.shape[:2]
    env = env.copies(num)
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *jnp.shape(x))), state)

    def step(carry: tuple[Any, Array], inputs: tuple[Any, Array]) -> tuple[tuple[Any, Array], Array]:
        (states, alive), (keys, action) = carry, inputs
        _, states, reward, terminated, _ = env.advance(keys, states, action)
        return (states, alive & ~terminated), jnp.where(alive, reward, 0.0)

    inputs = (jax.random.split(key, (horizon, num)), sequences.swapaxes(0, 1))
    _, rewards = jax.lax.scan(step, (states, jnp.ones(num, bool)), inputs)
    return rewards.sum(0)
