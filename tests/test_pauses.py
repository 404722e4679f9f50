"""Pauses: what stops a resource for the whole fleet, and what ends that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Api
from servers import PATIENT, Server, free_port

from shared_resilience import (
    RateLimitExceeded,
    ResilienceService,
    TokenBucket,
)


@pytest.fixture
def limiter(api: Api) -> Any:
    return api.service.get_or_create_rate_limiter("search", TokenBucket(10, 5), remember_refusals=False)


def test_a_paused_resource_refuses_every_key_and_says_until_when(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    api.clock.advance(5)

    for key in ("", "user:42"):
        decision = api(limiter.try_acquire(key))
        assert (decision.allowed, decision.limited_by, decision.limit) == (False, "pause", 10)
        assert decision.retry_after == pytest.approx(15, abs=1e-5)
    assert api(limiter.peek()).limited_by == "pause"
    with pytest.raises(RateLimitExceeded, match=r"'search' \(pause\) exceeded"):
        api(limiter.acquire(timeout=14.9))


def test_a_pause_takes_nothing_and_ends_by_itself(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    api(limiter.try_acquire(cost=10))
    api.clock.advance(20)

    assert api(limiter.try_acquire(cost=10)).remaining == 0


def test_who_may_wait_waits_for_the_end_of_the_pause(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    before = api.clock.monotonic()

    assert api(limiter.acquire(timeout=21)).allowed
    assert api.clock.monotonic() - before == pytest.approx(20, abs=1e-4)


def test_the_whole_fleet_sees_a_pause_and_its_end_at_once(api: Api, limiter: Any, other: ResilienceService) -> None:
    elsewhere = other.get_or_create_rate_limiter("search", TokenBucket(10, 5), remember_refusals=False)
    assert elsewhere.try_acquire().allowed
    api(limiter.pause(20))

    refusal = elsewhere.try_acquire()
    assert (refusal.limited_by, refusal.source) == ("pause", "redis")
    elsewhere.pause(0)
    assert api(limiter.try_acquire()).allowed


def test_a_longer_pause_stays_and_a_shorter_one_is_prolonged(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    api(limiter.pause(5))
    assert api(limiter.peek()).retry_after == pytest.approx(20, abs=1e-5)

    api.clock.advance(18)
    api(limiter.pause(5))
    assert api(limiter.peek()).retry_after == pytest.approx(5, abs=1e-5)


def test_a_pause_of_nothing_ends_the_pause_even_for_a_remembered_refusal(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(10, 5))
    api(limiter.pause(20))
    assert not api(limiter.allow())
    api(limiter.pause(0))

    assert api(limiter.allow())


@pytest.mark.parametrize("seconds", [60.1, -1, -0.001, math.nan, math.inf, "1", None, True])
def test_a_wrong_pause_is_refused(api: Api, limiter: Any, seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"seconds is .*, but must be a number from 0 to 60"):
        api(limiter.pause(seconds))

    assert api(limiter.allow())


def test_the_longest_pause_is_what_was_configured(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", max_pause=600.0)
    api(limiter.pause(600))

    assert api(limiter.peek()).retry_after == pytest.approx(600, abs=1e-5)
    with pytest.raises(ValueError, match="from 0 to 600"):
        api(limiter.pause(601))


@pytest.mark.parametrize("max_pause", [0, -1, math.nan, 3601, "60"])
def test_a_wrong_longest_pause_is_refused(api: Api, max_pause: Any) -> None:
    with pytest.raises(ValueError, match="max_pause is"):
        api.service.get_or_create_rate_limiter("search", max_pause=max_pause)


def test_a_clock_set_back_during_a_pause_prolongs_it_by_its_own_length_at_most(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    api.clock.advance(15)
    api.clock.advance(-3600)

    assert api(limiter.try_acquire()).retry_after == pytest.approx(20, abs=1e-5)
    api.clock.advance(19)
    assert api(limiter.try_acquire()).retry_after == pytest.approx(1, abs=1e-5)
    api.clock.advance(1.001)
    assert api(limiter.try_acquire()).allowed


def test_a_small_step_back_prolongs_a_pause_by_the_step(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    api.clock.advance(15)
    api.clock.advance(-2)

    assert api(limiter.try_acquire()).retry_after == pytest.approx(7, abs=1e-5)


def test_a_pause_goes_on_while_redis_is_away(api: Api, limiter: Any, redis_is_away: Callable[[], None]) -> None:
    api(limiter.pause(20))
    api.clock.advance(1)
    api(limiter.try_acquire())
    redis_is_away()
    api.clock.advance(10)

    assert api(limiter.try_acquire()).limited_by == "pause"
    api.clock.advance(9.01)
    assert api(limiter.try_acquire()).allowed


def test_who_paused_does_not_forget_it_when_redis_is_lost_at_once(server: Server, prefix: str) -> None:
    with ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT) as service:
        limiter = service.get_or_create_rate_limiter("search", TokenBucket(10, 5))
        limiter.try_acquire()
        limiter.pause(20)
        guard = service._runtime.process.guard
        guard.launch = lambda start: None  # type: ignore[method-assign]  # no probe
        guard.usable = False

        decision = limiter.try_acquire()

    assert (decision.source, decision.limited_by) == ("local", "pause")


@pytest.mark.parametrize(
    "on_outage",
    [
        "local",
        "allow",
        "deny",
    ],
)
def test_a_pause_while_redis_is_away_is_no_error(prefix: str, on_outage: Any) -> None:
    service = ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}", prefix=prefix, on_outage=on_outage)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(10, 5))

    limiter.pause(20)
