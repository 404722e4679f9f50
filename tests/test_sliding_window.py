"""What a sliding window promises, checked against a plain list of calls."""

from __future__ import annotations

import random
from typing import Any

import pytest
from models import SECOND, ListOfCalls
from twins import START, Twin

from shared_resilience import SlidingWindow
from shared_resilience.sliding_window import SLOTS


@pytest.mark.parametrize("seed", range(20))
def test_an_exact_window_decides_as_a_list_of_all_calls_does(seed: int) -> None:
    source = random.Random(seed)
    limit, window = source.randint(1, 20), source.choice([0.001, 1, 60])
    model = ListOfCalls(limit, int(window * SECOND))
    log = Twin(SlidingWindow(limit, window))
    now = START
    for _ in range(400):
        now += int(source.choice([0, 1, 10]) * source.uniform(0, 2 * model.window / limit))
        cost = source.randint(1, limit)
        answer = log.take(now, cost)
        assert answer.allowed == model.fits(now, cost)
        assert answer.retry_after == model.first_fit(now, cost) - now
        if answer.allowed:
            model.calls.append((now, cost))
        assert answer.remaining == limit - model.used(now)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_no_interval_of_the_window_ever_sees_more_than_the_limit(seed: int, exact: bool) -> None:
    source = random.Random(seed)
    limit, window = source.randint(1, 50), 10 * SECOND
    log = Twin(SlidingWindow(limit, 10, exact=exact))
    now, admitted = START, []
    for _ in range(1500):
        now += int(10 ** source.uniform(0, 5.5))
        cost = source.randint(1, min(limit, 5))
        if log.take(now, cost).allowed:
            admitted.append((now, cost))

    for begin, _ in admitted:
        assert sum(cost for time, cost in admitted if begin <= time <= begin + window) <= limit


@pytest.mark.parametrize("seed", range(5))
def test_a_window_that_is_not_exact_keeps_sixty_entries_and_counts_a_slot_too_long_at_most(seed: int) -> None:
    source = random.Random(seed)
    limit, window = 10_000, 60 * SECOND
    slot = -(-window // SLOTS)
    log = Twin(SlidingWindow(limit, 60, exact=False))
    longer = ListOfCalls(limit, window + slot)
    now = START
    for _ in range(3000):
        now += source.randint(0, 200_000)
        cost = source.randint(1, 40)
        answer = log.take(now, cost)
        if longer.fits(now, cost):
            assert answer.allowed
        if answer.allowed:
            longer.calls.append((now, cost))
        assert len(log.states["sliding_window"] or ()) <= 60  # type: ignore[arg-type]  # a tuple of entries


def test_an_exact_window_has_one_entry_per_call_whatever_its_cost() -> None:
    log = Twin(SlidingWindow(10**6, 60))
    for number in range(5):
        log.take(START + number, 50_000)

    assert len(log.states["sliding_window"] or ()) == 5  # type: ignore[arg-type]  # a tuple of entries


def test_a_full_window_opens_one_microsecond_after_its_oldest_call_has_left() -> None:
    log = Twin(SlidingWindow(2, 1))
    log.take(START)
    log.take(START + 300_000)

    assert log.take(START + SECOND).retry_after == 1
    assert log.take(START + SECOND + 1).allowed
    assert log.take(START + SECOND + 1).retry_after == 300_000


def test_a_call_larger_than_one_entry_waits_for_as_many_as_it_needs() -> None:
    log = Twin(SlidingWindow(10, 1))
    for number in range(10):
        log.take(START + number * 10_000)

    assert log.peek(START + 100_000, 4).retry_after == 30_000 + SECOND + 1 - 100_000


def test_a_refund_takes_from_the_oldest_calls_and_never_below_empty() -> None:
    log = Twin(SlidingWindow(10, 1))
    log.take(START, 3)
    log.take(START + 500_000, 4)

    assert log.give(START + 600_000, 5).remaining == 8
    # What is left, 2, was taken by the later call.
    assert log.peek(START + SECOND + 1).remaining == 8
    assert log.give(START + 600_000, 100).remaining == 10
    assert log.give(START + 600_000, 100).remaining == 10


def test_what_has_left_the_window_is_not_given_back_a_second_time() -> None:
    log = Twin(SlidingWindow(10, 1))
    log.take(START, 10)
    log.take(START + 1_500_000, 10)

    assert log.give(START + 1_600_000, 10, since=START).remaining == 0
    assert log.give(START + 1_600_000, 10, since=START + 1_500_000).remaining == 10


def test_a_charge_beyond_the_limit_counts_for_as_many_windows() -> None:
    log = Twin(SlidingWindow(10, 1))
    log.charge(START, 25)

    assert log.take(START).retry_after == 2_500_000 + 1


def test_a_clock_that_is_set_back_mints_nothing_and_stalls_a_window_at_most() -> None:
    log = Twin(SlidingWindow(2, 1))
    log.take(START, 2)
    an_hour_back = START - 3600 * SECOND

    assert log.take(an_hour_back).retry_after == SECOND + 1
    assert not log.take(an_hour_back + SECOND).allowed
    assert log.take(an_hour_back + SECOND + 1).allowed


def test_a_small_step_back_of_the_clock_stalls_no_longer_than_the_step() -> None:
    log = Twin(SlidingWindow(2, 60))
    log.take(START, 2)

    assert log.take(START - 5000).retry_after == 60 * SECOND + 5000 + 1


def test_a_share_is_an_nth_of_the_limit_and_below_one_a_longer_window() -> None:
    shared = Twin(SlidingWindow(8, 1))
    assert [shared.take(START, share=4).allowed for _ in range(3)] == [1, 1, 0]

    few = Twin(SlidingWindow(2, 1))
    assert few.take(START, share=10).allowed
    assert few.take(START + 1, share=10).retry_after == 5 * SECOND


def test_a_call_above_the_share_waits_for_an_empty_window_and_pays_for_it() -> None:
    log = Twin(SlidingWindow(8, 1))

    assert log.take(START, 8, share=4).allowed
    assert log.take(START, 1, share=4).retry_after == 4 * SECOND + 1


def test_two_lengths_of_one_window_can_be_mixed() -> None:
    minute = Twin(SlidingWindow(5, 60))
    second = minute.configured([SlidingWindow(5, 1)])
    admitted = [(second if number % 2 else minute).take(START + number * 100_000).allowed for number in range(100)]

    assert sum(admitted[:10]) == 5
    assert sum(admitted) <= 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "^limit is 0, but must be an integer from 1"),
        ({"limit": 1, "window": 0}, "^window is 0, but must be a number from 0.001"),
        ({"limit": 1, "window": -1}, "^window is -1"),
        ({"limit": 1, "window": float("nan")}, "^window is nan"),
        ({"limit": 1, "exact": 1}, "^exact is 1, but must be True or False"),
        ({"limit": 1, "label": "a b"}, "^label is 'a b'"),
    ],
)
def test_a_wrong_configuration_names_field_value_and_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlidingWindow(**arguments)


def test_a_cost_above_the_limit_never_passes() -> None:
    assert Twin(SlidingWindow(5, 60)).take(START, 6).retry_after == -1
