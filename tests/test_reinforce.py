"""REINFORCE: its gradient against exact ones, which steps count, what a step of it does, and what it refuses."""

import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from purerl import envs, mdp, reinforce
from purerl.algorithms.reinforce import Config
from purerl.core import normalize
from purerl.core.distributions import Categorical
from purerl.core.policies import Params
from purerl.core.types import Transition
from tests import test_ppo_box, tiny, toy_envs

KEY = jax.random.key(0)
NUM = 100_000

# ---------------------------------------------------------------------------------------------------------------------
# The gradient, against exact ones

# 0 leads to 1 or 2, and these to the end, 3: two steps, with most of the pay in the first.
TWO_STEPS = mdp.MDP(
    successor=jnp.array([[[1, 2], [1, 2]], [[3, 3], [3, 3]], [[3, 3], [3, 3]], [[3, 3], [3, 3]]]),
    probability=jnp.array([[[0.8, 0.2], [0.3, 0.7]]] + 3 * [[[1.0, 0.0], [1.0, 0.0]]]),
    reward=jnp.array([[[2.0, 2.0], [3.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 0.0]], 2 * [[0.0, 0.0]]]),
    terminal=jnp.array([False, False, False, True]),
    start=jnp.array([1.0, 0.0, 0.0, 0.0]),
)
# 0 and 1 lead to one another or to the end, 2: the action that pays more at once ends sooner.
RANDOM_END = mdp.MDP(
    successor=jnp.array([[[0, 1, 2], [0, 1, 2]]] * 3),
    probability=jnp.array([[[0.1, 0.2, 0.7], [0.3, 0.6, 0.1]], [[0.3, 0.2, 0.5], [0.4, 0.4, 0.2]], [[0, 0, 1.0]] * 2]),
    reward=jnp.array([[[1.5] * 3, [0.5] * 3], [[2.0] * 3, [1.0] * 3], [[0.0] * 3] * 2]),
    terminal=jnp.array([False, False, True]),
    start=jnp.array([0.7, 0.3, 0.0]),
)
LIMIT = 4  # steps of an episode of RANDOM_END


class Exact(NamedTuple):
    """What is known of a policy in an MDP. q, value: with h more steps to go, `[h, S, A]` and `[h, S]`."""

    gradient: np.ndarray
    q: jax.Array
    value: jax.Array


def transitions(model: mdp.MDP) -> jax.Array:
    """T(s'|s, a), with nothing after the end, `[S, A, S]`."""
    dense = jnp.einsum("ijk,ijkl->ijl", model.probability, jax.nn.one_hot(model.successor, model.num_states))
    return jnp.where(model.terminal[:, None, None], 0.0, dense)


def probabilities(actor: Any, config: Any, num_states: int) -> jax.Array:
    return jax.nn.softmax(reinforce.distribution(actor, jnp.eye(num_states), config).logits)


def exact(actor: Any, model: mdp.MDP, config: Any, horizon: int) -> Exact:
    """By recursion over the steps that are left; the gradient is that of the return from the start."""

    def recursion(actor: Any) -> tuple[jax.Array, Any]:
        pi, ahead = probabilities(actor, config, model.num_states), transitions(model)

        def one_more(value: jax.Array, _: None) -> tuple[jax.Array, Any]:
            q = mdp.expected_reward(model) + config.gamma * ahead @ jnp.where(model.terminal, 0.0, value)
            value = (pi * q).sum(-1)
            return value, (q, value)

        value, each = jax.lax.scan(one_more, jnp.zeros(model.num_states), length=horizon)
        return model.start @ value, each

    gradient, (q, value) = jax.jit(jax.grad(recursion, has_aux=True))(actor)
    return Exact(np.asarray(ravel_pytree(gradient)[0]), q, value)


@functools.partial(jax.jit, static_argnames="rule")
def estimates(keys: Any, params: Params, tables: Any, config: Config, rule: Any) -> list[jax.Array]:
    """What `gradients` returns; compiled once for each rule, which must stand in the module."""
    start = envs.bind(config).reset(KEY)
    state = reinforce.State(KEY, params, None, None, None, start, None, None, jnp.int32(0))

    def gradient(batch: Any) -> jax.Array:
        return -ravel_pytree(jax.grad(reinforce.loss, has_aux=True)(params.actor, batch, config)[0])[0]

    def one(key: Any) -> list[jax.Array]:
        batch = reinforce.collect(key, state, config)[1]
        index = jnp.arange(len(batch.action)), batch.action  # observations are one-hot
        others = [batch._replace(advantage=(batch.obs @ table)[index]) for table in tables]
        return [gradient(x) for x in (batch, *others)]

    return jax.lax.map(one, keys, batch_size=NUM // 10)


def gradients(config: Config, params: Params, tables: Any = (), rule: Any = reinforce.weights) -> list[np.ndarray]:
    """The gradients of rollouts with keys of their own, `[NUM, parameters]`.

    Then those by each of the tables of advantages `[S, A]` in place of its own. rule: which steps count.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reinforce, "weights", rule)
        found = estimates(jax.random.split(KEY, NUM), params, list(tables), config, rule)
    return [np.asarray(x, np.float64) for x in found]


def deviations(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How many standard errors the mean lies off, for each parameter that has any."""
    error = found.std(0) / np.sqrt(len(found))
    off = np.abs(found.mean(0) - expected)
    assert (off[error == 0] < 1e-5).all() and (error > 0).any()
    return off[error > 0] / error[error > 0]


def single(env: mdp.Tabular, **fields: Any) -> Config:
    """Undiscounted episodes of one env, just as long as one may last, with a linear policy."""
    linear = {"actor_hidden_sizes": (), "critic_hidden_sizes": ()}
    fields = {"num_envs": 1, "num_steps": env.time_limit, "gamma": 1.0, "total_timesteps": 1000, **fields}
    return Config(env=env, **linear, **fields)


@functools.cache
def linear(env: mdp.Tabular) -> Params:
    """Logits and values that are a number for each state, and a policy that prefers some actions to others."""
    params = jax.jit(lambda: reinforce.init(KEY, single(env)))().params
    return params._replace(actor=jax.tree.map(lambda x: jax.random.normal(KEY, x.shape) / 2, params.actor))


def with_value(params: Params, value: Any) -> Params:
    """The critic says just this of each state."""
    critic = jax.tree.map(jnp.zeros_like, params.critic)
    critic["params"]["body"]["Dense_0"]["kernel"] = jnp.asarray(value)[:, None]
    return params._replace(critic=critic)


TWO_STEP_ENV, RANDOM_END_ENV = mdp.Tabular(TWO_STEPS, time_limit=2), mdp.Tabular(RANDOM_END, time_limit=LIMIT)
FORMS: dict[str, dict[str, Any]] = {
    "whole return": {"reward_to_go": False, "baseline": "none"},
    "whole return - V": {"reward_to_go": False, "baseline": "value"},
    "reward-to-go": {"reward_to_go": True, "baseline": "none"},
    "reward-to-go - V": {"reward_to_go": True, "baseline": "value"},
    "reward-to-go - mean": {"reward_to_go": True, "baseline": "mean", "num_envs": 2},
}


@pytest.fixture(scope="module")
def two_steps() -> tuple[Exact, dict[str, np.ndarray]]:
    """The exact gradient, and by form the estimates of single episodes; of two for the mean of the other one."""
    params, found = linear(TWO_STEP_ENV), {}
    known = exact(params.actor, TWO_STEPS, single(TWO_STEP_ENV), 2)
    for name, fields in FORMS.items():
        config = single(TWO_STEP_ENV, **fields)
        found[name], *_ = gradients(config, with_value(params, known.value[-1]))
    tables = [known.q[-1], known.q[-1] - known.value[-1][:, None]]
    _, found["Q"], found["A"] = gradients(single(TWO_STEP_ENV, **FORMS["reward-to-go"]), params, tables)
    return known, found


@pytest.mark.parametrize("name", [*FORMS, "Q", "A"])
def test_the_estimate_is_right(name: str, two_steps: Any) -> None:
    """Within four standard errors of the exact gradient, and those are small against it."""
    known, found = two_steps
    assert np.linalg.norm(known.gradient) > 0.3
    assert np.sqrt(found[name].var(0).sum() / NUM) < 0.02
    assert deviations(found[name], known.gradient).max() < 4


def test_each_change_takes_variance_away(two_steps: Any) -> None:
    """The total variance of a single episode's gradient, which is known to a hundredth."""
    variance = {name: x.var(0).sum() * FORMS.get(name, {}).get("num_envs", 1) for name, x in two_steps[1].items()}
    assert variance["reward-to-go"] < 0.6 * variance["whole return"]
    assert variance["whole return - V"] < 0.4 * variance["whole return"]
    assert variance["reward-to-go - mean"] < 0.5 * variance["reward-to-go"]
    assert variance["reward-to-go - V"] < 0.15 * variance["reward-to-go"]
    assert variance["A"] < 0.5 * variance["reward-to-go - V"]


def test_the_reward_to_go_drops_powers_of_gamma() -> None:
    """gamma = 1/2: the whole discounted return is right, and the reward-to-go is not by many standard errors."""
    off = {}
    for reward_to_go in (False, True):
        config = single(TWO_STEP_ENV, reward_to_go=reward_to_go, baseline="none", gamma=0.5)
        params = linear(TWO_STEP_ENV)
        gradient = exact(params.actor, TWO_STEPS, config, 2).gradient
        off[reward_to_go] = deviations(gradients(config, params)[0], gradient).max()
    assert off[False] < 4 and off[True] > 30


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts that cut episodes


def alike(steps: Transition, config: Config) -> jax.Array:
    """Every episode that ended weighs as much, whichever env it was in."""
    ended = jnp.flip(jnp.cumsum(jnp.flip(steps.done, 0), 0), 0) > 0
    return ended / jnp.maximum(steps.done.sum(), 1)


def began_early(steps: Transition, config: Config) -> jax.Array:
    """Of each env the episodes that began so early that they had to end, as their mean."""
    begun = reinforce.beginnings(steps)
    early = begun <= len(begun) - LIMIT
    return early / (config.num_envs * (early & (begun == jnp.arange(len(begun))[:, None])).sum(0, keepdims=True))


def cut_is_an_end(steps: Transition, config: Config) -> jax.Array:
    """Of each env all episodes that began, as their mean, whose rewards are those within the rollout."""
    number = 1 + steps.done[:-1].sum(0, keepdims=True)
    return jnp.ones_like(steps.reward) / (config.num_envs * number)


@pytest.mark.parametrize("rule", [reinforce.weights, alike, began_early, cut_is_an_end])
def test_which_episodes_may_count(rule: Any) -> None:
    """Rollouts of 6 steps hold one to six whole episodes; two envs each, as one alone is alike to itself.

    The rule of the module is within four standard errors of the exact gradient, and the others are far off.
    """
    config = single(RANDOM_END_ENV, num_steps=6, num_envs=2, baseline="none")
    params = linear(RANDOM_END_ENV)
    gradient = exact(params.actor, RANDOM_END, config, LIMIT).gradient
    off = deviations(gradients(config, params, rule=rule)[0], gradient).max()
    assert off < 4 if rule is reinforce.weights else off > 8


def mean_over_steps(actor: Any, start: Any, config: Config, q: Any) -> np.ndarray:
    """E of the mean of grad log pi(a|s) Q(s, a) over a rollout from this state, in which new episodes follow."""
    ahead = transitions(RANDOM_END)

    def objective(actor: Any) -> jax.Array:
        pi, total = probabilities(actor, config, 3), jnp.zeros(())
        onward = jnp.einsum("sa,sat->st", jax.lax.stop_gradient(pi), ahead)
        onward, state = onward.at[:, 2].set(0.0), jax.nn.one_hot(start, 3)
        for _ in range(config.num_steps):
            total += state @ (pi * q).sum(-1) / config.num_steps
            state = state @ onward + (1 - (state @ onward).sum()) * RANDOM_END.start
        return total

    return np.asarray(ravel_pytree(jax.grad(objective)(actor))[0])


@pytest.mark.thorough
def test_the_bias_of_a_cut_is_the_critics() -> None:
    """With V as it is the bootstrapped tails are right; with V = 0 each cut is an end, which is far off."""
    endless = mdp.Tabular(RANDOM_END, time_limit=1000)
    config = single(endless, num_steps=3, episodes="bootstrap", baseline="none", gamma=0.9)
    params, start = linear(RANDOM_END_ENV), envs.bind(config).reset(KEY).obs[0]
    known = exact(params.actor, RANDOM_END, config, 30)
    expected = mean_over_steps(params.actor, start, config, known.q[-1])
    found = {scale: gradients(config, with_value(params, scale * known.value[-1]))[0] for scale in (0, 1)}
    assert deviations(found[1], expected).max() < 4
    assert deviations(found[0], expected).max() > 30


# ---------------------------------------------------------------------------------------------------------------------
# The pieces by hand

# Three envs, six steps: the first is over after the second step and cut by the clock after the fifth, the second is
# over after the fourth, and the third goes on.
FALSE = jnp.zeros((6, 3), bool)
STEPS = Transition(
    obs=jnp.zeros((6, 3, 1)),
    action=jnp.zeros((6, 3), jnp.int32),
    reward=jnp.arange(1.0, 7.0)[:, None] * jnp.array([[1.0, 0.0, 0.0]]),
    terminated=FALSE.at[1, 0].set(True).at[3, 1].set(True),
    truncated=FALSE.at[4, 0].set(True),
    final_obs=jnp.zeros((6, 3, 1)),
)


class Limited(toy_envs.Chain):
    """The chain, which says how long its episodes may last."""

    def max_episode_steps(self, params: Any) -> Any:
        return params["limit"]


CHAIN = Limited()


def chained(**fields: Any) -> Config:
    return tiny.config(reinforce, env=CHAIN, **fields)


def test_weights_by_hand() -> None:
    """A mean over each env's episodes that end, and over the envs; or one over all steps."""
    complete = reinforce.weights(STEPS, chained(episodes="complete"))
    expected = [5 * [1 / 6] + [0], 4 * [1 / 3] + 2 * [0], 6 * [0]]
    np.testing.assert_allclose(complete, np.transpose(expected), rtol=1e-6)
    np.testing.assert_allclose(reinforce.weights(STEPS, chained()), np.full((6, 3), 1 / 18), rtol=1e-6)


def test_returns_by_hand() -> None:
    """gamma = 1/2, V = 8: at the clock and at the rollout's end 8 / 2 is added, at a termination nothing."""
    np.testing.assert_array_equal(reinforce.beginnings(STEPS)[:, 0], [0, 0, 2, 2, 2, 5])
    to_go, whole = [2, 2, 7.25, 8.5, 9, 10], [2, 2, 7.25, 7.25, 7.25, 10]
    for fields, expected in (({}, to_go), ({"episodes": "complete", "reward_to_go": False}, whole)):
        psi, target = reinforce.returns(STEPS, jnp.full((6, 3), 8.0), chained(gamma=0.5, **fields))
        np.testing.assert_array_equal(psi[:, 0], expected)
        np.testing.assert_array_equal(target[:, 0], to_go)


def test_baselines_by_hand() -> None:
    """The mean over the steps of the others, by their weights: (2 x 1/4 + 6 x 1/4) / (1/2) = 4 for the second env."""
    psi = jnp.array([[2.0, 10.0], [6.0, 20.0], [99.0, 30.0]])
    weight = jnp.array([[0.25, 0.5], [0.25, 0.5], [0.0, 1.0]])
    value = jnp.arange(6.0).reshape(3, 2)
    expected = {"mean": [[22.5, 4.0]] * 3, "value": value, "none": np.zeros((3, 2))}
    for name, baseline in expected.items():
        found = reinforce.baseline(psi, value, weight, chained(baseline=name))
        np.testing.assert_allclose(found, baseline, rtol=1e-6)
    none = reinforce.baseline(psi, value, jnp.zeros((3, 2)), chained(baseline="mean"))
    np.testing.assert_array_equal(none, np.zeros((3, 2)))


def test_losses_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """pi = (3/4, 1/4); the third step does not count. -(1/2 log 3/4 x 2 + 1/4 log 1/4 x 4), and the critic says 2.

    Its errors 1 and 3 weigh 2/3 and 1/3: (2/3 + 9/3) / 2.
    """
    logits = jnp.log(jnp.array([3.0, 1.0]))
    monkeypatch.setattr(reinforce, "distribution", lambda actor, obs, _: Categorical(jnp.tile(actor, (len(obs), 1))))
    monkeypatch.setattr(reinforce, "critic", lambda value, obs, _: jnp.full(len(obs), value))
    batch = reinforce.Batch(
        obs=jnp.zeros((3, 1)),
        action=jnp.array([0, 1, 1]),
        weight=jnp.array([0.5, 0.25, 0.0]),
        advantage=jnp.array([2.0, 4.0, 100.0]),
        value_target=jnp.array([3.0, 5.0, 100.0]),
    )
    loss, metrics = reinforce.loss(logits, batch, chained())
    np.testing.assert_allclose(loss, -(np.log(3 / 4) + np.log(1 / 4)), rtol=1e-6)
    np.testing.assert_allclose(metrics["policy_loss"], loss)
    np.testing.assert_allclose(metrics["entropy"], -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), rtol=1e-6)
    np.testing.assert_allclose(reinforce.value_loss(2.0, batch, chained()), 11 / 6, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# What a rollout becomes


def by_cell(obs: Any) -> Any:
    """A value of each observation of the chain."""
    return obs[..., 0] + 10 * obs[..., 1] + obs[..., 2]


def normalized(obs: Any, stats: Any) -> np.ndarray:
    return np.clip((np.asarray(obs) - np.asarray(stats.mean)) / np.sqrt(np.asarray(stats.var) + 1e-8), -10, 10)


def episode_steps(done: np.ndarray) -> np.ndarray:
    """How many steps of its episode went before each, `[T, N]`, of episodes that begin with the rollout."""
    counts = np.zeros(done.shape, int)
    for t in range(1, len(done)):
        counts[t] = np.where(done[t - 1], 0, counts[t - 1] + 1)
    return counts


@pytest.mark.parametrize(
    "episodes, to_go",
    [("complete", True), ("bootstrap", True), ("complete", False)],
    ids=["complete", "bootstrap", "G_0"],
)
def test_collect_by_a_loop(episodes: str, to_go: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rollouts with all that is normalised: rewards over the deviation of their discounted sums, gamma = 1/2.

    Complete episodes begin with the rollout, the sums of rewards too, and a time limit is their end. Others go on, and
    V(final_obs) is added at the time limit and at the rollout's end, but not where terminated. Where the whole return
    weighs each action, V is fitted to the reward-to-go all the same.
    """
    fields = {"num_steps": 16, "gamma": 0.5, "normalize_obs": True, "normalize_reward": True}
    config, whole, seen = chained(episodes=episodes, reward_to_go=to_go, **fields), episodes == "complete", []
    monkeypatch.setattr(reinforce, "critic", lambda params, obs, config: by_cell(obs))
    unroll = reinforce.unroll

    def record(*args: Any) -> Any:
        seen.append(unroll(*args)[1])
        return unroll(*args)

    def collect(key: Any, state: Any) -> Any:
        state, batch, _ = reinforce.collect(key, state, config)
        return state, batch, seen.pop()

    monkeypatch.setattr(reinforce, "unroll", record)
    compiled, state = jax.jit(collect), jax.jit(lambda: reinforce.init(KEY, config))()
    stats = normalize.RunningStats(jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 0.25, 1.0]), jnp.float32(50.0))
    state, total, totals = state._replace(obs_stats=stats), np.zeros(2), []
    for i, key in enumerate(jax.random.split(KEY)):
        before, (state, batch, steps) = state, compiled(key, state)
        done, terminated, reward = (np.asarray(x) for x in (steps.done, steps.terminated, steps.reward))
        assert terminated.any() and (done & ~terminated).any() and not done[-1].all()
        if whole:
            total = np.zeros(2)
            np.testing.assert_array_equal(steps.obs[0, :, 1], [0, 0])
        elif i:
            assert steps.obs[0, :, 1].max() > 0
        for t in range(16):
            total = total / 2 + reward[t]
            totals.append(total)
            total = np.where(done[t], 0.0, total)
        obs, ahead = (normalized(x, before.obs_stats) for x in (steps.obs, steps.final_obs))
        target, after = np.zeros((16, 2)), np.zeros(2) if whole else by_cell(ahead[-1])
        for t in reversed(range(16)):
            cut = 0 if whole else by_cell(ahead[t])
            after = reward[t] / np.std(totals) + np.where(terminated[t], 0, np.where(done[t], cut, after)) / 2
            target[t] = after
        np.testing.assert_allclose(batch.obs, obs.reshape(-1, 3), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(batch.value_target, target.ravel(), rtol=1e-3, atol=1e-3)
        psi = target if to_go else np.take_along_axis(target, np.arange(16)[:, None] - episode_steps(done), 0)
        np.testing.assert_allclose(batch.advantage, (psi - by_cell(obs)).ravel(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(batch.weight, reinforce.weights(steps, config).ravel())
    assert state.obs_stats.num == 50 + 64 and state.reward_scale.stats.num == 64
    np.testing.assert_array_equal(state.env_state.episode_length > 0, ~done[-1])


# ---------------------------------------------------------------------------------------------------------------------
# What an update does


@pytest.fixture(scope="module")
def updated() -> Any:
    """A function (rate, updates so far, **traced fields) -> states before and after, and metrics."""
    config = chained(
        num_steps=16, critic_steps=2, adapt_learning_rate=True, anneal_learning_rate=True, total_timesteps=320
    )
    before = jax.jit(lambda: reinforce.init(KEY, config))()
    update = jax.jit(reinforce.update)

    def run(rate: float, updates: int = 0, **fields: Any) -> Any:
        state = before._replace(learning_rate=jnp.float32(rate), updates=jnp.int32(updates))
        return state, *update(state, config.replace(**fields))

    return run


def moved(before: Any, after: Any, part: str) -> np.ndarray:
    return np.asarray(ravel_pytree(getattr(after.params, part))[0] - ravel_pytree(getattr(before.params, part))[0])


def test_the_learning_rate_follows_the_kl(updated: Any) -> None:
    """A third less above twice the target, half as much again below half of it, the same in between; within bounds."""
    kl = float(updated(1e-3)[2]["kl"])
    assert kl > 0
    for factor, expected in ((0.45, 1 / 1.5), (0.55, 1), (1.9, 1), (2.1, 1.5)):
        _, after, metrics = updated(1e-3, target_kl=factor * kl)
        np.testing.assert_allclose(after.learning_rate, expected * 1e-3, rtol=1e-6)
        np.testing.assert_allclose(metrics["learning_rate"], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(updated(8e-3, target_kl=10.0)[1].learning_rate, 1e-2, rtol=1e-6)
    np.testing.assert_allclose(updated(2e-6)[1].learning_rate, 1e-5, rtol=1e-6)


def test_the_policy_steps_by_the_adapted_rate(updated: Any) -> None:
    """Not by the Config's, and half as far in the middle of the training, which is 10 updates long."""
    step = moved(*updated(1e-3, learning_rate=0.7)[:2], "actor")
    assert 0 < np.abs(step).max() <= 1.01e-3
    np.testing.assert_allclose(moved(*updated(2e-3)[:2], "actor"), 2 * step, rtol=1e-3, atol=1e-7)
    before, after, metrics = updated(1e-3, updates=5)
    np.testing.assert_allclose(moved(before, after, "actor"), step / 2, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(metrics["learning_rate"], 5e-4, rtol=1e-6)
    np.testing.assert_allclose(after.learning_rate, updated(1e-3)[1].learning_rate)
    assert optax.tree.get(after.opt_state, "count") == 1 and after.updates == 6


def test_the_kl_is_that_of_the_step(updated: Any) -> None:
    """KL(old || new), the mean over the steps of the rollout, which all count here."""
    before, after, metrics = updated(1e-2)
    config = chained(num_steps=16)
    _, batch, _ = jax.jit(lambda: reinforce.collect(jax.random.split(before.key)[1], before, config))()
    old, new = (reinforce.distribution(x.params.actor, batch.obs, config) for x in (before, after))
    assert abs(float(old.kl(new).mean() / new.kl(old).mean()) - 1) > 1e-4
    np.testing.assert_allclose(metrics["kl"], old.kl(new).mean(), rtol=1e-4)


def test_the_kl_counts_what_the_gradient_counts() -> None:
    """By the same weights, which are 0 in the episodes that the rollout cuts."""
    config = chained(num_steps=16, episodes="complete", learning_rate=0.05)
    before = jax.jit(lambda: reinforce.init(KEY, config))()
    after, metrics = jax.jit(lambda: reinforce.update(before, config))()
    batch = jax.jit(lambda: reinforce.collect(jax.random.split(before.key)[1], before, config)[1])()
    old, new = (reinforce.distribution(x.params.actor, batch.obs, config) for x in (before, after))
    kl = np.asarray(old.kl(new))
    assert (batch.weight == 0).any()
    expected = (batch.weight * kl).sum() / batch.weight.sum()
    assert abs(expected / kl.mean() - 1) > 1e-3
    np.testing.assert_allclose(metrics["kl"], expected, rtol=1e-4)


def test_acts_by_the_statistics_of_its_state() -> None:
    """The policy that is evaluated normalises by them: its action is that of the normalised observation."""
    config = tiny.config(reinforce, env=test_ppo_box.BANDIT, episodes="bootstrap", normalize_obs=True)
    state = jax.jit(lambda: reinforce.init(KEY, config))()
    state = state._replace(
        obs_stats=normalize.RunningStats(jnp.array([3.0]), jnp.array([4.0]), jnp.float32(9.0)),
        params=jax.tree.map(lambda x: 30 * x, state.params),
    )
    act = reinforce.policy(state, config).act
    expected = reinforce.distribution(state.params.actor, jnp.array([-1.0]), config).mode()
    np.testing.assert_allclose(act(KEY, jnp.ones(1), ())[0], expected, rtol=1e-5)
    assert np.abs(expected - reinforce.distribution(state.params.actor, jnp.ones(1), config).mode()).max() > 0.01


def test_the_critic_takes_its_own_steps(updated: Any) -> None:
    """Two of them at its own rate towards the returns; the policy's rate is nothing to it."""
    before, after, metrics = updated(1e-3, critic_learning_rate=1e-3)
    step = moved(before, after, "critic")
    assert optax.tree.get(after.critic_opt_state, "count") == 2
    assert 1e-3 < np.abs(step).max() < 2.1e-3
    np.testing.assert_array_equal(moved(*updated(5e-3, critic_learning_rate=1e-3)[:2], "critic"), step)
    assert not moved(*updated(1e-3, critic_learning_rate=0.0)[:2], "critic").any()
    _, batch, _ = reinforce.collect(jax.random.split(before.key)[1], before, chained(num_steps=16))
    losses = [reinforce.value_loss(x.params.critic, batch, chained()) for x in (before, after)]
    np.testing.assert_allclose(metrics["value_loss"], losses[0], rtol=1e-4)
    assert losses[1] < losses[0]


@pytest.mark.parametrize("baseline", ["mean", "none"])
def test_no_critic_where_none_is_asked(baseline: str) -> None:
    """Complete episodes with another baseline need no V; bootstrapped ones do."""
    config = chained(num_steps=16, episodes="complete", baseline=baseline)
    state, metrics = jax.jit(lambda: reinforce.update(reinforce.init(KEY, config), config))()
    assert state.params.critic is None and "value_loss" not in metrics
    assert 0 < metrics["counted"] < 1 and metrics["grad_norm"] > 0
    assert jax.eval_shape(lambda: reinforce.init(KEY, chained(baseline=baseline))).params.critic is not None


def test_finds_the_optimum_of_numbers() -> None:
    """Within 0.1 of (1, 7) in the env's units, with a deviation that has fallen to less than a third."""

    class Bandit(test_ppo_box.Bandit):
        def max_episode_steps(self, params: Any) -> int:
            return 1

    config = Config(
        env=Bandit(),
        total_timesteps=48_000,
        num_envs=16,
        num_steps=10,
        actor_hidden_sizes=(8,),
        critic_hidden_sizes=(8,),
        learning_rate=0.02,
        anneal_learning_rate=True,
    )
    state, metrics = reinforce.train(KEY, config)
    assert (metrics["counted"] == 1).all()
    np.testing.assert_allclose(reinforce.policy(state, config)(KEY, jnp.ones(1)), [1.0, 7.0], atol=0.1)
    act = reinforce.policy(state, config, deterministic=False)
    draws = jax.vmap(act, (0, None))(jax.random.split(KEY, 500), jnp.ones(1))
    assert (np.asarray(draws).std(0) < np.array([2.0, 5.0]) / 3).all()


# ---------------------------------------------------------------------------------------------------------------------
# How long an episode may last, and what is refused


def test_envs_say_how_long_their_episodes_may_last() -> None:
    """gymnax's clock, also another than its own; a table's, a Brax env's, one's own; and envs that do not say."""
    import gymnax

    def limit(env: Any, params: Any = None) -> Any:
        env = envs.make(env)
        return envs.max_episode_steps(env, env.default_params if params is None else params)

    first = NamedTuple("First", [("obs", jax.Array)])(jnp.zeros(1))
    body = types.SimpleNamespace(unwrapped=None, action_size=1, reset=lambda key: first)
    brax = envs.Brax(body, episode_length=12)
    cart = gymnax.make("CartPole-v1")[0]
    assert limit(cart) == 500 and limit(cart, cart.default_params.replace(max_steps_in_episode=7)) == 7
    assert limit(RANDOM_END_ENV) == LIMIT and limit(CHAIN, {"limit": 9}) == 9 and limit(brax) == 12
    assert limit(toy_envs.Chain()) is None
    endless = type("Endless", (type(cart),), {"is_truncated": lambda self, state, params: False})()
    assert limit(endless) is None


WHOLE = "episodes = 'complete' favours short episodes unless the longest fits into num_steps"
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a rollout shorter than an episode": (
        {"num_steps": 499},
        f"^{WHOLE} = 499, but those of CartPole-v1 may last 500: raise num_steps, lower the env's time limit, or use "
        r"episodes = 'bootstrap'\.$",
    ),
    "one env's limit is longer": (
        {"num_steps": 8, "env_params": {"max_steps_in_episode": np.array([8, 9])}},
        f"^{WHOLE} = 8, but those of CartPole-v1 may last 9: ",
    ),
    "numpy's numbers too": (
        {"num_steps": 8, "env_params": {"max_steps_in_episode": np.int64(9)}},
        f"^{WHOLE} = 8, but those of CartPole-v1 may last 9: ",
    ),
    "a limit that is no number": (
        {"env_params": {"max_steps_in_episode": np.float32("nan")}},
        f"^{WHOLE} = 500, but those of CartPole-v1 may last nan: ",
    ),
    "an env that does not say": (
        {"env": toy_envs.Chain()},
        rf"^{WHOLE} = 500, but .*Chain.* does not say how long its episodes may last: give it a method "
        r"max_episode_steps\(params\), or use episodes = 'bootstrap'\.$",
    ),
    "whole returns of episodes that were begun before": (
        {"episodes": "bootstrap", "reward_to_go": False},
        "^reward_to_go = False needs whole episodes, but with episodes = 'bootstrap' rollouts begin in the middle",
    ),
    "the mean of no others": (
        {"baseline": "mean", "num_envs": 1},
        "^baseline = 'mean' is the mean return of the other envs, but num_envs is 1: raise it to at least 2",
    ),
    "a target of 0": ({"target_kl": 0.0}, "target_kl must be a finite number greater than 0, but is 0.0"),
    "no steps of the critic": ({"critic_steps": 0}, "critic_steps must be at least 1, but is 0"),
    "no such baseline": ({"baseline": "median"}, "baseline must be one of value, mean, none, but is 'median'"),
}


@pytest.mark.parametrize(("limit", "said"), [(10, "must be a method of"), (lambda self, params: "ten", "number of")])
def test_a_limit_that_is_none_is_refused(limit: Any, said: str) -> None:
    env = type("Odd", (toy_envs.Chain,), {"max_episode_steps": limit})()
    with pytest.raises(TypeError, match=f"max_episode_steps.* {said}"):
        Config(env=env)


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str) -> None:
    fields, said = CASES[case]
    with pytest.raises(ValueError, match=said):
        Config(**fields)


def test_limits_that_fit_or_do_not_exist_yet() -> None:
    """Just as long as the rollout, one for each env, stacked for vmap, and a tracer."""
    limits = {"max_steps_in_episode": np.array([3, 8])}
    config = Config(num_steps=8, env_params=limits, total_timesteps=32)
    assert Config(num_steps=500).num_updates == 500
    jax.tree.map(lambda x: None, config)
    jax.eval_shape(reinforce.train, KEY, config)
    stacked = config.replace(env_params={"max_steps_in_episode": np.array([[3, 8], [5, 5]])})
    axes = jax.tree.map(lambda x: None, config).replace(env_params={"max_steps_in_episode": 0})
    jax.eval_shape(jax.vmap(reinforce.train, (None, axes)), KEY, stacked)
