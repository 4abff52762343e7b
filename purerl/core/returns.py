"""Sums of rewards over time. Arrays are `[T, ...]`; time comes first and the recursions run backwards."""

import functools

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from purerl.core.types import Scalar, Transition


def lambda_returns(
    steps: Transition, next_value: Float[Array, "T *batch"], gamma: Scalar, td_lambda: Scalar
) -> Float[Array, "T *batch"]:
    r"""The mean of all n-step returns: each weighs (1 - lambda) lambda^(n-1), the longest one all the rest.

    G_t = r_t + gamma (1 - terminated_t) [ (1 - lambda) V(final_obs_t) + lambda G_{t+1} ]

    next_value: V(final_obs), or the value of the best action there; gamma, td_lambda in [0, 1]. V(final_obs) stands for
    the whole bracket where a time limit cuts the episode, and at the end of the trajectory. With lambda = 1 it is the
    discounted return, eq. 3.9.
    Source: Sutton and Barto (2018), eq. 12.18, with a constant lambda.
    """
    chex.assert_equal_shape((steps.reward, next_value))
    cut = steps.truncated.at[-1].set(True)

    def backward(next_return: Array, step: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        reward, next_value, terminated, cut = step
        ahead = jnp.where(cut, next_value, (1 - td_lambda) * next_value + td_lambda * next_return)
        value = reward + gamma * jnp.where(terminated, 0.0, ahead)
        return value, value

    inputs = (steps.reward, next_value, steps.terminated, cut)
    return jax.lax.scan(backward, jnp.zeros_like(next_value[0]), inputs, reverse=True)[1]


def n_step(sequence: Transition, gamma: Scalar) -> tuple[Transition, Float[Array, "*batch"]]:
    """From steps in a row `[n, *batch, ...]` one long step `[*batch, ...]`, and the discount of what follows it.

    The reward is r_0 + gamma r_1 + ... up to the n-th step or the one that ended the episode, which gives the rest.
    Source: Sutton and Barto (2018), eq. 7.1.
    """
    first = last = jax.tree.map(lambda x: x[0], sequence)
    reward, discount = first.reward, jnp.full(first.reward.shape, gamma)
    for k in range(1, sequence.reward.shape[0]):
        step, goes_on = jax.tree.map(lambda x: x[k], sequence), ~last.done  # noqa: B023 - called at once
        reward = reward + jnp.where(goes_on, discount * step.reward, 0.0)
        discount = jnp.where(goes_on, discount * gamma, discount)
        last = jax.tree.map(functools.partial(jax.vmap(jnp.where), goes_on), step, last)
    return last._replace(obs=first.obs, action=first.action, reward=reward), discount


def gae(
    steps: Transition,
    value: Float[Array, "T *batch"],
    next_value: Float[Array, "T *batch"],
    gamma: Scalar,
    gae_lambda: Scalar,
) -> Float[Array, "T *batch"]:
    r"""Generalised advantage estimates.

    delta_t = r_t + gamma (1 - terminated_t) V(final_obs_t) - V(obs_t)
    A_t     = delta_t + gamma lambda (1 - done_t) A_{t+1},  A_T = 0

    value, next_value: V(obs) and V(final_obs); gamma, gae_lambda in [0, 1].
    A time limit cuts the sum but not the bootstrap: the state that followed had a value.
    Source: Schulman et al. (2016), arXiv:1506.02438, eq. 11-16.
    """
    chex.assert_equal_shape((steps.reward, value, next_value))
    delta = steps.reward + gamma * jnp.where(steps.terminated, 0.0, next_value) - value
    decay = gamma * gae_lambda * ~steps.done

    def backward(next_advantage: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, decay = step
        advantage = delta + decay * next_advantage
        return advantage, advantage

    return jax.lax.scan(backward, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)[1]


def standardize(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Zero mean, unit standard deviation over all entries; a constant array becomes zeros."""
    return (x - x.mean()) / (x.std() + 1e-8)
