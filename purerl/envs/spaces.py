"""What observations and actions are: numbers 0 .. n-1, or arrays between bounds."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from purerl.core.types import PRNGKey


class Discrete:
    """Integers 0 .. n-1, shape `()`, int32."""

    def __init__(self, n: int):
        self.n, self.shape, self.dtype = int(n), (), jnp.dtype("int32")

    def __repr__(self) -> str:
        return f"Discrete({self.n})"

    def sample(self, key: PRNGKey, num: int) -> Int[Array, " num"]:
        """num uniform draws."""
        return (jax.random.bits(key, (num,)) % self.n).astype(jnp.int32)

    def from_unit(self, action: Array) -> Array:
        """The action itself: there is nothing to scale."""
        return action


class Box:
    """Arrays of one shape and dtype between low and high, which broadcast to the shape and may be infinite."""

    def __init__(self, low: Any, high: Any, shape: tuple[int, ...], dtype: Any = jnp.float32):
        self.low, self.high, self.shape, self.dtype = low, high, tuple(shape), jnp.dtype(dtype)

    def __repr__(self) -> str:
        return f"Box(shape={self.shape}, dtype={self.dtype.name})"

    @property
    def size(self) -> int:
        """D, how many numbers an element has."""
        return math.prod(self.shape)

    def sample(self, key: PRNGKey, num: int) -> Float[Array, "num D"]:
        """num uniform draws from [-1, 1]^D, the scale on which the algorithms act."""
        return jax.random.uniform(key, (num, self.size), minval=-1.0, maxval=1.0)

    def from_unit(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch_and_shape"]:
        """Clips actions to [-1, 1], scales them to [low, high] and gives them the space's shape.

        A dimension without both bounds passes unchanged.
        """
        action = action.reshape(*action.shape[:-1], *self.shape)
        bounded = jnp.isfinite(jnp.asarray(self.low)) & jnp.isfinite(jnp.asarray(self.high))
        low, high = jnp.where(bounded, self.low, -1.0), jnp.where(bounded, self.high, 1.0)
        low, high, bounded = (jnp.broadcast_to(x, action.shape) for x in (low, high, bounded))
        return jnp.where(bounded, low + (jnp.clip(action, -1, 1) + 1) * (high - low) / 2, action)


Space = Discrete | Box
