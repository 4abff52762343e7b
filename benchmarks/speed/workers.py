"""Processes that hold one library each, and the virtual environments that they run in.

Nothing but the standard library is imported here: a process starts with the peak memory of its parent on its account,
so the parent must stay small.
"""

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed.cases import LIBRARIES

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 300.0  # for one request; the longest takes about 30 s on two busy cores
INSTALL_SECONDS = 1800.0


class WorkerError(Exception):
    """A worker failed or ended; the message holds the end of what it wrote to stderr."""


class WorkerTimeout(WorkerError):
    """A worker did not answer in time and was killed."""


class Start(NamedTuple):
    """How a worker is started: interpreter, arguments, and variables on top of the clean environment."""

    name: str
    command: tuple[str, ...]
    variables: dict[str, str]


def side_start(library: str, name: str, python: str = sys.executable, **variables: str) -> Start:
    """A start of the library's side in that interpreter."""
    return Start(name, (python, "-m", f"benchmarks.speed.sides.{library}"), variables)


def equal_variables() -> dict[str, str]:
    """The flags and the number of devices that purerl gives itself, as variables that any JAX obeys."""
    code = 'import os, purerl; cores = purerl.use_all_cores(); print(cores, os.environ["XLA_FLAGS"])'
    devices, _, flags = run_python(sys.executable, code).strip().partition(" ")
    return {"XLA_FLAGS": flags, "JAX_NUM_CPU_DEVICES": devices}


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
            start_new_session=True,  # a group of its own, so that the processes that a library starts end with it
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # an idle worker ends by itself here
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10 if kind is None else 0)
        with contextlib.suppress(ProcessLookupError):  # the worker and all that it started have ended
            os.killpg(self.process.pid, signal.SIGKILL)
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


def run_python(python: str, code: str) -> str:
    """What the code prints in a fresh process. Raises WorkerError where it fails or takes too long."""
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True, timeout=LIMIT_SECONDS)
    try:
        return str(run([python, "-c", code], cwd=ROOT, env=clean_environment()).stdout)
    except subprocess.CalledProcessError as error:
        raise WorkerError(f"{python} failed in {code!r}:\n{error.stderr[-2000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise WorkerTimeout(f"{python} did not finish {code!r} in {LIMIT_SECONDS:.0f} s and was killed.") from error


def prepare(library: str, folder: Path) -> str | None:
    """The interpreter of the library's virtual environment, made where it is missing; None where that fails."""
    wanted = LIBRARIES[library]
    together = [*wanted.requirements, *(f"{name}=={version(name)}" for name in wanted.shared)]
    requirements = [*together, *wanted.afterwards]
    python, installed = folder / "bin" / "python", folder / "installed.txt"  # the latter comes last, when all is there
    if installed.exists() and installed.read_text().split("\n") == requirements:
        return str(python)
    print(f"Making {library}'s environment in {folder}: this takes minutes.", flush=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    later = [[*install, *wanted.afterwards]] if wanted.afterwards else []
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], [*install, *together], *later):
        try:
            subprocess.run(command, check=True, capture_output=True, env=clean_environment(), timeout=INSTALL_SECONDS)
        except (subprocess.SubprocessError, OSError) as error:
            print(f"{library} could not be installed: {getattr(error, 'stderr', None) or error!r}", file=sys.stderr)
            return None
    installed.write_text("\n".join(requirements))
    return str(python)


def versions(library: str, python: str) -> str:
    """Versions of Python and of the packages that the library's line asks for, in that interpreter's environment."""
    code = f"""
import platform
from importlib.metadata import version
print("python", platform.python_version(), *(f"{{name}} {{version(name)}}" for name in {LIBRARIES[library].shown!r}))
"""
    return run_python(python, code).strip()
