r"""Parallelised Q-network, PQN (Gallici et al. 2024, arXiv:2407.04811): deep Q-learning without replay or target.

The problem left by DQN: its memory and its second network are there only to keep Q-learning from diverging. The memory
is by far the largest thing that it holds, and a target that stands still delays the news of rewards. PQN meets the same
two challenges otherwise (section 4). Many environments side by side give a batch of transitions that hardly resemble
each other, so no memory is needed. And LayerNorm in every hidden layer bounds how far a gradient step can throw the
values elsewhere (section 3), so the target needs no network of its own:

    G_t = r_t + gamma (1 - terminated_t) [ (1 - lambda) max_a Q(s_{t+1}, a) + lambda G_{t+1} ]              -> td_target
    loss = E[ (Q(s_t, a_t) - G_t)^2 / 2 ]                                                                        -> loss

G is the lambda-return (Sutton and Barto 2018, eq. 12.18) with the best next action in place of the next state's value.

Each update: act for T steps in N environments with one set of parameters, compute the lambda-returns with the same,
then take num_epochs x num_minibatches gradient steps towards them. Actions are epsilon-greedy, epsilon falling linearly
over the first part of the training.

Departures from the paper's code:
    Adam in place of rectified Adam (update)
    at a time limit the bracket is the value of the observation it interrupts, and nothing else (td_target)
    returns reach no further than the T steps of one update (td_target)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from purerl import envs
from purerl.core import checks, networks, optimize, schedules
from purerl.core.distributions import at_action, epsilon_greedy
from purerl.core.program import jitted
from purerl.core.returns import lambda_returns
from purerl.core.rollout import flatten, unroll
from purerl.core.types import (
    Array,
    EnvLike,
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
    """Env steps of the whole training, over all envs."""
    num_envs: int = static(32, low=1)
    """Environments stepped side by side (N)."""
    num_steps: int = static(64, low=1)
    """Steps in each env between updates (T)."""
    num_epochs: int = static(1, low=1)
    """Passes over the data of one update."""
    num_minibatches: int = static(8, low=1)
    """Gradient steps of one pass."""
    hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers; images pass a convolution first."""
    activation: str = static("relu", choices=networks.ACTIVATIONS)
    """Nonlinearity between layers."""
    q_network: Any = own_network()
    """A flax module in place of the network, with an output for each action; or a function of their number."""
    layer_norm: bool = static(True)
    """Normalise each hidden layer: what stands in for the target network."""
    anneal_learning_rate: bool = static(True)
    """Let the learning rate fall linearly to 0."""
    learning_rate: Scalar = traced(1e-3, low=0)
    """Adam's step size."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    td_lambda: Scalar = traced(0.95, low=0, high=1)
    """Weight of longer returns in the target."""
    reward_scale: Scalar = traced(0.1, low=0)
    """Factor of rewards in the target, which keeps values near 1."""
    epsilon_start: Scalar = traced(1.0, low=0, high=1)
    """Probability of a random action at first."""
    epsilon_end: Scalar = traced(0.2, low=0, high=1)
    """Probability of a random action in the end."""
    exploration_fraction: Scalar = traced(0.2, low=0, high=1)
    """Part of the training over which epsilon falls."""
    max_grad_norm: Scalar = traced(10.0, low=0)
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
    """Everything a training is made of."""

    key: PRNGKey
    params: Any
    opt_state: optax.OptState
    env_state: envs.EnvState
    updates: Array


class Batch(NamedTuple):
    """What the loss reads, `[B, ...]`; target: the lambda-return."""

    obs: Array
    action: Array
    target: Array


def network(config: Config) -> networks.Network:
    """One output for each action."""
    env, layer_norm = envs.bind(config), config.layer_norm
    return networks.make(
        config.q_network, env.obs_space, env.num_actions, config.hidden_sizes, config.activation, layer_norm=layer_norm
    )


def q_values(params: Any, obs: Array, config: Config) -> Array:
    """Q(s, .) `[..., A]` for observations `[..., *shape]`."""
    return network(config).apply(params, obs)


def init(key: PRNGKey, config: Config) -> State:
    """A fresh network and N fresh episodes."""
    key, network_key, env_key = jax.random.split(key, 3)
    (params,) = networks.init(network_key, network(config))
    opt_state = optimize.adam(config.learning_rate, config.max_grad_norm).init(params)
    return State(key, params, opt_state, envs.bind(config).reset(env_key), jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """Greedy, or epsilon-greedy with epsilon_end."""

    def act(key: PRNGKey, obs: Array) -> Array:
        epsilon = 0.0 if deterministic else config.epsilon_end
        return epsilon_greedy(key, q_values(state.params, obs, config), epsilon)

    return memoryless(act, envs.bind(config).to_units)


def td_target(params: Any, steps: Transition, config: Config) -> Array:
    """G_t `[T, N]`, of rewards times reward_scale."""
    next_value = q_values(params, steps.final_obs, config).max(-1)
    scaled = steps._replace(reward=config.reward_scale * steps.reward)
    return lambda_returns(scaled, next_value, config.gamma, config.td_lambda)


def loss(params: Any, batch: Batch, config: Config) -> tuple[Array, Metrics]:
    """E (Q(s, a) - G)^2 / 2 over the batch; no gradient passes through G."""
    q = at_action(q_values(params, batch.obs, config), batch.action)
    td_error = q - batch.target
    total = jnp.square(td_error).mean() / 2
    return total, {"loss": total, "q_value": q.mean(), "td_error": jnp.abs(td_error).mean()}


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One iteration: T steps in N envs, their lambda-returns, then num_epochs x num_minibatches gradient steps."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    progress = state.updates / config.num_updates
    epsilon = schedules.epsilon(progress, config)
    optimizer = optimize.adam(schedules.learning_rate(progress, config), config.max_grad_norm)

    def act(key: PRNGKey, obs: Array) -> Array:
        return epsilon_greedy(key, q_values(state.params, obs, config), epsilon)

    env_state, steps, episodes = unroll(rollout_key, envs.bind(config), state.env_state, act, config.num_steps)
    batch = flatten(Batch(steps.obs, steps.action, td_target(state.params, steps, config)))
    indices = optimize.shuffled_indices(shuffle_key, batch.target.size, config.num_epochs, config.num_minibatches)

    def gradient_step(carry: tuple[Any, optax.OptState], index: Array) -> tuple[tuple[Any, optax.OptState], Metrics]:
        params, opt_state = carry
        grads, metrics = jax.grad(loss, has_aux=True)(params, jax.tree.map(lambda x: x[index], batch), config)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics | {"grad_norm": optax.tree.norm(grads)}

    (params, opt_state), metrics = jax.lax.scan(gradient_step, (state.params, state.opt_state), indices)
    state = State(key, params, opt_state, env_state, state.updates + 1)
    return state, jax.tree.map(jnp.mean, metrics) | episodes.metrics() | {"epsilon": epsilon}


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
