"""Policies: each part does its own in the stack, and no refusal of ours is taken for a failure of the dependency."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from conftest import Api
from servers import PATIENT, Server
from test_heartbeat import commands_at, counted

from shared_resilience import (
    AsyncPolicy,
    BulkheadConfig,
    BulkheadFullError,
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    DeadlineExceeded,
    FallbackConfig,
    FallbackLevel,
    IdempotencyConfig,
    IdempotencyConflictError,
    Jitter,
    LeakyBucket,
    Policy,
    PriorityLevel,
    RateLimitExceeded,
    ResilienceService,
    RetryConfig,
    TimeoutConfig,
    TokenBucket,
    current_claim,
    remaining,
)
from shared_resilience.plan import Plan

assert counted  # a fixture
SLOW = 0.001
RETRY = RetryConfig(max_retries=2, base_delay=0.1, jitter=Jitter.NONE)
BREAKER = CircuitBreakerConfig(failure_threshold=5)


class Stack:
    """A policy in the form of `api`, around a function that returns its arguments, or raises `error`."""

    def __init__(self, api: Api, name: str = "payments", **parts: Any) -> None:
        self.api = api
        self.policy: Any = api.service.policy(name, **parts)
        self.core = self.policy._cores
        self.error: BaseException | None = None
        self.does: Callable[[], object] = lambda: None
        self.runs = 0

    def call(self, *args: Any, **kwargs: Any) -> Any:
        def function(order: object = "7", amount: int = 1) -> Any:
            self.runs += 1
            self.does()
            if self.error is not None:
                raise self.error
            return [order, amount]

        async def suspending(order: object = "7", amount: int = 1) -> Any:
            return function(order, amount)

        return self.api(self.policy.call(function if self.api.form == "sync" else suspending, *args, **kwargs))

    def fails(self, error: BaseException | None = None) -> None:
        self.error = error or ConnectionError("no route")

    def fail(self, times: int, *args: Any) -> None:
        for _ in range(times):
            with suppress(ConnectionError, CircuitBreakerOpenError):
                self.call(*args)

    @property
    def failures(self) -> int:
        """How many failures the circuit of this process has counted."""
        counted: int = self.core.breaker.resource.counted().get("breaker.failures", 0)
        return counted

    def inside(self, key: Any = "", cost: int = 1, priority: Any = PriorityLevel.NORMAL) -> Any:
        """Enters a block of the policy, and leaves it; what `as` gives."""
        if self.api.form == "sync":
            with self.policy.guard(key, cost, priority) as permit:
                self.does()
            return permit

        async def block() -> Any:
            async with self.policy.guard(key, cost, priority) as permit:
                self.does()
            return permit

        return self.api(block())


def answering(api: Api, value: object = "kept") -> Any:
    """A chain without caches whose last level is `value`."""
    chain = api.service.get_or_create_fallback_chain("rates", FallbackConfig(shared_max_age=0, local_max_age=0))
    chain.register_handler(FallbackLevel.DEFAULT, lambda *args, **kwargs: value)
    return chain


@pytest.fixture
def no_sleep(api: Api, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits move the clock instead; how long each was."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        api.clock.advance(seconds)

    backends = api.runtime.backends
    backend = backends.blocking if api.form == "sync" else backends.suspending
    monkeypatch.setattr(backend, "sleep", sleep)
    return waits


def everything(api: Api) -> dict[str, Any]:
    return {
        "rate_limits": [TokenBucket(100, 50)],
        "circuit_breaker_config": BREAKER,
        "retry_config": RETRY,
        "bulkhead_config": BulkheadConfig(max_concurrent_calls=20),
        "timeout_config": TimeoutConfig(),
        "fallback_chain": answering(api),
        "deadline": 5.0,
        "idempotency_key": lambda order, amount=1: order,
        "key": lambda order, amount=1: str(order),
    }


def test_every_part_takes_part(api: Api) -> None:
    stack, seen = Stack(api, **everything(api)), list[object]()
    stack.does = lambda: seen.append((current_claim().key, 0 < remaining() <= 5.0))

    assert stack.call("7", amount=3) == ["7", 3]
    assert seen == [("7", True)]
    api.clock.advance(2)  # percentiles are those of the last second
    stats = api(api.service.get_comprehensive_stats())
    assert stats["rate_limiters"]["payments"]["local"]["limit.allowed"] == 1
    assert stats["bulkheads"]["payments"]["local"]["bulkhead.entered"] == 1
    assert api(api.service.get_or_create_circuit_breaker("payments").get_stats())["calls"] == 1
    assert stats["retry_managers"]["payments"]["local"]["retry.requests"] == 1
    assert api(api.service.get_or_create_adaptive_timeout("payments").get_stats())["samples"] == 1
    assert stats["idempotency"]["payments"]["local"]["idempotency.claimed"] == 1
    assert stats["fallback_chains"]["rates"]["local"]["fallback.primary"] == 1


def test_the_fallback_answers_every_call_while_the_breaker_counts_the_failures(api: Api) -> None:
    stack = Stack(api, circuit_breaker_config=BREAKER, fallback_chain=answering(api))
    stack.fails()

    assert [stack.call() for _ in range(100)] == ["kept"] * 100
    assert stack.core.breaker.state.value == "open"
    assert stack.runs == stack.failures == 5


def test_each_attempt_of_a_retry_is_let_in_and_counted(api: Api, no_sleep: list[float]) -> None:
    stack = Stack(api, rate_limits=[TokenBucket(3, SLOW)], circuit_breaker_config=BREAKER, retry_config=RETRY)
    stack.fails()
    with pytest.raises(ConnectionError):
        stack.call()

    assert (stack.runs, stack.failures, len(no_sleep)) == (3, 3, 2)
    with pytest.raises(RateLimitExceeded):
        stack.call()


@pytest.mark.parametrize("with_bulkhead", [False, True])
def test_refusals_of_limits_are_no_failures_of_the_dependency(api: Api, with_bulkhead: bool) -> None:
    bulkhead = BulkheadConfig() if with_bulkhead else None
    stack = Stack(
        api,
        rate_limits=[TokenBucket(1, SLOW)],
        circuit_breaker_config=CircuitBreakerConfig(failure_threshold=1),
        bulkhead_config=bulkhead,
        retry_config=RETRY,
        fallback_chain=answering(api),
    )

    assert [stack.call("7") for _ in range(4)] == [["7", 1]] + ["kept"] * 3
    assert (stack.runs, stack.failures, stack.core.breaker.state.value) == (1, 0, "closed")


def test_a_full_bulkhead_is_no_failure_of_the_dependency(api: Api) -> None:
    config = BulkheadConfig(max_concurrent_calls=1, timeout=0.0)
    stack = Stack(
        api, circuit_breaker_config=CircuitBreakerConfig(failure_threshold=1), bulkhead_config=config, deadline=9.0
    )
    nested: list[BaseException] = []

    def call_again() -> None:
        try:
            stack.policy.call(lambda: None)
        except BulkheadFullError as error:
            nested.append(error)

    async def call_twice() -> object:
        gate = asyncio.Event()

        async def waits() -> None:
            gate.set()
            await asyncio.sleep(0.01)

        async def after() -> None:
            await gate.wait()
            try:
                await stack.policy.call(waits)
            except BulkheadFullError as error:
                nested.append(error)

        return await asyncio.gather(stack.policy.call(waits), after())

    if api.form == "sync":
        stack.does = call_again
        stack.call()
    else:
        api(call_twice())
    assert [type(error) for error in nested] == [BulkheadFullError]
    assert stack.failures == 0


def test_an_open_circuit_is_not_asked_by_retries_and_costs_no_permit(api: Api, no_sleep: list[float]) -> None:
    stack = Stack(api, rate_limits=[TokenBucket(9, SLOW)], circuit_breaker_config=BREAKER, retry_config=RETRY)
    stack.fails()
    stack.fail(2)
    assert (stack.runs, stack.core.breaker.state.value) == (5, "open")
    before = len(no_sleep)
    with pytest.raises(CircuitBreakerOpenError):
        stack.call()

    assert (stack.runs, len(no_sleep) - before) == (5, 0)
    limiter = api.service.get_or_create_rate_limiter("payments")
    assert api(limiter.peek()).remaining == 4


def test_refusals_of_its_own_parts_are_not_waited_for_again(api: Api, no_sleep: list[float]) -> None:
    """Those of others are, under a deadline that they fit."""
    parts = {"retry_config": RETRY, "deadline": 9.0}
    limited = Stack(api, "limited", rate_limits=[TokenBucket(1, 0.5)], **parts)
    limited.call()
    with pytest.raises(RateLimitExceeded):
        limited.call()
    assert no_sleep == []

    breaker = CircuitBreakerConfig(failure_threshold=1, timeout_seconds=3, jitter=0)
    broken = Stack(api, "broken", circuit_breaker_config=breaker, **parts)
    broken.fails()
    with pytest.raises(CircuitBreakerOpenError):
        broken.call()
    assert no_sleep == [pytest.approx(0.1)]

    other = api.service.get_or_create_rate_limiter("other", TokenBucket(1, 0.5))
    beside = Stack(api, "beside", rate_limits=[TokenBucket(9, 1)], **parts)
    beside.fails(refusal(api, other))
    with pytest.raises(RateLimitExceeded):
        beside.call()
    assert no_sleep[1:] == [pytest.approx(2.0)] * 2


def refusal(api: Api, limiter: Any) -> RateLimitExceeded:
    """That of a limiter whose one token is taken."""
    assert api(limiter.try_acquire())
    with pytest.raises(RateLimitExceeded) as refused:
        api(limiter.acquire(timeout=0.0))
    return refused.value


def test_a_claim_stands_around_the_retries_and_replays_what_they_reached(api: Api, no_sleep: list[float]) -> None:
    stack = Stack(api, retry_config=RETRY, idempotency_key=lambda order, amount=1: order)
    stack.fails()

    def recover() -> None:
        if stack.runs == 3:
            stack.error = None

    stack.does = recover
    assert stack.call("7", 3) == stack.call("7", amount=3) == stack.call(order="7", amount=3) == ["7", 3]
    assert stack.runs == 3
    with pytest.raises(IdempotencyConflictError):
        stack.call("7", 4)


def test_retries_end_with_the_deadline(api: Api, no_sleep: list[float]) -> None:
    stack = Stack(api, retry_config=RetryConfig(max_retries=9, base_delay=1.0, jitter=Jitter.NONE), deadline=2.5)
    stack.fails()
    with pytest.raises(ConnectionError):
        stack.call()

    assert no_sleep == [1.0]
    assert remaining() == float("inf")


def test_a_coroutine_is_cancelled_at_the_deadline(api: Api) -> None:
    if api.form == "sync":
        pytest.skip("a plain function is not interrupted")
    policy, cancelled = api.service.policy("payments", deadline=0.01), list[bool]()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(DeadlineExceeded):
        api(policy.call(forever))
    assert cancelled == [True]


def test_the_timeout_measures_the_function_alone(api: Api, no_sleep: list[float]) -> None:
    stack = Stack(
        api, rate_limits=[TokenBucket(1, 0.1)], timeout_config=TimeoutConfig(min_samples=1, multiplier=1), wait=None
    )
    stack.does = lambda: api.clock.advance(0.5)
    stack.call()
    stack.call()

    assert sum(no_sleep) == pytest.approx(9.5, abs=0.01)
    api.clock.advance(2)
    timeout = api(api.service.get_or_create_adaptive_timeout("payments").get_timeout())
    assert timeout == pytest.approx(0.5, rel=0.03)


def test_limits_are_waited_for_as_long_as_told(api: Api, no_sleep: list[float]) -> None:
    hasty = Stack(api, rate_limits=[TokenBucket(1, 0.5)])
    hasty.call()
    with pytest.raises(RateLimitExceeded):
        hasty.call()
    patient = Stack(api, rate_limits=[TokenBucket(1, 0.5)], wait=3.0)

    assert patient.call("7") == ["7", 1]
    assert no_sleep == [pytest.approx(2.0)]


@pytest.mark.parametrize("limit", [TokenBucket(1, 0.5), LeakyBucket(1, 0.5)], ids=["in one trip", "apart"])
@pytest.mark.parametrize(("wait", "waits"), [(0.0, False), (1.0, False), (3.0, True), (None, True)])
def test_limits_are_waited_for_beside_the_slot(
    api: Api, no_sleep: list[float], limit: Any, wait: float | None, waits: bool
) -> None:
    stack = Stack(api, rate_limits=[limit], bulkhead_config=BulkheadConfig(timeout=0.0), wait=wait)
    stack.call("7")
    if waits:
        assert stack.call("7") == ["7", 1]
        assert sum(no_sleep) == pytest.approx(2.0)
    else:
        with pytest.raises(RateLimitExceeded):
            stack.call("7")
        assert no_sleep == []


def test_waits_for_limits_add_up(api: Api, no_sleep: list[float]) -> None:
    """Whoever finds that another was quicker has waited already."""
    stack = Stack(api, rate_limits=[TokenBucket(1, 0.5)], bulkhead_config=BulkheadConfig(timeout=0.0), wait=3.0)
    stack.call()
    limiter = api.runtime.limiter("payments", ())
    backends = api.runtime.backends
    backend = backends.blocking if api.form == "sync" else backends.suspending
    sleep: Any = backend.sleep

    async def overtaken(seconds: float) -> None:
        await sleep(seconds)
        assert await limiter.try_acquire(backend, "", 1, PriorityLevel.NORMAL)

    backend.sleep = overtaken  # type: ignore[method-assign]
    with pytest.raises(RateLimitExceeded):
        stack.call()
    assert no_sleep == [pytest.approx(2.0)]


def test_keys_costs_and_priorities_may_follow_the_arguments(api: Api) -> None:
    stack = Stack(
        api,
        rate_limits=[TokenBucket(5, SLOW)],
        key=lambda order, amount: order,
        cost=lambda order, amount: amount,
        priority=lambda order, amount: PriorityLevel.HIGH,
    )
    stack.call("7", 4)
    limiter = api.service.get_or_create_rate_limiter("payments")

    assert [api(limiter.peek(key)).remaining for key in ("7", "8")] == [1, 5]
    with pytest.raises(RateLimitExceeded):
        stack.call("7", 2)


@pytest.mark.parametrize(
    "parts",
    [
        {"key": lambda order, amount: 1 / 0},
        {"cost": lambda order, amount: 99},
        {"priority": lambda order, amount: "high"},
        {"key": lambda order, amount: {"other": order}},
    ],
    ids=["key that raises", "cost", "priority", "label"],
)
@pytest.mark.parametrize("with_bulkhead", [False, True])
def test_what_is_wrong_about_a_call_is_no_failure_of_the_dependency(
    api: Api, parts: dict[str, Any], with_bulkhead: bool
) -> None:
    bulkhead = BulkheadConfig() if with_bulkhead else None
    stack = Stack(
        api, rate_limits=[TokenBucket(5, SLOW)], circuit_breaker_config=BREAKER, bulkhead_config=bulkhead, **parts
    )
    with pytest.raises((ValueError, ZeroDivisionError)):
        stack.call("7", 1)

    assert (stack.runs, stack.failures) == (0, 0)


def test_parts_of_one_name_are_shared_and_cannot_differ(api: Api) -> None:
    one, other = Stack(api, circuit_breaker_config=BREAKER), Stack(api, circuit_breaker_name="payments")
    one.fails()
    one.fail(5)
    with pytest.raises(CircuitBreakerOpenError):
        other.call()
    with pytest.raises(ValueError, match="exists with another configuration"):
        Stack(api, circuit_breaker_config=CircuitBreakerConfig(failure_threshold=6))


def test_a_block_is_guarded(api: Api) -> None:
    stack = Stack(
        api,
        rate_limits=[TokenBucket(5, SLOW)],
        circuit_breaker_config=BREAKER,
        bulkhead_config=BulkheadConfig(),
        deadline=2.0,
    )
    seen = list[float]()
    stack.does = lambda: seen.append(remaining())
    permit = stack.inside("7", cost=2)

    assert permit.decision.remaining == 3
    assert 0 < seen[0] <= 2.0
    assert api(api.service.get_or_create_bulkhead("payments").get_stats())["inside"] == 0


def test_a_guarded_block_that_fails_counts_and_one_that_is_refused_does_not(api: Api) -> None:
    stack = Stack(api, rate_limits=[TokenBucket(1, SLOW)], circuit_breaker_config=BREAKER)

    def fail() -> None:
        raise ConnectionError

    stack.does = fail
    with pytest.raises(ConnectionError):
        stack.inside()
    for _ in range(9):
        with pytest.raises(RateLimitExceeded):
            stack.inside()
    assert (stack.failures, stack.core.breaker.state.value) == (1, "closed")


@pytest.mark.parametrize("part", ["fallback_chain", "idempotency_key", "retry_config", "timeout_config"])
def test_what_calls_a_function_cannot_guard_a_block(api: Api, part: str) -> None:
    policy = api.service.policy("payments", circuit_breaker_config=BREAKER, **{part: everything(api)[part]})
    with pytest.raises(TypeError, match=f"{part} of policy 'payments' cannot guard a block"):
        policy.guard()


def test_a_wrong_cost_of_a_block_is_told_before_it_begins(api: Api) -> None:
    with pytest.raises(ValueError, match="cost is 9"):
        api.service.policy("payments", rate_limits=[TokenBucket(5, 1)]).guard(cost=9)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "policy 'payments' has no part"),
        ({"rate_limits": []}, "policy 'payments' has no part"),
        ({"wait": 1.0}, "policy 'payments' has no part"),
        ({"circuit_breaker_name": ""}, "circuit_breaker_name"),
        ({"deadline": 0}, "deadline is 0"),
        ({"deadline": float("nan")}, "deadline is nan"),
        ({"wait": -1, "deadline": 1}, "wait is -1"),
        ({"idempotency_key": "order"}, "idempotency_key is 'order'"),
        ({"idempotency_config": IdempotencyConfig()}, "idempotency_config needs idempotency_key"),
        ({"fallback_chain": "rates"}, "fallback_chain is 'rates'"),
        ({"retry_config": TimeoutConfig()}, "retry_config is TimeoutConfig"),
        ({"timeout_config": RetryConfig()}, "timeout_config is RetryConfig"),
        ({"bulkhead_config": 20}, "bulkhead_config is 20"),
        ({"circuit_breaker_config": 5}, "circuit_breaker_config is 5"),
        ({"rate_limits": [5]}, r"rate_limits is \[5\]"),
        ({"rate_limits": TokenBucket(5, 1)}, "rate_limits is TokenBucket"),
        ({"rate_limits": [TokenBucket(5, 1)], "cost": 0}, "cost is 0"),
        ({"bulkhead_config": BulkheadConfig(), "priority": 9}, "priority is 9"),
    ],
)
def test_a_wrong_part_is_told_before_anything_else(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ResilienceService.local().policy("payments", **parts)


def test_an_unknown_part_is_told() -> None:
    with pytest.raises(TypeError, match="retries"):
        ResilienceService.local().policy("payments", retries=3)  # type: ignore[call-arg]


def test_a_coroutine_function_wants_the_asyncio_form() -> None:
    async def charge() -> None: ...

    with pytest.raises(TypeError, match=r"use the policy of service\.aio"):
        ResilienceService.local().policy("payments", deadline=1.0).protect(charge)


def test_a_policy_is_shown_as_a_tree(api: Api) -> None:
    policy = api.service.policy("payments", **everything(api))

    assert str(policy).splitlines() == [
        "policy 'payments'",
        "└─ fallback chain 'rates'",
        "   └─ deadline of 5 s",
        "      └─ idempotency 'payments': IdempotencyConfig(ttl=3600.0)",
        "         └─ retry 'payments': RetryConfig(max_retries=2, jitter=<Jitter.NONE: 'none'>)",
        "            └─ circuit breaker 'payments': CircuitBreakerConfig(failure_threshold=5)",
        "               └─ permits 'payments': TokenBucket(capacity=100, refill_rate=50, label='token_bucket'), "
        "BulkheadConfig(max_concurrent_calls=20)",
        "                  └─ adaptive timeout 'payments': TimeoutConfig(percentile=0.95)",
        "                     └─ the function",
    ]
    assert repr(policy) == f"{type(policy).__name__}('payments')"
    assert isinstance(policy, Policy | AsyncPolicy)
    assert policy.name == "payments"


def test_nothing_is_made_before_a_policy_is_used() -> None:
    service = ResilienceService.local()
    service.policy("payments", circuit_breaker_config=BREAKER)

    assert service.get_comprehensive_stats()["circuit_breakers"] == {}


def test_a_circuit_of_another_name_is_shown_as_it_is() -> None:
    assert "circuit breaker 'bank': as it is" in Plan("payments", circuit_breaker_name="bank").tree("charge")


@pytest.mark.parametrize("form", ["sync", "asyncio"])
def test_a_closed_stack_costs_no_trip_and_limits_with_a_bulkhead_cost_two(
    counted: Server, prefix: str, form: str
) -> None:
    calls = 200
    service = ResilienceService.from_url(counted.url, prefix=prefix, command_timeout=PATIENT, sync_interval=60)
    chain = service.get_or_create_fallback_chain("rates", FallbackConfig(shared_max_age=0, local_max_age=0))
    parts: dict[str, Any] = {
        "circuit_breaker_config": BREAKER,
        "retry_config": RETRY,
        "timeout_config": TimeoutConfig(),
        "fallback_chain": chain,
    }
    within: dict[str, Any] = {"rate_limits": [TokenBucket(10_000, 9000)], "bulkhead_config": BulkheadConfig()}

    def trips(name: str, **parts: Any) -> float:
        """Commands for each call, besides those that a heartbeat sends once a second."""
        policy: Any = (service if form == "sync" else service.aio).policy(name, **parts)
        with counted.client() as client:
            client.slowlog_reset()

        def charge() -> int:
            return 1

        async def charge_async() -> int:
            return 1

        async def all_calls() -> None:
            for _ in range(calls):
                await policy.call(charge_async)
            await service.aio.close()

        if form == "asyncio":
            asyncio.run(all_calls())
        else:
            for _ in range(calls):
                policy.call(charge)
        return len([command for command in commands_at(counted) if command[0] == "EVALSHA"]) / calls

    began = time.monotonic()
    closed, entered = trips("closed", **parts), trips("entered", **parts, **within)
    spare = (20 + 10 * (time.monotonic() - began)) / calls
    assert closed <= spare
    assert 2 <= entered <= 2 + spare
    service.close()
