"""Names shared by every module: array types, the result of a training, and how a Config declares its fields."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
from flax import struct
from jaxtyping import Array, Key

__all__ = ["Array", "EnvLike", "Key", "Metrics", "Result", "Scalar", "static", "traced", "validate"]

Metrics = dict[str, Array]
ConfigT = TypeVar("ConfigT")

if TYPE_CHECKING:
    # A traced field holds a Python number, an array, or a tracer under vmap, grad and jit.
    Scalar = float | Array
    EnvLike = Any
else:
    # At run time the command line reads these annotations and parses text into them.
    Scalar = float
    EnvLike = str


class Result(NamedTuple):
    """What `train` returns.

    state: the algorithm's final `State`.
    metrics: one scalar a name and update, `[num_updates]`.
    """

    state: Any
    metrics: Metrics


def static(default: Any, *, low: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A Config field that is part of the program: a new value compiles anew, and it cannot be vmapped.

    low: the smallest allowed number (of each entry, where the field is a tuple). choices: the allowed strings.
    """
    return struct.field(pytree_node=False, default=default, metadata={"low": low, "choices": choices})


def traced(default: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """A Config field that is an input of the program: it can be vmapped, swept and differentiated.

    low, high: the allowed range, checked where the value is a Python number.
    """
    return struct.field(pytree_node=True, default=default, metadata={"low": low, "high": high})


def validate(config: Any) -> None:
    """Checks every field of a Config against its declaration, in the terms the user wrote.

    Arrays and tracers in traced fields pass: their values may not exist yet.
    Raises TypeError for a wrong type (a tracer in a static field among them), ValueError for a value out of range.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{type(config).__module__.split('.')[-1]}.Config.{field.name}"
        if field.metadata.get("pytree_node", True):
            _validate_traced(name, value, field.metadata)
        else:
            _validate_static(name, value, field.default, field.metadata)


def _validate_traced(name: str, value: Any, metadata: Any) -> None:
    if isinstance(value, str) and "low" in metadata:
        raise TypeError(f"{name} must be a number or an array, but is {value!r}.")
    if not isinstance(value, int | float) or metadata.get("low") is metadata.get("high") is None:
        return
    low, high = (-math.inf if metadata["low"] is None else metadata["low"]), metadata["high"]
    high = math.inf if high is None else high
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a finite number in [{low}, {high}], but is {value}.")


def _validate_static(name: str, value: Any, default: Any, metadata: Any) -> None:
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} is static (it decides shapes or loop lengths), so it cannot be vmapped, traced or "
            f"differentiated: give it one Python {type(default).__name__} per call of train."
        )
    if name.endswith(".env"):
        return
    expected = type(default)
    if type(value) is not expected:
        raise TypeError(
            f"{name} must be a Python {expected.__name__}, but is {value!r} of type {type(value).__name__}."
        )
    if expected is tuple and default and any(type(entry) is not type(default[0]) for entry in value):
        raise TypeError(f"{name} must be a tuple of Python {type(default[0]).__name__}s, but is {value!r}.")
    if metadata.get("choices") and value not in metadata["choices"]:
        raise ValueError(f"{name} must be one of {', '.join(metadata['choices'])}, but is {value!r}.")
    entries = value if isinstance(value, tuple) else (value,)
    if metadata.get("low") is not None and any(entry < metadata["low"] for entry in entries):
        raise ValueError(f"{name} must be at least {metadata['low']}, but is {value}.")
