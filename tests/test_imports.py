"""Imports run one way, and nothing is loaded before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "purerl"

# A module may import from its own layer and the layers before it; algorithms, from core alone.
LAYERS = (
    ("core",),
    ("algorithms",),
    ("run",),
    ("__main__",),
)


def layer_of(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module.split(".")[0] in names)


def imported(path: Path) -> set[str]:
    """Modules of purerl that a file imports anywhere in it, without the leading `purerl.`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "purerl":
            base = (node.module or "").removeprefix("purerl").removeprefix(".")
            names |= {base} if base else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("purerl.") for alias in node.names if alias.name.startswith("purerl.")}
    return names


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_direction(path: Path) -> None:
    own = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for name in imported(path):
        assert layer_of(name) <= layer_of(own), f"{own} imports {name}"
        assert layer_of(own) != 1 or layer_of(name) == 0, f"{own} is an algorithm and imports {name}"


def test_one_algorithm_loads_only_what_it_needs() -> None:
    code = "import sys; from purerl import ppo; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(result.stdout.split())
    assert "jax" in loaded
    assert not loaded & {"brax", "gymnax", "matplotlib", "orbax", "tyro", "mujoco"}


def test_the_package_alone_loads_nothing() -> None:
    code = "import sys; before = set(sys.modules); import purerl; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "jax" not in result.stdout.split() and "purerl.run.runner" not in result.stdout.split()
