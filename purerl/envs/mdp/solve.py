"""Exact solutions of an MDP on the host, in float64: oracles, which are neither traced nor vmapped."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from purerl.envs.mdp.model import MDP


def policy_value(mdp: MDP, policy: Any, gamma: float) -> np.ndarray:
    """V of a policy `[S, A]` (probabilities of actions), by a linear solve in float64 on the host; `[S]`.

    Solves (I - gamma P) V = r, Sutton and Barto (2018), eq. 4.4. An oracle, which is neither traced nor vmapped: inside
    vmap, LU factorisations can deadlock on CPU. Raises ValueError where gamma is 1 and the policy never terminates from
    some state.
    """
    policy, (transition, reward) = np.asarray(policy, np.float64), _going_on(mdp)
    transition, reward = np.einsum("sa,sat->st", policy, transition), (policy * reward).sum(-1)
    if gamma == 1:
        _check_ends(transition, np.asarray(mdp.terminal))
    return np.linalg.solve(np.eye(len(reward)) - gamma * transition * ~np.asarray(mdp.terminal)[None], reward)


def optimal_value(mdp: MDP, gamma: float) -> np.ndarray:
    """V* `[S]`: policy iteration with linear solves in float64 on the host, until no action is better.

    At gamma = 1 that of the best policy that terminates. Raises ValueError where none does from every state, and where
    going on for ever pays without end.
    """
    transition, reward = _going_on(mdp)
    # The uniform policy terminates wherever any policy can, so its value exists at gamma = 1 as well.
    policy = np.full(reward.shape, 1 / mdp.num_actions)
    while True:
        value = policy_value(mdp, policy, gamma)
        q = reward + gamma * transition @ np.where(mdp.terminal, 0.0, value)
        # Equal actions must not take turns, for ever or into a loop that never ends, so the old one stays: what it
        # leads to still ends, and whoever gives it up gains more than the linear solve rounds away.
        better = q.max(1) > value + 1e-10 * np.abs(value).max()
        if not better.any():
            return value
        policy = np.where(better[:, None], np.eye(mdp.num_actions)[q.argmax(1)], policy)


def _going_on(mdp: MDP) -> tuple[np.ndarray, np.ndarray]:
    """T(s'|s, a) `[S, A, S]` and r(s, a) `[S, A]` in float64, both 0 where s is terminal.

    Probabilities sum to 1 in float64: those in float32 may sum to a little more, and a policy that never terminates
    would earn from that.
    """
    transition, reward = _dense(mdp)
    transition = transition / transition.sum(-1, keepdims=True) * ~np.asarray(mdp.terminal)[:, None, None]
    return transition, (transition * reward).sum(-1)


def _check_ends(transition: np.ndarray, terminal: np.ndarray) -> None:
    """Raises ValueError unless a terminal state can be reached from every state by the moves `[S, S]` of a policy."""
    possible, ends = transition > 0, terminal
    while (more := ends | possible[:, ends].any(1)).sum() > ends.sum():
        ends = more
    if not ends.all():
        raise ValueError(
            f"gamma = 1 needs a policy that terminates from every state, but from state {int(np.argmin(ends))} this "
            "one never does: its value may be infinite or undefined. Take gamma < 1."
        )


def dense(mdp: MDP) -> MDP:
    """The same MDP as S x A x S tables."""
    transition, reward = _dense(mdp)
    return mdp._replace(successor=None, probability=jnp.float32(transition), reward=jnp.float32(reward))


def _dense(mdp: MDP) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and rewards `[S, A, S]` in float64."""
    probability, reward = np.asarray(mdp.probability, np.float64), np.asarray(mdp.reward, np.float64)
    if mdp.successor is None:
        return probability, reward
    S, A, _ = probability.shape
    index = (*np.ogrid[:S, :A, :1][:2], np.asarray(mdp.successor))
    transition, total = np.zeros((2, S, A, S))
    np.add.at(transition, index, probability)
    np.add.at(total, index, probability * reward)  # a successor named twice gets its mean reward
    return transition, np.divide(total, transition, out=np.zeros_like(total), where=transition > 0)
