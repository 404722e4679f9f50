"""Waiting in line: in one process, whoever comes first for a key is served first, and only the first asks Redis."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest
from conftest import Lane, runtime_on
from servers import poll

from shared_resilience import RateLimitExceeded, ResilienceService, TokenBucket
from shared_resilience.lines import Lines
from shared_resilience.options import CheckedOptions
from shared_resilience.runtimes import local_runtime
from shared_resilience.testing import ManualClock

PATIENCE = 10.0


class HeldClock(ManualClock):
    """A clock on which sleepers stay asleep until the test has moved it far enough."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep = 0
        self._moved = threading.Condition()

    def advance(self, seconds: float) -> None:
        with self._moved:
            super().advance(seconds)
            self._moved.notify_all()

    def sleep(self, seconds: float) -> None:
        with self._moved:
            end = self.monotonic() + seconds
            self.asleep += 1
            assert self._moved.wait_for(lambda: self.monotonic() >= end, PATIENCE)
            self.asleep -= 1

    async def async_sleep(self, seconds: float) -> None:
        end, give_up = self.monotonic() + seconds, time.monotonic() + PATIENCE
        self.asleep += 1
        try:
            while self.monotonic() < end:
                assert time.monotonic() < give_up
                await asyncio.sleep(0.001)
        finally:
            self.asleep -= 1


class Queue:
    """Callers of `acquire`, threads or tasks of one loop, that are told apart by name."""

    def __init__(self, form: str, service: ResilienceService, clock: HeldClock) -> None:
        self.clock = clock
        self.served: list[str] = []
        self.asked = 0
        self._form = form
        self._limiter: Any = service.get_or_create_rate_limiter("search", TokenBucket(1, 1), remember_refusals=False)
        self.core = self._limiter._core
        self._joined = 0
        self._count_those_who_join(self.core._lines)
        backends = service._runtime.backends
        self._count(backends.blocking if form == "sync" else backends.suspending)
        if form == "asyncio":
            self._limiter = service.aio.get_or_create_rate_limiter("search")
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        self._service = service

    def _count(self, backend: Any) -> None:
        run = backend.run

        async def counted(*args: Any) -> Any:
            self.asked += 1
            return await run(*args)

        backend.run = counted

    def _count_those_who_join(self, lines: Any) -> None:
        join = lines.join

        def counted(*args: Any) -> Any:
            first = join(*args)
            self._joined += 1
            return first

        lines.join = counted

    def length(self) -> int:
        return sum(map(len, self.core._lines._lines.values()))

    def start(self, name: str, key: str = "", timeout: float | None = None) -> Future[None]:
        """One more caller, which does not stand in line yet."""
        if self._form == "asyncio":
            return asyncio.run_coroutine_threadsafe(self._task(name, key, timeout), self._loop)
        future: Future[None] = Future()
        threading.Thread(target=self._in_thread, args=(future, name, key, timeout), daemon=True).start()
        return future

    def join(self, *names: str, timeout: float | None = None) -> list[Future[None]]:
        """Callers who line up one behind the other."""
        futures = []
        for name in names:
            before = self._joined
            futures.append(self.start(name, timeout=timeout))
            self.until(lambda before=before: self._joined > before, f"{name} to stand in line")
        return futures

    def until(self, condition: Any, what: str) -> None:
        poll(condition, what, PATIENCE)

    def serve_next(self) -> str:
        """Lets a token come back; who got it."""
        before = len(self.served)
        self.first_sleeps()
        self.clock.advance(1.0)
        self.until(lambda: len(self.served) > before, "somebody to be served")
        assert len(self.served) == before + 1
        return self.served[-1]

    def first_sleeps(self) -> None:
        """Waits until the first in line has been refused and waits for its token."""
        self.until(lambda: self.clock.asleep == 1, "the first in line to be asleep")

    def give_back(self) -> None:
        """Gives the token back that was taken."""
        given = self._limiter.refund()
        if self._form == "asyncio":
            asyncio.run_coroutine_threadsafe(given, self._loop).result(PATIENCE)

    def _is_empty_a_second_later(self) -> bool:
        self.clock.advance(1.0)
        return self.length() == 0

    async def _task(self, name: str, key: str, timeout: float | None) -> None:
        await self._limiter.acquire(key, timeout=timeout)
        self.served.append(name)

    def _in_thread(self, future: Future[None], name: str, key: str, timeout: float | None) -> None:
        try:
            self._limiter.acquire(key, timeout=timeout)
        except BaseException as error:
            future.set_exception(error)
        else:
            self.served.append(name)
            future.set_result(None)

    def close(self) -> None:
        self.until(self._is_empty_a_second_later, "everybody to be gone")
        if self._form == "asyncio":
            asyncio.run_coroutine_threadsafe(self._service.aio.close(), self._loop).result(PATIENCE)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        self._service.close()


@pytest.fixture
def queue(form: str, place: str, stores: Callable[[str], Lane], prefix: str) -> Iterator[Queue]:
    """A line for a token that comes once a second and has just been taken."""
    clock = HeldClock()
    local = place == "local"
    runtime = local_runtime(clock, CheckedOptions()) if local else runtime_on(stores(place), prefix, clock)
    queue = Queue(form, ResilienceService._of(runtime), clock)
    queue.start("who took the token").result(PATIENCE)
    queue.served.clear()
    queue.asked = 0
    yield queue
    queue.close()


def test_callers_are_served_in_the_order_in_which_they_came(queue: Queue) -> None:
    queue.join("1st", "2nd", "3rd", "4th", "5th")

    assert [queue.serve_next() for _ in range(5)] == ["1st", "2nd", "3rd", "4th", "5th"]


def test_only_the_first_in_line_asks(queue: Queue) -> None:
    queue.join("1st", "2nd", "3rd", "4th", "5th")
    queue.first_sleeps()
    assert queue.asked == 1
    queue.serve_next()

    queue.first_sleeps()
    assert queue.asked == 3  # the first, again, for its token; the second, to be told when
    for _ in range(4):
        queue.serve_next()
    assert queue.asked == 2 * 5


def test_each_key_has_a_line_of_its_own(queue: Queue) -> None:
    queue.join("1st", "2nd")

    queue.start("of another key", key="another").result(PATIENCE)

    assert queue.served == ["of another key"]
    assert [queue.serve_next() for _ in range(2)] == ["1st", "2nd"]


def test_who_does_not_wait_does_not_stand_in_line(queue: Queue) -> None:
    queue.join("1st", "2nd")

    with pytest.raises(RateLimitExceeded):
        queue.start("in passing", timeout=0).result(PATIENCE)
    assert queue.length() == 2
    assert [queue.serve_next() for _ in range(2)] == ["1st", "2nd"]


def test_who_runs_out_of_patience_in_the_middle_leaves_the_line(queue: Queue) -> None:
    queue.join("1st")
    (impatient,) = queue.join("impatient", timeout=0.2)
    queue.join("3rd", "4th")

    with pytest.raises(RateLimitExceeded):
        impatient.result(PATIENCE)
    queue.until(lambda: queue.length() == 3, "the line to be one shorter")
    assert [queue.serve_next() for _ in range(3)] == ["1st", "3rd", "4th"]


def test_the_first_that_sees_it_cannot_be_served_in_time_makes_room_for_the_next(queue: Queue) -> None:
    with pytest.raises(RateLimitExceeded):
        queue.start("impatient", timeout=0.9).result(PATIENCE)
    queue.until(lambda: queue.length() == 0, "the line to be empty")
    queue.join("2nd")

    assert queue.serve_next() == "2nd"


@pytest.mark.parametrize("place_in_line", [0, 1, 2])
@pytest.mark.parametrize("form", ["asyncio"])
def test_a_task_that_is_cancelled_leaves_the_line_from_wherever_it_stands(queue: Queue, place_in_line: int) -> None:
    names = ["1st", "2nd", "3rd"]
    futures = queue.join(*names)
    queue.first_sleeps()
    futures[place_in_line].cancel()
    names.pop(place_in_line)

    with pytest.raises(CancelledError):
        futures[place_in_line].result(PATIENCE)
    queue.until(lambda: queue.length() == 2, "the line to be one shorter")
    assert [queue.serve_next() for _ in range(2)] == names


def test_who_runs_out_of_patience_does_not_overtake_those_before(queue: Queue) -> None:
    queue.join("1st")
    queue.first_sleeps()
    (impatient,) = queue.join("impatient", timeout=0.3)
    # A token comes back while the first is still asleep until the moment that it was told.
    queue.give_back()

    with pytest.raises(RateLimitExceeded):
        impatient.result(PATIENCE)


class Bell:
    """A ticket that notes when it is woken."""

    def __init__(self, woken: list[Bell]) -> None:
        self._woken = woken

    async def wait(self, seconds: float) -> bool:
        raise AssertionError("nobody waits by it")

    def wake(self) -> None:
        self._woken.append(self)


def test_a_line_is_served_in_order_and_wakes_who_has_become_the_first() -> None:
    woken: list[Bell] = []
    lines, first, second, third = Lines(), Bell(woken), Bell(woken), Bell(woken)

    assert [lines.join("k", bell) for bell in (first, second, third)] == [True, False, False]
    assert lines.join("other", Bell(woken))
    lines.leave("k", second)
    assert woken == []
    lines.leave("k", first)
    assert woken == [third]
    lines.leave("k", third)
    assert woken == [third]
    assert lines.join("k", second)


def test_a_line_without_waiters_takes_no_room() -> None:
    lines, bell = Lines(), Bell([])
    lines.join("k", bell)
    lines.leave("k", bell)

    assert not lines._lines
