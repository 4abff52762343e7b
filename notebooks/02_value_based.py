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
# # From value iteration to deep Q-learning
#
# Each algorithm here answers a problem that the one before it left. It begins with a world that is known exactly, so
# that there is something to measure learners against, and ends with a network that learns from what it sees.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import purerl
from purerl import dqn, linear_q, mdp, plot, pqn, q_learning, runner, sarsa, td, value_iteration

purerl.use_all_cores()
key = jax.random.key(0)

# %% [markdown]
# ## A known world
#
# A Markov decision process lists, for each state and action, what may follow, how likely, and what it pays. This one has
# ten by ten cells: each step costs 0.04, the goal in the lower right pays 1, the pit beside it costs 1, and a move slips
# to one side or the other with probability 0.2.
#
# **Value iteration** makes an assignment of the Bellman optimality equation and sweeps until nothing moves,
#
# $$V(s) \leftarrow \max_a \sum_{s'} T(s'|s,a)\,\bigl[R(s,a,s') + \gamma V(s')\bigr].$$

# %%
world = mdp.gridworld()
config = value_iteration.Config(env="mdp/gridworld", gamma=0.99)
state, metrics = value_iteration.train(key, config)

act = value_iteration.policy(state, config)
best_action = jax.vmap(act, (None, 0))(key, jnp.arange(world.num_states))


# Walls are the cells that no other cell leads to.
cells = np.arange(world.num_states)
walls = ~np.isin(cells, world.successor[world.successor != cells[:, None, None]]) & (np.asarray(world.start) == 0)


def show(values, actions, ax=None, numbers=True):
    """A value map of the gridworld, walls blank, no arrow where it is over."""
    values = np.where(walls, np.nan, values)
    actions = np.where(world.terminal, -1, actions)
    return plot.value_map(values, (10, 10), actions=actions, numbers=numbers, ax=ax)


show(state.params, best_action).set_title("optimal values and actions", fontsize="medium");

# %% [markdown]
# Each sweep brings V closer to $V^*$, by at least the factor $\gamma$ in the largest error. Policy iteration, a switch of
# the same file, evaluates each greedy policy to the end before improving it: few updates, with many sweeps in each.

# %%
figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, one in (("value iteration", config), ("policy iteration", config.replace(policy_iteration=True))):
    metrics = value_iteration.train(key, one).metrics
    moving = int((metrics["residual"] > one.tolerance).sum()) + 1
    label = f"{name}: {moving} updates, {metrics['sweeps'][-1]} sweeps"
    ax.semilogy(np.arange(1, moving + 1), metrics["residual"][:moving], "o-", ms=3, label=label)
ax.set_xlabel("updates")
ax.set_ylabel("largest change")
ax.grid(alpha=0.3)
ax.legend(frameon=False);

# %% [markdown]
# ## Values from experience
#
# Now the model is hidden, and the policy fixed. What is it worth? Temporal-difference learning moves V(s) towards one
# reward and the value of where it led; with n-step and lambda-returns, towards more rewards and less of its own guess.
# On a walk of 19 cells whose exact values are known, over 100 seeds at once:

# %%
walk = mdp.Tabular(mdp.random_walk(19), time_limit=1000)
exact = mdp.policy_value(walk.default_params, np.full((21, 2), 0.5), 1.0)


def values_over_time(algorithm, config, key):
    """V after each update: `update` is a function of a state, so any history of it is a scan."""

    def step(state, _):
        state, _ = algorithm.update(state, config)
        return state, state.params

    return jax.lax.scan(step, algorithm.init(key, config), length=config.num_updates)[1]


figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
base = td.Config(env=walk, gamma=1.0, total_timesteps=20_000, num_steps=200, learning_rate=0.05, initial_value=0.5)
variants = {"TD(0)": {}, "8 steps": {"n_step": 8}, "lambda = 0.9": {"lambda_return": True, "td_lambda": 0.9}}
for name, switches in variants.items():
    one = base.replace(**switches)
    history = jax.vmap(lambda key, one=one: values_over_time(td, one, key))(jax.random.split(key, 100))
    error = jnp.sqrt(jnp.square(history - exact)[..., 1:-1].mean((0, 2)))
    ax.plot(one.num_steps * np.arange(1, one.num_updates + 1), error, label=name)
ax.set_xlabel("env steps")
ax.set_ylabel("root mean square error of V")
ax.grid(alpha=0.3)
ax.legend(frameon=False);

# %% [markdown]
# ## Control without a model
#
# **Q-learning** aims at the best next action, whatever is done next. Since the world is the one that value iteration
# solved, its error against the exact $Q^*$ can be plotted. It begins in any cell and acts at random, so that it sees all
# of them. A constant step size stops at a floor of noise; one that falls with the visits of each pair does not.

# %%
exact_q = value_iteration.q_values(state.params, config)
reached = ~walls & ~np.asarray(world.terminal)

figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
anywhere = mdp.Tabular(world._replace(start=jnp.asarray(reached / reached.sum())), time_limit=100)
base = q_learning.Config(env=anywhere, total_timesteps=500_000, num_steps=2000, epsilon_end=1.0)
for name, switches in {
    "step size 0.1": {"learning_rate": 0.1},
    "step size 0.02": {"learning_rate": 0.02},
    "falling with visits": {"learning_rate": 1.0, "count_visits": True, "visit_power": 0.6},
}.items():
    one = base.replace(**switches)
    history = jax.vmap(lambda key, one=one: values_over_time(q_learning, one, key)[:, 0])(jax.random.split(key, 10))
    error = jnp.abs(history - exact_q).max(-1)[..., reached].max(-1).mean(0)
    ax.semilogy(one.num_steps * np.arange(1, one.num_updates + 1), error, label=name)
ax.set_xlabel("env steps")
ax.set_ylabel("largest error of Q")
ax.grid(alpha=0.3)
ax.legend(frameon=False)

learned = history[0, -1]
figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
show(state.params, best_action, axes[0], numbers=False).set_title("value iteration, knowing the model", fontsize="medium")
show(learned.max(-1), learned.argmax(-1), axes[1], numbers=False).set_title(
    "Q-learning, from 500,000 steps", fontsize="medium"
);

# %% [markdown]
# **SARSA** aims at what it will really do, exploration included. Along a cliff that costs 100 to fall from, with one
# random step in ten, Q-learning learns the shortest way, along the edge, and falls; SARSA learns the way above it and
# earns more while it explores (Sutton and Barto, example 6.6).

# %%
fields = {"env": "mdp/cliff_walking", "gamma": 1.0, "learning_rate": 0.5, "epsilon_start": 0.1, "epsilon_end": 0.1}
keys = jax.random.split(key, 10)
runs = {
    "Q-learning": jax.vmap(q_learning.train, (0, None))(keys, q_learning.Config(total_timesteps=100_000, **fields)),
    "SARSA": jax.vmap(sarsa.train, (0, None))(keys, sarsa.Config(total_timesteps=100_000, expected=True, **fields)),
}
cliff = mdp.cliff_walking()
figure, axes = plt.subplots(3, 1, figsize=(7, 7.5), layout="constrained", height_ratios=(1, 1, 1.2))
for ax, (name, run) in zip(axes[:2], runs.items(), strict=True):
    q = run.state.params[0].reshape(48, 4)
    cell, path = 36, np.zeros(48, bool)
    while not cliff.terminal[cell] and not path[cell]:
        path[cell] = True
        cell = int(cliff.successor[cell, q[cell].argmax(), 0])
    values = np.where(np.isin(np.arange(48), np.arange(37, 47)), np.nan, np.maximum(q.max(-1), -30))
    plot.value_map(values, (4, 12), actions=np.where(path, q.argmax(-1), -1), numbers=False, ax=ax)
    ax.set_title(f"{name}: the greedy way; the cliff is grey", fontsize="medium")
    plot.learning_curve(run.metrics, label=name, ax=axes[2], show_seeds=False)
axes[2].set_ylim(-100, 0)
axes[2].set_ylabel("return while learning");

# %% [markdown]
# ## Too many states for a table
#
# A car in a valley has a position and a velocity, so its states cannot be numbered. **Linear Q-learning** gives each
# action a weight for every feature of the observation. Tile coding lays several shifted grids over the plane; what is
# learned in one place carries over to the neighbours that share a tile.

# %%
config = purerl.tuned("linear_q", "MountainCar-v0").replace(total_timesteps=500_000)
state, metrics = linear_q.train(key, config)

positions, velocities = np.linspace(-1.2, 0.5, 80), np.linspace(-0.07, 0.07, 80)
plane = jnp.stack(jnp.meshgrid(positions, velocities), axis=-1).reshape(-1, 2)
q = jax.vmap(lambda obs: linear_q.q_values(state.params, linear_q.features(obs, config)))(plane)

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
plot.learning_curve(metrics, config, ax=axes[0])
image = axes[1].pcolormesh(positions, velocities, -q.max(-1).reshape(80, 80), cmap="viridis_r")
axes[1].set_xlabel("position")
axes[1].set_ylabel("velocity")
figure.colorbar(image, label="discounted steps to the top");

# %% [markdown]
# Fourier features, cosines over the whole range of the observation, even balance a pole: with the tuned settings of
# `purerl.tuned("linear_q", "CartPole-v1")` all ten benchmark seeds reach 500.
#
# ## Deep Q-learning, and what makes it work
#
# With a network in place of features, nothing holds Q-learning together: the transitions of one moment resemble each
# other, and each gradient step moves the target that the next one aims at. **DQN** answers with a memory of the past to
# draw from, and with a copy of the network that stands still. Take either away:

# %%
base = dqn.Config(env="CartPole-v1", total_timesteps=100_000, learning_starts=1_000)
variants = {
    "replay and target": {},
    "no target": {"target_update_period": 1},
    "no replay": {"buffer_size": 128, "learning_starts": 128},
}
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
for name, switches in variants.items():
    run = runner.train(dqn, base.replace(**switches), seeds=range(4), progress=False, say=lambda line: None)
    plot.learning_curve(run.metrics, run.config, label=name, ax=ax, show_seeds=False)

# %% [markdown]
# Four short trainings each, too few to tell more than a tendency on CartPole. On MountainCar it is plain: ten trainings
# each, in [ablation/dqn.png](../benchmarks/results/ablation/dqn.png), made by `python -m benchmarks.ablation`, end at a
# greedy return of -112 with both, -197 without replay, and -200, never at the goal, without target network or with
# neither.
#
# **PQN** keeps neither memory nor target network: many environments side by side make the transitions of a batch
# differ, LayerNorm bounds how far a gradient step can throw the values, and lambda-returns bring news of rewards fast.

# %%
config = pqn.Config(env="CartPole-v1", total_timesteps=500_000)
run = runner.train(pqn, config, seeds=range(4), progress=False, say=lambda line: None)
ax = plot.learning_curve(run.metrics, config)
greedy = jax.vmap(lambda state: purerl.evaluate(pqn, state, config, key, num_episodes=100).returns.mean())
print("greedy return of each seed:", greedy(jax.device_put(run.states, jax.devices()[0])))
ax.set_title(
    f"PQN, four seeds, one action in five random to the end: {run.run_seconds:.0f} s after compilation", fontsize="medium"
);
