"""Learning on an environment whose values are known in closed form.

Three situations in one env, told apart by the observation, at discount 1/2:

- choice: action 1 pays 1, action 0 pays nothing; then the episode terminates.    Q = action, V = 1
- delay, then arrival: nothing, then 1, then the episode terminates.              V = 1/2, then 1
- endless: 1 a step for ever, but the clock truncates the episode after 3 steps.  V = 1 + 1/2 + 1/4 + ... = 2

A learner that takes a time limit for an end values the endless situation between 1 and 1.75.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import ddpg, discrete_sac, dqn, linear_q, ppo, pqn, sac, td3, trpo
from purerl.envs import Box, Discrete

CHOICE, DELAY, ARRIVAL, ENDLESS = range(4)
OBS = jnp.eye(4)
VALUES = [1.0, 0.5, 1.0, 2.0]


class Probe:
    default_params = ()

    def observation_space(self, params):
        return Box(0.0, 1.0, (4,))

    def action_space(self, params):
        return Discrete(2)

    def reset(self, key, params):
        situation = jnp.array([CHOICE, DELAY, ENDLESS])[jax.random.randint(key, (), 0, 3)]
        return OBS[situation], (situation, jnp.int32(0))

    def step(self, key, state, action, params):
        situation, time = state
        reward = jnp.select([situation == CHOICE, situation == DELAY], [action.astype(jnp.float32), 0.0], 1.0)
        terminated = (situation == CHOICE) | (situation == ARRIVAL)
        truncated = (situation == ENDLESS) & (time == 2)
        following = jnp.where(situation == DELAY, ARRIVAL, situation)
        return OBS[following], (following, time + 1), reward, terminated, truncated


class BoxProbe(Probe):
    """The same with actions between -3 and 1, of which the choice pays 1 - a^2: at best 1, as there."""

    def action_space(self, params):
        return Box(-3.0, 1.0, (1,))

    def step(self, key, state, action, params):
        chosen = 1 - jnp.square(action[0])
        return super().step(key, state, chosen, params)


PROBE, BOX_PROBE = Probe(), BoxProbe()


@pytest.mark.parametrize("normalize_obs", [False, True])
def test_ppo(normalize_obs: bool) -> None:
    config = ppo.Config(
        env=PROBE,
        total_timesteps=60_000,
        num_envs=16,
        num_steps=16,
        actor_hidden_sizes=(32,),
        critic_hidden_sizes=(32,),
        gamma=0.5,
        learning_rate=3e-3,
        clip_value=False,
        normalize_obs=normalize_obs,
    )
    state, _ = ppo.train(jax.random.key(0), config)
    obs = ppo.observe(OBS, state.obs_stats, config)
    np.testing.assert_allclose(ppo.critic(state.params.critic, obs, config), VALUES, atol=0.1)
    assert ppo.policy(state, config)(jax.random.key(0), OBS[CHOICE]) == 1


def test_trpo() -> None:
    config = trpo.Config(
        env=PROBE,
        total_timesteps=30_000,
        num_envs=16,
        num_steps=16,
        actor_hidden_sizes=(32,),
        critic_hidden_sizes=(32,),
        gamma=0.5,
        learning_rate=3e-3,
    )
    state, _ = trpo.train(jax.random.key(0), config)
    np.testing.assert_allclose(trpo.critic(state.params.critic, OBS, config), VALUES, atol=0.1)
    assert trpo.policy(state, config)(jax.random.key(0), OBS[CHOICE]) == 1


@pytest.mark.parametrize(
    "switches", [{}, {"double_q": True}, {"dueling": True}, {"n_step": 4}], ids=["plain", "double", "dueling", "n-step"]
)
def test_dqn(switches: dict[str, Any]) -> None:
    config = dqn.Config(
        env=PROBE,
        total_timesteps=40_000,
        num_envs=8,
        num_steps=2,
        buffer_size=4_000,
        learning_starts=1_000,
        batch_size=64,
        hidden_sizes=(32,),
        gamma=0.5,
        learning_rate=3e-3,
        target_update_period=20,
        **switches,
    )
    state, _ = dqn.train(jax.random.key(0), config)
    q = dqn.q_values(state.params, OBS, config)
    np.testing.assert_allclose(q[CHOICE], [0.0, 1.0], atol=0.1)
    np.testing.assert_allclose(q.max(-1), VALUES, atol=0.1)


@pytest.mark.parametrize("td_lambda", [0.0, 0.9])
def test_pqn(td_lambda: float) -> None:
    """Exploring for ever, with a reward scale of 1: the targets of every action are seen to the end."""
    config = pqn.Config(
        env=PROBE,
        total_timesteps=100_000,
        num_envs=16,
        num_steps=16,
        num_minibatches=4,
        hidden_sizes=(32,),
        gamma=0.5,
        td_lambda=td_lambda,
        learning_rate=3e-3,
        reward_scale=1.0,
        epsilon_end=0.5,
    )
    state, _ = pqn.train(jax.random.key(0), config)
    q = pqn.q_values(state.params, OBS, config)
    # A return that runs on through random actions is still right here, since choices are followed by nothing.
    np.testing.assert_allclose(q[CHOICE], [0.0, 1.0], atol=0.1)
    np.testing.assert_allclose(q.max(-1), VALUES, atol=0.1)


def test_linear_q() -> None:
    """Observations are one-hot already, so raw features make a table of them."""
    config = linear_q.Config(
        env=PROBE, total_timesteps=20_000, features="raw", bias=False, gamma=0.5, anneal_learning_rate=True
    )
    state, _ = linear_q.train(jax.random.key(0), config)
    q = linear_q.q_values(state.params, linear_q.features(OBS, config))
    np.testing.assert_allclose(q[CHOICE], [0.0, 1.0], atol=0.05)
    np.testing.assert_allclose(q.max(-1), VALUES, atol=0.05)


OFF_POLICY: dict[str, Any] = {
    "total_timesteps": 25_000,
    "num_envs": 8,
    "num_steps": 2,
    "buffer_size": 4_000,
    "learning_starts": 1_000,
    "batch_size": 64,
    "actor_hidden_sizes": (32,),
    "critic_hidden_sizes": (32, 32),
    "gamma": 0.5,
    "learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "tau": 0.05,
}


@pytest.mark.parametrize(
    ("algorithm", "fields"),
    [
        (ddpg, {}),
        (ddpg, {"n_step": 4}),
        (td3, {}),
        (sac, {"alpha": 1e-3, "learn_alpha": False}),
    ],
    ids=["ddpg", "ddpg n-step", "td3", "sac"],
)
def test_off_policy(algorithm: Any, fields: dict[str, Any]) -> None:
    """Of each situation the value of the policy's own action; the best choice is 0 in units, 1/2 between -1 and 1.

    Unless they are bought at more than a thousandth of a reward a nat, the values have next to no entropy in them.
    """
    config = algorithm.Config(env=BOX_PROBE, **OFF_POLICY, **fields)
    state, _ = algorithm.train(jax.random.key(0), config)
    obs = algorithm.observe(OBS, state.obs_stats, config)
    act = algorithm.policy(state, config)
    action = jax.vmap(lambda obs: act.act(jax.random.key(0), obs, act.memory)[0])(OBS)
    q = (algorithm.critic if algorithm is ddpg else algorithm.twins)(state.params.critic, obs, action, config)
    np.testing.assert_allclose(q, np.broadcast_to(VALUES, q.shape), atol=0.1)
    assert action[CHOICE, 0] == pytest.approx(0.5, abs=0.1)


def test_discrete_sac() -> None:
    config = discrete_sac.Config(env=PROBE, **OFF_POLICY, alpha=0.01, learn_alpha=False)
    state, _ = discrete_sac.train(jax.random.key(0), config)
    q = discrete_sac.twins(state.params.critic, OBS, config)
    np.testing.assert_allclose(q[:, CHOICE], [[0.0, 1.0]] * 2, atol=0.1)
    np.testing.assert_allclose(q.max(-1), [VALUES] * 2, atol=0.1)
    assert discrete_sac.policy(state, config)(jax.random.key(0), OBS[CHOICE]) == 1
