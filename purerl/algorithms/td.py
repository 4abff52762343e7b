r"""Temporal-difference prediction (Sutton 1988, doi:10.1007/BF00115009; Sutton and Barto 2018, doi:10.5555/3312046).

The problem left by policy evaluation: it must know the model. What is a fixed policy worth, when all there is are its
own steps through the world? Waiting for the end of each episode and averaging returns would do, but wastes what V
already knows. TD(0) aims at one reward and the value of where it led:

    V(s_t) <- V(s_t) + alpha [ G_t - V(s_t) ],    G_t = r_t + gamma V(s_{t+1})            (eq. 6.2)         -> td_target

More rewards before the bootstrap bring less of V's own error and more noise. An n-step return has n of them (eq. 7.1),

    G_t = r_t + gamma r_{t+1} + ... + gamma^(n-1) r_{t+n-1} + gamma^n V(s_{t+n}),                          -> long_steps

and the lambda-return is the mean of them all, with weights that fall by lambda (eq. 12.18):

    G_t = r_t + gamma [ (1 - lambda) V(s_{t+1}) + lambda G_{t+1} ].                                        -> long_steps

lambda = 0 is TD(0), and lambda = 1 the return of the whole episode. A terminal state is worth 0; a time limit
bootstraps from the state it interrupts.

The policy does not change, so its steps can be taken first and learned from afterwards, in their order: with n-step
returns each V(s_t) moves by the V that all moves before it have left, as if it had waited n steps and no more.
Lambda-returns look ahead to the end, so they use the V at the beginning of the update (the off-line algorithm of
section 12.1).

Departures from the book:
    returns reach no further than the T steps of one update (long_steps)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl import envs
from purerl.core import checks, optimize
from purerl.core.distributions import Categorical
from purerl.core.program import jitted
from purerl.core.returns import lambda_returns, n_step
from purerl.core.rollout import unroll
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
    env: EnvLike = static("mdp/random_walk")
    """Environment: a name, or an env object, whose observations are numbers of states."""
    env_params: Any = None
    """Transitions and rewards of the env; None means its own."""
    target_policy: Any = None
    """The policy to evaluate: probabilities of actions `[S, A]`; None means the uniform one."""
    total_timesteps: int = static(200_000, low=1)
    """Env steps of the whole training."""
    num_steps: int = static(1000, low=1)
    """Env steps, and changes of V, of one update (T), over which metrics are averaged."""
    n_step: int = static(1, low=1)
    """Rewards summed before the bootstrap."""
    lambda_return: bool = static(False)
    """Aim at the lambda-return in place of the n-step return."""
    count_visits: bool = static(False)
    """Let the step size fall with the visits of each state."""
    learning_rate: Scalar = traced(0.1, low=0)
    """Step size alpha."""
    visit_power: Scalar = traced(0.8, low=0)
    """How fast the step size falls with visits."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    td_lambda: Scalar = traced(0.9, low=0, high=1)
    """Weight of longer returns in the lambda-return."""
    initial_value: Scalar = traced(0.0)
    """V before anything was seen."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS, tabular=True)
        checks.probabilities(self, "target_policy")
        checks.at_least_one_update(self, self.env_steps(1))

    @property
    def num_updates(self) -> int:
        """Iterations of `update` in one training."""
        return self.total_timesteps // self.num_steps

    def env_steps(self, updates: int) -> int:
        """Env steps taken after this many updates."""
        return updates * self.num_steps


class State(NamedTuple):
    """params: V(s) `[S]`, in which terminal states keep their first value and count as 0.

    visits: how often each state was learned from, or None.
    """

    key: PRNGKey
    params: Array
    visits: Array | None
    env_state: envs.EnvState
    updates: Array


def init(key: PRNGKey, config: Config) -> State:
    """A table of the initial value, and a fresh episode."""
    env = envs.bind(config)
    key, env_key = jax.random.split(key)
    params = jnp.full(env.num_states, config.initial_value, jnp.float32)
    visits = jnp.zeros(params.shape) if config.count_visits else None
    return State(key, params, visits, env.reset(env_key), jnp.int32(0))


def distribution(obs: Array, config: Config) -> Categorical:
    """pi(.|s) of the policy to evaluate, for observations `[...]`."""
    if config.target_policy is None:
        return Categorical(jnp.zeros((*obs.shape, envs.bind(config).num_actions)))
    return Categorical(jnp.log(jnp.asarray(config.target_policy))[obs])


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """The policy to evaluate, or its likeliest action: nothing here improves it."""

    def act(key: PRNGKey, obs: Array) -> Array:
        pi = distribution(obs, config)
        return pi.mode() if deterministic else pi.sample(key)

    return memoryless(act, envs.bind(config).to_units)


def long_steps(params: Array, steps: Transition, config: Config) -> tuple[Transition, Array]:
    """For each of T steps `[T, 1]` the sum of its rewards, the state to bootstrap from and its value's discount."""
    if config.lambda_return:
        target = lambda_returns(steps, params[steps.final_obs], config.gamma, config.td_lambda)
        return steps._replace(reward=target), jnp.zeros_like(target)
    cut = steps._replace(truncated=steps.truncated.at[-1].set(True))
    ahead = jnp.arange(config.n_step)[:, None] + jnp.arange(config.num_steps)[None]
    return n_step(jax.tree.map(lambda x: x[jnp.minimum(ahead, config.num_steps - 1)], cut), config.gamma)


def td_target(params: Array, t: Transition, discount: Scalar) -> Array:
    """G_t: the rewards in t, and the discounted value of where they led."""
    return t.reward + discount * jnp.where(t.terminated, 0.0, params[t.final_obs])


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """T steps in the env, then one change of V for each, in their order."""
    key, rollout_key = jax.random.split(state.key)

    def act(key: PRNGKey, obs: Array) -> Array:
        return distribution(obs, config).sample(key)

    env_state, steps, episodes = unroll(rollout_key, envs.bind(config), state.env_state, act, config.num_steps)

    def learn(tables: tuple[Array, Array | None], inputs: tuple[Transition, Array]) -> Any:
        (value, visits), (t, discount) = tables, inputs
        td_error = td_target(value, t, discount) - value[t.obs]
        alpha, visits = optimize.visit_step_size(config.learning_rate, visits, t.obs, config.visit_power)
        return (value.at[t.obs].add(alpha * td_error), visits), jnp.abs(td_error)

    tables, td_error = jax.lax.scan(learn, (state.params, state.visits), long_steps(state.params, steps, config))
    state = State(key, *tables, env_state, state.updates + 1)
    return state, {"td_error": td_error.mean()} | episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
