"""What an environment is, and the check that an object is one."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from purerl.core.types import PRNGKey
from purerl.envs.spaces import Box, Discrete, Space


@runtime_checkable
class Env(Protocol):
    """A single environment as pure functions. Any hashable object with these members, which never changes, is one.

    It may also have `max_episode_steps(params)` and `metrics(state, params)`, as in the functions of these names; and,
    where observations say all that is paid for, `reward(obs, action, next_obs, params)`, which pets and mbpo use in
    place of learning it.
    """

    default_params: Any
    """A pytree of numbers (physics, limits) that `train` may vmap over."""

    def observation_space(self, params: Any) -> Space: ...

    def action_space(self, params: Any) -> Space: ...

    def reset(self, key: PRNGKey, params: Any) -> tuple[Array, Any]:
        """A start state: (obs, state)."""

    def step(self, key: PRNGKey, state: Any, action: Array, params: Any) -> tuple[Array, Any, Array, Array, Array]:
        """(obs, state, reward, terminated, truncated) after one action in the env's units, with no reset of its own.

        terminated: the task is over, so nothing follows. truncated: only the clock ran out.
        """


MEMBERS = ("default_params", "observation_space", "action_space", "reset", "step")


def missing(env: Any) -> list[str]:
    """The members that an object lacks to be an `Env`."""
    return [name for name in MEMBERS if not hasattr(env, name)]


def max_episode_steps(env: Env, params: Any) -> Any:
    """The number of steps within which every episode ends, terminated or truncated, whatever is done.

    None where the env does not say. Params with leading axes give as many numbers: the env's function is elementwise.
    Raises TypeError where it is no function of the params.
    """
    limit = getattr(env, "max_episode_steps", None)
    if limit is None:
        return None
    try:
        return limit(params)
    except TypeError as error:
        raise TypeError(f"{type(env).__name__}.max_episode_steps must be a method of (params): {error}.") from error


def metrics(env: Env, state: Any, params: Any) -> dict[str, Array]:
    """Scalars that the env tells of a state, by name; none where it has no `metrics(state, params)`.

    A training gives their means over the ends of episodes, as episode_<name>; cem and es, which play whole episodes of
    their own, do not.
    """
    told = getattr(env, "metrics", None)
    return {} if told is None else {name: jnp.asarray(x, jnp.float32) for name, x in told(state, params).items()}


def check(env: Env) -> None:
    """Traces one reset and one step, with the default params as they are, and compares them with the spaces.

    Raises TypeError that names the field whose shape or dtype is not what the spaces or `reset` promise.
    """
    params = env.default_params
    key = jax.eval_shape(lambda: jax.random.key(0))
    name = type(env).__name__
    for space in (env.observation_space(params), env.action_space(params)):
        if not isinstance(space, Discrete | Box):
            raise TypeError(f"{name}: a space must be purerl.envs.Discrete or Box, but is {space!r}.")
    obs_space, action_space = env.observation_space(params), env.action_space(params)
    action = jax.ShapeDtypeStruct(action_space.shape, action_space.dtype)
    obs, state = _outputs(name, "reset", ("obs", "state"), jax.eval_shape(lambda key: env.reset(key, params), key))
    fields = ("obs", "state", "reward", "terminated", "truncated")
    next_obs, next_state, *signals = _outputs(
        name,
        "step",
        fields,
        jax.eval_shape(lambda key, state, action: env.step(key, state, action, params), key, state, action),
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
    if hasattr(env, "metrics"):
        _check_metrics(env, name, state)


def _check_metrics(env: Any, name: str, state: Any) -> None:
    try:
        told = jax.eval_shape(lambda state: env.metrics(state, env.default_params), state)
    except TypeError as error:
        raise TypeError(f"{name}.metrics must be a method of (state, params): {error}.") from error
    if not isinstance(told, dict) or not all(isinstance(key, str) for key in told):
        raise TypeError(f"{name}.metrics must return a dictionary of scalars by name, but returns {told}.")
    for key, value in told.items():
        if set(key) & set(',"\n\r'):
            raise TypeError(f"{name}.metrics: {key!r} has a comma, a quote or a line break, which no column may have.")
        if value.shape != ():
            raise TypeError(f"{name}.metrics: {key} must be a scalar, but is {value.dtype}{list(value.shape)}.")
        if key in ("return", "length"):
            raise TypeError(f"{name}.metrics: {key} is what purerl calls its own account; name it otherwise.")


def _outputs(name: str, function: str, fields: tuple[str, ...], outputs: Any) -> Any:
    if not isinstance(outputs, tuple) or len(outputs) != len(fields):
        raise TypeError(f"{name}.{function} must return the {len(fields)} values ({', '.join(fields)}).")
    return outputs


def _expect(field: str, value: Any, shape: tuple[int, ...], dtype: Any) -> None:
    if not hasattr(value, "shape") or value.shape != shape or value.dtype != dtype:
        found = f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else repr(value)
        raise TypeError(f"{field} must be {dtype}{list(shape)}, but is {found}.")
