"""Processes that train one run together, each its share of the seeds, on one machine or on many.

JAX's distributed runtime connects them. What they tell each other goes between their CPU devices, whatever trains; the
programs that train know nothing of it, which keeps each seed's numbers those of one process. Process 0 alone reads and
writes the run's folder. Each of these functions but `connect` is called by all processes in the same order, and costs
nothing where there is but one.
"""

import functools
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from purerl.run.errors import RunError, StoppedError

_Outcome = TypeVar("_Outcome")
_PATIENCE = 300  # seconds that processes wait for each other at the start
_PADDING = 1 << 20  # bytes to a multiple of which larger messages are filled up


class ElsewhereError(StoppedError):
    """Another process could not go on; it says why itself."""


class LostError(StoppedError):
    """Another process has ended, or cannot be reached any more."""


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    patience: int = _PATIENCE,
    say: Callable[[str], None] = print,
) -> None:
    """Connects to the run's other processes, before JAX starts; without arguments where a launcher says that they are.

    coordinator: address and port of process 0, "host:port". num_processes: 1 is for a process that trains alone,
    whatever a launcher says. patience: seconds to wait for the others; JAX ends the process when they are over. say:
    told what it waits for. From then on an exception that nobody catches ends the process at once.
    Raises RunError where the arguments do not fit together, nothing answers at the coordinator's address, or process 0
    finds its port taken.
    """
    if num_processes == 1 and not process_id:
        return
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    if all(value is None for value in given.values()) and not launched(os.environ):
        return
    if missing := [flag for flag, value in given.items() if value is None and not launched(os.environ)]:
        raise RunError(f"{', '.join(missing)} must be given too: no launcher such as SLURM's says what they are.")
    check(coordinator, num_processes, process_id)
    if process_id == 0:
        if coordinator is not None:
            _check_free(coordinator)
        say(f"Waiting for {num_processes} processes at {coordinator}, for {patience} s at most.")
    elif coordinator is not None and process_id is not None:
        _reach(coordinator, patience)
    if platforms := with_cpu(jax.config.values["jax_platforms"]):
        jax.config.update("jax_platforms", platforms)
    # It would take SIGTERM, on which the run is saved.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=patience)
    except ValueError as error:  # what is missing
        raise RunError(
            f"The launcher does not say how the processes reach each other ({error}): give --coordinator, "
            "--num-processes and --process-id, or --num-processes 1 where each trains alone."
        ) from error
    sys.excepthook = functools.partial(_end, sys.excepthook)


def _end(show: Callable[..., None], *raised: Any) -> None:
    """At its end Python would wait for the other processes, and they for what this one should have told them."""
    show(*raised)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Raises RunError for numbers and addresses that cannot be; None is for what a launcher says."""
    host, _, port = (coordinator or "").rpartition(":")
    if coordinator is not None and not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise RunError(f"--coordinator must be an address and a port such as node0:12345, but is {coordinator!r}.")
    if num_processes is not None and num_processes < 1:
        raise RunError(f"--num-processes must be at least 1, but is {num_processes}.")
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        last = "" if num_processes is None else f" and at most {num_processes - 1}, as --num-processes {num_processes}"
        raise RunError(f"--process-id must be at least 0{last}, but is {process_id}.")


def launched(environ: Any) -> bool:
    """Whether SLURM, Open MPI or a Kubernetes job has started several processes, as JAX can then find by itself.

    A shell in a SLURM allocation and a pod of no indexed job are single processes, whatever else they could be part of.
    """
    tasks = max(int(environ.get(name, 1)) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return tasks > 1 or ("KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ)


def with_cpu(platforms: str | None) -> str:
    """JAX_PLATFORMS with the CPU among them; nothing where it leaves the choice open."""
    return f"{platforms},cpu" if platforms and "cpu" not in platforms.split(",") else platforms or ""


def _check_free(coordinator: str) -> None:
    """JAX would crash where the port is taken, and other processes would reach whoever has it."""
    port = int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise RunError(
            f"Port {port} of --coordinator {coordinator} cannot be had on this machine ({error.strerror}), perhaps "
            "since another run has it: give all processes another port."
        ) from error


def _reach(coordinator: str, patience: int) -> None:
    """Waits until something listens there; JAX alone would end the process by a crash."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise RunError(
                    f"No process 0 answers at {coordinator} after {patience} s ({error.strerror or error}): start it "
                    "with the same --coordinator, which must be an address of its machine."
                ) from error
        time.sleep(0.2)


def connected() -> bool:
    """Whether JAX's distributed runtime connects this process to others; asking does not start JAX."""
    return jax.distributed.is_initialized()


def count() -> int:
    """Number of processes."""
    return jax.process_count()


def index() -> int:
    """Which of them this is."""
    return jax.process_index()


def share(items: Sequence[_Outcome], of: int | None = None) -> list[_Outcome]:
    """This process's part, or that of process `of`; parts follow each other and differ by one at most."""
    of = index() if of is None else of
    return list(items[len(items) * of // count() : len(items) * (of + 1) // count()])


def gather(tree: Any) -> Any:
    """Numpy arrays `[P, ...]` of all P processes, given this one's; shapes and dtypes are the same in all.

    It is one exchange, of the tree's bytes. Raises LostError where a process is gone.
    """
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    if count() == 1:
        return structure.unflatten(leaf[None] for leaf in leaves)
    every = _exchange(_from_all, np.concatenate([_bytes(leaf) for leaf in leaves]))
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = (every[:, end - leaf.nbytes : end] for leaf, end in zip(leaves, ends, strict=True))
    received = (np.ascontiguousarray(part) for part in parts)
    return structure.unflatten(
        part.view(leaf.dtype).reshape(count(), *leaf.shape) for part, leaf in zip(received, leaves, strict=True)
    )


def from_first(array: np.ndarray) -> np.ndarray:
    """The array of process 0, given one of its shape and dtype."""
    if count() == 1:
        return array
    own = _bytes(array)  # bits, since -0.0 + 0.0 is 0.0
    received = _exchange(_sum, own if index() == 0 else np.zeros_like(own))
    return np.ascontiguousarray(received[: own.size]).view(array.dtype).reshape(array.shape)


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def first(function: Callable[[], _Outcome]) -> _Outcome:
    """What function() gives in process 0, in all; it must be something that can be pickled.

    Raises in process 0 what it raises there, and ElsewhereError in the others.
    """
    if count() == 1:
        return function()
    outcome, failed = _attempt(function) if index() == 0 else (None, None)
    content = pickle.dumps((outcome, failed is not None))
    size = from_first(np.array([len(content)], np.int64))[0]
    content = from_first(np.frombuffer(content if index() == 0 else bytes(size), np.uint8)).tobytes()
    if failed is not None:
        raise failed
    outcome, elsewhere = pickle.loads(content)
    if elsewhere:
        raise ElsewhereError("Process 0 could not go on; it says why.")
    return outcome


def agree(function: Callable[[], _Outcome]) -> _Outcome:
    """What function() gives here, if it raises in no process; else ElsewhereError where it did not raise."""
    if count() == 1:
        return function()
    outcome, failed = _attempt(function)
    raised = gather(np.bool_(failed is not None))
    if failed is not None:
        raise failed
    if raised.any():
        raise ElsewhereError(f"Process {int(np.argmax(raised))} could not go on; it says why.")
    return outcome


def check_alike(mine: dict[str, str]) -> None:
    """Raises RunError where this process's values are not those of process 0, and ElsewhereError in all others."""
    if count() == 1:
        return
    theirs = first(lambda: mine)
    values = {name: (theirs.get(name, "nothing"), mine.get(name, "nothing")) for name in theirs | mine}
    differing = [f"{name} ({there} there, {here} here)" for name, (there, here) in values.items() if there != here]

    def check() -> None:
        if differing:
            raise RunError(
                f"Process {index()} was started otherwise than process 0: it differs in {', '.join(differing)}."
            )

    agree(check)


def _attempt(function: Callable[[], _Outcome]) -> tuple[Any, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error


def _exchange(program: Callable[[], Any], content: np.ndarray) -> np.ndarray:
    """Puts the processes' bytes `[n]` together as `[P, m]` and runs the program on them; m is n or somewhat more."""
    size = max(64, min(1 << (content.size - 1).bit_length(), content.size + -content.size % _PADDING))
    content = np.pad(content, (0, size - content.size))  # so that few programs serve many sizes
    placed = NamedSharding(_mesh(), PartitionSpec("processes"))
    whole = jax.make_array_from_process_local_data(placed, content[None], (count(), size))
    try:
        return np.asarray(program()(whole).addressable_data(0))
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # the latter where numpy waits for the result
        raise LostError(f"Another process of the run has ended or cannot be reached ({str(error)[:200]}).") from error


@functools.cache
def _mesh() -> Mesh:
    """The first CPU device of each process."""
    devices = {device.process_index: device for device in reversed(jax.devices("cpu"))}
    return Mesh(np.array([devices[i] for i in range(count())]), ("processes",))


@functools.cache
def _from_all() -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(_mesh(), PartitionSpec()))


@functools.cache
def _sum() -> Any:
    return jax.jit(lambda x: x.sum(0, dtype=x.dtype), out_shardings=NamedSharding(_mesh(), PartitionSpec()))
