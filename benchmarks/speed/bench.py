"""What every case is measured with, and how the sides of a case take turns."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.speed.cases import LIBRARIES, TRAININGS
from benchmarks.speed.report import Report
from benchmarks.speed.workers import Start, Worker, WorkerTimeout, side_start

PURERL = side_start("purerl", "purerl")


class Bench(NamedTuple):
    """What a case is measured with.

    pythons: the interpreter of each library that the cases need, or None without one. equal: purerl's flags and
    devices.
    """

    repeats: int
    quick: bool
    pythons: Mapping[str, str | None]
    equal: dict[str, str]
    report: Report

    def as_it_comes(self, case: str) -> list[Start]:
        """The starts of rejax that ask nothing of its user, or one variable."""
        rejax = self.pythons["rejax"]
        if rejax is None:
            return []
        nproc = str(TRAININGS[case].nproc)
        return [
            side_start("rejax", "rejax", rejax),
            side_start("rejax", f"rejax NPROC={nproc}", rejax, NPROC=nproc),
        ]

    def equals(self) -> list[Start]:
        """The starts of rejax with the devices and flags of purerl."""
        rejax = self.pythons["rejax"]
        return [] if rejax is None else [side_start("rejax", "rejax, equal", rejax, **self.equal)]


def ask_each(bench: Bench, workers: dict[str, Worker], do: str, **arguments: Any) -> dict[str, Any]:
    """Every worker's answer, one worker after the other. A rival that hangs leaves `workers`, with a note."""
    answers = {}
    for name, worker in list(workers.items()):
        try:
            answers[name] = worker.ask(do, **arguments)
        except WorkerTimeout as error:
            drop(bench, workers, name, error)
    return answers


def drop(bench: Bench, workers: dict[str, Worker], name: str, error: WorkerTimeout) -> None:
    """Goes on without a rival that hung; a purerl that hung is an error. A rival's name begins with its library's."""
    if not name.startswith(tuple(LIBRARIES)):
        raise error
    del workers[name]
    bench.report.notes.append(str(error))


def run_in_turn(bench: Bench, workers: dict[str, Worker]) -> dict[str, list[float]]:
    """Seconds of each repetition's run of every side that is left at the end."""
    rounds = [ask_each(bench, workers, "run", seed=1 + repeat) for repeat in range(bench.repeats)]
    return {side: [answers[side] for answers in rounds] for side in workers}
