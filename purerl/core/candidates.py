"""Scoring a population of deterministic policies that share one network and differ in its weights.

A Config has actor_hidden_sizes, actor_network, activation, population, num_episodes and num_steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from purerl import envs
from purerl.core import networks, normalize, policies
from purerl.core.policies import observe
from purerl.core.rollout import play
from purerl.core.types import Episodes, PRNGKey


class Scores(NamedTuple):
    """What P candidates earned. returns: of each, the mean over its E episodes, `[P]`; obs_stats: with all they saw.

    A return that is no number, as of physics that ran away, is replaced by the worst of the others.
    """

    returns: Float[Array, " P"]
    episodes: Episodes
    obs_stats: normalize.RunningStats | None


def greedy(weights: Any, obs: Array, config: Any) -> Array:
    """The action `[...]` for observed observations: that of the largest output, or the outputs `[..., D]` themselves.

    Beyond [-1, 1] the env clips a continuous action that has bounds.
    """
    network = policies.actor_network(config)
    if isinstance(network.body, networks.Layers):
        network = network.clone(body=network.body.clone(by_sums=True))
    output = network.apply(weights, obs)
    return output if envs.bind(config).continuous else output.argmax(-1)


def score(key: PRNGKey, candidates: Any, stats: normalize.RunningStats | None, config: Any) -> Scores:
    """Each candidate plays E whole episodes, all side by side; candidates: trees of weights with a leading axis `[P]`.

    Common random numbers: the e-th episode of all candidates has the same start state and the same chance, so that
    their differences are their own. Where each env has params of its own, so does each of the E episodes.
    """
    num, repeats = config.population, config.num_episodes
    env = envs.bind(config).copies(num * repeats)

    def act(_: Any, obs: Array, memory: tuple[()]) -> tuple[Array, tuple[()]]:
        seen = observe(obs, stats, config)
        action = jax.vmap(lambda weights, obs: greedy(weights, obs, config))(
            candidates, seen.reshape(num, repeats, *seen.shape[1:])
        )
        return action.reshape(num * repeats, *action.shape[2:]), memory

    played, obs_stats = play(key, env, act, (), config.num_steps, streams=repeats, seen=stats)
    account = Episodes(jnp.int32(num * repeats), played.returns.sum(), played.lengths.sum(), {})
    return Scores(ranked(played.returns.reshape(num, repeats).mean(1)), account, obs_stats)


def ranked(returns: Float[Array, " P"]) -> Float[Array, " P"]:
    """The returns, where one that is no number is as bad as the worst: a search would take it for the best."""
    return jnp.where(jnp.isnan(returns), jnp.nanmin(returns), returns)


def moments(returns: Float[Array, " P"]) -> dict[str, Array]:
    """Of the candidates' returns the best and the standard deviation, as metrics."""
    return {"best_return": returns.max(), "return_std": returns.std()}
