"""Whole episodes, as `evaluate` runs them: against ones whose every reward is known."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl import envs, ppo
from purerl.core import rollout
from purerl.core.types import Policy, memoryless
from tests import tiny

KEY = jax.random.key(0)


class Paid:
    """Pays `pay` times 1, 2, 3, .. and `per_action` times the action; ends after `length` steps, but pays on after it.

    ends: whether the end is a termination; otherwise it is a time limit.
    """

    default_params = {"length": 3, "pay": 1.0, "per_action": 0.0, "ends": True}  # noqa: RUF012

    def observation_space(self, params):
        return envs.Box(0.0, jnp.inf, (1,))

    def action_space(self, params):
        return envs.Box(-10.0, 10.0, (1,))

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        time = state + 1
        reward = params["pay"] * time + params["per_action"] * action[0]
        over = time == params["length"]  # once: whoever looks only at the present step misses that it was over
        return (
            time.astype(jnp.float32)[None],
            time,
            reward,
            over & params["ends"],
            over & jnp.logical_not(params["ends"]),
        )


class Lottery(Paid):
    """Two steps: the first pays x and the second takes another x back, so that equal ones cancel out.

    source 0: x is the label of the episode, drawn at its start and paid once only. 1: the action. 2: drawn by a step.
    """

    default_params = {"source": 0}  # noqa: RUF012

    def reset(self, key, params):
        return jnp.zeros(1), (jnp.int32(0), jax.random.uniform(key))

    def step(self, key, state, action, params):
        time, label = state
        once = jnp.where(time == 0, label, 0.0)
        x = jnp.select([params["source"] == 0, params["source"] == 1], [once, action[0]], jax.random.uniform(key))
        return jnp.zeros(1), (time + 1, label), jnp.where(time == 0, x, -x), time == 1, time > 1


class Placed(Paid):
    """One step, which begins and ends at the place that a param names."""

    default_params = {"place": 0.0}  # noqa: RUF012

    def reset(self, key, params):
        return jnp.full(1, params["place"]), jnp.int32(0)

    def step(self, key, state, action, params):
        return jnp.full(1, -1.0), state, params["place"], state == 0, state > 0


PAID, LOTTERY, PLACED = Paid(), Lottery(), Placed()


class State(NamedTuple):
    """Of algorithms that have learned nothing."""

    params: tuple[()] = ()


class Untrained:
    """What evaluation asks of an algorithm but for its policy."""

    @staticmethod
    def init(key, config):
        return State()


class Fixed(Untrained):
    """An algorithm of one policy, which says 1 in [-1, 1] where deterministic and -1/2 where not."""

    @staticmethod
    def policy(state, config, *, deterministic):
        action = jnp.full(1, 1.0 if deterministic else -0.5)
        return memoryless(lambda key, obs: action, envs.bind(config).to_units)


class Counting(Untrained):
    """An algorithm whose policy remembers how often it has acted in the episode: 0, .1, .2, .."""

    @staticmethod
    def policy(state, config, *, deterministic):
        return Policy(jnp.float32(0), lambda key, obs, memory: (memory[None], memory + 0.1), envs.bind(config).to_units)


class Random(Untrained):
    """An algorithm whose policy is a uniform draw."""

    @staticmethod
    def policy(state, config, *, deterministic):
        return memoryless(lambda key, obs: jax.random.uniform(key, (1,)), envs.bind(config).to_units)


def evaluate(algorithm: Any, params: dict[str, Any], num: int, env: Any = PAID, **options: Any) -> Any:
    num_envs = max([len(x) for x in params.values() if np.ndim(x)], default=1)
    config = ppo.Config(env=env, env_params=params, num_envs=num_envs)
    return purerl.evaluate(algorithm, State(), config, KEY, num_episodes=num, **options)


@pytest.mark.parametrize("ends", [True, False], ids=["terminated", "truncated"])
def test_returns_and_lengths_by_hand(ends):
    """Lengths 1, 4 and 2 take turns, paid 1, 10 and -2 a step number: 1; 10 (1 + 2 + 3 + 4); -2 (1 + 2).

    All envs go on paying until the longest episode is over; none of that counts.
    """
    params = {"length": jnp.array([1, 4, 2]), "pay": jnp.array([1.0, 10.0, -2.0]), "ends": ends}
    result = evaluate(Fixed, params, 7)
    np.testing.assert_array_equal(result.returns, [1, 100, -6, 1, 100, -6, 1])
    np.testing.assert_array_equal(result.lengths, [1, 4, 2, 1, 4, 2, 1])


def test_an_episode_that_never_ends_is_cut():
    """After max_steps = 5 steps: 1 + 2 + 3 + 4 + 5; the others have ended before, or with it."""
    result = evaluate(Fixed, {"length": jnp.array([2, 5, 1000])}, 3, max_steps=5)
    np.testing.assert_array_equal(result.returns, [3, 15, 15])
    np.testing.assert_array_equal(result.lengths, [2, 5, 5])


@pytest.mark.parametrize(("deterministic", "expected"), [(True, 30.0), (False, -15.0)])
def test_the_mode_or_a_draw(deterministic, expected):
    """Three steps of the action 1 or -1/2, which are 10 and -5 in the env's units."""
    result = evaluate(Fixed, {"pay": 0.0, "per_action": 1.0}, 2, deterministic=deterministic)
    np.testing.assert_array_equal(result.returns, [expected] * 2)


def test_memory_starts_afresh_and_goes_on():
    """Actions 0, 1, 2, .. in the env's units, in each episode: 0 + 1, 0 + 1 + 2 + 3, 0."""
    params = {"length": jnp.array([2, 4, 1]), "pay": 0.0, "per_action": 1.0}
    np.testing.assert_allclose(evaluate(Counting, params, 4).returns, [1, 6, 0, 1], rtol=1e-6)


@pytest.mark.parametrize("source", [0, 1, 2], ids=["start", "action", "step"])
def test_every_draw_is_its_own(source):
    """Of each episode's start, of each action and of each step: no two returns agree, and none cancels out."""
    returns = np.asarray(evaluate(Random, {"source": source}, 64, LOTTERY).returns)
    assert len(np.unique(returns)) == 64
    assert np.abs(returns).min() > 0


def test_each_env_starts_by_its_own_params():
    """At first, and after each end."""
    env = envs.BoundEnv(PLACED, {"place": jnp.array([3.0, 5.0])}, 2)
    act = lambda key, obs: jnp.zeros((2, 1))  # noqa: E731
    last, steps, _ = jax.jit(lambda: rollout.unroll(KEY, env, env.reset(KEY), act, 2))()
    np.testing.assert_array_equal(steps.obs[..., 0], [[3, 5], [3, 5]])
    np.testing.assert_array_equal(last.obs[:, 0], [3, 5])
    np.testing.assert_array_equal(steps.reward, [[3, 5], [3, 5]])


@pytest.mark.parametrize("name", purerl.ALGORITHMS)
def test_policies_are_greedy_or_not(name):
    """Deterministic, the key does not matter; otherwise with epsilon_end = 1 every action comes up.

    A planner has nothing but its optimal actions, and a search among policies nothing but one. No two draws of a number
    are the same.
    """
    algorithm = getattr(purerl, name)
    fields = {"epsilon_end": 1.0} if hasattr(algorithm.Config, "epsilon_end") else {}
    config = tiny.config(algorithm, **fields)
    env, keys = envs.bind(config), jax.random.split(KEY, 64)
    obs = jnp.zeros(env.obs_space.shape, env.obs_space.dtype)

    @functools.partial(jax.jit, static_argnums=1)
    def act(state, deterministic):
        policy = algorithm.policy(state, config, deterministic=deterministic)
        return jax.vmap(policy.act, (0, None, None))(keys, obs, policy.memory)[0]

    state = jax.jit(lambda: algorithm.init(KEY, config))()
    assert len(np.unique(act(state, True))) == 1
    one = name in ("value_iteration", "cem", "es")
    drawn = 1 if one else len(keys) if env.continuous else env.num_actions
    assert len(np.unique(act(state, False))) == drawn
