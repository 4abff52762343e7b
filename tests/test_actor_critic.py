"""The Q actor-critic: targets and losses by hand, what moves what, exact gradients, and optima that are known."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from purerl import actor_critic, envs
from purerl.core import policies
from purerl.core.distributions import Categorical
from purerl.core.policies import Actor, Params
from purerl.core.types import Transition
from tests import tiny
from tests.test_ppo_box import BANDIT, Always
from tests.test_probes import CHOICE, OBS, PROBE, VALUES
from tests.test_updates import STEPS, by_cell, normalized
from tests.toy_envs import Chain

KEY = jax.random.key(0)
LOG_2PI = np.log(2 * np.pi)


class Pixels:
    """One step on a picture, which the action's distance to a half in each of two dimensions costs."""

    default_params = ()

    def observation_space(self, params):
        return envs.Box(0, 255, (4, 5, 2), jnp.uint8)

    def action_space(self, params):
        return envs.Box(-1.0, 1.0, (2,))

    def reset(self, key, params):
        return jax.random.randint(key, (4, 5, 2), 0, 256).astype(jnp.uint8), ()

    def step(self, key, state, action, params):
        return jnp.zeros((4, 5, 2), jnp.uint8), (), -jnp.square(action - 0.5).sum(), True, False


# ---------------------------------------------------------------------------------------------------------------------
# Target and losses


def test_target_by_hand() -> None:
    """gamma = 1/2; the second step terminates, so that nothing follows; the third is a time limit, so that Q does."""
    config = tiny.config(actor_critic, gamma=0.5)
    target = actor_critic.td_target(STEPS, jnp.array([2.0, 4.0, 8.0]), config)
    np.testing.assert_array_equal(target, [1 + 1, 2, 3 + 4])


@pytest.mark.parametrize(("normalize_q", "weights"), [(False, (3.0, 2.0)), (True, (1.0, -1.0))])
def test_discrete_loss_by_hand(normalize_q: bool, weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q = (1, 3) and (2, 5), actions 1 and 0 with chances 1/4 and 3/4, targets 1 and 3.

    Q(s, a) is 3 and 2, the errors 2 and -1: (4 + 1) / 2 / 2. Standardised, 3 and 2 are 1 and -1. The entropy of
    (3/4, 1/4) is 0.5623351.
    """
    monkeypatch.setattr(actor_critic, "critic_network", lambda config: Rows([[1.0, 3.0], [2.0, 5.0]]))
    monkeypatch.setattr(policies, "actor_network", lambda config: Always(np.log(0.75), np.log(0.25)))
    batch = actor_critic.Batch(jnp.zeros((2, 4)), jnp.array([1, 0]), jnp.array([1.0, 3.0]))
    config = tiny.config(actor_critic, ent_coef=0.1, normalize_q=normalize_q)
    total, metrics = actor_critic.loss(Params(Actor(None, None), None), batch, config)
    expected = {
        "policy_loss": -(weights[0] * np.log(0.25) + weights[1] * np.log(0.75)) / 2,
        "value_loss": 1.25,
        "entropy": 0.5623351,
        "q_value": 2.5,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(total, expected["policy_loss"] - 0.1 * 0.5623351 + 1.25, rtol=1e-5)


class Rows:
    """A network with an output of its own for each row of a batch; without an action's input."""

    action_size = 0

    def __init__(self, rows: Any):
        self.rows = jnp.array(rows)

    def apply(self, params: Any, obs: jax.Array) -> jax.Array:
        return self.rows


class Sum:
    """A network that gives the sum of an observation and of twice its action."""

    action_size = 2

    def apply(self, params: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        return (obs.sum(-1) + 2 * action.sum(-1))[..., None]


def test_continuous_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean (0, 1), deviations (1/2, 4); the actions (1/2, 5) and (0, 1) lie one deviation off, and on it.

    log p = -1 - c and -c, where c = log 1/2 + log 4 + log 2 pi. Q = 1 + 2 * 5.5 = 12 and 1 + 2 = 3; targets 10 and 4.
    """
    monkeypatch.setattr(actor_critic, "critic_network", lambda config: Sum())
    monkeypatch.setattr(policies, "actor_network", lambda config: Always(0.0, 1.0))
    batch = actor_critic.Batch(jnp.ones((2, 1)), jnp.array([[0.5, 5.0], [0.0, 1.0]]), jnp.array([10.0, 4.0]))
    config = tiny.config(actor_critic, env=BANDIT, ent_coef=0.1, normalize_q=False)
    total, metrics = actor_critic.loss(Params(Actor(None, jnp.log(jnp.array([0.5, 4.0]))), None), batch, config)
    c = np.log(2) + LOG_2PI
    expected = {
        "policy_loss": (12 * (1 + c) + 3 * c) / 2,
        "value_loss": (4 + 1) / 4,
        "entropy": np.log(2) + 1 + LOG_2PI,
        "q_value": 7.5,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        total, expected["policy_loss"] + expected["value_loss"] - 0.1 * expected["entropy"], rtol=1e-5
    )


# ---------------------------------------------------------------------------------------------------------------------
# What moves what


def some_batch(config: Any, size: int = 6) -> tuple[Params, actor_critic.Batch]:
    """Parameters, and a batch of random steps."""
    rng, env = np.random.default_rng(0), envs.bind(config)
    action = jnp.asarray(rng.normal(size=(size, 2)) if env.continuous else rng.integers(0, 2, size))
    action = action.astype(jnp.float32) if env.continuous else action
    obs, target = (jnp.asarray(rng.normal(size=x), jnp.float32) for x in ((size, *env.obs_space.shape), size))
    params = jax.jit(lambda: policies.init(KEY, config, actor_critic.critic_network(config)))()
    return params, actor_critic.Batch(obs, action, target)


BOTH = pytest.mark.parametrize("env", ["CartPole-v1", BANDIT], ids=["discrete", "continuous"])


@BOTH
@pytest.mark.parametrize("normalize_q", [False, True])
def test_actor_and_critic_follow_their_own_equations(env: Any, normalize_q: bool) -> None:
    """In the actor the gradient of -log pi w - ent_coef H, w being numbers; in the critic that of its error.

    So neither loss reaches into the other's parameters.
    """
    config = tiny.config(actor_critic, env=env, ent_coef=0.1, normalize_q=normalize_q)
    params, batch = some_batch(config)
    q = np.asarray(actor_critic.q_value(params.critic, batch.obs, batch.action, config))
    w = (q - q.mean()) / q.std() if normalize_q else q

    def actor_loss(actor: Any) -> jax.Array:
        pi = actor_critic.distribution(actor, batch.obs, config)
        return -(pi.log_prob(batch.action) * w).mean() - 0.1 * pi.entropy().mean()

    def critic_loss(weights: Any) -> jax.Array:
        q = actor_critic.q_value(weights, batch.obs, batch.action, config)
        return jnp.square(q - batch.td_target).mean() / 2

    found = jax.jit(jax.grad(lambda params: actor_critic.loss(params, batch, config)[0]))(params)
    expected = Params(jax.grad(actor_loss)(params.actor), jax.grad(critic_loss)(params.critic))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert all(optax.tree.norm(x) > 1e-3 for x in expected)


@BOTH
def test_gradients_by_finite_differences(env: Any) -> None:
    """Of the critic, and of the actor with Q's parameters held."""
    config = tiny.config(actor_critic, env=env, ent_coef=0.1)
    params, batch = some_batch(config)
    loss = jax.jit(lambda actor, critic: actor_critic.loss(Params(actor, critic), batch, config)[0])
    value_loss = jax.jit(lambda critic: actor_critic.loss(Params(params.actor, critic), batch, config)[1]["value_loss"])
    check = {"order": 1, "modes": ["rev"], "eps": 1e-2, "atol": 1e-2, "rtol": 1e-2}
    check_grads(lambda actor: loss(actor, params.critic), (params.actor,), **check)
    check_grads(value_loss, (params.critic,), **check)


def test_each_has_its_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of another length for actor and critic, both cut to 0.5, times learning rates 0.1 and 0.3.

    At half of the training, of which annealing leaves half: 0.5 * 0.1 / 2 and 0.5 * 0.3 / 2.
    """

    def loss(params: Params, batch: Any, config: Any) -> Any:
        actor, critic = (sum(x.sum() for x in jax.tree.leaves(own)) for own in params)
        return 10 * actor + 1000 * critic, {}

    def descent(learning_rate: Any, max_grad_norm: Any) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.sgd(learning_rate))

    monkeypatch.setattr(actor_critic, "loss", loss)
    monkeypatch.setattr(actor_critic.optimize, "adam", descent)
    config = tiny.config(actor_critic, learning_rate=0.1, critic_learning_rate=0.3, max_grad_norm=0.5)
    state = jax.jit(lambda: actor_critic.init(KEY, config))()._replace(updates=jnp.int32(3))
    assert config.num_updates == 6
    after, metrics = jax.jit(lambda state: actor_critic.update(state, config))(state)
    changes = [
        optax.tree.norm(jax.tree.map(jnp.subtract, *own)) for own in zip(after.params, state.params, strict=True)
    ]
    np.testing.assert_allclose(changes, [0.025, 0.075], rtol=1e-4)
    sizes = [sum(x.size for x in jax.tree.leaves(own)) for own in state.params]
    np.testing.assert_allclose(metrics["grad_norm"], 10 * np.sqrt(sizes[0]), rtol=1e-5)
    np.testing.assert_allclose(metrics["critic_grad_norm"], 1000 * np.sqrt(sizes[1]), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# The batch

WALK = {"env": Chain(), "num_envs": 2, "num_steps": 64, "gamma": 0.5, "total_timesteps": 1_000}


class OddSteps(nn.Module):
    """Of the chain's standardised observations: action 1 where the step's number is odd, action 0 where it is even."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        self.param("unused", nn.initializers.zeros, ())
        even = jnp.cos(jnp.pi * (0.5 * x[..., 1] + 2))
        return 50 * jnp.stack([even, -even], -1)


def collected(config: Any, monkeypatch: pytest.MonkeyPatch, stats: Any = None) -> tuple[Any, Any, Any, Any]:
    """The state before and after a rollout, its raw steps and its batch; Q is `by_cell` plus 100 times the action."""
    monkeypatch.setattr(actor_critic, "q_value", lambda weights, obs, action, config: by_cell(obs) + 100 * action)
    unroll = actor_critic.unroll
    seen: list[Transition] = []

    def record(*args: Any) -> Any:
        result = unroll(*args)
        seen.append(result[1])
        return result

    monkeypatch.setattr(actor_critic, "unroll", record)

    @jax.jit
    def collect() -> Any:
        state = actor_critic.init(KEY, config)
        state = state if stats is None else state._replace(obs_stats=state.obs_stats._replace(**stats))
        after, batch, _ = actor_critic.collect(KEY, state, config)
        return state, after, seen.pop(), batch

    return collect()


def test_targets_by_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q of the observation that the action led to, and of the action that pi takes there: 1 at odd steps.

    Rewards are over the deviation of their discounted sums so far; all is observed by the statistics from before.
    """
    stats = {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.array([4.0, 0.25, 1.0]), "num": jnp.float32(50)}
    config = tiny.config(
        actor_critic,
        **WALK,
        env_params={"goal": jnp.array([2, 9]), "limit": 5},  # the one env terminates, the other's episodes are cut
        actor_network=OddSteps(),
        normalize_obs=True,
        normalize_reward=True,
    )
    state, after, steps, batch = collected(config, monkeypatch, stats)
    observed = [normalized(x, state.obs_stats) for x in (steps.obs, steps.final_obs)]
    total, totals, target = np.zeros(2), [], np.zeros((64, 2))
    for t in range(64):
        total = total / 2 + np.asarray(steps.reward[t])
        totals.append(total)
        total = np.where(steps.done[t], 0.0, total)
    for t in range(64):
        following = by_cell(observed[1][t]) + 100 * (np.asarray(steps.final_obs)[t, :, 1] % 2)
        target[t] = steps.reward[t] / np.std(totals) + np.where(steps.terminated[t], 0.0, following / 2)
    np.testing.assert_array_equal(steps.action, np.asarray(steps.obs)[..., 1] % 2)
    np.testing.assert_allclose(batch.td_target, target.ravel(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(batch.obs, observed[0].reshape(-1, 3), rtol=1e-5)
    np.testing.assert_array_equal(batch.action, steps.action.ravel())
    assert steps.terminated[:, 0].any() and steps.truncated[:, 1].any() and not steps.terminated[:, 1].any()
    assert after.obs_stats.num == 50 + 128 and after.reward_scale.stats.num == 128
    np.testing.assert_allclose(
        after.obs_stats.mean, (50 * stats["mean"] + steps.obs.sum((0, 1))) / (50 + 128), rtol=1e-5
    )
    # What a policy is asked in evaluation is observed by the same statistics.
    policies_of = [actor_critic.policy(state, config, deterministic=x) for x in (True, False)]
    assert [pi(KEY, jnp.array([1.0, step, 0.5])) for pi in policies_of for step in (2.0, 3.0)] == [0, 1, 0, 1]


def test_the_next_action_is_drawn_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that is done next, nor the one before: of two that are as likely, it is either as often as not."""
    config = tiny.config(actor_critic, **WALK, actor_network=Even())
    _, _, steps, batch = collected(config, monkeypatch)
    drawn = (batch.td_target.reshape(64, 2) - steps.reward) * 2 - by_cell(steps.final_obs)
    goes_on, drawn, action = ~np.asarray(steps.terminated), np.asarray(drawn) / 100, np.asarray(steps.action)
    np.testing.assert_allclose(drawn[goes_on], np.round(drawn[goes_on]), atol=1e-3)
    drawn = np.round(drawn)
    for other in (action[1:], action[:-1]):  # 5 standard deviations of the mean of some hundred
        assert abs((drawn[:-1] == other)[goes_on[:-1]].mean() - 0.5) < 0.25
    assert abs((drawn[:, 0] == drawn[:, 1])[goes_on.all(1)].mean() - 0.5) < 0.35


class Even(nn.Module):
    """Two actions, as likely everywhere."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        self.param("unused", nn.initializers.zeros, ())
        return jnp.zeros((*x.shape[:-1], 2))


# ---------------------------------------------------------------------------------------------------------------------
# Exact critics

# From the start, action a leads to state 1 with chance LEADS[a] and else to state 2, and pays PAYS[0][a]; there every
# action pays PAYS[s][a] and ends the episode.
LEADS, PAYS = jnp.array([0.25, 0.75]), jnp.array([[0.5, -1.0], [2.0, -1.0], [0.0, 3.0]])


@pytest.mark.parametrize("baseline", [0.0, 7.0])
def test_gradient_is_exact_given_the_exact_q(baseline: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the expected return of a two-step MDP, at gamma = 1: -grad L summed over states and actions by their chances.

    A constant taken off all Q changes nothing.
    """
    config = tiny.config(actor_critic, env=PROBE, ent_coef=0.0, normalize_q=False)
    params, _ = some_batch(config)
    actor = params.actor._replace(weights=jax.tree.map(lambda x: 3 * x, params.actor.weights))
    states = jnp.eye(4)[:3]

    def q_values(pi: jax.Array) -> jax.Array:
        value = (pi * PAYS).sum(-1)
        return PAYS.at[0].add(LEADS * value[1] + (1 - LEADS) * value[2])

    def chances(actor: Actor) -> jax.Array:
        return jax.nn.softmax(actor_critic.distribution(actor, states, config).logits)

    def expected_return(actor: Actor) -> jax.Array:
        pi = chances(actor)
        return (pi[0] * q_values(pi)[0]).sum()

    pi = chances(actor)
    q, lead = q_values(pi), (pi[0] * LEADS).sum()
    monkeypatch.setattr(
        actor_critic, "q_value", lambda weights, obs, action, config: q[obs.argmax(-1), action] - baseline
    )
    state, action = (x.ravel() for x in jnp.mgrid[:3, :2])
    chance = (jnp.array([1.0, lead, 1 - lead])[:, None] * pi).ravel()

    def objective(actor: Actor) -> jax.Array:
        batches = actor_critic.Batch(states[state][:, None], action[:, None], jnp.zeros((6, 1)))
        losses = jax.vmap(lambda batch: actor_critic.loss(Params(actor, None), batch, config)[1]["policy_loss"])
        return -(chance * losses(batches)).sum()

    found, exact = (jax.jit(jax.grad(f))(actor) for f in (objective, expected_return))
    assert optax.tree.norm(exact) > 0.1
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_continuous_gradient_is_exact_given_the_exact_q(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q = -(a_1 - 1/2)^2 - (a_2 + 1)^2, so that E Q = -(m_1 - 1/2)^2 - (m_2 + 1)^2 - the sum of the variances.

    The expectation of -grad L over actions by Gauss-Hermite quadrature, which is exact for polynomials.
    """
    best = jnp.array([0.5, -1.0])
    config = tiny.config(actor_critic, env=BANDIT, ent_coef=0.0, normalize_q=False)
    params, _ = some_batch(config)
    actor = Actor(jax.tree.map(lambda x: 3 * x, params.actor.weights), jnp.array([0.2, -0.5]))
    monkeypatch.setattr(
        actor_critic, "q_value", lambda weights, obs, action, config: -jnp.square(action - best[None]).sum(-1)
    )

    def expected_q(actor: Actor) -> jax.Array:
        pi = actor_critic.distribution(actor, jnp.ones((1, 1)), config)
        return -jnp.square(pi.mean[0] - best).sum() - jnp.exp(2 * actor.log_std).sum()

    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    noise = jnp.asarray(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2), jnp.float32)
    chance = jnp.asarray(np.outer(weights, weights).ravel() / (2 * np.pi), jnp.float32)
    mean = actor_critic.distribution(actor, jnp.ones((1, 1)), config).mean
    batches = actor_critic.Batch(
        jnp.ones((25, 1, 1)), (mean + jnp.exp(actor.log_std)[None] * noise)[:, None], jnp.zeros((25, 1))
    )

    def objective(actor: Actor) -> jax.Array:
        losses = jax.vmap(lambda batch: actor_critic.loss(Params(actor, None), batch, config)[1]["policy_loss"])
        return -(chance * losses(batches)).sum()

    found, exact = (jax.jit(jax.grad(f))(actor) for f in (objective, expected_q))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Known values and optima


def test_values_of_the_probe() -> None:
    """Exploring for ever by an entropy bonus, so that both actions of the choice are valued."""
    config = actor_critic.Config(
        env=PROBE,
        total_timesteps=60_000,
        actor_hidden_sizes=(32,),
        critic_hidden_sizes=(32,),
        gamma=0.5,
        ent_coef=0.2,
        learning_rate=3e-3,
    )
    state, _ = actor_critic.train(KEY, config)
    q = actor_critic.critic_network(config).apply(state.params.critic, OBS)
    np.testing.assert_allclose(q[CHOICE], [0.0, 1.0], atol=0.1)
    np.testing.assert_allclose(q[CHOICE + 1 :], np.stack([VALUES[CHOICE + 1 :]] * 2, -1), atol=0.1)
    assert actor_critic.policy(state, config)(KEY, OBS[CHOICE]) == 1


def test_finds_the_optimum() -> None:
    """Within 0.2 of (1, 7) in the env's units, whose bounds are 4 and 10 apart; with deviations that fall below 1/2."""
    config = actor_critic.Config(
        env=BANDIT,
        total_timesteps=60_000,
        num_steps=4,
        actor_hidden_sizes=(8,),
        critic_hidden_sizes=(32,),
        gamma=0.0,
        ent_coef=0.0,
        learning_rate=3e-3,
        critic_learning_rate=1e-2,
    )
    state, _ = actor_critic.train(KEY, config)
    np.testing.assert_allclose(actor_critic.policy(state, config)(KEY, jnp.ones(1)), [1.0, 7.0], atol=0.2)
    assert (np.exp(state.params.actor.log_std) < 0.5).all()


def test_pictures_and_numbers_as_actions() -> None:
    """The critic reads the flattened picture and the action, the actor the picture through its convolution."""
    config = tiny.config(actor_critic, env=Pixels())
    state, metrics = actor_critic.train(KEY, config)
    assert state.params.actor.weights["params"]["body"]["Conv"]["kernel"].shape == (9 * 2, 16)
    layers = state.params.critic["params"]["body"]
    assert {name: layer["kernel"].shape for name, layer in layers.items()} == {
        "Dense_0": (4 * 5 * 2 + 2, 8), "Dense_1": (8, 1)
    }  # fmt: skip
    assert all(np.isfinite(x).all() for x in metrics.values())
    before = jax.jit(lambda: actor_critic.init(KEY, config))().params
    assert all((x != y).any() for x, y in zip(tiny.arrays(before), tiny.arrays(state.params), strict=True))


def test_a_critic_of_ones_own_reads_observation_and_action() -> None:
    """As one vector: Q is the action's second number, whatever is observed."""

    class Second(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            assert x.shape[-1] == 1 + 2
            self.param("unused", nn.initializers.zeros, ())
            return x[..., 2:]

    config = tiny.config(actor_critic, env=BANDIT, critic_network=Second())
    params, batch = some_batch(config)
    q = actor_critic.q_value(params.critic, batch.obs, batch.action, config)
    np.testing.assert_array_equal(q, batch.action[:, 1])


def test_categorical_is_used_where_actions_are_discrete() -> None:
    params, batch = some_batch(config := tiny.config(actor_critic))
    assert isinstance(actor_critic.distribution(params.actor, batch.obs, config), Categorical)
    assert actor_critic.critic_network(config).apply(params.critic, batch.obs).shape == (6, 2)
