"""PPO where actions are numbers: the loss by hand, the way into the env's units, and an optimum that is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs, ppo
from purerl.core import policies
from purerl.core.distributions import Gaussian
from tests import tiny

KEY = jax.random.key(0)
LOG_2PI = np.log(2 * np.pi)


class Bandit:
    """One step that pays - sum_d ((a_d - best_d) / half_d)^2, where half is half the width of the bounds."""

    default_params = {"best": jnp.array([1.0, 7.0])}  # noqa: RUF012
    low, high = jnp.array([-2.0, 0.0]), jnp.array([2.0, 10.0])

    def observation_space(self, params):
        return envs.Box(0.0, 1.0, (1,))

    def action_space(self, params):
        return envs.Box(self.low, self.high, (2,))

    def reset(self, key, params):
        return jnp.ones(1), jnp.int32(0)

    def step(self, key, state, action, params):
        error = (action - params["best"]) / (self.high - self.low) * 2
        return jnp.ones(1), state, -jnp.square(error).sum(), state == 0, state > 0


BANDIT = Bandit()


class Always:
    """A network with the same outputs for every observation."""

    def __init__(self, *outputs: float):
        self.outputs = jnp.array(outputs)

    def apply(self, params: Any, obs: jax.Array) -> jax.Array:
        return jnp.broadcast_to(self.outputs, (*obs.shape[:-1], len(self.outputs)))


def test_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean (0, 1), standard deviations (1/2, 4); the actions (1/2, 5) and (0, 1) lie one deviation off, and on it.

    log p = -(1 + 1) / 2 - c and -c, where c = log 1/2 + log 4 + log 2 pi = log 2 + log 2 pi. They were taken with
    densities by which the ratios are 3/2 and 1/2. Advantages 5 and 1 are standardised to 1 and -1, so clip_eps = 0.2
    gives -(min(1.5, 1.2) + min(-0.5, -0.8)) / 2 = -0.2, E[r - 1 - log r] is what it is for any policy, and the entropy
    of two normals is log 1/2 + log 4 + 1 + log 2 pi. The critic says 2, and 1 and 4 were its targets: (1 + 4) / 2 / 2.
    """
    monkeypatch.setattr(policies, "actor_network", lambda config: Always(0.0, 1.0))
    monkeypatch.setattr(policies, "critic_network", lambda config: Always(2.0))
    c = np.log(2) + LOG_2PI
    pi = Gaussian(jnp.zeros((2, 2)), jnp.zeros((2, 2)))  # which only the KL would ask
    batch = ppo.Batch(
        obs=jnp.ones((2, 1)),
        action=jnp.array([[0.5, 5.0], [0.0, 1.0]]),
        pi=pi,
        log_prob=jnp.array([-1 - c - np.log(1.5), -c - np.log(0.5)], jnp.float32),
        value=jnp.zeros(2),
        advantage=jnp.array([5.0, 1.0]),
        value_target=jnp.array([1.0, 4.0]),
    )
    config = tiny.config(ppo, env=BANDIT, vf_coef=0.5, ent_coef=0.1, clip_value=False)
    params = policies.Params(policies.Actor(None, jnp.log(jnp.array([0.5, 4.0]))), None)
    total, metrics = ppo.loss(params, batch, 1.0, 0.2, config)
    expected = {
        "policy_loss": -0.2,
        "value_loss": 1.25,
        "entropy": np.log(2) + 1 + LOG_2PI,
        "approx_kl": (0.5 - np.log(1.5) - 0.5 - np.log(0.5)) / 2,
        "clip_fraction": 1.0,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(total, -0.2 + 0.5 * 1.25 - 0.1 * expected["entropy"], rtol=1e-5)


def test_actions_are_scaled_on_their_way_into_the_env() -> None:
    """The batch keeps what was drawn, on [-1, 1] and beyond; the env is paid by what it clips and scales that to.

    A user's own loop gets the env's units. On the unit scale the best action is (1/2, 2/5).
    """
    config = tiny.config(ppo, env=BANDIT, gamma=0.0, gae_lambda=0.0)
    state = ppo.init(KEY, config)
    _, batch, _ = jax.jit(lambda state: ppo.collect(KEY, state, config))(state)
    reward = -np.square(np.clip(np.asarray(batch.action), -1, 1) - [0.5, 0.4]).sum(-1)
    np.testing.assert_allclose(batch.value_target, reward, rtol=1e-4, atol=1e-5)
    assert (np.abs(batch.action) > 1).any()
    np.testing.assert_array_equal(state.params.actor.log_std, [0, 0])
    pi = ppo.distribution(state.params.actor, jnp.ones(1), config)
    assert np.abs(pi.mode()).max() < 0.1  # the head starts small
    given = ppo.policy(state, config)(KEY, jnp.ones(1))
    np.testing.assert_allclose(
        given, np.asarray(pi.mode()) * np.array([2.0, 5.0]) + np.array([0.0, 5.0]), rtol=1e-5, atol=1e-6
    )


class NoisyBandit(Bandit):
    """The same, paid with a noise of deviation 1/2."""

    def step(self, key, state, action, params):
        obs, state, reward, terminated, truncated = super().step(key, state, action, params)
        return obs, state, reward + jax.random.normal(key) / 2, terminated, truncated


@pytest.mark.parametrize("surrogate", ["clip", "kl", "adaptive_kl"])
def test_finds_the_optimum_and_its_deviation(surrogate: str) -> None:
    """Near (1, 7) in the env's units, with a deviation within a fifth of 0.1585, all of half the bounds' width.

    With deviations s in both dimensions, the advantage -s^2 (z_1^2 + z_2^2 - 2) + noise / 2 has the variance
    4 s^4 + 1/4. Standardised by it, its score asks log s to fall by 2 s^2 / (4 s^4 + 1/4)^(1/2), and the bonus of 0.1
    to rise by 0.1: they meet at s^2 = 0.025 / (1 - 0.01)^(1/2). Neither clip nor penalty moves that point.
    """
    config = ppo.Config(
        env=NoisyBandit(),
        surrogate=surrogate,
        total_timesteps=16_000,
        num_envs=16,
        num_steps=10,
        num_epochs=4,
        num_minibatches=2,
        actor_hidden_sizes=(8,),
        critic_hidden_sizes=(8,),
        learning_rate=0.02,
        ent_coef=0.1,
    )
    state, metrics = ppo.train(KEY, config)
    assert config.num_updates == 100
    error = (ppo.policy(state, config)(KEY, jnp.ones(1)) - jnp.array([1.0, 7.0])) / jnp.array([2.0, 5.0])
    assert np.abs(error).max() < 0.08
    np.testing.assert_allclose(np.exp(state.params.actor.log_std), 0.1585, rtol=0.2)
    draws = jax.vmap(ppo.policy(state, config, deterministic=False), (0, None))(jax.random.split(KEY, 500), jnp.ones(1))
    np.testing.assert_allclose(np.asarray(draws).std(0), 0.1585 * np.array([2.0, 5.0]), rtol=0.25)
    assert metrics["entropy"][-1] < metrics["entropy"][0]


@pytest.mark.parametrize(
    ("num_envs", "num_updates"), [(32, 8), pytest.param(4096, 3, marks=pytest.mark.slow)], ids=["32 envs", "4096 envs"]
)
def test_many_envs_with_the_learning_rate_that_follows_the_kl(num_envs: int, num_updates: int) -> None:
    """The shape of Rudin et al. (2021): 24 steps in each env, five epochs of four minibatches, from 1e-5 upwards.

    Twenty times an update the rate may rise by half: it has left its floor after the first, and by the end the policy
    moves as far as it may. At 1e-5 it would move by a hundredth of that.
    """
    config = ppo.Config(
        env="Pendulum-v1",
        num_envs=num_envs,
        num_steps=24,
        num_epochs=5,
        num_minibatches=4,
        total_timesteps=num_envs * 24 * num_updates,
        gamma=0.9,
        ent_coef=0.0,
        learning_rate=1e-5,
        anneal_learning_rate=False,
        adapt_learning_rate=True,
        normalize_obs=True,
    )
    state, metrics = ppo.train(KEY, config)
    assert config.num_updates == num_updates and state.env_state.obs.shape == (num_envs, 3)
    assert all(np.isfinite(x).all() for name, x in metrics.items() if not name.startswith("episode"))
    assert (metrics["learning_rate"] > 0.999e-5).all() and (metrics["learning_rate"] < 1.001e-2).all()
    assert metrics["learning_rate"][0] > 2e-5 and metrics["kl"][-1] > 10 * metrics["kl"][0]
    assert 1e-3 < metrics["kl"][-1] < 4e-2
