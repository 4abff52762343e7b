"""A stochastic policy and its critic, as a Config describes them: two networks that share nothing.

A Config has actor_hidden_sizes, critic_hidden_sizes, actor_network, critic_network, activation and normalize_obs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from purerl import envs
from purerl.core import networks, normalize
from purerl.core.distributions import Categorical, Distribution, Gaussian
from purerl.core.types import PRNGKey


class Actor(NamedTuple):
    """Parameters of pi. weights: of the network that gives logits, or means.

    log_std: log standard deviations of a continuous policy `[D]`, the same in every state; None where actions are
    discrete.
    """

    weights: Any
    log_std: Array | None


class Params(NamedTuple):
    """Parameters of pi and of its critic, which gives V or Q."""

    actor: Actor
    critic: Any


def actor_network(config: Any) -> networks.Network:
    """Gives a logit for each action, or a mean for each dimension; its small head starts pi near uniform, or near 0."""
    env = envs.bind(config)
    num_outputs = env.action_size if env.continuous else env.num_actions
    return networks.make(
        config.actor_network, env.obs_space, num_outputs, config.actor_hidden_sizes, config.activation, head_scale=0.01
    )


def critic_network(config: Any) -> networks.Network:
    """Gives one number, V(s)."""
    return networks.make(
        config.critic_network, envs.bind(config).obs_space, 1, config.critic_hidden_sizes, config.activation
    )


def init(key: PRNGKey, config: Any, critic: networks.Network | None = None) -> Params:
    """Fresh networks, and standard deviations of 1. critic: in the place of V's network."""
    env = envs.bind(config)
    weights, critic_weights = networks.init(key, actor_network(config), critic or critic_network(config))
    return Params(Actor(weights, jnp.zeros(env.action_size) if env.continuous else None), critic_weights)


def init_stats(config: Any) -> normalize.RunningStats | None:
    """Statistics of observations, of which none were seen yet; None where normalize_obs is off."""
    space = envs.bind(config).obs_space
    shape = jax.eval_shape(lambda: networks.encode(jnp.zeros(space.shape, space.dtype), space)).shape
    return normalize.init_stats(shape) if config.normalize_obs else None


def observe(obs: Array, stats: normalize.RunningStats | None, config: Any) -> Float[Array, "*batch_and_features"]:
    """Observations `[..., *shape]` as the networks read them: encoded, and standardised where there are stats."""
    return normalize.normalize(stats, networks.encode(obs, envs.bind(config).obs_space))


def distribution(actor: Actor, obs: Array, config: Any) -> Distribution:
    """pi(.|s) `[...]` for observed observations `[..., *shape]`."""
    head = actor_network(config).apply(actor.weights, obs)
    return Categorical(head) if actor.log_std is None else Gaussian(head, jnp.broadcast_to(actor.log_std, head.shape))


def critic(weights: Any, obs: Array, config: Any) -> Float[Array, "*batch"]:
    """V(s) `[...]` for observed observations `[..., *shape]`."""
    return critic_network(config).apply(weights, obs)[..., 0]
