"""The rejax side of benchmarks.speed; it runs in rejax's own virtual environment, where purerl is not installed."""

from typing import Any

import jax
import rejax

from benchmarks.speed import DQN, DQN_PREFILL, DQN_TARGET_PERIOD, PPO, WORK, Side, Work, compile_timed, serve


class Rejax(Side):
    """Answers requests about rejax; one process does one case."""

    def build(self, case: str, quick: bool) -> dict[str, float]:
        """Prepares a case of WORK; seconds of tracing and of compiling."""
        work = WORK[case]
        algorithm = make_algorithm(work, work.steps(quick))
        # A closure, as in rejax's manual: its settings become constants of the program.
        train = jax.jit(algorithm.train if work.seeds == 1 else jax.vmap(algorithm.train))

        def keys(seed: int) -> Any:
            key = jax.random.PRNGKey(seed)
            return key if work.seeds == 1 else jax.random.split(key, work.seeds)

        compiled, seconds = compile_timed(train, keys(0))
        self.train = lambda seed: jax.block_until_ready(compiled(keys(seed)))
        return seconds


def make_algorithm(work: Work, env_steps: int) -> Any:
    """The work in rejax's terms, without evaluation."""
    common = {"env": "CartPole-v1", "total_timesteps": env_steps}
    common |= {"eval_freq": env_steps, "skip_initial_evaluation": True}
    if work.algorithm == "ppo":
        network = {"hidden_layer_sizes": (64, 64), "activation": "tanh"}
        algorithm = rejax.PPO.create(**common, **PPO, agent_kwargs=network)
    else:
        loop = {"num_epochs": 1, "fill_buffer": DQN_PREFILL, "target_update_freq": DQN_TARGET_PERIOD, "ddqn": True}
        # rejax's DQN always has two hidden layers of 64.
        algorithm = rejax.DQN.create(**common, **DQN, **loop, agent_kwargs={"activation": "relu"})
    return algorithm.replace(eval_callback=lambda *_: ())


if __name__ == "__main__":
    serve(Rejax())
