r"""Trust region policy optimisation, single path (Schulman et al. 2015, arXiv:1502.05477).

The problem left by A2C: a step's length is set in parameters, but what must stay small is the change of the policy. The
same learning rate that crawls in one state of the training throws the policy off a cliff in another, and an on-policy
learner gathers its next data down there. TRPO sets the length in the policy itself. Of all policies near the one that
gathered the data, it takes the best by what that data says (eq. 14):

    L(theta) = E[ pi_theta(a|s) / pi_old(a|s) A(s, a) ]                                             -> surrogate
    maximise L(theta)  subject to  E[ KL(pi_old(.|s) || pi_theta(.|s)) ] <= delta.                -> improvement

Near pi_old, L grows by g times the step and the KL by half its square in the Fisher matrix F, the KL's Hessian. So

    theta = old + sqrt(2 delta / x.Fx) x,    where x solves F x = g.                              -> policy_step

F is never formed. Conjugate gradient needs only products with it, and since the KL reaches the parameters through the
policy's statistics phi in each state (logits, or means and log deviations),

    x = sum_k a_k p_k,    where p_i.F p_j = 0 for i != j,                                  -> conjugate_gradient
    F v = E[ J^T M J v ],    J = dphi / dtheta,    M = d^2 KL / dphi^2                  -> fisher_vector_product

which is one pass forward and one back. L and KL are neither linear nor quadratic, so the step shrinks until it keeps
what it promised: L has grown, and the KL is within delta. If no shrunken step does, the policy stays (appendix C):

    theta = old + backtrack_coef^j sqrt(2 delta / x.Fx) x,    the first such j = 0, 1, 2, ...     -> line_search

Advantages come from GAE (arXiv:1506.02438, eq. 16), with a critic that Adam fits to what they say of V,

    A_t = delta_t + gamma lambda A_{t+1},    delta_t = r_t + gamma V(s_{t+1}) - V(s_t)                -> collect
    E[ (V - V_target)^2 ] / 2,    V_target = A + V(s).                                                   -> loss

Departures from the paper:
    advantages of a learned critic stand in for sums of rewards (collect)
    advantages are standardised over the batch (collect)
    F grows by a multiple of the identity, also in the step's length (damping)
    all states count in F, not one in ten (fisher_vector_product)
    a time limit cuts the advantage sum but bootstraps from V(final_obs) (collect)
    layers start orthogonal, the actor's head small (init)
    observations and rewards may be normalised by running statistics (normalize_obs, normalize_reward)
Continuous actions are drawn from a Gaussian whose standard deviation does not depend on the observation; they live on
the scale [-1, 1] and are clipped and scaled to the env's bounds only on their way into the env.
"""

from collections.abc import Callable
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
    """The critic's passes over the data of one update."""
    num_minibatches: int = static(4, low=1)
    """The critic's gradient steps of one pass."""
    cg_steps: int = static(10, low=1)
    """Steps of conjugate gradient, each one product with the Fisher matrix."""
    max_backtracks: int = static(10, low=1)
    """Times that a step may shrink before the policy stays where it is."""
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
    normalize_obs: bool = static(False)
    """Standardise observations by running statistics."""
    normalize_reward: bool = static(False)
    """Divide rewards by the running deviation of the return."""
    learning_rate: Scalar = traced(2.5e-4, low=0)
    """Step size of the critic's Adam."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    gae_lambda: Scalar = traced(0.95, low=0, high=1)
    """Weight of longer returns in the advantage."""
    delta: Scalar = traced(0.01, above=0)
    """The most that the policy may change in an update: mean KL from old to new, in nats."""
    damping: Scalar = traced(0.1, low=0)
    """Multiple of the identity that is added to the Fisher matrix."""
    backtrack_coef: Scalar = traced(0.5, low=0, high=1)
    """What a step that was refused is multiplied by."""
    max_grad_norm: Scalar = traced(0.5, low=0)
    """Norm at which the critic's gradient is clipped."""

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
    """Everything a training is made of. opt_state: the critic's. obs_stats, reward_scale: None without their switch."""

    key: PRNGKey
    params: policies.Params
    opt_state: optax.OptState
    env_state: envs.EnvState
    obs_stats: normalize.RunningStats | None
    reward_scale: normalize.RewardScale | None
    updates: Array


class Batch(NamedTuple):
    """What is learned from, `[B, ...]`."""

    obs: Array
    action: Array
    advantage: Array
    value_target: Array


class Trial(NamedTuple):
    """One try of the line search. actor: where it leads `[P]`. gain, kl: what it does. accepted: if that will do."""

    backtracks: Array
    actor: Array
    gain: Array
    kl: Array
    accepted: Array


def init(key: PRNGKey, config: Config) -> State:
    """Fresh networks and N fresh episodes."""
    env = envs.bind(config)
    key, network_key, env_key = jax.random.split(key, 3)
    params = policies.init(network_key, config)
    return State(
        key,
        params,
        optimize.adam(config.learning_rate, config.max_grad_norm).init(ravel_pytree(params.critic)[0]),
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


def surrogate(pi: Distribution, old: Distribution, batch: Batch) -> Array:
    """L: E[r A], where r = pi(a|s) / old(a|s)."""
    ratio = jnp.exp(pi.log_prob(batch.action) - old.log_prob(batch.action))
    return (ratio * batch.advantage).mean()


def improvement(pi: Distribution, old: Distribution, batch: Batch) -> tuple[Array, Array]:
    """L(pi) - L(old), and E[KL(old || pi)] in nats."""
    return surrogate(pi, old, batch) - surrogate(old, old, batch), old.kl(pi).mean()


def fisher_vector_product(
    pi: Callable[[Array], Distribution], actor: Array, damping: Scalar
) -> Callable[[Array], Array]:
    """v -> (F + damping) v for vectors `[P]`, at the parameters actor `[P]`; pi: their policy in the batch's states."""
    old, push = jax.linearize(pi, actor)
    pull = jax.linear_transpose(push, actor)
    slope = jax.grad(lambda new: old.kl(new).mean())

    def product(v: Array) -> Array:
        return pull(jax.jvp(slope, (old,), (push(v),))[1])[0] + damping * v

    return product


def conjugate_gradient(product: Callable[[Array], Array], g: Array, num_steps: int) -> Array:
    """x `[P]` of F x = g after num_steps steps from 0; product: v -> F v, symmetric and never negative."""
    enough = 1e-10 * (g @ g)

    def step(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, residual, direction = carry
        squared, ahead = residual @ residual, product(direction)
        curvature = direction @ ahead
        # What is left of a solved system is rounding, which further steps would blow up where F is nearly singular.
        length = jnp.where((squared > enough) & (curvature > 0), squared / curvature, 0.0)
        x, residual = x + length * direction, residual - length * ahead
        turn = jnp.where(squared > 0, residual @ residual / squared, 0.0)
        return x, residual, residual + turn * direction

    return jax.lax.fori_loop(0, num_steps, step, (jnp.zeros_like(g), g, g))[0]


def line_search(actor: Array, step: Array, promise: Callable[[Array], tuple[Array, Array]], config: Config) -> Trial:
    """The first of step, backtrack_coef step, backtrack_coef^2 step, ... `[P]` whose promise is kept.

    promise: parameters -> gain and KL, which must be above 0 and at most delta. Where max_backtracks do not help, the
    Trial is not accepted, leads to actor itself, and gains nothing.
    """
    stay = Trial(jnp.int32(-1), actor, jnp.float32(0), jnp.float32(0), jnp.bool_(False))

    def shrink(last: Trial) -> Trial:
        backtracks = last.backtracks + 1
        candidate = actor + config.backtrack_coef**backtracks * step
        gain, kl = promise(candidate)
        return Trial(backtracks, candidate, gain, kl, (gain > 0) & (kl <= config.delta))

    def refused(last: Trial) -> Array:
        return ~last.accepted & (last.backtracks < config.max_backtracks)

    # Under vmap the loop goes on until no seed is refused; JAX holds those that are done where they are.
    last = jax.lax.while_loop(refused, shrink, stay)
    stay = stay._replace(backtracks=last.backtracks)
    return jax.tree.map(lambda x, y: jnp.where(last.accepted, x, y), last, stay)


def policy_step(actor: policies.Actor, batch: Batch, config: Config) -> tuple[policies.Actor, Metrics]:
    """From old along x with F x = g, sqrt(2 delta / x.Fx) far or less.

    gain: what L has grown by. kl: E[KL(old || new)], at most delta. accepted: 1, or 0 where no step was good enough.
    backtracks: how often it shrank. grad_norm: of g.
    """
    flat, unravel = ravel_pytree(actor)

    def pi(flat: Array) -> Distribution:
        return distribution(unravel(flat), batch.obs, config)

    old = pi(flat)
    g = jax.grad(lambda flat: surrogate(pi(flat), old, batch))(flat)
    product = fisher_vector_product(pi, flat, config.damping)
    x = conjugate_gradient(product, g, config.cg_steps)
    step = jnp.sqrt(2 * config.delta / (x @ product(x))) * x
    trial = line_search(flat, step, lambda flat: improvement(pi(flat), old, batch), config)
    metrics = {name: getattr(trial, name).astype(jnp.float32) for name in ("gain", "kl", "accepted", "backtracks")}
    return unravel(trial.actor), metrics | {"entropy": old.entropy().mean(), "grad_norm": optax.tree.norm(g)}


def loss(weights: Any, batch: Batch, config: Config) -> Array:
    """The critic's: E[(V - V_target)^2] / 2."""
    return jnp.square(critic(weights, batch.obs, config) - batch.value_target).mean() / 2


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
    batch = flatten(Batch(obs, steps.action, standardize(advantage), advantage + value))
    obs_stats = normalize.update_stats(stats, observe(steps.obs, None, config))
    return state._replace(env_state=env_state, obs_stats=obs_stats, reward_scale=reward_scale), batch, episodes


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One iteration: T steps in N envs, one step of the policy, num_epochs x num_minibatches gradient steps of V."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    learning_rate = schedules.learning_rate(state.updates / config.num_updates, config)
    optimizer = optimize.adam(learning_rate, config.max_grad_norm)
    state, batch, episodes = collect(rollout_key, state, config)
    actor, metrics = policy_step(state.params.actor, batch, config)
    indices = optimize.shuffled_indices(shuffle_key, batch.advantage.size, config.num_epochs, config.num_minibatches)
    weights, unravel = ravel_pytree(state.params.critic)

    def gradient_step(carry: tuple[Array, optax.OptState], index: Array) -> tuple[tuple[Array, optax.OptState], Array]:
        weights, opt_state = carry
        minibatch = jax.tree.map(lambda x: x[index], batch)
        value_loss, grads = jax.value_and_grad(loss)(unravel(weights), minibatch, config)
        step, opt_state = optimizer.update(ravel_pytree(grads)[0], opt_state, weights)
        return (weights + step, opt_state), value_loss

    (weights, opt_state), value_losses = jax.lax.scan(gradient_step, (weights, state.opt_state), indices)
    params = policies.Params(actor, unravel(weights))
    state = state._replace(key=key, params=params, opt_state=opt_state, updates=state.updates + 1)
    return state, metrics | {"value_loss": value_losses.mean()} | episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
