"""Environments whose every number is known, and ones that break the contract in one place."""

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs import Box, Discrete


class Chain:
    """Cells in a row: action 1 walks right, action 0 stays, and the reward is the number of the cell reached.

    Cell `goal` terminates the episode and `limit` steps truncate it; both can happen at once. The observation is
    (cell, step, label): the label is drawn at every reset and stays for the episode.
    """

    default_params = {"goal": 3, "limit": 5}  # noqa: RUF012

    def observation_space(self, params):
        return Box(0.0, jnp.inf, (3,))

    def action_space(self, params):
        return Discrete(2)

    def reset(self, key, params):
        state = (jnp.int32(0), jnp.int32(0), jax.random.uniform(key))
        return self.observe(state), state

    def step(self, key, state, action, params):
        cell, time, label = state
        state = (cell + action, time + 1, label)
        terminated, truncated = state[0] >= params["goal"], state[1] >= params["limit"]
        return self.observe(state), state, state[0].astype(jnp.float32), terminated, truncated

    def observe(self, state):
        cell, time, label = state
        return jnp.stack([cell.astype(jnp.float32), time.astype(jnp.float32), label])


class Levers:
    """Two levers between `low` and `high`, with bounds that differ; the first pays its position.

    The observation is (both levers as they were put last, step, label): the label is drawn at every reset and stays for
    the episode. A second lever of 9 or more terminates the episode and `limit` steps truncate it.
    """

    def __init__(self, low=(-2.0, 0.0), high=(2.0, 10.0), limit=5):
        self.low, self.high, self.limit, self.default_params = low, high, limit, ()

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (4,))

    def action_space(self, params):
        return Box(jnp.array(self.low), jnp.array(self.high), (2,))

    def reset(self, key, params):
        state = (jnp.zeros(2), jnp.int32(0), jax.random.uniform(key))
        return self.observe(state), state

    def step(self, key, state, action, params):
        state = (action, state[1] + 1, state[2])
        return self.observe(state), state, action[0], action[1] >= 9, state[1] >= self.limit

    def observe(self, state):
        levers, time, label = state
        return jnp.concatenate([levers, jnp.stack([time.astype(jnp.float32), label])])


class Regulator:
    """A mass on a spring, pushed with a force between -3 and 2: x <- A x + B u costs x'Qx + u'Ru.

    It starts anywhere in [-1, 1]^2 and nothing ever ends but by the clock, after 5 steps. The best force is a linear
    function of the state, which from there stays inside the bounds.
    """

    default_params = ()
    A, B = np.array([[0.95, 0.3], [-0.1, 0.9]]), np.array([[0.0], [0.5]])
    Q, R = np.eye(2), np.array([[0.5]])

    def observation_space(self, params):
        return Box(-jnp.inf, jnp.inf, (2,))

    def action_space(self, params):
        return Box(-3.0, 2.0, (1,))

    def reset(self, key, params):
        x = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return x, (x, jnp.int32(0))

    def step(self, key, state, action, params):
        x, time = state[0], state[1] + 1
        A, B, Q, R = (jnp.asarray(matrix, jnp.float32) for matrix in (self.A, self.B, self.Q, self.R))
        cost, x = x @ Q @ x + action @ R @ action, A @ x + B @ action
        return x, (x, time), -cost, jnp.bool_(False), time >= 5

    def solution(self, gamma):
        """P and K: from x on the best forces u = -K x cost x'Px, discounted by gamma, by the Riccati equation."""
        A, B, Q, R = self.A, self.B, self.Q, self.R
        P = Q
        for _ in range(1000):
            K = gamma * np.linalg.solve(R + gamma * B.T @ P @ B, B.T @ P @ A)
            P = Q + K.T @ R @ K + gamma * (A - B @ K).T @ P @ (A - B @ K)
        return P, K


class Bandit:
    """One step, and the end. reward: a function of the action in the units of action_space."""

    default_params = ()

    def __init__(self, space, reward):
        self.space, self.reward = space, reward

    def observation_space(self, params):
        return Box(0.0, 1.0, (1,))

    def action_space(self, params):
        return self.space

    def reset(self, key, params):
        return jnp.ones(1), ()

    def step(self, key, state, action, params):
        return jnp.ones(1), state, self.reward(action), jnp.bool_(True), jnp.bool_(False)


class Broken(Chain):
    """A chain with one output changed.

    function: "reset" or "step". index: which of its outputs. change: what is done to it.
    """

    def __init__(self, function, index, change):
        self.function, self.index, self.change = function, index, change

    def reset(self, key, params):
        return self.spoil("reset", super().reset(key, params))

    def step(self, key, state, action, params):
        return self.spoil("step", super().step(key, state, action, params))

    def spoil(self, function, outputs):
        if function != self.function:
            return outputs
        return tuple(self.change(x) if i == self.index else x for i, x in enumerate(outputs))


# What is wrong, and what the error message must say of it.
BROKEN = {
    "obs of reset has a batch axis": (
        Broken("reset", 0, lambda x: x[None]),
        r"reset: obs must be float32\[3\].*\[1, 3\]",
    ),
    "obs is too short": (Broken("step", 0, lambda x: x[:2]), r"step: obs must be float32\[3\].*\[2\]"),
    "obs is of integers": (Broken("step", 0, lambda x: x.astype(jnp.int32)), r"step: obs must be float32\[3\].*int32"),
    "state changes its dtype": (
        Broken("step", 1, lambda x: (x[0], x[1].astype(jnp.float32), x[2])),
        r"step: state\[1\] must be int32\[\].*float32",
    ),
    "state changes its shape": (Broken("step", 1, lambda x: (x[0][None], *x[1:])), r"step: state\[0\] must be .*\[1\]"),
    "state changes its structure": (Broken("step", 1, lambda x: x[:2]), "step: state has another structure"),
    "reward has an axis": (Broken("step", 2, lambda x: x[None]), r"step: reward must be float32\[\].*\[1\]"),
    "reward is an integer": (
        Broken("step", 2, lambda x: x.astype(jnp.int32)),
        r"step: reward must be float32\[\].*int32",
    ),
    "terminated is a float": (
        Broken("step", 3, lambda x: x.astype(jnp.float32)),
        r"step: terminated must be bool\[\].*float32",
    ),
    "terminated has an axis": (Broken("step", 3, lambda x: x[None]), r"step: terminated must be bool\[\].*\[1\]"),
    "truncated is an integer": (
        Broken("step", 4, lambda x: x.astype(jnp.int32)),
        r"step: truncated must be bool\[\].*int32",
    ),
    "truncated has an axis": (Broken("step", 4, lambda x: x[None]), r"step: truncated must be bool\[\].*\[1\]"),
}
