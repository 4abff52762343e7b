"""Markov decision processes as arrays: what a planner solves exactly is what a learner samples.

An `MDP` lists, for each state and action, the states that may follow, with their probabilities and rewards. `Tabular`
makes an environment of it, so that every algorithm of the project can act in it:

    from purerl.core import mdp
    lake = mdp.frozen_lake("4x4", slippery=True)
    q_learning.train(jax.random.key(0), q_learning.Config(env=mdp.Tabular(lake, time_limit=100)))

The names "mdp/frozen_lake_4x4", "mdp/cliff_walking" and so on (`NAMES`) stand for ready-made ones.
"""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from purerl.core import envs
from purerl.core.envs import Discrete

_UP, _RIGHT, _DOWN, _LEFT = range(4)
_MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])


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
        return mdp.probability @ value
    return (mdp.probability * value[mdp.successor]).sum(-1)


def policy_value(mdp: MDP, policy: Any, gamma: float) -> np.ndarray:
    """V of a policy `[S, A]` (probabilities of actions), by a linear solve in float64 on the host; `[S]`.

    Solves (I - gamma P) V = r, Sutton and Barto (2018), eq. 4.4. An oracle, which is neither traced nor vmapped: inside
    vmap, LU factorisations can deadlock on CPU. Raises numpy.linalg.LinAlgError where gamma is 1 and the policy may
    never terminate.
    """
    policy, going_on = np.asarray(policy, np.float64), ~np.asarray(mdp.terminal)
    transition, reward = (np.asarray(x, np.float64) for x in _dense(mdp))
    reward = np.einsum("sa,sat,sat->s", policy, transition, reward) * going_on
    transition = np.einsum("sa,sat->st", policy, transition) * going_on[:, None] * going_on[None]
    return np.linalg.solve(np.eye(len(reward)) - gamma * transition, reward)


def optimal_value(mdp: MDP, gamma: float) -> np.ndarray:
    """V* `[S]`: policy iteration with linear solves in float64 on the host, until no action is better."""
    transition, reward = (np.asarray(x, np.float64) for x in _dense(mdp))
    reward, going_on = (transition * reward).sum(-1), ~np.asarray(mdp.terminal)
    # The uniform policy terminates wherever any policy can, so its value exists at gamma = 1 as well.
    policy = np.full(reward.shape, 1 / mdp.num_actions)
    while True:
        value = policy_value(mdp, policy, gamma)
        q = (reward + gamma * transition @ (value * going_on)) * going_on[:, None]
        if (q.max(1) <= value + 1e-10).all():
            return value
        policy = np.eye(mdp.num_actions)[q.argmax(1)]


def dense(mdp: MDP) -> MDP:
    """The same MDP as S x A x S tables."""
    transition, reward = _dense(mdp)
    return mdp._replace(successor=None, probability=jnp.asarray(transition), reward=jnp.asarray(reward))


def _dense(mdp: MDP) -> tuple[np.ndarray, np.ndarray]:
    probability, reward = np.asarray(mdp.probability), np.asarray(mdp.reward)
    if mdp.successor is None:
        return probability, reward
    S, A, _ = probability.shape
    index = (*np.ogrid[:S, :A, :1][:2], np.asarray(mdp.successor))
    transition, total = np.zeros((2, S, A, S), np.float32)
    np.add.at(transition, index, probability)
    np.add.at(total, index, probability * reward)  # a successor named twice gets its mean reward
    return transition, np.divide(total, transition, out=np.zeros_like(total), where=transition > 0)


# ---------------------------------------------------------------------------------------------------------------------
# As an environment


class Tabular:
    """An MDP as an environment, whose params are the MDP's own arrays: they can be vmapped like any physics.

    time_limit: steps after which an episode is truncated.
    Raises ValueError with what is wrong of an MDP that is none (`check`).
    """

    def __init__(self, mdp: MDP, time_limit: int = 100):
        check(mdp)
        if time_limit < 1:
            raise ValueError(f"time_limit must be at least 1, but is {time_limit}.")
        self.default_params, self.time_limit = jax.tree.map(jnp.asarray, mdp), time_limit

    def observation_space(self, params: MDP) -> Discrete:
        return Discrete(params.num_states)

    def action_space(self, params: MDP) -> Discrete:
        return Discrete(params.num_actions)

    def reset(self, key: Key[Array, ""], params: MDP) -> tuple[Array, Any]:
        state = _draw(key, params.start)
        return state, (state, jnp.int32(0))

    def step(
        self, key: Key[Array, ""], state: Any, action: Array, params: MDP
    ) -> tuple[Array, Any, Array, Array, Array]:
        position, time = state
        drawn = _draw(key, params.probability[position, action])
        following = drawn if params.successor is None else params.successor[position, action, drawn]
        reward, terminated = params.reward[position, action, drawn], params.terminal[following]
        return following, (following, time + 1), reward, terminated, time + 1 >= self.time_limit


def _draw(key: Key[Array, ""], probability: Float[Array, " K"]) -> Int[Array, ""]:
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


def check_solvable(config: Any) -> None:
    """Raises TypeError where config.env is not `Tabular`, and ValueError where gamma is 1 and a state never terminates.

    Values may then have no bound, and sweeps no end. A gamma that is an array passes, and so do MDPs that are traced or
    stacked for vmap: their values may not exist yet.
    """
    from purerl.core import checks

    env, gamma = checks.env(config), config.gamma
    if not isinstance(env, Tabular):
        raise TypeError(
            f"{config.env} shows no transition probabilities to plan with: name an env that begins with mdp/, make one "
            "by mdp.Tabular(MDP(...)), or learn from samples with q_learning."
        )
    mdp = env.default_params if config.env_params is None else config.env_params
    stacked = np.ndim(mdp.probability) != 3
    if not isinstance(gamma, int | float) or gamma != 1 or stacked or any(isinstance(x, jax.core.Tracer) for x in mdp):
        return
    S, A, K = np.shape(mdp.probability)
    following = np.broadcast_to(np.arange(S), (S, A, K)) if mdp.successor is None else np.asarray(mdp.successor)
    possible, ends = np.asarray(mdp.probability) > 0, np.asarray(mdp.terminal)
    while (more := ends | (possible & ends[following]).any((1, 2))).sum() > ends.sum():
        ends = more
    if not ends.all():
        raise ValueError(
            f"gamma = 1 needs an end within reach of every state, but state {int(np.argmin(ends))} never terminates, "
            "whatever is done: its value may be infinite. Take gamma < 1, or add a terminal state."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Ready-made ones


def grid(
    rows: tuple[str, ...],
    rewards: dict[str, float],
    *,
    ends: str = "G",
    back_to_start: str = "",
    slip: float = 0.0,
    directions: tuple[int, ...] = (_UP, _RIGHT, _DOWN, _LEFT),
) -> MDP:
    """A gridworld from text: S where it starts, # walls, any other letter a tile. States count row by row.

    rewards: what entering a tile pays; a tile that is not named pays nothing. ends: tiles that terminate.
    back_to_start: tiles that send the agent to S. slip: probability of moving to either side of the direction meant,
    half of it each; whoever would leave the grid or enter a wall stays. directions: what action 0, 1, 2, 3 means.
    """
    tiles = np.array([list(row) for row in rows])
    height, width = tiles.shape
    start = int(np.argmax(tiles.ravel() == "S"))
    offsets, chances = ((0,), (1.0,)) if slip == 0 else ((-1, 0, 1), (slip / 2, 1 - slip, slip / 2))
    successor = np.zeros((tiles.size, 4, len(offsets)), np.int32)
    for (y, x), (action, direction), (k, offset) in itertools.product(
        np.ndindex(height, width), enumerate(directions), enumerate(offsets)
    ):
        ahead = np.clip(np.array([y, x]) + _MOVES[(direction + offset) % 4], 0, [height - 1, width - 1])
        successor[y * width + x, action, k] = y * width + x if tiles[tuple(ahead)] == "#" else ahead @ [width, 1]
    entered = tiles.ravel()[successor]
    reward = np.vectorize(lambda tile: rewards.get(tile, 0.0), otypes=[np.float32])(entered)
    successor = np.where(np.isin(entered, list(back_to_start)), start, successor)
    terminal = np.isin(tiles.ravel(), list(ends))
    successor[terminal] = np.flatnonzero(terminal)[:, None, None]
    reward[terminal] = 0
    probability = np.broadcast_to(np.asarray(chances, np.float32), successor.shape)
    return _on_device(successor, probability, reward, terminal, np.eye(tiles.size, dtype=np.float32)[start])


def _on_device(successor: Any, probability: Any, reward: Any, terminal: Any, start: Any) -> MDP:
    with jax.ensure_compile_time_eval():
        probability, reward, start = (jnp.asarray(x, jnp.float32) for x in (probability, reward, start))
        return MDP(jnp.asarray(successor, jnp.int32), probability, reward, jnp.asarray(terminal), start)


_LAKES = {
    "4x4": ("SFFF", "FHFH", "FFFH", "HFFG"),
    "8x8": ("SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF", "FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"),
}


def frozen_lake(size: str = "4x4", slippery: bool = True) -> MDP:
    """Gymnasium's FrozenLake: actions left, down, right, up; 1 for the goal G, holes H end the episode with nothing.

    size: "4x4" or "8x8". slippery: each move goes as meant, or to either side of it, with a third each.
    """
    return grid(_LAKES[size], {"G": 1.0}, ends="GH", slip=2 / 3 * slippery, directions=(_LEFT, _DOWN, _RIGHT, _UP))


def cliff_walking() -> MDP:
    """Sutton and Barto (2018), example 6.6: -1 a step, the cliff costs -100 and sends back to the start.

    Actions up, right, down, left.
    """
    rows = ("." * 12, "." * 12, "." * 12, "S" + "C" * 10 + "G")
    return grid(rows, {".": -1.0, "S": -1.0, "G": -1.0, "C": -100.0}, back_to_start="C")


def gridworld() -> MDP:
    """Ten by ten cells with walls: -0.04 a step, 1 for the goal, -1 for the pit P; a move slips aside with 0.2."""
    rows = (
        "S.........",
        ".####.###.",
        ".#......#.",
        ".#.####.#.",
        "...#..#...",
        ".#.#..#.#.",
        ".#.##.#.#.",
        ".#......#.",
        ".####.###.",
        "...P.....G",
    )
    return grid(rows, {".": -0.04, "S": -0.04, "G": 1.0, "P": -1.0}, ends="GP", slip=0.2)


def random_walk(num_states: int = 5) -> MDP:
    """Sutton and Barto (2018), example 6.2: a row of cells with an end on either side, 1 for the right one.

    Both actions step left or right with a half each, so that every policy is the walk; state 0 and the last are the
    ends, and it starts in the middle. V of cell i is i / (num_states + 1) at gamma = 1.
    """
    S = num_states + 2
    cells = np.arange(S)[:, None, None] + np.zeros((1, 2, 1), int)
    successor = np.clip(np.concatenate([cells - 1, cells + 1], axis=2), 0, S - 1).astype(np.int32)
    terminal = np.isin(np.arange(S), (0, S - 1))
    successor[terminal] = np.flatnonzero(terminal)[:, None, None]
    reward = ((successor == S - 1) & ~terminal[:, None, None]).astype(np.float32)
    start = np.eye(S, dtype=np.float32)[S // 2]
    return _on_device(successor, np.full(successor.shape, 0.5, np.float32), reward, terminal, start)


def garnet(key: Key[Array, ""], num_states: int, num_actions: int, num_successors: int) -> MDP:
    """A random MDP (Archibald et al. 1995; Bhatnagar et al. 2009): pure, so it can be vmapped over keys.

    Each pair has num_successors different successors, with probabilities cut at random places of [0, 1] and rewards
    from a normal distribution. Nothing terminates; it starts anywhere.
    """
    shape = (num_states, num_actions)
    successor_key, cut_key, reward_key = jax.random.split(key, 3)
    order = jnp.argsort(jax.random.uniform(successor_key, (*shape, num_states)), axis=-1)
    cuts = jnp.sort(jax.random.uniform(cut_key, (*shape, num_successors - 1)), axis=-1)
    edges = jnp.pad(cuts, ((0, 0), (0, 0), (1, 0))), jnp.pad(cuts, ((0, 0), (0, 0), (0, 1)), constant_values=1.0)
    return MDP(
        order[..., :num_successors].astype(jnp.int32),
        edges[1] - edges[0],
        jax.random.normal(reward_key, (*shape, num_successors)),
        jnp.zeros(num_states, bool),
        jnp.full(num_states, 1 / num_states),
    )


# ---------------------------------------------------------------------------------------------------------------------
# From an environment

_RESETS, _BATCH = 4096, 256


def from_env(env: Any, params: Any = None, *, max_states: int = 10_000) -> MDP:
    """The tables of an environment whose state, apart from a clock in a field named `time`, takes few values.

    env: a name or an env object with discrete actions. params: its physics; None means its own.
    The states are those within reach of the start states of 4,096 resets, of which `start` holds the shares. They are
    numbered in the order of their values. Steps must not be random, as far as 16 draws for each state and action show,
    but for FrozenLake-misc and FourRooms-misc, of which it is known how chance replaces actions. The time limit is left
    out: `Tabular` has one of its own.
    Raises ValueError where actions are not discrete, where there are more than max_states states, where steps are
    random in any other way, and where the same state ends an episode at one time and not at another.
    """
    with jax.ensure_compile_time_eval():
        adapter = envs.make(env)
        params = adapter.default_params if params is None else params
        if isinstance(adapter, Tabular):
            return params
        if not isinstance(space := adapter.action_space(params), Discrete):
            raise ValueError(f"from_env lists states and actions, but {env} has the action space {space}.")
        quiet, quiet_params, chance = _without_noise(adapter, params, space.n)
        rows, following, reward, terminal, start = _enumerate(env, quiet, quiet_params, space.n, max_states)
    order = np.lexsort(rows.T[::-1])
    number = np.argsort(order)
    following, reward, terminal, start = number[following[order]], reward[order], terminal[order], start[order]
    if (chance == np.eye(space.n)).all():
        probability = np.ones((*reward.shape, 1))
        return _on_device(following[..., None], probability, reward[..., None], terminal, start)
    # Successor k of a state is where action k leads; chance says how often that is the action done.
    shape = (len(rows), *chance.shape)
    following, probability, reward = (np.broadcast_to(x, shape) for x in (following[:, None], chance, reward[:, None]))
    return _on_device(following, probability, reward, terminal, start)


def _without_noise(adapter: Any, params: Any, num_actions: int) -> tuple[Any, Any, np.ndarray]:
    """The env and its params without chance, and the probabilities `[A, A]` that chance makes each action another."""
    same, name = np.eye(num_actions), getattr(getattr(adapter, "env", None), "name", "")
    if name == "FrozenLake-misc" and adapter.env.is_slippery:
        quiet, success = copy.copy(adapter.env), adapter.env.success_rate
        quiet.is_slippery = False
        aside = (np.roll(same, 1, axis=1) + np.roll(same, -1, axis=1)) / 2
        return envs.Gymnax(quiet), params, success * same + (1 - success) * aside
    if name == "FourRooms-misc":
        random = min(1.0, float(params.fail_prob) * num_actions / (num_actions - 1))
        return adapter, params.replace(fail_prob=0.0), (1 - random) * same + random / num_actions
    return adapter, params, same


def _enumerate(env: Any, adapter: Any, params: Any, num_actions: int, max_states: int) -> tuple[np.ndarray, ...]:
    """States as rows of numbers `[S, D]`, where each action leads and what it pays `[S, A]`, the ends, first states."""
    keys = jax.random.split(jax.random.key(0), _RESETS)
    over_actions = jax.vmap(adapter.step, (None, None, 0, None))
    step = jax.jit(jax.vmap(jax.vmap(over_actions, (0, None, None, None)), (0, 0, None, None)))
    first = _rows(jax.jit(jax.vmap(adapter.reset, (0, None)))(keys, params)[1], 1)
    like = jax.eval_shape(adapter.reset, keys[0], params)[1]
    states, counts = np.unique(first, axis=0, return_counts=True)
    rows, terminal = list(states), [False] * len(states)
    number = {row.tobytes(): i for i, row in enumerate(rows)}

    def numbered(row: np.ndarray, ended: bool) -> int:
        known = number.setdefault(row.tobytes(), len(rows))
        if known == len(rows):
            rows.append(row)
            terminal.append(ended)
        if terminal[known] != ended:
            raise ValueError(f"{env} ends by the way a state was reached, not by the state: it is no MDP.")
        return known

    following: list[list[int]] = []
    reward: list[np.ndarray] = []
    while len(following) < len(rows):
        here = range(len(following), min(len(following) + _BATCH, len(rows)))
        # Always as many, so that it compiles once.
        batch = np.stack([rows[i] for i in here] + [rows[0]] * (_BATCH - len(here)))
        draws = jax.random.split(keys[len(following) // _BATCH], (_BATCH, 16))
        _, after, pay, ends, _ = step(draws, _states(batch, like), jnp.arange(num_actions), params)
        outcome = np.concatenate([_rows(after, 3), np.asarray(pay)[..., None], np.asarray(ends)[..., None]], -1)
        if (outcome != outcome[:, :1]).any():
            raise ValueError(
                f"The steps of {env} are random in a way that from_env does not know, so it cannot tell their "
                "probabilities: write the MDP down as tables, or learn from samples."
            )
        for i, actions in zip(here, outcome[:, 0], strict=False):
            reward.append(actions[:, -2])
            leads = [i] * num_actions if terminal[i] else [numbered(x[:-2].copy(), bool(x[-1])) for x in actions]
            following.append(leads)
        if len(rows) > max_states:
            raise ValueError(
                f"{env} has at least {len(rows)} states, more than max_states = {max_states}: raise that, keep its "
                "clock in a field named time, or learn from its observations, with linear_q or dqn."
            )
    ended, start = np.array(terminal), np.zeros(len(rows))
    start[: len(counts)] = counts / counts.sum()
    return np.stack(rows), np.array(following), np.where(ended[:, None], 0.0, np.array(reward)), ended, start


def _rows(states: Any, batch_axes: int) -> np.ndarray:
    """States `[*batch, ...]` as rows of numbers `[*batch, D]`, in which the clock stands still."""
    if hasattr(states, "time"):
        replace = getattr(states, "_replace", None) or states.replace
        states = replace(time=jnp.zeros_like(states.time))
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(states)]
    return np.concatenate([leaf.reshape(*leaf.shape[:batch_axes], -1) for leaf in leaves], axis=-1)


def _states(rows: np.ndarray, like: Any) -> Any:
    """The states that rows stand for; like: the shapes of one."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = zip(np.split(rows, ends[:-1], axis=1), leaves, strict=True)
    return structure.unflatten([jnp.asarray(x.reshape(-1, *leaf.shape), leaf.dtype) for x, leaf in parts])


NAMES: dict[str, tuple[Callable[[], MDP], int]] = {
    "mdp/frozen_lake_4x4": (functools.partial(frozen_lake, "4x4", False), 100),
    "mdp/frozen_lake_4x4_slippery": (functools.partial(frozen_lake, "4x4", True), 100),
    "mdp/frozen_lake_8x8": (functools.partial(frozen_lake, "8x8", False), 200),
    "mdp/frozen_lake_8x8_slippery": (functools.partial(frozen_lake, "8x8", True), 200),
    "mdp/cliff_walking": (cliff_walking, 1000),
    "mdp/gridworld": (gridworld, 100),
    "mdp/random_walk": (random_walk, 1000),
    "mdp/four_rooms": (functools.partial(from_env, "FourRooms-misc"), 500),
}
