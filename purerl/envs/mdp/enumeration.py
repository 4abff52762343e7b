"""The tables of an environment with few states, found by trying every action in every state."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs import gymnax
from purerl.envs.mdp.model import MDP, Tabular, on_device
from purerl.envs.protocol import Env
from purerl.envs.spaces import Discrete

_RESETS, _BATCH = 4096, 256


def tables(env: Env, params: Any = None, *, max_states: int = 10_000) -> MDP:
    """The tables of an environment whose state, apart from a clock in a field named `time`, takes few values.

    params: the env's physics; None means its own.
    The states are those within reach of the start states of 4,096 resets, of which `start` holds the shares. They are
    numbered in the order of their values. Steps must not be random, as far as 16 draws for each state and action show,
    but for FrozenLake-misc and FourRooms-misc, of which it is known how chance replaces actions. The time limit is left
    out: `Tabular` has one of its own.
    Raises ValueError where actions are not discrete, where there are more than max_states states, where steps are
    random in any other way, and where the same state ends an episode at one time and not at another.
    """
    if isinstance(env, Tabular):
        return env.default_params if params is None else params
    name = getattr(getattr(env, "env", None), "name", None) or type(env).__name__
    with jax.ensure_compile_time_eval():
        params = env.default_params if params is None else params
        if not isinstance(space := env.action_space(params), Discrete):
            raise ValueError(f"Tables list states and actions, but {name} has the action space {space}.")
        quiet, quiet_params, chance = _without_noise(env, params, space.n)
        rows, following, reward, terminal, start = _enumerate(name, quiet, quiet_params, space.n, max_states)
    order = np.lexsort(rows.T[::-1])
    number = np.argsort(order)
    following, reward, terminal, start = number[following[order]], reward[order], terminal[order], start[order]
    if (chance == np.eye(space.n)).all():
        probability = np.ones((*reward.shape, 1))
        return on_device(following[..., None], probability, reward[..., None], terminal, start)
    # Successor k of a state is where action k leads; chance says how often that is the action done.
    shape = (len(rows), *chance.shape)
    following, probability, reward = (np.broadcast_to(x, shape) for x in (following[:, None], chance, reward[:, None]))
    return on_device(following, probability, reward, terminal, start)


def _without_noise(env: Any, params: Any, num_actions: int) -> tuple[Any, Any, np.ndarray]:
    """The env and its params without chance, and the probabilities `[A, A]` that chance makes each action another."""
    same, name = np.eye(num_actions), getattr(getattr(env, "env", None), "name", "")
    if name == "FrozenLake-misc" and env.env.is_slippery:
        quiet, success = copy.copy(env.env), env.env.success_rate
        quiet.is_slippery = False
        aside = (np.roll(same, 1, axis=1) + np.roll(same, -1, axis=1)) / 2
        return gymnax.Gymnax(quiet), params, success * same + (1 - success) * aside
    if name == "FourRooms-misc":
        random = min(1.0, float(params.fail_prob) * num_actions / (num_actions - 1))
        return env, params.replace(fail_prob=0.0), (1 - random) * same + random / num_actions
    return env, params, same


def _enumerate(name: str, env: Env, params: Any, num_actions: int, max_states: int) -> tuple[np.ndarray, ...]:
    """States as rows of numbers `[S, D]`, where each action leads and what it pays `[S, A]`, the ends, first states."""
    keys = jax.random.split(jax.random.key(0), _RESETS)
    over_actions = jax.vmap(env.step, (None, None, 0, None))
    step = jax.jit(jax.vmap(jax.vmap(over_actions, (0, None, None, None)), (0, 0, None, None)))
    first = _rows(jax.jit(jax.vmap(env.reset, (0, None)))(keys, params)[1], 1)
    like = jax.eval_shape(env.reset, keys[0], params)[1]
    states, counts = np.unique(first, axis=0, return_counts=True)
    rows, terminal = list(states), [False] * len(states)
    number = {row.tobytes(): i for i, row in enumerate(rows)}

    def numbered(row: np.ndarray, ended: bool) -> int:
        known = number.setdefault(row.tobytes(), len(rows))
        if known == len(rows):
            rows.append(row)
            terminal.append(ended)
        if terminal[known] != ended:
            raise ValueError(f"{name} ends by the way a state was reached, not by the state: it is no MDP.")
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
                f"The steps of {name} are random in a way that is not known of it, so that nothing tells their "
                "probabilities: write the MDP down as tables, or learn from samples."
            )
        for i, actions in zip(here, outcome[:, 0], strict=False):
            reward.append(actions[:, -2])
            leads = [i] * num_actions if terminal[i] else [numbered(x[:-2].copy(), bool(x[-1])) for x in actions]
            following.append(leads)
        if len(rows) > max_states:
            raise ValueError(
                f"{name} has at least {len(rows)} states, more than max_states = {max_states}: raise that, keep its "
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
