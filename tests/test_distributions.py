"""Action distributions against scipy.stats in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from purerl.core.distributions import Categorical, Gaussian, TanhGaussian

KEY = jax.random.key(0)
LOGITS = jnp.array([[[0.0, 0.0, 0.0], [1.0, -2.0, 0.5]], [[30.0, 29.0, -5.0], [1e4, 0.0, -1e4]]])  # [2, 2, 3]
OTHER_LOGITS = jnp.array([0.3, -1.0, 2.0])
MEAN, LOG_STD = jnp.array([[0.3, -1.2], [0.0, 2.0]]), jnp.array([[-1.0, 0.4]])  # one std for the whole batch
STD = np.broadcast_to(np.exp(np.asarray(LOG_STD, np.float64)), MEAN.shape)
# Far out, 1 - a^2 of a float32 action loses digits, so the inner actions stay inside 0.99.
ACTION = jnp.array([[0.2, -0.99], [-0.7, 0.9]])

call = jax.jit(lambda pi, method, *args: getattr(pi, method)(*args), static_argnums=1)


def test_categorical_log_prob_and_entropy():
    """Logits that are far apart included, where a softmax of its own accord would give log 0."""
    pi, probs = Categorical(LOGITS), special.softmax(np.asarray(LOGITS, np.float64), axis=-1)
    for action in range(3):
        log_prob = call(pi, "log_prob", jnp.full((2, 2), action))
        assert log_prob.shape == (2, 2)
        np.testing.assert_allclose(log_prob, special.log_softmax(LOGITS, axis=-1)[..., action], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(call(pi, "entropy"), stats.entropy(probs, axis=-1), rtol=1e-5, atol=1e-6)


def test_categorical_kl():
    pi, other = Categorical(LOGITS), Categorical(jnp.broadcast_to(OTHER_LOGITS, LOGITS.shape))
    p, q = (special.softmax(np.asarray(x.logits, np.float64), axis=-1) for x in (pi, other))
    np.testing.assert_allclose(call(pi, "kl", other), stats.entropy(p, q, axis=-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(call(pi, "kl", pi), np.zeros((2, 2)), atol=1e-6)


def test_categorical_sample_and_mode():
    logits = jnp.array([0.0, 1.0, -1.0, 0.5])
    sample = call(Categorical(jnp.broadcast_to(logits, (20_000, 4))), "sample", KEY)
    assert sample.shape == (20_000,)
    expected = 20_000 * special.softmax(np.asarray(logits, np.float64))
    assert stats.chisquare(np.bincount(sample, minlength=4), expected).pvalue > 1e-3
    np.testing.assert_array_equal(call(Categorical(LOGITS[:, 1]), "mode"), [0, 0])
    np.testing.assert_array_equal(call(Categorical(logits), "mode"), 1)


def test_gaussian_log_prob_and_entropy():
    pi = Gaussian(MEAN, LOG_STD)
    expected = stats.norm.logpdf(ACTION, MEAN, STD).sum(-1)
    np.testing.assert_allclose(call(pi, "log_prob", ACTION), expected, rtol=1e-5)
    np.testing.assert_allclose(call(pi, "entropy"), stats.norm.entropy(MEAN, STD).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(call(pi, "mode"), MEAN)


def test_gaussian_kl():
    """Against the integral of p (log p - log q), dimension by dimension."""
    pi, other = Gaussian(MEAN, LOG_STD), Gaussian(MEAN - 0.5, jnp.array([[0.2, -0.3]]))

    def kl(mean, std, other_mean, other_std):
        p, q = stats.norm(mean, std), stats.norm(other_mean, other_std)
        return integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), mean - 12 * std, mean + 12 * std)[0]

    expected = np.vectorize(kl)(MEAN, STD, other.mean, np.exp(np.asarray(other.log_std, np.float64)))
    np.testing.assert_allclose(call(pi, "kl", other), expected.sum(-1), rtol=1e-5)
    np.testing.assert_allclose(call(pi, "kl", pi), np.zeros(2), atol=1e-6)


def test_gaussian_sample():
    """Each dimension has its own mean and deviation, and draws of its own."""
    num = 5_000
    pi = Gaussian(jnp.broadcast_to(MEAN, (num, 2, 2)), LOG_STD[None])
    sample = np.asarray(call(pi, "sample", KEY)).reshape(num, 4)
    for x, mean, std in zip(sample.T, np.ravel(MEAN), np.ravel(STD), strict=True):
        assert stats.kstest(x, stats.norm(mean, std).cdf).pvalue > 1e-3
    # Correlations of independent draws have a standard error of 1 / sqrt(5000) = 0.014.
    np.testing.assert_allclose(np.corrcoef(sample.T), np.eye(4), atol=0.06)


def test_tanh_gaussian_log_prob():
    """By change of variables: log p(a) = log N(arctanh a) - log(1 - a^2)."""
    action = np.asarray(ACTION, np.float64)
    expected = stats.norm.logpdf(np.arctanh(action), MEAN, STD) - np.log1p(-(action**2))
    np.testing.assert_allclose(call(TanhGaussian(MEAN, LOG_STD), "log_prob", ACTION), expected.sum(-1), rtol=1e-4)


def test_tanh_gaussian_density_integrates_to_one():
    grid = np.linspace(-1, 1, 20_001, dtype=np.float32)[1:-1, None]
    for mean, log_std in ((0.0, -0.5), (0.6, -1.0)):
        pi = TanhGaussian(jnp.asarray(np.full_like(grid, mean)), jnp.asarray(np.full_like(grid, log_std)))
        density = np.exp(call(pi, "log_prob", jnp.asarray(grid)))
        assert integrate.trapezoid(density, grid[:, 0]) == pytest.approx(1.0, abs=1e-3)


def test_tanh_gaussian_is_finite_at_the_bounds():
    """Value and gradients."""

    @jax.jit
    def value_and_grads(edge):
        action = jnp.full((1, 2), edge)
        log_prob = lambda mean, log_std: TanhGaussian(mean, log_std).log_prob(action)[0]  # noqa: E731
        return jax.value_and_grad(log_prob, argnums=(0, 1))(MEAN[:1], LOG_STD)

    for edge in (-1.0, 1.0, -1.5, 1.5):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(value_and_grads(edge)))
    jax.tree.map(np.testing.assert_array_equal, value_and_grads(1.0), value_and_grads(1.5))


@pytest.mark.parametrize("mean", [50.0, -50.0, 1e4, -1e4])
def test_tanh_gaussian_far_out(mean):
    """At |u| >> 1, log(1 - tanh(u)^2) = log 4 - 2|u|, where a textbook log(1 - a^2) is -inf."""
    pi = TanhGaussian(jnp.full((1, 2), mean), jnp.zeros((1, 2)))
    action, log_prob = call(pi, "sample_and_log_prob", KEY)
    np.testing.assert_array_equal(action, np.sign(pi.mean))
    u = np.asarray(call(pi.base, "sample", KEY), np.float64)
    expected = stats.norm.logpdf(u, mean) - np.log(4) + 2 * np.abs(u)
    np.testing.assert_allclose(log_prob, expected.sum(-1), rtol=1e-5)


def test_tanh_gaussian_sample():
    """Drawn from the density: the base's distribution function at arctanh of the action."""
    num = 5_000
    pi = TanhGaussian(jnp.broadcast_to(MEAN[0], (num, 2)), LOG_STD)
    action, log_prob = call(pi, "sample_and_log_prob", KEY)
    np.testing.assert_allclose(action, call(pi, "sample", KEY), rtol=1e-6)
    assert action.shape == (num, 2) and log_prob.shape == (num,)
    for x, mean, std in zip(np.asarray(action, np.float64).T, np.asarray(MEAN[0]), STD[0], strict=True):
        assert stats.kstest(np.arctanh(x), stats.norm(mean, std).cdf).pvalue > 1e-3
    action, log_prob, again = (np.asarray(x) for x in (action, log_prob, call(pi, "log_prob", action)))
    inner = np.abs(action).max(-1) < 0.99  # beyond, a float32 action no longer tells which u it came from
    assert inner.mean() > 0.5
    np.testing.assert_allclose(log_prob[inner], again[inner], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(call(pi, "mode"), np.tanh(pi.mean), rtol=1e-6)


def test_tanh_gaussian_entropy_by_sampling():
    """-E log p of the samples is the entropy of the integrated density, within 5 standard errors."""
    num = 20_000
    pi = TanhGaussian(jnp.full((num, 1), 0.3), jnp.full((num, 1), -0.5))
    log_prob = np.asarray(call(pi, "sample_and_log_prob", KEY)[1], np.float64)
    base = stats.norm(0.3, np.exp(-0.5))

    def integrand(u):
        return -base.pdf(u) * (base.logpdf(u) - np.log1p(-(np.tanh(u) ** 2)))

    entropy = integrate.quad(integrand, -6, 6)[0]
    assert -log_prob.mean() == pytest.approx(entropy, abs=5 * log_prob.std() / np.sqrt(num))
