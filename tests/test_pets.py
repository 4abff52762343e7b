"""PETS: the ensemble's loss, bounds and bootstraps by hand, what it learns of known noise, planning in the truth."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from purerl import cem, envs, pets
from purerl.core import ensemble, planning
from purerl.core.types import Transition
from purerl.envs import Box
from tests import tiny
from tests.test_off_policy import Linear
from tests.toy_envs import Bandit, Levers

KEY = jax.random.key(0)
init, update = jax.jit(pets.init), jax.jit(pets.update)


class Pushed:
    """A point on a line, pushed: x <- x + a / 2 + noise of a deviation of `noise`; it pays -x^2 of where it gets.

    It starts anywhere in [-1, 1]; past `edge` it terminates, and after `limit` steps it is cut.
    """

    def __init__(self, noise=0.0, edge=jnp.inf, limit=10, reward=None):
        if reward:
            self.reward = lambda obs, action, next_obs, params: reward(obs, action, next_obs)
        self.noise, self.edge, self.limit, self.default_params = float(noise), float(edge), limit, ()

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (1,))

    def action_space(self, params):
        return Box(-3.0, 3.0, (1,))

    def reset(self, key, params):
        x = jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0)
        return x, (x, jnp.int32(0))

    def step(self, key, state, action, params):
        x = state[0] + action / 2 + self.noise * jax.random.normal(key, (1,))
        time = state[1] + 1
        return x, (x, time), -jnp.square(x[0]), x[0] > self.edge, time >= self.limit


def config(**fields):
    return tiny.config(pets, **{"env": Pushed(), "model_network": Linear} | fields)


def linear_params(W, high=50.0, low=-50.0):
    """Of an ensemble of `Linear` networks `[M, D + A, outputs]`, with bounds so wide that they squeeze nothing."""
    W = jnp.asarray(W, jnp.float32)
    K = W.shape[2] // 2
    return ensemble.Params({"params": {"body": {"W": W}}}, jnp.full(K, high), jnp.full(K, low))


# Two networks that read (obs, action) and give two means and two log variances.
W = [[[1.0, 0.0, 0.0, 0.5], [0.0, 2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]]


def test_predictions_and_bounds_by_hand():
    """Mean and log variance are halves of the output, and each network reads inputs of its own."""
    setting = config()
    obs, action = jnp.array([[[2.0]], [[7.0]]]), jnp.array([[[0.5]], [[-1.0]]])
    prediction = pets.predict(linear_params(W), obs, action, setting)
    np.testing.assert_allclose(prediction.mean, [[[2.0, 1.0]], [[-1.0, -1.0]]], atol=1e-6)
    np.testing.assert_allclose(jnp.log(prediction.var), [[[0.0, 1.0]], [[-1.0, 0.0]]], atol=1e-5)
    assert prediction.end_logit is None


def test_log_variances_are_squeezed_between_the_bounds():
    params = linear_params(W, high=0.5, low=-10.0)
    squeezed = jnp.log(ensemble.bounded(jnp.array([[-100.0, 100.0], [-3.0, 0.5], [-9.0, -10.0]]), params))
    softplus = lambda x: np.log1p(np.exp(x))  # noqa: E731
    high = 0.5 - softplus(0.5 - np.array([-3.0, 0.5, -9.0, -10.0]))
    expected = -10 + softplus(high + 10)
    np.testing.assert_allclose(squeezed[0], [-10.0, 0.5], atol=1e-3)
    np.testing.assert_allclose(squeezed[1:].ravel(), expected, rtol=1e-5)


def batch(obs, action, change, reward, counts, terminated=None):
    obs, change = jnp.array(obs)[:, None], jnp.array(change)[:, None]
    ended = jnp.zeros(len(obs), bool) if terminated is None else jnp.array(terminated)
    steps = Transition(
        obs, jnp.array(action)[:, None], jnp.array(reward), ended, jnp.zeros(len(obs), bool), obs + change
    )
    return ensemble.Datum(steps, jnp.array(counts))


DATA = batch([2.0, 7.0], [0.5, -1.0], [3.0, 5.0], [1.0, 2.0], [[1.0, 0.0], [2.0, 3.0]])


def test_loss_by_hand():
    """Of two steps the first counts once and never, the second twice and three times.

    Network 1 expects (2, 1) and (7, -2) with log variances (0, 1) and (0, 3.5), network 2 (.5, .5) and (-1, -1) with
    (.5, 0) and (-1, 0), and it is (3, 1) and (5, 2).
    """
    setting = config(weight_decay=0.25)
    obs, y = DATA.transition.obs, ensemble.targets(DATA.transition, setting)
    np.testing.assert_allclose(y, [[3.0, 1.0], [5.0, 2.0]])
    params = linear_params(W)
    total, likelihood = ensemble.loss(params, obs, y, DATA, setting)
    first = [((1 + 0) + (0 + 1)) / 2, ((4 + 0) + (16 * np.exp(-3.5) + 3.5)) / 2]
    second = ((36 * np.exp(1) - 1) + (9 + 0)) / 2
    expected = (1 * first[0] + 2 * first[1]) / 2 + 3 * second / 2
    np.testing.assert_allclose(likelihood, expected, rtol=1e-5)
    squares = 1 + 0.25 + 4 + 1 + 1 + 1
    np.testing.assert_allclose(total, expected + 0.01 * 2 * 100 + 0.25 * squares, rtol=1e-5)


def test_loss_of_the_end_by_hand():
    """log(1 + e^-x) where it ended and log(1 + e^x) where not, if only by a time limit; counted as the rest is."""
    setting = config(learn_end=True, weight_decay=0.0)
    data = batch([2.0, 7.0], [0.5, -1.0], [3.0, 5.0], [1.0, 2.0], [[1.0, 0.0], [2.0, 3.0]], [True, False])
    ends = jnp.array([[[0.5], [0.0]], [[0.0], [1.0]]])
    params = linear_params(W)._replace(weights={"params": {"body": {"W": jnp.concatenate([jnp.array(W), ends], 2)}}})
    data = data._replace(transition=data.transition._replace(truncated=jnp.array([False, True])))
    obs, y = data.transition.obs, ensemble.targets(data.transition, setting)
    _, without = ensemble.loss(linear_params(W), obs, y, data, config())
    _, likelihood = ensemble.loss(params, obs, y, data, setting)
    expected = (np.log1p(np.exp(-1.0)) + 2 * np.log1p(np.exp(3.5))) / 2 + 3 * np.log1p(np.exp(-1.0)) / 2
    np.testing.assert_allclose(likelihood - without, expected, rtol=1e-4)


def test_bootstraps_are_poisson_numbers():
    """20,000 of each of two networks, which are independent."""
    counts = np.asarray(ensemble.bootstrap(KEY, 20_000, config()))
    assert counts.shape == (20_000, 2)
    for k in range(7):
        np.testing.assert_allclose((counts == k).mean(0), stats.poisson(1).pmf(k), atol=0.015)
    assert counts.max() <= 7 and abs(np.corrcoef(counts.T)[0, 1]) < 0.03


def test_what_is_remembered():
    """A row holds a transition and its counts; statistics are those of all data, of y as well."""
    setting = config(env=Levers(), model_network=None)
    state = init(KEY, setting)
    rows = pets.replay.sample(KEY, state.replay, 200, ensemble.example(setting))
    assert set(np.unique(rows.counts)) <= set(range(8)) and rows.counts.std() > 0
    np.testing.assert_allclose(
        rows.transition.final_obs[:, :2],
        Levers().action_space(()).from_unit(rows.transition.action),
        rtol=1e-5,
    )
    assert state.replay.size == state.obs_stats.num == state.target_stats.num == 8
    everything = np.unique(np.asarray(rows.transition.obs), axis=0)
    assert len(everything) == 8
    np.testing.assert_allclose(state.obs_stats.mean, everything.mean(0), rtol=1e-4, atol=1e-5)
    y = np.unique(np.asarray(ensemble.targets(rows.transition, setting)), axis=0)
    np.testing.assert_allclose(state.target_stats.mean, y.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(pets.units(state)[1], y.std(0), rtol=1e-3, atol=1e-3)
    after, _ = update(state, setting)
    assert after.replay.size == after.obs_stats.num == 14


def test_units_there_and_back():
    """Standardised y has mean 0 and deviation 1 over all data."""
    setting = config(env=Levers(), model_network=None, learning_starts=32, total_timesteps=64)
    state = init(KEY, setting)
    rows = pets.replay.sample(KEY, state.replay, 2000, ensemble.example(setting)).transition
    obs, y = ensemble.standardised(rows, state, setting)
    moving = np.array(state.target_stats.var) > 1e-6  # the label never changes
    np.testing.assert_allclose(y.mean(0)[moving], 0, atol=0.1)
    np.testing.assert_allclose(y.std(0)[moving], 1, rtol=0.1)
    np.testing.assert_allclose(obs.std(0), 1, rtol=0.1)


NOISE = 0.3


@functools.cache
def learned():
    """An ensemble that has learned from 2,000 uniform steps of a point with known noise, and its Config."""
    setting = pets.Config(
        env=Pushed(NOISE, limit=4),
        learning_starts=2_000,
        total_timesteps=2_500,
        gradient_steps=1_500,
        hidden_sizes=(32,),
        num_members=4,
    )
    state = init(KEY, setting)
    return jax.jit(lambda state: pets.fit(KEY, state, setting))(state)[0], setting


def test_known_noise_is_learned_within_ten_percent_and_the_mean_with_it():
    state, setting = learned()
    obs, action = jnp.linspace(-1.5, 1.5, 31)[:, None], jnp.linspace(-0.8, 0.8, 31)[:, None]
    seen = pets.normalize.normalize(state.obs_stats, obs)
    prediction = pets.predict(state.params, pets.for_all(seen, setting), pets.for_all(action, setting), setting)
    mean, std = pets.units(state)
    change = mean[0] + std[0] * prediction.mean[..., 0]
    np.testing.assert_allclose(change.mean(0), 1.5 * action[:, 0], atol=0.1)  # actions go to -3 and 3
    deviation = std[0] * jnp.sqrt(prediction.var[..., 0])
    np.testing.assert_allclose(deviation.mean(), NOISE, rtol=0.1)
    np.testing.assert_allclose(deviation.mean(1), NOISE, rtol=0.15)


def test_disagreement_grows_outside_the_data():
    state, setting = learned()

    def disagreement(places):
        seen = pets.normalize.normalize(state.obs_stats, places[:, None])
        action = jnp.zeros((len(places), 1))
        prediction = pets.predict(state.params, pets.for_all(seen, setting), pets.for_all(action, setting), setting)
        return prediction.mean.std(0).mean(0)

    inside, outside = disagreement(jnp.linspace(-1, 1, 9)), disagreement(jnp.array([-9.0, 9.0]))
    assert (outside > 4 * inside).all()


def test_calibration_on_fresh_steps():
    """Shares of a normal distribution within one and two deviations, of the steps that the env takes next."""
    state, setting = learned()
    env = envs.bind(setting)
    _, steps, _ = pets.unroll(jax.random.key(1), env, env.reset(KEY), lambda key, obs: env.sample(key), 2_000)
    told = pets.errors(state, pets.of_the_env(steps), setting)
    noise_only = pets.of_the_env(steps)
    assert abs(told["within_2_std"] - 0.95) < 0.04
    assert abs(told["within_1_std"] - 0.68) < 0.1
    assert told["unforeseen_ends"] == noise_only.terminated.sum() == 0


def test_errors_by_hand():
    """Means of the two networks (2, 1), (.5, .5), of variances (1, e) and (e^.5, 1), where it is (3, 1)."""
    setting = config()
    state = init(KEY, setting)._replace(params=linear_params(W))
    state = state._replace(obs_stats=pets.normalize.init_stats((1,)), target_stats=pets.normalize.init_stats((2,)))
    step = jax.tree.map(lambda x: x[:1], DATA.transition)._replace(terminated=jnp.array([True]))
    told = pets.errors(state, step, setting)
    error = np.array([3 - 1.25, 1 - 0.75])
    std = np.sqrt([(1 + np.exp(0.5)) / 2 + 0.75**2, (np.e + 1) / 2 + 0.25**2])
    np.testing.assert_allclose(told["model_error"], np.sqrt(np.mean(error**2)), rtol=1e-5)
    np.testing.assert_allclose(told["disagreement"], (0.75 + 0.25) / 2, rtol=1e-5)
    assert told["within_1_std"] == np.mean(error <= std) and told["within_2_std"] == np.mean(error <= 2 * std)
    assert told["unforeseen_ends"] == 1

    # With next to no variance of their own, what the networks disagree by is all that the ensemble doubts.
    sure = jnp.array(W).at[:, :, 2:].set(0.0).at[:, 0, 2:].set(-10.0)
    near = step._replace(final_obs=step.obs + 1.5, reward=jnp.array([0.8]))  # .25 and .05 off, of .75 and .25
    told = pets.errors(state._replace(params=linear_params(sure)), near, setting)
    assert told["within_1_std"] == 1


def rollout(reward, terminated=(), truncated=()):
    mark = lambda where: jnp.zeros(len(reward), bool).at[jnp.array(where, int)].set(True)  # noqa: E731
    x = jnp.zeros((len(reward), 1))
    return Transition(x, x, jnp.array(reward, jnp.float32), mark(terminated), mark(truncated), x)


def test_promises_by_hand():
    """Five rewards have three horizons of three; a termination ends what comes, a time limit leaves it open."""
    setting, promised = config(), jnp.array([10.0, 20.0, 30.0, 40.0, 50.0])
    reward = [1, 2, 4, 8, 16]
    told = pets.promises(promised, rollout(reward), setting)
    np.testing.assert_allclose([told["promised"], told["earned"]], [20.0, (7 + 14 + 28) / 3])
    told = pets.promises(promised, rollout(reward, terminated=[2]), setting)
    np.testing.assert_allclose([told["promised"], told["earned"]], [20.0, (7 + 6 + 4) / 3])
    told = pets.promises(promised, rollout(reward, truncated=[2]), setting)
    np.testing.assert_allclose([told["promised"], told["earned"], told["plans_judged"]], [10.0, 7.0, 1])
    none = pets.promises(promised, rollout(reward, truncated=[1, 3]), setting)
    assert (none["promised"], none["earned"], none["plans_judged"]) == (0, 0, 0)
    told = pets.promises(promised, rollout(reward, truncated=[2], terminated=[2]), setting)
    np.testing.assert_allclose([told["promised"], told["earned"]], [20.0, (7 + 6 + 4) / 3])


def exact(setting, high=-40.0):
    """A state whose networks know that a push of a moves by 1.5 a, without noise, and pays 2 a + 1.

    In their units: of y less (0, 1), over (2, 4), and of observations less 1, over 2.
    """
    W = np.zeros((2, 2, 2 * ensemble.num_targets(setting)))
    W[:, 1, 0] = 1.5 / 2
    if setting.learn_reward:
        W[:, 1, 1] = 2.0 / 4
    params = linear_params(W, high, -60.0)
    K = ensemble.num_targets(setting)
    obs_stats = pets.normalize.RunningStats(jnp.ones(1), jnp.full(1, 4.0), jnp.float32(1))
    target_stats = pets.normalize.RunningStats(jnp.array([0.0, 1.0])[:K], jnp.array([4.0, 16.0])[:K], jnp.float32(1))
    return init(KEY, setting)._replace(params=params, obs_stats=obs_stats, target_stats=target_stats)


def test_imagined_returns_by_hand():
    """Two sequences of three pushes, with the reward learned and with it given, in the env's units."""
    sequences = jnp.array([[[0.2], [0.4], [-1.0]], [[0.0], [0.0], [1.0]]])
    setting = config()
    returns = pets.imagined_returns(KEY, jnp.array([0.5]), sequences, exact(setting), setting)
    np.testing.assert_allclose(returns, [3 + 2 * -0.4, 3 + 2 * 1.0], atol=1e-3)

    pays = lambda obs, action, next_obs: obs[0] + 10 * next_obs[0] + 100 * action[0]  # noqa: E731
    setting = config(env=Pushed(reward=pays), learn_reward=False)
    returns = pets.imagined_returns(KEY, jnp.array([0.5]), sequences, exact(setting), setting)
    first, second = np.array([0.5, 0.8, 1.4, -0.1]), np.array([0.5, 0.5, 0.5, 2.0])
    expected = [x[:3].sum() + 10 * x[1:].sum() for x in (first, second)]
    np.testing.assert_allclose(returns, np.array(expected) + 300 * np.array([-0.4, 1.0]), rtol=1e-3)


def test_trajectories_spread_by_the_noise_of_each_network():
    """Both add .5 xi a step, in two units each: with x^2 for a reward, 1 and then 2 on top of the start's 9.

    The networks' and the steps' chances are independent, so that a return, the mean of both networks, varies by half as
    much as with one chance for both.
    """
    pays = lambda obs, action, next_obs: next_obs[0] ** 2  # noqa: E731
    setting = config(env=Pushed(reward=pays), learn_reward=False, horizon=2, population=64)
    W = np.zeros((2, 2, 2))
    state = exact(setting)
    bounds = jnp.full(1, 2 * np.log(0.5))
    state = state._replace(params=linear_params(W)._replace(max_log_var=bounds + 1e-3, min_log_var=bounds - 1e-3))
    one = lambda key: pets.imagined_returns(key, jnp.array([3.0]), jnp.zeros((1, 2, 1)), state, setting)[0]  # noqa: E731
    returns = jax.vmap(one)(jax.random.split(KEY, 8_000))
    scale = np.sqrt(ensemble.bounded(jnp.zeros(1), state.params)[0]) * 2  # of a step's noise
    np.testing.assert_allclose(returns.mean(), 18 + 3 * scale**2, rtol=0.02)
    # x1^2 + x2^2 of x1 = 3 + e1, x2 = x1 + e2: 12 e1 + 6 e2 and squares, of each network.
    variance = (12**2 + 6**2) * scale**2 + (2 * 4 + 2 + 4) * scale**4
    np.testing.assert_allclose(returns.var(), variance / 2, rtol=0.08)


def test_rewards_end_with_the_trajectory():
    """With a chance of 1/4 to end at each step three quarters are left after it: 1 + 3/4 + 9/16."""
    setting = config(learn_end=True)
    state = exact(config())
    W = jnp.zeros((2, 2, 5)).at[:, :, 4].set(-np.log(3))  # the logit of an action of 1, where the observation is 1
    state = state._replace(params=state.params._replace(weights={"params": {"body": {"W": W}}}))
    still = state._replace(target_stats=state.target_stats._replace(mean=jnp.array([0.0, 1.0])))
    returns = pets.imagined_returns(KEY, jnp.array([1.0]), jnp.ones((2, 3, 1)), still, setting)
    np.testing.assert_allclose(returns, [1 + 3 / 4 + 9 / 16] * 2, rtol=1e-3)


def test_all_sequences_meet_the_same_chance():
    state, setting = learned()
    sequences = jnp.full((3, setting.horizon, 1), 0.3)
    returns = pets.imagined_returns(KEY, jnp.zeros(1), sequences, state, setting)
    np.testing.assert_allclose(returns, returns[0], rtol=1e-5)
    assert returns[0] != pets.imagined_returns(jax.random.key(1), jnp.zeros(1), sequences, state, setting)[0]


# ---------------------------------------------------------------------------------------------------------------------
# The planner


def searching(**fields):
    return pets.Config(**{"population": 256, "planning_iterations": 8} | fields)


def test_the_planner_finds_the_best_sequence():
    """Or comes near it at a bound, which no draw crosses."""
    best = jnp.array([[0.3, -0.6], [1.0, -1.0], [0.0, 0.9]])
    seen = []

    def score(key, sequences):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), sequences)
        return -jnp.square(sequences - best[None]).sum((1, 2))

    found = planning.plan(KEY, jnp.zeros((3, 2)), score, searching())
    jax.effects_barrier()
    np.testing.assert_allclose(found.actions, best, atol=0.2)
    np.testing.assert_allclose(found.actions[0], best[0], atol=0.06)
    np.testing.assert_allclose(found.promised, score(KEY, found.actions[None])[0], rtol=1e-5)
    assert np.abs(np.concatenate(seen)).max() <= 1
    assert max(x.std(0).max() for x in seen) < 0.5


def test_one_iteration_of_the_planner_by_hand():
    """The elites' mean, and momentum of the old one; draws within two deviations and within the bounds."""
    start, drawn = jnp.array([[0.0], [0.8]]), []

    def score(key, sequences):
        jax.debug.callback(lambda x: drawn.append(np.asarray(x)), sequences)
        return sequences[:, 0, 0]

    setting = searching(planning_iterations=1, momentum=0.25, elite_fraction=0.125, population=2048)
    found = planning.plan(KEY, start, score, setting)
    jax.effects_barrier()
    first = next(x for x in drawn if len(x) == 2048)
    elites = first[np.argsort(-first[:, 0, 0])[:256]]
    np.testing.assert_allclose(found.actions, 0.25 * start + 0.75 * elites.mean(0), rtol=1e-4)
    assert 0.95 < first[:, 0].max() <= 1 and first[:, 1].min() > 0.55 and first[:, 1].max() <= 1
    truncated = stats.truncnorm(-2, 2).std()
    np.testing.assert_allclose(first.std(0)[:, 0], [0.5 * truncated, 0.1 * truncated], rtol=0.05)


def test_the_planners_variance_keeps_a_part_of_the_old():
    """With nothing but one draw's worth of elites the second iteration is as wide as momentum says."""
    seen = []

    def score(key, sequences):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), sequences)
        return -jnp.abs(sequences[:, 0, 0])

    setting = searching(planning_iterations=2, momentum=0.36, population=20_000, elite_fraction=0.001)
    planning.plan(KEY, jnp.zeros((1, 1)), score, setting)
    jax.effects_barrier()
    spread = sorted(x.std() for x in seen if len(x) == 20_000)
    np.testing.assert_allclose(spread[0] / spread[1], 0.6, rtol=0.03)


def test_each_score_has_a_key_of_its_own():
    """Three iterations and the promise; none is one that candidates were drawn with."""
    keys, drawn = [], []

    def score(key, sequences):
        jax.debug.callback(lambda key, x: keys.append(key.tolist()) or drawn.append(np.asarray(x)), key, sequences)
        return sequences[:, 0, 0]

    planning.plan(jax.random.PRNGKey(0), jnp.zeros((2, 1)), score, searching(planning_iterations=3))
    jax.effects_barrier()
    assert len(keys) == 4 and len({tuple(key) for key in keys}) == 4
    first = min((x for x in drawn if len(x) > 1), key=lambda x: abs(x.mean()))
    for key in keys:
        noise = jax.random.truncated_normal(jnp.array(key, jnp.uint32), -2.0, 2.0, (256, 2, 1))
        assert np.abs(0.5 * noise - first).max() > 0.1


def test_the_planner_takes_no_number_that_is_none():
    """Half of the sequences have returns that are none: the best of the others counts."""

    def score(key, sequences):
        return jnp.where(sequences[:, 0, 0] > 0, jnp.nan, sequences[:, 0, 0])

    found = planning.plan(KEY, jnp.zeros((1, 1)), score, searching())
    assert -0.1 < found.actions[0, 0] < 0.05


def test_a_plan_one_step_later():
    np.testing.assert_array_equal(planning.shifted(jnp.array([[1.0], [2.0], [3.0]])), [[2.0], [3.0], [0.0]])


def test_true_returns_are_those_of_the_env():
    """Three pushes from one start; the reward that terminates counts and none after it does."""
    env = envs.BoundEnv(Pushed(edge=2.0, limit=2), (), 1)
    state = (jnp.array([0.5]), jnp.int32(0))
    sequences = jnp.array([[[0.2], [0.4], [-1.0]], [[1.0], [1.0], [0.0]]])
    returns = planning.true_returns(KEY, env, state, sequences)
    np.testing.assert_allclose(returns, [-(0.8**2 + 1.4**2 + 0.1**2), -(2.0**2 + 3.5**2)], rtol=1e-5)


def planned_in_truth(key, name, num_steps, setting):
    """The return of an episode in which each action is planned in the env itself."""
    env = envs.bind(cem.Config(env=name))
    reset_key, loop_key = jax.random.split(key)

    def step(carry, tick):
        env_state, start = carry
        state = jax.tree.map(lambda x: x[0], env_state.state)
        score = lambda key, sequences: planning.true_returns(key, env, state, sequences)  # noqa: E731
        actions = planning.plan(tick.act_key, start, score, setting).actions
        env_state, transition, _ = env.step(tick, env_state, actions[:1])
        return (env_state, planning.shifted(actions)), transition.reward[0]

    start = (env.reset(reset_key), jnp.zeros((setting.horizon, env.action_size)))
    _, rewards = jax.lax.scan(step, start, env.ticks(loop_key, num_steps))
    return rewards.sum()


def test_planning_in_the_true_pendulum_solves_it():
    """Ten episodes. What a solved policy earns is -130 to -170."""
    setting = pets.Config(num_steps=30)
    returns = jax.jit(jax.vmap(lambda key: planned_in_truth(key, "Pendulum-v1", 200, setting)))(
        jax.random.split(KEY, 10)
    )
    assert returns.mean() >= -160


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def test_a_plan_ends_with_its_episode():
    """After the second of three steps the time limit starts a fresh plan, which has made one step since."""
    setting = config(env=Pushed(limit=2), num_steps=3, total_timesteps=32)
    state = init(KEY, setting)._replace(plan=jnp.full((3, 1), 0.5))
    starts = []
    real = pets.search

    def search(key, obs, start, state, config):
        jax.debug.callback(lambda x: starts.append(np.asarray(x)), start, ordered=True)
        return real(key, obs, start, state, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pets, "search", search)
        after, steps, promised, _ = pets.collect(KEY, state._replace(env_state=envs.bind(setting).reset(KEY)), setting)
        jax.effects_barrier()
    assert (starts[0] == 0.5).all() and (starts[1] != 0).any() and (starts[2] == 0).all()
    assert (after.plan[-1] == 0).all() and (after.plan[0] != 0).any()
    np.testing.assert_array_equal(steps.truncated, [False, True, False])
    assert promised.shape == (3,)


def test_the_policy_warm_starts():
    """What it remembers is its plan of the last step, shifted; deterministic, it does not look at the key."""
    state, setting = learned()
    policy = pets.policy(state, setting)
    same_key = jax.random.fold_in(state.key, 0)
    for start in (policy.memory, jnp.full_like(policy.memory, 0.5)):
        plan = pets.search(same_key, jnp.zeros(1), start, state, setting)
        action, memory = policy.act(KEY, jnp.zeros(1), start)
        np.testing.assert_allclose(action, plan.actions[0], rtol=1e-5)
        np.testing.assert_allclose(memory, planning.shifted(plan.actions), rtol=1e-5)
    assert (policy.memory == 0).all() and memory.shape == (setting.horizon, 1)


@pytest.mark.thorough
def test_learns_to_stay_in_the_middle():
    """After 60 random steps and 80 of its own: from -40 of random actions to what the first step and noise cost."""
    setting = config(
        env=Pushed(0.1),
        model_network=None,
        hidden_sizes=(16,),
        learning_starts=60,
        total_timesteps=160,
        num_steps=20,
        gradient_steps=200,
        learning_rate=3e-3,
        batch_size=32,
        horizon=4,
        population=32,
        buffer_size=256,
    )
    _, metrics = pets.train(KEY, setting)
    assert metrics["episode_return"][-1] > -1.0
    assert metrics["model_loss"][-1] < metrics["model_loss"][0]
    assert metrics["model_error"][-1] < metrics["model_error"][0]


def test_the_networks_of_a_state_are_trained_in_its_units():
    """One update with new data: training comes after the statistics have moved, and the last steps are in it."""
    setting = config(model_network=None)
    state = init(KEY, setting)
    counts = optax.tree.get_all_with_path(state.opt_state, "count")
    assert [count for _, count in counts] == [setting.gradient_steps]  # it starts with a trained ensemble
    after, _ = update(state, setting)
    key, act_key, count_key, fit_key = jax.random.split(state.key, 4)
    collected, steps, _, _ = jax.jit(pets.collect)(act_key, state, setting)
    expected, _ = jax.jit(pets.fit)(fit_key, pets.remember(count_key, collected, steps, setting), setting)
    for x, y in zip(*map(tiny.arrays, (after, expected._replace(key=key, updates=jnp.int32(1)))), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_runs_where_no_plan_is_judged():
    """A time limit of two steps below a horizon of three: nothing that the runner would take for a failed training."""
    run = tiny.run(pets, config(env=Pushed(limit=2), model_network=None), (0,))
    assert run.finished and (run.metrics["plans_judged"] == 0).all() and (run.metrics["promised"] == 0).all()


def test_errors_of_ends_by_hand():
    """Chances of 1/2 where it ended, and 1/4 where only the clock ran out."""
    setting = config(learn_end=True)
    state = exact(config())._replace(obs_stats=pets.normalize.init_stats((1,)))
    W = jnp.zeros((2, 2, 5)).at[:, 0, 4].set(-np.log(3))
    state = state._replace(params=state.params._replace(weights={"params": {"body": {"W": W}}}))
    step = rollout([0.0, 0.0], terminated=[0], truncated=[1])._replace(obs=jnp.array([[0.0], [1.0]]))
    np.testing.assert_allclose(pets.errors(state, step, setting)["end_error"], (0.5 + 0.25) / 2, rtol=1e-5)


@pytest.mark.thorough
def test_ends_that_are_not_learned_are_told():
    """Switched off, terminations that came are counted; switched on, how far the model is off."""
    setting = config(env=Pushed(edge=-2.0), model_network=None)
    _, metrics = pets.train(KEY, setting)
    np.testing.assert_array_equal(metrics["unforeseen_ends"], [6] * setting.num_updates)
    _, metrics = pets.train(KEY, setting.replace(learn_end=True, gradient_steps=100, learning_rate=0.01))
    assert "unforeseen_ends" not in metrics and metrics["end_error"][-1] < 0.2


KEYED = Pushed(reward=lambda obs, action, next_obs: {}["pay"])
BYTES = Bandit(Box(-1.0, 1.0, (1,)), lambda action: action[0])
BYTES.observation_space = lambda params: Box(0, 255, (4, 4, 1), jnp.uint8)
BYTES.reset = lambda key, params: (jnp.zeros((4, 4, 1), jnp.uint8), ())
BYTES.step = lambda key, state, action, params: (
    jnp.zeros((4, 4, 1), jnp.uint8),
    state,
    action[0],
    jnp.bool_(True),
    jnp.bool_(False),
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"env": "CartPole-v1"},
            r"pets acts in continuous action spaces only, but CartPole-v1 .*: use dqn, discrete_sac",
        ),
        ({"env": BYTES}, r"must be a vector of real numbers, but .* has Box\(shape=\(4, 4, 1\).*: use sac, td3 or ppo"),
        (
            {"env": Bandit(Box(-jnp.inf, jnp.inf, (1,)), lambda action: action[0])},
            r"needs finite bounds in each dimension",
        ),
        ({"horizon": 0}, r"horizon must be at least 1, but is 0"),
        ({"horizon": 60}, r"horizon = 60 must be at most num_steps = 50: lower horizon or raise num_steps"),
        ({"elite_fraction": 0.01}, r"makes 1 elites, but a variance needs at least 2"),
        ({"elite_fraction": 2.0}, r"makes 128 elites, but there are no more than the population"),
        (
            {"env": "MountainCarContinuous-v0", "learn_reward": False},
            r"MountainCarContinuous-v0 has no method reward\(obs, action, next_obs, params\) that gives a number: give",
        ),
        (
            {"env": Bandit(Box(-1.0, 1.0, (1,)), lambda action: action[0]), "learn_reward": False},
            r"has no method reward\(obs, action, next_obs, params\) that gives a number",
        ),
        ({"env": KEYED, "learn_reward": False}, r"has no method reward\(obs, action, next_obs, params\) that"),
        ({"learning_starts": 1}, r"batch_size = 128 is larger than learning_starts = 1"),
        ({"momentum": 1.0}, r"momentum must be a finite number in \[0, 0.99\]"),
        ({"elite_fraction": float("nan")}, r"elite_fraction = nan of population = 64 makes 0 elites"),
        ({"total_timesteps": 220}, r"total_timesteps = 220 is less than the 250 env steps of the first update"),
        ({"batch_size": 20_000}, r"buffer_size = 10000 is smaller than batch_size = 20000"),
    ],
)
def test_bad_input(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pets.Config(**fields)


def test_networks_of_ones_own_read_observation_and_action():
    """And give a mean and a log variance of each target."""

    class Wrong(nn.Module):
        num_outputs: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.num_outputs + 1)(x)

    with pytest.raises(ValueError, match=r"must give \[4\] .*gives \[5\]"):
        pets.init(KEY, config(model_network=Wrong))
