"""Saving and loading states: orbax files, written whole or not at all, with a checksum that is read back.

`save` and `load` keep one pytree in one folder. `save_step` and `load_latest` keep a run's last two.
"""

import contextlib
import itertools
import logging
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KEEP = 2
_PARTIAL = ".orbax-checkpoint-tmp"  # what orbax adds to the name of a folder that it is still writing


class CheckpointError(Exception):
    """A checkpoint is missing, damaged, or of another program."""


def save(path: str | Path, tree: Any) -> None:
    """Writes a pytree of arrays (PRNG keys included) to the new folder `path`; it appears only when complete.

    Raises FileExistsError where `path` exists, since nothing is ever overwritten, and CheckpointError where it cannot
    be written, such as on a full disk; then nothing of it is left.
    """
    path = Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"{path} exists already: name a folder that does not, or remove it first.")
    leaves = [on_host(to_data(leaf)) for leaf in jax.tree.leaves(tree)]
    content = {"leaves": {_name(i): leaf for i, leaf in enumerate(leaves)}, "crc": _crc(leaves)}
    try:
        with _silenced():
            _checkpointer().save(path, content)
    except Exception as error:  # orbax raises many kinds, of which it says on its threads no more than here
        for partial in path.parent.glob(f"{path.name}{_PARTIAL}*"):
            shutil.rmtree(partial, ignore_errors=True)
        full = "No space left" in str(error) or "quota" in str(error)
        reason = "the disk is full" if full else f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(f"The checkpoint {path} cannot be written: {reason}.") from error


def load(path: str | Path, like: Any) -> Any:
    """Reads what `save` wrote.

    like: a pytree of the same structure, shapes and dtypes, such as `jax.eval_shape(ppo.init, key, config)`.
    Raises CheckpointError where the folder is missing, damaged, or holds something else.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    likes, structure = jax.tree.flatten(like)
    try:
        with _silenced():
            stored = _checkpointer().restore(path)
        leaves = [np.asarray(stored["leaves"][_name(i)]) for i in range(len(stored["leaves"]))]
    except Exception as error:  # orbax raises many kinds, by which file is broken
        raise CheckpointError(f"The checkpoint {path} cannot be read: {type(error).__name__}.") from error
    if not np.array_equal(stored["crc"], _crc(leaves)):
        raise CheckpointError(f"The checkpoint {path} is damaged: its checksum does not match its contents.")
    expected = [jax.eval_shape(to_data, leaf) for leaf in likes]
    if [(leaf.shape, leaf.dtype) for leaf in leaves] != [(leaf.shape, leaf.dtype) for leaf in expected]:
        raise CheckpointError(
            f"The checkpoint {path} holds arrays of other shapes: it belongs to another config or version."
        )
    return structure.unflatten(from_data(leaf, example) for leaf, example in zip(leaves, likes, strict=True))


def steps(folder: Path) -> list[int]:
    """Updates of which `folder` holds a complete checkpoint, ascending. Files and other folders in it do not count."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir())


def save_step(folder: Path, step: int, tree: Any) -> None:
    """Saves as `folder/step` and removes all but the last two. Raises CheckpointError where it cannot be written."""
    if step in steps(folder):
        return
    if (folder / str(step)).exists():  # a file, which nobody here wrote
        _set_aside(folder / str(step))
    save(folder / str(step), tree)
    for old in steps(folder)[:-KEEP]:
        shutil.rmtree(folder / str(old))


def load_latest(folder: Path, like: Any) -> tuple[int, Any, list[str]]:
    """The newest checkpoint that can be read: its step, its tree, and what was wrong with the newer ones.

    It only reads, so that it may look into the folder of a run in progress, which removes old checkpoints meanwhile.
    Raises CheckpointError where there is none, or none that can be read.
    """
    tried: set[int] = set()
    problems: list[str] = []
    while unread := [step for step in steps(folder) if step not in tried]:
        tried.add(unread[-1])
        try:
            return unread[-1], load(folder / str(unread[-1]), like), problems
        except CheckpointError as error:
            if (folder / str(unread[-1])).is_dir():
                problems.append(str(error))
    if problems:
        raise CheckpointError(" ".join([f"{folder} holds no checkpoint that can be read.", *problems]))
    raise CheckpointError(f"{folder} holds no checkpoint yet.")


def set_newer_aside(folder: Path, step: int) -> list[str]:
    """Renames checkpoints newer than `step`, and leftovers of one half written, to `damaged-<n>`; says so of each.

    For a run that goes on from `step` and alone writes to the folder: those steps can then be saved anew.
    """
    newer = [folder / str(later) for later in steps(folder) if later > step]
    return [f"{path} is now {_set_aside(path).name}." for path in [*newer, *sorted(folder.glob(f"*{_PARTIAL}*"))]]


def _set_aside(path: Path) -> Path:
    """Renames to the first free `damaged-<n>` beside it."""
    names = (path.parent / f"damaged-{n}" for n in itertools.count())
    return path.rename(next(name for name in names if not name.exists()))


def _checkpointer() -> Any:
    """Of this process alone, which where there are several does not wait for the others."""
    import orbax.checkpoint as orbax

    alone = orbax.options.MultiprocessingOptions(jax.process_index(), active_processes={jax.process_index()})
    handler = orbax.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return orbax.Checkpointer(handler, multiprocessing_options=alone)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keeps orbax's threads from printing the traceback of an error that is raised here as well.

    After an error it goes on dropping what they say of their closed event loop, since some of them end later.
    """
    logger, before = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = hook
    try:
        yield
        sys.unraisablehook = before
    finally:
        logger.setLevel(level)


def _name(index: int) -> str:
    return f"leaf_{index:04d}"


def _crc(leaves: list[np.ndarray]) -> np.ndarray:
    return np.array([zlib.crc32(np.ascontiguousarray(leaf).data) for leaf in leaves], np.uint32)


def on_host(leaf: Any) -> np.ndarray:
    """A copy at most for now: an array of several devices keeps the one that numpy makes of it as long as it lives."""
    if isinstance(leaf, jax.Array):
        shards = [shard.data for shard in leaf.addressable_shards]
        leaf = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)
    return np.asarray(leaf)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_data(leaf: Any) -> Any:
    """An array as a file can hold it: of PRNG keys their numbers."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def from_data(leaf: np.ndarray, example: Any) -> Any:
    """What `to_data` was given; example: an array of its kind, or its shape and dtype."""
    if _is_key(example):
        return jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(jnp.zeros((), example.dtype)))
    return jnp.asarray(leaf)
