"""Imports run one way, no circle is left among files, and nothing is loaded before it is needed."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "purerl"

# A file may import from its own layer and the layers before it. A more exact name comes before what contains it.
LAYERS = {
    "purerl.core.types": 0,
    "purerl.core.mesh": 0,
    "purerl.envs": 1,
    "purerl.mdp": 2,  # the public face of tables, above the environments
    "purerl.core": 2,
    "purerl.algorithms": 3,
    "purerl": 4,  # finds every module on demand, by its name
    "purerl.run": 4,
    "purerl.__main__": 5,
}
ALGORITHM, REACHABLE = "purerl.algorithms.", ("purerl.core", "purerl.envs")
# Modules that must not be loaded by importing one algorithm: each takes seconds, or is wanted by few.
LATER = {"brax", "gymnax", "matplotlib", "PIL", "orbax", "tyro", "mujoco"}


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its name; a package goes by its own name, not by `__init__`."""
    paths = {path.relative_to(package.parent).with_suffix(""): path for path in sorted(package.rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules among `known` that a file imports anywhere in it, inside functions as well.

    `from a import b` means a.b where that is a module, and a otherwise. That importing a.b runs a's `__init__` does not
    count.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: an import relative to the file"
            module = node.module or ""
            names |= {f"{module}.{x.name}" if f"{module}.{x.name}" in known else module for x in node.names}
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & set(known)


def graph(package: Path) -> dict[str, set[str]]:
    known = modules(package)
    return {name: imported(path, known) - {name} for name, path in known.items()}


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, or an empty list."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def layer_of(name: str) -> int:
    return LAYERS[max((x for x in LAYERS if name == x or name.startswith(x + ".")), key=len)]


def wrong_ways(imports: dict[str, set[str]]) -> Iterator[str]:
    """Each import that runs against the layers, or from an algorithm to something other than core and envs."""
    for name, others in imports.items():
        for other in sorted(others):
            sideways = name.startswith(ALGORITHM) and not other.startswith(REACHABLE)
            if layer_of(other) > layer_of(name) or sideways:
                yield f"{name} imports {other}"


IMPORTS = graph(PACKAGE)


def test_the_graph_holds_the_package() -> None:
    assert len(IMPORTS) > 40
    assert (
        "purerl.envs" in IMPORTS["purerl.algorithms.ppo"] and "purerl.core.checks" in IMPORTS["purerl.algorithms.ppo"]
    )
    assert all(IMPORTS[name] for name in IMPORTS if name.startswith(ALGORITHM))


def test_direction() -> None:
    assert list(wrong_ways(IMPORTS)) == []


def test_no_circle() -> None:
    assert circle(IMPORTS) == []


def test_the_checker_sees_what_is_wrong(tmp_path: Path) -> None:
    """A circle of three files, one of its imports inside a function; and imports that run the wrong way."""
    files = {
        "purerl/__init__.py": "",
        "purerl/core/__init__.py": "",
        "purerl/core/types.py": "import dataclasses\n",
        "purerl/core/one.py": "from purerl.core import two\n",
        "purerl/core/two.py": "def f():\n    from purerl.core.three import x\n",
        "purerl/core/three.py": "import purerl.core.types\nx = 1\n",
        "purerl/algorithms/a.py": "from purerl import mdp\nfrom purerl.algorithms import b\nimport purerl.core.one",
        "purerl/algorithms/b.py": "import purerl.core.one\n",
        "purerl/mdp.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    imports = graph(tmp_path / "purerl")
    assert imports["purerl.core.two"] == {"purerl.core.three"}
    assert imports["purerl.core.one"] == {"purerl.core.two"}  # not the package, which a submodule runs in passing
    assert circle(imports) == []
    expected = ["purerl.algorithms.a imports purerl.algorithms.b", "purerl.algorithms.a imports purerl.mdp"]
    assert list(wrong_ways(imports)) == expected

    (tmp_path / "purerl/core/three.py").write_text("def f():\n    from purerl.core.one import g\n")
    assert set(circle(graph(tmp_path / "purerl"))) == {f"purerl.core.{name}" for name in ("one", "two", "three")}
    (tmp_path / "purerl/core/types.py").write_text("def f():\n    import purerl.algorithms.b\n")
    assert "purerl.core.types imports purerl.algorithms.b" in wrong_ways(graph(tmp_path / "purerl"))


def loaded_by(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after running the code."""
    code += "; import sys; print(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("name", ["ppo", "q_learning"])
def test_one_algorithm_loads_only_what_it_needs(name: str) -> None:
    loaded = loaded_by(f"from purerl import {name}")
    assert "jax" in loaded and f"purerl.algorithms.{name}" in loaded
    assert not {module.split(".")[0] for module in loaded} & LATER
    assert not {module for module in loaded if module.startswith(("purerl.run", ALGORITHM))} - {ALGORITHM + name}


def test_the_package_alone_loads_nothing() -> None:
    loaded = loaded_by("import purerl")
    assert "jax" not in loaded and {name for name in loaded if name.startswith("purerl")} == {"purerl"}
