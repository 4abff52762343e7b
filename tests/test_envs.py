"""Stepping, ending and restarting of environments; the adapters; what is said of environments that are wrong."""

import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs, ppo
from purerl.core import rollout
from purerl.core.types import memoryless
from purerl.envs.gymnax import BINARY_OBS, REWARDS
from tests.toy_envs import BROKEN, Chain, Levers

KEY = jax.random.key(0)
CHAIN = Chain()
# Walking right: the first env terminates after 3 steps, the second is truncated after 4, the third is both after 3.
PARAMS = {"goal": jnp.array([3, 9, 3]), "limit": jnp.array([9, 4, 3])}
STEPS = 9


@functools.partial(jax.jit, static_argnums=(1, 3))
def reset(key, env, params, num_envs):
    return envs.BoundEnv(env, params, num_envs).reset(key)


@functools.partial(jax.jit, static_argnums=1)
def step(keys, env, params, state, action):
    """One step; keys `[N, 2]`: for the step, and for the start state of the next episode."""
    bound = envs.BoundEnv(env, params, len(action))
    return bound.step(envs.Tick(keys[0, 0], keys[:, 0], bound.start(keys[:, 1])), state, action)


@functools.partial(jax.jit, static_argnums=(1, 4, 5))
def unroll(key, env, params, state, act, num_steps):
    return rollout.unroll(key, envs.BoundEnv(env, params, len(state.episode_length)), state, act, num_steps)


@pytest.fixture(scope="module")
def walk():
    """Nine steps to the right in the three envs of PARAMS: (first state, last state, trajectory, episodes)."""
    start = reset(KEY, CHAIN, PARAMS, 3)

    def right(key, obs):
        return jnp.ones(3, jnp.int32)

    return start, *unroll(KEY, CHAIN, PARAMS, start, right, STEPS)


def test_terminated_and_truncated(walk):
    trajectory = walk[2]
    # steps 1..9; the episodes are 3, 4 and 3 steps long
    np.testing.assert_array_equal(np.nonzero(trajectory.terminated[:, 0])[0], [2, 5, 8])
    np.testing.assert_array_equal(np.nonzero(trajectory.truncated[:, 1])[0], [3, 7])
    np.testing.assert_array_equal(np.nonzero(trajectory.terminated[:, 2])[0], [2, 5, 8])
    np.testing.assert_array_equal(np.nonzero(trajectory.truncated[:, 2])[0], [2, 5, 8])
    assert not trajectory.truncated[:, 0].any() and not trajectory.terminated[:, 1].any()
    np.testing.assert_array_equal(trajectory.done, trajectory.terminated | trajectory.truncated)


def test_final_obs_is_before_the_reset(walk):
    """It is where the action led; the next obs is the same one, or after an end a first one."""
    _, last, trajectory, _ = walk
    obs, final_obs, done = (np.asarray(x) for x in (trajectory.obs, trajectory.final_obs, trajectory.done))
    np.testing.assert_array_equal(final_obs[..., 0], obs[..., 0] + 1)
    np.testing.assert_array_equal(final_obs[..., 2], obs[..., 2])
    np.testing.assert_array_equal(final_obs[done][:, 0], [3, 3, 4, 3, 3, 4, 3, 3])
    next_obs = np.concatenate([obs[1:], np.asarray(last.obs)[None]])
    np.testing.assert_array_equal(next_obs[~done], final_obs[~done])
    np.testing.assert_array_equal(next_obs[done][:, :2], np.zeros((8, 2)))
    np.testing.assert_array_equal(trajectory.reward, final_obs[..., 0])


def test_every_episode_starts_afresh(walk):
    """Every start, first and later, of whatever env, has a label of its own, and another key gives other labels."""
    start, last, trajectory, _ = walk
    obs = np.concatenate([np.asarray(trajectory.obs), np.asarray(last.obs)[None]])
    labels = obs[obs[..., 1] == 0][:, 2]
    assert len(labels) == 3 + 8 == len(np.unique(labels))
    assert not np.isin(reset(jax.random.key(1), CHAIN, PARAMS, 3).obs[:, 2], start.obs[:, 2]).any()
    np.testing.assert_array_equal(reset(KEY, CHAIN, PARAMS, 3).obs, start.obs)


def test_account_of_episodes(walk):
    """Six episodes of return 1 + 2 + 3 = 6 and length 3, two of return 10 and length 4."""
    _, last, _, episodes = walk
    assert episodes.num.sum() == 8
    metrics = episodes.metrics()
    assert metrics["episodes"] == 8
    assert metrics["episode_return"] == pytest.approx((6 * 6 + 2 * 10) / 8)
    assert metrics["episode_length"] == pytest.approx((6 * 3 + 2 * 4) / 8)
    # The second env is one step into its third episode, the others are at a start.
    np.testing.assert_array_equal(last.episode_return, [0, 1, 0])
    np.testing.assert_array_equal(last.episode_length, [0, 1, 0])
    no_episodes = rollout.Episodes(jnp.int32(0), jnp.float32(0), jnp.int32(0), {}).metrics()
    assert no_episodes["episodes"] == 0 and np.isnan(no_episodes["episode_return"])


class Telling(Chain):
    """It tells its cell, and twice its goal."""

    def metrics(self, state, params):
        return {"cell": state[0], "goal": 2 * params["goal"]}


def test_metrics_of_the_env_are_those_at_the_end_of_episodes():
    """Ends at cells 3, 1, 3 and 4 in nine steps, the second by the clock; before any they are NaN; own goals count."""
    env = envs.BoundEnv(Telling(), {"goal": jnp.array([3, 4]), "limit": 5}, 2)
    actions = jnp.array([[1, 1, 1, 1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 1, 1, 1, 1]]).T

    def step(env_state, inputs):
        tick, action = inputs
        env_state, _, account = env.step(tick, env_state, action)
        return env_state, account

    account = jax.lax.scan(step, env.reset(KEY), (env.ticks(KEY, 9), actions))[1]
    np.testing.assert_array_equal(account.num, [0, 0, 1, 0, 1, 1, 0, 0, 1])
    np.testing.assert_array_equal(account.end_sums["cell"], [0, 0, 3, 0, 1, 3, 0, 0, 4])
    metrics = account.metrics()
    assert metrics["episode_cell"] == pytest.approx((3 + 1 + 3 + 4) / 4)
    assert metrics["episode_goal"] == pytest.approx(2 * (3 + 4 + 3 + 4) / 4)
    assert np.isnan(jax.tree.map(lambda x: x[:2], account).metrics()["episode_cell"])


class TellsAList(Chain):
    def metrics(self, state, params):
        return [state[0]]


class TellsAVector(Chain):
    def metrics(self, state, params):
        return {"cells": jnp.zeros(3)}


class TellsItsReturn(Chain):
    def metrics(self, state, params):
        return {"return": state[0]}


class TellsWithAComma(Chain):
    def metrics(self, state, params):
        return {"x,y": state[0]}


class TellsOfNothing(Chain):
    def metrics(self, state):
        return {}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (TellsAList(), "TellsAList.metrics must return a dictionary of scalars by name"),
        (TellsAVector(), r"TellsAVector.metrics: cells must be a scalar, but is float32\[3\]"),
        (TellsWithAComma(), "TellsWithAComma.metrics: 'x,y' has a comma"),
        (TellsItsReturn(), "TellsItsReturn.metrics: return is what purerl calls its own account"),
        (TellsOfNothing(), r"TellsOfNothing.metrics must be a method of \(state, params\)"),
    ],
)
def test_metrics_that_are_none(env, message):
    with pytest.raises(TypeError, match=message):
        envs.make(env)


def test_the_account_counts_its_own_step(walk):
    """The return and length that a step reports include its reward, also where the episode ends with it."""
    start = walk[0]
    keys = jax.random.split(KEY, (3, 2))
    state = start._replace(state=(jnp.full(3, 2), jnp.full(3, 2), start.state[2]), episode_return=jnp.full(3, 3.0))
    state = state._replace(episode_length=jnp.full(3, 2))
    state, transition, episodes = step(keys, CHAIN, PARAMS, state, jnp.ones(3, jnp.int32))
    np.testing.assert_array_equal(transition.done, [True, False, True])
    assert (episodes.num, episodes.return_sum, episodes.length_sum) == (2, 12, 6)
    np.testing.assert_array_equal(state.episode_return, [0, 6, 0])
    np.testing.assert_array_equal(state.episode_length, [0, 3, 0])


def test_flattened_trajectory(walk):
    """The oldest step first, the envs of one step side by side, and no trace of the reset."""
    trajectory = walk[2]
    flat = rollout.flatten(trajectory)
    assert flat.obs.shape == (STEPS * 3, 3) and flat.reward.shape == (STEPS * 3,)
    np.testing.assert_array_equal(flat.obs[3 * 2 + 1], trajectory.obs[2, 1])
    np.testing.assert_array_equal(flat.final_obs[3 * 2 + 1], trajectory.final_obs[2, 1])
    np.testing.assert_array_equal(flat.reward[:6], [1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(flat.terminated.reshape(STEPS, 3), trajectory.terminated)


def test_gymnax_adapter_is_gymnax():
    """100 steps of 16 CartPoles give the numbers of gymnax's own step with the same keys, new starts included."""
    import gymnax

    original, params = gymnax.make("CartPole-v1")
    params = params.replace(max_steps_in_episode=14)  # some episodes are cut by the clock, some fall, some both
    env = envs.make("CartPole-v1")
    keys = jax.random.split(KEY, (100, 16))
    actions = jax.random.bernoulli(KEY, 0.5, (100, 16)).astype(jnp.int32)
    own = reset(KEY, env, params, 16)
    obs, theirs = jax.jit(jax.vmap(original.reset_env, (0, None)))(jax.random.split(KEY, 16), params)
    np.testing.assert_array_equal(own.obs, obs)

    def step_both(states, inputs):
        keys, action = inputs
        own, ours, _ = step(jax.vmap(jax.random.split)(keys), env, params, states[0], action)
        obs, theirs, *rest = jax.vmap(original.step, (0, 0, 0, None))(keys, states[1], action, params)
        return (own, theirs), (
            (own.obs, own.state, *ours[2:]),
            (obs, theirs, *rest[:3], rest[3]["final_observation"]),
        )

    _, (ours, expected) = jax.lax.scan(step_both, (own, jax.tree.map(jnp.asarray, theirs)), (keys, actions))
    # Two programs may round differently; flags and counters are exact all the same.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), ours, expected)
    terminated, truncated = ours[3:5]
    assert (terminated & ~truncated).any() and (truncated & ~terminated).any() and (terminated & truncated).any()


QUICK = ("Breakout-MinAtar", "Catch-bsuite")  # the others compile for seconds


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BINARY_OBS]
)
def test_bits_lose_nothing(name):
    """An observation handed on as bits is the one that gymnax gave as floats: no entry but 0 and 1."""
    env = envs.make(name)
    params = env.default_params
    assert env.observation_space(params).dtype == bool
    floats = jax.jit(jax.vmap(env.env.reset_env, (0, None)))(jax.random.split(KEY, 8), params)[0]
    start = reset(KEY, env, params, 8)
    np.testing.assert_array_equal(start.obs, floats)

    def step_both(state, keys):
        action = env.action_space(params).sample(keys[0], 8)
        floats = jax.vmap(env.env.step_env, (0, 0, 0, None))(keys, state, action, params)[0]
        bits, state, *_ = jax.vmap(env.step, (0, 0, 0, None))(keys, state, action, params)
        return state, (bits, floats)

    bits, floats = jax.lax.scan(step_both, start.state, jax.random.split(KEY, (50, 8)))[1]
    assert bits.dtype == bool and floats.dtype == jnp.float32
    np.testing.assert_array_equal(bits, floats)


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_known_rewards_are_those_of_the_steps(name):
    """Of 500 random steps, before any reset; with params of one's own as well."""
    default = envs.make(name).default_params
    own = default.replace(max_torque=1.5) if hasattr(default, "max_torque") else default.replace(torque_scale=3.0)
    act = lambda key, obs: jax.random.uniform(key, (4, obs.shape[-1] // 4 or 1), minval=-1.5, maxval=1.5)  # noqa: E731
    for params in (default, own):
        setting = ppo.Config(env=name, env_params=params, num_envs=4)
        env = envs.bind(setting)
        _, steps, _ = rollout.unroll(KEY, env, env.reset(KEY), act, 125)
        known = env.reward(steps.obs, steps.action, steps.final_obs)
        np.testing.assert_allclose(known, steps.reward, rtol=1e-4, atol=1e-4)
        assert np.std(steps.reward) > 0.05
        # Beyond the bounds as well, where a step clips by itself.
        obs, state = env.env.reset(KEY, params)
        action = jnp.full(env.action_size, 5.0)
        next_obs, _, reward, *_ = env.env.step(KEY, state, action, params)
        np.testing.assert_allclose(env.env.reward(obs, action, next_obs, params), reward, rtol=1e-4)


def test_rewards_are_known_of_gymnaxs_own_objects():
    """Of one that derives from them nothing is known."""
    import gymnax
    from gymnax.environments.classic_control.pendulum import Pendulum

    class Other(Pendulum):
        pass

    assert hasattr(envs.make(gymnax.make("Pendulum-v1")[0]), "reward")
    assert not hasattr(envs.make(Other()), "reward") and not hasattr(envs.make("CartPole-v1"), "reward")


@pytest.mark.parametrize("one", [1, True, np.int32(1), np.float64(1)])
def test_a_reward_of_another_kind_is_a_float(one):
    class Pays(Levers):
        def reward(self, obs, action, next_obs, params):
            return one

    env = envs.bind(ppo.Config(env=Pays()))
    reward = env.reward(jnp.zeros((3, 4)), jnp.zeros((3, 2)), jnp.zeros((3, 4)))
    assert reward.dtype == jnp.float32 and reward.tolist() == [1.0, 1.0, 1.0]


def test_params_per_env():
    """From the same state, by the same action, each cart is pushed with its own force."""
    env = envs.make("CartPole-v1")
    params = env.default_params.replace(force_mag=jnp.array([10.0, 20.0, -10.0]))
    state = reset(KEY, env, params, 3)
    state = jax.tree.map(jnp.zeros_like, state)  # upright and at rest, so that velocity is proportional to force
    keys = jax.random.split(KEY, (3, 2))
    velocity = step(keys, env, params, state, jnp.ones(3, jnp.int32))[0].obs[:, 1]
    assert velocity[0] > 0
    np.testing.assert_allclose(velocity, velocity[0] * np.array([1, 2, -1]), rtol=1e-5)
    shared = step(keys, env, env.default_params, state, jnp.ones(3, jnp.int32))[0].obs[:, 1]
    np.testing.assert_allclose(shared, np.full(3, velocity[0]), rtol=1e-6)


def test_box_from_unit():
    """Clipped to [-1, 1], scaled to the bounds; a dimension without both bounds passes as it is."""
    box = envs.Box(np.array([-2.0, 0.0, -np.inf, 0.0]), np.array([2.0, 10.0, np.inf, np.inf]), (4,))
    action = jnp.array([[-1.0, 1.0, 5.0, -5.0], [0.0, 0.0, -3.0, 0.5], [7.0, -7.0, 0.5, 2.0]])
    expected = [[-2.0, 10.0, 5.0, -5.0], [0.0, 5.0, -3.0, 0.5], [2.0, 0.0, 0.5, 2.0]]
    np.testing.assert_allclose(jax.jit(box.from_unit)(action), expected, rtol=1e-6)
    np.testing.assert_allclose(envs.Box(1.0, 3.0, (2,)).from_unit(jnp.array([-0.5, 2.0])), [1.5, 3.0], rtol=1e-6)
    np.testing.assert_array_equal(envs.Discrete(3).from_unit(jnp.array([2, 0])), [2, 0])


def test_space_samples():
    draws = np.asarray(envs.Box(-5.0, 5.0, (2,)).sample(KEY, 500))
    assert draws.shape == (500, 2) and np.abs(draws).max() <= 1
    assert (draws.min(0) < -0.9).all() and (draws.max(0) > 0.9).all()
    assert set(np.asarray(envs.Discrete(3).sample(KEY, 100))) == {0, 1, 2}
    assert envs.Box(-1.0, 1.0, (2, 3)).sample(KEY, 5).shape == (5, 6)


def test_step_scales_actions():
    """A torque of 1 on the unit scale is Pendulum's own limit of 2."""
    env = envs.make("Pendulum-v1")
    state = reset(KEY, env, env.default_params, 1)
    keys = jax.random.split(KEY, (1, 2))
    stepped = step(keys, env, env.default_params, state, jnp.ones((1, 1)))[0]
    first = jax.tree.map(lambda x: x[0], state.state)
    expected = jax.jit(env.step)(keys[0, 0], first, jnp.array([2.0]), env.default_params)[0]
    np.testing.assert_allclose(stepped.obs[0], expected, rtol=1e-6)


@pytest.mark.thorough
def test_brax_swimmer_has_no_springs():
    """Its name alone means the backend that it has, and a step of it can be traced."""
    import brax.fluid

    env = envs.make("brax/swimmer")
    key, action = jax.random.key(0), jnp.zeros(env.action_size)

    def step():
        return env.step(key, env.reset(key, env.default_params)[1], action, env.default_params)

    with jax.numpy_rank_promotion("allow"):  # Brax's own code
        assert jax.eval_shape(step)[0].shape == (env.observation_size,) == (8,)
    with pytest.raises(ValueError, match="Brax has no swimmer with the physics backend spring"):
        envs.make("brax/swimmer/spring")
    bounds = brax.fluid.jp.clip(jnp.array([-1.0, 0.5, 2.0]), a_min=0.1), brax.fluid.jp.clip(jnp.ones(1), max=0.5)
    np.testing.assert_allclose(np.concatenate(bounds), [0.1, 0.5, 2, 0.5])


def test_brax():
    """brax/fast accelerates by 0.02 * 0.02 a step: positions 0.0004 * (1, 3, 6), which are also the rewards."""
    import brax.envs

    env = envs.make("brax/fast")
    assert env.episode_length == 1000
    envs.check(env)
    env = envs.Brax(brax.envs.get_environment("fast"), episode_length=3)
    assert envs.make(env) is env
    state = reset(KEY, env, env.default_params, 2)

    def forward(key, obs):
        return jnp.ones((2, 1))

    state, trajectory, episodes = unroll(KEY, env, env.default_params, state, forward, 5)
    cycle = np.array([1, 3, 6, 1, 3]) * 4e-4
    np.testing.assert_allclose(trajectory.reward, np.stack([cycle] * 2, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(
        trajectory.truncated, [[False] * 2, [False] * 2, [True] * 2, [False] * 2, [False] * 2]
    )
    assert not trajectory.terminated.any()
    assert episodes.num.sum() == 2 and episodes.length_sum.sum() == 6
    assert isinstance(envs.make(brax.envs.get_environment("fast")), envs.Brax)

    class Counting(type(brax.envs.get_environment("fast"))):
        """It has a metric of Brax's kind, in its state."""

        def reset(self, rng):
            return super().reset(rng).replace(metrics={"steps": jnp.float32(0)})

        def step(self, state, action):
            return super().step(state, action).replace(metrics={"steps": state.metrics["steps"] + 1})

    env = envs.Brax(Counting(), episode_length=3)
    envs.check(env)
    state = reset(KEY, env, env.default_params, 2)
    _, _, episodes = unroll(KEY, env, env.default_params, state, forward, 5)
    assert episodes.metrics()["episode_steps"] == 3

    with pytest.raises(TypeError, match="EpisodeWrapper"):
        envs.make(brax.envs.create("fast", auto_reset=False))
    with pytest.raises(TypeError, match="dictionary"):
        envs.make(brax.envs.get_environment("fast", obs_mode="dict_state"))

    class Seeing(type(brax.envs.get_environment("fast"))):
        def reset(self, rng):
            return super().reset(rng).replace(obs=jnp.zeros((4, 3)))

    with pytest.raises(TypeError, match=r"Seeing observes an array of shape \[4, 3\]; purerl needs one array of shape"):
        envs.make(Seeing())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole", "CartPole-v1"),
        ("brax/hoper", "brax/hopper"),
        ("brax/hopper/foo", "no physics backend 'foo'.*spring"),
        ("0123456789", "known: .*CartPole-v1.*brax/ant"),
    ],
)
def test_unknown_names(name, said):
    with pytest.raises(ValueError, match=said):
        envs.make(name)


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_envs_are_told_where(case):
    env, said = BROKEN[case]
    with pytest.raises(TypeError, match=f"^Broken.{said}"):
        envs.make(env)


def test_wrong_objects():
    class Short(Chain):
        def step(self, key, state, action, params):
            return super().step(key, state, action, params)[:4]

    class Spaceless(Chain):
        def action_space(self, params):
            return 2

    with pytest.raises(TypeError, match=r"Short.step must return the 5 values \(obs, state, reward"):
        envs.make(Short())
    with pytest.raises(TypeError, match=r"Spaceless: a space must be .*Discrete or Box, but is 2"):
        envs.make(Spaceless())
    with pytest.raises(TypeError, match="lacks default_params, observation_space, action_space, reset, step"):
        envs.make(3)
    with pytest.raises(TypeError, match=r"Chain'> is a class: give an object of it, such as Chain\(\)"):
        envs.make(Chain)
    with pytest.raises(TypeError, match=r"env must be hashable.*list"):
        envs.make([])
    envs.make(CHAIN)  # and the right one passes


def test_docstring_example():
    """The Corridor of the module's docstring, as it stands there, is an environment that PPO trains on."""
    source = envs.__doc__[envs.__doc__.index("    class Corridor:") :]
    namespace = {"Box": envs.Box, "Discrete": envs.Discrete, "jnp": jnp}
    exec(textwrap.dedent(source), namespace)
    corridor = namespace["Corridor"]()
    envs.check(corridor)
    small = {"num_envs": 2, "num_steps": 8, "num_minibatches": 2, "num_epochs": 1, "actor_hidden_sizes": (8,)}
    result = ppo.train(KEY, ppo.Config(env=corridor, total_timesteps=32, **small))
    assert result.state.updates == 2
    assert np.isfinite(result.metrics["value_loss"]).all() and (result.metrics["grad_norm"] > 0).all()


def bind(**fields):
    return envs.bind(ppo.Config(num_envs=4, **fields))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3,), r"env_params.gravity has a leaf of shape \(3,\): it must be of shape \(\), or .*num_envs = 4 long"),
        ((4, 1), r"env_params.gravity has a leaf of shape \(4, 1\)"),
        ((4, 4), r"env_params.gravity has a leaf of shape \(4, 4\)"),
        ((1, 1, 4), r"env_params.gravity has a leaf of shape \(1, 1, 4\)"),
    ],
)
def test_env_params_of_a_wrong_shape(shape, said):
    """Also with one rank too many, which would train as if it were a batch of batches."""
    with pytest.raises(ValueError, match=said):
        ppo.init(KEY, ppo.Config(num_envs=4, env_params={"gravity": jnp.ones(shape)}))


def test_some_of_the_env_params():
    """A dictionary changes the defaults, of params of any make; a leading axis gives each env its own."""
    default = envs.make("CartPole-v1").default_params
    params = bind(env_params={"gravity": 5.0}).params
    assert params.gravity == 5.0 and params.replace(gravity=default.gravity) == default
    own = bind(env_params={"gravity": jnp.arange(4.0)})
    assert own.first_params.gravity == 0.0 and own.first_params.masscart == default.masscart
    corridor = bind(env=CHAIN, env_params={"limit": 9}).params
    assert corridor == {"goal": 3, "limit": 9}
    with pytest.raises(ValueError, match=r"env_params of .*Chain.* have no length: they have goal, limit"):
        bind(env=CHAIN, env_params={"length": 9})
    jax.eval_shape(ppo.init, KEY, ppo.Config(num_envs=4, env_params={"gravity": jnp.ones(4)}))


@pytest.mark.parametrize("value", [[0.5, 1.0, 2.0, 4.0], "2", {"x": 1.0}])
def test_a_value_of_another_make(value):
    with pytest.raises(ValueError, match=r"env_params\['gravity'\] of CartPole-v1 must be numbers or arrays"):
        ppo.Config(num_envs=4, env_params={"gravity": value})


def test_gymnax_wrappers_are_refused():
    """They hand on the inner env's own functions, so that purerl would step past what they do."""
    import gymnax
    from gymnax.wrappers import FlattenObservationWrapper

    with pytest.raises(TypeError, match="comes inside a FlattenObservationWrapper"):
        envs.make(FlattenObservationWrapper(gymnax.make("Catch-bsuite")[0]))


def test_changes_of_the_params_stay_changes():
    """Of whatever env the Config names next: none of the old env's other params come along."""
    first, second = (type("Gusty", (Chain,), {"default_params": {"goal": goal, "limit": 5}})() for goal in (3, 4))
    config = ppo.Config(env=first, env_params={"limit": 9})
    assert envs.bind(config).params == {"goal": 3, "limit": 9}
    assert envs.bind(config.replace(env=second)).params == {"goal": 4, "limit": 9}


class Throttle:
    """One step that pays the action in the env's units, whose bound is a param: the reward tells who scaled."""

    default_params = {"limit": 1.0}  # noqa: RUF012

    def observation_space(self, params):
        return envs.Box(0.0, 1.0, (1,))

    def action_space(self, params):
        return envs.Box(-params["limit"], params["limit"], (1, 1))

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        return jnp.zeros(1), state, action[0, 0], state >= 0, state < 0


def test_each_env_scales_actions_by_its_own_params():
    """In training and in evaluation, where the episodes take turns with the params."""
    env = envs.BoundEnv(Throttle(), {"limit": jnp.array([0.5, 2.0, 8.0])}, 3)

    def full(key, obs):
        return jnp.ones((*obs.shape[:-1], 1))

    _, steps, _ = rollout.unroll(KEY, env, env.reset(KEY), full, 2)
    np.testing.assert_array_equal(steps.reward, [[0.5, 2.0, 8.0]] * 2)
    policy = memoryless(full, env.to_units)
    np.testing.assert_array_equal(rollout.episodes(KEY, env, policy, 7).returns, [0.5, 2, 8, 0.5, 2, 8, 0.5])
    with pytest.raises(ValueError, match="Each env has params of its own, so an action has no units"):
        policy(KEY, jnp.zeros(1))
    shared = envs.BoundEnv(Throttle(), {"limit": 4.0}, 3)
    np.testing.assert_array_equal(memoryless(full, shared.to_units)(KEY, jnp.zeros(1)), [[4.0]])


def test_configs_can_be_stacked():
    """Three Configs as one with a leading axis, whatever num_envs is, and vmapped: each has its own physics."""
    params = envs.make("CartPole-v1").default_params
    configs = [ppo.Config(num_envs=4, env_params=params.replace(gravity=g)) for g in (8.0, 9.0, 10.0)]
    stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(leaf) for leaf in x]), *configs)
    assert jax.eval_shape(jax.vmap(ppo.init, (None, 0)), KEY, stacked).env_state.obs.shape == (3, 4, 4)
