"""Where a run writes its metrics: always a CSV file; TensorBoard and Weights & Biases where asked."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_COUNTERS = ("seed", "update", "env_steps")


def headline(metrics: Iterable[str]) -> str:
    """The metric to show of a run: the return of its episodes, or the first one of an algorithm that never acts."""
    names = [name for name in metrics if name not in _COUNTERS]
    return "episode_return" if "episode_return" in names else names[0]


class Logger(Protocol):
    """Takes rows as they come, update by update."""

    def write(self, update: int, env_steps: int, seeds: Sequence[int], metrics: dict[str, np.ndarray]) -> None:
        """update: number of updates done, from 1. env_steps: of one seed. metrics: one number a seed, `[num_seeds]`."""

    def flush(self) -> None:
        """Hands everything written so far to the disk."""

    def close(self) -> None: ...


class CsvLogger:
    """`seed,update,env_steps,<metrics in alphabetical order>`, one row a seed and update; floats round-trip exactly.

    keep_updates: rows of later updates in an existing file are dropped first, so that a resumed run's file is the
    file of a run that never stopped.
    """

    def __init__(self, path: Path, names: Sequence[str], keep_updates: int = 0):
        self.names = sorted(names)
        kept = _rows_until(path, keep_updates) if path.exists() else []
        header = ",".join([*_COUNTERS, *self.names])
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
    """Scalars `metric/seed` by env steps. Needs the extra `purerl[tensorboard]`."""

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard logs need `pip install 'purerl[tensorboard]'`.") from error
        self.writer = SummaryWriter(str(folder))

    def write(self, update: int, env_steps: int, seeds: Sequence[int], metrics: dict[str, np.ndarray]) -> None:
        for name, values in metrics.items():
            for seed, value in zip(seeds, values, strict=True):
                if np.isfinite(value):
                    self.writer.add_scalar(f"{name}/seed_{seed}", float(value), env_steps)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandbLogger:
    """One Weights & Biases run: every seed's scalars and their mean by env steps. Needs `purerl[wandb]`."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise ImportError("Weights & Biases logs need `pip install 'purerl[wandb]'`.") from error
        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(project="purerl", name=name, dir=str(folder), config=config)

    def write(self, update: int, env_steps: int, seeds: Sequence[int], metrics: dict[str, np.ndarray]) -> None:
        row: dict[str, float] = {"env_steps": env_steps}
        for name, values in metrics.items():
            finite = values[np.isfinite(values)]
            row |= {f"{name}/seed_{seed}": float(value) for seed, value in zip(seeds, values, strict=True)}
            row |= {name: float(finite.mean())} if finite.size else {}
        self.run.log(row, step=update)

    def flush(self) -> None:
        """Weights & Biases sends by itself."""

    def close(self) -> None:
        self.run.finish()


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """The columns of a metrics file by name, each one number a row."""
    with path.open() as file:
        names = file.readline().strip().split(",")
        values = np.loadtxt(file, delimiter=",", ndmin=2)
    return dict(zip(names, values.reshape(-1, len(names)).T, strict=True))


def _rows_until(path: Path, update: int) -> list[str]:
    """Complete rows of updates up to `update`; a crash may have cut the last line."""
    lines = path.read_text().split("\n")[1:-1]
    return [line for line in lines if int(line.split(",")[1]) <= update]
