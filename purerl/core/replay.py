"""A ring of transitions, one packed row each.

A row holds every field of a transition as 32-bit words: floats and integers as they are, bytes and bits four to a
word. One array means one scatter to write and one gather to sample, and an image of bits stays an image of bits.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

from purerl.core.types import PRNGKey


class Replay(NamedTuple):
    """rows: `[capacity, words]`. position: where the next row goes. size: how many rows are filled."""

    rows: UInt32[Array, "capacity words"]
    position: Int[Array, ""]
    size: Int[Array, ""]


def num_words(example: Any) -> int:
    """32-bit words a row takes. example: one transition, without batch axis."""
    return -(-sum(math.prod(leaf.shape) * _bytes(leaf) for leaf in jax.tree.leaves(example)) // 4)


def init(capacity: int, example: Any) -> Replay:
    """An empty memory for `capacity` transitions shaped like `example` (arrays or ShapeDtypeStructs, no batch axis)."""
    return Replay(jnp.zeros((capacity, num_words(example)), jnp.uint32), jnp.int32(0), jnp.int32(0))


def add(replay: Replay, batch: Any) -> Replay:
    """Writes a batch `[B, ...]` over the oldest rows. B must not exceed the capacity."""
    rows = _pack(batch)
    num, capacity = rows.shape[0], replay.rows.shape[0]
    index = (replay.position + jnp.arange(num)) % capacity
    return Replay(
        replay.rows.at[index].set(rows, unique_indices=True),
        (replay.position + num) % capacity,
        jnp.minimum(replay.size + num, capacity),
    )


def sample(key: PRNGKey, replay: Replay, batch_size: int, example: Any) -> Any:
    """batch_size transitions drawn uniformly with replacement, `[batch_size, ...]`. The memory must not be empty."""
    return jax.tree.map(lambda x: x[0], sample_sequences(key, replay, batch_size, example, 1, 1))


def sample_sequences(key: PRNGKey, replay: Replay, batch_size: int, example: Any, length: int, num_envs: int) -> Any:
    """Each transition drawn with those that followed it in its environment, `[length, batch_size, ...]`.

    num_envs: environments that take turns in the rows. A sequence may run on into the next episode. The memory must
    hold at least length * num_envs rows; a first transition is any of those that have enough successors.

    The remainder of a random word favours no transition by more than size / 2^32; randint would draw twice.
    """
    span, capacity = (length - 1) * num_envs, replay.rows.shape[0]
    age = jax.random.bits(key, (batch_size,)) % (replay.size - span).astype(jnp.uint32)
    first = replay.position - replay.size + age.astype(jnp.int32)  # negative where the ring has wrapped
    index = (first[None] + num_envs * jnp.arange(length)[:, None]) % capacity
    flat = _unpack(replay.rows[index.reshape(-1)], example)
    return jax.tree.map(lambda x: x.reshape(length, batch_size, *x.shape[1:]), flat)


def _bytes(leaf: Any) -> int:
    itemsize = jnp.dtype(leaf.dtype).itemsize
    if itemsize not in (1, 4):
        raise TypeError(f"Replay stores 8-bit and 32-bit fields, but got one of {leaf.dtype}.")
    return itemsize


def _pack(batch: Any) -> UInt32[Array, "B words"]:
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(batch)]
    words = [jax.lax.bitcast_convert_type(leaf, jnp.uint32) for leaf in leaves if _bytes(leaf) == 4]
    small = [leaf.astype(jnp.uint8) for leaf in leaves if _bytes(leaf) == 1]
    if small:
        octets = jnp.concatenate(small, axis=1)
        octets = jnp.pad(octets, ((0, 0), (0, -octets.shape[1] % 4)))
        words.append(jax.lax.bitcast_convert_type(octets.reshape(octets.shape[0], -1, 4), jnp.uint32))
    return jnp.concatenate(words, axis=1)


def _unpack(rows: UInt32[Array, "B words"], example: Any) -> Any:
    leaves, structure = jax.tree.flatten(example)
    num_wide = sum(math.prod(leaf.shape) for leaf in leaves if _bytes(leaf) == 4)
    num, words = rows.shape
    octets = jax.lax.bitcast_convert_type(rows[:, num_wide:], jnp.uint8).reshape(num, 4 * (words - num_wide))
    offset = {4: 0, 1: 0}
    unpacked = []
    for leaf in leaves:
        source, start, size = (rows if _bytes(leaf) == 4 else octets), offset[_bytes(leaf)], math.prod(leaf.shape)
        columns = source[:, start : start + size].reshape(-1, *leaf.shape)
        offset[_bytes(leaf)] += size
        wide = _bytes(leaf) == 4
        unpacked.append(jax.lax.bitcast_convert_type(columns, leaf.dtype) if wide else columns.astype(leaf.dtype))
    return structure.unflatten(unpacked)
