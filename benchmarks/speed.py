"""How fast purerl trains, against rejax 0.1.3 on the same work, and where its time and memory go.

    python -m benchmarks.speed                        every case; about a quarter of an hour on two idle cores
    python -m benchmarks.speed ppo-1 dqn-1            some of them
    python -m benchmarks.speed --quick --out DIR      a functional check in a few minutes: its numbers mean nothing

Cases:
    ppo-1, ppo-16, dqn-1   env steps per second, tracing, compiling, peak memory; purerl and rejax take turns
    import                 seconds until each library can be used, in a fresh process
    shares                 what part of an update is env, policy, gradient steps; their share of the matmul peak
    replay                 bytes per stored transition; DQN's speed with a full memory of 1e4 and of 1e6 transitions
    metrics                bytes of the metrics that `train` returns, for small and large updates
    tabular                env steps per second of 1,000 seeds of Q-learning on FrozenLake, and of the env alone
    planning               seconds of one sweep of value iteration over 100,000 states with 4 actions and 4 successors
    pqn                    PQN's env steps per second on CartPole and Breakout over DQN's, each with its tuned settings

The two libraries need different versions of gymnax, so each works in a process of its own, which reads requests and
writes answers as lines of JSON; only one of them works at a time. rejax's virtual environment is made on first use.
Writes speed.csv and speed.md, which hold this run's cases and no others.
"""

import argparse
import contextlib
import csv
import dataclasses
import datetime
import functools
import itertools
import json
import math
import os
import platform
import resource
import select
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Nothing but the standard library is imported here: rejax's process imports this module too, and a process starts with
# the peak memory of its parent on its account, so the parent must stay small.

ROOT = Path(__file__).resolve().parent.parent
REJAX = ("rejax==0.1.3", "gymnax<1")
LIMIT_SECONDS = 300.0  # for one request; the longest takes about 30 s on two busy cores
INSTALL_SECONDS = 1800.0
COMPILE_REPEATS = 3

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
one seed as `train` and many as `runner.train`, after `use_all_cores()`, which sets two flags of XLA. Both run on the
CPU."""


@dataclasses.dataclass(frozen=True)
class Work:
    """One training that both libraries do.

    env_steps: of one seed. quick_env_steps: the same for --quick. target, aim: purerl's speed over rejax's.
    nproc: rejax is started as it comes and also with this NPROC, the size of XLA's thread pool; the faster counts.
    seeds_at_once: seeds that the runner vmaps on each device.
    """

    algorithm: str
    seeds: int
    env_steps: int
    quick_env_steps: int
    target: float
    aim: float
    nproc: int
    seeds_at_once: int = 1

    def steps(self, quick: bool) -> int:
        """Env steps of one seed."""
        return self.quick_env_steps if quick else self.env_steps


WORK = {
    "ppo-1": Work("ppo", 1, 392 * 512, 4 * 512, target=1.0, aim=1.3, nproc=2),
    "ppo-16": Work("ppo", 16, 196 * 512, 4 * 512, target=2.0, aim=2.0, nproc=16, seeds_at_once=8),
    "dqn-1": Work("dqn", 1, 20_000, 2_000, target=1.4, aim=1.4, nproc=2),
}


# ---------------------------------------------------------------------------------------------------------------------
# Processes


class WorkerError(Exception):
    """A worker failed or ended; the message holds the end of what it wrote to stderr."""


class WorkerTimeout(WorkerError):
    """A worker did not answer in time and was killed."""


class Start(NamedTuple):
    """How a worker is started: interpreter, arguments, and variables on top of the clean environment."""

    name: str
    command: tuple[str, ...]
    variables: dict[str, str]


def purerl_start() -> Start:
    """purerl in the interpreter of this process."""
    return Start("purerl", (sys.executable, "-m", "benchmarks.speed", "--worker"), {})


def rejax_start(python: str, nproc: int | None = None) -> Start:
    """rejax in its own interpreter, as it comes or with NPROC set."""
    name = "rejax" if nproc is None else f"rejax NPROC={nproc}"
    variables = {} if nproc is None else {"NPROC": str(nproc)}
    return Start(name, (python, "-m", "benchmarks.rejax_worker"), variables)


def clean_environment() -> dict[str, str]:
    """This process's environment less all that would change what a worker measures, such as a compilation cache."""
    changing = ("JAX_", "XLA_", "NPROC", "OMP_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(changing)}
    return kept | {"JAX_PLATFORMS": "cpu"}


class Worker:
    """A process that answers requests one at a time; `with` ends it."""

    def __init__(self, start: Start, case: str):
        self.name = f"{case}: {start.name}"
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__; a pipe that none reads would fill up
        self.process = subprocess.Popen(
            start.command,
            cwd=ROOT,
            env=clean_environment() | start.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # an idle worker ends by itself here
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10 if kind is None else 0)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.stderr.close()

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer to one request. Raises WorkerError, or WorkerTimeout after LIMIT_SECONDS."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # a worker that is gone shows when its answer is read
            self.process.stdin.write((json.dumps({"do": do, **arguments}) + "\n").encode())
            self.process.stdin.flush()
        answer = json.loads(self.read_line(do))
        if "error" in answer:
            raise WorkerError(f"{self.name} failed in {do}: {answer['error']}\n{self.last_words()}")
        return answer["result"]

    def read_line(self, do: str) -> bytes:
        """One line from the worker's stdout."""
        assert self.process.stdout
        source, line, deadline = self.process.stdout.fileno(), b"", time.monotonic() + LIMIT_SECONDS
        while not line.endswith(b"\n"):
            if not select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.process.kill()
                raise WorkerTimeout(f"{self.name} did not finish {do} in {LIMIT_SECONDS:.0f} s and was killed.")
            if not (chunk := os.read(source, 65536)):
                raise WorkerError(f"{self.name} ended in {do}.\n{self.last_words()}")
            line += chunk
        return line

    def last_words(self) -> str:
        """The end of the worker's stderr."""
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")[-2000:]


def serve(side: "Side") -> None:
    """A worker's loop: for each line on stdin it calls the named method of `side` and writes the result as a line."""
    # Whatever else the libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(side, request.pop("do"))(**request)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": repr(error)}
        print(json.dumps(answer), file=answers, flush=True)


class Side:
    """What a worker does for either library: `build` (of the subclass) prepares a training, `run` times it.

    train: (seed) -> anything; it returns when the results are there.
    """

    train: Callable[[int], Any]

    def run(self, seed: int) -> float:
        """Seconds of one whole training, from the seed to the finished results."""
        started = time.perf_counter()
        self.train(seed)
        return time.perf_counter() - started

    def peak_memory(self) -> float:
        """The most memory that this process has held so far, in MiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compile_timed(function: Any, *arguments: Any) -> tuple[Any, dict[str, float]]:
    """The compiled program of a jitted function, and the seconds of tracing (with lowering) and of compiling."""
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return compiled, {"trace": traced - started, "compile": time.perf_counter() - traced}


# ---------------------------------------------------------------------------------------------------------------------
# The purerl side; its process alone imports JAX and purerl, inside the functions


class Purerl(Side):
    """Answers requests about purerl; one process does one case."""

    def build(self, case: str, quick: bool) -> dict[str, float]:
        """Prepares a case of WORK; seconds of tracing and compiling, or of both together."""
        work = WORK[case]
        return self.build_many(work, quick) if work.seeds > 1 else self.build_one(work, quick)

    def build_one(self, work: Work, quick: bool) -> dict[str, float]:
        """One seed: the algorithm's `train`."""
        import jax

        import purerl

        purerl.use_all_cores()
        config = make_config(work.algorithm, work.steps(quick))
        compiled, seconds = compile_timed(getattr(purerl, work.algorithm).train, jax.random.key(0), config)
        self.train = lambda seed: jax.block_until_ready(compiled(jax.random.key(seed), config))
        return seconds

    def build_many(self, work: Work, quick: bool) -> dict[str, float]:
        """Many seeds: the runner, which shards them over one CPU device for each core.

        What it spends on tracing and compiling is all of a first call but the run itself. One update shows it as well
        as many, since the loop length is an argument of the compiled program. Later calls with the same Config find
        the program again; they are timed whole, the host's work between chunks included.
        """
        import purerl
        from purerl import runner

        purerl.use_all_cores()
        algorithm = getattr(purerl, work.algorithm)
        config = make_config(work.algorithm, work.steps(quick))

        def train_all(seed: int, config: Any) -> Any:
            seeds = range(seed * work.seeds, (seed + 1) * work.seeds)
            return runner.train(
                algorithm, config, seeds=seeds, seeds_at_once=work.seeds_at_once, progress=False, say=lambda _: None
            )

        self.train = lambda seed: train_all(seed, config)
        started = time.perf_counter()
        first = train_all(0, make_config(work.algorithm, config.env_steps(1)))
        return {"trace and compile": time.perf_counter() - started - first.run_seconds}

    def build_full_replay(self, capacity: int, quick: bool) -> None:
        """DQN from a memory that is full at the start, so that a batch comes from all of it."""
        import jax

        from purerl import dqn

        num_updates = 2 if quick else 38
        config = make_config("dqn", capacity + num_updates * DQN_UPDATE, buffer_size=capacity, learning_starts=capacity)
        state = jax.block_until_ready(jax.jit(dqn.init)(jax.random.key(0), config))

        def updates(state: Any, config: Any) -> Any:
            return jax.lax.scan(lambda state, _: dqn.update(state, config), state, length=num_updates)

        compiled, _ = compile_timed(jax.jit(updates), state, config)
        self.train = lambda seed: jax.block_until_ready(compiled(state, config))

    def build_seeds(
        self, algorithm: str, env: str, seeds: int, env_steps: int, seeds_at_once: int, tuned: bool
    ) -> None:
        """Prepares `rate`: many seeds through the runner, with the tuned settings of the env or the defaults."""
        import purerl
        from purerl import runner

        purerl.use_all_cores()
        module = getattr(purerl, algorithm)
        config = purerl.tuned(algorithm, env) if tuned else module.Config(env=env)
        config = config.replace(total_timesteps=env_steps)

        def rate() -> float:
            run = runner.train(
                module, config, seeds=range(seeds), seeds_at_once=seeds_at_once, progress=False, say=lambda _: None
            )
            steps = config.env_steps(run.updates) - config.env_steps(0)
            return steps * seeds / run.run_seconds

        self.measured_rate = rate

    def build_env_alone(self, env: str, seeds: int, env_steps: int) -> None:
        """Prepares `rate`: steps of the env with uniform actions, seeds spread over the devices as the runner does."""
        import jax

        import purerl
        from purerl.core import envs
        from purerl.core.rollout import unroll

        purerl.use_all_cores()
        made, spec, num_steps = envs.make(env), jax.sharding.PartitionSpec("seeds"), 1000
        space = made.action_space(made.default_params)

        def act(key: Any, obs: Any) -> Any:
            return space.sample(key, obs.shape[0])

        def play(key: Any) -> Any:
            def chunk(state: Any, key: Any) -> Any:
                state, _, episodes = unroll(key, made, made.default_params, state, act, num_steps)
                return state, episodes

            start = envs.reset(key[None], made, made.default_params)
            return jax.lax.scan(chunk, start, jax.random.split(key, env_steps // num_steps))[1]

        mesh = jax.make_mesh((len(jax.devices()),), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,))
        many = jax.shard_map(jax.vmap(play), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        padded = seeds + -seeds % len(jax.devices())
        keys = jax.device_put(jax.random.split(jax.random.key(0), padded), jax.NamedSharding(mesh, spec))
        compiled, _ = compile_timed(jax.jit(many), keys)

        def rate() -> float:
            started = time.perf_counter()
            jax.block_until_ready(compiled(keys))
            return env_steps * padded / (time.perf_counter() - started)

        self.measured_rate = rate

    def rate(self) -> float:
        """Env steps per second of what was built, after its initial states are made; the first call also compiles."""
        return self.measured_rate()

    def build_sweep(self, num_states: int, num_actions: int, num_successors: int) -> None:
        """Prepares `run`: one sweep of value iteration over a random sparse model."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        import purerl
        from purerl import mdp, value_iteration

        purerl.use_all_cores()
        rng, shape = np.random.default_rng(0), (num_states, num_actions, num_successors)
        model = mdp.MDP(
            jnp.asarray(rng.integers(0, num_states, shape), jnp.int32),
            jnp.asarray(rng.dirichlet(np.ones(num_successors), shape[:2]), jnp.float32),
            jnp.asarray(rng.normal(size=shape), jnp.float32),
            jnp.zeros(num_states, bool),
            jnp.full(num_states, 1 / num_states),
        )
        config = value_iteration.Config(env=mdp.Tabular(model), env_params=model)
        value = jnp.zeros(num_states)
        compiled, _ = compile_timed(jax.jit(value_iteration.sweep), value, config)
        self.train = lambda seed: jax.block_until_ready(compiled(value + seed, config))

    def replay_bytes(self, capacity: int) -> float:
        """Bytes per transition of DQN's replay memory for CartPole, counters included; nothing is allocated."""
        import jax

        from purerl import dqn

        config = make_config("dqn", 2 * capacity, buffer_size=capacity)
        memory = jax.eval_shape(dqn.init, jax.random.key(0), config).replay
        return tree_bytes(memory) / capacity

    def metrics_bytes(self, num_envs: int, num_steps: int, num_updates: int) -> int:
        """Bytes of the metrics that PPO's `train` returns; nothing is run."""
        import jax

        from purerl import ppo

        config = make_config("ppo", num_updates * num_envs * num_steps, num_envs=num_envs, num_steps=num_steps)
        return tree_bytes(jax.eval_shape(ppo.train, jax.random.key(0), config).metrics)

    def build_parts(self, algorithm: str, quick: bool) -> dict[str, Any]:
        """Compiles a loop over each part of an update; the part names, and the FLOPs of one update's gradient steps."""
        import jax

        num_updates = {"ppo": (100, 2), "dqn": (5, 1)}[algorithm][quick]
        config = make_config(algorithm, 1_000_000)
        parts = {"ppo": ppo_parts, "dqn": dqn_parts}[algorithm](config)
        self.num_updates = num_updates
        self.parts = {name: compile_part(part, num_updates) for name, part in parts.items()}
        jax.block_until_ready([program() for program in self.parts.values()])  # first runs touch fresh memory
        return {"parts": list(parts), "flops": gradient_flops(algorithm, config)}

    def run_part(self, name: str) -> float:
        """Seconds of one part, per update."""
        import jax

        started = time.perf_counter()
        jax.block_until_ready(self.parts[name]())
        return (time.perf_counter() - started) / self.num_updates

    def matmul_peak(self) -> float:
        """The best FLOP/s of a large float32 matrix product on one CPU device, over three sizes."""
        return max(matmul_speed(size) for size in (1024, 2048, 4096))


def make_config(algorithm: str, env_steps: int, **changes: Any) -> Any:
    """purerl's Config of the work that both libraries do."""
    from purerl import dqn, ppo

    if algorithm == "ppo":
        like_rejax = {"anneal_learning_rate": False, "clip_value": True, "hidden_sizes": (64, 64), "activation": "tanh"}
        return ppo.Config(**{"env": "CartPole-v1", "total_timesteps": env_steps, **PPO, **like_rejax, **changes})
    loop = {"num_steps": 1, "gradient_steps": 1, "iterations_per_update": DQN_UPDATE, "learning_starts": DQN_PREFILL}
    target = {"double_q": True, "target_update_period": DQN_TARGET_PERIOD}
    like_rejax = {**loop, **target, "hidden_sizes": (64, 64), "activation": "relu"}
    return dqn.Config(**{"env": "CartPole-v1", "total_timesteps": env_steps, **DQN, **like_rejax, **changes})


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    import jax

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class Part(NamedTuple):
    """A piece of `update` to be timed by itself, many times in a row.

    step: (key, carry, fixed) -> (carry, output). carry: what one step hands to the next. fixed: what none changes.
    calls: steps of one update.
    """

    step: Callable[[Any, Any, Any], tuple[Any, Any]]
    carry: Any
    fixed: Any
    calls: int


def compile_part(part: Part, num_updates: int) -> Callable[[], Any]:
    """A compiled loop over `num_updates` times the part."""
    import jax
    import jax.numpy as jnp

    def loop(keys: Any, carry: Any, fixed: Any) -> Any:
        # The newest output travels in the carry: it is written in full each time, as in an update, and never kept.
        shapes = jax.eval_shape(part.step, keys[0], carry, fixed)[1]
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(lambda last, key: (part.step(key, last[0], fixed), None), (carry, blank), keys)[0]

    arguments = (jax.random.split(jax.random.key(1), num_updates * part.calls), part.carry, part.fixed)
    compiled, _ = compile_timed(jax.jit(loop), *arguments)
    return lambda: compiled(*arguments)


def unroll_step(num_steps: int, act: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """A Part's step: num_steps env steps with the actions act(key, obs, fixed); fixed begins with the Config."""
    from purerl.core import checks
    from purerl.core.rollout import unroll

    def step(key: Any, env_state: Any, fixed: Any) -> tuple[Any, Any]:
        env, env_params = checks.env(fixed[0]), checks.env_params(fixed[0])
        env_state, *output = unroll(key, env, env_params, env_state, lambda key, obs: act(key, obs, fixed), num_steps)
        return env_state, output

    return step


def ppo_parts(config: Any) -> dict[str, Part]:
    """PPO's update, its env steps with a fixed action, its env steps with its policy, its gradient steps."""
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    from purerl import ppo
    from purerl.core import optimize

    state = jax.jit(ppo.init)(jax.random.key(0), config)
    batch = jax.jit(ppo.collect)(jax.random.key(1), state, config)[1]
    flat_params, unravel = ravel_pytree(state.params)

    def act(key: Any, obs: Any, fixed: Any) -> Any:
        config, params = fixed
        return ppo.distribution(params, ppo.observe(obs, None, config), config).sample(key)

    def gradient_phase(key: Any, carry: Any, fixed: Any) -> tuple[Any, Any]:
        config, batch = fixed
        optimizer = optimize.adam(config.learning_rate, config.max_grad_norm)
        indices = optimize.shuffled_indices(key, batch.value.size, config.num_epochs, config.num_minibatches)

        def gradient_step(carry: Any, index: Any) -> tuple[Any, Any]:
            params, opt_state = carry
            minibatch = jax.tree.map(lambda x: x[index], batch)
            grads, metrics = jax.grad(ppo.loss, has_aux=True)(unravel(params), minibatch, config.clip_eps, config)
            updates, opt_state = optimizer.update(ravel_pytree(grads)[0], opt_state, params)
            return (params + updates, opt_state), metrics

        return jax.lax.scan(gradient_step, carry, indices)

    action = jnp.zeros(config.num_envs, jnp.int32)
    fixed_action = unroll_step(config.num_steps, lambda key, obs, fixed: fixed[1])
    return {
        "update": Part(lambda key, state, config: ppo.update(state, config), state, config, 1),
        "env": Part(fixed_action, state.env_state, (config, action), 1),
        "rollout": Part(unroll_step(config.num_steps, act), state.env_state, (config, state.params), 1),
        "gradient": Part(gradient_phase, (flat_params, state.opt_state), (config, batch), 1),
    }


def dqn_parts(config: Any) -> dict[str, Part]:
    """DQN's update, its env steps with a fixed action, its env steps with its policy, its gradient steps."""
    import jax
    import jax.numpy as jnp

    from purerl import dqn

    state = jax.jit(dqn.init)(jax.random.key(0), config)

    def act(key: Any, obs: Any, fixed: Any) -> Any:
        config, params = fixed
        return dqn.epsilon_greedy(key, dqn.q_values(params, obs, config), config.epsilon_end)

    calls = config.iterations_per_update
    action = jnp.zeros(config.num_envs, jnp.int32)
    fixed_action = unroll_step(config.num_steps, lambda key, obs, fixed: fixed[1])
    return {
        "update": Part(lambda key, state, config: dqn.update(state, config), state, config, 1),
        "env": Part(fixed_action, state.env_state, (config, action), calls),
        "rollout": Part(unroll_step(config.num_steps, act), state.env_state, (config, state.params), calls),
        "gradient": Part(dqn.gradient_step, state, config, calls * config.gradient_steps),
    }


def gradient_flops(algorithm: str, config: Any) -> int:
    """FLOPs of the matrix products in one update's gradient steps; everything else counts as nothing."""
    from purerl.core import checks, envs

    obs_space, action_space = checks.spaces(config)
    assert isinstance(action_space, envs.Discrete)
    body = (math.prod(obs_space.shape), *config.hidden_sizes)
    if algorithm == "ppo":
        batch = config.num_envs * config.num_steps // config.num_minibatches
        towers = network_flops((*body, action_space.n), batch, True) + network_flops((*body, 1), batch, True)
        return config.num_epochs * config.num_minibatches * towers
    sizes = (*body, action_space.n)
    # The target network values the next observation, and with double Q the network itself chooses the action there.
    next_obs = (1 + config.double_q) * network_flops(sizes, config.batch_size, False)
    per_step = network_flops(sizes, config.batch_size, True) + next_obs
    return config.iterations_per_update * config.gradient_steps * per_step


def network_flops(sizes: tuple[int, ...], batch: int, backward: bool) -> int:
    """FLOPs of a dense network's matrix products: forward, and backward to all weights but not to the input."""
    products = [2 * batch * a * b for a, b in itertools.pairwise(sizes)]
    return sum(products) + (sum(products) + sum(products[1:])) * backward


def matmul_speed(size: int) -> float:
    """FLOP/s of a float32 product of two square matrices, the best of five."""
    import jax
    import jax.numpy as jnp

    matrix = jax.random.normal(jax.random.key(0), (size, size))
    compiled, _ = compile_timed(jax.jit(jnp.dot), matrix, matrix)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(compiled(matrix, matrix))
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


# ---------------------------------------------------------------------------------------------------------------------
# The measurements


class Row(NamedTuple):
    """One measure of one side in one case: a value for each repetition."""

    case: str
    side: str
    measure: str
    unit: str
    values: list[float]

    def cells(self) -> list[Any]:
        """What the table shows: the number of repetitions, their median, the smallest and the largest."""
        values = (statistics.median(self.values), min(self.values), max(self.values))
        return [*self[:4], len(self.values), *(float(f"{value:.6g}") for value in values)]


RESULT = {True: "reached", False: "NOT reached", None: "not measured"}


class Verdict(NamedTuple):
    """A measured value beside its target. reached: None where there was nothing to measure against."""

    case: str
    what: str
    value: str
    target: str
    reached: bool | None


@dataclasses.dataclass
class Bench:
    """One run: what was asked for, and what has been found so far. rejax: its interpreter, or None without one."""

    repeats: int
    quick: bool
    rejax: str | None
    rows: list[Row] = dataclasses.field(default_factory=list)
    verdicts: list[Verdict] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)

    def add(self, case: str, side: str, measure: str, unit: str, values: list[float]) -> None:
        """Keeps one row and shows it."""
        self.rows.append(Row(case, side, measure, unit, values))
        print(f"  {case}, {side}: {measure} {number(statistics.median(values))} {unit}", flush=True)


def measure_training(bench: Bench, case: str) -> None:
    """Trace, compile and run seconds, env steps per second and peak memory of purerl and rejax, taking turns."""
    starts = [purerl_start()]
    if bench.rejax:
        starts += [rejax_start(bench.rejax), rejax_start(bench.rejax, WORK[case].nproc)]
    measure_compilation(bench, case, starts[:2])
    with contextlib.ExitStack() as stack:
        workers = {start.name: stack.enter_context(Worker(start, case)) for start in starts}
        ask_each(bench, workers, "build", case=case, quick=bench.quick)
        ask_each(bench, workers, "run", seed=0)  # the first run touches fresh memory, so it does not count
        memory = ask_each(bench, workers, "peak_memory")
        rounds = [ask_each(bench, workers, "run", seed=1 + repeat) for repeat in range(bench.repeats)]
    env_steps = WORK[case].seeds * WORK[case].steps(bench.quick)
    for side in workers:
        seconds = [answers[side] for answers in rounds]
        bench.add(case, side, "run", "s", seconds)
        bench.add(case, side, "env steps", "1/s", [env_steps / x for x in seconds])
        bench.add(case, side, "peak memory", "MiB", [memory[side]])
    compare(bench, case, {side: [answers[side] for answers in rounds] for side in workers})


def measure_compilation(bench: Bench, case: str, starts: list[Start]) -> None:
    """Seconds of tracing and of compiling, each time in a fresh process."""
    built: dict[str, list[dict[str, float]]] = {start.name: [] for start in starts}
    for start in starts * (1 if bench.quick else COMPILE_REPEATS):
        with Worker(start, case) as worker:
            built[start.name].append(worker.ask("build", case=case, quick=bench.quick))
    for side, answers in built.items():
        for phase in answers[0]:
            bench.add(case, side, phase, "s", [seconds[phase] for seconds in answers])
        if len(answers[0]) > 1:
            bench.add(case, side, "trace and compile", "s", [sum(seconds.values()) for seconds in answers])


def ask_each(bench: Bench, workers: dict[str, Worker], do: str, **arguments: Any) -> dict[str, Any]:
    """Every worker's answer, one worker after the other. A rejax that hangs leaves `workers`, with a note."""
    answers = {}
    for name, worker in list(workers.items()):
        try:
            answers[name] = worker.ask(do, **arguments)
        except WorkerTimeout as error:
            drop(bench, workers, name, error)
    return answers


def drop(bench: Bench, workers: dict[str, Worker], name: str, error: WorkerTimeout) -> None:
    """Goes on without a rejax that hung; a purerl that hung is an error."""
    if name == "purerl":
        raise error
    del workers[name]
    bench.notes.append(str(error))


def compare(bench: Bench, case: str, seconds: dict[str, list[float]]) -> None:
    """purerl's speed over that of rejax's faster start, repetition by repetition."""
    work = WORK[case]
    target = f">= {work.target}x" + (f" (aim {work.aim}x)" if work.aim > work.target else "")
    rivals = {side: values for side, values in seconds.items() if side != "purerl"}
    if not rivals:
        bench.verdicts.append(Verdict(case, "env steps/s against rejax", "-", target, None))
        return
    rival = min(rivals, key=lambda side: statistics.median(rivals[side]))
    ratios = [theirs / ours for ours, theirs in zip(seconds["purerl"], seconds[rival], strict=True)]
    bench.add(case, f"purerl / {rival}", "env steps", "x", ratios)
    ratio = statistics.median(ratios)
    what = f"env steps/s against {rival}, its fastest start of: {', '.join(rivals)}"
    reached = None if bench.quick else ratio >= work.target
    bench.verdicts.append(Verdict(case, what, f"{ratio:.2f}x", target, reached))


def measure_imports(bench: Bench) -> None:
    """Seconds from a running interpreter to an importable, usable library, each time in a fresh process."""
    use_purerl = ("from purerl import ppo", 'from purerl import ppo; ppo.Config(env="CartPole-v1")')
    probes = [("purerl", sys.executable, code) for code in ("import jax", "import purerl", *use_purerl)]
    if bench.rejax:
        use_rejax = ("import jax", "from rejax import PPO", 'from rejax import PPO; PPO.create(env="CartPole-v1")')
        probes += [("rejax", bench.rejax, code) for code in use_rejax]
    for _, python, code in probes:
        import_seconds(python, code)  # the first time reads from disk and may write bytecode, so it does not count
    rounds = [[import_seconds(python, code) for _, python, code in probes] for _ in range(bench.repeats)]
    for (side, _, code), seconds in zip(probes, zip(*rounds, strict=True), strict=True):
        bench.add("import", side, code, "s", list(seconds))


def import_seconds(python: str, code: str) -> float:
    """Seconds that the code takes in a fresh process, the start of the interpreter not included."""
    timed = f"import time\nstarted = time.perf_counter()\n{code}\nprint(time.perf_counter() - started)"
    return float(run_python(python, timed).split()[-1])


def run_python(python: str, code: str) -> str:
    """What the code prints in a fresh process. Raises WorkerError where it fails or takes too long."""
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True, timeout=LIMIT_SECONDS)
    try:
        return str(run([python, "-c", code], cwd=ROOT, env=clean_environment()).stdout)
    except subprocess.CalledProcessError as error:
        raise WorkerError(f"{python} failed in {code!r}:\n{error.stderr[-2000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise WorkerTimeout(f"{python} did not finish {code!r} in {LIMIT_SECONDS:.0f} s and was killed.") from error


def measure_shares(bench: Bench) -> None:
    """Milliseconds per update of each part of PPO's and DQN's update, shares of the whole, and of the matmul peak."""
    for case in ("ppo-1", "dqn-1"):
        measure_parts(bench, f"shares {case}", WORK[case].algorithm)


def measure_parts(bench: Bench, case: str, algorithm: str) -> None:
    """One algorithm's shares. The parts take turns, so that a slow moment of the machine hits all of them."""
    with Worker(purerl_start(), case) as worker:
        facts = worker.ask("build_parts", algorithm=algorithm, quick=bench.quick)
        rounds = [{name: worker.ask("run_part", name=name) for name in facts["parts"]} for _ in range(bench.repeats)]
        peaks = [worker.ask("matmul_peak") for _ in range(1 if bench.quick else bench.repeats)]
    for times in rounds:
        times["policy"] = times["rollout"] - times["env"]
        times["rest"] = times["update"] - times["rollout"] - times["gradient"]
    bench.add(case, "purerl", "whole update", "ms", [1e3 * times["update"] for times in rounds])
    names = {"env": "env steps", "policy": "policy in the rollout", "gradient": "gradient steps", "rest": "the rest"}
    for part, measure in names.items():
        bench.add(case, "purerl", measure, "ms", [1e3 * times[part] for times in rounds])
        bench.add(case, "purerl", measure, "% of update", [100 * times[part] / times["update"] for times in rounds])
    speeds = [facts["flops"] / times["gradient"] for times in rounds]
    bench.add(case, "purerl", "matrix-product peak", "GFLOP/s", [peak / 1e9 for peak in peaks])
    bench.add(case, "purerl", "matrix products in gradient steps", "GFLOP/s", [speed / 1e9 for speed in speeds])
    bench.add(case, "purerl", "gradient steps", "% of peak", [100 * speed / max(peaks) for speed in speeds])


def measure_replay(bench: Bench) -> None:
    """Bytes per transition of 1e6 CartPole transitions; DQN's env steps/s with a full memory of 1e4 and of 1e6."""
    capacities = {"capacity 1e4": 10_000, "capacity 1e6": 1_000_000}
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(purerl_start(), "replay")) for name in capacities}
        size = workers["capacity 1e6"].ask("replay_bytes", capacity=1_000_000)
        for name, capacity in capacities.items():
            workers[name].ask("build_full_replay", capacity=capacity, quick=bench.quick)
            workers[name].ask("run", seed=0)
        rounds = [{name: worker.ask("run", seed=0) for name, worker in workers.items()} for _ in range(bench.repeats)]
    env_steps = DQN_UPDATE * (2 if bench.quick else 38)
    for name in capacities:
        bench.add("replay", "purerl", f"env steps, {name}", "1/s", [env_steps / times[name] for times in rounds])
    ratios = [times["capacity 1e4"] / times["capacity 1e6"] for times in rounds]
    bench.add("replay", "purerl", "env steps, capacity 1e6 over 1e4", "x", ratios)
    bench.add("replay", "purerl", "memory per transition", "bytes", [size])
    kept = statistics.median(ratios)
    what = "DQN's env steps/s with a full memory of 1e6 over those with 1e4"
    reached = None if bench.quick else kept >= 0.9
    bench.verdicts.append(Verdict("replay", what, f"{kept:.2f}x", ">= 0.9x", reached))
    what = "bytes per transition of 1e6 CartPole transitions"
    bench.verdicts.append(Verdict("replay", what, f"{size:.2f}", "<= 50", size <= 50))


def measure_metrics(bench: Bench) -> None:
    """Bytes of PPO's metrics for small and for large updates, at an equal number of updates."""
    with Worker(purerl_start(), "metrics") as worker:
        small = worker.ask("metrics_bytes", num_envs=4, num_steps=128, num_updates=100)
        large = worker.ask("metrics_bytes", num_envs=64, num_steps=512, num_updates=100)
    bench.add("metrics", "purerl", "100 updates of 4 envs x 128 steps", "bytes", [small])
    bench.add("metrics", "purerl", "100 updates of 64 envs x 512 steps", "bytes", [large])
    what = "bytes of metrics, 64 x 512 against 4 x 128"
    bench.verdicts.append(Verdict("metrics", what, f"{large} against {small}", "equal", small == large))


def measure_tabular(bench: Bench) -> None:
    """Env steps per second of 1,000 trainings side by side, and of their env alone."""
    work = {"env": "mdp/frozen_lake_4x4_slippery", "seeds": 1000, "env_steps": 2_000 if bench.quick else 100_000}
    with contextlib.ExitStack() as stack:
        learner, env = (stack.enter_context(Worker(purerl_start(), f"tabular {side}")) for side in ("learner", "env"))
        learner.ask("build_seeds", algorithm="q_learning", seeds_at_once=500, tuned=False, **work)
        env.ask("build_env_alone", **work)
        rounds = [(learner.ask("rate"), env.ask("rate")) for _ in range(1 + bench.repeats)][1:]
    learning, alone = (list(rates) for rates in zip(*rounds, strict=True))
    bench.add("tabular", "purerl", "env steps, Q-learning, 1,000 seeds", "1/s", learning)
    bench.add("tabular", "purerl", "env steps, the env alone with uniform actions", "1/s", alone)
    bench.add("tabular", "purerl", "Q-learning over the env alone", "x", [x / y for x, y in rounds])
    rate, share = statistics.median(learning), statistics.median([x / y for x, y in rounds])
    value = f"{rate / 1e6:.1f}M, {share:.2f} of the env alone"
    reached = None if bench.quick else rate >= 20e6 or share >= 0.5
    what = "env steps/s of 1,000 seeds of Q-learning on FrozenLake"
    bench.verdicts.append(Verdict("tabular", what, value, ">= 20M, or half of the env alone", reached))


def measure_planning(bench: Bench) -> None:
    """Seconds of a sweep whose cost is that of the transitions, not of all pairs of states."""
    with Worker(purerl_start(), "planning") as worker:
        worker.ask("build_sweep", num_states=100_000, num_actions=4, num_successors=4)
        seconds = [worker.ask("run", seed=seed) for seed in range(1 + bench.repeats)][1:]
    bench.add("planning", "purerl", "one sweep, 1.6 million transitions", "ms", [1e3 * x for x in seconds])
    value, what = statistics.median(seconds), "seconds of a sweep over 100,000 states, 4 actions, 4 successors"
    bench.verdicts.append(Verdict("planning", what, f"{value:.4f}", "<= 0.5", None if bench.quick else value <= 0.5))


def measure_pqn(bench: Bench) -> None:
    """Env steps per second of PQN over DQN's, one seed, each with its own tuned settings."""
    for env, steps in (("CartPole-v1", 60_000), ("Breakout-MinAtar", 20_000)):
        steps = 12_000 if bench.quick else steps  # a little more than DQN's prefill
        work = {"env": env, "seeds": 1, "seeds_at_once": 1, "tuned": True}
        with contextlib.ExitStack() as stack:
            sides = {name: stack.enter_context(Worker(purerl_start(), f"pqn {name}")) for name in ("pqn", "dqn")}
            for name, worker in sides.items():
                worker.ask("build_seeds", algorithm=name, env_steps=steps * (4 if name == "pqn" else 1), **work)
            rounds = [{name: worker.ask("rate") for name, worker in sides.items()} for _ in range(1 + bench.repeats)][
                1:
            ]
        for name in sides:
            bench.add("pqn", "purerl", f"env steps, {name.upper()} on {env}", "1/s", [x[name] for x in rounds])
        ratios = [x["pqn"] / x["dqn"] for x in rounds]
        bench.add("pqn", "purerl", f"PQN over DQN on {env}", "x", ratios)
        if env == "CartPole-v1":
            ratio = statistics.median(ratios)
            reached = None if bench.quick else ratio >= 5
            bench.verdicts.append(
                Verdict("pqn", "env steps/s of PQN over DQN on CartPole", f"{ratio:.1f}x", ">= 5x", reached)
            )


CASES: dict[str, Callable[[Bench], None]] = {
    **{case: functools.partial(measure_training, case=case) for case in WORK},
    "import": measure_imports,
    "shares": measure_shares,
    "replay": measure_replay,
    "metrics": measure_metrics,
    "tabular": measure_tabular,
    "planning": measure_planning,
    "pqn": measure_pqn,
}


# ---------------------------------------------------------------------------------------------------------------------
# rejax's environment, the machine, the report


def prepare_rejax(folder: Path) -> str | None:
    """The interpreter of rejax's virtual environment, made where it is missing; None where that fails."""
    python = folder / "bin" / "python"
    found = versions(str(python)) if python.exists() else {}
    if found.get("rejax") == "0.1.3" and found.get("gymnax", "").startswith("0."):
        return str(python)
    print(f"Making rejax's environment in {folder}: this takes minutes.", flush=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REJAX]
    for command in ([sys.executable, "-m", "venv", str(folder)], install):
        try:
            subprocess.run(command, check=True, capture_output=True, env=clean_environment(), timeout=INSTALL_SECONDS)
        except (subprocess.SubprocessError, OSError):
            return None
    return str(python)


def versions(python: str) -> dict[str, str]:
    """Versions of Python and of the packages that matter, in that interpreter's environment."""
    code = """
import importlib.metadata, json, platform
found = {"python": platform.python_version()}
for name in ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy", "purerl", "rejax"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
    found: dict[str, str] = json.loads(run_python(python, code))
    return found


def machine() -> str:
    """CPU model, usable cores, memory, and how busy the machine is with other work."""
    cpu = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    kib = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    memory = f"{kib[0] / 2**20:.0f} GiB memory" if kib else "memory unknown"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"load average {os.getloadavg()[0]:.1f} at the start"
    return f"{cpu[0] if cpu else platform.machine()}, {cores} cores, {memory}, {load}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def number(value: float) -> str:
    """A number as a reader wants it: three significant digits, or all of them before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def header(bench: Bench) -> dict[str, str]:
    """What one must know of a run to repeat it."""
    facts = {
        "command": f"python -m benchmarks.speed {shlex.join(sys.argv[1:])}".rstrip(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
    }
    interpreters = {"purerl": sys.executable} | ({"rejax": bench.rejax} if bench.rejax else {})
    for side, python in interpreters.items():
        facts[f"{side}'s environment"] = ", ".join(f"{name} {version}" for name, version in versions(python).items())
    return facts


def write(bench: Bench, facts: dict[str, str], out: Path) -> None:
    """speed.csv (facts as comment lines, then one row for each case, side and measure) and speed.md."""
    out.mkdir(parents=True, exist_ok=True)
    columns = ["case", "side", "measure", "unit", "repeats", "median", "min", "max"]
    with (out / "speed.csv").open("w", newline="") as file:
        file.writelines(f"# {name}: {fact}\n" for name, fact in facts.items())
        csv.writer(file, lineterminator="\n").writerows([columns, *(row.cells() for row in bench.rows)])
    (out / "speed.md").write_text("\n".join(markdown(bench, facts, columns)) + "\n")


def markdown(bench: Bench, facts: dict[str, str], columns: list[str]) -> list[str]:
    """The readable report, line by line."""
    lines = ["# Speed", "", *(f"- {name}: {fact}" for name, fact in facts.items()), ""]
    if bench.quick or bench.repeats < 5:
        lines += [f"**A functional check with {bench.repeats} repetition(s): these numbers are no measurement.**", ""]
    verdicts = [[case, what, value, target, RESULT[ok]] for case, what, value, target, ok in bench.verdicts]
    lines += ["## Targets", "", *table(["case", "what", "measured", "target", "result"], verdicts), ""]
    lines += [f"- {note}" for note in bench.notes] + [""] * bool(bench.notes)
    lines += [f"- FAILED: {failure.splitlines()[0]}" for failure in bench.failures] + [""] * bool(bench.failures)
    lines += ["Ratios are medians over repetitions; in each, all sides ran one after the other.", ""]
    lines += ["## What counts as the same work", "", *SAME_WORK.splitlines(), ""]
    for case in dict.fromkeys(row.case for row in bench.rows):
        cells = [row.cells()[1:] for row in bench.rows if row.case == case]
        rows = [[*map(str, row[:4]), *map(number, row[4:])] for row in cells]
        lines += [f"## {case}", "", *table(columns[1:], rows), ""]
    return lines[:-1]


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; no case means every case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"any of: {', '.join(CASES)} (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side (default: 5)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--rejax-env", type=Path, default=ROOT / "build" / "rejax-env", help="where rejax is, or goes")
    parser.add_argument("--quick", action="store_true", help="little work: checks that all runs, measures nothing")
    options = parser.parse_args(arguments)
    if unknown := [case for case in options.cases if case not in CASES]:
        parser.error(f"there is no case {unknown[0]!r}; the cases are {', '.join(CASES)}")
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, but is {options.repeats}")
    return options


def main() -> int:
    """Measures, writes after each case, and returns 1 where something crashed. A missed target is no crash."""
    if sys.argv[1:] == ["--worker"]:
        serve(Purerl())
        return 0
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are ended as well
    bench = Bench(options.repeats, options.quick, prepare_rejax(options.rejax_env.absolute()))
    if bench.rejax is None:
        bench.notes.append("rejax could not be installed, so purerl is measured alone.")
        print(bench.notes[0])
    facts = header(bench)
    for case in options.cases or CASES:
        print(case, flush=True)
        try:
            CASES[case](bench)
        except WorkerError as error:
            bench.failures.append(str(error))
            print(bench.failures[-1], file=sys.stderr)
        write(bench, facts, options.out)
    for verdict in bench.verdicts:
        print(f"{verdict.case}: {verdict.value}, target {verdict.target}: {RESULT[verdict.reached]}")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
