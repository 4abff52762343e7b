r"""Proximal policy optimisation with the clipped surrogate (Schulman et al. 2017, arXiv:1707.06347).

The problem left by actor-critic: the policy gradient is right only at the policy that gathered the data, so one large
step, or a second step on the same data, can throw the policy somewhere it never recovers from. TRPO forbids such steps
by a constraint that needs second-order machinery. PPO only takes away the reward for them: once the probability ratio

    r(theta) = pi_theta(a|s) / pi_old(a|s)                                                                     -> loss

has moved by more than clip_eps in the direction that the advantage A asks for, the gradient is zero (eq. 7):

    L_clip = E[ min( r A, clip(r, 1 - eps, 1 + eps) A ) ]                                                      -> loss

and with the critic's error and an entropy bonus the objective to maximise is (eq. 9)

    L = L_clip - vf_coef * E[(V - V_target)^2] / 2 + ent_coef * E[H(pi)].                                      -> loss

Each update: act for T steps in N environments; estimate advantages by GAE (arXiv:1506.02438, eq. 16),

    A_t = delta_t + gamma lambda A_{t+1},    delta_t = r_t + gamma V(s_{t+1}) - V(s_t);                     -> collect

and take a few epochs of minibatch Adam steps on L.                                                          -> update

Departures from the paper:
    advantages are standardised in each minibatch (loss)
    gradients are clipped by their global norm (max_grad_norm)
    a time limit cuts the advantage sum but bootstraps from V(final_obs) (collect)
    layers start orthogonal, the actor's head small (init)
    the critic's change is clipped like the policy's (clip_value)
    learning rate and clip range may fall to 0 (anneal_learning_rate, anneal_clip_eps)
    observations and rewards may be normalised by running statistics (normalize_obs, normalize_reward)
Once a policy survives to every time limit, advantages are only the critic's noise, which standardising blows up to full
size; a critic whose change is clipped moves slowly and keeps the policy from drifting.
Continuous actions are drawn from a Gaussian whose standard deviation does not depend on the observation; they live on
the scale [-1, 1] and are clipped and scaled to the env's bounds only on their way into the env.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from purerl import envs
from purerl.core import checks, networks, normalize, optimize, policies, schedules
from purerl.core.policies import critic, distribution, observe
from purerl.core.program import jitted
from purerl.core.returns import gae, standardize
from purerl.core.rollout import flatten, unroll
from purerl.core.types import (
    Array,
    EnvLike,
    Episodes,
    Metrics,
    Policy,
    PRNGKey,
    Result,
    Scalar,
    memoryless,
    own_network,
    static,
    traced,
)

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
    actor_hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers of the actor; images pass a convolution first."""
    critic_hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers of the critic; images pass a convolution first."""
    activation: str = static("tanh", choices=networks.ACTIVATIONS)
    """Nonlinearity between layers."""
    actor_network: Any = own_network()
    """A flax module in place of the actor, with a logit or a mean for each action; or a function of their number."""
    critic_network: Any = own_network()
    """A flax module in place of the critic, with one output."""
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


class State(NamedTuple):
    """Everything a training is made of. obs_stats, reward_scale: None where their switch is off."""

    key: PRNGKey
    params: policies.Params
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


def init(key: PRNGKey, config: Config) -> State:
    """Fresh networks and N fresh episodes."""
    env = envs.bind(config)
    key, network_key, env_key = jax.random.split(key, 3)
    params = policies.init(network_key, config)
    return State(
        key,
        params,
        optimize.adam(config.learning_rate, config.max_grad_norm).init(ravel_pytree(params)[0]),
        env.reset(env_key),
        policies.init_stats(config),
        normalize.init_reward_scale(config.num_envs) if config.normalize_reward else None,
        jnp.int32(0),
    )


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """The mode of pi, or a draw."""

    def act(key: PRNGKey, obs: Array) -> Array:
        pi = distribution(state.params.actor, observe(obs, state.obs_stats, config), config)
        return pi.mode() if deterministic else pi.sample(key)

    return memoryless(act, envs.bind(config).to_units)


def loss(params: policies.Params, batch: Batch, clip_eps: Scalar, config: Config) -> tuple[Array, Metrics]:
    """-L of eq. 9: -E min(r A, clip(r, 1-eps, 1+eps) A) + vf_coef E (V - V_target)^2 / 2 - ent_coef E H(pi)."""
    pi = distribution(params.actor, batch.obs, config)
    log_ratio = pi.log_prob(batch.action) - batch.log_prob
    ratio = jnp.exp(log_ratio)
    advantage = standardize(batch.advantage)
    clipped = jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
    policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()

    value = critic(params.critic, batch.obs, config)
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


def collect(key: PRNGKey, state: State, config: Config) -> tuple[State, Batch, Episodes]:
    """T steps in N envs as a batch `[T * N, ...]` with advantages; moves env_state and the running statistics on."""
    env, stats = envs.bind(config), state.obs_stats

    def act(key: PRNGKey, obs: Array) -> Array:
        return distribution(state.params.actor, observe(obs, stats, config), config).sample(key)

    env_state, steps, episodes = unroll(key, env, state.env_state, act, config.num_steps)
    reward_scale, steps = normalize.scale_reward(state.reward_scale, steps, config.gamma)
    # The statistics that the policy acted with serve the whole update; what was seen counts from the next one on.
    obs, final_obs = (observe(x, stats, config) for x in (steps.obs, steps.final_obs))
    value, next_value = (critic(state.params.critic, x, config) for x in (obs, final_obs))
    advantage = gae(steps, value, next_value, config.gamma, config.gae_lambda)
    log_prob = distribution(state.params.actor, obs, config).log_prob(steps.action)
    batch = flatten(Batch(obs, steps.action, log_prob, value, advantage, advantage + value))
    obs_stats = normalize.update_stats(stats, observe(steps.obs, None, config))
    return state._replace(env_state=env_state, obs_stats=obs_stats, reward_scale=reward_scale), batch, episodes


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One iteration: T steps in N envs, then num_epochs x num_minibatches gradient steps."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    progress = state.updates / config.num_updates
    clip_eps = config.clip_eps * (1 - progress if config.anneal_clip_eps else 1.0)
    optimizer = optimize.adam(schedules.learning_rate(progress, config), config.max_grad_norm)

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


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
