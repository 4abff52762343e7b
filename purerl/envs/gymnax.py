"""The suite of gymnax: classic control, bsuite, MinAtar and more, by their own names."""

import importlib.util
import os
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

    binary_obs: the observation holds only zeros and ones, and is handed on as bool.
    """

    def __init__(self, env: Any, binary_obs: bool = False):
        self.env, self.default_params, self.binary_obs = env, env.default_params, binary_obs

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


def names() -> list[str]:
    """Every name that `make` knows. Imports gymnax, which takes seconds."""
    from gymnax.registration import registered_envs

    return [name for name in registered_envs if name != "MNISTBandit-bsuite"]  # it downloads its data


def make(name: str) -> Gymnax:
    """The environment of one of `names`."""
    import gymnax

    with jax.ensure_compile_time_eval():
        return Gymnax(gymnax.make(name)[0], binary_obs=name in BINARY_OBS)


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
    return Gymnax(env)


def draw(path: Path, env: Gymnax, params: Any, states: list[Any], returns: np.ndarray) -> Path:
    """Writes an episode's states as a GIF, with the return so far, and returns its path.

    Classic control is drawn by gymnasium. Raises ImportError that names the extra `purerl[video]`, and ValueError for
    an env that gymnax cannot draw.
    """
    from gymnax.visualize import Visualizer
    from gymnax.visualize.vis_gym import SUPPORTED_GYM_ENVS

    if env.env.name in SUPPORTED_GYM_ENVS and importlib.util.find_spec("pygame") is None:
        raise ImportError(f"Drawing {env.env.name} needs `pip install 'purerl[video]'`.")
    path = path.with_suffix(".gif")
    states = [jax.tree.map(jnp.asarray, state) for state in states]
    for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        os.environ.setdefault(driver, "dummy")  # pictures go to a file: no window, and no search for a sound card
    visualizer = Visualizer(env.env, params, states, returns)
    visualizer.init()
    if not hasattr(visualizer, "im"):  # an env that it does not know it would draw as an empty picture
        raise ValueError(f"gymnax cannot draw {env.env.name}.")
    visualizer.animate(str(path))
    return path


def _space(space: Any, env: Any) -> Space:
    if hasattr(space, "n"):
        return Discrete(space.n)
    if hasattr(space, "low"):
        return Box(space.low, space.high, space.shape, _dtype(space.dtype))
    raise TypeError(f"{env.name} has the space {space!r}; purerl handles Discrete and Box.")


def _dtype(dtype: Any) -> Any:
    """Bytes and bits stay; a grid of int32 numbers is a vector of numbers."""
    return dtype if jnp.dtype(dtype) in (jnp.uint8, jnp.bool_) else jnp.float32
