"""Set-up that must come before the first import of purerl and the first JAX operation."""

import importlib
import os

os.environ["MPLBACKEND"] = "Agg"
# Tests compile far more than they run: without LLVM's optimisations a program compiles in half the time.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax
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
