"""Training with a face to the world: many seeds on all devices, progress, logs, checkpoints, resume.

Algorithms know nothing of this. The runner calls their `init` once and their `update` in jitted chunks; between chunks
it is plain Python on the host. How the updates are cut into chunks does not change a bit of the result.

Seeds are spread over the devices; within a device `seeds_at_once` of them run vmapped and the rest in turn
(`jax.lax.map`). On a CPU one at a time is fastest and runs each seed through the program of a lone seed; on an
accelerator as many as fit are. Where several processes run, `processes.connect`ed, each trains its share of the seeds;
process 0 keeps the folder, as if it were alone.
"""

import contextlib
import functools
import operator
import signal
import threading
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
from purerl.core.mesh import ENVS
from purerl.run import checkpoint, logs, memory, objects, policy_file, processes
from purerl.run import folder as run_folder
from purerl.run.acting import with_leaves
from purerl.run.devices import use_all_cores
from purerl.run.errors import NonFiniteError, RunError, StoppedError
from purerl.run.evaluate import Best, check_evaluations, evaluated, evaluated_updates, first_best
from purerl.run.lock import lock
from purerl.run.logs import CsvLogger, Logger
from purerl.run.progress import Progress
from purerl.run.warm_start import check_weights, learned, with_weights

__all__ = ["NonFiniteError", "Run", "RunError", "StoppedError", "load", "train", "use_all_cores"]

_CHUNK_SECONDS = 1.0  # how long the host waits for the device: long enough to cost nothing, short enough to feel live
_MAX_CHUNK = 1024


class Run(NamedTuple):
    """What `train` leaves.

    states: each leaf `[num_seeds, ...]`. metrics: numpy `[num_seeds, updates]` of this call. updates: done in all.
    finished: false where a signal ended it early, whose number is stop_signal. compile_seconds, run_seconds: of this
    call, evaluations apart. best: the states with their policies as they were at the best evaluation of each seed; None
    before the first evaluation, or without any.
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
    stop_signal: int | None = None
    best: Any = None


def train(
    algorithm: ModuleType,
    config: Any,
    *,
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    resume: bool = False,
    extend: bool = False,
    seeds_at_once: int | None = None,
    devices_per_seed: int | None = None,
    checkpoint_seconds: float = 30.0,
    eval_every: int | None = None,
    eval_episodes: int | None = None,
    start_from: str | Path | None = None,
    on_chunk: Callable[[int, Any, dict[str, np.ndarray]], bool | None] | None = None,
    loggers: Sequence[str | Callable[[], Logger]] = (),
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Run:
    """Trains one seed or many; seed i starts from `jax.random.key(i)`, whatever the other seeds are.

    out: folder for config.json, metrics.csv and checkpoints; None keeps nothing on disk.
    resume: go on from the newest checkpoint in `out`, or from the start where there is none yet.
    extend: a resumed run may go on beyond its end, with a config of more total_timesteps; it says what that does to
    what is annealed.
    seeds_at_once: how many a device runs vmapped; None means as before where it goes on, else one on a CPU and as
    many as fit on an accelerator.
    devices_per_seed: over how many devices the envs of each seed are split and its gradients averaged; None means as
    before where it goes on, else 1. Its numbers are those of one device but for rounding.
    checkpoint_seconds: least time between checkpoints; there is always one at the start and at the end.
    eval_every: env steps of a seed (updates, of an algorithm that takes none) from one evaluation of the greedy
    policies to the next, as in `purerl.train_and_evaluate`: the metric eval_return, NaN where there was none, and the
    best policy of each seed, in `out` as checkpoints/best/<seed>.policy for `purerl.load_policy`.
    eval_episodes: in each evaluation, 32 where not given. Where it goes on, both are as before.
    start_from: folder of another run of the algorithm, whose final weights and statistics of observations are the
    first ones here, the first seed's for the first seed and so on, in turns; all else starts anew.
    on_chunk: called as on_chunk(updates, states, metrics) whenever the host has the training back, every second or
    so, with the updates done, states `[num_seeds, ...]` and the metrics `[num_seeds, n]` of the n updates since; True
    ends the run early, saved, to be gone on with. The states are on the devices, which the next updates reuse: copy
    what is to be kept. Of several processes each is given those of its own seeds, and True in any ends all.
    loggers: "tensorboard" and "wandb", which write to `out`, or functions that open one each, called when nothing
    stands in the way of the run; of several processes, in the first alone.
    say: takes one-line messages.

    SIGINT and SIGTERM end it after the chunk in progress, saved; a second signal ends it at once. An exception in
    on_chunk or a logger ends it too, with the state saved as it is then.
    Raises RunError (a folder in use or of another run, too little memory, a full disk, a process that is lost) and
    NonFiniteError.
    """
    _check_algorithm(algorithm, config)
    seeds, folder = _whole_numbers(seeds), None if out is None else Path(out)
    _check_arguments(seeds, folder, resume, seeds_at_once, loggers, on_chunk)
    progress, say = (progress, say) if processes.index() == 0 else (False, _say_nothing)
    options = _options(seeds_at_once, devices_per_seed, loggers, eval_every, eval_episodes, start_from, resume)
    given = {"out": folder is not None, "resume": resume, "start_from": start_from is not None}
    _check_all_alike(algorithm, config, seeds, options, given)
    processes.first(lambda: logs.check_installed(options.loggers))
    processes.first(functools.partial(_check_source, options.start_from, algorithm, config))
    if folder is not None and resume:
        same = functools.partial(run_folder.check_same, folder, algorithm, config, seeds, extend=extend)
        options = _as_before(*processes.first(same), options, say)
    elif folder is not None:
        processes.first(functools.partial(run_folder.check_free, folder))
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_Signals(say))

        def prepare() -> _Loop:
            mine = len(processes.share(seeds))
            _check_split(algorithm, config, options.devices_per_seed)
            memory.check_states(algorithm, config, mine, memory.free_bytes(jax.local_devices()))
            return _Loop(
                algorithm, config, seeds, folder, options, checkpoint_seconds, on_chunk, loggers, progress, say
            )

        def hold(folder: Path) -> None:
            stack.enter_context(run_folder.disk(folder))
            stack.enter_context(lock(folder, say))

        def begin(folder: Path) -> None:
            run_folder.make(folder)
            hold(folder)
            run_folder.check_free(folder)  # another process may have begun here while this one compiled
            run_folder.write(folder, algorithm, config, seeds, options._replace(seeds_at_once=loop.batch_size))

        if folder is not None and resume:
            processes.first(functools.partial(hold, folder))
        loop = processes.agree(prepare)
        loop.batch_size = int(processes.gather(np.int32(loop.batch_size)).min())
        processes.agree(loop.check_memory)
        if folder is not None and not resume:
            processes.first(functools.partial(begin, folder))
        try:
            return loop.run(resume, signals)
        except processes.LostError as lost:
            raise StoppedError(f"{lost} What was saved is kept{loop.how_to_go_on()}.") from lost
        except _ForeignError as foreign:
            error = foreign.error
    raise error


def load(out: str | Path, *, algorithm: ModuleType | None = None, **objects: Any) -> Run:
    """The newest readable checkpoint of a run's folder, for evaluation and rendering; metrics stay in metrics.csv.

    algorithm, objects: the module, and fields of the Config such as `env`, where config.json has no import path of
    them. It writes nothing, so that the run may be in progress. Raises RunError where the folder holds no run or
    something has to be given, and CheckpointError where there is no checkpoint that can be read.
    """
    algorithm, config, seeds, options = run_folder.load(out, algorithm, **objects)
    like = _saved_like(algorithm, config, len(seeds), options)
    updates, (states, best), _ = checkpoint.load_latest(Path(out) / run_folder.CHECKPOINTS, like)
    finished = updates == config.num_updates
    return Run(algorithm, config, seeds, states, {}, updates, finished, 0.0, 0.0, best=_best_states(states, best))


def _host() -> contextlib.AbstractContextManager[Any]:
    """For the states of all seeds, which need not fit on one accelerator: they are arrays of the CPU, if JAX has it."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _say_nothing(_: str) -> None:
    """What all processes but the first have to say."""


def _check_all_alike(
    algorithm: ModuleType, config: Any, seeds: list[int], options: run_folder.Options, arguments: dict[str, bool]
) -> None:
    """Raises RunError where there are more processes than seeds, or where not all train the same with the same code.

    arguments: what else decides what the processes tell each other, and when.
    """
    if processes.count() > len(seeds):
        raise RunError(f"{processes.count()} processes cannot share {len(seeds)} seed(s): start that many at most.")
    if processes.count() == 1:
        return
    record = run_folder.record(algorithm, config, seeds, options._replace(start_from=None)) | {"arguments": arguments}
    parts = {name: value if isinstance(value, dict) else {"": value} for name, value in record.items()}
    processes.check_alike({f"{x}.{y}".strip("."): repr(z) for x, values in parts.items() for y, z in values.items()})


def _check_algorithm(algorithm: Any, config: Any) -> None:
    expected = getattr(algorithm, "Config", None)
    if expected is None:
        raise RunError(f"The algorithm must be a module such as purerl.ppo, but is {algorithm!r}.")
    if not isinstance(config, expected):
        raise RunError(f"{algorithm.__name__} needs a Config of its own, but was given {type(config)}.")


def _whole_numbers(seeds: Any) -> list[int]:
    """Seeds of any kind of integer as Python's own."""
    try:
        return [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise RunError(f"seeds must be one or more different non-negative integers, but are {seeds!r}.") from error


def _check_arguments(
    seeds: list[int],
    folder: Path | None,
    resume: bool,
    seeds_at_once: int | None,
    loggers: Sequence[Any],
    on_chunk: Any,
) -> None:
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise RunError(f"seeds must be one or more different non-negative integers, but are {seeds}.")
    if seeds_at_once is not None and seeds_at_once < 1:
        raise RunError(f"seeds_at_once must be at least 1, but is {seeds_at_once}.")
    if not jax.sharding.get_abstract_mesh().empty:
        raise RunError("The runner lays out a mesh of its own: call it outside of jax.set_mesh, with devices_per_seed.")
    if resume and folder is None:
        raise RunError("resume needs the folder of the run to go on with.")
    if on_chunk is not None and not callable(on_chunk):
        raise RunError(f"on_chunk must be a function of (updates, states, metrics), but is {on_chunk!r}.")
    if wrong := [logger for logger in loggers if not isinstance(logger, str) and not callable(logger)]:
        raise RunError(f"A logger must be a name or a function that opens one, but is {wrong[0]!r}.")
    named = [logger for logger in loggers if isinstance(logger, str)]
    if named and folder is None:
        raise RunError(f"The logger {named[0]} writes to the run's folder: name one with out.")


def _options(
    seeds_at_once: int | None,
    devices_per_seed: int | None,
    loggers: Sequence[Any],
    eval_every: int | None,
    eval_episodes: int | None,
    start_from: str | Path | None,
    resume: bool,
) -> run_folder.Options:
    """How the arguments of `train` want it run. Raises RunError and ValueError where they cannot be."""
    if start_from is not None and resume:
        raise RunError("A resumed run goes on with its own weights: leave out start_from.")
    source = None if start_from is None else str(Path(start_from).absolute())
    named = tuple(name for name in loggers if isinstance(name, str))
    options = run_folder.Options(seeds_at_once, named, start_from=source, devices_per_seed=devices_per_seed)
    if eval_every is None and eval_episodes is None:
        return options
    _check_evaluations(eval_every, eval_episodes)
    return options._replace(eval_every=eval_every, eval_episodes=eval_episodes or 32)


def _check_source(folder: str | None, algorithm: ModuleType, config: Any) -> None:
    """Raises RunError where weights are to come from a run's folder that has none for this config; computes nothing."""
    if folder is None:
        return
    source = Path(folder)
    _, theirs, _, _ = run_folder.load(source, algorithm, **_objects_of(source, config))
    fresh, trained = (_states_like(algorithm, x, 1) for x in (config, theirs))
    check_weights(learned(fresh), learned(trained), str(source))
    if not checkpoint.steps(source / run_folder.CHECKPOINTS):
        raise RunError(f"Weights cannot come from {source}: it holds no checkpoint yet.")


def _objects_of(source: Path, config: Any) -> dict[str, Any]:
    """The Config's own objects for the fields of another run that have no import path."""
    stored = run_folder.read(source)["config"]
    missing = [name for name, x in stored.items() if isinstance(x, dict) and "type" in x and x.get("import") is None]
    return {name: getattr(config, name) for name in missing if hasattr(config, name)}


def _best_states(states: Any, best: Best | None) -> Any:
    """The states with the best policies; None where not every seed has been evaluated."""
    if best is None or not np.isfinite(np.asarray(best.eval_return)).all():
        return None
    return with_leaves(states, best.leaves)


def _check_evaluations(eval_every: int | None, eval_episodes: int | None) -> None:
    if eval_every is None:
        raise RunError(f"eval_episodes is {eval_episodes}, but there are no evaluations: say eval_every.")
    check_evaluations(eval_every, 1 if eval_episodes is None else eval_episodes)


def _as_before(
    before: run_folder.Options, changed: list[str], options: run_folder.Options, say: Callable[[str], None]
) -> run_folder.Options:
    """How a run goes on; says what else than before may change its numbers.

    Raises RunError where it should be evaluated otherwise than before, since its files have one column and one best.
    """
    for name in ("eval_every", "eval_episodes"):
        now, then = getattr(options, name), getattr(before, name)
        if options.eval_every is not None and now != then:
            raise RunError(f"The run began with {name} = {then} and cannot go on with {now}: leave it out.")
    for line in changed:
        say(line)
    for name, then in (("seeds_at_once", before.seeds_at_once), ("devices_per_seed", before.devices_per_seed or 1)):
        now = getattr(options, name)
        if None not in (then, now) and then != now:
            say(f"{name} is {now} and was {then}: numbers may differ.")
        before = before if now is None else before._replace(**{name: now})
    return before


def _check_split(algorithm: ModuleType, config: Any, devices: int | None) -> None:
    """Raises RunError where the envs of a seed cannot be split over so many devices."""
    if devices is None:
        return
    name, there = objects.short_name(algorithm), len(jax.local_devices())
    field = next((field for field in ("num_envs", "population") if hasattr(config, field)), None)
    if not 1 <= devices <= there:
        raise RunError(f"devices_per_seed must be between 1 and {there}, the number of devices here, but is {devices}.")
    if field is None:
        raise RunError(f"devices_per_seed is {devices}, but {name} steps a single env: leave it out.")
    if (num := getattr(config, field)) % devices:
        raise RunError(f"devices_per_seed is {devices}, which does not divide {field} = {num} of {name}.")


class _ForeignError(Exception):
    """What a hook or a logger of the user's raised, on its way past what is said of the disk."""

    def __init__(self, error: Exception):
        self.error = error


class _Signals:
    """What SIGINT and SIGTERM do during one `train` call; the last of them is in `number`.

    Until `defer` is called SIGINT interrupts at once, and thereafter either waits for the chunk in progress.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say, self.before = say, dict[int, Any]()
        self.number: int | None = None

    def __enter__(self) -> "_Signals":
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.catch(signal.SIGINT, self.interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """Raises the KeyboardInterrupt that came before and was lost, as happens now and then while JAX compiles."""
        if self.number is not None:
            raise KeyboardInterrupt
        for number in (signal.SIGINT, signal.SIGTERM):
            self.catch(number, self.finish_chunk)

    def catch(self, number: int, handler: Callable[[int, Any], None]) -> None:
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            before = signal.signal(number, handler)
            self.before.setdefault(number, before)

    def interrupt(self, number: int, _: Any) -> None:
        self.number = number
        raise KeyboardInterrupt

    def finish_chunk(self, number: int, _: Any) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        self.say("Finishing the chunk in progress; once more to stop at once.")


class _Loop:
    """The host loop of one `train` call: states on the devices, everything else in Python."""

    def __init__(
        self,
        algorithm: ModuleType,
        config: Any,
        seeds: list[int],
        folder: Path | None,
        options: run_folder.Options,
        checkpoint_seconds: float,
        on_chunk: Callable[[int, Any, dict[str, np.ndarray]], bool | None] | None,
        loggers: Sequence[str | Callable[[], Logger]],
        progress: bool,
        say: Callable[[str], None],
    ):
        self.algorithm, self.config, self.seeds, self.folder = algorithm, config, seeds, folder
        self.shares = [processes.share(seeds, of) for of in range(processes.count())]
        self.mine = processes.share(seeds)
        self.argument = envs.with_tables(config)
        self.checkpoint_seconds, self.on_chunk, self.progress, self.say = checkpoint_seconds, on_chunk, progress, say
        self.stop_signal: int | None = None
        self.stopped = False
        self.to_open, self.loggers = loggers, list[Logger]()
        self.max_chunk = min(config.num_updates, _MAX_CHUNK)
        self.options, self.best, self.best_on_disk = options, None, dict[int, float]()
        every = options.eval_every
        self.evaluations = [] if every is None else evaluated_updates(config, every)
        self.compile_seconds = self.run_seconds = 0.0
        self.most = -(-len(seeds) // processes.count())  # that a process has
        devices, split = jax.local_devices(), options.devices_per_seed or 1
        # As many as one process alone would use: one device and several compile to programs that may round otherwise.
        groups = min(len(devices) // split, len(seeds))
        shape = {"seeds": groups, ENVS: split} if split > 1 else {"seeds": groups}
        axis_types = (AxisType.Auto,) * len(shape)
        used = devices[: groups * split]
        self.mesh = jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=axis_types, devices=used)
        self.sharding = jax.NamedSharding(self.mesh, PartitionSpec("seeds"))
        # A device short of seeds would idle anyway; it repeats the last seed, and the copy is dropped on the way out.
        self.padding = self.most + -self.most % groups - len(self.mine)
        self.padded = self.mine + self.mine[-1:] * self.padding
        most = len(self.padded) // groups
        seeds_at_once = options.seeds_at_once
        if seeds_at_once is None:
            platform, free = devices[0].platform, memory.free_bytes(jax.local_devices())
            seeds_at_once = memory.seeds_at_once(platform, most, self.needed_bytes, free)
        self.batch_size = min(seeds_at_once, most)

    def advance(self, batch_size: int) -> Any:
        """The compiled program of a chunk; JAX keeps it, so that asking again costs nothing."""
        likes = _states_like(self.algorithm, self.config, len(self.padded))
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding), likes)
        program = _sharded(self.algorithm, self.mesh, batch_size, "advance", self.max_chunk)
        return program.lower(placed, self.argument, np.int32(0)).compile()

    def needed_bytes(self, batch_size: int) -> int:
        """On all devices, with this many seeds at once on each."""
        return memory.program_bytes(self.advance(batch_size)) * self.mesh.size + self.saved_bytes()

    def saved_bytes(self) -> int:
        """For a checkpoint the states are copied twice, to put those of all devices together and to encode them.

        Of several processes each has those of all seeds in the end.
        """
        if (self.folder is None and processes.count() == 1) or jax.local_devices()[0].platform != "cpu":
            return 0
        return 2 * memory.tree_bytes(_states_like(self.algorithm, self.config, len(self.seeds)))

    def check_memory(self) -> None:
        """Says how much is needed and free. Raises RunError where it is too little."""
        started = time.perf_counter()
        needed = self.needed_bytes(self.batch_size)
        self.compile_seconds += time.perf_counter() - started
        self.say(memory.check_program(needed, len(self.mine), memory.free_bytes(jax.local_devices())))

    def run(self, resume: bool, signals: _Signals) -> Run:
        started = time.perf_counter()
        advance = self.advance(self.batch_size)
        updates, states, self.best = self.restore(self.folder) if resume and self.folder else self.initial()
        jax.block_until_ready((states, self.best))
        if resume and self.folder:  # now that it has a state to go on from
            processes.first(functools.partial(run_folder.lengthen, self.folder, self.config))
        self.compile_seconds += time.perf_counter() - started
        names = [*advance.out_info[1], *([logs.EVAL_RETURN] if self.evaluations else [])]
        try:
            processes.first(lambda: self.open_loggers(names, updates, resume))
            self.save(updates, states)
            signals.defer()
            updates, states, history = self.loop(advance, updates, states, signals)
            whole = self.whole((states, self.best))
            self.keep(updates, whole)
        finally:
            for logger in self.loggers:
                logger.close()
        metrics = {
            name: np.concatenate([m[name] for m in history], axis=1) if history else np.zeros((len(self.seeds), 0))
            for name in names
        }
        finished = updates == self.config.num_updates
        if not finished:
            by = " by on_chunk" if self.stopped else f" by {signal.Signals(self.stop_signal or 0).name}"
            self.say(f"Stopped{by} after update {updates} of {self.config.num_updates}{self.how_to_go_on()}.")
        (states, best), times = self.on_device(whole), (self.compile_seconds, self.run_seconds)
        best = _best_states(states, best)
        return Run(
            self.algorithm, self.config, self.seeds, states, metrics, updates, finished, *times, self.stop_signal, best
        )

    def open_loggers(self, names: Any, updates: int, resume: bool) -> None:
        """The metrics file first, then what was asked for; all keep the rows up to `updates`."""
        if self.folder is not None:
            file = CsvLogger(self.folder / run_folder.METRICS, names, len(self.seeds), updates)
            self.loggers.append(file)
            if file.kept_updates < updates:
                self.say(
                    f"{self.folder / run_folder.METRICS} has the rows of {file.kept_updates} updates in place of "
                    f"{updates}: the others are lost, and its curve lacks them."
                )
        last_step = logs.step_of(updates, self.config.env_steps(updates)) if resume else None
        for logger in self.to_open:
            if isinstance(logger, str):
                assert self.folder is not None
                settings = run_folder.config_dict(self.config)
                self.loggers.append(logs.open_named(logger, self.folder, settings, last_step))
            else:
                self.loggers.append(logger())

    def loop(
        self, advance: Any, updates: int, states: Any, signals: _Signals
    ) -> tuple[int, Any, list[dict[str, np.ndarray]]]:
        history, chunk, saved_at = [], 1, time.perf_counter()
        with Progress(self.algorithm, self.config, len(self.seeds), updates, enabled=self.progress) as bar:
            while updates < self.config.num_updates and self.stop_signal is None and not self.stopped:
                until = next((update for update in self.evaluations if update > updates), self.config.num_updates)
                chunk = min(chunk, self.max_chunk, until - updates)
                started = time.perf_counter()
                states, metrics, finite = jax.block_until_ready(advance(states, self.argument, np.int32(chunk)))
                seconds = time.perf_counter() - started
                self.run_seconds += seconds
                rows = {name: np.asarray(x)[:, :chunk] for name, x in metrics.items()}
                if self.evaluations:
                    rows[logs.EVAL_RETURN] = np.full((len(finite), chunk), np.nan, np.float32)
                if self.evaluations and updates + chunk == until:
                    rows[logs.EVAL_RETURN][:, -1] = self.evaluate(states, until)
                own, due = rows, time.perf_counter() - saved_at > self.checkpoint_seconds
                told = _Told(np.float32(seconds), np.bool_(due))
                rows, finite, told = self.exchange(rows, np.asarray(finite), told)
                self.check_finite(updates, rows, finite)
                updates += chunk
                history.append(rows)
                self.show(updates, states, own, rows, signals)
                bar.update(updates, rows)
                chunk = max(1, min(4 * chunk, round(chunk * _CHUNK_SECONDS / float(told.seconds))))
                if told.save_due:
                    self.save(updates, states)
                    saved_at = time.perf_counter()
        return updates, states, history

    def exchange(
        self, rows: dict[str, np.ndarray], finite: np.ndarray, told: "_Told"
    ) -> tuple[dict[str, np.ndarray], np.ndarray, "_Told"]:
        """What all processes have after a chunk, given what this one has: rows `[num_seeds, n]`, finite `[num_seeds]`.

        Of what they tell each other, the longest time and the first one's clock count.
        """
        if processes.count() == 1:
            return {name: x[: len(self.seeds)] for name, x in rows.items()}, finite[: len(self.seeds)], told
        of_seeds, every = processes.gather((jax.tree.map(lambda x: x[: self.most], (rows, finite)), told))
        rows, finite = jax.tree.map(self.in_turn, of_seeds)
        return rows, finite, _Told(every.seconds.max(), every.save_due[0])

    def in_turn(self, every: np.ndarray) -> np.ndarray:
        """`[num_seeds, ...]`, given the first ones of each process's padded seeds, `[processes, most, ...]`."""
        return np.concatenate([own[: len(share)] for own, share in zip(every, self.shares, strict=True)])

    def how_to_go_on(self) -> str:
        return f": go on with --resume {self.folder}" if self.folder else ""

    def keys(self) -> Any:
        return jnp.stack([jax.random.key(seed) for seed in self.padded])

    def places(self) -> list[int]:
        """Where the seeds of this process, padding included, stand among all."""
        return [self.seeds.index(seed) for seed in self.padded]

    def initial(self) -> tuple[int, Any, Any]:
        """Update 0: its states, and the best policies, of which there are none yet."""
        states = _sharded(self.algorithm, self.mesh, self.batch_size, "init")(self.keys(), self.argument)
        if (source := self.options.start_from) is not None:
            trained = processes.first(lambda: self.weights_of(Path(source)))
            states = jax.device_put(with_weights(states, trained, self.places(), source), self.sharding)
        if not self.evaluations:
            return 0, states, None
        best = jax.jit(jax.vmap(lambda state: first_best(self.algorithm, state, self.config)))(states)
        return 0, states, jax.device_put(best, self.sharding)

    def weights_of(self, source: Path) -> Any:
        """What another run has learned, on the host."""
        trained = load(source, algorithm=self.algorithm, **_objects_of(source, self.config)).states
        return jax.tree.map(np.asarray, learned(trained))

    def evaluate(self, states: Any, update: int) -> np.ndarray:
        """The mean return of each padded seed, and keeps the best policies. It takes no part in the training."""
        assert self.options.eval_episodes is not None
        program = _evaluation(self.algorithm, self.mesh, self.batch_size, self.options.eval_episodes)
        self.best, values = program(states, self.keys(), self.best, self.argument, np.int32(update))
        return np.asarray(values)

    def check_finite(self, updates: int, rows: dict[str, np.ndarray], finite: np.ndarray) -> None:
        losses = {name: x for name, x in rows.items() if not name.startswith(("episode", logs.EVAL_RETURN))}
        bad: np.ndarray = np.any([~np.isfinite(x) for x in losses.values()], axis=0)
        if not bad.any() and finite.all():
            return
        seed = int(np.argmax(bad.any(1) if bad.any() else ~finite))
        names = [name for name, x in losses.items() if not np.isfinite(x[seed]).all()] or ["a parameter"]
        update = updates + (int(np.argmax(bad[seed])) if bad[seed].any() else bad.shape[1] - 1) + 1
        kept = ""
        if processes.index() > 0:
            raise processes.ElsewhereError("Numbers left the finite ones; process 0 says which.")
        if self.folder is not None:
            last = checkpoint.steps(self.folder / run_folder.CHECKPOINTS)[-1]
            kept = f" The checkpoint of update {last} in {self.folder} is from before."
        raise NonFiniteError(
            f"Seed {self.seeds[seed]} left the finite numbers at update {update}: {', '.join(names)} is NaN or "
            f"infinite. A smaller learning rate or max_grad_norm often helps.{kept}"
        )

    def show(
        self, updates: int, states: Any, own: dict[str, np.ndarray], rows: dict[str, np.ndarray], signals: _Signals
    ) -> None:
        """The rows of the last updates to the loggers and the hook; where one of them fails, the state is saved.

        own: the rows of this process's padded seeds. rows: of all. Whether to stop is asked of all processes.
        """
        # metrics.csv comes first, and where it fails so will the checkpoint.
        first = 0 if self.folder is None else 1
        error, foreign = None, False
        try:
            self.log(self.loggers[:first], updates, rows)
            foreign = True
            self.log(self.loggers[first:], updates, rows)
            if self.on_chunk is not None:
                mine = {name: x[: len(self.mine)] for name, x in own.items()}
                self.stopped = self.asked_to_stop(self.on_chunk(updates, self.unpad(states), mine))
        except Exception as raised:
            error = raised
        here = np.array([error is not None, error is not None and foreign, self.stopped, signals.number or 0], np.int32)
        any_error, any_foreign, any_stopped, number = processes.gather(here).max(0).tolist()
        self.stopped, self.stop_signal = bool(any_stopped), number or None
        if any_foreign:
            self.loggers, unusable = self.loggers[:first], self.loggers[first:]
            self.save(updates, states)
            self.say(f"Ended by an error after update {updates} of {self.config.num_updates}{self.how_to_go_on()}.")
            self.loggers += unusable
            error = error and _ForeignError(error)
        if any_error:
            raise error or processes.ElsewhereError("Another process could not go on; it says why.")

    def asked_to_stop(self, answer: Any) -> bool:
        if answer is not None and not isinstance(answer, bool | np.bool_):
            raise TypeError(f"on_chunk must return True to end the run, False or None to go on, but gave {answer!r}.")
        return bool(answer)

    def log(self, loggers: list[Logger], updates: int, rows: dict[str, np.ndarray]) -> None:
        """The rows `[num_seeds, n]` of the n updates up to `updates`."""
        length = next(iter(rows.values())).shape[1]
        for logger in loggers:
            for i in range(length):
                update = updates - length + i + 1
                row = {name: x[:, i] for name, x in rows.items()}
                logger.write(update, self.config.env_steps(update), self.seeds, row)

    def save(self, updates: int, states: Any) -> None:
        """The states and the best policies of all seeds, where there is a folder."""
        if self.folder is not None:
            self.keep(updates, self.whole((states, self.best)))

    def keep(self, updates: int, whole: Any) -> None:
        if self.folder is not None:
            processes.first(functools.partial(self.write, self.folder / run_folder.CHECKPOINTS, updates, *whole))

    def write(self, folder: Path, updates: int, states: Any, best: Best | None) -> None:
        for logger in self.loggers:
            logger.flush()  # before the checkpoint, so that its updates are in the file whenever it exists
        try:
            checkpoint.save_step(folder, updates, (states, best))
            self.save_best(folder / run_folder.BEST, best)
        except checkpoint.CheckpointError as error:
            raise StoppedError(f"{error} What was saved before is kept{self.how_to_go_on()}.") from error

    def save_best(self, folder: Path, best: Best | None) -> None:
        """Writes the policies that are new since they were written last."""
        if best is None:
            return
        folder.mkdir(exist_ok=True)
        for i, (seed, value) in enumerate(zip(self.seeds, np.asarray(best.eval_return), strict=True)):
            if np.isfinite(value) and self.best_on_disk.get(seed) != value:
                leaves = {place: leaf[i] for place, leaf in best.leaves.items()}
                policy_file.write(folder / f"{seed}.policy", self.algorithm, leaves, self.config)
                self.best_on_disk[seed] = float(value)

    def restore(self, folder: Path) -> tuple[int, Any, Any]:
        """The newest checkpoint, or where the run was stopped before its first the states of its seeds."""
        like = _saved_like(self.algorithm, self.config, len(self.seeds), self.options)
        likes, structure = jax.tree.flatten(like)
        found = list[np.ndarray]()

        def read() -> int | None:
            checkpoints = folder / run_folder.CHECKPOINTS
            if not checkpoint.steps(checkpoints):
                for line in checkpoint.set_newer_aside(checkpoints, -1):
                    self.say(line)
                self.say(f"{folder} holds no checkpoint yet: starting from update 0.")
                return None
            with _host():
                updates, saved, problems = checkpoint.load_latest(checkpoints, like)
            for problem in problems:
                self.say(f"{problem} Falling back to the checkpoint of update {updates}.")
            for line in checkpoint.set_newer_aside(checkpoints, updates):
                self.say(line)
            self.say(f"Going on from update {updates} of {self.config.num_updates}.")
            found.extend(np.asarray(checkpoint.to_data(leaf)) for leaf in jax.tree.leaves(saved))
            return updates

        updates = processes.first(read)
        if updates is None:
            return self.initial()
        places, mine = np.array(self.places()), []
        for example in likes:
            data = jax.eval_shape(checkpoint.to_data, example)
            leaf = processes.from_first(found.pop(0) if found else np.zeros(data.shape, data.dtype))
            with _host():
                mine.append(checkpoint.from_data(leaf[places], example))
        return updates, *jax.device_put(structure.unflatten(mine), self.sharding)

    def unpad(self, states: Any) -> Any:
        return _first(states, len(self.mine)) if self.padding else states

    def whole(self, tree: Any) -> Any:
        """What a checkpoint holds, given this process's padded part: the trees of all seeds.

        Where there are several processes it is on the host, PRNG keys as their numbers.
        """
        if processes.count() == 1:
            return self.unpad(tree)

        def gather(leaf: Any) -> np.ndarray:  # one after the other, since each is there twice meanwhile
            return self.in_turn(processes.gather(checkpoint.on_host(checkpoint.to_data(leaf))[: self.most]))

        return jax.tree.map(gather, tree)

    def on_device(self, whole: Any) -> Any:
        """What `whole` gave, as the arrays and PRNG keys that it stands for."""
        like = _saved_like(self.algorithm, self.config, len(self.seeds), self.options)
        if processes.count() == 1:
            return whole
        with _host():
            return jax.tree.map(checkpoint.from_data, whole, like)


class _Told(NamedTuple):
    """What processes tell each other after a chunk: how long it took, and whether a checkpoint is due."""

    seconds: Any
    save_due: Any


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
    return _compiled(body, mesh, specs, donate_argnums=0 if function == "advance" else ())


def _compiled(body: Any, mesh: Mesh, specs: tuple[PartitionSpec, ...], **options: Any) -> Any:
    """Jitted, each device of the mesh's first axis with its seeds; what the envs' devices share of one is put together.

    specs: of the arguments.
    """
    over_seeds = PartitionSpec("seeds")
    program = jax.shard_map(
        body, mesh=mesh, in_specs=specs, out_specs=over_seeds, axis_names={"seeds"}, check_vma=False
    )
    return jax.jit(program, out_shardings=jax.NamedSharding(mesh, over_seeds), **options)


def _advance(algorithm: ModuleType, config: Any, chunk: Any, max_chunk: int, state: Any) -> tuple[Any, Any, Any]:
    """`chunk` updates of one seed: the state, metrics `[max_chunk]`, and whether its parameters are finite.

    The loop's length is an argument, so that one compiled program serves every chunk.
    """
    update = jax.jit(algorithm.update)  # traced once, for the shapes and for the loop
    shapes = jax.eval_shape(update, state, config)[1]
    metrics = jax.tree.map(lambda x: jnp.zeros((max_chunk, *x.shape), x.dtype), shapes)

    def body(i: Any, carry: Any) -> Any:
        state, metrics = carry
        state, row = update(state, config)
        return state, jax.tree.map(lambda rows, x: rows.at[i].set(x), metrics, row)

    state, metrics = jax.lax.fori_loop(0, chunk, body, (state, metrics))
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)]).all()
    return state, metrics, finite


@functools.cache
def _evaluation(algorithm: ModuleType, mesh: Mesh, batch_size: int, num_episodes: int) -> Any:
    """`evaluate(states, keys, best, config, update)` over seeds on all devices of the mesh, jitted."""

    def evaluate(states: Any, keys: Any, best: Any, config: Any, update: Any) -> Any:
        def one(seed: Any) -> Any:
            state, key, best = seed
            return evaluated(algorithm, state, config, key, update, best, num_episodes)

        return jax.lax.map(one, (states, keys, best), batch_size=batch_size)

    over_seeds, everywhere = PartitionSpec("seeds"), PartitionSpec()
    specs = (over_seeds, over_seeds, over_seeds, everywhere, everywhere)
    return _compiled(evaluate, mesh, specs)


@functools.partial(jax.jit, static_argnums=1)
def _first(states: Any, num: int) -> Any:
    """In one program: one for each leaf would take a second to compile."""
    return jax.tree.map(lambda x: x[:num], states)


def _saved_like(algorithm: ModuleType, config: Any, num_seeds: int, options: run_folder.Options) -> Any:
    """What a checkpoint holds: the states and, of a run that is evaluated all along, the best policies."""
    states = _states_like(algorithm, config, num_seeds)
    if options.eval_every is None:
        return states, None
    return states, jax.eval_shape(jax.vmap(lambda state: first_best(algorithm, state, config)), states)


def _states_like(algorithm: ModuleType, config: Any, num_seeds: int) -> Any:
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_seeds))
    return jax.eval_shape(jax.vmap(algorithm.init, (0, None)), keys, config)
