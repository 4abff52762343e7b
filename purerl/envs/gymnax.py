"""The suite of gymnax: classic control, bsuite, MinAtar and more, by their own names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from purerl.core.types import PRNGKey
from purerl.envs.spaces import Box, Discrete, Space

# gymnax returns these grids as floats although every entry is 0 or 1; as bool they take a quarter of the memory.
BINARY_OBS = (
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "Pong-misc",
)


PREFIX = ""


class Gymnax:
    """A gymnax >= 1.0 `Environment` as an `Env`.

    binary_obs: the observation holds only zeros and ones, and is handed on as bool. reward: what `Env` says of it.
    """

    def __init__(self, env: Any, binary_obs: bool = False, reward: Callable[..., Array] | None = None):
        self.env, self.default_params, self.binary_obs = env, env.default_params, binary_obs
        if reward is not None:
            self.reward = reward

    def observation_space(self, params: Any) -> Space:
        space = _space(self.env.observation_space(params), self.env)
        return Box(False, True, space.shape, jnp.bool_) if self.binary_obs else space

    def action_space(self, params: Any) -> Space:
        return _space(self.env.action_space(params), self.env)

    def reset(self, key: PRNGKey, params: Any) -> tuple[Array, Any]:
        obs, state = self.env.reset_env(key, params)
        return self._cast(obs), jax.tree.map(jnp.asarray, state)

    def step(self, key: PRNGKey, state: Any, action: Array, params: Any) -> tuple[Array, Any, Array, Array, Array]:
        obs, state, reward, terminated, _ = self.env.step_env(key, state, action, params)
        truncated = self.env.is_truncated(state, params)
        return self._cast(obs), state, jnp.asarray(reward, jnp.float32), terminated, truncated

    def max_episode_steps(self, params: Any) -> Any:
        """The clock of gymnax; None where an env replaces its rule, of which nothing is known."""
        from gymnax.environments.environment import Environment

        replaced = getattr(type(self.env), "is_truncated", None) is not Environment.is_truncated
        return None if replaced else params.max_steps_in_episode

    def _cast(self, obs: Array) -> Array:
        if self.binary_obs:
            return obs.astype(jnp.bool_)
        numbered = hasattr(self.env.observation_space(self.default_params), "n")
        return obs.astype(jnp.int32 if numbered else _dtype(obs.dtype))


def pendulum_reward(obs: Array, action: Array, next_obs: Array, params: Any) -> Array:
    """Of Pendulum-v1: minus the angle^2, the velocity^2 / 10 and the torque^2 / 1000 that a step starts with."""
    cos, sin, velocity = obs
    torque = jnp.clip(action[0], -params.max_torque, params.max_torque)
    return -(jnp.arctan2(sin, cos) ** 2) - 0.1 * velocity**2 - 0.001 * torque**2


def reacher_reward(obs: Array, action: Array, next_obs: Array, params: Any) -> Array:
    """Of Reacher-misc: exp(-d^2), d from where a step leads the tip of the arm to the goal; links are 1 long."""
    cos, sin, _, goal = next_obs.reshape(4, 2)
    return jnp.exp(-((cos.sum() - goal[0]) ** 2) - (sin.sum() - goal[1]) ** 2)


# Of the envs whose observations say all that is paid for.
REWARDS = {"Pendulum-v1": pendulum_reward, "Reacher-misc": reacher_reward}


def names() -> list[str]:
    """Every name that `make` knows. Imports gymnax, which takes seconds."""
    from gymnax.registration import registered_envs

    return [name for name in registered_envs if name != "MNISTBandit-bsuite"]  # it downloads its data


def make(name: str) -> Gymnax:
    """The environment of one of `names`."""
    import gymnax

    with jax.ensure_compile_time_eval():
        env = gymnax.make(name)[0]
        return Gymnax(env, binary_obs=name in BINARY_OBS, reward=_reward_of(env))


def adapts(env: Any) -> bool:
    """Whether an object is of this suite: a gymnax `Environment`, or one that is adapted already."""
    return isinstance(env, Gymnax) or (hasattr(env, "step_env") and hasattr(env, "reset_env"))


def adapt(env: Any) -> Gymnax:
    """A gymnax `Environment` as an `Env`. Raises TypeError for one in a wrapper, which purerl would step past."""
    if isinstance(env, Gymnax):
        return env
    if not hasattr(type(env), "step_env"):  # a wrapper hands it on from the env inside
        raise TypeError(
            f"The gymnax env comes inside a {type(env).__name__}, past which purerl would step and reset it: give the "
            "env inside, or an env of your own that does what the wrapper does."
        )
    return Gymnax(env, reward=_reward_of(env))


def draw(path: Path, env: Gymnax, params: Any, states: list[Any], returns: np.ndarray) -> Path:
    """Writes an episode as a GIF and returns its path. returns: `[states]`, the return when a state was reached.

    Raises ValueError for an env without a place to look at, and for a path that does not end in .gif.
    """
    from purerl.envs.drawing import classic, grids, movie

    path, name = movie.place(path), env.env.name
    if name in classic.SCENES:
        scene, seconds = classic.SCENES[name]
        return movie.save(path, name, lambda i: scene(states[i], params), returns, seconds)
    if name in grids.SCENES:
        return movie.save(path, name, lambda i: grids.SCENES[name](env.env, states[i]), returns, 1 / 5)
    shape = env.observation_space(params).shape
    if len(shape) not in (2, 3) or min(shape[:2]) < 2:
        raise ValueError(f"{name} has nothing that lies anywhere, so there is nothing to draw.")
    observe = jax.jit(lambda state: env.env.observe(jax.random.key(0), state, None, params))

    def board(i: int) -> np.ndarray:
        return grids.board(np.reshape(observe(states[i]), (*shape, 1)[:3]), grids.CHANNELS.get(name, {}))

    return movie.save(path, name, board, returns, 1 / 10)


def _reward_of(env: Any) -> Callable[..., Array] | None:
    """What is known of gymnax's own classes; one that derives from them may pay for something else."""
    return REWARDS.get(env.name) if type(env).__module__.startswith("gymnax.") else None


def _space(space: Any, env: Any) -> Space:
    if hasattr(space, "n"):
        return Discrete(space.n)
    if hasattr(space, "low"):
        return Box(space.low, space.high, space.shape, _dtype(space.dtype))
    raise TypeError(f"{env.name} has the space {space!r}; purerl handles Discrete and Box.")


def _dtype(dtype: Any) -> Any:
    """Bytes and bits stay; a grid of int32 numbers is a vector of numbers."""
    return dtype if jnp.dtype(dtype) in (jnp.uint8, jnp.bool_) else jnp.float32
