"""One episode as something to look at, drawn by the suite that its environment is of."""

import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from purerl import envs
from purerl.core.types import PRNGKey
from purerl.run.evaluate import check_state


def episode(
    algorithm: ModuleType, state: Any, config: Any, key: PRNGKey, max_steps: int = 1000
) -> tuple[list[Any], np.ndarray]:
    """Acts greedily from a fresh start state until the episode ends, at most max_steps steps.

    Where each env of the training has params of its own, it is an episode of the first one.
    Returns the env's states from the start to the end, and the return when each was reached, `[steps + 1]` from 0 on.
    """
    check_state(algorithm, state, config)
    env, policy = envs.bind(config).copies(1), algorithm.policy(state, config)
    act = jax.vmap(policy.act)
    reset_key, loop_key = jax.random.split(key)

    def step(carry: Any, keys: Any) -> Any:
        obs, env_state, memory = carry
        action, memory = act(keys[:1], obs, memory)
        next_obs, next_state, reward, terminated, truncated = env.advance(keys[1:], env_state, action)
        return (next_obs, next_state, memory), (next_state, reward, terminated | truncated)

    @jax.jit
    def steps(key: PRNGKey, keys: Any) -> Any:
        start = env.reset(key)
        memory = jax.tree.map(lambda x: jax.numpy.asarray(x)[None], policy.memory)
        return start.state, jax.lax.scan(step, (start.obs, start.state, memory), keys)[1]

    start, trace = jax.device_get(steps(reset_key, jax.random.split(loop_key, (max_steps, 2))))
    states, rewards, done = jax.tree.map(lambda x: x[:, 0], trace)
    length = int(np.argmax(done)) + 1 if done.any() else max_steps
    after = [jax.tree.map(lambda x, i=i: x[i], states) for i in range(length)]
    return [jax.tree.map(lambda x: x[0], start), *after], np.append(0.0, np.cumsum(rewards[:length]))


def save(path: str | Path, algorithm: ModuleType, state: Any, config: Any, key: PRNGKey, max_steps: int = 1000) -> Path:
    """Writes an episode as a GIF, with its step and return so far, and returns the path written.

    path: .gif is added to one without an ending. A Brax env can also be written as Brax's own page, path.html, which
    can be turned and zoomed but loads its script, three.js, from the network when it is opened.
    Raises ValueError for an env that no suite can draw, and for any other ending.
    """
    env = envs.bind(config).copies(1)
    suite = envs.suite_of(env.env)
    if suite is None:
        raise ValueError(f"{type(env.env).__name__} is an env of your own, so there is no way known to draw it.")
    states, returns = episode(algorithm, state, config, key, max_steps)
    # Beside it first, and then in its place: a picture that cannot be finished leaves the one that was there.
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        drawn: Path = suite.draw(Path(folder) / path.name, env.env, env.first_params, states, returns)
        return drawn.replace(path.with_name(drawn.name))
