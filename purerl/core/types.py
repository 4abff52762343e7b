"""Names shared by every module: array types, steps, policies, results, and how a Config declares its fields."""

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, dataclass_transform

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

__all__ = [
    "Array",
    "EnvLike",
    "Episodes",
    "Metrics",
    "PRNGKey",
    "Policy",
    "Result",
    "Scalar",
    "Transition",
    "config_class",
    "field_docs",
    "memoryless",
    "own_network",
    "static",
    "traced",
    "validate",
    "validate_value",
]

PRNGKey = Key[Array, ""] | UInt32[Array, "2"]  # what jax.random.key gives, and jax.random.PRNGKey
Metrics = dict[str, Array]
_Class = TypeVar("_Class", bound=type)

if TYPE_CHECKING:
    # A traced field holds a Python number, an array, or a tracer under vmap, grad and jit.
    Scalar = float | Array
    EnvLike = Any
else:
    # At run time the command line reads these annotations and parses text into them.
    Scalar = float
    EnvLike = str


class Transition(NamedTuple):
    """One step of one environment; a batch of them has axes `[B, ...]`, a trajectory of N environments `[T, N, ...]`.

    action: what the policy drew; a continuous one is `[D]` on the scale [-1, 1].
    terminated: nothing follows. truncated: the episode was cut, but the value of final_obs counts as ever.
    final_obs: the observation that the action led to, before any reset.
    """

    obs: Array
    action: Array
    reward: Float[Array, "*B"]
    terminated: Bool[Array, "*B"]
    truncated: Bool[Array, "*B"]
    final_obs: Array

    @property
    def done(self) -> Bool[Array, "*B"]:
        """terminated or truncated: where recursions over time are cut. It does not say that nothing followed."""
        return self.terminated | self.truncated


class Episodes(NamedTuple):
    """Account of the episodes that ended: sums over them, never one entry each, so its size is that of few numbers.

    end_sums: of what the env's own metrics were at the end, by their names.
    """

    num: Int[Array, "*batch"]
    return_sum: Float[Array, "*batch"]
    length_sum: Int[Array, "*batch"]
    end_sums: dict[str, Array]

    def metrics(self) -> Metrics:
        """Number, and means of return, length and the env's metrics at the end, over all leading axes.

        The means are NaN where no episode ended.
        """
        count, return_sum, length_sum, end_sums = jax.tree.map(lambda x: x.sum(), self)
        sums = {"return": return_sum, "length": length_sum, **end_sums}
        return {"episodes": count, **{f"episode_{name}": total / count for name, total in sums.items()}}


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """How to act in one env: `act(key, obs, memory) -> (action, memory)`.

    memory: what it remembers at the start of every episode, an empty tuple where nothing. act: its action is `[D]` on
    the scale [-1, 1] where continuous, as `BoundEnv.step` takes it. to_units: gives such an action its units and shape.
    """

    memory: Any
    act: Callable[[PRNGKey, Array, Any], tuple[Array, Any]]
    to_units: Callable[[Array], Array]

    def __call__(self, key: PRNGKey, obs: Array) -> Array:
        """The action for one observation in the env's units, of a policy without memory: for a loop of your own.

        Raises TypeError for a policy that remembers.
        """
        if jax.tree.leaves(self.memory):
            raise TypeError(
                "This policy remembers: action, memory = policy.act(key, obs, memory), where the first memory of an "
                "episode is policy.memory, and policy.to_units(action) is for the env."
            )
        return self.to_units(self.act(key, obs, self.memory)[0])


def memoryless(act: Callable[[PRNGKey, Array], Array], to_units: Callable[[Array], Array]) -> Policy:
    """The policy of a function (key, obs) -> action that looks at nothing else."""
    return Policy((), lambda key, obs, memory: (act(key, obs), memory), to_units)


class Result(NamedTuple):
    """What `train` returns.

    state: the algorithm's final `State`.
    metrics: one scalar a name and update, `[num_updates]`.
    """

    state: Any
    metrics: Metrics


def static(default: Any, *, low: float | None = None, choices: tuple[str, ...] = (), entry: type | None = None) -> Any:
    """A Config field that is part of the program: a new value compiles anew, and it cannot be vmapped.

    low: the smallest allowed number (of each entry, where the field is a tuple). choices: the allowed strings. entry:
    the type of a tuple's entries, where the default has none to show it.
    """
    return struct.field(pytree_node=False, default=default, metadata={"low": low, "choices": choices, "entry": entry})


def traced(default: Any, *, low: float | None = None, high: float | None = None, above: float | None = None) -> Any:
    """A Config field that is an input of the program: it can be vmapped, swept and differentiated.

    low, high: the allowed range; above: what it must exceed. Checked where the numbers are known, so not of tracers.
    """
    return struct.field(pytree_node=True, default=default, metadata={"low": low, "high": high, "above": above})


def own_network() -> Any:
    """A Config field for a network of the user's own, None where the other fields describe it.

    A flax module, or a function of the number of outputs that gives one. Static, so it must be hashable.
    """
    return struct.field(pytree_node=False, default=None, metadata={"network": True})


@dataclass_transform(frozen_default=True)
def config_class(cls: _Class) -> _Class:
    """Makes a frozen dataclass and a pytree of a class of static and traced fields; `help` of it shows their texts."""
    made: Any = struct.dataclass(cls)
    made.__doc__ = _FieldTexts()
    return made


class _FieldTexts:
    """A docstring that is put together when it is read, since to read the source takes longer than to import it."""

    def __get__(self, _: Any, cls: type) -> str:
        headline = (
            "Settings of a training; replace(**changes) gives changed ones. A static field is part of the compiled\n"
            "program, a traced one is an input of it, which may be vmapped and swept."
        )
        return "\n".join([headline, "", *_field_texts(cls)])


def _field_texts(cls: Any) -> Iterator[str]:
    docs = field_docs(cls)
    for field in dataclasses.fields(cls):
        says = ["traced" if field.metadata.get("pytree_node", True) else "static"]
        limits = (("choices", "one of"), ("low", "at least"), ("above", "more than"), ("high", "at most"))
        for limit, words in limits:
            value = field.metadata.get(limit)
            if value not in (None, ()):
                says.append(f"{words} {', '.join(value) if limit == 'choices' else value}")
        yield f"{field.name}: {inspect.formatannotation(field.type)} = {field.default!r}  ({', '.join(says)})"
        yield f"    {docs.get(field.name, '')}"


def field_docs(cls: type) -> dict[str, str]:
    """The string under each field of a class and of those it extends, by the field's name."""
    docs = {}
    for kind in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        tree: Any = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        for field, doc in itertools.pairwise(tree.body[0].body):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
                docs[ast.unparse(field.target)] = ast.literal_eval(doc.value)
    return docs


def validate(config: Any) -> None:
    """Checks every field of a Config against its declaration, in the terms the user wrote.

    A list in place of a tuple becomes one. Tracers in traced fields pass: their values do not exist yet.
    Raises TypeError for a wrong type (a tracer in a static field among them), ValueError for a value out of range.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, list) and isinstance(field.default, tuple):
            value = tuple(value)
            object.__setattr__(config, field.name, value)
        validate_value(type(config), field.name, value)


def validate_value(config_class: Any, name: str, value: Any) -> None:
    """Checks a value of one field of a Config against its declaration alone; errors as in `validate`."""
    field = config_class.__dataclass_fields__[name]
    name = f"{config_class.__module__.split('.')[-1]}.Config.{name}"
    if field.metadata.get("pytree_node", True):
        _validate_traced(name, value, field.metadata)
    else:
        _validate_static(name, value, field.default, field.metadata)


def _validate_traced(name: str, value: Any, metadata: Any) -> None:
    if isinstance(value, str | list | tuple) and "low" in metadata:
        wrap = "" if isinstance(value, str) else ": wrap it in jnp.array"
        raise TypeError(f"{name} must be a number or an array, but is {value!r}{wrap}.")
    low, high, above = (metadata.get(name) for name in ("low", "high", "above"))
    if low is high is above is None or not _is_known(value):
        return
    numbers = np.asarray(value, np.float64)
    within = np.isfinite(numbers)
    for bound, holds in ((low, np.greater_equal), (high, np.less_equal), (above, np.greater)):
        within &= True if bound is None else holds(numbers, bound)
    if not within.all():
        low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
        if above is not None:
            allowed = f"greater than {above}" if high == math.inf else f"in ({above}, {high}]"
        else:
            allowed = f"in [{low}, {high}]"
        raise ValueError(f"{name} must be a finite number {allowed}, but is {value}.")


def _is_known(value: Any) -> bool:
    """Whether a field's numbers can be looked at: not tracers, and not what JAX puts in the place of arrays."""
    if isinstance(value, jax.core.Tracer) or not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        return False
    return getattr(value, "is_fully_addressable", True)


def _validate_static(name: str, value: Any, default: Any, metadata: Any) -> None:
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} is static (it decides shapes or loop lengths), so it cannot be vmapped, traced or "
            f"differentiated: give it one Python {type(default).__name__} per call of train."
        )
    if name.endswith(".env"):
        return
    if metadata.get("network"):
        if not (value is None or callable(value)) or not isinstance(value, Hashable):
            raise TypeError(
                f"{name} must be a flax module or a function of the number of outputs that gives one, and hashable, "
                f"but is {value!r}."
            )
        return
    expected = type(default)
    if type(value) is not expected:
        raise TypeError(
            f"{name} must be a Python {expected.__name__}, but is {value!r} of type {type(value).__name__}."
        )
    entry_type = metadata.get("entry") or (type(default[0]) if expected is tuple and default else None)
    if entry_type and any(type(entry) is not entry_type for entry in value):
        raise TypeError(f"{name} must be a tuple of Python {entry_type.__name__}s, but is {value!r}.")
    if metadata.get("choices") and value not in metadata["choices"]:
        raise ValueError(f"{name} must be one of {', '.join(metadata['choices'])}, but is {value!r}.")
    entries = value if isinstance(value, tuple) else (value,)
    if metadata.get("low") is not None and any(entry < metadata["low"] for entry in entries):
        raise ValueError(f"{name} must be at least {metadata['low']}, but is {value}.")
