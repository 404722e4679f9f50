"""Thirty seconds of a storm; `make soak` has longer ones."""

from __future__ import annotations

import pytest
from servers import binary_of
from storm import storm
from verdict import found_wrong, read, summary


def test_thirty_seconds_of_a_storm(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--lanes") == "fakeredis" or binary_of("valkey") is None:
        pytest.skip("needs a real server, and this is the quick lane")
    with storm(seed=20_251, seconds=30.0) as course:
        records = read(course)
        wrong = found_wrong(course, records)

    print(summary(course, records))
    assert wrong == []
    assert len(course.faults) >= 8
    assert len(records.allowed) > 1000
