"""Adaptive timeouts: learned from the whole fleet, enforced as far as Python lets them be."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from conftest import Api, Lane, runtime_on
from servers import PATIENT, Server
from test_heartbeat import commands_at, counted

from shared_resilience import DeadlineExceeded, ResilienceService, TimeoutConfig, deadline, remaining, scripts
from shared_resilience.testing import ManualClock

CONFIG = TimeoutConfig(min_samples=10, ceiling=10.0)
assert counted  # a fixture


class Timeout:
    """An adaptive timeout in the form of `api`, and calls that take as long as they are told."""

    def __init__(self, api: Api, config: TimeoutConfig = CONFIG) -> None:
        self.api = api
        self.timeout = api.service.get_or_create_adaptive_timeout("payments", config)

    def call(self, seconds: float, error: Exception | None = None) -> Any:
        """A call that takes so long by the clock of the test; what it was told remains."""

        def blocking() -> float:
            left = remaining()
            self.api.clock.advance(seconds)
            if error is not None:
                raise error
            return left

        async def suspending() -> float:
            return blocking()

        return self.api(self.timeout.execute(blocking if self.api.form == "sync" else suspending))

    def learn(self, *seconds: float) -> None:
        for one in seconds:
            self.call(one)
        self.api.clock.advance(1.5)

    @property
    def now(self) -> float:
        found: float = self.api(self.timeout.get_timeout())
        return found


def test_until_there_are_enough_samples_it_is_the_ceiling(api: Api) -> None:
    timeout = Timeout(api)
    timeout.learn(*[0.1] * 9)
    few = timeout.now
    timeout.learn(0.1)

    assert few == 10.0
    assert timeout.now == pytest.approx(0.15, rel=0.02)


@pytest.mark.parametrize(("seconds", "expected"), [(0.001, 0.05), (0.2, 0.3), (20.0, 10.0)])
def test_it_is_the_percentile_times_the_multiplier_between_floor_and_ceiling(
    api: Api, seconds: float, expected: float
) -> None:
    timeout = Timeout(api, TimeoutConfig(min_samples=10, ceiling=10.0, window=3600))
    timeout.learn(*[seconds] * 20)

    assert timeout.now == pytest.approx(expected, rel=0.02)
    assert 0.05 <= timeout.now <= 10.0


def test_the_percentile_and_the_multiplier_are_the_users(api: Api) -> None:
    timeout = Timeout(api, TimeoutConfig(percentile=0.5, multiplier=3.0, min_samples=10))
    timeout.learn(*[0.1] * 11, *[0.9] * 9)

    assert timeout.now == pytest.approx(0.3, rel=0.02)


def test_a_process_that_never_called_learns_the_fleets_timeout(api: Api, other: ResilienceService) -> None:
    Timeout(api).learn(*[0.2] * 20)
    api(api.service.get_or_create_adaptive_timeout("payments").get_timeout())

    assert other.get_or_create_adaptive_timeout("payments", CONFIG).get_timeout() == pytest.approx(0.3, rel=0.02)


def test_a_call_is_told_its_timeout_as_its_deadline(api: Api) -> None:
    timeout = Timeout(api)
    timeout.learn(*[0.2] * 20)
    left = timeout.call(0.0)
    with deadline(0.1, monotonic=api.clock.monotonic):
        nearer = timeout.call(0.0)

    assert left == pytest.approx(0.3, rel=0.02)
    assert nearer == pytest.approx(0.1)
    assert timeout.call(0.5) == pytest.approx(0.3, rel=0.02)  # it is not measured afterwards


def test_its_parts_are_bounded_by_the_whole_and_by_the_deadline(api: Api) -> None:
    timeout = Timeout(api, TimeoutConfig(min_samples=10, ceiling=60.0))
    unknown = api(timeout.timeout.get_timeouts())
    timeout.learn(*[4.0] * 20)
    known = api(timeout.timeout.get_timeouts())
    with deadline(2.0, monotonic=api.clock.monotonic):
        short = api(timeout.timeout.get_timeouts())

    assert unknown == (3.0, 30.0, 60.0)
    assert known == (3.0, pytest.approx(6.0, rel=0.02), pytest.approx(6.0, rel=0.02))
    assert short == (2.0, 2.0, 2.0)


def test_a_call_that_times_out_counts_as_at_least_its_timeout_and_one_that_fails_says_nothing(api: Api) -> None:
    timeout = Timeout(api)
    timeout.learn(*[0.2] * 19)
    learned = timeout.now
    for _ in range(30):
        with pytest.raises(TimeoutError, match="too slow"):
            timeout.call(0.01, TimeoutError("too slow"))
        with pytest.raises(OSError, match="refused"):
            timeout.call(0.001, OSError("refused"))
    api.clock.advance(1.5)
    stats = api(timeout.timeout.get_stats())

    assert stats["samples"] == 19 + 30
    assert stats["p95"] == pytest.approx(learned, rel=0.02)


def test_a_deadline_that_is_nearer_says_nothing_of_the_dependency(api: Api) -> None:
    timeout = Timeout(api)
    timeout.learn(*[0.2] * 19)
    with deadline(0.05, monotonic=api.clock.monotonic), pytest.raises(TimeoutError):
        timeout.call(0.05, TimeoutError())
    with pytest.raises(DeadlineExceeded):
        timeout.call(0.05, DeadlineExceeded("a slot", 0.05))  # of a wait inside
    api.clock.advance(1.5)

    assert api(timeout.timeout.get_stats())["samples"] == 19


def test_after_the_deadline_nothing_is_called(api: Api) -> None:
    timeout = Timeout(api)
    with deadline(0), pytest.raises(DeadlineExceeded):
        timeout.call(0.0, AssertionError("ran"))


def test_statistics_tell_percentiles_samples_and_the_timeout(api: Api, place: str) -> None:
    timeout = Timeout(api, TimeoutConfig(min_samples=10, floor=0.001))
    timeout.learn(*[0.01] * 990, *[2.0] * 10)
    stats = api(timeout.timeout.get_stats())

    assert stats["samples"] == 1000
    assert [stats[name] for name in ("p50", "p95", "p99", "p999")] == pytest.approx([0.01, 0.01, 0.01, 2.0], rel=0.02)
    assert stats["timeout"] == pytest.approx(0.015, rel=0.02)
    assert stats["source"] == ("local" if place == "local" else "redis")
    assert stats["config"]["min_samples"] == 10
    assert api(api.service.get_comprehensive_stats())["adaptive_timeouts"]["payments"]["samples"] == 1000
    assert "payments" in repr(timeout.timeout)
    assert timeout.timeout.name == "payments"


def test_without_redis_a_process_learns_from_its_own_calls(
    api: Api, place: str, redis_is_away: Callable[[], None]
) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    timeout = Timeout(api)
    timeout.learn(*[0.2] * 20)
    fleets = timeout.now
    redis_is_away()
    timeout.learn(*[0.4] * 20)

    assert fleets == pytest.approx(0.3, rel=0.02)
    assert timeout.now == pytest.approx(0.6, rel=0.02)
    assert api(timeout.timeout.get_stats())["source"] == "local"


def test_telling_costs_one_trip_a_second_however_many_calls_there_are(counted: Server, prefix: str) -> None:
    with ResilienceService.from_url(counted.url, prefix=prefix, command_timeout=PATIENT) as service:
        timeout = service.get_or_create_adaptive_timeout("payments")
        began = time.monotonic()
        for _ in range(2000):
            timeout.execute(str)
        seconds = time.monotonic() - began
        sha = scripts.load("latency").sha
        told = [command for command in commands_at(counted) if command[1:2] == [sha]]

    assert 1 <= len(told) <= 1 + seconds
    with counted.client() as client:
        found = client.hgetall(f"{prefix}:{{payments}}:latency")
    assert sum(int(calls) for field, calls in found.items() if field.count(".") == 2) == 2000


def test_what_stands_in_redis_is_readable(store: Lane, prefix: str) -> None:
    clock = ManualClock()
    service = ResilienceService._of(runtime_on(store, prefix, clock))
    timeout = service.get_or_create_adaptive_timeout("payments", CONFIG)
    for _ in range(3):
        timeout.execute(clock.advance, 0.1)
    service.close()
    found = store.client.hgetall(f"{prefix}:{{payments}}:latency")

    assert {field.decode(): int(value) for field, value in found.items() if field.count(b".") == 2} == {
        f"10000000.{1_000_000_000_000 // 10_000_000}.576": 3
    }
    assert {b"samples", b"computed_us", b"p500000_us", b"p950000_us", b"p990000_us", b"p999000_us"} <= set(found)


# Enforcement, by the real clock.

SHORT = TimeoutConfig(min_samples=1, floor=0.05, ceiling=0.05)


def test_a_coroutine_that_takes_too_long_is_really_cancelled() -> None:
    reached: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            reached.append("cancelled")
            raise

    async def main() -> None:
        async with ResilienceService.local().aio as service:
            await service.get_or_create_adaptive_timeout("payments", SHORT).execute(slow)

    with pytest.raises(TimeoutError, match=r"^'payments' has not answered within 0\.050 s$") as late:
        asyncio.run(main())
    assert reached == ["cancelled"]
    assert not isinstance(late.value, DeadlineExceeded)


def test_a_coroutine_is_cancelled_at_the_deadline_around_it_if_that_is_nearer() -> None:
    async def main() -> None:
        async with ResilienceService.local().aio as service:
            with deadline(0.02):
                await service.get_or_create_adaptive_timeout("payments", SHORT).execute(asyncio.sleep, 60)

    with pytest.raises(DeadlineExceeded):
        asyncio.run(main())


def test_a_timeout_of_the_coroutines_own_is_its_own() -> None:
    async def own() -> None:
        async with asyncio.timeout(0):
            await asyncio.sleep(60)

    async def main() -> None:
        async with ResilienceService.local().aio as service:
            await service.get_or_create_adaptive_timeout("payments").execute(own)

    with pytest.raises(TimeoutError, match=r"^$"):
        asyncio.run(main())


def test_a_function_on_a_thread_of_its_own_is_left_to_itself() -> None:
    going_on, ended = threading.Event(), threading.Event()

    def slow() -> None:
        going_on.wait(10)
        ended.set()

    config = TimeoutConfig(min_samples=1, floor=0.05, ceiling=0.05, enforce="thread")
    with ResilienceService.local() as service:
        timeout = service.get_or_create_adaptive_timeout("payments", config)
        with pytest.raises(TimeoutError, match=r"'payments' has not answered within 0\.050 s"):
            timeout.execute(slow)
        with deadline(0.01), pytest.raises(DeadlineExceeded):
            timeout.execute(slow)
    going_on.set()
    assert ended.wait(10)


def test_a_function_on_a_thread_returns_raises_and_sees_its_context() -> None:
    with ResilienceService.local() as service:
        timeout = service.get_or_create_adaptive_timeout("payments", TimeoutConfig(enforce="thread"))

        assert timeout.execute(lambda a, b: (a, b, remaining() <= 60), 1, b=2) == (1, 2, True)
        with pytest.raises(ZeroDivisionError):
            timeout.execute(lambda: 1 / 0)
        with pytest.raises(KeyboardInterrupt):
            timeout.execute(cast("Callable[[], Any]", interrupt))


def interrupt() -> None:
    raise KeyboardInterrupt


# Forms and configuration.


def test_the_decorator_serves_functions_and_coroutine_functions(api: Api) -> None:
    timeout = Timeout(api).timeout

    @timeout  # type: ignore[untyped-decorator]
    def blocking(a: int, *, b: int) -> int:
        """Adds."""
        return a + b

    @timeout  # type: ignore[untyped-decorator]
    async def suspending(a: int, *, b: int) -> int:
        return a + b

    assert (blocking.__name__, blocking.__doc__, blocking(1, b=2)) == ("blocking", "Adds.", 3)
    if api.form == "asyncio":
        assert api(suspending(1, b=2)) == 3


def test_generators_and_the_wrong_form_are_refused() -> None:
    async def suspending() -> None:
        raise AssertionError("ran")

    def numbers() -> Any:
        yield 1

    with ResilienceService.local() as service:
        timeout = service.get_or_create_adaptive_timeout("payments")
        with pytest.raises(TypeError, match=r"use the timeout of service\.aio for it"):
            timeout.execute(cast("Callable[[], Any]", suspending))
        with pytest.raises(TypeError, match=r"use `with deadline\(timeout\.get_timeout\(\)\):` inside it instead"):
            timeout(numbers)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("percentile", value) for value in (0, 1, 95, "0.95", float("nan"))),
        *(("multiplier", value) for value in (0.9, 101)),
        *(("floor", value) for value in (0, 61, -1)),
        *(("ceiling", value) for value in (0, 3601)),
        *(("min_samples", value) for value in (0, 1.5)),
        *(("window", value) for value in (0.5, 3601)),
        *(("connect", value) for value in (0, None)),
        ("read", -1),
        ("enforce", "kill"),
    ],
)
def test_a_wrong_value_is_named_with_its_field_and_range(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} is .*, but must be "):
        TimeoutConfig(**{field: value})


def test_a_timeout_has_one_configuration(api: Api) -> None:
    timeout = Timeout(api)

    assert api.service.get_or_create_adaptive_timeout("payments")._core is timeout.timeout._core
    with pytest.raises(ValueError, match=r"adaptive timeout 'payments' exists with another configuration"):
        Timeout(api, SHORT)
    with pytest.raises(ValueError, match="config is 5, but must be a TimeoutConfig"):
        api.service.get_or_create_adaptive_timeout("other", 5)
