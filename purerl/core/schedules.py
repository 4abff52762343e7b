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


def learning_rate(progress: Scalar, config: Any) -> Scalar:
    """learning_rate, which with anneal_learning_rate falls linearly to 0."""
    return config.learning_rate * (1 - progress) if config.anneal_learning_rate else config.learning_rate
