"""SBX, Stable-Baselines3's algorithms in JAX, in its own virtual environment, where purerl is not installed."""

import flax.linen as nn
import jax
from sbx import SAC
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.speed import cases
from benchmarks.speed.sides import Side, serve


class SBX(Side):
    """Answers requests about SBX; one process does one case."""

    def build(self, case: str, quick: bool) -> dict[str, float]:
        """Prepares SAC on Pendulum. It compiles in the first training.

        One agent goes on learning, since each new one would compile anew. `learn` counts its steps from 0, so that each
        training begins with as many without learning.
        """
        work, settings = cases.WORK[case], cases.OFF_POLICY
        arguments = {name: settings[name] for name in ("buffer_size", "batch_size", "learning_rate", "gamma")}
        arguments |= {"learning_starts": cases.OFF_POLICY_PREFILL, "tau": cases.TAU, "train_freq": 1}
        arguments |= {"gradient_steps": 1, "ent_coef": "auto", "target_entropy": -1.0, "seed": 0}
        network = {"net_arch": [work.hidden_size, work.hidden_size], "activation_fn": nn.relu}
        envs, env_steps = make_vec_env("Pendulum-v1", settings["num_envs"]), work.steps(quick)
        agent = SAC("MlpPolicy", envs, policy_kwargs=network, **arguments)

        def train(seed: int) -> None:
            agent.learn(env_steps)
            jax.block_until_ready(agent.policy.actor_state.params)

        self.train = train
        return {}


if __name__ == "__main__":
    serve(SBX())
