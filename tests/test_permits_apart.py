"""Permits where limits and slot cannot be asked for in one step: the limits first, then the slot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from bulkheads import ONE, Both
from conftest import Api

from shared_resilience import BulkheadConfig, Event, LeakyBucket, SlidingWindow, TokenBucket
from shared_resilience.limits import Limit

SLOW = 1e-6
PLENTY = TokenBucket(5, SLOW)
Way = tuple[tuple[Limit, ...], dict[str, Any], BulkheadConfig, float]
APART: dict[str, Way] = {
    "leaky bucket": ((LeakyBucket(5, 1),), {}, ONE, 2.0),
    "leased tokens": ((PLENTY,), {"lease_tokens": 4}, ONE, 0.0),
    "partitioned": ((PLENTY, SlidingWindow(6, 3600)), {"partitioned": True}, ONE, 0.0),
    "bulkhead of this process": ((PLENTY, SlidingWindow(6, 3600)), {}, BulkheadConfig(1, 3, local=True), 0.0),
}
"""The limits, their options, the bulkhead, and for how long the limits have the second call wait."""


@pytest.fixture(params=list(APART))
def apart(request: pytest.FixtureRequest, api: Api) -> tuple[Both, float]:
    limits, options, config, turn = APART[request.param]
    return Both(api, *limits, config=config, **options), turn


def interrupted(both: Both, cost: int, timeout: float) -> None:
    """A call that is interrupted while it waits for a slot."""
    error = KeyboardInterrupt() if both.api.form == "sync" else asyncio.CancelledError()

    def wait(seconds: float) -> bool:
        raise error

    with both.waiting(wait), pytest.raises(type(error)):
        both.go_in(cost=cost, timeout=timeout)
    both.rest()
    both.keep_up()


def test_where_it_cannot_be_one_step_the_limits_are_asked_first(apart: tuple[Both, float]) -> None:
    both, _ = apart
    asked = both.asked()
    permit = both.go_in(cost=2)

    assert "bulkhead_enter" in asked
    assert "permits_enter" not in asked
    assert permit.decision is not None
    assert (permit.decision.allowed, permit.decision.remaining) == (True, 3)
    assert both.crowd == (1, 0)
    both.leave(permit)
    assert both.crowd == (0, 0)
    assert both.passes() == 3


def test_where_it_cannot_be_one_step_a_limit_that_refuses_takes_no_slot(apart: tuple[Both, float]) -> None:
    both, _ = apart
    api = both.api
    api(both.limiter.try_acquire(cost=4))
    asked = both.asked()
    refused = both.refused(cost=2)

    assert refused.decision.limited_by == both.limiter._core.config.limits[0].label
    assert not [script for script in asked if script.startswith("bulkhead")]
    assert both.crowd == (0, 0)
    assert both.passes() == 1


def test_what_the_limits_gave_comes_back_if_there_is_no_slot(apart: tuple[Both, float]) -> None:
    both, turn = apart
    both.enter()
    api = both.api
    api(both.limiter.try_acquire(cost=2))
    full = both.full(cost=3, timeout=turn)

    assert full.inside == 1
    assert both.passes() == (5 if turn else 3)
    assert both.crowd == (1, 0)


def test_what_the_limits_gave_comes_back_if_the_call_is_interrupted_while_it_waits_for_a_slot(
    apart: tuple[Both, float],
) -> None:
    both, turn = apart
    both.enter()
    api = both.api
    api(both.limiter.try_acquire(cost=2))
    interrupted(both, 3, turn + 1)

    assert both.passes() == (5 if turn else 3)
    assert both.crowd == (1, 0)


def test_tokens_that_are_leased_are_used_where_others_find_none(api: Api) -> None:
    both = Both(api, TokenBucket(5, SLOW), lease_tokens=5)
    for _ in range(4):
        api(both.limiter.try_acquire())

    assert both.left() == 0
    assert both.go_in()
    assert both.refused()


def test_what_a_lease_gave_comes_back_too(api: Api, events: list[Event]) -> None:
    both = Both(api, TokenBucket(20, SLOW), lease_tokens=8)
    both.enter()
    for _ in range(10):
        both.full()

    assert both.passes() == 20
    assert "store.rejected" not in [event.name for event in events]


def test_the_turn_in_a_leaky_bucket_is_waited_for_without_a_slot_and_leaves_less_time_for_it(api: Api) -> None:
    both = Both(api, LeakyBucket(5, 1), config=BulkheadConfig(2))
    both.go_in(cost=2)
    before, inside, sleep = api.clock.monotonic(), [], api.clock.advance

    def note(seconds: float) -> None:
        inside.append(both.core.known()["inside_here"])
        sleep(seconds)

    async def note_async(seconds: float) -> None:
        note(seconds)

    api.clock.sleep, api.clock.async_sleep = note, note_async  # type: ignore[method-assign]
    permit = both.go_in(timeout=2.5)
    waited: list[float] = []
    with both.waiting(waited.append):  # type: ignore[arg-type]  # in vain: it returns None
        both.full(timeout=1.75)

    assert inside == [1, 2]
    assert api.clock.monotonic() - before == pytest.approx(3.0)
    assert permit.decision is not None
    assert permit.decision.delay == pytest.approx(2.0)
    assert waited == [pytest.approx(0.75)]


def test_a_turn_in_a_leaky_bucket_that_comes_too_late_is_an_error_at_once(api: Api) -> None:
    both = Both(api, LeakyBucket(5, 1))
    api(both.limiter.try_acquire(cost=2))
    before = api.clock.monotonic()
    refused = both.refused(timeout=1.9)

    assert refused.decision.delay == pytest.approx(2.0)
    assert api.clock.monotonic() == before
    assert both.crowd == (0, 0)
    assert both.passes() == 3


def test_limits_in_shadow_mode_refuse_nothing_and_the_bulkhead_does(api: Api, events: list[Event]) -> None:
    both = Both(api, TokenBucket(2, SLOW), shadow=True)
    permit = both.go_in(cost=2)
    both.full(cost=1)
    both.leave(permit)
    decision = both.go_in().decision

    assert decision is not None
    assert (decision.allowed, decision.limited_by) == (True, "token_bucket")
    assert api(both.limiter.peek()).remaining == 0  # what was not taken was not given back
    assert [event.name for event in events] == ["limit.shadow_refused", "bulkhead.refused", "limit.shadow_refused"]


def test_a_bulkhead_in_shadow_mode_refuses_nothing_and_the_limits_do(api: Api, events: list[Event]) -> None:
    both = Both(api, TokenBucket(2, SLOW), config=BulkheadConfig(1, shadow=True))
    first, beyond = both.go_in(timeout=60), both.go_in(timeout=60)
    both.refused()

    assert beyond.decision is not None
    assert (first.token != "", beyond.token, beyond.decision.remaining) == (True, "", 0)
    assert [event.name for event in events] == ["bulkhead.shadow_refused", "limit.refused"]
    assert both.crowd == (1, 0)
