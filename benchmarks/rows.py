"""Rows of figures, the targets that stand beside them, and what becomes of several runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

OURS = "shared_resilience"

RATIO = "× bare"
MICROSECONDS = "µs"
CLIENT = "client's CPU, µs"
SERVER = "server's CPU, µs"
PER_SECOND = "decisions/s"
BYTES = "bytes per key"
SPREAD = "dearest / cheapest"
CORE = "% of a core"


class Target(NamedTuple):
    """What a quantity of a row must be at most or at least."""

    quantity: str
    sign: Literal["≤", "≥"]
    bound: float

    def holds(self, found: float) -> bool:
        return found <= self.bound if self.sign == "≤" else found >= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one thing measured: whose it is, what it does, how much by quantity."""

    library: str
    work: str
    figures: Mapping[str, float]
    target: Target | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the target holds; None: there is none."""
        return None if self.target is None else self.target.holds(self.figures[self.target.quantity])


def median_of_runs(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Each row once, with the median of each of its quantities."""
    first = runs[0]
    found = {(row.library, row.work): _medians(_of(row, runs)) for row in first}
    return [replace(row, figures=found[row.library, row.work]) for row in first]


def _of(row: Row, runs: Sequence[Sequence[Row]]) -> list[Mapping[str, float]]:
    return [other.figures for run in runs for other in run if (other.library, other.work) == (row.library, row.work)]


def _medians(figures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    seen = list(figures)
    return {quantity: statistics.median(one[quantity] for one in seen) for quantity in seen[0]}


def range_of_runs(row: Row, quantity: str, runs: Sequence[Sequence[Row]]) -> tuple[float, float]:
    """The least and the most of what the runs found."""
    found = [figures[quantity] for figures in _of(row, runs)]
    return min(found), max(found)


def failed(rows: Iterable[Row]) -> list[Row]:
    """The rows whose target does not hold."""
    return [row for row in rows if row.holds is False]
