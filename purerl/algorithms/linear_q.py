r"""Linear Q-learning (Sutton and Barto 2018, sections 9.5, 10.1 and 11.1, doi:10.5555/3312046): values of features.

The problem left by tables: they need a number for each state, and learning one says nothing of its neighbours. Where an
observation is a vector, Q becomes a function of its features phi(s), with a weight vector and a bias for each action:

    Q(s, a; w, b) = w_a . phi(s) + b_a

One step of gradient descent on [y - Q(s, a; w, b)]^2 / 2, for the target y as if it were a constant, is

    y    = r + gamma max_a' Q(s', a'; w, b)
    w_a <- w_a + alpha [ y - Q(s, a) ] grad_w_a Q,    grad_w_a Q = phi(s)
    b_a <- b_a + alpha [ y - Q(s, a) ] grad_b_a Q,    grad_b_a Q = 1

a semi-gradient, since y moves with w too (eq. 10.1, 11.5). With one-hot features and no bias it is tabular Q-learning.
With any others nothing promises that it converges: learning off the policy, from itself, by a function approximator may
diverge (section 11.3), and the answers to that are the next step, deep Q-learning.

Features of an observation x, scaled to [0, 1] in each of D dimensions:

    raw       the numbers of the observation as they are, not scaled
    one_hot   one feature for each numbered state
    fourier   cos(pi c . x) for all c in {0 .. order}^D (eq. 9.18); weights of c learn with alpha / |c|, c = 0 with
              alpha (Konidaris et al. 2011, doi:10.1609/aaai.v25i1.7903)
    tile      num_tilings grids of num_tiles^D tiles, each shifted a little further, and a 1 for each tile that x is in
              (section 9.5.4); since num_tilings features change at once, weights learn with alpha / num_tilings

Actions are epsilon-greedy in Q; epsilon falls linearly over the first part of the training. A time limit bootstraps
from the observation it interrupts: only `terminated` means that nothing follows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from purerl.core import checks, envs, optimize
from purerl.core.distributions import epsilon_greedy
from purerl.core.replay import Transition
from purerl.core.rollout import online
from purerl.core.types import Array, EnvLike, Key, Metrics, Result, Scalar, static, traced

ACTIONS = (envs.Discrete,)
MAX_FEATURES = 1_000_000


@struct.dataclass
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
            self._check_size()
        checks.at_least_one_update(self, self.env_steps(1))

    def _check_size(self) -> None:
        """Raises ValueError where tilings would coincide, or features be too many to step through."""
        if self.num_tilings & (self.num_tilings - 1):
            raise ValueError(f"num_tilings must be a power of two, so that no two coincide, but is {self.num_tilings}.")
        num_dims, tile = checks.observed_size(self), self.features == "tile"
        num = self.num_tilings * (self.num_tiles + 1) ** num_dims if tile else (self.fourier_order + 1) ** num_dims
        if num > MAX_FEATURES:
            fewer = "num_tiles or num_tilings" if tile else "fourier_order"
            raise ValueError(
                f"{num_dims} observed numbers make {num:.3g} {self.features} features, more than {MAX_FEATURES:,}: "
                f"lower {fewer}, or use raw features, or dqn."
            )

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

    key: Key[Array, ""]
    params: Params
    env_state: envs.EnvState
    updates: Array


def features(obs: Array, config: Config) -> Array:
    """phi(s) `[F]` of one observation."""
    if config.features == "one_hot":
        obs_space = checks.spaces(config)[0]
        assert isinstance(obs_space, envs.Discrete)
        return jax.nn.one_hot(obs, obs_space.n)
    if config.features == "raw":
        return obs.astype(jnp.float32).reshape(-1)
    low, high = checks.bounded(config, "obs_low", "obs_high")
    x = jnp.clip((obs.reshape(-1) - low) / (high - low), 0.0, 1.0)
    if config.features == "fourier":
        return jnp.cos(jnp.pi * (frequencies(x.size, config) * x[None]).sum(-1))
    return tiles(x, config)


def frequencies(num_dims: int, config: Config) -> np.ndarray:
    """All vectors c of the Fourier basis, `[(order + 1)^D, D]`, c = 0 first."""
    return np.indices([config.fourier_order + 1] * num_dims).reshape(num_dims, -1).T


def tiles(x: Array, config: Config) -> Array:
    """A 1 for the tile of each grid that x in [0, 1]^D lies in, `[num_tilings * (num_tiles + 1)^D]`.

    Grid i is shifted by i (1, 3, 5, ..) / num_tilings tiles, modulo one tile, so each has a tile more than fits.
    """
    grid, dim, side = np.arange(config.num_tilings)[:, None], np.arange(x.size)[None], config.num_tiles + 1
    shift = grid * (2 * dim + 1) % config.num_tilings / config.num_tilings
    place = jnp.floor(x[None] * config.num_tiles + shift).astype(jnp.int32)
    return jax.nn.one_hot((place * side**dim).sum(-1), side**x.size).reshape(-1)


def step_sizes(num_dims: int, config: Config) -> np.ndarray:
    """What each feature's alpha is multiplied by, `[1, F]` or one number for all."""
    if config.features == "fourier":
        return 1 / np.maximum(np.linalg.norm(frequencies(num_dims, config), axis=-1), 1.0)[None]
    return np.asarray(1 / config.num_tilings if config.features == "tile" else 1.0)


def q_values(params: Params, phi: Array) -> Array:
    """Q(s, .) `[A]` of the features `[F]`."""
    q = params.weights @ phi
    return q if params.bias is None else q + params.bias


def gradient(phi: Array, action: Array, params: Params) -> Params:
    """Of Q(s, a) by all weights and biases: phi(s) and 1 in row a, 0 elsewhere."""
    row = (jnp.arange(params.weights.shape[0]) == action).astype(jnp.float32)
    return Params(row[:, None] * phi[None], None if params.bias is None else row)


def init(key: Key[Array, ""], config: Config) -> State:
    """Weights of 0, and a fresh episode."""
    key, env_key = jax.random.split(key)
    env_state = envs.reset(env_key[None], checks.env(config), checks.env_params(config))
    num_features = jax.eval_shape(lambda obs: features(obs, config), env_state.obs[0]).size
    num_actions = checks.spaces(config)[1].n
    params = Params(jnp.zeros((num_actions, num_features)), jnp.zeros(num_actions) if config.bias else None)
    return State(key, params, env_state, jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Callable[[Key[Array, ""], Array], Array]:
    """(key, obs of one env) -> action: greedy, or epsilon-greedy with epsilon_end."""

    def act(key: Key[Array, ""], obs: Array) -> Array:
        q = q_values(state.params, features(obs, config))
        return epsilon_greedy(key, q[None], 0.0 if deterministic else config.epsilon_end)[0]

    return act


def td_target(params: Params, transition: Transition, config: Config) -> Array:
    """y: r + gamma max_a' Q(s', a')."""
    next_value = q_values(params, features(transition.final_obs, config)).max()
    return transition.reward + config.gamma * jnp.where(transition.terminated, 0.0, next_value)


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """T steps in the env, each followed by one change of the weights."""
    # The keys are split as tabular Q-learning does, so that one-hot features repeat its every step.
    key, act_key, _ = jax.random.split(state.key, 3)
    progress = state.updates / config.num_updates
    fraction = progress / jnp.maximum(config.exploration_fraction, 1e-8)
    epsilon = optimize.linear_schedule(config.epsilon_start, config.epsilon_end, fraction)
    learning_rate = config.learning_rate * (1 - progress if config.anneal_learning_rate else 1.0)

    def act(params: Params, key: Key[Array, ""], obs: Array) -> Array:
        return epsilon_greedy(key, q_values(params, features(obs[0], config))[None], epsilon)

    def learn(params: Params, transition: Transition, next_obs: Array, _: Any) -> tuple[Params, Array]:
        transition = jax.tree.map(lambda x: x[0], transition)
        phi, action = features(transition.obs, config), transition.action
        td_error = td_target(params, transition, config) - q_values(params, phi)[action]
        # Error times gradient first: with one-hot features that is the error itself, so it rounds as a table's step.
        steps = jax.tree.map(lambda grad: td_error * grad, gradient(phi, action, params))
        weights = params.weights + learning_rate * step_sizes(transition.obs.size, config) * steps.weights
        bias = None if params.bias is None else params.bias + learning_rate * steps.bias
        return Params(weights, bias), jnp.abs(td_error)

    env_state, params, td_error, episodes = online(
        act_key,
        checks.env(config),
        checks.env_params(config),
        state.env_state,
        state.params,
        act,
        learn,
        config.num_steps,
    )
    state = State(key, params, env_state, state.updates + 1)
    return state, {"td_error": td_error.mean(), "epsilon": epsilon} | episodes.metrics()


@jax.jit
def train(key: Key[Array, ""], config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
