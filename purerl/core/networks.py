"""Network bodies. Layers are few and plain; what makes an algorithm stands in the algorithm's own file."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from purerl.core.envs import Discrete, Space

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": jnp.tanh, "relu": nn.relu, "swish": nn.swish, "elu": nn.elu}


def orthogonal(scale: float) -> Callable[..., Array]:
    """An initialiser whose matrix has orthonormal rows or columns, times scale.

    Newton-Schulz iterations on a Gaussian matrix: matrix products alone, since a QR inside vmap can deadlock on CPU.
    Each iteration multiplies small singular values by 1.5 and bends those near 1 towards 1.
    A kernel of a convolution counts as the matrix `[height * width * in, out]`.
    """

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        matrix = jax.random.normal(key, shape, dtype).reshape(-1, shape[-1])
        matrix = matrix.T if (tall := matrix.shape[0] > matrix.shape[1]) else matrix
        matrix /= jnp.linalg.norm(matrix)  # the largest singular value is now at most 1

        def iterate(_: Array, x: Array) -> Array:
            return 1.5 * x - 0.5 * (x @ x.T) @ x

        matrix = jax.lax.fori_loop(0, 40, iterate, matrix)
        return scale * (matrix.T if tall else matrix).reshape(shape)

    return init


def encode(obs: Array, space: Space) -> Float[Array, "*batch_and_features"]:
    """Observations as a network reads them: integers one-hot, bytes divided by 255, bits as 0 and 1."""
    if isinstance(space, Discrete):
        return jax.nn.one_hot(obs, space.n)
    return obs.astype(jnp.float32) / (255.0 if space.dtype == jnp.uint8 else 1.0)


class Network(nn.Module):
    """A body chosen by the observation's rank, and a linear head.

    Images `[batch, height, width, channels]` go through one 3 x 3 convolution of 16 channels (the network of the
    MinAtar paper, arXiv:1903.03176) and then the hidden layers; everything else is flattened into the hidden layers.

    num_outputs: size of the head. head_scale: scale of the head's orthogonal initialisation.
    Input `[batch, ...]`, encoded; output `[batch, num_outputs]`.
    """

    hidden_sizes: tuple[int, ...]
    activation: str
    num_outputs: int
    head_scale: float = 1.0
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch out"]:
        activation = ACTIVATIONS[self.activation]
        if x.ndim == 4:
            x = activation(nn.Conv(16, (3, 3), padding="VALID", kernel_init=orthogonal(2**0.5))(x))
        x = x.reshape(x.shape[0], -1)
        for size in self.hidden_sizes:
            x = nn.Dense(size, kernel_init=orthogonal(2**0.5))(x)
            x = nn.LayerNorm()(x) if self.layer_norm else x
            x = activation(x)
        return nn.Dense(self.num_outputs, kernel_init=orthogonal(self.head_scale))(x)
