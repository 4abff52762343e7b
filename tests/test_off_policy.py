"""DDPG, TD3, SAC and discrete SAC: targets and losses by hand, gradient steps in float64, noise, memory and optima."""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, special, stats

from purerl import ddpg, discrete_sac, envs, evaluate, sac, td3
from purerl.core import optimize
from purerl.core.distributions import Categorical
from purerl.core.types import Transition
from tests import tiny
from tests.toy_envs import Bandit, Chain, Levers, Regulator

KEY = jax.random.key(0)
CONTINUOUS = {"ddpg": ddpg, "td3": td3, "sac": sac}
ALL = {**CONTINUOUS, "discrete_sac": discrete_sac}
ONE = Bandit(envs.Box(-1.0, 1.0, (1,)), lambda action: action[0])
THREE = Bandit(envs.Discrete(3), lambda action: action.astype(jnp.float32))
LEVERS = Levers()
LOW, HIGH = np.array(LEVERS.low), np.array(LEVERS.high)


class Linear(nn.Module):
    """x W."""

    num_outputs: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x @ self.param("W", nn.initializers.zeros, (x.shape[-1], self.num_outputs))


class Quadratic(nn.Module):
    """w x + b + x' V x."""

    num_outputs: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        V = self.param("V", nn.initializers.normal(0.1), (x.shape[-1], x.shape[-1]))
        return nn.Dense(self.num_outputs)(x) + ((x @ V) * x).sum(-1, keepdims=True)


LINEAR: dict[str, Any] = {"actor_network": Linear, "critic_network": Linear}


def linear(W: Any) -> Any:
    """Weights of `Linear`, those of twins stacked."""
    return {"params": {"body": {"W": jnp.asarray(W, jnp.float32)}}}


def is_soft(algorithm: ModuleType) -> bool:
    return algorithm in (sac, discrete_sac)


def log_density(noise: Any, u: Any, log_std: Any) -> Any:
    """Of tanh(u), u = mean + std noise: log N(u) - log(1 - tanh(u)^2), of the last axis' dimensions together."""
    return (-(noise**2) / 2 - log_std - np.log(2 * np.pi) / 2 - np.log1p(-(np.tanh(u) ** 2))).sum(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Targets and losses by hand: nets are linear, so that Q = (s, a) W, mu = tanh(s W)

# From 1, 2, 3 to 2, 3, 4; the second step terminates and the third is cut by the clock.
STEPS = Transition(
    obs=jnp.array([[1.0], [2.0], [3.0]]),
    action=jnp.array([[0.5], [-1.0], [0.0]]),
    reward=jnp.array([1.0, 2.0, 3.0]),
    terminated=jnp.array([False, True, False]),
    truncated=jnp.array([False, False, True]),
    final_obs=jnp.array([[2.0], [3.0], [4.0]]),
)
DISCOUNTS = jnp.array([0.5, 0.5, 0.25])
TARGET = jnp.array([0.0, 1.0, 3.0])


def test_ddpg_target_by_hand() -> None:
    """mu(2) = tanh 1, mu(4) = tanh 2, Q = 10 s + 4 a; the discounts are 1/2 and 1/4."""
    config = tiny.config(ddpg, env=ONE, **LINEAR)
    target_params = ddpg.Params(linear([[0.5]]), linear([[10.0], [4.0]]))
    target = ddpg.td_target(target_params, STEPS, DISCOUNTS, config)
    np.testing.assert_allclose(target, [1 + (20 + 4 * np.tanh(1)) / 2, 2, 3 + (40 + 4 * np.tanh(2)) / 4], rtol=1e-6)


def test_td3_target_is_the_smaller_of_two() -> None:
    """Without smoothing. Q_1 = 8 s, Q_2 = 5 s + 9 a: 16 and 16.9 from 2, 32 and 28.7 from 4."""
    config = tiny.config(td3, env=ONE, target_noise=0.0, **LINEAR)
    target_params = td3.Params(linear([[0.5]]), linear([[[8.0], [0.0]], [[5.0], [9.0]]]))
    target = td3.td_target(KEY, target_params, STEPS, DISCOUNTS, config)
    np.testing.assert_allclose(target, [1 + 16 / 2, 2, 3 + (20 + 9 * np.tanh(2)) / 4], rtol=1e-6)


def test_td3_target_smooths_its_actions() -> None:
    """Q_1 = a and Q_2 = 2 a: each target says which action was in it, a' where it is positive and 2 a' elsewhere."""
    config = tiny.config(td3, env=ONE, target_noise=3.0, noise_clip=0.75, **LINEAR)
    num = 2000
    batch = jax.tree.map(lambda x: jnp.repeat(x[:1], num, 0), STEPS)
    target_params = td3.Params(linear([[0.25]]), linear([[[0.0], [1.0]], [[0.0], [2.0]]]))
    target = td3.td_target(KEY, target_params, batch, jnp.full(num, 0.5), config)
    q = 2 * (np.asarray(target) - 1)
    action = np.where(q > 0, q, q / 2)
    # tanh(1/2) = .46; noise beyond 3/4 either way takes it to 1 and -.29. N(0, 3) is beyond with probability .8.
    np.testing.assert_allclose([action.min(), action.max()], [np.tanh(0.5) - 0.75, 1.0], rtol=1e-5)
    assert np.mean(action < np.tanh(0.5) - 0.7499) == pytest.approx(stats.norm.sf(0.25), abs=0.05)


def test_td3_smoothing() -> None:
    """Noise of its own for each dimension and each action, N(0, .2^2) cut at .3; and the sum stays inside [-1, 1]."""
    config = tiny.config(td3, env=LEVERS, target_noise=0.2, noise_clip=0.3)
    smooth = np.asarray(td3.smoothed(KEY, jnp.zeros((4000, 2)), config))
    assert np.abs(smooth).max() == pytest.approx(0.3)
    assert np.mean(np.abs(smooth) > 0.2999) == pytest.approx(2 * stats.norm.sf(1.5), abs=0.02)
    inner = smooth[np.abs(smooth) < 0.2999]
    assert stats.kstest(inner, stats.truncnorm(-1.5, 1.5, scale=0.2).cdf).pvalue > 1e-3
    assert np.corrcoef(smooth.T)[0, 1] == pytest.approx(0.0, abs=0.08)
    for edge in (-1.0, 1.0):
        near = np.asarray(td3.smoothed(KEY, jnp.full((4000, 2), edge), config))
        assert np.abs(near).max() == 1.0 and np.abs(near).min() == pytest.approx(0.7)
        assert np.mean(near == edge) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("learn_alpha", [True, False], ids=["learned", "fixed"])
def test_sac_target_by_hand(learn_alpha: bool) -> None:
    """Noise 1; mean s / 2, log std -s / 4. Q_1 = 8 s, Q_2 = 5 s + 9 a. Alpha is 1/2 where learned, else 1/4."""
    config = tiny.config(sac, env=ONE, alpha=0.25, learn_alpha=learn_alpha, **LINEAR)
    params = sac.Params(linear([[0.5, -0.25]]), None, jnp.log(0.5))
    target_critic = linear([[[8.0], [0.0]], [[5.0], [9.0]]])
    target = sac.td_target(jnp.ones((3, 1)), params, target_critic, STEPS, DISCOUNTS, config)
    alpha = 0.5 if learn_alpha else 0.25
    u, log_std = np.array([1 + np.exp(-0.5), 2 + np.exp(-1)]), np.array([-0.5, -1.0])
    log_prob = -0.5 - log_std - np.log(2 * np.pi) / 2 - np.log(1 - np.tanh(u) ** 2)
    value = np.minimum([16, 32], [10 + 9 * np.tanh(u[0]), 20 + 9 * np.tanh(u[1])]) - alpha * log_prob
    np.testing.assert_allclose(target, [1 + value[0] / 2, 2, 3 + value[1] / 4], rtol=1e-5)


def test_soft_value_by_hand() -> None:
    """pi = (1/4, 3/4), Q_1 = (1, 2), Q_2 = (3, 0), so that the smaller are (1, 0); alpha = 2."""
    pi = Categorical(jnp.log(jnp.array([[1.0, 3.0]])))
    value = discrete_sac.soft_value(pi, jnp.array([[[1.0, 2.0]], [[3.0, 0.0]]]), jnp.float32(2.0))
    np.testing.assert_allclose(value, [0.25 - 2 * (0.25 * np.log(0.25) + 0.75 * np.log(0.75))], rtol=1e-6)


DISCRETE_STEPS = STEPS._replace(action=jnp.array([0, 2, 1]))


@pytest.mark.parametrize("learn_alpha", [True, False], ids=["learned", "fixed"])
def test_discrete_sac_target_by_hand(learn_alpha: bool) -> None:
    """Logits s (0, 1, 0) log 2: from 2 pi = (1, 4, 1) / 6, from 4 (1, 16, 1) / 18.

    Q_1 = s (1, 3, 6), Q_2 = s (4, 2, 5): the smaller are s (1, 2, 5).
    """
    config = tiny.config(discrete_sac, env=THREE, alpha=0.25, learn_alpha=learn_alpha, **LINEAR)
    params = discrete_sac.Params(linear([[0.0, np.log(2), 0.0]]), None, jnp.log(0.5))
    target_critic = linear([[[1.0, 3.0, 6.0]], [[4.0, 2.0, 5.0]]])
    target = discrete_sac.td_target(params, target_critic, DISCRETE_STEPS, DISCOUNTS, config)
    alpha = 0.5 if learn_alpha else 0.25
    value = [
        2 * (1 + 8 + 5) / 6 + alpha * stats.entropy([1, 4, 1]),
        4 * (1 + 32 + 5) / 18 + alpha * stats.entropy([1, 16, 1]),
    ]
    np.testing.assert_allclose(target, [1 + value[0] / 2, 2, 3 + value[1] / 4], rtol=1e-5)


def check_loss(result: Any, total: float, metrics: dict[str, float]) -> None:
    np.testing.assert_allclose(result[0], total, rtol=1e-6)
    assert result[1].keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(result[1][name], value, rtol=1e-6, err_msg=name)


def test_critic_losses_by_hand() -> None:
    """Q_1 = s + 2 a is 2, 0, 3 and misses (0, 1, 3) by 2, -1, 0; Q_2 = s is 1, 2, 3 and misses it by 1, 1, 0.

    Of discrete actions 0, 2, 1 in 1, 2, 3: Q_1 = s (2, 1, 0) is 2, 0, 3, and Q_2 = s all the same.
    """
    one, twins = linear([[1.0], [2.0]]), linear([[[1.0], [2.0]], [[1.0], [0.0]]])
    result = ddpg.critic_loss(one, TARGET, STEPS, tiny.config(ddpg, env=ONE, **LINEAR))
    check_loss(result, 5 / 6, {"critic_loss": 5 / 6, "q_value": 5 / 3, "td_error": 1.0})
    both = {"critic_loss": 5 / 6 + 2 / 6, "q_value": 11 / 6, "td_error": 5 / 6}
    for algorithm in (td3, sac):
        result = algorithm.critic_loss(twins, TARGET, STEPS, tiny.config(algorithm, env=ONE, **LINEAR))
        check_loss(result, 7 / 6, both)
    twins = linear([[[2.0, 1.0, 0.0]], [[1.0, 1.0, 1.0]]])
    config = tiny.config(discrete_sac, env=THREE, **LINEAR)
    check_loss(discrete_sac.critic_loss(twins, TARGET, DISCRETE_STEPS, config), 7 / 6, both)


def test_deterministic_actor_losses_by_hand() -> None:
    """mu = tanh(s / 2), Q = s + 2 a; TD3 asks the first critic, though the second says less."""
    expected = -(6 + 2 * np.tanh([0.5, 1.0, 1.5]).sum()) / 3
    config = tiny.config(ddpg, env=ONE, **LINEAR)
    loss = ddpg.actor_loss(linear([[0.5]]), linear([[1.0], [2.0]]), STEPS, config)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    config = tiny.config(td3, env=ONE, **LINEAR)
    loss = td3.actor_loss(linear([[0.5]]), linear([[[1.0], [2.0]], [[-9.0], [-9.0]]]), STEPS, config)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_sac_actor_loss_by_hand() -> None:
    """Noise -1; mean s / 2, log std -s / 4. The smaller of Q_1 = s + 2 a and Q_2 = 4 s - 10 a, alpha = 1/2."""
    config = tiny.config(sac, env=ONE, **LINEAR)
    s = np.array([1.0, 2.0, 3.0])
    u, log_std = s / 2 - np.exp(-s / 4), -s / 4
    log_prob = log_density(-np.ones((3, 1)), u[:, None], log_std[:, None])
    first, second = s + 2 * np.tanh(u), 4 * s - 10 * np.tanh(u)
    assert {*(first < second)} == {True, False}
    params = sac.Params(None, linear([[[1.0], [2.0]], [[4.0], [-10.0]]]), jnp.log(0.5))
    loss, log_probs = sac.actor_loss(linear([[0.5, -0.25]]), -jnp.ones((3, 1)), params, STEPS, config)
    np.testing.assert_allclose(log_probs, log_prob, rtol=1e-5)
    np.testing.assert_allclose(loss, (log_prob / 2 - np.minimum(first, second)).mean(), rtol=1e-5)


def test_discrete_sac_actor_loss_by_hand() -> None:
    """As in its target, from 1, 2 and 3: the smaller Q are s (1, 2, 5), logits s (0, 1, 0) log 2, alpha = 1/2."""
    config = tiny.config(discrete_sac, env=THREE, **LINEAR)
    params = discrete_sac.Params(None, linear([[[1.0, 3.0, 6.0]], [[4.0, 2.0, 5.0]]]), jnp.log(0.5))
    loss, entropy = discrete_sac.actor_loss(linear([[0.0, np.log(2), 0.0]]), params, DISCRETE_STEPS, config)
    pi = np.array([[1, 2, 1], [1, 4, 1], [1, 8, 1]])
    expected = stats.entropy(pi, axis=-1)
    value = (pi * [1, 2, 5]).sum(-1) / pi.sum(-1) * [1, 2, 3] + expected / 2
    np.testing.assert_allclose(entropy, expected, rtol=1e-5)
    np.testing.assert_allclose(loss, -value.mean(), rtol=1e-5)


def test_sac_alpha_loss_by_hand() -> None:
    """Two levers at -3/2 nats each aim at -3. alpha = 2: -2 (1 - 3) = 4 where the entropy is -1, and so is the slope.

    Down the slope alpha falls, since the policy is more random than it should be; it rises where the entropy is -4.
    """
    config = tiny.config(sac, env=LEVERS, target_entropy=-1.5)
    loss_and_slope = jax.value_and_grad(lambda *x: sac.alpha_loss(*x, config))
    np.testing.assert_allclose(loss_and_slope(jnp.log(2.0), jnp.array([-1.0, 0.0, 4.0])), [4, 4], rtol=1e-6)
    np.testing.assert_allclose(loss_and_slope(jnp.log(2.0), jnp.array([4.0])), [-2, -2], rtol=1e-6)


def test_discrete_sac_alpha_loss_by_hand() -> None:
    """Of three actions half of log 3 = 1.0986. alpha = 2 and a mean entropy of .6: 2 (.6 - log 3 / 2)."""
    config = tiny.config(discrete_sac, env=THREE, target_entropy=0.5)
    loss_and_slope = jax.value_and_grad(lambda *x: discrete_sac.alpha_loss(*x, config))
    expected = 2 * (0.6 - np.log(3) / 2)
    assert expected > 0
    np.testing.assert_allclose(loss_and_slope(jnp.log(2.0), jnp.array([0.2, 1.0])), [expected] * 2, rtol=1e-5)


def test_sac_clips_its_deviations() -> None:
    """Log deviations of -s and s: 2 at most and -20 at least, whatever the network says; means are as they are."""
    config = tiny.config(sac, env=LEVERS, **LINEAR)
    W = np.zeros((4, 4))
    W[0] = [3.0, -4.0, -1.0, 1.0]
    obs = jnp.eye(4)[:1] * jnp.array([[1.0], [2.5], [30.0]])
    pi = sac.distribution(linear(W), obs, config)
    np.testing.assert_allclose(pi.log_std, [[-1, 1], [-2.5, 2], [-20, 2]])
    np.testing.assert_allclose(pi.mean, [[3, -4], [7.5, -10], [90, -120]])


def test_policies_of_sac_begin_near_an_even_chance() -> None:
    """Means near 0 and deviations near 1, or all actions near equally likely, whatever is observed."""
    config = tiny.config(sac, env=LEVERS)
    pi = sac.distribution(jax.jit(sac.init)(KEY, config).params.actor, 3 * jax.random.normal(KEY, (50, 4)), config)
    assert 0 < jnp.abs(pi.mean).max() < 0.1 and 0 < jnp.abs(pi.log_std).max() < 0.1
    config = tiny.config(discrete_sac, env=THREE)
    weights = jax.jit(discrete_sac.init)(KEY, config).params.actor
    pi = discrete_sac.distribution(weights, jnp.linspace(-3, 3, 50)[:, None], config)
    np.testing.assert_allclose(jax.nn.softmax(pi.logits), 1 / 3, atol=0.03)


@pytest.mark.parametrize(("iterations", "steps"), [(1, 8), (8, 1)])
def test_each_gradient_step_of_sac_has_noise_of_its_own(
    iterations: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics are means over the steps of an update: the variance of numbers that are alike would be 0."""
    config = tiny.config(sac, iterations_per_update=iterations, gradient_steps=steps, total_timesteps=500)

    def spy(key: Any, noise: Any, state: Any, config: Any) -> Any:
        # Of the batch the first number alone, or it would be the others that vary.
        return state, {f"x{i}": noise[i, 0, 0] for i in range(2)} | {
            f"x{i} squared": noise[i, 0, 0] ** 2 for i in range(2)
        }

    monkeypatch.setattr(sac, "gradient_step", spy)
    _, metrics = jax.jit(lambda key: sac.update(sac.init(key, config), config))(KEY)
    assert metrics["x0"].shape == ()
    for i in range(2):
        assert metrics[f"x{i} squared"] - metrics[f"x{i}"] ** 2 > 0.1


@pytest.mark.parametrize("name", ALL)
def test_metrics_are_means_over_the_gradient_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = ALL[name]
    config = tiny.config(algorithm, iterations_per_update=3, gradient_steps=2, total_timesteps=500)

    def spy(*arguments: Any) -> Any:
        return arguments[-2], {"one": jnp.float32(1)}

    monkeypatch.setattr(algorithm, "gradient_step", spy)
    _, metrics = jax.jit(lambda key: algorithm.update(algorithm.init(key, config), config))(KEY)
    assert metrics["one"] == 1


# ---------------------------------------------------------------------------------------------------------------------
# The deterministic policy gradient

PLACES = np.array([[1.0, 0.2, 0.0, -0.3], [0.1, 0.9, 0.4, 0.0], [0.0, -0.5, 1.1, 0.2], [0.3, 0.0, -0.1, 0.8]])
BEST = np.array([[0.5, -0.2, 0.1, 0.3], [0.0, 0.4, -0.6, 0.2]]).T  # in s the best action is s BEST
CURVED = np.array([[2.0, 0.4], [0.4, 1.0]])


def q_around_the_best() -> Any:
    """Q = -(a - s BEST)' CURVED (a - s BEST), as weights of `Quadratic`."""
    error = np.concatenate([-BEST, np.eye(2)])  # a - s BEST = (s, a) error
    V = -error @ CURVED @ error.T
    rest = {"kernel": jnp.zeros((6, 1)), "bias": jnp.zeros(1)}
    return {"params": {"body": {"V": jnp.asarray(V, jnp.float32), "Dense_0": rest}}}


@pytest.mark.parametrize("name", ["ddpg", "td3"])
def test_deterministic_policy_gradient(name: str) -> None:
    """Against the chain rule and finite differences, both in float64; and 0 where each mu(s) is the best action.

    Four states in four dimensions, so there is an actor with mu(s) = tanh(s W) = s BEST in each of them.
    """
    algorithm = CONTINUOUS[name]
    config = tiny.config(algorithm, env=LEVERS, actor_network=Linear, critic_network=Quadratic)
    critic = q_around_the_best()
    if algorithm is td3:
        critic = jax.tree.map(lambda x: jnp.stack([x, 0 * x + 1]), critic)
    batch = STEPS._replace(obs=jnp.asarray(PLACES, jnp.float32))
    gradient = jax.jit(
        lambda W: jax.value_and_grad(lambda weights: algorithm.actor_loss(weights, critic, batch, config))(linear(W))
    )

    def loss(W: Any) -> float:
        error = np.tanh(PLACES @ W.reshape(4, 2)) - PLACES @ BEST
        return float(np.einsum("bi,ij,bj->b", error, CURVED, error).mean())

    W = np.random.default_rng(0).normal(size=(4, 2)) / 2
    value, grads = gradient(W)
    action = np.tanh(PLACES @ W)
    grad_of_q = -2 * (action - PLACES @ BEST) @ CURVED
    chain = -np.einsum("bs,ba->sa", PLACES, grad_of_q * (1 - action**2)) / 4
    np.testing.assert_allclose(value, loss(W), rtol=1e-5)
    np.testing.assert_allclose(chain.ravel(), slope(loss, W.ravel()), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(grads["params"]["body"]["W"], chain, rtol=1e-4, atol=1e-6)
    value, grads = gradient(np.linalg.solve(PLACES, np.arctanh(PLACES @ BEST)))
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    np.testing.assert_allclose(grads["params"]["body"]["W"], 0.0, atol=1e-6)


def slope(f: Any, w: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """The gradient of f at the vector w by central differences."""
    return np.array([(f(w + d) - f(w - d)) / (2 * h) for d in h * np.eye(len(w))])


# ---------------------------------------------------------------------------------------------------------------------
# Whole gradient steps, again in float64

RATES = {"learning_rate": 0.01, "critic_learning_rate": 0.02, "tau": 0.25}
SIZE = 6  # transitions of the batch
RANDOM = np.random.default_rng(1)
BATCH = Transition(
    obs=RANDOM.normal(size=(SIZE, 4)),
    action=RANDOM.uniform(-1, 1, (SIZE, 2)),
    reward=RANDOM.normal(size=SIZE),
    terminated=np.arange(SIZE) == 2,
    truncated=np.arange(SIZE) == 4,
    final_obs=RANDOM.normal(size=(SIZE, 4)),
)
DISCOUNT = RANDOM.uniform(0.5, 1, SIZE)
AHEAD, HERE = RANDOM.normal(size=(2, SIZE, 2))  # noise of the target's actions, and of the actor's


class Weights(NamedTuple):
    """All vectors, those of critics `[1 or 2, num]`."""

    actor: np.ndarray
    critic: np.ndarray
    target_actor: np.ndarray
    target_critic: np.ndarray
    log_alpha: np.ndarray


class Adam:
    """Kingma and Ba (2015), algorithm 1, in float64."""

    def __init__(self, rate: float):
        self.rate, self.time, self.mean, self.square = rate, 0, 0.0, 0.0

    def step(self, w: np.ndarray, grad: np.ndarray) -> np.ndarray:
        self.time += 1
        self.mean = 0.9 * self.mean + 0.1 * grad
        self.square = 0.999 * self.square + 0.001 * grad**2
        mean, square = self.mean / (1 - 0.9**self.time), self.square / (1 - 0.999**self.time)
        return w - self.rate * mean / (np.sqrt(square) + 1e-8)


class Continuous:
    """What DDPG, TD3 and SAC compute, of quadratic critics and a linear actor."""

    def __init__(self, algorithm: ModuleType):
        self.algorithm, self.outputs = algorithm, 4 if algorithm is sac else 2
        self.num_critics = 1 if algorithm is ddpg else 2
        self.actor_size, self.critic_size = 4 * self.outputs, 6 + 36 + 1

    def act(self, actor: Any, obs: Any, noise: Any) -> Any:
        """Actions, and their log probabilities where they have any."""
        out = obs @ actor.reshape(4, self.outputs)
        if self.outputs == 2:
            return np.tanh(out), 0.0
        log_std = np.clip(out[:, 2:], -20, 2)
        u = out[:, :2] + np.exp(log_std) * noise
        return np.tanh(u), log_density(noise, u, log_std)

    def q(self, critic: Any, obs: Any, action: Any) -> Any:
        """`[critics, B]`."""
        x = np.concatenate([obs, action], -1)
        return np.stack([x @ w[:6] + np.einsum("bi,ij,bj->b", x, w[6:42].reshape(6, 6), x) + w[42] for w in critic])

    def value_ahead(self, w: Weights, alpha: float) -> Any:
        action, log_prob = self.act(w.actor if self.outputs == 4 else w.target_actor, BATCH.final_obs, AHEAD)
        if self.algorithm is td3:
            action = np.clip(action + np.clip(0.3 * AHEAD, -0.25, 0.25), -1, 1)
        return self.q(w.target_critic, BATCH.final_obs, action).min(0) - alpha * log_prob

    def q_here(self, critic: Any) -> Any:
        return self.q(critic, BATCH.obs, BATCH.action)

    def actor_loss(self, actor: Any, critic: Any, alpha: float) -> Any:
        action, log_prob = self.act(actor, BATCH.obs, HERE)
        q = self.q(critic if self.outputs == 4 else critic[:1], BATCH.obs, action).min(0)
        return (alpha * log_prob - q).mean()

    def entropy(self, actor: Any) -> Any:
        return -np.mean(self.act(actor, BATCH.obs, HERE)[1])

    target_entropy = -1.5 * 2

    def jax(self, actor: Any, critic: Any) -> Any:
        critic = np.asarray(critic if self.num_critics == 2 else critic[0], np.float32)
        rest = {"kernel": critic[..., :6, None], "bias": critic[..., 42:]}
        body = {"V": critic[..., 6:42].reshape(*critic.shape[:-1], 6, 6), "Dense_0": rest}
        return linear(actor.reshape(4, self.outputs)), jax.tree.map(jnp.asarray, {"params": {"body": body}})

    def numpy(self, actor: Any, critic: Any) -> Any:
        body = critic["params"]["body"]
        parts = (body["Dense_0"]["kernel"], body["V"], body["Dense_0"]["bias"])
        vectors = np.concatenate([np.asarray(x).reshape(self.num_critics, -1) for x in parts], -1)
        return np.asarray(actor["params"]["body"]["W"]).ravel(), vectors


class Discrete:
    """What discrete SAC computes of three actions, of linear critics and a linear actor, in observations of one number.

    The observations are the first of each four of the batch, and 1 where the env has no more to tell.
    """

    algorithm, num_critics, actor_size, critic_size = discrete_sac, 2, 3, 3
    action = np.arange(SIZE) % 3

    def pi(self, actor: Any, obs: Any) -> Any:
        return special.softmax(obs[:, :1] * actor, -1)

    def value(self, actor: Any, critic: Any, obs: Any, alpha: float) -> Any:
        pi = self.pi(actor, obs)
        q = np.stack([obs[:, :1] * w for w in critic]).min(0)
        return (pi * (q - alpha * np.log(pi))).sum(-1)

    def value_ahead(self, w: Weights, alpha: float) -> Any:
        return self.value(w.actor, w.target_critic, BATCH.final_obs, alpha)

    def q_here(self, critic: Any) -> Any:
        return np.stack([BATCH.obs[:, 0] * w[self.action] for w in critic])

    def actor_loss(self, actor: Any, critic: Any, alpha: float) -> Any:
        return -self.value(actor, critic, BATCH.obs, alpha).mean()

    def entropy(self, actor: Any) -> Any:
        return stats.entropy(self.pi(actor, BATCH.obs), axis=-1).mean()

    target_entropy = 0.5 * np.log(3)

    def jax(self, actor: Any, critic: Any) -> Any:
        return linear(actor[None]), linear(critic[:, None])

    def numpy(self, actor: Any, critic: Any) -> Any:
        return np.asarray(actor["params"]["body"]["W"])[0], np.asarray(critic["params"]["body"]["W"])[:, 0]


def steps_in_float64(maths: Any, w: Weights, config: Any, num: int) -> list[tuple[Weights, dict[str, float]]]:
    """Weights and metrics after each of num gradient steps on BATCH."""
    soft, delay = is_soft(maths.algorithm), getattr(config, "policy_delay", 1)
    actor_adam, critic_adam = Adam(config.learning_rate), Adam(config.critic_learning_rate)
    alpha_adam, seen = Adam(config.alpha_learning_rate if soft else 0.0), []
    for i in range(num):
        alpha = 0.0 if not soft else np.exp(w.log_alpha) if config.learn_alpha else config.alpha
        y = BATCH.reward + DISCOUNT * np.where(BATCH.terminated, 0, maths.value_ahead(w, alpha))
        loss = lambda x: (np.square(maths.q_here(x.reshape(w.critic.shape)) - y) / 2).mean(-1).sum()  # noqa: B023, E731
        q, grad = maths.q_here(w.critic), slope(loss, w.critic.ravel())
        metrics = {
            "critic_loss": loss(w.critic),
            "q_value": q.mean(),
            "td_error": abs(q - y).mean(),
        }
        critic = critic_adam.step(w.critic, grad.reshape(w.critic.shape))
        metrics["critic_grad_norm"] = np.linalg.norm(grad)
        if soft:
            metrics |= {"entropy": maths.entropy(w.actor), "alpha": alpha}
        after = w._replace(critic=critic)
        if (i + 1) % delay == 0:
            loss = lambda x: maths.actor_loss(x, critic, alpha)  # noqa: B023, E731
            grad = slope(loss, w.actor)
            after = after._replace(
                actor=(actor := actor_adam.step(w.actor, grad)),
                target_actor=config.tau * actor + (1 - config.tau) * w.target_actor,
                target_critic=config.tau * critic + (1 - config.tau) * w.target_critic,
            )
            metrics |= {"actor_loss": delay * loss(w.actor), "actor_grad_norm": delay * np.linalg.norm(grad)}
        else:
            metrics |= {"actor_loss": 0.0, "actor_grad_norm": 0.0}
        if soft and config.learn_alpha:
            grad = np.exp(w.log_alpha) * (maths.entropy(w.actor) - maths.target_entropy)
            after = after._replace(log_alpha=alpha_adam.step(w.log_alpha, grad))
        seen.append((after, metrics))
        w = after
    return seen


SMOOTHING = {"target_noise": 0.3, "noise_clip": 0.25}
STEPPED = {
    "ddpg": (Continuous(ddpg), {}),
    "td3": (Continuous(td3), {"policy_delay": 2, **SMOOTHING}),
    "td3 with a delay of 3": (Continuous(td3), {"policy_delay": 3, "iterations_per_update": 3, **SMOOTHING}),
    "sac": (Continuous(sac), {"alpha_learning_rate": 0.03, "target_entropy": -1.5}),
    "sac with a fixed alpha": (Continuous(sac), {"learn_alpha": False, "alpha": 0.3}),
    "discrete_sac": (Discrete(), {"alpha_learning_rate": 0.03, "target_entropy": 0.5}),
    "discrete_sac with a fixed alpha": (Discrete(), {"learn_alpha": False, "alpha": 0.3}),
}


@pytest.mark.parametrize("case", STEPPED)
def test_gradient_steps_in_float64(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five in a row from weights, and targets of their own: every weight and every metric, of one batch."""
    maths, fields = STEPPED[case]
    algorithm, fields = maths.algorithm, {**RATES, **fields}
    random = np.random.default_rng(2)
    draw = lambda *shape: random.normal(size=shape) / 2  # noqa: E731
    critics = (maths.num_critics, maths.critic_size)
    w = Weights(draw(maths.actor_size), draw(*critics), draw(maths.actor_size), draw(*critics), np.log(0.4))
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype == float else x.dtype), BATCH)
    nets, env = {"actor_network": Linear, "critic_network": Quadratic}, LEVERS
    if algorithm is discrete_sac:
        nets, env = LINEAR, THREE
        batch = batch._replace(obs=batch.obs[:, :1], final_obs=batch.final_obs[:, :1], action=jnp.asarray(maths.action))
    config = tiny.config(algorithm, env=env, **nets, **fields)
    monkeypatch.setattr(algorithm, "draw_batch", lambda *_: (batch, jnp.asarray(DISCOUNT, jnp.float32)))
    state = state_of(maths, w)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray(AHEAD, jnp.float32))  # of TD3's smoothing
    noise = jnp.stack([jnp.asarray(x, jnp.float32) for x in (AHEAD, HERE)])

    @jax.jit
    def step(state: Any, index: Any) -> Any:
        given = {td3: (index,), sac: (noise,)}.get(algorithm, ())
        return algorithm.gradient_step(KEY, *given, state, config)

    for i, (expected, metrics) in enumerate(steps_in_float64(maths, w, config, 5)):
        before, (state, seen) = state, step(state, jnp.int32(i))
        for name, x in weights_of(maths, state).items():
            np.testing.assert_allclose(x, getattr(expected, name), rtol=2e-3, atol=2e-5, err_msg=f"{name} {i}")
        if is_soft(algorithm):
            np.testing.assert_allclose(state.params.log_alpha, expected.log_alpha, rtol=1e-4)
        assert seen.keys() == metrics.keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(seen[name], value, rtol=2e-3, atol=1e-5, err_msg=f"{name} {i}")
        if algorithm is td3 and (i + 1) % config.policy_delay:
            tiny.assert_same_bits(state.params.actor, before.params.actor)
            tiny.assert_same_bits(state.target_params, before.target_params)
            tiny.assert_same_bits(state.opt_state.actor, before.opt_state.actor)


def state_of(maths: Any, w: Weights) -> Any:
    """A state with these weights, nothing learned yet, and without what a gradient step on a given batch leaves."""
    algorithm = maths.algorithm
    actor, critic = maths.jax(w.actor, w.critic)
    target_actor, target_critic = maths.jax(w.target_actor, w.target_critic)
    if is_soft(algorithm):
        params, targets = algorithm.Params(actor, critic, jnp.float32(w.log_alpha)), {"target_critic": target_critic}
    else:
        params = algorithm.Params(actor, critic)
        targets = {"target_params": algorithm.Params(target_actor, target_critic)}
    fresh = algorithm.Params(*(optimize.plain_adam(1.0).init(x) for x in params))
    unasked = dict.fromkeys(algorithm.State._fields)
    return algorithm.State(**{**unasked, "params": params, "opt_state": fresh, "updates": jnp.int32(0), **targets})


def weights_of(maths: Any, state: Any) -> dict[str, np.ndarray]:
    """The vectors of a state, named as in `Weights`; SAC has no target of its actor."""
    actor, critic = maths.numpy(state.params.actor, state.params.critic)
    if is_soft(maths.algorithm):
        _, target_critic = maths.numpy(state.params.actor, state.target_critic)
        return {"actor": actor, "critic": critic, "target_critic": target_critic}
    target_actor, target_critic = maths.numpy(state.target_params.actor, state.target_params.critic)
    return {"actor": actor, "critic": critic, "target_actor": target_actor, "target_critic": target_critic}


def primitives(jaxpr: Any) -> list[str]:
    """Names of the operations of a program, those inside loops and branches included."""
    names = []
    for equation in jaxpr.eqns:
        names.append(equation.primitive.name)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            names += primitives(getattr(inner, "jaxpr", inner)) if hasattr(inner, "eqns") else []
    return names


def test_td3_waits_in_a_branch_of_all_seeds() -> None:
    """Over many seeds the branch stays one: a select would take the actor's step every time and throw most away.

    The actor's step is the only branch there is, so with the other algorithms there is none.
    """
    for algorithm, branches in ((td3, 1), (ddpg, 0)):
        config = tiny.config(algorithm, env=LEVERS)
        states = jax.eval_shape(jax.vmap(lambda key: algorithm.init(key, config)), jax.random.split(KEY, 3))  # noqa: B023
        update = jax.vmap(lambda state: algorithm.update(state, config))  # noqa: B023
        assert primitives(jax.make_jaxpr(update)(states).jaxpr).count("cond") == branches


@pytest.mark.parametrize(("gradient_steps", "iterations"), [(2, 6), (1, 12)])
def test_td3_counts_the_steps_of_a_whole_update(gradient_steps: int, iterations: int) -> None:
    """Of its twelve gradient steps in whatever iterations every fourth moves the actor: three of two updates' six."""
    phases = {"gradient_steps": gradient_steps, "iterations_per_update": iterations, "num_steps": 1}
    config = tiny.config(td3, env=LEVERS, policy_delay=4, total_timesteps=1000, **phases)
    update = jax.jit(lambda state: td3.update(state, config)[0])
    state = update(update(jax.jit(lambda: td3.init(KEY, config))()))
    counts = [optax.tree.get(opt_state, "count") for opt_state in state.opt_state]
    np.testing.assert_array_equal(counts, [6, 24])


# ---------------------------------------------------------------------------------------------------------------------
# Exploration


def acting_config(algorithm: ModuleType, **fields: Any) -> Any:
    return tiny.config(algorithm, env=LEVERS, **LINEAR, **fields)


@functools.cache
def fresh(name: str) -> Any:
    """A state at the start, which the fields about acting do not change."""
    algorithm = CONTINUOUS[name]
    return jax.jit(lambda: algorithm.init(KEY, acting_config(algorithm)))()


def with_actor(state: Any, W: Any) -> Any:
    return state._replace(params=state.params._replace(actor=linear(W)))


def actor_that_says(algorithm: ModuleType, *means: float, std: float = 1.0) -> np.ndarray:
    """W of a linear actor which in the observation (1, 0, 0, 0) gives tanh of these means, in SAC with this std."""
    W = np.zeros((4, 4 if algorithm is sac else 2))
    W[0, :2], W[0, 2:] = means, np.log(std)
    return W


FIRST = jnp.array([1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("name", CONTINUOUS)
def test_exploration_noise(name: str) -> None:
    """Of each dimension and each env its own, around mu = (-1/2, 0), on the scale [-1, 1] whatever the env's bounds.

    Deviations are .2 for DDPG and TD3; SAC's are its own, here e^-1 before the tanh.
    """
    algorithm, num = CONTINUOUS[name], 4000
    config = acting_config(algorithm, **({} if algorithm is sac else {"exploration_noise": 0.2}))
    W = actor_that_says(algorithm, np.arctanh(-0.5), 0.0, std=np.exp(-1))
    state = with_actor(fresh(name), W)
    obs = jnp.broadcast_to(FIRST, (num, 4))
    action, noise = jax.jit(lambda: algorithm.explore(KEY, obs, jnp.full((num, 2), 1e3), state, config))()
    action, noise = np.asarray(action), np.asarray(noise)
    assert all(stats.kstest(x, stats.norm.cdf).pvalue > 1e-3 for x in noise.T)
    assert np.corrcoef(noise.T)[0, 1] == pytest.approx(0.0, abs=0.08)
    mean = np.array([-0.5, 0.0])
    moved = np.tanh(np.arctanh(mean) + noise / np.e) if algorithm is sac else np.clip(mean + 0.2 * noise, -1, 1)
    np.testing.assert_allclose(action, moved, rtol=1e-4, atol=1e-5)
    if algorithm is not sac:
        assert (action.min(0) == [-1, action[:, 1].min()]).all()  # N(0, .2) reaches -1 from -1/2 in .6 % of all steps


@pytest.mark.parametrize("name", CONTINUOUS)
def test_policies_in_the_env_s_units(name: str) -> None:
    """The deterministic one is mu and remembers nothing; the exploring one remembers its noise, which begins at 0."""
    algorithm = CONTINUOUS[name]
    fields = {} if algorithm is sac else {"exploration_noise": 0.25}
    config = acting_config(algorithm, noise_theta=0.19, **fields)
    state = with_actor(fresh(name), actor_that_says(algorithm, 0.3, -1.2, std=0.25))
    mean = np.array([0.3, -1.2])
    greedy, exploring = (algorithm.policy(state, config, deterministic=x) for x in (True, False))
    units = LOW + (np.tanh(mean) + 1) * (HIGH - LOW) / 2
    np.testing.assert_allclose(greedy(KEY, FIRST), units, rtol=1e-5)
    assert greedy.memory == () and greedy.act(KEY, FIRST, ())[1] == ()
    np.testing.assert_array_equal(exploring.memory, [0, 0])
    memory = jnp.array([1e4, -1e4])
    action, after = exploring.act(KEY, FIRST, memory)
    np.testing.assert_allclose(after, [0.81e4, -0.81e4], atol=6)
    np.testing.assert_array_equal(action, [1, -1])
    action, after = jax.vmap(exploring.act, (0, None, None))(jax.random.split(KEY, 2000), FIRST, jnp.zeros(2))
    new = np.sqrt(0.19 * 1.81)
    after = np.asarray(after)
    assert all(stats.kstest(x / new, stats.norm.cdf).pvalue > 1e-3 for x in after.T)
    expected = np.tanh(mean + 0.25 * after) if algorithm is sac else np.clip(np.tanh(mean) + 0.25 * after, -1, 1)
    np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-5)


def remembered(state: Any, config: Any, num: int) -> Transition:
    """The first rows of the memory."""
    return discrete_sac.replay._unpack(state.replay.rows[:num], envs.bind(config).transition)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_noise_goes_on(name: str) -> None:
    """Within an update, into the next one and where episodes end: here every second step, by the clock.

    It starts at 0, is carried from 1000 and -1000 here, and keeps nine tenths of itself at each of 4 x 2 steps, twice.
    With actions as small multiples of the noise the memory shows all of it.
    """
    algorithm = CONTINUOUS[name]
    fields = {} if algorithm is sac else {"exploration_noise": 1e-4}
    config = tiny.config(algorithm, env=Levers(limit=2), noise_theta=0.1, learning_rate=0.0, **LINEAR, **fields)
    state = jax.jit(lambda: algorithm.init(KEY, config))()
    np.testing.assert_array_equal(state.noise, np.zeros((2, 2)))
    start = np.array([[1000.0, -1000.0], [-2000.0, 3000.0]])
    # mu = 0 in every state; SAC's deviation is 1, and tanh hides where it is far from 0
    state, update = (
        state._replace(noise=jnp.asarray(start, jnp.float32)),
        jax.jit(lambda x: algorithm.update(x, config)),
    )
    for i in (1, 2):
        state, _ = update(state)
        np.testing.assert_allclose(state.noise, start * 0.9 ** (8 * i), atol=8)
    if algorithm is not sac:
        action = np.asarray(remembered(state, config, 16 + 2 * 16).action)[16:].reshape(16, 2, 2)
        expected = 1e-4 * start * 0.9 ** np.arange(1, 17)[:, None, None]
        np.testing.assert_allclose(action, expected, atol=1e-4 * 8)
        new = action[1:] - 0.9 * action[:-1]  # 1e-4 sqrt(.19) xi, with a rounding error of some 3e-8
        assert stats.kstest(new.ravel() / 1e-4 / np.sqrt(0.19), stats.norm.cdf).pvalue > 1e-3
        assert len(np.unique(np.round(new / 1e-4, 2))) > 0.8 * new.size


@pytest.mark.parametrize("name", CONTINUOUS)
def test_acts_by_normalized_obs_in_units(name: str) -> None:
    """mu = tanh of how many deviations the label is off its mean; the env is put where mu says, in its units.

    The next observation repeats the levers, so the memory shows what the env was given.
    """
    algorithm = CONTINUOUS[name]
    quiet = {"learning_rate": 0.0, **({} if algorithm is sac else {"exploration_noise": 0.0})}
    config = acting_config(algorithm, normalize_obs=True, **quiet)
    state = jax.jit(lambda: algorithm.init(KEY, config))()
    W = np.zeros((4, 4 if algorithm is sac else 2))
    W[3, :2] = [1.0, -1.0]
    W[2, 2:] = -20.0  # of SAC's log deviations, where the time is normalised to 50
    seen = state.obs_stats._replace(mean=jnp.array([0, 0, -50.0, 0.5]), var=jnp.array([1, 1, 25.0, 0.25]), num=1e6)
    state = with_actor(state, W)._replace(obs_stats=seen)
    steps = remembered(jax.jit(lambda x: algorithm.update(x, config)[0])(state), config, 32)
    label, action = np.asarray(steps.obs)[16:, 3], np.asarray(steps.action)[16:]
    np.testing.assert_allclose(action, np.tanh(2 * (label - 0.5))[:, None] * [1, -1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(steps.final_obs[16:, :2], LOW + (action + 1) * (HIGH - LOW) / 2, rtol=1e-5, atol=1e-5)
    act = algorithm.policy(state, config)
    expected = np.tanh([0.5, -0.5])  # of the label 3/4, half a deviation from .5
    units = LOW + (expected + 1) * (HIGH - LOW) / 2
    np.testing.assert_allclose(act(KEY, jnp.array([0.0, 0.0, 0.0, 0.75])), units, rtol=1e-5)


def test_discrete_sac_draws_from_its_policy() -> None:
    """pi = (1, 2, 7) / 10 in the memory, after a uniform prefill, and in the exploring policy; its mode is action 2."""
    config = tiny.config(
        discrete_sac,
        env=THREE,
        num_envs=8,
        num_steps=32,
        buffer_size=4096,
        learning_starts=1024,
        total_timesteps=4096,
        learning_rate=0.0,
        **LINEAR,
    )
    state = jax.jit(lambda: discrete_sac.init(KEY, config))()
    state = with_actor(state, np.log([[1.0, 2.0, 7.0]]))
    memory = remembered(jax.jit(lambda x: discrete_sac.update(x, config)[0])(state), config, 2048)
    uniform, drawn = (np.bincount(x, minlength=3) for x in (memory.action[:1024], memory.action[1024:]))
    assert stats.chisquare(uniform).pvalue > 1e-3
    assert stats.chisquare(drawn, 1024 * np.array([0.1, 0.2, 0.7])).pvalue > 1e-3
    np.testing.assert_array_equal(memory.reward, memory.action)
    obs, exploring = jnp.ones(1), discrete_sac.policy(state, config, deterministic=False)
    drawn = np.bincount(jax.vmap(exploring, (0, None))(jax.random.split(KEY, 1000), obs), minlength=3)
    assert stats.chisquare(drawn, [100, 200, 700]).pvalue > 1e-3
    assert discrete_sac.policy(state, config)(KEY, obs) == 2


def test_discrete_sac_acts_by_normalized_obs() -> None:
    """The mean cell is 3/2, and it walks on where it is left of that: from 0 and 1. Raw, cell 1 would hold it."""
    config = tiny.config(discrete_sac, env=Chain(), normalize_obs=True, learning_rate=0.0, **LINEAR)
    state = jax.jit(lambda: discrete_sac.init(KEY, config))()
    W = np.zeros((3, 2))
    W[0] = [1e3, -1e3]
    seen = state.obs_stats._replace(mean=jnp.array([1.5, 0.0, 0.0]), var=jnp.ones(3), num=1e6)
    state = with_actor(state, W)._replace(obs_stats=seen)
    steps = remembered(jax.jit(lambda state: discrete_sac.update(state, config)[0])(state), config, 32)
    cell = np.asarray(steps.obs)[16:, 0]
    assert {*cell} >= {0, 1, 2}
    np.testing.assert_array_equal(steps.action[16:], cell < 1.5)
    for deterministic in (True, False):
        assert discrete_sac.policy(state, config, deterministic=deterministic)(KEY, jnp.array([1.0, 0.0, 0.0])) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Memory and statistics


@pytest.mark.parametrize("name", CONTINUOUS)
def test_starts_with_uniform_actions(name: str) -> None:
    """learning_starts = 801 in whole steps of 2 envs; an actor that says (1, 1) is not asked.

    The levers tell whether the env was given the action in its units, and where they lead whether it is the observation
    before the reset.
    """
    algorithm = CONTINUOUS[name]
    config = tiny.config(algorithm, env=LEVERS, learning_starts=801, buffer_size=900, total_timesteps=1000)
    state = jax.jit(lambda: algorithm.init(KEY, config))()
    assert config.prefill_steps == 802 and state.replay.size == 802 and state.updates == 0
    steps = remembered(state, config, 802)
    action, obs, after = (np.asarray(x) for x in (steps.action, steps.obs, steps.final_obs))
    assert all(stats.kstest(x, stats.uniform(-1, 2).cdf).pvalue > 1e-3 for x in action.T)
    correlation = np.corrcoef(action[:, 0], action[:, 1])[0, 1]
    assert abs(correlation) < 0.15 and abs(np.corrcoef(action[::2, 0], action[1::2, 0])[0, 1]) < 0.2
    np.testing.assert_allclose(after[:, :2], LOW + (action + 1) * (HIGH - LOW) / 2, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after[:, 2], obs[:, 2] + 1)
    np.testing.assert_array_equal(after[:, 3], obs[:, 3])
    np.testing.assert_array_equal(steps.reward, after[:, 0])
    np.testing.assert_array_equal(steps.terminated, after[:, 1] >= 9)
    np.testing.assert_array_equal(steps.truncated, after[:, 2] == 5)
    assert steps.terminated.any() and steps.truncated.any()
    tiny.assert_same_bits(targets_of(state), targets_of(state, own=True))


def targets_of(state: Any, *, own: bool = False) -> Any:
    """The target networks, or what they are a running average of."""
    if hasattr(state, "target_critic"):
        return state.params.critic if own else state.target_critic
    return state.params if own else state.target_params


@pytest.mark.thorough
@pytest.mark.parametrize("name", ALL)
def test_statistics_of_what_was_seen(name: str) -> None:
    """Of every observation acted on, the prefill's too; the memory keeps them raw, and batches are normalised.

    At the start, twins have weights of their own.
    """
    algorithm = ALL[name]
    env = Chain() if algorithm is discrete_sac else LEVERS
    config = tiny.config(algorithm, env=env, normalize_obs=True, gamma=0.5)
    before = jax.jit(lambda: algorithm.init(KEY, config))()
    if algorithm is not ddpg:
        kernel = before.params.critic["params"]["body"]["Dense_0"]["kernel"]
        assert kernel.shape[0] == 2 and np.abs(kernel[0] - kernel[1]).max() > 0.1
    after = jax.jit(lambda state: algorithm.update(state, config)[0])(before)
    for state, num in ((before, 16), (after, 32)):
        obs = np.asarray(remembered(state, config, num).obs, np.float64)
        assert state.replay.size == num and state.obs_stats.num == num
        assert obs[:, -2].max() >= 1 and (obs[:, -2] == np.round(obs[:, -2])).all()
        np.testing.assert_allclose(state.obs_stats.mean, obs.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.obs_stats.var, obs.var(0), rtol=1e-3, atol=1e-5)
    batch, discount = algorithm.draw_batch(KEY, after, config)
    raw, _ = algorithm.draw_batch(KEY, after._replace(obs_stats=None), config)
    mean, std = np.asarray(after.obs_stats.mean), np.sqrt(np.asarray(after.obs_stats.var) + 1e-8)
    for field in ("obs", "final_obs"):
        np.testing.assert_allclose(
            getattr(batch, field), (np.asarray(getattr(raw, field)) - mean) / std, rtol=1e-3, atol=1e-4, err_msg=field
        )
    assert (batch.final_obs != batch.obs).any()
    np.testing.assert_array_equal(discount, 0.5)


@pytest.mark.parametrize("name", ALL)
def test_learns_from_steps_in_a_row(name: str) -> None:
    """Two steps of one env, discounted by gamma^2 where the first was no end: of 256 draws from 400 transitions."""
    algorithm = ALL[name]
    env = Chain() if algorithm is discrete_sac else LEVERS
    fields = {"batch_size": 256, "learning_starts": 400, "buffer_size": 450, "total_timesteps": 1000}
    config = tiny.config(algorithm, env=env, n_step=2, gamma=0.5, **fields)
    state = jax.jit(lambda: algorithm.init(KEY, config))()
    batch, discount = jax.jit(lambda: algorithm.draw_batch(KEY, state, config))()
    rows = remembered(state, config, 400)
    (time, label), (end, same) = np.asarray(batch.obs).T[-2:], np.asarray(batch.final_obs).T[-2:]
    np.testing.assert_array_equal(label, same)
    np.testing.assert_array_equal(discount, 0.5 ** (end - time))
    assert set(end - time) == {1.0, 2.0}
    reward = {(float(x[-1]), float(x[-2])): float(r) for x, r in zip(rows.obs, rows.reward, strict=True)}
    first, second = (
        np.array([reward.get((float(x), float(t)), 0.0) for x, t in zip(label, time + k, strict=True)]) for k in (0, 1)
    )
    np.testing.assert_allclose(batch.reward, first + np.where(end - time == 2, second / 2, 0.0), rtol=1e-5, atol=1e-6)
    assert batch.terminated.any() and batch.truncated.any()


@pytest.mark.parametrize("name", ALL)
def test_critics_alone_are_normalized(name: str) -> None:
    """layer_norm adds its scale and bias to each layer of a critic and nothing to the actor."""
    algorithm = ALL[name]
    sizes = {"actor_hidden_sizes": (8, 8), "critic_hidden_sizes": (8, 8)}
    env = {} if algorithm is discrete_sac else {"env": LEVERS}
    counts = {}
    for on in (False, True):
        config = tiny.config(algorithm, layer_norm=on, **env, **sizes)
        params = jax.eval_shape(lambda: algorithm.init(KEY, config).params)  # noqa: B023
        for part in ("actor", "critic"):
            counts[part, on] = sum("LayerNorm" in name for name in getattr(params, part)["params"]["body"])
    assert counts == {("actor", False): 0, ("critic", False): 0, ("actor", True): 0, ("critic", True): 2}


@pytest.mark.parametrize(("name", "learn_alpha"), [("sac", True), ("sac", False), ("discrete_sac", True)])
def test_alpha_starts_from_the_config(name: str, learn_alpha: bool) -> None:
    algorithm = ALL[name]
    env = THREE if algorithm is discrete_sac else ONE
    config = tiny.config(algorithm, env=env, alpha=0.3, learn_alpha=learn_alpha)
    params = jax.jit(lambda: algorithm.init(KEY, config).params)()
    np.testing.assert_allclose(algorithm.alpha(params, config), 0.3, rtol=1e-6)
    np.testing.assert_allclose(params.log_alpha, np.log(0.3), rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Optima that are known

BANDIT: dict[str, Any] = {
    "total_timesteps": 2000,
    "learning_starts": 500,
    "batch_size": 64,
    "iterations_per_update": 100,
    "actor_hidden_sizes": (16,),
    "critic_hidden_sizes": (32, 32),
}
PEAKED = Bandit(envs.Box(-1.0, 1.0, (1,)), lambda action: -jnp.square(action[0] - 0.2))


def moments(alpha: float) -> tuple[float, float, float]:
    """Mean, standard deviation and differential entropy of the density exp(r / alpha) over [-1, 1] of `PEAKED`."""

    def weight(a: float) -> float:
        return np.exp(-((a - 0.2) ** 2) / alpha)

    def expected(f: Any) -> float:
        return integrate.quad(lambda a: f(a) * weight(a), -1, 1, points=[0.2])[0] / total

    total = integrate.quad(weight, -1, 1, points=[0.2])[0]
    mean = expected(lambda a: a)
    return mean, expected(lambda a: (a - mean) ** 2) ** 0.5, np.log(total) + expected(lambda a: (a - 0.2) ** 2 / alpha)


FIXED_OR_LEARNED = [
    pytest.param(False, id="fixed", marks=pytest.mark.thorough),
    pytest.param(True, id="learned"),
]


@pytest.mark.parametrize("learn_alpha", FIXED_OR_LEARNED)
def test_sac_becomes_the_boltzmann_density(learn_alpha: bool) -> None:
    """alpha = .02: close to a normal of mean .2 and deviation .1. Learned from 1/20 it ends where the entropy fits."""
    mean, std, entropy = moments(0.02)
    assert (mean, std) == pytest.approx((0.2, 0.1), abs=1e-3)
    fields = {"alpha": 0.05, "target_entropy": entropy, "learn_alpha": True} if learn_alpha else {"alpha": 0.02}
    config = sac.Config(env=PEAKED, **{**BANDIT, "learn_alpha": False, "alpha_learning_rate": 3e-3, **fields})
    states = jax.vmap(sac.train, (0, None))(jax.random.split(KEY, 3), config).state
    pi = jax.vmap(lambda weights: sac.distribution(weights, jnp.ones((4000, 1)), config))(states.params.actor)
    action, log_prob = pi.at(jax.random.normal(KEY, pi.mean.shape))
    assert np.mean(action.mean((1, 2))) == pytest.approx(mean, abs=0.02)
    assert np.mean(action.std((1, 2))) == pytest.approx(std, rel=0.1)
    assert np.mean(-log_prob) == pytest.approx(entropy, abs=0.1)
    alpha = np.exp(states.params.log_alpha) if learn_alpha else config.alpha
    assert np.mean(alpha) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("learn_alpha", FIXED_OR_LEARNED)
def test_discrete_sac_becomes_the_boltzmann_distribution(learn_alpha: bool) -> None:
    """Rewards 0, 1, 2 and alpha = 1.25: pi ~ exp(r / alpha), whose part of log 3 the learned alpha starts from 1/2."""
    probability = special.softmax(np.arange(3) / 1.25)
    fields = {"alpha": 1.25, "learn_alpha": False}
    if learn_alpha:
        fields = {"alpha": 0.5, "target_entropy": stats.entropy(probability) / np.log(3)}
    config = discrete_sac.Config(env=THREE, **BANDIT, **fields, learning_rate=3e-3, alpha_learning_rate=3e-3)
    states = jax.vmap(discrete_sac.train, (0, None))(jax.random.split(KEY, 3), config).state
    pi = jax.vmap(lambda weights: discrete_sac.distribution(weights, jnp.ones(1), config))(states.params.actor)
    np.testing.assert_allclose(jax.nn.softmax(pi.logits), np.tile(probability, (3, 1)), atol=0.03)
    alpha = np.exp(states.params.log_alpha) if learn_alpha else config.alpha
    np.testing.assert_allclose(alpha, 1.25, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"), [("ddpg", {}), ("td3", {"target_noise": 0.1}), ("sac", {"target_entropy": -2.0})]
)
def test_regulator(name: str, fields: dict[str, Any]) -> None:
    """Within 5 % of the least cost, by the Riccati equation, on average over 121 places to start from.

    Doing nothing costs twice as much. The clock cuts episodes after 5 steps.
    """
    algorithm, gamma = CONTINUOUS[name], 0.9
    regulator = Regulator()
    config = algorithm.Config(
        env=regulator,
        gamma=gamma,
        total_timesteps=6000,
        learning_starts=500,
        buffer_size=2000,
        batch_size=64,
        actor_hidden_sizes=(32,),
        activation="tanh",
        critic_network=Quadratic,
        learning_rate=3e-3,
        critic_learning_rate=2e-2,
        tau=0.05,
        anneal_learning_rate=True,
        **fields,
    )
    states = jax.vmap(algorithm.train, (0, None))(jax.random.split(KEY, 3), config).state
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, 11)] * 2), -1).reshape(-1, 2)
    A, B, Q, R = regulator.A, regulator.B, regulator.Q, regulator.R

    def cost(act: Any) -> float:
        """Mean over the places, discounted."""
        x, total = places, np.zeros(len(places))
        for t in range(100):
            u = np.asarray(act(x), np.float64)
            total += gamma**t * (np.einsum("bi,ij,bj->b", x, Q, x) + np.einsum("bi,ij,bj->b", u, R, u))
            x = x @ A.T + u @ B.T
        return total.mean()

    P, K = regulator.solution(gamma)
    least = np.einsum("bi,ij,bj->b", places, P, places).mean()
    assert cost(lambda x: -x @ K.T) == pytest.approx(least, rel=1e-4)
    assert cost(lambda x: 0 * x[:, :1]) > 2 * least
    for i in range(3):
        policy = algorithm.policy(jax.tree.map(lambda x: x[i], states), config)  # noqa: B023
        act = jax.jit(lambda x: jax.vmap(policy, (None, 0))(KEY, x))  # noqa: B023
        assert cost(lambda x: act(jnp.asarray(x, jnp.float32))) < 1.05 * least  # noqa: B023


@pytest.mark.slow
def test_sac_goes_fast() -> None:
    """Brax's own test of learning, on an env without physics: episodes of 128 steps, 2^15 steps, more than 139."""
    env = envs.Brax(envs.make("brax/fast").env, episode_length=128)
    config = sac.Config(env=env, total_timesteps=2**15, num_envs=4, gradient_steps=2)
    state, _ = sac.train(KEY, config)
    assert evaluate(sac, state, config, KEY, num_episodes=16).returns.mean() > 139
