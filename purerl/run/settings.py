"""Settings to start from, with the score they must reach: `purerl/tuned/<algorithm>.toml`, and files of a user's own.

A file holds one table an environment, under the environment's name:

    [CartPole-v1]
    bar = 490                                  # the least mean return of the final policies over seeds
    source = "CleanRL: 490 +- 6"               # where the bar comes from; a bar has a source
    fields = { total_timesteps = 500_000 }     # what differs from the Config's defaults

    [CartPole-v1.variants.short]               # the same with other fields on top
    bar = 480                                  # may be left out, with its source: then the bar is that above
    source = "own, because nobody published one"
    fields = { total_timesteps = 150_000 }

`evaluate` says how the final policies act when the bar is tried: "greedy", which is the default, or "epsilon", which
draws a random action with the probability epsilon_end, where an environment without chance shows a greedy policy only a
handful of episodes.

`benchmarks.learning` runs these very entries over ten seeds and fails where one is under its bar; `purerl train` starts
from them, and flags override them. In a file of one's own a bar is not needed.
"""

import dataclasses
import difflib
import functools
import importlib
import importlib.resources
import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purerl.run import objects

EVALUATE = ("greedy", "epsilon")
_KEYS: Mapping[str, tuple[Any, str]] = {
    "fields": (dict, "a table"),
    "bar": ((int, float), "a number"),
    "source": (str, "a text"),
    "evaluate": (str, "a text"),
    "variants": (dict, "a table"),
}
_VARIANT_KEYS = ("fields", "bar", "source")


class SettingsError(ValueError):
    """A file of settings cannot be used; the message names the file, the table and the field."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One environment's entry, or one variant of it.

    fields: what differs from the Config's defaults. bar: the least mean return of the final policies, None where nobody
    asks for one. source: where the bar comes from. evaluate: one of EVALUATE. variants: by name, each whole, with the
    entry's own fields beneath those it changes; a variant has none itself.
    """

    fields: Mapping[str, Any]
    bar: float | None = None
    source: str = ""
    evaluate: str = "greedy"
    variants: Mapping[str, "Setting"] = dataclasses.field(default_factory=dict)


@functools.cache
def shipped(algorithm: str) -> Mapping[str, Setting]:
    """The entries that purerl has for the algorithm of this name, by env; none where it has no file.

    The file's form and the names of its fields are checked here, their values only where a Config is made of them:
    that makes the environment, and one with a simulator behind it takes seconds to load.
    """
    file = importlib.resources.files("purerl") / "tuned" / f"{algorithm}.toml"
    if not file.is_file():
        return {}
    config_class = importlib.import_module(f"purerl.algorithms.{algorithm}").Config
    return _parse(f"tuned/{algorithm}.toml", file.read_text(encoding="utf-8"), config_class)


def read(path: str | Path, config_class: type) -> dict[str, Setting]:
    """The entries of a user's own file, by env, checked whole: each one and each variant makes a Config.

    Raises SettingsError with one sentence that names the file, the table and the field.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings {path} cannot be read: {error}.") from error
    table = _parse(str(path), text, config_class)
    for env, entry in table.items():
        for variant, setting in {"": entry, **entry.variants}.items():
            try:
                config_class(env=objects.env_named(env), **setting.fields)
            except (ValueError, TypeError, ImportError) as error:
                raise SettingsError(f"{path}, table {_table(env, variant)}: {error}") from error
    return table


def entry(algorithm: str, env: str, variant: str = "") -> Setting:
    """The shipped entry, or its variant. Raises KeyError with what there is."""
    table = shipped(algorithm)
    if env not in table:
        have = ", ".join(table) or "none"
        raise KeyError(f"There are no tuned settings of {algorithm} for {env}; there are for: {have}.")
    if not variant:
        return table[env]
    if variant not in table[env].variants:
        have = ", ".join(table[env].variants) or "none"
        raise KeyError(f"{algorithm} on {env} has no variant {variant!r}; it has: {have}.")
    return table[env].variants[variant]


def tuned(algorithm: str, env: str, variant: str = "") -> Any:
    """The Config of the entry, such as `tuned("ppo", "Pendulum-v1")`. Raises KeyError with what there is."""
    fields = entry(algorithm, env, variant).fields
    return importlib.import_module(f"purerl.algorithms.{algorithm}").Config(env=env, **fields)


def _parse(file: str, text: str, config_class: type) -> dict[str, Setting]:
    """Entries by env, with every key, type and name of a field checked."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is no valid TOML: {error}.") from error
    if not tables:
        raise SettingsError(f"{file} holds no table; it needs one an environment, such as [CartPole-v1].")
    return {env: _entry(file, env, table, config_class) for env, table in tables.items()}


def _entry(file: str, env: str, table: Any, config_class: type) -> Setting:
    where = f"{file}, table {_table(env)}"
    _check_table(where, table, tuple(_KEYS))
    if table.get("evaluate", "greedy") not in EVALUATE:
        raise SettingsError(f"{where}: evaluate must be one of {', '.join(EVALUATE)}, but is {table['evaluate']!r}.")
    known = [field.name for field in dataclasses.fields(config_class)]
    if table.get("evaluate") == "epsilon" and "epsilon_end" not in known:
        raise SettingsError(f'{where}: evaluate = "epsilon" needs an algorithm with the field epsilon_end.')
    setting = Setting(**{**table, "fields": _fields(where, table, config_class), "variants": {}})
    variants = {}
    for name, changes in table.get("variants", {}).items():
        where = f"{file}, table {_table(env, name)}"
        _check_table(where, changes, _VARIANT_KEYS)
        fields = {**setting.fields, **_fields(where, changes, config_class)}
        variants[name] = dataclasses.replace(setting, **{**changes, "fields": fields})
    return dataclasses.replace(setting, variants=variants)


def _check_table(where: str, table: Any, keys: tuple[str, ...]) -> None:
    if not isinstance(table, dict):
        raise SettingsError(f"{where} must be a table with {', '.join(keys)}, but is {table!r}.")
    for key, value in table.items():
        if key not in keys:
            raise SettingsError(f"{where}: there is no {key!r}; it may have {', '.join(keys)}.")
        expected, kind = _KEYS[key]
        if not isinstance(value, expected) or isinstance(value, bool):
            raise SettingsError(f"{where}: {key} must be {kind}, but is {value!r}.")
    if not math.isfinite(table.get("bar", 0)):
        raise SettingsError(f"{where}: bar must be finite, but is {table['bar']}: a bar can be reached and missed.")
    if ("bar" in table) != bool(table.get("source", "").strip()):
        raise SettingsError(f"{where}: bar and source go together: a bar says where it comes from.")


def _fields(where: str, table: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """A table's fields as a Config takes them: arrays as tuples."""
    known = {field.name: field for field in dataclasses.fields(config_class)}
    for name, value in table.get("fields", {}).items():
        if name == "env":
            raise SettingsError(f"{where}, field env: the table's own name is the env.")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            known_names = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            raise SettingsError(f"{where}, field {name}: there is no such field; {known_names}")
        if known[name].type is Any:
            raise SettingsError(f"{where}, field {name}: it can be given in Python alone.")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if known[name].metadata.get("pytree_node", True) and not number:
            raise SettingsError(f"{where}, field {name} must be a number, but is {value!r}.")
    return {name: tuple(x) if isinstance(x, list) else x for name, x in table.get("fields", {}).items()}


def _table(env: str, variant: str = "") -> str:
    """The heading of a table as a file writes it, such as [CartPole-v1.variants.short]."""
    names = [env, "variants", variant] if variant else [env]
    return f"[{'.'.join(name if re.fullmatch('[A-Za-z0-9_-]+', name) else json.dumps(name) for name in names)}]"
