"""Advantages and returns against numbers worked out by hand, and against a plain loop.

By hand: gamma = 0.5, lambda = 0.5, so gamma lambda = 0.25; rewards 1 6 3; V(obs) 4 2 8; V(final_obs) 2 8 16, except
that where an episode ends after the second step its final_obs is worth 100, not the 8 of the fresh one that follows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from purerl.core.returns import gae, lambda_returns, standardize
from purerl.core.types import Transition

GAMMA, LAMBDA = 0.5, 0.5
REWARD, VALUE = jnp.array([1.0, 6.0, 3.0]), jnp.array([4.0, 2.0, 8.0])
ONGOING, ENDING = jnp.array([2.0, 8.0, 16.0]), jnp.array([2.0, 100.0, 16.0])
NEVER, SECOND, LAST = (jnp.array(flags) for flags in ([False] * 3, [False, True, False], [False, False, True]))

jitted_gae, jitted_lambda = jax.jit(gae), jax.jit(lambda_returns)


def steps_of(reward, terminated, truncated):
    """A trajectory in which nothing else is read."""
    unread = jnp.full(reward.shape, jnp.nan)
    return Transition(unread, unread, reward, terminated, truncated, unread)


# In all cases delta_0 = 1 + 0.5 * 2 - 4 = -2, and but for the last delta_2 = 3 + 0.5 * 16 - 8 = 3.
GAE_CASES = {
    # delta_1 = 6 + 0.5 * 8 - 2 = 8;  A_2 = 3, A_1 = 8 + 0.25 * 3 = 8.75, A_0 = -2 + 0.25 * 8.75 = 0.1875
    "no end": (ONGOING, NEVER, NEVER, [0.1875, 8.75, 3.0]),
    # delta_1 = 6 + 0 - 2 = 4;  A_1 = 4 (A_2 belongs to another episode), A_0 = -2 + 0.25 * 4 = -1
    "termination": (ENDING, SECOND, NEVER, [-1.0, 4.0, 3.0]),
    # delta_1 = 6 + 0.5 * 100 - 2 = 54;  A_1 = 54, A_0 = -2 + 0.25 * 54 = 11.5
    "truncation": (ENDING, NEVER, SECOND, [11.5, 54.0, 3.0]),
    # the task is over, whatever the clock says: as termination
    "both at once": (ENDING, SECOND, SECOND, [-1.0, 4.0, 3.0]),
    # delta_2 = 3 + 0 - 8 = -5;  A_1 = 8 + 0.25 * -5 = 6.75, A_0 = -2 + 0.25 * 6.75 = -0.3125
    "termination at the last step": (ONGOING, LAST, NEVER, [-0.3125, 6.75, -5.0]),
    # the trajectory ends there anyway: as no end
    "truncation at the last step": (ONGOING, NEVER, LAST, [0.1875, 8.75, 3.0]),
}


@pytest.mark.parametrize("case", GAE_CASES)
def test_gae_by_hand(case):
    next_value, terminated, truncated, expected = GAE_CASES[case]
    advantage = jitted_gae(steps_of(REWARD, terminated, truncated), VALUE, next_value, GAMMA, LAMBDA)
    np.testing.assert_array_equal(advantage, expected)  # all numbers are exact in binary


def test_gae_limits():
    """At lambda = 0 the advantage is the TD error, at lambda = 1 the return minus the value."""
    args = (steps_of(REWARD, NEVER, NEVER), VALUE, ONGOING, GAMMA)
    np.testing.assert_array_equal(jitted_gae(*args, 0.0), [-2.0, 8.0, 3.0])
    # returns 6.75 11.5 11 (as in "no end" below), minus V = 4 2 8
    np.testing.assert_array_equal(jitted_gae(*args, 1.0), [2.75, 9.5, 3.0])


RETURN_CASES = {
    # G_2 = 3 + 0.5 * 16 = 11, G_1 = 6 + 0.5 * 11 = 11.5, G_0 = 1 + 0.5 * 11.5 = 6.75
    "no end": (NEVER, NEVER, [6.75, 11.5, 11.0]),
    # G_1 = 6 + 0, G_0 = 1 + 0.5 * 6 = 4
    "termination": (SECOND, NEVER, [4.0, 6.0, 11.0]),
    # G_1 = 6 + 0.5 * 100 = 56, G_0 = 1 + 0.5 * 56 = 29
    "truncation": (NEVER, SECOND, [29.0, 56.0, 11.0]),
    # G_2 = 3, G_1 = 6 + 0.5 * 3 = 7.5, G_0 = 1 + 0.5 * 7.5 = 4.75
    "termination at the last step": (LAST, NEVER, [4.75, 7.5, 3.0]),
}


@pytest.mark.parametrize("case", RETURN_CASES)
def test_discounted_returns_by_hand(case):
    """lambda = 1 is the discounted return, in which V(final_obs) counts only where the sum is cut."""
    terminated, truncated, expected = RETURN_CASES[case]
    steps = steps_of(REWARD, terminated, truncated)
    np.testing.assert_array_equal(jitted_lambda(steps, ENDING, GAMMA, 1.0), expected)


LAMBDA_CASES = {
    # G_2 = 3 + 0.5 * 16 = 11, G_1 = 6 + 0.5 (8 + 11) / 2 = 10.75, G_0 = 1 + 0.5 (2 + 10.75) / 2 = 4.1875
    "no end": (ONGOING, NEVER, NEVER, [4.1875, 10.75, 11.0]),
    # G_1 = 6, G_0 = 1 + 0.5 (2 + 6) / 2 = 3
    "termination": (ENDING, SECOND, NEVER, [3.0, 6.0, 11.0]),
    # G_1 = 6 + 0.5 * 100 = 56, G_0 = 1 + 0.5 (2 + 56) / 2 = 15.5
    "truncation": (ENDING, NEVER, SECOND, [15.5, 56.0, 11.0]),
    "both at once": (ENDING, SECOND, SECOND, [3.0, 6.0, 11.0]),
    # G_2 = 3, G_1 = 6 + 0.5 (8 + 3) / 2 = 8.75, G_0 = 1 + 0.5 (2 + 8.75) / 2 = 3.6875
    "termination at the last step": (ONGOING, LAST, NEVER, [3.6875, 8.75, 3.0]),
}


@pytest.mark.parametrize("case", LAMBDA_CASES)
def test_lambda_returns_by_hand(case):
    next_value, terminated, truncated, expected = LAMBDA_CASES[case]
    given = jitted_lambda(steps_of(REWARD, terminated, truncated), next_value, GAMMA, LAMBDA)
    np.testing.assert_array_equal(given, expected)


def test_batch_axes():
    """Each column of a batch is what it is alone."""
    cases = [GAE_CASES[name] for name in ("no end", "termination", "truncation", "both at once")]
    next_value, terminated, truncated, expected = (
        jnp.stack([jnp.asarray(case[i]) for case in cases], axis=-1).reshape(3, 2, 2) for i in range(4)
    )
    reward, value = (jnp.broadcast_to(x[:, None, None], (3, 2, 2)) for x in (REWARD, VALUE))
    steps = steps_of(reward, terminated, truncated)
    np.testing.assert_array_equal(jitted_gae(steps, value, next_value, GAMMA, LAMBDA), expected)


def loop_gae(reward, value, next_value, terminated, truncated, gamma, lam):
    """The sum itself, eq. 16: A_t = sum_k (gamma lambda)^k delta_{t+k} up to the end of the episode. One column."""
    advantage = np.zeros(len(reward))
    for t in range(len(reward)):
        weight = 1.0
        for k in range(t, len(reward)):
            bootstrap = 0.0 if terminated[k] else gamma * next_value[k]
            advantage[t] += weight * (reward[k] + bootstrap - value[k])
            if terminated[k] or truncated[k]:
                break
            weight *= gamma * lam
    return advantage


def loop_lambda(reward, next_value, terminated, truncated, gamma, lam):
    """The mean itself, eq. 12.3: n-step returns weigh (1 - lambda) lambda^(n-1), the last one the rest. One column."""
    mean = np.zeros(len(reward))
    for t in range(len(reward)):
        rewards, weight = 0.0, 1.0
        for k in range(t, len(reward)):
            rewards += gamma ** (k - t) * reward[k]
            bootstrap = 0.0 if terminated[k] else gamma ** (k - t + 1) * next_value[k]
            ends = terminated[k] or truncated[k] or k == len(reward) - 1
            mean[t] += (weight if ends else weight * (1 - lam)) * (rewards + bootstrap)
            if ends:
                break
            weight *= lam
    return mean


# One length below the unrolling of the loops, one above and no multiple of it.
SHAPES = st.sampled_from([(1,), (5, 3), (19, 2, 2)])
UNIT = st.sampled_from([0.0, 0.3, 0.99, 1.0])


@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1), gamma=UNIT, lam=UNIT, end_rate=st.sampled_from([0.0, 0.2, 0.7]))
def test_against_loops(shape, seed, gamma, lam, end_rate):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, *shape)).astype(np.float32)
    terminated, truncated = rng.random((2, *shape)) < end_rate
    steps = steps_of(*(jnp.asarray(x) for x in (reward, terminated, truncated)))
    advantage = jitted_gae(steps, jnp.asarray(value), jnp.asarray(next_value), gamma, lam)
    means = jitted_lambda(steps, jnp.asarray(next_value), gamma, lam)
    for i in np.ndindex(shape[1:]):
        column = (slice(None), *i)
        expected = loop_gae(*(x[column] for x in (reward, value, next_value, terminated, truncated)), gamma, lam)
        np.testing.assert_allclose(advantage[column], expected, rtol=1e-5, atol=1e-5)
        expected = loop_lambda(*(x[column] for x in (reward, next_value, terminated, truncated)), gamma, lam)
        np.testing.assert_allclose(means[column], expected, rtol=1e-5, atol=1e-5)


def test_standardize():
    # mean 3, squared deviations 4 0 4 0, so std = sqrt(2)
    standard = standardize(jnp.array([[1.0, 3.0], [5.0, 3.0]]))
    np.testing.assert_allclose(standard, [[-(2**0.5), 0], [2**0.5, 0]], rtol=1e-6)
    np.testing.assert_array_equal(standardize(jnp.full(4, 0.5)), np.zeros(4))


def test_shapes_are_checked():
    """Without the checks, and the import hook of conftest.py, these broadcast in silence."""
    with pytest.raises(TypeCheckError):
        standardize(jnp.arange(3))
    with pytest.raises(AssertionError, match="different shapes"):
        gae(steps_of(*(x[:, None] for x in (REWARD, NEVER, NEVER))), jnp.ones((3, 2)), jnp.ones((3, 2)), GAMMA, LAMBDA)
    with pytest.raises(AssertionError, match="different shapes"):
        lambda_returns(steps_of(*(x[:, None] for x in (REWARD, NEVER, NEVER))), jnp.ones((3, 2)), GAMMA, LAMBDA)
