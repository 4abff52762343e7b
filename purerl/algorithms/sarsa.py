r"""SARSA (Rummery and Niranjan 1994; Sutton and Barto 2018, section 6.4, doi:10.5555/3312046): on-policy control.

The problem left by Q-learning: its target takes the best next action, so its values ignore that the agent explores, and
while it learns it walks along the edge of a cliff that exploring pushes it off. SARSA aims at the value of what it will
really do: its target takes the next action a' that the same epsilon-greedy policy has drawn and that is done next,

    Q(s, a) <- Q(s, a) + alpha [ r + gamma Q(s', a') - Q(s, a) ]                          (eq. 6.7)         -> td_target

hence the name: s, a, r, s', a'. Expected SARSA takes the mean over that policy in place of the draw: the same
aim with less noise.

    Q(s, a) <- Q(s, a) + alpha [ r + gamma sum_a' pi(a'|s') Q(s', a') - Q(s, a) ]         (eq. 6.9)         -> td_target

Epsilon falls linearly over the first part of the training; where it stays above 0, the values are those of the
exploring policy. The step size is constant, or falls linearly to 0, or with the visits n(s, a) of the pair as alpha
n^-power.                                                                                                      -> update
A time limit bootstraps from the state it interrupts, with an action drawn there: only `terminated` means that
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
    env: EnvLike = static("mdp/cliff_walking")
    """Environment: a name, or an env object, whose observations are numbers of states."""
    env_params: Any = None
    """Transitions and rewards of the env; None means its own."""
    total_timesteps: int = static(200_000, low=1)
    """Env steps of the whole training."""
    num_steps: int = static(1000, low=1)
    """Env steps, and changes of Q, of one update (T), over which metrics are averaged and epsilon stands still."""
    expected: bool = static(False)
    """Aim at the mean over the policy in place of the action drawn."""
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
    """params: Q(s, a) `[S, A]`. visits: how often each pair was learned from, or None. action: the next one, `[1]`."""

    key: PRNGKey
    params: Array
    visits: Array | None
    env_state: envs.EnvState
    action: Array
    updates: Array


def init(key: PRNGKey, config: Config) -> State:
    """A table of the initial value, a fresh episode and its first action."""
    env = envs.bind(config)
    key, env_key, action_key = jax.random.split(key, 3)
    params = jnp.full((env.num_states, env.num_actions), config.initial_value, jnp.float32)
    visits = jnp.zeros(params.shape) if config.count_visits else None
    env_state = env.reset(env_key)
    action = epsilon_greedy(action_key, params[env_state.obs], config.epsilon_start)
    return State(key, params, visits, env_state, action, jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """Greedy in Q, or epsilon-greedy with epsilon_end."""

    def act(key: PRNGKey, obs: Array) -> Array:
        return epsilon_greedy(key, state.params[obs], 0.0 if deterministic else config.epsilon_end)

    return memoryless(act, envs.bind(config).to_units)


def td_target(q: Array, next_action: Array, epsilon: Scalar, t: Transition, config: Config) -> Array:
    """y: r + gamma Q(s', a'), or with the mean over the epsilon-greedy policy; q: Q `[S, A]`."""
    next_value = q[t.final_obs, next_action]
    if config.expected:
        next_q = q[t.final_obs]
        next_value = epsilon * next_q.mean(-1) + (1 - epsilon) * next_q.max(-1)
    return t.reward + config.gamma * jnp.where(t.terminated, 0.0, next_value)


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """T steps in the env, each followed by the draw of the next action and one change of Q."""
    env = envs.bind(config)
    key, step_key = jax.random.split(state.key)
    progress = state.updates / config.num_updates
    epsilon, learning_rate = schedules.epsilon(progress, config), schedules.learning_rate(progress, config)

    def step(state: State, tick: envs.Tick) -> tuple[State, Any]:  # s, a -> r, s', a'
        env_state, t, episodes = env.step(tick, state.env_state, state.action)
        q, pair = state.params, (t.obs, t.action)
        # One key for both draws: the same action, unless a new episode begins somewhere else.
        drawn, following = (epsilon_greedy(tick.act_key, q[s], epsilon) for s in (t.final_obs, env_state.obs))
        td_error = td_target(q, drawn, epsilon, t, config) - q[pair]
        alpha, visits = optimize.visit_step_size(learning_rate, state.visits, pair, config.visit_power)
        q = q.at[pair].add(alpha * td_error)
        state = state._replace(params=q, visits=visits, env_state=env_state, action=following)
        return state, (jnp.abs(td_error), episodes)

    state, (td_error, episodes) = jax.lax.scan(step, state, env.ticks(step_key, config.num_steps))
    state = state._replace(key=key, updates=state.updates + 1)
    return state, {"td_error": td_error.mean(), "epsilon": epsilon} | episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
