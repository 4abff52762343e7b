"""Set-up that must come before the first import of purerl and the first JAX operation."""

import atexit
import importlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from importlib.metadata import version

os.environ["MPLBACKEND"] = "Agg"
# Tests compile far more than they run. Without LLVM's optimisations a program compiles in half the time, and with XLA's
# older emitters in a third of that. In one piece, since every core has tests of its own.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # which ends a process for a flag that it does not know
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# What one test compiled another reads, in either worker and in the processes that tests start. For one session: a fresh
# checkout is tested as any other.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="purerl-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run, no limit on their time, and no database in the working tree.
settings.register_profile("purerl", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("purerl")

CHECKED = ("returns", "distributions", "normalize", "networks", "replay", "optimize", "rollout")


def import_with_shape_checks() -> None:
    """Imports the core with every jaxtyping annotation checked at run time, by beartype, at every call.

    At run time `Scalar` is float, which the command line parses; a traced gamma is an array, so the checked modules see
    the wider type while they are imported. The algorithms come later and get the float again.
    """
    from purerl.core import types

    narrow, types.Scalar = types.Scalar, float | int | jax.Array
    with install_import_hook([f"purerl.core.{name}" for name in CHECKED], "beartype.beartype"):
        for name in CHECKED:
            importlib.import_module(f"purerl.core.{name}")
    types.Scalar = narrow


import_with_shape_checks()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a program in the foreground has it: one in the background ignores it, and so does what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """No workers for one file or one test, which would only wait for their start."""
    return 0 if len(config.args) == 1 and ".py" in config.args[0] else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file share compiled programs, so one worker runs them all, unless the file groups them itself."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
