"""Training with a face to the world: many seeds on all devices, progress, logs, checkpoints, resume.

Algorithms know nothing of this. The runner calls their `init` once and their `update` in jitted chunks; between chunks
it is plain Python on the host. How the updates are cut into chunks does not change a bit of the result.

Seeds are spread over the devices; within a device `seeds_at_once` of them run vmapped and the rest in turn
(`jax.lax.map`). On a CPU one at a time is fastest and runs each seed through the program of a lone seed; on an
accelerator take as many as fit.
"""

import dataclasses
import functools
import json
import os
import platform
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from purerl import envs
from purerl.run import checkpoint
from purerl.run.logs import CsvLogger, Logger
from purerl.run.progress import Progress

_CHUNK_SECONDS = 1.0  # how long the host waits for the device: long enough to cost nothing, short enough to feel live
_MAX_CHUNK = 1024
_CPU_FLAGS = ("--xla_cpu_enable_concurrency_optimized_scheduler=false", "--xla_backend_optimization_level=1")


class RunError(Exception):
    """A run cannot start or go on; the message says why and what to do."""


class NonFiniteError(RunError):
    """A loss or parameter became NaN or infinite."""


class Run(NamedTuple):
    """What `train` leaves.

    states: each leaf `[num_seeds, ...]`. metrics: numpy `[num_seeds, updates]` of this call. updates: done in all.
    finished: false where a signal ended it early. compile_seconds, run_seconds: of this call.
    """

    algorithm: ModuleType
    config: Any
    seeds: list[int]
    states: Any
    metrics: dict[str, np.ndarray]
    updates: int
    finished: bool
    compile_seconds: float
    run_seconds: float


def use_all_cores() -> int:
    """Makes one JAX device of each CPU core, over which the runner spreads seeds; call it before anything else in JAX.

    It also tells XLA to run a program's small operations in turn: handing them from core to core takes longer than the
    operations do, and where each core has seeds of its own there is no idle core to hand them to. And it asks LLVM for
    its first level of optimisation alone, which compiles faster.
    What XLA_FLAGS already says of either stays.
    Returns the number of CPU devices. Raises RunError where JAX has already started with fewer.
    """
    given = os.environ.get("XLA_FLAGS", "")
    missing = [flag for flag in _CPU_FLAGS if flag.partition("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([*given.split(), *missing])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError as error:
        if (devices := len(jax.devices("cpu"))) != cores:
            raise RunError(
                f"JAX has started with {devices} CPU device(s): call purerl.use_all_cores() before the first JAX "
                "operation, in a notebook right after the imports."
            ) from error
    return cores


def train(
    algorithm: ModuleType,
    config: Any,
    *,
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    resume: bool = False,
    seeds_at_once: int = 1,
    checkpoint_seconds: float = 30.0,
    loggers: Sequence[Callable[[], Logger]] = (),
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Run:
    """Trains one seed or many; seed i starts from `jax.random.key(i)`, whatever the other seeds are.

    out: folder for config.json, metrics.csv and checkpoints; None keeps nothing on disk. resume: go on from the newest
    checkpoint in `out`. seeds_at_once: how many a device runs vmapped. checkpoint_seconds: least time between
    checkpoints; there is always one at the start and at the end. loggers: functions that open one each, called when
    nothing stands in the way of the run. say: takes one-line messages.

    SIGINT and SIGTERM end it after the chunk in progress, saved; a second signal ends it at once.
    Raises RunError (a folder in use or of another run, too little memory) and NonFiniteError.
    """
    seeds = list(seeds)
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise RunError(f"seeds must be one or more different non-negative integers, but are {seeds}.")
    if seeds_at_once < 1:
        raise RunError(f"seeds_at_once must be at least 1, but is {seeds_at_once}.")
    folder = None if out is None else Path(out)
    if resume and folder is None:
        raise RunError("resume needs the folder of the run to go on with.")
    if folder is not None and resume:
        _check_same_run(folder, algorithm, config, seeds)
    if folder is not None and not resume:
        _check_empty(folder)
    say(check_memory(algorithm, config, len(seeds)))
    opened = [open_logger() for open_logger in loggers]
    if folder is not None and not resume:
        _write_config(folder, algorithm, config, seeds)
    return _Loop(algorithm, config, seeds, folder, seeds_at_once, checkpoint_seconds, opened, progress, say).run(resume)


def load(out: str | Path) -> Run:
    """The newest readable checkpoint of a run's folder, for evaluation and rendering; metrics stay in metrics.csv."""
    folder = Path(out)
    algorithm, config, seeds = read_config(folder)
    updates, states, _ = checkpoint.load_latest(folder / "checkpoints", _states_like(algorithm, config, len(seeds)))
    return Run(algorithm, config, seeds, states, {}, updates, updates == config.num_updates, 0.0, 0.0)


class _Loop:
    """The host loop of one `train` call: states on the devices, everything else in Python."""

    def __init__(
        self,
        algorithm: ModuleType,
        config: Any,
        seeds: list[int],
        folder: Path | None,
        seeds_at_once: int,
        checkpoint_seconds: float,
        loggers: list[Logger],
        progress: bool,
        say: Callable[[str], None],
    ):
        self.algorithm, self.config, self.seeds, self.folder = algorithm, config, seeds, folder
        self.checkpoint_seconds, self.loggers, self.progress, self.say = checkpoint_seconds, loggers, progress, say
        num_devices = min(len(jax.devices()), len(seeds))
        self.mesh = jax.make_mesh((num_devices,), ("seeds",), axis_types=(AxisType.Auto,))
        # A device short of seeds would idle anyway; it repeats the last seed, and the copy is dropped on the way out.
        self.padding = -len(seeds) % num_devices
        batch_size = min(seeds_at_once, (len(seeds) + self.padding) // num_devices)
        self.sharded = functools.partial(_sharded, algorithm, self.mesh, batch_size)
        self.max_chunk = min(config.num_updates, _MAX_CHUNK)
        self.compile_seconds = self.run_seconds = 0.0
        self.stop_signal: int | None = None

    def run(self, resume: bool) -> Run:
        started = time.perf_counter()
        updates, states = self.restore(self.folder) if resume and self.folder else (0, self.initial_states())
        advance = self.sharded("advance", self.max_chunk)
        states, _, _ = jax.block_until_ready(advance(states, self.config, np.int32(0)))  # compiles, and takes no step
        self.compile_seconds = time.perf_counter() - started
        names = jax.eval_shape(self.algorithm.update, self.one_state(), self.config)[1]
        if self.folder is not None:
            self.loggers.append(CsvLogger(self.folder / "metrics.csv", names, keep_updates=updates))
            self.save(updates, states)
        handlers = self.catch_signals()
        try:
            updates, states, history = self.loop(advance, updates, states)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for logger in self.loggers:
                logger.close()
        metrics = {
            name: np.concatenate([m[name] for m in history], axis=1) if history else np.zeros((len(self.seeds), 0))
            for name in names
        }
        finished = updates == self.config.num_updates
        if not finished:
            where = f": go on with --resume {self.folder}" if self.folder else ""
            by = "" if self.stop_signal is None else f" by {signal.Signals(self.stop_signal).name}"
            self.say(f"Stopped{by} after update {updates} of {self.config.num_updates}{where}.")
        states = self.unpad(states)
        times = (self.compile_seconds, self.run_seconds)
        return Run(self.algorithm, self.config, self.seeds, states, metrics, updates, finished, *times)

    def loop(self, advance: Any, updates: int, states: Any) -> tuple[int, Any, list[dict[str, np.ndarray]]]:
        history, chunk, saved_at = [], 1, time.perf_counter()
        with Progress(self.algorithm, self.config, len(self.seeds), updates, enabled=self.progress) as bar:
            while updates < self.config.num_updates and self.stop_signal is None:
                chunk = min(chunk, self.max_chunk, self.config.num_updates - updates)
                started = time.perf_counter()
                states, metrics, finite = jax.block_until_ready(advance(states, self.config, np.int32(chunk)))
                seconds = time.perf_counter() - started
                self.run_seconds += seconds
                rows = {name: np.asarray(x)[: len(self.seeds), :chunk] for name, x in metrics.items()}
                self.check_finite(updates, rows, np.asarray(finite)[: len(self.seeds)])
                self.log(updates, rows)
                history.append(rows)
                updates += chunk
                bar.update(updates, rows)
                chunk = max(1, min(4 * chunk, round(chunk * _CHUNK_SECONDS / seconds)))
                if time.perf_counter() - saved_at > self.checkpoint_seconds:
                    self.save(updates, states)
                    saved_at = time.perf_counter()
        self.save(updates, states)
        return updates, states, history

    def one_state(self) -> Any:
        return jax.eval_shape(self.algorithm.init, jax.random.key(0), self.config)

    def initial_states(self) -> Any:
        keys = jnp.stack([jax.random.key(seed) for seed in self.seeds + self.seeds[-1:] * self.padding])
        return self.sharded("init")(keys, self.config)

    def catch_signals(self) -> dict[int, Any]:
        def stop(number: int, _: Any) -> None:
            self.stop_signal = number
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
            self.say("Finishing the chunk in progress; once more to stop at once.")

        try:
            return {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # signals reach only the main thread
            return {}

    def check_finite(self, updates: int, rows: dict[str, np.ndarray], finite: np.ndarray) -> None:
        losses = {name: x for name, x in rows.items() if not name.startswith("episode")}
        bad: np.ndarray = np.any([~np.isfinite(x) for x in losses.values()], axis=0)
        if not bad.any() and finite.all():
            return
        seed = int(np.argmax(bad.any(1) if bad.any() else ~finite))
        names = [name for name, x in losses.items() if not np.isfinite(x[seed]).all()] or ["a parameter"]
        update = updates + (int(np.argmax(bad[seed])) if bad[seed].any() else bad.shape[1] - 1) + 1
        kept = ""
        if self.folder is not None:
            last = checkpoint.steps(self.folder / "checkpoints")[-1]
            kept = f" The checkpoint of update {last} in {self.folder} is from before."
        raise NonFiniteError(
            f"Seed {self.seeds[seed]} left the finite numbers at update {update}: {', '.join(names)} is NaN or "
            f"infinite. A smaller learning rate or max_grad_norm often helps.{kept}"
        )

    def log(self, updates: int, rows: dict[str, np.ndarray]) -> None:
        length = next(iter(rows.values())).shape[1]
        for logger in self.loggers:
            for i in range(length):
                update = updates + i + 1
                logger.write(
                    update, self.config.env_steps(update), self.seeds, {name: x[:, i] for name, x in rows.items()}
                )

    def save(self, updates: int, states: Any) -> None:
        if self.folder is None:
            return
        for logger in self.loggers:
            logger.flush()  # before the checkpoint, so that its updates are in the file whenever it exists
        checkpoint.save_step(self.folder / "checkpoints", updates, self.unpad(states))

    def restore(self, folder: Path) -> tuple[int, Any]:
        like = _states_like(self.algorithm, self.config, len(self.seeds))
        updates, states, problems = checkpoint.load_latest(folder / "checkpoints", like)
        for problem in problems:
            self.say(f"{problem} Falling back to the checkpoint of update {updates}.")
        self.say(f"Going on from update {updates} of {self.config.num_updates}.")
        states = jax.tree.map(lambda x: jnp.concatenate([x] + [x[-1:]] * self.padding) if self.padding else x, states)
        return updates, jax.device_put(states, jax.NamedSharding(self.mesh, PartitionSpec("seeds")))

    def unpad(self, states: Any) -> Any:
        return jax.tree.map(lambda x: x[: len(self.seeds)], states) if self.padding else states


@functools.cache
def _sharded(algorithm: ModuleType, mesh: Mesh, batch_size: int, function: str, max_chunk: int = 0) -> Any:
    """`init(keys, config)` or `advance(states, config, chunk)` over seeds on all devices of the mesh, jitted."""

    def init(keys: Any, config: Any) -> Any:
        return jax.lax.map(lambda key: algorithm.init(key, config), keys, batch_size=batch_size)

    def advance(states: Any, config: Any, chunk: Any) -> Any:
        many = functools.partial(_advance, algorithm, config, chunk, max_chunk)
        return jax.lax.map(many, states, batch_size=batch_size)

    over_seeds, everywhere = PartitionSpec("seeds"), PartitionSpec()
    specs = {"init": (over_seeds, everywhere), "advance": (over_seeds, everywhere, everywhere)}[function]
    body: Any = {"init": init, "advance": advance}[function]
    program = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=over_seeds, check_vma=False)
    return jax.jit(program, donate_argnums=0 if function == "advance" else ())


def _advance(algorithm: ModuleType, config: Any, chunk: Any, max_chunk: int, state: Any) -> tuple[Any, Any, Any]:
    """`chunk` updates of one seed: the state, metrics `[max_chunk]`, and whether its parameters are finite.

    The loop's length is an argument, so that one compiled program serves every chunk.
    """
    shapes = jax.eval_shape(algorithm.update, state, config)[1]
    metrics = jax.tree.map(lambda x: jnp.zeros((max_chunk, *x.shape), x.dtype), shapes)

    def body(i: Any, carry: Any) -> Any:
        state, metrics = carry
        state, row = algorithm.update(state, config)
        return state, jax.tree.map(lambda rows, x: rows.at[i].set(x), metrics, row)

    state, metrics = jax.lax.fori_loop(0, chunk, body, (state, metrics))
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)]).all()
    return state, metrics, finite


def check_memory(algorithm: ModuleType, config: Any, num_seeds: int) -> str:
    """One line on the memory that the states of all seeds need, estimated from shapes alone.

    Raises RunError with the numbers where it exceeds what the machine has free.
    """
    state = jax.eval_shape(algorithm.init, jax.random.key(0), config)
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if not _is_key(leaf))
    need = 2 * one * num_seeds  # a chunk reads the old states while it writes the new ones
    have = _free_memory()
    sizes = f"{_megabytes(one)} a seed, at most {_megabytes(need)} for {num_seeds} seed(s)"
    line = f"Memory: {sizes}; {_megabytes(have)} free."
    if need > have:
        raise RunError(f"{line} Train fewer seeds at a time, or take a smaller buffer_size or num_envs.")
    return line


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _free_memory() -> int:
    device = jax.devices()[0]
    if device.platform == "cpu":
        import psutil

        return psutil.virtual_memory().available
    stats = device.memory_stats()
    return (stats["bytes_limit"] - stats["bytes_in_use"]) * len(jax.devices())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"


def _states_like(algorithm: ModuleType, config: Any, num_seeds: int) -> Any:
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_seeds))
    return jax.eval_shape(jax.vmap(algorithm.init, (0, None)), keys, config)


def config_dict(config: Any) -> dict[str, Any]:
    """A Config's fields as JSON values; an env object stands as its repr, env_params as the list of its numbers."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    fields["env"] = config.env if isinstance(config.env, str) else repr(config.env)
    if config.env_params is not None:
        fields["env_params"] = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(config.env_params)]
    return {
        name: x.tolist() if hasattr(x, "tolist") else list(x) if isinstance(x, tuple) else x
        for name, x in fields.items()
    }


def read_config(folder: str | Path) -> tuple[ModuleType, Any, list[int]]:
    """The algorithm, Config and seeds of a run's folder. Raises RunError where it holds no run."""
    import purerl

    path = Path(folder) / "config.json"
    if not path.is_file():
        raise RunError(f"{folder} holds no run: there is no {path.name} in it.")
    try:
        stored = json.loads(path.read_text())
        algorithm, fields = getattr(purerl, stored["algorithm"]), stored["config"]
        seeds = stored["seeds"]
    except (ValueError, KeyError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}.") from error
    defaults = algorithm.Config()
    fields = {name: tuple(x) if isinstance(getattr(defaults, name, None), tuple) else x for name, x in fields.items()}
    arrays = [field.name for field in dataclasses.fields(defaults) if field.type is Any and field.name != "env_params"]
    fields |= {name: jnp.asarray(fields[name]) for name in arrays if fields.get(name) is not None}
    if fields.get("env_params") is not None:
        own = envs.make(fields["env"]).default_params
        leaves = [jnp.asarray(leaf) for leaf in fields["env_params"]]
        fields["env_params"] = jax.tree.structure(own).unflatten(leaves)
    return algorithm, algorithm.Config(**fields), seeds


def _check_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise RunError(
            f"{folder} is not empty: name another folder, or go on with --resume {folder} if it holds this run."
        )


def _write_config(folder: Path, algorithm: ModuleType, config: Any, seeds: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    stored = {"algorithm": _name(algorithm), "seeds": seeds, "config": config_dict(config), "versions": versions}
    (folder / "config.json").write_text(json.dumps(stored, indent=2) + "\n")


def _check_same_run(folder: Path, algorithm: ModuleType, config: Any, seeds: list[int]) -> None:
    if not folder.is_dir():
        raise RunError(f"There is no folder {folder} to resume.")
    path = folder / "config.json"
    if not path.is_file():
        raise RunError(f"{folder} holds no run: there is no {path.name} in it.")
    stored = json.loads(path.read_text())
    if stored["algorithm"] != _name(algorithm):
        raise RunError(f"{folder} is a run of {stored['algorithm']}, not of {_name(algorithm)}.")
    mine = json.loads(json.dumps({**config_dict(config), "seeds": seeds}))
    theirs = {**stored["config"], "seeds": stored["seeds"]}
    differing = [
        f"{name} ({theirs.get(name)} there, {mine.get(name)} here)"
        for name in {**theirs, **mine}
        if theirs.get(name) != mine.get(name)
    ]
    if differing:
        raise RunError(f"{folder} is a run of another config: it differs in {', '.join(differing)}.")


def _name(algorithm: ModuleType) -> str:
    return algorithm.__name__.split(".")[-1]
