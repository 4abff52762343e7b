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
# # Policy gradients: from REINFORCE to trust regions
#
# To act by Q takes a max over actions. A policy with parameters of its own takes none: it is moved, a little at a time,
# along the gradient of what it earns. This notebook derives the estimate of that gradient, measures how noisy it is, and
# then follows the five answers to the question of how to use it.

# %%
import importlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree

import purerl
from purerl import mdp, plot, ppo, reinforce, runner, trpo

purerl.use_all_cores()
key = jax.random.key(0)

# %% [markdown]
# ## The estimator
#
# An episode $\tau = (s_0, a_0, r_0, s_1, \dots)$ has the probability
# $p_\theta(\tau) = p(s_0) \prod_t \pi_\theta(a_t|s_t)\, p(s_{t+1}|s_t, a_t)$ and the return $R(\tau)$. What a policy earns
# is $J(\theta) = \sum_\tau p_\theta(\tau) R(\tau)$, and with $\nabla p = p\, \nabla \log p$
#
# $$\nabla J = \sum_\tau p_\theta(\tau)\, \nabla \log p_\theta(\tau)\, R(\tau)
#            = E\Big[ \sum_t \nabla \log \pi_\theta(a_t|s_t)\; R(\tau) \Big],$$
#
# because start and transitions do not depend on $\theta$: their logarithms have no gradient. So a mean over episodes
# estimates $\nabla J$, without a model. Two changes leave that mean where it is:
#
# - **Reward-to-go.** What was paid before $a_t$ does not depend on it, and $E[\nabla \log \pi(a|s)] = 0$: those terms
#   vanish in the mean. What is left is $G_t = r_t + r_{t+1} + \dots$
# - **A baseline.** For the same reason any $b(s_t)$ may be taken from $G_t$: best near what is usual in that state, $V(s_t)$.
#
# How much noise goes with them? Here is a task of two steps whose gradient is known, and a policy with one number for
# each state and action. Each row below is the gradient of single episodes, as `reinforce.py` computes it, 20,000 times.

# %%
two_steps = mdp.Tabular(
    mdp.MDP(  # 0 leads to 1 or to 2, and these to the end
        successor=jnp.array([[[1, 2], [1, 2]], [[3, 3], [3, 3]], [[3, 3], [3, 3]], [[3, 3], [3, 3]]]),
        probability=jnp.array([[[0.8, 0.2], [0.3, 0.7]]] + 3 * [[[1.0, 0.0], [1.0, 0.0]]]),
        reward=jnp.array(
            [[[2.0, 2.0], [3.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 0.0]], 2 * [[0.0, 0.0]]]
        ),
        terminal=jnp.array([False, False, False, True]),
        start=jnp.array([1.0, 0.0, 0.0, 0.0]),
    ),
    time_limit=2,
)
base = reinforce.Config(
    env=two_steps, gamma=1.0, num_envs=1, num_steps=2, actor_hidden_sizes=(), critic_hidden_sizes=(), total_timesteps=2
)


def exact_values(logits):
    """Q(s, a) and V(s) of a policy, by the model: the last step first."""
    world, pi = two_steps.default_params, jax.nn.softmax(logits)
    ahead = jnp.where(world.terminal[:, None, None], 0.0, world.probability)
    value = jnp.zeros(4)
    for _ in range(2):
        q = (ahead * (world.reward + value[world.successor])).sum(-1)
        value = (pi * q).sum(-1)
    return q, value


state = reinforce.init(key, base)
actor = jax.tree.map(lambda x: jax.random.normal(key, x.shape) / 2, state.params.actor)
logits = reinforce.distribution(actor, jnp.eye(4), base).logits
q, value = exact_values(logits)
exact = ravel_pytree(jax.grad(lambda a: exact_values(reinforce.distribution(a, jnp.eye(4), base).logits)[1][0])(actor))[
    0
]
critic = jax.tree.map(jnp.zeros_like, state.params.critic)
critic["params"]["body"]["Dense_0"]["kernel"] = value[:, None]  # a critic that is right
state = state._replace(params=state.params._replace(actor=actor, critic=critic))


def gradients(config, psi=None):
    """Gradients of single episodes; psi: a table `[S, A]` in place of the returns."""

    def one(key):
        batch = reinforce.collect(key, state, config)[1]
        if psi is not None:
            batch = batch._replace(advantage=(batch.obs @ psi)[jnp.arange(2), batch.action])
        return -ravel_pytree(jax.grad(reinforce.loss, has_aux=True)(actor, batch, config)[0])[0]

    return jax.jit(jax.vmap(one))(jax.random.split(key, 20_000))


plain = base.replace(reward_to_go=False, baseline="none")
samples = {
    "return of the episode": gradients(plain),
    "reward-to-go": gradients(plain.replace(reward_to_go=True)),
    "return - V(s)": gradients(plain.replace(baseline="value")),
    "Q(s, a)": gradients(plain.replace(reward_to_go=True), q),
    "reward-to-go - V(s)": gradients(base),
    "A(s, a) = Q(s, a) - V(s)": gradients(base, q - value[:, None]),
}
figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=(1, 1.4))
for i, (name, found) in enumerate(samples.items()):
    error = found.std(0) / np.sqrt(len(found))
    axes[0].barh(i, found.var(0).sum(), color=f"C{i}")
    axes[0].text(found.var(0).sum() + 0.1, i, f"{found.var(0).sum():.2f}", va="center", fontsize="small")
    axes[1].errorbar(np.arange(4) + (i - 2.5) / 9, found.mean(0)[:4], 2 * error[:4], fmt="o", ms=3, label=name)
axes[0].set_yticks(range(len(samples)), samples)
axes[0].invert_yaxis()
axes[0].set_xlabel("variance of one episode's gradient")
axes[0].set_xlim(right=17)
for i, x in enumerate(exact[:4]):
    axes[1].hlines(x, i - 0.4, i + 0.4, color="0.3", lw=1, zorder=0, label="exact" if i == 0 else None)
axes[1].set_xticks(range(4))
axes[1].set_xlabel("parameter")
axes[1].set_ylabel("mean, 2 standard errors")
axes[1].set_ylim(top=0.2)
axes[1].legend(frameon=False, fontsize="small", ncols=2, loc="upper right");

# %% [markdown]
# All six have the same mean, which is the exact gradient, and the advantage has a thirtieth of the variance of where we
# began. The last two rows are why there are critics: a critic that knows $V$ takes most of the noise away, and one that
# knows $Q$ and $V$ also the chance of what comes later.
#
# ## Five answers
#
# | | the policy follows | how far |
# |---|---|---|
# | [REINFORCE](../purerl/algorithms/reinforce.py) | $G_t - V(s_t)$ of whole episodes | a learning rate |
# | [Q actor-critic](../purerl/algorithms/actor_critic.py) | $Q(s, a)$, learned from one step to the next | a learning rate |
# | [A2C](../purerl/algorithms/a2c.py) | the advantage, from a few steps and $V$ | a learning rate, or a trust region in each state |
# | [TRPO](../purerl/algorithms/trpo.py) | the advantage, by GAE | as far as the KL to the old policy is below $\delta$ |
# | [PPO](../purerl/algorithms/ppo.py) | the advantage, by GAE, in many small steps on one batch | until the clip, or a KL penalty, says stop |
#
# All on CartPole, with the settings that purerl ships, PPO's for short trainings, eight seeds each; bands are 95 %
# intervals.

# %%
figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
for name in purerl.FAMILIES["policy gradients"]:
    algorithm, variant = importlib.import_module(f"purerl.algorithms.{name}"), "150k" if name == "ppo" else ""
    config = purerl.tuned(name, "CartPole-v1", variant).replace(total_timesteps=150_000)
    run = runner.train(algorithm, config, seeds=range(8), progress=False, say=lambda line: None)
    plot.learning_curve(run.metrics, config, label=name, ax=ax, show_seeds=False)
ax.set_ylabel("return while learning")
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1));

# %% [markdown]
# TRPO's long, safe steps are there first. REINFORCE, with a learned baseline, is next: CartPole pays at every step and its
# episodes are short, so that there is little to wait for. PPO has learned as much by 100,000 steps. A2C moves on forty
# steps of data at a time, cheap and noisy, and the Q actor-critic by a critic that takes long to get right; both need half
# a million steps ([measured](../benchmarks/results/learning/summary.md), ten seeds each). What sets TRPO and PPO apart
# from the rest is what they do to a step that is too long.
#
# ## One and the same step
#
# Take a policy in the middle of its training, and one batch. The batch promises the gain
# $L(\theta) = E[\,r\,A\,]$, $r = \pi_\theta(a|s) / \pi_\text{old}(a|s)$, and knows nothing of what the policy will meet once
# it has changed. Go along a direction, further and further:
#
# - **TRPO** goes on while the KL is below $\delta$, and not one step further.
# - **PPO's clip** pays for a ratio up to $1 \pm 0.2$ only: its objective flattens, sample by sample, while
#   what the step spoils goes on to count.
# - **The KL penalty** lets every step cost what it moves: its objective bends back.
#
# On the left along the natural gradient, $F^{-1} g$, on the right along the gradient $g$ itself, each scaled so that at 1
# the quadratic model of the KL says $\delta = 0.01$.

# %%
config = ppo.Config(env="CartPole-v1", num_envs=16, total_timesteps=30_000)
state = ppo.train(key, config).state
batch = ppo.collect(key, state, config)[1]
flat, unravel = ravel_pytree(state.params.actor)
advantage = (batch.advantage - batch.advantage.mean()) / batch.advantage.std()
delta, beta = 0.01, 1.0


def policy(flat):
    return ppo.distribution(unravel(flat), batch.obs, config)


def objectives(flat):
    """L, L with the clip, L with the penalty, and the KL."""
    pi = policy(flat)
    ratio, kl = jnp.exp(pi.log_prob(batch.action) - batch.log_prob), batch.pi.kl(pi)
    choose = [config.replace(surrogate=name) for name in ("none", "clip", "kl")]
    return [ppo.surrogate(ratio, advantage, kl, beta, 0.2, c) - advantage.mean() for c in choose] + [kl.mean()]


g = jax.grad(lambda x: objectives(x)[0])(flat)
product = trpo.fisher_vector_product(policy, flat, 0.1)
directions = {"natural gradient": trpo.conjugate_gradient(product, g, 10), "gradient": g}

lengths = jnp.linspace(0, 4, 161)
figure, axes = plt.subplots(2, 2, figsize=(10, 5.6), layout="constrained", sharex=True, sharey="row")
for (title, x), (top, bottom) in zip(directions.items(), axes.T, strict=True):
    step = jnp.sqrt(2 * delta / (x @ product(x))) * x
    *gains, kl = jax.jit(jax.vmap(lambda length, step=step: objectives(flat + length * step)))(lengths)
    reach = lengths[np.flatnonzero(kl <= delta)[-1]]
    for label, gain in zip(("L", "clipped", "L - KL"), gains, strict=True):
        (line,) = top.plot(lengths, gain, label=label)
        if label != "L":
            top.plot(lengths[gain.argmax()], gain.max(), "o", color=line.get_color())
    bottom.plot(lengths, kl, color="0.3")
    bottom.axhline(delta, color="0.6", lw=1, ls="--")
    for ax in (top, bottom):
        ax.axvspan(0, reach, color="C2", alpha=0.1, lw=0, label="KL within delta" if ax is top else None)
        ax.grid(alpha=0.3)
    top.set_title(f"along the {title}", fontsize="medium")
    bottom.set_xlabel("length of the step")
axes[0, 0].set_ylabel("promised gain")
axes[0, 0].set_ylim(-0.03, 0.08)
axes[1, 0].set_ylim(0, 0.06)
axes[1, 0].set_ylabel("KL(old || new)")
axes[0, 0].legend(frameon=False, fontsize="small");

# %% [markdown]
# The unclipped promise L keeps growing where it can no longer be believed. The trust region cuts it off, the penalty
# turns it around, and the clip takes away the reason to go on; the dots are where the latter two would stop. For the same
# KL the natural gradient promises more than the gradient: it goes where the policy's own scale says that there is room.
