"""One interface to gymnax, Brax and environments of your own.

`make` turns a name or an object into an `Env`: pure functions of a single environment that know nothing of batches
and never reset themselves. `reset` and `step` below run N of them side by side, restart each finished episode from
a fresh start state, and keep the account of returns and lengths.

An environment of your own is any hashable object with these five members (see `Env`):

    class Corridor:
        '''Walk right along n cells; the last one pays 1 and ends the episode.'''
        default_params = {"length": 5}

        def observation_space(self, params):
            return Box(low=0.0, high=jnp.inf, shape=(1,))

        def action_space(self, params):
            return Discrete(2)

        def reset(self, key, params):
            position, time = jnp.int32(0), jnp.int32(0)
            return self.observe(position), (position, time)

        def step(self, key, state, action, params):
            position, time = state
            position = jnp.maximum(position + 2 * action - 1, 0)
            terminated = position >= params["length"]
            truncated = time + 1 >= 20
            reward = jnp.where(terminated, 1.0, 0.0)
            return self.observe(position), (position, time + 1), reward, terminated, truncated

        def observe(self, position):
            return position.astype(jnp.float32)[None]
"""

import contextlib
import copy
import difflib
import functools
import io
import warnings
from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

BRAX_BACKENDS = ("spring", "positional", "generalized", "mjx")
BRAX_EPISODE_LENGTH = 1000

# gymnax returns these grids as floats although every entry is 0 or 1; as bool they take a quarter of the memory.
_BINARY_OBS = (
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "Pong-misc",
)


class Discrete:
    """Integers 0 .. n-1, shape `()`, int32."""

    def __init__(self, n: int):
        self.n, self.shape, self.dtype = int(n), (), jnp.dtype("int32")

    def __repr__(self) -> str:
        return f"Discrete({self.n})"

    def sample(self, key: Key[Array, ""], num: int) -> Int[Array, " num"]:
        """num uniform draws."""
        return (jax.random.bits(key, (num,)) % self.n).astype(jnp.int32)

    def from_unit(self, action: Array) -> Array:
        """The action itself: there is nothing to scale."""
        return action


class Box:
    """Arrays of one shape and dtype between low and high, which broadcast to the shape and may be infinite."""

    def __init__(self, low: Any, high: Any, shape: tuple[int, ...], dtype: Any = jnp.float32):
        self.low, self.high, self.shape, self.dtype = low, high, tuple(shape), jnp.dtype(dtype)

    def __repr__(self) -> str:
        return f"Box(shape={self.shape}, dtype={self.dtype.name})"

    def sample(self, key: Key[Array, ""], num: int) -> Float[Array, "num ..."]:
        """num uniform draws in the unit box [-1, 1], the scale on which the algorithms act."""
        return jax.random.uniform(key, (num, *self.shape), minval=-1.0, maxval=1.0)

    def from_unit(self, action: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Clips an action to [-1, 1] and scales it to [low, high]; an unbounded dimension passes unchanged."""
        bounded = jnp.isfinite(jnp.asarray(self.low)) & jnp.isfinite(jnp.asarray(self.high))
        low, high = jnp.where(bounded, self.low, -1.0), jnp.where(bounded, self.high, 1.0)
        low, high = (jnp.broadcast_to(bound, action.shape) for bound in (low, high))
        return jnp.where(
            jnp.broadcast_to(bounded, action.shape), low + (jnp.clip(action, -1, 1) + 1) * (high - low) / 2, action
        )


Space = Discrete | Box


@runtime_checkable
class Env(Protocol):
    """A single environment as pure functions. Any hashable object with these members is one."""

    default_params: Any
    """A pytree of numbers (physics, limits) that `train` may vmap over."""

    def observation_space(self, params: Any) -> Space: ...

    def action_space(self, params: Any) -> Space: ...

    def reset(self, key: Key[Array, ""], params: Any) -> tuple[Array, Any]:
        """A start state: (obs, state)."""

    def step(
        self, key: Key[Array, ""], state: Any, action: Array, params: Any
    ) -> tuple[Array, Any, Array, Array, Array]:
        """(obs, state, reward, terminated, truncated) after one action, with no reset of its own.

        terminated: the task is over, so nothing follows. truncated: only the clock ran out.
        """


class Gymnax:
    """A gymnax >= 1.0 `Environment` as an `Env`.

    binary_obs: the observation holds only zeros and ones, and is handed on as bool.
    """

    def __init__(self, env: Any, binary_obs: bool = False):
        self.env, self.default_params, self.binary_obs = env, env.default_params, binary_obs

    def observation_space(self, params: Any) -> Space:
        space = _from_gymnax_space(self.env.observation_space(params), self.env)
        return Box(False, True, space.shape, jnp.bool_) if self.binary_obs else space

    def action_space(self, params: Any) -> Space:
        return _from_gymnax_space(self.env.action_space(params), self.env)

    def reset(self, key: Key[Array, ""], params: Any) -> tuple[Array, Any]:
        obs, state = self.env.reset_env(key, params)
        return self._cast(obs), jax.tree.map(jnp.asarray, state)

    def step(
        self, key: Key[Array, ""], state: Any, action: Array, params: Any
    ) -> tuple[Array, Any, Array, Array, Array]:
        obs, state, reward, terminated, _ = self.env.step_env(key, state, action, params)
        truncated = self.env.is_truncated(state, params)
        return self._cast(obs), state, jnp.asarray(reward, jnp.float32), terminated, truncated

    def _cast(self, obs: Array) -> Array:
        return (
            obs.astype(jnp.bool_)
            if self.binary_obs
            else obs.astype(_observation_dtype(obs.dtype, self.env, self.default_params))
        )


class Brax:
    """A Brax `Env` as an `Env`; its params are the Brax `System`, so masses, frictions and gains can be vmapped.

    episode_length: time limit in env steps, at which an episode is truncated.
    """

    def __init__(self, env: Any, episode_length: int = BRAX_EPISODE_LENGTH):
        self.env, self.episode_length = env, episode_length
        self.default_params = getattr(env.unwrapped, "sys", ())  # brax/fast has no physics and no System
        with jax.ensure_compile_time_eval():
            self.observation_size, self.action_size = env.observation_size, env.action_size
        if not isinstance(self.observation_size, int | np.integer):
            raise TypeError(f"{type(env).__name__} observes a dictionary; purerl needs one array of shape [size].")

    def observation_space(self, params: Any) -> Space:
        return Box(-jnp.inf, jnp.inf, (int(self.observation_size),))

    def action_space(self, params: Any) -> Space:
        return Box(-1.0, 1.0, (int(self.action_size),))

    def reset(self, key: Key[Array, ""], params: Any) -> tuple[Array, Any]:
        state = _with_system(self.env, params).reset(key)
        return state.obs, (state, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: Any, action: Array, params: Any
    ) -> tuple[Array, Any, Array, Array, Array]:
        brax_state, time = state
        brax_state = _with_system(self.env, params).step(brax_state, action)
        terminated = brax_state.done > 0.5
        return brax_state.obs, (brax_state, time + 1), brax_state.reward, terminated, time + 1 >= self.episode_length


def make(env: Any) -> Env:
    """The `Env` of a name or an object.

    env: a gymnax name ("CartPole-v1"), a Brax name with an optional physics backend ("brax/hopper", which means
    "brax/hopper/spring"), a gymnax `Environment`, a Brax `Env` without time-limit or auto-reset wrappers (`Brax(env,
    episode_length)` sets its time limit), or an object of your own as in the module's docstring.

    Raises ValueError for an unknown name (the nearest ones are given) and TypeError for an object that is none of
    these or whose `reset` and `step` disagree with its spaces (the field is named).
    """
    if not isinstance(env, Hashable):
        raise TypeError(
            f"env must be hashable, because it is static: {type(env).__name__} defines __eq__ but not __hash__."
        )
    return _make(env)


@functools.lru_cache(maxsize=256)
def _make(env: Any) -> Env:
    if isinstance(env, str):
        prefix = env.partition("/")[0]
        return {"brax": _make_brax, "mdp": _make_mdp}.get(prefix, _make_gymnax)(env)
    if isinstance(env, Gymnax | Brax):
        return env
    if hasattr(env, "step_env") and hasattr(env, "reset_env"):
        return Gymnax(env)
    if hasattr(env, "unwrapped") and hasattr(env, "observation_size"):
        _check_brax_wrappers(env)
        return Brax(env)
    missing = [
        name
        for name in ("default_params", "observation_space", "action_space", "reset", "step")
        if not hasattr(env, name)
    ]
    if missing:
        raise TypeError(
            f"{env!r} is no environment: it lacks {', '.join(missing)} (purerl.core.envs.Env lists what is needed)."
        )
    check(env)
    return env


def names() -> list[str]:
    """Every environment name that `make` knows, gymnax first. Imports gymnax and Brax, which takes seconds."""
    from purerl.core import mdp  # which imports this module

    return [*_gymnax_names(), *mdp.NAMES, *(f"brax/{name}" for name in sorted(_import_brax()._envs))]


def _import_brax() -> Any:
    """brax.envs, without what mujoco prints of GPU packages, and without Brax's advice to move to another engine."""
    warnings.filterwarnings("ignore", "Brax System, piplines and environments", UserWarning)
    with contextlib.redirect_stdout(io.StringIO()):
        import brax.envs
    return brax.envs


def _gymnax_names() -> list[str]:
    from gymnax.registration import registered_envs

    return [name for name in registered_envs if name != "MNISTBandit-bsuite"]  # it downloads its data


def _unknown(name: str, known: list[str]) -> ValueError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}."
    return ValueError(f"There is no environment named {name!r}; {hint} `purerl list` shows all of them.")


def _make_gymnax(name: str) -> Env:
    import gymnax

    if name not in _gymnax_names():
        raise _unknown(name, names())
    with jax.ensure_compile_time_eval():
        return Gymnax(gymnax.make(name)[0], binary_obs=name in _BINARY_OBS)


def _make_mdp(name: str) -> Env:
    from purerl.core import mdp  # which imports this module

    if name not in mdp.NAMES:
        raise _unknown(name, list(mdp.NAMES))
    model, time_limit = mdp.NAMES[name]
    return mdp.Tabular(model(), time_limit)


def _make_brax(name: str) -> Env:
    brax_envs = _import_brax()
    robot, _, backend = name.removeprefix("brax/").partition("/")
    backend = backend or BRAX_BACKENDS[0]
    if robot not in brax_envs._envs:
        raise _unknown(name, names())
    if backend not in BRAX_BACKENDS:
        raise ValueError(
            f"Brax has no physics backend {backend!r}, in {name!r}: use one of {', '.join(BRAX_BACKENDS)}."
        )
    with jax.ensure_compile_time_eval():
        return Brax(brax_envs.get_environment(robot, backend=backend))


def _check_brax_wrappers(env: Any) -> None:
    layer = env
    while hasattr(layer, "env"):
        if type(layer).__name__ in ("EpisodeWrapper", "AutoResetWrapper", "VmapWrapper"):
            raise TypeError(
                f"The Brax env comes inside a {type(layer).__name__}; purerl batches, limits and resets episodes "
                "itself, so make it with brax.envs.get_environment(name), which adds no wrapper."
            )
        layer = layer.env


def _with_system(env: Any, system: Any) -> Any:
    """A copy of a Brax env, and of each wrapper around it, whose physics is `system`."""
    env = copy.copy(env)
    if hasattr(env, "env"):
        env.env = _with_system(env.env, system)
    elif hasattr(env, "sys"):
        env.sys = system
    return env


def _from_gymnax_space(space: Any, env: Any) -> Space:
    if hasattr(space, "n"):
        return Discrete(space.n)
    if hasattr(space, "low"):
        dtype = _observation_dtype(space.dtype, env, None)
        return Box(space.low, space.high, space.shape, dtype)
    raise TypeError(f"{env.name} has the space {space!r}; purerl handles Discrete and Box.")


def _observation_dtype(dtype: Any, env: Any, params: Any) -> Any:
    """Bytes and bits stay; a grid of int32 numbers is a vector of numbers; a Discrete observation stays an integer."""
    if params is not None and hasattr(env.observation_space(params), "n"):
        return jnp.int32
    return dtype if jnp.dtype(dtype) in (jnp.uint8, jnp.bool_) else jnp.float32


def check(env: Env) -> None:
    """Traces one reset and one step and compares them with the spaces; runs nothing.

    Raises TypeError that names the field whose shape or dtype is not what the spaces or `reset` promise.
    """
    params = env.default_params
    key = jax.eval_shape(lambda: jax.random.key(0))
    name = type(env).__name__
    for space in (env.observation_space(params), env.action_space(params)):
        if not isinstance(space, Discrete | Box):
            raise TypeError(f"{name}: a space must be purerl.core.envs.Discrete or Box, but is {space!r}.")
    obs_space, action_space = env.observation_space(params), env.action_space(params)
    action = jax.ShapeDtypeStruct(action_space.shape, action_space.dtype)
    obs, state = _outputs(name, "reset", ("obs", "state"), jax.eval_shape(env.reset, key, params))
    fields = ("obs", "state", "reward", "terminated", "truncated")
    next_obs, next_state, *signals = _outputs(
        name, "step", fields, jax.eval_shape(env.step, key, state, action, params)
    )
    _expect(f"{name}.reset: obs", obs, obs_space.shape, obs_space.dtype)
    _expect(f"{name}.step: obs", next_obs, obs_space.shape, obs_space.dtype)
    for field, signal, dtype in zip(fields[2:], signals, ("float32", "bool", "bool"), strict=True):
        _expect(f"{name}.step: {field}", signal, (), jnp.dtype(dtype))
    if jax.tree.structure(state) != jax.tree.structure(next_state):
        raise TypeError(
            f"{name}.step: state has another structure than the state of reset: {next_state} against {state}."
        )
    before, after = (jax.tree_util.tree_leaves_with_path(tree) for tree in (state, next_state))
    for (path, leaf), (_, next_leaf) in zip(before, after, strict=True):
        _expect(f"{name}.step: state{jax.tree_util.keystr(path)}", next_leaf, leaf.shape, leaf.dtype)


def _outputs(name: str, function: str, fields: tuple[str, ...], outputs: Any) -> Any:
    if not isinstance(outputs, tuple) or len(outputs) != len(fields):
        raise TypeError(f"{name}.{function} must return the {len(fields)} values ({', '.join(fields)}).")
    return outputs


def _expect(field: str, value: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if not hasattr(value, "shape") or value.shape != shape or value.dtype != dtype:
        found = f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else repr(value)
        raise TypeError(f"{field} must be {dtype}{list(shape)}, but is {found}.")


class EnvState(NamedTuple):
    """N environments side by side.

    state: the environments' own states. obs: `[N, ...]`, what to act on next.
    episode_return, episode_length: of the episode in progress, `[N]`.
    """

    state: PyTree
    obs: Array
    episode_return: Float[Array, " N"]
    episode_length: Int[Array, " N"]


class Timestep(NamedTuple):
    """What one step of N environments gave; every field is `[N]`, `final_obs` is `[N, ...]`.

    final_obs: the observation that the action led to, before any reset; where no episode ended it is the next obs.
    episode_return, episode_length: including this step; complete where the episode ended.
    """

    reward: Float[Array, " N"]
    terminated: Bool[Array, " N"]
    truncated: Bool[Array, " N"]
    final_obs: Array
    episode_return: Float[Array, " N"]
    episode_length: Int[Array, " N"]

    @property
    def done(self) -> Bool[Array, " N"]:
        """terminated or truncated: where recursions over time are cut. It does not say that nothing followed."""
        return self.terminated | self.truncated


def params_axes(env: Env, params: Any, shared: int | None = None) -> Any:
    """vmap axes of the params: 0 for a leaf with one value per env, `shared` for one that all envs share."""
    return jax.tree.map(lambda leaf, own: 0 if jnp.ndim(leaf) > jnp.ndim(own) else shared, params, env.default_params)


def reset(keys: Key[Array, " N"], env: Env, params: Any) -> EnvState:
    """N fresh episodes, one for each key. A leaf of params with a leading axis `[N]` gives each env its own value."""
    obs, state = start(keys, env, params)
    return EnvState(state, obs, jnp.zeros(keys.shape), jnp.zeros(keys.shape, jnp.int32))


def start(keys: Key[Array, " N"], env: Env, params: Any) -> tuple[Array, Any]:
    """Fresh start states of N environments, one for each key: (obs, state)."""
    return jax.vmap(env.reset, (0, params_axes(env, params)))(keys, params)


def step(
    keys: Key[Array, " N"], env: Env, params: Any, env_state: EnvState, action: Array, fresh: tuple[Array, Any]
) -> tuple[EnvState, Timestep]:
    """One step of N environments; a finished episode is followed by a new one from its start in `fresh`.

    keys: one for each env. action: `[N, ...]`, a continuous one on the scale [-1, 1]. fresh: what `start` gives.
    """
    axes = params_axes(env, params)

    def scale_and_step(
        key: Key[Array, ""], state: Any, action: Array, params: Any
    ) -> tuple[Array, Any, Array, Array, Array]:
        return env.step(key, state, env.action_space(params).from_unit(action), params)

    step_env = jax.vmap(scale_and_step, (0, 0, 0, axes))
    obs, state, reward, terminated, truncated = step_env(keys, env_state.state, action, params)

    episode_return, episode_length = env_state.episode_return + reward, env_state.episode_length + 1
    timestep = Timestep(reward, terminated, truncated, obs, episode_return, episode_length)
    first_obs, first_state = fresh
    first = EnvState(first_state, first_obs, jnp.zeros_like(episode_return), jnp.zeros_like(episode_length))
    ongoing = EnvState(state, obs, episode_return, episode_length)
    return select(timestep.done, first, ongoing), timestep


def select(mask: Bool[Array, " N"], on_true: PyTree, on_false: PyTree) -> PyTree:
    """Per env, the one tree or the other; every leaf is `[N, ...]`."""

    def pick(x: Array, y: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, y)

    return jax.tree.map(pick, on_true, on_false)
