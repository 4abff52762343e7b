r"""Soft actor-critic: SAC (Haarnoja et al. 2018, arXiv:1812.05905).

The problem left by TD3: a deterministic actor knows one action in each state, so that exploration is noise from
outside, of a size that somebody must choose, the same in every state. SAC seeks a policy that earns much and is as
random as it can afford: each step is worth its reward and alpha times the policy's entropy. Values then contain the
entropy to come; with a' drawn by pi in s',

    y = r + gamma (1 - terminated) [ min_i Q_i(s', a'; target) - alpha log pi(a'|s') ]    (eq. 3)          -> td_target
    critics' loss = sum_i E[ (Q_i(s, a; params) - y)^2 ] / 2                              (eq. 5)        -> critic_loss

and the policy becomes soft-greedy, close to the Boltzmann distribution exp(Q / alpha) up to its normalisation:

    actor's loss = E[ alpha log pi(a|s) - min_i Q_i(s, a) ],   a = f(noise; s) drawn by pi  (eq. 9)       -> actor_loss

The draw is reparameterised, as noise that the policy's own numbers turn into an action, so that gradients reach them
through Q. pi is the tanh of a Gaussian, inside [-1, 1] and with a density that is known (appendix C):

    a = tanh(u),   u = mean(s) + std(s) noise,                                                          -> distribution
    log pi(a|s) = sum over dimensions of log N(u; mean, std) - log(1 - tanh(u)^2).                      -> distribution

Alpha is fixed, or what keeps the mean entropy at target_entropy for each dimension of the action: it falls while
the policy is more random than that.

    alpha's loss = E[ -alpha (log pi(a|s) + target_entropy D) ],   alpha = exp(log_alpha)  (eq. 18)       -> alpha_loss

Two critics learn from one target made of the smaller of both opinions, as in TD3, and targets are running averages,

    target = tau parameters + (1 - tau) target.                                     (algorithm 1)      -> gradient_step

The policy explores by itself. Its noise is independent from step to step, or an Ornstein-Uhlenbeck process that leads
somewhere before it turns; each action is then still a draw of pi, but it resembles the one before:

    x_t = (1 - theta) x_{t-1} + sqrt(theta (2 - theta)) xi_t                                                 -> explore

where xi is standard normal. x starts at 0 and has variance 1 after some 1/theta steps; theta = 1 is independent noise.

The memory starts with learning_starts transitions of the uniform policy. Then each iteration acts for num_steps steps
in num_envs environments and takes gradient_steps gradient steps; an update is iterations_per_update iterations.

Departures from the paper:
    an Ornstein-Uhlenbeck process may take the place of independent draws (noise_theta)
    the critics' layers may be normalised (layer_norm)
    orthogonal initial weights; pi starts with means near 0 and deviations near 1 (init)
    log deviations are clipped to [-20, 2], as in the authors' code (distribution)
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
from purerl.core.distributions import TanhGaussian, ornstein_uhlenbeck
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
    own_network,
    static,
    traced,
)

ACTIONS = (envs.Box,)


@config_class
class Config:
    env: EnvLike = static("Pendulum-v1")
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
    """Hidden layers of each critic, which reads observation and action."""
    activation: str = static("relu", choices=networks.ACTIVATIONS)
    """Nonlinearity between layers."""
    layer_norm: bool = static(False)
    """Normalise the features of each layer of the critics."""
    actor_network: Any = own_network()
    """A flax module in place of the actor, with two numbers for each dimension; or a function of how many."""
    critic_network: Any = own_network()
    """A flax module in place of each critic, with one output for observation and action in one vector."""
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
    target_entropy: Scalar = traced(-1.0)
    """Entropy that alpha aims at for each action dimension, in nats; with learn_alpha. Uniform actions have log 2."""
    noise_theta: Scalar = traced(1.0, above=0, high=1)
    """Part of the policy's noise that is new at each step: 1 for independent draws, less for noise that persists."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.bounded_actions(self)
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
    noise: Float[Array, "N D"]
    obs_stats: normalize.RunningStats | None
    updates: Array


def actor_network(config: Config) -> networks.Network:
    """Gives a mean and a log deviation for each dimension of the action."""
    env, sizes = envs.bind(config), config.actor_hidden_sizes
    given, num_outputs = config.actor_network, 2 * env.action_size
    return networks.make(given, env.obs_space, num_outputs, sizes, config.activation, head_scale=0.01)


def critic_network(config: Config) -> networks.Network:
    """Gives one number for an observation and an action, Q_i(s, a)."""
    env, sizes = envs.bind(config), config.critic_hidden_sizes
    given, size = config.critic_network, env.action_size
    return networks.make(
        given, env.obs_space, 1, sizes, config.activation, action_size=size, layer_norm=config.layer_norm
    )


def distribution(weights: Any, obs: Array, config: Config) -> TanhGaussian:
    """pi(.|s) for observed observations `[..., *shape]`."""
    mean, log_std = jnp.split(actor_network(config).apply(weights, obs), 2, axis=-1)
    return TanhGaussian(mean, jnp.clip(log_std, -20.0, 2.0))


def critic(weights: Any, obs: Array, action: Float[Array, "*batch D"], config: Config) -> Float[Array, "*batch"]:
    """Q_i(s, a) for observed observations `[..., *shape]`, by the weights of one critic."""
    return critic_network(config).apply(weights, obs, action)[..., 0]


def twins(weights: Any, obs: Array, action: Float[Array, "*batch D"], config: Config) -> Float[Array, "2 *batch"]:
    """Q_1(s, a) and Q_2(s, a)."""
    # Of one input and two stacked weights XLA makes a single product and then transposes it; a copy each is faster.
    obs, action = (jnp.broadcast_to(x, (2, *x.shape)) for x in (obs, action))
    return jax.vmap(critic, (0, 0, 0, None))(weights, obs, action, config)


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
    noise = jnp.zeros((config.num_envs, env.action_size))
    return State(key, params, critic_weights, opt_state, memory, env_state, noise, stats, jnp.int32(0))


def explore(key: PRNGKey, obs: Array, noise: Array, state: State, config: Config) -> tuple[Array, Array]:
    """A draw of pi(.|s) `[..., D]`, and the noise that made it."""
    noise = ornstein_uhlenbeck(key, noise, config.noise_theta)
    action, _ = distribution(state.params.actor, observe(obs, state.obs_stats, config), config).at(noise)
    return action, noise


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """The mode of pi, or a draw, whose noise starts at 0 and is what it remembers."""

    def act(key: PRNGKey, obs: Array, noise: Any) -> tuple[Array, Any]:
        if deterministic:
            return distribution(state.params.actor, observe(obs, state.obs_stats, config), config).mode(), noise
        return explore(key, obs, noise, state, config)

    return Policy(() if deterministic else jnp.zeros_like(state.noise[0]), act, envs.bind(config).to_units)


def alpha(params: Params, config: Config) -> Array:
    """The temperature: the learned one, or the Config's."""
    return jnp.exp(params.log_alpha) if config.learn_alpha else jnp.asarray(config.alpha)


def td_target(
    noise: Float[Array, " B D"],
    params: Params,
    target_critic: Any,
    batch: Transition,
    discount: Array,
    config: Config,
) -> Float[Array, " B"]:
    """y: r + discount (1 - terminated) [min_i Q_i(final_obs, a') - alpha log pi(a'|final_obs)], a' drawn by noise."""
    next_action, log_prob = distribution(params.actor, batch.final_obs, config).at(noise)
    next_q = twins(target_critic, batch.final_obs, next_action, config).min(0)
    next_value = next_q - alpha(params, config) * log_prob
    return batch.reward + discount * jnp.where(batch.terminated, 0.0, next_value)


def critic_loss(weights: Any, target: Float[Array, " B"], batch: Transition, config: Config) -> tuple[Array, Metrics]:
    """sum_i E[ (Q_i(s, a) - y)^2 ] / 2 over the batch, for the fixed target y."""
    q = twins(weights, batch.obs, batch.action, config)
    td_error = q - target[None]
    total = jnp.square(td_error).mean(-1).sum() / 2
    return total, {"critic_loss": total, "q_value": q.mean(), "td_error": jnp.abs(td_error).mean()}


def actor_loss(
    weights: Any, noise: Float[Array, " B D"], params: Params, batch: Transition, config: Config
) -> tuple[Array, Float[Array, " B"]]:
    """E[ alpha log pi(a|s) - min_i Q_i(s, a) ] over the batch with a ~ pi by the noise, and log pi(a|s) of each."""
    action, log_prob = distribution(weights, batch.obs, config).at(noise)
    q = twins(params.critic, batch.obs, action, config).min(0)
    return (alpha(params, config) * log_prob - q).mean(), log_prob


def alpha_loss(log_alpha: Array, log_prob: Float[Array, " B"], config: Config) -> Array:
    """E[ -alpha (log pi(a|s) + target entropy) ] over the batch."""
    target = config.target_entropy * envs.bind(config).action_size
    return -(jnp.exp(log_alpha) * (log_prob + target)).mean()


def draw_batch(key: PRNGKey, state: State, config: Config) -> tuple[Transition, Float[Array, " B"]]:
    """Transitions of n steps from the memory with observed observations, and the discount of what follows each."""
    example = envs.bind(config).transition
    sequence = replay.sample_sequences(key, state.replay, config.batch_size, example, config.n_step, config.num_envs)
    batch, discount = n_step(sequence, config.gamma)
    obs, final_obs = (observe(x, state.obs_stats, config) for x in (batch.obs, batch.final_obs))
    return batch._replace(obs=obs, final_obs=final_obs), discount


def gradient_step(key: PRNGKey, noise: Float[Array, "2 B D"], state: State, config: Config) -> tuple[State, Metrics]:
    """One batch from the memory, one Adam step each of critics, actor and log alpha, and a move of the targets.

    noise: standard normal, what the actions of the target and of the actor's loss are made of.
    """
    params, opt_state = state.params, state.opt_state
    annealing = schedules.annealing(state.updates / config.num_updates, config)
    batch, discount = draw_batch(key, state, config)

    target = td_target(noise[0], params, state.target_critic, batch, discount, config)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(params.critic, target, batch, config)
    rate = config.critic_learning_rate * annealing
    new_critic, critic_opt = optimize.adam_step(grads, params.critic, opt_state.critic, rate)
    metrics["critic_grad_norm"] = optax.tree.norm(grads)

    params = params._replace(critic=new_critic)
    loss_and_grad = jax.value_and_grad(actor_loss, has_aux=True)
    (metrics["actor_loss"], log_prob), grads = loss_and_grad(params.actor, noise[1], params, batch, config)
    rate = config.learning_rate * annealing
    new_actor, actor_opt = optimize.adam_step(grads, params.actor, opt_state.actor, rate)
    metrics["actor_grad_norm"] = optax.tree.norm(grads)
    metrics |= {"entropy": -log_prob.mean(), "alpha": alpha(params, config)}

    log_alpha, alpha_opt = params.log_alpha, opt_state.log_alpha
    if config.learn_alpha:
        grads = jax.grad(alpha_loss)(log_alpha, log_prob, config)
        rate = config.alpha_learning_rate * annealing
        log_alpha, alpha_opt = optimize.adam_step(grads, log_alpha, alpha_opt, rate)

    target_critic = optax.incremental_update(new_critic, state.target_critic, config.tau)
    params, opt_state = Params(new_actor, new_critic, log_alpha), Params(actor_opt, critic_opt, alpha_opt)
    return state._replace(params=params, target_critic=target_critic, opt_state=opt_state), metrics


def collect(key: PRNGKey, state: State, config: Config) -> tuple[State, Episodes]:
    """T steps in N envs, added to the memory and to the running statistics."""
    env = envs.bind(config)

    def step(carry: tuple[envs.EnvState, Array], tick: Any) -> tuple[Any, tuple[Transition, Episodes]]:
        env_state, noise = carry
        action, noise = explore(tick.act_key, env_state.obs, noise, state, config)
        env_state, transition, episodes = env.step(tick, env_state, action)
        return (env_state, noise), (transition, episodes)

    start = (state.env_state, state.noise)
    (env_state, noise), (steps, episodes) = jax.lax.scan(step, start, env.ticks(key, config.num_steps))
    memory = replay.add(state.replay, flatten(steps))
    obs_stats = normalize.update_stats(state.obs_stats, observe(steps.obs, None, config))
    return state._replace(env_state=env_state, noise=noise, replay=memory, obs_stats=obs_stats), episodes


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """iterations_per_update times: T steps in N envs into the memory, then gradient_steps gradient steps."""

    def learn(state: State, inputs: tuple[PRNGKey, Array]) -> tuple[State, Metrics]:
        key, noise = inputs
        return gradient_step(key, noise, state, config)

    def iteration(state: State, inputs: tuple[Any, Array]) -> tuple[State, tuple[Metrics, Episodes]]:
        keys, noise = inputs
        state, episodes = collect(keys[0], state, config)
        state, metrics = jax.lax.scan(learn, state, (keys[1:], noise))
        return state, (metrics, episodes)

    iterations, steps = config.iterations_per_update, config.gradient_steps
    keys = jax.random.split(state.key, (1 + iterations, 1 + steps))
    # All noise at once is one large threefry call in place of two small ones a gradient step, and faster on CPU.
    size = envs.bind(config).action_size
    noise = jax.random.normal(keys[0, 1], (iterations, steps, 2, config.batch_size, size))
    state, (metrics, episodes) = jax.lax.scan(iteration, state, (keys[1:], noise))
    state = state._replace(key=keys[0, 0], updates=state.updates + 1)
    return state, jax.tree.map(jnp.mean, metrics) | episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
