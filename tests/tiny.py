"""Configs small enough to compile and run in seconds, and how tests train them; shared, so programs compile once."""

from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl import runner

_PARALLEL = {
    "num_envs": 2,
    "num_steps": 8,
    "num_epochs": 2,
    "num_minibatches": 2,
    "total_timesteps": 96,
}
_SMALL_TOWERS = {"actor_hidden_sizes": (8,), "critic_hidden_sizes": (8,)}
FIELDS: dict[str, dict[str, Any]] = {
    "q_learning": {"env": "mdp/cliff_walking", "num_steps": 8, "total_timesteps": 48},
    "dyna_q": {"env": "mdp/cliff_walking", "num_steps": 8, "total_timesteps": 48},
    "sarsa": {"env": "mdp/cliff_walking", "num_steps": 8, "total_timesteps": 48},
    "td": {"env": "mdp/random_walk", "num_steps": 8, "total_timesteps": 48},
    "linear_q": {"num_steps": 8, "total_timesteps": 48, "num_tilings": 2, "num_tiles": 4},
    "value_iteration": {"env": "mdp/frozen_lake_4x4", "max_sweeps": 6},
    "pqn": {**_PARALLEL, "hidden_sizes": (8,)},
    "reinforce": {
        "num_envs": 2,
        "num_steps": 8,
        "episodes": "bootstrap",
        "critic_steps": 1,
        "total_timesteps": 96,
        **_SMALL_TOWERS,
    },
    "actor_critic": {"num_envs": 2, "num_steps": 8, "total_timesteps": 96, **_SMALL_TOWERS},
    "a2c": {"num_envs": 2, "num_steps": 8, "n_step": 4, "total_timesteps": 96, **_SMALL_TOWERS},
    "trpo": {**_PARALLEL, **_SMALL_TOWERS},
    "ppo": {**_PARALLEL, **_SMALL_TOWERS},
    "dqn": {
        "num_envs": 2,
        "num_steps": 2,
        "iterations_per_update": 4,
        "buffer_size": 64,
        "learning_starts": 16,
        "batch_size": 4,
        "hidden_sizes": (8,),
        "total_timesteps": 112,
        "target_update_period": 3,
    },
}
_REPLAY = {
    "num_envs": 2,
    "num_steps": 2,
    "iterations_per_update": 4,
    "gradient_steps": 2,
    "buffer_size": 64,
    "learning_starts": 16,
    "batch_size": 4,
    "total_timesteps": 112,
    **_SMALL_TOWERS,
}
FIELDS |= {name: _REPLAY for name in ("ddpg", "td3", "sac", "discrete_sac")}
_POPULATION = {
    "actor_hidden_sizes": (8,),
    "population": 4,
    "num_episodes": 2,
    "num_steps": 500,
    "total_timesteps": 16_000,
}
FIELDS |= {"cem": {**_POPULATION, "elite_fraction": 0.5}, "es": _POPULATION}
FIELDS["pets"] = {
    "num_steps": 6,
    "horizon": 3,
    "learning_starts": 8,
    "gradient_steps": 2,
    "batch_size": 4,
    "buffer_size": 64,
    "num_members": 2,
    "hidden_sizes": (8,),
    "population": 8,
    "elite_fraction": 0.25,
    "planning_iterations": 2,
    "total_timesteps": 32,
}
FIELDS["mbpo"] = {
    "num_steps": 6,
    "learning_starts": 8,
    "gradient_steps": 2,
    "batch_size": 4,
    "buffer_size": 64,
    "num_members": 2,
    "hidden_sizes": (8,),
    "num_rollouts": 6,
    "rollout_length": 2,
    "imagined_size": 24,
    "real_fraction": 0.5,
    "policy_steps": 2,
    "total_timesteps": 32,
    **_SMALL_TOWERS,
}
# Another value of a static field, where a rule cannot guess one; and the switch under which a field is read at all.
_CONTINUOUS = {"env": "MountainCarContinuous-v0"}
OTHERS = {
    **dict.fromkeys(("ddpg", "td3", "sac"), _CONTINUOUS),
    "cem": {"elite_fraction": 0.75},
    "pets": {**_CONTINUOUS, "elite_fraction": 0.5},
    "mbpo": {**_CONTINUOUS, "real_fraction": 0.25},
    "linear_q": {"obs_low": (-2.0, -0.1), "obs_high": (1.0, 0.1)},
}
_LONG = {"num_steps": 500, "total_timesteps": 4000}  # as long as an episode may last
READ_UNDER = {
    **{name: {"learn_reward": {"env": "control/cartpole_swingup"}} for name in ("pets", "mbpo")},
    "linear_q": {"fourier_order": {"features": "fourier"}},
    "reinforce": {"reward_to_go": {"episodes": "complete", **_LONG}, "episodes": _LONG},
    "dyna_q": {"kappa": {"planning": "bonus"}, "threshold": {"planning": "prioritized"}},
    "ppo": {"kl_coef": {"surrogate": "kl"}},
}
SEEDS = (0, 1, 2)  # not a multiple of the two devices, so that the runner has to pad


def config(algorithm: ModuleType, **fields: Any) -> Any:
    return algorithm.Config(**{**FIELDS[algorithm.__name__.split(".")[-1]], **fields})


def run(algorithm: ModuleType, config: Any, seeds: Any = SEEDS, **options: Any) -> runner.Run:
    """Two seeds of three at once on each device; silent."""
    return runner.train(
        algorithm, config, seeds=seeds, seeds_at_once=2, progress=False, **{"say": lambda line: None, **options}
    )


def arrays(tree: Any) -> list[np.ndarray]:
    """Leaves as numpy arrays, PRNG keys as their data."""
    is_key = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(tree)]
    return [
        np.asarray(jax.random.key_data(x) if key else x) for x, key in zip(jax.tree.leaves(tree), is_key, strict=True)
    ]


def tensorboard_events(folder: Path) -> list[Any]:
    """The events in the one file that a TensorBoard logger writes."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    data, events = file.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def assert_same_bits(left: Any, right: Any) -> None:
    for x, y in zip(arrays(left), arrays(right), strict=True):
        np.testing.assert_array_equal(x, y)
