"""mbrl-lib, in its own virtual environment, where there is no JAX."""

import gymnasium
import numpy as np
import torch
from mbrl import models, planning
from mbrl.util import common
from omegaconf import OmegaConf

from benchmarks.speed import cases
from benchmarks.speed.sides import Side, serve


class MBRL(Side):
    """Answers requests about mbrl-lib; one process does one case."""

    def build(self, case: str, quick: bool) -> dict[str, float]:
        """Prepares PETS on Pendulum; there is nothing to trace or compile."""
        env_steps = cases.WORK[case].steps(quick)
        self.train = lambda seed: pets(seed, env_steps)
        return {}

    def threads(self) -> int:
        """Threads that PyTorch computes with."""
        return torch.get_num_threads()


def pets(seed: int, env_steps: int) -> float:
    """One training; the sum of its rewards."""
    settings, env = cases.PETS, gymnasium.make("Pendulum-v1")
    torch.manual_seed(seed)
    network = models.GaussianMLP(
        4,  # three observed numbers and a torque
        4,  # three changes and a reward
        "cpu",
        num_layers=len(settings["hidden_sizes"]),
        ensemble_size=settings["num_members"],
        hid_size=settings["hidden_sizes"][0],
        propagation_method="fixed_model",
        activation_fn_cfg=OmegaConf.create({"_target_": "torch.nn.SiLU"}),
    )
    model = models.OneDTransitionRewardModel(network, target_is_delta=True, normalize=True, learned_rewards=True)
    never = lambda action, obs: torch.zeros(len(obs), 1, dtype=torch.bool)  # noqa: E731
    imagined = models.ModelEnv(env, model, never, None, generator=torch.Generator().manual_seed(seed))
    search = {
        "_target_": "mbrl.planning.CEMOptimizer",
        "num_iterations": settings["planning_iterations"],
        "population_size": settings["population"],
        "elite_ratio": settings["elite_fraction"],
        "alpha": settings["momentum"],
        "device": "cpu",
        "lower_bound": 0,
        "upper_bound": 0,
        "return_mean_elites": True,
    }
    agent = planning.TrajectoryOptimizerAgent(
        OmegaConf.create(search), [-2.0], [2.0], planning_horizon=settings["horizon"], replan_freq=1
    )
    agent.set_trajectory_eval_fn(
        lambda obs, actions: imagined.evaluate_action_sequences(
            actions, initial_state=obs, num_particles=settings["num_members"]
        )
    )
    trainer = models.ModelTrainer(
        model, optim_lr=settings["learning_rate"], weight_decay=settings["weight_decay"], logger=None
    )
    config = OmegaConf.create({"overrides": {"num_steps": env_steps, "trial_length": 200}})
    shapes = env.observation_space.shape, env.action_space.shape
    memory = common.create_replay_buffer(config, *shapes, rng=np.random.default_rng(seed))
    env.action_space.seed(seed)
    (obs, _), total = env.reset(seed=seed), 0.0
    for step in range(env_steps):
        planned = step - settings["learning_starts"]
        if planned >= 0 and planned % settings["num_steps"] == 0:
            batches, _ = common.get_basic_buffer_iterators(
                memory, settings["batch_size"], 0.0, settings["num_members"], shuffle_each_epoch=True
            )
            trainer.train(batches, num_epochs=max(1, round(settings["gradient_steps"] / len(batches))), silent=True)
        action = agent.act(obs) if planned >= 0 else env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        memory.add(obs, action, following, reward, terminated, truncated)
        obs, total = following, total + float(reward)
        if terminated or truncated:
            (obs, _) = env.reset()
            agent.reset()
    return total


if __name__ == "__main__":
    serve(MBRL())
