"""The study pages of the documentation, one an algorithm, made from its file and its results while the site is built.

`mkdocs build` makes the site. A formula, a default, a field's text or a score stands in one place, the file or the
results, so that no page is stale. The functions `on_...` are called by MkDocs.
"""

import ast
import csv
import dataclasses
import difflib
import importlib
import inspect
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

import purerl
from purerl.core.types import field_docs
from purerl.run import settings

ROOT = Path(__file__).parent.parent
TAG = re.compile(r" {2,}-> (\S+)$")
RESULTS = ROOT / "benchmarks" / "results" / "learning"
# What each file is best read beside: the one that it changes least of.
BEFORE = {
    "q_learning": "td",
    "sarsa": "q_learning",
    "linear_q": "q_learning",
    "dqn": "linear_q",
    "pqn": "dqn",
    "actor_critic": "reinforce",
    "a2c": "actor_critic",
    "trpo": "a2c",
    "ppo": "trpo",
    "td3": "ddpg",
    "sac": "td3",
    "discrete_sac": "sac",
    "es": "cem",
    "dyna_q": "q_learning",
    "mbpo": "sac",
}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages and the curves they show."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "algorithms/index.md", content=index()))
    for name in purerl.ALGORITHMS:
        files.append(File.generated(config, f"algorithms/{name}.md", content=page(name)))
        for env, _ in entries(name):
            curve = RESULTS / name / env.replace("/", "-") / "curve.png"
            if curve.is_file():
                files.append(File.generated(config, f"algorithms/{picture(name, env)}", abs_src_path=str(curve)))
    return files


def on_config(config: Any) -> Any:
    """Puts the pages into the navigation, in the order of the course."""
    for entry in config["nav"]:
        if "Algorithms" in entry:
            for family, names in purerl.FAMILIES.items():
                pages = [{title(name): f"algorithms/{name}.md"} for name in names]
                entry["Algorithms"].append({family.capitalize(): pages})
    return config


def module(name: str) -> ModuleType:
    return importlib.import_module(f"purerl.algorithms.{name}")


def headline(name: str) -> str:
    return (module(name).__doc__ or name).split("\n")[0].rstrip(".")


def title(name: str) -> str:
    return {"td": "TD", "dqn": "DQN", "pqn": "PQN", "reinforce": "REINFORCE"}.get(name) or {
        "q_learning": "Q-learning",
        "linear_q": "Linear Q-learning",
        "value_iteration": "Value iteration",
        "sarsa": "Sarsa",
        "actor_critic": "Actor-critic",
        "discrete_sac": "Discrete SAC",
        "dyna_q": "Dyna-Q",
    }.get(name, name.upper())


def index() -> str:
    """The curriculum: each algorithm with the problem that it was found for."""
    lines = [
        "# The order to read them in",
        "",
        "Each algorithm is one file and one page: the problem it was found for, every equation beside the function "
        "that holds it, what a training tells, and the difference from the file before it. Families build on one "
        "another from top to bottom; within a family each file answers the question that the one before it leaves.",
    ]
    for family, names in purerl.FAMILIES.items():
        lines += ["", f"## {family.capitalize()}", ""]
        lines += [f"- **[{title(name)}]({name}.md)**: {problem(name)}" for name in names]
    return "\n".join(lines) + "\n"


def problem(name: str) -> str:
    """The first sentence of the docstring's first paragraph, or its headline where there is none."""
    paragraphs = (module(name).__doc__ or "").split("\n\n")
    first = " ".join(paragraphs[1].split()) if len(paragraphs) > 1 else headline(name)
    sentence = re.match(r".*?[.?!](?=\s+[A-Z]|$)", first.removeprefix("The problem left by "))
    said = (sentence[0] if sentence else first).strip()
    return said[0].upper() + said[1:]


def page(name: str) -> str:
    """The study page of an algorithm."""
    parts = [f"# {title(name)}", headline(name) + ".", links(name), body(name), update(name)]
    parts += [config_table(name), metrics_table(name), results(name), difference(name)]
    return "\n\n".join(part for part in parts if part) + "\n"


def links(name: str) -> str:
    before = BEFORE.get(name)
    text = f"The file is `purerl/algorithms/{name}.py`."
    return f"{text} Best read after [{title(before)}]({before}.md)." if before else text


def body(name: str) -> str:
    """The docstring after its headline: text as text, equations beside their functions, departures as a list."""
    shown: set[str] = set()
    lines = (module(name).__doc__ or "").splitlines()[1:]
    blocks: list[list[str]] = [[]]
    for line in lines:
        starts_other = blocks[-1] and line.strip() and indented(line) != indented(blocks[-1][0])
        if not line.strip() or starts_other:
            blocks.append([])
        if line.strip():
            blocks[-1].append(line)
    out = []
    for block in filter(None, blocks):
        if not indented(block[0]):
            text = " ".join(TAG.sub("", line).strip() for line in block)
            out.append(f"## {text.rstrip(':')}" if text.startswith("Departures from") else escape(text))
            out += sources(name, block, shown)
        elif out and out[-1].startswith("## Departures"):
            out.append("\n".join(f"- {escape(line.strip())}" for line in block))
        else:
            out.append(equation(name, block, shown))
    return "\n\n".join(out)


def indented(line: str) -> bool:
    return line.startswith(" ")


def escape(text: str) -> str:
    """Text as Markdown shows it unchanged, with names of code as code."""
    text = re.sub(r"([*_<>\[\]|#])", r"\\\1", text)
    return re.sub(r"\(((?:\w|\\_|\.|, )+)\)$", lambda found: f"(`{found[1].replace(chr(92), '')}`)", text)


def equation(name: str, block: list[str], shown: set[str]) -> str:
    """The equations as they stand, and the source of the functions that their tags name, of each the first time."""
    text = [TAG.sub("", line).rstrip().removeprefix("    ") for line in block]
    right = sources(name, block, shown)
    left = ["```text", *text, "```"]
    cells = ["\n".join(left), "\n\n".join(right)] if right else ["\n".join(left)]
    inner = "\n\n".join(f'<div markdown="1">\n\n{cell}\n\n</div>' for cell in cells)
    return f'<div class="equation" markdown="1">\n\n{inner}\n\n</div>'


def sources(name: str, block: list[str], shown: set[str]) -> list[str]:
    """The functions that the tags of a block name; where all have been shown above, their names alone."""
    tags = list(dict.fromkeys(match[1] for line in block if (match := TAG.search(line))))
    new = [tag for tag in tags if tag not in shown]
    shown.update(tags)
    return [source(name, tag) for tag in new] if new or not tags else [f"In `{tag}`, above." for tag in tags]


def source(name: str, function: str) -> str:
    """The source of a function of the file, or of a part of the core that it imports, such as ensemble.loss."""
    part, _, attribute = function.rpartition(".")
    holder: Any = importlib.import_module(f"purerl.core.{part}") if part else module(name)
    return fenced(inspect.getsource(inspect.unwrap(getattr(holder, attribute))))


def fenced(code: str, language: str = "python") -> str:
    return f"````{language}\n{code.rstrip()}\n````"


def update(name: str) -> str:
    return f"## One update\n\n{fenced(inspect.getsource(module(name).update))}"


def config_table(name: str) -> str:
    config_class = module(name).Config
    docs = field_docs(config_class)
    rows = ["## Config", "", "| field | default | kind | what it is |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(config_class):
        kind = "traced" if field.metadata.get("pytree_node", True) else "static"
        choices = field.metadata.get("choices") or ()
        default = f"`{field.default!r}`" + (
            f", or {', '.join(c for c in choices if c != field.default)}" if choices else ""
        )
        rows.append(f"| `{field.name}` | {default} | {kind} | {cell(docs.get(field.name, ''))} |")
    rows += [
        "",
        "A static field is part of the compiled program; a traced one is an input of it, to vmap and to sweep.",
    ]
    return "\n".join(rows)


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def metric_names(name: str) -> list[str]:
    """What `update` gives, of the default Config; nothing is computed."""
    algorithm = module(name)
    config = algorithm.Config()
    state = jax.eval_shape(algorithm.init, jax.random.key(0), config)
    return list(jax.eval_shape(algorithm.update, state, config)[1])


def explanations() -> dict[str, str]:
    return tomllib.loads((ROOT / "docs" / "metrics.toml").read_text(encoding="utf-8"))


def metrics_table(name: str) -> str:
    told = explanations()
    rows = ["## What a training tells", "", "| metric | what it is |", "| --- | --- |"]
    return "\n".join([*rows, *(f"| `{metric}` | {cell(told[metric])} |" for metric in metric_names(name))])


def entries(name: str) -> list[tuple[str, Any]]:
    """The environments that it is tuned for."""
    return list(settings.shipped(name).items())


def picture(name: str, env: str) -> str:
    return f"{name}_{env.replace('/', '-')}.png"


def results(name: str) -> str:
    """The scores of `benchmarks.learning` with their bars, and the curves."""
    measured = {row["env"]: row for row in scores(name) if row["variant"] in ("", "-")}
    parts = []
    for env, entry in entries(name):
        curve, row = RESULTS / name / env.replace("/", "-") / "curve.png", measured.get(env)
        if row is None:
            continue
        steps, mean, worst = (float(row[key]) for key in ("env_steps", "mean", "lowest"))
        text = f"{mean:,.2f} on average over the seeds {row['seeds']}, {worst:,.2f} the worst of them"
        text += f", after {steps:,.0f} env steps"
        bar = f"; the bar is {entry.bar:g} ({entry.source})" if entry.bar is not None else ""
        parts.append(f"**{env}**: {text}{bar}.")
        if curve.is_file():
            parts.append(f"![Learning curve of {title(name)} on {env}]({picture(name, env)})")
    if not parts:
        return ""
    command = fenced(f"purerl train {name} --env {entries(name)[0][0]}\npython -m benchmarks.learning {name}", "sh")
    return "\n\n".join(["## What it reaches", "Tuned settings, which `purerl train` starts from:", *parts, command])


def scores(name: str) -> list[dict[str, str]]:
    text = (RESULTS / "summary.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [row for row in rows if row["algorithm"] == name]


def difference(name: str) -> str:
    """The code against the file that it is best read beside, without docstrings of the modules."""
    before = BEFORE.get(name)
    if before is None:
        return ""
    left, right = (code(other).splitlines() for other in (before, name))
    lines = difflib.unified_diff(left, right, f"{before}.py", f"{name}.py", n=2, lineterm="")
    diff = "\n".join(f"    {line}" for line in fenced("\n".join(lines), "diff").splitlines())
    return f'## What changes from {title(before)}\n\n??? note "diff {before}.py {name}.py"\n\n{diff}'


def code(name: str) -> str:
    """The source after the module's docstring."""
    text = inspect.getsource(module(name))
    first = ast.parse(text).body[0]
    return "\n".join(text.splitlines()[first.end_lineno :]).strip()
