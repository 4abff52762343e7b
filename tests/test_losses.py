"""The equations of each algorithm: hand-computed numbers, and gradients by finite differences."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from purerl import dqn, ppo, pqn
from purerl.core.distributions import Categorical
from purerl.core.policies import Params
from purerl.core.returns import n_step
from purerl.core.types import Transition
from tests import tiny


def batch_of_ppo(config: Any, size: int = 6) -> ppo.Batch:
    rng = np.random.default_rng(0)
    floats = [jnp.asarray(rng.normal(size=size), jnp.float32) for _ in range(4)]
    obs, action = rng.normal(size=(size, 4)), rng.integers(0, 2, size)
    log_prob, pi = jnp.log(0.5) + 0.02 * floats[0], Categorical(jnp.zeros((size, 2)))
    return ppo.Batch(jnp.asarray(obs, jnp.float32), jnp.asarray(action), pi, log_prob, *floats[1:])


def test_ppo_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples; the policy now takes action 0 with 3/4, and took it with 1/2: ratios 3/2 and 1/2.

    Advantages 1 and -1 are standardised already. clip_eps = 0.2 gives
      min(1.5 * 1, 1.2 * 1) = 1.2 and min(0.5 * -1, 0.8 * -1) = -0.8, so the policy loss is -(1.2 - 0.8) / 2 = -0.2.
    Values 2 and 0 against targets 1 and 0.5; they were 1.5 and 0, so clipping lets the first move to 1.7 only:
      max((2 - 1)^2, (1.7 - 1)^2) = 1 and max(0.25, 0.25) = 0.25, so the value loss is (1 + 0.25) / 2 / 2 = 0.3125.
    Entropy of (3/4, 1/4): -(0.75 log 0.75 + 0.25 log 0.25) = 0.5623351446.
    """
    monkeypatch.setattr(
        ppo, "distribution", lambda params, obs, config: Categorical(jnp.log(jnp.array([[0.75, 0.25]] * 2)))
    )
    monkeypatch.setattr(ppo, "critic", lambda params, obs, config: jnp.array([2.0, 0.0]))
    batch = ppo.Batch(
        obs=jnp.zeros((2, 4)),
        action=jnp.array([0, 1]),
        pi=Categorical(jnp.zeros((2, 2))),
        log_prob=jnp.log(jnp.array([0.5, 0.5])),
        value=jnp.array([1.5, 0.0]),
        advantage=jnp.array([1.0, -1.0]),
        value_target=jnp.array([1.0, 0.5]),
    )
    config = tiny.config(ppo, vf_coef=0.5, ent_coef=0.01, clip_value=True)
    total, metrics = ppo.loss(Params(None, None), batch, 1.0, 0.2, config)
    np.testing.assert_allclose(metrics["policy_loss"], -0.2, rtol=1e-5)
    np.testing.assert_allclose(metrics["value_loss"], 0.3125, rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], 0.5623351, rtol=1e-5)
    np.testing.assert_allclose(total, -0.2 + 0.5 * 0.3125 - 0.01 * 0.5623351, rtol=1e-5)
    np.testing.assert_allclose(metrics["clip_fraction"], 1.0)
    # E[r - 1 - log r] = ((0.5 - log 1.5) + (-0.5 - log 0.5)) / 2
    np.testing.assert_allclose(metrics["approx_kl"], (0.5 - np.log(1.5) - 0.5 - np.log(0.5)) / 2, rtol=1e-5)


@pytest.mark.parametrize("surrogate", ["clip", "kl", "adaptive_kl", "none"])
def test_ppo_clipped_value_counts_the_worse(surrogate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value moved from 0 to 1, its target; clipped to 0.2 it is 0.8 short, and that error counts: 0.64 / 2."""
    monkeypatch.setattr(ppo, "distribution", lambda params, obs, config: Categorical(jnp.zeros((1, 2))))
    monkeypatch.setattr(ppo, "critic", lambda params, obs, config: jnp.array([1.0]))
    one = jnp.ones(1)
    batch = ppo.Batch(
        jnp.zeros((1, 4)), jnp.array([0]), Categorical(jnp.zeros((1, 2))), jnp.log(one / 2), 0 * one, 0 * one, one
    )
    # 0.2 is what is left of clip_eps, and the only one that counts.
    configs = [tiny.config(ppo, clip_value=clip, clip_eps=0.5, surrogate=surrogate) for clip in (True, False)]
    losses = [ppo.loss(Params(None, None), batch, 1.0, 0.2, config)[1]["value_loss"] for config in configs]
    np.testing.assert_allclose(losses, [0.32, 0.0], rtol=1e-5)


@pytest.mark.parametrize(
    "double_q, expected", [(False, [1 + 0.9 * 7, 2.0, 3 + 0.9 * 7]), (True, [1 + 0.9 * 4, 2.0, 3 + 0.9 * 4])]
)
def test_dqn_target_by_hand(double_q: bool, expected: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of final_obs the target network says Q = (4, 7), the current one (6, 5), gamma = 0.9.

    Plain: max (4, 7) = 7. Double: the current network prefers action 0, which the target network values 4.
    The second transition terminated, so nothing follows. The third is a time limit.
    """
    monkeypatch.setattr(dqn, "q_values", lambda params, obs, config: jnp.tile(params, (obs.shape[0], 1)))
    batch = Transition(
        obs=jnp.zeros((3, 4)),
        action=jnp.zeros(3, jnp.int32),
        reward=jnp.array([1.0, 2.0, 3.0]),
        terminated=jnp.array([False, True, False]),
        truncated=jnp.array([False, False, True]),
        final_obs=jnp.zeros((3, 4)),
    )
    config = tiny.config(dqn, gamma=0.9, double_q=double_q)
    target = dqn.td_target(jnp.array([[6.0, 5.0]]), jnp.array([[4.0, 7.0]]), batch, config.gamma, config)
    np.testing.assert_allclose(target, expected, rtol=1e-6)


@pytest.mark.parametrize("huber, expected", [(False, (0.125 + 4.5) / 2), (True, (0.125 + 2.5) / 2)])
def test_dqn_loss_by_hand(huber: bool, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q is 0.5 and 3, errors are -0.5 and 3: squared, 0.125 and 4.5; Huber, 0.125 and 3 - 0.5 = 2.5."""
    monkeypatch.setattr(dqn, "q_values", lambda params, obs, config: jnp.array([[0.5, 9.0], [9.0, 3.0]]))
    obs, never = jnp.zeros((2, 4)), jnp.zeros(2, bool)
    batch = Transition(obs, jnp.array([0, 1]), jnp.zeros(2), never, never, obs)
    total, metrics = dqn.loss(None, jnp.array([1.0, 0.0]), batch, tiny.config(dqn, huber=huber))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert (float(metrics["td_error"]), float(metrics["q_value"])) == (1.75, 1.75)


def test_n_step_return_by_hand() -> None:
    """Three rewards 1, 2, 4, gamma = 0.5: whole, 1 + 1 + 1 = 3 and what follows counts 1/8.

    Cut after the second step: 1 + 1 and 1/4, whether terminated or truncated. Terminated after the first: 1 and 1/2.
    The observations are numbered, so that final_obs tells which step was the last.
    """
    nothing = jnp.zeros((3, 4), bool)
    step = jnp.arange(3)[:, None, None] * jnp.ones((3, 4, 1))
    sequence = Transition(
        obs=step,
        action=jnp.arange(12).reshape(3, 4),
        reward=jnp.tile(jnp.array([[1.0], [2.0], [4.0]]), (1, 4)),
        terminated=nothing.at[1, 1].set(True).at[0, 3].set(True).at[2, 3].set(True),
        truncated=nothing.at[1, 2].set(True),
        final_obs=step + 1,
    )
    batch, discount = n_step(sequence, 0.5)
    np.testing.assert_array_equal(batch.reward, [3, 2, 2, 1])
    np.testing.assert_array_equal(discount, [1 / 8, 1 / 4, 1 / 4, 1 / 2])
    np.testing.assert_array_equal(batch.final_obs[:, 0], [3, 2, 2, 1])
    np.testing.assert_array_equal(batch.terminated, [False, True, False, True])
    np.testing.assert_array_equal(batch.obs[:, 0], [0, 0, 0, 0])
    np.testing.assert_array_equal(batch.action, [0, 1, 2, 3])


def test_one_step_return_is_the_reward() -> None:
    obs, never = jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), bool)
    sequence = Transition(obs, jnp.array([[0, 1]]), jnp.array([[3.0, 4.0]]), never, never, obs + 1)
    batch, discount = n_step(sequence, 0.9)
    tiny.assert_same_bits(batch, jax.tree.map(lambda x: x[0], sequence))
    np.testing.assert_allclose(discount, [0.9, 0.9])


def test_dueling_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs (5, 1, 3): value 5, advantages 1 and 3 with mean 2, so Q = (4, 6)."""

    class Fixed:
        def apply(self, params: Any, obs: Any) -> Any:
            return jnp.array([[5.0, 1.0, 3.0]])

    monkeypatch.setattr(dqn, "network", lambda config: Fixed())
    np.testing.assert_allclose(dqn.q_values(None, jnp.zeros((1, 4)), tiny.config(dqn, dueling=True)), [[4, 6]])


def test_epsilon_greedy_frequencies() -> None:
    """With epsilon 0.3 and three actions the greedy one has 0.7 + 0.1, the others 0.1 each; 20,000 draws, 5 sigma."""
    q = jnp.tile(jnp.array([0.0, 2.0, 1.0]), (20_000, 1))
    action = dqn.epsilon_greedy(jax.random.key(0), q, 0.3)
    frequencies = np.bincount(action, minlength=3) / action.size
    np.testing.assert_allclose(frequencies, [0.1, 0.8, 0.1], atol=5 * np.sqrt(0.16 / 20_000))


def test_ties_are_broken_at_random_where_asked() -> None:
    """The first of two best actions, or both alike, whatever part of the draws epsilon takes."""
    q = jnp.tile(jnp.array([1.0, 2.0, -1.0, 2.0]), (20_000, 1))
    for epsilon in (0.0, 0.4):
        action = dqn.epsilon_greedy(jax.random.key(0), q, epsilon, random_ties=True)
        other, best = epsilon / 4, epsilon / 4 + (1 - epsilon) / 2
        frequencies = np.bincount(action, minlength=4) / action.size
        np.testing.assert_allclose(frequencies, [other, best, other, best], atol=5 * np.sqrt(0.25 / 20_000))
    assert (dqn.epsilon_greedy(jax.random.key(0), q, 0.0) == 1).all()
    alone = jnp.tile(jnp.array([1.0, 3.0, 2.0]), (100, 1))
    assert (dqn.epsilon_greedy(jax.random.key(0), alone, 0.0, random_ties=True) == 1).all()


def test_target_network_stands_still_between_copies() -> None:
    """Period 3: two gradient steps leave the target alone, the third copies the parameters."""
    config = tiny.config(dqn, target_update_period=3)
    state = jax.jit(dqn.init)(jax.random.key(0), config)
    step = jax.jit(dqn.gradient_step)
    states = [state]
    for i in range(3):
        states.append(step(jax.random.key(i), states[-1], config)[0])
    tiny.assert_same_bits(states[2].target_params, state.params)
    tiny.assert_same_bits(states[3].target_params, states[3].params)


@pytest.mark.parametrize(
    "algorithm", [pytest.param(dqn, id="dqn", marks=pytest.mark.thorough), pytest.param(pqn, id="pqn")]
)
def test_learns_from_the_pixels_of_pong(algorithm: ModuleType) -> None:
    """Boards of 30 x 40 x 3 bits pass a convolution, and a few updates change it and every other layer."""
    config = tiny.config(algorithm, env="Pong-misc")
    before = algorithm.init(jax.random.key(0), config).params
    state, metrics = algorithm.train(jax.random.key(0), config)
    assert before["params"]["body"]["Conv"]["kernel"].shape == (9 * 3, 16)
    for old, new in zip(tiny.arrays(before), tiny.arrays(state.params), strict=True):
        assert np.isfinite(new).all() and (old != new).any()
    assert np.isfinite(metrics["loss"]).all()


def ppo_loss(config: Any) -> tuple[Any, Any]:
    params = ppo.init(jax.random.key(0), config).params
    return lambda params: ppo.loss(params, batch_of_ppo(config), 1.0, 0.2, config)[0], params


def dqn_loss(config: Any) -> tuple[Any, Any]:
    obs, action = jnp.full((5, 4), 0.5), jnp.array([0, 1, 1, 0, 1])
    batch = Transition(obs, action, jnp.ones(5), jnp.zeros(5, bool), jnp.zeros(5, bool), -obs)
    params = dqn.init(jax.random.key(0), config).params
    return lambda params: dqn.loss(params, jnp.arange(5.0), batch, config)[0], params


def pqn_loss(config: Any) -> tuple[Any, Any]:
    batch = pqn.Batch(jnp.linspace(-1, 1, 20).reshape(5, 4), jnp.array([0, 1, 1, 0, 1]), jnp.arange(5.0))
    params = pqn.init(jax.random.key(0), config).params
    return lambda params: pqn.loss(params, batch, config)[0], params


def test_pqn_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q = (1, 3) and (2, 5), actions 1 and 0, targets 1 and 3: errors 2 and -1, so (4 + 1) / 4 and a mean of 1.5."""
    monkeypatch.setattr(pqn, "q_values", lambda *_: jnp.array([[1.0, 3.0], [2.0, 5.0]]))
    batch = pqn.Batch(jnp.zeros((2, 4)), jnp.array([1, 0]), jnp.array([1.0, 3.0]))
    total, metrics = pqn.loss(None, batch, tiny.config(pqn))
    assert (float(total), float(metrics["td_error"]), float(metrics["q_value"])) == (1.25, 1.5, 2.5)


@pytest.mark.parametrize(
    "algorithm, make", [(ppo, ppo_loss), (dqn, dqn_loss), (pqn, pqn_loss)], ids=["ppo", "dqn", "pqn"]
)
def test_gradients_by_finite_differences(algorithm: ModuleType, make: Any) -> None:
    loss, params = make(tiny.config(algorithm, activation="tanh"))
    check_grads(jax.jit(loss), (params,), order=1, modes=["rev"], eps=1e-2, atol=1e-2, rtol=1e-2)
