"""Markov decision processes in tables, as users import them: `from purerl import mdp`.

    lake = mdp.frozen_lake("4x4", slippery=True)
    q_learning.train(jax.random.key(0), q_learning.Config(env=mdp.Tabular(lake, time_limit=100)))

Models (`MDP`, `Tabular`), exact solutions, ready-made worlds and the tables of other envs. The names
"mdp/frozen_lake_4x4", "mdp/cliff_walking" and so on (`NAMES`) stand for ready-made ones.
"""

from typing import Any

from purerl.envs import make
from purerl.envs.mdp import enumeration
from purerl.envs.mdp.model import MDP, Tabular, check, expected_reward, expected_value
from purerl.envs.mdp.solve import dense, optimal_value, policy_value
from purerl.envs.mdp.worlds import (
    NAMES,
    cliff_walking,
    dyna_maze,
    four_rooms,
    frozen_lake,
    garnet,
    grid,
    gridworld,
    random_walk,
)

__all__ = [
    "MDP",
    "NAMES",
    "Tabular",
    "check",
    "cliff_walking",
    "dense",
    "dyna_maze",
    "expected_reward",
    "expected_value",
    "four_rooms",
    "from_env",
    "frozen_lake",
    "garnet",
    "grid",
    "gridworld",
    "optimal_value",
    "policy_value",
    "random_walk",
]


def from_env(env: Any, params: Any = None, *, max_states: int = 10_000) -> MDP:
    """The tables of an environment, a name or an object, with discrete actions and few states.

    params: its physics; None means its own. What it can enumerate, and what it refuses with ValueError, is said at
    `purerl.envs.mdp.enumeration.tables`.
    """
    return enumeration.tables(make(env), params, max_states=max_states)
