"""purerl, in the interpreter of the benchmark."""

import itertools
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import purerl
from benchmarks.speed import kernels
from benchmarks.speed.cases import DQN, DQN_PREFILL, DQN_TARGET_PERIOD, DQN_UPDATE, PPO, PROFILE_UPDATES, WORK, Work
from benchmarks.speed.sides import Side, compile_timed, serve
from purerl import dqn, envs, mdp, ppo, q_learning, runner, value_iteration
from purerl.core import optimize
from purerl.core.rollout import unroll


class Purerl(Side):
    """Answers requests about purerl; one process does one case."""

    compiled: Any

    def build(self, case: str, quick: bool) -> dict[str, float]:
        """Prepares a case of WORK; seconds of tracing and compiling, or of both together."""
        work = WORK[case]
        return self.build_many(work, quick) if work.seeds > 1 else self.build_one(work, quick)

    def build_one(self, work: Work, quick: bool) -> dict[str, float]:
        """One seed: the algorithm's `train`."""
        purerl.use_all_cores()
        return self.build_train(work.algorithm, make_config(work.algorithm, work.steps(quick)))

    def build_cartpole(self, algorithm: str, env_steps: int, settings: dict[str, Any]) -> dict[str, float]:
        """One seed on CartPole, by default but for the settings; seconds of tracing and compiling."""
        purerl.use_all_cores()
        config = getattr(purerl, algorithm).Config(env="CartPole-v1", total_timesteps=env_steps, **settings)
        return self.build_train(algorithm, config)

    def build_train(self, algorithm: str, config: Any) -> dict[str, float]:
        """The algorithm's `train`; seconds of tracing and compiling."""
        train = jax.jit(getattr(purerl, algorithm).train)
        self.compiled, seconds = compile_timed(train, jax.random.key(0), config)
        self.train = lambda seed: jax.block_until_ready(self.compiled(jax.random.key(seed), config))
        return seconds

    def build_many(self, work: Work, quick: bool) -> dict[str, float]:
        """Many seeds: the runner, which shards them over one CPU device for each core.

        What it spends on tracing and compiling is all of a first call but the run itself. One update shows it as well
        as many, since the loop length is an argument of the compiled program. Later calls with the same Config find
        the program again; they are timed whole, the host's work between chunks included.
        """
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

    def profile(self) -> dict[str, Any]:
        """The kernels of one update of what was built."""
        return kernels.profile(lambda: self.train(0), self.compiled.as_text(), PROFILE_UPDATES)

    def build_full_replay(self, capacity: int, quick: bool) -> None:
        """DQN from a memory that is full at the start, so that a batch comes from all of it."""
        num_updates = 2 if quick else 38
        config = make_config("dqn", capacity + num_updates * DQN_UPDATE, buffer_size=capacity, learning_starts=capacity)
        state = jax.block_until_ready(jax.jit(dqn.init)(jax.random.key(0), config))

        def updates(state: Any, config: Any) -> Any:
            return jax.lax.scan(lambda state, _: dqn.update(state, config), state, length=num_updates)

        compiled, _ = compile_timed(jax.jit(updates), state, config)
        self.train = lambda seed: jax.block_until_ready(compiled(state, config))

    def use_cores(self, cores: int) -> int:
        """Keeps this process on that many cores from here on; the number of its devices. It comes before all else."""
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < cores:
            raise ValueError(f"{cores} cores are needed, but this process may use {len(allowed)}.")
        os.sched_setaffinity(0, allowed[-cores:])
        return purerl.use_all_cores()

    def build_seeds(
        self, algorithm: str, env: str, seeds: int, env_steps: int, tuned: bool, seeds_at_once: int | None = None
    ) -> None:
        """Prepares `rate`: many seeds through the runner, with the tuned settings of the env or the defaults."""
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
        purerl.use_all_cores()
        bound = envs.bind(q_learning.Config(env=env))
        spec, num_steps = jax.sharding.PartitionSpec("seeds"), 1000

        def play(key: Any) -> Any:
            def chunk(state: Any, key: Any) -> Any:
                state, _, episodes = unroll(key, bound, state, lambda key, obs: bound.sample(key), num_steps)
                return state, episodes

            return jax.lax.scan(chunk, bound.reset(key), jax.random.split(key, env_steps // num_steps))[1]

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
        config = make_config("dqn", 2 * capacity, buffer_size=capacity)
        memory = jax.eval_shape(dqn.init, jax.random.key(0), config).replay
        return tree_bytes(memory) / capacity

    def metrics_bytes(self, num_envs: int, num_steps: int, num_updates: int) -> int:
        """Bytes of the metrics that PPO's `train` returns; nothing is run."""
        config = make_config("ppo", num_updates * num_envs * num_steps, num_envs=num_envs, num_steps=num_steps)
        return tree_bytes(jax.eval_shape(ppo.train, jax.random.key(0), config).metrics)

    def build_parts(self, algorithm: str, quick: bool) -> dict[str, Any]:
        """Compiles a loop over each part of an update; the part names, and the FLOPs of one update's gradient steps."""
        num_updates = {"ppo": (100, 2), "dqn": (5, 1)}[algorithm][quick]
        config = make_config(algorithm, 1_000_000)
        parts = {"ppo": ppo_parts, "dqn": dqn_parts}[algorithm](config)
        self.num_updates = num_updates
        self.parts = {name: compile_part(part, num_updates) for name, part in parts.items()}
        jax.block_until_ready([program() for program in self.parts.values()])  # first runs touch fresh memory
        return {"parts": list(parts), "flops": gradient_flops(algorithm, config)}

    def run_part(self, name: str) -> float:
        """Seconds of one part, per update."""
        started = time.perf_counter()
        jax.block_until_ready(self.parts[name]())
        return (time.perf_counter() - started) / self.num_updates

    def matmul_peak(self) -> float:
        """The best FLOP/s of a large float32 matrix product on one CPU device, over three sizes."""
        return max(matmul_speed(size) for size in (1024, 2048, 4096))


def make_config(algorithm: str, env_steps: int, **changes: Any) -> Any:
    """purerl's Config of the work that both libraries do."""
    if algorithm == "ppo":
        towers = {"actor_hidden_sizes": (64, 64), "critic_hidden_sizes": (64, 64), "activation": "tanh"}
        like_rejax = {"anneal_learning_rate": False, "clip_value": True, **towers}
        return ppo.Config(**{"env": "CartPole-v1", "total_timesteps": env_steps, **PPO, **like_rejax, **changes})
    loop = {"num_steps": 1, "gradient_steps": 1, "iterations_per_update": DQN_UPDATE, "learning_starts": DQN_PREFILL}
    target = {"double_q": True, "target_update_period": DQN_TARGET_PERIOD}
    like_rejax = {**loop, **target, "hidden_sizes": (64, 64), "activation": "relu"}
    return dqn.Config(**{"env": "CartPole-v1", "total_timesteps": env_steps, **DQN, **like_rejax, **changes})


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
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

    def step(key: Any, env_state: Any, fixed: Any) -> tuple[Any, Any]:
        env = envs.bind(fixed[0])
        env_state, *output = unroll(key, env, env_state, lambda key, obs: act(key, obs, fixed), num_steps)
        return env_state, output

    return step


def ppo_parts(config: Any) -> dict[str, Part]:
    """PPO's update, its env steps with a fixed action, its env steps with its policy, its gradient steps."""
    state = jax.jit(ppo.init)(jax.random.key(0), config)
    batch = jax.jit(ppo.collect)(jax.random.key(1), state, config)[1]
    flat_params, unravel = ravel_pytree(state.params)

    def act(key: Any, obs: Any, fixed: Any) -> Any:
        config, params = fixed
        return ppo.distribution(params.actor, ppo.observe(obs, None, config), config).sample(key)

    def gradient_phase(key: Any, carry: Any, fixed: Any) -> tuple[Any, Any]:
        config, batch = fixed
        optimizer = optimize.adam(config.learning_rate, config.max_grad_norm)
        indices = optimize.shuffled_indices(key, batch.value.size, config.num_epochs, config.num_minibatches)

        def gradient_step(carry: Any, index: Any) -> tuple[Any, Any]:
            params, opt_state = carry
            minibatch = jax.tree.map(lambda x: x[index], batch)
            grads, metrics = jax.grad(ppo.loss, has_aux=True)(
                unravel(params), minibatch, config.kl_coef, config.clip_eps, config
            )
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
    env = envs.bind(config)
    obs_size = math.prod(env.obs_space.shape)
    if algorithm == "ppo":
        batch = config.num_envs * config.num_steps // config.num_minibatches
        towers = ((*config.actor_hidden_sizes, env.num_actions), (*config.critic_hidden_sizes, 1))
        flops = sum(network_flops((obs_size, *tower), batch, True) for tower in towers)
        return config.num_epochs * config.num_minibatches * flops
    sizes = (obs_size, *config.hidden_sizes, env.num_actions)
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
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    compiled, _ = compile_timed(jax.jit(jnp.dot), matrix, matrix)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(compiled(matrix, matrix))
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


if __name__ == "__main__":
    serve(Purerl())
