"""Dyna-Q, Dyna-Q+ and prioritized sweeping: model and planning by hand, and against a heap; the maze of the book."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import dyna_q, evaluate, mdp, q_learning
from purerl.core.types import Transition
from tests.tiny import assert_same_bits

KEY = jax.random.key(0)
TINY = {"num_steps": 8, "total_timesteps": 48}


def config(**fields):
    """Of four states and two actions."""
    return dyna_q.Config(env=mdp.Tabular(mdp.random_walk(2)), **{**TINY, "gamma": 0.5} | fields)


def model(pairs, time=10):
    """A model that knows pairs alone: {(s, a): (next state, reward, terminated, time)}."""
    known = dyna_q.init(KEY, config()).model
    for (s, a), news in pairs.items():
        known = dyna_q.Model(*(x.at[s, a].set(new) for x, new in zip(known, (*news[:3], True, news[3]), strict=True)))
    return known


@pytest.mark.parametrize("env", ["mdp/cliff_walking", "mdp/frozen_lake_4x4_slippery"])
def test_without_planning_it_is_q_learning_bit_for_bit(env):
    shared = {"env": env, "num_steps": 50, "total_timesteps": 400, "gamma": 0.9, "learning_rate": 0.3}
    if env == "mdp/cliff_walking":
        shared["env"] = mdp.Tabular(mdp.cliff_walking(), time_limit=5)  # cuts that are no ends
    shared |= {"epsilon_start": 0.6, "epsilon_end": 0.2, "anneal_learning_rate": True, "initial_value": 0.5}
    left, left_metrics = dyna_q.train(KEY, dyna_q.Config(planning_steps=0, random_ties=False, **shared))
    right, right_metrics = q_learning.train(KEY, q_learning.Config(**shared))
    assert_same_bits((left.params, left.env_state), (right.params[0], right.env_state))
    assert_same_bits([left_metrics[name] for name in right_metrics], list(right_metrics.values()))
    assert len(np.unique(left.params)) > 5


def test_the_model_is_what_followed_last():
    step = Transition(*map(jnp.array, ([1], [0], [2.0], [False], [True], [2])))
    assert not dyna_q.remember(model({}), step, jnp.int32(7)).terminated.any()  # a time limit is no end
    known = dyna_q.remember(model({}), step, jnp.int32(7))
    known = dyna_q.remember(known, step._replace(reward=jnp.array([-1.0]), terminated=jnp.array([True])), jnp.int32(9))
    assert [x[1, 0].item() for x in known] == [2, -1.0, True, True, 9]
    assert known.seen.sum() == 1
    np.testing.assert_array_equal(known.next_state.at[1, 0].set(1), [[s] * 2 for s in range(4)])  # they stay


def test_planning_by_hand():
    """One pair is known: r + gamma max Q(s') = 1 + 0.5 * 4 = 3, approached by half in each of three steps."""
    q = jnp.zeros((4, 2)).at[2, 1].set(4.0)
    known = model({(1, 0): (2, 1.0, False, 0)})
    planned = dyna_q.plan(KEY, q, known, 10, 0.5, config(planning_steps=3))
    np.testing.assert_allclose(planned, q.at[1, 0].set(3 * (1 - 0.5**3)))
    ended = known._replace(terminated=known.terminated.at[1, 0].set(True))
    np.testing.assert_allclose(dyna_q.plan(KEY, q, ended, 10, 0.5, config(planning_steps=3))[1, 0], 1 - 0.5**3)


KNOWN = {(0, 0): (3, 1.0, True, 4), (1, 1): (3, 1.0, True, 10), (2, 0): (3, 1.0, True, 10)}


def drawn(planning, kappa=0.0):
    """How often each pair is planned with in 6,000 steps so small that Q counts them; `[S, A]`."""
    setting = config(planning_steps=6_000, planning=planning, kappa=kappa)
    return dyna_q.plan(KEY, jnp.zeros((4, 2)), model(KNOWN), 20, 1e-6, setting) * 1e6


def test_planning_draws_from_all_pairs_seen_alike():
    np.testing.assert_allclose(drawn("random"), [[2000, 0], [0, 2000], [2000, 0], [0, 0]], rtol=0.07)


def test_the_bonus_counts_the_steps_since_and_reaches_what_was_not_tried():
    """1,000 draws each of six pairs: 16 and 10 steps ago, and those never tried since 20 steps, which pay nothing."""
    expected = 1000 * np.array([[1 + 4, 20**0.5], [20**0.5, 1 + 10**0.5], [1 + 10**0.5, 20**0.5], [0, 0]])
    np.testing.assert_allclose(drawn("bonus", kappa=1.0), expected, rtol=0.1)


def test_untried_actions_are_thought_to_stay():
    """Its value is then kappa sqrt(tau) + gamma max Q(s) of the same state."""
    setting = config(planning_steps=400, planning="bonus", kappa=0.5)
    known = model({(1, 1): (3, 6.0, True, 16)})
    planned = dyna_q.plan(KEY, jnp.zeros((4, 2)), known, 16, 0.5, setting)
    np.testing.assert_allclose(planned[1], [0.5 * 4 + 0.5 * 6, 6.0], rtol=1e-4)


def test_waiting_by_hand():
    """Surprises of 1 (known as 3 before), of 0.2, which is below the threshold, and of 2; (1, 1) is not asked for."""
    q = jnp.array([[0.0, 0.0], [0.8, 9.0], [-1.0, 0.0], [0.0, 0.0]])
    known = model(
        {(0, 0): (3, 1.0, True, 0), (1, 0): (3, 1.0, True, 0), (1, 1): (3, 1.0, True, 0), (2, 0): (3, 1.0, True, 0)}
    )
    waiting = jnp.zeros((4, 2)).at[0, 0].set(3.0)
    among = known.seen.at[1, 1].set(False)
    after = dyna_q.wait(waiting, q, known, among, config(threshold=0.5))
    np.testing.assert_allclose(after, [[3.0, 0.0], [0.0, 0.0], [2.0, 0.0], [0.0, 0.0]])


def test_sweeping_by_hand():
    """2 -> 3 pays 8 and ends; 1 -> 2 and 0 -> 1 pay nothing. Each step moves one state back, by half of what is due."""
    known = model({(2, 1): (3, 8.0, True, 0), (1, 1): (2, 0.0, False, 0), (0, 1): (1, 0.0, False, 0)})
    latest = jnp.zeros((4, 2), bool).at[2, 1].set(True)
    for steps, values in ((1, [0, 0, 4]), (2, [0, 1, 4]), (3, [0.25, 1, 4]), (9, [0.25, 1, 4])):
        setting = config(planning_steps=steps, threshold=0.01)
        q, waiting = dyna_q.sweep(jnp.zeros((4, 2)), jnp.zeros((4, 2)), known, latest, 0.5, setting)
        np.testing.assert_allclose(q[:, 1], [*values, 0])
        assert (q[:, 0] == 0).all()
        np.testing.assert_allclose(waiting[:, 1], {1: [0, 2, 0, 0], 2: [0.5, 0, 0, 0]}.get(steps, [0] * 4))


def test_sweeping_against_a_heap():
    """A random model of 12 states, swept from several pairs in turn with priorities left over."""
    rng = np.random.default_rng(0)
    S, A, alpha, gamma, threshold = 12, 3, 0.7, 0.9, 0.05
    following, reward, ends, seen = (
        rng.integers(S, size=(S, A)),
        rng.normal(size=(S, A)),
        rng.random((S, A)) < 0.2,
        rng.random((S, A)) < 0.8,
    )
    known = dyna_q.Model(*map(jnp.asarray, (following, reward.astype(np.float32), ends, seen)), jnp.zeros((S, A), int))
    setting = dyna_q.Config(
        env=mdp.Tabular(mdp.garnet(KEY, S, A, 2)), **TINY, planning_steps=7, gamma=gamma, threshold=threshold
    )
    q, waiting = jnp.zeros((S, A)), jnp.zeros((S, A))
    sweep = jax.jit(lambda q, waiting, latest: dyna_q.sweep(q, waiting, known, latest, alpha, setting))
    own, heap = np.zeros((S, A)), []

    def surprise(s, a):
        return reward[s, a] + gamma * (0 if ends[s, a] else own[following[s, a]].max()) - own[s, a]

    def push(s, a):
        priority = abs(surprise(s, a))
        old = next((entry for entry in heap if entry[1:] == (s, a)), None)
        if priority > threshold and (old is None or -old[0] < priority):
            if old:
                heap.remove(old)
                heapq.heapify(heap)
            heapq.heappush(heap, (-priority, s, a))

    for s, a in np.argwhere(seen)[:8]:
        push(s, a)
        for _ in range(setting.planning_steps):
            if heap:
                _, i, j = heapq.heappop(heap)
                own[i, j] += alpha * surprise(i, j)
                for before in np.argwhere(seen & ~ends & (following == i)):
                    push(*before)
        q, waiting = sweep(q, waiting, jnp.zeros((S, A), bool).at[s, a].set(True))
        np.testing.assert_allclose(q, own, atol=1e-5)
        expected = np.zeros((S, A))
        for priority, i, j in heap:
            expected[i, j] = -priority
        np.testing.assert_allclose(waiting, expected, atol=1e-5)
    assert heap


def test_the_maze_is_that_of_the_book():
    """Fourteen steps at the least: the optimal value of the start is gamma^13."""
    maze = mdp.dyna_maze()
    assert maze.num_states == 54 and maze.start.argmax() == 18 and maze.terminal.argmax() == 8
    np.testing.assert_allclose(mdp.optimal_value(maze, 0.95)[18], 0.95**13, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("planning", ["random", "bonus", "prioritized"])
def test_learns_the_maze_by_planning(planning):
    """In 4,000 steps; Q-learning has by then not found its way in most seeds."""
    setting = dyna_q.Config(planning=planning, planning_steps=20, total_timesteps=4_000)
    keys = jax.random.split(KEY, 3)
    states, metrics = jax.jit(jax.vmap(dyna_q.train, (0, None)))(keys, setting)
    returns, lengths = jax.vmap(lambda state, key: evaluate(dyna_q, state, setting, key, num_episodes=1))(states, keys)
    assert (returns == 1).all() and (lengths <= 16).all()
    assert (metrics["pairs_seen"][:, -1] > metrics["pairs_seen"][:, 0]).all()


@pytest.mark.parametrize("planning", ["random", "prioritized"])
def test_planning_learns_at_the_annealed_rate(planning):
    """Halfway through the training half of the rate, as with half of it and no annealing."""
    fields = {"planning": planning, "planning_steps": 3, "total_timesteps": 32, "env": mdp.Tabular(mdp.random_walk(2))}
    annealed = dyna_q.Config(num_steps=8, learning_rate=0.5, anneal_learning_rate=True, **fields)
    state = dyna_q.init(KEY, annealed)._replace(updates=jnp.int32(2))
    half = annealed.replace(learning_rate=0.25, anneal_learning_rate=False)
    left, right = (dyna_q.update(state, x)[0].params for x in (annealed, half))
    np.testing.assert_allclose(left, right, rtol=1e-6)
    assert (left != 0).any()


def test_waits_across_steps_and_updates():
    """What still waits at the end of a step is learned from after the next: one planning step each here."""
    setting = config(planning="prioritized", planning_steps=1, threshold=1e-3, total_timesteps=160, learning_rate=0.5)
    state, _ = dyna_q.train(KEY, setting)
    assert (state.waiting > 0).any() and (state.params != 0).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"env": "CartPole-v1"},
            r"dyna_q keeps one entry for each observation, but those of CartPole-v1 are not numbered",
        ),
        ({"env": "Pendulum-v1"}, r"dyna_q acts in discrete action spaces only"),
        ({"planning": "prioritized", "planning_steps": 0}, r"changes Q in planning alone, but planning_steps is 0"),
        ({"planning": "sweeping"}, r"planning must be one of random, bonus, prioritized, but is 'sweeping'"),
        ({"planning_steps": -1}, r"planning_steps must be at least 0"),
    ],
)
def test_bad_input(fields, message):
    with pytest.raises(ValueError, match=message):
        dyna_q.Config(**fields)
