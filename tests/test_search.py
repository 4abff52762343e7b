"""CEM and OpenAI-ES: their updates by hand, how candidates are scored, and both on a quadratic bowl."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import cem, es
from purerl.core import candidates, normalize, optimize, policies, rollout
from purerl.core.types import memoryless
from purerl.envs import Box, Discrete, bind
from tests import tiny
from tests.test_pets import Pushed
from tests.toy_envs import Bandit, Chain

KEY = jax.random.key(0)
SEARCHES = pytest.mark.parametrize("algorithm", [cem, es], ids=["cem", "es"])


def test_refit_by_hand():
    """The second and third of four candidates are the elites."""
    config = tiny.config(cem)
    drawn = jnp.array([[0.0, 0.0], [1.0, 2.0], [3.0, 8.0], [9.0, 9.0]])
    mean, var, elite_return = cem.refit(drawn, jnp.array([1.0, 5.0, 7.0, -2.0]), 0.25, config)
    np.testing.assert_allclose(mean, [2.0, 5.0])
    np.testing.assert_allclose(var, [1.25, 9.25])
    assert elite_return == 6


def test_candidates_have_the_mean_and_the_variance():
    config = cem.Config(population=40_000, total_timesteps=20_000_000)
    drawn = cem.candidates(KEY, jnp.array([1.0, -20.0]), jnp.array([4.0, 0.25]), config)
    np.testing.assert_allclose(drawn.mean(0), [1.0, -20.0], atol=0.03)
    np.testing.assert_allclose(drawn.var(0), [4.0, 0.25], rtol=0.03)


def test_extra_variance_by_hand():
    """0.6^2 falls to 0 over the first half; where the fraction is 0 there is none, not even at the start."""
    config = cem.Config(extra_std=0.6, extra_fraction=0.5)
    extra = [cem.extra_variance(progress, config) for progress in (0.0, 0.125, 0.25, 0.5, 0.75)]
    np.testing.assert_allclose(extra, [0.36, 0.27, 0.18, 0.0, 0.0], rtol=1e-6)
    assert cem.extra_variance(0.0, config.replace(extra_fraction=0.0)) == 0


def test_the_extra_variance_falls_with_the_training():
    config = tiny.config(cem, extra_std=0.8, extra_fraction=1.0)
    _, metrics = cem.train(KEY, config)
    np.testing.assert_allclose(metrics["extra_std"] ** 2, 0.64 * (1 - np.arange(4) / 4), rtol=1e-5)


def test_ranks_by_hand():
    np.testing.assert_allclose(es.centred_ranks(jnp.array([7.0, -1e9, 8.0, 2.0, 3.0])), [0.25, -0.5, 0.5, -0.25, 0.0])
    np.testing.assert_allclose(es.centred_ranks(jnp.array([5.0, 1.0, 5.0])), [0.25, -0.5, 0.25])
    np.testing.assert_array_equal(es.centred_ranks(jnp.full(4, 3.0)), np.zeros(4))


def test_candidates_come_in_pairs():
    config = es.Config(population=4_000, total_timesteps=2_000_000, std=0.5)
    mean = jnp.array([1.0, -20.0])
    drawn, noise = es.candidates(KEY, mean, config)
    first, second = np.split(np.asarray(drawn), 2)
    np.testing.assert_allclose(first + second, np.broadcast_to(2 * mean, first.shape), rtol=1e-4)
    np.testing.assert_allclose(first, np.asarray(mean) + 0.5 * np.asarray(noise), rtol=1e-5)
    np.testing.assert_allclose(drawn.std(0), [0.5, 0.5], rtol=0.05)


def test_gradient_by_hand():
    """(0.5 - 0) (1, 2) + (-0.25 + 0.5) (4, -8), over 4 candidates and a deviation of 0.1."""
    config = es.Config(population=4, std=0.1)
    noise, utility = jnp.array([[1.0, 2.0], [4.0, -8.0]]), jnp.array([0.5, -0.25, 0.0, -0.5])
    np.testing.assert_allclose(es.gradient(noise, utility, config), [1.5 / 0.4, -1.0 / 0.4], rtol=1e-6)


def test_gradient_of_a_quadratic():
    """Of -|w - c|^2 it is 2 (c - w), the same for the cloud as for its middle, whatever its deviation."""
    config = es.Config(population=200_000, total_timesteps=100_000_000, std=0.7)
    mean, optimum = jnp.array([1.0, -1.0]), jnp.array([4.0, 1.0])
    drawn, noise = es.candidates(KEY, mean, config)
    returns = -jnp.square(drawn - optimum[None]).sum(1)
    np.testing.assert_allclose(es.gradient(noise, returns, config), [6.0, 4.0], rtol=0.03)


# The optimum is far: the weight and the bias of a linear policy that sees 1 must add up to 20, of deviations of 1.
FAR = Bandit(Box(-jnp.inf, jnp.inf, (1,)), lambda action: -jnp.square(action[0] - 20.0))
BOWL = {"env": FAR, "num_steps": 1, "population": 64, "total_timesteps": 64 * 60}


def found(algorithm, **fields):
    """Where the search ends after 60 generations."""
    config = algorithm.Config(**BOWL, **fields)
    state, metrics = algorithm.train(KEY, config)
    policy = algorithm.policy(state, config)
    return policy(KEY, jnp.ones(1)).item(), metrics


def test_cem_converges_on_a_bowl_by_its_extra_variance():
    """Without it the variance is gone before the search is there."""
    end, metrics = found(cem, extra_std=1.0)
    assert abs(end - 20) < 0.05 and metrics["std"][-1] < 0.01
    short, metrics = found(cem, extra_std=0.0)
    assert short < 15 and metrics["std"][-1] < 1e-3


def test_es_converges_on_a_bowl():
    end, _ = found(es, learning_rate=1.0, anneal_learning_rate=True)
    assert abs(end - 20) < 0.1


@functools.cache
def population(algorithm, **fields):
    """Four candidates of a tiny Config, drawn far apart."""
    config = algorithm.Config(**{**tiny.FIELDS["cem"], "elite_fraction": 0.5} | fields)
    params = algorithm.init(KEY, config).params
    keys = jax.random.split(KEY, config.population)
    return config, jax.vmap(lambda key: jax.tree.map(lambda x: x + 3 * jax.random.normal(key, x.shape), params))(keys)


def alone(key, weights, stats, config):
    """The episodes of one candidate by itself."""
    env = bind(config)

    def act(key, obs):
        return candidates.greedy(weights, policies.observe(obs, stats, config), config)

    return rollout.episodes(key, env, memoryless(act, env.to_units), config.num_episodes, config.num_steps)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_each_candidate_is_scored_as_if_it_were_alone(env):
    """The same start states for all, whole episodes, the right weights, and with observations standardised alike."""
    config, drawn = population(cem, env=env, normalize_obs=True)
    size = bind(config).obs_space.shape
    stats = normalize.RunningStats(jnp.full(size, 0.1), jnp.full(size, 0.5), jnp.float32(3))
    scores = jax.jit(lambda: candidates.score(KEY, drawn, stats, config))()
    one = jax.jit(lambda weights: alone(KEY, weights, stats, config))
    each = [one(jax.tree.map(lambda x: x[i], drawn)) for i in range(config.population)]  # noqa: B023 - called at once
    np.testing.assert_allclose(scores.returns, [x.returns.mean() for x in each], rtol=1e-5)
    assert scores.episodes.num == 8
    np.testing.assert_allclose(scores.episodes.return_sum, sum(x.returns.sum() for x in each), rtol=1e-5)
    assert scores.episodes.length_sum == sum(x.lengths.sum() for x in each)
    assert len(np.unique(scores.returns)) > 1


def test_common_random_numbers():
    """Candidates alike earn alike, though start states differ between episodes and between generations."""
    config, drawn = population(cem, env="Pendulum-v1")
    alike = jax.tree.map(lambda x: jnp.stack([x[0]] * 4), drawn)
    first, second = (candidates.score(key, alike, None, config) for key in jax.random.split(KEY))
    assert (first.returns == first.returns[0]).all() and first.returns[0] != second.returns[0]
    one = alone(KEY, jax.tree.map(lambda x: x[0], drawn), None, config)
    assert one.returns[0] != one.returns[1]


def walkers(first):
    """Weights of linear policies that walk (1) or stay (0), whatever they see."""
    bias = jnp.array([[0.0, 1.0] if walks else [1.0, 0.0] for walks in first])
    return {"params": {"body": {"Dense_0": {"kernel": jnp.zeros((len(first), 3, 2)), "bias": bias}}}}


def test_whole_episodes_and_the_statistics_of_what_was_seen():
    """Who walks earns 1 + 2 + 3 in three steps and is over; who stays gets 0 in five. Only their own steps are seen."""
    config = cem.Config(
        env=Chain(), population=4, elite_fraction=0.5, num_episodes=2, total_timesteps=4000, normalize_obs=True
    )
    stats = policies.init_stats(config)
    scores = candidates.score(KEY, walkers([1, 0, 0, 1]), stats, config)
    np.testing.assert_array_equal(scores.returns, [6.0, 0.0, 0.0, 6.0])
    assert (scores.episodes.num, scores.episodes.return_sum, scores.episodes.length_sum) == (8, 24, 32)
    seen = 4 * [(0, 0), (1, 1), (2, 2)] + 4 * [(0, time) for time in range(5)]
    np.testing.assert_allclose(scores.obs_stats.mean[:2], np.mean(seen, 0), rtol=1e-5)
    np.testing.assert_allclose(scores.obs_stats.var[:2], np.var(seen, 0), rtol=1e-5)
    assert scores.obs_stats.num == 32


def test_episodes_are_cut_after_num_steps():
    config = cem.Config(
        env=Chain(), population=4, elite_fraction=0.5, num_steps=2, total_timesteps=4000
    )  # it never says
    scores = candidates.score(KEY, walkers([1, 0, 0, 1]), None, config)
    np.testing.assert_array_equal(scores.returns, [3.0, 0.0, 0.0, 3.0])
    assert scores.episodes.length_sum == 8


def test_each_episode_may_have_physics_of_its_own():
    """Goals at 1 and 3 for the two episodes of each candidate: 1 and 6."""
    config = cem.Config(
        env=Chain(),
        env_params={"goal": jnp.array([1, 3])},
        population=4,
        elite_fraction=0.5,
        num_episodes=2,
        total_timesteps=4000,
    )
    scores = candidates.score(KEY, walkers([1, 0, 1, 1]), None, config)
    np.testing.assert_array_equal(scores.returns, [3.5, 0.0, 3.5, 3.5])


@SEARCHES
def test_statistics_take_effect_in_the_next_generation(algorithm):
    """The first sees observations as they are; what it saw is in the state after it."""
    config = tiny.config(algorithm, normalize_obs=True)
    raw = tiny.config(algorithm)
    state, metrics = algorithm.update(algorithm.init(KEY, config), config)
    plain, plain_metrics = algorithm.update(algorithm.init(KEY, raw), raw)
    np.testing.assert_allclose(metrics["episode_return"], plain_metrics["episode_return"])
    assert state.obs_stats.num == metrics["episodes"] * metrics["episode_length"] and plain.obs_stats is None


def test_an_update_of_cem_is_its_parts():
    """The elites of the update are those of its own candidates; spread and best are told."""
    config = tiny.config(cem, extra_std=0.0)
    state = cem.init(KEY, config)
    after, metrics = cem.update(state, config)
    _, draw_key, score_key = jax.random.split(state.key, 3)
    mean, unravel = jax.flatten_util.ravel_pytree(state.params)
    drawn = cem.candidates(draw_key, mean, jnp.ones_like(mean), config)
    returns = candidates.score(score_key, jax.vmap(unravel)(drawn), None, config).returns
    elites = np.argsort(-returns)[:2]
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(after.params)[0], drawn[elites].mean(0), rtol=1e-5)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(after.var)[0], drawn[elites].var(0), rtol=1e-4)
    assert metrics["elite_return"] == returns[elites].mean() and metrics["best_return"] == returns.max()
    np.testing.assert_allclose(metrics["return_std"], np.std(returns), rtol=1e-5)
    np.testing.assert_allclose(metrics["std"], np.std(drawn[elites], 0).mean(), rtol=1e-4)


def test_two_updates_of_es_are_its_parts():
    """Ranks in place of returns, Adam's moments and keys carried on."""
    config = tiny.config(es)
    state = es.init(KEY, config)
    mean, unravel = jax.flatten_util.ravel_pytree(state.params)
    opt_state, key = state.opt_state, state.key
    for _ in range(2):
        state, metrics = es.update(state, config)
        key, draw_key, score_key = jax.random.split(key, 3)
        drawn, noise = es.candidates(draw_key, mean, config)
        returns = candidates.score(score_key, jax.vmap(unravel)(drawn), None, config).returns
        ascent = es.gradient(noise, es.centred_ranks(returns), config)
        mean, opt_state = optimize.adam_step(-ascent, mean, opt_state, config.learning_rate)
        np.testing.assert_allclose(jax.flatten_util.ravel_pytree(state.params)[0], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(metrics["grad_norm"], jnp.linalg.norm(ascent), rtol=1e-4)


def test_the_first_variance_is_the_square_of_the_deviation():
    state = cem.init(KEY, tiny.config(cem, initial_std=2.0))
    assert all((x == 4).all() for x in jax.tree.leaves(state.var))


@SEARCHES
def test_the_policy_sees_standardised_observations(algorithm):
    config = tiny.config(algorithm, env="Pendulum-v1", normalize_obs=True)
    state = algorithm.init(KEY, config)
    state = state._replace(obs_stats=normalize.RunningStats(jnp.full(3, 0.3), jnp.full(3, 4.0), jnp.float32(9)))
    obs = jnp.array([0.5, -0.2, 3.0])
    action = algorithm.policy(state, config).act(KEY, obs, ())[0]
    np.testing.assert_allclose(action, candidates.greedy(state.params, (obs - 0.3) / 2, config), rtol=1e-5)


def test_chance_in_the_steps_is_common_too():
    """A point that is pushed by noise: candidates alike earn alike."""
    env = Pushed(0.3)
    config, drawn = population(cem, env=env)
    alike = jax.tree.map(lambda x: jnp.stack([x[0]] * 4), drawn)
    returns = candidates.score(KEY, alike, None, config).returns
    np.testing.assert_allclose(returns, returns[0], rtol=1e-6)


def test_a_return_that_is_no_number_is_the_worst():
    """Of a search it would otherwise be the best."""
    np.testing.assert_array_equal(candidates.ranked(jnp.array([1.0, jnp.nan, -3.0, 2.0])), [1.0, -3.0, -3.0, 2.0])
    broken = Bandit(Box(-jnp.inf, jnp.inf, (1,)), lambda action: jnp.where(action[0] > 0, jnp.nan, action[0]))
    config = cem.Config(env=broken, num_steps=1, population=64, total_timesteps=64 * 20)
    _, metrics = cem.train(KEY, config)
    assert np.isfinite(metrics["best_return"]).all() and -0.3 < metrics["elite_return"][-1] <= 0


def test_es_takes_adams_first_step_uphill():
    """Which is learning_rate in every weight, wherever the gradient points."""
    env = Bandit(Box(-jnp.inf, jnp.inf, (1,)), lambda action: action[0])
    config = es.Config(env=env, num_steps=1, population=16, total_timesteps=160, learning_rate=0.25)
    state = es.init(KEY, config)
    after, _ = es.update(state, config)
    moved = [y - x for x, y in zip(*map(tiny.arrays, (state.params, after.params)), strict=True)]
    np.testing.assert_allclose([x.item() for x in moved], [0.25, 0.25], rtol=1e-4)


def test_the_policy_of_discrete_actions_takes_the_largest_output():
    env = Bandit(Discrete(2), lambda action: action.astype(jnp.float32))
    config = cem.Config(env=env, num_steps=1, population=16, total_timesteps=160)
    state, metrics = cem.train(KEY, config)
    assert metrics["episode_return"][-1] > 0.9
    assert cem.policy(state, config)(KEY, jnp.ones(1)) == cem.policy(state, config, deterministic=False)(
        KEY, jnp.ones(1)
    )


@pytest.mark.parametrize(
    ("algorithm", "fields", "message"),
    [
        (cem, {"elite_fraction": 0.01}, r"makes 1 elites, but a variance needs at least 2: .*between 0.03125 and 1"),
        (cem, {"elite_fraction": 1.5}, r"makes 96 elites, but there are no more than the population: .* and 1\."),
        (cem, {"population": 1}, r"population must be at least 2, but is 1"),
        (cem, {"elite_fraction": float("nan")}, r"elite_fraction = nan of population = 64 makes 0 elites"),
        (cem, {"num_steps": 0}, r"num_steps must be at least 1, but is 0"),
        (es, {"num_steps": 400}, r"whole episodes, but those of CartPole-v1 may last 500 steps and num_steps is 400"),
        (cem, {"actor_hidden_sizes": (0,)}, r"actor_hidden_sizes must be at least 1"),
        (cem, {"actor_hidden_sizes": (8.0,)}, r"actor_hidden_sizes must be a tuple of Python ints"),
        (cem, {"initial_std": 0.0}, r"initial_std must be a finite number greater than 0"),
        (cem, {"total_timesteps": 100}, r"less than the 32000 env steps of the first update"),
        (es, {"population": 5}, r"come in pairs, so population must be even, but is 5"),
        (es, {"std": 0.0}, r"std must be a finite number greater than 0"),
    ],
)
def test_bad_input(algorithm, fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        algorithm.Config(**fields)
