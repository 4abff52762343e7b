"""The packed ring against a NumPy model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from purerl import envs
from purerl.core import replay
from purerl.core.rollout import flatten, unroll

CAPACITY = 7
KEY = jax.random.key(0)
# Wide and narrow fields take turns, the narrow ones do not fill whole words, and `id` tells every row apart.
EXAMPLE = {
    "bits": jax.ShapeDtypeStruct((5,), "bool"),
    "bytes": jax.ShapeDtypeStruct((2, 3), "uint8"),
    "flag": jax.ShapeDtypeStruct((), "bool"),
    "id": jax.ShapeDtypeStruct((), "int32"),
    "numbers": jax.ShapeDtypeStruct((2, 3), "float32"),
    "signed": jax.ShapeDtypeStruct((3,), "int8"),
}
SPECIAL = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-39, 3.4e38], np.float32)

add = jax.jit(replay.add)
draw_sequences = jax.jit(
    lambda key, memory, length, num_envs: replay.sample_sequences(key, memory, 256, EXAMPLE, length, num_envs),
    static_argnums=(2, 3),
)
draw = jax.jit(lambda key, memory: replay.sample(key, memory, 256, EXAMPLE))


def random_batch(rng, start, num):
    """A batch of num rows of random bits, numbered from start."""
    batch = {
        name: np.frombuffer(
            rng.bytes(num * int(np.prod(x.shape)) * x.dtype.itemsize), x.dtype if x.dtype != bool else "uint8"
        )
        for name, x in EXAMPLE.items()
    }
    batch = {name: x.reshape(num, *EXAMPLE[name].shape) for name, x in batch.items()}
    batch |= {name: batch[name] % 2 == 1 for name in ("bits", "flag")}
    batch["id"] = np.arange(start, start + num, dtype=np.int32) - 3  # negative ones too
    batch["numbers"] = np.where(rng.random((num, 2, 3)) < 0.5, rng.choice(SPECIAL, (num, 2, 3)), batch["numbers"])
    return batch


def as_rows(batch):
    """Each transition as the exact bytes of its fields: NaN differs from NaN where a bit does, and -0 from 0."""
    fields = [np.asarray(x) for x in jax.tree.leaves(batch)]
    return [tuple((x[i].dtype.name, x[i].shape, x[i].tobytes()) for x in fields) for i in range(len(fields[0]))]


@given(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_against_a_model(sizes, seed):
    """After adds of any sizes, the ring holds the last CAPACITY rows, bit by bit, and gives nothing else."""
    rng = np.random.default_rng(seed)
    memory, model, total = replay.init(CAPACITY, EXAMPLE), [], 0
    for num in sizes:
        batch = random_batch(rng, total, num)
        memory, model, total = add(memory, batch), model + as_rows(batch), total + num
        assert memory.size == min(total, CAPACITY) and memory.position == total % CAPACITY
    # 256 draws miss one of 7 rows with a probability of 7 (6/7)^256 < 1e-16.
    sampled = draw(jax.random.key(seed), memory)
    assert set(as_rows(sampled)) == set(model[-CAPACITY:])


def test_sample_keeps_structure_shapes_and_dtypes():
    memory = add(replay.init(CAPACITY, EXAMPLE), random_batch(np.random.default_rng(0), 0, 3))
    batch = draw(KEY, memory)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == {
        name: ((256, *x.shape), x.dtype) for name, x in EXAMPLE.items()
    }


@pytest.mark.parametrize("filled", [3, CAPACITY])
def test_sample_is_uniform_over_filled_rows(filled):
    memory = add(replay.init(CAPACITY, EXAMPLE), random_batch(np.random.default_rng(0), 3, filled))
    ids = np.asarray(jax.vmap(lambda key: draw(key, memory)["id"])(jax.random.split(KEY, 40))).ravel()
    counts = np.bincount(ids, minlength=filled)
    assert len(counts) == filled
    assert stats.chisquare(counts).pvalue > 1e-3


@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 40))
def test_sequences_follow_one_environment(length, num_envs, steps):
    """Rows of num_envs environments take turns: every sequence steps by num_envs, and all that fit are drawn."""
    memory = replay.init(CAPACITY, EXAMPLE)
    steps = max(steps, length)
    for step in range(steps):
        memory = add(memory, random_batch(np.random.default_rng(0), step * num_envs, num_envs))
    ids = np.asarray(draw_sequences(KEY, memory, length, num_envs)["id"]) + 3  # [length, 256]
    np.testing.assert_array_equal(np.diff(ids, axis=0), num_envs)
    total = steps * num_envs
    oldest, span = max(0, total - CAPACITY), (length - 1) * num_envs
    assert set(ids[0]) == set(range(oldest, total - span))


def test_different_keys_draw_different_rows():
    memory = add(replay.init(CAPACITY, EXAMPLE), random_batch(np.random.default_rng(0), 0, CAPACITY))
    assert (draw(KEY, memory)["id"] != draw(jax.random.key(1), memory)["id"]).any()


def test_vmapped_add_equals_solo_add():
    rng = np.random.default_rng(0)
    memories, batches, solo = [], [], []
    for i in range(3):  # three memories at three positions, one of them about to wrap
        memory = add(replay.init(CAPACITY, EXAMPLE), random_batch(rng, 0, 2 * i + 1))
        batch = random_batch(rng, 100 * i, 4)
        memories, batches, solo = [*memories, memory], [*batches, batch], [*solo, add(memory, batch)]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, jax.vmap(replay.add)(stack(memories), stack(batches)), stack(solo))


def bound(name, num_envs):
    env = envs.make(name)
    return envs.BoundEnv(env, env.default_params, num_envs)


def test_row_sizes():
    """Floats and integers take 4 bytes, bytes and bits one; only the end of a row is padded, to a multiple of 4."""

    def row_bytes(name):
        return replay.init(10, bound(name, 1).transition).rows.nbytes / 10

    assert row_bytes("CartPole-v1") == 44  # 2 obs of 4 floats, action, reward, two ends: 16 + 16 + 4 + 4 + 2 = 42
    assert row_bytes("Breakout-MinAtar") == 812  # 2 obs of 10 x 10 x 4 bits at a byte each: 800 + 4 + 4 + 2 = 810
    assert row_bytes("Pong-misc") == 7212  # 2 obs of 30 x 40 x 3 bits at a byte each: 7200 + 4 + 4 + 2 = 7210


@pytest.mark.parametrize("name", ["Breakout-MinAtar", "Pong-misc"])
def test_pixels_come_back_exactly(name):
    """What the env showed, before and after each step, is what the memory gives back: as bits, final_obs and all."""
    env = bound(name, 4)
    _, trajectory, _ = jax.jit(lambda: unroll(KEY, env, env.reset(KEY), lambda key, obs: env.sample(key), 60))()
    transitions, example = flatten(trajectory), env.transition
    memory = replay.add(replay.init(240, example), transitions)
    given = replay._unpack(memory.rows, example)
    for stored, seen in zip(given, transitions, strict=True):
        assert stored.dtype == seen.dtype
        np.testing.assert_array_equal(stored, seen)
    assert given.obs.dtype == bool and given.terminated.any()
    # The board that ended an episode is not the one that the next episode begins with.
    ended = np.flatnonzero(given.terminated[:-4])
    assert (np.asarray(given.final_obs)[ended] != np.asarray(given.obs)[ended + 4]).any()


def test_other_sizes_are_refused():
    with pytest.raises(TypeError, match="float16"):
        replay.init(3, {"obs": jax.ShapeDtypeStruct((2,), "float16")})
