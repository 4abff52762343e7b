r"""Tabular Q-learning (Watkins and Dayan 1992, doi:10.1007/BF00992698): off-policy control without a model.

The problem left by value iteration: it must know T(s'|s, a) and R(s, a, s'). Q-learning replaces the expectation in the
Bellman optimality equation by one sample of it, the transition just seen, and moves a small step towards it:

    Q(s, a) <- Q(s, a) + alpha [ r + gamma max_a' Q(s', a') - Q(s, a) ]   (Sutton and Barto 2018, eq. 6.8)  -> td_target

The target asks for the best next action, whatever is done next, so the values are those of the greedy policy while an
exploring one gathers the experience: off-policy. The maximum over noisy estimates is biased upwards; double Q-learning
(van Hasselt 2010; Sutton and Barto, eq. 6.10) keeps two tables: one chooses the action, and the other values it,

    Q_1(s, a) <- Q_1(s, a) + alpha [ r + gamma Q_2(s', argmax_a' Q_1(s', a')) - Q_1(s, a) ],                -> td_target

or the other way round, as a coin decides.

Actions are epsilon-greedy in Q, or in Q_1 + Q_2; epsilon falls linearly over the first part of the training. The step
size is constant, or falls linearly to 0, or with the visits n(s, a) of the pair as alpha n^-power, which for a power in
(1/2, 1] lets the values converge. A time limit bootstraps from the state it interrupts: only `terminated` means that
nothing follows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl import envs
from purerl.core import checks, optimize, schedules
from purerl.core.distributions import epsilon_greedy
from purerl.core.program import jitted
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
    static,
    traced,
)

ACTIONS = (envs.Discrete,)


@config_class
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

    key: PRNGKey
    params: Array
    visits: Array | None
    env_state: envs.EnvState
    updates: Array


def init(key: PRNGKey, config: Config) -> State:
    """Tables of the initial value, and a fresh episode."""
    env = envs.bind(config)
    key, env_key = jax.random.split(key)
    params = jnp.full((1 + config.double_q, env.num_states, env.num_actions), config.initial_value, jnp.float32)
    visits = jnp.zeros(params.shape) if config.count_visits else None
    return State(key, params, visits, env.reset(env_key), jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """Greedy in the sum of the tables, or epsilon-greedy with epsilon_end."""

    def act(key: PRNGKey, obs: Array) -> Array:
        return epsilon_greedy(key, state.params[:, obs].sum(0), 0.0 if deterministic else config.epsilon_end)

    return memoryless(act, envs.bind(config).to_units)


def td_target(params: Array, table: Array, t: Transition, gamma: Scalar) -> Array:
    """y: r + gamma max_a' Q(s', a'); with two tables the one that learns chooses a', the other values it."""
    chosen = params[table, t.final_obs].argmax(-1)
    other = 1 - table if len(params) == 2 else table
    next_value = params[other, t.final_obs, chosen]
    return t.reward + gamma * jnp.where(t.terminated, 0.0, next_value)


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """T steps in the env, each followed by one change of Q."""
    env = envs.bind(config)
    key, step_key, coin_key = jax.random.split(state.key, 3)
    progress = state.updates / config.num_updates
    epsilon, learning_rate = schedules.epsilon(progress, config), schedules.learning_rate(progress, config)
    # Which of the tables learns from each step; with one table, always that one.
    tables = jnp.zeros(config.num_steps, jnp.int32)
    if config.double_q:
        tables = jax.random.bernoulli(coin_key, shape=tables.shape).astype(jnp.int32)

    def step(state: State, inputs: tuple[envs.Tick, Array]) -> tuple[State, Any]:
        (tick, table), q = inputs, state.params
        action = epsilon_greedy(tick.act_key, q[:, state.env_state.obs].sum(0), epsilon)
        env_state, t, episodes = env.step(tick, state.env_state, action)
        pair = (table, t.obs, t.action)
        td_error = td_target(q, table, t, config.gamma) - q[pair]
        alpha, visits = optimize.visit_step_size(learning_rate, state.visits, pair, config.visit_power)
        state = state._replace(params=q.at[pair].add(alpha * td_error), visits=visits, env_state=env_state)
        return state, (jnp.abs(td_error), episodes)

    inputs = (env.ticks(step_key, config.num_steps), tables)
    state, (td_error, episodes) = jax.lax.scan(step, state, inputs)
    state = state._replace(key=key, updates=state.updates + 1)
    return state, {"td_error": td_error.mean(), "epsilon": epsilon} | episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
