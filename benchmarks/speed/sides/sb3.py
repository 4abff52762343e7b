"""Stable-Baselines3, in its own virtual environment, where there is no JAX. One argument: the class of its VecEnv."""

import sys

import torch
from stable_baselines3 import A2C, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from benchmarks.speed import cases
from benchmarks.speed.sides import Side, serve

# Forked processes share what is imported; others would each import PyTorch, 64 times on the few cores.
VEC_ENVS = {"DummyVecEnv": (DummyVecEnv, {}), "SubprocVecEnv": (SubprocVecEnv, {"start_method": "fork"})}


class StableBaselines3(Side):
    """Answers requests about Stable-Baselines3; one process does one case."""

    def __init__(self, vec_env: str):
        self.vec_env, self.vec_env_arguments = VEC_ENVS[vec_env]

    def build(self, case: str, quick: bool) -> dict[str, float]:
        """Prepares A2C or SAC on envs that are made once; there is nothing to trace or compile."""
        work = cases.WORK[case]
        prepare = {"a2c": self.build_a2c, "sac": self.build_sac}[work.algorithm]
        prepare(work, work.steps(quick))
        return {}

    def build_a2c(self, work: cases.Work, env_steps: int) -> None:
        """A2C on CartPole."""
        settings = cases.A2C
        envs = make_vec_env(
            "CartPole-v1", settings["num_envs"], vec_env_cls=self.vec_env, vec_env_kwargs=self.vec_env_arguments
        )
        arguments = {name: settings[name] for name in ("learning_rate", "gamma", "gae_lambda", "ent_coef")}
        # Its critic's loss lacks the factor of one half.
        arguments |= {"n_steps": settings["num_steps"], "vf_coef": settings["vf_coef"] / 2, "use_rms_prop": False}
        arguments |= {"max_grad_norm": settings["max_grad_norm"], "device": "cpu"}
        towers = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh}
        self.train = lambda seed: A2C("MlpPolicy", envs, seed=seed, policy_kwargs=towers, **arguments).learn(env_steps)

    def build_sac(self, work: cases.Work, env_steps: int) -> None:
        """SAC on Pendulum."""
        settings = cases.OFF_POLICY
        envs = make_vec_env("Pendulum-v1", settings["num_envs"], vec_env_cls=self.vec_env)
        arguments = {name: settings[name] for name in ("buffer_size", "batch_size", "learning_rate", "gamma")}
        arguments |= {"learning_starts": cases.OFF_POLICY_PREFILL, "tau": cases.TAU, "train_freq": 1}
        arguments |= {"gradient_steps": 1, "ent_coef": "auto", "target_entropy": -1.0, "device": "cpu"}
        network = {"net_arch": [work.hidden_size, work.hidden_size], "activation_fn": torch.nn.ReLU}
        self.train = lambda seed: SAC("MlpPolicy", envs, seed=seed, policy_kwargs=network, **arguments).learn(env_steps)

    def threads(self) -> int:
        """Threads that PyTorch computes with."""
        return torch.get_num_threads()


if __name__ == "__main__":
    serve(StableBaselines3(sys.argv[1]))
