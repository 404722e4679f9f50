"""The sections of a run: what is measured together, and by what it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks import breakers, fleets, footprint, growth, permits, policies, syncs, tripless, trips
from benchmarks.ground import Ground
from benchmarks.rounds import Case, Effort
from benchmarks.rows import BYTES, CLIENT, CORE, MICROSECONDS, PER_SECOND, RATIO, SERVER, SPREAD, Row


class Section(NamedTuple):
    """How to measure it, what its table tells, and whether one run says it all."""

    measure: Callable[[Ground, Effort, Callable[[Case], bool]], list[Row]]
    quantities: tuple[str, ...]
    once: bool = False


SECTIONS: dict[str, Section] = {
    "trips": Section(trips.measure_sync, (RATIO, MICROSECONDS, CLIENT, SERVER)),
    "asyncio": Section(trips.measure_asyncio, (RATIO, MICROSECONDS, CLIENT, SERVER, PER_SECOND)),
    "tripless": Section(tripless.measure, (MICROSECONDS, PER_SECOND)),
    "permits": Section(permits.measure, (RATIO, MICROSECONDS, CLIENT, SERVER)),
    "breakers": Section(breakers.measure, (MICROSECONDS, CLIENT, SERVER)),
    "policies": Section(policies.measure_sync, (MICROSECONDS, CLIENT, SERVER)),
    "policies_asyncio": Section(policies.measure_asyncio, (MICROSECONDS, CLIENT, SERVER)),
    "syncs": Section(syncs.measure, (CORE,)),
    "processes": Section(fleets.measure, (PER_SECOND, SERVER)),
    "growth": Section(growth.measure, (RATIO, MICROSECONDS, SPREAD)),
    "memory": Section(footprint.measure, (BYTES,), once=True),
}
