r"""The cross-entropy method: CEM for policies (Szita and Lorincz 2006, doi:10.1162/neco.2006.18.12.2936).

The question left by the policy gradient: does the search for a good policy need the gradient at all? An episode's
return depends on the policy's weights w and on chance alone. So draw many w, let each act, and look where the good ones
lie. With a normal distribution over w whose dimensions are independent, a generation is

    w_i = mean + sqrt(var) xi_i,  xi_i standard normal,  i = 1 .. population                             -> candidates
    R_i = mean return of w_i over num_episodes whole episodes                                                -> update
    elites = the elite_fraction of all w_i whose R_i are highest                                              -> refit
    mean <- mean of the elites,    var <- variance of the elites + z                                          -> refit

which is the maximum-likelihood fit of a normal distribution to the elites; of all such distributions it has the least
cross entropy to them. A return may be any number: it need not be differentiable, and no action is given its credit.

On a slope, too, the elites lie closer together than the candidates: the variance falls by some factor with every
generation, and the search can go no farther than the sum of a geometric series. Starting far away it stops short of the
optimum. The extra variance z keeps it going; it falls linearly to 0, so that the search settles in the end:

    z = extra_std^2 max(1 - progress / extra_fraction, 0)                                            -> extra_variance

All candidates act greedily and side by side. They meet the same start states and the same chance (common random
numbers), so that none is better by its luck alone; and each plays whole episodes, since to count episodes as they end
would favour short ones. A return that is no number counts as the worst. An update is a generation. It counts as
population * num_episodes * num_steps env steps, the most that its episodes can take; how many they took is episodes *
episode_length in the metrics. return_std is the deviation of the candidates' returns, std that of a weight, on average.

Departures from the paper:
    the policy is any network, linear where it has no hidden layers, in place of one for Tetris (actor_hidden_sizes)
    the first mean is the network's initial weights in place of 0 (init)
    z follows the progress of the training in place of max(5 - generation / 10, 0) (extra_variance)
    fewer candidates, more of them elites, and a first variance to choose (population, elite_fraction, initial_std)
    all candidates of a generation meet the same chance (update)
    observations may be standardised by the statistics of all earlier generations (normalize_obs)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from purerl import envs
from purerl.core import checks, networks, normalize, policies, schedules
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
    """Candidates of a generation (P)."""
    elite_fraction: float = static(0.125)
    """Part of the candidates that the distribution is fitted to."""
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
    initial_std: Scalar = traced(1.0, above=0)
    """Standard deviation of each weight in the first generation."""
    extra_std: Scalar = traced(0.5, low=0)
    """Square root of the variance that is added to the elites' at first."""
    extra_fraction: Scalar = traced(0.5, low=0, high=1)
    """Part of the training over which the extra variance falls to 0."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.enough_elites(self)
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
    def num_elites(self) -> int:
        """How many candidates the distribution is fitted to."""
        return round(self.elite_fraction * self.population)

    @property
    def num_envs(self) -> int:
        """Environments in which one candidate acts side by side, one an episode."""
        return self.num_episodes


class State(NamedTuple):
    """params: weights of the mean policy. var: the variance of each weight. obs_stats: None without normalize_obs."""

    key: PRNGKey
    params: Any
    var: Any
    obs_stats: normalize.RunningStats | None
    updates: Array


def init(key: PRNGKey, config: Config) -> State:
    """The initial weights of a network as the mean, and the same variance for each of them."""
    key, network_key = jax.random.split(key)
    (params,) = networks.init(network_key, policies.actor_network(config))
    var = jax.tree.map(lambda x: jnp.full(x.shape, jnp.square(config.initial_std), x.dtype), params)
    return State(key, params, var, policies.init_stats(config), jnp.int32(0))


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """The greedy policy of the mean, in either case: chance is in the search, not in the actions."""

    def act(key: PRNGKey, obs: Array) -> Array:
        return greedy(state.params, observe(obs, state.obs_stats, config), config)

    return memoryless(act, envs.bind(config).to_units)


def candidates(key: PRNGKey, mean: Float[Array, " W"], var: Float[Array, " W"], config: Config) -> Float[Array, "P W"]:
    """P draws from the normal distribution over weights."""
    noise = jax.random.normal(key, (config.population, mean.size))
    return mean[None] + jnp.sqrt(var)[None] * noise


def extra_variance(progress: Scalar, config: Config) -> Array:
    """z, at a progress in [0, 1]; 0 at any where extra_fraction is 0."""
    fraction = progress / jnp.maximum(config.extra_fraction, 1e-8)
    z = schedules.linear(jnp.square(config.extra_std), 0.0, fraction)
    return jnp.where(config.extra_fraction > 0, z, 0.0)


def refit(
    drawn: Float[Array, "P W"], returns: Float[Array, " P"], extra: Scalar, config: Config
) -> tuple[Float[Array, " W"], Float[Array, " W"], Float[Array, ""]]:
    """Mean and variance of the elites, the variance with the extra added, and the elites' mean return."""
    elite_returns, elites = jax.lax.top_k(returns, config.num_elites)
    return drawn[elites].mean(0), drawn[elites].var(0) + extra, elite_returns.mean()


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One generation: P candidates drawn and scored, and the distribution fitted to the elites."""
    key, draw_key, score_key = jax.random.split(state.key, 3)
    (mean, unravel), (var, _) = ravel_pytree(state.params), ravel_pytree(state.var)

    drawn = candidates(draw_key, mean, var, config)
    scores = score(score_key, jax.vmap(unravel)(drawn), state.obs_stats, config)
    extra = extra_variance(state.updates / config.num_updates, config)
    mean, var, elite_return = refit(drawn, scores.returns, extra, config)

    metrics = {"elite_return": elite_return, "std": jnp.sqrt(var).mean(), "extra_std": jnp.sqrt(extra)}
    state = State(key, unravel(mean), unravel(var), scores.obs_stats, state.updates + 1)
    return state, metrics | moments(scores.returns) | scores.episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
