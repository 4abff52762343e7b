r"""Proximal policy optimisation with the clipped surrogate (Schulman et al. 2017, arXiv:1707.06347).

The problem left by actor-critic: the policy gradient is right only at the policy that gathered the data, so one large
step, or a second step on the same data, can throw the policy somewhere it never recovers from. TRPO forbids such steps
by a constraint that needs second-order machinery. PPO only takes away the reward for them: once the probability ratio

    r(theta) = pi_theta(a|s) / pi_old(a|s)

has moved by more than clip_eps in the direction that the advantage A asks for, the gradient is zero (eq. 7):

    L_clip = E[ min( r A, clip(r, 1 - eps, 1 + eps) A ) ]

and with the critic's error and an entropy bonus the objective to maximise is (eq. 9)

    L = L_clip - vf_coef * E[(V - V_target)^2] / 2 + ent_coef * E[H(pi)].

Each update: act for T steps in N environments; estimate advantages by GAE (arXiv:1506.02438, eq. 16); take a few epochs
of minibatch Adam steps on L.

Departures from the paper: advantages are standardised in each minibatch; gradients are clipped by their global norm;
a time limit cuts the advantage sum but bootstraps from V(final_obs); layers start orthogonal; the critic's change is
clipped like the policy's. Annealing and running normalisation of observations and rewards are switches, as is value
clipping: once a policy survives to every time limit, advantages are only the critic's noise, which standardising blows
up to full size, and a critic that moves slowly keeps the policy from drifting.
Continuous actions are drawn from a Gaussian whose standard deviation does not depend on the observation; they live on
the scale [-1, 1] and are clipped and scaled to the env's bounds only on their way into the env.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from purerl.core import checks, envs, networks, normalize, optimize
from purerl.core.distributions import Categorical, Gaussian
from purerl.core.returns import gae, standardize
from purerl.core.rollout import Episodes, flatten, unroll
from purerl.core.types import Array, EnvLike, Key, Metrics, Result, Scalar, static, traced

ACTIONS = (envs.Discrete, envs.Box)


@struct.dataclass
class Config:
    env: EnvLike = static("CartPole-v1")
    """Environment: a name, or an env object."""
    env_params: Any = None
    """Physics and limits of the env; None means its defaults."""
    total_timesteps: int = static(500_000, low=1)
    """Env steps of the whole training, over all envs."""
    num_envs: int = static(4, low=1)
    """Environments stepped side by side (N)."""
    num_steps: int = static(128, low=1)
    """Steps in each env between updates (T)."""
    num_epochs: int = static(4, low=1)
    """Passes over the data of one update."""
    num_minibatches: int = static(4, low=1)
    """Gradient steps of one pass."""
    hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers of the actor and of the critic."""
    activation: str = static("tanh", choices=tuple(networks.ACTIVATIONS))
    """Nonlinearity between layers."""
    anneal_learning_rate: bool = static(True)
    """Let the learning rate fall linearly to 0."""
    anneal_clip_eps: bool = static(False)
    """Let clip_eps fall linearly to 0."""
    clip_value: bool = static(True)
    """Clip the critic's change to clip_eps as well."""
    normalize_obs: bool = static(False)
    """Standardise observations by running statistics."""
    normalize_reward: bool = static(False)
    """Divide rewards by the running deviation of the return."""
    learning_rate: Scalar = traced(2.5e-4, low=0)
    """Adam's step size."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    gae_lambda: Scalar = traced(0.95, low=0, high=1)
    """Weight of longer returns in the advantage."""
    clip_eps: Scalar = traced(0.2, low=0)
    """Change of the probability ratio beyond which nothing is gained."""
    vf_coef: Scalar = traced(0.5, low=0)
    """Weight of the critic's loss."""
    ent_coef: Scalar = traced(0.01, low=0)
    """Weight of the entropy bonus."""
    max_grad_norm: Scalar = traced(0.5, low=0)
    """Global norm at which gradients are clipped."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.divides(self, "num_minibatches", "num_envs * num_steps", self.num_envs * self.num_steps)
        checks.at_least_one_update(self, self.env_steps(1))

    @property
    def num_updates(self) -> int:
        """Iterations of `update` in one training."""
        return self.total_timesteps // self.env_steps(1)

    def env_steps(self, updates: int) -> int:
        """Env steps taken after this many updates, over all envs."""
        return updates * self.num_envs * self.num_steps


class Params(NamedTuple):
    """log_std: log standard deviations of a continuous policy `[action_dim]`; None where actions are discrete."""

    actor: Any
    critic: Any
    log_std: Array | None


class State(NamedTuple):
    """Everything a training is made of. obs_stats, reward_scale: None where their switch is off."""

    key: Key[Array, ""]
    params: Params
    opt_state: optax.OptState
    env_state: envs.EnvState
    obs_stats: normalize.RunningStats | None
    reward_scale: normalize.RewardScale | None
    updates: Array


class Batch(NamedTuple):
    """What the loss reads, `[B, ...]`. log_prob and value are those of the policy and critic that gathered it."""

    obs: Array
    action: Array
    log_prob: Array
    value: Array
    advantage: Array
    value_target: Array


def actor_critic(config: Config) -> tuple[networks.Network, networks.Network]:
    """Two towers that share nothing; the small actor head starts the policy near uniform."""
    space = checks.spaces(config)[1]
    num_outputs = space.n if isinstance(space, envs.Discrete) else math.prod(space.shape)
    tower = functools.partial(networks.Network, config.hidden_sizes, config.activation)
    return tower(num_outputs, head_scale=0.01), tower(1, head_scale=1.0)


def observe(obs: Array, stats: normalize.RunningStats | None, config: Config) -> Array:
    """Observations `[B, ...]` as the networks read them."""
    obs = networks.encode(obs, checks.spaces(config)[0])
    return obs if stats is None else normalize.normalize(stats, obs)


def distribution(params: Params, obs: Array, config: Config) -> Categorical | Gaussian:
    """pi(.|s) for observed observations `[B, ...]`."""
    head = actor_critic(config)[0].apply(params.actor, obs)
    return Categorical(head) if params.log_std is None else Gaussian(head, params.log_std[None])


def critic(params: Params, obs: Array, config: Config) -> Array:
    """V(s) `[B]` for observed observations `[B, ...]`."""
    return actor_critic(config)[1].apply(params.critic, obs)[:, 0]


def init(key: Key[Array, ""], config: Config) -> State:
    """Fresh networks and N fresh episodes."""
    keys = jax.random.split(key, 2 + config.num_envs)
    (key, network_key), env_keys = keys[:2], keys[2:]
    env_state = envs.reset(env_keys, checks.env(config), checks.env_params(config))
    obs = observe(env_state.obs[:1], None, config)
    actor, critic = actor_critic(config)
    action_space = checks.spaces(config)[1]
    log_std = None if isinstance(action_space, envs.Discrete) else jnp.zeros(math.prod(action_space.shape))
    actor_params, critic_params = networks.init(network_key, (actor, obs), (critic, obs))
    params = Params(actor_params, critic_params, log_std)
    return State(
        key,
        params,
        optimize.adam(config.learning_rate, config.max_grad_norm).init(ravel_pytree(params)[0]),
        env_state,
        normalize.init_stats(obs.shape[1:]) if config.normalize_obs else None,
        normalize.init_reward_scale(config.num_envs) if config.normalize_reward else None,
        jnp.int32(0),
    )


def policy(state: State, config: Config, *, deterministic: bool = True) -> Callable[[Key[Array, ""], Array], Array]:
    """(key, obs of one env) -> action in the env's units; the mode of pi, or a draw."""
    space = checks.spaces(config)[1]

    def act(key: Key[Array, ""], obs: Array) -> Array:
        pi = distribution(state.params, observe(obs[None], state.obs_stats, config), config)
        action = pi.mode() if deterministic else pi.sample(key)
        return space.from_unit(action.reshape(space.shape))

    return act


def loss(params: Params, batch: Batch, clip_eps: Scalar, config: Config) -> tuple[Array, Metrics]:
    """-L of eq. 9: -E min(r A, clip(r, 1-eps, 1+eps) A) + vf_coef E (V - V_target)^2 / 2 - ent_coef E H(pi)."""
    pi = distribution(params, batch.obs, config)
    log_ratio = pi.log_prob(batch.action) - batch.log_prob
    ratio = jnp.exp(log_ratio)
    advantage = standardize(batch.advantage)
    clipped = jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
    policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()

    value = critic(params, batch.obs, config)
    value_error = jnp.square(value - batch.value_target)
    if config.clip_value:
        near = batch.value + jnp.clip(value - batch.value, -clip_eps, clip_eps)
        value_error = jnp.maximum(value_error, jnp.square(near - batch.value_target))
    value_loss = value_error.mean() / 2

    entropy = pi.entropy().mean()
    total = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy
    approx_kl = (ratio - 1 - log_ratio).mean()  # never negative, and of low variance: E_old[r - 1 - log r]
    clip_fraction = (jnp.abs(ratio - 1) > clip_eps).mean()
    metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    return total, metrics | {"approx_kl": approx_kl, "clip_fraction": clip_fraction}


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One iteration: T steps in N envs, then num_epochs x num_minibatches gradient steps."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    remaining = 1 - state.updates / config.num_updates
    learning_rate = config.learning_rate * (remaining if config.anneal_learning_rate else 1.0)
    clip_eps = config.clip_eps * (remaining if config.anneal_clip_eps else 1.0)
    optimizer = optimize.adam(learning_rate, config.max_grad_norm)

    state, batch, episodes = collect(rollout_key, state, config)
    indices = optimize.shuffled_indices(shuffle_key, batch.value.size, config.num_epochs, config.num_minibatches)

    # Adam on one vector is a few large kernels where a dozen arrays are many small ones.
    params, unravel = ravel_pytree(state.params)

    def gradient_step(
        carry: tuple[Array, optax.OptState], index: Array
    ) -> tuple[tuple[Array, optax.OptState], Metrics]:
        params, opt_state = carry
        minibatch = jax.tree.map(lambda x: x[index], batch)
        grads, metrics = jax.grad(loss, has_aux=True)(unravel(params), minibatch, clip_eps, config)
        grads = ravel_pytree(grads)[0]
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (params + updates, opt_state), metrics | {"grad_norm": optax.tree.norm(grads)}

    (params, opt_state), metrics = jax.lax.scan(gradient_step, (params, state.opt_state), indices)
    state = state._replace(key=key, params=unravel(params), opt_state=opt_state, updates=state.updates + 1)
    return state, jax.tree.map(jnp.mean, metrics) | episodes.metrics()


def collect(key: Key[Array, ""], state: State, config: Config) -> tuple[State, Batch, Episodes]:
    """T steps in N envs as a batch `[T * N, ...]` with advantages; moves env_state and the running statistics on."""

    def act(key: Key[Array, ""], obs: Array) -> Array:
        action = distribution(state.params, observe(obs, state.obs_stats, config), config).sample(key)
        return action.reshape(action.shape[0], *space.shape)

    env, env_params = checks.env(config), checks.env_params(config)
    space = checks.spaces(config)[1]
    env_state, trajectory, episodes = unroll(key, env, env_params, state.env_state, act, config.num_steps)
    reward, reward_scale = trajectory.reward, state.reward_scale
    if reward_scale is not None:
        reward_scale, reward = normalize.scale_reward(reward_scale, reward, trajectory.done, config.gamma)

    # The statistics that the policy acted with serve the whole update; what was seen counts from the next one on.
    obs, final_obs = (observe(flatten(x), state.obs_stats, config) for x in (trajectory.obs, trajectory.final_obs))
    value, next_value = (critic(state.params, x, config) for x in (obs, final_obs))
    shape = reward.shape
    advantage = gae(
        reward,
        value.reshape(shape),
        next_value.reshape(shape),
        trajectory.terminated,
        trajectory.truncated,
        config.gamma,
        config.gae_lambda,
    ).reshape(-1)
    pi = distribution(state.params, obs, config)
    action = flatten(trajectory.action)
    action = action if state.params.log_std is None else action.reshape(action.shape[0], -1)
    batch = Batch(obs, action, pi.log_prob(action), value, advantage, advantage + value)

    obs_stats = state.obs_stats
    if obs_stats is not None:
        obs_stats = normalize.update_stats(obs_stats, observe(flatten(trajectory.obs), None, config))
    return state._replace(env_state=env_state, obs_stats=obs_stats, reward_scale=reward_scale), batch, episodes


@jax.jit
def train(key: Key[Array, ""], config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
