"""One episode as something to look at: a GIF of a gymnax environment, an interactive HTML page of a Brax one.

The page is Brax's own, and a browser that opens it loads the viewer, three.js, from the network.
"""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from purerl.core import checks, envs


def episode(
    algorithm: ModuleType, state: Any, config: Any, key: Key[Array, ""], max_steps: int = 1000
) -> tuple[list[Any], np.ndarray]:
    """Acts greedily from a fresh start state until the episode ends, at most max_steps steps.

    Returns the env's states before each step, and the return so far after each step `[steps]`.
    """
    env, params = checks.env(config), checks.env_params(config)
    act = algorithm.policy(state, config)
    reset_key, loop_key = jax.random.split(key)

    def body(carry: Any, key: Any) -> Any:
        obs, env_state = carry
        act_key, env_key = jax.random.split(key)
        next_obs, next_state, reward, terminated, truncated = env.step(env_key, env_state, act(act_key, obs), params)
        return (next_obs, next_state), (env_state, reward, terminated | truncated)

    start = env.reset(reset_key, params)
    steps = jax.jit(lambda start, keys: jax.lax.scan(body, start, keys)[1])
    states, rewards, done = jax.device_get(steps(start, jax.random.split(loop_key, max_steps)))
    length = int(np.argmax(done)) + 1 if done.any() else max_steps
    return [jax.tree.map(lambda x, i=i: x[i], states) for i in range(length)], np.cumsum(rewards[:length])


def save(
    path: str | Path, algorithm: ModuleType, state: Any, config: Any, key: Key[Array, ""], max_steps: int = 1000
) -> Path:
    """Writes an episode to `path`, with the ending that fits the env (.gif or .html), and returns the path written.

    Classic control is drawn by gymnasium and needs the extra `purerl[video]`. Raises ValueError for an env that neither
    gymnax nor Brax can draw, and ImportError that names the extra.
    """
    env = checks.env(config)
    if not isinstance(env, envs.Gymnax | envs.Brax):
        raise ValueError(
            f"{type(env).__name__} is neither a gymnax nor a Brax env, so there is no way known to draw it."
        )
    states, returns = episode(algorithm, state, config, key, max_steps)
    if isinstance(env, envs.Brax):
        return _save_html(Path(path).with_suffix(".html"), env, checks.env_params(config), states)
    return _save_gif(Path(path).with_suffix(".gif"), env, checks.env_params(config), states, returns)


def _save_html(path: Path, env: envs.Brax, system: Any, states: list[Any]) -> Path:
    from brax.io import html

    if not jax.tree.leaves(system):
        raise ValueError("This Brax env has no physics, so there is nothing to draw.")
    page = html.render(system.tree_replace({"opt.timestep": env.env.dt}), [state.pipeline_state for state, _ in states])
    path.write_text(page)
    return path


def _save_gif(path: Path, env: envs.Gymnax, params: Any, states: list[Any], returns: np.ndarray) -> Path:
    from gymnax.visualize import Visualizer
    from gymnax.visualize.vis_gym import SUPPORTED_GYM_ENVS

    if env.env.name in SUPPORTED_GYM_ENVS and importlib.util.find_spec("pygame") is None:
        raise ImportError(f"Drawing {env.env.name} needs `pip install 'purerl[video]'`.")
    states = [jax.tree.map(jnp.asarray, state) for state in states]
    for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        os.environ.setdefault(driver, "dummy")  # pictures go to a file: no window, and no search for a sound card
    try:
        visualizer = Visualizer(env.env, params, states, returns)
        visualizer.animate(str(path))
    except AttributeError as error:
        raise ValueError(f"gymnax cannot draw {env.env.name}.") from error
    return path
