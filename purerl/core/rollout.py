"""Acting in N environments for T steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from purerl.core import envs
from purerl.core.types import Metrics


class Trajectory(NamedTuple):
    """T steps in N environments; axes `[T, N, ...]`.

    action: what the policy drew; continuous actions live in the unit box (`Box.from_unit` scales them for the env).
    final_obs: the observation each action led to, before any reset.
    """

    obs: Array
    action: Array
    reward: Float[Array, "T N"]
    terminated: Bool[Array, "T N"]
    truncated: Bool[Array, "T N"]
    final_obs: Array

    @property
    def done(self) -> Bool[Array, "T N"]:
        """terminated or truncated: where recursions over time are cut."""
        return self.terminated | self.truncated


def unroll(
    key: Key[Array, ""],
    env: envs.Env,
    params: Any,
    env_state: envs.EnvState,
    act: Callable[[Key[Array, ""], Array], Array],
    num_steps: int,
) -> tuple[envs.EnvState, Trajectory, Metrics]:
    """Acts for num_steps steps from env_state.

    act: (key, obs `[N, ...]`) -> action `[N, ...]`.
    Returns the new env state, the trajectory, and the account of the episodes that ended on the way (`episodes`).
    """
    num_envs = env_state.episode_length.shape[0]
    act_key, env_key = jax.random.split(key)
    # Splitting every key before the loop is one large threefry call instead of num_steps small ones.
    keys = (jax.random.split(act_key, num_steps), jax.random.split(env_key, (num_steps, num_envs, 2)))
    scale = env.action_space(params).from_unit

    def body(env_state: envs.EnvState, keys: Any) -> tuple[envs.EnvState, tuple[Trajectory, envs.Timestep]]:
        act_key, env_keys = keys
        action = act(act_key, env_state.obs)
        next_state, timestep = envs.step(env_keys, env, params, env_state, scale(action))
        reward, terminated, truncated, final_obs, *_ = timestep
        return next_state, (Trajectory(env_state.obs, action, reward, terminated, truncated, final_obs), timestep)

    env_state, (trajectory, timesteps) = jax.lax.scan(body, env_state, keys)
    return env_state, trajectory, episodes(timesteps)


def episodes(timesteps: envs.Timestep) -> Metrics:
    """The number of episodes that ended in timesteps `[T, N]`, and their mean return and length (NaN if none did)."""
    done = timesteps.done
    count = done.sum()

    def mean(x: Array) -> Array:
        return jnp.where(done, x, 0).sum() / count

    return {
        "episodes": count,
        "episode_return": mean(timesteps.episode_return),
        "episode_length": mean(timesteps.episode_length),
    }


def flatten(tree: Any) -> Any:
    """Merges the first two axes: `[T, N, ...]` becomes `[T * N, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
