"""How `train` becomes a compiled program."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from purerl import envs
from purerl.core.types import PRNGKey, Result


def jitted(train: Callable[[PRNGKey, Any], Result]) -> Callable[[PRNGKey, Any], Result]:
    """jax.jit of `train(key, config)`, in which an env's large tables are arguments (`envs.with_tables`)."""
    compiled = jax.jit(train)

    @functools.wraps(train)
    def call(key: PRNGKey, config: Any) -> Result:
        result: Result = compiled(key, envs.with_tables(config))
        return result

    return call
