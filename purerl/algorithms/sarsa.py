r"""SARSA (Rummery and Niranjan 1994; Sutton and Barto 2018, section 6.4, doi:10.5555/3312046): on-policy control.

The problem left by Q-learning: its target takes the best next action, so its values ignore that the agent explores, and
while it learns it walks along the edge of a cliff that exploring pushes it off. SARSA aims at the value of what it will
really do: its target takes the next action a' that the same epsilon-greedy policy has drawn and that is done next,

    Q(s, a) <- Q(s, a) + alpha [ r + gamma Q(s', a') - Q(s, a) ]     (eq. 6.7)

hence the name: s, a, r, s', a'. Expected SARSA (eq. 6.9) takes the mean over that policy in place of the draw: the same
aim with less noise.

    Q(s, a) <- Q(s, a) + alpha [ r + gamma sum_a' pi(a'|s') Q(s', a') - Q(s, a) ]

Epsilon falls linearly over the first part of the training; where it stays above 0, the values are those of the
exploring policy. The step size is constant, or falls linearly to 0, or with the visits n(s, a) of the pair as alpha
n^-power. A time limit bootstraps from the state it interrupts, with an action drawn there: only `terminated` means that
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

    key: Key[Array, ""]
    params: Array
    visits: Array | None
    env_state: envs.EnvState
    action: Array
    updates: Array


def init(key: Key[Array, ""], config: Config) -> State:
    """A table of the initial value, a fresh episode and its first action."""
    key, env_key, action_key = jax.random.split(key, 3)
    obs_space, action_space = checks.spaces(config)
    assert isinstance(obs_space, envs.Discrete)
    params = jnp.full((obs_space.n, action_space.n), config.initial_value, jnp.float32)
    visits = jnp.zeros(params.shape) if config.count_visits else None
    env_state = envs.reset(env_key[None], checks.env(config), checks.env_params(config))
    action = epsilon_greedy(action_key, params[env_state.obs], config.epsilon_start)
    return State(key, params, visits, env_state, action, jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Callable[[Key[Array, ""], Array], Array]:
    """(key, obs) -> action: greedy in Q, or epsilon-greedy with epsilon_end."""

    def act(key: Key[Array, ""], obs: Array) -> Array:
        return epsilon_greedy(key, state.params[obs][None], 0.0 if deterministic else config.epsilon_end)[0]

    return act


def td_target(q: Array, next_action: Array, epsilon: Scalar, transition: Transition, config: Config) -> Array:
    """y: r + gamma Q(s', a'), or with the mean over the epsilon-greedy policy; q: Q(s', .) `[A]`."""
    next_value = q[next_action]
    if config.expected:
        next_value = epsilon * q.mean() + (1 - epsilon) * q.max()
    return transition.reward + config.gamma * jnp.where(transition.terminated, 0.0, next_value)


class Learner(NamedTuple):
    """What changes with every step."""

    params: Array
    visits: Array | None
    action: Array


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """T steps in the env, each followed by the draw of the next action and one change of Q."""
    key, step_key, action_key = jax.random.split(state.key, 3)
    progress = state.updates / config.num_updates
    fraction = progress / jnp.maximum(config.exploration_fraction, 1e-8)
    epsilon = optimize.linear_schedule(config.epsilon_start, config.epsilon_end, fraction)
    learning_rate = config.learning_rate * (1 - progress if config.anneal_learning_rate else 1.0)

    def act(learner: Learner, key: Key[Array, ""], obs: Array) -> Array:
        return learner.action

    def learn(learner: Learner, transition: Transition, next_obs: Array, key: Key[Array, ""]) -> tuple[Learner, Array]:
        params, visits, _ = learner
        # One key for both draws: the same action, unless a new episode begins somewhere else.
        drawn = epsilon_greedy(key, params[transition.final_obs], epsilon)[0]
        next_action = epsilon_greedy(key, params[next_obs], epsilon)
        transition = jax.tree.map(lambda x: x[0], transition)
        pair = transition.obs, transition.action
        step_size, visits = optimize.visit_step_size(learning_rate, visits, pair, config.visit_power)
        td_error = td_target(params[transition.final_obs], drawn, epsilon, transition, config) - params[pair]
        return Learner(params.at[pair].add(step_size * td_error), visits, next_action), jnp.abs(td_error)

    env_state, learner, td_error, episodes = online(
        step_key,
        checks.env(config),
        checks.env_params(config),
        state.env_state,
        Learner(state.params, state.visits, state.action),
        act,
        learn,
        config.num_steps,
        jax.random.split(action_key, config.num_steps),
    )
    state = State(key, learner.params, learner.visits, env_state, learner.action, state.updates + 1)
    return state, {"td_error": td_error.mean(), "epsilon": epsilon} | episodes.metrics()


@jax.jit
def train(key: Key[Array, ""], config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
