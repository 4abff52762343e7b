"""Where a search looks: ranges of a Config's fields, from TOML, as Optuna's distributions.

    [learning_rate]
    low = 1e-4
    high = 1e-2
    log = true

    [hidden_sizes]
    choices = [[64, 64], [256, 256]]

`purerl/tuned/ranges/defaults.toml` holds those that are used where none are given.
"""

import dataclasses
import difflib
import importlib.resources
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purerl.run import folder as run_folder
from purerl.run import objects
from purerl.run.settings import SettingsError

_KEYS = ("low", "high", "log", "choices")


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds, of which `whole` are whole numbers, or choices."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def distribution(self) -> Any:
        """Optuna's. What Optuna cannot hold as a choice, such as a tuple of sizes, stands as JSON."""
        import optuna

        if self.choices:
            return optuna.distributions.CategoricalDistribution([_as_choice(x) for x in self.choices])
        kind: Any = optuna.distributions.IntDistribution if self.whole else optuna.distributions.FloatDistribution
        return kind(self.low, self.high, log=self.log)

    def value(self, proposed: Any) -> Any:
        """The value of the field that Optuna's proposal means."""
        if not self.choices:
            return proposed
        return next(x for x in self.choices if _as_choice(x) == proposed and type(_as_choice(x)) is type(proposed))


def shipped(algorithm: str, config_class: type) -> dict[str, Range]:
    """The ranges for the fields of an algorithm of purerl or of one's own, those of its own name first."""
    text = (importlib.resources.files("purerl") / "tuned" / "ranges" / "defaults.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    own = {name: table for name, table in tables.get(algorithm, {}).items() if isinstance(table, dict)}
    fields = {field.name for field in dataclasses.fields(config_class)}
    both = {name: table for name, table in {**tables, **own}.items() if name in fields}
    return {name: _range("tuned/ranges/defaults.toml", name, table, config_class) for name, table in both.items()}


def read(path: str | Path, config_class: type) -> dict[str, Range]:
    """The ranges of a user's own file.

    Raises SettingsError with one sentence that names the file and the field.
    """
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The ranges {path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is no valid TOML: {error}.") from error
    if not tables:
        raise SettingsError(f"{path} holds no table; it needs one a field, such as [learning_rate].")
    return {name: _range(str(path), name, table, config_class) for name, table in tables.items()}


def _range(file: str, name: str, table: Any, config_class: type) -> Range:
    where, known = f"{file}, table [{name}]", {field.name: field for field in dataclasses.fields(config_class)}
    if name not in known or name in ("env", "env_params"):
        near = difflib.get_close_matches(name, known, n=1)
        algorithm = objects.short_name(config_class.__module__)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}."
        raise SettingsError(f"{where}: {algorithm} has no field of this name to search{hint}")
    if not isinstance(table, Mapping) or (unknown := [key for key in table if key not in _KEYS]):
        said = f"has {', '.join(unknown)}" if isinstance(table, Mapping) else f"is {table!r}"
        raise SettingsError(f"{where} must have low and high, and log, or choices, but {said}.")
    if "choices" in table:
        return _choices(where, table)
    return _bounds(where, table, whole=type(known[name].default) is int)


def _choices(where: str, table: Mapping[str, Any]) -> Range:
    choices = table["choices"]
    if len(table) > 1 or not isinstance(choices, list) or not choices:
        raise SettingsError(f"{where}: choices must be a list of values and stand alone, but is {choices!r}.")
    return Range(choices=tuple(tuple(x) if isinstance(x, list) else x for x in choices))


def _bounds(where: str, table: Mapping[str, Any], *, whole: bool) -> Range:
    low, high, log = table.get("low"), table.get("high"), table.get("log", False)
    numbers = [isinstance(x, int if whole else int | float) and not isinstance(x, bool) for x in (low, high)]
    if not all(numbers):
        kind = "whole numbers" if whole else "numbers"
        raise SettingsError(f"{where}: low and high must be {kind}, but are {low!r} and {high!r}.")
    assert low is not None and high is not None
    if not low < high or not isinstance(log, bool) or (log and low <= 0):
        raise SettingsError(f"{where}: low must be below high, and above 0 with log = true, but is {low}, to {high}.")
    return Range(low, high, log, whole)


def _as_choice(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def write_settings(path: Path, config: Any) -> bool:
    """A file for `purerl train --settings` with what differs from the Config's defaults, whole or not at all.

    False, and no file, where the env is an object that no import path leads to.
    """
    default, env = type(config)(), run_folder.config_dict(config)["env"]
    env = env["import"] if isinstance(env, dict) else env
    if env is None:
        return False
    lines = [f"[{json.dumps(env)}.fields]"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in ("env", "env_params") and value != getattr(default, field.name):
            lines.append(f"{field.name} = {json.dumps(value)}")
    partial = path.with_suffix(".tmp")
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(path)
    return True
