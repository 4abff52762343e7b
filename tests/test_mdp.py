"""Exact MDPs: the tables against what is known of them, planners against linear solves, sampling against the tables."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purerl import envs, mdp
from purerl.algorithms import linear_q, value_iteration
from purerl.envs.mdp.model import _draw, approach
from purerl.mdp import MDP, Tabular

KEY = jax.random.key(0)
TWO = MDP(  # action 0 stays for 1, action 1 goes to the terminal state 1 with 1/2 and pays 4 there
    jnp.array([[[0, 0], [0, 1]], [[1, 1], [1, 1]]]),
    jnp.full((2, 2, 2), 0.5),
    jnp.array([[[1.0, 1.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]]),
    jnp.array([False, True]),
    jnp.array([1.0, 0.0]),
)


class Models(dict):
    """The ready-made MDPs by name, each made when first asked for, not while tests are collected."""

    def __missing__(self, name):
        self[name] = mdp.NAMES[name][0]()
        return self[name]


MODELS = Models()


@pytest.fixture(scope="module")
def garnets() -> MDP:
    """100 random MDPs, stacked."""
    return jax.vmap(lambda key: mdp.garnet(key, 12, 3, 4))(jax.random.split(KEY, 100))


def test_expectations_by_hand() -> None:
    """r(0, .) = (1, 2); of V = (10, 99) only state 0 counts, since 1 is terminal: (10, 5)."""
    np.testing.assert_allclose(mdp.expected_reward(TWO)[0], [1, 2])
    np.testing.assert_allclose(mdp.expected_value(TWO, jnp.array([10.0, 99.0]))[0], [10, 5])


def test_policy_value_by_hand() -> None:
    """gamma = 0.5. Staying: 1 / (1 - 0.5) = 2. Leaving: V = 2 + V / 4, so 8/3. Either with a half: 1.5 + 0.375 V."""
    for policy, value in (([1, 0], 2), ([0, 1], 8 / 3), ([0.5, 0.5], 2.4)):
        np.testing.assert_allclose(mdp.policy_value(TWO, [policy, policy], 0.5), [value, 0])
    np.testing.assert_allclose(mdp.optimal_value(TWO, 0.5), [8 / 3, 0])


def test_known_values() -> None:
    """The random walk's i / 6 (Sutton and Barto, example 6.2), FrozenLake's 0.542, the 13 steps along the cliff."""
    np.testing.assert_allclose(mdp.optimal_value(MODELS["mdp/random_walk"], 1.0), [0, *np.arange(1, 6) / 6, 0])
    lake, cliff = MODELS["mdp/frozen_lake_4x4_slippery"], MODELS["mdp/cliff_walking"]
    assert mdp.optimal_value(lake, 0.99)[0] == pytest.approx(0.542, abs=5e-4)
    assert mdp.optimal_value(cliff, 1.0)[36] == pytest.approx(-13)


def swept_value(model: MDP, gamma: float) -> np.ndarray:
    """V* by sweeps of eq. 4.10 in float64 from V = 0 until none moves it by 1e-13 of its size: shares no code."""
    following = np.arange(model.num_states) if model.successor is None else np.asarray(model.successor)
    probability, reward = np.asarray(model.probability, np.float64), np.asarray(model.reward, np.float64)
    probability /= probability.sum(-1, keepdims=True)
    value, ends = np.zeros(model.num_states), np.asarray(model.terminal)
    for _ in range(100_000):
        old, q = value, (probability * (reward + gamma * value[following])).sum(-1)
        value = np.where(ends, 0.0, q.max(-1))
        if np.abs(value - old).max() <= 1e-13 * np.abs(value).max():
            return value
    raise AssertionError("The sweeps do not converge.")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("gamma", [0.99, 1.0])
@pytest.mark.parametrize("name", mdp.NAMES)
def test_optimal_value_returns(name: str, gamma: float) -> None:
    """Where many actions are equally good, as in a lake or in rooms at gamma = 1, it ends, at what sweeps converge to.

    At gamma = 1 the policy must end as well: in a lake a step on the spot ties with the way out.
    """
    model = MODELS[name]
    np.testing.assert_allclose(mdp.optimal_value(model, gamma), swept_value(model, gamma), rtol=1e-8, atol=1e-8)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4, 1e8])
def test_optimal_value_has_no_scale(scale: float) -> None:
    """Rewards of any size: what rounding makes of equal actions grows with them."""
    for seed in range(5):
        model = mdp.garnet(jax.random.key(seed), 30, 4, 4)
        model = model._replace(reward=model.reward * scale)
        np.testing.assert_allclose(mdp.optimal_value(model, 0.99), swept_value(model, 0.99), rtol=1e-8)


@pytest.mark.timeout(20)
def test_endless_policies_have_no_value() -> None:
    """At gamma = 1: staying in state 0 of TWO is refused, not solved; it pays 1 a step, so V* is infinite."""
    with pytest.raises(ValueError, match=r"gamma = 1 needs a policy that terminates .* from state 0 this one never"):
        mdp.policy_value(TWO, [[1, 0], [1, 0]], 1.0)
    with pytest.raises(ValueError, match="from state 0 this one never does"):
        mdp.optimal_value(TWO, 1.0)
    # In float32 the rows of a slippery lake sum to more than 1, so that I - P can be inverted for a policy with no end.
    lake = MODELS["mdp/frozen_lake_8x8_slippery"]
    with pytest.raises(ValueError, match="terminates from every state"):
        mdp.policy_value(lake, np.tile([0, 0, 0, 1], (64, 1)), 1.0)
    with pytest.raises(ValueError, match="terminates from every state"):
        mdp.optimal_value(mdp.garnet(KEY, 5, 2, 2), 1.0)


@pytest.mark.parametrize("name", mdp.NAMES)
def test_dense_is_the_same(name: str) -> None:
    """Tables of all states give the sums of the short ones, which are distributions, and value iteration sees it."""
    model = MODELS[name]
    table = mdp.dense(model)
    mdp.check(table)
    value = jax.random.normal(KEY, (model.num_states,))
    np.testing.assert_allclose(mdp.expected_reward(table), mdp.expected_reward(model), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mdp.expected_value(table, value), mdp.expected_value(model, value), rtol=1e-4, atol=1e-5)
    assert (model.terminal[np.argmax(model.start)] == np.False_) and model.terminal.any()


def test_frozen_lake_is_gymnax() -> None:
    """Every entry of the slippery tables against 3,000 steps of gymnax's env: next states, rewards, ends."""
    from gymnax.environments.misc.frozen_lake import EnvState, FrozenLake

    env, model, num = FrozenLake(), mdp.dense(MODELS["mdp/frozen_lake_4x4_slippery"]), 3000

    def sample(key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, ...]:
        _, after, reward, terminated, _ = env.step_env(
            key, EnvState(position=state, time=0), action, env.default_params
        )
        return after.position, reward, terminated

    states, actions = (x.ravel() for x in np.meshgrid(np.arange(16), np.arange(4), indexing="ij"))
    keys = jax.random.split(KEY, num)
    following, reward, terminated = jax.jit(jax.vmap(jax.vmap(sample, (0, None, None)), (None, 0, 0)))(
        keys, states, actions
    )
    for i in np.flatnonzero(~np.asarray(model.terminal)[states]):
        row = np.asarray(model.probability[states[i], actions[i]])
        frequency = np.bincount(following[i], minlength=16) / num
        np.testing.assert_allclose(frequency, row, atol=5 * np.sqrt(0.25 / num))
        assert ((frequency > 0) == (row > 0)).all()
    np.testing.assert_array_equal(reward, np.asarray(following) == 15)
    np.testing.assert_array_equal(terminated, np.asarray(model.terminal)[following])


@pytest.mark.parametrize("model", [TWO, mdp.dense(TWO)], ids=["sparse", "dense"])
def test_env_samples_the_table(model: MDP) -> None:
    """From state 0, action 1: half stay for 0, half reach the end for 4; the clock truncates the third step."""
    env = Tabular(model, time_limit=3)
    step = jax.jit(jax.vmap(lambda key, time: env.step(key, (jnp.int32(0), time), jnp.int32(1), model), (0, None)))
    obs, (state, time), reward, terminated, truncated = step(jax.random.split(KEY, 4000), 2)
    np.testing.assert_array_equal(obs, state)
    np.testing.assert_array_equal(reward, 4.0 * (state == 1))
    np.testing.assert_array_equal(terminated, state == 1)
    assert truncated.all() and (time == 3).all() and not step(jax.random.split(KEY, 2), 1)[-1].any()
    assert stats.binomtest(int(terminated.sum()), 4000, 0.5).pvalue > 1e-3


def test_draw_never_gives_what_is_impossible() -> None:
    """Float sums of many equal parts end short of 1, and what is left must not fall on an entry of probability 0."""
    probability = jnp.concatenate([jnp.full(999, 1 / 999), jnp.zeros(3)])
    drawn = jax.vmap(lambda key: _draw(key, probability))(jax.random.split(KEY, 20_000))
    assert drawn.min() >= 0 and drawn.max() < 999
    assert stats.chisquare(np.bincount(drawn, minlength=999)).pvalue > 1e-3


def test_garnet(garnets: MDP) -> None:
    """Distributions over different successors, and no two alike."""
    for i in range(5):
        mdp.check(jax.tree.map(lambda x, i=i: x[i], garnets))
    successors = np.sort(garnets.successor, axis=-1)
    assert (np.diff(successors, axis=-1) > 0).all()
    assert len(np.unique(garnets.reward)) > 0.99 * garnets.reward.size


def test_names_are_envs() -> None:
    for name, model in ((name, MODELS[name]) for name in mdp.NAMES):
        env = envs.make(name)
        assert env.observation_space(env.default_params).n == model.num_states
        np.testing.assert_array_equal(env.default_params.probability, model.probability)
    with pytest.raises(ValueError, match=r"mdp/clif.*did you mean mdp/cliff_walking"):
        envs.make("mdp/clif")


@pytest.mark.parametrize("slippery", [True, False])
def test_from_env_is_the_map(slippery: bool) -> None:
    """FrozenLake enumerated from gymnax's steps is the one built from its map, state by state."""
    from gymnax.environments.misc.frozen_lake import FrozenLake

    enumerated = mdp.dense(mdp.from_env(FrozenLake(map_name="8x8", is_slippery=slippery)))
    drawn = mdp.dense(mdp.frozen_lake("8x8", slippery))
    for name in ("probability", "terminal", "start"):
        np.testing.assert_allclose(getattr(enumerated, name), getattr(drawn, name), atol=1e-6)
    np.testing.assert_allclose(mdp.expected_reward(enumerated), mdp.expected_reward(drawn), atol=1e-6)


def test_from_env_samples_as_the_env_does() -> None:
    """FourRooms, 104 cells: next cells of 20,000 steps of gymnax's own env against the table's row."""
    from gymnax.environments.misc.rooms import EnvState, FourRooms

    env, model = FourRooms(), MODELS["mdp/four_rooms"]
    assert model.num_states == 104 and model.terminal.sum() == 1
    cells, goal = np.asarray(env.coords), np.asarray(env.goal_fixed)
    np.testing.assert_array_equal(cells[np.argmax(model.terminal)], goal)
    np.testing.assert_array_equal(cells[np.argmax(model.start)], env.pos_fixed)

    def sample(key: jax.Array, cell: jax.Array, action: jax.Array) -> tuple[jax.Array, ...]:
        state = EnvState(pos=cell, goal=jnp.asarray(goal), time=0)
        _, after, reward, terminated, _ = env.step_env(key, state, action, env.default_params)
        return after.pos, reward, terminated

    step, num = jax.jit(jax.vmap(sample, (0, None, None))), 20_000
    beside_goal = int(np.flatnonzero((cells == goal - [0, 1]).all(1))[0])
    for state, action in ((0, 0), (beside_goal, 1), (51, 2), (103, 3)):
        position, reward, terminated = step(jax.random.split(KEY, num), jnp.asarray(cells[state]), action)
        following = (np.asarray(position)[:, None] == cells).all(-1).argmax(1)
        row = np.zeros(104)
        np.add.at(row, np.asarray(model.successor[state, action]), np.asarray(model.probability[state, action]))
        np.testing.assert_allclose(np.bincount(following, minlength=104) / num, row, atol=5 * np.sqrt(0.25 / num))
        assert float(reward.mean()) == pytest.approx(float(mdp.expected_reward(model)[state, action]), abs=0.02)
        np.testing.assert_array_equal(terminated, np.asarray(model.terminal)[following])


def test_from_env_of_a_deterministic_env() -> None:
    """DeepSea: a triangle of 8 rows and the 9 cells below; diving right all the way pays 1 less 8 moves of 0.01 / 8."""
    model = mdp.from_env("DeepSea-bsuite")
    assert model.num_states == 8 * 9 // 2 + 9 and model.terminal.sum() == 9
    assert mdp.optimal_value(model, 1.0)[np.argmax(model.start)] == pytest.approx(0.99)


class Rare:
    """A NamedTuple state with a clock, and a step that, in one state and one draw in three, goes elsewhere."""

    class State(NamedTuple):
        position: jax.Array
        time: jax.Array

    default_params = ()

    def __init__(self, chance: float):
        self.chance = chance

    def observation_space(self, params):
        return envs.Discrete(5)

    def action_space(self, params):
        return envs.Discrete(2)

    def reset(self, key, params):
        return jnp.int32(0), self.State(jnp.int32(0), jnp.int32(0))

    def step(self, key, state, action, params):
        slips = (state.position == 2) & (jax.random.uniform(key) < self.chance)
        position = jnp.where(slips, 0, jnp.minimum(state.position + action, 4)).astype(jnp.int32)
        ends = position == 4
        return position, self.State(position, state.time + 1), ends.astype(jnp.float32), ends, state.time > 100


def test_from_env_of_ones_own() -> None:
    assert mdp.from_env(Rare(0.0)).num_states == 5
    with pytest.raises(ValueError, match="random in a way that is not known of it"):
        mdp.from_env(Rare(0.3))
    np.testing.assert_array_equal(mdp.from_env("mdp/cliff_walking").successor, MODELS["mdp/cliff_walking"].successor)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("CartPole-v1", r"CartPole-v1 has at least \d+ states, more than max_states = 500: .*linear_q or dqn"),
        ("Catch-bsuite", "Catch-bsuite are random in a way that is not known of it.*learn from samples"),
        ("Pendulum-v1", "Tables list states and actions, but Pendulum-v1 has the action space Box"),
    ],
)
def test_from_env_refuses(env: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mdp.from_env(env, max_states=500)


# ---------------------------------------------------------------------------------------------------------------------
# Planners


@pytest.mark.parametrize("policy_iteration", [False, True])
@pytest.mark.parametrize(
    "name", ["mdp/frozen_lake_8x8_slippery", "mdp/four_rooms", "mdp/gridworld", "mdp/cliff_walking"]
)
def test_planners_reach_the_optimum(name: str, policy_iteration: bool) -> None:
    """V within 1e-5 of the linear solves; each residual at most gamma times the one before; greedy is optimal."""
    config = value_iteration.Config(env=name, policy_iteration=policy_iteration, gamma=0.95)
    state, metrics = value_iteration.train(KEY, config)
    best = mdp.optimal_value(MODELS[name], 0.95)
    np.testing.assert_allclose(state.params, best, atol=1e-5)
    residual = np.asarray(metrics["residual"])
    assert residual.shape == (config.num_updates,) and residual[-1] <= config.tolerance
    if not policy_iteration:
        moving = residual[:-1] > 1e-5
        assert (residual[1:][moving] <= 0.95 * residual[:-1][moving] + 1e-6).all()
    act = value_iteration.policy(state, config)
    actions = np.array([act(KEY, s) for s in range(len(best))])
    np.testing.assert_allclose(mdp.policy_value(MODELS[name], np.eye(4)[actions], 0.95), best, atol=1e-5)


@pytest.mark.parametrize("policy_iteration", [False, True])
@pytest.mark.parametrize("name", mdp.NAMES)
def test_greedy_earns_its_value_without_discount(name: str, policy_iteration: bool) -> None:
    """At gamma = 1 the greedy policy ends and gets what V says: where actions tie it does not step on the spot."""
    config, model = value_iteration.Config(env=name, policy_iteration=policy_iteration, gamma=1.0), MODELS[name]
    state, _ = value_iteration.train(KEY, config)
    actions = np.asarray(value_iteration.greedy_actions(state.params, config))
    exact = mdp.policy_value(model, np.eye(model.num_actions)[actions], 1.0)
    start, best = np.argmax(model.start), mdp.optimal_value(model, 1.0)
    np.testing.assert_allclose(exact[start], state.params[start], atol=1e-5)
    np.testing.assert_allclose(exact, best, rtol=1e-6, atol=1e-6)


def test_greedy_prefers_the_better_over_the_nearer() -> None:
    """Cells 0 1 2 3 with ends on both sides, 1 for the right one, gamma = 1/10: V = 1/10, 1, and not the left end."""
    walk = mdp.grid(("HS.G",), {"G": 1.0}, ends="HG")
    config = value_iteration.Config(env=Tabular(walk), gamma=0.1)
    value = value_iteration.train(KEY, config).state.params
    np.testing.assert_allclose(value, [0, 0.1, 1, 0], rtol=1e-6)
    assert value_iteration.greedy_actions(value, config)[1:3].tolist() == [1, 1]


@pytest.mark.parametrize("model", [TWO, mdp.dense(TWO)], ids=["sparse", "dense"])
def test_approach_by_hand(model: MDP) -> None:
    """From state 0 the end is one step away, by action 1 with a half; where only staying is allowed there is none."""
    both = jnp.ones((2, 2), bool)
    np.testing.assert_allclose(approach(model, both)[0], [0, 0.5])
    np.testing.assert_allclose(approach(model, both.at[0, 1].set(False))[0], [0, -1])


def products(jaxpr: Any) -> list[Any]:
    """Every matrix product in a program, those in its loops and calls included."""
    inner = [
        x for eqn in jaxpr.eqns for p in jax.tree.leaves(list(eqn.params.values())) if (x := getattr(p, "jaxpr", p))
    ]
    found = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    return found + [eqn for x in inner if hasattr(x, "eqns") for eqn in products(x)]


@pytest.mark.parametrize("policy_iteration", [False, True])
@pytest.mark.parametrize(("is_dense", "num"), [(False, 1), (True, 2)])
def test_products_of_tables_are_exact(is_dense: bool, num: int, policy_iteration: bool) -> None:
    """Accelerators round factors to 10 bits unless told not to: an error of 0.01 in a lake's V. Told at every one.

    num: the fewest there are, P V of a dense table and the start's value.
    """
    env = Tabular(mdp.dense(TWO) if is_dense else TWO)
    config = value_iteration.Config(env=env, policy_iteration=policy_iteration)
    state = value_iteration.init(KEY, config)
    assert_exact(jax.make_jaxpr(value_iteration.update)(state, config), num)


@pytest.mark.parametrize(("features", "num"), [("tile", 2), ("fourier", 4), ("one_hot", 2)])
def test_products_of_linear_features_are_exact(features: str, num: int) -> None:
    """num: Q of this observation and of the next, and the angles of Fourier features."""
    env = "mdp/cliff_walking" if features == "one_hot" else "MountainCar-v0"
    config = linear_q.Config(env=env, features=features, num_steps=2)
    state = jax.eval_shape(linear_q.init, KEY, config)
    assert_exact(jax.make_jaxpr(linear_q.update)(state, config), num)


def assert_exact(program: Any, num: int) -> None:
    found = products(program.jaxpr)
    assert len(found) >= num
    for eqn in found:
        assert eqn.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2, eqn


@pytest.mark.parametrize("policy_iteration", [False, True])
def test_many_mdps_in_one_call(garnets: MDP, policy_iteration: bool) -> None:
    """100 random MDPs vmapped, each to the optimum of its own linear solves."""
    env = Tabular(jax.tree.map(lambda x: x[0], garnets))

    config = value_iteration.Config(env=env, policy_iteration=policy_iteration, gamma=0.9)

    def solve(model: MDP) -> jax.Array:
        return value_iteration.train(KEY, config.replace(env_params=model)).state.params

    values = jax.jit(jax.vmap(solve))(garnets)
    for i, value in enumerate(values):
        best = mdp.optimal_value(jax.tree.map(lambda x, i=i: x[i], garnets), 0.9)
        np.testing.assert_allclose(value, best, atol=1e-5)


def test_chunked_updates_equal_train() -> None:
    """`update` by `update` gives what `train` gives, also after the residual is within the tolerance."""
    config = value_iteration.Config(env="mdp/frozen_lake_4x4", max_sweeps=12)
    update = jax.jit(value_iteration.update)
    state, rows = value_iteration.init(KEY, config), []
    for _ in range(config.num_updates):
        state, row = update(state, config)
        rows.append(row)
    whole, metrics = value_iteration.train(KEY, config)
    assert rows[-1]["residual"] <= config.tolerance < rows[3]["residual"]
    np.testing.assert_array_equal(state.params, whole.params)
    assert state.updates == whole.updates and state.sweeps == whole.sweeps < config.num_updates
    for name, x in metrics.items():
        np.testing.assert_array_equal([row[name] for row in rows], x)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


WRONG = {
    "row does not sum to 1": ({"probability": TWO.probability.at[0, 1, 1].set(0.4)}, r"probability\[0, 1\] .* 0.9"),
    "NaN": ({"probability": TWO.probability.at[1, 0, 1].set(jnp.nan)}, r"NaN at \(1, 0, 1\)"),
    "negative": ({"probability": TWO.probability.at[0, 0].set(jnp.array([-1.0, 2.0]))}, r"negative at \(0, 0, 0\)"),
    "infinite reward": ({"reward": TWO.reward.at[0, 0, 1].set(jnp.inf)}, r"reward must be finite.*\(0, 0, 1\)"),
    "reward of another shape": ({"reward": TWO.reward[:, :1]}, r"MDP.reward must have the shape \(2, 2, 2\)"),
    "terminal of another shape": ({"terminal": jnp.zeros(3, bool)}, r"MDP.terminal must have the shape \(2,\)"),
    "start is no distribution": ({"start": jnp.array([0.5, 0.6])}, r"MDP.start must sum to 1, but sums to 1.1"),
    "successor outside": (
        {"successor": TWO.successor.at[0, 0, 0].set(2)},
        r"successor must lie in 0 .. 1.*\(0, 0, 0\)",
    ),
    "a matrix": ({"probability": TWO.probability[0]}, r"\[states, actions, successors\].*\(2, 2\)"),
    "short dense rows": (
        {"successor": None, "probability": jnp.ones((2, 2, 1)), "reward": jnp.ones((2, 2, 1))},
        r"dense table must be \[S, A, S\]",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_wrong_tables_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tabular(TWO._replace(**changes))


def test_planner_refuses_what_it_cannot_plan() -> None:
    with pytest.raises(TypeError, match="CartPole-v1 shows no transition probabilities"):
        value_iteration.Config(env="CartPole-v1")
    with pytest.raises(ValueError, match=r"value_iteration.Config.gamma must be .*\[0, 1\], but is 1.5"):
        value_iteration.Config(gamma=1.5)
    endless = Tabular(TWO._replace(terminal=jnp.array([False, False])))
    with pytest.raises(ValueError, match="gamma = 1 needs an end within reach of every state, but state 0"):
        value_iteration.Config(env=endless, gamma=1.0)
    assert value_iteration.Config(env=Tabular(TWO), gamma=1.0).gamma == 1.0
