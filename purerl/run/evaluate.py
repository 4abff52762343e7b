"""How good a policy is, over a fixed number of whole episodes: at the end of a training, or all along it."""

import bisect
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl import envs
from purerl.core.rollout import Evaluation, episodes
from purerl.core.types import Array, Metrics, PRNGKey
from purerl.run.acting import acting_leaves, leaves_at, with_leaves

_STREAM = 0x6576616C  # sets the randomness of evaluations apart from that of the training, whose key they come from


def check_state(algorithm: Any, state: Any, config: Any) -> None:
    """Raises TypeError unless `state` is one State of `algorithm`, with the params that `config` asks for."""
    if not hasattr(algorithm, "init"):
        raise TypeError(f"The algorithm must be a module such as purerl.ppo, but is {algorithm!r}.")
    expected = jax.eval_shape(algorithm.init, jax.random.key(0), config)
    name = algorithm.__name__.split(".")[-1]
    if type(state) is not type(expected):
        given = f"{type(state).__module__.split('.')[-1]}.{type(state).__name__}"
        raise TypeError(f"A {name}.State is needed, but a {given} was given.")
    if jax.tree.structure(state.params) != jax.tree.structure(expected.params):
        raise TypeError(f"The state's params are made otherwise than those of this {name}.Config: it is of another.")
    for (path, leaf), own in zip(
        jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(expected.params), strict=True
    ):
        where, shape = f"state.params{jax.tree_util.keystr(path)}", list(jnp.shape(leaf))
        if shape and shape[1:] == list(own.shape):
            raise TypeError(
                f"{where} has the shape {shape} in place of {list(own.shape)}, as of {shape[0]} seeds: take one, "
                "or to evaluate many, jax.vmap(lambda state, key: evaluate(algorithm, state, config, key))."
            )
        if shape != list(own.shape):
            raise TypeError(f"{where} has the shape {shape}, but {list(own.shape)} by this {name}.Config.")


def evaluate(
    algorithm: Any,
    state: Any,
    config: Any,
    key: PRNGKey,
    *,
    num_episodes: int = 128,
    deterministic: bool = True,
    max_steps: int = 100_000,
) -> Evaluation:
    """Runs num_episodes episodes side by side, each from its own start state to its end.

    algorithm: its module. state, config: of one training; for many seeds, vmap over state and key. deterministic: the
    policy's mode in place of a draw. max_steps: where an episode that never ends is cut.
    Where training gave each env its own params, the episodes take turns with them.
    Raises TypeError where the state is of another algorithm, of another Config, or of many seeds, and ValueError where
    num_episodes or max_steps is less than 1.
    """
    for field, value in (("num_episodes", num_episodes), ("max_steps", max_steps)):
        if value < 1:
            raise ValueError(f"{field} must be at least 1, but is {value}.")
    return _evaluate(algorithm, state, envs.with_tables(config), key, num_episodes, deterministic, max_steps)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _evaluate(
    algorithm: Any, state: Any, config: Any, key: PRNGKey, num_episodes: int, deterministic: bool, max_steps: int
) -> Evaluation:
    check_state(algorithm, state, config)
    policy = algorithm.policy(state, config, deterministic=deterministic)
    return episodes(key, envs.bind(config), policy, num_episodes, max_steps)


class Evaluated(NamedTuple):
    """What `train_and_evaluate` returns.

    state, metrics: as `train` returns them. eval_return: mean return of each evaluation, `[E]`. eval_updates: how many
    updates came before it, `[E]`. best: the state with its policy as it was at the best evaluation; all else is final.
    """

    state: Any
    metrics: Metrics
    eval_return: Array
    eval_updates: Array
    best: Any


class Best(NamedTuple):
    """The best policy so far: its mean return, -inf before any, and what it reads of its state."""

    eval_return: Array
    leaves: dict[str, Any]


def train_and_evaluate(
    algorithm: Any, key: PRNGKey, config: Any, *, eval_every: int, eval_episodes: int = 32
) -> Evaluated:
    """`algorithm.train(key, config)` with its greedy policy evaluated all along, jitted; it may be vmapped as `train`.

    eval_every: env steps (updates, of an algorithm that takes none) from one evaluation to the next; each comes after
    the update that completes them, and the last after the last update. eval_episodes: whole episodes each, whose
    randomness is not the training's, so that the state is the one that `train` gives.
    Raises ValueError where either is less than 1.
    """
    check_evaluations(eval_every, eval_episodes)
    return _train_and_evaluate(algorithm, key, envs.with_tables(config), eval_every, eval_episodes)


def check_evaluations(eval_every: int, eval_episodes: int) -> None:
    """Raises ValueError where there cannot be as many."""
    for field, value in (("eval_every", eval_every), ("eval_episodes", eval_episodes)):
        if value < 1:
            raise ValueError(f"{field} must be at least 1, but is {value}.")


def evaluated_updates(config: Any, eval_every: int) -> list[int]:
    """The numbers of updates after which a training is evaluated, ascending; the last is that of all."""
    last, found = config.num_updates, list[int]()
    steps = config.env_steps if config.env_steps(last) else lambda updates: updates
    while not found or found[-1] < last:
        due = (steps(found[-1]) // eval_every + 1) * eval_every if found else eval_every
        found.append(min(last, 1 + bisect.bisect_left(range(1, last + 1), due, key=steps)))
    return found


def first_best(algorithm: Any, state: Any, config: Any) -> Best:
    """Before any evaluation, of one seed."""
    return Best(jnp.float32(-jnp.inf), acting_leaves(algorithm, state, config))


def evaluation(algorithm: Any, state: Any, config: Any, key: PRNGKey, update: Array, num_episodes: int) -> Array:
    """The mean return of the greedy policy after so many updates; key: the one that the training began with."""
    eval_key = jax.random.fold_in(jax.random.fold_in(key, _STREAM), update)
    policy = algorithm.policy(state, config, deterministic=True)
    return episodes(eval_key, envs.bind(config), policy, num_episodes).returns.mean()


def evaluated(
    algorithm: Any, state: Any, config: Any, key: PRNGKey, update: Array, best: Best, num_episodes: int
) -> tuple[Best, Array]:
    """The best policy after the evaluation that comes after so many updates, and its mean return; of one seed.

    key: the one that the training began with.
    """
    value = evaluation(algorithm, state, config, key, update, num_episodes)
    now = Best(value, leaves_at(state, best.leaves))
    return jax.tree.map(lambda new, old: jnp.where(value > best.eval_return, new, old), now, best), value


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _train_and_evaluate(algorithm: Any, key: PRNGKey, config: Any, eval_every: int, eval_episodes: int) -> Evaluated:
    state, update = algorithm.init(key, config), jax.jit(algorithm.update)
    shapes = jax.eval_shape(update, state, config)[1]
    metrics = jax.tree.map(lambda x: jnp.zeros((config.num_updates, *x.shape), x.dtype), shapes)
    updates = jnp.array(evaluated_updates(config, eval_every))

    def one(i: Array, training: Any) -> Any:
        state, row = update(training[0], config)
        return state, jax.tree.map(lambda rows, x: rows.at[i].set(x), training[1], row)

    def until(carry: Any, span: Any) -> Any:
        training, best = carry
        training = jax.lax.fori_loop(span[0], span[1], one, training)
        best, value = evaluated(algorithm, training[0], config, key, span[1], best, eval_episodes)
        return (training, best), value

    spans = jnp.concatenate([jnp.zeros(1, updates.dtype), updates[:-1]]), updates
    start = ((state, metrics), first_best(algorithm, state, config))
    ((state, metrics), best), values = jax.lax.scan(until, start, spans)
    return Evaluated(state, metrics, values, updates, with_leaves(state, best.leaves))
