"""What workers write down is judged rightly: each thing that must not be is found, and what a fault explains is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from storm import Course, Fault, Vitals
from verdict import found_wrong, read

FINE = ["now 99.5 redis"]


def judged(tmp_path: Path, lines: list[str], *faults: Fault, vitals: tuple[Vitals, ...] = ()) -> list[str]:
    """What is wrong with four workers, of whom the first has written `lines`, in a hundred seconds with `faults`."""
    for process in range(4):
        text = "\n".join([*(lines if process == 0 else []), *FINE])
        (tmp_path / str(process + 1)).write_text(f"{text}\n", encoding="utf-8")
    course = Course(1, 0.0, 100.0, list(faults), list(vitals), tmp_path)
    return found_wrong(course, read(course))


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    lines = ["in a 50 10", "out a 0 11", "in b 50 12", "out b 0 13", "run k 20", "ran k 21", "allowed 30 30.1 redis"]

    assert judged(tmp_path, lines) == []


ALLOWED = [f"allowed {50 + number / 1000} {50 + number / 1000} local" for number in range(250)]


@pytest.mark.parametrize(
    ("lines", "found", "explained"),
    [
        (ALLOWED, "too many were allowed", Fault("kill", 49.0, 51.0)),
        (["in a 50 10", "in b 50 11", "out b 0 12", "out a 0 13"], "while", Fault("flush", 10.5, 10.6)),
        (["run k 20", "ran k 21", "run k 22", "ran k 23"], "again by", Fault("flush", 21.5, 21.6)),
        (["slow limits 10 12"], "waited 2.0 s", Fault("worker paused", 10.2, 11.9, 1)),
    ],
)
def test_what_is_wrong_is_found_unless_a_fault_explains_it(
    tmp_path: Path, lines: list[str], found: str, explained: Fault
) -> None:
    assert found in "\n".join(judged(tmp_path, lines))
    assert judged(tmp_path, lines, explained) == []


@pytest.mark.parametrize(
    ("line", "found"), [("wrong _lock KeyError", "KeyError"), ("now 99.6 local", "decided by local")]
)
def test_exceptions_and_workers_that_do_not_come_back_are_found(tmp_path: Path, line: str, found: str) -> None:
    for process in range(4):
        (tmp_path / str(process + 1)).write_text(f"{FINE[0]}\n{line}\n", encoding="utf-8")
    course = Course(1, 0.0, 100.0, [], [], tmp_path)

    assert len([one for one in found_wrong(course, read(course)) if found in one]) == 4


def test_a_worker_that_is_gone_is_missed(tmp_path: Path) -> None:
    wrong = judged(tmp_path, [], Fault("worker killed", 50.0, 50.1, 1))

    assert wrong == ["3 of 4 workers live at the end"]


def test_what_grows_is_found(tmp_path: Path) -> None:
    steady = Vitals(50_000_000, 20, 20, 2_000_000)

    assert judged(tmp_path, [], vitals=(steady,) * 8) == []
    assert "open_files grew" in judged(tmp_path, [], vitals=(*(steady,) * 4, *(steady._replace(open_files=90),) * 4))[0]
