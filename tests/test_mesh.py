"""One training over two devices: where its arrays lie, and that its numbers are those of one device."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from purerl import cem, ppo, pqn, q_learning, runner
from purerl.core.mesh import over_envs
from tests import tiny

CONFIG = tiny.config(ppo, num_envs=4, normalize_obs=True, normalize_reward=True, total_timesteps=128)


def mesh(kind: AxisType = AxisType.Auto) -> Any:
    return jax.make_mesh((2,), ("envs",), axis_types=(kind,))


def assert_near(left: Any, right: Any) -> None:
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "config"),
    [(ppo, CONFIG), (pqn, tiny.config(pqn, num_envs=4, total_timesteps=128)), (cem, tiny.config(cem))],
)
def test_a_training_over_two_devices_is_that_over_one(algorithm: Any, config: Any) -> None:
    one = algorithm.train(jax.random.key(0), config)
    with jax.set_mesh(mesh()):
        two = algorithm.train(jax.random.key(0), config)
    assert_near((one.state.params, one.metrics), (two.state.params, two.metrics))
    assert_near(*(jax.tree.map(jax.random.key_data, result.state.key) for result in (one, two)))


def test_each_device_steps_its_envs_and_takes_its_part_of_each_minibatch() -> None:
    """64 observations an update, 16 a minibatch: the first layer sees 32 of those and 8 of these."""
    config = CONFIG.replace(num_steps=16, num_minibatches=4)
    state = jax.jit(ppo.init)(jax.random.key(0), config)
    with jax.set_mesh(mesh()):
        everywhere = jax.device_put(state, jax.NamedSharding(mesh(), PartitionSpec()))  # as each chunk of a run begins
        compiled = jax.jit(ppo.update).lower(everywhere, config).compile()
        obs = compiled(everywhere, config)[0].env_state.obs
    assert {shard.data.shape for shard in obs.addressable_shards} == {(2, 4)}
    program = compiled.as_text()
    assert "all-reduce(" in program, "no gradients are averaged"
    assert {size for size in (8, 16, 32, 64) if f"f32[{size},8]" in program} == {8, 32}


@pytest.mark.parametrize("axis", [0, 1])
def test_only_a_mesh_that_fits_splits(axis: int) -> None:
    x = jnp.zeros((4, 4))
    assert over_envs(x, axis) is x
    with jax.set_mesh(mesh()):
        split = jax.jit(lambda x: over_envs(x, axis))(x)
        assert split.sharding.shard_shape(x.shape) == ((2, 4), (4, 2))[axis]
        np.testing.assert_array_equal(jax.jit(lambda x: over_envs(2 * x, axis))(jnp.ones((3, 3))), 2 * np.ones((3, 3)))
    with jax.set_mesh(mesh(AxisType.Explicit)), pytest.raises(TypeError, match="must be of AxisType"):
        over_envs(x, axis)


@pytest.mark.thorough
def test_the_runner_splits_and_goes_on_alike(tmp_path: Path) -> None:
    """Two seeds in turn, each on both devices; what is saved is what one device saves."""
    one = tiny.run(ppo, CONFIG, seeds=[0, 1])
    out: dict[str, Any] = {"out": tmp_path / "run", "seeds": [0, 1], "eval_every": 64, "eval_episodes": 3}
    tiny.run(ppo, CONFIG, devices_per_seed=2, on_chunk=lambda *_: True, **out)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["options"]["devices_per_seed"] == 2
    said = list[str]()
    two = tiny.run(ppo, CONFIG, resume=True, say=said.append, **out)
    assert two.finished and not any("numbers may differ" in line for line in said)
    assert_near(one.states.params, two.states.params)
    whole = tiny.run(ppo, CONFIG, devices_per_seed=2, seeds=[0, 1])
    tiny.assert_same_bits(whole.states, two.states)
    tiny.run(ppo, CONFIG, resume=True, devices_per_seed=1, say=said.append, **out)
    assert "devices_per_seed is 1 and was 2: numbers may differ." in said


@pytest.mark.parametrize(
    ("algorithm", "config", "devices", "message"),
    [
        (ppo, CONFIG, 3, "must be between 1 and 2, the number of devices here, but is 3"),
        (ppo, CONFIG, 0, "must be between 1 and 2, the number of devices here, but is 0"),
        (ppo, tiny.config(ppo, num_envs=3, num_minibatches=1), 2, "does not divide num_envs = 3 of ppo"),
        (q_learning, tiny.config(q_learning), 2, "q_learning steps a single env"),
    ],
)
def test_what_cannot_be_split_is_told(algorithm: Any, config: Any, devices: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(runner.RunError, match=message):
        tiny.run(algorithm, config, devices_per_seed=devices, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_runner_is_called_outside_of_a_mesh() -> None:
    with jax.set_mesh(mesh()), pytest.raises(runner.RunError, match="call it outside of jax"):
        tiny.run(ppo, CONFIG)
