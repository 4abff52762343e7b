"""What a user may give as env_params: all of them, some of them, or for each env its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from purerl.envs.protocol import Env


def complete(env: Env, given: Any, name: Any) -> Any:
    """The params that are meant: the env's defaults where given is None, and with a dictionary the defaults changed.

    name: what the env is called in errors. Raises ValueError for a name that the defaults do not have, and where the
    structure is another.
    """
    default = env.default_params
    if given is None:
        return default
    if isinstance(given, Mapping) and (fields := _fields(default)) is not None:
        if unknown := [str(field) for field in given if str(field) not in fields]:
            raise ValueError(f"env_params of {name} have no {', '.join(unknown)}: they have {', '.join(fields)}.")
        for field, value in given.items():
            _check_value(f"env_params[{field!r}] of {name}", value, _field(default, field))
        return {**default, **given} if isinstance(default, Mapping) else _replace(default, dict(given))
    if (got := jax.tree.structure(given)) != (want := jax.tree.structure(default)):
        raise ValueError(
            f"env_params must be made like the defaults of {name}, with {_described(default, want)}, or be a "
            f"dictionary of those to change, but have {_described(given, got)}."
        )
    return given


def own_values(env: Env, params: Any, num_envs: int) -> Any:
    """For each leaf of the params, whether it has one value for each of the num_envs envs: a tree of bools.

    Raises ValueError with the leaf's name where it is neither shaped as the default nor has a leading axis of num_envs.
    """

    def has_own(path: Any, leaf: Any, default: Any) -> bool:
        extra = jnp.ndim(leaf) - jnp.ndim(default)
        if extra == 0:
            return False
        if extra == 1 and jnp.shape(leaf)[0] == num_envs:
            return True
        raise ValueError(
            f"env_params{jax.tree_util.keystr(path)} has a leaf of shape {jnp.shape(leaf)}: it must be of shape "
            f"{jnp.shape(default)}, or have one value for each env, with a leading axis of num_envs = {num_envs} long."
        )

    return jax.tree_util.tree_map_with_path(has_own, params, env.default_params)


def _check_value(where: str, value: Any, default: Any) -> None:
    """Raises ValueError where a value is made otherwise than the default; None, as in a Config of vmap axes, passes."""
    text = any(isinstance(leaf, str) for leaf in jax.tree.leaves(value))
    if value is not None and (text or jax.tree.structure(value) != jax.tree.structure(default)):
        raise ValueError(
            f"{where} must be numbers or arrays as the default is, but is {value!r}: wrap a list in jnp.array."
        )


def _field(params: Any, name: Any) -> Any:
    return params[name] if isinstance(params, Mapping) else getattr(params, name)


def _fields(params: Any) -> list[str] | None:
    """The names of which params are made, or None where they have none."""
    if isinstance(params, Mapping):
        return [str(name) for name in params]
    if hasattr(params, "_fields"):
        return list(params._fields)
    return [field.name for field in dataclasses.fields(params)] if dataclasses.is_dataclass(params) else None


def _replace(params: Any, changes: dict[str, Any]) -> Any:
    return params._replace(**changes) if hasattr(params, "_replace") else dataclasses.replace(params, **changes)


def _described(params: Any, structure: Any) -> str:
    fields = _fields(params)
    return f"the structure {structure}" if fields is None else f"the fields {', '.join(fields)}"
