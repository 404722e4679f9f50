"""Permits: the limits and the bulkhead of a resource in one trip, all or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from bulkheads import Bulkhead, Waiters
from conftest import Api
from servers import PATIENT, Server
from test_heartbeat import commands_at, counted

from shared_resilience import (
    BulkheadConfig,
    BulkheadFullError,
    LeakyBucket,
    Permit,
    PriorityLevel,
    RateLimitExceeded,
    ResilienceService,
    SlidingWindow,
    StoreUnavailableError,
    TokenBucket,
    scripts,
)
from shared_resilience.limits import Limit

CRITICAL, HIGH, NORMAL, LOW, BACKGROUND = PriorityLevel
SLOW = 1e-6
RedisIsAway = Callable[[], None]
assert counted  # a fixture


class Permits:
    """Limits and a bulkhead of one resource in the form of `api`."""

    def __init__(self, api: Api, *limits: Limit, slots: BulkheadConfig | None = None, **options: Any) -> None:
        self.api = api
        self.limiter = api.service.get_or_create_rate_limiter("payments", *limits, **options)
        self.bulkhead = Bulkhead(api, slots or BulkheadConfig(2, 5))
        self.permits = api.service.permits("payments")
        self._inside: list[tuple[Any, Permit]] = []

    def enter(self, timeout: float = 0, priority: PriorityLevel = NORMAL, **asked: Any) -> Permit:
        guard = self.permits.guard(priority=priority, timeout=timeout, **asked)
        permit: Permit = self.api(guard.__enter__() if self.api.form == "sync" else guard.__aenter__())
        self._inside.append((guard, permit))
        return permit

    def leave(self) -> None:
        """Has the call leave that went in first."""
        guard, _ = self._inside.pop(0)
        over = (None, None, None)
        self.api(guard.__exit__(*over) if self.api.form == "sync" else guard.__aexit__(*over))

    def refused(self, **how: Any) -> RateLimitExceeded:
        with pytest.raises(RateLimitExceeded) as refusal:
            self.enter(**how)
        return refusal.value

    def full(self, **how: Any) -> BulkheadFullError:
        with pytest.raises(BulkheadFullError) as refusal:
            self.enter(**how)
        return refusal.value

    def left(self, key: Any = "") -> int:
        """What remains of the tightest limit."""
        remaining: int = self.api(self.limiter.peek(key)).remaining
        return remaining


TWO = (TokenBucket(5, SLOW, label="user"), TokenBucket(3, SLOW, label="all"))


def test_limits_and_slot_are_entered_by_one_command_and_left_by_one(counted: Server, prefix: str) -> None:
    with ResilienceService.from_url(counted.url, prefix=prefix, command_timeout=PATIENT) as service:
        service.get_or_create_rate_limiter("payments", *TWO)
        service.get_or_create_bulkhead("payments")
        for _ in range(3):
            with service.permits("payments").guard({"user": "42"}) as permit:
                assert permit.source == "redis"
        sent = [command[1] for command in reversed(commands_at(counted)) if command[0] == "EVALSHA"]

    beats = {scripts.load(name).sha for name in ("heartbeat", "heartbeat_roster")}
    names = {scripts.load(name).sha: name for name in scripts.names()}
    assert [names[sha] for sha in sent if sha not in beats] == ["permits_enter", "bulkhead_leave"] * 3


def test_a_permit_charges_all_limits_and_takes_a_slot(api: Api, place: str) -> None:
    permits = Permits(api, *TWO)
    permit = permits.enter(key={"user": "42"}, cost=2)

    assert permit.decision is not None
    assert (permit.decision.limit, permit.decision.remaining, permit.decision.allowed) == (3, 1, True)
    assert permit.source == permit.decision.source == ("local" if place == "local" else "redis")
    assert permits.bulkhead.crowd == (1, 0)
    permits.leave()
    assert (permits.bulkhead.crowd, permits.left({"user": "42"})) == ((0, 0), 1)
    counted_here = permits.bulkhead.stats()["local"]
    assert (counted_here["limit.allowed"], counted_here["bulkhead.entered"]) == (1, 1)


def test_what_a_limit_refuses_takes_no_slot_and_nothing_of_the_other_limit(api: Api) -> None:
    permits = Permits(api, *TWO)
    permits.enter(key={"user": "42"}, cost=3)
    permits.leave()
    refusal = permits.refused(key={"user": "42"}, timeout=60)

    assert (refusal.decision.limited_by, refusal.name) == ("all", "payments")
    assert refusal.retry_after > 60
    assert permits.bulkhead.crowd == (0, 0)
    api(permits.limiter.refund({"user": "42"}))
    assert permits.enter(key={"user": "42"}).decision.remaining == 0  # type: ignore[union-attr]
    assert permits.bulkhead.stats()["local"]["limit.refused"] >= 1


def test_who_finds_no_slot_is_charged_nothing(api: Api) -> None:
    permits = Permits(api, TokenBucket(5, SLOW), slots=BulkheadConfig(1, 1))
    permits.enter(cost=2)
    full = permits.full()

    assert (full.inside, permits.left()) == (1, 3)


def test_who_waits_for_a_slot_is_charged_once_and_when_it_goes_in(api: Api) -> None:
    permits = Permits(api, TokenBucket(5, SLOW), slots=BulkheadConfig(1, 1))
    permits.enter()
    waiters = Waiters(permits.bulkhead)
    waiters.guard_of = lambda priority, timeout: permits.permits.guard(priority=priority, timeout=timeout)
    waiters.wait("a")
    while_waiting = permits.left()
    permits.leave()
    waiters.finish()

    assert (waiters.went_in, while_waiting, permits.left()) == (["a"], 4, 3)
    assert permits.bulkhead.crowd == (0, 0)


def test_a_limit_that_refuses_the_first_of_the_queue_ends_its_wait_and_lets_the_next_go_in(api: Api) -> None:
    permits = Permits(api, TokenBucket(5, SLOW), slots=BulkheadConfig(1, 5))
    permits.enter()
    waiters = Waiters(permits.bulkhead)
    waiters.guard_of = lambda priority, timeout: permits.permits.guard(
        priority=priority, timeout=timeout, cost=3 if priority == HIGH else 1
    )
    waiters.wait("dear", HIGH)
    waiters.wait("cheap")
    api(permits.limiter.try_acquire(cost=2))
    permits.leave()
    waiters.finish()

    assert (waiters.went_in, list(waiters.raised)) == (["cheap"], ["dear"])
    assert isinstance(waiters.raised["dear"], RateLimitExceeded)
    assert (permits.bulkhead.crowd, permits.left()) == ((0, 0), 1)


def test_a_limit_that_will_let_it_pass_in_time_is_waited_for(api: Api) -> None:
    permits = Permits(api, TokenBucket(1, 1))
    permits.enter()
    began = api.clock.monotonic()
    permits.enter(timeout=5)

    assert 1 <= api.clock.monotonic() - began < 1.1
    assert permits.bulkhead.crowd == (2, 0)
    assert permits.refused(timeout=0.5).retry_after == pytest.approx(1, abs=0.1)


def test_what_is_reserved_of_both_is_left_to_more_important_calls(api: Api) -> None:
    permits = Permits(
        api, TokenBucket(4, SLOW), slots=BulkheadConfig(3, reserved={CRITICAL: 0.4}), reserved={HIGH: 0.5}
    )
    permits.enter()

    assert permits.full(priority=HIGH).inside == 1
    assert permits.left() == 3
    permits.enter(priority=CRITICAL)
    permits.leave()
    assert permits.refused().decision.limited_by == "token_bucket"
    permits.enter(priority=CRITICAL, cost=2)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cost": 6}, "^cost is 6, but must be an integer from 1 to 5"),
        ({"cost": 0}, "^cost is 0, but must be"),
        ({"cost": True}, "^cost is True"),
        ({"priority": 9}, "^priority is 9, but must be a PriorityLevel"),
        ({"timeout": -1}, "^timeout is -1, but must be"),
        ({"key": {"nobody": "a"}}, "nobody"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_asked(api: Api, asked: dict[str, Any], message: str) -> None:
    permits = Permits(api, TokenBucket(5, SLOW))

    with pytest.raises(ValueError, match=message):
        permits.permits.guard(**asked)


@pytest.mark.parametrize("made", [(), ("limiter",), ("bulkhead",)])
def test_permits_of_a_resource_need_its_limiter_and_its_bulkhead(api: Api, made: tuple[str, ...]) -> None:
    if "limiter" in made:
        api.service.get_or_create_rate_limiter("payments", TokenBucket(1, 1))
    if "bulkhead" in made:
        api.service.get_or_create_bulkhead("payments")

    with pytest.raises(LookupError, match="payments"):
        api.service.permits("payments")


APART: dict[str, tuple[Limit, dict[str, Any], BulkheadConfig]] = {
    "leaky bucket": (LeakyBucket(5, 1000), {}, BulkheadConfig(1)),
    "leased tokens": (TokenBucket(5, SLOW), {"lease_tokens": 2}, BulkheadConfig(1)),
    "partitioned": (TokenBucket(5, SLOW), {"partitioned": True}, BulkheadConfig(1)),
    "local slots": (SlidingWindow(5, 60), {}, BulkheadConfig(1, local=True)),
}


@pytest.mark.parametrize("case", APART)
def test_where_one_step_cannot_be_the_limits_give_back_what_they_gave_if_there_is_no_slot(api: Api, case: str) -> None:
    limit, options, slots = APART[case]
    permits = Permits(api, limit, slots=slots, **options)
    first = permits.enter()
    api.clock.advance(0.5)  # in which what is in the leaky bucket runs out
    full = permits.full()
    permits.leave()

    assert first.decision is not None
    assert full.inside == 1
    assert permits.bulkhead.crowd == (0, 0)
    granted = sum(api(permits.limiter.try_acquire()).allowed for _ in range(10))
    assert granted == (5 if case == "leaky bucket" else 4)


def test_of_a_leaky_bucket_the_turn_is_waited_for_without_a_slot(api: Api) -> None:
    permits = Permits(api, LeakyBucket(5, 1), slots=BulkheadConfig(1))
    permits.enter()
    permits.leave()
    began = api.clock.monotonic()
    permits.enter(timeout=5)

    assert 1 <= api.clock.monotonic() - began < 1.1
    assert permits.refused(timeout=0.5).decision.delay > 0.5


def test_a_task_that_is_cancelled_while_it_waits_for_a_slot_gives_its_tokens_back(api: Api) -> None:
    if api.form == "sync":
        pytest.skip("threads are not cancelled")
    permits = Permits(api, LeakyBucket(5, 1000), slots=BulkheadConfig(1))
    permits.enter()
    api.clock.advance(1)
    waiters = Waiters(permits.bulkhead)
    waiters.guard_of = lambda priority, timeout: permits.permits.guard(priority=priority, timeout=timeout)
    waiters.wait("a")
    waiters.cancel()
    waiters.finish()
    waiters.until(lambda: permits.bulkhead.crowd == (1, 0) and permits.left() == 5)

    assert isinstance(waiters.raised["a"], asyncio.CancelledError)


@pytest.mark.parametrize("shadow", ["limits", "slots"])
def test_what_is_in_shadow_mode_refuses_nothing_and_the_other_does(api: Api, shadow: str) -> None:
    slots = BulkheadConfig(1, shadow=shadow == "slots")
    permits = Permits(api, TokenBucket(2, SLOW), slots=slots, shadow=shadow == "limits")
    permits.enter(cost=2)

    if shadow == "limits":
        assert permits.full().inside == 1
    else:
        assert permits.refused().retry_after > 1
    permits.leave()
    if shadow == "limits":
        assert permits.enter().decision.limited_by == "token_bucket"  # type: ignore[union-attr]


def test_a_refusal_that_is_remembered_costs_no_trip(counted: Server, prefix: str) -> None:
    with ResilienceService.from_url(counted.url, prefix=prefix, command_timeout=PATIENT) as service:
        service.get_or_create_rate_limiter("payments", TokenBucket(1, 0.001))
        service.get_or_create_bulkhead("payments")
        permits, sha = service.permits("payments"), scripts.load("permits_enter").sha
        with permits.guard(timeout=0):
            pass
        for _ in range(20):
            with pytest.raises(RateLimitExceeded), permits.guard(timeout=0):
                raise AssertionError("inside")

        assert len([command for command in commands_at(counted) if command[1:2] == [sha]]) == 2


def test_without_redis_the_same_rules_hold_for_the_share(api: Api, place: str, redis_is_away: RedisIsAway) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    permits = Permits(api, TokenBucket(3, SLOW), slots=BulkheadConfig(2))
    redis_is_away()
    first, second = permits.enter(), permits.enter()

    assert (first.source, second.source) == ("local", "local")
    assert permits.full().inside == 2
    assert permits.left() == 1
    permits.leave()
    permits.enter()
    permits.leave()
    assert permits.refused().decision.source == "local"


@pytest.mark.parametrize(
    ("of_limits", "of_slots", "outcome"),
    [
        ("allow", "allow", "inside"),
        ("allow", "deny", "full"),
        ("deny", "local", "full"),
        ("raise", "allow", "raises"),
        ("local", "raise", "raises"),
    ],
)
def test_without_redis_the_stricter_of_both_counts(
    api: Api, place: str, redis_is_away: RedisIsAway, of_limits: Any, of_slots: Any, outcome: str
) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    slots = BulkheadConfig(1, on_outage=of_slots)
    permits = Permits(api, TokenBucket(1, SLOW), slots=slots, on_outage=of_limits)
    redis_is_away()

    if outcome == "inside":
        assert [permits.enter(cost=1).source for _ in range(3)] == ["local"] * 3
    elif outcome == "full":
        with pytest.raises((BulkheadFullError, RateLimitExceeded)):
            permits.enter()
    else:
        with pytest.raises(StoreUnavailableError):
            permits.enter()
