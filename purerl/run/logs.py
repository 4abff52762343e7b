"""Where a run writes its metrics: always a CSV file; TensorBoard and Weights & Biases where asked."""

import csv
import importlib.util
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from purerl.run.errors import RunError

NAMES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # loggers by name, with the package that each needs
EVAL_RETURN = "eval_return"  # NaN in the rows of updates that no evaluation followed
_COUNTERS = ("seed", "update", "env_steps")


def headline(metrics: Iterable[str]) -> str:
    """The metric to show of a run: the return of its episodes, or the first one of an algorithm that never acts."""
    names = [name for name in metrics if name not in (*_COUNTERS, EVAL_RETURN)]
    return "episode_return" if "episode_return" in names else names[0]


class Logger(Protocol):
    """Takes rows as they come, update by update."""

    def write(self, update: int, env_steps: int, seeds: Sequence[int], metrics: dict[str, np.ndarray]) -> None:
        """update: number of updates done, from 1. env_steps: of one seed. metrics: one number a seed, `[num_seeds]`."""

    def flush(self) -> None:
        """Hands everything written so far to the disk."""

    def close(self) -> None: ...


def check_installed(names: Iterable[str]) -> None:
    """Raises RunError where there is no logger of a name, ImportError where its package is missing."""
    for name in names:
        if name not in NAMES:
            raise RunError(f"There is no logger named {name!r}; there are {', '.join(NAMES)}.")
        if importlib.util.find_spec(NAMES[name]) is None:
            raise ImportError(f"The logger {name} needs `pip install 'purerl[{name}]'`.")


def open_named(name: str, folder: Path, config: dict[str, Any], last_step: int | None) -> Logger:
    """The logger of a name, for a run in `folder`.

    config: fields as JSON values. last_step: step of the last row to keep of a run that goes on, None of a new one.
    """
    if name == "tensorboard":
        return TensorBoardLogger(folder / "tensorboard", last_step, config)
    return WandbLogger(folder, folder.name, config)


def step_of(update: int, env_steps: int) -> int:
    """What scalars are drawn over: env steps, or updates where an algorithm takes none."""
    return env_steps or update


class CsvLogger:
    """`seed,update,env_steps,<metrics in alphabetical order>`, one row a seed and update; floats round-trip exactly.

    keep_updates: rows of later updates in an existing file are dropped first, and those that a crash cut short, so that
    a resumed run's file is the file of a run that never stopped. kept_updates: of how many updates it has the rows of
    all num_seeds seeds. Raises RunError where the file has other columns.
    """

    def __init__(self, path: Path, names: Sequence[str], num_seeds: int = 1, keep_updates: int = 0):
        self.names = sorted(names)
        header = ",".join([*_COUNTERS, *self.names])
        kept = _kept_rows(path, header, num_seeds, keep_updates) if path.exists() else []
        self.kept_updates = len(kept) // num_seeds
        partial = path.with_suffix(".tmp")
        partial.write_text("\n".join([header, *kept]) + "\n")
        partial.replace(path)
        self.file = path.open("a", newline="")
        self.writer = csv.writer(self.file, lineterminator="\n")

    def write(self, update: int, env_steps: int, seeds: Sequence[int], metrics: dict[str, np.ndarray]) -> None:
        for i, seed in enumerate(seeds):
            self.writer.writerow([seed, update, env_steps, *(f"{metrics[name][i]:.9g}" for name in self.names)])

    def flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


class TensorBoardLogger:
    """Scalars `metric/seed_0`, ..., and `metric/mean` over seeds, by env steps. Needs the extra `purerl[tensorboard]`.

    last_step: rows after it, which an earlier writer left, are hidden. config: shown as a table among the texts.
    """

    def __init__(self, folder: Path, last_step: int | None = None, config: dict[str, Any] | None = None):
        check_installed(["tensorboard"])
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=None if last_step is None else last_step + 1)
        if config is not None and last_step is None:
            rows = [f"| {name} | {value} |" for name, value in config.items()]
            self.writer.add_text("config", "\n".join(["| field | value |", "| --- | --- |", *rows]), 0)

    def write(self, update: int, env_steps: int, seeds: Sequence[int], metrics: dict[str, np.ndarray]) -> None:
        step = step_of(update, env_steps)
        for name, values in metrics.items():
            finite = np.isfinite(values)
            for seed, value in zip(np.asarray(seeds)[finite], values[finite], strict=True):
                self.writer.add_scalar(f"{name}/seed_{seed}", float(value), step)
            if finite.any():
                self.writer.add_scalar(f"{name}/mean", float(values[finite].mean()), step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """One Weights & Biases run: every seed's scalars and their mean by env steps. Needs `purerl[wandb]`.

    The folder keeps the run's id in `wandb_id`, so that the same run goes on after a resume; Weights & Biases itself
    leaves out the updates that it has already.
    """

    def __init__(self, folder: Path, name: str, config: dict[str, Any]):
        check_installed(["wandb"])
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "wandb_id"
        if not kept.is_file():
            kept.write_text(secrets.token_hex(4))
        self.run = wandb.init(
            project="purerl", name=name, dir=str(folder), config=config, id=kept.read_text(), resume="allow"
        )

    def write(self, update: int, env_steps: int, seeds: Sequence[int], metrics: dict[str, np.ndarray]) -> None:
        row: dict[str, float] = {"env_steps": env_steps}
        for name, values in metrics.items():
            finite = values[np.isfinite(values)]
            per_seed = zip(seeds, values, strict=True)
            row |= {f"{name}/seed_{seed}": float(value) for seed, value in per_seed if np.isfinite(value)}
            row |= {name: float(finite.mean())} if finite.size else {}
        self.run.log(row, step=update)

    def flush(self) -> None:
        """Weights & Biases sends by itself."""

    def close(self) -> None:
        self.run.finish()


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """The columns of a metrics file by name, each one number a row; without a last line that is still being written.

    Raises RunError where a row is damaged.
    """
    lines = path.read_text().split("\n")[:-1]
    names = lines[0].split(",") if lines else list(_COUNTERS)
    try:
        values = np.loadtxt(lines[1:], delimiter=",", ndmin=2) if lines[1:] else np.zeros((0, len(names)))
        return dict(zip(names, values.reshape(-1, len(names)).T, strict=True))
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.") from error


def _kept_rows(path: Path, header: str, num_seeds: int, last: int) -> list[str]:
    """Rows of updates up to `last`, of each update all or none; a crash may have cut the file at any byte."""
    first, *lines = path.read_text().split("\n")[:-1] or [header]
    if first != header:
        raise RunError(f"{path} has the columns {first}, but this run has {header}: it is of another version.")
    by_update: dict[int, list[str]] = {}
    for line in lines:
        number = line.split(",")[1:2]
        if line.count(",") == header.count(",") and number[0].isdecimal() and int(number[0]) <= last:
            by_update.setdefault(int(number[0]), []).append(line)
    return [row for update in sorted(by_update) if len(rows := by_update[update]) == num_seeds for row in rows]
