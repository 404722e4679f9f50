"""What concerns one form of the circuit breaker, threads, tasks, and replies that cross."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from circuits import DownError, Two, awaited
from conftest import Lane
from servers import poll

from shared_resilience import (
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    ResilienceService,
)
from shared_resilience.circuit_commands import View


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while Two.made:
        Two.made.pop().close()


def test_stop_iteration_passes_through_a_synchronous_call_unchanged() -> None:
    breaker = ResilienceService.local().get_or_create_circuit_breaker("payments")

    with pytest.raises(StopIteration):
        breaker.call(lambda: next(iter([])))


def test_a_synchronous_call_of_a_coroutine_function_is_an_error_that_says_where_to_go() -> None:
    breaker = ResilienceService.local().get_or_create_circuit_breaker("payments")

    async def charge() -> None:
        """Never runs."""

    for _ in range(6):
        with pytest.raises(TypeError, match=r"service\.aio"):
            breaker.call(charge)  # type: ignore[unused-coroutine]  # there is none
    assert breaker.state == "closed"


def test_sync_and_asyncio_callers_of_one_process_share_one_view() -> None:
    service = ResilienceService.local()
    breaker = service.get_or_create_circuit_breaker("payments")

    async def fail() -> None:
        raise DownError

    async def main() -> None:
        for _ in range(5):
            with pytest.raises(DownError):
                await service.aio.get_or_create_circuit_breaker("payments").call(fail)

    asyncio.run(main())
    asyncio.run(awaited(asyncio.sleep(0)))

    assert breaker.state == "open"
    with pytest.raises(CircuitBreakerOpenError):
        breaker.call(lambda: None)


def test_a_coroutine_that_is_closed_in_the_middle_gives_its_probe_back() -> None:
    service = ResilienceService.local()
    breaker = service.aio.get_or_create_circuit_breaker("payments", CircuitBreakerConfig(1, timeout_seconds=0.001))

    async def fail() -> None:
        raise DownError

    async def main() -> View | None:
        with pytest.raises(DownError):
            await breaker.call(fail)
        await asyncio.sleep(0.01)
        call = breaker.call(asyncio.Event().wait)
        call.send(None)
        assert (await breaker.get_stats())["probes"] == 1
        call.close()
        await breaker.get_stats()
        return breaker._core.evidence.view

    view = asyncio.run(main())

    assert view is not None
    assert (view.state, view.leases) == ("half_open", 0)


def test_failures_of_many_threads_share_their_reports_and_none_is_lost(store: Lane, prefix: str) -> None:
    two = Two(store, prefix, CircuitBreakerConfig(failure_threshold=10_000))
    assert two.passes(0)
    core = two.breakers[0]._core
    backend: Any = two.services[0]._runtime.backends.blocking
    run, sent = backend.run, []

    async def once_all_others_wait(*args: Any, **kwargs: Any) -> Any:
        sent.append(1)
        if len(sent) == 1:
            poll(lambda: sum(map(len, core.evidence._waiting.values())) == 15, "15 threads that wait")
        return await run(*args, **kwargs)

    backend.run = once_all_others_wait
    threads = [threading.Thread(target=two.fail, args=(0,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backend.run = run

    assert two.breakers[1].get_stats()["failures"] == 16
    assert len(sent) == 2


def test_failures_of_many_tasks_share_their_reports_and_none_is_lost(store: Lane, prefix: str) -> None:
    two = Two(store, prefix, CircuitBreakerConfig(failure_threshold=10_000))
    service = two.services[0].aio
    breaker = service.get_or_create_circuit_breaker("payments")
    backend: Any = service._runtime.backends.suspending
    run, sent = backend.run, []

    async def counting(*args: Any, **kwargs: Any) -> Any:
        sent.append(1)
        return await run(*args, **kwargs)

    async def fail() -> None:
        with pytest.raises(DownError):
            async with breaker.guard():
                raise DownError

    async def main() -> None:
        backend.run = counting
        await asyncio.gather(*(fail() for _ in range(50)))
        await service.close()

    asyncio.run(main())

    assert two.breakers[1].get_stats()["failures"] == 50
    assert len(sent) <= 6


class OneByOne:
    """A backend whose replies come when the test says so, in any order."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[View]] = []

    async def run(self, *args: object) -> View:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]


@pytest.mark.parametrize(("generation", "adopted"), [(4, 5), (5, 5), (6, 6)])
def test_of_two_replies_the_one_that_was_asked_for_later_stands_unless_the_other_is_of_a_later_generation(
    generation: int, adopted: int
) -> None:
    core = ResilienceService.local().get_or_create_circuit_breaker("payments")._core
    backend: Any = OneByOne()

    def view(generation: int) -> View:
        return View(1, 0, "closed", "", generation, 0.0, 0.0, generation, 0, 0, (), 0, 0.0, 0, 0, "", "redis")

    async def main() -> None:
        tasks = [asyncio.create_task(core.evidence.sync(backend)) for _ in range(3)]
        await asyncio.sleep(0)
        for number, told in ((0, 3), (2, 5), (1, generation)):
            backend.asked[number].set_result(view(told))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(main())

    assert core.evidence.view is not None
    assert core.evidence.view.generation == adopted
    assert core.evidence.tally is not None
    assert core.evidence.tally.generation == adopted
