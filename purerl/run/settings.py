"""Settings to start from, with the score they must reach: one entry an algorithm and environment.

What each reached stands in benchmarks/results/summary.md.

`benchmarks.learning` runs these very entries over ten seeds and fails where the mean of the final policies is under the
bar; `purerl train` starts from them, and flags override them.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """fields: what differs from the Config's defaults, total_timesteps included. bar: the least mean final return.

    variants: names of switches that must reach the same bar, each with the fields it changes.
    """

    fields: Mapping[str, Any]
    bar: float
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


# Sutton and Barto (2018), example 6.6: exploring for ever, which is why the safe way pays.
_CLIFF = {
    "total_timesteps": 100_000,
    "learning_rate": 0.5,
    "gamma": 1.0,
    "epsilon_start": 0.1,
    "epsilon_end": 0.1,
}
_DOUBLE = {"double": {"double_q": True}}

TUNED: Mapping[tuple[str, str], Setting] = {
    # The best policy falls in on one walk in four: about 0.74 of the episodes reach the goal in time.
    ("q_learning", "mdp/frozen_lake_4x4_slippery"): Setting(
        {
            "total_timesteps": 500_000,
            "num_steps": 10_000,
            "anneal_learning_rate": True,
            "learning_rate": 0.03,
            "epsilon_end": 0.1,
        },
        bar=0.7,
    ),
    ("q_learning", "mdp/cliff_walking"): Setting(_CLIFF, bar=-13),
    # It values what it does, so it must explore little in the end, and for long.
    ("sarsa", "mdp/frozen_lake_4x4_slippery"): Setting(
        {
            "total_timesteps": 4_000_000,
            "num_steps": 10_000,
            "expected": True,
            "anneal_learning_rate": True,
            "learning_rate": 0.03,
            "initial_value": 0.6,
            "epsilon_start": 0.02,
            "epsilon_end": 0.02,
        },
        bar=0.7,
    ),
    ("sarsa", "mdp/cliff_walking"): Setting({**_CLIFF, "expected": True}, bar=-17),
    ("linear_q", "CartPole-v1"): Setting(
        {
            "total_timesteps": 500_000,
            "features": "fourier",
            "bias": False,
            # Where the episode ends, and velocities that a good policy does not exceed; the env itself bounds none.
            "obs_low": (-2.4, -3.0, -0.21, -3.5),
            "obs_high": (2.4, 3.0, 0.21, 3.5),
            "anneal_learning_rate": True,
            "learning_rate": 2e-3,
            "epsilon_start": 0.1,
            "epsilon_end": 0.0,
        },
        bar=300,
    ),
    ("linear_q", "MountainCar-v0"): Setting(
        {
            "total_timesteps": 500_000,
            "num_tilings": 16,
            "bias": False,
            "anneal_learning_rate": True,
            "epsilon_start": 0.1,
            "epsilon_end": 0.0,
        },
        bar=-130,
    ),
    ("pqn", "CartPole-v1"): Setting({"total_timesteps": 500_000}, bar=492),
    # These take less wall time than DQN's on this env, and the bar is what DQN reaches.
    ("pqn", "Breakout-MinAtar"): Setting(
        {
            "total_timesteps": 2_500_000,
            "num_steps": 16,
            "hidden_sizes": (128,),
            "learning_rate": 5e-4,
            "td_lambda": 0.65,
            "reward_scale": 1.0,
            "epsilon_end": 0.05,
            "exploration_fraction": 0.1,
        },
        bar=30,
    ),
    ("ppo", "CartPole-v1"): Setting(
        {"total_timesteps": 500_000},
        bar=490,
        variants={"150k": {"total_timesteps": 150_000, "learning_rate": 1e-3}},
    ),
    ("ppo", "Acrobot-v1"): Setting(
        {
            "total_timesteps": 500_000,
            "num_envs": 8,
            "num_minibatches": 8,
            "learning_rate": 1e-3,
            "normalize_obs": True,
        },
        bar=-86,
    ),
    ("ppo", "Pendulum-v1"): Setting(
        {
            "total_timesteps": 300_000,
            "num_envs": 4,
            "num_steps": 512,
            "num_epochs": 10,
            "num_minibatches": 32,
            "learning_rate": 1e-3,
            "gamma": 0.9,
            "ent_coef": 0.0,
            "clip_value": False,
            "normalize_obs": True,
        },
        bar=-190,
    ),
    ("dqn", "CartPole-v1"): Setting(
        {
            "total_timesteps": 500_000,
            "buffer_size": 100_000,
            "n_step": 5,
            "anneal_learning_rate": True,
            "learning_rate": 2e-4,
            "target_update_period": 1,
            "tau": 0.05,
        },
        bar=488,
        variants=_DOUBLE,
    ),
    ("dqn", "MountainCar-v0"): Setting(
        {
            "total_timesteps": 120_000,
            "num_steps": 16,
            "gradient_steps": 8,
            "iterations_per_update": 25,
            "buffer_size": 50_000,
            "learning_starts": 1_000,
            "learning_rate": 4e-3,
            "gamma": 0.98,
            "hidden_sizes": (64, 64),
            "activation": "tanh",
            "target_update_period": 300,
            "exploration_fraction": 0.2,
            "epsilon_end": 0.07,
        },
        bar=-125,
        variants=_DOUBLE,
    ),
    ("dqn", "Catch-bsuite"): Setting({"total_timesteps": 200_000}, bar=1.0),
    # One uniform episode in 256 finds the reward, so it must go on exploring until it has seen some, and forget none.
    ("dqn", "DeepSea-bsuite"): Setting(
        {"total_timesteps": 200_000, "buffer_size": 100_000, "exploration_fraction": 0.8}, bar=0.98
    ),
    ("dqn", "Breakout-MinAtar"): Setting(
        {
            "total_timesteps": 1_000_000,
            "num_envs": 8,
            "num_steps": 4,
            "gradient_steps": 4,
            "iterations_per_update": 125,
            "buffer_size": 100_000,
            "learning_starts": 5_000,
            "batch_size": 32,
            "hidden_sizes": (128,),
            "target_update_period": 250,
            "exploration_fraction": 0.1,
        },
        bar=6,
    ),
}


def tuned(algorithm: str, env: str, variant: str = "") -> Any:
    """The Config of the entry, such as `tuned("ppo", "Pendulum-v1")`. Raises KeyError with what there is."""
    if (algorithm, env) not in TUNED:
        have = ", ".join(name for known, name in TUNED if known == algorithm) or "none"
        raise KeyError(f"There are no tuned settings of {algorithm} for {env}; there are for: {have}.")
    setting = TUNED[algorithm, env]
    if variant and variant not in setting.variants:
        raise KeyError(
            f"{algorithm} on {env} has no variant {variant!r}; it has: {', '.join(setting.variants) or 'none'}."
        )
    fields = {**setting.fields, **setting.variants.get(variant, {})}
    return importlib.import_module(f"purerl.algorithms.{algorithm}").Config(env=env, **fields)
