"""The circuit breaker when callers are cancelled, interrupted or wait in vain, and when telling goes wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from circuits import DownError, Two
from conftest import Lane, runtime_on
from servers import PATIENT

from shared_resilience import CircuitBreakerConfig, Event, ResilienceService, StoreConfigurationError, TokenBucket
from shared_resilience.backends import step
from shared_resilience.testing import ManualClock

CONFIG = CircuitBreakerConfig(1000, jitter=0)


class Gate:
    """Holds the replies of a suspending backend until the test lets them come."""

    def __init__(self, backend: Any) -> None:
        self.asked, self.opened = asyncio.Event(), asyncio.Event()
        self._run = backend.run
        backend.run = self.run

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        reply = await self._run(*args, **kwargs)
        self.asked.set()
        await self.opened.wait()
        return reply


class Suspending:
    """A breaker for asyncio on a store, and a second process that looks on."""

    def __init__(self, store: Lane, prefix: str, config: CircuitBreakerConfig = CONFIG) -> None:
        self.clock = ManualClock()
        runtime = runtime_on(store, prefix, self.clock)
        self.service = ResilienceService._of(runtime).aio
        self.breaker = self.service.get_or_create_circuit_breaker("payments", config)
        self.backend: Any = runtime.backends.suspending
        self.other = ResilienceService._of(runtime_on(store, prefix, self.clock))

    def seen(self, field: str) -> object:
        return self.other.get_or_create_circuit_breaker("payments", CONFIG).get_stats()[field]

    async def cancelled(self, call: Awaitable[object]) -> None:
        """Cancels `call` while it waits for a reply, which then comes."""
        gate = Gate(self.backend)
        task = asyncio.ensure_future(call)
        await gate.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.opened.set()
        self.backend.run = gate._run
        await asyncio.gather(*self.backend._at_work)


async def up() -> str:
    return "fine"


async def down() -> None:
    raise DownError


def blocking_down() -> None:
    raise DownError


async def fail(breaker: Any, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(DownError):
            await breaker.call(down)


def test_a_caller_that_is_cancelled_while_it_asks_for_a_probe_gives_it_back(store: Lane, prefix: str) -> None:
    fleet = Suspending(store, prefix, CircuitBreakerConfig(1, jitter=0))

    async def main() -> None:
        await fail(fleet.breaker)
        fleet.clock.advance(60)
        await fleet.cancelled(fleet.breaker.call(up))
        await fleet.service.close()

    asyncio.run(main())

    assert (fleet.seen("state"), fleet.seen("probes")) == ("half_open", 0)


def test_a_thread_that_is_interrupted_while_it_asks_for_a_probe_gives_it_back(store: Lane, prefix: str) -> None:
    two = Two(store, prefix, CircuitBreakerConfig(1, jitter=0))
    two.fail(0)
    two.clock.advance(60)
    backend: Any = two.services[0]._runtime.backends.blocking
    run = backend.run

    async def interrupted(*args: Any, **kwargs: Any) -> Any:
        await run(*args, **kwargs)
        backend.run = run
        raise KeyboardInterrupt

    backend.run = interrupted
    with pytest.raises(KeyboardInterrupt):
        two.passes(0)

    stats = two.breakers[1].get_stats()
    assert (stats["state"], stats["probes"]) == ("half_open", 0)


@pytest.mark.parametrize("by", ["call", "get_stats"])
def test_evidence_that_a_cancelled_caller_was_telling_is_not_lost(store: Lane, prefix: str, by: str) -> None:
    fleet = Suspending(store, prefix)

    async def main() -> None:
        for _ in range(10):
            await fleet.breaker.call(up)
        fleet.clock.advance(0.2)
        await fleet.cancelled(fleet.breaker.call(up) if by == "call" else fleet.breaker.get_stats())
        untold = fleet.breaker._core.evidence.has_untold()
        view = fleet.breaker._core.evidence.view
        await fleet.service.close()
        assert not untold
        assert view is not None
        assert view.calls == 10

    asyncio.run(main())


@pytest.mark.parametrize("error", [StoreConfigurationError("no"), RuntimeError("odd")])
def test_an_error_of_the_store_after_a_call_does_not_replace_what_the_call_has_shown(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    service = ResilienceService.local()
    breaker = service.get_or_create_circuit_breaker("payments")
    heard: list[Event] = []
    service._runtime.process.events.add([heard.append])
    breaker.call(lambda: None)

    async def broken(*args: Any, **kwargs: Any) -> Any:
        raise error

    service._runtime.backends.blocking.run = broken  # type: ignore[method-assign]

    with pytest.raises(DownError):
        breaker.call(blocking_down)
    assert [(event.name, event.resource, event.details["error"]) for event in heard] == [
        ("breaker.untold", "payments", str(error))
    ]
    (logged,) = caplog.records
    assert logged.getMessage() == f"the circuit 'payments' could not be told: {error}"
    assert logged.exc_info
    assert logged.exc_info[1] is error


def test_who_waits_for_a_report_in_vain_sends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    service = ResilienceService.local()
    breaker = service.get_or_create_circuit_breaker("payments", CONFIG)
    breaker.call(lambda: None)
    core, backend = breaker._core, service._runtime.backends.blocking
    patience = []

    class Vain:
        def wake(self) -> None:
            """Nobody does."""

        async def wait(self, seconds: float) -> bool:
            patience.append(seconds)
            return False

    assert core.evidence._board(backend.party(), backend) is None  # by one who was interrupted
    monkeypatch.setattr(backend, "ticket", Vain)
    step(core.evidence.tell(backend))

    assert patience == [5.0]
    assert core.evidence._waiting == {}


def test_a_loop_does_not_wait_for_a_report_of_another_loop(store: Lane, prefix: str) -> None:
    fleet = Suspending(store, prefix)
    done: list[str] = []

    async def other() -> None:
        await fail(fleet.breaker)
        done.append("told")
        await fleet.service.close()

    async def main() -> None:
        await fail(fleet.breaker)
        core = fleet.breaker._core
        core.evidence._board(fleet.backend.party(), fleet.backend)  # a report of this loop, which stands still now
        thread = threading.Thread(target=lambda: asyncio.run(other()), daemon=True)
        thread.start()
        thread.join(3)
        core.evidence._land(fleet.backend.party())
        await fleet.service.close()

    asyncio.run(main())

    assert done == ["told"]


def test_a_reporter_that_is_cancelled_does_not_end_its_report(store: Lane, prefix: str) -> None:
    fleet = Suspending(store, prefix)

    async def main() -> None:
        await fleet.breaker.call(up)
        await fleet.cancelled(fleet.breaker.call(down))
        await fleet.service.close()

    asyncio.run(main())

    assert fleet.seen("failures") == 1


def test_a_caller_that_is_cancelled_while_it_settles_a_probe_has_settled_it(store: Lane, prefix: str) -> None:
    fleet = Suspending(store, prefix, CircuitBreakerConfig(1, jitter=0))

    async def main() -> None:
        await fail(fleet.breaker)
        fleet.clock.advance(60)
        probe = fleet.breaker.guard()
        await probe.__aenter__()
        await fleet.cancelled(probe.__aexit__(None, None, None))
        view = fleet.breaker._core.evidence.view
        await fleet.service.close()
        assert view is not None
        assert (view.successes, view.leases) == (1, 0)

    asyncio.run(main())

    assert (fleet.seen("successes"), fleet.seen("probes")) == (1, 0)


def test_a_caller_that_is_cancelled_while_it_waits_for_the_report_of_another_is_told_of_later(
    store: Lane, prefix: str
) -> None:
    fleet = Suspending(store, prefix)

    async def main() -> None:
        await fleet.breaker.call(up)
        gate = Gate(fleet.backend)
        first = asyncio.ensure_future(fail(fleet.breaker))
        await gate.asked.wait()
        second = asyncio.ensure_future(fail(fleet.breaker))
        await asyncio.sleep(0)
        assert list(map(len, fleet.breaker._core.evidence._waiting.values())) == [1]
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.opened.set()
        await first
        await fleet.service.close()

    asyncio.run(asyncio.wait_for(main(), PATIENT))

    assert fleet.seen("failures") == 2
    assert fleet.breaker._core.evidence._waiting == {}


def test_a_reply_that_came_too_late_tells_listeners_nothing_of_the_past() -> None:
    service = ResilienceService.local()
    core = service.get_or_create_circuit_breaker("payments")._core
    step(core.evidence.sync(service._runtime.backends.blocking))
    view = core.evidence.view
    assert view is not None
    opened = view._replace(state="open", generation=view.generation + 5)

    assert core.news(opened, False) == []
    assert [name for name, _ in core.news(opened, True)] == ["breaker.opened"]
    assert core.news(opened, True) == []
    assert core.news(opened._replace(state="half_open", generation=opened.generation - 1), True) == []
    assert [details["observed"] for _, details in core.news(opened._replace(caused=1), False)] == [False]


def test_a_block_that_the_garbage_collector_leaves_under_the_lock_does_not_stop_its_thread() -> None:
    breaker = ResilienceService.local().get_or_create_circuit_breaker("payments")
    breaker.call(lambda: None)
    guard = breaker.guard()
    guard.__enter__()

    def leave() -> None:
        with breaker._core.evidence.lock:
            guard.__exit__(None, None, None)

    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    thread.join(3)

    assert not thread.is_alive()


def test_numbers_that_are_added_do_not_disturb_who_reads_them() -> None:
    service = ResilienceService.local()
    service.get_or_create_rate_limiter("payments", TokenBucket(5, 1))
    reading = iter(service._runtime.process.heartbeat.resource("payments").numbers.items())
    next(reading)
    service.get_or_create_circuit_breaker("payments")

    assert len(list(reading)) == 1


async def charge(amount: int) -> int:
    return amount


@pytest.mark.parametrize("function", [partial(charge, 5), lambda: charge(5)])
def test_whatever_returns_an_awaitable_is_awaited(function: Callable[[], Awaitable[int]]) -> None:
    breaker = ResilienceService.local().aio.get_or_create_circuit_breaker("payments")

    assert asyncio.run(breaker.call(function)) == 5


def test_a_synchronous_function_for_asyncio_is_an_error_that_says_where_to_go_and_no_failure() -> None:
    breaker = ResilienceService.local().aio.get_or_create_circuit_breaker("payments")
    wrong: Any = lambda: 1  # noqa: E731  # as users write it

    async def main() -> None:
        for _ in range(6):
            with pytest.raises(TypeError, match="returned nothing that can be awaited: use the breaker of the sync"):
                await breaker.call(wrong)

    asyncio.run(main())

    assert breaker.state == "closed"


def test_a_type_error_of_the_function_is_a_failure_like_any_other() -> None:
    breaker = ResilienceService.local().aio.get_or_create_circuit_breaker("payments")

    async def wrong() -> None:
        raise TypeError("mine")

    async def main() -> None:
        for _ in range(5):
            with pytest.raises(TypeError, match="mine"):
                await breaker.call(wrong)

    asyncio.run(main())

    assert breaker.state == "open"


def test_a_type_error_of_a_plain_function_that_returns_nothing_is_a_failure_too() -> None:
    breaker = ResilienceService.local().aio.get_or_create_circuit_breaker("payments", CircuitBreakerConfig(1))

    def wrong() -> Awaitable[None]:
        raise TypeError("mine")

    async def main() -> None:
        with pytest.raises(TypeError, match="mine"):
            await breaker.call(wrong)

    asyncio.run(main())

    assert breaker.state == "open"


@pytest.mark.parametrize("of_asyncio", [False, True])
def test_a_function_of_the_wrong_form_gives_its_probe_back(of_asyncio: bool) -> None:
    clock = ManualClock()
    service = ResilienceService.local(clock)
    breaker: Any = service.get_or_create_circuit_breaker("payments", CircuitBreakerConfig(1, jitter=0))
    suspending: Any = service.aio.get_or_create_circuit_breaker("payments")

    def call(function: Any) -> None:
        if of_asyncio:
            asyncio.run(suspending.call(function))
        else:
            breaker.call(function)

    with pytest.raises(DownError):
        call(down if of_asyncio else blocking_down)
    clock.advance(60)
    with pytest.raises(TypeError):
        call((lambda: 1) if of_asyncio else up)

    stats = breaker.get_stats()
    assert (stats["state"], stats["probes"]) == ("half_open", 0)
