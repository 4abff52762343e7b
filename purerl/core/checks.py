"""What every Config checks of itself, in the terms of the person who wrote it, before anything compiles."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.core import envs
from purerl.core.types import validate


def env(config: Any) -> envs.Env:
    """The environment that `config.env` names."""
    return envs.make(config.env)


def env_params(config: Any) -> Any:
    """`config.env_params`, or the environment's defaults where it is None.

    Raises ValueError where a leaf has one value for each env, but not as many as there are. The Config itself cannot
    say so, since Configs stacked for vmap have a leading axis of their own.
    """
    environment = env(config)
    if config.env_params is None:
        return environment.default_params
    num_envs = getattr(config, "num_envs", 1)
    for leaf, own in zip(jax.tree.leaves(config.env_params), jax.tree.leaves(environment.default_params), strict=True):
        if jnp.ndim(leaf) == jnp.ndim(own) + 1 and jnp.shape(leaf)[0] != num_envs:
            raise ValueError(
                f"env_params has a leaf of shape {jnp.shape(leaf)}: a leading axis gives each env its own value, so it "
                f"must be num_envs = {num_envs} long."
            )
    return config.env_params


def spaces(config: Any) -> tuple[envs.Space, Any]:
    """Observation and action space; where each env has its own params, those of the first one."""
    environment, params = env(config), env_params(config)
    first = jax.tree.map(
        lambda leaf, axis: leaf if axis < 0 else leaf[0], params, envs.params_axes(environment, params, shared=-1)
    )
    return environment.observation_space(first), environment.action_space(first)


def check(config: Any, actions: tuple[type, ...], *, tabular: bool = False) -> None:
    """Every field against its declaration, the env against what the algorithm can act on.

    actions: the action spaces that the algorithm handles. tabular: it keeps a table, so observations must be numbers.
    Raises TypeError or ValueError with one sentence that names the field.
    """
    validate(config)
    algorithm = type(config).__module__.split(".")[-1]
    environment = env(config)
    with jax.ensure_compile_time_eval():
        space = environment.action_space(environment.default_params)
    if not isinstance(space, actions):
        raise ValueError(
            f"{algorithm} acts in {action_kinds(actions)} action spaces only, but {config.env} has the action space "
            f"{space}."
        )
    if tabular and not isinstance(environment.observation_space(environment.default_params), envs.Discrete):
        raise ValueError(
            f"{algorithm} keeps one entry for each observation, but those of {config.env} are not numbered: "
            f"{environment.observation_space(environment.default_params)}. Use linear_q with tile, fourier or raw "
            "features, or dqn."
        )
    if config.env_params is None:
        return
    given, default = (jax.tree.structure(params) for params in (config.env_params, environment.default_params))
    if given != default:
        raise ValueError(f"env_params must be made like the defaults of {config.env}, {default}, but is {given}.")


def probabilities(config: Any, field: str) -> None:
    """Raises unless the field is None or holds probabilities of actions `[S, A]`, also stacked for vmap.

    TypeError where it is a list, which JAX would take for many numbers; ValueError where shape or sums are wrong.
    Tracers, and what else JAX puts in the place of arrays, pass: their values do not exist yet.
    """
    value = getattr(config, field)
    if isinstance(value, list | tuple):
        raise TypeError(f"{field} must be an array, but is a {type(value).__name__}: wrap it in jnp.array.")
    if isinstance(value, jax.core.Tracer) or not isinstance(value, np.ndarray | jax.Array):
        return
    environment = env(config)
    obs_space, action_space = (
        space(environment.default_params) for space in (environment.observation_space, environment.action_space)
    )
    assert isinstance(obs_space, envs.Discrete) and isinstance(action_space, envs.Discrete)
    value, shape = np.asarray(value, np.float64), (obs_space.n, action_space.n)
    if value.shape[-2:] != shape:
        raise ValueError(f"{field} must be [states, actions] = {list(shape)}, but has the shape {list(value.shape)}.")
    wrong = ~(value >= 0).all(-1) | ~(np.abs(value.sum(-1) - 1) < 1e-5)
    if wrong.any():
        where = ", ".join(map(str, np.argwhere(wrong)[0]))
        raise ValueError(f"{field}[{where}] must be probabilities that sum to 1, but is {value[wrong][0].tolist()}.")


def observed_size(config: Any) -> int:
    """D, how many numbers an observation has. Raises ValueError where it is the number of a state."""
    space = env(config).observation_space(env(config).default_params)
    if isinstance(space, envs.Discrete):
        raise ValueError(
            f"The observations of {config.env} are numbers of states, of which {config.features} features make no "
            "sense: use features = 'one_hot'."
        )
    return math.prod(space.shape)


def bounded(config: Any, low_field: str, high_field: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of the observation `[D]`: the two fields of the Config, or where they are () the env's.

    The env's are those with its default params.
    Raises TypeError where an entry is no number, ValueError where observations are numbers of states, where a bound is
    missing or not finite, and where low is not below high.
    """
    with jax.ensure_compile_time_eval():
        size, space = observed_size(config), env(config).observation_space(env(config).default_params)
        assert isinstance(space, envs.Box)
        for field in (low_field, high_field):
            if any(not isinstance(entry, int | float) for entry in getattr(config, field)):
                raise TypeError(f"{field} must be a tuple of numbers, but is {getattr(config, field)!r}.")
            if not np.isfinite(getattr(config, field)).all():
                raise ValueError(f"{field} must be finite, but is {getattr(config, field)}.")
        own = {low_field: space.low, high_field: space.high}
        given = {field: np.asarray(getattr(config, field), np.float64) for field in own}
        bounds = {
            field: given[field] if given[field].size else np.broadcast_to(bound, space.shape).ravel().astype(np.float64)
            for field, bound in own.items()
        }
    low, high = bounds[low_field], bounds[high_field]
    for field, bound in bounds.items():
        if bound.shape != (size,):
            raise ValueError(f"{field} must have {size} entries, one for each observed number, but has {bound.size}.")
        # Some environments write the largest float where there is no bound.
        if (unbounded := ~(np.abs(bound) < 1e30)).any():
            raise ValueError(
                f"{config.features} features need a finite {field} in each dimension, but {config.env} has none in "
                f"dimension {int(np.argmax(unbounded))}: give {low_field} and {high_field}, {size} numbers each."
            )
    if (empty := ~(low < high)).any():
        raise ValueError(
            f"{low_field} must be less than {high_field}, but is not in dimension {int(np.argmax(empty))}."
        )
    return low, high


def action_kinds(actions: tuple[type, ...]) -> str:
    """Action spaces in words: "discrete", "continuous", or both."""
    return " and ".join({envs.Discrete: "discrete", envs.Box: "continuous"}[kind] for kind in actions)


def divides(config: Any, field: str, product: str, value: int) -> None:
    """Raises ValueError unless the static field divides `value`, which is called `product`."""
    if value % (divisor := getattr(config, field)):
        raise ValueError(f"{field} = {divisor} must divide {product} = {value}.")


def at_least_one_update(config: Any, env_steps: int) -> None:
    """Raises ValueError where total_timesteps ends before the first update does."""
    if config.total_timesteps < env_steps:
        raise ValueError(
            f"total_timesteps = {config.total_timesteps} is less than the {env_steps} env steps of the first update: "
            "raise it, or make updates smaller."
        )


def replay_fits(config: Any, n_step: int = 1) -> None:
    """Raises ValueError where the replay memory cannot hold its prefill, one batch, or what one iteration adds.

    n_step: steps in a row that the algorithm samples; the prefill must hold as many of each env.
    """
    if n_step * config.num_envs > config.env_steps(0):
        raise ValueError(
            f"learning_starts = {config.learning_starts} is smaller than n_step * num_envs = "
            f"{n_step * config.num_envs}, the least that {n_step}-step returns can be drawn from."
        )
    needs = {
        "batch_size": config.batch_size,
        "learning_starts (rounded up to whole steps of num_envs)": config.env_steps(0),
        "num_envs * num_steps": config.num_envs * config.num_steps,
    }
    for name, value in needs.items():
        if config.buffer_size < value:
            raise ValueError(f"buffer_size = {config.buffer_size} is smaller than {name} = {value}.")
