r"""Model-based policy optimization: MBPO (Janner et al. 2019, arXiv:1906.08253).

The problem left by PETS: it thinks anew at each step, at the price of some thirty thousand passes of its networks, and
looks so far ahead in its model that small errors add up. MBPO lets the model make data instead, from which SAC learns
an actor and critics. What lies beyond the horizon is the critics' business, so that the rollouts may be short; and they
branch off from states that were really seen, so that each is k steps at most from the truth (section 4):

    s_0 from the memory,   a_t ~ pi(.|s_t),   (s_{t+1} - s_t, r_t) ~ Normal(mean_m, var_m),   t < k           -> imagine

by a network m of an ensemble as that of PETS (`core.ensemble`), in its standard units. A batch of SAC holds a few real
transitions and many imagined ones, enough for many gradient steps an env step without overfitting to the few:

    batch = real_fraction from the memory, the others imagined                                             -> draw_batch

The rest is SAC, on observations that are standardised as the model's are; with a' drawn by pi in s',

    y = r + gamma (1 - terminated) [ min_i Q_i(s', a'; target) - alpha log pi(a'|s') ]                      -> td_target
    critics' loss = sum_i E[ (Q_i(s, a; params) - y)^2 ] / 2                                              -> critic_loss
    actor's loss = E[ alpha log pi(a|s) - min_i Q_i(s, a) ],   a = f(noise; s) drawn by pi                 -> actor_loss
    alpha's loss = E[ -alpha (log pi(a|s) + target_entropy A) ],   alpha = exp(log_alpha)                  -> alpha_loss
    target = tau parameters + (1 - tau) target                                                          -> gradient_step

An update takes num_steps env steps, lets the model learn on, imagines num_rollouts rollouts, and then takes
policy_steps gradient steps of SAC for each env step. The model's errors are those of PETS, on transitions that it was
not trained on yet: `model_error` and `disagreement` in standard deviations, `within_1_std` and `within_2_std` near .68
and .95 where errors are chance. `imagined_reward` is the mean of the rollouts just made, which start all over the
memory, `real_reward` that of the steps just taken.

Departures from the paper:
    acting, the model's training and the policy's take turns in blocks of num_steps (update)
    fewer rollouts and gradient steps, and smaller networks (num_rollouts, policy_steps, hidden_sizes)
    some of a batch is real, as in the authors' code (real_fraction)
    rollouts have one length, and begin anew where they terminate (imagine)
    each network follows its own share of the rollouts to their end (imagine)
    all networks are used, in place of the best by held-out data (imagine)
    the model and its training are those of pets.py, with the departures told there (ensemble.fit)
    the end of episodes is learned, and drawn, or left out in place of given (learn_end)
    observations of actor and critics are standardised (observed)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from purerl import envs
from purerl.core import checks, ensemble, networks, normalize, optimize, replay
from purerl.core.distributions import TanhGaussian
from purerl.core.program import jitted
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
    """Real transitions the memory holds."""
    gradient_steps: int = static(200, low=1)
    """Gradient steps of one training of the model."""
    batch_size: int = static(128, low=1)
    """Transitions of one gradient step, of the model and of actor and critics."""
    num_members: int = static(5, low=1)
    """Networks of the ensemble (M)."""
    hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers of each network of the ensemble."""
    activation: str = static("swish", choices=networks.ACTIVATIONS)
    """Nonlinearity between layers of all networks."""
    model_network: Any = own_network()
    """A flax module in place of a network of the ensemble, reading observation and action in one vector."""
    learn_reward: bool = static(True)
    """Learn the reward; otherwise the env says it, by `reward(obs, action, next_obs, params)`."""
    learn_end: bool = static(False)
    """Learn where episodes terminate; otherwise rollouts go on as if they never did: see `unforeseen_ends`."""
    num_rollouts: int = static(1_000, low=1)
    """Rollouts imagined after each training of the model, as many of each network, rounded up (R)."""
    rollout_length: int = static(3, low=1)
    """Steps of a rollout (k)."""
    imagined_size: int = static(30_000, low=1)
    """Imagined transitions that are kept, the newest."""
    real_fraction: float = static(0.05)
    """Part of a batch of actor and critics that is real."""
    policy_steps: int = static(10, low=1)
    """Gradient steps of actor and critics for each env step (G)."""
    actor_hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers of the actor."""
    critic_hidden_sizes: tuple[int, ...] = static((64, 64), low=1)
    """Hidden layers of each critic, which reads observation and action."""
    actor_network: Any = own_network()
    """A flax module in place of the actor, with two numbers for each dimension; or a function of how many."""
    critic_network: Any = own_network()
    """A flax module in place of each critic, with one output for observation and action in one vector."""
    learn_alpha: bool = static(True)
    """Let alpha follow the entropy; it stays what it is otherwise."""
    learning_rate: Scalar = traced(1e-3, low=0)
    """Adam's step size for the model."""
    weight_decay: Scalar = traced(1e-5, low=0)
    """Weight of the sum of the model's squared weights in its loss."""
    actor_learning_rate: Scalar = traced(1e-3, low=0)
    """Adam's step size for the actor."""
    critic_learning_rate: Scalar = traced(1e-3, low=0)
    """Adam's step size for the critics."""
    alpha_learning_rate: Scalar = traced(1e-3, low=0)
    """Adam's step size for log alpha; with learn_alpha."""
    gamma: Scalar = traced(0.95, low=0, high=1)
    """Discount factor."""
    tau: Scalar = traced(0.02, above=0, high=1)
    """How far the targets move towards the parameters at each gradient step."""
    alpha: Scalar = traced(1.0, above=0)
    """Worth of a nat of entropy in units of reward; with learn_alpha at first."""
    target_entropy: Scalar = traced(-1.0)
    """Entropy that alpha aims at for each action dimension, in nats; with learn_alpha. Uniform actions have log 2."""

    def __post_init__(self) -> None:
        checks.check(self, ACTIONS)
        checks.bounded_actions(self)
        checks.observes_vectors(self)
        if not self.learn_reward:
            checks.says_its_reward(self)
        checks.mixes(self)
        checks.replay_fits(self)
        checks.first_batch_fits(self)
        checks.rollouts_fit(self)
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
    def num_real(self) -> int:
        """Real transitions in a batch of actor and critics."""
        return round(self.real_fraction * self.batch_size)

    @property
    def rollouts_a_network(self) -> int:
        """Rollouts that each network of the ensemble follows."""
        return -(-self.num_rollouts // self.num_members)


class Params(NamedTuple):
    """Weights of actor and critics and log alpha, or the states of their optimisers.

    The critics' weights have a leading axis of two.
    """

    actor: Any
    critic: Any
    log_alpha: Any


class State(NamedTuple):
    """Everything a training is made of. model: the ensemble, with the real transitions. imagined: those it made."""

    key: PRNGKey
    params: Params
    target_critic: Any
    opt_state: Params
    model: ensemble.Ensemble
    imagined: replay.Replay
    env_state: envs.EnvState
    updates: Array


def actor_network(config: Config) -> networks.Network:
    """Gives a mean and a log deviation for each dimension of the action."""
    env, sizes = envs.bind(config), config.actor_hidden_sizes
    given, num_outputs = config.actor_network, 2 * env.action_size
    return networks.make(given, env.obs_space, num_outputs, sizes, config.activation, head_scale=0.01)


def critic_network(config: Config) -> networks.Network:
    """Gives one number for an observation and an action, Q_i(s, a)."""
    env, sizes = envs.bind(config), config.critic_hidden_sizes
    given, size = config.critic_network, env.action_size
    return networks.make(given, env.obs_space, 1, sizes, config.activation, action_size=size)


def distribution(weights: Any, obs: Array, config: Config) -> TanhGaussian:
    """pi(.|s) for observed observations `[..., D]`."""
    mean, log_std = jnp.split(actor_network(config).apply(weights, obs), 2, axis=-1)
    return TanhGaussian(mean, jnp.clip(log_std, -20.0, 2.0))


def critic(weights: Any, obs: Array, action: Float[Array, "*batch A"], config: Config) -> Float[Array, "*batch"]:
    """Q_i(s, a) for observed observations `[..., D]`, by the weights of one critic."""
    return critic_network(config).apply(weights, obs, action)[..., 0]


def twins(weights: Any, obs: Array, action: Float[Array, "*batch A"], config: Config) -> Float[Array, "2 *batch"]:
    """Q_1(s, a) and Q_2(s, a)."""
    # Of one input and two stacked weights XLA makes a single product and then transposes it; a copy each is faster.
    obs, action = (jnp.broadcast_to(x, (2, *x.shape)) for x in (obs, action))
    return jax.vmap(critic, (0, 0, 0, None))(weights, obs, action, config)


def init(key: PRNGKey, config: Config) -> State:
    """Fresh networks, learning_starts transitions of the uniform policy, and an ensemble trained on them."""
    env = envs.bind(config)
    key, network_key, model_key, env_key, prefill_key, count_key, fit_key = jax.random.split(key, 7)
    (actor_weights,) = networks.init(network_key, actor_network(config))
    critic_keys = jax.random.split(jax.random.fold_in(network_key, 1))
    (critic_weights,) = jax.vmap(lambda key: networks.init(key, critic_network(config)))(critic_keys)
    params = Params(actor_weights, critic_weights, jnp.log(jnp.asarray(config.alpha, jnp.float32)))
    opt_state = Params(*(optimize.plain_adam(config.actor_learning_rate).init(x) for x in params))
    start = env.reset(env_key)
    env_state, steps, _ = unroll(prefill_key, env, start, lambda key, obs: env.sample(key), config.prefill_steps)
    model = ensemble.remember(count_key, ensemble.init(model_key, config), flatten(steps), config)
    model, _ = ensemble.fit(fit_key, model, config)
    imagined = replay.init(config.imagined_size, env.transition)
    return State(key, params, critic_weights, opt_state, model, imagined, env_state, jnp.int32(0))


def observed(obs: Array, state: State) -> Array:
    """Observations as all networks read them."""
    return normalize.normalize(state.model.obs_stats, obs)


def draw_action(noise: Float[Array, "*batch A"], obs: Array, state: State, config: Config) -> Float[Array, "*batch A"]:
    """A draw of pi(.|s), made of standard normal noise."""
    action, _ = distribution(state.params.actor, observed(obs, state), config).at(noise)
    return action


def policy(state: State, config: Config, *, deterministic: bool = True) -> Policy:
    """The mode of pi, or a draw."""

    def act(key: PRNGKey, obs: Array) -> Array:
        if deterministic:
            return distribution(state.params.actor, observed(obs, state), config).mode()
        return draw_action(jax.random.normal(key, (envs.bind(config).action_size,)), obs, state, config)

    return memoryless(act, envs.bind(config).to_units)


def imagine(key: PRNGKey, state: State, config: Config) -> tuple[State, Metrics]:
    """Rollouts of k steps in the ensemble, from observations of the memory on, added to what is imagined."""
    env, model, (M, each) = envs.bind(config), state.model, (config.num_members, config.rollouts_a_network)
    start_key, loop_key = jax.random.split(key)
    drawn = replay.sample(start_key, model.replay, M * each, ensemble.example(config)).transition.obs
    starts = drawn.reshape(M, each, -1)
    mean, std = (jnp.broadcast_to(x, (M, each, x.size)) for x in ensemble.units(model))

    def step(obs: Array, key: PRNGKey) -> tuple[Array, Transition]:
        action_key, noise_key, end_key = jax.random.split(key, 3)
        action = draw_action(jax.random.normal(action_key, (M, each, env.action_size)), obs, state, config)
        prediction = ensemble.predict(model.params, observed(obs, state), action, config)
        noise = jax.random.normal(noise_key, mean.shape)
        y = mean + std * (prediction.mean + jnp.sqrt(prediction.var) * noise)
        next_obs = obs + y[..., : obs.shape[-1]]
        reward = y[..., -1] if config.learn_reward else env.reward(obs, action, next_obs)
        never = jnp.zeros((M, each), bool)
        end_logit = prediction.end_logit
        ends = never if end_logit is None else jax.random.bernoulli(end_key, jax.nn.sigmoid(end_logit))
        steps = Transition(obs, action, reward, ends, never, next_obs)
        return jnp.where(ends[..., None], starts, next_obs), steps

    _, steps = jax.lax.scan(step, starts, jax.random.split(loop_key, config.rollout_length))
    memory = replay.add(state.imagined, flatten(flatten(steps)))
    return state._replace(imagined=memory), {"imagined_reward": steps.reward.mean()}


def draw_batch(key: PRNGKey, state: State, config: Config) -> Transition:
    """batch_size transitions, of which real_fraction are real, with observed observations."""
    env, real_key, imagined_key = envs.bind(config), *jax.random.split(key)
    num = config.batch_size - config.num_real
    real = replay.sample(real_key, state.model.replay, config.num_real, ensemble.example(config)).transition
    imagined = replay.sample(imagined_key, state.imagined, num, env.transition)
    batch: Transition = jax.tree.map(lambda *x: jnp.concatenate(x), real, imagined)
    return batch._replace(obs=observed(batch.obs, state), final_obs=observed(batch.final_obs, state))


def alpha(params: Params, config: Config) -> Array:
    """The temperature: the learned one, or the Config's."""
    return jnp.exp(params.log_alpha) if config.learn_alpha else jnp.asarray(config.alpha)


def td_target(
    noise: Float[Array, " B A"], params: Params, target_critic: Any, batch: Transition, config: Config
) -> Float[Array, " B"]:
    """y: r + gamma (1 - terminated) [min_i Q_i(final_obs, a') - alpha log pi(a'|final_obs)], a' drawn by noise."""
    next_action, log_prob = distribution(params.actor, batch.final_obs, config).at(noise)
    next_q = twins(target_critic, batch.final_obs, next_action, config).min(0)
    next_value = next_q - alpha(params, config) * log_prob
    return batch.reward + config.gamma * jnp.where(batch.terminated, 0.0, next_value)


def critic_loss(weights: Any, target: Float[Array, " B"], batch: Transition, config: Config) -> tuple[Array, Metrics]:
    """sum_i E[ (Q_i(s, a) - y)^2 ] / 2 over the batch, for the fixed target y."""
    q = twins(weights, batch.obs, batch.action, config)
    td_error = q - target[None]
    total = jnp.square(td_error).mean(-1).sum() / 2
    return total, {"critic_loss": total, "q_value": q.mean(), "td_error": jnp.abs(td_error).mean()}


def actor_loss(
    weights: Any, noise: Float[Array, " B A"], params: Params, batch: Transition, config: Config
) -> tuple[Array, Float[Array, " B"]]:
    """E[ alpha log pi(a|s) - min_i Q_i(s, a) ] over the batch with a ~ pi by the noise, and log pi(a|s) of each."""
    action, log_prob = distribution(weights, batch.obs, config).at(noise)
    q = twins(params.critic, batch.obs, action, config).min(0)
    return (alpha(params, config) * log_prob - q).mean(), log_prob


def alpha_loss(log_alpha: Array, log_prob: Float[Array, " B"], config: Config) -> Array:
    """E[ -alpha (log pi(a|s) + target entropy) ] over the batch."""
    target = config.target_entropy * envs.bind(config).action_size
    return -(jnp.exp(log_alpha) * (log_prob + target)).mean()


def gradient_step(key: PRNGKey, noise: Float[Array, "2 B A"], state: State, config: Config) -> tuple[State, Metrics]:
    """One batch, one Adam step each of critics, actor and log alpha, and a move of the targets.

    noise: standard normal, what the actions of the target and of the actor's loss are made of.
    """
    params, opt_state = state.params, state.opt_state
    batch = draw_batch(key, state, config)

    target = td_target(noise[0], params, state.target_critic, batch, config)
    grads, metrics = jax.grad(critic_loss, has_aux=True)(params.critic, target, batch, config)
    new_critic, critic_opt = optimize.adam_step(grads, params.critic, opt_state.critic, config.critic_learning_rate)
    metrics["critic_grad_norm"] = optax.tree.norm(grads)

    params = params._replace(critic=new_critic)
    loss_and_grad = jax.value_and_grad(actor_loss, has_aux=True)
    (metrics["actor_loss"], log_prob), grads = loss_and_grad(params.actor, noise[1], params, batch, config)
    new_actor, actor_opt = optimize.adam_step(grads, params.actor, opt_state.actor, config.actor_learning_rate)
    metrics["actor_grad_norm"] = optax.tree.norm(grads)
    metrics |= {"entropy": -log_prob.mean(), "alpha": alpha(params, config)}

    log_alpha, alpha_opt = params.log_alpha, opt_state.log_alpha
    if config.learn_alpha:
        grads = jax.grad(alpha_loss)(log_alpha, log_prob, config)
        log_alpha, alpha_opt = optimize.adam_step(grads, log_alpha, alpha_opt, config.alpha_learning_rate)

    target_critic = optax.incremental_update(new_critic, state.target_critic, config.tau)
    params, opt_state = Params(new_actor, new_critic, log_alpha), Params(actor_opt, critic_opt, alpha_opt)
    return state._replace(params=params, target_critic=target_critic, opt_state=opt_state), metrics


def learn(key: PRNGKey, state: State, config: Config) -> tuple[State, Metrics]:
    """policy_steps gradient steps for each of num_steps env steps, and their mean metrics."""
    num, (keys_key, noise_key) = config.num_steps * config.policy_steps, jax.random.split(key)
    # All noise at once is one large threefry call in place of two small ones a gradient step, and faster on CPU.
    noise = jax.random.normal(noise_key, (num, 2, config.batch_size, envs.bind(config).action_size))
    inputs = (jax.random.split(keys_key, num), noise)
    state, metrics = jax.lax.scan(lambda state, given: gradient_step(*given, state, config), state, inputs)
    return state, jax.tree.map(jnp.mean, metrics)


def collect(key: PRNGKey, state: State, config: Config) -> tuple[State, Transition, Episodes]:
    """T steps `[T, ...]` by draws of pi."""
    env = envs.bind(config)

    def act(key: PRNGKey, obs: Array) -> Array:
        return draw_action(jax.random.normal(key, (1, env.action_size)), obs, state, config)

    env_state, steps, episodes = unroll(key, env, state.env_state, act, config.num_steps)
    return state._replace(env_state=env_state), flatten(steps), episodes


def update(state: State, config: Config) -> tuple[State, Metrics]:
    """T env steps, which test the model; then the model learns on, imagines, and actor and critics learn from that."""
    key, act_key, count_key, fit_key, imagine_key, learn_key = jax.random.split(state.key, 6)
    state, steps, episodes = collect(act_key, state, config)
    metrics = ensemble.errors(state.model, steps, config) | {"real_reward": steps.reward.mean()} | episodes.metrics()
    model, fitted = ensemble.fit(fit_key, ensemble.remember(count_key, state.model, steps, config), config)
    state, imagined = imagine(imagine_key, state._replace(model=model), config)
    state, learned = learn(learn_key, state, config)
    return state._replace(key=key, updates=state.updates + 1), metrics | fitted | imagined | learned


@jitted
def train(key: PRNGKey, config: Config) -> Result:
    """A whole training: `num_updates` times `update` from `init`. Pure, so vmap it over keys and traced fields."""
    state, metrics = jax.lax.scan(lambda state, _: update(state, config), init(key, config), length=config.num_updates)
    return Result(state, metrics)
