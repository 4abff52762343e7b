r"""Soft actor-critic for discrete actions (Christodoulou 2019, arXiv:1910.07207).

The problem left by DQN: its policy is greedy, and what explores is an epsilon from outside that knows no better
action from worse. SAC answers it for vectors of real numbers, where it must draw actions and pass gradients through the
draw. With A actions nothing is drawn in the learning: the critics give Q(s, .) at once, the policy gives pi(.|s), and
every expectation over actions is a sum.

    V(s) = sum_a pi(a|s) [ min_i Q_i(s, a) - alpha log pi(a|s) ]                         (eq. 10)         -> soft_value
    y = r + gamma (1 - terminated) V(s'; target critics)                                  (eq. 3)          -> td_target
    critics' loss = sum_i E[ (Q_i(s, a; params) - y)^2 ] / 2                              (eq. 2)        -> critic_loss
    actor's loss = E[ sum_a pi(a|s) (alpha log pi(a|s) - min_i Q_i(s, a)) ] = -E[ V(s) ]  (eq. 12)        -> actor_loss

The policy that minimises the last is the Boltzmann distribution of the values, pi(a|s) ~ exp(Q(s, a) / alpha).

Alpha is fixed, or what keeps the mean entropy at target_entropy times log A, the entropy of uniform actions:

    alpha's loss = E[ -sum_a pi(a|s) alpha (log pi(a|s) + target_entropy log A) ]        (eq. 11)         -> alpha_loss

Two critics learn from one target made of the smaller of both opinions, as in TD3, and targets are running averages,

    target = tau parameters + (1 - tau) target.                                     (algorithm 1)      -> gradient_step

The memory starts with learning_starts transitions of the uniform policy. Then each iteration acts for num_steps steps
in num_envs environments and takes gradient_steps gradient steps; an update is iterations_per_update iterations.

Departures from the paper:
    the critics' layers may be normalised (layer_norm)
    orthogonal initial weights; pi starts near uniform (init)
    a time limit bootstraps from the observation before the reset (td_target)
    n-step rewards lack the entropy of the steps between, and are not corrected for how pi has changed since (n_step)
    observations may be standardised by running statistics (normalize_obs)
    the learning rates may fall to 0 (anneal_learning_rate)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from purerl import envs
from purerl.core import checks, networks, normalize, optimize, policies, replay, schedules
from purerl.core.distributions import Categorical, at_action
from purerl.core.policies import observe
from purerl.core.program import jitted
from purerl.core.returns import n_step
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

ACTIONS = (envs.Discrete,)


@config_class
class Config:
    env: EnvLike = static("CartPole-v1")
    """Environment: a name, or an env object."""
    env_params: Any = None
    """Physics and limits of the env; None means its defaults."""
    total_timesteps: int = static(20_000, low=1)
    """Env steps of the whole training, over all envs, learning_starts included."""
    num_envs: int = static(1, low=1)
    """Environments stepped side by side (N)."""
    num_steps: int = static(1, low=1)
    """Steps in each env between training phases (T)."""
    gradient_steps: int = static(1, low=1)
    """Gradient steps of one training phase."""
    iterations_per_update: int = static(200, low=1)
    """Acting and training phases of one update, over which metrics are averaged."""
    buffer_size: int = static(100_000, low=1)
    """Transitions the replay memory holds."""
    learning_starts: int = static(1_000, low=1)
    """Transitions of the uniform policy before learning begins."""
    batch_size: int = static(256, low=1)
    """Transitions of one gradient step."""
    actor_hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers of the actor; images pass a convolution first."""
    critic_hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers of each critic; images pass a convolution first."""
    activation: str = static("relu", choices=networks.ACTIVATIONS)
    """Nonlinearity between layers."""
    layer_norm: bool = static(False)
    """Normalise the features of each layer of the critics."""
    actor_network: Any = own_network()
    """A flax module in place of the actor, with a logit for each action; or a function of their number."""
    critic_network: Any = own_network()
    """A flax module in place of each critic, with a value for each action; or a function of their number."""
    n_step: int = static(1, low=1)
    """Rewards summed before the bootstrap."""
    learn_alpha: bool = static(True)
    """Let alpha follow the entropy; it stays what it is otherwise."""
    normalize_obs: bool = static(False)
    """Standardise observations by running statistics."""
    anneal_learning_rate: bool = static(False)
    """Let the learning rates fall linearly to 0."""
    learning_rate: Scalar = traced(1e-3, low=0)
    """Adam's step size for the actor."""
    critic_learning_rate: Scalar = traced(1e-3, low=0)
    """Adam's step size for the critics."""
    alpha_learning_rate: Scalar = traced(1e-3, low=0)
    """Adam's step size for log alpha; with learn_alpha."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    tau: Scalar = traced(0.005, above=0, high=1)
    """How far the targets move towards the parameters at each gradient step."""
    alpha: Scalar = traced(1.0, above=0)
    """Worth of a nat of entropy in units of reward; with learn_alpha at first."""
    target_entropy: Scalar = traced(0.98, low=0, high=1)
    """Entropy that alpha aims at, as a part of log A; with learn_alpha."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.replay_fits(self, self.n_step)
        checks.first_batch_fits(self)
        checks.at_least_one_update(self, self.env_steps(1))

    @property
    def num_updates(self) -> int:
        """Iterations of `update` in one training."""
        return (self.total_timesteps - self.prefill_steps) // (self.env_steps(1) - self.prefill_steps)

    @property
    def prefill_steps(self) -> int:
        """Env steps that fill the memory before learning begins: learning_starts in whole steps of all envs."""
        return -(-self.learning_starts // self.num_envs) * self.num_envs

    def env_steps(self, updates: int) -> int:
        """Env steps taken after this many updates, over all envs, the prefilling of the memory included."""
        return self.prefill_steps + updates * self.iterations_per_update * self.num_steps * self.num_envs


class Params(NamedTuple):
    """Weights of actor and critics and log alpha, or the states of their optimisers.

    The critics' weights have a leading axis of two.
    """

    actor: Any
    critic: Any
    log_alpha: Any


class State(NamedTuple):
    """Everything a training is made of, the replay memory included. obs_stats: None where normalize_obs is off."""

    key: PRNGKey
    params: Params
    target_critic: Any
    opt_state: Params
    replay: replay.Replay
    env_state: envs.EnvState
    obs_stats: normalize.RunningStats | None
    updates: Array


def actor_network(config: Config) -> networks.Network:
    """Gives a logit for each action; its small head starts pi near uniform."""
    env, sizes = envs.bind(config), config.actor_hidden_sizes
    given, num_outputs = config.actor_network, env.num_actions
    return networks.make(given, env.obs_space, num_outputs, sizes, config.activation, head_scale=0.01)


def critic_network(config: Config) -> networks.Network:
    """Gives a number for each action, Q_i(s, .)."""
    env, sizes = envs.bind(config), config.critic_hidden_sizes
    given, num_outputs = config.critic_network, env.num_actions
    return networks.make(given, env.obs_space, num_outputs, sizes, config.activation, layer_norm=config.layer_norm)


def distribution(weights: Any, obs: Array, config: Config) -> Categorical:
    """pi(.|s) for observed observations `[..., *shape]`."""
    return Categorical(actor_network(config).apply(weights, obs))


def twins(weights: Any, obs: Array, config: Config) -> Float[Array, "2 *batch A"]:
    """Q_1(s, .) and Q_2(s, .) for observed observations `[..., *shape]`."""
    # Of one input and two stacked weights XLA makes a single product and then transposes it; a copy each is faster.
    return jax.vmap(critic_network(config).apply)(weights, jnp.broadcast_to(obs, (2, *obs.shape)))


def init(key: PRNGKey, config: Config) -> State:
    """Fresh networks, copies of the critics, and learning_starts transitions of the uniform policy in the memory."""
    env = envs.bind(config)
    key, network_key, env_key, prefill_key = jax.random.split(key, 4)
    (actor_weights,) = networks.init(network_key, actor_network(config))
    critic_keys = jax.random.split(jax.random.fold_in(network_key, 1))
    (critic_weights,) = jax.vmap(lambda key: networks.init(key, critic_network(config)))(critic_keys)
    params = Params(actor_weights, critic_weights, jnp.log(jnp.asarray(config.alpha, jnp.float32)))
    opt_state = Params(*(optimize.plain_adam(config.learning_rate).init(x) for x in params))
    num_steps = config.prefill_steps // config.num_envs
    env_state, steps, _ = unroll(prefill_key, env, env.reset(env_key), lambda key, obs: env.sample(key), num_steps)
    memory = replay.add(replay.init(config.buffer_size, env.transition), flatten(steps))
    stats = normalize.update_stats(policies.init_stats(config), observe(steps.obs, None, config))
    return State(key, params, critic_weights, opt_state, memory, env_state, stats, jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """The mode of pi, or a draw."""

    def act(key: PRNGKey, obs: Array) -> Array:
        pi = distribution(state.params.actor, observe(obs, state.obs_stats, config), config)
        return pi.mode() if deterministic else pi.sample(key)

    return memoryless(act, envs.bind(config).to_units)


def alpha(params: Params, config: Config) -> Array:
    """The temperature: the learned one, or the Config's."""
    return jnp.exp(params.log_alpha) if config.learn_alpha else jnp.asarray(config.alpha)


def soft_value(pi: Categorical, q: Float[Array, "2 B A"], alpha: Array) -> Float[Array, " B"]:
    """V(s) = sum_a pi(a|s) [ min_i Q_i(s, a) - alpha log pi(a|s) ]."""
    return (jax.nn.softmax(pi.logits) * q.min(0)).sum(-1) + alpha * pi.entropy()


def td_target(
    params: Params, target_critic: Any, batch: Transition, discount: Array, config: Config
) -> Float[Array, " B"]:
    """y: r + discount (1 - terminated) V(final_obs)."""
    pi = distribution(params.actor, batch.final_obs, config)
    next_value = soft_value(pi, twins(target_critic, batch.final_obs, config), alpha(params, config))
    return batch.reward + discount * jnp.where(batch.terminated, 0.0, next_value)


def critic_loss(weights: Any, target: Float[Array, " B"], batch: Transition, config: Config) -> tuple[Array, Metrics]:
    """sum_i E[ (Q_i(s, a) - y)^2 ] / 2 over the batch, for the fixed target y."""
    q = jax.vmap(at_action, (0, None))(twins(weights, batch.obs, config), batch.action)
    td_error = q - target[None]
    total = jnp.square(td_error).mean(-1).sum() / 2
    return total, {"critic_loss": total, "q_value": q.mean(), "td_error": jnp.abs(td_error).mean()}


def actor_loss(weights: Any, params: Params, batch: Transition, config: Config) -> tuple[Array, Float[Array, " B"]]:
    """-E[ V(s) ] over the batch, and the entropy of pi(.|s) of each."""
    pi, q = distribution(weights, batch.obs, config), twins(params.critic, batch.obs, config)
    return -soft_value(pi, q, alpha(params, config)).mean(), pi.entropy()


def alpha_loss(log_alpha: Array, entropy: Float[Array, " B"], config: Config) -> Array:
    """E[ -sum_a pi(a|s) alpha (log pi(a|s) + target entropy) ] over the batch, given the entropy of pi(.|s)."""
    target = config.target_entropy * jnp.log(envs.bind(config).num_actions)
    return (jnp.exp(log_alpha) * (entropy - target)).mean()


def draw_batch(key: PRNGKey, state: State, config: Config) -> tuple[Transition, Float[Array, " B"]]:
    """Transitions of n steps from the memory with observed observations, and the discount of what follows each."""
    example = envs.bind(config).transition
    sequence = replay.sample_sequences(key, state.replay, config.batch_size, example, config.n_step, config.num_envs)
    batch, discount = n_step(sequence, config.gamma)
    obs, final_obs = (observe(x, state.obs_stats, config) for x in (batch.obs, batch.final_obs))
    return batch._replace(obs=obs, final_obs=final_obs), discount


def gradient_step(key: PRNGKey, state: State, config: Config) -> tuple[State, Metrics]:
    """One batch from the memory, one Adam step each of critics, actor and log alpha, and a move of the targets."""
    params, opt_state = state.params, state.opt_state
    annealing = schedules.annealing(state.updates / config.num_updates, config)
    batch, discount = draw_batch(key, state, config)

    target = td_target(params, state.target_critic, batch, discount, config)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(params.critic, target, batch, config)
    rate = config.critic_learning_rate * annealing
    new_critic, critic_opt = optimize.adam_step(grads, params.critic, opt_state.critic, rate)
    metrics["critic_grad_norm"] = optax.tree.norm(grads)

    params = params._replace(critic=new_critic)
    loss_and_grad = jax.value_and_grad(actor_loss, has_aux=True)
    (metrics["actor_loss"], entropy), grads = loss_and_grad(params.actor, params, batch, config)
    rate = config.learning_rate * annealing
    new_actor, actor_opt = optimize.adam_step(grads, params.actor, opt_state.actor, rate)
    metrics["actor_grad_norm"] = optax.tree.norm(grads)
    metrics |= {"entropy": entropy.mean(), "alpha": alpha(params, config)}

    log_alpha, alpha_opt = params.log_alpha, opt_state.log_alpha
    if config.learn_alpha:
        grads = jax.grad(alpha_loss)(log_alpha, entropy, config)
        rate = config.alpha_learning_rate * annealing
        log_alpha, alpha_opt = optimize.adam_step(grads, log_alpha, alpha_opt, rate)

    target_critic = optax.incremental_update(new_critic, state.target_critic, config.tau)
    params, opt_state = Params(new_actor, new_critic, log_alpha), Params(actor_opt, critic_opt, alpha_opt)
    return state._replace(params=params, target_critic=target_critic, opt_state=opt_state), metrics


def collect(key: PRNGKey, state: State, config: Config) -> tuple[State, Episodes]:
    """T steps in N envs, added to the memory and to the running statistics."""
    env = envs.bind(config)

    def act(key: PRNGKey, obs: Array) -> Array:
        return distribution(state.params.actor, observe(obs, state.obs_stats, config), config).sample(key)

    env_state, steps, episodes = unroll(key, env, state.env_state, act, config.num_steps)
    memory = replay.add(state.replay, flatten(steps))
    obs_stats = normalize.update_stats(state.obs_stats, observe(steps.obs, None, config))
    return state._replace(env_state=env_state, replay=memory, obs_stats=obs_stats), episodes


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """iterations_per_update times: T steps in N envs into the memory, then gradient_steps gradient steps."""

    def iteration(state: State, keys: Array) -> tuple[State, tuple[Metrics, Episodes]]:
        state, episodes = collect(keys[0], state, config)
        state, metrics = jax.lax.scan(lambda state, key: gradient_step(key, state, config), state, keys[1:])
        return state, (metrics, episodes)

    keys = jax.random.split(state.key, (1 + config.iterations_per_update, 1 + config.gradient_steps))
    state, (metrics, episodes) = jax.lax.scan(iteration, state, keys[1:])
    state = state._replace(key=keys[0, 0], updates=state.updates + 1)
    return state, jax.tree.map(jnp.mean, metrics) | episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
