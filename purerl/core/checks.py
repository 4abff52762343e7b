"""What every Config checks of itself, in the terms of the person who wrote it, before anything compiles."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl import envs
from purerl.core.types import validate
from purerl.envs import params

_FOR_ACTIONS = {envs.Discrete: "dqn, discrete_sac or ppo", envs.Box: "sac, td3 or ppo"}


def check(config: Any, actions: tuple[type, ...], *, tabular: bool = False) -> None:
    """Every field against its declaration, the env against what the algorithm can act on, env_params against the env's.

    actions: the action spaces that the algorithm handles. tabular: it keeps a table, so observations must be numbers.
    Raises TypeError or ValueError with one sentence that names the field.
    """
    validate(config)
    algorithm = type(config).__module__.split(".")[-1]
    environment = envs.make(config.env)
    with jax.ensure_compile_time_eval():
        space = environment.action_space(environment.default_params)
    if not isinstance(space, actions):
        instead = next((names for kind, names in _FOR_ACTIONS.items() if isinstance(space, kind)), "")
        raise ValueError(
            f"{algorithm} acts in {action_kinds(actions)} action spaces only, but {config.env} has the action space "
            f"{space}" + (f": use {instead}." if instead else ".")
        )
    if tabular and not isinstance(environment.observation_space(environment.default_params), envs.Discrete):
        raise ValueError(
            f"{algorithm} keeps one entry for each observation, but those of {config.env} are not numbered: "
            f"{environment.observation_space(environment.default_params)}. Use linear_q with tile, fourier or raw "
            "features, or dqn."
        )
    params.complete(environment, config.env_params, config.env)


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
    environment = envs.make(config.env)
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
    space = _obs_space(config)
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
        size, space = observed_size(config), _obs_space(config)
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


def solvable(config: Any) -> None:
    """Raises TypeError where config.env is not `Tabular`, and ValueError where gamma is 1 and a state never terminates.

    Values may then have no bound, and sweeps no end. A gamma that is an array passes, and so do MDPs that are traced or
    stacked for vmap: their values may not exist yet.
    """
    env, gamma = envs.make(config.env), config.gamma
    if not isinstance(env, envs.Tabular):
        raise TypeError(
            f"{config.env} shows no transition probabilities to plan with: name an env that begins with mdp/, make one "
            "by mdp.Tabular(MDP(...)), or learn from samples with q_learning."
        )
    mdp = env.default_params if config.env_params is None else config.env_params
    stacked = np.ndim(mdp.probability) != 3
    if not isinstance(gamma, int | float) or gamma != 1 or stacked or any(isinstance(x, jax.core.Tracer) for x in mdp):
        return
    S, A, K = np.shape(mdp.probability)
    following = np.broadcast_to(np.arange(S), (S, A, K)) if mdp.successor is None else np.asarray(mdp.successor)
    possible, ends = np.asarray(mdp.probability) > 0, np.asarray(mdp.terminal)
    while (more := ends | (possible & ends[following]).any((1, 2))).sum() > ends.sum():
        ends = more
    if not ends.all():
        raise ValueError(
            f"gamma = 1 needs an end within reach of every state, but state {int(np.argmin(ends))} never terminates, "
            "whatever is done: its value may be infinite. Take gamma < 1, or add a terminal state."
        )


def _obs_space(config: Any) -> envs.Space:
    environment = envs.make(config.env)
    return environment.observation_space(environment.default_params)


def action_kinds(actions: tuple[type, ...]) -> str:
    """Action spaces in words: "discrete", "continuous", or both."""
    return " and ".join({envs.Discrete: "discrete", envs.Box: "continuous"}[kind] for kind in actions)


def bounded_actions(config: Any) -> None:
    """Raises ValueError where a dimension of the env's actions, with its default params, has no room or no end.

    An actor whose actions end at -1 and 1 can be scaled to finite bounds alone.
    """
    environment = envs.make(config.env)
    with jax.ensure_compile_time_eval():
        space = environment.action_space(environment.default_params)
        assert isinstance(space, envs.Box)
        low, high = (np.broadcast_to(np.asarray(x, np.float64), space.shape).ravel() for x in (space.low, space.high))
    # Some environments write the largest float where there is no bound.
    bounded = (np.abs(low) < 1e30) & (np.abs(high) < 1e30)
    for wrong, what in ((~bounded, "finite bounds"), (~(low < high), "low < high")):
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(
                f"{type(config).__module__.split('.')[-1]} scales its actions from [-1, 1] to the env's bounds, so it "
                f"needs {what} in each dimension, but {config.env} has [{low[i]:g}, {high[i]:g}] in dimension {i}."
            )


def observes_vectors(config: Any) -> None:
    """Raises ValueError unless observations are vectors of floats, of which a model can predict the change."""
    space = _obs_space(config)
    if isinstance(space, envs.Discrete) or len(space.shape) != 1 or not jnp.issubdtype(space.dtype, jnp.floating):
        raise ValueError(
            f"{type(config).__module__.split('.')[-1]} predicts the change of an observation, which must be a vector "
            f"of real numbers, but {config.env} has {space}: use sac, td3 or ppo."
        )


def says_its_reward(config: Any) -> None:
    """Raises ValueError unless the env has a reward function of observations that gives one number."""
    env: Any = envs.make(config.env)
    default = env.default_params
    obs, action = (
        jax.ShapeDtypeStruct(space.shape, space.dtype)
        for space in (env.observation_space(default), env.action_space(default))
    )
    try:
        shape = jax.eval_shape(lambda obs, action: env.reward(obs, action, obs, default), obs, action).shape
    except (AttributeError, TypeError, ValueError, LookupError):
        shape = None
    if shape != ():
        raise ValueError(
            f"learn_reward = False needs an env that says what it pays, but {config.env} has no method "
            "reward(obs, action, next_obs, params) that gives a number: give it one, or use learn_reward = True."
        )


def enough_elites(config: Any) -> None:
    """Raises ValueError unless elite_fraction makes at least 2 elites, and no more than there are candidates."""
    num = config.num_elites if math.isfinite(config.elite_fraction) else 0
    if not 2 <= num <= config.population:
        limit = "a variance needs at least 2" if num < 2 else "there are no more than the population"
        raise ValueError(
            f"elite_fraction = {config.elite_fraction} of population = {config.population} makes {num} elites, but "
            f"{limit}: choose a fraction between {2 / config.population:g} and 1."
        )


def whole_episodes(config: Any) -> None:
    """Raises ValueError where an episode of the env, with its own params, may last longer than num_steps.

    A limit that is traced passes, and so does an env that does not say.
    """
    env = envs.make(config.env)
    with jax.ensure_compile_time_eval():
        limit = envs.max_episode_steps(env, params.complete(env, config.env_params, config.env))
    if limit is None or isinstance(limit, jax.core.Tracer) or type(limit) is object:
        return
    if not (np.asarray(limit) <= config.num_steps).all():
        raise ValueError(
            f"Candidates play whole episodes, but those of {config.env} may last {np.max(limit):g} steps and num_steps "
            f"is {config.num_steps}: raise num_steps, or lower the env's time limit."
        )


def in_pairs(config: Any) -> None:
    """Raises ValueError where the population is odd."""
    if config.population % 2:
        raise ValueError(f"Candidates come in pairs, so population must be even, but is {config.population}.")


def mixes(config: Any) -> None:
    """Raises ValueError unless real_fraction is a part of a whole, and a batch large enough to hold that part."""
    part, size = config.real_fraction, config.batch_size
    if not 0 <= part <= 1:
        raise ValueError(f"real_fraction must be a number in [0, 1], but is {part!r}.")
    if (part > 0 and config.num_real == 0) or (part < 1 and config.num_real == size):
        raise ValueError(
            f"real_fraction = {part} of batch_size = {size} is {config.num_real} transitions when rounded, so a batch "
            "would be no mixture: raise batch_size, or say 0 or 1."
        )


def rollouts_fit(config: Any) -> None:
    """Raises ValueError where what is imagined at once does not fit into imagined_size."""
    num = config.rollouts_a_network * config.num_members * config.rollout_length
    if num > config.imagined_size:
        raise ValueError(
            f"imagined_size = {config.imagined_size} is smaller than the {num} transitions that num_rollouts = "
            f"{config.num_rollouts} of rollout_length = {config.rollout_length}, as many for each of "
            f"{config.num_members} networks, make at once: raise it, or lower them."
        )


def first_batch_fits(config: Any) -> None:
    """Raises ValueError where the first batch is larger than what the memory holds by then."""
    if config.batch_size > config.prefill_steps:
        raise ValueError(
            f"batch_size = {config.batch_size} is larger than learning_starts = {config.learning_starts}, so the first "
            "batches could only repeat what the memory holds: raise learning_starts or lower batch_size."
        )


def episodes_fit(config: Any) -> None:
    """Raises ValueError unless every episode of the env must end within num_steps steps.

    A limit that is traced, or only said to be an axis of vmap, passes.
    Raises TypeError where what the env says of it is no number.
    """
    env = envs.make(config.env)
    with jax.ensure_compile_time_eval():
        default, limit = (
            envs.max_episode_steps(env, x)
            for x in (env.default_params, params.complete(env, config.env_params, config.env))
        )
    refused = (
        f"episodes = 'complete' favours short episodes unless the longest fits into num_steps = {config.num_steps}"
    )
    if default is None:
        raise ValueError(
            f"{refused}, but {config.env} does not say how long its episodes may last: give it a method "
            "max_episode_steps(params), or use episodes = 'bootstrap'."
        )
    if limit is None or isinstance(limit, jax.core.Tracer) or type(limit) is object:
        return
    if not np.issubdtype(np.asarray(limit).dtype, np.number):
        raise TypeError(f"max_episode_steps(params) of {config.env} must give a number of steps, but gives {limit!r}.")
    if not (np.asarray(limit) <= config.num_steps).all():
        raise ValueError(
            f"{refused}, but those of {config.env} may last {np.max(limit):g}: raise num_steps, lower "
            "the env's time limit, or use episodes = 'bootstrap'."
        )


def divides(config: Any, field: str, product: str, value: int) -> None:
    """Raises ValueError unless the static field divides `value`, which is called `product`."""
    if value % (divisor := getattr(config, field)):
        raise ValueError(f"{field} = {divisor} must divide {product} = {value}.")


def at_most(config: Any, field: str, limit: str) -> None:
    """Raises ValueError where one static field is larger than another that limits it."""
    if (value := getattr(config, field)) > (most := getattr(config, limit)):
        raise ValueError(f"{field} = {value} must be at most {limit} = {most}: lower {field} or raise {limit}.")


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
    if n_step * config.num_envs > config.prefill_steps:
        raise ValueError(
            f"learning_starts = {config.learning_starts} is smaller than n_step * num_envs = "
            f"{n_step * config.num_envs}, the least that {n_step}-step returns can be drawn from."
        )
    needs = {
        "batch_size": config.batch_size,
        "learning_starts (rounded up to whole steps of num_envs)": config.prefill_steps,
        "num_envs * num_steps": config.num_envs * config.num_steps,
    }
    for name, value in needs.items():
        if config.buffer_size < value:
            raise ValueError(f"buffer_size = {config.buffer_size} is smaller than {name} = {value}.")
