"""The live line of a run: env steps, their rate, the time left and the return."""

import time
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from purerl.run import logs, objects


class Progress:
    """Env steps count all seeds. Where the output is no terminal, one line a tenth of the way is printed instead."""

    def __init__(self, algorithm: ModuleType, config: Any, num_seeds: int, updates: int, *, enabled: bool):
        self.config, self.num_seeds, self.first_update = config, num_seeds, updates
        self.console = Console(quiet=not enabled)
        self.live = enabled and self.console.is_terminal
        self.started, self.next_line = time.perf_counter(), 0.1
        name = f"{objects.short_name(algorithm)} {objects.env_name(config.env)} x {num_seeds}"
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
        )
        self.bar = RichProgress(*columns, console=self.console, disable=not self.live)
        self.task = self.bar.add_task(name, total=config.num_updates, completed=updates, status="first steps")
        self.name = name

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, updates: int, rows: dict[str, np.ndarray]) -> None:
        """rows: the newest metrics, `[num_seeds, chunk]`."""
        done = (self.config.env_steps(updates) - self.config.env_steps(self.first_update)) * self.num_seeds
        rate = done / (time.perf_counter() - self.started)
        steps = f"{self.config.env_steps(updates) * self.num_seeds:,} steps  {rate:,.0f}/s"
        status = f"{steps}  {self._returns(rows)}" if "episodes" in rows else self._planned(rows)
        self.bar.update(self.task, completed=updates, status=status)
        fraction = updates / self.config.num_updates
        if not self.live and fraction >= self.next_line:
            self.console.print(f"{self.name}  {fraction:4.0%}  {status}", highlight=False, soft_wrap=True)
            self.next_line = fraction + 0.1

    def _planned(self, rows: dict[str, np.ndarray]) -> str:
        """What an algorithm that never acts has to show."""
        name = logs.headline(rows)
        return f"{name} {rows[name][:, -1].mean():.4g}"

    def _returns(self, rows: dict[str, np.ndarray]) -> str:
        count = rows["episodes"]
        total = np.where(count > 0, rows["episode_return"] * count, 0.0).sum(1)
        episodes = count.sum(1)
        if not episodes.any():
            return "return -"
        means = total[episodes > 0] / episodes[episodes > 0]
        spread = f" ({means.min():.4g} to {means.max():.4g})" if len(means) > 1 else ""
        return f"return {means.mean():.4g}{spread}"
