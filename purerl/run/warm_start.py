"""Fresh states with the weights of another run."""

from typing import Any

import jax
import jax.numpy as jnp

from purerl.run.errors import RunError

# What a State calls what it has learned; all else, optimisers, replay and environments among it, starts anew.
_LEARNED = ("params", "target_params", "target_critic", "average", "obs_stats", "target_stats")


def with_weights(fresh: Any, trained: Any, source: str) -> Any:
    """The states `[S, ...]` with the weights and statistics of the trained ones `[T, ...]`, which take turns.

    source: what to call those in an error. Raises RunError where an array has another shape, and names it.
    """
    _check(fresh, trained, source)
    num = len(jax.tree.leaves(fresh)[0])
    return _learned_from(fresh, jax.tree.map(lambda x: jnp.asarray(x)[jnp.arange(num) % x.shape[0]], trained))


def _learned_from(fresh: Any, trained: Any) -> Any:
    changes = {name: getattr(trained, name) for name in _LEARNED if name in fresh._fields}
    if hasattr(getattr(fresh, "model", None), "params"):  # an ensemble beside the policy
        changes["model"] = _learned_from(fresh.model, trained.model)
    return fresh._replace(**changes)


def _check(fresh: Any, trained: Any, source: str) -> None:
    shapes = [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree) for tree in (fresh, trained)]
    here, there = (
        {jax.tree_util.keystr(place): leaf for place, leaf in jax.tree_util.tree_leaves_with_path(_only_learned(tree))}
        for tree in shapes
    )
    for place in {**here, **there}:
        if here.get(place) != there.get(place):
            said = [f"{x.dtype}{list(x.shape)}" if x else "missing" for x in (there.get(place), here.get(place))]
            raise RunError(f"Weights cannot come from {source}: {place} is {said[0]} there and {said[1]} here.")


def _only_learned(state: Any) -> dict[str, Any]:
    found = {name: getattr(state, name) for name in _LEARNED if name in state._fields}
    model = getattr(state, "model", None)
    return {**found, "model": _only_learned(model)} if hasattr(model, "params") else found
