"""An ensemble of networks that learns what follows an observation and an action, and how sure it may be.

Source: Chua et al. (2018), arXiv:1805.12114; `purerl.algorithms.pets` has the equations. A Config has env, env_params,
num_members, hidden_sizes, activation, model_network, learn_reward, learn_end, buffer_size, gradient_steps, batch_size,
learning_rate and weight_decay. A state is an `Ensemble`, or any other named tuple that has its fields.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from purerl import envs
from purerl.core import checks, networks, normalize, optimize, replay
from purerl.core.types import Metrics, PRNGKey, Transition


class Params(NamedTuple):
    """Of the ensemble. weights: a leading axis `[M]` on each; max_log_var, min_log_var: of all networks, `[K]`."""

    weights: Any
    max_log_var: Array
    min_log_var: Array


class Datum(NamedTuple):
    """One row of the memory: a transition, and how often it counts for each network, `[M]`."""

    transition: Transition
    counts: Float[Array, "*batch M"]


class Ensemble(NamedTuple):
    """Networks, their optimiser, the memory they learn from, and statistics of observations `[D]` and of y `[K]`."""

    params: Params
    opt_state: optax.OptState
    replay: replay.Replay
    obs_stats: normalize.RunningStats
    target_stats: normalize.RunningStats


class Prediction(NamedTuple):
    """Of y in standard units, mean and variance `[M, ..., K]`; and the logit of termination, or None."""

    mean: Float[Array, "M *batch K"]
    var: Float[Array, "M *batch K"]
    end_logit: Float[Array, "M *batch"] | None


def num_targets(config: Any) -> int:
    """K: the observed numbers, and the reward where it is learned."""
    return checks.observed_size(config) + config.learn_reward


def model_network(config: Any) -> networks.Network:
    """Gives K means, K log variances and, where the end is learned, its logit."""
    env, num_outputs = envs.bind(config), 2 * num_targets(config) + config.learn_end
    given, sizes = config.model_network, config.hidden_sizes
    return networks.make(given, env.obs_space, num_outputs, sizes, config.activation, action_size=env.action_size)


def bounded(log_var: Array, params: Params) -> Array:
    """The variance of a log_var `[..., K]` that is squeezed softly between min_log_var and max_log_var."""
    bounds = params.max_log_var, jnp.exp(params.max_log_var), jnp.exp(params.min_log_var)
    high, most, least = (jnp.broadcast_to(x, log_var.shape) for x in bounds)
    # With the softplus of the paper, for which CPUs have no fast form, planning took some 1.4 times as long.
    return least + most * jax.nn.sigmoid(log_var - high)


def predict(params: Params, obs: Array, action: Array, config: Any) -> Prediction:
    """What each network expects of its own standardised observations `[M, ..., D]` and actions `[M, ..., A]`."""
    K = num_targets(config)
    output = jax.vmap(model_network(config).apply)(params.weights, obs, action)
    end_logit = output[..., 2 * K] if config.learn_end else None
    return Prediction(output[..., :K], bounded(output[..., K : 2 * K], params), end_logit)


def for_all(x: Array, config: Any) -> Array:
    """The same `[M, ...]` for every network."""
    return jnp.broadcast_to(x[None], (config.num_members, *x.shape))


def example(config: Any) -> Datum:
    """Shapes and dtypes of a row of the memory."""
    shaped: Any = jax.ShapeDtypeStruct
    return Datum(envs.bind(config).transition, shaped((config.num_members,), "float32"))


def init(key: PRNGKey, config: Any) -> Ensemble:
    """Fresh networks and an empty memory."""
    K, keys = num_targets(config), jax.random.split(key, config.num_members)
    weights = jax.vmap(lambda key: networks.init(key, model_network(config))[0])(keys)
    params = Params(weights, *(jnp.full(K, bound, jnp.float32) for bound in (0.5, -10.0)))
    opt_state = optimize.plain_adam(config.learning_rate).init(params)
    obs_stats, target_stats = (normalize.init_stats((size,)) for size in (checks.observed_size(config), K))
    return Ensemble(params, opt_state, replay.init(config.buffer_size, example(config)), obs_stats, target_stats)


def bootstrap(key: PRNGKey, num: int, config: Any) -> Float[Array, "num M"]:
    """How often each transition counts for each network: Poisson numbers of mean 1, cut at 7."""
    chances = np.exp(-1.0) / np.cumprod([1.0, *range(1, 7)])
    reached = np.cumsum(chances, dtype=np.float32)  # of at most 0, 1, .. 6
    drawn = jax.random.uniform(key, (num, config.num_members))
    return jnp.searchsorted(jnp.asarray(reached), drawn).astype(jnp.float32)


def targets(steps: Transition, config: Any) -> Float[Array, "*batch K"]:
    """y: the change of the observation and, where it is learned, the reward."""
    change = steps.final_obs - steps.obs
    return jnp.concatenate([change, steps.reward[..., None]], axis=-1) if config.learn_reward else change


def remember(key: PRNGKey, state: Any, steps: Transition, config: Any) -> Any:
    """Adds steps `[T, ...]` with their counts to the memory, and to the statistics."""
    data = Datum(steps, bootstrap(key, len(steps.reward), config))
    obs_stats = normalize.update_stats(state.obs_stats, steps.obs)
    target_stats = normalize.update_stats(state.target_stats, targets(steps, config))
    assert obs_stats is not None and target_stats is not None
    return state._replace(replay=replay.add(state.replay, data), obs_stats=obs_stats, target_stats=target_stats)


def units(state: Any) -> tuple[Array, Array]:
    """Mean and standard deviation of y over all data, `[K]`."""
    return state.target_stats.mean, jnp.sqrt(state.target_stats.var + 1e-8)


def standardised(steps: Transition, state: Any, config: Any) -> tuple[Array, Array]:
    """Observations and y of the steps in standard units."""
    y = targets(steps, config)
    mean, std = (jnp.broadcast_to(x, y.shape) for x in units(state))
    return normalize.normalize(state.obs_stats, steps.obs), (y - mean) / std


def loss(params: Params, obs: Array, y: Array, data: Datum, config: Any) -> tuple[Array, Array]:
    """The error by eq. 1, and what holds bounds and weights small; beside it the error alone.

    It is summed over networks, the mean over the batch and over the K. A transition weighs for a network as often as it
    counts. The end adds its cross entropy. obs, y: of the data, standardised.
    """
    prediction = predict(params, for_all(obs, config), for_all(data.transition.action, config), config)
    square = jnp.square(prediction.mean - for_all(y, config))
    each = (square / prediction.var + jnp.log(prediction.var)).mean(-1)  # [M, B]
    if prediction.end_logit is not None:
        ended = for_all(data.transition.terminated.astype(jnp.float32), config)
        each = each + optax.sigmoid_binary_cross_entropy(prediction.end_logit, ended)
    error = (data.counts.T * each).mean(1).sum()
    bounds = 0.01 * (params.max_log_var.sum() - params.min_log_var.sum())
    decay = config.weight_decay * sum(jnp.square(x).sum() for x in jax.tree.leaves(params.weights))
    return error + bounds + decay, error


def fit(key: PRNGKey, state: Any, config: Any) -> tuple[Any, Metrics]:
    """gradient_steps Adam steps of the ensemble on batches from the memory."""

    def step(carry: tuple[Params, optax.OptState], key: PRNGKey) -> tuple[tuple[Params, optax.OptState], Array]:
        params, opt_state = carry
        data = replay.sample(key, state.replay, config.batch_size, example(config))
        obs, y = standardised(data.transition, state, config)
        grads, error = jax.grad(loss, has_aux=True)(params, obs, y, data, config)
        return optimize.adam_step(grads, params, opt_state, config.learning_rate), error

    keys = jax.random.split(key, config.gradient_steps)
    (params, opt_state), error = jax.lax.scan(step, (state.params, state.opt_state), keys)
    return state._replace(params=params, opt_state=opt_state), {"model_loss": error.mean() / config.num_members}


def errors(state: Any, steps: Transition, config: Any) -> Metrics:
    """How far the ensemble is from steps that it was not trained on, and how far it thought it might be."""
    obs, y = standardised(steps, state, config)
    prediction = predict(state.params, for_all(obs, config), for_all(steps.action, config), config)
    error = jnp.abs(prediction.mean.mean(0) - y)
    std = jnp.sqrt(prediction.var.mean(0) + prediction.mean.var(0))  # of the mixture
    metrics = {f"within_{n}_std": (error <= n * std).mean() for n in (1, 2)}
    metrics |= {"model_error": jnp.sqrt(jnp.square(error).mean()), "disagreement": prediction.mean.std(0).mean()}
    if prediction.end_logit is None:
        return metrics | {"unforeseen_ends": steps.terminated.sum()}
    return metrics | {"end_error": jnp.abs(jax.nn.sigmoid(prediction.end_logit).mean(0) - steps.terminated).mean()}
