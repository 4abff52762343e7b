"""The suite of ready-made MDPs, by names such as "mdp/cliff_walking", and what they are made of."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.core.types import PRNGKey
from purerl.envs import gymnax
from purerl.envs.mdp import enumeration
from purerl.envs.mdp.model import MDP, Tabular, on_device

PREFIX = "mdp/"

_UP, _RIGHT, _DOWN, _LEFT = range(4)
_MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])


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
    return on_device(successor, probability, reward, terminal, np.eye(tiles.size, dtype=np.float32)[start])


_LAKES = {
    "4x4": ("SFFF", "FHFH", "FFFH", "HFFG"),
    "8x8": ("SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF", "FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"),
}


def frozen_lake(size: str = "4x4", slippery: bool = True) -> MDP:
    """Gymnasium's FrozenLake: actions left, down, right, up; 1 for the goal G, holes H end the episode with nothing.

    size: "4x4" or "8x8". slippery: each move goes as meant, or to either side of it, with a third each.
    """
    return grid(_LAKES[size], {"G": 1.0}, ends="GH", slip=2 / 3 * slippery, directions=(_LEFT, _DOWN, _RIGHT, _UP))


_CLIFF = ("." * 12, "." * 12, "." * 12, "S" + "C" * 10 + "G")


def cliff_walking() -> MDP:
    """Sutton and Barto (2018), example 6.6: -1 a step, the cliff costs -100 and sends back to the start.

    Actions up, right, down, left.
    """
    return grid(_CLIFF, {".": -1.0, "S": -1.0, "G": -1.0, "C": -100.0}, back_to_start="C")


_DYNA_MAZE = (".......#G", "..#....#.", "S.#....#.", "..#......", ".....#...", ".........")


def dyna_maze() -> MDP:
    """Sutton and Barto (2018), figure 8.2: 1 for the goal, at least 14 steps away. Actions up, right, down, left."""
    return grid(_DYNA_MAZE, {"G": 1.0})


_MAZE = (
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


def gridworld() -> MDP:
    """Ten by ten cells with walls: -0.04 a step, 1 for the goal, -1 for the pit P; a move slips aside with 0.2."""
    return grid(_MAZE, {".": -0.04, "S": -0.04, "G": 1.0, "P": -1.0}, ends="GP", slip=0.2)


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
    return on_device(successor, np.full(successor.shape, 0.5, np.float32), reward, terminal, start)


def garnet(key: PRNGKey, num_states: int, num_actions: int, num_successors: int) -> MDP:
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


def four_rooms() -> MDP:
    """gymnax's FourRooms-misc, a third of whose moves go astray."""
    return enumeration.tables(gymnax.make("FourRooms-misc"))


_ROOMS = (
    "#############",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#S....#.....#",
    "#.....#.....#",
    "##.####.....#",
    "#.....###.###",
    "#.....#..G..#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#############",
)

# Each with its time limit and its map.
NAMES: dict[str, tuple[Callable[[], MDP], int, tuple[str, ...]]] = {
    "mdp/frozen_lake_4x4": (functools.partial(frozen_lake, "4x4", False), 100, _LAKES["4x4"]),
    "mdp/frozen_lake_4x4_slippery": (functools.partial(frozen_lake, "4x4", True), 100, _LAKES["4x4"]),
    "mdp/frozen_lake_8x8": (functools.partial(frozen_lake, "8x8", False), 200, _LAKES["8x8"]),
    "mdp/frozen_lake_8x8_slippery": (functools.partial(frozen_lake, "8x8", True), 200, _LAKES["8x8"]),
    "mdp/cliff_walking": (cliff_walking, 1000, _CLIFF),
    "mdp/dyna_maze": (dyna_maze, 10_000, _DYNA_MAZE),
    "mdp/gridworld": (gridworld, 100, _MAZE),
    "mdp/random_walk": (random_walk, 1000, ("T..S..G",)),
    "mdp/four_rooms": (four_rooms, 500, _ROOMS),
}


def names() -> list[str]:
    """Every name that `make` knows."""
    return list(NAMES)


def make(name: str) -> Tabular:
    """The environment of one of `names`."""
    model, time_limit, rows = NAMES[name]
    return Tabular(model(), time_limit, rows)


def adapts(env: Any) -> bool:
    """Whether an object is of this suite."""
    return isinstance(env, Tabular)


def adapt(env: Tabular) -> Tabular:
    """The env itself: it needs nothing."""
    return env


def draw(path: Path, env: Tabular, params: MDP, states: list[Any], returns: np.ndarray) -> Path:
    """Writes an episode on the env's map as a GIF and returns its path.

    Raises ValueError for an env without a map, and for a path that does not end in .gif.
    """
    from purerl.envs.drawing import grids, movie

    path = movie.place(path)
    if not env.rows:
        raise ValueError("This table does not say where its states lie: give Tabular a map to draw on, in `rows`.")
    tiles = np.array([list(row) for row in env.rows])
    everywhere = tiles.size == params.num_states
    cells = np.argwhere(np.ones_like(tiles, bool) if everywhere else tiles != "#")
    return movie.save(path, "mdp", lambda i: grids.walk(env.rows, tuple(cells[states[i][0]])), returns, 1 / 5)
