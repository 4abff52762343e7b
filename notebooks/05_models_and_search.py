# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Search without a gradient, and planning with a model
#
# The algorithms so far learn from a gradient: of a return, of a value, or of a value through an action. Two questions
# are left. Does the search for a policy need the gradient at all? And where a sample is dear, why not learn what the
# world does, and think before acting? Each answer is tried here on something small enough to look at.

# %%
import functools
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from matplotlib.animation import FuncAnimation, PillowWriter

import purerl
from purerl import cem, dyna_q, envs, es, evaluate, mbpo, pets, plot, ppo, sac

key = jax.random.key(0)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A cloud that climbs
#
# The **cross-entropy method** knows of a policy only its weights $w$ and what an episode with them returns, $R(w)$. It
# keeps a normal distribution over weights, draws a population from it, and fits the distribution anew to the best, the
# elites $\mathcal E$:
#
# $$w_i \sim \mathcal N(\mu, \sigma^2), \qquad
#   \mu \leftarrow \frac{1}{|\mathcal E|}\sum_{i \in \mathcal E} w_i, \qquad
#   \sigma^2 \leftarrow \operatorname{Var}_{i \in \mathcal E}(w_i) + z_t .$$
#
# With two weights one can watch it. The task is a landscape: one step, whose action is a place and whose reward is the
# height there. The policy is a network without inputs, its two weights are the place itself. A low hill lies near the
# start, a high one farther away.


# %%
def height(place):
    """A hill of height 1 at (2.5, 2), and one of 0.4 at (-1, -0.5)."""
    x, y = place[..., 0], place[..., 1]
    return jnp.exp(-((x - 2.5) ** 2 + (y - 2) ** 2) / 5) + 0.4 * jnp.exp(-((x + 1) ** 2 + (y + 0.5) ** 2) / 1.5)


class Landscape:
    """One step to a place, which pays its height."""

    default_params = ()

    def observation_space(self, params):
        return envs.Box(0.0, 1.0, (1,))

    def action_space(self, params):
        return envs.Box(-jnp.inf, jnp.inf, (2,))

    def reset(self, key, params):
        return jnp.zeros(1), ()

    def step(self, key, state, action, params):
        return jnp.zeros(1), state, height(action), jnp.bool_(True), jnp.bool_(False)


class Place(nn.Module):
    """The same output whatever it sees."""

    num_outputs: int

    @nn.compact
    def __call__(self, x):
        place = self.param("place", nn.initializers.constant(-1.5), (self.num_outputs,))
        return jnp.broadcast_to(place, (*x.shape[:-1], self.num_outputs))


def generations(extra_std):
    """The candidates of each of 20 generations `[20, 64, 2]`, and which of them are elites."""
    config = cem.Config(
        env=Landscape(),
        actor_network=Place,
        num_steps=1,
        total_timesteps=20 * 64,
        initial_std=0.6,
        extra_std=extra_std,
        extra_fraction=0.8,
    )
    state, clouds, elites = cem.init(key, config), [], []
    update = jax.jit(cem.update)
    for _ in range(config.num_updates):
        mean, var = (jax.flatten_util.ravel_pytree(x)[0] for x in (state.params, state.var))
        drawn = cem.candidates(jax.random.split(state.key, 3)[1], mean, var, config)
        clouds.append(drawn)
        elites.append(jax.lax.top_k(height(drawn), config.num_elites)[1])
        state, metrics = update(state, config)
    return np.array(clouds), np.array(elites), metrics


runs = {"without extra variance": generations(0.0), "with extra variance": generations(1.0)}
grid = np.stack(np.meshgrid(np.linspace(-4, 6, 120), np.linspace(-3.5, 5, 120)), axis=-1)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
dots = []
for ax, name in zip(axes, runs, strict=True):
    ax.contourf(grid[..., 0], grid[..., 1], height(grid), levels=12, cmap="Greys")
    ax.set(title=name, xlim=(-4, 6), ylim=(-3.5, 5))
    dots.append((ax.plot([], [], ".", color="tab:blue", ms=5)[0], ax.plot([], [], ".", color="tab:red", ms=6)[0]))


def frame(generation):
    for (every, best), (clouds, elites, _) in zip(dots, runs.values(), strict=True):
        every.set_data(*clouds[generation].T)
        best.set_data(*clouds[generation][elites[generation]].T)
    figure.suptitle(f"generation {generation + 1}: all candidates, and the elites in red", fontsize="medium")


FuncAnimation(figure, frame, frames=20).save(folder / "cloud.gif", PillowWriter(fps=3), dpi=80)
plt.close(figure)
for name, (clouds, _, _) in runs.items():
    place = clouds[-1].mean(0)
    print(f"{name}: ends near ({place[0]:.2f}, {place[1]:.2f}), height {float(height(place)):.2f}")
display(Image(folder / "cloud.gif"))

# %% [markdown]
# Without the extra variance $z_t$ the cloud shrinks wherever its elites are, and it settles on the first hill that it
# meets. The elites of a slope lie as close together as those of a top, so the variance falls by the same factor in each
# generation, and all the way it can still go is the sum of a geometric series. With $z_t$ the cloud stays wide while it
# looks around, finds the high hill, and contracts as $z_t$ falls to 0.
#
# ## Policies
#
# Nothing changes where the weights are those of a policy and the height is its return. A linear policy of CartPole has ten
# weights. 64 candidates act side by side, in the same start states, and each generation takes the best eighth. Beside it
# stands **OpenAI-ES**, which keeps one policy $w$ and a small cloud around it to estimate a gradient,
# $\nabla J = E[R(w + \sigma \xi)\, \xi] / \sigma$, that no one had to derive.

# %%
searches = {"CEM": (cem, cem.Config(total_timesteps=20 * 64 * 500)), "ES": (es, es.Config(total_timesteps=60 * 64 * 500))}
ax = None
for name, (algorithm, config) in searches.items():
    states, metrics = jax.jit(jax.vmap(algorithm.train, (0, None)))(jax.random.split(key, 4), config)
    ax = plot.learning_curve(metrics, config, label=name, ax=ax)
    one = functools.partial(evaluate, algorithm, config=config, key=key)
    returns = jax.vmap(lambda state, one=one: one(state).returns)(states).mean(1)
    print(f"{name}, {config.num_updates} generations: returns of the final policies {np.round(returns, 1).tolist()}")
ax.legend(frameon=False);

# %% [markdown]
# The curves are returns of all candidates, bad ones included; the policy in the middle is better than its cloud. CEM is
# quicker here, since a good share of ten weights' draws is good. With thousands of weights hardly any is, and what is left
# of CEM's idea is the direction in which things get better: ES.
#
# Env steps are counted as if each episode took its full 500, so the first generations, whose poles fall at once, cost
# less than they say. Both need hundreds of thousands. What they save is everything else: no value function, no replay
# memory, no derivative.
#
# ## Thinking between steps
#
# **Dyna-Q** turns to the other question. It is Q-learning that also remembers, for each state and action, what came of
# it last: a model of the world. Between two real steps it replays $n$ remembered ones as if they happened now,
#
# $$Q(s, a) \leftarrow Q(s, a) + \alpha \bigl[ r + \gamma \max_{a'} Q(s', a') - Q(s, a) \bigr],
#   \qquad (r, s') = \mathrm{Model}(s, a).$$
#
# The maze is that of the book by Sutton and Barto: only the goal in the corner pays. How much does one know after two
# episodes?

# %%
maze = envs.make("mdp/dyna_maze")
walls = np.array([list(row) for row in maze.rows]).ravel()
figure, axes = plt.subplots(1, 4, figsize=(14, 2.6), layout="constrained", width_ratios=(1, 1, 1, 1.1))
for n, ax in zip((1, 5, 50), axes, strict=False):
    config = dyna_q.Config(planning_steps=n, num_steps=1, total_timesteps=6_000)

    def step(state, _, config=config):
        state, metrics = dyna_q.update(state, config)
        return state, (metrics["episode_length"], state.params)

    state, (lengths, tables) = jax.jit(lambda state: jax.lax.scan(step, state, length=6_000))(dyna_q.init(key, config))
    ends = np.flatnonzero(~np.isnan(lengths))
    value = np.asarray(tables[ends[1]].max(-1))
    best = np.where((value > 0) & (walls != "G"), np.asarray(tables[ends[1]].argmax(-1)), -1)
    shade = np.where(walls == "#", np.nan, np.log(np.maximum(value, 1e-5)))
    plot.value_map(shade, (6, 9), actions=best, numbers=False, ax=ax)
    ax.set_title(f"{n} planning step{'s' * (n > 1)}, after 2 episodes", fontsize="medium")
    axes[3].plot(np.arange(1, 31), np.asarray(lengths)[ends[:30]], label=f"n = {n}")
axes[3].axhline(14, color="0.4", lw=1, ls="--")
axes[3].set(yscale="log", xlabel="episode", title="steps to the goal; 14 is the shortest way")
axes[3].title.set_fontsize("medium")
axes[3].legend(frameon=False);

# %% [markdown]
# (Colours are logarithms of the values; the arrows stand where anything was learned.) The first episode is blind for all:
# nothing but the goal pays, and it is found by chance. From then on planning carries its value backwards while walking.
# With 50 replayed steps two episodes are enough for a way from the start; with one, only cells near the goal know
# anything. `python -m benchmarks.dyna` repeats this over 30 seeds, and shows what happens when the world changes and the
# model lies.
#
# ## A model that says what it does not know
#
# In a continuous world no state comes twice, so the model must generalise. **PETS** fits an ensemble of networks, each
# of which gives a mean and a variance for what follows. The variance is the chance in the world; where the networks
# disagree, the data were too few. It has no policy: at each step it draws sequences of actions, lets every network
# imagine what becomes of them, and refits to the best by the cross-entropy method, the same idea as above, now over 30
# actions in place of weights. Pendulum, 3,000 steps, which are 15 episodes:

# %%
config = pets.Config(total_timesteps=3_000)
early = jax.jit(lambda: pets.update(pets.update(pets.init(key, config), config)[0], config)[0])()
state, metrics = pets.train(key, config)

figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
steps = config.env_steps(1) + config.num_steps * np.arange(config.num_updates)
ended = np.asarray(metrics["episodes"]) > 0
axes[0].plot(steps[ended], np.asarray(metrics["episode_return"])[ended], ".-")
axes[0].set(title="return of an episode")
for deviations, expected, color in ((1, 0.68, "tab:blue"), (2, 0.95, "tab:orange")):
    axes[1].plot(steps, metrics[f"within_{deviations}_std"], color=color, label=f"within {deviations} std")
    axes[1].axhline(expected, color=color, lw=1, ls="--")
axes[1].set(title="truths near enough the prediction", ylim=(0, 1.05))
axes[1].legend(frameon=False, loc="lower right")
judged = np.asarray(metrics["plans_judged"]) > 0
for name in ("promised", "earned"):
    axes[2].plot(steps[judged], np.asarray(metrics[name])[judged], label=name)
axes[2].set(title="return to the horizon of 30 steps")
axes[2].legend(frameon=False)
for ax in axes:
    ax.set_xlabel("env steps")
    ax.title.set_fontsize("medium")
errors = np.asarray(metrics["model_error"])
print(f"error of the model on steps that it had not seen, in standard units: {errors[0]:.2f} at first, {errors[-1]:.4f} at last")

# %% [markdown]
# The figures in the middle and on the right are the ones to watch in this family. A planner looks for whatever the model
# thinks is good and so finds its errors: at first it is promised 190 more than it earns, and far fewer truths lie
# near the prediction than should. Each mistake, once made, is data, and the next model knows better. In the end more
# truths lie within one deviation than the dashed line says: where nothing is left to chance, the networks keep a doubt that
# is larger than their error. The drops on the right are fresh episodes, which start anywhere.
#
# ## Fans
#
# What does the model see ahead? From one state that the trained planner met, here are 30 steps of one plan: what
# really happens, and what each of the five networks imagines, ten times over. Once after 300 steps of experience, and once
# after all of it.


# %%
def imagined(state, obs, actions, key):
    """Observations that each network expects, drawn ten times from its distributions: `[H, M, 10, D]`."""
    mean, std = pets.units(state)

    def step(obs, inputs):
        action, noise = inputs
        seen = pets.normalize.normalize(state.obs_stats, obs)
        prediction = pets.predict(state.params, seen, jnp.broadcast_to(action, (*obs.shape[:2], 1)), config)
        y = mean + std * (prediction.mean + jnp.sqrt(prediction.var) * noise)
        return obs + y[..., :3], obs + y[..., :3]

    start = jnp.broadcast_to(obs, (config.num_members, 10, 3))
    noise = jax.random.normal(key, (config.horizon, config.num_members, 10, 4))
    return jax.lax.scan(step, start, (actions, noise))[1]


def real(env_state, actions):
    """Observations that the env gives, `[H, D]`."""

    def step(env_state, action):
        obs, env_state, *_ = env.advance(key[None], env_state, action[None])
        return env_state, obs[0]

    return jax.lax.scan(step, env_state, actions)[1]


env = envs.bind(config)
start = env.reset(jax.random.key(2))
plan = pets.search(key, start.obs[0], jnp.zeros((config.horizon, 1)), state, config).actions
truth = np.asarray(jax.jit(real)(start.state, plan))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", sharey=True)
for ax, (name, model) in zip(axes, {"after 300 steps": early, "after 3,000 steps": state}.items(), strict=True):
    fans = np.asarray(jax.jit(imagined)(model, start.obs[0], plan, jax.random.key(1)))
    for member in range(config.num_members):
        ax.plot(np.arange(1, 31), fans[:, member, :, 2], color=f"C{member}", lw=0.6, alpha=0.6)
    ax.plot(np.arange(1, 31), truth[:, 2], "k--", lw=2, label="what happens")
    ax.set(title=name, xlabel="steps ahead", ylim=(-8.5, 8.5))
axes[0].set_ylabel("angular velocity")
axes[0].legend(frameon=False);

# %% [markdown]
# Early, the colours, one for each network, part within a few steps, and most trajectories stay behind the truth: random
# actions never made the pendulum this fast. The networks do not know, but they know that they do not. In the end all fifty
# trajectories stay with it for some fifteen steps, and then part for a good reason: the pendulum nears the top, from where
# the smallest difference sends it to either side.
#
# ## What an answer costs
#
# A plan is thought anew at each step. **MBPO** has the same ensemble make data instead: rollouts of three steps, which branch
# off from states that were really seen, and SAC learns from those, ten gradient steps for each step in the env. That makes
# five ways to solve Pendulum. The price of each, in env steps:

# %%
prices = {
    "CEM": (cem, purerl.tuned("cem", "Pendulum-v1").replace(total_timesteps=20_000_000)),
    "PPO": (ppo, purerl.tuned("ppo", "Pendulum-v1").replace(total_timesteps=300_000)),
    "SAC": (sac, purerl.tuned("sac", "Pendulum-v1").replace(total_timesteps=20_000)),
    "MBPO": (mbpo, purerl.tuned("mbpo", "Pendulum-v1").replace(total_timesteps=3_000)),
}
curves = {"PETS": (metrics, config, state, pets)}
for name, (algorithm, setting) in prices.items():
    last, measured = algorithm.train(key, setting)
    curves[name] = (measured, setting, last, algorithm)
figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
for name, (measured, setting, last, algorithm) in curves.items():
    ended = np.asarray(measured["episodes"]) > 0
    taken = np.array([setting.env_steps(update) for update in range(1, setting.num_updates + 1)])
    returns = np.asarray(measured["episode_return"])[ended]
    smooth = np.convolve(returns, np.ones(5) / 5, "valid") if len(returns) > 20 else returns
    ax.plot(taken[ended][-len(smooth) :], smooth, label=name)
    final = evaluate(algorithm, last, setting, jax.random.key(1), num_episodes=10).returns.mean()
    print(f"{name}: {setting.env_steps(setting.num_updates):,} env steps, the final policy earns {final:.0f}")
ax.set(xscale="log", xlabel="env steps", ylabel="return while learning")
ax.legend(frameon=False);

# %% [markdown]
# From right to left: a search that learns one number from a whole episode, a policy gradient that learns from each action
# once, an actor-critic that learns from each transition many times, and two that learn what the world does. Fewer
# samples mean more thought for each: PETS spends a few milliseconds on every single action, for good, while the others'
# policies answer at once, and MBPO's thinking ends with its training. CEM is the least reliable as well: this seed's policy
# fails now and then. Where the env is fast, its millions of steps take a few seconds; where it is a robot, 3,000 steps are
# two and a half minutes of its time.
