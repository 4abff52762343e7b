r"""Tabular Q-learning (Watkins and Dayan 1992, doi:10.1007/BF00992698): off-policy control without a model.

The problem left by value iteration: it must know T(s'|s, a) and R(s, a, s'). Q-learning replaces the expectation in the
Bellman optimality equation by one sample of it, the transition just seen, and moves a small step towards it:

    Q(s, a) <- Q(s, a) + alpha [ r + gamma max_a' Q(s', a') - Q(s, a) ]     (Sutton and Barto 2018, eq. 6.8)

The target asks for the best next action, whatever is done next, so the values are those of the greedy policy while an
exploring one gathers the experience: off-policy. The maximum over noisy estimates is biased upwards; double Q-learning
(van Hasselt 2010; Sutton and Barto, eq. 6.10) keeps two tables: one chooses the action, and the other values it,

    Q_1(s, a) <- Q_1(s, a) + alpha [ r + gamma Q_2(s', argmax_a' Q_1(s', a')) - Q_1(s, a) ],    or the other way round.

Actions are epsilon-greedy in Q, or in Q_1 + Q_2; epsilon falls linearly over the first part of the training. The step
size is constant, or falls linearly to 0, or with the visits n(s, a) of the pair as alpha n^-power, which for a power in
(1/2, 1] lets the values converge. A time limit bootstraps from the state it interrupts: only `terminated` means that
nothing follows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from purerl.core import checks, envs, optimize
from purerl.core.distributions import epsilon_greedy
from purerl.core.replay import Transition
from purerl.core.rollout import online
from purerl.core.types import Array, EnvLike, Key, Metrics, Result, Scalar, static, traced

ACTIONS = (envs.Discrete,)


@struct.dataclass
class Config:
    env: EnvLike = static("mdp/frozen_lake_4x4_slippery")
    """Environment: a name, or an env object, whose observations are numbers of states."""
    env_params: Any = None
    """Transitions and rewards of the env; None means its own."""
    total_timesteps: int = static(200_000, low=1)
    """Env steps of the whole training."""
    num_steps: int = static(1000, low=1)
    """Env steps, and changes of Q, of one update (T), over which metrics are averaged and epsilon stands still."""
    double_q: bool = static(False)
    """Keep two tables: one chooses the next action, the other values it."""
    count_visits: bool = static(False)
    """Let the step size fall with the visits of each state and action."""
    anneal_learning_rate: bool = static(False)
    """Let the step size fall linearly to 0."""
    learning_rate: Scalar = traced(0.1, low=0)
    """Step size alpha."""
    visit_power: Scalar = traced(0.8, low=0)
    """How fast the step size falls with visits."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    initial_value: Scalar = traced(0.0)
    """Q before anything was seen; optimistic values make it explore."""
    epsilon_start: Scalar = traced(1.0, low=0, high=1)
    """Probability of a random action at first."""
    epsilon_end: Scalar = traced(0.05, low=0, high=1)
    """Probability of a random action in the end."""
    exploration_fraction: Scalar = traced(0.5, low=0, high=1)
    """Part of the training over which epsilon falls."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS, tabular=True)
        checks.at_least_one_update(self, self.env_steps(1))

    @property
    def num_updates(self) -> int:
        """Iterations of `update` in one training."""
        return self.total_timesteps // self.num_steps

    def env_steps(self, updates: int) -> int:
        """Env steps taken after this many updates."""
        return updates * self.num_steps


class State(NamedTuple):
    """params: the tables `[1, S, A]`, or two of them. visits: how often each pair was learned from, or None."""

    key: Key[Array, ""]
    params: Array
    visits: Array | None
    env_state: envs.EnvState
    updates: Array


def init(key: Key[Array, ""], config: Config) -> State:
    """Tables of the initial value, and a fresh episode."""
    key, env_key = jax.random.split(key)
    obs_space, action_space = checks.spaces(config)
    assert isinstance(obs_space, envs.Discrete)
    shape = (1 + config.double_q, obs_space.n, action_space.n)
    env_state = envs.reset(env_key[None], checks.env(config), checks.env_params(config))
    params = jnp.full(shape, config.initial_value, jnp.float32)
    return State(key, params, jnp.zeros(shape) if config.count_visits else None, env_state, jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Callable[[Key[Array, ""], Array], Array]:
    """(key, obs) -> action: greedy in the sum of the tables, or epsilon-greedy with epsilon_end."""

    def act(key: Key[Array, ""], obs: Array) -> Array:
        q = state.params[:, obs].sum(0)
        return epsilon_greedy(key, q[None], 0.0 if deterministic else config.epsilon_end)[0]

    return act


def td_target(params: Array, table: Array, transition: Transition, gamma: Scalar) -> Array:
    """y: r + gamma max_a' Q(s', a'); with two tables the one that learns chooses a', the other values it."""
    next_q = params[:, transition.final_obs]
    next_value = next_q[0].max() if len(next_q) == 1 else next_q[1 - table, next_q[table].argmax()]
    return transition.reward + gamma * jnp.where(transition.terminated, 0.0, next_value)


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """T steps in the env, each followed by one change of Q."""
    key, act_key, coin_key = jax.random.split(state.key, 3)
    progress = state.updates / config.num_updates
    fraction = progress / jnp.maximum(config.exploration_fraction, 1e-8)
    epsilon = optimize.linear_schedule(config.epsilon_start, config.epsilon_end, fraction)
    learning_rate = config.learning_rate * (1 - progress if config.anneal_learning_rate else 1.0)

    def act(tables: tuple[Array, Array | None], key: Key[Array, ""], obs: Array) -> Array:
        return epsilon_greedy(key, tables[0][:, obs].sum(0), epsilon)

    def learn(
        tables: tuple[Array, Array | None], transition: Transition, next_obs: Array, table: Array
    ) -> tuple[tuple[Array, Array | None], Array]:
        params, visits = tables
        transition = jax.tree.map(lambda x: x[0], transition)
        pair = (table, transition.obs, transition.action)
        step_size, visits = optimize.visit_step_size(learning_rate, visits, pair, config.visit_power)
        td_error = td_target(params, table, transition, config.gamma) - params[pair]
        return (params.at[pair].add(step_size * td_error), visits), jnp.abs(td_error)

    # Which of the tables learns from each step; with one table, always that one.
    table = jnp.zeros(config.num_steps, jnp.int32)
    if config.double_q:
        table = jax.random.bernoulli(coin_key, shape=table.shape).astype(jnp.int32)
    env_state, (params, visits), td_error, episodes = online(
        act_key,
        checks.env(config),
        checks.env_params(config),
        state.env_state,
        (state.params, state.visits),
        act,
        learn,
        config.num_steps,
        table,
    )
    state = State(key, params, visits, env_state, state.updates + 1)
    return state, {"td_error": td_error.mean(), "epsilon": epsilon} | episodes.metrics()


@jax.jit
def train(key: Key[Array, ""], config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
