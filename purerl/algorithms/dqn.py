r"""Deep Q-network (Mnih et al. 2015, doi:10.1038/nature14236); double Q, dueling heads and n-step returns as switches.

The problem left by Q-learning with a function approximator: consecutive transitions resemble each other, and every
gradient step moves the very target it aims at; together they can make the values diverge. DQN answers both. It learns
from transitions drawn at random from a memory of the past, and it aims at a copy of the network that stands still:

    y = r + gamma (1 - terminated) max_a' Q(s', a'; target)                (Mnih et al., algorithm 1)       -> td_target
    loss = E[ h(Q(s, a; params) - y) ],   h(e) = e^2 / 2, or the Huber loss: |e| - 1/2 where |e| > 1             -> loss

Double Q lets one network choose the action and the other value it, since the maximum over noisy estimates is biased
upwards (van Hasselt et al. 2016, arXiv:1509.06461, eq. 4):

    y = r + gamma (1 - terminated) Q(s', argmax_a' Q(s', a'; params); target)                               -> td_target

A dueling network (arXiv:1511.06581, eq. 9) tells how good a state is from how much an action adds to it,

    Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a'),                                                             -> q_values

so that each transition teaches the value of all actions. An n-step target (arXiv:1710.02298, eq. 1) sums n rewards
before it bootstraps, fewer where the episode ends,

    y = r_0 + gamma r_1 + ... + gamma^(n-1) r_(n-1) + gamma^n (1 - terminated) max_a' Q(s_n, a'; target),   -> td_target

so that news of a reward travels n steps at once.
Actions are epsilon-greedy, epsilon falling linearly over the first part of the training.

The memory starts with learning_starts transitions of the uniform policy. Then each iteration acts for num_steps steps
in num_envs environments and takes gradient_steps gradient steps; an update is iterations_per_update iterations. After
every target_update_period gradient steps the target moves by tau towards the parameters: tau = 1 copies them, a small
tau with period 1 keeps a running average.                                                              -> gradient_step

Departures from the paper:
    Adam in place of RMSProp (gradient_step)
    gradients clipped by their global norm in place of the error's derivative (max_grad_norm)
    the memory holds the observation before a reset, and a time limit bootstraps from it (td_target)
    dueling value and advantages are two heads of one body (q_values)
    n-step rewards are not corrected for how the policy has changed since, as in arXiv:1710.02298 (n_step)
    the learning rate may fall to 0 (anneal_learning_rate)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from purerl import envs
from purerl.core import checks, networks, optimize, replay, schedules
from purerl.core.distributions import at_action, epsilon_greedy
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
    total_timesteps: int = static(500_000, low=1)
    """Env steps of the whole training, over all envs, learning_starts included."""
    num_envs: int = static(1, low=1)
    """Environments stepped side by side (N)."""
    num_steps: int = static(10, low=1)
    """Steps in each env between training phases (T)."""
    gradient_steps: int = static(1, low=1)
    """Gradient steps of one training phase."""
    iterations_per_update: int = static(50, low=1)
    """Acting and training phases of one update, over which metrics are averaged."""
    buffer_size: int = static(10_000, low=1)
    """Transitions the replay memory holds."""
    learning_starts: int = static(10_000, low=1)
    """Transitions of the uniform policy before learning begins."""
    batch_size: int = static(128, low=1)
    """Transitions of one gradient step."""
    hidden_sizes: tuple[int, ...] = static((120, 84), low=1)
    """Hidden layers; images pass a convolution first."""
    activation: str = static("relu", choices=networks.ACTIVATIONS)
    """Nonlinearity between layers."""
    q_network: Any = own_network()
    """A flax module in place of the network, with as many outputs; or a function of their number."""
    double_q: bool = static(False)
    """Choose the next action by the parameters and value it by the target."""
    dueling: bool = static(False)
    """Add up Q from a value and an advantage for each action."""
    n_step: int = static(1, low=1)
    """Rewards summed before the bootstrap."""
    anneal_learning_rate: bool = static(False)
    """Let the learning rate fall linearly to 0."""
    huber: bool = static(False)
    """Huber loss in place of the squared error."""
    learning_rate: Scalar = traced(2.5e-4, low=0)
    """Adam's step size."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    epsilon_start: Scalar = traced(1.0, low=0, high=1)
    """Probability of a random action at first."""
    epsilon_end: Scalar = traced(0.05, low=0, high=1)
    """Probability of a random action in the end."""
    exploration_fraction: Scalar = traced(0.5, low=0, high=1)
    """Part of the training over which epsilon falls."""
    target_update_period: Scalar = traced(50, low=1)
    """Gradient steps between moves of the target network."""
    tau: Scalar = traced(1.0, low=0, high=1)
    """How far the target moves towards the parameters."""
    max_grad_norm: Scalar = traced(10.0, low=0)
    """Global norm at which gradients are clipped."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.replay_fits(self, self.n_step)
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


class State(NamedTuple):
    """Everything a training is made of, the replay memory included. gradient_steps counts over the whole training."""

    key: PRNGKey
    params: Any
    target_params: Any
    opt_state: optax.OptState
    replay: replay.Replay
    env_state: envs.EnvState
    gradient_steps: Array
    updates: Array


def network(config: Config) -> networks.Network:
    """One output for each action; a dueling network has the value before them."""
    env = envs.bind(config)
    num_outputs = config.dueling + env.num_actions
    return networks.make(config.q_network, env.obs_space, num_outputs, config.hidden_sizes, config.activation)


def q_values(params: Any, obs: Array, config: Config) -> Array:
    """Q(s, .) `[..., A]` for observations `[..., *shape]`."""
    outputs = network(config).apply(params, obs)
    if not config.dueling:
        return outputs
    value, advantage = outputs[..., :1], outputs[..., 1:]
    return value + advantage - advantage.mean(-1, keepdims=True)


def init(key: PRNGKey, config: Config) -> State:
    """A fresh network, and the memory filled with learning_starts transitions of the uniform policy."""
    env = envs.bind(config)
    key, network_key, env_key, prefill_key = jax.random.split(key, 4)
    (params,) = networks.init(network_key, network(config))
    num_steps = config.prefill_steps // config.num_envs
    env_state, steps, _ = unroll(prefill_key, env, env.reset(env_key), lambda key, obs: env.sample(key), num_steps)
    memory = replay.add(replay.init(config.buffer_size, env.transition), flatten(steps))
    opt_state = optimize.adam(config.learning_rate, config.max_grad_norm).init(params)
    return State(key, params, params, opt_state, memory, env_state, jnp.int32(0), jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """Greedy, or epsilon-greedy with epsilon_end."""

    def act(key: PRNGKey, obs: Array) -> Array:
        epsilon = 0.0 if deterministic else config.epsilon_end
        return epsilon_greedy(key, q_values(state.params, obs, config), epsilon)

    return memoryless(act, envs.bind(config).to_units)


def td_target(params: Any, target_params: Any, batch: Transition, discount: Scalar, config: Config) -> Array:
    """y `[B]`: r + discount (1 - terminated) times the value of final_obs, as in the equations above."""
    next_q = q_values(target_params, batch.final_obs, config)
    chosen = (q_values(params, batch.final_obs, config) if config.double_q else next_q).argmax(-1)
    return batch.reward + discount * jnp.where(batch.terminated, 0.0, at_action(next_q, chosen))


def loss(params: Any, target: Array, batch: Transition, config: Config) -> tuple[Array, Metrics]:
    """E h(Q(s, a) - y) over the batch, for the fixed target y `[B]`."""
    q = at_action(q_values(params, batch.obs, config), batch.action)
    td_error = q - target
    total = (optax.losses.huber_loss(td_error) if config.huber else jnp.square(td_error) / 2).mean()
    return total, {"loss": total, "q_value": q.mean(), "td_error": jnp.abs(td_error).mean()}


def gradient_step(key: PRNGKey, state: State, config: Config) -> tuple[State, Metrics]:
    """One batch from the memory, one Adam step, and every target_update_period steps a move of the target."""
    sequence = replay.sample_sequences(
        key, state.replay, config.batch_size, envs.bind(config).transition, config.n_step, config.num_envs
    )
    batch, discount = n_step(sequence, config.gamma)
    target = td_target(state.params, state.target_params, batch, discount, config)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, target, batch, config)
    learning_rate = schedules.learning_rate(state.updates / config.num_updates, config)
    optimizer = optimize.adam(learning_rate, config.max_grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    gradient_steps = state.gradient_steps + 1
    rate = jnp.where(gradient_steps % config.target_update_period == 0, config.tau, 0.0)
    target_params = optax.incremental_update(params, state.target_params, rate)
    state = state._replace(
        params=params, target_params=target_params, opt_state=opt_state, gradient_steps=gradient_steps
    )
    return state, metrics | {"grad_norm": optax.tree.norm(grads)}


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """iterations_per_update times: T steps in N envs into the memory, then gradient_steps gradient steps."""
    env = envs.bind(config)

    def iteration(state: State, inputs: tuple[Any, Array]) -> tuple[State, tuple[Metrics, Episodes, Array]]:
        keys, index = inputs
        progress = (state.updates + index / config.iterations_per_update) / config.num_updates
        epsilon = schedules.epsilon(progress, config)

        def act(key: PRNGKey, obs: Array) -> Array:
            return epsilon_greedy(key, q_values(state.params, obs, config), epsilon)

        env_state, steps, episodes = unroll(keys[0], env, state.env_state, act, config.num_steps)
        state = state._replace(env_state=env_state, replay=replay.add(state.replay, flatten(steps)))
        state, metrics = jax.lax.scan(lambda state, key: gradient_step(key, state, config), state, keys[1:])
        return state, (metrics, episodes, epsilon)

    keys = jax.random.split(state.key, (1 + config.iterations_per_update, 1 + config.gradient_steps))
    key, keys = keys[0, 0], keys[1:]
    inputs = (keys, jnp.arange(config.iterations_per_update))
    state, (metrics, episodes, epsilon) = jax.lax.scan(iteration, state, inputs)
    state = state._replace(key=key, updates=state.updates + 1)
    return state, jax.tree.map(jnp.mean, metrics) | episodes.metrics() | {"epsilon": epsilon[-1]}


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
