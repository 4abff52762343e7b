"""How good a policy is, over a fixed number of whole episodes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from purerl.core import checks, envs


class Evaluation(NamedTuple):
    """Undiscounted return and length of each episode, `[num_episodes]`."""

    returns: Float[Array, " E"]
    lengths: Int[Array, " E"]


@functools.partial(jax.jit, static_argnames=("algorithm", "num_episodes", "deterministic", "max_steps"))
def evaluate(
    algorithm: Any,
    state: Any,
    config: Any,
    key: Key[Array, ""],
    *,
    num_episodes: int = 128,
    deterministic: bool = True,
    max_steps: int = 100_000,
) -> Evaluation:
    """Runs num_episodes episodes side by side, each from its own start state to its end.

    algorithm: its module. state, config: of one training; for many seeds, vmap over state and key. deterministic: the
    policy's mode in place of a draw. max_steps: where an episode that never ends is cut.
    Every env contributes exactly one episode: counting episodes as they end would favour short ones.
    """
    env, params = checks.env(config), checks.env_params(config)
    axes = envs.params_axes(env, params, shared=-1)
    # Where training gave each env its own params, the episodes take turns with them.
    params = jax.tree.map(lambda x, axis: x if axis < 0 else x[jnp.arange(num_episodes) % x.shape[0]], params, axes)
    axes = envs.params_axes(env, params)
    act = jax.vmap(algorithm.policy(state, config, deterministic=deterministic))
    reset_key, loop_key = jax.random.split(key)
    obs, env_state = jax.vmap(env.reset, (0, axes))(jax.random.split(reset_key, num_episodes), params)
    zeros = jnp.zeros(num_episodes)

    def running(carry: Any) -> Array:
        time, _, _, done, _, _ = carry
        return (time < max_steps) & ~done.all()

    def step(carry: Any) -> Any:
        time, obs, env_state, done, returns, lengths = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(loop_key, time))
        action = act(jax.random.split(act_key, num_episodes), obs)
        keys = jax.random.split(env_key, num_episodes)
        obs, env_state, reward, terminated, truncated = jax.vmap(env.step, (0, 0, 0, axes))(
            keys, env_state, action, params
        )
        returns, lengths = returns + jnp.where(done, 0.0, reward), lengths + ~done
        return time + 1, obs, env_state, done | terminated | truncated, returns, lengths

    carry = (jnp.int32(0), obs, env_state, zeros.astype(bool), zeros, zeros.astype(jnp.int32))
    *_, returns, lengths = jax.lax.while_loop(running, step, carry)
    return Evaluation(returns, lengths)
