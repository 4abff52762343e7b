"""Algorithms, env objects and networks by import path, so that another process finds them again.

A path is `module:name`, where module is a dotted name or the path of a .py file: `my_package.worlds:Corridor`.
"""

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import purerl

_BUILT_IN = "purerl.algorithms."
_FROM_FILE = "purerl_file_"  # an own module `ppo.py` must not stand in for another module of that name
_ALGORITHM = ("Config", "init", "update", "policy", "train")


def near(name: str, known: list[str]) -> str:
    """The end of a sentence on an unknown name: those like it, or all that there are."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(known)}."


def algorithm_named(name: str) -> types.ModuleType:
    """An algorithm of purerl ("ppo"), or one's own by its module ("my_package.mine") or file ("./mine.py").

    Raises ValueError where there is none, with the nearest names, and TypeError where the module lacks what one has.
    """
    if name in purerl.ALGORITHMS:
        return importlib.import_module(_BUILT_IN + name)
    if not _is_file(name) and not _importable(name):
        raise ValueError(f"There is no algorithm named {name!r}{near(name, list(purerl.ALGORITHMS))}")
    module = _module(name)
    if missing := [part for part in _ALGORITHM if not hasattr(module, part)]:
        raise TypeError(f"{name} is no algorithm: it lacks {', '.join(missing)}.")
    return module


def algorithm_path(algorithm: Any) -> str | None:
    """What `algorithm_named` finds it by again, or None where it has no module to be found in."""
    if not isinstance(algorithm, types.ModuleType):
        return None
    name = algorithm.__name__
    return name.removeprefix(_BUILT_IN) if name.startswith(_BUILT_IN) else _module_path(name)


def same_algorithm(path: str, algorithm: types.ModuleType) -> bool:
    """Whether a path means this module: by the same name, or, one of them by its file, the same file."""
    own = algorithm_path(algorithm)
    if own is None or path == own:
        return True
    by_file = [_is_file(name) for name in (path, own)]
    return any(by_file) and _file(path) is not None and _file(path) == _file(own)


def short_name(algorithm: Any) -> str:
    """The last part of an algorithm's name, or of its path: `ppo` of `purerl.algorithms.ppo`, `mine` of `./mine.py`."""
    name = algorithm if isinstance(algorithm, str) else algorithm.__name__
    return Path(name).stem if _is_file(name) else name.split(".")[-1]


def env_name(env: Any) -> str:
    """An env's name as it is, the type's name of an env object."""
    return env if isinstance(env, str) else type(env).__name__


def env_named(name: str) -> Any:
    """An env's name as it is, or for a path the env object: the one it names, or one made of the class it names."""
    if ":" not in name:
        return name
    found = _found(name)
    return found() if isinstance(found, type) else found


def stored(value: Any) -> dict[str, Any]:
    """An object as JSON: the path of an instance, class or function in a module, or of the class to call for it.

    Where neither gives the same object again, the path is None, and `type` says what has to be given.
    """
    if (path := _path(value)) is not None:
        return {"import": path}
    kind = type(value)
    if (path := _path(kind)) is not None and _is_default(value, kind):
        return {"import": path, "call": True}
    return {"import": None, "type": kind.__name__}


def stored_name(value: dict[str, Any]) -> str:
    """The name of what `stored` made: `Corridor` of `my_package.worlds:Corridor`."""
    return str(value["type"] if value["import"] is None else value["import"].rpartition(":")[2])


def rebuilt(value: dict[str, Any]) -> Any:
    """The object of which `stored` made `value`. Raises ImportError where it is not to be found any more."""
    found = _found(value["import"])
    return found() if value.get("call") else found


def _found(path: str) -> Any:
    """The object at `module:name`. Raises ImportError that says which half is missing."""
    module, _, name = path.rpartition(":")
    try:
        return functools.reduce(getattr, name.split("."), _module(module))
    except AttributeError as error:
        raise ImportError(f"There is no {name} in {module}, which {path!r} asks for.") from error


def _module(name: str) -> types.ModuleType:
    if _is_file(name):
        return _from_file(Path(name).resolve())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"Module {name!r} cannot be imported: {error}; start where Python finds it.") from error


def _from_file(file: Path) -> types.ModuleType:
    name = f"{_FROM_FILE}{zlib.crc32(str(file).encode()):08x}.{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        raise ImportError(f"There is no file {file}.")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # what it imports may lie beside it
    spec: Any = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half a module would be taken for a whole one
        raise
    return module


def _is_file(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def _importable(name: str) -> bool:
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # the package around it is missing, or the name is none
        return False


def _file(path: str) -> Path | None:
    """The file of a module's path, without importing it; None where it has none."""
    if _is_file(path):
        return Path(path).resolve()
    spec = importlib.util.find_spec(path) if _importable(path) else None
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def _module_path(name: str) -> str | None:
    """The path of a loaded module; a script or notebook has none, since importing it would run it again."""
    if name == "__main__" or name not in sys.modules:
        return None
    return str(sys.modules[name].__file__) if name.startswith(_FROM_FILE) else name


def _path(value: Any) -> str | None:
    """`module:name` of a class, a function, or an instance that stands in a module; None where none leads to it."""
    if isinstance(value, type | types.FunctionType):
        module = _module_path(value.__module__)
        path = f"{module}:{value.__qualname__}"
        return path if module is not None and "<" not in path and _leads_to(path, value) else None
    for name, holder in list(sys.modules.items()):
        if name not in ("__main__", "builtins"):  # builtins holds what a console showed last
            for attribute, candidate in list(getattr(holder, "__dict__", {}).items()):
                if candidate is value:
                    return f"{_module_path(name)}:{attribute}"
    return None


def _leads_to(path: str, value: Any) -> bool:
    try:
        return _found(path) is value
    except ImportError:
        return False


def _is_default(value: Any, kind: Callable[[], Any]) -> bool:
    """Whether calling the class makes an object of the same contents."""
    try:
        return _same(value, kind())
    except Exception:  # a class of anybody: whatever keeps it from being made so, it is not made so
        return False


def _same(left: Any, right: Any) -> bool:
    """Whether two objects hold the same; in doubt they do not."""
    if left is right or type(left) is not type(right):
        return left is right
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if hasattr(left, "dtype"):
        return left.dtype == right.dtype and bool(np.array_equal(left, right))
    if dataclasses.is_dataclass(left):
        names = [field.name for field in dataclasses.fields(left) if field.compare]
        return all(_same(getattr(left, name), getattr(right, name)) for name in names)
    if any("__eq__" in vars(kind) for kind in type(left).__mro__[:-1]):
        return bool(left == right)
    identical = isinstance(left, types.FunctionType | types.MethodType | types.ModuleType | type)
    return not identical and hasattr(left, "__dict__") and _same(vars(left), vars(right))
