"""Optimisers and step sizes, rebuilt from the Config at every use so that a traced learning rate stays traced."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from purerl.core.mesh import over_envs
from purerl.core.types import PRNGKey, Scalar

# Numbers. SAC with layers of 256 has more: two fifths of its gradient step were XLA putting them end to end.
_LARGE = 2**16


def in_one_vector(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The rule on all parameters as one vector, which takes fewer kernels; large networks stay as they are."""
    whole = optax.flatten(rule)

    def form(tree: Any) -> optax.GradientTransformation:
        return rule if optax.tree.size(tree) > _LARGE else whole

    def init(params: Any) -> optax.OptState:
        return form(params).init(params)

    def update(grads: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        return form(grads).update(grads, state, params)

    return optax.GradientTransformation(init, update)


def adam(learning_rate: Scalar, max_grad_norm: Scalar, eps: float = 1e-5) -> optax.GradientTransformation:
    """Adam after clipping the gradient by its global norm over all parameters."""
    return in_one_vector(optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(learning_rate, eps=eps)))


def plain_adam(learning_rate: Scalar) -> optax.GradientTransformation:
    """Adam of gradients as they are, with the constants of its paper (arXiv:1412.6980)."""
    return in_one_vector(optax.adam(learning_rate))


def adam_step(grads: Any, params: Any, opt_state: optax.OptState, learning_rate: Scalar) -> tuple[Any, optax.OptState]:
    """The parameters after one step of `plain_adam` down the gradient, and the optimiser's next state."""
    step, opt_state = plain_adam(learning_rate).update(grads, opt_state, params)
    return optax.apply_updates(params, step), opt_state


def rmsprop(learning_rate: Scalar, max_grad_norm: Scalar, eps: float = 1e-5) -> optax.GradientTransformation:
    """RMSProp with decay 0.99 after clipping the gradient by its global norm."""
    rule = optax.rmsprop(learning_rate, decay=0.99, eps=eps)
    return in_one_vector(optax.chain(optax.clip_by_global_norm(max_grad_norm), rule))


def visit_step_size(
    learning_rate: Scalar, visits: Array | None, index: Any, power: Scalar
) -> tuple[Scalar, Array | None]:
    """The step size for the table entry at `index`, and the visits `[...]` with this one counted.

    learning_rate n^-power at the n-th visit, which for a power in (1/2, 1] lets the entry converge (Sutton and Barto
    2018, eq. 2.7); learning_rate itself where visits is None.
    """
    if visits is None:
        return learning_rate, None
    visits = visits.at[index].add(1)
    return learning_rate * visits[index] ** -power, visits


def shuffled_indices(key: PRNGKey, size: int, num_epochs: int, num_minibatches: int) -> Int[Array, "E_M batch"]:
    """For each epoch a permutation of 0 .. size-1 cut into minibatches: `[epochs * minibatches, size / minibatches]`.

    The index rides in the low bits of a random word, so that one sort of plain words shuffles: on CPU a quarter of the
    time of sorting pairs. Words equal in their random bits keep their order, which moves an index by a few places.
    """
    mask = jnp.uint32((1 << (size - 1).bit_length()) - 1)
    words = jax.random.bits(key, (num_epochs, size)) & ~mask | jnp.arange(size, dtype=jnp.uint32)[None]
    order = (jnp.sort(words, axis=1) & mask).astype(jnp.int32)
    return over_envs(order.reshape(num_epochs * num_minibatches, size // num_minibatches), axis=1)
