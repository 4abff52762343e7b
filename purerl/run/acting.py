"""What of a state its policy reads."""

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import jax

from purerl import envs


def acting_leaves(algorithm: ModuleType, state: Any, config: Any) -> dict[str, Any]:
    """The arrays of a state, by their place in it, on which its policy's actions depend, greedy or drawn.

    state: of one seed or, where every array has the same leading axes, of many; or shapes.
    """
    places = [jax.tree_util.keystr(place) for place, _ in jax.tree_util.tree_leaves_with_path(state)]
    return leaves_at(state, [places[i] for i in read_by_policy(algorithm, config)])


def leaves_at(state: Any, places: Iterable[str]) -> dict[str, Any]:
    """The arrays of a state at these places."""
    leaves = {jax.tree_util.keystr(place): leaf for place, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return {place: leaves[place] for place in places}


def with_leaves(state: Any, leaves: dict[str, Any]) -> Any:
    """The state with these arrays, by their place, instead of its own."""
    return jax.tree_util.tree_map_with_path(lambda place, x: leaves.get(jax.tree_util.keystr(place), x), state)


def read_by_policy(algorithm: ModuleType, config: Any) -> list[int]:
    """Which leaves of a state are left in the program that acts: lowering drops the arguments that nothing reads."""
    like = jax.eval_shape(algorithm.init, jax.random.key(0), config)
    leaves, structure = jax.tree.flatten(like)
    key, obs = jax.eval_shape(lambda: jax.random.key(0)), envs.bind(config).transition.obs

    def acting(leaves: list[Any], config: Any, key: Any, obs: Any) -> Any:
        both = []
        for deterministic in (True, False):
            policy = algorithm.policy(structure.unflatten(leaves), config, deterministic=deterministic)
            both.append((policy.memory, policy.act(key, obs, policy.memory)))
        return both

    config = jax.eval_shape(lambda config: config, config)  # of a vmapped training its numbers are not there yet
    exported = jax.export.export(jax.jit(acting), platforms=("cpu",))(leaves, config, key, obs)
    return [i for i in exported.module_kept_var_idx if i < len(leaves)]
