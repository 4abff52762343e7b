"""Running statistics against NumPy over everything seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.core import normalize
from purerl.core.types import Transition

update = jax.jit(normalize.update_stats)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("item", [(), (3,), (2, 3)])
def test_running_stats(item, offset):
    """Batches of different sizes and axes. At an offset of 1e4 float32 has no digit left for E[x^2] - E[x]^2."""
    rng = np.random.default_rng(0)
    scale = 1 + np.arange(np.prod(item)).reshape(item)
    stats, seen = normalize.init_stats(item), []
    assert (stats.mean == 0).all() and (stats.var == 1).all()
    for i, batch_shape in enumerate([(1,), (4, 5), (50,), (4, 5), (1,)]):
        batch = (offset + i + scale * rng.normal(size=(*batch_shape, *item))).astype(np.float32)
        seen.append(batch.reshape(-1, *item).astype(np.float64))
        stats = update(stats, jnp.asarray(batch))
        assert stats.mean.shape == stats.var.shape == item
        assert stats.num == sum(map(len, seen))
        everything = np.concatenate(seen)
        np.testing.assert_allclose(stats.mean, everything.mean(0), rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(stats.var, everything.var(0), rtol=2e-3, atol=1e-5)


def test_stats_of_integers():
    stats = normalize.update_stats(normalize.init_stats(()), jnp.array([1.0, 2.0, 6.0]))
    assert stats.mean == 3
    assert stats.var == pytest.approx((4 + 1 + 9) / 3)


def test_normalize():
    stats = normalize.RunningStats(jnp.array([1.0, -2.0]), jnp.array([4.0, 0.25]), jnp.float32(9))
    x = jnp.array([[[3.0, -2.5]], [[-1.0, 98.0]]])  # (98 + 2) / 0.5 = 200 is clipped
    np.testing.assert_allclose(normalize.normalize(stats, x), [[[1.0, -1.0]], [[-1.0, 10.0]]], rtol=1e-6)
    np.testing.assert_allclose(normalize.normalize(stats, x, limit=0.5), [[[0.5, -0.5]], [[-0.5, 0.5]]], rtol=1e-6)


def test_normalize_is_the_identity_at_first():
    x = jnp.array([0.5, -3.0])
    np.testing.assert_allclose(normalize.normalize(normalize.init_stats((2,)), x), x, rtol=1e-6)


def test_reward_scale_against_a_loop():
    """Two calls, so that the sum in progress has to be carried over; episodes end inside and at the seam."""
    gamma, rng = 0.9, np.random.default_rng(0)
    scale, total, totals = normalize.init_reward_scale(2), np.zeros(2), []
    for _ in range(2):
        reward = rng.normal(2.0, 3.0, size=(6, 2)).astype(np.float32)
        done = np.array([[0, 0], [0, 1], [1, 1], [0, 0], [0, 0], [1, 0]], bool)
        ends = jnp.asarray(done) & jnp.array([[True, False]])  # the first env terminates, the second is truncated
        unread = jnp.full(reward.shape, jnp.nan)
        steps = Transition(unread, unread, jnp.asarray(reward), ends, jnp.asarray(done) & ~ends, unread)
        scale, scaled = normalize.scale_reward(scale, steps, gamma)
        for t in range(6):
            total = gamma * total + reward[t]
            totals.append(total)
            total = np.where(done[t], 0.0, total)
        np.testing.assert_allclose(scale.discounted, total, rtol=1e-5)
        np.testing.assert_allclose(scaled.reward, reward / np.std(totals), rtol=1e-4)
        np.testing.assert_array_equal(scaled.done, done)


def test_nothing_to_normalise_by():
    """Where a switch is off its statistics are None, and all passes as it is."""
    x = jnp.array([3.0, -200.0])
    assert normalize.normalize(None, x) is x
    assert normalize.update_stats(None, x) is None
    steps = Transition(x, x, x, x > 0, x > 0, x)
    assert normalize.scale_reward(None, steps, 0.9) == (None, steps)
