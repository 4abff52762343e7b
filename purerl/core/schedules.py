"""What changes over a training, as functions of progress: the part of it that is done, from 0 to 1."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from purerl.core.types import Scalar


def linear(start: Scalar, end: Scalar, fraction: Scalar) -> Array:
    """From start at fraction 0 to end at fraction 1 and after."""
    return start + (end - start) * jnp.clip(fraction, 0.0, 1.0)


def epsilon(progress: Scalar, config: Any) -> Array:
    """From epsilon_start to epsilon_end over the first exploration_fraction of the training, then constant."""
    fraction = progress / jnp.maximum(config.exploration_fraction, 1e-8)
    return linear(config.epsilon_start, config.epsilon_end, fraction)


def annealing(progress: Scalar, config: Any) -> Scalar:
    """The part that is left of a learning rate: with anneal_learning_rate it falls linearly from 1 to 0."""
    return 1 - progress if config.anneal_learning_rate else 1.0


def learning_rate(progress: Scalar, config: Any, field: str = "learning_rate") -> Scalar:
    """A learning rate of the Config, annealed."""
    return getattr(config, field) * annealing(progress, config)


def follow_kl(learning_rate: Scalar, kl: Array, target_kl: Scalar) -> Array:
    """The learning rate after steps that moved the policy by kl: a third less where that is more than 2 target_kl.

    Half as much again where it is less than target_kl / 2, within [1e-5, 1e-2]: a first rate beyond is moved there.
    kl: KL(old || new) in nats. Where it is 0 nothing has moved, and the learning rate stays.
    Source: the code of Rudin et al. (2021), arXiv:2109.11978.
    """
    factor = jnp.where(kl > 2 * target_kl, 1 / 1.5, jnp.where((kl > 0) & (kl < target_kl / 2), 1.5, 1.0))
    return jnp.clip(learning_rate * factor, 1e-5, 1e-2)
