"""rejax, in its own virtual environment, where purerl is not installed."""

from collections.abc import Callable
from typing import Any

import jax
import rejax

from benchmarks.speed import kernels
from benchmarks.speed.cases import (
    DQN,
    DQN_PREFILL,
    DQN_TARGET_PERIOD,
    OFF_POLICY,
    OFF_POLICY_PREFILL,
    POLICY_DELAY,
    PPO,
    PROFILE_UPDATES,
    TAU,
    TD3_NOISE,
    WORK,
    Work,
)
from benchmarks.speed.sides import Side, compile_timed, serve


class Rejax(Side):
    """Answers requests about rejax; one process does one case."""

    compiled: Any

    def build(self, case: str, quick: bool) -> dict[str, float]:
        """Prepares a case of WORK; seconds of tracing and of compiling."""
        work = WORK[case]
        algorithm = make_algorithm(work, work.steps(quick))
        # A closure, as in rejax's manual: its settings become constants of the program.
        train, keys = (algorithm.train, jax.random.PRNGKey) if work.seeds == 1 else over_seeds(algorithm, work.seeds)
        self.compiled, seconds = compile_timed(jax.jit(train), keys(0))
        self.train = lambda seed: jax.block_until_ready(self.compiled(keys(seed)))
        return seconds

    def profile(self) -> dict[str, Any]:
        """The kernels of one update of what was built."""
        return kernels.profile(lambda: self.train(0), self.compiled.as_text(), PROFILE_UPDATES)


def over_seeds(algorithm: Any, seeds: int) -> tuple[Callable[[Any], Any], Callable[[int], Any]]:
    """Training of many seeds, and their keys: vmapped, and where there are several devices also spread over them.

    Each device gets equally many seeds, so the last ones may be there only to fill up.
    """
    devices = len(jax.devices())
    padded = seeds + -seeds % devices
    many = jax.vmap(algorithm.train)
    if devices == 1:
        return many, lambda seed: jax.random.split(jax.random.PRNGKey(seed), padded)
    mesh = jax.make_mesh((devices,), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("seeds")
    # rejax's loops start from constants, which the check of varying axes refuses to carry along with varying values.
    sharded = jax.shard_map(many, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    place = jax.NamedSharding(mesh, spec)
    return sharded, lambda seed: jax.device_put(jax.random.split(jax.random.PRNGKey(seed), padded), place)


def make_algorithm(work: Work, env_steps: int) -> Any:
    """The work in rejax's terms, without evaluation."""
    common = {"total_timesteps": env_steps, "eval_freq": env_steps, "skip_initial_evaluation": True}
    make = {"ppo": make_ppo, "dqn": make_dqn, "sac": make_sac, "td3": make_td3}[work.algorithm]
    return make(work, common).replace(eval_callback=lambda *_: ())


def make_ppo(work: Work, common: dict[str, Any]) -> Any:
    """PPO on CartPole."""
    network = {"hidden_layer_sizes": (work.hidden_size, work.hidden_size), "activation": "tanh"}
    return rejax.PPO.create(env="CartPole-v1", **common, **PPO, agent_kwargs=network)


def make_dqn(work: Work, common: dict[str, Any]) -> Any:
    """DQN on CartPole; it always has two hidden layers of 64."""
    # The target becomes polyak * target + (1 - polyak) * network: a copy only at 0, and rejax's default is 0.99.
    target = {"target_update_freq": DQN_TARGET_PERIOD, "polyak": 0.0}
    loop = {"num_epochs": 1, "fill_buffer": DQN_PREFILL, "ddqn": True}
    network = {"activation": "relu"}
    return rejax.DQN.create(env="CartPole-v1", **common, **DQN, **loop, **target, agent_kwargs=network)


# One gradient step after each env step, and a running average of the networks, of which polyak is what stays.
GRADIENTS = {"num_epochs": 1, "fill_buffer": OFF_POLICY_PREFILL, "target_update_freq": 1, "polyak": 1 - TAU}


def make_sac(work: Work, common: dict[str, Any]) -> Any:
    """SAC on Pendulum; its temperature always starts at 1 and aims at an entropy of -1 for each dimension."""
    layers, network = (work.hidden_size, work.hidden_size), {"activation": "relu"}
    settings = {**common, **OFF_POLICY, **GRADIENTS}
    return rejax.SAC.create(env="Pendulum-v1", **settings, hidden_layer_sizes=layers, agent_kwargs=network)


def make_td3(work: Work, common: dict[str, Any]) -> Any:
    """TD3 on Pendulum; it always has two hidden layers of 64. Its noise is in units of the torque, from -2 to 2."""
    noise = {"exploration_noise": 2 * TD3_NOISE["exploration_noise"], "target_noise": 2 * TD3_NOISE["target_noise"]}
    noise |= {"target_noise_clip": 2 * TD3_NOISE["noise_clip"]}
    networks = {"actor_kwargs": {"activation": "relu"}, "critic_kwargs": {"activation": "relu"}}
    settings = {**common, **OFF_POLICY, **GRADIENTS, **noise, **networks}
    return rejax.TD3.create(env="Pendulum-v1", **settings, policy_delay=POLICY_DELAY)


if __name__ == "__main__":
    serve(Rejax())
