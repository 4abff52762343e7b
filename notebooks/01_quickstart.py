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
# # Quickstart
#
# Every algorithm of purerl is a module with a pure function `train(key, config)`. Pure means: the same key and config
# give the same result, and nothing else happens. So everything JAX can do to a function it can do to a whole training:
# compile it, run many of them at once, sweep a hyperparameter inside it.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import purerl
from purerl import evaluate, plot, ppo

purerl.use_all_cores()  # one JAX device a core; only the runner below needs it, and it must come before any JAX work

# %% [markdown]
# ## One training
#
# The environment steps on the device too, so half a million steps of PPO are one call. The first call compiles.

# %%
config = ppo.Config(env="CartPole-v1", total_timesteps=500_000)

started = time.perf_counter()
state, metrics = jax.block_until_ready(ppo.train(jax.random.key(0), config))
print(f"{config.env_steps(config.num_updates):,} env steps, compilation included: {time.perf_counter() - started:.1f} s")
print({name: x.shape for name, x in metrics.items()})

# %%
plot.learning_curve(metrics, config);

# %% [markdown]
# With `config` the x axis counts env steps; `plot.learning_curve(metrics)` alone counts updates.
#
# ## Many seeds
#
# One seed says little. `vmap` over keys trains eight at once; the bold line is their interquartile mean, the band its
# 95 % bootstrap interval.

# %%
states, metrics = jax.vmap(ppo.train, (0, None))(jax.random.split(jax.random.key(0), 8), config)
plot.learning_curve(metrics, config);

# %% [markdown]
# ## A hyperparameter sweep
#
# The fields of a Config that are numbers, such as the learning rate, discount or clip range, are inputs of the compiled
# program, so `vmap` goes over them as well. Fields that decide shapes or loop lengths are static; given a tracer they
# say so.

# %%
rates = jnp.array([3e-5, 2.5e-4, 1e-3, 1e-2])
sweep = jax.vmap(lambda lr: ppo.train(jax.random.key(0), config.replace(learning_rate=lr)))(rates)

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for i, rate in enumerate(rates):
    one = {name: x[i] for name, x in sweep.metrics.items()}
    plot.learning_curve(one, config, label=f"learning rate {rate:.2g}", ax=ax)

# %%
try:
    jax.vmap(lambda n: ppo.train(jax.random.key(0), config.replace(num_envs=n)))(jnp.array([4, 8]))
except TypeError as error:
    print(error)

# %% [markdown]
# ## How good is the policy?
#
# `evaluate` runs whole episodes with the policy's mode, and takes every episode to its end.

# %%
returns, lengths = evaluate(ppo, state, config, jax.random.key(1), num_episodes=100)
print(f"one seed: {returns.mean():.1f} +- {returns.std():.1f} over {returns.size} episodes")

per_seed = jax.vmap(lambda state: evaluate(ppo, state, config, jax.random.key(1), num_episodes=100).returns)(states)
print("eight seeds:", per_seed.mean(1))

# %% [markdown]
# ## Evaluation while it trains
#
# The returns of a training are those of exploring actions. `purerl.train_and_evaluate` stops every so many steps for
# whole episodes with the policy's mode. It takes nothing from the training, whose numbers stay the same, and keeps the
# policy of the best evaluation. It is as pure as `train`, so `vmap` gives eight of them. A score to report is that of
# the final policy; the best one is yours to act with.

# %%
evaluated = jax.vmap(lambda key: purerl.train_and_evaluate(ppo, key, config, eval_every=25_000, eval_episodes=16))(
    jax.random.split(jax.random.key(0), 8)
)
print("the same trainings as above:", bool((evaluated.metrics["value_loss"] == metrics["value_loss"]).all()))

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
plot.learning_curve(metrics, config, label="while it explores", ax=ax)
steps = [config.env_steps(update) for update in evaluated.eval_updates[0].tolist()]
ax.plot(steps, plot.iqm(evaluated.eval_return), "o-", markersize=3, label="its mode")
ax.legend(frameon=False)

best = jax.vmap(lambda state: evaluate(ppo, state, config, jax.random.key(1), num_episodes=100).returns)(evaluated.best)
print("the best of each seed:", best.mean(1).round(1))

# %% [markdown]
# ## Acting
#
# `policy` gives a plain function of a key and one observation. Here it balances the pole for an episode, in gymnax's own
# loop.

# %%
import gymnax

env, env_params = gymnax.make("CartPole-v1")
act = jax.jit(ppo.policy(state, config))

key, reset_key = jax.random.split(jax.random.key(2))
obs, env_state = env.reset(reset_key, env_params)
trace, done = [], False
while not done and len(trace) < 500:
    key, act_key, step_key = jax.random.split(key, 3)
    action = act(act_key, obs)
    trace.append((float(obs[0]), float(obs[2])))
    obs, env_state, reward, terminated, truncated, _ = env.step(step_key, env_state, action, env_params)
    done = bool(terminated | truncated)

position, angle = jnp.array(trace).T
figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
ax.plot(position, label="cart position (m)")
ax.plot(angle, label="pole angle (rad)")
ax.set_xlabel("step")
ax.legend(frameon=False)
print(f"The episode lasted {len(trace)} steps.")

# %% [markdown]
# ## Looking at it
#
# `purerl.render.save` writes an episode as a GIF.

# %%
import tempfile
from pathlib import Path

from IPython.display import Image, display

from purerl import render

folder = Path(tempfile.mkdtemp())
display(Image(render.save(folder / "cartpole.gif", ppo, state, config, jax.random.key(3), max_steps=40)))

# %% [markdown]
# ## Saving and loading
#
# A state is the whole training: network, optimiser, environments, random key. So it is the checkpoint.

# %%
purerl.save(folder / "ppo", state)
like = jax.eval_shape(ppo.init, jax.random.key(0), config)  # shapes only: nothing is computed
restored = purerl.load(folder / "ppo", like)

again = evaluate(ppo, restored, config, jax.random.key(1), num_episodes=100).returns
print("same returns as before saving:", bool((again == returns).all()))

# %% [markdown]
# For acting alone a policy is enough: a file of its own, which has the weights and what else it takes to act, and
# nothing of the training. `purerl.export_policy` makes a program of it that runs with JAX alone, without purerl.

# %%
purerl.save_policy(folder / "cartpole.policy", ppo, state, config)
loaded = purerl.load_policy(folder / "cartpole.policy")
falling_left = jnp.array([0.0, 0.0, -0.1, 0.0])
pushed = ["left", "right"][int(loaded(jax.random.key(0), falling_left))]
print(f"{(folder / 'cartpole.policy').stat().st_size / 1e3:.0f} kB; a pole that falls to the left is pushed {pushed}")

# %% [markdown]
# ## Long runs: the runner
#
# `runner.train` spreads seeds over all cores, shows progress, writes every seed's metrics to a CSV file and checkpoints
# as it goes. Interrupt it, and it saves and stops; `resume=True` goes on without losing a step. `purerl train ppo` on
# the command line is the same.

# %%
from purerl import runner

run = runner.train(ppo, config, seeds=range(4), out=folder / "run")
print(f"compile {run.compile_seconds:.1f} s, run {run.run_seconds:.1f} s")
print(*(folder / "run" / "metrics.csv").read_text().splitlines()[:3], sep="\n")

# %%
plot.runs([folder / "run"]);

# %% [markdown]
# A function of yours may look on, every second or so, and end the run, saved; `eval_every` evaluates here as well, in a
# column of its own and in the picture, and keeps each seed's best policy as a file.

# %%
def solved(updates, states, metrics):
    return bool((metrics["episode_return"][:, -1] > 450).all())


options = {"on_chunk": solved, "eval_every": 25_000, "say": lambda line: None}
early = runner.train(ppo, config, seeds=range(4), out=folder / "early", **options)
print(f"stopped after {config.env_steps(early.updates):,} env steps of {config.env_steps(config.num_updates):,}")
print(sorted(str(file.relative_to(folder)) for file in (folder / "early").rglob("*.policy")))

# %%
plot.runs([folder / "early"]);

# %% [markdown]
# `start_from` begins with another run's weights, and `purerl tune ppo` searches for settings: the notebook
# `06_experiments` shows a search and a comparison. How to train on a GPU or over many machines, with an env, network or
# logger of your own, or to act in Gymnasium stands in `docs/how.md`, each piece of which is tested.
