r"""Probabilistic ensembles with trajectory sampling: PETS (Chua et al. 2018, arXiv:1805.12114).

The problem left by SAC: it learns from tens of thousands of samples what to do, and nothing of how the env works, which
far fewer may tell. PETS learns only that, a model of what follows an observation and an action, and has no policy: at
each step it searches for the actions that earn most in the model. A search finds whatever is wrong with a model and
takes it for gold, so the model must say where it does not know. It is an ensemble of M networks. Each gives a normal
distribution of y, the change of the observation and the reward, whose variance is the chance in the env (section 4):

    y ~ Normal(mean_m(s, a), var_m(s, a))                                                                    -> predict
    loss = sum over m of E[ (mean_m - y)^2 / var_m + log var_m ]                                  (eq. 1)       -> loss

and where data are few the networks disagree, since each starts elsewhere and learns from its own bootstrap of the data:
each transition counts for a network as often as a Poisson variable of mean 1 says, drawn once and for all:

    count_m ~ Poisson(1)                                                                                   -> bootstrap

Far from all data a network's log_var might be anything, so it is squeezed softly between learned bounds, by max -
softplus(max - log_var) and then min + softplus(log_var - min) (appendix A.1). Without the logarithm that is

    var = exp(min) + exp(max) sigmoid(log_var - max)                                                         -> bounded

A sequence of actions is worth what it earns in the ensemble on average. From the present observation each network
follows a trajectory of its own to the horizon, drawing what follows from its distribution (TS-infinity, section 5):

    s_{t+1} = s_t + mean_m + sqrt(var_m) xi,           return = mean over m of the sum of rewards   -> imagined_returns

The cross-entropy method of `core.planning` looks for the best sequence, of which the first action is taken; the rest,
shifted by one step, is where the next search starts. After each num_steps env steps the model learns on.

A model's errors are told, in standard deviations of y, on transitions that it was not trained on yet: `model_error`,
the networks' `disagreement`, and the shares of errors `within_1_std` and `within_2_std` of what it thought, near .68
and .95 where they are chance, and near 1 where there is none. `promised` against `earned` is the return to the horizon,
of the `plans_judged` plans whose horizon has been seen.

Departures from the paper:
    one trajectory a network in place of four, and smaller networks (imagined_returns, hidden_sizes)
    the reward is learned unless the env says it, and the end of episodes may be learned (learn_reward, learn_end)
    bootstraps are kept as counts in place of being drawn anew for each training (bootstrap)
    training comes every num_steps steps with a fixed number of batches, the same for all networks (fit)
    all sequences meet the same chance (imagined_returns)
    what is predicted is standardised as well (standardised)
    one weight decay for all layers, of biases as well (weight_decay)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Float

from purerl import envs
from purerl.core import checks, networks, normalize, optimize, replay
from purerl.core.planning import Plan, plan, shifted
from purerl.core.program import jitted
from purerl.core.rollout import unroll
from purerl.core.types import (
    Array,
    EnvLike,
    Episodes,
    Metrics,
    Policy,
    PRNGKey,
    Result,
    Scalar,
    Transition,
    own_network,
    static,
    traced,
)

ACTIONS = (envs.Box,)


@struct.dataclass
class Config:
    env: EnvLike = static("Pendulum-v1")
    """Environment: a name, or an env object."""
    env_params: Any = None
    """Physics and limits of the env; None means its defaults."""
    total_timesteps: int = static(3_000, low=1)
    """Env steps of the whole training, learning_starts included."""
    num_steps: int = static(50, low=1)
    """Env steps between trainings of the model (T)."""
    learning_starts: int = static(200, low=1)
    """Transitions of the uniform policy before learning begins."""
    buffer_size: int = static(10_000, low=1)
    """Transitions the memory holds."""
    gradient_steps: int = static(200, low=1)
    """Gradient steps of one training of the model."""
    batch_size: int = static(128, low=1)
    """Transitions of one gradient step, the same for all networks, which count them differently."""
    num_members: int = static(5, low=1)
    """Networks of the ensemble (M)."""
    hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers of each network."""
    activation: str = static("swish", choices=networks.ACTIVATIONS)
    """Nonlinearity between layers."""
    model_network: Any = own_network()
    """A flax module in place of a network of the ensemble, reading observation and action in one vector."""
    learn_reward: bool = static(True)
    """Learn the reward; otherwise the env says it, by `reward(obs, action, next_obs, params)`."""
    learn_end: bool = static(False)
    """Learn where episodes terminate; otherwise plans go on as if they never did, and `unforeseen_ends` counts them."""
    horizon: int = static(30, low=1)
    """Steps ahead that are planned (H)."""
    population: int = static(64, low=2)
    """Sequences of actions drawn in one iteration of the search (P)."""
    elite_fraction: float = static(0.2)
    """Part of the sequences that the search is fitted to."""
    planning_iterations: int = static(3, low=1)
    """Iterations of the search at each env step."""
    momentum: Scalar = traced(0.1, low=0, high=0.99)
    """Part of the search's mean and variance that an iteration keeps."""
    learning_rate: Scalar = traced(1e-3, low=0)
    """Adam's step size for the model."""
    weight_decay: Scalar = traced(1e-5, low=0)
    """Weight of the sum of the model's squared weights in its loss."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.bounded_actions(self)
        checks.observes_vectors(self)
        checks.enough_elites(self)
        if not self.learn_reward:
            checks.says_its_reward(self)
        checks.at_most(self, "horizon", "num_steps")
        checks.replay_fits(self)
        checks.first_batch_fits(self)
        checks.at_least_one_update(self, self.env_steps(1))

    @property
    def num_updates(self) -> int:
        """Iterations of `update` in one training."""
        return (self.total_timesteps - self.prefill_steps) // self.num_steps

    @property
    def prefill_steps(self) -> int:
        """Env steps that fill the memory before learning begins."""
        return self.learning_starts

    def env_steps(self, updates: int) -> int:
        """Env steps taken after this many updates, the prefilling of the memory included."""
        return self.prefill_steps + updates * self.num_steps

    @property
    def num_envs(self) -> int:
        """Environments stepped side by side: one."""
        return 1

    @property
    def num_elites(self) -> int:
        """How many sequences the search is fitted to."""
        return round(self.elite_fraction * self.population)


class Params(NamedTuple):
    """Of the ensemble. weights: a leading axis `[M]` on each; max_log_var, min_log_var: of all networks, `[K]`."""

    weights: Any
    max_log_var: Array
    min_log_var: Array


class Datum(NamedTuple):
    """One row of the memory: a transition, and how often it counts for each network, `[M]`."""

    transition: Transition
    counts: Float[Array, "*batch M"]


class Prediction(NamedTuple):
    """Of y in standard units, mean and variance `[M, ..., K]`; and the logit of termination, or None."""

    mean: Float[Array, "M *batch K"]
    var: Float[Array, "M *batch K"]
    end_logit: Float[Array, "M *batch"] | None


class State(NamedTuple):
    """Everything a training is made of. plan: what is meant to be done next, `[H, A]`; target_stats: of y, `[K]`."""

    key: PRNGKey
    params: Params
    opt_state: optax.OptState
    replay: replay.Replay
    env_state: envs.EnvState
    plan: Float[Array, "H A"]
    obs_stats: normalize.RunningStats
    target_stats: normalize.RunningStats
    updates: Array


def num_targets(config: Config) -> int:
    """K: the observed numbers, and the reward where it is learned."""
    return checks.observed_size(config) + config.learn_reward


def model_network(config: Config) -> networks.Network:
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


def predict(params: Params, obs: Array, action: Array, config: Config) -> Prediction:
    """What each network expects of its own standardised observations `[M, ..., D]` and actions `[M, ..., A]`."""
    K = num_targets(config)
    output = jax.vmap(model_network(config).apply)(params.weights, obs, action)
    end_logit = output[..., 2 * K] if config.learn_end else None
    return Prediction(output[..., :K], bounded(output[..., K : 2 * K], params), end_logit)


def for_all(x: Array, config: Config) -> Array:
    """The same `[M, ...]` for every network."""
    return jnp.broadcast_to(x[None], (config.num_members, *x.shape))


def example(config: Config) -> Datum:
    """Shapes and dtypes of a row of the memory."""
    shaped: Any = jax.ShapeDtypeStruct
    return Datum(envs.bind(config).transition, shaped((config.num_members,), "float32"))


def init(key: PRNGKey, config: Config) -> State:
    """The memory filled with learning_starts transitions of the uniform policy, and an ensemble trained on them."""
    env, K = envs.bind(config), num_targets(config)
    key, network_key, env_key, prefill_key, count_key, fit_key = jax.random.split(key, 6)
    network_keys = jax.random.split(network_key, config.num_members)
    weights = jax.vmap(lambda key: networks.init(key, model_network(config))[0])(network_keys)
    params = Params(weights, *(jnp.full(K, bound, jnp.float32) for bound in (0.5, -10.0)))
    opt_state = optimize.plain_adam(config.learning_rate).init(params)
    start = env.reset(env_key)
    env_state, steps, _ = unroll(prefill_key, env, start, lambda key, obs: env.sample(key), config.prefill_steps)
    memory, plan = replay.init(config.buffer_size, example(config)), jnp.zeros((config.horizon, env.action_size))
    obs_stats, target_stats = (normalize.init_stats((size,)) for size in (checks.observed_size(config), K))
    state = State(key, params, opt_state, memory, env_state, plan, obs_stats, target_stats, jnp.int32(0))
    return fit(fit_key, remember(count_key, state, of_the_env(steps), config), config)[0]


def of_the_env(steps: Transition) -> Transition:
    """Steps `[T, 1, ...]` of the one env, without its axis."""
    return jax.tree.map(lambda x: x[:, 0], steps)


def bootstrap(key: PRNGKey, num: int, config: Config) -> Float[Array, "num M"]:
    """How often each transition counts for each network: Poisson numbers of mean 1, cut at 7."""
    reached = np.cumsum(
        np.exp(-1.0) / np.cumprod([1.0, *range(1, 7)]), dtype=np.float32
    )  # chance of at most 0, 1, .. 6
    drawn = jax.random.uniform(key, (num, config.num_members))
    return jnp.searchsorted(jnp.asarray(reached), drawn).astype(jnp.float32)


def targets(steps: Transition, config: Config) -> Float[Array, "*batch K"]:
    """y: the change of the observation and, where it is learned, the reward."""
    change = steps.final_obs - steps.obs
    return jnp.concatenate([change, steps.reward[..., None]], axis=-1) if config.learn_reward else change


def remember(key: PRNGKey, state: State, steps: Transition, config: Config) -> State:
    """Adds steps `[T, ...]` with their counts to the memory, and to the statistics."""
    data = Datum(steps, bootstrap(key, len(steps.reward), config))
    obs_stats = normalize.update_stats(state.obs_stats, steps.obs)
    target_stats = normalize.update_stats(state.target_stats, targets(steps, config))
    assert obs_stats is not None and target_stats is not None
    return state._replace(replay=replay.add(state.replay, data), obs_stats=obs_stats, target_stats=target_stats)


def units(state: State) -> tuple[Array, Array]:
    """Mean and standard deviation of y over all data, `[K]`."""
    return state.target_stats.mean, jnp.sqrt(state.target_stats.var + 1e-8)


def standardised(steps: Transition, state: State, config: Config) -> tuple[Array, Array]:
    """Observations and y of the steps in standard units."""
    y = targets(steps, config)
    mean, std = (jnp.broadcast_to(x, y.shape) for x in units(state))
    return normalize.normalize(state.obs_stats, steps.obs), (y - mean) / std


def loss(params: Params, obs: Array, y: Array, data: Datum, config: Config) -> tuple[Array, Array]:
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


def fit(key: PRNGKey, state: State, config: Config) -> tuple[State, Metrics]:
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


def imagined_returns(
    key: PRNGKey, obs: Float[Array, " D"], sequences: Float[Array, "P H A"], state: State, config: Config
) -> Float[Array, " P"]:
    """What each sequence earns from obs on: the mean over networks, each on its own trajectory with its own chance.

    All sequences meet the same chance. Rewards count as far as the trajectory has probably not terminated.
    """
    env, (M, P) = envs.bind(config), (config.num_members, len(sequences))
    mean, std = units(state)

    def step(carry: tuple[Array, Array], inputs: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        (obs, alive), (action, noise) = carry, inputs  # [M, P, D], [M, P], [P, A], [M, 1, K]
        action = for_all(action, config)
        prediction = predict(state.params, normalize.normalize(state.obs_stats, obs), action, config)
        shift, scale, noise = (jnp.broadcast_to(x, prediction.mean.shape) for x in (mean, std, noise))
        y = shift + scale * (prediction.mean + jnp.sqrt(prediction.var) * noise)
        next_obs = obs + y[..., : obs.shape[-1]]
        if config.learn_reward:
            reward = mean[-1] + std[-1] * prediction.mean[..., -1]
        else:
            reward = env.reward(obs, action, next_obs)
        earned = alive * reward
        if prediction.end_logit is not None:
            alive = alive * (1 - jax.nn.sigmoid(prediction.end_logit))
        return (next_obs, alive), earned

    noise = jax.random.normal(key, (config.horizon, M, 1, mean.size))
    start = (jnp.broadcast_to(obs, (M, P, *obs.shape)), jnp.ones((M, P)))
    _, rewards = jax.lax.scan(step, start, (sequences.swapaxes(0, 1), noise))
    return rewards.sum(0).mean(0)


def search(key: PRNGKey, obs: Float[Array, " D"], start: Float[Array, "H A"], state: State, config: Config) -> Plan:
    """The plan for an observation, from the rest of an earlier one on."""
    return plan(key, start, lambda key, sequences: imagined_returns(key, obs, sequences, state, config), config)


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """The first action of a plan made anew at each step, which starts from the last one: that is what it remembers.

    The search draws at random: deterministic, the same numbers at each step.
    """
    same_key = jax.random.fold_in(state.key, 0)

    def act(key: PRNGKey, obs: Array, start: Array) -> tuple[Array, Array]:
        actions = search(same_key if deterministic else key, obs, start, state, config).actions
        return actions[0], shifted(actions)

    return Policy(jnp.zeros_like(state.plan), act, envs.bind(config).to_units)


def collect(key: PRNGKey, state: State, config: Config) -> tuple[State, Transition, Array, Episodes]:
    """T steps `[T, ...]`, each planned for anew, and what each plan promised; a plan ends with its episode."""
    env = envs.bind(config)

    def step(carry: tuple[envs.EnvState, Array], tick: envs.Tick) -> tuple[Any, Any]:
        env_state, start = carry
        actions, promised = search(tick.act_key, env_state.obs[0], start, state, config)
        env_state, transition, episodes = env.step(tick, env_state, actions[:1])
        start = jnp.where(transition.done[0], 0.0, shifted(actions))
        return (env_state, start), (transition, promised, episodes)

    ticks = env.ticks(key, config.num_steps)
    (env_state, start), (steps, promised, episodes) = jax.lax.scan(step, (state.env_state, state.plan), ticks)
    return state._replace(env_state=env_state, plan=start), of_the_env(steps), promised, episodes


def errors(state: State, steps: Transition, config: Config) -> Metrics:
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


def promises(promised: Float[Array, " T"], steps: Transition, config: Config) -> Metrics:
    """What plans promised to their horizon and what came then, the mean over those of which that is known.

    It is not where the horizon reaches beyond the rollout or a time limit; both are 0 where it is of none.
    """
    starts = len(promised) - config.horizon + 1
    ahead = jnp.arange(starts)[:, None] + jnp.arange(config.horizon)[None]
    reward, terminated, done = (x[ahead] for x in (steps.reward, steps.terminated, steps.done))  # [starts, H]
    going_on = jnp.cumsum(done, axis=1) - done == 0
    earned = jnp.where(going_on, reward, 0.0).sum(1)
    known = ~(going_on & done & ~terminated)[:, :-1].any(1)
    num = known.sum()
    means = (jnp.where(known, x, 0.0).sum() / jnp.maximum(num, 1) for x in (promised[:starts], earned))
    return {**dict(zip(("promised", "earned"), means, strict=True)), "plans_judged": num}


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """T steps are planned with the model and tell how good it was; then it learns on from the memory and them."""
    key, act_key, count_key, fit_key = jax.random.split(state.key, 4)
    state, steps, promised, episodes = collect(act_key, state, config)
    metrics = errors(state, steps, config) | promises(promised, steps, config) | episodes.metrics()
    state, fitted = fit(fit_key, remember(count_key, state, steps, config), config)
    return state._replace(key=key, updates=state.updates + 1), metrics | fitted


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
