"""Deadlines: one budget of time for all that is nested, told to other processes, and kept by whatever waits."""

from __future__ import annotations

import asyncio
import contextvars
import math
import pickle
import threading
import time
from typing import Any

import pytest
from bulkheads import Bulkhead
from conftest import Api

from shared_resilience import (
    BulkheadConfig,
    BulkheadFullError,
    DeadlineExceeded,
    LeakyBucket,
    RateLimitExceeded,
    TokenBucket,
    deadline,
    deadline_from,
    deadline_headers,
    remaining,
)
from shared_resilience.deadline import LONGEST
from shared_resilience.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_what_remains_shrinks_and_is_never_below_zero(clock: ManualClock) -> None:
    assert remaining() == math.inf
    with deadline(2.0, monotonic=clock.monotonic) as limit:
        before = remaining()
        clock.advance(1.5)
        within = (remaining(), limit.remaining())
        clock.advance(1.5)
        after = remaining()

    assert (before, within, after) == (2.0, (0.5, 0.5), 0.0)
    assert remaining() == math.inf


def test_a_nested_deadline_never_ends_later_than_the_one_around_it(clock: ManualClock) -> None:
    with deadline(2.0, monotonic=clock.monotonic):
        with deadline(5.0, monotonic=clock.monotonic):
            longer = remaining()
        with deadline(0.5, monotonic=clock.monotonic):
            shorter = remaining()
            clock.advance(1.0)
        again = remaining()

    assert (longer, shorter, again) == (2.0, 0.5, 1.0)


def test_a_deadline_is_over_when_its_block_is_left_by_an_exception(clock: ManualClock) -> None:
    with pytest.raises(KeyError), deadline(2.0, monotonic=clock.monotonic):
        raise KeyError
    assert remaining() == math.inf


def test_a_deadline_is_for_one_block_at_a_time(clock: ManualClock) -> None:
    limit = deadline(2.0, monotonic=clock.monotonic)
    with limit, pytest.raises(RuntimeError, match="in use"), limit:
        raise AssertionError("inside")
    clock.advance(5)
    with limit:
        assert remaining() == 2.0


@pytest.mark.parametrize("seconds", [-1, float("nan"), math.inf, "2", True, None, LONGEST + 1])
def test_a_budget_that_is_no_time_is_refused(seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"^seconds is .*, but must be a number from 0 to"):
        deadline(seconds)


def test_a_real_deadline_runs_by_the_real_clock() -> None:
    with deadline(60):
        assert 59 < remaining() <= 60
        assert repr(deadline(3)) == "Deadline(3.000 s remain)"


def test_tasks_and_threads_that_inherit_the_context_see_it() -> None:
    seen: list[float] = []

    def look() -> None:
        seen.append(remaining())

    async def main() -> None:
        with deadline(60):
            await asyncio.create_task(asyncio.to_thread(look))
        await asyncio.to_thread(look)

    asyncio.run(main())
    with deadline(60):
        thread = threading.Thread(target=contextvars.copy_context().run, args=(look,))
    thread.start()
    thread.join(10)

    inherited, none, copied = seen
    assert 0 < inherited <= 60
    assert none == math.inf
    assert 0 < copied <= 60


def test_tasks_have_deadlines_of_their_own() -> None:
    async def one(seconds: float) -> float:
        with deadline(seconds):
            await asyncio.sleep(0)
            return remaining()

    async def main() -> list[float]:
        return list(await asyncio.gather(one(10), one(20), one(30)))

    assert [math.ceil(left) for left in asyncio.run(main())] == [10, 20, 30]


def test_an_asyncio_block_is_cancelled_when_its_time_is_over() -> None:
    reached: list[str] = []

    async def main() -> None:
        async with deadline(0.05):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                reached.append("cancelled")
                raise
            reached.append("slept")

    with pytest.raises(DeadlineExceeded, match=r"the deadline around 'the block' has passed after 0\.050 s"):
        asyncio.run(main())
    assert reached == ["cancelled"]


def test_an_asyncio_block_that_ends_in_time_or_raises_is_left_as_it_is() -> None:
    async def main() -> float:
        async with deadline(60):
            left = remaining()
        with pytest.raises(KeyError):
            async with deadline(60):
                raise KeyError
        return left

    assert 0 < asyncio.run(main()) <= 60


def test_a_task_that_somebody_else_cancels_is_cancelled() -> None:
    async def main() -> None:
        async with deadline(60):
            await asyncio.sleep(60)

    async def cancel() -> None:
        task = asyncio.ensure_future(main())
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())


def test_what_remains_travels_in_a_header(clock: ManualClock) -> None:
    assert deadline_headers() == {}
    with deadline(2.0, monotonic=clock.monotonic):
        clock.advance(0.2504)
        sent = deadline_headers()
    with deadline_from(sent):
        received = remaining()

    assert sent == {"X-Deadline-Ms": "1749"}
    assert 1.5 < received <= 1.749


@pytest.mark.parametrize("sent", ["", "soon", "-5", "1.5", "1e3", "nan", "٣", "9" * 16, None])
def test_a_header_that_cannot_be_read_is_none(sent: Any) -> None:
    with deadline_from({"X-Deadline-Ms": sent}, longest=30.0):
        assert 29 < remaining() <= 30
    with deadline_from({}):
        assert remaining() > LONGEST - 1


@pytest.mark.parametrize(("sent", "seconds"), [("0", 0.0), (" 250 ", 0.25), ("999999999999999", 30.0), ("31000", 30.0)])
def test_a_header_counts_up_to_the_longest(sent: str, seconds: float) -> None:
    assert deadline_from({"x-deadline-MS": sent, "Other": "1"}, longest=30.0).remaining() == seconds


def test_an_error_says_what_it_was_and_survives_pickling() -> None:
    error: Any = pickle.loads(pickle.dumps(DeadlineExceeded("payments", 1.5)))  # our own

    assert issubclass(DeadlineExceeded, TimeoutError)
    assert (error.name, error.seconds, error.retry_after) == ("payments", 1.5, 0.0)
    assert str(error) == "the deadline around 'payments' has passed after 1.500 s"


def test_a_limiter_gives_up_when_it_knows_that_the_deadline_comes_first(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(1, 0.1))
    api(limiter.acquire())
    began = api.clock.monotonic()

    with deadline(5.0, monotonic=api.clock.monotonic), pytest.raises(RateLimitExceeded):
        api(limiter.acquire(timeout=60))
    gave_up_after = api.clock.monotonic() - began
    with deadline(20.0, monotonic=api.clock.monotonic):
        api(limiter.acquire())

    assert gave_up_after == 0
    assert 9 < api.clock.monotonic() - began < 11


def test_a_turn_in_a_leaky_bucket_is_not_waited_for_beyond_the_deadline(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("printer", LeakyBucket(5, 0.1))
    api(limiter.acquire())

    with deadline(5.0, monotonic=api.clock.monotonic), pytest.raises(RateLimitExceeded):
        api(limiter.acquire())
    assert api(limiter.peek()).remaining == 4


def test_who_waits_for_a_slot_until_the_deadline_is_told_so(api: Api) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1))
    bulkhead.enter()

    with deadline(0.05, monotonic=time.monotonic), pytest.raises(DeadlineExceeded) as late:
        bulkhead.enter(timeout=60)
    with deadline(60), pytest.raises(BulkheadFullError):
        bulkhead.enter(timeout=0.05)

    assert late.value.name == "payments"
    assert bulkhead.crowd == (1, 0)
    assert bulkhead.stats()["local"]["bulkhead.refused"] == 2


def test_after_the_deadline_nobody_goes_in(api: Api) -> None:
    bulkhead = Bulkhead(api)

    with deadline(0), pytest.raises(DeadlineExceeded):
        bulkhead.enter()
    assert bulkhead.crowd == (0, 0)
    assert "bulkhead.entered" not in bulkhead.stats()["local"]


def test_permits_are_not_waited_for_beyond_the_deadline(api: Api) -> None:
    api.service.get_or_create_rate_limiter("payments", TokenBucket(1, 0.1))
    bulkhead = Bulkhead(api)
    permits = api.service.permits("payments")

    def enter() -> Any:
        guard = permits.guard(timeout=60)
        return api(guard.__enter__() if api.form == "sync" else guard.__aenter__())

    enter()
    for _ in range(2):  # the second time it is remembered
        with deadline(5.0, monotonic=api.clock.monotonic), pytest.raises(RateLimitExceeded):
            enter()
    assert bulkhead.crowd == (1, 0)
