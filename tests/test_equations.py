"""The docstring of an algorithm says which function holds each equation, and where it departs from its paper."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "purerl"
FILES = sorted((PACKAGE / "algorithms").glob("[!_]*.py"))
TAG = re.compile(r" {2,}-> (\S+)$")  # at the end of a line, set off from what it belongs to
MARGIN = 120


class Source(NamedTuple):
    docstring: list[str]
    functions: set[str]
    fields: set[str]


def read(text: str) -> Source:
    tree = ast.parse(text)
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    # A part of the core that the file imports as a whole, with the functions in it: ensemble.loss.
    parts = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "purerl.core"]
    for name in (alias.name for part in parts for alias in part.names):
        core = ast.parse((PACKAGE / "core" / f"{name}.py").read_text())
        functions |= {f"{name}.{node.name}" for node in core.body if isinstance(node, ast.FunctionDef)}
    configs = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config"]
    fields = {
        line.target.id
        for config in configs
        for line in config.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }
    return Source((ast.get_docstring(tree, clean=False) or "").splitlines(), functions, fields)


def faults(source: Source) -> list[str]:
    """What is wrong with the tags and with the list of departures."""
    tags = [(line, match[1]) for line in source.docstring if (match := TAG.search(line))]
    wrong = [] if tags else ["no equation names its function"]
    wrong += [f"-> {name}: no function of the file" for _, name in tags if name not in source.functions]
    ends = {len(line) for line, _ in tags}
    if len(ends) > 1 or max(ends, default=0) > MARGIN:
        wrong.append(f"tags end in the columns {sorted(ends)}, not in one up to {MARGIN}")
    for item in departures(source.docstring):
        named = re.findall(r"\(([\w., ]+)\)$", item)
        names = named[0].split(", ") if named else []
        if not names:
            wrong.append(f"departure without a name in parentheses at its end: {item}")
        wrong += [f"{name}: neither a function nor a field" for name in names if name not in source[1] | source[2]]
    return wrong


def departures(docstring: list[str]) -> list[str]:
    """Lines of the list, one departure each: those that are indented below its heading."""
    heading = next((i for i, line in enumerate(docstring) if line.startswith("Departures from")), None)
    if heading is None:
        return []
    below = docstring[heading + 1 :]
    end = next((i for i, line in enumerate(below) if not line.startswith("    ")), len(below))
    return [line.strip() for line in below[:end]]


def test_there_are_algorithms() -> None:
    import purerl

    assert [path.stem for path in FILES] == sorted(purerl.ALGORITHMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_equations_name_their_functions(path: Path) -> None:
    assert faults(read(path.read_text())) == []


GOOD = '''"""Sums.

    s = a + b               -> add
    p = a b            -> multiply

Departures from the paper:
    nothing is carried (add)
    zeros are skipped (multiply, skip)
Both are exact.
"""

from purerl.core import returns

class Config:
    skip: bool = True

def add(): ...

def multiply(): ...
'''


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("-> add", "-> sum", "-> sum: no function of the file"),
        ("-> add", "   -> add", r"tags end in the columns \[34, 37\]"),
        ("-> add\n", "\n", None),
        (" (add)", "", "departure without a name in parentheses at its end: nothing is carried"),
        ("(multiply, skip)", "(multiply, jump)", "jump: neither a function nor a field"),
        ("carried (add)", "carried,\n    not even (add)", "departure without a name .* nothing is carried,"),
        ("-> ", "", "no equation names its function"),
        ("        -> add", "-> returns.add", "-> returns.add: no function of the file"),
        ("        -> add", "-> returns.gae", None),
        ("       -> add", "-> replay.add", "-> replay.add: no function of the file"),  # of a part that is not imported
    ],
)
def test_the_checker_sees_what_is_wrong(old: str, new: str, fault: str | None) -> None:
    assert faults(read(GOOD)) == []
    wrong = faults(read(GOOD.replace(old, new)))
    assert wrong == [] if fault is None else len(wrong) == 1 and re.search(fault, wrong[0])
