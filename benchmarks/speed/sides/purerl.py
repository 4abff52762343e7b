"""purerl, in the interpreter of the benchmark."""

import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import purerl
from benchmarks.speed import kernels
from benchmarks.speed.cases import (
    DQN,
    DQN_PREFILL,
    DQN_TARGET_PERIOD,
    DQN_UPDATE,
    OFF_POLICY,
    OFF_POLICY_PREFILL,
    OFF_POLICY_UPDATE,
    PETS,
    POLICY_DELAY,
    PPO,
    PROFILE_UPDATES,
    TAU,
    TD3_NOISE,
    TUNE,
    WORK,
    Work,
)
from benchmarks.speed.sides import Side, compile_timed, serve
from purerl import cem, dqn, envs, mdp, pets, ppo, q_learning, runner, sac, td3, value_iteration
from purerl.core import optimize, replay
from purerl.core.rollout import unroll
from purerl.run import ranges as search_ranges
from purerl.run import tune


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
        return self.build_train(work.algorithm, make_config(work.algorithm, work.steps(quick), **layers(work)))

    def build_cartpole(self, algorithm: str, env_steps: int, settings: dict[str, Any]) -> dict[str, float]:
        """One seed on CartPole, by default but for the settings; seconds of tracing and compiling."""
        purerl.use_all_cores()
        config = getattr(purerl, algorithm).Config(env="CartPole-v1", total_timesteps=env_steps, **settings)
        return self.build_train(algorithm, config)

    def build_pets(self, env_steps: int) -> dict[str, float]:
        """One seed of PETS on Pendulum; seconds of tracing and compiling."""
        purerl.use_all_cores()
        return self.build_train("pets", make_config("pets", env_steps))

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

    def search(self, trials: int, quick: bool, seed: int) -> dict[str, Any]:
        """Seconds of a whole search, compiling included, and the values that were proposed; both cores work."""
        purerl.use_all_cores()
        settings = {name: PPO[name] for name in ("num_envs", "num_steps", "num_epochs", "num_minibatches")}
        config = ppo.Config(
            env="CartPole-v1",
            total_timesteps=WORK["tune"].steps(quick),
            anneal_learning_rate=False,
            clip_value=False,
            **settings,
        )
        ranges, options = search_ranges.shipped("ppo", ppo.Config), {"eval_episodes": TUNE["eval_episodes"]}
        with tempfile.TemporaryDirectory() as out:
            started = time.perf_counter()
            found = tune.tune(
                ppo,
                config,
                ranges,
                out=out,
                trials=trials,
                seeds=1,
                halving=False,
                sampler_seed=seed,
                say=lambda _: None,
                **options,
            )
            seconds = time.perf_counter() - started
        scores = [trial.rung_scores[-1] for trial in found.trials]
        return {"seconds": seconds, "fields": [trial.fields for trial in found.trials], "scores": scores}

    def build_full_replay(self, capacity: int, quick: bool) -> None:
        """DQN from a memory that is full at the start, so that a batch comes from all of it."""
        num_updates = 2 if quick else 38
        config = make_config("dqn", capacity + num_updates * DQN_UPDATE, buffer_size=capacity, learning_starts=capacity)
        state = jax.block_until_ready(jax.jit(dqn.init)(jax.random.key(0), config))

        def updates(state: Any, config: Any) -> Any:
            return jax.lax.scan(lambda state, _: dqn.update(state, config), state, length=num_updates)

        compiled, _ = compile_timed(jax.jit(updates), state, config)
        self.train = lambda seed: jax.block_until_ready(compiled(state, config))

    def build_memory(self, env: str, capacity: int, batch_size: int, steps: int) -> float:
        """Prepares `run`: steps of writing one transition to a full memory and drawing a batch; bytes of a transition.

        The program is given the memory to write to, since a copy of a large one would count.
        """
        purerl.use_all_cores()
        example = envs.bind(sac.Config(env=env)).transition
        one = jax.tree.map(lambda x: jnp.ones((1, *x.shape), x.dtype), example)

        def turn(carry: Any, key: Any) -> tuple[Any, None]:
            memory, _ = carry
            memory = replay.add(memory, one)
            return (memory, replay.sample(key, memory, batch_size, example)), None

        def turns(memory: Any, keys: Any) -> Any:
            shapes = jax.eval_shape(lambda key: replay.sample(key, memory, batch_size, example), keys[0])
            blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return jax.lax.scan(turn, (memory, blank), keys)[0]

        keys = jax.random.split(jax.random.key(0), steps)
        self.memory = replay.init(capacity, example)._replace(size=jnp.int32(capacity))
        size = tree_bytes(self.memory) / capacity
        compiled, _ = compile_timed(jax.jit(turns, donate_argnums=0), self.memory, keys)

        def train(seed: int) -> None:
            self.memory, _ = jax.block_until_ready(compiled(self.memory, keys))

        self.train = train
        return size

    def build_full_sac(self, env: str, capacity: int, num_updates: int) -> int:
        """Prepares `run`: updates of SAC that draw from all of a memory that counts as full; their env steps."""
        purerl.use_all_cores()
        config = make_config("sac", capacity, env=env, buffer_size=capacity)
        state = jax.jit(sac.init)(jax.random.key(0), config)
        self.state = state._replace(replay=state.replay._replace(size=jnp.int32(capacity)))

        def updates(state: Any, config: Any) -> Any:
            return jax.lax.scan(lambda state, _: sac.update(state, config), state, length=num_updates)[0]

        compiled, _ = compile_timed(jax.jit(updates, donate_argnums=0), self.state, config)

        def train(seed: int) -> None:
            self.state = jax.block_until_ready(compiled(self.state, config))

        self.train = train
        return config.env_steps(num_updates) - config.env_steps(0)

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

    def build_generations(self, population: int, generations: int) -> None:
        """Prepares `rates`: generations of CEM on CartPole by one seed on each device, and as many steps of the env."""
        devices = purerl.use_all_cores()
        config = cem.Config(population=population, total_timesteps=20 * population * 500)
        num_steps = generations * config.num_steps

        def episodes(state: Any) -> Any:
            def generation(state: Any, _: None) -> Any:
                state, metrics = cem.update(state, config)
                return state, metrics["episodes"] * metrics["episode_length"]

            return jax.lax.scan(generation, state, length=generations)[1].sum()

        def steps(key: Any) -> Any:
            env = envs.bind(config).copies(population)
            action = jnp.zeros(population, jnp.int32)

            def step(state: Any, key: Any) -> Any:
                _, state, reward, terminated, _ = env.advance(jax.random.split(key, population), state, action)
                return state, (reward.sum(), terminated.sum())

            _, sums = jax.lax.scan(step, env.reset(key).state, jax.random.split(key, num_steps))
            return jax.tree.map(jnp.sum, sums)

        keys = jax.random.split(jax.random.key(0), devices)
        states = on_each_device(lambda key: cem.train(key, config).state, keys)(keys)
        search, alone = on_each_device(episodes, states), on_each_device(steps, keys)

        def rates() -> dict[str, float]:
            found = {}
            for name, run, argument in (("search", search, states), ("env", alone, keys)):
                started = time.perf_counter()
                result = jax.block_until_ready(run(argument))
                taken = float(result.sum()) if name == "search" else devices * population * num_steps
                found[name] = taken / (time.perf_counter() - started)
            return found

        rates()  # first runs touch fresh memory
        self.measured_rates = rates

    def rates(self) -> dict[str, float]:
        """Env steps per second of each thing that was built."""
        return self.measured_rates()

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
        num_updates = {"ppo": (100, 2), "dqn": (5, 1), "sac": (400, 2), "pets": (4, 1)}[algorithm][quick]
        config = make_config(algorithm, 1_000_000, **(layers(WORK["sac-256"]) if algorithm == "sac" else {}))
        parts = {"ppo": ppo_parts, "dqn": dqn_parts, "sac": sac_parts, "pets": pets_parts}[algorithm](config)
        self.num_updates = num_updates
        self.parts = {name: compile_part(part, num_updates) for name, part in parts.items()}
        jax.block_until_ready([program() for program in self.parts.values()])  # first runs touch fresh memory
        return {"parts": list(parts), "flops": gradient_flops(algorithm, config)}

    def pets_flops(self) -> dict[str, int]:
        """FLOPs of the matrix products of an update of PETS on Pendulum, by part."""
        return pets_flops(make_config("pets", 1_000), 3, 1)

    def run_part(self, name: str) -> float:
        """Seconds of one part, per update."""
        started = time.perf_counter()
        jax.block_until_ready(self.parts[name]())
        return (time.perf_counter() - started) / self.num_updates

    def chain_speed(self, size: int) -> float:
        """FLOP/s of square float32 products of which each multiplies the result of the one before."""
        turns = 500
        matrix = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0], jnp.float32)

        def chain(start: Any, matrix: Any) -> Any:
            return jax.lax.fori_loop(0, turns, lambda _, x: x @ matrix, start)

        return turns * 2 * size**3 / least_seconds(jax.jit(chain), matrix, matrix)

    def matmul_peak(self) -> float:
        """The best FLOP/s of a large float32 matrix product on one CPU device, over three sizes."""
        return max(matmul_speed(size) for size in (1024, 2048, 4096))


def make_config(algorithm: str, env_steps: int, **changes: Any) -> Any:
    """purerl's Config of the work that both libraries do."""
    if algorithm == "ppo":
        towers = {"actor_hidden_sizes": (64, 64), "critic_hidden_sizes": (64, 64), "activation": "tanh"}
        like_rejax = {"anneal_learning_rate": False, "clip_value": True, **towers}
        return ppo.Config(**{"env": "CartPole-v1", "total_timesteps": env_steps, **PPO, **like_rejax, **changes})
    if algorithm in ("sac", "td3"):
        common = {"env": "Pendulum-v1", "total_timesteps": env_steps, **OFF_POLICY, "tau": TAU}
        common |= {"num_steps": 1, "gradient_steps": 1, "iterations_per_update": OFF_POLICY_UPDATE}
        common |= {"learning_starts": OFF_POLICY_PREFILL, "activation": "relu"}
        common |= {"critic_learning_rate": OFF_POLICY["learning_rate"]}
        if algorithm == "td3":
            return td3.Config(**{**common, **TD3_NOISE, "policy_delay": POLICY_DELAY, **changes})
        temperature = {"learn_alpha": True, "alpha": 1.0, "alpha_learning_rate": OFF_POLICY["learning_rate"]}
        return sac.Config(**{**common, **temperature, "target_entropy": -1.0, **changes})
    if algorithm == "pets":
        return pets.Config(**{"env": "Pendulum-v1", "total_timesteps": env_steps, **PETS, **changes})
    loop = {"num_steps": 1, "gradient_steps": 1, "iterations_per_update": DQN_UPDATE, "learning_starts": DQN_PREFILL}
    target = {"double_q": True, "target_update_period": DQN_TARGET_PERIOD}
    like_rejax = {**loop, **target, "hidden_sizes": (64, 64), "activation": "relu"}
    return dqn.Config(**{"env": "CartPole-v1", "total_timesteps": env_steps, **DQN, **like_rejax, **changes})


def on_each_device(function: Any, argument: Any) -> Any:
    """The compiled program of a function of one seed, for arguments with one seed on each device."""
    mesh = jax.make_mesh((len(jax.devices()),), ("seeds",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("seeds")
    many = jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    placed = jax.device_put(argument, jax.NamedSharding(mesh, spec))
    compiled, _ = compile_timed(jax.jit(many), placed)
    return lambda argument: compiled(jax.device_put(argument, jax.NamedSharding(mesh, spec)))


def layers(work: Work) -> dict[str, Any]:
    """The hidden layers of the work's networks, where they are no constant of the algorithm's work."""
    sizes = (work.hidden_size, work.hidden_size)
    named = {"actor_hidden_sizes": sizes, "critic_hidden_sizes": sizes}
    return named if work.algorithm in ("sac", "td3") else {}


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


def sac_parts(config: Any) -> dict[str, Part]:
    """SAC's gradient step, its pieces, and an env step; each for one gradient step."""
    state = jax.jit(sac.init)(jax.random.key(0), config)
    batch, discount = jax.jit(sac.draw_batch)(jax.random.key(1), state, config)
    noise = jax.random.normal(jax.random.key(2), (2, config.batch_size, envs.bind(config).action_size))
    fixed = (config, state.params, state.target_critic, batch, discount, noise)
    target = jax.jit(target_of)(fixed)
    grads = jax.jit(lambda fixed: (actor_grads(fixed)[0], critic_grads((*fixed, target))[0]))(fixed)

    def adam(key: Any, carry: Any, fixed: Any) -> tuple[Any, Any]:
        (actor, critic, log_alpha), opt_state, target_critic = carry
        config, (actor_slope, critic_slope) = fixed
        rate = config.learning_rate
        actor, actor_opt = optimize.adam_step(actor_slope, actor, opt_state.actor, rate)
        critic, critic_opt = optimize.adam_step(critic_slope, critic, opt_state.critic, rate)
        log_alpha, alpha_opt = optimize.adam_step(jnp.ones(()), log_alpha, opt_state.log_alpha, rate)
        target_critic = optax.incremental_update(critic, target_critic, config.tau)
        params, opt_state = sac.Params(actor, critic, log_alpha), sac.Params(actor_opt, critic_opt, alpha_opt)
        return (params, opt_state, target_critic), ()

    nudge = jnp.zeros(())
    return {
        "target": Part(nudged(target_of), nudge, fixed, 1),
        "critics": Part(nudged(critic_grads), nudge, (*fixed, target), 1),
        "actor": Part(nudged(actor_grads), nudge, fixed, 1),
        "adam": Part(adam, (state.params, state.opt_state, state.target_critic), (config, grads), 1),
        "draw": Part(lambda key, carry, fixed: (carry, sac.draw_batch(key, *fixed)), (), (state, config), 1),
        "whole": Part(lambda key, state, config: sac.gradient_step(key, noise, state, config), state, config, 1),
        "collect": Part(sac.collect, state, config, 1),
    }


def pets_parts(config: Any) -> dict[str, Part]:
    """PETS's update, its gradient steps, its plans, and its env steps with a fixed action."""
    state = jax.jit(pets.init)(jax.random.key(0), config)

    def plans(key: Any, start: Any, fixed: Any) -> tuple[Any, Any]:
        state, config = fixed

        def one(start: Any, key: Any) -> tuple[Any, Any]:
            found = pets.search(key, state.env_state.obs[0], start, state, config)
            return pets.shifted(found.actions), found.promised

        return jax.lax.scan(one, start, jax.random.split(key, config.num_steps))

    return {
        "update": Part(lambda key, state, config: pets.update(state, config), state, config, 1),
        "training": Part(lambda key, state, config: pets.fit(key, state, config), state, config, 1),
        "planning": Part(plans, state.plan, (state, config), 1),
        "env": Part(
            unroll_step(config.num_steps, lambda key, obs, fixed: fixed[1]),
            state.env_state,
            (config, jnp.zeros((1, 1))),
            1,
        ),
    }


def nudged(part: Callable[[Any], Any]) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """A Part's step: part(fixed) with observations a little off, by what came before, or XLA would compute it once."""

    def step(key: Any, nudge: Any, fixed: Any) -> tuple[Any, Any]:
        config, params, target_critic, batch, *others = fixed
        batch = batch._replace(obs=batch.obs + nudge, final_obs=batch.final_obs + nudge)
        output = part((config, params, target_critic, batch, *others))
        return 1e-9 * jax.tree.leaves(output)[0].reshape(-1)[0], output

    return step


def target_of(fixed: Any) -> Any:
    """SAC's target: three forward passes of the networks."""
    config, params, target_critic, batch, discount, noise = fixed
    return sac.td_target(noise[0], params, target_critic, batch, discount, config)


def critic_grads(fixed: Any) -> Any:
    """Gradients and metrics of the critics' loss."""
    config, params, _, batch, _, _, target = fixed
    return jax.grad(sac.critic_loss, has_aux=True)(params.critic, target, batch, config)


def actor_grads(fixed: Any) -> Any:
    """Gradients of the actor's loss, and log probabilities."""
    config, params, _, batch, _, noise = fixed
    return jax.grad(sac.actor_loss, has_aux=True)(params.actor, noise[1], params, batch, config)


def gradient_flops(algorithm: str, config: Any) -> int:
    """FLOPs of the matrix products in one update's gradient steps; everything else counts as nothing."""
    env = envs.bind(config)
    obs_size = math.prod(env.obs_space.shape)
    if algorithm == "sac":
        return sac_flops(config, obs_size, env.action_size)
    if algorithm == "pets":
        return pets_flops(config, obs_size, env.action_size)["training"]
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


def sac_flops(config: Any, obs_size: int, action_size: int) -> int:
    """FLOPs of the matrix products in one gradient step of SAC."""
    actor = (obs_size, *config.actor_hidden_sizes, 2 * action_size)
    critic = (obs_size + action_size, *config.critic_hidden_sizes, 1)
    target = network_flops(actor, config.batch_size, False) + 2 * network_flops(critic, config.batch_size, False)
    critics_loss = 2 * network_flops(critic, config.batch_size, True)
    # The actor's gradient comes through both critics to their input, not to their weights: as much as forward again.
    through_critics = 4 * network_flops(critic, config.batch_size, False)
    return target + critics_loss + network_flops(actor, config.batch_size, True) + through_critics


def pets_flops(config: Any, obs_size: int, action_size: int) -> dict[str, int]:
    """FLOPs of the matrix products in one update of PETS: of its gradient steps, and of its plans."""
    sizes, members = (obs_size + action_size, *config.hidden_sizes, 2 * (obs_size + 1)), config.num_members
    sequences = config.planning_iterations * config.population + 1  # and the plan itself
    return {
        "training": config.gradient_steps * members * network_flops(sizes, config.batch_size, True),
        "planning": config.num_steps * config.horizon * members * network_flops(sizes, sequences, False),
    }


def network_flops(sizes: tuple[int, ...], batch: int, backward: bool) -> int:
    """FLOPs of a dense network's matrix products: forward, and backward to all weights but not to the input."""
    products = [2 * batch * a * b for a, b in itertools.pairwise(sizes)]
    return sum(products) + (sum(products) + sum(products[1:])) * backward


def matmul_speed(size: int) -> float:
    """FLOP/s of a float32 product of two square matrices, the best of five."""
    matrix = jax.random.normal(jax.random.key(0), (size, size))
    return 2 * size**3 / least_seconds(jax.jit(jnp.dot), matrix, matrix)


def least_seconds(function: Any, *arguments: Any) -> float:
    """Seconds of a jitted function's fastest run of five, compiling left out."""
    compiled, _ = compile_timed(function, *arguments)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    serve(Purerl())
