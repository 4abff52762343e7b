"""Saving and loading states: orbax files, written whole or not at all, with a checksum that is read back.

`save` and `load` keep one pytree in one folder. `save_step` and `load_latest` keep a run's last two.
"""

import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KEEP = 2


class CheckpointError(Exception):
    """A checkpoint is missing, damaged, or of another program."""


def save(path: str | Path, tree: Any) -> None:
    """Writes a pytree of arrays (PRNG keys included) to the new folder `path`; it appears only when complete.

    Raises FileExistsError where `path` exists: nothing is ever overwritten.
    """
    path = Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"{path} exists already: name a folder that does not, or remove it first.")
    leaves = [np.asarray(jax.device_get(_to_data(leaf))) for leaf in jax.tree.leaves(tree)]
    _checkpointer().save(path, {"leaves": {_name(i): leaf for i, leaf in enumerate(leaves)}, "crc": _crc(leaves)})


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
        stored = _checkpointer().restore(path)
        leaves = [np.asarray(stored["leaves"][_name(i)]) for i in range(len(stored["leaves"]))]
    except Exception as error:  # orbax raises many kinds, by which file is broken
        raise CheckpointError(f"The checkpoint {path} cannot be read: {type(error).__name__}.") from error
    if not np.array_equal(stored["crc"], _crc(leaves)):
        raise CheckpointError(f"The checkpoint {path} is damaged: its checksum does not match its contents.")
    expected = [jax.eval_shape(_to_data, leaf) for leaf in likes]
    if [(leaf.shape, leaf.dtype) for leaf in leaves] != [(leaf.shape, leaf.dtype) for leaf in expected]:
        raise CheckpointError(
            f"The checkpoint {path} holds arrays of other shapes: it belongs to another config or version."
        )
    return structure.unflatten(_from_data(leaf, example) for leaf, example in zip(leaves, likes, strict=True))


def steps(folder: Path) -> list[int]:
    """Updates of which `folder` holds a complete checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def save_step(folder: Path, step: int, tree: Any) -> None:
    """Saves as `folder/step` and removes all but the last two."""
    if step in steps(folder):
        return
    save(folder / str(step), tree)
    for old in steps(folder)[:-KEEP]:
        shutil.rmtree(folder / str(old))


def load_latest(folder: Path, like: Any) -> tuple[int, Any, list[str]]:
    """The newest checkpoint that can be read: its step, its tree, and what was wrong with the newer ones.

    Damaged checkpoints, and leftovers of one that was being written, are removed, and their steps can be
    saved anew.
    Raises CheckpointError where none can be read; then nothing is removed.
    """
    problems: list[str] = []
    for step in reversed(steps(folder)):
        try:
            tree = load(folder / str(step), like)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for entry in folder.iterdir():
            if not entry.name.isdigit() or int(entry.name) > step:
                shutil.rmtree(entry)
        return step, tree, problems
    raise CheckpointError(" ".join([f"{folder} holds no checkpoint that can be read.", *problems]))


def _checkpointer() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint.PyTreeCheckpointer()


def _name(index: int) -> str:
    return f"leaf_{index:04d}"


def _crc(leaves: list[np.ndarray]) -> np.ndarray:
    return np.array([zlib.crc32(np.ascontiguousarray(leaf).data) for leaf in leaves], np.uint32)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _from_data(leaf: np.ndarray, example: Any) -> Any:
    if _is_key(example):
        return jax.random.wrap_key_data(jnp.asarray(leaf), impl=jax.random.key_impl(jnp.zeros((), example.dtype)))
    return jnp.asarray(leaf)
