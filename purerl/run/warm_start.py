"""Fresh states with the weights of another run."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from purerl.run.errors import RunError

# What a State calls what it has learned; all else, optimisers, replay and environments among it, starts anew.
_LEARNED = ("params", "target_params", "target_critic", "average", "obs_stats", "target_stats")


def with_weights(fresh: Any, trained: dict[str, Any], places: Sequence[int], source: str) -> Any:
    """The states `[S, ...]` with the weights and statistics that T states have `learned`, which take turns.

    places: which one each state is among all of its run, `[S]`. source: what to call the others in an error. Raises
    RunError where an array has another shape, and names it.
    """
    check_weights(learned(fresh), trained, source)
    turns = jnp.asarray(places) % len(jax.tree.leaves(trained)[0])
    return _with(fresh, jax.tree.map(lambda x: jnp.asarray(x)[turns], trained))


def check_weights(fresh: dict[str, Any], trained: dict[str, Any], source: str) -> None:
    """The check of `with_weights`, of what both have `learned`, in numbers or in shapes."""
    here, there = (
        {jax.tree_util.keystr(place): x for place, x in jax.tree_util.tree_leaves_with_path(weights)}
        for weights in (fresh, trained)
    )
    for place in {**here, **there}:
        said = [_of_one(x.get(place)) for x in (there, here)]
        if said[0] != said[1]:
            raise RunError(f"Weights cannot come from {source}: {place} is {said[0]} there and {said[1]} here.")


def _of_one(leaf: Any) -> str:
    """Dtype and shape of one seed's array."""
    return "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape[1:])}"


def learned(states: Any) -> dict[str, Any]:
    """What has been learned, by the names of the fields; of an ensemble beside the policy likewise."""
    found = {name: getattr(states, name) for name in _LEARNED if name in states._fields}
    model = getattr(states, "model", None)
    return {**found, "model": learned(model)} if hasattr(model, "params") else found


def _with(states: Any, learned: dict[str, Any]) -> Any:
    model = {"model": _with(states.model, learned["model"])} if "model" in learned else {}
    return states._replace(**{**learned, **model})
