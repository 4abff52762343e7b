r"""Evolution strategies: OpenAI-ES (Salimans et al. 2017, arXiv:1703.03864).

The problem left by CEM: to fit a distribution over W weights it must see good candidates, and of many weights a random
draw is hardly ever good in all. ES asks less of its candidates. They lie in a small cloud around one policy, with one
fixed standard deviation, and together they only estimate in which direction the return rises. The expected return of
the cloud, J(w) = E[ R(w + sigma xi) ], is smooth however R jumps, and its gradient needs no derivative of R:

    grad J = E[ R(w + sigma xi) xi ] / sigma,   xi standard normal                          (section 2)    -> gradient
    w <- w + Adam(grad J)                                                                   (section 2)      -> update

so that it is REINFORCE with the noise on the weights, once an episode, in place of on each action. Candidates come in
pairs w + sigma xi, w - sigma xi (antithetic), of which the difference counts, which takes variance away:

    w_i = w + sigma xi_i,  w_{i + population/2} = w - sigma xi_i                          (section 2.1)  -> candidates

and each return is replaced by its rank, spread evenly over [-1/2, 1/2], so that no outlier outweighs all others. What
rises then is the expected rank, another objective with the same order of candidates:

    R_i <- rank of R_i / (population - 1) - 1/2                                    (section 2.1)      -> centred_ranks

All candidates act greedily and side by side. They meet the same start states and the same chance (common random
numbers), so that none is better by its luck alone; and each plays whole episodes, since to count episodes as they end
would favour short ones. A return that is no number counts as the worst. An update is a generation. It counts as
population * num_episodes * num_steps env steps, the most that its episodes can take; how many they took is episodes *
episode_length in the metrics. return_std is the deviation of the candidates' returns.

Departures from the paper:
    Adam in place of plain ascent, and no weight decay; discrete actions are the largest output (update)
    the noise is drawn anew in place of from a shared table, since nothing is sent between machines (candidates)
    all candidates of a generation meet the same chance (update)
    ranks of equal returns are their mean rank, so that a plateau gives no direction (centred_ranks)
    observations may be standardised by the statistics of all earlier generations, in place of virtual batches (init)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from purerl import envs
from purerl.core import checks, networks, normalize, optimize, policies, schedules
from purerl.core.candidates import greedy, moments, score
from purerl.core.policies import observe
from purerl.core.program import jitted
from purerl.core.types import (
    Array,
    EnvLike,
    Metrics,
    Policy,
    PRNGKey,
    Result,
    Scalar,
    config_class,
    memoryless,
    own_network,
    static,
    traced,
)

ACTIONS = (envs.Discrete, envs.Box)


@config_class
class Config:
    env: EnvLike = static("CartPole-v1")
    """Environment: a name, or an env object."""
    env_params: Any = None
    """Physics and limits of the env; None means its defaults."""
    total_timesteps: int = static(640_000, low=1)
    """Env steps of the whole training, over all candidates, each episode counted as num_steps long."""
    population: int = static(64, low=2)
    """Candidates of a generation (P), an even number."""
    num_episodes: int = static(1, low=1)
    """Episodes over which each candidate's return is averaged (E)."""
    num_steps: int = static(500, low=1)
    """Env steps that an episode counts as; at least as many as it can last (T)."""
    actor_hidden_sizes: tuple[int, ...] = static((), low=1, entry=int)
    """Hidden layers of the policy, none for a linear one; images pass a convolution first."""
    activation: str = static("tanh", choices=networks.ACTIVATIONS)
    """Nonlinearity between layers."""
    actor_network: Any = own_network()
    """A flax module in place of the policy, with an output for each action; or a function of their number."""
    normalize_obs: bool = static(False)
    """Standardise observations by running statistics."""
    anneal_learning_rate: bool = static(False)
    """Let the learning rate fall linearly to 0."""
    learning_rate: Scalar = traced(0.05, low=0)
    """Adam's step size."""
    std: Scalar = traced(0.1, above=0)
    """Standard deviation sigma of the candidates' weights around the policy's."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.in_pairs(self)
        checks.whole_episodes(self)
        checks.at_least_one_update(self, self.env_steps(1))

    @property
    def num_updates(self) -> int:
        """Iterations of `update` in one training: generations."""
        return self.total_timesteps // self.env_steps(1)

    def env_steps(self, updates: int) -> int:
        """The most env steps that so many updates can take, over all candidates."""
        return updates * self.population * self.num_episodes * self.num_steps

    @property
    def num_envs(self) -> int:
        """Environments in which one candidate acts side by side, one an episode."""
        return self.num_episodes


class State(NamedTuple):
    """params: weights of the policy. obs_stats: None without normalize_obs."""

    key: PRNGKey
    params: Any
    opt_state: optax.OptState
    obs_stats: normalize.RunningStats | None
    updates: Array


def init(key: PRNGKey, config: Config) -> State:
    """A fresh network, and an optimiser that has seen nothing."""
    key, network_key = jax.random.split(key)
    (params,) = networks.init(network_key, policies.actor_network(config))
    opt_state = optimize.plain_adam(config.learning_rate).init(ravel_pytree(params)[0])
    return State(key, params, opt_state, policies.init_stats(config), jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """The greedy policy in the middle of the cloud, in either case: chance is in the search, not in the actions."""

    def act(key: PRNGKey, obs: Array) -> Array:
        return greedy(state.params, observe(obs, state.obs_stats, config), config)

    return memoryless(act, envs.bind(config).to_units)


def candidates(key: PRNGKey, mean: Float[Array, " W"], config: Config) -> tuple[Float[Array, "P W"], Array]:
    """P / 2 pairs around the mean, and the noise xi `[P / 2, W]` of the first of each."""
    noise = jax.random.normal(key, (config.population // 2, mean.size))
    return mean[None] + config.std * jnp.concatenate([noise, -noise]), noise


def centred_ranks(returns: Float[Array, " P"]) -> Float[Array, " P"]:
    """Ranks from -1/2 for the lowest return to 1/2 for the highest; equal ones share their mean."""
    lower, upper = (jnp.searchsorted(jnp.sort(returns), returns, side=side) for side in ("left", "right"))
    return (lower + upper - 1) / 2 / (returns.size - 1) - 0.5


def gradient(noise: Float[Array, "half W"], utility: Float[Array, " P"], config: Config) -> Float[Array, " W"]:
    """The mean of utility times xi over P / 2 pairs, over sigma: of returns it estimates grad J, of ranks its like."""
    first, second = jnp.split(utility, 2)
    return (first - second) @ noise / (config.population * config.std)


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One generation: P candidates drawn and scored, and one Adam step up the gradient."""
    key, draw_key, score_key = jax.random.split(state.key, 3)
    mean, unravel = ravel_pytree(state.params)

    drawn, noise = candidates(draw_key, mean, config)
    scores = score(score_key, jax.vmap(unravel)(drawn), state.obs_stats, config)
    ascent = gradient(noise, centred_ranks(scores.returns), config)
    rate = schedules.learning_rate(state.updates / config.num_updates, config)
    mean, opt_state = optimize.adam_step(-ascent, mean, state.opt_state, rate)

    metrics = {"grad_norm": optax.tree.norm(ascent), "weight_norm": optax.tree.norm(mean)}
    state = State(key, unravel(mean), opt_state, scores.obs_stats, state.updates + 1)
    return state, metrics | moments(scores.returns) | scores.episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
