"""Acting: for T steps in N environments, or for whole episodes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from purerl.core import networks, normalize
from purerl.core.types import Episodes, Policy, PRNGKey, Transition
from purerl.envs import BoundEnv, EnvState


def unroll(
    key: PRNGKey, env: BoundEnv, env_state: EnvState, act: Callable[[PRNGKey, Array], Array], num_steps: int
) -> tuple[EnvState, Transition, Episodes]:
    """Acts for T = num_steps steps from env_state: the trajectory `[T, N, ...]`, and the account of its episodes `[T]`.

    act: (key, obs `[N, ...]`) -> action `[N]`, or `[N, D]` on the scale [-1, 1].
    """

    def step(env_state: EnvState, tick: Any) -> tuple[EnvState, tuple[Transition, Episodes]]:
        env_state, transition, episodes = env.step(tick, env_state, act(tick.act_key, env_state.obs))
        return env_state, (transition, episodes)

    env_state, (steps, episodes) = jax.lax.scan(step, env_state, env.ticks(key, num_steps))
    return env_state, steps, episodes


class Evaluation(NamedTuple):
    """Undiscounted return and length of each episode, `[num_episodes]`."""

    returns: Float[Array, " E"]
    lengths: Int[Array, " E"]


def episodes(key: PRNGKey, env: BoundEnv, policy: Policy, num: int, max_steps: int = 100_000) -> Evaluation:
    """Runs num episodes side by side, each from its own start state to its end.

    Where each env has params of its own, the episodes take turns with them. max_steps: where an episode that never ends
    is cut.
    """
    memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *jnp.shape(x))), policy.memory)
    evaluation, _ = play(key, env.copies(num), jax.vmap(policy.act), memory, max_steps)
    return evaluation


def play(
    key: PRNGKey,
    env: BoundEnv,
    act: Callable[[Any, Array, Any], tuple[Array, Any]],
    memory: Any,
    max_steps: int,
    *,
    streams: int | None = None,
    seen: normalize.RunningStats | None = None,
) -> tuple[Evaluation, normalize.RunningStats | None]:
    """One whole episode in each of the N envs, and the statistics `seen` with the observations that were acted on.

    act: (keys `[N]`, obs `[N, ...]`, memory `[N, ...]`) -> (action `[N, ...]`, memory). streams: how many different
    random streams there are, N where None; env n has stream n % streams, so that start states and chance are common to
    every streams-th env. Every env contributes exactly one episode: counting episodes as they end would favour short
    ones.
    """
    num = env.num_envs
    stream = jnp.arange(num) % (streams or num)
    reset_key, loop_key = jax.random.split(key)

    def spread(key: PRNGKey) -> Any:
        return jax.random.split(key, streams or num)[stream]

    def running(carry: Any) -> Array:
        time, _, _, done, _ = carry
        return (time < max_steps) & ~done.all()

    def step(carry: Any) -> Any:
        time, episode, memory, done, seen = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(loop_key, time))
        if seen is not None:
            seen = normalize.update_stats(seen, networks.encode(episode.obs, env.obs_space), ~done)
        action, memory = act(spread(act_key), episode.obs, memory)
        obs, state, reward, terminated, truncated = env.advance(spread(env_key), episode.state, action)
        total, length = episode.episode_return + jnp.where(done, 0.0, reward), episode.episode_length + ~done
        return time + 1, EnvState(state, obs, total, length), memory, done | terminated | truncated, seen

    carry = (jnp.int32(0), env.fresh(env.start(spread(reset_key))), memory, jnp.zeros(num, bool), seen)
    _, last, _, _, seen = jax.lax.while_loop(running, step, carry)
    return Evaluation(last.episode_return, last.episode_length), seen


def flatten(tree: Any) -> Any:
    """Merges the first two axes: `[T, N, ...]` becomes `[T * N, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
