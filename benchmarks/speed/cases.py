"""What is measured: the trainings that the libraries share, and what each needs to be installed. Data alone."""

import dataclasses
from typing import Any, NamedTuple


class Library(NamedTuple):
    """A library to compare with, installed by pip into a virtual environment of its own.

    requirements: what pip is asked for. shared: packages that it gets in purerl's versions, so that none of a ratio is
    due to them. shown: packages whose versions the report gives. cases: those that need it. afterwards: what pip is
    asked for at last, in newer versions than the library allows, since those do not run on this Python.
    """

    requirements: tuple[str, ...]
    shared: tuple[str, ...]
    shown: tuple[str, ...]
    cases: tuple[str, ...]
    afterwards: tuple[str, ...] = ()


LIBRARIES = {
    "rejax": Library(
        ("rejax==0.1.3", "gymnax<1"),
        ("jax", "jaxlib"),
        ("rejax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy"),
        ("ppo-1", "ppo-16", "dqn-1", "profile", "import", "sac-1", "td3-1"),
    ),
    "sb3": Library(
        ("stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium==1.4.0"),
        (),
        ("stable-baselines3", "torch", "gymnasium", "numpy"),
        ("a2c", "sac-256"),
    ),
    "sbx": Library(
        ("sbx-rl==0.28.0", "stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium==1.4.0"),
        ("jax", "jaxlib"),
        ("sbx-rl", "stable-baselines3", "jax", "jaxlib", "flax", "optax", "torch", "gymnasium", "numpy"),
        ("sac-256",),
    ),
    "mbrl": Library(
        ("mbrl==0.2.0", "torch==2.13.0", "numpy<2"),
        (),
        ("mbrl", "torch", "gymnasium", "numpy", "hydra-core"),
        ("pets",),
        afterwards=("hydra-core==1.3.2",),
    ),
    "zoo": Library(
        ("rl-zoo3==2.9.2", "stable-baselines3==2.9.2", "torch==2.13.0", "gymnasium==1.4.0"),
        ("optuna",),
        ("rl-zoo3", "optuna", "stable-baselines3", "torch", "gymnasium", "numpy"),
        ("tune",),
    ),
}

# Settings that purerl and rejax know by the same names.
PPO = {"num_envs": 4, "num_steps": 128, "num_epochs": 4, "num_minibatches": 4, "learning_rate": 2.5e-4, "gamma": 0.99}
PPO |= {"gae_lambda": 0.95, "clip_eps": 0.2, "vf_coef": 0.5, "ent_coef": 0.01, "max_grad_norm": 0.5}
DQN = {"num_envs": 1, "buffer_size": 10_000, "batch_size": 128, "learning_rate": 2.5e-4, "gamma": 0.99}
DQN |= {"exploration_fraction": 0.1, "max_grad_norm": 10.0}
DQN_PREFILL = 1000
DQN_TARGET_PERIOD = 500
DQN_UPDATE = 500  # gradient steps, and env steps, of one purerl `update`

# Settings of A2C by purerl's names, and those of PPO on the same data from the same envs.
A2C: dict[str, Any] = {"num_envs": 64, "num_steps": 8, "n_step": 8, "optimizer": "adam", "anneal_learning_rate": False}
A2C |= {"learning_rate": 1e-3, "gamma": 0.99, "gae_lambda": 1.0, "vf_coef": 0.5, "ent_coef": 0.01, "max_grad_norm": 0.5}
LIKE_A2C = {"num_envs": 64, "num_steps": 8, "num_epochs": 4, "num_minibatches": 4, "anneal_learning_rate": False}
# Settings that PPO and TRPO know by the same names: equal data, and equally many steps of the critic.
TRPO = {"num_envs": 4, "num_steps": 128, "num_epochs": 4, "num_minibatches": 4}

# Settings of SAC and TD3. One learning rate is for all that they train, and the memory holds every step.
OFF_POLICY: dict[str, Any] = {"num_envs": 1, "buffer_size": 10_000, "batch_size": 256, "learning_rate": 1e-3}
OFF_POLICY |= {"gamma": 0.99}
OFF_POLICY_PREFILL = 1000
OFF_POLICY_UPDATE = 500  # gradient steps, and env steps, of one purerl `update`
TAU = 0.005
# By purerl's names and on its scale, on which actions go from -1 to 1.
TD3_NOISE = {"exploration_noise": 0.1, "target_noise": 0.2, "noise_clip": 0.5}
POLICY_DELAY = 2

# Settings of PETS by purerl's names: an ensemble of 5 networks of 64-64, one trajectory each.
PETS: dict[str, Any] = {"learning_starts": 200, "num_steps": 50, "gradient_steps": 200, "batch_size": 128}
PETS |= {"num_members": 5, "hidden_sizes": (64, 64), "activation": "silu", "horizon": 30, "population": 64}
PETS |= {"elite_fraction": 0.2, "planning_iterations": 3, "momentum": 0.1, "learning_rate": 1e-3, "weight_decay": 1e-5}

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

SAME_A2C = """\
A2C: CartPole-v1, 64 envs x 8 steps, 8-step advantages, one step of Adam on each batch, two 64-64 tanh towers, constant
learning rate, gradients clipped by their global norm, bootstrap from the observation at a time limit; PPO on the same
64 envs x 8 steps with 4 epochs x 4 minibatches. Stable-Baselines3 is started with DummyVecEnv and with SubprocVecEnv
(64 processes, forked), each with PyTorch's threads as they come and with one (OMP_NUM_THREADS=1); the fastest of the
four counts. Its envs come from `make_vec_env`, and both libraries keep the episodes' returns. What is timed is a
training from its seed to its end, in purerl without compiling."""

SAME_TRPO = """\
TRPO and PPO: CartPole-v1, 4 envs x 128 steps, 4 epochs x 4 minibatches (TRPO's are its critic's), two 64-64 tanh
towers, all else by default. What is timed is a training from its seed to its end, divided by its updates."""

ONE_AND_TWO = """\
One and two cores: the same 16 seeds of each algorithm with its default settings on CartPole-v1 through
`runner.train` after `use_all_cores()`, once in a process that may run on one core, which gives it one device, and once
in one that may run on two. Compiling and the initial states are left out."""

BY_DEFAULT = """\
Compile time: `jax.jit(train).lower(key, config)` and `.compile()` of each algorithm with its default settings on
CartPole-v1, each time in a fresh process after `use_all_cores()`, without a compilation cache."""

SAME_OFF_POLICY = """\
SAC and TD3: Pendulum-v1, 1 env, batch 256, one gradient step after each env step, 64-64 relu in the actor and in both
critics, float32, Adam at 1e-3, gamma .99, tau .005, memory 1e4, which holds every step, the first 1000 without
learning. SAC learns its temperature from 1 and moves its targets at every gradient step. TD3 moves actor and targets at
every second one, with noise of .1 on actions and of .2, clipped at .5, on the target's, on a scale from -1 to 1.
Neither side evaluates. What differs is part of each library. rejax draws a batch without replacement, for which it
draws a number for each place of the memory and picks the largest; its TD3 climbs the mean of both critics where the
paper and purerl climb the first; its SAC acts by its policy while the memory fills and moves its targets there as well;
its SAC has two heads for the mean and the deviation of an action; a time limit counts as termination; it returns no
metrics. purerl keeps the true next observation and tells termination from truncation, starts layers orthogonal and
returns losses, norms of gradients and returns of episodes."""

SAME_SAC_256 = """\
SAC with 256-256 relu in the actor and in both critics; Pendulum-v1, 1 env, batch 256, one gradient step after each env
step, float32, Adam at 1e-3, gamma .99, tau .005 at every gradient step, memory 1e4, a temperature learned from 1 with a
target entropy of -1, the first 1000 steps without learning. Stable-Baselines3 and SBX step gymnasium's Pendulum-v1 in a
DummyVecEnv with a Monitor, purerl gymnax's. Stable-Baselines3 computes on the CPU with PyTorch's threads as they come
and with one (OMP_NUM_THREADS=1); SBX with its XLA as it comes and with the devices and flags of `use_all_cores()`; of
each library the faster start counts. What differs is part of each library: both step their env in Python and draw
batches by numpy; Stable-Baselines3 also derives the actor's loss for the critics' weights, which it does not use. What
is timed is a training from its seed to its end, in purerl without compiling. SBX compiles anew for each new agent; to
leave that out, one agent goes on learning, and begins each training with as many steps without learning."""

PARTS = """\
Parts of SAC's gradient step at 256-256 and batch 256: each is a jitted program of its own, run many times in a row in
one loop, in which the batch changes a little from turn to turn, so that nothing is computed once for all. A program by
itself may be cheaper or dearer than as part of the whole, so the parts need not add up. The products' operations are
counted from the sizes of the networks, all else as nothing. A peak is the most of the repetitions: of a chain of 256 x
256 products of which each takes the result of the one before, and of one large product; one CPU device each."""

HOPPER = """\
Replay of hopper: float32 observations of 11 and actions of 3 numbers in a memory of which every place is drawn from.
Alone, a step writes one transition over the oldest and draws a batch of 256: 1e4 transitions, 1 MB, may stay in a
cache, while with 1e6 most of the 256 come from main memory. In training SAC does the same at each env step, which also
takes a step of Brax and a gradient step with the settings of the case sac-1."""

OFF_POLICY_CORES = """\
One and two cores: as the case of the policy gradients, with SAC's and TD3's default settings on Pendulum-v1."""

WHOLE_EPISODES = """\
CEM: a generation of 256 linear policies on CartPole-v1, after 20 generations, when nearly all of them balance for the
whole 500 steps; one seed on each of the two CPU devices. Steps are those of episodes that still run. The env alone:
256 copies on each device take as many steps with one fixed action, with no policy, no account and no reset."""

# A search for settings of PPO; Stable-Baselines3's names where they are others.
TUNE = {"trials": 64, "eval_episodes": 32}
SB3_NAMES = {"clip_eps": "clip_range"}

SAME_SEARCH = """\
tune: 64 trials of PPO on CartPole-v1 with 99,840 env steps and one seed each, 4 envs x 128 steps, 4 epochs x 4
minibatches, two 64-64 tanh towers, constant learning rate, the critic not clipped, each scored by 32 greedy episodes at
its end, none stopped before it. Optuna proposes learning rate, gamma, lambda, the clip's range, the weights of entropy
and critic and the limit of the gradient's norm, from purerl's own ranges. purerl is timed over the whole search in a
fresh process with both cores, compiling, Optuna and its file included. RL Zoo gets the first of these proposals, two in
each repetition, one to a process and both at once, with one thread of PyTorch each; its time is that of Optuna's
`optimize` around its own objective, importing apart, and 64 trials are taken to last 32 times the mean of the two. So
of its search ten trials are measured, and the rest is scaled. Both count steps of the training alone."""

SAME_PETS = """\
PETS: Pendulum-v1, 200 random steps and then planned ones; before every 50th of these 200 gradient steps of Adam at 1e-3
on batches of 128. Five networks of 64-64 silu give mean and variance of the change of the observation and of the
reward. The plan: 30 steps, 64 sequences, 3 iterations, 13 elites, momentum .1, one trajectory for each network. What
differs is part of each library: in mbrl-lib each network draws batches of its own, in whole epochs over the data, of
which it is given as many as come nearest to 200 steps; it rolls its trajectories out with a network each, which it
draws for all of a batch alike; it steps gymnasium's Pendulum and plans in PyTorch. purerl also measures its model and
its plans. What is timed is a training from its seed to its end, in purerl without compiling; mbrl-lib with PyTorch's
threads as they come and with one, of which the faster counts. The versions of hydra and omegaconf that it asks for do
not run on this Python; it got newer ones, which the parts used here do not notice."""

PETS_PARTS = """\
Parts of PETS with the same settings: all plans of an update, its gradient steps, its env steps with a fixed action;
each is a jitted program of its own, run in a loop. Operations are those of the networks' matrix products alone."""

# What counts as the same work, and the cases that it is said of.
TERMS = {
    SAME_WORK: ("ppo-1", "ppo-16", "dqn-1", "profile"),
    SAME_OFF_POLICY: ("sac-1", "td3-1"),
    STARTS: ("ppo-1", "ppo-16", "dqn-1", "profile", "sac-1", "td3-1"),
    SAME_A2C: ("a2c",),
    SAME_TRPO: ("trpo",),
    ONE_AND_TWO: ("two-cores",),
    BY_DEFAULT: ("compile",),
    SAME_SAC_256: ("sac-256",),
    PARTS: ("sac-parts",),
    HOPPER: ("hopper-replay",),
    OFF_POLICY_CORES: ("off-policy-cores",),
    WHOLE_EPISODES: ("cem",),
    SAME_PETS: ("pets",),
    SAME_SEARCH: ("tune",),
    PETS_PARTS: ("pets-parts",),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """One training that the libraries share.

    env_steps: of one seed. quick_env_steps: the same for --quick. target, aim: purerl's speed over rejax's as it comes.
    equal_target: the same at equal devices and flags; None where there is none. compile_target: the most times rejax's
    seconds of tracing and compiling, at equal devices and flags. hidden_size: of each hidden layer.
    nproc: the NPROC of rejax's second start. seeds_at_once: seeds that purerl's runner vmaps on each device.
    """

    algorithm: str
    seeds: int
    env_steps: int
    quick_env_steps: int
    target: float = 1.0
    aim: float = 1.0
    equal_target: float | None = None
    compile_target: float | None = None
    hidden_size: int = 64
    nproc: int = 2
    seeds_at_once: int = 1

    def steps(self, quick: bool) -> int:
        """Env steps of one seed."""
        return self.quick_env_steps if quick else self.env_steps


PPO_UPDATE = A2C_UPDATE = 512  # env steps
TRAININGS = {
    "ppo-1": Work("ppo", 1, 392 * PPO_UPDATE, 4 * PPO_UPDATE, target=1.0, aim=1.3, equal_target=1.3),
    "ppo-16": Work("ppo", 16, 196 * PPO_UPDATE, 4 * PPO_UPDATE, target=2.0, aim=2.0, nproc=16, seeds_at_once=8),
    "dqn-1": Work("dqn", 1, 20_000, 2_000, target=1.4, aim=1.4, equal_target=1.4),
    "sac-1": Work("sac", 1, 10_000, 1_500, target=1.3, aim=1.3, equal_target=1.3, compile_target=1.3),
    "td3-1": Work("td3", 1, 10_000, 1_500, target=1.3, aim=1.3, equal_target=1.3, compile_target=1.3),
}

# The profile tells the loop over updates from the others by its turns, so no other loop may have as many.
PROFILE_UPDATES = 11
WORK = TRAININGS | {
    "profile": Work("ppo", 1, PROFILE_UPDATES * PPO_UPDATE, PROFILE_UPDATES * PPO_UPDATE),
    "a2c": Work("a2c", 1, 200 * A2C_UPDATE, 4 * A2C_UPDATE),
    "trpo": Work("trpo", 1, 196 * PPO_UPDATE, 4 * PPO_UPDATE),
    "sac-256": Work("sac", 1, 3_500, 1_500, hidden_size=256),
    "pets": Work("pets", 1, 700, 250),
    "tune": Work("ppo", 1, 195 * PPO_UPDATE, 4 * PPO_UPDATE),
}
