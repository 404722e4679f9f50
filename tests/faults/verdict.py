"""What must hold in a storm, looked for in what the workers have written down."""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from crew import BUCKET, CREW
from storm import LOSES_STATE, OF_WORKERS, Course, Fault, Vitals

RETURNS_WITHIN = 2.0
"""Seconds until all decide together again, after Redis is back."""

WINDOWS = (1.0, 5.0, 20.0, 60.0)
"""Seconds of the intervals in which admissions are counted, beside the whole storm."""

UNDERWAY = 1.5
"""Seconds from an answer of Redis until it is written down what came of it: its process may have been paused."""

TOLERANCES = Vitals(resident_bytes=12_000_000, open_files=12, connections=30, used_memory_bytes=8_000_000)
"""How much more the last quarter may hold than the second; by then all has been seen once."""


class Stay(NamedTuple):
    """A call that was inside, or under a key, in one process."""

    process: int
    began: float
    ended: float


@dataclass(slots=True)
class Records:
    """What all workers have written down; `away` is when and for how long each of them was without Redis."""

    allowed: list[tuple[float, float]] = field(default_factory=list)
    local: int = 0
    away: list[Fault] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    runs: dict[str, list[Stay]] = field(default_factory=lambda: defaultdict(list))
    slow: list[tuple[int, float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    last: dict[int, tuple[float, str]] = field(default_factory=dict)


def read(course: Course) -> Records:
    """All of it. What a worker has not finished ends when it was killed, or the storm was over."""
    records = Records()
    killed = {fault.process: fault.ended for fault in course.faults if fault.name == "worker killed"}
    for path in sorted(course.folder.iterdir()):
        process = int(path.name)
        Diary(process, records, killed.get(process, course.ended)).read(path)
    records.allowed.sort()
    return records


class Diary:
    """What one worker has written down: a method for each kind of line."""

    def __init__(self, process: int, records: Records, end: float) -> None:
        self._process, self._records, self._end = process, records, end
        self._inside: dict[str, tuple[float, float]] = {}
        self._under: dict[str, list[float]] = defaultdict(list)
        self._lost: float | None = None
        self._kinds: dict[str, Callable[..., None]] = {
            "allowed": self._allowed,
            "in": self._in,
            "out": self._out,
            "run": self._run,
            "ran": self._ran,
            "lost": self._away,
            "recovered": self._recovered,
            "slow": self._slow,
            "wrong": self._wrong,
            "now": self._now,
        }

    def read(self, path: Path) -> None:
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        for line in lines:
            what, *words = line.split(" ")
            self._kinds[what](*words)
        stays, runs, process = self._records.stays, self._records.runs, self._process
        stays += [Stay(process, began, min(self._end, safe)) for began, safe in self._inside.values()]
        for key, open_runs in self._under.items():
            runs[key] += [Stay(process, began, self._end) for began in open_runs]
        if self._lost is not None:
            self._recovered(str(self._end))

    def _allowed(self, asked: str, answered: str, source: str) -> None:
        self._records.allowed.append((float(asked), float(answered)))
        self._records.local += source == "local"

    def _in(self, token: str, safe_until: str, at: str) -> None:
        self._inside[token] = float(at), float(safe_until)

    def _out(self, token: str, lost: str, at: str) -> None:
        began, _ = self._inside.pop(token)
        if lost == "0":
            self._records.stays.append(Stay(self._process, began, float(at)))

    def _run(self, key: str, at: str) -> None:
        self._under[key].append(float(at))

    def _ran(self, key: str, at: str) -> None:
        self._records.runs[key].append(Stay(self._process, self._under[key].pop(0), float(at)))

    def _away(self, at: str) -> None:
        self._lost = float(at)

    def _recovered(self, at: str) -> None:
        if self._lost is not None:
            self._records.away.append(Fault("away", self._lost, float(at), self._process))
            self._lost = None

    def _slow(self, what: str, asked: str, answered: str) -> None:
        self._records.slow.append((self._process, float(asked), float(answered)))

    def _wrong(self, *words: str) -> None:
        self._records.wrong.append(f"process {self._process}: {' '.join(words)}")

    def _now(self, at: str, source: str) -> None:
        self._records.last[self._process] = float(at), source


def found_wrong(course: Course, records: Records) -> list[str]:
    """All that must not be, in words."""
    return [
        *records.wrong,
        *_too_many(course, records),
        *_together(course, records.stays),
        *_made_twice(course, records),
        *_too_slow(course, records),
        *_not_back(course, records),
        *grown(course.vitals),
    ]


def outages(course: Course, records: Records) -> list[Fault]:
    """Whatever may have kept workers from deciding together: faults of Redis, and when a busy machine was too late."""
    done = [fault for fault in course.faults if fault.name not in OF_WORKERS]
    return done + [
        away
        for away in records.away
        if not any(fault.began <= away.began <= fault.ended + RETURNS_WITHIN for fault in done)
    ]


def beyond(faults: list[Fault], began: float, ended: float) -> float:
    """What `faults` may let through from `began` to `ended`, beside what the limit does.

    Each of them its capacity once by full local shares, once more by a state that is lost or not charged yet, and its
    rate for as long as some decide alone and others do not.
    """
    most = 0.0
    for fault in faults:
        over = fault.ended + RETURNS_WITHIN
        if fault.began <= ended and over >= began:
            apart = min(over, ended) - max(fault.began, began)
            most += 2 * BUCKET.capacity + BUCKET.refill_rate * apart
    return most


def excess(records: Records, began: float, ended: float) -> float:
    """By how much more was allowed than the bucket has without any fault; a call counts if it was inside entirely."""
    first = bisect_left(records.allowed, (began, 0.0))
    last = bisect_right(records.allowed, (ended, float("inf")))
    return last - first - BUCKET.capacity - BUCKET.refill_rate * (ended - began)


def _too_many(course: Course, records: Records) -> Iterator[str]:
    faults = outages(course, records)
    for length in (*WINDOWS, course.ended - course.began):
        for start in _starts(course, length):
            over = excess(records, start, start + length) - beyond(faults, start, start + length)
            if over > 0:
                yield f"in the {length:.0f} s from {start - course.began:.1f} on, {over:.0f} too many were allowed"


def _starts(course: Course, length: float) -> Iterable[float]:
    """Where intervals of `length` begin: a tenth of it apart, or wherever that is less than half a second."""
    steps = max(1, int((course.ended - course.began - length) / min(0.5, length / 10)))
    return [course.began + index * min(0.5, length / 10) for index in range(steps)]


def _lost_between(course: Course, began: float, ended: float) -> bool:
    """Whether Redis may have lost what it said shortly before `began`, and not yet by `ended`."""
    lost = [fault for fault in course.faults if fault.name == LOSES_STATE]
    return any(fault.ended >= began - UNDERWAY and fault.began <= ended for fault in lost)


def _around(course: Course, began: float, ended: float) -> str:
    """The faults about that time, in seconds since `began`."""
    near = [fault for fault in course.faults if fault.ended >= began - 5 and fault.began <= ended + 1]
    return "; ".join(
        f"{fault.name} {fault.process or ''} {fault.began - began:.3f} … {fault.ended - began:.3f}" for fault in near
    )


def _together(course: Course, stays: list[Stay]) -> Iterator[str]:
    ordered = sorted(stays, key=lambda stay: stay.began)
    longest = Stay(0, 0.0, 0.0)
    for stay in ordered:
        if stay.began < longest.ended and not _lost_between(course, longest.began, stay.began):
            yield (
                f"{stay} went into the bulkhead of one while {longest} was inside "
                f"({_around(course, longest.began, stay.began)})"
            )
        if stay.ended > longest.ended:
            longest = stay


def _made_twice(course: Course, records: Records) -> Iterator[str]:
    killed = {fault.process: fault.began for fault in course.faults if fault.name == "worker killed"}
    for key, runs in records.runs.items():
        ordered = sorted(runs, key=lambda run: run.began)
        for before, after in pairwise(ordered):
            died = killed.get(before.process, float("inf")) < after.began
            if not died and not _lost_between(course, before.began, after.began):
                near = _around(course, before.began, after.began)
                yield f"the call under {key} was made by {before} and again by {after} ({near})"


def _too_slow(course: Course, records: Records) -> Iterator[str]:
    paused = [fault for fault in course.faults if fault.name == "worker paused"]
    for process, asked, answered in records.slow:
        stood = sum(
            min(answered, fault.ended) - max(asked, fault.began)
            for fault in paused
            if fault.process == process and fault.ended > asked and fault.began < answered
        )
        if answered - asked - stood > 1.0:
            yield f"process {process} waited {answered - asked:.1f} s for a decision"


def _not_back(course: Course, records: Records) -> Iterator[str]:
    killed = {fault.process for fault in course.faults if fault.name == "worker killed"}
    alive = {process: last for process, last in records.last.items() if process not in killed}
    if len(alive) != CREW:
        yield f"{len(alive)} of {CREW} workers live at the end"
    for process, (at, source) in alive.items():
        if at < course.ended - 1.5 or source != "redis":
            yield f"process {process}, {course.ended - at:.1f} s before the end: decided by {source}"


def grown(vitals: list[Vitals]) -> Iterator[str]:
    """What has grown from the second quarter to the last."""
    quarter = len(vitals) // 4
    if quarter == 0:
        return
    for what, allowed in TOLERANCES._asdict().items():
        before, after = (
            statistics.median(getattr(one, what) for one in part)
            for part in (vitals[quarter : 2 * quarter], vitals[-quarter:])
        )
        if after - before > allowed:
            yield f"{what} grew from {before:,.0f} to {after:,.0f}, which is more than {allowed:,}"


def summary(course: Course, records: Records) -> str:
    """The figures of a storm, in a few lines."""
    length = course.ended - course.began
    allowed = len(records.allowed)
    whole = BUCKET.capacity + BUCKET.refill_rate * length
    worst = max(excess(records, start, start + 1.0) for start in _starts(course, 1.0))
    late = len(outages(course, records)) + len([f for f in course.faults if f.name in OF_WORKERS]) - len(course.faults)
    made = sum(map(len, records.runs.values()))
    return (
        f"seed {course.seed}, {length:.0f} s, {len(course.faults)} faults: {course.words()}\n"
        f"{allowed:,} calls were allowed, {records.local:,} of them locally: {allowed / whole:.2f} × what the limit "
        f"says; in the worst second {max(0.0, worst):.0f} above capacity + rate; {late} times Redis was just late\n"
        f"{len(records.stays):,} stays in the bulkhead of one, {made:,} runs under {len(records.runs):,} keys, "
        f"{len(records.wrong)} exceptions that nobody asked for"
    )
