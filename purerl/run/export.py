"""A policy as a StableHLO program, which jax runs without purerl, flax or the algorithm's file."""

from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from purerl import envs
from purerl.core.types import Policy
from purerl.run.evaluate import check_state

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_policy(
    path: str | Path, algorithm: ModuleType, state: Any, config: Any, *, deterministic: bool = True
) -> Path:
    """Writes a policy of one seed, its weights in it, to the new file `path` as `jax.export` does; returns the path.

    `jax.export.deserialize(bytearray(content)).call(obs)` is then the action, in the env's units, of one observation in
    its units and dtype. deterministic: the policy's mode; a draw takes numbers to draw by before the observation,
    `call(key_data, obs)`, as `jax.random.key_data(key)` gives. A policy that remembers takes and gives a list of arrays
    beside, `action, memory = call(obs, memory)`, zeros at the start of an episode.
    Raises FileExistsError where `path` exists, TypeError where the state is of another algorithm or Config or of many
    seeds, and ValueError for a memory that starts otherwise.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already: name a file that does not, or remove it first.")
    check_state(algorithm, state, config)
    env = envs.bind(config)
    policy = algorithm.policy(state, config, deterministic=deterministic)
    memory = [jnp.asarray(x) for x in jax.tree.leaves(policy.memory)]
    if any(x.any() for x in memory):
        raise ValueError("A policy is exported where what it remembers starts as zeros, but this one's does not.")
    key = jax.ShapeDtypeStruct((2,), "uint32")
    inputs = [*([] if deterministic else [key]), env.transition.obs, *([memory] if memory else [])]
    exported = jax.export.export(jax.jit(_program(policy, deterministic)), platforms=PLATFORMS)(*inputs)
    partial = path.with_name(f".{path.name}.tmp")
    try:
        partial.write_bytes(exported.serialize())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _program(policy: Policy, deterministic: bool) -> Any:
    """(key_data where it draws, obs, memory where it remembers) -> the action, and the memory where it remembers."""
    structure = jax.tree.structure(policy.memory)

    def act(*inputs: Any) -> Any:
        key = jax.random.key(0) if deterministic else jax.random.wrap_key_data(inputs[0])
        obs, *memory = inputs[0 if deterministic else 1 :]
        action, after = policy.act(key, obs, structure.unflatten(memory[0] if memory else []))
        return (policy.to_units(action), jax.tree.leaves(after)) if memory else policy.to_units(action)

    return act
