"""A policy as one file: what it takes to act, and nothing of the training."""

import json
import os
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.core.types import Policy
from purerl.run import checkpoint, objects, provenance
from purerl.run import folder as run_folder
from purerl.run.acting import acting_leaves, read_by_policy
from purerl.run.errors import RunError
from purerl.run.evaluate import check_state

FORMAT = 1  # of the file: a reader refuses what a later version wrote
_HEADER = "policy.json"


class PolicyFileError(RunError):
    """A file that is no policy, or the policy of something else than is here."""


def save_policy(path: str | Path, algorithm: ModuleType, state: Any, config: Any) -> Path:
    """Writes what `algorithm.policy(state, config)` reads of a state to the new file `path`, and returns the path.

    state: of one seed. Weights and statistics of normalisation are kept; critics, optimisers, replay and environments
    are not, so that the file does not depend on their number. It appears only when complete.
    Raises TypeError where the state is of another algorithm or Config or of many seeds, and FileExistsError where
    `path` exists, since nothing is ever overwritten.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already: name a file that does not, or remove it first.")
    check_state(algorithm, state, config)
    write(path, algorithm, acting_leaves(algorithm, state, config), config)
    return path


def load_policy(
    path: str | Path, *, algorithm: ModuleType | None = None, deterministic: bool = True, **objects: Any
) -> Policy:
    """The policy of a file that `save_policy` wrote: `policy(key, obs)` is an action in the env's units.

    deterministic: the policy's mode in place of a draw. algorithm, objects: the module, and fields of the Config such
    as `env`, where they stand in no module of their own to be found in.
    Raises PolicyFileError where the file is missing, damaged or of another version, and names the array that differs.
    """
    algorithm, config, state = load(path, algorithm, **objects)
    policy: Policy = algorithm.policy(state, config, deterministic=deterministic)
    return policy


def write(path: Path, algorithm: ModuleType, leaves: dict[str, Any], config: Any) -> None:
    """Writes a policy's file, in place of one that is there, whole or not at all."""
    arrays = {place: np.asarray(checkpoint.to_data(leaf)) for place, leaf in leaves.items()}
    header = {
        "format": FORMAT,
        "algorithm": objects.algorithm_path(algorithm),
        "config": run_folder.config_dict(config),
        "arrays": {place: {"shape": list(x.shape), "dtype": x.dtype.name} for place, x in arrays.items()},
        "versions": provenance.versions(),
    }
    partial = path.with_name(f".{path.name}.tmp")
    try:
        with zipfile.ZipFile(partial, "w") as file:
            contents = [np.ascontiguousarray(array).tobytes() for array in arrays.values()]
            members = {
                _HEADER: json.dumps(header, indent=2).encode(),
                **{_member(i): x for i, x in enumerate(contents)},
            }
            for name, content in members.items():
                file.writestr(zipfile.ZipInfo(name), content)  # of no date, so that the same policy is the same file
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | Path, algorithm: ModuleType | None = None, **given: Any) -> tuple[ModuleType, Any, Any]:
    """The algorithm, the Config, and a state of which only what its policy reads is there; the rest are zeros."""
    path = Path(path)
    header, arrays = _read(path)
    algorithm, config = _configuration(path, header, algorithm, given)
    like = jax.eval_shape(algorithm.init, jax.random.key(0), config)
    places, structure = jax.tree_util.tree_leaves_with_path(like), jax.tree.structure(like)
    needed = {jax.tree_util.keystr(places[i][0]) for i in read_by_policy(algorithm, config)}
    if needed != arrays.keys():
        name, differing = objects.short_name(algorithm), ", ".join(sorted(needed ^ arrays.keys()))
        raise PolicyFileError(f"{path} is of another version of {name}, whose policy reads other arrays: {differing}.")
    state = [_leaf(path, jax.tree_util.keystr(place), leaf, arrays) for place, leaf in places]
    return algorithm, config, structure.unflatten(state)


def _configuration(
    path: Path, header: dict[str, Any], algorithm: ModuleType | None, given: dict[str, Any]
) -> tuple[ModuleType, Any]:
    """The algorithm and Config of a file; what is given stands for what was there under another path."""
    if algorithm is not None and header["algorithm"] is not None:
        there, here = objects.short_name(header["algorithm"]), objects.short_name(algorithm)
        if there != here:
            raise PolicyFileError(f"{path} is a policy of {there}, not of {here}.")
        header = {**header, "algorithm": None}
    stored = {
        name: {**x, "import": None, "type": ""} if name in given and isinstance(x, dict) else x
        for name, x in header["config"].items()
    }
    try:
        return run_folder.configuration(path, {**header, "config": stored}, algorithm, **given)
    except RunError as error:
        raise PolicyFileError(str(error)) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file."""
    if not path.is_file():
        raise PolicyFileError(f"There is no file {path}.")
    try:
        with zipfile.ZipFile(path) as file:
            header = json.loads(file.read(_HEADER))
            if header["format"] > FORMAT:
                raise PolicyFileError(
                    f"{path} is of a later purerl, {header['versions']['purerl']}: it cannot be read by this one."
                )
            arrays = {}
            for i, (place, array) in enumerate(header["arrays"].items()):
                dtype = jnp.dtype(array["dtype"])
                arrays[place] = np.frombuffer(file.read(_member(i)), dtype).reshape(array["shape"])
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise PolicyFileError(f"{path} is damaged, or no policy that save_policy wrote: {error}.") from error
    return header, arrays


def _leaf(path: Path, place: str, like: Any, arrays: dict[str, np.ndarray]) -> Any:
    """One array of the state: the file's, or of what the policy does not read, zeros that take no memory."""
    data = jax.eval_shape(checkpoint.to_data, like)
    array = arrays.get(place, np.broadcast_to(np.zeros((), data.dtype), data.shape))
    if (array.shape, array.dtype) != (data.shape, data.dtype):
        raise PolicyFileError(
            f"{path} is of another version: state{place} is {array.dtype}{list(array.shape)} there and "
            f"{data.dtype}{list(data.shape)} here."
        )
    return array if place not in arrays and data.dtype == like.dtype else checkpoint.from_data(array, like)


def _member(index: int) -> str:
    return f"array_{index:04d}"
