"""A2C: advantages, loss and trust region by hand, and optima that are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from purerl import a2c
from purerl.core import policies
from purerl.core.distributions import Categorical, Gaussian
from purerl.core.returns import gae
from purerl.core.types import Transition
from tests import tiny
from tests.test_ppo_box import BANDIT
from tests.test_probes import ARRIVAL, CHOICE, OBS, PROBE, VALUES

KEY = jax.random.key(0)


def steps_of(reward: Any, terminated: Any, truncated: Any) -> Transition:
    """One env, `[T, 1]`."""
    columns = (jnp.asarray(x)[:, None] for x in (reward, terminated, truncated))
    nothing = jnp.zeros((len(reward), 1))
    reward, terminated, truncated = columns
    return Transition(nothing, nothing, reward, terminated, truncated, nothing)


def test_advantages_by_hand() -> None:
    """gamma = 1/2, lambda = 1/2, two steps ahead: A_t = delta_t + delta_{t+1} / 4.

    delta: 1 + 4/2 - 2 = 1; 2 - 1 = 1, since it terminated; 3 + 4/2 - 1 = 4; 0 + 4/2 - 2 = 0, cut by the clock; and
    8 + 4/2 - 2 = 8. The second and the fourth end episodes, and the rollout ends after the fifth.
    """
    steps = steps_of([1.0, 2.0, 3.0, 0.0, 8.0], [False, True, False, False, False], [False, False, False, True, False])
    value = jnp.array([2.0, 1.0, 1.0, 2.0, 2.0])[:, None]
    config = tiny.config(a2c, n_step=2, gamma=0.5, gae_lambda=0.5)
    advantage = a2c.advantages(steps, value, jnp.full((5, 1), 4.0), config)[:, 0]
    np.testing.assert_allclose(advantage, [1 + 1 / 4, 1, 4 + 0 / 4, 0, 8])
    np.testing.assert_allclose(
        a2c.advantages(steps, value, jnp.full((5, 1), 4.0), config.replace(n_step=1))[:, 0], [1, 1, 4, 0, 8]
    )


def test_n_step_advantages_are_returns() -> None:
    """lambda = 1: r_t + gamma r_{t+1} + gamma^2 r_{t+2} + gamma^3 V(s_{t+3}) - V(s_t), where V is that of one walk."""
    reward, value = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([7.0, 6.0, 5.0, 4.0, 3.0, 2.0])
    never = np.zeros(5, bool)
    config = tiny.config(a2c, n_step=3, gamma=0.5, gae_lambda=1.0)
    advantage = a2c.advantages(
        steps_of(reward, never, never), jnp.asarray(value[:5, None]), jnp.asarray(value[1:, None]), config
    )
    expected = [reward[t : t + 3] @ [1, 0.5, 0.25] + value[t + 3] / 8 - value[t] for t in range(3)]
    np.testing.assert_allclose(advantage[:3, 0], expected, rtol=1e-6)


def test_advantages_to_the_end_of_the_rollout_are_gae() -> None:
    rng = np.random.default_rng(0)
    reward, value, next_value = (jnp.asarray(rng.normal(size=(8, 3)), jnp.float32) for _ in range(3))
    ends = rng.random((2, 8, 3)) < 0.2
    steps = Transition(reward, reward, reward, *jnp.asarray(ends), reward)
    config = tiny.config(a2c, n_step=8, gamma=0.9, gae_lambda=0.8)
    np.testing.assert_allclose(
        a2c.advantages(steps, value, next_value, config), gae(steps, value, next_value, 0.9, 0.8), rtol=1e-5, atol=1e-6
    )


# ---------------------------------------------------------------------------------------------------------------------
# Loss


def given(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """The actor's parameters are its statistics, and V is as given."""
    monkeypatch.setattr(a2c, "distribution", lambda actor, obs, config: actor)
    monkeypatch.setattr(a2c, "critic", lambda weights, obs, config: jnp.asarray(value))


def batch_of(action: Any, advantage: Any, value_target: Any) -> a2c.Batch:
    return a2c.Batch(jnp.zeros((len(advantage), 1)), *(jnp.asarray(x) for x in (action, advantage, value_target)))


PI = Categorical(jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]])))


def test_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """-(2 log 3/4 - 3 log 1/2) / 2, entropies .5623351 and log 2, values 1 and 2 against 3 and 1: (4 + 1) / 2 / 2."""
    given(monkeypatch, [1.0, 2.0])
    config = tiny.config(a2c, vf_coef=0.5, ent_coef=0.1)
    batch = batch_of([0, 1], [2.0, -3.0], [3.0, 1.0])
    total, metrics = a2c.loss(policies.Params(PI, None), None, batch, config)
    policy_loss, entropy = -(2 * np.log(0.75) - 3 * np.log(0.5)) / 2, (0.5623351 + np.log(2)) / 2
    for name, value in {"policy_loss": policy_loss, "value_loss": 1.25, "entropy": entropy}.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert len(metrics) == 3
    np.testing.assert_allclose(total, policy_loss + 0.5 * 1.25 - 0.1 * entropy, rtol=1e-5)


def test_projection_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two states, delta = .1, no entropy bonus. The average took action 0 with 1/2 in both.

    In the logits, g = A (onehot(a) - pi) and k = pi - average. First: pi = (3/4, 1/4), a = 0 and A = 2 give
    g = (1/2, -1/2), k = (1/4, -1/4), so k.g = 1/4 exceeds .1 by .15, and k.k = 1/8: z = g - 1.2 k = (.2, -.2), with
    k.z = .1. Second: pi is the average, k = 0, and z = g = -3 (-1/2, 1/2).
    """
    config = tiny.config(a2c, delta=0.1, ent_coef=0.0)
    batch = batch_of([0, 1], [2.0, -3.0], [0.0, 0.0])
    average = Categorical(jnp.zeros((2, 2)))
    z, binds = a2c.projection(PI, average, batch, config)
    np.testing.assert_array_equal(binds, [1, 0])
    np.testing.assert_allclose(z.logits, [[0.2, -0.2], [1.5, -1.5]], rtol=1e-5, atol=1e-6)
    free, _ = a2c.projection(PI, average, batch, config.replace(delta=0.26))
    np.testing.assert_allclose(free.logits, [[0.5, -0.5], [1.5, -1.5]], rtol=1e-5)
    given(monkeypatch, [0.0, 0.0])
    params = policies.Params(PI, None)
    grads, metrics = jax.grad(a2c.loss, has_aux=True)(params, average, batch, config)
    np.testing.assert_allclose(grads.actor.logits, -z.logits / 2, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["average_kl"], (0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)) / 2, rtol=1e-5
    )
    np.testing.assert_allclose(metrics["projected"], 1 / 2)


def test_projection_of_gaussians_solves_its_problem() -> None:
    """z = argmin |g - z|^2 subject to k.z <= delta, against scipy's solver, in each of five states."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(1)
    pi, average = (Gaussian(*jnp.asarray(0.5 * rng.normal(size=(2, 5, 2)), jnp.float32)) for _ in range(2))
    batch = batch_of(rng.normal(size=(5, 2)), 3 * rng.normal(size=5), np.zeros(5))
    config = tiny.config(a2c, delta=0.2, ent_coef=0.05)

    def objective(pi: Any) -> Any:
        return (batch.advantage * pi.log_prob(batch.action) + 0.05 * pi.entropy()).sum()

    g, k = (np.concatenate(x, axis=1) for x in (jax.grad(objective)(pi), jax.grad(lambda pi: average.kl(pi).sum())(pi)))
    z = np.concatenate(a2c.projection(pi, average, batch, config)[0], axis=1)
    bound = (k * g).sum(1) > 0.2
    assert bound.any() and not bound.all()
    for i in range(5):
        limit = {"type": "ineq", "fun": lambda x, i=i: 0.2 - k[i] @ x}
        best = minimize(lambda x, i=i: np.square(x - g[i]).sum(), np.zeros(4), constraints=limit, tol=1e-12)
        np.testing.assert_allclose(z[i], best.x, rtol=2e-3, atol=2e-3)


def test_an_idle_trust_region_changes_nothing() -> None:
    """A network's gradient is the same to the last digits where no state is bound."""
    config = tiny.config(a2c, env=BANDIT, ent_coef=0.1, delta=1e9, trust_region=True)
    state = jax.jit(lambda: a2c.init(KEY, config))()
    batch = jax.jit(lambda state: a2c.collect(KEY, state, config))(state)[1]
    grad = jax.jit(jax.grad(lambda params, average: a2c.loss(params, average, batch, config)[0]))
    average = jax.tree.map(lambda x: x + 0.1, state.params.actor)
    plain, idle = (ravel_pytree(grad(state.params, x))[0] for x in (None, average))
    assert np.abs(plain).max() > 0.1
    np.testing.assert_allclose(idle, plain, rtol=1e-4, atol=1e-6)


def test_average_follows_the_policy() -> None:
    """A quarter of the average stays: average = average / 4 + 3/4 new, after one update and after the second."""
    config = tiny.config(a2c, trust_region=True, average_decay=0.25, anneal_learning_rate=False)
    update = jax.jit(lambda state: a2c.update(state, config)[0])
    first = jax.jit(lambda: a2c.init(KEY, config))()
    second = update(first)
    third = update(second)
    vectors = [ravel_pytree(state.params.actor)[0] for state in (first, second, third)]
    averages = [ravel_pytree(state.average)[0] for state in (first, second, third)]
    np.testing.assert_array_equal(averages[0], vectors[0])
    assert np.abs(vectors[1] - vectors[0]).max() > 1e-4
    for i in (1, 2):
        np.testing.assert_allclose(averages[i], averages[i - 1] / 4 + 3 / 4 * vectors[i], rtol=1e-4, atol=1e-7)


def test_rmsprop_by_number() -> None:
    """The first step: the rate times g / sqrt(.01 g^2 + eps), which is ten times the rate where g is large.

    With eps = 1e-5 it is g / sqrt(1e-5) where a norm of 1e-4 is left of (3, 4).
    """
    for max_grad_norm, expected in ((1e9, [-0.1, 0.1]), (1e-4, [-6e-7 / 1e-5**0.5, 8e-7 / 1e-5**0.5])):
        rule = a2c.optimizer(0.01, tiny.config(a2c, optimizer="rmsprop", max_grad_norm=max_grad_norm))
        params = jnp.zeros(2)
        step, _ = rule.update(jnp.array([3.0, -4.0]), rule.init(params), params)
        np.testing.assert_allclose(step, expected, rtol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Learning


@pytest.mark.parametrize("trust_region", [False, True])
def test_values_and_choice(trust_region: bool) -> None:
    config = a2c.Config(
        env=PROBE,
        total_timesteps=60_000,
        num_envs=16,
        actor_hidden_sizes=(32,),
        critic_hidden_sizes=(32,),
        gamma=0.5,
        learning_rate=1e-2,
        trust_region=trust_region,
    )
    state, _ = a2c.train(KEY, config)
    value = a2c.critic(state.params.critic, OBS, config)
    np.testing.assert_allclose(value, VALUES, atol=0.1)
    assert value[ARRIVAL] > value[CHOICE] - 0.1
    assert a2c.policy(state, config)(KEY, OBS[CHOICE]) == 1


@pytest.mark.parametrize("trust_region", [False, True])
def test_finds_the_optimum_and_its_deviation(trust_region: bool) -> None:
    """Near (1, 7) in the env's units, with deviations near 0.1414, all of half the bounds' width.

    With deviations s the mean pay is -s_1^2 - s_2^2, so the gradient asks each log s to fall by 2 s^2, and the bonus
    of 0.04 to rise by 0.04: they meet at s^2 = 0.02. The trust region ends there too.
    """
    config = a2c.Config(
        env=BANDIT,
        total_timesteps=64_000,
        num_envs=16,
        actor_hidden_sizes=(8,),
        critic_hidden_sizes=(8,),
        learning_rate=0.02,
        ent_coef=0.04,
        trust_region=trust_region,
    )
    state, metrics = a2c.train(KEY, config)
    error = (a2c.policy(state, config)(KEY, jnp.ones(1)) - jnp.array([1.0, 7.0])) / jnp.array([2.0, 5.0])
    assert np.abs(error).max() < 0.08
    np.testing.assert_allclose(np.exp(state.params.actor.log_std), 0.02**0.5, rtol=0.15)
    assert metrics["entropy"][-1] < metrics["entropy"][0]


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 4, "n_step": 5}, r"n_step = 5 must be at most num_steps = 4"),
        ({"delta": 0.0}, r"delta must be a finite number greater than 0, but is 0"),
        ({"delta": -1.0}, r"delta must be a finite number greater than 0, but is -1"),
        ({"optimizer": "sgd"}, r"optimizer must be one of adam, rmsprop, but is 'sgd'"),
        ({"total_timesteps": 39}, r"total_timesteps = 39 is less than the 40 env steps of the first update"),
    ],
)
def test_bad_input(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a2c.Config(**fields)
