"""Learners with a table: their rules by hand, and what they learn against the exact values of the MDP they act in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import q_learning, sarsa
from purerl.core import mdp
from purerl.core.replay import Transition

KEY = jax.random.key(0)


def transition(reward: float, terminated: bool, truncated: bool = False) -> Transition:
    """From state 0 by action 1 to state 1."""
    return Transition(jnp.int32(0), jnp.int32(1), reward, jnp.array(terminated), jnp.array(truncated), jnp.int32(1))


@pytest.mark.parametrize(
    ("num_tables", "table", "expected"),
    # one table: its own maximum 7; two: the one that learns chooses (7 at action 0, 9 at action 1), the other values
    [(1, 0, 7.0), (2, 0, 3.0), (2, 1, 5.0)],
)
def test_q_learning_target_by_hand(num_tables: int, table: int, expected: float) -> None:
    """Q(1, .) is (7, 5) in the first table and (3, 9) in the second; gamma = 0.5, r = 1."""
    params = jnp.array([[[0.0, 0.0], [7.0, 5.0]], [[0.0, 0.0], [3.0, 9.0]]])[:num_tables]
    for ends, target in (((False, False), 1 + expected / 2), ((False, True), 1 + expected / 2), ((True, False), 1.0)):
        y = q_learning.td_target(params, jnp.int32(table), transition(1.0, *ends), 0.5)
        np.testing.assert_allclose(y, target)


def test_q_learning_step_by_hand() -> None:
    """One state, one action, reward 1, never an end: Q <- Q + alpha (1 + gamma Q - Q), from Q = 4.

    alpha = gamma = 0.5: 4, 3.5, 3.125. With visits and power 1, alpha is 1/2, then 1/4: 3.5, 3.3125.
    """
    table = jnp.ones((1, 1, 1))
    model = mdp.MDP(jnp.zeros((1, 1, 1), jnp.int32), table, table, jnp.array([False]), jnp.ones(1))
    fields = {"learning_rate": 0.5, "gamma": 0.5, "initial_value": 4.0, "visit_power": 1.0}
    for count_visits, expected in ((False, 3.125), (True, 3.3125)):
        config = q_learning.Config(
            env=mdp.Tabular(model), total_timesteps=2, num_steps=2, count_visits=count_visits, **fields
        )
        state, metrics = q_learning.train(KEY, config)
        np.testing.assert_allclose(state.params, [[[expected]]])
        np.testing.assert_allclose(metrics["td_error"], [(1.0 + 0.75) / 2])


@pytest.mark.parametrize("double_q", [False, True])
def test_q_learning_learns_frozen_lake(double_q: bool) -> None:
    """On the lake without slipping, Q* to 1e-3 where the greedy policy walks, and the greedy policy is optimal."""
    config = q_learning.Config(
        env="mdp/frozen_lake_4x4",
        total_timesteps=40_000,
        learning_rate=0.5,
        gamma=0.9,
        epsilon_end=1.0,
        double_q=double_q,
    )
    state, _ = q_learning.train(KEY, config)
    model = mdp.frozen_lake("4x4", slippery=False)
    best = mdp.optimal_value(model, 0.9)
    np.testing.assert_allclose(state.params.mean(0).max(-1), best, atol=1e-3)
    actions = np.asarray(state.params.sum(0).argmax(-1))
    np.testing.assert_allclose(mdp.policy_value(model, np.eye(4)[actions], 0.9), best, atol=1e-6)


@pytest.mark.parametrize(("expected", "target"), [(False, 1 + 0.5 * 4), (True, 1 + 0.5 * (0.2 * 5 + 0.8 * 6))])
def test_sarsa_target_by_hand(expected: bool, target: float) -> None:
    """Q(s', .) = (4, 6), action 0 is next, gamma = 0.5, r = 1; with epsilon = 0.2 the mean is 0.2 * 5 + 0.8 * 6."""
    config = sarsa.Config(gamma=0.5, expected=expected)
    for ends, y in (((False, False), target), ((False, True), target), ((True, False), 1.0)):
        given = sarsa.td_target(jnp.array([4.0, 6.0]), jnp.int32(0), 0.2, transition(1.0, *ends), config)
        np.testing.assert_allclose(given, y, rtol=1e-6)


def steps(q: np.ndarray) -> list[int]:
    """States on the greedy walk over the cliff, from the start 36 to the goal 47, at most 100."""
    model, state, path = mdp.cliff_walking(), 36, []
    while state != 47 and len(path) < 100:
        path.append(state)
        state = int(model.successor[state, int(q[state].argmax()), 0])
    return path


def test_cliff_walking() -> None:
    """Sutton and Barto, example 6.6, epsilon = 0.1: Q-learning walks along the edge, SARSA above it and earns more.

    The edge is row 2, states 24 to 35: 13 steps in all. Means over ten seeds; returns are those while learning.
    """
    fields = {"env": "mdp/cliff_walking", "total_timesteps": 100_000, "gamma": 1.0, "learning_rate": 0.5}
    fields |= {"epsilon_start": 0.1, "epsilon_end": 0.1}
    keys = jax.random.split(KEY, 10)
    q, sarsa_run = (
        jax.vmap(algorithm.train, (0, None))(keys, algorithm.Config(**fields, **more))
        for algorithm, more in ((q_learning, {}), (sarsa, {"expected": True}))
    )
    for table in np.asarray(q.state.params[:, 0]):
        path = steps(table)
        assert len(path) == 13 and set(path[1:]) == set(range(24, 36))
    for table in np.asarray(sarsa_run.state.params):
        path = steps(table)
        assert 13 < len(path) < 100 and not set(range(25, 35)) & set(path)
    online = [float(run.metrics["episode_return"][:, -50:].mean()) for run in (q, sarsa_run)]
    assert online[1] > online[0] + 10


def test_numbered_observations_are_needed() -> None:
    with pytest.raises(ValueError, match=r"q_learning keeps one entry for each observation.*CartPole-v1.*dqn"):
        q_learning.Config(env="CartPole-v1")
    with pytest.raises(ValueError, match=r"q_learning acts in discrete.*Pendulum-v1"):
        q_learning.Config(env="Pendulum-v1")
