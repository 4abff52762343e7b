r"""REINFORCE (Williams 1992, doi:10.1007/BF00992696), and the vanilla policy gradient with an adaptive step size.

The problem left by value functions: to act by Q takes a max over actions, which is a search of its own where actions
are continuous, and in which a small change of Q can turn the whole policy over. A policy with parameters of its own
takes no max and moves as little as its parameters do. What they should follow is the gradient of the expected return
J, which needs no model of the env, only the score grad log pi of what was done, in whole episodes that were acted out:

    grad J = E[ sum_t grad log pi(a_t|s_t) Psi_t ],    Psi_t = G_0 = r_0 + gamma r_1 + gamma^2 r_2 + ...         -> loss

The estimate is right and noisy. Two changes leave its mean where it is and take noise away. An action changes nothing
of what was paid before it, so the rest of the return, the reward-to-go, is all that it must answer for. And since
E[ grad log pi(a|s) b ] = 0 for each b that does not depend on a, such a baseline may be taken off: the mean return of
the other envs, or a learned V(s_t):

    Psi_t = G_t - b_t,    G_t = r_t + gamma r_{t+1} + gamma^2 r_{t+2} + ...                                   -> returns
    b_t = V(s_t),  or the mean of the others,  or 0                                                          -> baseline
    V <- argmin E[ (V(s_t) - G_t)^2 ] / 2                                                                  -> fit_critic

A rollout has a fixed length T and cuts its last episodes; to take the cut for an end would favour early rewards. Two
ways out (episodes):

"complete": each rollout starts N fresh episodes, and those count that end within it, as the mean over the M of each env
    and then over the envs. Whatever M is, an env's M episodes could have come in any other order, so that their mean
    has the expectation of the first one, which is grad J as long as the first one surely ends: T must be at least the
    env's time limit. The mean over all envs' episodes alike would favour the short ones, of which an env has more.
"bootstrap": episodes go on from rollout to rollout and every step counts; V(final_obs) stands for what the rollout or
    a time limit cut off. What bias there is, is that of V.                                                   -> weights

Vanilla policy gradient with adaptive step size: the learning rate follows the KL by which each step moved the policy,
up below target_kl / 2, down above 2 target_kl.                                                        -> improve_policy

Departures from the paper:
    optimiser Adam, of gradients clipped by their global norm (max_grad_norm)
    the reward-to-go drops the factor gamma^t that grad J has where gamma < 1; the whole return is exact (reward_to_go)
    the mean baseline leaves an env's own episodes out of its mean, and so does not bias the gradient (baseline)
    the critic is fitted after the policy's step, by critic_steps steps on the whole batch (fit_critic)
    observations may be normalised by running statistics, rewards by a scale that counts them (normalize_reward)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from purerl import envs
from purerl.core import checks, networks, normalize, optimize, policies, schedules
from purerl.core.policies import critic, distribution, observe
from purerl.core.program import jitted
from purerl.core.returns import lambda_returns
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
    num_envs: int = static(2, low=1)
    """Environments stepped side by side (N)."""
    num_steps: int = static(500, low=1)
    """Steps in each env between updates (T)."""
    episodes: str = static("complete", choices=("complete", "bootstrap"))
    """What becomes of episodes that the rollout cuts: not counted, or continued by V.

    "complete" is right where num_steps covers the longest episode, which cannot be checked of a limit that is traced;
    then the metric `counted` falls where episodes go on beyond.
    """
    reward_to_go: bool = static(True)
    """Let an action answer for the rewards that follow it; otherwise for the whole episode's."""
    baseline: str = static("value", choices=("value", "mean", "none"))
    """What is taken off the return: V(s), the mean of it over the steps of the other envs, or nothing."""
    critic_steps: int = static(10, low=1)
    """Gradient steps of the critic in an update, each on the whole batch."""
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
    anneal_learning_rate: bool = static(False)
    """Let the learning rates fall linearly to 0."""
    adapt_learning_rate: bool = static(False)
    """Let the policy's learning rate follow the KL of its steps."""
    normalize_obs: bool = static(False)
    """Standardise observations by running statistics."""
    normalize_reward: bool = static(False)
    """Divide rewards by the running deviation of the return."""
    learning_rate: Scalar = traced(5e-3, low=0)
    """The policy's step size; with adapt_learning_rate the first one, from then on within [1e-5, 1e-2]."""
    critic_learning_rate: Scalar = traced(3e-3, low=0)
    """The critic's step size."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    max_grad_norm: Scalar = traced(0.5, low=0)
    """Global norm at which gradients are clipped, the actor's and the critic's each."""
    target_kl: Scalar = traced(0.01, above=0)
    """KL(old || new) that a step aims at, in nats; with adapt_learning_rate."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.at_least_one_update(self, self.env_steps(1))
        if self.episodes == "complete":
            checks.episodes_fit(self)
        elif not self.reward_to_go:
            raise ValueError(
                "reward_to_go = False needs whole episodes, but with episodes = 'bootstrap' rollouts begin in the "
                "middle of them: use episodes = 'complete', or reward_to_go = True."
            )
        if self.baseline == "mean" and self.num_envs < 2:
            raise ValueError(
                "baseline = 'mean' is the mean return of the other envs, but num_envs is 1: raise it to at least 2, or "
                "use another baseline."
            )

    @property
    def num_updates(self) -> int:
        """Iterations of `update` in one training."""
        return self.total_timesteps // self.env_steps(1)

    def env_steps(self, updates: int) -> int:
        """Env steps taken after this many updates, over all envs."""
        return updates * self.num_envs * self.num_steps

    @property
    def has_critic(self) -> bool:
        """Whether V is asked for at all."""
        return self.baseline == "value" or self.episodes == "bootstrap"


class State(NamedTuple):
    """Everything a training is made of. learning_rate, obs_stats, reward_scale: None where their switch is off.

    params.critic is None where there is none.
    """

    key: PRNGKey
    params: policies.Params
    opt_state: optax.OptState
    critic_opt_state: optax.OptState
    learning_rate: Array | None
    env_state: envs.EnvState
    obs_stats: normalize.RunningStats | None
    reward_scale: normalize.RewardScale | None
    updates: Array


class Batch(NamedTuple):
    """What the losses read, `[B, ...]`. weight: of the step in the gradient, 0 where it does not count."""

    obs: Array
    action: Array
    weight: Array
    advantage: Array
    value_target: Array


def init(key: PRNGKey, config: Config) -> State:
    """Fresh networks and N fresh episodes."""
    env = envs.bind(config)
    key, network_key, env_key = jax.random.split(key, 3)
    params = policies.init(network_key, config)
    if not config.has_critic:
        params = params._replace(critic=None)
    opt_state, critic_opt_state = (optimize.adam(0.0, config.max_grad_norm).init(ravel_pytree(x)[0]) for x in params)
    return State(
        key,
        params,
        opt_state,
        critic_opt_state,
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


def beginnings(steps: Transition) -> Array:
    """For each step the step at which its episode began, 0 where that was before the rollout; `[T, N]`."""
    fresh = jnp.concatenate([jnp.zeros_like(steps.done[:1]), steps.done[:-1]])
    return jax.lax.cummax(jnp.where(fresh, jnp.arange(len(fresh))[:, None], 0))


def weights(steps: Transition, config: Config) -> Float[Array, "T N"]:
    """What each step's term weighs in the gradient.

    "complete": 1 / (M N) in the M episodes of an env that end within the rollout, and 0 in the one that is cut.
    "bootstrap": 1 / (T N), so that it is a mean over steps.
    """
    num_steps, num_envs = steps.reward.shape
    if config.episodes == "bootstrap":
        return jnp.full((num_steps, num_envs), 1 / (num_steps * num_envs))
    ends = jnp.flip(jnp.cumsum(jnp.flip(steps.done, 0), 0), 0)  # from each step on
    return (ends > 0) / (num_envs * jnp.maximum(ends[:1], 1))


def returns(steps: Transition, next_value: Float[Array, "T N"], config: Config) -> tuple[Array, Array]:
    """Psi before any baseline, and the reward-to-go G_t that V is fitted to; both `[T, N]`."""
    to_go = lambda_returns(steps, next_value, config.gamma, 1.0)
    return to_go if config.reward_to_go else jnp.take_along_axis(to_go, beginnings(steps), axis=0), to_go


def baseline(
    psi: Float[Array, "T N"], value: Float[Array, "T N"] | None, weight: Float[Array, "T N"], config: Config
) -> Float[Array, "T N"]:
    """b_t: V(s_t), the mean of psi over the steps of all other envs that count, or 0."""
    if config.baseline == "value":
        assert value is not None
        return value
    if config.baseline == "none":
        return jnp.zeros_like(psi)
    others = 1 - jnp.eye(config.num_envs)
    mean = others @ (weight * psi).sum(0) / jnp.maximum(others @ weight.sum(0), 1e-8)
    return jnp.broadcast_to(mean, psi.shape)


def loss(actor: policies.Actor, batch: Batch, config: Config) -> tuple[Array, Metrics]:
    """- sum of weight log pi(a|s) Psi, whose gradient estimates that of -J."""
    pi = distribution(actor, batch.obs, config)
    policy_loss = -(batch.weight * pi.log_prob(batch.action) * batch.advantage).sum()
    return policy_loss, {"policy_loss": policy_loss, "entropy": counted_mean(pi.entropy(), batch)}


def value_loss(weights: Any, batch: Batch, config: Config) -> Array:
    """E[(V - G)^2] / 2 over the steps that count."""
    return counted_mean(jnp.square(critic(weights, batch.obs, config) - batch.value_target), batch) / 2


def counted_mean(x: Float[Array, " B"], batch: Batch) -> Array:
    """The mean over the steps that count; 0 where none does."""
    return (batch.weight * x).sum() / jnp.maximum(batch.weight.sum(), 1e-8)


def collect(key: PRNGKey, state: State, config: Config) -> tuple[State, Batch, Episodes]:
    """T steps in N envs as a batch `[T * N, ...]`; moves env_state and the running statistics on."""
    env, stats = envs.bind(config), state.obs_stats
    reset_key, rollout_key = jax.random.split(key)
    if config.episodes == "complete":
        state = afresh(reset_key, state, env)

    def act(key: PRNGKey, obs: Array) -> Array:
        return distribution(state.params.actor, observe(obs, stats, config), config).sample(key)

    env_state, steps, episodes = unroll(rollout_key, env, state.env_state, act, config.num_steps)
    reward_scale, steps = normalize.scale_reward(state.reward_scale, steps, config.gamma)
    # The statistics that the policy acted with serve the whole update; what was seen counts from the next one on.
    obs, final_obs = (observe(x, stats, config) for x in (steps.obs, steps.final_obs))
    bootstrap = config.episodes == "bootstrap"
    next_value = critic(state.params.critic, final_obs, config) if bootstrap else jnp.zeros_like(steps.reward)
    value = critic(state.params.critic, obs, config) if config.baseline == "value" else None
    weight, (psi, to_go) = weights(steps, config), returns(steps, next_value, config)
    batch = flatten(Batch(obs, steps.action, weight, psi - baseline(psi, value, weight, config), to_go))
    obs_stats = normalize.update_stats(stats, observe(steps.obs, None, config))
    return state._replace(env_state=env_state, obs_stats=obs_stats, reward_scale=reward_scale), batch, episodes


def afresh(key: PRNGKey, state: State, env: envs.BoundEnv) -> State:
    """N fresh episodes in place of those in progress, whose rewards so far are forgotten."""
    scale = state.reward_scale
    scale = None if scale is None else scale._replace(discounted=jnp.zeros_like(scale.discounted))
    return state._replace(env_state=env.reset(key), reward_scale=scale)


def improve_policy(state: State, batch: Batch, annealing: Scalar, config: Config) -> tuple[State, Metrics]:
    """One step of the policy along the gradient, and the learning rate for the next."""
    learning_rate = config.learning_rate if state.learning_rate is None else state.learning_rate
    optimizer = optimize.adam(annealing * learning_rate, config.max_grad_norm)

    grads, metrics = jax.grad(loss, has_aux=True)(state.params.actor, batch, config)
    # Adam on one vector is a few large kernels where a dozen arrays are many small ones.
    params, unravel = ravel_pytree(state.params.actor)
    grads = ravel_pytree(grads)[0]
    step, opt_state = optimizer.update(grads, state.opt_state, params)
    actor: policies.Actor = unravel(params + step)

    old, new = (distribution(x, batch.obs, config) for x in (state.params.actor, actor))
    metrics |= {"grad_norm": optax.tree.norm(grads), "kl": counted_mean(old.kl(new), batch)}
    state = state._replace(params=state.params._replace(actor=actor), opt_state=opt_state)
    if config.adapt_learning_rate:
        metrics["learning_rate"] = annealing * learning_rate
        state = state._replace(learning_rate=schedules.follow_kl(learning_rate, metrics["kl"], config.target_kl))
    return state, metrics


def fit_critic(state: State, batch: Batch, annealing: Scalar, config: Config) -> tuple[State, Metrics]:
    """critic_steps steps of V towards the returns; the loss is that before the first."""
    optimizer = optimize.adam(annealing * config.critic_learning_rate, config.max_grad_norm)
    params, unravel = ravel_pytree(state.params.critic)

    def step(carry: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, optax.OptState], Array]:
        params, opt_state = carry
        error, grads = jax.value_and_grad(value_loss)(unravel(params), batch, config)
        updates, opt_state = optimizer.update(ravel_pytree(grads)[0], opt_state, params)
        return (params + updates, opt_state), error

    carry = (params, state.critic_opt_state)
    (params, opt_state), errors = jax.lax.scan(step, carry, length=config.critic_steps)
    state = state._replace(params=state.params._replace(critic=unravel(params)), critic_opt_state=opt_state)
    return state, {"value_loss": errors[0]}


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One iteration: T steps in N envs, one step of the policy, and critic_steps of the critic."""
    key, rollout_key = jax.random.split(state.key)
    annealing = schedules.annealing(state.updates / config.num_updates, config)
    state, batch, episodes = collect(rollout_key, state, config)
    state, metrics = improve_policy(state, batch, annealing, config)
    if config.has_critic:
        state, fit = fit_critic(state, batch, annealing, config)
        metrics |= fit
    metrics["counted"] = (batch.weight > 0).mean()
    return state._replace(key=key, updates=state.updates + 1), metrics | episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
