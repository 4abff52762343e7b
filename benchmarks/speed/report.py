"""What was found, the ratios and shares that follow from it, and the two files that show it."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.provenance import write_csv
from benchmarks.speed.cases import TERMS

COLUMNS = ["case", "side", "measure", "unit", "repeats", "median", "min", "max"]
LONGEST = 12  # kernels that a profile shows by name
LEAST_REPEATS = 5  # fewer are no measurement


class Row(NamedTuple):
    """One measure of one side in one case: a value for each repetition."""

    case: str
    side: str
    measure: str
    unit: str
    values: list[float]

    def cells(self) -> list[Any]:
        """What the table shows: the number of repetitions, their median, the smallest and the largest."""
        values = (statistics.median(self.values), min(self.values), max(self.values))
        return [*self[:4], len(self.values), *(float(f"{value:.6g}") for value in values)]


RESULT = {True: "reached", False: "NOT reached", None: "not measured"}


class Verdict(NamedTuple):
    """A measured value beside its target. reached: None where nothing was measured, or where there is no target."""

    case: str
    what: str
    value: str
    target: str
    reached: bool | None

    def result(self) -> str:
        """The last cell of its line."""
        if self.reached is None:
            return "no target" if self.target == NO_TARGET else "not measured"
        return "reached" if self.reached else "NOT reached"


NO_TARGET = "-"


class Table(NamedTuple):
    """Lines that belong to a case beside its rows."""

    case: str
    title: str
    columns: list[str]
    lines: list[list[str]]


@dataclasses.dataclass
class Report:
    """One run: what was asked for, and what has been found so far.

    facts: what one must know to repeat it. seconds: how long each case took. words: sentences that say what it means.
    """

    facts: dict[str, str]
    repeats: int
    quick: bool
    rows: list[Row] = dataclasses.field(default_factory=list)
    verdicts: list[Verdict] = dataclasses.field(default_factory=list)
    tables: list[Table] = dataclasses.field(default_factory=list)
    words: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, case: str, side: str, measure: str, unit: str, values: list[float]) -> None:
        """Keeps one row and shows it."""
        self.rows.append(Row(case, side, measure, unit, values))
        print(f"  {case}, {side}: {measure} {number(statistics.median(values))} {unit}", flush=True)

    def judge(self, case: str, what: str, value: str, target: str, reached: bool | None, *, timed: bool = True) -> None:
        """Keeps one verdict; on the times of a quick run there is none."""
        self.verdicts.append(Verdict(case, what, value, target, None if self.quick and timed else reached))


class Ratio(NamedTuple):
    """Our speed over that of the fastest rival. values: one for each repetition, in which the sides took turns."""

    rival: str
    values: list[float]

    @property
    def median(self) -> float:
        """What is reported."""
        return statistics.median(self.values)


def ratio(ours: list[float], rivals: Mapping[str, list[float]]) -> Ratio:
    """The ratio of speeds from seconds of the same repetitions; the rival is the one of the least median."""
    rival = min(rivals, key=lambda side: statistics.median(rivals[side]))
    return Ratio(rival, [theirs / own for own, theirs in zip(ours, rivals[rival], strict=True)])


def in_words(case: str, as_it_comes: Ratio, equal: Ratio) -> str:
    """What the two ratios of a case mean for a user."""
    if equal.median < as_it_comes.median:
        left = f"{equal.median:.2f} times remain; the difference of the two is what purerl sets up by itself."
    else:
        left = f"it is {equal.median:.2f} times: they do not help rejax here."
    return (
        f"{case}: without doing anything, a user of purerl gets {as_it_comes.median:.2f} times the env steps per "
        f"second of a user of rejax ({as_it_comes.rival}). Once rejax is handed the same devices and XLA flags, {left}"
    )


class Split(NamedTuple):
    """Seconds of one update by what they went into. kernels: how many it started."""

    update: float
    products: float
    others: float
    starting: float
    kernels: float


def split(profile: Mapping[str, Any]) -> Split:
    """The parts of an update: kernels with a matrix product, the other kernels, and starting all of them.

    profile: of `kernels.profile`.
    """
    kernels, update, net = profile["kernels"], profile["seconds"], net_seconds(profile)
    products = sum(net[x["name"]] for x in kernels if x["product"])
    others = sum(net[x["name"]] for x in kernels if not x["product"])
    return Split(update, products, others, update - products - others, sum(x["calls"] for x in kernels))


def net_seconds(profile: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of one update inside each kernel, by name.

    The cheapest kernel stands for what a start costs in a trace, and is taken off each call. Where the trace has slowed
    the kernels themselves, so that they come to more than an untraced update, all are scaled down to it.
    """
    floor = min(x["seconds"] for x in profile["kernels"])
    net = {x["name"]: x["calls"] * (x["seconds"] - floor) for x in profile["kernels"]}
    scale = min(1.0, profile["seconds"] / sum(net.values()))
    return {name: seconds * scale for name, seconds in net.items()}


def kernel_table(case: str, side: str, profile: Mapping[str, Any]) -> Table:
    """The kernels that take the longest, the others together, and starting them: their shares add up to 100."""
    parts, net = split(profile), net_seconds(profile)
    longest = sorted(profile["kernels"], key=lambda x: -net[x["name"]])
    shown, rest = longest[:LONGEST], longest[LONGEST:]

    def line(cells: list[str], calls: float, seconds: float) -> list[str]:
        return [*cells, f"{calls:.0f}", f"{1e6 * seconds:.0f}", f"{100 * seconds / parts.update:.1f}"]

    lines = [line([x["name"], x["what"], x["shape"], x["loop"] or "-"], x["calls"], net[x["name"]]) for x in shown]
    rest_calls, rest_seconds = sum(x["calls"] for x in rest), sum(net[x["name"]] for x in rest)
    lines.append(line([f"{len(rest)} others", "", "", ""], rest_calls, rest_seconds))
    lines.append(line(["starting them all", "", "", ""], parts.kernels, parts.starting))
    lines.append(line(["whole update", "", "", ""], parts.kernels, parts.update))
    columns = ["kernel", "operation", "result", "in loops of", "calls", "us of an update", "% of update"]
    return Table(case, f"{side}, one update by kernel", columns, lines)


def in_the_way(splits: Mapping[str, Split], aim: float) -> str:
    """Where the time of each side goes, and what would have to go for purerl, the first, to be `aim` times as fast."""
    ours, theirs = splits.values()
    needed = theirs.update / aim
    lead = f"profile: at equal devices and flags {aim} times rejax's speed is {1e3 * needed:.2f} ms for an update."
    short = ours.update - needed
    gap = f"purerl is {1e3 * short:.2f} ms over that." if short > 0 else "purerl is under that."
    return " ".join([lead, gap, *(describe(side, parts) for side, parts in splits.items())])


def describe(side: str, parts: Split) -> str:
    """A side's split in a sentence."""
    return (
        f"{side} takes {1e3 * parts.update:.2f} ms: {1e3 * parts.products:.2f} ms in kernels with a matrix product, "
        f"{1e3 * parts.others:.2f} ms in other kernels, and {1e3 * parts.starting:.2f} ms for starting "
        f"{parts.kernels:,.0f} kernels, {1e9 * parts.starting / parts.kernels:.0f} ns each."
    )


def number(value: float) -> str:
    """A number as a reader wants it: three significant digits, or all of them before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(report: Report, out: Path) -> None:
    """speed.csv (facts as comment lines, then one row for each case, side and measure) and speed.md, each whole."""
    write_csv(out / "speed.csv", report.facts, [COLUMNS, *(row.cells() for row in report.rows)])
    unfinished = out / "speed.md.tmp"
    unfinished.write_text("\n".join(markdown(report)) + "\n")
    unfinished.replace(out / "speed.md")


def markdown(report: Report) -> list[str]:
    """The readable report, line by line."""
    lines = ["# Speed", "", *bullets(f"{name}: {fact}" for name, fact in report.facts.items())]
    if report.quick or report.repeats < LEAST_REPEATS:
        lines += [f"**A functional check with {report.repeats} repetition(s): these numbers are no measurement.**", ""]
    verdicts = [[*verdict[:4], verdict.result()] for verdict in report.verdicts]
    lines += ["## Targets", "", *table(["case", "what", "measured", "target", "result"], verdicts), ""]
    lines += bullets(report.notes)
    lines += bullets(f"FAILED: {failure.splitlines()[0]}" for failure in report.failures)
    lines += ["## In words", "", *bullets(report.words)] if report.words else []
    lines += ["Ratios are medians over repetitions; in each, all sides ran one after the other.", ""]
    cases = dict.fromkeys(row.case for row in report.rows)
    terms = [[*text.splitlines(), ""] for text, said_of in TERMS.items() if not cases.keys().isdisjoint(said_of)]
    lines += ["## What counts as the same work", "", *itertools.chain(*terms)] if terms else []
    for case in cases:
        lines += [f"## {case}", "", *case_lines(report, case)]
    took = ", ".join(f"{case} {seconds:.0f} s" for case, seconds in report.seconds.items())
    return [*lines, f"Time taken: {took}."]


def case_lines(report: Report, case: str) -> list[str]:
    """A case's rows and its own tables."""
    cells = [row.cells()[1:] for row in report.rows if row.case == case]
    lines = [*table(COLUMNS[1:], [[*map(str, row[:4]), *map(number, row[4:])] for row in cells]), ""]
    for extra in (extra for extra in report.tables if extra.case == case):
        lines += [f"### {extra.title}", "", *table(extra.columns, extra.lines), ""]
    return lines


def bullets(items: Iterable[str]) -> list[str]:
    """A Markdown list and the blank line after it; nothing where there are no items."""
    lines = [f"- {item}" for item in items]
    return [*lines, ""] if lines else []


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
