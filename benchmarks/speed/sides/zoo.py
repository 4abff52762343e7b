"""RL Zoo's search for settings of Stable-Baselines3, in its own virtual environment, where there is no JAX."""

import argparse
import json
import tempfile
import time
from pathlib import Path

import optuna
from rl_zoo3 import hyperparams_opt
from rl_zoo3.exp_manager import ExperimentManager

from benchmarks.speed import cases
from benchmarks.speed.sides import Side, serve


class Zoo(Side):
    """Answers requests about RL Zoo; one process does trials one after the other."""

    def build(self, case: str, quick: bool) -> dict[str, float]:
        """Prepares the search for settings of PPO on CartPole; there is nothing to trace or compile."""
        env_steps = cases.WORK[case].steps(quick)
        settings = {"n_envs": cases.PPO["num_envs"], "n_timesteps": env_steps, "policy": "MlpPolicy"}
        settings |= {"n_steps": cases.PPO["num_steps"], "n_epochs": cases.PPO["num_epochs"]}
        settings["batch_size"] = cases.PPO["num_envs"] * cases.PPO["num_steps"] // cases.PPO["num_minibatches"]
        folder = tempfile.mkdtemp()
        config = Path(folder) / "ppo.yml"
        config.write_text(json.dumps({"CartPole-v1": settings}))  # which is YAML too
        self.manager = ExperimentManager(
            argparse.Namespace(conf_file=None),
            "ppo",
            "CartPole-v1",
            folder,
            n_timesteps=env_steps,
            n_eval_episodes=cases.TUNE["eval_episodes"],
            optimize_hyperparameters=True,
            n_trials=1,
            n_evaluations=1,
            pruner="none",
            sampler="random",
            config=str(config),
            verbose=0,
            device="cpu",
        )
        self.manager.setup_experiment()
        return {}

    def trial(self, fields: dict[str, float]) -> dict[str, float]:
        """Seconds of one trial of the search, its evaluation included, with these values of purerl's fields."""
        proposed = {cases.SB3_NAMES.get(name, name): value for name, value in fields.items()}
        proposed["vf_coef"] /= 2  # its critic's loss lacks the factor of one half
        hyperparams_opt.HYPERPARAMS_SAMPLER["ppo"] = lambda *_: dict(proposed)
        study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
        started = time.perf_counter()
        study.optimize(self.manager.objective, n_trials=1)
        return {"seconds": time.perf_counter() - started, "score": study.best_value}


if __name__ == "__main__":
    serve(Zoo())
