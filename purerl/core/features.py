"""Feature maps phi(s) of which a value can be a linear function, and the step sizes that go with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

MAX_FEATURES = 1_000_000


def one_hot(obs: Array, num_states: int) -> Float[Array, "*batch S"]:
    """One feature for each numbered state."""
    return jax.nn.one_hot(obs, num_states)


def to_unit(obs: Array, low: np.ndarray, high: np.ndarray) -> Float[Array, "*batch D"]:
    """Observations `[..., D]` scaled so that low becomes 0 and high 1 in each dimension, and clipped to that."""
    zero, one = (jnp.broadcast_to(x, obs.shape) for x in (low, high))
    return jnp.clip((obs - zero) / (one - zero), 0.0, 1.0)


def frequencies(num_dims: int, order: int) -> np.ndarray:
    """All vectors c of the Fourier basis, `[(order + 1)^D, D]`, c = 0 first."""
    return np.indices([order + 1] * num_dims).reshape(num_dims, -1).T


def fourier(x: Float[Array, "*batch D"], order: int) -> Float[Array, "*batch F"]:
    """cos(pi c . x) for all c in {0 .. order}^D, of x in [0, 1]^D.

    Source: Konidaris et al. (2011), doi:10.1609/aaai.v25i1.7903; Sutton and Barto (2018), eq. 9.18.
    """
    angles = jnp.matmul(x, jnp.asarray(frequencies(x.shape[-1], order).T, jnp.float32), precision="highest")
    return jnp.cos(jnp.pi * angles)


def fourier_step_sizes(num_dims: int, order: int) -> np.ndarray:
    """1 / |c| for each feature of `fourier`, and 1 for c = 0, `[F]`: what its learning rate is multiplied by."""
    return 1 / np.maximum(np.linalg.norm(frequencies(num_dims, order), axis=-1), 1.0)


def tiles(x: Float[Array, "*batch D"], num_tilings: int, num_tiles: int) -> Float[Array, "*batch F"]:
    """A 1 for the tile of each grid that x in [0, 1]^D lies in, F = num_tilings * (num_tiles + 1)^D.

    Grid i is shifted by i (1, 3, 5, ..) / num_tilings tiles, modulo one tile, so each has a tile more than fits.
    Source: Sutton and Barto (2018), section 9.5.4.
    """
    num_dims, side = x.shape[-1], num_tiles + 1
    grid, dim = np.arange(num_tilings)[:, None], np.arange(num_dims)[None]
    shift = grid * (2 * dim + 1) % num_tilings / num_tilings
    scaled = jnp.broadcast_to(x[..., None, :] * num_tiles, (*x.shape[:-1], num_tilings, num_dims))
    place = jnp.floor(scaled + jnp.broadcast_to(shift, scaled.shape)).astype(jnp.int32)
    number = (place * jnp.broadcast_to(side**dim, place.shape)).sum(-1)
    return jax.nn.one_hot(number, side**num_dims).reshape(*x.shape[:-1], -1)


def check_size(config: Any, num_dims: int) -> None:
    """Raises ValueError where tilings would coincide, or features be too many to step through."""
    if config.num_tilings & (config.num_tilings - 1):
        raise ValueError(f"num_tilings must be a power of two, so that no two coincide, but is {config.num_tilings}.")
    tile = config.features == "tile"
    num = config.num_tilings * (config.num_tiles + 1) ** num_dims if tile else (config.fourier_order + 1) ** num_dims
    if num > MAX_FEATURES:
        fewer = "num_tiles or num_tilings" if tile else "fourier_order"
        raise ValueError(
            f"{num_dims} observed numbers make {num:.3g} {config.features} features, more than {MAX_FEATURES:,}: "
            f"lower {fewer}, or use raw features, or dqn."
        )
