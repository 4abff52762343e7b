r"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347): clipped, with a KL penalty, or with neither.

The problem left by actor-critic: the policy gradient is right only at the policy that gathered the data, so one large
step, or a second step on the same data, can throw the policy somewhere it never recovers from. TRPO forbids such steps
by a constraint that needs second-order machinery. What it maximises within is, with the probability ratio r (eq. 6),

    r(theta) = pi_theta(a|s) / pi_old(a|s),    L_cpi = E[ r A ].                                            -> surrogate

PPO maximises that by plain gradient steps and only takes away the reward for large ones. It clips: once r has moved by
more than clip_eps in the direction that the advantage A asks for, the gradient is zero (eq. 7),

    L_clip = E[ min( r A, clip(r, 1 - eps, 1 + eps) A ) ].                                                  -> surrogate

Or it makes every move cost its divergence from the old policy (eq. 8), at a price that is fixed or else follows what
d = E[ KL(pi_old || pi_theta) ] has become at the end of each update (section 4): too short a move, and half as much is
asked from the next one; too long a move, and twice as much,

    L_klpen = E[ r A - beta KL(pi_old || pi_theta) ],                                                       -> surrogate
    beta <- beta / 2  where d < target_kl / 1.5,    beta <- 2 beta  where d > 1.5 target_kl.               -> adapt_beta

With L_surrogate one of the three, the critic's error and an entropy bonus, the objective to maximise is (eq. 9)

    L = L_surrogate - vf_coef * E[(V - V_target)^2] / 2 + ent_coef * E[H(pi)].                                   -> loss

Each update: act for T steps in N environments; estimate advantages by GAE (arXiv:1506.02438, eq. 16),

    A_t = delta_t + gamma lambda A_{t+1},    delta_t = r_t + gamma V(s_{t+1}) - V(s_t);                       -> collect

and take a few epochs of minibatch Adam steps on L.                                                            -> update

Departures from the paper:
    advantages are standardised in each minibatch (loss)
    gradients are clipped by their global norm (max_grad_norm)
    a time limit cuts the advantage sum but bootstraps from V(final_obs) (collect)
    layers start orthogonal, the actor's head small (init)
    the critic's change is clipped as the policy's ratio would be, whatever the surrogate (clip_value)
    beta keeps within [1e-6, 1e6], from where it can come back (adapt_beta)
    learning rate and clip range may fall to 0 (anneal_learning_rate, anneal_clip_eps)
    the learning rate may follow the KL before each gradient step, as in arXiv:2109.11978 (adapt_learning_rate)
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
from jax.flatten_util import ravel_pytree

from purerl import envs
from purerl.core import checks, networks, normalize, optimize, policies, schedules
from purerl.core.distributions import Distribution
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
    config_class,
    memoryless,
    own_network,
    static,
    traced,
)

ACTIONS = (envs.Discrete, envs.Box)


@config_class
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
    surrogate: str = static("clip", choices=("clip", "kl", "adaptive_kl", "none"))
    """What keeps the policy near the old one: the clip, a KL penalty with a fixed or an adaptive weight, or nothing."""
    adapt_learning_rate: bool = static(False)
    """Let the learning rate follow target_kl within [1e-5, 1e-2], on top of which it may be annealed."""
    anneal_learning_rate: bool = static(True)
    """Let the learning rate fall linearly to 0."""
    anneal_clip_eps: bool = static(False)
    """Let clip_eps fall linearly to 0."""
    clip_value: bool = static(True)
    """Clip the critic's change to clip_eps, whatever the surrogate."""
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
    """Change of the probability ratio, and of the critic, beyond which nothing is gained."""
    kl_coef: Scalar = traced(1.0, low=0)
    """Weight of the KL penalty (beta), or where it starts; with surrogate kl or adaptive_kl."""
    target_kl: Scalar = traced(0.01, above=0)
    """KL(old || new) in nats to aim at; with surrogate adaptive_kl or with adapt_learning_rate."""
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
    """Everything a training is made of. beta, learning_rate, obs_stats, reward_scale: None where not asked for."""

    key: PRNGKey
    params: policies.Params
    opt_state: optax.OptState
    beta: Array | None
    learning_rate: Array | None
    env_state: envs.EnvState
    obs_stats: normalize.RunningStats | None
    reward_scale: normalize.RewardScale | None
    updates: Array


class Batch(NamedTuple):
    """What the loss reads, `[B, ...]`. pi, log_prob and value are of the policy and critic that gathered it."""

    obs: Array
    action: Array
    pi: Distribution
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
        jnp.float32(config.kl_coef) if config.surrogate == "adaptive_kl" else None,
        jnp.float32(config.learning_rate) if config.adapt_learning_rate else None,
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


def surrogate(ratio: Array, advantage: Array, kl: Array, beta: Scalar, clip_eps: Scalar, config: Config) -> Array:
    """L_clip (eq. 7), L_cpi (eq. 6) or L_klpen (eq. 8), from one ratio, advantage and KL(old || new) a sample `[B]`."""
    if config.surrogate == "clip":
        clipped = jnp.clip(ratio, 1 - clip_eps, 1 + clip_eps)
        return jnp.minimum(ratio * advantage, clipped * advantage).mean()
    gain = (ratio * advantage).mean()
    return gain if config.surrogate == "none" else gain - beta * kl.mean()


def adapt_beta(beta: Scalar, kl: Array, config: Config) -> Array:
    """beta of the next update, by how far this one has moved the policy."""
    factor = jnp.where(kl < config.target_kl / 1.5, 0.5, jnp.where(kl > 1.5 * config.target_kl, 2.0, 1.0))
    return jnp.clip(beta * factor, 1e-6, 1e6)


def loss(
    params: policies.Params, batch: Batch, beta: Scalar, clip_eps: Scalar, config: Config
) -> tuple[Array, Metrics]:
    """-L of eq. 9: -L_surrogate + vf_coef E (V - V_target)^2 / 2 - ent_coef E H(pi)."""
    pi = distribution(params.actor, batch.obs, config)
    log_ratio = pi.log_prob(batch.action) - batch.log_prob
    ratio, kl = jnp.exp(log_ratio), batch.pi.kl(pi)
    policy_loss = -surrogate(ratio, standardize(batch.advantage), kl, beta, clip_eps, config)

    value = critic(params.critic, batch.obs, config)
    value_error = jnp.square(value - batch.value_target)
    if config.clip_value:
        near = batch.value + jnp.clip(value - batch.value, -clip_eps, clip_eps)
        value_error = jnp.maximum(value_error, jnp.square(near - batch.value_target))
    value_loss = value_error.mean() / 2

    entropy = pi.entropy().mean()
    total = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy
    metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    metrics["approx_kl"] = (ratio - 1 - log_ratio).mean()  # never negative, and of low variance: E_old[r - 1 - log r]
    metrics["clip_fraction"] = (jnp.abs(ratio - 1) > clip_eps).mean()
    if config.adapt_learning_rate or "kl" in config.surrogate:
        metrics["kl"] = kl.mean()
    return total, metrics


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
    pi = distribution(state.params.actor, obs, config)
    batch = flatten(Batch(obs, steps.action, pi, pi.log_prob(steps.action), value, advantage, advantage + value))
    obs_stats = normalize.update_stats(stats, observe(steps.obs, None, config))
    return state._replace(env_state=env_state, obs_stats=obs_stats, reward_scale=reward_scale), batch, episodes


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One iteration: T steps in N envs, then num_epochs x num_minibatches gradient steps."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    progress = state.updates / config.num_updates
    clip_eps = config.clip_eps * (1 - progress if config.anneal_clip_eps else 1.0)
    annealing = schedules.annealing(progress, config)
    beta = config.kl_coef if state.beta is None else state.beta

    state, batch, episodes = collect(rollout_key, state, config)
    indices = optimize.shuffled_indices(shuffle_key, batch.value.size, config.num_epochs, config.num_minibatches)

    # Adam on one vector is a few large kernels where a dozen arrays are many small ones.
    params, unravel = ravel_pytree(state.params)

    def gradient_step(carry: Any, index: Array) -> tuple[Any, Metrics]:
        params, opt_state, learning_rate = carry
        minibatch = jax.tree.map(lambda x: x[index], batch)
        grads, metrics = jax.grad(loss, has_aux=True)(unravel(params), minibatch, beta, clip_eps, config)
        grads = ravel_pytree(grads)[0]
        rate = annealing * config.learning_rate
        if config.adapt_learning_rate:
            learning_rate = schedules.follow_kl(learning_rate, metrics["kl"], config.target_kl)
            rate = metrics["learning_rate"] = annealing * learning_rate
        step, opt_state = optimize.adam(rate, config.max_grad_norm).update(grads, opt_state, params)
        return (params + step, opt_state, learning_rate), metrics | {"grad_norm": optax.tree.norm(grads)}

    carry = (params, state.opt_state, state.learning_rate)
    (params, opt_state, learning_rate), metrics = jax.lax.scan(gradient_step, carry, indices)
    state = state._replace(params=unravel(params), opt_state=opt_state, learning_rate=learning_rate)
    metrics = jax.tree.map(jnp.mean, metrics) | episodes.metrics()
    if config.surrogate == "adaptive_kl":
        kl = batch.pi.kl(distribution(state.params.actor, batch.obs, config)).mean()
        metrics |= {"kl_coef": beta, "update_kl": kl}
        state = state._replace(beta=adapt_beta(beta, kl, config))
    return state._replace(key=key, updates=state.updates + 1), metrics


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
