"""Acting in N environments for T steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from purerl.core import envs
from purerl.core.replay import Transition
from purerl.core.types import Metrics

_SMALL_STATE_BYTES = 1024  # CartPole's state has 20 bytes, Breakout-MinAtar's 430, a Brax ant's 2,300


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
) -> tuple[envs.EnvState, Transition, Episodes]:
    """Acts for T = num_steps steps from env_state: the trajectory `[T, N, ...]`, and the account of its episodes.

    act: (key, obs `[N, ...]`) -> action `[N, ...]`, a continuous one on the scale [-1, 1].
    """
    env_state, _, trajectory, episodes = online(
        key,
        env,
        params,
        env_state,
        None,
        lambda learner, key, obs: act(key, obs),
        lambda learner, transition, *_: (learner, transition),
        num_steps,
    )
    return env_state, trajectory, episodes


def online(
    key: Key[Array, ""],
    env: envs.Env,
    params: Any,
    env_state: envs.EnvState,
    learner: Any,
    act: Callable[[Any, Key[Array, ""], Array], Array],
    learn: Callable[[Any, Transition, Array, Any], tuple[Any, Any]],
    num_steps: int,
    given: Any = None,
) -> tuple[envs.EnvState, Any, Any, Episodes]:
    """Acts and learns in turn, for T = num_steps steps: env_state, learner, what learn gave `[T, ...]`, the episodes.

    act: (learner, key, obs `[N, ...]`) -> action `[N, ...]`, a continuous one on the scale [-1, 1].
    learn: (learner, transition `[N, ...]`, next obs `[N, ...]`, given) -> (learner, output). The next obs is what act
    will see: final_obs, or the first observation of a new episode. given: arrays `[T, ...]`, of which learn gets a row.
    """
    num_envs = env_state.episode_length.shape[0]
    # All keys at once are one large threefry call in place of several small ones a step.
    keys = jax.random.split(key, (num_steps, 1 + 2 * num_envs))
    act_keys, step_keys, start_keys = keys[:, 0], keys[:, 1 : 1 + num_envs], keys[:, 1 + num_envs :]

    def start(keys: Key[Array, " N"]) -> tuple[Array, Any]:
        return envs.start(keys, env, params)

    # Start states depend on keys alone. Small ones are drawn for all steps at once, which is faster; large ones step by
    # step, since T * N of them would outweigh the trajectory.
    ahead = sum(x.nbytes for x in jax.tree.leaves(env_state.state)) <= num_envs * _SMALL_STATE_BYTES

    def body(carry: tuple[envs.EnvState, Any], inputs: Any) -> tuple[tuple[envs.EnvState, Any], tuple[Any, Episodes]]:
        env_state, learner = carry
        act_key, step_keys, fresh, given = inputs
        action = act(learner, act_key, env_state.obs)
        fresh = fresh if ahead else start(fresh)
        next_state, timestep = envs.step(step_keys, env, params, env_state, action, fresh)
        reward, terminated, truncated, final_obs, *_ = timestep
        ended = timestep.done
        episode_return, episode_length = (jnp.where(ended, x, 0).sum() for x in timestep[-2:])
        transition = Transition(env_state.obs, action, reward, terminated, truncated, final_obs)
        learner, output = learn(learner, transition, next_state.obs, given)
        return (next_state, learner), (output, Episodes(ended.sum(), episode_return, episode_length))

    starts = jax.vmap(start)(start_keys) if ahead else start_keys
    (env_state, learner), (outputs, episodes) = jax.lax.scan(
        body, (env_state, learner), (act_keys, step_keys, starts, given), length=num_steps
    )
    return env_state, learner, outputs, jax.tree.map(jnp.sum, episodes)


def flatten(tree: Any) -> Any:
    """Merges the first two axes: `[T, N, ...]` becomes `[T * N, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
