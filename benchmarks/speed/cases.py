"""What is measured: the trainings that the libraries share, and what each needs to be installed. Data alone."""

import dataclasses

# What pip installs into a library's own virtual environment, beside the JAX that purerl runs on.
LIBRARIES = {"rejax": ("rejax==0.1.3", "gymnax<1")}

# Settings that both libraries know by the same names.
PPO = {"num_envs": 4, "num_steps": 128, "num_epochs": 4, "num_minibatches": 4, "learning_rate": 2.5e-4, "gamma": 0.99}
PPO |= {"gae_lambda": 0.95, "clip_eps": 0.2, "vf_coef": 0.5, "ent_coef": 0.01, "max_grad_norm": 0.5}
DQN = {"num_envs": 1, "buffer_size": 10_000, "batch_size": 128, "learning_rate": 2.5e-4, "gamma": 0.99}
DQN |= {"exploration_fraction": 0.1, "max_grad_norm": 10.0}
DQN_PREFILL = 1000
DQN_TARGET_PERIOD = 500
DQN_UPDATE = 500  # gradient steps, and env steps, of one purerl `update`

SAME_WORK = """\
PPO: CartPole-v1, 4 envs x 128 steps, 4 epochs x 4 minibatches, two 64-64 tanh towers, constant learning rate, clipped
value loss. DQN: CartPole-v1, 1 env, batch 128, one gradient step after each env step, double Q, 64-64 relu, buffer
1e4, the first 1000 steps without learning, target copied every 500 steps. Neither side evaluates during training.
What differs is part of each library: purerl clips gradients by their global norm, bootstraps from the observation at a
time limit, starts layers orthogonal and returns metrics of every update; rejax clips gradients entry by entry and
returns no metrics. rejax runs as its manual says, `jax.jit(algo.train)`, and with many seeds `jax.vmap`; purerl runs
one seed as `train` and many as `runner.train`, after `use_all_cores()`, which sets two flags of XLA and makes a device
of each core. Both run on the CPU."""

STARTS = """\
The starts of rejax: "rejax" as it comes; "rejax NPROC=n" with that environment variable, the size of XLA's thread pool;
"rejax, equal" with the XLA_FLAGS and the number of CPU devices that `use_all_cores()` gives purerl, many seeds spread
over the devices by `jax.shard_map` around the `jax.vmap`, which is the user's own work. The ratio "as it comes" is
against the faster of the first two, the ratio "equal devices and flags" against the last. purerl has one start: after
`use_all_cores()`, which its command line calls by itself."""


@dataclasses.dataclass(frozen=True)
class Work:
    """One training that the libraries share.

    env_steps: of one seed. quick_env_steps: the same for --quick. target, aim: purerl's speed over rejax's as it comes.
    equal_target: the same at equal devices and flags; None where there is none.
    nproc: the NPROC of rejax's second start. seeds_at_once: seeds that purerl's runner vmaps on each device.
    """

    algorithm: str
    seeds: int
    env_steps: int
    quick_env_steps: int
    target: float = 1.0
    aim: float = 1.0
    equal_target: float | None = None
    nproc: int = 2
    seeds_at_once: int = 1

    def steps(self, quick: bool) -> int:
        """Env steps of one seed."""
        return self.quick_env_steps if quick else self.env_steps


PPO_UPDATE = 512  # env steps
TRAININGS = {
    "ppo-1": Work("ppo", 1, 392 * PPO_UPDATE, 4 * PPO_UPDATE, target=1.0, aim=1.3, equal_target=1.3),
    "ppo-16": Work("ppo", 16, 196 * PPO_UPDATE, 4 * PPO_UPDATE, target=2.0, aim=2.0, nproc=16, seeds_at_once=8),
    "dqn-1": Work("dqn", 1, 20_000, 2_000, target=1.4, aim=1.4, equal_target=1.4),
}

# The profile tells the loop over updates from the others by its turns, so no other loop may have as many.
PROFILE_UPDATES = 11
WORK = TRAININGS | {"profile": Work("ppo", 1, PROFILE_UPDATES * PPO_UPDATE, PROFILE_UPDATES * PPO_UPDATE)}
