"""How `train` becomes a compiled program."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from purerl import envs
from purerl.core.types import PRNGKey, Result


def jitted(train: Callable[[PRNGKey, Any], Result]) -> Callable[[PRNGKey, Any], Result]:
    """jax.jit of `train(key, config)`, in which an env's large tables are arguments (`envs.with_tables`).

    It raises TypeError where it is called with anything but a key and a Config of its own module.
    """
    compiled = jax.jit(train)

    @functools.wraps(train)
    def call(key: PRNGKey, config: Any) -> Result:
        own = train.__globals__.get("Config", object)
        if not isinstance(config, own) or not hasattr(key, "dtype"):
            name = train.__module__.split(".")[-1]
            raise TypeError(
                f"{name}.train needs a key, as jax.random.key(0) gives, and a {name}.Config, but was given a "
                f"{type(key).__name__} and a {type(config).__module__}.{type(config).__name__}."
            )
        result: Result = compiled(key, envs.with_tables(config))
        return result

    return call
