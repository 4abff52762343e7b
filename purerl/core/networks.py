"""Network bodies. Layers are few and plain; what makes an algorithm stands in the algorithm's own file."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from purerl.core.envs import Discrete, Space

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": jnp.tanh, "relu": nn.relu, "swish": nn.swish, "elu": nn.elu}


def init(key: Key[Array, ""], *networks: tuple[nn.Module, Any]) -> tuple[Any, ...]:
    """Parameters of each (network, its inputs) pair; every kernel is a random orthogonal matrix times its own scale.

    Draws all networks at once, because XLA takes longer to compile a draw than a layer; flax's `Network.init` alone
    would fill each kernel with nothing but its scale.
    """
    return orthogonal(key, tuple(network.init(key, inputs) for network, inputs in networks))


def orthogonal(key: Key[Array, ""], params: Any) -> Any:
    """Random orthogonal kernels: of each matrix in a tree, an orthonormal one times the scale that fills it.

    Orthonormal are its columns, or its rows where it is wide. Leaves that are no matrices (biases, norms) stay.
    Newton-Schulz iterations on Gaussian matrices: products alone, since a QR inside vmap can deadlock on CPU. Each
    iteration multiplies small singular values by 1.5 and bends those near 1 towards 1.
    """
    leaves, structure = jax.tree.flatten(params)
    kernels = [leaf for leaf in leaves if leaf.ndim == 2]
    noise = jnp.split(
        jax.random.normal(key, (sum(x.size for x in kernels),)), np.cumsum([x.size for x in kernels])[:-1]
    )
    wide = [x.reshape(min(kernel.shape), max(kernel.shape)) for x, kernel in zip(noise, kernels, strict=True)]
    wide = [x / jnp.linalg.norm(x) for x in wide]  # the largest singular value is now at most 1

    def iterate(_: Array, matrices: list[Array]) -> list[Array]:
        return [1.5 * x - 0.5 * (x @ x.T) @ x for x in matrices]

    wide = jax.lax.fori_loop(0, 40, iterate, wide)
    drawn = iter(x * scale if x.shape == scale.shape else x.T * scale for x, scale in zip(wide, kernels, strict=True))
    return structure.unflatten([next(drawn) if leaf.ndim == 2 else leaf for leaf in leaves])


def encode(obs: Array, space: Space) -> Float[Array, "*batch_and_features"]:
    """Observations as a network reads them: integers one-hot, bytes divided by 255, bits as 0 and 1."""
    if isinstance(space, Discrete):
        return jax.nn.one_hot(obs, space.n)
    return obs.astype(jnp.float32) / (255.0 if space.dtype == jnp.uint8 else 1.0)


class Network(nn.Module):
    """A body chosen by the observation's rank, and a linear head.

    Images `[batch, height, width, channels]` go through one 3 x 3 convolution of 16 channels (the network of the
    MinAtar paper, arXiv:1903.03176) and then the hidden layers; everything else is flattened into the hidden layers.

    num_outputs: size of the head. head_scale: scale of the head's orthogonal initialisation. layer_norm: normalise the
    features of each layer, of an image at every place, before the nonlinearity.
    Input `[batch, ...]`, encoded; output `[batch, num_outputs]`.
    Made by `networks.init`.
    """

    hidden_sizes: tuple[int, ...]
    activation: str
    num_outputs: int
    head_scale: float = 1.0
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch out"]:
        activation, batch = ACTIVATIONS[self.activation], x.shape[0]
        scaled = nn.initializers.constant

        def layer(x: Array, size: int, name: str | None = None) -> Array:
            x = nn.Dense(size, kernel_init=scaled(2**0.5), name=name)(x)
            return activation(nn.LayerNorm()(x) if self.layer_norm else x)

        if x.ndim == 4:
            x = layer(patches(x), 16, "Conv")
        x = x.reshape(batch, -1)
        for size in self.hidden_sizes:
            x = layer(x, size)
        return nn.Dense(self.num_outputs, kernel_init=scaled(self.head_scale))(x)


def patches(images: Float[Array, "batch height width channels"]) -> Float[Array, "patch pixels"]:
    """All 3 x 3 patches as rows `[batch * (height - 2) * (width - 2), 9 * channels]`.

    A dense layer on them is a convolution without padding whose gradient is a plain matrix product, for which CPUs have
    fast kernels; XLA's convolution of so few channels has none there.
    """
    height, width = images.shape[1] - 2, images.shape[2] - 2
    shifted = [images[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1).reshape(-1, 9 * images.shape[3])
