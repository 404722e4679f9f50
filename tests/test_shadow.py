"""Shadow mode: what would have been refused."""

from __future__ import annotations

from conftest import Api

from shared_resilience import (
    Event,
    LeakyBucket,
    TokenBucket,
)

SLOW = 1e-6


def test_shadow_mode_refuses_nothing_and_tells_what_it_would_have_done(api: Api, events: list[Event]) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(2, SLOW), shadow=True)
    before = api.clock.monotonic()

    decisions = [api(limiter.try_acquire("a")) for _ in range(3)] + [api(limiter.acquire("a", timeout=5))]

    assert api(limiter.peek("a")) == decisions[2]
    assert [decision.allowed for decision in decisions] == [True] * 4
    assert [decision.limited_by for decision in decisions] == [None, None, "token_bucket", "token_bucket"]
    assert [(decision.retry_after, decision.delay) for decision in decisions] == [(0.0, 0.0)] * 4
    assert api.clock.monotonic() == before
    assert [(event.name, event.details["key"]) for event in events] == [("limit.shadow_refused", "a")] * 2
    counted = api.runtime.process.heartbeat.resource("search").counted()
    assert counted["limit.shadow_refused"] == counted["limit.allowed"] == 2
    assert "limit.refused" not in counted


def test_shadow_mode_makes_nobody_wait_for_a_turn_or_a_pause(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", LeakyBucket(5, 1), shadow=True)
    before = api.clock.monotonic()
    for _ in range(3):
        assert api(limiter.acquire(timeout=60)).delay == 0
    api(limiter.pause(30))

    assert api(limiter.acquire(timeout=60)).limited_by == "pause"
    assert api.clock.monotonic() == before


def test_shadow_mode_counts_what_passes_as_if_it_were_not_there(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(2, 1), shadow=True)
    for _ in range(5):
        api(limiter.try_acquire())
    api.clock.advance(1)

    assert api(limiter.try_acquire()).limited_by is None
    assert api(limiter.try_acquire()).limited_by == "token_bucket"
