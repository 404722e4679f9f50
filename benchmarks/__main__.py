"""`python -m benchmarks`: measures, writes docs/performance.md and its images, and says which targets hold."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.ground import Ground, ground
from benchmarks.machine import facts, pin
from benchmarks.report import Report, Runs
from benchmarks.rounds import FULL, QUICK, Case, Effort
from benchmarks.sections import SECTIONS


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        default="",
        metavar="SECTION[:PART]",
        help=f"one section ({', '.join(SECTIONS)}), and of that the rows whose name has PART in it",
    )
    parser.add_argument("--quick", action="store_true", help="a look, in about a minute; its figures are no good")
    parser.add_argument("--runs", type=int, help="whose medians count: 3, or 1 when quick")
    return parser.parse_args()


def main() -> int:
    """The exit code: 0 if every target holds. A part of a run, or a quick one, writes no page."""
    chosen = options()
    section, _, part = chosen.only.partition(":")
    if section and section not in SECTIONS:
        raise SystemExit(f"--only is {chosen.only!r}, but must begin with one of {', '.join(SECTIONS)}")
    runs = (1 if chosen.quick else 3) if chosen.runs is None else max(1, chosen.runs)
    core = pin()
    with ground() as ours:
        about = [("server", ours.name()), *facts(core), ("runs", str(runs))]
        effort = QUICK if chosen.quick else FULL
        names = [section] if section else list(SECTIONS)
        measured = measure(ours, effort, names, runs, lambda case: part in f"{case.library} {case.work}")
    report = Report(about, measured)
    report.show()
    if not section and not chosen.quick:
        report.write()
    return 1 if report.failed() else 0


def measure(ours: Ground, effort: Effort, names: Sequence[str], runs: int, chosen: Callable[[Case], bool]) -> Runs:
    """The rows of each section of each run. Runs follow each other, so that one bad minute spoils one of them."""
    measured: Runs = {name: [] for name in names}
    for run in range(runs):
        for name in names:
            if run and SECTIONS[name].once:
                continue
            started = time.monotonic()
            measured[name].append(SECTIONS[name].measure(ours, effort, chosen))
            print(f"run {run + 1} of {runs}: {name}, {time.monotonic() - started:.1f} s", flush=True)
    return measured


if __name__ == "__main__":
    sys.exit(main())
