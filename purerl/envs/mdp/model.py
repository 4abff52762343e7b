"""Markov decision processes as arrays: what a planner solves exactly is what a learner samples.

An `MDP` lists, for each state and action, the states that may follow, with their probabilities and rewards. `Tabular`
makes an environment of it, so that every algorithm of the project can act in it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from purerl.core.types import PRNGKey
from purerl.envs.spaces import Discrete


class MDP(NamedTuple):
    """S states, A actions, and up to K states that may follow each pair.

    successor: the states that may follow; None means all of them in order, K = S, a dense table.
    probability: T(s'|s, a), sums to 1 over the last axis. reward: R(s, a, s').
    terminal: where an episode is over, so that the value is 0. start: the distribution of first states.
    The discount is not part of it: planners and learners take gamma from their Config.
    """

    successor: Int[Array, "S A K"] | None
    probability: Float[Array, "S A K"]
    reward: Float[Array, "S A K"]
    terminal: Bool[Array, " S"]
    start: Float[Array, " S"]

    @property
    def num_states(self) -> int:
        """S."""
        return self.probability.shape[-3]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.probability.shape[-2]


def expected_reward(mdp: MDP) -> Float[Array, "S A"]:
    """r(s, a) = sum_s' T(s'|s, a) R(s, a, s')."""
    return (mdp.probability * mdp.reward).sum(-1)


def expected_value(mdp: MDP, value: Float[Array, " S"]) -> Float[Array, "S A"]:
    """sum_s' T(s'|s, a) V(s'), where a terminal s' counts nothing: S^2 A products, or one for each successor."""
    value = jnp.where(mdp.terminal, 0.0, value)
    if mdp.successor is None:
        # Accelerators round the factors of a product to some 10 bits unless told otherwise.
        return jnp.matmul(mdp.probability, value, precision="highest")
    return (mdp.probability * value[mdp.successor]).sum(-1)


def approach(mdp: MDP, allowed: Bool[Array, "S A"]) -> Float[Array, "S A"]:
    """The probability that an action takes one of the fewest steps to an end; -1 for one that is not allowed.

    Steps are counted along allowed actions, as if chance were kind. Where allowed actions lead from every state to an
    end, one of each state's has a probability above 0, and whoever always takes the greatest reaches an end for sure.
    """
    possible = (mdp.probability > 0) & allowed[..., None]

    def after(steps: Float[Array, " S"]) -> Float[Array, "S A K"]:
        every = jnp.broadcast_to(steps, mdp.probability.shape) if mdp.successor is None else steps[mdp.successor]
        return jnp.where(possible, every, jnp.inf)

    def shorten(steps: Float[Array, " S"]) -> Float[Array, " S"]:
        return jnp.minimum(steps, 1 + after(steps).min((1, 2)))

    start = jnp.where(mdp.terminal, 0.0, jnp.inf)
    steps, _ = jax.lax.while_loop(
        lambda pair: (pair[0] != pair[1]).any(), lambda pair: (shorten(pair[0]), pair[0]), (shorten(start), start)
    )
    probability = jnp.where(after(steps) < steps[:, None, None], mdp.probability, 0.0).sum(-1)
    return jnp.where(allowed, probability, -1.0)


class Tabular:
    """An MDP as an environment, whose params are the MDP's own arrays: they can be vmapped like any physics.

    time_limit: steps after which an episode is truncated. rows: a map to draw episodes on, as `mdp.grid` reads it; its
    cells are the states, row by row, without its walls # where there are fewer states than cells.
    Raises ValueError with what is wrong of an MDP that is none (`check`), and for a map that does not fit.
    """

    def __init__(self, mdp: MDP, time_limit: int = 100, rows: tuple[str, ...] = ()):
        check(mdp)
        if time_limit < 1:
            raise ValueError(f"time_limit must be at least 1, but is {time_limit}.")
        cells = "".join(rows)
        if rows and mdp.num_states not in (len(cells), len(cells) - cells.count("#")):
            raise ValueError(
                f"A map of {len(cells)} cells with {cells.count('#')} walls is none of {mdp.num_states} states."
            )
        self.default_params, self.time_limit, self.rows = jax.tree.map(jnp.asarray, mdp), time_limit, rows

    def observation_space(self, params: MDP) -> Discrete:
        return Discrete(params.num_states)

    def action_space(self, params: MDP) -> Discrete:
        return Discrete(params.num_actions)

    def reset(self, key: PRNGKey, params: MDP) -> tuple[Array, Any]:
        state = _draw(key, params.start)
        return state, (state, jnp.int32(0))

    def step(self, key: PRNGKey, state: Any, action: Array, params: MDP) -> tuple[Array, Any, Array, Array, Array]:
        position, time = state
        drawn = _draw(key, params.probability[position, action])
        following = drawn if params.successor is None else params.successor[position, action, drawn]
        reward, terminated = params.reward[position, action, drawn], params.terminal[following]
        return following, (following, time + 1), reward, terminated, time + 1 >= self.time_limit

    def max_episode_steps(self, params: MDP) -> int:
        return self.time_limit


def _draw(key: PRNGKey, probability: Float[Array, " K"]) -> Int[Array, ""]:
    """An index with the given probabilities: the number of partial sums that a uniform number has passed."""
    passed = jnp.cumsum(probability[:-1]) <= jax.random.uniform(key)
    # Rounding can leave the partial sums short of 1, but an index of probability 0 at the end must not come up.
    last = probability.shape[0] - 1 - jnp.argmax(probability[::-1] > 0)
    return jnp.minimum(passed.sum(), last).astype(jnp.int32)


def check(mdp: MDP) -> None:
    """Raises ValueError, with the field and the place, where shapes disagree or a distribution is none."""
    shape = np.shape(mdp.probability)
    if len(shape) != 3:
        raise ValueError(f"MDP.probability must be [states, actions, successors], but has the shape {shape}.")
    S, _, K = shape
    expected = {"reward": shape, "terminal": (S,), "start": (S,)}
    expected |= {} if mdp.successor is None else {"successor": shape}
    for name, want in expected.items():
        if (got := np.shape(getattr(mdp, name))) != want:
            raise ValueError(f"MDP.{name} must have the shape {want} to fit probability, but has {got}.")
    if mdp.successor is None and K != S:
        raise ValueError(f"MDP.probability of a dense table must be [S, A, S], but has the shape {shape}.")
    successor = np.zeros(shape) if mdp.successor is None else np.asarray(mdp.successor)
    if (outside := (successor < 0) | (successor >= S)).any():
        raise ValueError(f"MDP.successor must lie in 0 .. {S - 1}, but does not at {_first(outside)}.")
    if (infinite := ~np.isfinite(mdp.reward)).any():
        raise ValueError(f"MDP.reward must be finite, but is not at {_first(infinite)}.")
    for name in ("probability", "start"):
        _check_distribution(name, np.asarray(getattr(mdp, name), np.float64))


def _check_distribution(name: str, probability: np.ndarray) -> None:
    for bad, what in ((np.isnan(probability), "NaN"), (probability < 0, "negative")):
        if bad.any():
            raise ValueError(f"MDP.{name} must hold probabilities, but is {what} at {_first(bad)}.")
    total = probability.sum(-1)
    wrong = np.abs(total - 1) > 1e-5
    if wrong.any():
        where = f"[{', '.join(map(str, _first(wrong)))}]" if wrong.ndim else ""
        raise ValueError(f"MDP.{name}{where} must sum to 1, but sums to {total[wrong].flat[0]:.6g}.")


def _first(mask: Any) -> tuple[int, ...]:
    return tuple(map(int, np.argwhere(mask)[0]))


def on_device(successor: Any, probability: Any, reward: Any, terminal: Any, start: Any) -> MDP:
    """An `MDP` of JAX arrays, also while something is traced."""
    with jax.ensure_compile_time_eval():
        probability, reward, start = (jnp.asarray(x, jnp.float32) for x in (probability, reward, start))
        return MDP(jnp.asarray(successor, jnp.int32), probability, reward, jnp.asarray(terminal), start)
