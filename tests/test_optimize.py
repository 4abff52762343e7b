"""Clipping, schedules and shuffling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purerl.core import optimize


@jax.jit
def first_update(grads, learning_rate, max_grad_norm):
    """Adam's first step is -lr g / (|g| + eps) of the clipped g; eps = 1 makes the size of g visible."""
    optimizer = optimize.adam(learning_rate, max_grad_norm, eps=1.0)
    return optimizer.update(grads, optimizer.init(grads), grads)[0]


def test_clipping_by_global_norm():
    """The norm of (3, 4) over two leaves is 5, so 1 at most leaves (0.6, 0.8); leaf by leaf it would be (1, 1)."""
    updates = first_update({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}, 2.0, 1.0)
    np.testing.assert_allclose(updates["a"], [-2 * 0.6 / 1.6], rtol=1e-5)
    np.testing.assert_allclose(updates["b"], [[-2 * 0.8 / 1.8]], rtol=1e-5)


def test_small_gradients_pass():
    """The norm of (0.3, -0.4) is 0.5 < 1."""
    updates = first_update({"a": jnp.array([0.3]), "b": jnp.array([-0.4])}, 1.0, 1.0)
    np.testing.assert_allclose(updates["a"], [-0.3 / 1.3], rtol=1e-5)
    np.testing.assert_allclose(updates["b"], [0.4 / 1.4], rtol=1e-5)


def test_adam_under_vmap():
    """Learning rate and norm may be traced: one optimiser a seed."""
    grads = {"a": jnp.array([3.0, 4.0])}
    rates, norms = jnp.array([1.0, 2.0, 1.0]), jnp.array([1.0, 1.0, 10.0])
    updates = jax.vmap(lambda rate, norm: first_update(grads, rate, norm))(rates, norms)["a"]
    expected = [[-0.375, -0.8 / 1.8], [-0.75, -1.6 / 1.8], [-3 / 4, -4 / 5]]
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


@pytest.mark.parametrize("side", [3, 256])
def test_small_networks_are_one_vector_and_large_ones_stay_as_they_are(side):
    """Neither changes a step: two of RMSProp with clipping, over a matrix of side x side and a vector, by NumPy."""
    params = {"a": jnp.ones((side, side)), "b": jnp.ones(2)}
    optimizer = optimize.rmsprop(0.1, 1.0, eps=0.5)
    state = optimizer.init(params)
    sizes = {leaf.size for leaf in jax.tree.leaves(state)} - {1}
    assert sizes == ({11} if side == 3 else {side**2, 2})
    nu = {name: 0.0 for name in params}
    for scale in (1.0, 2.0):
        grads = {"a": jnp.full((side, side), scale), "b": jnp.array([3.0, -4.0]) * scale}
        updates, state = optimizer.update(grads, state, params)
        norm = scale * np.sqrt(side**2 + 25)
        for name, grad in grads.items():
            clipped = np.asarray(grad, np.float64) / max(norm, 1)
            nu[name] = 0.99 * nu[name] + 0.01 * clipped**2
            np.testing.assert_allclose(updates[name], -0.1 * clipped / (np.sqrt(nu[name] + 0.5)), rtol=1e-4)


@pytest.mark.parametrize(("size", "num_minibatches"), [(1, 1), (12, 3), (16, 4), (1000, 8)])
def test_each_epoch_is_a_permutation(size, num_minibatches):
    indices = optimize.shuffled_indices(jax.random.key(0), size, 3, num_minibatches)
    assert indices.shape == (3 * num_minibatches, size // num_minibatches)
    epochs = np.asarray(indices).reshape(3, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (3, 1)))
    if size > 1:
        assert len(np.unique(epochs, axis=0)) == 3
        assert (epochs != np.arange(size)).any(axis=1).all()


def test_shuffles_are_uniform():
    """Every index is equally often at every place, and each of the 720 orders of 6 is equally often drawn."""
    keys = jax.random.split(jax.random.key(1), 20_000)
    orders = np.asarray(jax.vmap(lambda key: optimize.shuffled_indices(key, 6, 1, 2))(keys)).reshape(-1, 6)
    for place in range(6):
        assert stats.chisquare(np.bincount(orders[:, place], minlength=6)).pvalue > 1e-4
    counts = np.unique(orders @ 6 ** np.arange(6), return_counts=True)[1]
    assert len(counts) == 720
    assert stats.chisquare(counts).pvalue > 1e-4
