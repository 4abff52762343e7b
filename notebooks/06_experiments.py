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
# # Experiments
#
# A score of reinforcement learning is a random number: another seed gives another one. So whoever compares settings or
# algorithms works with many seeds, with intervals in place of single numbers, and keeps the seeds that settings are chosen
# on apart from those that are reported. This notebook does that on a small question: which settings should PPO have on
# Acrobot when it may take 50,000 env steps, and is it then better than DQN?

# %%
import time
import warnings
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import purerl
from purerl import dqn, plot, ppo, runner
from purerl.run import ranges, search_figure, tune

num_cores = purerl.use_all_cores()
warnings.filterwarnings("ignore", "IProgress not found")  # of a progress bar that Optuna loads

# %% [markdown]
# ## Many seeds, and what they leave
#
# `runner.train` spreads seeds over the cores. It leaves a folder with one row of metrics.csv for each seed and update, a
# checkpoint to go on from, and, since it is asked to evaluate the greedy policies along the way, the best policy of each
# seed. The reported score is that of the final policies all the same.

# %%
config = ppo.Config(env="Acrobot-v1", total_timesteps=50_000)
run = runner.train(
    ppo, config, seeds=range(8), out="runs/defaults", eval_every=10_000, eval_episodes=16, progress=False, say=lambda line: None
)
print(sorted(path.name for path in Path("runs/defaults").iterdir()))
print(Path("runs/defaults/metrics.csv").read_text().split("\n")[0])

# %%
plot.runs(["runs/defaults"]);

# %% [markdown]
# The solid line is the return of the episodes in training, whose actions are drawn; the dashed one that of the greedy
# policy. Thin lines are seeds. They do not agree, and a mean of two or three of them would tell another story each time:

# %%
def final_scores(algorithm, run):
    """The mean return of each seed's final greedy policy over 100 episodes."""
    keys = jax.random.split(jax.random.key(0), len(run.seeds))
    scores = jax.vmap(
        lambda state, key: purerl.evaluate(algorithm, state, run.config, key, num_episodes=100).returns.mean()
    )(jax.device_put(run.states, jax.devices()[0]), keys)
    return np.asarray(scores)


defaults = final_scores(ppo, run)
rng = np.random.default_rng(0)
for num in (1, 3, 8):
    means = [rng.choice(defaults, num).mean() for _ in range(1000)]
    print(f"mean of {num} seed(s): 95 % of experiments report between {np.percentile(means, 2.5):.1f} and {np.percentile(means, 97.5):.1f}")

# %% [markdown]
# ## A search
#
# Optuna proposes settings; purerl trains all trials of a round as one program, since they differ in traced fields alone. The
# worse half of each round leaves after a quarter of the training and again after half of it. The search has seeds of its
# own, from 1000 upwards: what is reported later must not have been used to choose.

# %%
searched = ranges.shipped("ppo", ppo.Config)
started = time.perf_counter()
search = tune.tune(ppo, config, searched, out="runs/search", trials=32, seeds=3)
print(f"{time.perf_counter() - started:.0f} s on {num_cores} cores")
search_figure.draw(search.trials, searched, "PPO on Acrobot-v1");

# %%
for name, value in search.best.fields.items():
    print(f"{name:15s} {value:<10.3g} default {getattr(config, name):g}")

# %% [markdown]
# The score of the best trial is too good to be true: of many noisy numbers it is the highest. So the settings are trained
# again, on the seeds that the search has not seen.

# %%
tuned = runner.train(ppo, search.config, seeds=range(8), out="runs/tuned", progress=False, say=lambda line: None)
found = final_scores(ppo, tuned)
print(f"in the search {search.best.rung_scores[-1]:.1f}, on fresh seeds {found.mean():.1f}, of the defaults {defaults.mean():.1f}")

# %% [markdown]
# ## A comparison
#
# DQN, with the settings that are tuned for CartPole, gets as many env steps and seeds. An interval is of the interquartile mean over seeds; where
# two do not overlap there is little doubt, and where they do, more seeds are the answer, not more words.

# %%
other = runner.train(
    dqn, purerl.tuned("dqn", "CartPole-v1").replace(env="Acrobot-v1", learning_starts=1_000, total_timesteps=50_000),
    seeds=range(8), out="runs/dqn", progress=False, say=lambda line: None,
)
scores = {"PPO, defaults": defaults, "PPO, searched": found, "DQN": final_scores(dqn, other)}

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", width_ratios=(3, 2))
plot.runs(["runs/defaults", "runs/tuned", "runs/dqn"], name="episode_return", ax=left)
left.legend(frameon=False, fontsize="small", loc="lower right")
for i, values in enumerate(scores.values()):
    low, high = plot.bootstrap_interval(values)
    right.plot([low, high], [i, i], lw=6, alpha=0.3, color=f"C{i}", solid_capstyle="butt")
    right.plot(values, np.full(len(values), i) + np.linspace(-0.15, 0.15, len(values)), ".", color=f"C{i}", ms=5)
    right.plot(plot.iqm(values), i, "|", color=f"C{i}", ms=22, mew=2)
right.set_yticks(range(len(scores)), scores)
right.set_xlabel("return of the final policy")
right.set_title("seeds, their IQM and its 95 % interval", fontsize="medium")
right.spines[["top", "right"]].set_visible(False)

# %%
def chance_of_being_better(left, right):
    """Of a seed of the one against a seed of the other; ties count half."""
    pairs = left[:, None] - right[None]
    return (pairs > 0).mean() + (pairs == 0).mean() / 2


for name, values in scores.items():
    low, high = plot.bootstrap_interval(values)
    print(f"{name:15s} IQM {plot.iqm(values):7.1f} [{low:.1f}, {high:.1f}]   worst seed {values.min():.1f}")
print(f"A seed of the searched PPO beats one of DQN with a chance of {chance_of_being_better(found, scores['DQN']):.2f}.")

# %% [markdown]
# On the command line the same are
#
# ```
# purerl train ppo --env Acrobot-v1 --total-timesteps 50000 --eval-every 10000 --out runs/defaults
# purerl tune ppo --env Acrobot-v1 --total-timesteps 50000 --trials 32 --seeds 3 --out runs/search
# purerl train ppo --settings runs/search/settings.toml --out runs/tuned
# purerl plot runs/defaults runs/tuned runs/dqn
# ```
