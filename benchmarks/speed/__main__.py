"""The command line of the speed benchmark; the package says what there is to measure."""

import argparse
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import benchmarks.speed
from benchmarks.provenance import provenance
from benchmarks.speed.bench import Bench
from benchmarks.speed.cases import LIBRARIES
from benchmarks.speed.measure import CASES
from benchmarks.speed.report import Report, write
from benchmarks.speed.workers import ROOT, WorkerError, equal_variables, prepare, versions


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; no case means every case."""
    described = (benchmarks.speed.__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=described)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"any of: {', '.join(CASES)} (default: all)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side (default: 5)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/speed", help="folder of the results")
    parser.add_argument("--environments", type=Path, default=ROOT / "build", help="where the others are, or go")
    parser.add_argument("--quick", action="store_true", help="little work: checks that all runs, measures nothing")
    options = parser.parse_args(arguments)
    if unknown := [case for case in options.cases if case not in CASES]:
        parser.error(f"there is no case {unknown[0]!r}; the cases are {', '.join(CASES)}")
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, but is {options.repeats}")
    return options


def libraries_of(cases: Iterable[str]) -> list[str]:
    """The other libraries that these cases measure."""
    return [name for name, library in LIBRARIES.items() if not set(library.cases).isdisjoint(cases)]


def main() -> int:
    """Measures, writes after each case, and returns 1 where something crashed. A missed target is no crash."""
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers are ended as well
    cases = options.cases or list(CASES)
    folder = options.environments.absolute()
    pythons = {library: prepare(library, folder / f"{library}-env") for library in libraries_of(cases)}
    report = Report(provenance("benchmarks.speed"), options.repeats, options.quick)
    for library, python in pythons.items():
        if python is None:
            report.notes.append(f"{library} could not be installed and was not measured.")
        else:
            report.facts[f"{library}'s environment"] = versions(library, python)
    equal = equal_variables()
    report.facts["equal devices and flags"] = " ".join(f"{name}={value!r}" for name, value in equal.items())
    bench = Bench(options.repeats, options.quick, pythons, equal, report)
    for case in cases:
        print(case, flush=True)
        started = time.monotonic()
        try:
            CASES[case](bench)
        except WorkerError as error:
            report.failures.append(str(error))
            print(report.failures[-1], file=sys.stderr)
        report.seconds[case] = time.monotonic() - started
        write(report, options.out)
    for verdict in report.verdicts:
        print(f"{verdict.case}: {verdict.what}: {verdict.value}, target {verdict.target}: {verdict.result()}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
