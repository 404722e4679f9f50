"""Thirty seconds of a storm; `make soak` has longer ones."""

from __future__ import annotations

import pytest
from measurements import Measured
from storm import storm
from verdict import found_wrong, read, summary


@pytest.mark.fault(
    "Redis and workers are killed, frozen, flushed and cut off at random for half a minute, under load",
    "nothing raised; no more allowed than faults account for; nobody inside twice; nothing made twice; nothing grows",
)
@pytest.mark.usefixtures("real_binary")
def test_thirty_seconds_of_a_storm(measured: Measured) -> None:
    with storm(seed=20_251, seconds=30.0) as course:
        records = read(course)
        wrong = found_wrong(course, records)

    measured(summary(course, records).replace("\n", "; "))
    assert wrong == []
    assert len(course.faults) >= 8
    assert len(records.allowed) > 1000
