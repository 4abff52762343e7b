r"""Probabilistic ensembles with trajectory sampling: PETS (Chua et al. 2018, arXiv:1805.12114).

The problem left by SAC: it learns from tens of thousands of samples what to do, and nothing of how the env works, which
far fewer may tell. PETS learns only that, a model of what follows an observation and an action, and has no policy: at
each step it searches for the actions that earn most in the model. A search finds whatever is wrong with a model and
takes it for gold, so the model must say where it does not know. It is an ensemble of M networks. Each gives a normal
distribution of y, the change of the observation and the reward, whose variance is the chance in the env (section 4):

    y ~ Normal(mean_m(s, a), var_m(s, a))                                                            -> ensemble.predict
    loss = sum over m of E[ (mean_m - y)^2 / var_m + log var_m ]    (eq. 1)                             -> ensemble.loss

and where data are few the networks disagree, since each starts elsewhere and learns from its own bootstrap of the data:
each transition counts for a network as often as a Poisson variable of mean 1 says, drawn once and for all:

    count_m ~ Poisson(1)                                                                           -> ensemble.bootstrap

Far from all data a network's log_var might be anything, so it is squeezed softly between learned bounds, by max -
softplus(max - log_var) and then min + softplus(log_var - min) (appendix A.1). Without the logarithm that is

    var = exp(min) + exp(max) sigmoid(log_var - max)                                                 -> ensemble.bounded

A sequence of actions is worth what it earns in the ensemble on average. From the present observation each network
follows a trajectory of its own to the horizon, drawing what follows from its distribution (TS-infinity, section 5):

    s_{t+1} = s_t + mean_m + sqrt(var_m) xi,           return = mean over m of the sum of rewards    -> imagined_returns

The cross-entropy method of `core.planning` looks for the best sequence, of which the first action is taken; the rest,
shifted by one step, is where the next search starts. After each num_steps env steps the model learns on.

A model's errors are told, in standard deviations of y, on transitions that it was not trained on yet: `model_error`,
the networks' `disagreement`, and the shares of errors `within_1_std` and `within_2_std` of what it thought, near .68
and .95 where they are chance, and near 1 where there is none. `promised` against `earned` is the return to the horizon,
of the `plans_judged` plans whose horizon has been seen.

Departures from the paper:
    one trajectory a network in place of four, and smaller networks (imagined_returns, hidden_sizes)
    the reward is learned unless the env says it, and the end of episodes may be learned (learn_reward, learn_end)
    bootstraps are kept as counts in place of being drawn anew for each training (ensemble.bootstrap)
    training comes every num_steps steps with a fixed number of batches, the same for all networks (ensemble.fit)
    all sequences meet the same chance, and a learned reward counts by its mean (imagined_returns)
    what is predicted is standardised as well; what is read is clipped at ten deviations (ensemble.standardised)
    one weight decay for all layers, of biases as well (weight_decay)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from purerl import envs
from purerl.core import checks, ensemble, networks, normalize, replay
from purerl.core.ensemble import errors, fit, for_all, predict, remember, units
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
    config_class,
    own_network,
    static,
    traced,
)

ACTIONS = (envs.Box,)


@config_class
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


class State(NamedTuple):
    """Everything a training is made of. plan: what is meant to be done next, `[H, A]`; target_stats: of y, `[K]`."""

    key: PRNGKey
    params: ensemble.Params
    opt_state: optax.OptState
    replay: replay.Replay
    env_state: envs.EnvState
    plan: Float[Array, "H A"]
    obs_stats: normalize.RunningStats
    target_stats: normalize.RunningStats
    updates: Array


def init(key: PRNGKey, config: Config) -> State:
    """The memory filled with learning_starts transitions of the uniform policy, and an ensemble trained on them."""
    env = envs.bind(config)
    key, network_key, env_key, prefill_key, count_key, fit_key = jax.random.split(key, 6)
    start = env.reset(env_key)
    env_state, steps, _ = unroll(prefill_key, env, start, lambda key, obs: env.sample(key), config.prefill_steps)
    learned, plan = ensemble.init(network_key, config), jnp.zeros((config.horizon, env.action_size))
    state = State(key, env_state=env_state, plan=plan, updates=jnp.int32(0), **learned._asdict())
    return fit(fit_key, remember(count_key, state, of_the_env(steps), config), config)[0]


def of_the_env(steps: Transition) -> Transition:
    """Steps `[T, 1, ...]` of the one env, without its axis."""
    return jax.tree.map(lambda x: x[:, 0], steps)


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
