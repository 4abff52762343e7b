"""Optimisers and schedules, rebuilt from the Config at every use so that a traced learning rate stays traced."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from purerl.core.types import Scalar


def adam(learning_rate: Scalar, max_grad_norm: Scalar, eps: float = 1e-5) -> optax.GradientTransformation:
    """Adam after clipping the gradient by its global norm over all parameters."""
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(learning_rate, eps=eps))


def linear_schedule(start: Scalar, end: Scalar, fraction: Scalar) -> Array:
    """From start at fraction 0 to end at fraction 1 and after."""
    return start + (end - start) * jnp.clip(fraction, 0.0, 1.0)


def shuffled_indices(key: Key[Array, ""], size: int, num_epochs: int, num_minibatches: int) -> Int[Array, "E_M batch"]:
    """For each epoch a permutation of 0 .. size-1 cut into minibatches: `[num_epochs * num_minibatches, size / num_minibatches]`."""
    keys = jax.random.split(key, num_epochs)
    order = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
    return order.reshape(num_epochs * num_minibatches, size // num_minibatches)
