r"""Dyna-Q (Sutton 1990, doi:10.1016/B978-1-55860-141-3.50030-4), Dyna-Q+ and prioritized sweeping: a model in tables.

The problem left by Q-learning: it learns from a transition once, when it happens, and so needs very many of them. But a
transition also tells what the world is like. Dyna-Q keeps a model, for each pair of state and action what followed it
last, and between two real steps replays planning_steps pairs from the model as if they happened now. Acting, learning
the model and planning are one loop, and all learning is the same rule (Sutton and Barto 2018, section 8.2):

    Q(s, a) <- Q(s, a) + alpha [ r + gamma max_a' Q(s', a') - Q(s, a) ],     of what just happened         -> td_target
    Model(s, a) <- r, s', terminated                                                                        -> remember
    planning_steps times: the same for a pair seen before, with r, s' = Model(s, a)                             -> plan

Without planning, and without random_ties, it is plain Q-learning bit for bit.

A model may be wrong, for example where the world has changed, and a greedy agent that trusts it never looks. Dyna-Q+
(section 8.3) plans with a bonus for pairs that were not tried for tau steps, and plans with untried actions as well,
which stay where they are and pay nothing until something else is known (planning = "bonus"):

    r + kappa sqrt(tau)  in place of r, in planning alone                                                       -> plan

Most replayed pairs teach nothing, since nothing has changed after them. Prioritized sweeping (Moore and Atkeson 1993,
doi:10.1007/BF00993104; section 8.4) works backwards from what surprised: the pair just seen waits with a priority, the
most urgent pair is learned from, and all pairs that the model says lead to its state wait in turn. No pair is learned
from by itself as it happens (planning = "prioritized"):

    priority(s, a) = | r + gamma max_a' Q(s', a') - Q(s, a) |,  waiting where above threshold                   -> wait
    planning_steps times: learn from the pair of the highest priority, then let its predecessors wait          -> sweep

Departures from the book:
    planning draws among all pairs seen, in place of first a state and then an action (plan)
    a time limit bootstraps from the state it interrupts: only `terminated` means that nothing follows (td_target)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from purerl import envs
from purerl.core import checks, schedules
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
    env: EnvLike = static("mdp/dyna_maze")
    """Environment: a name, or an env object, whose observations are numbers of states."""
    env_params: Any = None
    """Transitions and rewards of the env; None means its own."""
    total_timesteps: int = static(10_000, low=1)
    """Env steps of the whole training."""
    num_steps: int = static(100, low=1)
    """Env steps, each followed by planning, of one update (T), over which metrics are averaged."""
    planning_steps: int = static(5, low=0)
    """Changes of Q by the model after each env step."""
    planning: str = static("random", choices=("random", "bonus", "prioritized"))
    """Plan with any pairs seen (Dyna-Q); any of states seen, with a bonus (Dyna-Q+); or those that surprised most."""
    random_ties: bool = static(True)
    """Draw among equally good actions; otherwise take the first, as Q-learning does."""
    anneal_learning_rate: bool = static(False)
    """Let the step size fall linearly to 0."""
    learning_rate: Scalar = traced(0.1, low=0)
    """Step size alpha."""
    gamma: Scalar = traced(0.95, low=0, high=1)
    """Discount factor."""
    kappa: Scalar = traced(1e-3, low=0)
    """Bonus of a pair for the square root of the env steps since it was tried last; with planning = "bonus"."""
    threshold: Scalar = traced(1e-4, low=0)
    """Least surprise at which a pair waits to be learned from; with planning = "prioritized"."""
    initial_value: Scalar = traced(0.0)
    """Q before anything was seen; optimistic values make it explore."""
    epsilon_start: Scalar = traced(0.1, low=0, high=1)
    """Probability of a random action at first."""
    epsilon_end: Scalar = traced(0.1, low=0, high=1)
    """Probability of a random action in the end."""
    exploration_fraction: Scalar = traced(0.5, low=0, high=1)
    """Part of the training over which epsilon falls."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS, tabular=True)
        checks.at_least_one_update(self, self.env_steps(1))
        if self.planning == "prioritized" and not self.planning_steps:
            raise ValueError(
                "planning = 'prioritized' changes Q in planning alone, but planning_steps is 0: raise it to at least 1."
            )

    @property
    def num_updates(self) -> int:
        """Iterations of `update` in one training."""
        return self.total_timesteps // self.num_steps

    def env_steps(self, updates: int) -> int:
        """Env steps taken after this many updates."""
        return updates * self.num_steps


class Model(NamedTuple):
    """What followed each pair of state and action when it was tried last, and when that was; `[S, A]`.

    Of pairs that were never seen: they stay where they are and pay nothing.
    """

    next_state: Int[Array, "S A"]
    reward: Float[Array, "S A"]
    terminated: Bool[Array, "S A"]
    seen: Bool[Array, "S A"]
    time: Int[Array, "S A"]


class State(NamedTuple):
    """params: the table Q. waiting: priorities of the pairs that wait, 0 of others; None where none is prioritized."""

    key: PRNGKey
    params: Float[Array, "S A"]
    model: Model
    waiting: Float[Array, "S A"] | None
    env_state: envs.EnvState
    updates: Array


def init(key: PRNGKey, config: Config) -> State:
    """A table of the initial value, a model of nothing, and a fresh episode."""
    env = envs.bind(config)
    key, env_key = jax.random.split(key)
    shape = (env.num_states, env.num_actions)
    params = jnp.full(shape, config.initial_value, jnp.float32)
    stay = jnp.broadcast_to(jnp.arange(shape[0])[:, None], shape)
    nothing, never = jnp.zeros(shape), jnp.zeros(shape, bool)
    model = Model(stay, nothing, never, never, jnp.zeros(shape, jnp.int32))
    return State(
        key, params, model, nothing if config.planning == "prioritized" else None, env.reset(env_key), jnp.int32(0)
    )


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """Greedy in Q, the first of equally good actions; or epsilon-greedy with epsilon_end."""

    def act(key: PRNGKey, obs: Array) -> Array:
        if deterministic:
            return state.params[obs].argmax(-1)
        return epsilon_greedy(key, state.params[obs], config.epsilon_end, random_ties=config.random_ties)

    return memoryless(act, envs.bind(config).to_units)


def td_target(q: Array, reward: Array, next_state: Array, terminated: Array, gamma: Scalar) -> Array:
    """y: r + gamma max_a' Q(s', a'), `[...]`."""
    return reward + gamma * jnp.where(terminated, 0.0, q[next_state].max(-1))


def remember(model: Model, t: Transition, time: Array) -> Model:
    """The model with what just happened in place of what it knew of that pair."""
    news = (t.final_obs, t.reward, t.terminated, True, time)
    return Model(*(x.at[t.obs, t.action].set(new) for x, new in zip(model, news, strict=True)))


def plan(key: PRNGKey, q: Array, model: Model, time: Array, learning_rate: Scalar, config: Config) -> Array:
    """Q after planning_steps changes by the model, of pairs drawn from those seen, or from all pairs of states seen."""
    allowed = model.seen
    if config.planning == "bonus":
        allowed = jnp.broadcast_to(allowed.any(1, keepdims=True), allowed.shape)
    number = jnp.cumsum(allowed)  # of each allowed pair, counting from 1
    drawn = jax.random.bits(key, (config.planning_steps,)) % number[-1].astype(jnp.uint32)
    pairs = jnp.searchsorted(number, drawn.astype(number.dtype) + 1)
    reward = model.reward
    if config.planning == "bonus":
        reward = reward + config.kappa * jnp.sqrt((time - model.time).astype(jnp.float32))

    def step(q: Array, pair: Array) -> tuple[Array, None]:
        s, a = jnp.divmod(pair, q.shape[1])
        target = td_target(q, reward[s, a], model.next_state[s, a], model.terminated[s, a], config.gamma)
        return q.at[s, a].add(learning_rate * (target - q[s, a])), None

    q, _ = jax.lax.scan(step, q, pairs)
    return q


def wait(waiting: Array, q: Array, model: Model, among: Bool[Array, "S A"], config: Config) -> Array:
    """Priorities with those of the pairs `among`, where they surprise more than the threshold and than before."""
    surprise = jnp.abs(td_target(q, model.reward, model.next_state, model.terminated, config.gamma) - q)
    urgent = among & (surprise > config.threshold)
    return jnp.where(urgent, jnp.maximum(waiting, surprise), waiting)


def sweep(
    q: Array, waiting: Array, model: Model, latest: Bool[Array, "S A"], learning_rate: Scalar, config: Config
) -> tuple[Array, Array]:
    """Q and priorities after up to planning_steps changes, most urgent first. latest: the pair just seen."""

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        q, waiting = carry
        s, a = jnp.divmod(waiting.argmax(), q.shape[1])
        target = td_target(q, model.reward[s, a], model.next_state[s, a], model.terminated[s, a], config.gamma)
        change = jnp.where(waiting[s, a] > 0, learning_rate * (target - q[s, a]), 0.0)  # 0 where no pair waits
        q, waiting = q.at[s, a].add(change), waiting.at[s, a].set(0.0)
        predecessors = model.seen & ~model.terminated & (model.next_state == s)
        return (q, wait(waiting, q, model, predecessors, config)), None

    waiting = wait(waiting, q, model, latest, config)
    (q, waiting), _ = jax.lax.scan(step, (q, waiting), length=config.planning_steps)
    return q, waiting


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """T steps in the env, each followed by one change of Q, one of the model, and planning."""
    env = envs.bind(config)
    key, step_key, plan_key = jax.random.split(state.key, 3)
    progress = state.updates / config.num_updates
    epsilon, learning_rate = schedules.epsilon(progress, config), schedules.learning_rate(progress, config)

    def step(state: State, inputs: tuple[envs.Tick, PRNGKey, Array]) -> tuple[State, Any]:
        (tick, plan_key, time), q = inputs, state.params
        action = epsilon_greedy(tick.act_key, q[state.env_state.obs], epsilon, random_ties=config.random_ties)
        env_state, t, episodes = env.step(tick, state.env_state, action)
        pair, waiting = (t.obs, t.action), state.waiting
        td_error = td_target(q, t.reward, t.final_obs, t.terminated, config.gamma) - q[pair]
        model = remember(state.model, t, time)
        if waiting is not None:
            latest = jnp.zeros(q.shape, bool).at[pair].set(True)
            q, waiting = sweep(q, waiting, model, latest, learning_rate, config)
        else:
            q = q.at[pair].add(learning_rate * td_error)
            q = plan(plan_key, q, model, time, learning_rate, config) if config.planning_steps else q
        state = state._replace(params=q, model=model, waiting=waiting, env_state=env_state)
        return state, (jnp.abs(td_error), episodes)

    times = state.updates * config.num_steps + jnp.arange(config.num_steps)
    inputs = (env.ticks(step_key, config.num_steps), jax.random.split(plan_key, config.num_steps), times)
    state, (td_error, episodes) = jax.lax.scan(step, state, inputs)
    state = state._replace(key=key, updates=state.updates + 1)
    metrics = {"td_error": td_error.mean(), "epsilon": epsilon, "pairs_seen": state.model.seen.mean()}
    return state, metrics | episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
