"""MBPO: what it imagines and what it learns from by hand, and its gradient step beside that of SAC."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purerl import mbpo, sac
from purerl.core import ensemble, normalize, replay
from purerl.core.types import Transition
from tests import tiny
from tests.test_off_policy import Linear
from tests.test_pets import BYTES, Pushed, linear_params
from tests.toy_envs import Levers

KEY = jax.random.key(0)


def config(**fields: Any) -> Any:
    return tiny.config(mbpo, **{"env": Pushed()} | fields)


@functools.cache
def state_and_config(**fields: Any) -> tuple[Any, Any]:
    setting = config(**fields)
    return jax.jit(mbpo.init)(KEY, setting), setting


class Pays(Pushed):
    """It pays for what was observed, a hundred times what is, and ten times the action in its units, of -3 to 3."""

    def __init__(self) -> None:
        super().__init__(reward=lambda obs, action, next_obs: obs[0] + 100 * next_obs[0] + 10 * action[0])


def knowing(state: Any, setting: Any, kernel: Any, **bounds: float) -> Any:
    """With `Linear` networks of a kernel `[M, 2, outputs]`, which read (s - 1) / 3 and give (ds / 2, (r - 1) / 4)."""
    K = 1 + setting.learn_reward
    one = lambda *x: jnp.array(x, jnp.float32)  # noqa: E731
    obs_stats = normalize.RunningStats(one(1.0), one(9.0), jnp.float32(1))
    target_stats = normalize.RunningStats(one(0.0, 1.0)[:K], one(4.0, 16.0)[:K], jnp.float32(1))
    params = linear_params(kernel, **{"high": -60.0, "low": -80.0} | bounds)
    params = params._replace(max_log_var=params.max_log_var[:1].repeat(K), min_log_var=params.min_log_var[:1].repeat(K))
    return state._replace(model=state.model._replace(params=params, obs_stats=obs_stats, target_stats=target_stats))


def gains(K: int, extra: int = 0) -> np.ndarray:
    """Networks that add (s - 1) / 5 + a and (s - 1) / 5 + 10 a to s and pay 1 + a and 1 + 10 a, without noise."""
    kernel = np.zeros((2, 2, 2 * K + extra))
    kernel[:, 0, 0] = 0.3
    kernel[:, 1, 0] = 1 / 2, 10 / 2
    if K > 1:
        kernel[:, 1, 1] = 1 / 4, 10 / 4
    return kernel


class Sure(nn.Module):
    """An actor whose mean is twice what it observes, with next to no deviation."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        gain = self.param("gain", nn.initializers.constant(2.0), ())
        return jnp.concatenate([gain * x, jnp.full_like(x, -20.0)], axis=-1)


def imagined(state: Any, setting: Any) -> tuple[Transition, Any]:
    """The transitions `[k, M, R / M]` that imagining adds to an empty memory, and the metrics."""
    after, metrics = mbpo.imagine(KEY, state, setting)
    M, each, k = setting.num_members, setting.rollouts_a_network, setting.rollout_length
    rows = after.imagined.rows[: k * M * each]
    steps = replay._unpack(rows, mbpo.envs.bind(setting).transition)
    assert after.imagined.size == k * M * each
    return jax.tree.map(lambda x: np.asarray(x).reshape(k, M, each, *x.shape[1:]), steps), metrics


@pytest.mark.thorough
def test_rollouts_by_hand() -> None:
    """From real observations on, by the policy's draws, with each network's own change and reward."""
    state, setting = state_and_config(env=Pushed(limit=1), model_network=Linear, num_rollouts=9)
    state = knowing(state, setting, gains(2))
    steps, metrics = imagined(state, setting)
    assert steps.reward.shape == (2, 2, 5)
    drawn = replay.sample(KEY, state.model.replay, 1_000, ensemble.example(setting)).transition
    assert set(steps.obs[0].ravel()) <= set(np.asarray(drawn.obs).ravel()) and len(set(steps.obs[0].ravel())) > 2
    np.testing.assert_array_equal(steps.obs[1], steps.final_obs[0])
    gain = np.array([1.0, 10.0])[None, :, None]
    change = steps.final_obs[..., 0] - steps.obs[..., 0]
    drift = (steps.obs[..., 0] - 1) / 5
    np.testing.assert_allclose(change, drift + gain * steps.action[..., 0], atol=1e-4)
    np.testing.assert_allclose(steps.reward, 1 + gain * steps.action[..., 0], atol=1e-4)
    assert not steps.terminated.any() and not steps.truncated.any()
    assert len(np.unique(steps.action)) == 20 and np.abs(steps.action).max() < 1
    np.testing.assert_allclose(metrics["imagined_reward"], steps.reward.mean(), rtol=1e-5)


@pytest.mark.thorough
def test_actions_of_rollouts_are_the_policys_where_they_are() -> None:
    """A sure actor, whose action is tanh of twice the standardised observation."""
    state, setting = state_and_config(model_network=Linear, actor_network=Sure())
    state = knowing(state, setting, gains(2))
    steps, _ = imagined(state, setting)
    np.testing.assert_allclose(steps.action, np.tanh(2 * (steps.obs - 1) / 3), atol=1e-4)
    action = mbpo.policy(state, setting)(KEY, jnp.array([0.25]))
    np.testing.assert_allclose(action, 3 * np.tanh(2 * (0.25 - 1) / 3), rtol=1e-4)  # in the env's units


def test_rewards_that_the_env_says() -> None:
    state, setting = state_and_config(env=Pays(), learn_reward=False, model_network=Linear)
    state = knowing(state, setting, gains(1))
    steps, _ = imagined(state, setting)
    expected = steps.obs[..., 0] + 100 * steps.final_obs[..., 0] + 30 * steps.action[..., 0]
    np.testing.assert_allclose(steps.reward, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_a_rollout_that_ends_begins_anew(logit: float) -> None:
    """By actions of one sign; the next step is from the first observation again, also after an end in the middle."""
    state, setting = state_and_config(
        model_network=Linear, learn_end=True, num_rollouts=40, rollout_length=3, imagined_size=120
    )
    kernel = gains(2, extra=1)
    kernel[:, 1, 4] = logit
    steps, _ = imagined(knowing(state, setting, kernel), setting)
    ends = logit * steps.action[..., 0] > 0
    np.testing.assert_array_equal(steps.terminated, ends)
    assert 0 < ends[0].mean() < 1 and (~ends[0] & ends[1]).any()
    expected = np.where(ends[:-1, ..., None], steps.obs[:1], steps.final_obs[:-1])
    np.testing.assert_array_equal(steps.obs[1:], expected)


def test_ends_come_with_their_chance() -> None:
    """A quarter, by a logit of -log 3 where the observation is 4, from where nothing moves."""
    state, setting = state_and_config(model_network=Linear, learn_end=True, num_rollouts=4_000, imagined_size=8_000)
    kernel = np.zeros((2, 2, 5))
    kernel[:, 0, 4] = -np.log(3)
    state = knowing(state, setting, kernel)
    four = jnp.full((1, 1), 4.0)
    step = Transition(four, four / 8, four[0], jnp.zeros(1, bool), jnp.zeros(1, bool), four)
    datum = ensemble.Datum(step, jnp.ones((1, 2)))
    held = replay.add(replay.init(64, ensemble.example(setting)), datum)
    steps, _ = imagined(state._replace(model=state.model._replace(replay=held)), setting)
    assert (steps.obs == 4).all()
    np.testing.assert_allclose(steps.terminated.mean(), 0.25, atol=0.02)


def test_noise_of_rollouts_is_the_networks() -> None:
    """Deviations of 3 in units of 2 and 4, of change and reward, independent of each other and from step to step."""
    state, setting = state_and_config(model_network=Linear, num_rollouts=4_000, imagined_size=8_000)
    state = knowing(state, setting, np.zeros((2, 2, 4)), high=50.0, low=float(np.log(9.0 - 1.0)))  # 9: 8 + exp(0)
    steps, _ = imagined(state, setting)
    change, reward = steps.final_obs[..., 0] - steps.obs[..., 0], steps.reward - 1
    np.testing.assert_allclose([change.std() / 2, reward.std() / 4], [3.0, 3.0], rtol=0.03)
    rows = [*change.reshape(4, -1), *reward.reshape(4, -1)]  # of each step and each network
    assert np.abs(np.corrcoef(rows) - np.eye(8)).max() < 0.08


@pytest.mark.thorough
def test_batches_mix_real_and_imagined() -> None:
    """A quarter of each batch is real, in any place of the memories, and all of it is observed in the model's units."""
    state, setting = state_and_config(batch_size=8, real_fraction=0.25)
    env = mbpo.envs.bind(setting)
    x = 20.0 + jnp.arange(12.0)[:, None]
    made_up = Transition(x, x / 1000, x[:, 0], jnp.ones(12, bool), jnp.zeros(12, bool), x + 1)
    stats = normalize.RunningStats(jnp.array([2.0]), jnp.array([16.0]), jnp.float32(5))
    memory = replay.add(replay.init(24, env.transition), made_up)
    state = state._replace(imagined=memory, model=state.model._replace(obs_stats=stats))
    seen, lived = [], []
    for key in jax.random.split(KEY, 30):
        batch = mbpo.draw_batch(key, state, setting)
        assert batch.reward.shape == (8,) and not batch.terminated[:2].any() and batch.terminated[2:].all()
        np.testing.assert_allclose(batch.obs[2:, 0] * 4 + 2, batch.reward[2:], rtol=1e-5)
        np.testing.assert_allclose(batch.final_obs[2:, 0] * 4 + 2, batch.reward[2:] + 1, rtol=1e-5)
        moved = (batch.final_obs - batch.obs)[:2, 0] * 4
        np.testing.assert_allclose(moved, 1.5 * batch.action[:2, 0], atol=1e-4)
        seen += [*np.asarray(batch.reward[2:])]
        lived += [*np.asarray(batch.reward[:2])]
    assert len(set(seen)) == 12 and len(set(lived)) == 8


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_batches_of_one_kind(fraction: float) -> None:
    state, setting = state_and_config(real_fraction=fraction)
    memory = jax.tree.map(jnp.zeros_like, state.imagined)._replace(size=jnp.int32(5))
    batch = mbpo.draw_batch(KEY, state._replace(imagined=memory), setting)
    assert batch.reward.shape == (4,) and ((batch.reward != 0) == (fraction == 1)).all()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "learn_alpha",
    [pytest.param(True, id="learned", marks=pytest.mark.thorough), pytest.param(False, id="fixed")],
)
def test_gradient_steps_are_those_of_sac(learn_alpha: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two in a row on given batches: weights, optimisers, targets and metrics, with rates of their own for each."""
    shared = {"alpha": 0.3, "tau": 0.25, "gamma": 0.9, "target_entropy": -0.5, "learn_alpha": learn_alpha}
    rates = {"critic_learning_rate": 0.02, "alpha_learning_rate": 0.03, "activation": "tanh"}
    state, setting = state_and_config(**shared, **rates, actor_learning_rate=0.01, learning_rate=7.0, env=Levers())
    theirs = tiny.config(sac, env=Levers(), **shared, **rates, learning_rate=0.01)
    random = np.random.default_rng(0)
    ones = lambda *size: jnp.asarray(random.normal(size=size), jnp.float32)  # noqa: E731
    D, A = state.model.obs_stats.mean.size, mbpo.envs.bind(setting).action_size
    ended = jnp.array([True, False, False, True])
    batch = Transition(ones(4, D), jnp.tanh(ones(4, A)), ones(4), ended, ~ended, ones(4, D))
    monkeypatch.setattr(mbpo, "draw_batch", lambda *_: batch)
    monkeypatch.setattr(sac, "draw_batch", lambda *_: (batch, jnp.full(4, 0.9)))

    params = jax.tree.map(lambda x: 1.5 * x, state.params)  # so that targets and parameters differ
    ours = state._replace(params=params)
    other: Any = jax.eval_shape(sac.init, KEY, theirs)._replace(
        params=sac.Params(*params),
        target_critic=state.target_critic,
        opt_state=sac.Params(*state.opt_state),
        updates=jnp.int32(0),
    )
    for noise in ones(2, 2, 4, A):
        ours, told = mbpo.gradient_step(KEY, noise, ours, setting)
        other, expected = sac.gradient_step(KEY, noise, other, theirs)
        assert set(told) == set(expected)
        for name in told:
            np.testing.assert_allclose(told[name], expected[name], rtol=1e-5, err_msg=name)
    for name in ("params", "target_critic", "opt_state"):
        for x, y in zip(*(tiny.arrays(getattr(s, name)) for s in (ours, other)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7, err_msg=name)


def test_how_it_starts() -> None:
    """Two critics that differ, targets like them, alpha of the Config, networks that differ, and have learned."""
    state, setting = state_and_config(alpha=0.3)
    np.testing.assert_allclose(state.params.log_alpha, np.log(0.3), rtol=1e-6)
    tiny.assert_same_bits(state.target_critic, state.params.critic)
    fresh = ensemble.init(KEY, setting)
    for weights in (state.params.critic, fresh.params.weights):
        kernels = [x for x in tiny.arrays(weights) if x.ndim == 3]
        assert len(kernels) == 2 and all((x[0] != x[1]).any() for x in kernels)
    np.testing.assert_array_equal([fresh.params.max_log_var, fresh.params.min_log_var], [[0.5] * 2, [-10.0] * 2])
    counts = optax.tree.get_all_with_path(state.model.opt_state, "count")
    assert [count for _, count in counts] == [setting.gradient_steps]
    assert state.imagined.size == 0 and state.model.replay.size == 8


@pytest.mark.thorough
def test_acting_explores_each_dimension_by_itself() -> None:
    """So do rollouts and the policy: a fresh actor's actions spread and are not alike."""
    state, setting = state_and_config(env=Levers())
    _, steps, _ = jax.jit(mbpo.collect)(KEY, state, setting)
    drawn = jax.vmap(lambda key: mbpo.policy(state, setting, deterministic=False)(key, steps.obs[0]))
    dreamt, _ = imagined(state, setting)
    for actions in (steps.action, dreamt.action.reshape(-1, 2), drawn(jax.random.split(KEY, 8))):
        assert np.std(actions, 0).min() > 0.2 and abs(np.corrcoef(np.transpose(actions))[0, 1]) < 0.95


@pytest.mark.thorough
def test_an_update_part_by_part() -> None:
    """Acting, the model's errors before its training, its training, what it then imagines, and SAC's steps on that."""
    state, setting = state_and_config()
    after, metrics = jax.jit(mbpo.update)(state, setting)
    key, act_key, count_key, fit_key, imagine_key, learn_key = jax.random.split(state.key, 6)
    acted, steps, episodes = jax.jit(mbpo.collect)(act_key, state, setting)
    told = ensemble.errors(state.model, steps, setting)
    model = ensemble.remember(count_key, state.model, steps, setting)
    model, fitted = jax.jit(ensemble.fit)(fit_key, model, setting)
    dreamt, dreams = jax.jit(mbpo.imagine)(imagine_key, acted._replace(model=model), setting)
    done, learned = jax.jit(mbpo.learn)(learn_key, dreamt, setting)
    expected = told | fitted | dreams | learned | episodes.metrics() | {"real_reward": steps.reward.mean()}
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    done = done._replace(key=key, updates=jnp.int32(1))
    for x, y in zip(*map(tiny.arrays, (after, done)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    assert model.replay.size == 14 and after.imagined.size == 12


def test_learn_takes_policy_steps_for_each_env_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a key and noise of its own; metrics are their means."""
    state, setting = state_and_config(batch_size=8, real_fraction=0.25, policy_steps=40)
    seen: list[Any] = []

    def gradient_step(key: Any, noise: Any, state: Any, config: Any) -> Any:
        data = jax.random.key_data(key)
        jax.debug.callback(lambda k, x: seen.append((tuple(k.tolist()), x)), data, noise)
        state = state._replace(updates=state.updates + 1)
        return state, {"step": state.updates}

    monkeypatch.setattr(mbpo, "gradient_step", gradient_step)
    after, metrics = mbpo.learn(KEY, state, setting)
    jax.effects_barrier()
    num = setting.num_steps * setting.policy_steps
    assert after.updates == num and metrics["step"] == pytest.approx((num + 1) / 2)
    noise = np.array([x for _, x in seen])
    assert len({key for key, _ in seen}) == num and len(np.unique(noise)) == noise.size == num * 16
    np.testing.assert_allclose([noise.mean(), noise.std()], [0.0, 1.0], atol=0.07)


def test_learns_to_stay_in_the_middle() -> None:
    """After 60 random steps and 100 of its own: from -40 of random actions to what the first step and noise cost."""
    setting = config(
        env=Pushed(0.1),
        hidden_sizes=(16,),
        learning_starts=60,
        total_timesteps=160,
        num_steps=20,
        gradient_steps=200,
        learning_rate=3e-3,
        batch_size=32,
        buffer_size=256,
        num_rollouts=100,
        imagined_size=1_000,
        real_fraction=0.05,
        policy_steps=20,
        tau=0.05,
        gamma=0.9,
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        alpha=0.1,
        actor_hidden_sizes=(16,),
        critic_hidden_sizes=(16,),
    )
    _, metrics = mbpo.train(KEY, setting)
    assert metrics["episode_return"][-1] > -1.5
    assert metrics["model_error"][-1] < metrics["model_error"][0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"env": "CartPole-v1"}, r"mbpo acts in continuous action spaces only, but CartPole-v1 .*: use dqn"),
        ({"env": BYTES}, r"must be a vector of real numbers, but .* has Box\(shape=\(4, 4, 1\).*: use sac, td3 or ppo"),
        ({"env": "MountainCarContinuous-v0", "learn_reward": False}, r"Continuous-v0 has no method reward\(obs"),
        ({"rollout_length": 0}, r"rollout_length must be at least 1, but is 0"),
        ({"real_fraction": 1.5}, r"real_fraction must be a number in \[0, 1\], but is 1.5"),
        ({"env": Levers(low=(-np.inf, 0.0))}, r"needs finite bounds in .*has \[-inf, 2\] in dimension 0"),
        (
            {"real_fraction": 0.05, "batch_size": 8},
            r"real_fraction = 0.05 of batch_size = 8 is 0 transitions when",
        ),
        (
            {"real_fraction": 0.95, "batch_size": 8},
            r"real_fraction = 0.95 of batch_size = 8 is 8 transitions when",
        ),
        ({"real_fraction": float("nan")}, r"real_fraction must be a number in \[0, 1\], but is nan"),
        (
            {"imagined_size": 3_000, "num_rollouts": 1_001},
            r"imagined_size = 3000 is smaller than the 3015 .*num_rollouts = 1001 of .* each of 5 networks",
        ),
        ({"learning_starts": 1}, r"batch_size = 128 is larger than learning_starts = 1"),
        ({"total_timesteps": 220}, r"total_timesteps = 220 is less than the 250 env steps of the first update"),
        ({"batch_size": 20_000}, r"buffer_size = 10000 is smaller than batch_size = 20000"),
    ],
)
def test_bad_input(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        mbpo.Config(**fields)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
