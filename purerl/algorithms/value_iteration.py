r"""Value iteration (Bellman 1957; Sutton and Barto 2018, section 4.4, doi:10.5555/3312046), and policy iteration.

The problem: what is the best an agent can get from each state, where the model T(s'|s, a), R(s, a, s') is known? The
optimal value is the fixed point of the Bellman optimality equation (eq. 4.1), so value iteration makes an assignment of
it and sweeps over all states until nothing moves (eq. 4.10):

    V(s) <- max_a sum_s' T(s'|s, a) [ R(s, a, s') + gamma V(s') ]                                               -> sweep

Each sweep brings V closer to V* by at least the factor gamma in the largest error. Once a sweep moves no state by more
than the tolerance d, V is within d gamma / (1 - gamma) of V*, and the greedy policy is read off the same sums:

    pi(s) = argmax_a sum_s' T(s'|s, a) [ R(s, a, s') + gamma V(s') ]                                   -> greedy_actions

Policy iteration (section 4.3) evaluates the present greedy policy to the end before it improves it: each update costs
many sweeps, but few are needed. Evaluation sweeps with the policy's own action a = pi(s) in place of the maximum
(eq. 4.5):

    V(s) <- sum_s' T(s'|s, a) [ R(s, a, s') + gamma V(s') ]                                           -> evaluate_greedy

Departures from the book:
    all states are swept at once from the old V, not in place (sweep)
    policy evaluation stops at the tolerance, or after max_sweeps sweeps (evaluate_greedy)
    of equally good actions one that leads to an end is taken (greedy_actions)
At gamma = 1 a step on the spot is worth as much as the way out, but whoever always takes it gets nothing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl import envs
from purerl.core import checks
from purerl.core.distributions import at_action
from purerl.core.program import jitted
from purerl.core.types import (
    Array,
    EnvLike,
    Metrics,
    Policy,
    PRNGKey,
    Result,
    Scalar,
    config_class,
    memoryless,
    static,
    traced,
)
from purerl.envs.mdp.model import approach, expected_reward, expected_value

ACTIONS = (envs.Discrete,)

_ROUNDING = 1e-6  # of a value, some ten times what float32 rounds away


@config_class
class Config:
    env: EnvLike = static("mdp/frozen_lake_8x8_slippery")
    """Environment: a name that begins with mdp/, or an `mdp.Tabular`."""
    env_params: Any = None
    """The `MDP` to solve; None means the env's own."""
    max_sweeps: int = static(2000, low=1)
    """Sweeps after which it stops in any case."""
    policy_iteration: bool = static(False)
    """Evaluate each greedy policy to the end before improving it."""
    tolerance: Scalar = traced(1e-7, low=0)
    """Largest change of a value at which it stops."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.solvable(self)

    @property
    def num_updates(self) -> int:
        """Most iterations of `update` in one training."""
        return self.max_sweeps

    def env_steps(self, updates: int) -> int:
        """None: it plans with the model and never acts."""
        return 0


class State(NamedTuple):
    """params: V(s) `[S]`. residual: the largest change in the last sweep. sweeps: how many were made."""

    key: PRNGKey
    params: Array
    residual: Array
    sweeps: Array
    updates: Array


def init(key: PRNGKey, config: Config) -> State:
    """V = 0 everywhere; nothing is random."""
    num_states = envs.bind(config).params.num_states
    return State(key, jnp.zeros(num_states), jnp.float32(jnp.inf), jnp.int32(0), jnp.int32(0))


def q_values(value: Array, config: Config) -> Array:
    """Q(s, a) = r(s, a) + gamma sum_s' T(s'|s, a) V(s') `[S, A]`."""
    model = envs.bind(config).params
    q = expected_reward(model) + config.gamma * expected_value(model, value)
    return jnp.where(model.terminal[:, None], 0.0, q)


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """Greedy in Q(s, .), whether deterministic or not."""
    actions = greedy_actions(state.params, config)

    def act(key: PRNGKey, obs: Array) -> Array:
        return actions[obs]

    return memoryless(act, envs.bind(config).to_units)


def greedy_actions(value: Array, config: Config) -> Array:
    """pi(s) `[S]`: argmax_a Q(s, a); of actions equal but for rounding, the one that best approaches an end."""
    q = q_values(value, config)
    best = q.max(-1, keepdims=True)
    equal = q >= best - _ROUNDING * jnp.abs(best)
    return approach(envs.bind(config).params, equal).argmax(-1)


def sweep(value: Array, config: Config) -> Array:
    """One sweep of value iteration, `[S]`: V(s) <- max_a Q(s, a)."""
    return q_values(value, config).max(-1)


def evaluate_greedy(value: Array, config: Config) -> tuple[Array, Array]:
    """The value `[S]` of the policy that is greedy in `value`, and how many sweeps it took."""
    actions = greedy_actions(value, config)

    def go_on(carry: tuple[Array, Array, Array]) -> Array:
        _, residual, sweeps = carry
        return (residual > config.tolerance) & (sweeps < config.max_sweeps)

    def evaluate(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        value, _, sweeps = carry
        new = at_action(q_values(value, config), actions)
        return new, jnp.abs(new - value).max(), sweeps + 1

    value, _, sweeps = jax.lax.while_loop(go_on, evaluate, (value, jnp.float32(jnp.inf), jnp.int32(0)))
    return value, sweeps


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One sweep, or one policy's evaluation; once the residual is within the tolerance, nothing moves any more."""
    if config.policy_iteration:
        value, sweeps = evaluate_greedy(state.params, config)
    else:
        value, sweeps = sweep(state.params, config), jnp.int32(1)
    residual = jnp.abs(value - state.params).max()
    moved = state._replace(params=value, residual=residual, sweeps=state.sweeps + sweeps)
    solved = state.residual <= config.tolerance
    state = jax.tree.map(lambda old, new: jnp.where(solved, old, new), state, moved)
    state = state._replace(updates=state.updates + 1)
    start_value = jnp.matmul(envs.bind(config).params.start, state.params, precision="highest")
    return state, {"residual": state.residual, "start_value": start_value, "sweeps": state.sweeps}


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """Updates until the residual is within the tolerance. Pure, so vmap it over MDPs and traced fields.

    The metrics keep their last value from there on, so they are as long as `num_updates` in any case.
    """
    start = init(key, config)
    shapes = jax.eval_shape(update, start, config)[1]
    metrics = {name: jnp.zeros(config.num_updates, x.dtype) for name, x in shapes.items()}

    def go_on(carry: tuple[State, Metrics]) -> Array:
        state, _ = carry
        return (state.residual > config.tolerance) & (state.updates < config.num_updates)

    def step(carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        state, metrics = carry
        new, row = update(state, config)
        ahead = jnp.arange(config.num_updates) >= state.updates
        return new, {name: jnp.where(ahead, row[name], metrics[name]) for name in metrics}

    state, metrics = jax.lax.while_loop(go_on, step, (start, metrics))
    return Result(state._replace(updates=jnp.int32(config.num_updates)), metrics)
