"""A run's folder: config.json, which says what the run is, and whether a training may go on in it.

config.json holds the algorithm, its Config, seeds, how it was run and by which versions; metrics.csv one row a seed and
update; checkpoints/ the last two states and, of a run that is evaluated all along, the best policies. Another file,
.lock, keeps a second writer out.
"""

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl import envs
from purerl.run import lock, objects, provenance
from purerl.run.errors import RunError, StoppedError

CONFIG, METRICS, CHECKPOINTS, BEST = "config.json", "metrics.csv", "checkpoints", "best"
_PARTIAL = f"{CONFIG}.tmp"  # what a kill while it is written leaves
_LENGTH = "total_timesteps"  # of which a run may get more
_JSON = (str, int, float, bool, type(None), list, tuple)


class Options(NamedTuple):
    """How a run was run, so that it goes on alike.

    seeds_at_once: on each device. loggers: names. eval_every: None where it is not evaluated all along. start_from: the
    folder that its first weights came from, None where they were drawn. devices_per_seed: that its envs are split over,
    None for 1.
    """

    seeds_at_once: int | None = None
    loggers: tuple[str, ...] = ()
    eval_every: int | None = None
    eval_episodes: int | None = None
    start_from: str | None = None
    devices_per_seed: int | None = None


def check_free(folder: Path) -> None:
    """Raises RunError unless `folder` is empty or can be made."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise RunError(f"{folder} cannot be the run's folder: {nearest} is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(f"{folder} cannot be the run's folder: {nearest} may not be written to.")
    if folder.exists() and any(entry.name not in (lock.FILE, _PARTIAL) for entry in folder.iterdir()):
        raise RunError(
            f"{folder} is not empty: name another folder, or go on with --resume {folder} if it holds this run."
        )


def make(folder: Path) -> None:
    """Raises RunError where the folder cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The folder {folder} cannot be made: {error.strerror}.") from error


def write(folder: Path, algorithm: ModuleType, config: Any, seeds: list[int], options: Options) -> None:
    """Writes config.json, whole or not at all."""
    write_json(folder / CONFIG, record(algorithm, config, seeds, options))


def record(algorithm: ModuleType, config: Any, seeds: list[int], options: Options) -> dict[str, Any]:
    """What config.json says."""
    return {
        "algorithm": objects.algorithm_path(algorithm),
        "seeds": seeds,
        "config": config_dict(config),
        "options": options._asdict(),
        "versions": provenance.versions(),
    }


def lengthen(folder: Path, config: Any) -> None:
    """Says in config.json that the run is as long as `config` has it, and changes nothing else in it."""
    content = read(folder)
    length = getattr(config, _LENGTH, None)
    if content["config"].get(_LENGTH) != length:
        content["config"][_LENGTH] = length
        write_json(folder / CONFIG, content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a file of the folder's own, whole or not at all; what a kill leaves does not make the folder another's."""
    text = json.dumps(content, indent=2)
    partial = path.parent / _PARTIAL
    with partial.open("w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Turns what the disk refuses into one sentence, a StoppedError."""
    try:
        yield
    except BrokenPipeError:  # the terminal's, not the disk's
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StoppedError(
            f"{folder} cannot be written: {'the disk is full' if full else error.strerror}. What was saved is kept: "
            f"mend that, then go on with --resume {folder}."
        ) from error


def read(folder: str | Path) -> dict[str, Any]:
    """config.json as it stands. Raises RunError where there is none or it is damaged."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise RunError(f"{folder} holds no run: there is no {CONFIG} in it.")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.") from error
    parts = {"algorithm": str | None, "seeds": list, "config": dict}
    for name, kind in parts.items():
        if not isinstance(content, dict) or not isinstance(content.get(name, 0), kind):
            raise RunError(f"{path} is damaged, or no config of a run: it has no {name}.")
    return content


def load(
    folder: str | Path, algorithm: ModuleType | None = None, **given: Any
) -> tuple[ModuleType, Any, list[int], Options]:
    """The algorithm, Config, seeds and options of a run's folder.

    algorithm: where its module cannot be found by itself. given: fields of the Config whose objects cannot, such as
    env. Raises RunError where the folder holds no run, or one of another version, and what has to be given.
    """
    return stored(folder, read(folder), algorithm, **given)


def stored(
    folder: str | Path, content: dict[str, Any], algorithm: ModuleType | None = None, **given: Any
) -> tuple[ModuleType, Any, list[int], Options]:
    """What `load` gives, of what `read` has read."""
    algorithm, config = configuration(Path(folder) / CONFIG, content, algorithm, **given)
    return algorithm, config, content["seeds"], _options(content)


def configuration(
    path: Path, content: dict[str, Any], algorithm: ModuleType | None = None, **given: Any
) -> tuple[ModuleType, Any]:
    """The algorithm and Config that a file's `algorithm` and `config` say; other arguments and errors as in `load`."""
    algorithm = _algorithm(path, content["algorithm"], algorithm)
    fields = {field.name: field for field in dataclasses.fields(algorithm.Config)}
    if unknown := [name for name in (*content["config"], *given) if name not in fields]:
        name = objects.short_name(algorithm)
        raise RunError(f"{path} is of another version of {name}: it has no field {', '.join(unknown)} now.")
    values = {name: _value(path, fields[name], x, given) for name, x in content["config"].items()}
    values["env_params"] = _env_params(values["env"], values.get("env_params"))
    try:
        return algorithm, algorithm.Config(**values)
    except (TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged, or of another version: {error}") from error


def check_same(
    folder: Path, algorithm: ModuleType, config: Any, seeds: list[int], *, extend: bool = False
) -> tuple[Options, list[str]]:
    """How the run was run, and what else has changed since, in one line each.

    extend: it may have been meant to be shorter. Raises RunError where the folder holds no run, or one of another
    algorithm, config or seeds. An object of which either side has no import path passes.
    """
    if not folder.is_dir():
        raise RunError(f"There is no folder {folder} to resume.")
    content = read(folder)
    path = content["algorithm"]
    if path is not None and not objects.same_algorithm(path, algorithm):
        raise RunError(f"{folder} is a run of {objects.short_name(path)}, not of {objects.short_name(algorithm)}.")
    mine = json.loads(json.dumps({**config_dict(config), "seeds": seeds}))
    defaults = {field.name: field.default for field in dataclasses.fields(config)}  # of a field newer than the run
    theirs = {**json.loads(json.dumps(defaults, default=repr)), **content["config"], "seeds": content["seeds"]}
    differing = [name for name in {**theirs, **mine} if not _agree(theirs.get(name), mine.get(name))]
    said, there, here = list[str](), theirs.get(_LENGTH), mine.get(_LENGTH)
    if extend and differing == [_LENGTH] and here > there:
        differing = []
        said.append(
            f"Going on to {_LENGTH} = {here:,} in place of {there:,}. What falls over a training, such as annealed "
            f"learning rates and exploration, goes on from where a training of that length has it after so many steps: "
            f"at the old end {there / here:.0%} of the way, where it was at 100%."
        )
    if differing:
        pairs = ", ".join(f"{name} ({theirs.get(name)} there, {mine.get(name)} here)" for name in differing)
        raise RunError(f"{folder} is a run of another config: it differs in {pairs}.")
    before, now = content.get("versions", {}), provenance.versions()
    changed = [f"{name} {before.get(name)} then, {now[name]} now" for name in now if before.get(name) != now[name]]
    if changed:
        said.append(f"Other code than it was begun with, so that numbers may differ: {'; '.join(changed)}.")
    return _options(content), said


def _options(content: dict[str, Any]) -> Options:
    stored = content.get("options", {})
    known = {name: stored[name] for name in Options._fields if name in stored}
    return Options(**{**known, "loggers": tuple(known.get("loggers", ()))})


def config_dict(config: Any) -> dict[str, Any]:
    """A Config's fields as JSON values; objects as their import path, env_params as the numbers of its leaves.

    A dictionary in env_params, which changes some of the env's, stays one.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "env_params" and value is not None:
            numbers = jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), value)
            value = numbers if isinstance(value, Mapping) else jax.tree.leaves(numbers, is_leaf=_is_list)
        elif hasattr(value, "tolist"):
            value = value.tolist()
        elif _is_static(field) and not isinstance(value, _JSON):
            value = objects.stored(value)
        values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def label(folder: str | Path) -> str:
    """Algorithm, env and number of seeds of a run in words; makes none of them."""
    content = read(folder)
    env, algorithm = content["config"].get("env"), content["algorithm"]
    env = objects.stored_name(env) if isinstance(env, dict) else env
    return f"{objects.short_name(algorithm or Path(folder).name)} {env} ({len(content['seeds'])} seeds)"


def _env_params(env: Any, stored: Any) -> Any:
    """The env_params of JSON values: a dictionary of those to change, or all of them."""
    if stored is None:
        return None
    if isinstance(stored, dict):
        return jax.tree.map(jnp.asarray, stored, is_leaf=_is_list)
    leaves, structure = jax.tree.flatten(envs.make(env).default_params)
    return structure.unflatten(_like(numbers, default) for numbers, default in zip(stored, leaves, strict=True))


def _like(numbers: Any, default: Any) -> Any:
    """An array of JSON numbers as `default` is made: of its dtype if it is an array, of its shape if it is empty."""
    array, shape = np.asarray(numbers, getattr(default, "dtype", None)), np.shape(default)
    if array.size == 0 and array.ndim <= len(shape):  # lists end where an axis is empty; own values come first
        array = array.reshape(shape if array.shape[0] == 0 else (array.shape[0], *shape))
    return jnp.asarray(array)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_static(field: Any) -> bool:
    return not field.metadata.get("pytree_node", True)


def _agree(left: Any, right: Any) -> bool:
    without_path = any(isinstance(x, dict) and x.get("import") is None for x in (left, right))
    return left == right or (without_path and isinstance(left, dict) and isinstance(right, dict))


def _algorithm(path: Path, stored: str | None, given: ModuleType | None) -> ModuleType:
    if given is not None:
        if stored is not None and not objects.same_algorithm(stored, given):
            names = objects.short_name(stored), objects.short_name(given)
            raise RunError(f"{path.parent} is a run of {names[0]}, not of {names[1]}.")
        return given
    if stored is None:
        raise RunError(f"{path} names no module of its algorithm: give it, runner.load(folder, algorithm=module).")
    try:
        return objects.algorithm_named(stored)
    except (ValueError, TypeError, ImportError) as error:
        raise RunError(f"The algorithm of {path} is not to be found. {error}") from error


def _value(path: Path, field: Any, stored: Any, given: dict[str, Any]) -> Any:
    """One field of a Config from its JSON value, or the one that is given in its place."""
    if field.name in given:
        mine = objects.stored(given[field.name]) if isinstance(stored, dict) else given[field.name]
        if not _agree(stored, mine):
            raise RunError(f"{path.parent} is a run with another {field.name}: {stored} there, {mine} here.")
        return given[field.name]
    if _is_static(field) and isinstance(stored, dict):
        return _object(path, field.name, stored)
    if isinstance(stored, list) and isinstance(field.default, tuple):
        return tuple(stored)
    array = field.type in (Any, "Any") and field.name != "env_params" and not _is_static(field)
    return jnp.asarray(stored) if array and stored is not None else stored


def _object(path: Path, name: str, stored: dict[str, Any]) -> Any:
    if stored.get("import") is None:
        raise RunError(
            f"{path} has no import path for {name}, a {stored.get('type')}: give the object, "
            f"runner.load(folder, {name}=...) or runner.train(..., resume=True). One that stands in a module, or whose "
            "class there is made without arguments, is found by itself."
        )
    try:
        return objects.rebuilt(stored)
    except ImportError as error:
        raise RunError(f"The {name} of {path} is not to be found. {error}") from error
