"""purerl: reinforcement learning in pure JAX, one readable file an algorithm.

    from purerl import ppo
    state, metrics = ppo.train(jax.random.key(0), ppo.Config(env="CartPole-v1"))

Names are imported when first used, so that `from purerl import ppo` loads only what ppo needs.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# In the order in which one leads to the next.
FAMILIES = {
    "tables": ("value_iteration", "td", "q_learning", "sarsa"),
    "value functions": ("linear_q", "dqn", "pqn"),
    "policy gradients": ("reinforce", "actor_critic", "a2c", "trpo", "ppo"),
    "continuous control": ("ddpg", "td3", "sac", "discrete_sac"),
    "without a gradient": ("cem", "es"),
    "with a model": ("dyna_q", "pets", "mbpo"),
}
ALGORITHMS = tuple(name for family in FAMILIES.values() for name in family)

_HOMES = {name: f"purerl.algorithms.{name}" for name in ALGORITHMS} | {
    "envs": "purerl.envs",
    "mdp": "purerl.mdp",
    "checkpoint": "purerl.run.checkpoint",
    "logs": "purerl.run.logs",
    "plot": "purerl.run.plot",
    "render": "purerl.run.render",
    "runner": "purerl.run.runner",
    "load": "purerl.run.checkpoint:load",
    "load_policy": "purerl.run.policy_file:load_policy",
    "save": "purerl.run.checkpoint:save",
    "save_policy": "purerl.run.policy_file:save_policy",
    "evaluate": "purerl.run.evaluate:evaluate",
    "export_policy": "purerl.run.export:export_policy",
    "train_and_evaluate": "purerl.run.evaluate:train_and_evaluate",
    "tuned": "purerl.run.settings:tuned",
    "use_all_cores": "purerl.run.runner:use_all_cores",
}
__all__ = ["ALGORITHMS", "FAMILIES", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'purerl' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = importlib.import_module(module)
    return getattr(value, attribute) if attribute else value


def __dir__() -> list[str]:
    return sorted(__all__)
