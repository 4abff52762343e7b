"""How much memory a run needs and how much there is, before anything is made."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import psutil

from purerl.run.errors import RunError

_CGROUPS = Path("/sys/fs/cgroup")
_ADVICE = "Train fewer seeds at a time, or take a smaller buffer_size or num_envs."


def check_states(algorithm: Any, config: Any, num_seeds: int, free: int | None) -> None:
    """Raises RunError where the states of all seeds alone are too large; it asks for shapes, and XLA for nothing.

    free: bytes that the devices have together, or None where that is unknown.
    """
    try:
        state = jax.eval_shape(algorithm.init, jax.random.key(0), config)
    except OverflowError as error:
        raise RunError(f"An array of the state has 2^31 entries or more, which JAX cannot count. {_ADVICE}") from error
    need = num_seeds * tree_bytes(state)
    if free is not None and need > free:
        raise RunError(f"Memory: {_size(need)} for the states of {num_seeds} seed(s); {_size(free)} free. {_ADVICE}")


def check_program(need: int, num_seeds: int, free: int | None) -> str:
    """One line on the memory of a compiled run. Raises RunError with the numbers where there is less.

    need: bytes. free: bytes, or None where it is unknown.
    """
    have = "unknown what is" if free is None else _size(free)
    line = f"Memory: {_size(need)} for {num_seeds} seed(s); {have} free."
    if free is not None and need > free:
        raise RunError(f"{line} {_ADVICE}")
    return line


def program_bytes(compiled: Any) -> int:
    """What XLA says that a compiled program holds on one device: arguments, results and what is in between."""
    sizes = compiled.memory_analysis()
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes  # a donated argument becomes a result
    return sizes.argument_size_in_bytes + results + sizes.temp_size_in_bytes


def tree_bytes(tree: Any) -> int:
    """Size of a pytree of arrays or of their shapes, PRNG keys left out."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def seeds_at_once(platform: str, most: int, need: Callable[[int], int], free: int | None) -> int:
    """How many seeds a device should run vmapped where nobody says.

    platform: of the devices. On a CPU it is one, which is fastest and the program of a lone seed. On an accelerator it
    is all `most` of them, or as many as fit after halving. need: bytes by number, for which a program is compiled.
    free: bytes, or None where it is unknown.
    """
    if platform == "cpu":
        return 1
    num = most
    while num > 1 and free is not None and need(num) > free:
        num = (num + 1) // 2
    return num


def free_bytes(devices: Sequence[Any]) -> int | None:
    """Free memory of devices together, each as much as the fullest; CPUs share what machine and containers leave.

    None where an accelerator does not tell.
    """
    if devices[0].platform == "cpu":
        machine = psutil.virtual_memory().available
        return min([machine, *container_free(Path("/proc/self/cgroup"), _CGROUPS)])
    stats = [device.memory_stats() for device in devices]
    if any(each is None or "bytes_limit" not in each for each in stats):
        return None
    return min(each["bytes_limit"] - each["bytes_in_use"] for each in stats) * len(devices)


def container_free(membership: Path, root: Path) -> list[int]:
    """Bytes left under each memory limit of the control groups that a process is in, version 2 and 1.

    membership: its /proc/<pid>/cgroup. root: where the groups are mounted. Pages of files that the system can drop at
    any time count as free.
    """
    if not membership.is_file():
        return []
    free: list[int] = []
    for line in membership.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            free += _free_along(root, group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            free += _free_along(root / "memory", group, *names)
    return free


def _free_along(root: Path, group: str, limit_name: str, usage_name: str, droppable: str) -> list[int]:
    """Of a group and those around it up to the root, in which a container sees its own limit."""
    path = root / group.strip("/")
    free = []
    for folder in (path, *path.parents):
        if not folder.is_relative_to(root):
            break
        limit = _read(folder / limit_name)
        if limit.isdecimal():  # "max" where there is none
            lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
            cached = int(dict(pair for pair in lines if len(pair) == 2).get(droppable, 0))
            free.append(max(0, int(limit) - int(_read(folder / usage_name)) + cached))
    return free


def _read(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"
