r"""Advantage actor-critic, synchronous: A2C (Mnih et al. 2016, arXiv:1602.01783), also with a trust region.

The problem left by the Q actor-critic: Q(s, a) says how good everything after a is, most of which the state decided
and not the action, so the gradient's scale and noise are those of the return. What the policy should follow is how
much better than usual a was, the advantage

    A(s, a) = Q(s, a) - V(s),    of which    delta_t = r_t + gamma V(s_{t+1}) - V(s_t)                   -> advantages

is an estimate that needs no Q. One more reward in place of V's guess trades bias for variance; with n of them, each
further error weighing lambda as much (arXiv:1506.02438, eq. 16; lambda = 1 gives the n-step advantage of A3C),

    A_t = sum_{k < n} (gamma lambda)^k delta_{t+k}.                                                      -> advantages

Actor and critic move once on each batch, along the gradient of (algorithm S3, all workers in step)

    L = E[ log pi(a|s) A ] + ent_coef E[ H(pi) ] - vf_coef E[ (V - V_target)^2 ] / 2,                          -> loss

where A and V_target = A + V(s) count as constants. N environments side by side replace A3C's asynchronous threads:
one batch holds as many states as there were threads, and nobody learns from stale parameters.

The trust region (Wang et al. 2016, arXiv:1611.01224, section 3.3) keeps the policy near an average of its own past.
With phi the policy's statistics in one state (logits, or means and log deviations), g the gradient of the actor's
objective in phi, and k that of KL(pi_average || pi), the step's direction is the z nearest to g that increases the
KL by no more than delta:

    z = g - max(0, (k.g - delta) / k.k) k,                                                               -> projection
    average = decay average + (1 - decay) parameters.                                                        -> update

Departures from the paper:
    optimiser Adam, or RMSProp with its moments in common (optimizer)
    all advantages look n steps ahead, not to the end of the rollout alone (n_step)
    actor and critic share no layers (init)
    a time limit cuts the advantage sum but bootstraps from V(final_obs) (collect)
    observations and rewards may be normalised by running statistics (normalize_obs, normalize_reward)
    the trust region was part of ACER, off-policy and with a Q critic; here it limits A2C (projection)
    its statistics are logits, and log deviations beside the means, not probabilities or means alone (projection)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from purerl import envs
from purerl.core import checks, networks, normalize, optimize, policies, schedules
from purerl.core.distributions import Distribution
from purerl.core.policies import critic, distribution, observe
from purerl.core.program import jitted
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
    Transition,
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
    num_envs: int = static(8, low=1)
    """Environments stepped side by side (N)."""
    num_steps: int = static(5, low=1)
    """Steps in each env between updates (T)."""
    n_step: int = static(5, low=1)
    """Rewards that an advantage looks ahead, at most num_steps (n)."""
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
    optimizer: str = static("adam", choices=("adam", "rmsprop"))
    """What turns gradients into steps."""
    anneal_learning_rate: bool = static(True)
    """Let the learning rate fall linearly to 0."""
    trust_region: bool = static(False)
    """Keep the policy near the average of its past."""
    normalize_obs: bool = static(False)
    """Standardise observations by running statistics."""
    normalize_reward: bool = static(False)
    """Divide rewards by the running deviation of the return."""
    learning_rate: Scalar = traced(1e-3, low=0)
    """The optimiser's step size."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    gae_lambda: Scalar = traced(1.0, low=0, high=1)
    """Weight of longer returns in the advantage."""
    vf_coef: Scalar = traced(0.5, low=0)
    """Weight of the critic's loss."""
    ent_coef: Scalar = traced(0.01, low=0)
    """Weight of the entropy bonus."""
    max_grad_norm: Scalar = traced(0.5, low=0)
    """Global norm at which gradients are clipped."""
    delta: Scalar = traced(1.0, above=0)
    """Growth of the KL to the average policy that a step may aim at in a state; with trust_region."""
    average_decay: Scalar = traced(0.99, low=0, high=1)
    """Part of the average policy that stays in an update; with trust_region."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.at_most(self, "n_step", "num_steps")
        checks.at_least_one_update(self, self.env_steps(1))

    @property
    def num_updates(self) -> int:
        """Iterations of `update` in one training."""
        return self.total_timesteps // self.env_steps(1)

    def env_steps(self, updates: int) -> int:
        """Env steps taken after this many updates, over all envs."""
        return updates * self.num_envs * self.num_steps


class State(NamedTuple):
    """Everything a training is made of. average, obs_stats, reward_scale: None where their switch is off."""

    key: PRNGKey
    params: policies.Params
    average: policies.Actor | None
    opt_state: optax.OptState
    env_state: envs.EnvState
    obs_stats: normalize.RunningStats | None
    reward_scale: normalize.RewardScale | None
    updates: Array


class Batch(NamedTuple):
    """What the loss reads, `[B, ...]`."""

    obs: Array
    action: Array
    advantage: Array
    value_target: Array


def optimizer(learning_rate: Scalar, config: Config) -> optax.GradientTransformation:
    """On one vector of all parameters."""
    rule = {"adam": optimize.adam, "rmsprop": optimize.rmsprop}[config.optimizer]
    return rule(learning_rate, config.max_grad_norm)


def init(key: PRNGKey, config: Config) -> State:
    """Fresh networks and N fresh episodes."""
    env = envs.bind(config)
    key, network_key, env_key = jax.random.split(key, 3)
    params = policies.init(network_key, config)
    return State(
        key,
        params,
        params.actor if config.trust_region else None,
        optimizer(config.learning_rate, config).init(ravel_pytree(params)[0]),
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


def advantages(
    steps: Transition, value: Float[Array, "T N"], next_value: Float[Array, "T N"], config: Config
) -> Float[Array, "T N"]:
    """A_t = sum_{k < n} (gamma lambda)^k delta_{t+k}; the sum ends where the episode or the rollout does."""
    delta = steps.reward + config.gamma * jnp.where(steps.terminated, 0.0, next_value) - value
    decay = config.gamma * config.gae_lambda * ~steps.done

    def one_more(_: Array, advantage: Array) -> Array:
        return delta + decay * jnp.concatenate([advantage[1:], jnp.zeros_like(advantage[:1])])

    return jax.lax.fori_loop(1, config.n_step, one_more, delta)


def projection(
    pi: Distribution, average: Distribution, batch: Batch, config: Config
) -> tuple[Distribution, Float[Array, " B"]]:
    """z, shaped as pi's statistics are, and whether the trust region binds in that state, 0 or 1."""

    def objective(pi: Distribution) -> Array:
        return (pi.log_prob(batch.action) * batch.advantage + config.ent_coef * pi.entropy()).sum()

    g, k = jax.grad(objective)(pi), jax.grad(lambda pi: average.kl(pi).sum())(pi)
    excess = jnp.maximum(0.0, product(k, g) - config.delta)
    size = excess / jnp.maximum(product(k, k), 1e-20)  # k is 0 where pi is the average, but then so is the excess
    return jax.tree.map(lambda g, k: g - size[:, None] * k, g, k), (excess > 0).astype(jnp.float32)


def product(left: Any, right: Any) -> Float[Array, " B"]:
    """Inner product of the statistics, or of their gradients, in each state."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: (x * y).sum(-1), left, right)), jnp.zeros(()))


def loss(
    params: policies.Params, average: policies.Actor | None, batch: Batch, config: Config
) -> tuple[Array, Metrics]:
    """-L: -E[log pi(a|s) A] - ent_coef E[H(pi)] + vf_coef E[(V - V_target)^2] / 2.

    With an average policy the first two terms are -E[z.phi], whose gradient in the parameters is the projected one.
    """
    pi = distribution(params.actor, batch.obs, config)
    entropy, policy_loss = pi.entropy().mean(), -(pi.log_prob(batch.action) * batch.advantage).mean()
    value_loss = jnp.square(critic(params.critic, batch.obs, config) - batch.value_target).mean() / 2
    metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    actor_loss = policy_loss - config.ent_coef * entropy
    if average is not None:
        past = distribution(average, batch.obs, config)
        z, binds = jax.lax.stop_gradient(projection(pi, past, batch, config))
        actor_loss = -product(z, pi).mean()
        metrics |= {"average_kl": past.kl(pi).mean(), "projected": binds.mean()}
    return actor_loss + config.vf_coef * value_loss, metrics


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
    advantage = advantages(steps, value, next_value, config)
    batch = flatten(Batch(obs, steps.action, advantage, advantage + value))
    obs_stats = normalize.update_stats(stats, observe(steps.obs, None, config))
    return state._replace(env_state=env_state, obs_stats=obs_stats, reward_scale=reward_scale), batch, episodes


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One iteration: T steps in N envs, then one gradient step on all of them."""
    key, rollout_key = jax.random.split(state.key)
    learning_rate = schedules.learning_rate(state.updates / config.num_updates, config)
    state, batch, episodes = collect(rollout_key, state, config)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, state.average, batch, config)
    # The optimiser works on one vector: a few large kernels where a dozen arrays are many small ones.
    params, unravel = ravel_pytree(state.params)
    grads = ravel_pytree(grads)[0]
    step, opt_state = optimizer(learning_rate, config).update(grads, state.opt_state, params)
    params, average = unravel(params + step), state.average
    if average is not None:
        average = optax.incremental_update(params.actor, average, 1 - config.average_decay)
    metrics["grad_norm"] = optax.tree.norm(grads)
    state = state._replace(key=key, params=params, average=average, opt_state=opt_state, updates=state.updates + 1)
    return state, metrics | episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
