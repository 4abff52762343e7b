"""Which devices do the work, decided before JAX starts."""

import importlib.metadata
import importlib.util
import os
import pkgutil
from collections.abc import Collection

import jax

from purerl.run.errors import RunError

_CPU_FLAGS = ("--xla_cpu_enable_concurrency_optimized_scheduler=false", "--xla_backend_optimization_level=1")


def use_all_cores() -> int:
    """Makes one JAX device of each CPU core, over which the runner spreads seeds; call it before anything else in JAX.

    Where the CPU does the work it also tells XLA to run a program's small operations in turn: handing them from core to
    core takes longer than the operations do, and where each core has seeds of its own there is no idle core to hand
    them to. And it asks LLVM for its first level of optimisation alone, which compiles faster; an accelerator's
    compiler refuses that level. What XLA_FLAGS already says of either stays.
    Returns the number of CPU devices. Raises RunError where JAX has already started with fewer.
    """
    if cpu_does_the_work(jax.config.values["jax_platforms"], accelerator_plugins()):
        os.environ["XLA_FLAGS"] = with_cpu_flags(os.environ.get("XLA_FLAGS", ""))
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


def with_cpu_flags(given: str) -> str:
    """XLA_FLAGS with the flags for a CPU, as far as they say nothing of them yet."""
    missing = [flag for flag in _CPU_FLAGS if flag.partition("=")[0] not in given]
    return " ".join([*given.split(), *missing])


def cpu_does_the_work(platforms: str | None, plugins: Collection[str]) -> bool:
    """Whether JAX will compute on the CPU, judged without starting it.

    platforms: JAX_PLATFORMS, of which JAX takes the first by default; empty or None lets it prefer accelerators.
    plugins: those installed; one whose device is missing counts too, since a flag too few costs only time.
    """
    return platforms.split(",")[0].strip() == "cpu" if platforms else not plugins


def accelerator_plugins() -> set[str]:
    """Names of installed packages through which JAX reaches a GPU or TPU, found as JAX finds them."""
    names = {entry.name for entry in importlib.metadata.entry_points(group="jax_plugins")}
    if (namespace := importlib.util.find_spec("jax_plugins")) is not None:
        names |= {module.name for module in pkgutil.iter_modules(namespace.submodule_search_locations)}
    return names | ({"libtpu"} if importlib.util.find_spec("libtpu") else set())
