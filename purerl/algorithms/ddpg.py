r"""Deep deterministic policy gradient: DDPG (Lillicrap et al. 2016, arXiv:1509.02971).

The problem left by DQN: its target and its policy need max_a Q(s, a), which is a search of its own as soon as an action
is a vector of real numbers. DDPG trains a second network to give the maximiser, the actor mu(s). DQN's target becomes

    y = r + gamma (1 - terminated) Q(s', mu(s'; target); target)                          (eq. 5)          -> td_target
    critic's loss = E[ (Q(s, a; params) - y)^2 ] / 2                                      (eq. 4)        -> critic_loss

and the actor climbs the critic: by the chain rule, through the action (Silver et al. 2014, theorem 1),

    actor's loss = -E[ Q(s, mu(s)) ],
    whose gradient is -E[ grad_a Q(s, a) at a = mu(s), times grad mu(s) ].                (eq. 6)         -> actor_loss

Since mu is off-policy, transitions come from a memory of the past. Targets are running averages of both networks,

    target = tau parameters + (1 - tau) target.                                     (algorithm 1)      -> gradient_step

A deterministic actor does not explore, so noise is added to what it does, in each dimension of the action on the
scale [-1, 1]. It is independent from step to step, or an Ornstein-Uhlenbeck process that leads somewhere before it
turns, which is what finds a reward that many steps in one direction earn:

    a = clip(mu(s) + exploration_noise x, -1, 1),                                                            -> explore
    x_t = (1 - theta) x_{t-1} + sqrt(theta (2 - theta)) xi_t,                                                -> explore

where xi is standard normal. x starts at 0 and has variance 1 after some 1/theta steps; theta = 1 is independent noise.

The memory starts with learning_starts transitions of the uniform policy. Then each iteration acts for num_steps steps
in num_envs environments and takes gradient_steps gradient steps; an update is iterations_per_update iterations.

Departures from the paper:
    the noise goes on where an episode ends (collect)
    Gaussian noise may take the place of the Ornstein-Uhlenbeck process (noise_theta)
    the critic reads the action in its first layer, and layers may be normalised (layer_norm)
    no weight decay; orthogonal initial weights (init)
    the first transitions are those of the uniform policy (learning_starts)
    a time limit bootstraps from the observation before the reset (td_target)
    n-step rewards are not corrected for how the policy has changed since (n_step)
    observations may be standardised by running statistics in place of batch normalisation (normalize_obs)
    the learning rates may fall to 0 (anneal_learning_rate)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from purerl import envs
from purerl.core import checks, networks, normalize, optimize, policies, replay, schedules
from purerl.core.distributions import ornstein_uhlenbeck
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
    """Hidden layers of the critic, which reads observation and action."""
    activation: str = static("relu", choices=networks.ACTIVATIONS)
    """Nonlinearity between layers."""
    layer_norm: bool = static(False)
    """Normalise the features of each layer of the critic."""
    actor_network: Any = own_network()
    """A flax module in place of the actor, with an output for each action dimension; or a function of their number."""
    critic_network: Any = own_network()
    """A flax module in place of the critic, with one output for observation and action in one vector."""
    n_step: int = static(1, low=1)
    """Rewards summed before the bootstrap."""
    normalize_obs: bool = static(False)
    """Standardise observations by running statistics."""
    anneal_learning_rate: bool = static(False)
    """Let the learning rates fall linearly to 0."""
    learning_rate: Scalar = traced(1e-3, low=0)
    """Adam's step size for the actor."""
    critic_learning_rate: Scalar = traced(1e-3, low=0)
    """Adam's step size for the critic."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    tau: Scalar = traced(0.005, above=0, high=1)
    """How far the targets move towards the parameters at each gradient step."""
    exploration_noise: Scalar = traced(0.1, low=0)
    """Standard deviation of the noise on actions, which go from -1 to 1."""
    noise_theta: Scalar = traced(1.0, above=0, high=1)
    """Part of the noise that is new at each step: 1 for independent noise, .15 in the paper."""

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
    """Of actor and critic: their weights, those of their targets, or the states of their optimisers."""

    actor: Any
    critic: Any


class State(NamedTuple):
    """Everything a training is made of, the replay memory included. obs_stats: None where normalize_obs is off."""

    key: PRNGKey
    params: Params
    target_params: Params
    opt_state: Params
    replay: replay.Replay
    env_state: envs.EnvState
    noise: Float[Array, "N D"]
    obs_stats: normalize.RunningStats | None
    updates: Array


def critic_network(config: Config) -> networks.Network:
    """Gives one number for an observation and an action, Q(s, a)."""
    env, sizes = envs.bind(config), config.critic_hidden_sizes
    given, size = config.critic_network, env.action_size
    return networks.make(
        given, env.obs_space, 1, sizes, config.activation, action_size=size, layer_norm=config.layer_norm
    )


def actor(weights: Any, obs: Array, config: Config) -> Float[Array, "*batch D"]:
    """mu(s) in (-1, 1) for observed observations `[..., *shape]`."""
    return jnp.tanh(policies.actor_network(config).apply(weights, obs))


def critic(weights: Any, obs: Array, action: Float[Array, "*batch D"], config: Config) -> Float[Array, "*batch"]:
    """Q(s, a) for observed observations `[..., *shape]`."""
    return critic_network(config).apply(weights, obs, action)[..., 0]


def init(key: PRNGKey, config: Config) -> State:
    """Fresh networks and their copies, and the memory filled with learning_starts transitions of the uniform policy."""
    env = envs.bind(config)
    key, network_key, env_key, prefill_key = jax.random.split(key, 4)
    params = Params(*networks.init(network_key, policies.actor_network(config), critic_network(config)))
    opt_state = Params(*(optimize.plain_adam(config.learning_rate).init(x) for x in params))
    num_steps = config.prefill_steps // config.num_envs
    env_state, steps, _ = unroll(prefill_key, env, env.reset(env_key), lambda key, obs: env.sample(key), num_steps)
    memory = replay.add(replay.init(config.buffer_size, env.transition), flatten(steps))
    stats = normalize.update_stats(policies.init_stats(config), observe(steps.obs, None, config))
    noise = jnp.zeros((config.num_envs, env.action_size))
    return State(key, params, params, opt_state, memory, env_state, noise, stats, jnp.int32(0))


def explore(key: PRNGKey, obs: Array, noise: Array, state: State, config: Config) -> tuple[Array, Array]:
    """mu(s) with noise `[..., D]`, and that noise before it is scaled."""
    noise = ornstein_uhlenbeck(key, noise, config.noise_theta)
    action = actor(state.params.actor, observe(obs, state.obs_stats, config), config)
    return jnp.clip(action + config.exploration_noise * noise, -1.0, 1.0), noise


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """mu(s), or with the noise of exploration, which starts at 0 and is what it remembers."""

    def act(key: PRNGKey, obs: Array, noise: Any) -> tuple[Array, Any]:
        if deterministic:
            return actor(state.params.actor, observe(obs, state.obs_stats, config), config), noise
        return explore(key, obs, noise, state, config)

    return Policy(() if deterministic else jnp.zeros_like(state.noise[0]), act, envs.bind(config).to_units)


def td_target(target_params: Params, batch: Transition, discount: Array, config: Config) -> Float[Array, " B"]:
    """y: r + discount (1 - terminated) Q(final_obs, mu(final_obs)), by the targets."""
    next_action = actor(target_params.actor, batch.final_obs, config)
    next_q = critic(target_params.critic, batch.final_obs, next_action, config)
    return batch.reward + discount * jnp.where(batch.terminated, 0.0, next_q)


def critic_loss(weights: Any, target: Float[Array, " B"], batch: Transition, config: Config) -> tuple[Array, Metrics]:
    """E[ (Q(s, a) - y)^2 ] / 2 over the batch, for the fixed target y."""
    q = critic(weights, batch.obs, batch.action, config)
    total = jnp.square(q - target).mean() / 2
    return total, {"critic_loss": total, "q_value": q.mean(), "td_error": jnp.abs(q - target).mean()}


def actor_loss(weights: Any, critic_weights: Any, batch: Transition, config: Config) -> Array:
    """-E[ Q(s, mu(s)) ] over the batch."""
    return -critic(critic_weights, batch.obs, actor(weights, batch.obs, config), config).mean()


def draw_batch(key: PRNGKey, state: State, config: Config) -> tuple[Transition, Float[Array, " B"]]:
    """Transitions of n steps from the memory with observed observations, and the discount of what follows each."""
    example = envs.bind(config).transition
    sequence = replay.sample_sequences(key, state.replay, config.batch_size, example, config.n_step, config.num_envs)
    batch, discount = n_step(sequence, config.gamma)
    obs, final_obs = (observe(x, state.obs_stats, config) for x in (batch.obs, batch.final_obs))
    return batch._replace(obs=obs, final_obs=final_obs), discount


def gradient_step(key: PRNGKey, state: State, config: Config) -> tuple[State, Metrics]:
    """One batch from the memory, one Adam step of the critic and one of the actor, and a move of the targets."""
    params, opt_state = state.params, state.opt_state
    annealing = schedules.annealing(state.updates / config.num_updates, config)
    batch, discount = draw_batch(key, state, config)

    target = td_target(state.target_params, batch, discount, config)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(params.critic, target, batch, config)
    rate = config.critic_learning_rate * annealing
    new_critic, critic_opt = optimize.adam_step(grads, params.critic, opt_state.critic, rate)
    metrics["critic_grad_norm"] = optax.tree.norm(grads)

    metrics["actor_loss"], grads = jax.value_and_grad(actor_loss)(params.actor, new_critic, batch, config)
    rate = config.learning_rate * annealing
    new_actor, actor_opt = optimize.adam_step(grads, params.actor, opt_state.actor, rate)
    metrics["actor_grad_norm"] = optax.tree.norm(grads)

    params = Params(new_actor, new_critic)
    target_params = optax.incremental_update(params, state.target_params, config.tau)
    state = state._replace(params=params, target_params=target_params, opt_state=Params(actor_opt, critic_opt))
    return state, metrics


def collect(key: PRNGKey, state: State, config: Config) -> tuple[State, Episodes]:
    """T steps in N envs with noise, added to the memory and to the running statistics."""
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
