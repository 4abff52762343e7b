r"""Parallelised Q-network, PQN (Gallici et al. 2024, arXiv:2407.04811): deep Q-learning without replay or target.

The problem left by DQN: its memory and its second network are there only to keep Q-learning from diverging. The memory
is by far the largest thing that it holds, and a target that stands still delays the news of rewards. PQN meets the same
two challenges otherwise (section 4). Many environments side by side give a batch of transitions that hardly resemble
each other, so no memory is needed. And LayerNorm in every hidden layer bounds how far a gradient step can throw the
values elsewhere (section 3), so the target needs no network of its own:

    G_t = r_t + gamma (1 - terminated_t) [ (1 - lambda) max_a Q(s_{t+1}, a) + lambda G_{t+1} ]
    loss = E[ (Q(s_t, a_t) - G_t)^2 / 2 ]

G is the lambda-return (Sutton and Barto 2018, eq. 12.18) with the best next action in place of the next state's value.

Each update: act for T steps in N environments with one set of parameters, compute the lambda-returns with the same,
then take num_epochs x num_minibatches gradient steps towards them. Actions are epsilon-greedy, epsilon falling linearly
over the first part of the training.

Departures from the paper's code: Adam in place of rectified Adam; the value at a time limit is that of the observation
it interrupts, and the bracket is nothing else there. Returns reach no further than the T steps of one update.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from purerl.core import checks, envs, networks, optimize
from purerl.core.distributions import epsilon_greedy
from purerl.core.returns import lambda_returns
from purerl.core.rollout import flatten, unroll
from purerl.core.types import Array, EnvLike, Key, Metrics, Result, Scalar, static, traced

ACTIONS = (envs.Discrete,)


@struct.dataclass
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
    activation: str = static("relu", choices=tuple(networks.ACTIVATIONS))
    """Nonlinearity between layers."""
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

    key: Key[Array, ""]
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
    """Layers by the observation's rank, and one output for each action."""
    num_actions = checks.spaces(config)[1].n
    return networks.Network(config.hidden_sizes, config.activation, num_actions, layer_norm=config.layer_norm)


def q_values(params: Any, obs: Array, config: Config) -> Array:
    """Q(s, .) `[B, A]` for observations `[B, ...]`."""
    return network(config).apply(params, networks.encode(obs, checks.spaces(config)[0]))


def init(key: Key[Array, ""], config: Config) -> State:
    """A fresh network and N fresh episodes."""
    keys = jax.random.split(key, 2 + config.num_envs)
    (key, network_key), env_keys = keys[:2], keys[2:]
    env_state = envs.reset(env_keys, checks.env(config), checks.env_params(config))
    obs = networks.encode(env_state.obs[:1], checks.spaces(config)[0])
    (params,) = networks.init(network_key, (network(config), obs))
    opt_state = optimize.adam(config.learning_rate, config.max_grad_norm).init(params)
    return State(key, params, opt_state, env_state, jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Callable[[Key[Array, ""], Array], Array]:
    """(key, obs of one env) -> action: greedy, or epsilon-greedy with epsilon_end."""

    def act(key: Key[Array, ""], obs: Array) -> Array:
        q = q_values(state.params, obs[None], config)
        return epsilon_greedy(key, q, 0.0 if deterministic else config.epsilon_end)[0]

    return act


def loss(params: Any, batch: Batch, config: Config) -> tuple[Array, Metrics]:
    """E (Q(s, a) - G)^2 / 2 over the batch; no gradient passes through G."""
    q = jnp.take_along_axis(q_values(params, batch.obs, config), batch.action[:, None], axis=-1)[:, 0]
    td_error = q - batch.target
    total = jnp.square(td_error).mean() / 2
    return total, {"loss": total, "q_value": q.mean(), "td_error": jnp.abs(td_error).mean()}


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One iteration: T steps in N envs, their lambda-returns, then num_epochs x num_minibatches gradient steps."""
    key, rollout_key, shuffle_key = jax.random.split(state.key, 3)
    progress = state.updates / config.num_updates
    fraction = progress / jnp.maximum(config.exploration_fraction, 1e-8)
    epsilon = optimize.linear_schedule(config.epsilon_start, config.epsilon_end, fraction)

    def act(key: Key[Array, ""], obs: Array) -> Array:
        return epsilon_greedy(key, q_values(state.params, obs, config), epsilon)

    env, env_params = checks.env(config), checks.env_params(config)
    env_state, trajectory, episodes = unroll(rollout_key, env, env_params, state.env_state, act, config.num_steps)
    next_value = q_values(state.params, flatten(trajectory.final_obs), config).max(-1)
    target = lambda_returns(
        config.reward_scale * trajectory.reward,
        next_value.reshape(trajectory.reward.shape),
        trajectory.terminated,
        trajectory.truncated,
        config.gamma,
        config.td_lambda,
    )
    batch = flatten(Batch(trajectory.obs, trajectory.action, target))
    indices = optimize.shuffled_indices(shuffle_key, target.size, config.num_epochs, config.num_minibatches)
    learning_rate = config.learning_rate * (1 - progress if config.anneal_learning_rate else 1.0)
    optimizer = optimize.adam(learning_rate, config.max_grad_norm)

    def gradient_step(carry: tuple[Any, optax.OptState], index: Array) -> tuple[tuple[Any, optax.OptState], Metrics]:
        params, opt_state = carry
        grads, metrics = jax.grad(loss, has_aux=True)(params, jax.tree.map(lambda x: x[index], batch), config)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), metrics | {"grad_norm": optax.tree.norm(grads)}

    (params, opt_state), metrics = jax.lax.scan(gradient_step, (state.params, state.opt_state), indices)
    state = State(key, params, opt_state, env_state, state.updates + 1)
    return state, jax.tree.map(jnp.mean, metrics) | episodes.metrics() | {"epsilon": epsilon}


@jax.jit
def train(key: Key[Array, ""], config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
