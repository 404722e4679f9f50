"""Permits: all limits of a resource and a slot of its bulkhead, in one trip, all or nothing."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bulkheads import ONE, Both, Waiters
from conftest import FORMS, Api
from servers import PATIENT, Server
from test_heartbeat import commands_at, counted

from shared_resilience import (
    BulkheadConfig,
    Event,
    PriorityLevel,
    RateLimitExceeded,
    ResilienceService,
    SlidingWindow,
    StoreUnavailableError,
    TokenBucket,
    scripts,
)
from shared_resilience.backends import step
from shared_resilience.limits import Limit
from shared_resilience.options import CheckedOptions
from shared_resilience.runtimes import local_runtime
from shared_resilience.testing import ManualClock

CRITICAL, HIGH, NORMAL, LOW, BACKGROUND = PriorityLevel
SLOW = 1e-6
ACME = {"user": "ada", "tenant": "acme"}
PAIRS: list[tuple[Limit, Limit]] = [
    (TokenBucket(5, SLOW, label="user"), TokenBucket(7, SLOW, label="tenant")),
    (TokenBucket(5, SLOW, label="user"), SlidingWindow(7, 3600, label="tenant")),
]
of_each_pair = pytest.mark.parametrize("limits", PAIRS, ids=["as usual", "of several kinds"])
RedisIsAway = Callable[[], None]
assert counted  # a fixture


# One trip.


@pytest.mark.parametrize("form", FORMS)
def test_two_limits_and_a_slot_are_entered_by_one_command_and_left_by_one(
    counted: Server, prefix: str, form: str
) -> None:
    service = ResilienceService.from_url(counted.url, prefix=prefix, command_timeout=PATIENT)
    service.get_or_create_rate_limiter("orders", TokenBucket(100, 1, label="user"), SlidingWindow(100, 60))
    service.get_or_create_bulkhead("orders", BulkheadConfig(2))
    visited = Counter[str]()

    def visit() -> None:
        for _ in range(20):
            with service.permits("orders").guard("ada"):
                visited["inside"] += 1

    async def visit_async() -> None:
        permits = service.aio.permits("orders")
        for _ in range(20):
            async with permits.guard("ada"):
                visited["inside"] += 1
        await service.aio.close()

    if form == "sync":
        visit()
    else:
        asyncio.run(visit_async())
    sent = Counter(command[1] for command in commands_at(counted) if command[0].startswith("EVAL"))
    service.close()

    of_heartbeat = [scripts.load(name).sha for name in ("fleet_enlist", "heartbeat", "heartbeat_roster")]
    assert visited == {"inside": 20}
    assert {sha: number for sha, number in sent.items() if sha not in of_heartbeat} == {
        scripts.load("permits_enter").sha: 20,
        scripts.load("bulkhead_leave").sha: 20,
    }


@of_each_pair
def test_it_is_one_question_whatever_the_answer(api: Api, limits: tuple[Limit, Limit]) -> None:
    both = Both(api, *limits, config=BulkheadConfig(2, 3))
    asked = both.asked()
    first = both.go_in(ACME, 3)
    both.refused(ACME, 3)
    both.go_in({"user": "bob"})
    both.full({"user": "bob"})
    both.leave(first)

    assert asked == ["permits_enter"] * 4 + ["bulkhead_leave"]


@of_each_pair
def test_a_permit_takes_the_cost_of_every_limit_and_a_slot(api: Api, limits: tuple[Limit, Limit]) -> None:
    both = Both(api, *limits)
    permit = both.go_in(ACME, 3)

    assert both.crowd == (1, 0)
    assert (both.left(user="ada"), both.left(user="new", tenant="acme")) == (2, 4)
    both.leave(permit)
    assert both.crowd == (0, 0)
    assert both.left(user="ada") == 2
    assert both.counts("limit.allowed", "bulkhead.entered") == [1, 1]


@of_each_pair
def test_the_decision_of_a_permit_is_that_of_the_limits(api: Api, limits: tuple[Limit, Limit], place: str) -> None:
    both = Both(api, *limits, config=BulkheadConfig(9))
    alone = api.service.get_or_create_rate_limiter("alone", *limits)
    for cost in (1, 2, 1):
        permit = both.go_in(ACME, cost)
        assert permit.decision == api(alone.try_acquire(ACME, cost))
        assert permit.decision is not None
        assert permit.decision.source == permit.source == ("local" if place == "local" else "redis")
        api.clock.advance(0.5)

    assert both.refused(ACME, 2).decision == api(alone.try_acquire(ACME, 2))


# All or nothing.


@of_each_pair
@pytest.mark.parametrize("refuses", ["user", "tenant"])
def test_when_one_limit_refuses_no_other_is_charged_and_no_slot_is_taken(
    api: Api, limits: tuple[Limit, Limit], refuses: str
) -> None:
    both = Both(api, *limits)
    key = {**ACME, "user" if refuses == "tenant" else "tenant": "drained"}
    api(both.limiter.try_acquire(key, 5))
    refused = both.refused(ACME, 3)

    assert refused.decision.limited_by == refuses
    assert both.crowd == (0, 0)
    assert (both.left(user="ada"), both.left(user="new", tenant="acme")) == ((0, 5) if refuses == "user" else (5, 2))


@of_each_pair
def test_when_the_bulkhead_is_full_no_limit_is_charged(
    api: Api, limits: tuple[Limit, Limit], events: list[Event]
) -> None:
    both = Both(api, *limits)
    both.enter()
    full = both.full(ACME, 3)

    assert (full.name, full.inside, full.waited) == ("orders", 1, 0.0)
    assert (both.left(user="ada"), both.left(user="new", tenant="acme")) == (5, 5)
    assert [event.name for event in events] == ["bulkhead.refused"]
    assert both.counts("limit.allowed", "limit.refused", "bulkhead.refused") == [0, 0, 1]


@of_each_pair
def test_who_waits_for_a_slot_is_charged_nothing_and_once_when_it_goes_in(
    api: Api, limits: tuple[Limit, Limit]
) -> None:
    both = Both(api, *limits)
    inside, waiters = both.enter(), Waiters(both)
    waiters.wait_at(both.permits.guard(ACME, 3, timeout=PATIENT), "a")
    waiting = both.left(user="ada"), both.left(user="new", tenant="acme")
    both.leave(inside)
    waiters.finish()

    assert waiting == (5, 5)
    assert (both.left(user="ada"), both.left(user="new", tenant="acme")) == (2, 4)
    assert both.counts("limit.allowed", "bulkhead.entered", "bulkhead.waited") == [1, 2, 1]
    assert both.crowd == (0, 0)


def test_who_has_waited_in_vain_is_charged_nothing(api: Api) -> None:
    both = Both(api, TokenBucket(5, SLOW))
    both.enter()
    both.full(timeout=0.01)

    assert both.crowd == (1, 0)
    assert both.passes() == 5


# What a limit refuses.


@of_each_pair
def test_a_limit_that_refuses_for_longer_than_the_timeout_is_an_error_at_once(
    api: Api, limits: tuple[Limit, Limit], events: list[Event]
) -> None:
    both = Both(api, TokenBucket(4, 2, label="user"), *limits[1:])
    api(both.limiter.try_acquire(ACME, 4))
    before = api.clock.monotonic()
    refused = both.refused(ACME, 2, timeout=0.9)

    assert api.clock.monotonic() == before
    assert (refused.name, refused.key, refused.decision.limited_by) == ("orders", "ada/acme", "user")
    assert refused.retry_after == refused.decision.retry_after == pytest.approx(1.0, abs=1e-5)
    assert [(event.name, event.details["decision"]) for event in events] == [("limit.refused", refused.decision)]
    assert both.counts("limit.refused", "bulkhead.refused") == [1, 0]


@of_each_pair
def test_who_has_time_waits_for_the_limit(api: Api, limits: tuple[Limit, Limit]) -> None:
    both = Both(api, TokenBucket(4, 2, label="user"), *limits[1:])
    api(both.limiter.try_acquire(ACME, 4))
    before = api.clock.monotonic()
    permit = both.go_in(ACME, 2, timeout=1.1)

    assert api.clock.monotonic() - before == pytest.approx(1.0, abs=1e-4)
    assert permit.decision is not None
    assert (permit.decision.allowed, permit.decision.remaining) == (True, 0)
    assert both.crowd == (1, 0)
    assert both.counts("limit.allowed", "limit.refused", "bulkhead.waited") == [2, 0, 0]


def test_without_a_timeout_it_waits_for_as_long_as_the_bulkhead_is_configured_to(api: Api) -> None:
    both = Both(api, TokenBucket(4, 2), config=BulkheadConfig(9, timeout=1.1))
    api(both.limiter.try_acquire(cost=4))
    before = api.clock.monotonic()

    assert both.refused(cost=3, timeout=None).retry_after == pytest.approx(1.5, abs=1e-5)
    assert api.clock.monotonic() == before
    assert both.go_in(cost=2, timeout=None)


@pytest.mark.parametrize("timeout", [60, None])
def test_a_cost_that_an_override_has_made_too_large_is_an_error_at_once(api: Api, timeout: float | None) -> None:
    both = Both(api, TokenBucket(5, 1), config=BulkheadConfig(1, timeout=None))
    api(api.service.set_override("orders", "limit.token_bucket.capacity", 2))
    before = api.clock.monotonic()

    assert both.refused(cost=3, timeout=timeout).retry_after == math.inf
    assert api.clock.monotonic() == before
    assert both.crowd == (0, 0)


def test_a_paused_resource_lets_nobody_in(api: Api) -> None:
    both = Both(api, TokenBucket(5, SLOW))
    api(both.limiter.pause(3))
    refused = both.refused(timeout=2)

    assert (refused.decision.limited_by, refused.retry_after) == ("pause", 3.0)
    assert both.crowd == (0, 0)
    assert both.go_in(timeout=3)
    assert both.passes() == 4


class Sleepers:
    """Holds those who sleep until they may wake; then their time has passed."""

    def __init__(self, api: Api) -> None:
        self.asleep: list[float] = []
        self._clock = api.clock
        self._opened, self._opened_async = threading.Event(), asyncio.Event()
        api.clock.sleep = self._sleep  # type: ignore[method-assign]
        api.clock.async_sleep = self._async_sleep  # type: ignore[method-assign]

    def _sleep(self, seconds: float) -> None:
        self.asleep.append(seconds)
        self._opened.wait(10)
        self._clock.advance(seconds)

    async def _async_sleep(self, seconds: float) -> None:
        self.asleep.append(seconds)
        await self._opened_async.wait()
        self._clock.advance(seconds)

    def wake(self) -> None:
        self._opened.set()
        self._opened_async.set()


def test_a_limit_that_refuses_the_head_of_the_queue_lets_the_next_go_first_and_it_comes_back_to_its_place(
    api: Api,
) -> None:
    both = Both(api, TokenBucket(1, 1), config=BulkheadConfig(1, 3))
    inside, waiters, sleepers = both.enter(), Waiters(both), Sleepers(api)
    waiters.wait_at(both.permits.guard("drained", timeout=PATIENT), "head")
    waiters.wait_at(both.permits.guard("other", timeout=PATIENT), "next")
    api(both.limiter.try_acquire("drained"))
    both.leave(inside)
    waiters.until(lambda: waiters.went_in == ["next"] and both.crowd == (0, 0))
    inside = both.enter()
    waiters.wait_at(both.permits.guard("another", timeout=PATIENT), "later")
    asleep = list(sleepers.asleep)
    sleepers.wake()
    waiters.until(lambda: both.crowd == (1, 2))
    both.leave(inside)
    waiters.finish()

    assert asleep == [pytest.approx(1.0, abs=1e-5)]
    assert waiters.went_in == ["next", "head", "later"]
    assert both.crowd == (0, 0)


def test_who_waits_for_a_limit_again_and_again_waits_no_longer_than_its_timeout(api: Api) -> None:
    both = Both(api, TokenBucket(1, 1), remember_refusals=False)
    blocking, advance, before = api.runtime.backends.blocking, api.clock.advance, api.clock.monotonic()

    def another_takes_it() -> None:
        step(both.limiter._core.try_acquire(blocking, "", 1, NORMAL))

    def sleep(seconds: float) -> None:
        advance(seconds)
        another_takes_it()

    async def async_sleep(seconds: float) -> None:
        sleep(seconds)

    api.clock.sleep, api.clock.async_sleep = sleep, async_sleep  # type: ignore[method-assign]
    another_takes_it()

    assert both.refused(timeout=2.5).retry_after == pytest.approx(1.0, abs=1e-4)
    assert api.clock.monotonic() - before == pytest.approx(2.0, abs=1e-4)


def test_a_waiter_that_a_limit_refuses_for_too_long_is_refused_and_the_next_one_goes_in(api: Api) -> None:
    both = Both(api, TokenBucket(1, SLOW), config=BulkheadConfig(1, 3))
    inside, waiters = both.enter(), Waiters(both)
    waiters.wait_at(both.permits.guard("drained", timeout=PATIENT), "head")
    waiters.wait_at(both.permits.guard("other", timeout=PATIENT), "next")
    api(both.limiter.try_acquire("drained"))
    both.leave(inside)
    waiters.finish()

    assert isinstance(waiters.raised["head"], RateLimitExceeded)
    assert waiters.went_in == ["next"]
    assert both.crowd == (0, 0)


# Priorities.


def test_a_reserved_share_of_a_limit_is_left_to_more_important_calls(api: Api) -> None:
    both = Both(api, TokenBucket(4, SLOW), config=BulkheadConfig(9), reserved={CRITICAL: 0.5})
    for _ in range(2):
        both.go_in()

    assert both.refused().decision.limited_by == "token_bucket"
    assert both.refused(priority=HIGH)
    for _ in range(2):
        both.go_in(priority=CRITICAL)
    assert both.refused(priority=CRITICAL)
    assert both.crowd == (4, 0)


def test_a_reserved_share_of_the_slots_is_left_to_more_important_calls(api: Api) -> None:
    both = Both(api, TokenBucket(9, SLOW), config=BulkheadConfig(4, reserved={CRITICAL: 0.5}))
    for _ in range(2):
        both.go_in()

    assert both.full().inside == 2
    assert both.full(priority=HIGH)
    for _ in range(2):
        both.go_in(priority=CRITICAL)
    assert both.full(priority=CRITICAL).inside == 4
    assert both.passes() == 5


def test_who_waits_goes_in_by_priority(api: Api) -> None:
    both = Both(api, TokenBucket(9, SLOW), config=BulkheadConfig(1, 9))
    inside, waiters = both.enter(), Waiters(both)
    for name, priority in {"low": LOW, "normal": NORMAL, "critical": CRITICAL}.items():
        waiters.wait_at(both.permits.guard(priority=priority, timeout=60), name)
    both.leave(inside)
    waiters.finish()

    assert waiters.went_in == ["critical", "normal", "low"]


# Wrong arguments.


@pytest.fixture
def local(form: str) -> Iterator[Api]:
    clock = ManualClock()
    api = Api(form, local_runtime(clock, CheckedOptions()), clock)
    yield api
    api.close()


WRONG = [
    *(({"cost": cost}, f"cost is {cost!r}, but must be an integer from 1 to 5") for cost in (0, -1, 6, 1.0, True, "1")),
    *(
        ({"priority": level}, f"priority is {level!r}, but must be a PriorityLevel, from CRITICAL (1) to BACKGROUND")
        for level in (0, 6, "HIGH", None, True)
    ),
    *(
        ({"timeout": timeout}, f"timeout is {timeout!r}, but must be a number of seconds >= 0, or None")
        for timeout in (-1, math.nan, "1", True)
    ),
    ({"key": {"user": "ada", "team": "x"}}, "key has the labels ['team'], but 'orders' has only ['user', 'tenant']"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[str(arguments) for arguments, _ in WRONG])
def test_a_wrong_argument_is_named_before_anything_is_asked(
    local: Api, arguments: dict[str, Any], message: str
) -> None:
    both = Both(local, *PAIRS[1])
    asked = both.asked()
    with pytest.raises(ValueError) as wrong:  # noqa: PT011  # the whole message, below
        both.permits.guard(**arguments)

    assert str(wrong.value).startswith(message)
    assert asked == []


def test_a_partitioned_limiter_has_one_key_for_all_its_limits(local: Api) -> None:
    both = Both(local, *PAIRS[1], partitioned=True)

    with pytest.raises(ValueError, match="key is a mapping, but 'orders' is partitioned"):
        both.permits.guard(ACME)


@pytest.mark.parametrize(
    ("makes", "missing"), [("nothing", "rate limiter"), ("bulkhead", "rate limiter"), ("rate limiter", "bulkhead")]
)
def test_permits_of_half_a_resource_are_an_error_that_names_the_other_half(
    local: Api, makes: str, missing: str
) -> None:
    if makes == "bulkhead":
        local.service.get_or_create_bulkhead("orders")
    elif makes == "rate limiter":
        local.service.get_or_create_rate_limiter("orders")

    with pytest.raises(LookupError, match=rf"there is no {missing} 'orders': permits\(\) takes both; get_or_create_"):
        local.service.permits("orders")


def test_permits_say_whose_they_are(local: Api) -> None:
    name = "Permits" if local.form == "sync" else "AsyncPermits"

    assert repr(Both(local).permits) == f"{name}('orders')"


# What needs no trip, and what is left without Redis.


@pytest.mark.parametrize("reserved", [{}, {CRITICAL: 0.25}])
def test_a_refusal_that_is_remembered_costs_no_trip(api: Api, reserved: Any) -> None:
    both = Both(api, TokenBucket(4, 2), reserved=reserved)
    api(both.limiter.try_acquire(cost=4, priority=CRITICAL))
    first = both.refused(cost=2, timeout=0.5)
    api.clock.advance(0.25)
    asked = both.asked()
    second = both.refused(cost=2, timeout=0.7)

    assert asked == []
    assert second.retry_after == pytest.approx(first.retry_after - 0.25, abs=1e-5)
    assert both.counts("limit.refused", "bulkhead.refused") == [2, 0]


def test_a_refusal_says_nothing_of_other_calls_or_of_those_that_have_the_time(api: Api) -> None:
    both = Both(api, TokenBucket(4, 2), config=BulkheadConfig(9), reserved={CRITICAL: 0.25})
    api(both.limiter.try_acquire(cost=3))
    both.refused(cost=2)
    asked = both.asked()

    assert both.refused(cost=3).retry_after == pytest.approx(1.5, abs=1e-5)
    both.go_in("another", 2)
    both.go_in(cost=1, priority=CRITICAL)
    both.refused(cost=1)
    both.go_in(cost=2, timeout=60)
    assert asked == ["permits_enter"] * 6  # the last one twice: it has waited


def test_what_the_limiter_has_refused_is_remembered_for_permits_too(api: Api) -> None:
    both = Both(api, TokenBucket(4, 2))
    api(both.limiter.try_acquire(cost=4))
    api(both.limiter.try_acquire())
    asked = both.asked()
    both.refused()

    assert asked == []


def test_without_a_memory_of_refusals_each_is_asked_for(api: Api) -> None:
    both = Both(api, TokenBucket(4, 2), remember_refusals=False)
    api(both.limiter.try_acquire(cost=4))
    asked = both.asked()
    both.refused()
    both.refused()

    assert asked == ["permits_enter"] * 2


@pytest.fixture
def has_redis(place: str) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")


@pytest.mark.usefixtures("has_redis")
def test_without_redis_the_process_goes_on_with_its_share_of_both(api: Api, redis_is_away: RedisIsAway) -> None:
    both = Both(api, TokenBucket(6, SLOW), config=BulkheadConfig(4))
    held = both.go_in("held")
    both.core.resource.workers = 2
    redis_is_away()
    permit = both.go_in(cost=2)

    assert permit.decision is not None
    assert (permit.source, permit.decision.source, permit.decision.remaining) == ("local", "local", 1)
    assert both.full().inside == 1  # of two slots, Redis has given one
    both.leave(held)
    limited = both.refused(cost=2)
    assert (limited.decision.limited_by, limited.decision.source) == ("token_bucket", "local")
    assert both.go_in()
    assert both.counts("limit.decided_locally", "bulkhead.decided_locally") == [3, 2]


STRICTEST = [
    ("allow", "allow", "allow"),
    ("allow", "local", "local"),
    ("local", "allow", "local"),
    ("allow", "deny", "deny"),
    ("deny", "local", "deny"),
    ("local", "raise", "raise"),
    ("raise", "allow", "raise"),
    ("deny", "raise", "raise"),
]


@pytest.mark.usefixtures("has_redis")
@pytest.mark.parametrize(("of_limits", "of_slots", "strictest"), STRICTEST)
def test_without_redis_the_stricter_of_both_decides(
    api: Api, redis_is_away: RedisIsAway, of_limits: Any, of_slots: Any, strictest: str
) -> None:
    both = Both(api, TokenBucket(3, SLOW), config=BulkheadConfig(2, on_outage=of_slots), on_outage=of_limits)
    redis_is_away()

    if strictest == "raise":
        with pytest.raises(StoreUnavailableError):
            both.go_in()
    elif strictest == "deny":
        both.full()
    else:
        for _ in range(2):
            both.go_in()
        if strictest == "local":
            both.full()
        else:
            both.go_in()
            both.go_in()


def test_two_processes_share_limits_and_slots(api: Api, other: ResilienceService) -> None:
    both = Both(api, TokenBucket(5, SLOW))
    other.get_or_create_rate_limiter("orders", TokenBucket(5, SLOW))
    other.get_or_create_bulkhead("orders", ONE)
    with other.permits("orders").guard(cost=3):
        assert both.full(cost=2).inside == 1
    both.refused(cost=3)
    both.go_in(cost=2)

    with pytest.raises(RateLimitExceeded), other.permits("orders").guard(timeout=0):
        pytest.fail("there is neither a token nor a slot")
