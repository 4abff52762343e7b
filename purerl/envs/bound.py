"""An environment bound to its params and to N: what the algorithms act in.

N environments step side by side; each finished episode is followed by a new one from a fresh start state, and returns
and lengths are kept account of. A leaf of the params with a leading axis `[N]` gives each env its own value.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from purerl.core.mesh import over_envs
from purerl.core.types import Episodes, PRNGKey, Transition
from purerl.envs.params import complete, own_values
from purerl.envs.protocol import Env, metrics
from purerl.envs.spaces import Box, Discrete, Space
from purerl.envs.suites import make

_LARGE_PARAMS_BYTES = 1 << 16  # a table of a thousand states has some 50 kB, a Brax System a few
_SMALL_STATE_BYTES = 1024  # CartPole's state has 20 bytes, Breakout-MinAtar's 430, a Brax ant's 2,300


class EnvState(NamedTuple):
    """N environments side by side.

    state: the environments' own states. obs: `[N, ...]`, what to act on next.
    episode_return, episode_length: of the episode in progress, `[N]`.
    """

    state: PyTree
    obs: Array
    episode_return: Float[Array, " N"]
    episode_length: Int[Array, " N"]


class Tick(NamedTuple):
    """The randomness of one step, drawn ahead. act_key: to act with. start: fresh start states or their keys, `[N]`."""

    act_key: PRNGKey
    step_keys: Any
    start: Any


def bind(config: Any) -> "BoundEnv":
    """The environment of a Config, with its params and its num_envs (1 where the Config has no such field).

    Raises ValueError where a leaf of env_params has neither the shape of the env's default nor one value for each env.
    The Config itself cannot say so, since Configs stacked for vmap have leading axes of their own.
    """
    env, num_envs = make(config.env), getattr(config, "num_envs", 1)
    params = complete(env, config.env_params, config.env)
    own_values(env, params, num_envs)
    return BoundEnv(env, params, num_envs)


def with_tables(config: Any) -> Any:
    """The same Config, in which an env's large params stand whole as env_params, changed where it changes some.

    There they are arguments of a compiled program; as constants in it they make it slow to compile.
    """
    env = make(config.env)
    large = sum(jnp.asarray(x).nbytes for x in jax.tree.leaves(env.default_params)) > _LARGE_PARAMS_BYTES
    return config.replace(env_params=complete(env, config.env_params, config.env)) if large else config


@dataclasses.dataclass(frozen=True, eq=False)
class BoundEnv:
    """`env` with `params`, num_envs times. No pytree: it stays outside of what a scan carries.

    A continuous action is `[N, D]` in [-1, 1] here; each env gives it its own shape and units. A discrete one is `[N]`.
    """

    env: Env
    params: Any
    num_envs: int

    @property
    def obs_space(self) -> Space:
        """Space of one observation; where each env has its own params, that of the first env."""
        return self.env.observation_space(self.first_params)

    @property
    def action_space(self) -> Space:
        """Space of one action in the env's units; where each env has its own params, that of the first env."""
        return self.env.action_space(self.first_params)

    @property
    def continuous(self) -> bool:
        """Whether actions are arrays of numbers."""
        return isinstance(self.action_space, Box)

    @property
    def num_states(self) -> int:
        """How many numbers an observation may be, where it is one."""
        space = self.obs_space
        assert isinstance(space, Discrete), space
        return space.n

    @property
    def num_actions(self) -> int:
        """A, where actions are discrete."""
        space = self.action_space
        assert isinstance(space, Discrete), space
        return space.n

    @property
    def action_size(self) -> int:
        """D, where actions are continuous."""
        space = self.action_space
        assert isinstance(space, Box), space
        return space.size

    @property
    def transition(self) -> Transition:
        """Shapes and dtypes of one step of one env."""
        shaped: Any = jax.ShapeDtypeStruct
        obs = shaped(self.obs_space.shape, self.obs_space.dtype)
        action = shaped((self.action_size,), "float32") if self.continuous else shaped((), "int32")
        return Transition(obs, action, shaped((), "float32"), shaped((), "bool"), shaped((), "bool"), obs)

    def to_units(self, action: Array) -> Array:
        """Actions `[..., D]` on the scale [-1, 1] in the env's shape and units; discrete ones as they are.

        Raises ValueError for continuous actions where each env has params of its own, since one action does not say
        whose units are meant: bind the params of the env that is acted in.
        """
        if self.continuous and any(jax.tree.leaves(self._own)):
            raise ValueError(
                "Each env has params of its own, so an action has no units until it is said whose: make the policy "
                "with config.replace(env_params=...) of the env that you act in."
            )
        return self.action_space.from_unit(action)

    def copies(self, num: int) -> "BoundEnv":
        """The same env num times; where each has params of its own they take turns."""

        def take(x: Array, own: bool) -> Array:
            return x[jnp.arange(num) % x.shape[0]] if own else x

        return dataclasses.replace(self, params=jax.tree.map(take, self.params, self._own), num_envs=num)

    def sample(self, key: PRNGKey) -> Array:
        """A uniform action for each env, `[N]` or `[N, D]`."""
        return self.action_space.sample(key, self.num_envs)

    def reset(self, key: PRNGKey) -> EnvState:
        """N fresh episodes."""
        return self.fresh(self.start(jax.random.split(key, self.num_envs)))

    def fresh(self, start: tuple[Array, Any]) -> EnvState:
        """N episodes at their start states, as `start` gives them."""
        obs, state = start
        return EnvState(state, obs, jnp.zeros(self.num_envs), jnp.zeros(self.num_envs, jnp.int32))

    def start(self, keys: Any) -> tuple[Array, Any]:
        """A fresh start state of each env, (obs, state); keys: one an env."""
        start = jax.vmap(self.env.reset, (0, self._axes))(keys, self.params)
        # A Python number in it would be of a weak type, which a checkpoint cannot keep: what goes on from one would be
        # another program than what never stopped.
        return over_envs(
            jax.tree.map(
                lambda x: jax.lax.convert_element_type(x, x.dtype) if getattr(x, "weak_type", False) else x, start
            )
        )

    def advance(self, keys: Any, state: Any, action: Array) -> tuple[Array, Any, Array, Array, Array]:
        """What `Env.step` gives of each env, with no reset; keys: one an env, action: on the scale [-1, 1]."""

        def scale_and_step(key: PRNGKey, state: Any, action: Array, params: Any) -> Any:
            return self.env.step(key, state, self.env.action_space(params).from_unit(action), params)

        return jax.vmap(scale_and_step, (0, 0, 0, self._axes))(keys, state, action, self.params)

    def reward(self, obs: Array, action: Array, next_obs: Array) -> Array:
        """What the first env says it pays `[...]`, of observations and of actions `[..., D]` on the scale [-1, 1].

        For envs with the method that `Env` speaks of.
        """
        env: Any = self.env
        pays = lambda *inputs: env.reward(*inputs, self.first_params)  # noqa: E731
        for _ in obs.shape[: obs.ndim - len(self.obs_space.shape)]:
            pays = jax.vmap(pays)
        return jnp.asarray(pays(obs, self.env.action_space(self.first_params).from_unit(action), next_obs), jnp.float32)

    def ticks(self, key: PRNGKey, num_steps: int) -> Tick:
        """The randomness of T = num_steps steps, `[T, ...]`, to scan over.

        All keys at once are one large threefry call in place of several small ones a step. Start states depend on keys
        alone: small ones are drawn for all steps at once, which is faster, and large ones step by step, since T * N of
        them would outweigh the trajectory.
        """
        act_keys, step_keys, start_keys = self._split(key, num_steps)
        return Tick(act_keys, step_keys, jax.vmap(self.start)(start_keys) if self._starts_ahead else start_keys)

    def step(self, tick: Tick, env_state: EnvState, action: Array) -> tuple[EnvState, Transition, Episodes]:
        """One step of each env; a finished episode is followed by a fresh one.

        Returns the next states, the transition `[N, ...]`, whose final_obs is from before any reset, and the account of
        the episodes that ended.
        """
        obs, state, reward, terminated, truncated = self.advance(tick.step_keys, env_state.state, action)
        transition = Transition(env_state.obs, action, reward, terminated, truncated, obs)
        episode_return, episode_length = env_state.episode_return + reward, env_state.episode_length + 1
        ended = transition.done
        return_sum, length_sum = (jnp.where(ended, x, 0).sum() for x in (episode_return, episode_length))
        ongoing = EnvState(state, obs, episode_return, episode_length)
        fresh = self.fresh(tick.start if self._starts_ahead else self.start(tick.start))
        account = Episodes(ended.sum(), return_sum, length_sum, self._end_sums(ended, state))
        return _select(ended, fresh, ongoing), transition, account

    def _end_sums(self, ended: Bool[Array, " N"], state: Any) -> dict[str, Array]:
        if not hasattr(self.env, "metrics"):
            return {}
        tell = jax.vmap(lambda *own: metrics(self.env, *own), (0, self._axes), axis_size=self.num_envs)
        said = tell(state, self.params)
        return {name: jnp.where(ended, x, 0.0).sum() for name, x in said.items()}

    def _split(self, key: PRNGKey, num_steps: int) -> tuple[Any, Any, Any]:
        keys = jax.random.split(key, (num_steps, 1 + 2 * self.num_envs))
        return keys[:, 0], keys[:, 1 : 1 + self.num_envs], keys[:, 1 + self.num_envs :]

    @property
    def _own(self) -> Any:
        """For each leaf of the params, whether it has one value an env."""
        return own_values(self.env, self.params, self.num_envs)

    @property
    def _axes(self) -> Any:
        """vmap axes of the params: 0 for a leaf with one value an env, None for one that all envs share."""
        return jax.tree.map(lambda own: 0 if own else None, self._own)

    @property
    def first_params(self) -> Any:
        """The params of the first env."""
        return jax.tree.map(lambda x, own: x[0] if own else x, self.params, self._own)

    @property
    def _starts_ahead(self) -> bool:
        state = jax.eval_shape(self.env.reset, jax.random.key(0), self.first_params)[1]
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) <= _SMALL_STATE_BYTES


def _select(mask: Bool[Array, " N"], on_true: PyTree, on_false: PyTree) -> PyTree:
    """Per env, the one tree or the other; every leaf is `[N, ...]`."""

    def pick(x: Array, y: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, y)

    return jax.tree.map(pick, on_true, on_false)
