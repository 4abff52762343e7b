r"""Linear Q-learning (Sutton and Barto 2018, sections 9.5, 10.1 and 11.1, doi:10.5555/3312046): values of features.

The problem left by tables: they need a number for each state, and learning one says nothing of its neighbours. Where an
observation is a vector, Q becomes a function of its features phi(s), with a weight vector and a bias for each action:

    Q(s, a; w, b) = w_a . phi(s) + b_a                                                                       -> q_values

One step of gradient descent on [y - Q(s, a; w, b)]^2 / 2, for the target y as if it were a constant, is

    y    = r + gamma max_a' Q(s', a'; w, b)                                                                 -> td_target
    w_a <- w_a + alpha [ y - Q(s, a) ] grad_w_a Q,    grad_w_a Q = phi(s)                               -> semi_gradient
    b_a <- b_a + alpha [ y - Q(s, a) ] grad_b_a Q,    grad_b_a Q = 1                                    -> semi_gradient

a semi-gradient, since y moves with w too (eq. 10.1, 11.5). With one-hot features and no bias it is tabular Q-learning.
With any others nothing promises that it converges: learning off the policy, from itself, by a function approximator may
diverge (section 11.3), and the answers to that are the next step, deep Q-learning.

Features of an observation x, scaled to [0, 1] in each of D dimensions (core/features.py):                   -> features

    raw       the numbers of the observation as they are, not scaled
    one_hot   one feature for each numbered state
    fourier   cos(pi c . x) for all c in {0 .. order}^D (eq. 9.18); weights of c learn with alpha / |c|, c = 0 with
              alpha (Konidaris et al. 2011, doi:10.1609/aaai.v25i1.7903)
    tile      num_tilings grids of num_tiles^D tiles, each shifted a little further, and a 1 for each tile that x is in
              (section 9.5.4); since num_tilings features change at once, weights learn with alpha / num_tilings

Actions are epsilon-greedy in Q; epsilon falls linearly over the first part of the training. A time limit bootstraps
from the observation it interrupts: only `terminated` means that nothing follows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl import envs
from purerl.core import checks, schedules
from purerl.core import features as feature_maps
from purerl.core.distributions import at_action, epsilon_greedy
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
    env: EnvLike = static("MountainCar-v0")
    """Environment: a name, or an env object."""
    env_params: Any = None
    """Physics and limits of the env; None means its defaults."""
    total_timesteps: int = static(500_000, low=1)
    """Env steps of the whole training."""
    num_steps: int = static(1000, low=1)
    """Env steps, and changes of the weights, of one update (T), over which metrics are averaged."""
    features: str = static("tile", choices=("raw", "one_hot", "fourier", "tile"))
    """What Q is linear in."""
    obs_low: tuple[float, ...] = static(())
    """Observation that Fourier and tile features take for 0 in each dimension; () means the env's bounds."""
    obs_high: tuple[float, ...] = static(())
    """Observation that Fourier and tile features take for 1 in each dimension; () means the env's bounds."""
    fourier_order: int = static(3, low=1)
    """Highest frequency of Fourier features in each dimension."""
    num_tilings: int = static(8, low=1)
    """Grids of tile features, a power of two."""
    num_tiles: int = static(8, low=1)
    """Tiles of each grid in each dimension."""
    bias: bool = static(True)
    """Give each action a bias; Fourier and tile features contain a constant, whose step it would double."""
    anneal_learning_rate: bool = static(False)
    """Let the step size fall linearly to 0."""
    learning_rate: Scalar = traced(0.1, low=0)
    """Step size alpha."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    epsilon_start: Scalar = traced(1.0, low=0, high=1)
    """Probability of a random action at first."""
    epsilon_end: Scalar = traced(0.05, low=0, high=1)
    """Probability of a random action in the end."""
    exploration_fraction: Scalar = traced(0.5, low=0, high=1)
    """Part of the training over which epsilon falls."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS, tabular=self.features == "one_hot")
        if self.features != "one_hot":
            checks.observed_size(self)
        if self.features in ("fourier", "tile"):
            checks.bounded(self, "obs_low", "obs_high")
            feature_maps.check_size(self, checks.observed_size(self))
        checks.at_least_one_update(self, self.env_steps(1))

    @property
    def num_updates(self) -> int:
        """Iterations of `update` in one training."""
        return self.total_timesteps // self.num_steps

    def env_steps(self, updates: int) -> int:
        """Env steps taken after this many updates."""
        return updates * self.num_steps


class Params(NamedTuple):
    """weights: `[A, F]` for F features. bias: `[A]`, or None."""

    weights: Array
    bias: Array | None


class State(NamedTuple):
    """Everything a training is made of."""

    key: PRNGKey
    params: Params
    env_state: envs.EnvState
    updates: Array


def features(obs: Array, config: Config) -> Array:
    """phi(s) `[..., F]` of observations `[..., *shape]`."""
    space = envs.bind(config).obs_space
    if isinstance(space, envs.Discrete):
        return feature_maps.one_hot(obs, space.n)
    x = obs.astype(jnp.float32).reshape(*obs.shape[: obs.ndim - len(space.shape)], -1)
    if config.features == "raw":
        return x
    x = feature_maps.to_unit(x, *checks.bounded(config, "obs_low", "obs_high"))
    if config.features == "fourier":
        return feature_maps.fourier(x, config.fourier_order)
    return feature_maps.tiles(x, config.num_tilings, config.num_tiles)


def step_sizes(config: Config) -> np.ndarray:
    """What alpha is multiplied by, `[1, F]` or one number for all features."""
    if config.features == "fourier":
        return feature_maps.fourier_step_sizes(checks.observed_size(config), config.fourier_order)[None]
    return np.asarray(1 / config.num_tilings if config.features == "tile" else 1.0)


def q_values(params: Params, phi: Array) -> Array:
    """Q(s, .) `[..., A]` of features `[..., F]`."""
    q = jnp.einsum("af,...f->...a", params.weights, phi, precision="highest")
    return q if params.bias is None else q + jnp.broadcast_to(params.bias, q.shape)


def semi_gradient(phi: Array, action: Array, td_error: Array, params: Params) -> Params:
    """[ y - Q(s, a) ] times the gradient of Q(s, a), phi(s) and 1 in row a and 0 elsewhere; summed over N envs."""
    row = jax.nn.one_hot(action, params.weights.shape[0]) * td_error[:, None]
    return Params((row[:, :, None] * phi[:, None]).sum(0), None if params.bias is None else row.sum(0))


def init(key: PRNGKey, config: Config) -> State:
    """Weights of 0, and a fresh episode."""
    env = envs.bind(config)
    key, env_key = jax.random.split(key)
    env_state = env.reset(env_key)
    num_features = jax.eval_shape(lambda obs: features(obs, config), env_state.obs).shape[-1]
    bias = jnp.zeros(env.num_actions) if config.bias else None
    return State(key, Params(jnp.zeros((env.num_actions, num_features)), bias), env_state, jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """Greedy, or epsilon-greedy with epsilon_end."""

    def act(key: PRNGKey, obs: Array) -> Array:
        q = q_values(state.params, features(obs, config))
        return epsilon_greedy(key, q, 0.0 if deterministic else config.epsilon_end)

    return memoryless(act, envs.bind(config).to_units)


def td_target(params: Params, t: Transition, config: Config) -> Array:
    """y: r + gamma max_a' Q(s', a')."""
    next_value = q_values(params, features(t.final_obs, config)).max(-1)
    return t.reward + config.gamma * jnp.where(t.terminated, 0.0, next_value)


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """T steps in the env, each followed by one change of the weights."""
    env = envs.bind(config)
    # The keys are split as tabular Q-learning does, so that one-hot features repeat its every step.
    key, step_key, _ = jax.random.split(state.key, 3)
    progress = state.updates / config.num_updates
    epsilon, learning_rate = schedules.epsilon(progress, config), schedules.learning_rate(progress, config)

    def step(state: State, tick: envs.Tick) -> tuple[State, Any]:
        params, phi = state.params, features(state.env_state.obs, config)
        q = q_values(params, phi)
        action = epsilon_greedy(tick.act_key, q, epsilon)
        env_state, t, episodes = env.step(tick, state.env_state, action)
        td_error = td_target(params, t, config) - at_action(q, action)
        gradient = semi_gradient(phi, action, td_error, params)
        scaled = gradient._replace(weights=jnp.asarray(step_sizes(config)) * gradient.weights)
        params = jax.tree.map(lambda x, change: x + learning_rate * change, params, scaled)
        return state._replace(params=params, env_state=env_state), (jnp.abs(td_error), episodes)

    state, (td_error, episodes) = jax.lax.scan(step, state, env.ticks(step_key, config.num_steps))
    state = state._replace(key=key, updates=state.updates + 1)
    return state, {"td_error": td_error.mean(), "epsilon": epsilon} | episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
