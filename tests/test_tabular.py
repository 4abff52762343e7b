"""Learners with a table or with features: their rules by hand, and what they learn against exact values."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl import envs, linear_q, mdp, q_learning, runner, sarsa, td, value_iteration
from purerl.core import features
from purerl.core.types import Transition
from tests import tiny

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
    config, q = sarsa.Config(gamma=0.5, expected=expected), jnp.array([[9.0, 9.0], [4.0, 6.0]])
    for ends, y in (((False, False), target), ((False, True), target), ((True, False), 1.0)):
        given = sarsa.td_target(q, jnp.int32(0), 0.2, transition(1.0, *ends), config)
        np.testing.assert_allclose(given, y, rtol=1e-6)


def steps(q: np.ndarray) -> list[int]:
    """States on the greedy walk over the cliff, from the start 36 to the goal 47, at most 100."""
    model, state, path = mdp.cliff_walking(), 36, []
    while state != 47 and len(path) < 100:
        path.append(state)
        state = int(model.successor[state, int(q[state].argmax()), 0])
    return path


@pytest.mark.parametrize("switches", [{}, {"expected": False, "learning_rate": 0.1}], ids=["expected", "plain"])
def test_cliff_walking(switches: dict[str, Any]) -> None:
    """Sutton and Barto, example 6.6, epsilon = 0.1: Q-learning walks along the edge, SARSA above it and earns more.

    The edge is row 2, states 24 to 35: 13 steps in all. Means over ten seeds; returns are those while learning.
    """
    keys = jax.random.split(KEY, 10)
    q = jax.vmap(q_learning.train, (0, None))(keys, purerl.tuned("q_learning", "mdp/cliff_walking"))
    on_policy = jax.vmap(sarsa.train, (0, None))(keys, purerl.tuned("sarsa", "mdp/cliff_walking").replace(**switches))
    for table in np.asarray(q.state.params[:, 0]):
        path = steps(table)
        assert len(path) == 13 and set(path[1:]) == set(range(24, 36))
    for table in np.asarray(on_policy.state.params):
        path = steps(table)
        assert 13 < len(path) < 100 and not set(range(25, 35)) & set(path)
    online = [float(run.metrics["episode_return"][:, -50:].mean()) for run in (q, on_policy)]
    assert online[1] > online[0] + 10


def greedy_return(params: jax.Array, model: mdp.MDP, gamma: float) -> float:
    """Expected return of the policy that is greedy in Q `[S, A]`, from the start, by a linear solve."""
    policy = np.eye(model.num_actions)[np.asarray(params).argmax(-1)]
    return float(np.asarray(model.start) @ mdp.policy_value(model, policy, gamma))


# Q-learning may explore as it likes. SARSA values what it does, so it must explore little in the end, and for long.
_VISITS = {"count_visits": True, "learning_rate": 1.0}
ON_RANDOM_MDPS = {
    "q_learning": (q_learning, {**_VISITS, "total_timesteps": 500_000, "visit_power": 0.85, "epsilon_end": 1.0}, 0.999),
    "sarsa": (
        sarsa,
        {
            **_VISITS,
            "total_timesteps": 6_000_000,
            "expected": True,
            "visit_power": 0.65,
            "epsilon_start": 0.3,
            "epsilon_end": 0.005,
            "exploration_fraction": 0.8,
        },
        0.998,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [q_learning, sarsa], ids=["q_learning", "sarsa"])
def test_control_is_optimal_on_the_slippery_lake(algorithm: ModuleType) -> None:
    """With the tuned settings the greedy policy of each of ten seeds has the optimal expected return, 0.542."""
    config = purerl.tuned(algorithm.__name__.split(".")[-1], "mdp/frozen_lake_4x4_slippery")
    tables = jax.vmap(algorithm.train, (0, None))(jax.random.split(KEY, 10), config).state.params.reshape(10, 16, 4)
    model = mdp.frozen_lake()
    best = mdp.optimal_value(model, 0.99)[0]
    np.testing.assert_allclose([greedy_return(q, model, 0.99) for q in tables], best, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_RANDOM_MDPS)
def test_control_is_optimal_on_random_mdps(name: str) -> None:
    """20 random MDPs, ten seeds each: what the greedy policy gains over a random one, as a share of what is possible.

    Actions that are worth nearly the same make up the rest, and with SARSA the little that it still explores.
    """
    algorithm, fields, share = ON_RANDOM_MDPS[name]
    models = jax.vmap(lambda key: mdp.garnet(key, 6, 2, 3))(jax.random.split(jax.random.key(5), 20))
    each = [jax.tree.map(lambda x, i=i: x[i], models) for i in range(20)]
    config = algorithm.Config(env=mdp.Tabular(each[0]), gamma=0.9, num_steps=10_000, **fields)
    train = jax.vmap(lambda key, model: algorithm.train(key, config.replace(env_params=model)).state.params, (0, None))
    tables = jax.jit(jax.vmap(train, (None, 0)))(jax.random.split(KEY, 10), models).reshape(20, 10, 6, 2)
    shares = []
    for model, seeds in zip(each, tables, strict=True):
        start = np.asarray(model.start)
        random = start @ mdp.policy_value(model, np.full((6, 2), 0.5), 0.9)
        best = start @ mdp.optimal_value(model, 0.9)
        shares.append([(greedy_return(q, model, 0.9) - random) / (best - random) for q in seeds])
    assert np.min(shares) > share, np.sort(shares, axis=None)[:20]
    assert np.median(shares) == pytest.approx(1.0, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Prediction


class Corridor:
    """Cells 0, 1, 2, ..: each step leads one on and pays the cell's number; after cell 3 comes an end, or the clock."""

    default_params: ClassVar = {"terminates": True}

    def observation_space(self, params):
        return envs.Discrete(5)

    def action_space(self, params):
        return envs.Discrete(1)

    def reset(self, key, params):
        return jnp.int32(0), jnp.int32(0)

    def step(self, key, state, action, params):
        last = state == 3
        ends = last & params["terminates"]
        return state + 1, state + 1, state.astype(jnp.float32), ends, last & ~ends


class SeenCorridor(Corridor):
    """The same, with the cell's number as a vector of one."""

    def observation_space(self, params):
        return envs.Box(0.0, 4.0, (1,))

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        cell, *rest = super().step(key, state, action, params)
        return cell[None].astype(jnp.float32), *rest


CORRIDOR, SEEN_CORRIDOR = Corridor(), SeenCorridor()
# gamma = 1/2, alpha = 1, V = 8 at first; rewards 0 1 2 3. Every return is worked out from the last step to the first.
TD_CASES = {
    # TD(0), one after the other: 0 + 8/2 = 4, 1 + 8/2 = 5, 2 + 8/2 = 6, 3 + 0
    "one step": ({}, True, [4, 5, 6, 3]),
    "one step, cut by the clock": ({}, False, [4, 5, 6, 7]),
    # two steps: 0 + 1/2 + 8/4 = 2.5, 1 + 2/2 + 8/4 = 4, 2 + 3/2 + 0 = 3.5, 3
    "two steps": ({"n_step": 2}, True, [2.5, 4, 3.5, 3]),
    # the last two bootstrap from the state after the clock: 2 + 3/2 + 8/4 = 5.5, 3 + 8/2 = 7
    "two steps, cut by the clock": ({"n_step": 2}, False, [2.5, 4, 5.5, 7]),
    # more steps than there are: the returns themselves, 3, 2 + 3/2, 1 + 3.5/2, 0 + 2.75/2
    "nine steps": ({"n_step": 9}, True, [1.375, 2.75, 3.5, 3]),
    "lambda = 1": ({"lambda_return": True, "td_lambda": 1.0}, True, [1.375, 2.75, 3.5, 3]),
    # lambda = 1/2: 3; 2 + (8 + 3)/4 = 4.75; 1 + (8 + 4.75)/4 = 4.1875; 0 + (8 + 4.1875)/4 = 3.046875
    "lambda = 1/2": ({"lambda_return": True, "td_lambda": 0.5}, True, [3.046875, 4.1875, 4.75, 3]),
    "lambda = 0": ({"lambda_return": True, "td_lambda": 0.0}, True, [4, 5, 6, 3]),
}


@pytest.mark.parametrize("case", TD_CASES)
def test_td_by_hand(case: str) -> None:
    switches, terminates, expected = TD_CASES[case]
    fields = {"gamma": 0.5, "learning_rate": 1.0, "initial_value": 8.0, "total_timesteps": 4, "num_steps": 4}
    config = td.Config(env=CORRIDOR, env_params={"terminates": terminates}, **fields, **switches)
    np.testing.assert_array_equal(td.train(KEY, config).state.params, [*expected, 8])


def test_td_is_online() -> None:
    """The second pass through the cells sees what the first has left: 0 + 5/2, 1 + 6/2, 2 + 3/2, 3."""
    fields = {"gamma": 0.5, "learning_rate": 1.0, "initial_value": 8.0, "total_timesteps": 8, "num_steps": 8}
    config = td.Config(env=CORRIDOR, env_params={"terminates": True}, **fields)
    np.testing.assert_array_equal(td.train(KEY, config).state.params, [2.5, 4, 3.5, 3, 8])


@pytest.mark.thorough
@pytest.mark.parametrize("switches", [{}, {"n_step": 4}, {"lambda_return": True}], ids=["TD(0)", "n-step", "lambda"])
@pytest.mark.parametrize(
    ("env", "gamma", "env_steps"),
    [
        ("mdp/random_walk", 1.0, 200_000),
        pytest.param("mdp/frozen_lake_4x4_slippery", 0.99, 4_000_000, marks=pytest.mark.slow),
    ],
)
def test_td_reaches_the_value(env: str, gamma: float, env_steps: int, switches: dict[str, Any]) -> None:
    """V of a fixed policy, half the best and half random, within 0.02 of the linear solve in the largest error.

    Ten seeds. Of the lake's states the one beside the goal is the noisiest: returns from it deviate by 0.5.
    """
    model = mdp.NAMES[env][0]()
    best = value_iteration.train(KEY, value_iteration.Config(env=env, gamma=gamma)).state
    greedy = jax.vmap(value_iteration.policy(best, value_iteration.Config(env=env, gamma=gamma)), (None, 0))(
        KEY, jnp.arange(model.num_states)
    )
    policy = np.eye(model.num_actions)[greedy] / 2 + 0.5 / model.num_actions
    fields = {"target_policy": policy, "count_visits": True, "learning_rate": 1.0, "num_steps": 10_000}
    config = td.Config(env=env, gamma=gamma, total_timesteps=env_steps, **fields, **switches)
    params = jax.vmap(td.train, (0, None))(jax.random.split(KEY, 10), config).state.params
    exact = mdp.policy_value(model, policy, gamma)
    np.testing.assert_allclose(params, np.tile(exact, (10, 1)), atol=0.02)


def test_td_keeps_its_policy(tmp_path: Path) -> None:
    """A run with a policy to evaluate is saved and loaded; lowering by hand, which shows JAX's stand-ins, works."""
    policy = np.tile([0.9, 0.1], (7, 1))
    config = tiny.config(td, target_policy=policy)
    tiny.run(td, config, (1,), out=tmp_path / "run")
    loaded = runner.load(tmp_path / "run")
    np.testing.assert_allclose(loaded.config.target_policy, policy, rtol=1e-6)
    assert tiny.run(td, config, (1,), out=tmp_path / "run", resume=True).finished
    jax.jit(td.train).lower(KEY, config)
    with pytest.raises(TypeError, match="target_policy must be an array, but is a list"):
        td.Config(target_policy=policy.tolist())


def test_td_policy_must_be_probabilities() -> None:
    for policy, message in (
        (np.ones((7, 3)) / 3, r"target_policy must be \[states, actions\] = \[7, 2\], but has the shape \[7, 3\]"),
        (np.ones((7, 2)), r"target_policy\[0\] must be probabilities that sum to 1, but is \[1.0, 1.0\]"),
        (np.tile([1.5, -0.5], (7, 1)), r"target_policy\[0\] must be probabilities"),
        (np.tile([np.nan, 1.0], (7, 1)), r"target_policy\[0\] must be probabilities"),
    ):
        with pytest.raises(ValueError, match=message):
            td.Config(target_policy=policy)


# ---------------------------------------------------------------------------------------------------------------------
# Features


@pytest.mark.parametrize("env", ["mdp/frozen_lake_4x4_slippery", "mdp/cliff_walking"])
def test_one_hot_features_are_the_table(env: str) -> None:
    """Bit for bit: the same actions, episodes and values as tabular Q-learning on the same key."""
    fields = {"env": env, "total_timesteps": 20_000}
    configs = (linear_q.Config(features="one_hot", bias=False, **fields), q_learning.Config(**fields))
    # As users compile it: the older emitters of these tests fuse a product and a sum in one of them, not in the other.
    older = "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]
    options = {"xla_cpu_use_fusion_emitters": True} if older else {}
    linear, table = (
        jax.jit(algorithm.train, compiler_options=options)(KEY, config)
        for algorithm, config in zip((linear_q, q_learning), configs, strict=True)
    )
    np.testing.assert_array_equal(linear.state.params.weights.T, table.state.params[0])
    assert np.unique(table.state.params).size > 30
    for name, x in table.metrics.items():
        np.testing.assert_array_equal(linear.metrics[name], x, err_msg=name)


def test_gradient_by_hand_is_that_of_autodiff() -> None:
    """Of Q(s, a; w, b) by every weight and bias, for each action, with random weights; of three envs, their sum."""
    actions, td_error = jnp.array([2, 0, 2]), jnp.array([0.5, -3.0, 2.0])

    def weighted(params: linear_q.Params, phi: jax.Array) -> jax.Array:
        return td_error @ linear_q.q_values(params, phi)[jnp.arange(3), actions]

    config = linear_q.Config(env="MountainCar-v0", features="fourier")
    phi = linear_q.features(jnp.array([[-0.5, 0.02], [0.1, 0.0], [-1.1, -0.07]]), config)
    weights, bias = jax.random.normal(KEY, (3, 16)), jnp.arange(3.0)
    for params in (linear_q.Params(weights, bias), linear_q.Params(weights, None)):
        for action in range(3):
            by_autodiff = jax.grad(lambda params, a=action: linear_q.q_values(params, phi[0])[a])(params)
            by_hand = linear_q.semi_gradient(phi[:1], jnp.array([action]), jnp.ones(1), params)
            tiny.assert_same_bits(by_hand, by_autodiff)
        by_hand = linear_q.semi_gradient(phi, actions, td_error, params)
        for x, y in zip(jax.tree.leaves(by_hand), jax.tree.leaves(jax.grad(weighted)(params, phi)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_linear_step_by_hand() -> None:
    """Raw features of the corridor's cells 0 1 2 3, weight and bias from 0, gamma = 1/2, alpha = 1/4; Q = w s + b.

    s = 0: y = 0 + 0,               so nothing moves
    s = 1: y = 1 + 0,               error 1, w = b = 1/4
    s = 2: y = 2 + (3/4 + 1/4) / 2 = 5/2, Q = 3/4, error 7/4, w = 1/4 + 7/8 = 9/8, b = 1/4 + 7/16 = 11/16
    s = 3: y = 3,                   Q = 27/8 + 11/16 = 65/16, error -17/16, w = 9/8 - 51/64 = 21/64, b = 27/64
    """
    fields = {"gamma": 0.5, "learning_rate": 0.25, "total_timesteps": 4, "num_steps": 4, "features": "raw"}
    config = linear_q.Config(env=SEEN_CORRIDOR, env_params={"terminates": True}, **fields)
    params = linear_q.train(KEY, config).state.params
    np.testing.assert_array_equal(params.weights, [[21 / 64]])
    np.testing.assert_array_equal(params.bias, [27 / 64])


def test_fourier_by_hand() -> None:
    """Order 1 in two dimensions: c = 00, 01, 10, 11; x = (0, 1/2) scaled; steps 1, 1, 1, 1 / sqrt 2."""
    config = linear_q.Config(
        env="MountainCar-v0", features="fourier", fourier_order=1, obs_low=(-1.0, 0.0), obs_high=(1.0, 4.0)
    )
    np.testing.assert_allclose(linear_q.features(jnp.array([-1.0, 2.0]), config), [1, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(linear_q.features(jnp.array([1.0, 9.0]), config), [1, -1, -1, 1], atol=1e-6)
    np.testing.assert_allclose(linear_q.step_sizes(config), [[1, 1, 1, 0.5**0.5]])


def test_tiles_by_hand() -> None:
    """Two grids of 4 tiles on [0, 1]: x = 0.3 lies in tile 1 of the first; the second is half a tile on, 1.2 + 0.5."""
    config = linear_q.Config(env="MountainCar-v0", num_tilings=2, num_tiles=4, obs_low=(0.0, 0.0), obs_high=(1.0, 1.0))
    for x, on in ((0.3, [1, 5 + 1]), (0.4, [1, 5 + 2]), (1.0, [4, 5 + 4])):
        assert np.flatnonzero(features.tiles(jnp.array([x]), num_tilings=2, num_tiles=4)).tolist() == on
    # In two dimensions the second grid is shifted by 1 and 3 halves, that is by a half in both.
    assert np.flatnonzero(linear_q.features(jnp.array([0.3, 0.9]), config)).tolist() == [1 + 5 * 3, 25 + 1 + 5 * 4]
    np.testing.assert_allclose(linear_q.step_sizes(config), 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"env": "CartPole-v1"}, r"tile features need a finite obs_low .* CartPole-v1 has none in dimension 1: give"),
        ({"obs_low": (0.0,)}, "obs_low must have 2 entries, one for each observed number, but has 1"),
        ({"obs_low": (9.0, 9.0)}, "obs_low must be less than obs_high, but is not in dimension 0"),
        ({"env": "mdp/gridworld"}, "mdp/gridworld are numbers of states, of which tile features .*'one_hot'"),
        ({"env": "mdp/gridworld", "features": "raw"}, "numbers of states, of which raw features .*'one_hot'"),
        ({"features": "one_hot"}, "linear_q keeps one entry .* those of MountainCar-v0 .*tile, fourier or raw"),
        (
            {"env": "Acrobot-v1"},
            r"6 observed numbers make 4.25e\+06 tile features, more than 1,000,000: lower num_tiles",
        ),
        ({"env": "Breakout-MinAtar", "features": "fourier"}, "400 observed numbers .* lower fourier_order, or use raw"),
        ({"num_tilings": 6}, "num_tilings must be a power of two.*but is 6"),
        ({"obs_low": (float("nan"), 0.0)}, "obs_low must be finite"),
        ({"env": "Pendulum-v1"}, "linear_q acts in discrete action spaces only"),
        ({"features": "rbf"}, "features must be one of raw, one_hot, fourier, tile"),
    ],
)
def test_wrong_features_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_q.Config(**fields)
