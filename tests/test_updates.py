"""What an update does around its loss: what is bootstrapped from, what is normalised by what, and every key once."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import purerl
from purerl import dqn, envs, linear_q, mdp, ppo, pqn, q_learning, sarsa, td, trpo, value_iteration
from purerl.core import rollout
from purerl.core.types import Transition
from tests import tiny
from tests.toy_envs import Chain, Levers

KEY = jax.random.key(0)
CHAIN = Chain()
# Of the chain's first 3 cells; the clock cuts an episode after 5 steps.
WALK = {"env": CHAIN, "num_envs": 2, "num_steps": 16, "gamma": 0.5}


def by_cell(obs: jax.Array) -> jax.Array:
    """A value of each observation of the chain, which tells one episode, and one step of it, from any other."""
    return obs[..., 0] + 10 * obs[..., 1] + obs[..., 2]


# ---------------------------------------------------------------------------------------------------------------------
# Policy gradients with advantages


@pytest.fixture(scope="module", params=["a2c", "ppo"])
def collected(request: pytest.FixtureRequest) -> tuple[Any, list[Any], list[Any], list[Transition], Any]:
    """An algorithm, states, batches and raw steps of two rollouts in a row, with all that is normalised.

    The critic is `by_cell`. Advantages look as far ahead as the rollout goes.
    """
    algorithm = getattr(purerl, request.param)
    far = {"n_step": 16} if hasattr(algorithm.Config, "n_step") else {}
    config = tiny.config(algorithm, **WALK, **far, gae_lambda=0.25, normalize_reward=True, normalize_obs=True)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithm, "critic", lambda weights, obs, config: by_cell(obs))
        unroll = algorithm.unroll

        def record(*args: Any) -> Any:
            result = unroll(*args)
            seen.append(result[1])
            return result

        def collect(key: Any, state: Any) -> Any:
            state, batch, _ = algorithm.collect(key, state, config)
            return state, batch, seen.pop()

        patch.setattr(algorithm, "unroll", record)
        state = jax.jit(lambda: algorithm.init(KEY, config))()
        # Statistics of something else, so that the first rollout is not normalised by 0 and 1.
        stats = state.obs_stats._replace(mean=jnp.array([1.0, 2.0, 3.0]), var=jnp.array([4.0, 0.25, 1.0]), num=50.0)
        states, batches, steps, compiled = [state._replace(obs_stats=stats)], [], [], jax.jit(collect)
        for key in jax.random.split(KEY):
            state, batch, trajectory = compiled(key, states[-1])
            states, batches, steps = [*states, state], [*batches, batch], [*steps, trajectory]
    return algorithm, states, batches, steps, config


def normalized(obs: jax.Array, stats: Any) -> np.ndarray:
    mean, var = np.asarray(stats.mean), np.asarray(stats.var)
    return np.clip((np.asarray(obs) - mean) / np.sqrt(var + 1e-8), -10, 10)


def test_normalizes_obs_by_what_was_seen_before(collected: Any) -> None:
    """A whole update goes by the statistics that it begins with; what it saw is counted from the next one on."""
    algorithm, states, batches, steps, config = collected
    for i in range(2):
        stats = states[i].obs_stats
        expected = normalized(steps[i].obs, stats).reshape(-1, 3)
        np.testing.assert_allclose(batches[i].obs, expected, rtol=1e-4, atol=1e-5)
        if hasattr(batches[i], "log_prob"):
            pi = algorithm.distribution(states[i].params.actor, batches[i].obs, config)
            np.testing.assert_allclose(batches[i].log_prob, pi.log_prob(batches[i].action), rtol=1e-4)
    # 50 observations with mean (1, 2, 3), and those of the two rollouts.
    obs = np.concatenate([np.asarray(x.obs).reshape(-1, 3) for x in steps])
    num, mean = 50 + len(obs), (50 * np.array([1.0, 2.0, 3.0]) + obs.sum(0)) / (50 + len(obs))
    assert states[2].obs_stats.num == num
    np.testing.assert_allclose(states[2].obs_stats.mean, mean, rtol=1e-5)


def test_acts_by_the_statistics_of_its_state(collected: Any) -> None:
    """What a policy is asked in evaluation is normalised too: other statistics, other probabilities."""
    algorithm, states, _, _, config = collected
    obs = jnp.array([2.0, 3.0, 0.5])
    params = jax.tree.map(lambda x: 30 * x, states[0].params)  # at first the head is too small for anything to show
    state = states[0]._replace(params=params)
    observed = jnp.asarray(normalized(obs, state.obs_stats))
    probability = jax.nn.softmax(algorithm.distribution(params.actor, observed, config).logits)
    act = algorithm.policy(state, config, deterministic=False)
    drawn = np.asarray(jax.vmap(act, (0, None))(jax.random.split(KEY, 4000), obs)).mean()
    plain = jax.nn.softmax(algorithm.distribution(params.actor, obs, config).logits)[1]
    assert drawn == pytest.approx(float(probability[1]), abs=0.03) and abs(plain - probability[1]) > 0.1


class WalksFromTheLeft(nn.Module):
    """Action 1 where the chain's cell is less than 0 as it is observed, else action 0."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        self.param("unused", nn.initializers.zeros, ())
        return 1e3 * jnp.stack([x[..., 0], -x[..., 0]], -1)


@pytest.mark.parametrize("name", ["a2c", "actor_critic", "ppo", "reinforce", "trpo"])
def test_gathers_data_by_normalized_obs(name: str) -> None:
    """The mean cell is 3/2: from cells 0 and 1 it walks on, and stays in cell 2. Raw, cell 1 would hold it."""
    algorithm = getattr(purerl, name)
    config = tiny.config(algorithm, env=CHAIN, num_steps=16, normalize_obs=True, actor_network=WalksFromTheLeft())
    state = jax.jit(lambda: algorithm.init(KEY, config))()
    state = state._replace(obs_stats=state.obs_stats._replace(mean=jnp.array([1.5, 0.0, 0.0]), num=50.0))
    batch = jax.jit(lambda state: algorithm.collect(KEY, state, config)[1])(state)
    cell = np.round(np.asarray(batch.obs)[:, 0] + 1.5)
    assert set(cell) == {0, 1, 2}
    np.testing.assert_array_equal(batch.action, cell < 2)


def test_value_targets_by_a_loop(collected: Any) -> None:
    """Rewards over the deviation of their discounted sums so far, the first rollout's included.

    gamma = 1/2 and lambda = 1/4, so
    A_t = r_t + V(final_obs_t) / 2 - V(obs_t) + A_{t+1} / 8, without the second term where terminated and without the
    last where an episode ends; the target is A_t + V(obs_t).
    """
    _, states, batches, steps, _ = collected
    total, totals = np.zeros(2), []
    for i in range(2):
        done, terminated, reward = (np.asarray(x) for x in (steps[i].done, steps[i].terminated, steps[i].reward))
        assert terminated.any() and (done & ~terminated).any()
        for t in range(16):
            total = total / 2 + reward[t]
            totals.append(total)
            total = np.where(done[t], 0.0, total)
        scaled = reward / np.std(totals)
        value, ahead = (by_cell(normalized(x, states[i].obs_stats)) for x in (steps[i].obs, steps[i].final_obs))
        advantage, after = np.zeros((16, 2)), np.zeros(2)
        for t in reversed(range(16)):
            after = scaled[t] + np.where(terminated[t], 0.0, ahead[t] / 2) - value[t] + np.where(done[t], 0, after / 8)
            advantage[t] = after
        np.testing.assert_allclose(batches[i].advantage, advantage.ravel(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(batches[i].value_target, (advantage + value).ravel(), rtol=1e-3, atol=1e-3)
        if hasattr(batches[i], "value"):
            np.testing.assert_allclose(batches[i].value, value.ravel(), rtol=1e-4, atol=1e-4)
    assert states[2].reward_scale.stats.num == 64


# ---------------------------------------------------------------------------------------------------------------------
# Learners of Q

# From obs 1 to final_obs 2, 3 and 4; the second terminates and the third is cut by the clock.
STEPS = Transition(
    obs=jnp.ones((3, 1)),
    action=jnp.array([0, 1, 1]),
    reward=jnp.array([1.0, 2.0, 3.0]),
    terminated=jnp.array([False, True, False]),
    truncated=jnp.array([False, False, True]),
    final_obs=jnp.array([[2.0], [3.0], [4.0]]),
)


def q_of(params: jax.Array, obs: jax.Array, config: Any) -> jax.Array:
    """Q(s, a) = s params_a."""
    return jnp.einsum("...s,a->...a", obs, params)


def test_dqn_target_looks_at_final_obs(monkeypatch: pytest.MonkeyPatch) -> None:
    """max_a Q(s', a; target) is 2, 3 and 4 times 5; discounts 1/2, 1/2 and 1/4."""
    monkeypatch.setattr(dqn, "q_values", q_of)
    discount = jnp.array([0.5, 0.5, 0.25])
    target = dqn.td_target(jnp.array([1.0, -1.0]), jnp.array([4.0, 5.0]), STEPS, discount, tiny.config(dqn))
    np.testing.assert_array_equal(target, [1 + 5, 2, 3 + 5])


def test_pqn_target_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """gamma = lambda = 1/2, reward_scale = 2, max_a Q(final_obs, a) = 10, 15, 20.

    G_2 = 6 + 20 / 2 = 16, G_1 = 4, G_0 = 2 + (10 / 2 + 4 / 2) / 2 = 5.5
    """
    monkeypatch.setattr(pqn, "q_values", q_of)
    config = tiny.config(pqn, gamma=0.5, td_lambda=0.5, reward_scale=2.0)
    target = pqn.td_target(jnp.array([4.0, 5.0]), jax.tree.map(lambda x: x[:, None], STEPS), config)
    np.testing.assert_array_equal(target, [[5.5], [4.0], [16.0]])


@pytest.mark.thorough
def test_dqn_learns_from_steps_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of one env each, discounted by gamma^2 where the first was no end, and valued by the target network.

    The chain's observation names its cell, its step and its episode, so it tells what followed what.
    """
    given = {}

    def record(params: Any, target_params: Any, batch: Transition, discount: Any, config: Any) -> jax.Array:
        given.update(params=params, target=target_params, batch=batch, discount=discount)
        return batch.reward

    monkeypatch.setattr(dqn, "td_target", record)
    config = tiny.config(dqn, env=CHAIN, n_step=2, gamma=0.5, batch_size=64, learning_starts=64)
    state = jax.jit(lambda: dqn.init(KEY, config))()
    state = state._replace(target_params=jax.tree.map(lambda x: x + 1, state.params))
    dqn.gradient_step(KEY, state, config)
    tiny.assert_same_bits(given["params"], state.params)
    tiny.assert_same_bits(given["target"], state.target_params)
    (cell, time, label), (last, end, after) = (np.asarray(x).T for x in (given["batch"].obs, given["batch"].final_obs))
    np.testing.assert_array_equal(label, after)
    np.testing.assert_array_equal(given["discount"], 0.5 ** (end - time))
    first = cell + np.asarray(given["batch"].action)
    np.testing.assert_allclose(given["batch"].reward, np.where(end - time == 2, first + 0.5 * last, first))
    assert set(end - time) == {1.0, 2.0}


def test_dqn_remembers_what_happened() -> None:
    """learning_starts = 400 steps of the uniform policy, then an update's 4 iterations of 2 steps in 2 envs.

    In the chain, where an action led tells whether it is the observation before the reset. Of 400 actions, half are 1,
    within five standard deviations.
    """
    config = tiny.config(dqn, env=CHAIN, learning_starts=400, buffer_size=500, total_timesteps=1000)
    before = jax.jit(lambda: dqn.init(KEY, config))()
    after, _ = jax.jit(lambda state: dqn.update(state, config))(before)
    for memory, size in ((before.replay, 400), (after.replay, 400 + 16)):
        steps = dqn.replay._unpack(memory.rows[:size], envs.bind(config).transition)
        (cell, time, label), (last, end, same) = np.asarray(steps.obs).T, np.asarray(steps.final_obs).T
        assert memory.size == size
        np.testing.assert_array_equal(last, cell + steps.action)
        np.testing.assert_array_equal(end, time + 1)
        np.testing.assert_array_equal(label, same)
        np.testing.assert_array_equal(steps.reward, last)
        np.testing.assert_array_equal(steps.terminated, last == 3)
        np.testing.assert_array_equal(steps.truncated, end == 5)
        assert abs(int(steps.action[:400].sum()) - 200) < 5 * 10


@pytest.mark.parametrize(("steps", "rate"), [(5, 0.25), (4, 0.0)], ids=["due", "not due"])
def test_dqn_target_moves_by_tau(steps: int, rate: float) -> None:
    """Period 3: the sixth gradient step takes it a quarter of the way to the new parameters, the fifth no way."""
    config = tiny.config(dqn, tau=0.25, target_update_period=3)
    old = jax.jit(lambda: dqn.init(KEY, config))()
    old = old._replace(target_params=jax.tree.map(lambda x: x + 1, old.params), gradient_steps=jnp.int32(steps))
    new, _ = jax.jit(lambda state: dqn.gradient_step(KEY, state, config))(old)
    expected = jax.tree.map(lambda x, target: target + rate * (x - target), new.params, old.target_params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), new.target_params, expected)


def test_sarsa_takes_its_next_action_where_it_is() -> None:
    """Every step ends; the greedy action of the start is 1, that of the end 0, and nothing is learned."""
    model = mdp.MDP(
        successor=jnp.ones((2, 2, 1), jnp.int32),
        probability=jnp.ones((2, 2, 1)),
        reward=jnp.zeros((2, 2, 1)),
        terminal=jnp.array([False, True]),
        start=jnp.array([1.0, 0.0]),
    )
    fields = {"epsilon_start": 0.0, "epsilon_end": 0.0, "learning_rate": 0.0, "num_steps": 1, "total_timesteps": 4}
    config = sarsa.Config(env=mdp.Tabular(model), **fields)
    state = sarsa.init(KEY, config)._replace(params=jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    state, metrics = jax.jit(lambda state: sarsa.update(state, config))(state)
    assert metrics["episodes"] == 1 and state.env_state.obs == 0
    np.testing.assert_array_equal(state.action, [1])


def preferring(action: int, params: Any) -> Any:
    """Parameters of a Q that is 1 for one action and 0 for the other, whatever is observed."""
    bias = jnp.zeros(2).at[action].set(1.0)
    if isinstance(params, linear_q.Params):
        return linear_q.Params(0 * params.weights, bias)
    body = jax.tree.map(jnp.zeros_like, params)["params"]["body"]
    return {"params": {"body": body | {"Dense_1": {**body["Dense_1"], "bias": bias}}}}


@pytest.mark.parametrize(
    ("name", "more"), [("dqn", {"target_update_period": 1000}), ("pqn", {}), ("linear_q", {"features": "raw"})]
)
def test_acts_by_what_it_has_learned(name: str, more: dict[str, Any]) -> None:
    """With epsilon = 0, parameters that prefer action 1 walk one cell on with every step, and the others none.

    A target network that prefers the other action is not asked. After DQN's prefill the chain is anywhere.
    """
    algorithm, endless = getattr(purerl, name), {"env": CHAIN, "env_params": {"goal": 1000, "limit": 1000}}
    fields = {"epsilon_start": 0.0, "epsilon_end": 0.0, "learning_rate": 0.0, **endless, **more}
    config = tiny.config(algorithm, **fields)
    start = jax.jit(lambda: algorithm.init(KEY, config))()
    update = jax.jit(lambda state: algorithm.update(state, config)[0])
    for action in (0, 1):
        state = start._replace(params=preferring(action, start.params))
        assert algorithm.policy(state, config)(KEY, start.env_state.obs[0]) == action
        if name == "dqn":
            state = state._replace(target_params=preferring(1 - action, start.params))
            assert dqn.policy(state, config)(KEY, start.env_state.obs[0]) == action
        moved = update(state).env_state.obs - start.env_state.obs
        np.testing.assert_array_equal(moved[:, 0], action * moved[:, 1])
        assert (moved[:, 1] == (config.env_steps(1) - config.env_steps(0)) // len(moved)).all()


def test_unroll_acts_on_the_present_observation() -> None:
    """Action 1 at even steps and 0 at odd ones, in each env at its own time."""
    env = envs.BoundEnv(CHAIN, {"goal": 9, "limit": jnp.array([2, 3])}, 2)
    act = lambda key, obs: (obs[:, 1] % 2 == 0).astype(jnp.int32)  # noqa: E731
    _, steps, _ = jax.jit(lambda: rollout.unroll(KEY, env, env.reset(KEY), act, 6))()
    np.testing.assert_array_equal(steps.action.T, [[1, 0, 1, 0, 1, 0], [1, 0, 1, 1, 0, 1]])


# One state, from which action 1 pays 1 and action 0 nothing, for ever.
LOOP = mdp.MDP(
    successor=jnp.zeros((1, 2, 1), jnp.int32),
    probability=jnp.ones((1, 2, 1)),
    reward=jnp.array([[[0.0], [1.0]]]),
    terminal=jnp.array([False]),
    start=jnp.ones(1),
)


def test_double_q_learning_acts_by_both_tables() -> None:
    """Q_1 = (3, 0) and Q_2 = (0, 4) add up to (3, 4): action 1, in 64 steps of learning and by the policy.

    Either table learns from some of the steps, each from its own.
    """
    fields = {"epsilon_start": 0.0, "epsilon_end": 0.0, "learning_rate": 0.0, "num_steps": 64, "total_timesteps": 64}
    config = q_learning.Config(env=mdp.Tabular(LOOP), double_q=True, count_visits=True, **fields)
    state = q_learning.init(KEY, config)._replace(params=jnp.array([[[3.0, 0.0]], [[0.0, 4.0]]]))
    assert q_learning.policy(state, config)(KEY, jnp.int32(0)) == 1
    visits = jax.jit(lambda state: q_learning.update(state, config))(state)[0].visits
    np.testing.assert_array_equal(visits.sum((0, 1)), [0, 64])
    assert (visits.sum((1, 2)) > 16).all()


def test_expected_sarsa_aims_by_the_epsilon_of_the_time() -> None:
    """epsilon = 1/2 now and 0 in the end; Q = (0, 8), gamma = 1/2, alpha = 1: r + (4 / 2 + 8 / 2) / 2 = r + 3."""
    fields = {"gamma": 0.5, "epsilon_start": 0.5, "epsilon_end": 0.0, "learning_rate": 1.0, "num_steps": 1}
    config = sarsa.Config(env=mdp.Tabular(LOOP), expected=True, total_timesteps=4, **fields)
    start = sarsa.init(KEY, config)._replace(params=jnp.array([[0.0, 8.0]]))
    params = jax.jit(lambda state: sarsa.update(state, config))(start)[0].params
    np.testing.assert_allclose(params[0, start.action], start.action + 3.0)


def test_sarsa_draws_its_first_action() -> None:
    """With epsilon_start, not epsilon_end: over 64 keys all four actions of the cliff come up."""
    config = tiny.config(sarsa, epsilon_start=1.0, epsilon_end=0.0)
    actions = jax.jit(jax.vmap(lambda key: sarsa.init(key, config).action))(jax.random.split(KEY, 64))
    assert set(np.ravel(actions)) == {0, 1, 2, 3}


# Cells 0 1 2 3, each step one on, which pays the cell's number.
ROW = mdp.MDP(
    successor=jnp.array([[[1]], [[2]], [[3]], [[3]]]),
    probability=jnp.ones((4, 1, 1)),
    reward=jnp.arange(4.0)[:, None, None],
    terminal=jnp.array([False, False, False, True]),
    start=jnp.array([1.0, 0.0, 0.0, 0.0]),
)


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        # two steps: 0 + 1 / 2 + 8 / 4, and one that is left: 1 + 8 / 2
        ({"n_step": 2}, [2.5, 5, 8, 8]),
        # lambda = 1/2: 1 + 8 / 2, 0 + (8 + 5) / 4
        ({"lambda_return": True, "td_lambda": 0.5}, [3.25, 5, 8, 8]),
    ],
    ids=["two steps", "lambda"],
)
def test_td_looks_no_further_than_its_update(switches: dict[str, Any], expected: list[float]) -> None:
    """An update is the first two steps along the row, V = 8 at first, gamma = 1/2, alpha = 1."""
    fields = {"gamma": 0.5, "learning_rate": 1.0, "initial_value": 8.0, "num_steps": 2, "total_timesteps": 2}
    config = td.Config(env=mdp.Tabular(ROW), **fields, **switches)
    np.testing.assert_array_equal(td.train(KEY, config).state.params, expected)


@pytest.mark.parametrize("action", [0, 1])
def test_td_follows_its_policy(action: int) -> None:
    """gamma = 0, alpha = 1/2, 16 steps of the loop: V = 1 - 2^-16 only if all of them took action 1."""
    fields = {"gamma": 0.0, "learning_rate": 0.5, "num_steps": 16, "total_timesteps": 16}
    config = td.Config(env=mdp.Tabular(LOOP), target_policy=np.eye(2)[[action]], **fields)
    state = td.train(KEY, config).state
    np.testing.assert_allclose(state.params, [action * (1 - 2**-16)], rtol=1e-6)
    for deterministic in (True, False):
        assert td.policy(state, config, deterministic=deterministic)(KEY, jnp.int32(0)) == action


def test_linear_steps_are_scaled_by_the_features() -> None:
    """MountainCar pays -1: alpha = 1 takes Q(s, a) from 0 to -1 at once, however many tilings share the step."""
    config = linear_q.Config(num_tilings=4, learning_rate=1.0, bias=False, num_steps=1, total_timesteps=1)
    start = linear_q.init(KEY, config)
    state = jax.jit(lambda state: linear_q.update(state, config))(start)[0]
    q = linear_q.q_values(state.params, linear_q.features(start.env_state.obs, config))
    np.testing.assert_allclose(q.min(), -1.0, rtol=1e-6)
    assert (state.params.weights != 0).sum() == 4


def test_sweeps_of_policy_evaluation_by_hand() -> None:
    """The row of cells above, gamma = 1/2, from 0: 0 1 2, then 1/2 2 2, then 1 2 2, and a last sweep moves nothing."""
    config = value_iteration.Config(env=mdp.Tabular(ROW), gamma=0.5, policy_iteration=True)
    value, sweeps = jax.jit(lambda: value_iteration.evaluate_greedy(jnp.zeros(4), config))()
    np.testing.assert_array_equal(value, [1, 2, 2, 0])
    assert sweeps == 4


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("q_learning", lambda value: value[None, :, None]),
        ("sarsa", lambda value: value[:, None]),
        ("td", lambda value: value),
        ("linear_q", lambda value: linear_q.Params(value[None], None)),
    ],
)
def test_time_limits_in_tables_by_hand(name: str, params: Any) -> None:
    """Along the row, with a time limit of 2: 0 1, and 0 1 again, each valued by the cell it led to, not by the next 0.

    Values are 0 10 20 30 at first, gamma = 1/2, alpha = 1: 0 + 10 / 2 = 5, 1 + 20 / 2 = 11, 0 + 11 / 2 = 5.5, and 11
    again. The errors are 5, 1, 1/2 and 0.
    """
    algorithm = getattr(purerl, name)
    fields: dict[str, Any] = {"gamma": 0.5, "learning_rate": 1.0, "num_steps": 4, "total_timesteps": 4}
    own = {"features": "one_hot", "bias": False} if name == "linear_q" else {"count_visits": True, "visit_power": 0.0}
    config = algorithm.Config(env=mdp.Tabular(ROW, time_limit=2), **fields, **own)
    state = algorithm.init(KEY, config)._replace(params=params(10 * jnp.arange(4.0)))
    state, metrics = jax.jit(lambda state: algorithm.update(state, config))(state)
    np.testing.assert_array_equal(np.ravel(jax.tree.leaves(state.params)[0]), [5.5, 11, 20, 30])
    if name != "linear_q":
        np.testing.assert_array_equal(np.ravel(state.visits), [2, 2, 0, 0])
    expected = {"td_error": 6.5 / 4, "episodes": 2, "episode_return": 1.0, "episode_length": 2.0}
    assert {key: float(metrics[key]) for key in expected} == expected


def test_planner_breaks_ties_towards_an_end() -> None:
    """gamma = 1: a step on the spot is worth as much as the way out, which pays 1, but never gets it."""
    way_out = mdp.MDP(
        successor=jnp.array([[[0], [1]], [[1], [1]]]),
        probability=jnp.ones((2, 2, 1)),
        reward=jnp.array([[[0.0], [1.0]], [[0.0], [0.0]]]),
        terminal=jnp.array([False, True]),
        start=jnp.array([1.0, 0.0]),
    )
    config = value_iteration.Config(env=mdp.Tabular(way_out), gamma=1.0)
    value = jnp.array([1.0, 0.0])
    np.testing.assert_array_equal(value_iteration.q_values(value, config)[0], [1, 1])
    assert value_iteration.greedy_actions(value, config)[0] == 1


# ---------------------------------------------------------------------------------------------------------------------
# From one update to the next

ACTING = [name for name in purerl.ALGORITHMS if name != "value_iteration"]
PHASES = ("num_epochs", "num_minibatches", "iterations_per_update", "gradient_steps")


@pytest.mark.parametrize("name", ACTING)
def test_an_update_goes_on_where_the_last_one_stopped(name: str) -> None:
    """The episode in progress, Adam's moments and the count of updates are carried on; no episode ends here."""
    algorithm = getattr(purerl, name)
    fields: dict[str, Any] = {"env": CHAIN, "env_params": {"goal": 1000, "limit": 1000}}
    if isinstance(envs.bind(tiny.config(algorithm)).obs_space, envs.Discrete):
        fields = {"env": "mdp/cliff_walking"}
    elif envs.bind(tiny.config(algorithm)).continuous:
        fields = {"env": Levers(high=(2.0, 8.0), limit=1000)}  # from 9 on they would end it
    elif hasattr(algorithm.Config, "features"):
        fields["features"] = "raw"
    config = tiny.config(algorithm, **fields)
    update = jax.jit(lambda state: algorithm.update(state, config)[0])
    start = jax.jit(lambda: algorithm.init(KEY, config))()
    state = update(update(start))
    if hasattr(state, "env_state"):  # who plays whole episodes has none in progress
        num_envs = len(state.env_state.episode_length)
        np.testing.assert_array_equal(state.env_state.episode_length, [config.env_steps(2) // num_envs] * num_envs)
    assert state.updates == 2
    if hasattr(state, "opt_state"):
        gradient_steps = math.prod(getattr(config, phase, 1) for phase in PHASES)
        if hasattr(config, "policy_steps"):  # for each env step; the other gradient steps are the model's
            gradient_steps = config.num_steps * config.policy_steps
        # A model may have learned from what the memory was filled with.
        before, after = (optax.tree.get_all_with_path(x.opt_state, "count") for x in (start, state))
        counts = [last - first for (_, first), (_, last) in zip(before, after, strict=True)]
        delays = [getattr(config, "policy_delay", 1)] + [1] * (len(counts) - 1)  # the actor's is the first
        assert counts == [2 * gradient_steps // delay for delay in delays]


@pytest.mark.parametrize("algorithm", [trpo, ppo, pqn], ids=["trpo", "ppo", "pqn"])
def test_every_step_is_learned_from_once_an_epoch(algorithm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of two minibatches, each with the parameters of its time.

    The chain's cell, step and label tell each of the 16 steps apart.
    """
    seen, norms, loss = [], [], algorithm.loss

    def record(params: Any, batch: Any, *args: Any) -> Any:
        jax.debug.callback(lambda obs: seen.append(np.asarray(obs)), batch.obs, ordered=True)
        jax.debug.callback(lambda norm: norms.append(float(norm)), optax.tree.norm(params), ordered=True)
        return loss(params, batch, *args)

    monkeypatch.setattr(algorithm, "loss", record)
    config = tiny.config(algorithm, env=CHAIN, learning_rate=0.1)
    state = jax.jit(lambda: algorithm.init(KEY, config))()
    jax.block_until_ready(jax.jit(lambda state: algorithm.update(state, config))(state))
    jax.effects_barrier()
    epochs = np.array(seen).reshape(2, 16, 3)
    assert len(np.unique(epochs[0], axis=0)) == 16
    np.testing.assert_array_equal(*(np.unique(epoch, axis=0) for epoch in epochs))
    assert (epochs[0] != epochs[1]).any()
    assert len(set(norms)) == 4


# ---------------------------------------------------------------------------------------------------------------------
# Keys


@pytest.mark.parametrize("name", ACTING)
def test_no_key_is_used_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced only: JAX follows every key from `init` through the updates, the network's and the envs' among them."""
    algorithm = getattr(purerl, name)
    if name == "sarsa":  # uses one key for two draws on purpose, of which one counts
        monkeypatch.setattr(sarsa, "epsilon_greedy", lambda key, q, epsilon: q.argmax(-1))
    config = tiny.config(algorithm)

    def two_updates(key: Any) -> Any:
        state, _ = algorithm.update(algorithm.init(key, config), config)
        return algorithm.update(state, config)

    with jax.debug_key_reuse(True):
        jax.jit(two_updates).trace(KEY)


def test_keys_of_a_step_are_all_different(monkeypatch: pytest.MonkeyPatch) -> None:
    """One to act with for each step, and two for each env: of its step and of its next start."""
    monkeypatch.setattr(envs.bound, "_SMALL_STATE_BYTES", 0)  # start states come as their keys
    ticks = envs.BoundEnv(CHAIN, CHAIN.default_params, 3).ticks(KEY, 4)
    keys = np.concatenate([np.asarray(jax.random.key_data(x)).reshape(-1, 2) for x in ticks])
    assert len(np.unique(keys, axis=0)) == len(keys) == 4 * (1 + 2 * 3)
