"""Running statistics of observations and returns."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from purerl.core.types import Scalar, Transition


class RunningStats(NamedTuple):
    """Mean and variance of everything seen so far; mean and var have the shape of one item."""

    mean: Float[Array, "*item"]
    var: Float[Array, "*item"]
    num: Float[Array, ""]


def init_stats(shape: tuple[int, ...]) -> RunningStats:
    """Mean 0 and variance 1 until something has been seen."""
    return RunningStats(jnp.zeros(shape), jnp.ones(shape), jnp.zeros(()))


def update_stats(
    stats: RunningStats | None, batch: Float[Array, "*batch_and_item"], counts: Bool[Array, " B"] | None = None
) -> RunningStats | None:
    """Takes a batch with any number of leading axes into account, in one pass and without cancellation.

    counts: which items of a batch with one leading axis do, at least one; None for all. Without stats there are none to
    update. Source: Chan, Golub and LeVeque (1979), the parallel form of Welford's algorithm.
    """
    if stats is None:
        return None
    batch = batch.reshape(-1, *stats.mean.shape).astype(jnp.float32)
    where = None if counts is None else jnp.broadcast_to(counts.reshape(-1, *(1,) * stats.mean.ndim), batch.shape)
    num = batch.shape[0] if counts is None else counts.sum()
    count = stats.num + num
    shift = batch.mean(0, where=where) - stats.mean
    mean = stats.mean + shift * num / count
    squares = stats.var * stats.num + batch.var(0, where=where) * num + jnp.square(shift) * stats.num * num / count
    return RunningStats(mean, squares / count, count)


def normalize(stats: RunningStats | None, x: Float[Array, "*shape"], limit: float = 10.0) -> Float[Array, "*shape"]:
    """(x - mean) / std, clipped to [-limit, limit]; leading axes of x are batch axes. Without stats, x itself."""
    if stats is None:
        return x
    mean, std = (jnp.broadcast_to(value, x.shape) for value in (stats.mean, jnp.sqrt(stats.var + 1e-8)))
    return jnp.clip((x - mean) / std, -limit, limit)


class RewardScale(NamedTuple):
    """Running statistics of the discounted sum of past rewards of N environments.

    Dividing rewards by its standard deviation keeps value targets near 1 whatever the env's units.
    """

    stats: RunningStats
    discounted: Float[Array, " N"]


def init_reward_scale(num_envs: int) -> RewardScale:
    """Nothing seen yet, and no reward so far in any of the N envs."""
    return RewardScale(init_stats(()), jnp.zeros(num_envs))


def scale_reward(scale: RewardScale | None, steps: Transition, gamma: Scalar) -> tuple[RewardScale | None, Transition]:
    """Takes T steps into account and returns them with rewards divided by the standard deviation, the mean kept.

    steps: `[T, N]`. Without a scale they stay as they are.
    """
    if scale is None:
        return None, steps

    def forward(total: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = step
        total = gamma * total + reward
        return jnp.where(done, 0.0, total), total

    discounted, totals = jax.lax.scan(forward, scale.discounted, (steps.reward, steps.done))
    stats = update_stats(scale.stats, totals)
    assert stats is not None
    return RewardScale(stats, discounted), steps._replace(reward=steps.reward / jnp.sqrt(stats.var + 1e-8))
