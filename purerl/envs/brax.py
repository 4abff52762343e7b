"""The suite of Brax: rigid bodies, by names such as "brax/hopper", which a physics backend may follow."""

import contextlib
import copy
import io
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from purerl.core.types import PRNGKey
from purerl.envs.spaces import Box, Space

PREFIX = "brax/"
BACKENDS = ("spring", "positional", "generalized", "mjx")
OWN_BACKENDS = {"swimmer": "generalized"}  # of the robots that have no springs
EPISODE_LENGTH = 1000


class Brax:
    """A Brax `Env` as an `Env`; its params are the Brax `System`, so masses, frictions and gains can be vmapped.

    episode_length: time limit in env steps, at which an episode is truncated.
    """

    def __init__(self, env: Any, episode_length: int = EPISODE_LENGTH):
        _mend_drag()
        self.env, self.episode_length = env, episode_length
        self.default_params = getattr(env.unwrapped, "sys", ())  # brax/fast has no physics and no System
        self.action_size = env.action_size
        # Brax's own observation_size runs a reset operation by operation, and each of hundreds is compiled.
        obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
        if getattr(obs, "ndim", None) != 1:
            seen = f"an array of shape {list(obs.shape)}" if hasattr(obs, "shape") else "a dictionary"
            raise TypeError(f"{type(env).__name__} observes {seen}; purerl needs one array of shape [size].")
        self.observation_size = obs.size

    def observation_space(self, params: Any) -> Space:
        return Box(-jnp.inf, jnp.inf, (int(self.observation_size),))

    def action_space(self, params: Any) -> Space:
        return Box(-1.0, 1.0, (int(self.action_size),))

    def reset(self, key: PRNGKey, params: Any) -> tuple[Array, Any]:
        state = _with_system(self.env, params).reset(key)
        return state.obs, (state, jnp.int32(0))

    def step(self, key: PRNGKey, state: Any, action: Array, params: Any) -> tuple[Array, Any, Array, Array, Array]:
        brax_state, time = state
        brax_state = _with_system(self.env, params).step(brax_state, action)
        terminated = brax_state.done > 0.5
        return brax_state.obs, (brax_state, time + 1), brax_state.reward, terminated, time + 1 >= self.episode_length

    def max_episode_steps(self, params: Any) -> int:
        return self.episode_length

    def metrics(self, state: Any, params: Any) -> dict[str, Array]:
        """Brax's own, of the last step of an episode."""
        told: dict[str, Array] = state[0].metrics
        return told


def names() -> list[str]:
    """Every name that `make` knows, each with the default backend. Imports Brax, which takes seconds."""
    return [PREFIX + name for name in sorted(_library()._envs)]


def make(name: str) -> Brax:
    """The environment of one of `names`, which a backend may follow. Raises ValueError for an unknown backend."""
    robot, _, backend = name.removeprefix(PREFIX).partition("/")
    backend = backend or OWN_BACKENDS.get(robot, BACKENDS[0])
    if backend not in BACKENDS:
        raise ValueError(f"Brax has no physics backend {backend!r}, in {name!r}: use one of {', '.join(BACKENDS)}.")
    with jax.ensure_compile_time_eval():
        try:
            return Brax(_library().get_environment(robot, backend=backend))
        except ValueError as error:
            raise ValueError(f"Brax has no {robot} with the physics backend {backend}: {error}") from error


def adapts(env: Any) -> bool:
    """Whether an object is of this suite: a Brax `Env`, or one that is adapted already."""
    return isinstance(env, Brax) or (hasattr(env, "unwrapped") and hasattr(env, "observation_size"))


def adapt(env: Any) -> Brax:
    """A Brax `Env` as an `Env`. Raises TypeError for one in a wrapper that limits, resets or batches episodes."""
    if isinstance(env, Brax):
        return env
    layer = env
    while hasattr(layer, "env"):
        if type(layer).__name__ in ("EpisodeWrapper", "AutoResetWrapper", "VmapWrapper"):
            raise TypeError(
                f"The Brax env comes inside a {type(layer).__name__}; purerl batches, limits and resets episodes "
                "itself, so make it with brax.envs.get_environment(name), which adds no wrapper."
            )
        layer = layer.env
    return Brax(env)


def draw(path: Path, env: Brax, params: Any, states: list[Any], returns: np.ndarray) -> Path:
    """Writes an episode and returns its path. returns: `[states]`, the return when a state was reached.

    A path that ends in .html becomes Brax's own page, whose viewer, three.js, the browser loads from the network; any
    other a GIF. Raises ValueError for an env without bodies, and for another ending.
    """
    from purerl.envs.drawing import bodies, movie

    path = movie.place(path, ".html")
    if not jax.tree.leaves(params):
        raise ValueError("This Brax env has no physics, so there is nothing to draw.")
    poses, seconds = [state.pipeline_state for state, _ in states], float(env.env.dt)
    if path.suffix == ".html":
        from brax.io import html

        path.write_text(html.render(params.tree_replace({"opt.timestep": seconds}), poses))
        return path
    scene, fixed = bodies.shapes(params, [pose.x for pose in poses])
    cameras = bodies.cameras(scene, fixed, seconds)

    def picture(i: int) -> np.ndarray:
        return bodies.draw(scene._replace(position=scene.position[i], rotation=scene.rotation[i]), cameras[i])

    return movie.save(path, type(env.env.unwrapped).__name__, picture, returns, seconds)


def _library() -> Any:
    """brax.envs, without what mujoco prints of GPU packages, and without Brax's advice to move to another engine."""
    warnings.filterwarnings("ignore", "Brax System, piplines and environments", UserWarning)
    with contextlib.redirect_stdout(io.StringIO()):
        import brax.envs
    return brax.envs


def _mend_drag() -> None:
    """Brax 0.14.2 computes the drag of water, on the swimmer, with a name of `clip`'s argument that JAX has dropped."""
    import brax.fluid

    brax.fluid.jp = _Numpy()


class _Numpy:
    """jax.numpy, whose `clip` also knows its bounds by their old names."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)

    def clip(self, x: Array, a_min: Any = None, a_max: Any = None, **bounds: Any) -> Array:
        return jnp.clip(x, bounds.get("min", a_min), bounds.get("max", a_max))


def _with_system(env: Any, system: Any) -> Any:
    """A copy of a Brax env, and of each wrapper around it, whose physics is `system`."""
    env = copy.copy(env)
    if hasattr(env, "env"):
        env.env = _with_system(env.env, system)
    elif hasattr(env, "sys"):
        env.sys = system
    return env
