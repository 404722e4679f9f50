"""Overrides: numbers of a running fleet that operators and services change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Api, Operator
from servers import free_port

from shared_resilience import (
    Event,
    LeakyBucket,
    RateLimitExceeded,
    ResilienceService,
    SlidingWindow,
    StoreUnavailableError,
    TokenBucket,
)
from shared_resilience.overrides import override_text


@pytest.fixture
def limiter(api: Api) -> Any:
    return api.service.get_or_create_rate_limiter("search", TokenBucket(10, 5), remember_refusals=False)


def test_an_override_acts_at_the_next_decision_and_ends_when_it_is_cleared(
    api: Api, limiter: Any, operator: Operator
) -> None:
    assert api(limiter.peek()).limit == 10
    operator.set("limit.token_bucket.capacity", "4")
    assert (api(limiter.try_acquire()).limit, api(limiter.peek()).remaining) == (4, 3)
    operator.delete("limit.token_bucket.capacity")

    assert api(limiter.peek()).limit == 10


KINDS = [
    (TokenBucket(10, 5), "limit.token_bucket.refill_rate", "0.5", 2.0),
    (LeakyBucket(10, 5), "limit.leaky_bucket.leak_rate", "0.5", 2.0),
    (SlidingWindow(10, 2), "limit.sliding_window.window", "7.5", 7.5),
    (SlidingWindow(10, 2, exact=False), "limit.sliding_window.window", "7.5", 7.5),
    (SlidingWindow(10, 2, label="per-minute"), "limit.per-minute.window", "7.5", 7.5),
]


@pytest.mark.parametrize(("limit", "field", "value", "retry_after"), KINDS)
def test_every_kind_has_numbers_that_can_be_overridden(
    api: Api, operator: Operator, limit: Any, field: str, value: str, retry_after: float
) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", limit, remember_refusals=False)
    api(limiter.try_acquire(cost=10))
    operator.set(field, value)

    refusal = api(limiter.try_acquire())
    assert not refusal.allowed
    assert refusal.retry_after == pytest.approx(retry_after, abs=retry_after / 50)


def test_the_limit_of_a_window_can_be_overridden(api: Api, operator: Operator) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", SlidingWindow(10, 60), remember_refusals=False)
    api(limiter.try_acquire(cost=4))
    operator.set("limit.sliding_window.limit", "5")

    assert [api(limiter.allow()) for _ in range(2)] == [True, False]


def test_the_service_sets_and_clears_overrides_for_the_fleet(
    api: Api, limiter: Any, other: ResilienceService, operator: Operator
) -> None:
    elsewhere = other.get_or_create_rate_limiter("search", TokenBucket(10, 5))
    api(api.service.set_override("search", "limit.token_bucket.capacity", 4))
    assert elsewhere.peek().limit == api(limiter.peek()).limit == 4
    other.clear_override("search", "limit.token_bucket.capacity")

    assert elsewhere.peek().limit == api(limiter.peek()).limit == 10


def test_the_service_sets_rates_as_exactly_as_they_are_configured(api: Api, events: list[Event]) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(1, 5), remember_refusals=False)
    api(limiter.try_acquire())
    api(api.service.set_override("search", "limit.token_bucket.refill_rate", 0.125))
    assert api(limiter.try_acquire()).retry_after == 8.0
    api(api.service.set_override("search", "limit.token_bucket.refill_rate", 1e-6))
    assert api(limiter.try_acquire()).retry_after == 1e6

    api(api.service.clear_override("search", "limit.token_bucket.refill_rate"))
    assert api(limiter.try_acquire()).retry_after == 0.2
    assert {event.name for event in events} == {"limit.refused"}


@pytest.mark.parametrize(
    ("field", "number"),
    [
        ("limit.token_bucket.capacity", 0),
        ("limit.token_bucket.capacity", 1.5),
        ("limit.token_bucket.capacity", 10**9 + 1),
        ("limit.token_bucket.refill_rate", 0),
        ("limit.token_bucket.refill_rate", math.nan),
        ("limit.token_bucket.refill_rate", math.inf),
        ("limit.token_bucket.refill_rate", "5"),
        ("limit.token_bucket.window", 0.0001),
        ("limit.token_bucket.color", 1),
        ("capacity", 1),
        ("paused_until_us", 1),
        ("limit.a b.capacity", 1),
    ],
)
def test_the_service_refuses_overrides_that_scripts_would_ignore(
    api: Api, limiter: Any, field: str, number: Any
) -> None:
    with pytest.raises(ValueError, match=r"(field|limit\.\S+) is .*, but must be"):
        api(api.service.set_override("search", field, number))

    assert api(limiter.peek()).limit == 10


@pytest.mark.parametrize(
    ("field", "number", "text"),
    [
        ("limit.x.capacity", 7, "7"),
        ("limit.x.limit", 7, "7"),
        ("limit.x.refill_rate", 7, "7.000000"),
        ("limit.x.window", 7, "7.000000"),
        ("breaker.failure_threshold", 7, "7"),
        ("breaker.half_open_max_calls", 1000, "1000"),
        ("breaker.window", 7, "7.000000"),
    ],
)
def test_counts_are_told_as_integers_and_other_overrides_to_the_millionth(field: str, number: int, text: str) -> None:
    assert override_text(field, number) == text


@pytest.mark.parametrize(
    ("field", "number", "allowed"),
    [
        ("limit.x.limit", 7.5, "an integer from 1 to 1000000000"),
        ("breaker.failure_threshold", 7.5, "an integer from 1 to 1000000000"),
        ("breaker.half_open_max_calls", 1001, "an integer from 1 to 1000"),
    ],
)
def test_an_override_of_a_count_is_an_integer_in_its_range(field: str, number: float, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} is {number}, but must be {allowed}$"):
        override_text(field, number)


def test_an_override_that_redis_cannot_be_told_is_an_error(prefix: str) -> None:
    service = ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}", prefix=prefix)

    with pytest.raises(StoreUnavailableError):
        service.set_override("search", "limit.token_bucket.capacity", 4)
    with pytest.raises(StoreUnavailableError):
        service.clear_override("search", "limit.token_bucket.capacity")


NO_NUMBERS = ["", "many", "-1", "-0", "0", "1e3", "nan", "inf", "0x10", " 7", "7 ", "+7", "1.5.2", "9" * 400]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("capacity", value) for value in [*NO_NUMBERS, "2.5", "0.9", "1000000001"]),
        *(("refill_rate", value) for value in [*NO_NUMBERS, "0.0000001", "1000000000.5"]),
    ],
)
def test_what_is_no_number_in_its_range_is_ignored_with_one_event(
    api: Api, limiter: Any, operator: Operator, events: list[Event], field: str, value: str
) -> None:
    operator.set(f"limit.token_bucket.{field}", value)

    decisions = [api(limiter.try_acquire(cost=10)) for _ in range(3)]

    assert [(decision.allowed, decision.limit) for decision in decisions] == [(True, 10), (False, 10), (False, 10)]
    assert decisions[-1].retry_after == pytest.approx(2.0)
    ignored = [event for event in events if event.name == "override.ignored"]
    assert [(event.resource, dict(event.details)) for event in ignored] == [
        ("search", {"field": f"limit.token_bucket.{field}"})
    ]


@pytest.mark.parametrize("value", ["0.0001", "0", "31622401", "-5", "a minute"])
def test_a_window_out_of_its_range_is_ignored(api: Api, operator: Operator, events: list[Event], value: str) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", SlidingWindow(1, 60), remember_refusals=False)
    operator.set("limit.sliding_window.window", value)
    api(limiter.try_acquire())

    assert api(limiter.try_acquire()).retry_after == pytest.approx(60, abs=1e-5)
    assert [event.name for event in events if event.name.startswith("override")] == ["override.ignored"]


def test_a_look_at_a_wrong_override_has_its_event(
    api: Api, limiter: Any, operator: Operator, events: list[Event]
) -> None:
    operator.set("limit.token_bucket.capacity", "many")
    api(limiter.peek())

    assert [dict(event.details) for event in events] == [{"field": "limit.token_bucket.capacity"}]


def test_each_of_several_wrong_overrides_has_an_event_of_its_own(
    api: Api, limiter: Any, operator: Operator, events: list[Event]
) -> None:
    fields = {"limit.token_bucket.capacity", "limit.token_bucket.refill_rate"}
    for field in fields:
        operator.set(field, "many")

    for _ in range(3):
        api(limiter.try_acquire())

    assert {event.details["field"] for event in events if event.name == "override.ignored"} == fields


def test_a_cost_above_an_overridden_capacity_never_passes(api: Api, limiter: Any, operator: Operator) -> None:
    operator.set("limit.token_bucket.capacity", "4")

    refusal = api(limiter.try_acquire(cost=5))
    assert (refusal.allowed, refusal.retry_after, refusal.limited_by) == (False, math.inf, "token_bucket")
    with pytest.raises(RateLimitExceeded, match="retry after inf s"):
        api(limiter.acquire(cost=5))
    assert api(limiter.try_acquire(cost=4)).allowed


def test_overrides_stay_in_force_while_redis_is_away(
    api: Api, limiter: Any, operator: Operator, redis_is_away: Callable[[], None]
) -> None:
    operator.set("limit.token_bucket.capacity", "4")
    api.clock.advance(1)
    api(limiter.try_acquire("before"))
    redis_is_away()

    decision = api(limiter.try_acquire("after"))
    assert (decision.source, decision.limit, decision.remaining) == ("local", 4, 3)


def test_statistics_show_the_overrides(api: Api, limiter: Any, operator: Operator, place: str) -> None:
    if place == "local":
        pytest.skip("without Redis there is no heartbeat")
    operator.set("limit.token_bucket.capacity", "4")
    api(limiter.try_acquire())

    stats = api(api.service.get_comprehensive_stats())

    assert stats["rate_limiters"]["search"]["overrides"] == {"limit.token_bucket.capacity": "4"}
