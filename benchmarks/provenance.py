"""What made a result: the command, day, machine, versions and code; JAX starts only where it is asked."""

import csv
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from purerl.run.provenance import source_hash

KEYS = ("command", "date", "machine", "versions", "source")
_PACKAGES = ("purerl", "jax", "jaxlib", "flax", "optax", "gymnax", "brax", "numpy")


def provenance(module: str, *, devices: bool = False) -> dict[str, str]:
    """What one must know of a run of `python -m module` to repeat it, by the names in KEYS.

    source: the hash of the package's code, as `purerl.run.provenance.source_hash` gives it. devices: as in `machine`.
    """
    versions = " ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(devices=devices),
        "versions": f"python {platform.python_version()} {versions}",
        "source": source_hash(),
    }


def machine(*, devices: bool = False) -> str:
    """CPU model, usable cores, memory and load; devices: also those that JAX runs on, which starts JAX."""
    model = next((line.partition(":")[2].strip() for line in _lines("cpuinfo") if line.startswith("model name")), "")
    kib = next((int(line.split()[1]) for line in _lines("meminfo") if line.startswith("MemTotal")), 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [model or platform.machine(), f"{cores} cores"]
    parts += [f"{kib / 2**20:.0f} GiB memory"] if kib else []
    if devices:
        import jax  # a process that only starts others stays small without it

        parts.append(f"{len(jax.devices())} x {jax.devices()[0].device_kind}")
    return ", ".join([*parts, f"load average {os.getloadavg()[0]:.1f}"])


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside this one to write to, which takes its place once the block has ended, and not after an error.

    The folder is made. Two processes at once may write one file: each has a path of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_csv(path: Path, facts: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes the facts as comment lines, then the rows, of which the first names the columns; whole or not at all."""
    with whole(path) as partial, partial.open("w", newline="") as file:
        file.writelines(f"# {name}: {fact}\n" for name, fact in facts.items())
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text)


def save_figure(figure: Any, path: Path, facts: Mapping[str, str]) -> None:
    """Saves a matplotlib figure as PNG, with the facts among its text chunks; whole or not at all."""
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata=dict(facts))


def _lines(name: str) -> list[str]:
    """A file of Linux's /proc; none elsewhere."""
    path = Path("/proc", name)
    return path.read_text().splitlines() if path.exists() else []
