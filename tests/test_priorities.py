"""Priorities: what is reserved for important calls, others leave alone; low priorities are refused first."""

from __future__ import annotations

import math
from typing import Any

import pytest
from conftest import Api

from shared_resilience import (
    LeakyBucket,
    PriorityLevel,
    RateLimitExceeded,
    SlidingWindow,
    TokenBucket,
)
from shared_resilience.limits import Limit
from shared_resilience.priority import held_back

CRITICAL, HIGH, NORMAL, LOW, BACKGROUND = PriorityLevel
KINDS: list[Limit] = [TokenBucket(10, 1), SlidingWindow(10, 60), SlidingWindow(10, 60, exact=False), LeakyBucket(10, 1)]


def drained(api: Api, limiter: Any, priority: PriorityLevel) -> int:
    """How many calls of `priority` pass until one is refused."""
    for number in range(100):
        if not api(limiter.try_acquire(priority=priority)):
            return number
    raise AssertionError("nothing refuses")


@pytest.mark.parametrize("limit", KINDS, ids=repr)
def test_low_priorities_are_refused_first(api: Api, limit: Limit) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", limit, reserved={CRITICAL: 0.2, NORMAL: 0.3})

    assert [drained(api, limiter, priority) for priority in reversed(PriorityLevel)] == [5, 0, 3, 0, 2]


def test_a_call_waits_until_more_is_there_than_is_reserved(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(10, 1), reserved={HIGH: 0.5})
    drained(api, limiter, CRITICAL)

    assert api(limiter.peek(priority=LOW)).retry_after == pytest.approx(6)
    assert api(limiter.peek(cost=2, priority=NORMAL)).retry_after == pytest.approx(7)
    assert api(limiter.peek(priority=HIGH)).retry_after == pytest.approx(1)


def test_a_cost_that_finds_no_place_beside_the_reserve_passes_when_all_is_there(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(10, 1), reserved={CRITICAL: 0.5})

    assert api(limiter.try_acquire(cost=8, priority=LOW))
    assert api(limiter.try_acquire(cost=8, priority=LOW)).retry_after == pytest.approx(8)


def test_a_refusal_of_an_unimportant_call_says_nothing_of_an_important_one(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(10, 1), reserved={HIGH: 0.5})
    assert drained(api, limiter, LOW) == 5

    assert not api(limiter.allow(priority=BACKGROUND))
    assert api(limiter.allow(priority=HIGH))
    assert api(limiter.acquire(timeout=0, priority=CRITICAL))
    with pytest.raises(RateLimitExceeded):
        api(limiter.reserve(priority=NORMAL))
    assert api(limiter.reserve(priority=HIGH)).decision.remaining == 2


def test_an_important_call_does_not_stand_behind_unimportant_ones(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(10, 1), reserved={CRITICAL: 0.5})
    drained(api, limiter, CRITICAL)
    api(limiter.acquire(timeout=2, priority=CRITICAL))
    began = api.clock.monotonic()
    api(limiter.acquire(timeout=6, priority=NORMAL))

    assert api.clock.monotonic() - began == pytest.approx(6)


def test_a_decorated_function_has_a_priority_which_its_arguments_may_tell(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(10, 1), reserved={CRITICAL: 0.9})

    @limiter.limit(priority=lambda user: CRITICAL if user == "root" else LOW)  # type: ignore[untyped-decorator]
    def greet(user: str) -> str:
        return user

    @limiter.limit(priority=LOW)  # type: ignore[untyped-decorator]
    def toil() -> None:
        raise AssertionError("ran")

    assert greet("anybody") == "anybody"
    with pytest.raises(RateLimitExceeded):
        greet("anybody")
    assert greet("root") == "root"
    with pytest.raises(RateLimitExceeded):
        toil()


def test_what_is_held_back_adds_up_over_more_important_levels() -> None:
    assert held_back({}) == (0, 0, 0, 0, 0, 0)
    assert held_back({CRITICAL: 0.2, LOW: 0.1, HIGH: 1 / 3}) == (0, 0, 200_000, 533_333, 533_333, 633_333)


@pytest.mark.parametrize("priority", [0, 6, True, "HIGH", 1.0, None])
def test_a_priority_that_is_none_is_refused_before_anything_is_sent(api: Api, priority: Any) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(10, 1))
    for ask in (limiter.try_acquire, limiter.acquire, limiter.allow, limiter.peek, limiter.reserve):
        with pytest.raises(ValueError, match=r"priority is .*, but must be a PriorityLevel, from CRITICAL \(1\)"):
            api(ask(priority=priority))
    with pytest.raises(ValueError, match="priority is"):
        limiter.limit(priority=priority)(print)
    assert api(limiter.peek()).remaining == 10


@pytest.mark.parametrize(
    "reserved",
    [
        *({1: 0.5}, {BACKGROUND: 0.5}, {HIGH: 0}, {HIGH: -0.1}, {HIGH: 0.5, LOW: 0.5}, {HIGH: math.nan}, {HIGH: True}),
        *({HIGH: "0.5"}, [HIGH], 0.5),
    ],
)
def test_shares_that_cannot_be_reserved_are_refused(api: Api, reserved: Any) -> None:
    with pytest.raises(ValueError, match=r"reserved is .*, but must be a mapping from PriorityLevel, CRITICAL to LOW,"):
        api.service.get_or_create_rate_limiter("r", TokenBucket(10, 1), reserved=reserved)


def test_leased_tokens_serve_all_priorities_so_that_nothing_can_be_reserved_of_them(api: Api) -> None:
    with pytest.raises(ValueError, match="lease_tokens and reserved are both given"):
        api.service.get_or_create_rate_limiter("r", TokenBucket(10, 1), reserved={HIGH: 0.1}, lease_tokens=2)


def test_another_reserve_is_another_configuration(api: Api) -> None:
    given = {HIGH: 0.1}
    api.service.get_or_create_rate_limiter("r", TokenBucket(10, 1), reserved=given)
    given[HIGH] = 0.2

    with pytest.raises(ValueError, match="exists with another configuration"):
        api.service.get_or_create_rate_limiter("r", reserved=given)
