"""What must hold in a storm, looked for in what the workers have written down."""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from crew import BUCKET, CREW
from storm import LOSES_STATE, OF_WORKERS, Course, Vitals

RETURNS_WITHIN = 2.0
"""Seconds until all decide together again, after Redis is back."""

WINDOWS = (1.0, 5.0, 20.0, 60.0)
"""Seconds of the intervals in which admissions are counted, beside the whole storm."""

TOLERANCES = Vitals(resident_bytes=12_000_000, open_files=12, connections=30, used_memory_bytes=8_000_000)
"""How much more the last quarter may hold than the second; by then all has been seen once."""


class Stay(NamedTuple):
    """A call that was inside, or under a key, in one process; `done` if its caller has had the result."""

    process: int
    began: float
    ended: float
    done: bool = True


@dataclass(slots=True)
class Records:
    """What all workers have written down."""

    allowed: list[tuple[float, float]] = field(default_factory=list)
    local: int = 0
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
        _read(records, process, path, killed.get(process, course.ended))
    records.allowed.sort()
    return records


def _read(records: Records, process: int, path: Path, end: float) -> None:
    inside: dict[str, tuple[float, float]] = {}
    under: dict[str, tuple[float, float]] = {}
    replied: set[str] = set()
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    for line in lines:
        what, *words = line.split(" ")
        match what:
            case "allowed":
                records.allowed.append((float(words[0]), float(words[1])))
                records.local += words[2] == "local"
            case "in":
                inside[words[0]] = float(words[2]), float(words[1])
            case "out":
                began, _ = inside.pop(words[0])
                if words[1] == "0":
                    records.stays.append(Stay(process, began, float(words[2])))
            case "run":
                under[words[0]] = float(words[1]), end
            case "ran":
                under[words[0]] = under[words[0]][0], float(words[1])
            case "replied":
                replied.add(words[0])
            case "slow":
                records.slow.append((process, float(words[1]), float(words[2])))
            case "wrong":
                records.wrong.append(f"process {process}: {' '.join(words)}")
            case "now":
                records.last[process] = float(words[0]), words[1]
    records.stays += [Stay(process, began, min(end, safe)) for began, safe in inside.values()]
    for key, (began, ended) in under.items():
        records.runs[key].append(Stay(process, began, ended, key in replied))


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


def allowance(course: Course, began: float, ended: float) -> float:
    """What may be allowed from `began` to `ended`: what the bucket says, and for each fault that acts then

    at most once its capacity by full local shares, once more by a state that is lost or not yet charged, and its rate
    for as long as some decide alone and others do not.
    """
    most = BUCKET.capacity + BUCKET.refill_rate * (ended - began)
    for fault in course.faults:
        over = fault.ended + RETURNS_WITHIN
        if fault.name not in OF_WORKERS and fault.began <= ended and over >= began:
            apart = min(over, ended) - max(fault.began, began)
            most += 2 * BUCKET.capacity + BUCKET.refill_rate * max(0.0, apart)
    return most


def excess(records: Records, began: float, ended: float) -> float:
    """By how much more was allowed than the bucket has without any fault; a call counts if it was inside entirely."""
    first = bisect_left(records.allowed, (began, 0.0))
    last = bisect_right(records.allowed, (ended, float("inf")))
    return last - first - BUCKET.capacity - BUCKET.refill_rate * (ended - began)


def _too_many(course: Course, records: Records) -> Iterator[str]:
    for length in (*WINDOWS, course.ended - course.began):
        worst, at = -float("inf"), course.began
        for start in _starts(course, length):
            most = allowance(course, start, start + length) - BUCKET.capacity - BUCKET.refill_rate * length
            over = excess(records, start, start + length) - most
            if over > worst:
                worst, at = over, start
        if worst > 0:
            yield f"in the {length:.0f} s from {at - course.began:.1f} on, {worst:.0f} too many were allowed"


def _starts(course: Course, length: float) -> Iterable[float]:
    """Where intervals of `length` begin: a tenth of it apart, or wherever that is less than half a second."""
    steps = max(1, int((course.ended - course.began - length) / min(0.5, length / 10)))
    return [course.began + index * min(0.5, length / 10) for index in range(steps)]


def _lost_between(course: Course, began: float, ended: float) -> bool:
    """Whether Redis may have lost its state from `began` to `ended`."""
    return any(fault.name == LOSES_STATE and fault.ended >= began and fault.began <= ended for fault in course.faults)


def _together(course: Course, stays: list[Stay]) -> Iterator[str]:
    ordered = sorted(stays, key=lambda stay: stay.began)
    longest = Stay(0, 0.0, 0.0)
    for stay in ordered:
        if stay.began < longest.ended and not _lost_between(course, longest.began, stay.began):
            yield f"{stay} went into the bulkhead of one while {longest} was inside"
        if stay.ended > longest.ended:
            longest = stay


def _made_twice(course: Course, records: Records) -> Iterator[str]:
    killed = {fault.process: fault.began for fault in course.faults if fault.name == "worker killed"}
    for key, runs in records.runs.items():
        ordered = sorted(runs, key=lambda run: run.began)
        for before, after in zip(ordered, ordered[1:], strict=False):
            died = killed.get(before.process, float("inf")) < after.began
            if not died and not _lost_between(course, before.began, after.began):
                yield f"the call under {key} was made by {before} and again by {after}"


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
    made = sum(map(len, records.runs.values()))
    return (
        f"seed {course.seed}, {length:.0f} s, {len(course.faults)} faults: {course.words()}\n"
        f"{allowed:,} calls were allowed, {records.local:,} of them locally: {allowed / whole:.2f} × what the limit says; "
        f"in the worst second {max(0.0, worst):.0f} above capacity + rate\n"
        f"{len(records.stays):,} stays in the bulkhead of one, {made:,} runs under {len(records.runs):,} keys, "
        f"{len(records.wrong)} exceptions that nobody asked for"
    )

