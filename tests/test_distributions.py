"""Action distributions against scipy.stats in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from purerl.core.distributions import Categorical, Gaussian, TanhGaussian, ornstein_uhlenbeck

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
    action, log_prob = call(pi, "at", jax.random.normal(KEY, pi.mean.shape))
    np.testing.assert_array_equal(action, np.sign(pi.mean))
    u = np.asarray(call(pi.base, "sample", KEY), np.float64)
    expected = stats.norm.logpdf(u, mean) - np.log(4) + 2 * np.abs(u)
    np.testing.assert_allclose(log_prob, expected.sum(-1), rtol=1e-5)


def test_tanh_gaussian_sample():
    """Drawn from the density: the base's distribution function at arctanh of the action."""
    num = 5_000
    pi = TanhGaussian(jnp.broadcast_to(MEAN[0], (num, 2)), LOG_STD)
    action, log_prob = call(pi, "at", jax.random.normal(KEY, pi.mean.shape))
    np.testing.assert_allclose(action, call(pi, "sample", KEY), rtol=1e-6, atol=1e-6)
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
    log_prob = np.asarray(call(pi, "at", jax.random.normal(KEY, pi.mean.shape))[1], np.float64)
    base = stats.norm(0.3, np.exp(-0.5))

    def integrand(u):
        return -base.pdf(u) * (base.logpdf(u) - np.log1p(-(np.tanh(u) ** 2)))

    entropy = integrate.quad(integrand, -6, 6)[0]
    assert -log_prob.mean() == pytest.approx(entropy, abs=5 * log_prob.std() / np.sqrt(num))


def tanh_log_prob(u, mean, std):
    """log density of the action tanh(u) in float64, by 1 - tanh(u)^2 = 4 e^(2u) / (1 + e^(2u))^2."""
    u = np.asarray(u, np.float64)
    return stats.norm.logpdf(u, mean, std) - np.log(4) + 2 * np.abs(u) + 2 * np.log1p(np.exp(-2 * np.abs(u)))


def test_tanh_gaussian_density_integrates_to_one_in_two_dimensions():
    """The density of both dimensions together over the square, and the mass of a quarter of it by the base's."""
    mean, std = np.array([0.4, -0.7]), np.array([0.6, 0.9])
    nodes, weights = np.polynomial.legendre.leggauss(200)
    log_std = jnp.log(jnp.asarray(std, jnp.float32))

    def mass(low, high):
        x, y = (l + (nodes + 1) * (h - l) / 2 for l, h in zip(low, high, strict=True))  # noqa: E741
        action = np.stack(np.meshgrid(x, y, indexing="ij"), -1).astype(np.float32)
        pi = TanhGaussian(jnp.broadcast_to(jnp.asarray(mean, jnp.float32), action.shape), log_std[None, None])
        density = np.exp(np.asarray(call(pi, "log_prob", jnp.asarray(action)), np.float64))
        return np.einsum("xy,x,y", density, weights, weights) * np.prod(np.subtract(high, low) / 2)

    assert mass((-1, -1), (1, 1)) == pytest.approx(1.0, abs=1e-3)
    expected = np.prod(stats.norm.cdf(np.arctanh([0.5, 0.2]), mean, std))
    assert mass((-1, -1), (0.5, 0.2)) == pytest.approx(expected, abs=1e-3)


U = np.array([-20.0, -9.5, -3.0, -0.1, 0.0, 0.7, 4.0, 8.8, 20.0])


@pytest.mark.parametrize("std", [0.05, 1.0, 7.0])
def test_tanh_gaussian_at_a_known_noise(std):
    """Values before the tanh up to 20: the action, its log density in float64, and finite gradients of both.

    The noise is given, so with u = mean + std noise the log density moves with the mean by 2 tanh(u) and with the log
    deviation by -1 + 2 tanh(u) std noise.
    """
    noise = np.linspace(-2.0, 2.0, len(U))
    mean = U - std * noise

    @jax.jit
    def value_and_grads(mean, log_std):
        at = lambda mean, log_std: TanhGaussian(mean, log_std).at(jnp.asarray(noise, jnp.float32)[:, None])  # noqa: E731
        return at(mean, log_std), jax.grad(lambda *x: at(*x)[1].sum(), (0, 1))(mean, log_std)

    mean_, log_std = jnp.asarray(mean, jnp.float32)[:, None], jnp.full((len(U), 1), np.log(std), jnp.float32)
    (action, log_prob), grads = value_and_grads(mean_, log_std)
    np.testing.assert_allclose(action[:, 0], np.tanh(U), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_prob, tanh_log_prob(U, mean, std), rtol=1e-5, atol=1e-5)
    slope = 2 * np.tanh(U)
    np.testing.assert_allclose(grads[0][:, 0], slope, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads[1][:, 0], -1 + slope * std * noise, rtol=1e-4, atol=1e-4)


def test_tanh_gaussian_at_is_the_log_prob_of_its_action():
    """Where float32 can tell which u an action came from; two dimensions, the sum of both."""
    noise = jax.random.normal(KEY, (50, 2))
    pi = TanhGaussian(jnp.broadcast_to(MEAN[0] / 2, (50, 2)), jnp.array([[-1.0, -0.5]]))
    action, log_prob = call(pi, "at", noise)
    np.testing.assert_allclose(log_prob, call(pi, "log_prob", action), rtol=1e-4, atol=1e-4)
    u, std = pi.mean + np.exp([-1.0, -0.5]) * np.asarray(noise), np.exp([-1.0, -0.5])
    np.testing.assert_allclose(log_prob, tanh_log_prob(u, pi.mean, std).sum(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("theta", [0.02, 0.15, 0.7, 1.0])
def test_ornstein_uhlenbeck(theta):
    """64 processes of 8 dimensions from a standard normal start.

    After k steps the variance is still 1, and the correlation with the start (1 - theta)^k; that of processes and of
    dimensions with each other is 0. Of 512 numbers correlations have a standard error of .044, the variance of .0625.
    """
    start = jax.random.normal(jax.random.key(1), (64, 8))

    @jax.jit
    def run(theta):
        step = lambda x, key: (ornstein_uhlenbeck(key, x, theta),) * 2  # noqa: E731
        return jax.lax.scan(step, start, jax.random.split(KEY, 40))[1]

    x = np.asarray(run(theta), np.float64)  # [40, 64, 8]
    for k in (1, 2, 5, 40):
        now = x[k - 1].ravel()
        assert np.mean(now**2) == pytest.approx(1.0, abs=0.3)
        assert np.mean(now * np.ravel(start)) == pytest.approx((1 - theta) ** k, abs=0.22)
    new = (x[1:] - (1 - theta) * x[:-1]) / np.sqrt(theta * (2 - theta))
    assert stats.kstest(new.ravel(), stats.norm.cdf).pvalue > 1e-3
    flat = new.reshape(-1, 64 * 8)  # [39, 512]: correlations have a standard error of .16 each
    correlation = np.corrcoef(flat.T)[np.triu_indices(512, 1)]
    assert np.abs(correlation).max() < 0.9 and np.abs(correlation.mean()) < 0.01
    again = np.corrcoef(new[1:].ravel(), new[:-1].ravel())[0, 1]
    assert again == pytest.approx(0.0, abs=0.05)


def test_ornstein_uhlenbeck_forgets_all_at_once():
    """theta = 1: whatever was before does not matter."""
    one, other = (ornstein_uhlenbeck(KEY, x, 1.0) for x in (jnp.zeros((3, 2)), jnp.full((3, 2), 1e6)))
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one)) == 6
