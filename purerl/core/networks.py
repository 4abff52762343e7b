"""Network bodies. Layers are few and plain; what makes an algorithm stands in the algorithm's own file."""

from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from purerl.core.types import PRNGKey
from purerl.envs.spaces import Discrete, Space

ACTIVATIONS = (
    "celu",
    "elu",
    "gelu",
    "leaky_relu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_sign",
    "softplus",
    "swish",
    "tanh",
)


def make(
    own: Any,
    obs_space: Space,
    num_outputs: int,
    hidden_sizes: tuple[int, ...],
    activation: str,
    *,
    action_size: int = 0,
    head_scale: float = 1.0,
    layer_norm: bool = False,
) -> "Network":
    """The network that a Config describes, or the user's own in its place.

    own: None; a flax module, from encoded observations `[*batch, ...]` to `[*batch, num_outputs]`; or a function of
    num_outputs that gives one. action_size: D, where the network reads an action `[*batch, D]` beside the observation;
    the module then gets both as one vector, the observation flattened and the action behind it.
    Raises TypeError where such a function gives no flax module, and ValueError where the user's module gives another
    shape, with one batch axis, with two, or without any.
    """
    if own is None:
        rank = 1 if isinstance(obs_space, Discrete) or action_size else len(obs_space.shape)
        layers = Layers(hidden_sizes, activation, num_outputs, rank, head_scale, layer_norm)
        return Network(obs_space, layers, action_size)
    try:
        body = own if isinstance(own, nn.Module) else _made(own, num_outputs)
    except TypeError as error:
        raise TypeError(
            f"{own!r} must take the number of outputs, {num_outputs}, and give a flax module: {error}."
        ) from error
    if not isinstance(body, nn.Module):
        raise TypeError(f"{own!r} must give a flax module for {num_outputs} outputs, but gives {body!r}.")
    network = Network(obs_space, body, action_size)
    _check_outputs(network, num_outputs)
    return network


def _made(factory: Any, num_outputs: int) -> Any:
    """By name where a module's class has the field num_outputs, so that no other field is taken for it."""
    named = isinstance(factory, type) and "num_outputs" in getattr(factory, "__dataclass_fields__", {})
    return factory(num_outputs=num_outputs) if named else factory(num_outputs)


def _check_outputs(network: "Network", num_outputs: int) -> None:
    """Traces shapes alone."""
    key, own = jax.eval_shape(lambda: jax.random.key(0)), type(network.body).__name__
    for batch in ((), (2,), (2, 3)):
        inputs = jax.eval_shape(lambda: _inputs(network, batch))  # noqa: B023 - called at once
        read = dict(zip(("observations", "actions"), inputs, strict=False))
        try:
            variables = jax.eval_shape(network.init, key, *inputs)
            if others := sorted(set(variables) - {"params"}):
                raise ValueError(
                    f"A network of your own, {own}, must hold parameters alone, but holds {', '.join(others)} too, "
                    "which no training would update."
                )
            output = jax.eval_shape(network.apply, variables, *inputs)
        except (flax.errors.FlaxError, TypeError) as error:
            what = "observations" if len(read) == 1 else "one vector of observation and action"
            raise ValueError(f"A network of your own, {own}, cannot be run on {what} alone: {error}") from error
        if getattr(output, "shape", None) != (*batch, num_outputs):
            got = list(output.shape) if hasattr(output, "shape") else repr(output)
            given = " and ".join(f"{name} {list(x.shape)}" for name, x in read.items())
            raise ValueError(
                f"A network of your own, {own}, must give {[*batch, num_outputs]} for {given}, but gives {got}."
            )


def _inputs(network: "Network", batch: tuple[int, ...]) -> list[Array]:
    """An observation `[*batch, ...]`, and the action `[*batch, D]` where the network reads one: zeros."""
    obs = jnp.zeros((*batch, *network.obs_space.shape), network.obs_space.dtype)
    return [obs, jnp.zeros((*batch, network.action_size))] if network.action_size else [obs]


def init(key: PRNGKey, *networks: "Network") -> tuple[Any, ...]:
    """Parameters of each network. Every kernel of `Layers` is a random orthogonal matrix times its own scale.

    Draws all of these at once, because XLA takes longer to compile a draw than a layer. A network of the user's own
    keeps what its initialisers drew.
    """
    plain = [isinstance(network.body, Layers) for network in networks]
    params = []
    for i, network in enumerate(networks):
        network_key = key if plain[i] else jax.random.fold_in(key, i)
        params.append(network.init(network_key, *_inputs(network, (1,))))
    undrawn = [x for x, is_plain in zip(params, plain, strict=True) if is_plain]
    drawn = iter(orthogonal(key, undrawn) if undrawn else ())
    return tuple(next(drawn) if is_plain else x for x, is_plain in zip(params, plain, strict=True))


def orthogonal(key: PRNGKey, params: Any) -> Any:
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
    """Observations as a network reads them: integers one-hot, bytes divided by 255, bits as 0 and 1; floats stay."""
    if jnp.issubdtype(obs.dtype, jnp.floating):
        return obs
    if isinstance(space, Discrete):
        return jax.nn.one_hot(obs, space.n)
    return obs.astype(jnp.float32) / (255.0 if space.dtype == jnp.uint8 else 1.0)


class Network(nn.Module):
    """A body that reads observations of obs_space, encoded: `[*batch, ...]` to `[*batch, num_outputs]`.

    action_size: 0, or how many numbers an action has that the body reads behind the flattened observation.
    """

    obs_space: Space
    body: nn.Module
    action_size: int = 0

    def __call__(self, obs: Array, action: Float[Array, "*batch D"] | None = None) -> Float[Array, "*batch out"]:
        x = encode(obs, self.obs_space)
        if action is not None:
            x = jnp.concatenate([x.reshape(*action.shape[:-1], -1), action], axis=-1)
        return self.body(x)


class Layers(nn.Module):
    """Hidden layers and a linear head.

    Images `[*batch, height, width, channels]` go through one 3 x 3 convolution of 16 channels (the network of the
    MinAtar paper, arXiv:1903.03176) and then the hidden layers; everything else is flattened into the hidden layers.

    rank: axes of one encoded observation. num_outputs: size of the head. head_scale: scale of the head's orthogonal
    initialisation. layer_norm: normalise the features of each layer, of an image at every place, before the
    nonlinearity. by_sums: small products as sums, which is faster where each of a population has its own kernels.
    """

    hidden_sizes: tuple[int, ...]
    activation: str
    num_outputs: int
    rank: int = 1
    head_scale: float = 1.0
    layer_norm: bool = False
    by_sums: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch_and_features"]) -> Float[Array, "*batch out"]:
        activation = swish if self.activation in ("silu", "swish") else getattr(nn, self.activation)

        def dense(x: Array, size: int, scale: float, name: str | None = None) -> Array:
            drawn_by_init = nn.initializers.constant(scale)
            product = product_by_sums if self.by_sums and x.shape[-1] * size <= 64 else None
            return nn.Dense(size, kernel_init=drawn_by_init, name=name, dot_general=product)(x)

        def layer(x: Array, size: int, name: str | None = None) -> Array:
            x = dense(x, size, 2**0.5, name)
            return activation(nn.LayerNorm()(x) if self.layer_norm else x)

        batch = x.shape[: x.ndim - self.rank]
        if self.rank == 3:
            x = layer(patches(x), 16, "Conv")
        x = x.reshape(*batch, -1)
        for size in self.hidden_sizes:
            x = layer(x, size)
        return dense(x, self.num_outputs, self.head_scale)


def swish(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """x sigmoid(x), by sigmoid(x) = (1 + tanh(x / 2)) / 2, right within two roundings of x.

    XLA has a faster form of tanh than of exp for CPUs, where much of the time of PETS's planning goes into this.
    """
    half = 0.5 * x
    return half + half * jnp.tanh(half)


def product_by_sums(
    x: Float[Array, "*batch I"], kernel: Float[Array, "I O"], *_: Any, **__: Any
) -> Float[Array, "*batch O"]:
    """x @ kernel, for a layer of few numbers in place of jax.lax.dot_general.

    Where each of a population has its own kernel, a CPU takes longer to call so many small products than for the sums.
    """
    return (x[..., None] * jnp.broadcast_to(kernel, (*x.shape, kernel.shape[1]))).sum(-2)


def patches(images: Float[Array, "*batch height width channels"]) -> Float[Array, "*batch rows columns pixels"]:
    """All 3 x 3 patches, `[*batch, height - 2, width - 2, 9 * channels]`.

    A dense layer on them is a convolution without padding whose gradient is a plain matrix product, for which CPUs have
    fast kernels; XLA's convolution of so few channels has none there.
    """
    height, width = images.shape[-3] - 2, images.shape[-2] - 2
    shifted = [images[..., i : i + height, j : j + width, :] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)
