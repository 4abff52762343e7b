r"""Actor-critic with a Q critic (Sutton et al. 2000, doi:10.5555/3009657.3009806; Sutton and Barto 2018, section 13.5).

The problem left by REINFORCE: it must wait for the end of an episode to know what an action was worth, and the return
that tells it is one draw of all that chance and later actions did, so that the gradient's variance grows with the
length of the episode. The policy gradient theorem asks for less: only for the mean of that return, the value Q(s, a)
of the policy itself (theorem 1),

    grad J  ~  E[ grad log pi(a|s) Q(s, a) ],    s as often as pi visits it,    a ~ pi(.|s).                   -> loss

A critic learns Q as SARSA does, from the next step alone, and is right about the mean where a return is not:

    y = r + gamma (1 - terminated) Q(s', a'),    a' ~ pi(.|s')                                            -> td_target
    loss = E[ (Q(s, a) - y)^2 ] / 2,             y a constant                                                  -> loss

Where actions are discrete the network gives Q(s, .) and the action picks; where they are continuous it reads the action
beside the observation and gives one number.                                                                -> q_value
The critic is a bootstrap away from the truth, and what it gets wrong the policy follows; so it must learn faster than
the policy changes: its step size is the larger one.

T steps in N environments side by side make one batch, and on it actor and critic move once, the actor also towards more
entropy H(pi):

    L = E[ log pi(a|s) w ] + ent_coef E[ H(pi) ],    w = (Q(s, a) - mean Q) / std Q,  or Q(s, a) itself.       -> loss

Q(s, a) of the weight is a constant: no gradient of the actor's moves the critic. Its mean over the batch can go without
changing E by more than one part in the batch, since E[ grad log pi ] = 0, and with it most of the noise where all
actions are worth much.
What is left open: Q says how good everything after a is, and one mean for all states takes no more than the worst of
that away. What a state is worth anyway still weighs every action drawn in it, for the best and for the worst.

Departures from the papers:
    one step on a batch of N environments, not one after every transition (update)
    Q is any network, not one compatible with the policy, so that where it errs the gradient is biased (critic_network)
    states count as often as they are visited, without the factor gamma^t (loss)
    Q is standardised over the batch where it weighs the gradient (normalize_q)
    an entropy bonus (ent_coef)
    a' is drawn afresh and not the action taken next, which a time limit leaves without one (collect)
    Adam, and gradients clipped by their global norm, each of actor and critic for itself (gradient_step)
    actor and critic share no layers (init)
    observations and rewards may be normalised by running statistics (normalize_obs, normalize_reward)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from purerl import envs
from purerl.core import checks, networks, normalize, optimize, policies, schedules
from purerl.core.distributions import at_action
from purerl.core.policies import distribution, observe
from purerl.core.program import jitted
from purerl.core.returns import standardize
from purerl.core.rollout import flatten, unroll
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
    total_timesteps: int = static(500_000, low=1)
    """Env steps of the whole training, over all envs."""
    num_envs: int = static(16, low=1)
    """Environments stepped side by side (N)."""
    num_steps: int = static(8, low=1)
    """Steps in each env between updates (T)."""
    actor_hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers of the actor; images pass a convolution first."""
    critic_hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers of the critic; images pass a convolution first."""
    activation: str = static("tanh", choices=networks.ACTIVATIONS)
    """Nonlinearity between layers."""
    actor_network: Any = own_network()
    """A flax module in place of the actor, with a logit or a mean for each action; or a function of their number."""
    critic_network: Any = own_network()
    """A flax module in place of the critic: Q of each action; or one output, from observation and action in a row."""
    anneal_learning_rate: bool = static(True)
    """Let both learning rates fall linearly to 0."""
    normalize_q: bool = static(True)
    """Standardise Q over the batch where it weighs the actor's gradient."""
    normalize_obs: bool = static(False)
    """Standardise observations by running statistics."""
    normalize_reward: bool = static(False)
    """Divide rewards by the running deviation of the return."""
    learning_rate: Scalar = traced(3e-4, low=0)
    """Step size of the actor's Adam."""
    critic_learning_rate: Scalar = traced(3e-3, low=0)
    """Step size of the critic's Adam."""
    gamma: Scalar = traced(0.99, low=0, high=1)
    """Discount factor."""
    ent_coef: Scalar = traced(0.01, low=0)
    """Weight of the entropy bonus."""
    max_grad_norm: Scalar = traced(0.5, low=0)
    """Global norm at which the gradients of actor and critic are clipped, each for itself."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.at_least_one_update(self, self.env_steps(1))

    @property
    def num_updates(self) -> int:
        """Iterations of `update` in one training."""
        return self.total_timesteps // self.env_steps(1)

    def env_steps(self, updates: int) -> int:
        """Env steps taken after this many updates, over all envs."""
        return updates * self.num_envs * self.num_steps


class State(NamedTuple):
    """Everything a training is made of. opt_state: one optimiser for the actor, one for the critic.

    obs_stats, reward_scale: None where their switch is off.
    """

    key: PRNGKey
    params: policies.Params
    opt_state: policies.Params
    env_state: envs.EnvState
    obs_stats: normalize.RunningStats | None
    reward_scale: normalize.RewardScale | None
    updates: Array


class Batch(NamedTuple):
    """What the loss reads, `[B, ...]`."""

    obs: Array
    action: Array
    td_target: Array


def critic_network(config: Config) -> networks.Network:
    """Gives Q of each action; where actions are continuous it reads one and gives one number."""
    env = envs.bind(config)
    num_outputs, action_size = (1, env.action_size) if env.continuous else (env.num_actions, 0)
    return networks.make(
        config.critic_network,
        env.obs_space,
        num_outputs,
        config.critic_hidden_sizes,
        config.activation,
        action_size=action_size,
    )


def q_value(weights: Any, obs: Array, action: Array, config: Config) -> Float[Array, "*batch"]:
    """Q(s, a) `[...]` for observed observations `[..., *shape]`."""
    network = critic_network(config)
    if network.action_size:
        return network.apply(weights, obs, action)[..., 0]
    return at_action(network.apply(weights, obs), action)


def init(key: PRNGKey, config: Config) -> State:
    """Fresh networks and N fresh episodes."""
    env = envs.bind(config)
    key, network_key, env_key = jax.random.split(key, 3)
    params = policies.init(network_key, config, critic_network(config))
    return State(
        key,
        params,
        policies.Params(*(optimize.adam(config.learning_rate, config.max_grad_norm).init(x) for x in params)),
        env.reset(env_key),
        policies.init_stats(config),
        normalize.init_reward_scale(config.num_envs) if config.normalize_reward else None,
        jnp.int32(0),
    )


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """The mode of pi, or a draw."""

    def act(key: PRNGKey, obs: Array) -> Array:
        pi = distribution(state.params.actor, observe(obs, state.obs_stats, config), config)
        return pi.mode() if deterministic else pi.sample(key)

    return memoryless(act, envs.bind(config).to_units)


def td_target(steps: Transition, next_q: Float[Array, "T N"], config: Config) -> Float[Array, "T N"]:
    """r + gamma Q(s', a'), with the given Q(s', a') where the episode did not terminate."""
    return steps.reward + config.gamma * jnp.where(steps.terminated, 0.0, next_q)


def loss(params: policies.Params, batch: Batch, config: Config) -> tuple[Array, Metrics]:
    """-L + E[(Q(s, a) - y)^2] / 2: the one has a gradient in the actor alone, the other in the critic alone."""
    pi = distribution(params.actor, batch.obs, config)
    q = q_value(params.critic, batch.obs, batch.action, config)
    weight = jax.lax.stop_gradient(standardize(q) if config.normalize_q else q)
    entropy, policy_loss = pi.entropy().mean(), -(pi.log_prob(batch.action) * weight).mean()
    value_loss = jnp.square(q - batch.td_target).mean() / 2
    metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "q_value": q.mean()}
    return policy_loss - config.ent_coef * entropy + value_loss, metrics


def collect(key: PRNGKey, state: State, config: Config) -> tuple[State, Batch, Episodes]:
    """T steps in N envs as a batch `[T * N, ...]` with targets; moves env_state and the running statistics on."""
    env, stats = envs.bind(config), state.obs_stats
    rollout_key, next_key = jax.random.split(key)

    def act(key: PRNGKey, obs: Array) -> Array:
        return distribution(state.params.actor, observe(obs, stats, config), config).sample(key)

    env_state, steps, episodes = unroll(rollout_key, env, state.env_state, act, config.num_steps)
    reward_scale, steps = normalize.scale_reward(state.reward_scale, steps, config.gamma)
    # The statistics that the policy acted with serve the whole update; what was seen counts from the next one on.
    obs, final_obs = (observe(x, stats, config) for x in (steps.obs, steps.final_obs))
    next_action = distribution(state.params.actor, final_obs, config).sample(next_key)
    next_q = q_value(state.params.critic, final_obs, next_action, config)
    batch = flatten(Batch(obs, steps.action, td_target(steps, next_q, config)))
    obs_stats = normalize.update_stats(stats, observe(steps.obs, None, config))
    return state._replace(env_state=env_state, obs_stats=obs_stats, reward_scale=reward_scale), batch, episodes


def gradient_step(
    learning_rate: Scalar, grads: Any, opt_state: optax.OptState, params: Any, config: Config
) -> tuple[Any, optax.OptState]:
    """One step of Adam, of the actor or of the critic: (params, opt_state)."""
    step, opt_state = optimize.adam(learning_rate, config.max_grad_norm).update(grads, opt_state, params)
    return optax.apply_updates(params, step), opt_state


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """One iteration: T steps in N envs, then one gradient step of actor and critic on all of them."""
    key, collect_key = jax.random.split(state.key)
    state, batch, episodes = collect(collect_key, state, config)
    grads, metrics = jax.grad(loss, has_aux=True)(state.params, batch, config)
    progress = state.updates / config.num_updates
    rates = [schedules.learning_rate(progress, config, name) for name in ("learning_rate", "critic_learning_rate")]
    # The critic's gradient is many times as long: clipped by one norm it would decide how far the actor goes.
    actor, critic = (
        gradient_step(*own, config) for own in zip(rates, grads, state.opt_state, state.params, strict=True)
    )
    params, opt_state = (policies.Params(*own) for own in zip(actor, critic, strict=True))
    metrics |= {"grad_norm": optax.tree.norm(grads.actor), "critic_grad_norm": optax.tree.norm(grads.critic)}
    state = state._replace(key=key, params=params, opt_state=opt_state, updates=state.updates + 1)
    return state, metrics | episodes.metrics()


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
