"""What a leaky bucket promises, checked against a plain list of departures."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest
from twins import START, Twin

from shared_resilience import LeakyBucket


@pytest.mark.parametrize("rate", [3, 10, 100 / 60, 1000])
def test_departures_are_spaced_by_the_leak_rate_however_calls_arrive(rate: float) -> None:
    source = random.Random(1)
    queue = Twin(LeakyBucket(50, rate))
    now, free_at = START, Fraction(START)
    gap = 1_000_000 / Fraction(rate).limit_denominator(10**6)
    for _ in range(2000):
        now += int(source.choice([0, 0, 0, 1, 5]) * source.uniform(0, 1.5 * float(gap)))
        answer = queue.take(now)
        if answer.allowed:
            # An independent model: the moment at which the drop before this one has fallen.
            assert answer.delay == max(0, math.ceil(free_at - now))
            free_at = max(free_at, Fraction(now)) + gap


def test_there_is_room_for_the_capacity_and_no_more() -> None:
    queue = Twin(LeakyBucket(3, 10))

    answers = [queue.take(START) for _ in range(4)]

    assert [answer.allowed for answer in answers] == [1, 1, 1, 0]
    assert [answer.delay for answer in answers] == [0, 100_000, 200_000, 300_000]
    assert answers[3].retry_after == 100_000


def test_who_would_not_wait_so_long_does_not_enter() -> None:
    queue = Twin(LeakyBucket(10, 10))
    queue.take(START, 3)

    refused = queue.take(START, max_delay=100_000)
    assert (refused.allowed, refused.retry_after) == (0, 200_000)
    assert queue.take(START + 200_000, max_delay=100_000).delay == 100_000
    assert queue.take(START + 200_000, max_delay=0).retry_after == 200_000


def test_a_refund_makes_room_and_shortens_the_queue() -> None:
    queue = Twin(LeakyBucket(3, 10))
    queue.take(START, 3)
    queue.give(START, 2)

    assert queue.take(START).delay == 100_000


def test_a_clock_that_is_set_back_lets_nobody_pass_and_stalls_nobody() -> None:
    queue = Twin(LeakyBucket(2, 10))
    queue.take(START, 2)
    an_hour_back = START - 3_600_000_000

    assert queue.take(an_hour_back).retry_after == 100_000
    assert queue.take(an_hour_back + 100_000).delay == 100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0, "leak_rate": 1}, "^capacity is 0, but must be"),
        ({"capacity": 1, "leak_rate": 0}, "^leak_rate is 0, but must be"),
        ({"capacity": 1, "leak_rate": 1, "label": ""}, "^label is '', but must be"),
    ],
)
def test_a_wrong_configuration_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeakyBucket(**arguments)
