"""Acting in N environments for T steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from purerl.core import envs
from purerl.core.replay import Transition
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


class Episodes(NamedTuple):
    """Account of the episodes that ended: sums over them, never one entry each, so its size is that of one number."""

    num: Int[Array, "*batch"]
    return_sum: Float[Array, "*batch"]
    length_sum: Int[Array, "*batch"]

    def metrics(self) -> Metrics:
        """Number, mean return and mean length, over all leading axes. The means are NaN where no episode ended."""
        count, return_sum, length_sum = (x.sum() for x in self)
        return {"episodes": count, "episode_return": return_sum / count, "episode_length": length_sum / count}


def unroll(
    key: Key[Array, ""],
    env: envs.Env,
    params: Any,
    env_state: envs.EnvState,
    act: Callable[[Key[Array, ""], Array], Array],
    num_steps: int,
) -> tuple[envs.EnvState, Trajectory, Episodes]:
    """Acts for num_steps steps from env_state, and accounts for the episodes that end on the way.

    act: (key, obs `[N, ...]`) -> action `[N, ...]`, a continuous one on the scale [-1, 1].
    """
    num_envs = env_state.episode_length.shape[0]
    act_key, env_key = jax.random.split(key)
    # Splitting every key before the loop is one large threefry call instead of num_steps small ones.
    keys = (jax.random.split(act_key, num_steps), jax.random.split(env_key, (num_steps, num_envs, 2)))

    def body(env_state: envs.EnvState, keys: Any) -> tuple[envs.EnvState, tuple[Trajectory, Episodes]]:
        act_key, env_keys = keys
        action = act(act_key, env_state.obs)
        next_state, timestep = envs.step(env_keys, env, params, env_state, action)
        reward, terminated, truncated, final_obs, *_ = timestep
        ended = timestep.done
        episode_return, episode_length = (jnp.where(ended, x, 0).sum() for x in timestep[-2:])
        trajectory = Trajectory(env_state.obs, action, reward, terminated, truncated, final_obs)
        return next_state, (trajectory, Episodes(ended.sum(), episode_return, episode_length))

    env_state, (trajectory, episodes) = jax.lax.scan(body, env_state, keys)
    return env_state, trajectory, jax.tree.map(jnp.sum, episodes)


def flatten(tree: Any) -> Any:
    """Merges the first two axes: `[T, N, ...]` becomes `[T * N, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def transitions(trajectory: Trajectory) -> Transition:
    """What a replay memory keeps of a trajectory, `[T * N, ...]`, the oldest step first."""
    obs, action, reward, terminated, _, final_obs = trajectory
    return flatten(Transition(obs, action, reward, terminated, final_obs))
