"""The bulkhead when callers are cancelled or interrupted, when replies are lost, and when word comes early."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
from bulkheads import Both, Bulkhead
from conftest import Api
from crowds import until_crowd_is
from points import Cancelled, Interrupted, Signalled
from proxies import Proxy, cut, pass_on
from redis.exceptions import TimeoutError as RedisTimeoutError
from servers import PATIENT, Server, poll

from shared_resilience import (
    BulkheadConfig,
    BulkheadFullError,
    LeakyBucket,
    PriorityLevel,
    ResilienceService,
    StoreUnavailableError,
    TokenBucket,
)
from shared_resilience.backends import attendant
from shared_resilience.backends.attendant import ThreadAttendant
from shared_resilience.backends.faults import StoreError
from shared_resilience.bulkhead_commands import Call
from shared_resilience.holdings import TURN
from shared_resilience.options import CheckedOptions
from shared_resilience.runtimes import local_runtime
from shared_resilience.testing import ManualClock

CALLERS = ("bulkhead_enter", "bulkhead_leave")
SLOW = 1e-6


class Interruption:
    """Interrupts the caller at the given one of its trips, `before` or after the store has run the command."""

    def __init__(self, bulkhead: Bulkhead, trip: int, before: bool) -> None:
        self._kind = KeyboardInterrupt if bulkhead.api.form == "sync" else asyncio.CancelledError
        self._backend, self._trips_left, self._before = bulkhead.backend, trip, before
        self.happened = False
        self._run = self._backend.run
        self._backend.run = self.run

    async def run(self, command: Any, *args: Any, **kwargs: Any) -> Any:
        if command.operation.script not in CALLERS or self.happened:
            return await self._run(command, *args, **kwargs)
        self._trips_left -= 1
        self.happened = self._trips_left == 0
        if self.happened and self._before:
            raise self._kind
        reply = await self._run(command, *args, **kwargs)
        if self.happened:
            raise self._kind
        return reply


def call(bulkhead: Bulkhead, timeout: float) -> None:
    """A call that does nothing."""
    guard = bulkhead.bulkhead.guard(timeout=timeout)

    def blocking() -> None:
        with guard:
            pass

    async def suspending() -> None:
        async with guard:
            pass

    work: Callable[[], Any] = blocking if bulkhead.api.form == "sync" else suspending
    bulkhead.api(work())


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("full", "trip"), [(False, 1), (False, 2), (True, 1), (True, 2)])
def test_an_interruption_at_any_trip_leaves_neither_slot_nor_place(
    api: Api, full: bool, trip: int, before: bool
) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1, 5))
    if full:
        bulkhead.enter()
    interruption = Interruption(bulkhead, trip, before)

    with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
        call(bulkhead, timeout=0.02)  # where it is full, it goes into the queue, and leaves it

    assert interruption.happened
    api.clock.advance(TURN)
    bulkhead.keep_up()
    assert bulkhead.crowd == (int(full), 0)
    assert bulkhead.core.known()["inside_here"] == int(full)


def test_an_error_of_the_store_while_leaving_is_not_its_callers_affair(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1))
    permit, run = bulkhead.enter(), bulkhead.backend.run

    async def fail(command: Any, *args: Any, **kwargs: Any) -> Any:
        raise BulkheadFullError("an error of ours", 0, 0.0)

    monkeypatch.setattr(bulkhead.backend, "run", fail)
    bulkhead.leave(permit)
    monkeypatch.setattr(bulkhead.backend, "run", run)

    assert bulkhead.crowd == (1, 0)
    api.clock.advance(TURN)
    bulkhead.keep_up()
    assert bulkhead.crowd == (0, 0)


def test_a_coroutine_that_is_closed_inside_waits_for_nothing(api: Api) -> None:
    if api.form == "sync":
        pytest.skip("there are no coroutines")
    bulkhead = Bulkhead(api, BulkheadConfig(1))

    async def begin_and_close() -> None:
        guard = bulkhead.bulkhead.guard()
        await guard.__aenter__()
        with pytest.raises(StopIteration):  # a coroutine that still waits when it is closed raises RuntimeError
            guard.__aexit__(GeneratorExit, GeneratorExit(), None).send(None)

    api(begin_and_close())
    poll(lambda: bulkhead.crowd == (0, 0), "the slot to be given back")


class Woken:
    """A ticket that counts how often it is woken."""

    def __init__(self) -> None:
        self.times = 0

    def wake(self) -> None:
        self.times += 1

    async def wait(self, seconds: float) -> bool:
        return self.times > 0


def holdings_of(bulkhead: Bulkhead) -> Any:
    bulkhead.leave(bulkhead.enter())
    (holdings,) = bulkhead.core._parties
    return holdings


def test_word_that_comes_before_its_waiter_waits_wakes_it_once(api: Api) -> None:
    holdings, first, second, other = holdings_of(Bulkhead(api)), Woken(), Woken(), Woken()

    async def come() -> None:
        known = holdings.told("w:1:3000")
        holdings.wait_for("w:2:3000", other)
        holdings.wait_for("w:1:3000", first)
        holdings.wait_no_more("w:1:3000")
        holdings.wait_for("w:1:3000", second)
        assert known is False
        assert (first.times, second.times, other.times) == (1, 0, 0)
        assert holdings.told("w:1:3000") is True
        assert (first.times, second.times, other.times) == (1, 1, 0)
        holdings.wait_no_more("w:1:3000")
        holdings.wait_no_more("w:2:3000")

    if api.form == "sync":
        with pytest.raises(StopIteration):
            come().send(None)
    else:
        api(come())


def test_word_that_comes_twice_before_its_waiter_waits_wakes_it_once(api: Api) -> None:
    bulkhead, first, second = Bulkhead(api), Woken(), Woken()
    holdings = holdings_of(bulkhead)

    async def come() -> None:
        holdings.told("w:1:3000")  # by the reply of who has left
        holdings.told("w:1:3000")  # by the message that its script has sent
        for ticket in (first, second):
            holdings.wait_for("w:1:3000", ticket)
            holdings.wait_no_more("w:1:3000")

    bulkhead.run(come())

    assert (first.times, second.times) == (1, 0)


def test_who_gives_up_again_and_again_does_not_put_off_the_attendants_turn(api: Api) -> None:
    bulkhead = Bulkhead(api)
    holdings = holdings_of(bulkhead)
    began = api.clock.monotonic()

    async def give_up() -> None:
        for number in range(5):
            holdings.give_up(f"w:{number}:3000")
            assert holdings.due() <= began + TURN
            api.clock.advance(TURN / 4)

    if api.form == "sync":
        with pytest.raises(StopIteration):
            give_up().send(None)
    else:
        api(give_up())


def test_a_slot_whose_reply_is_lost_is_given_back(proxy: Proxy, server: Server, prefix: str) -> None:
    with (
        ResilienceService.from_url(proxy.url, prefix=prefix, command_timeout=0.3) as service,
        ResilienceService.from_url(server.url, prefix=prefix) as witness,
    ):
        bulkhead, seen = (one.get_or_create_bulkhead("payments") for one in (service, witness))
        with bulkhead.guard():
            pass
        proxy.treatment = cut
        with bulkhead.guard() as permit:
            assert (permit.source, permit.doubtful) == ("local", True)
            assert seen.get_stats()["inside"] == 1  # it was taken
            proxy.treatment = pass_on
        until_crowd_is(seen, 0, 0)


def test_a_slot_that_could_not_be_given_back_is_given_back_later(own_server: Server, prefix: str) -> None:
    with own_server.client() as client, ResilienceService.from_url(own_server.url, prefix=prefix) as service:
        bulkhead = service.get_or_create_bulkhead("payments")
        holders = bulkhead._core.commands.keys[0]
        with bulkhead.guard() as permit:
            client.execute_command("ACL", "SETUSER", "default", "-evalsha")
        held = client.zrange(holders, 0, -1)
        client.execute_command("ACL", "SETUSER", "default", "+evalsha")

        assert held == [permit.token]
        poll(lambda: client.zcard(holders) == 0, "the slot to be given back")


# At every point.

blocking = pytest.mark.parametrize("form", ["sync"])
suspending = pytest.mark.parametrize("form", ["asyncio"])
WAYS = ["bulkhead", "permits", "permits apart"]


def bulkhead_of(api: Api, way: str) -> Both:
    """A bulkhead with one slot, and limits that are no matter."""
    limit = LeakyBucket(10**6, 10**6) if way == "permits apart" else TokenBucket(10, 10)
    return Both(api, limit, config=BulkheadConfig(1, 5), remember_refusals=False)


def guard_of(both: Both, way: str, timeout: float = PATIENT) -> Any:
    return both.bulkhead.guard(timeout=timeout) if way == "bulkhead" else both.permits.guard(timeout=timeout)


def expect_nothing_left(both: Both, point: object) -> None:
    """Neither in the store nor in this process, once the attendant has kept up."""
    both.rest()
    both.keep_up()
    here = [(holdings.held, holdings._waiting) for holdings in both.core._parties]
    assert (both.crowd, [held for held in here if any(held)]) == ((0, 0), []), f"interrupted at {point}"


async def stay(guard: Any) -> str:
    async with guard:
        await asyncio.sleep(0)
    return "was inside"


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Lets others go on until `condition` holds."""
    while True:
        if await condition():
            return
        await asyncio.sleep(0)


async def waiting(both: Both) -> int:
    stats = await both.bulkhead.get_stats()
    number: int = stats["waiting"]
    return number


async def beside_others(both: Both, visit: Cancelled[str], situation: str) -> object:
    """What comes of `visit`. Where it waits, another stands behind it, who must go in whatever comes of it."""
    holder = both.bulkhead.guard()
    if situation in ("waits", "in vain"):
        await holder.__aenter__()
    task = asyncio.ensure_future(visit)
    if situation == "waits":

        async def waits_or_is_gone() -> bool:
            return task.done() or await waiting(both) == 1

        async def another_stands_behind_it() -> bool:
            return await waiting(both) + task.done() >= 2

        async def the_other_is_done() -> bool:
            for holdings in both.core._parties:
                await holdings.keep_up(both.backend)
            return behind.done()

        await until(waits_or_is_gone)
        behind = asyncio.ensure_future(stay(both.bulkhead.guard(timeout=PATIENT)))
        await until(another_stands_behind_it)
        await holder.__aexit__(None, None, None)
        await until(the_other_is_done)
        assert await behind == "was inside"
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    if situation == "in vain":
        await holder.__aexit__(None, None, None)
    return outcome


@suspending
@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "as it is woken"])
@pytest.mark.parametrize("situation", ["at once", "connects", "waits", "in vain"])
@pytest.mark.parametrize("way", WAYS)
def test_a_task_that_is_cancelled_at_any_suspension_leaves_nothing_behind(
    api: Api, way: str, situation: str, late: bool
) -> None:
    both = bulkhead_of(api, way)
    for at in itertools.count(1):
        if situation == "connects" and (store := getattr(both.backend, "_store", None)):
            api(store.reconnect())
        guard = guard_of(both, way, 0.005 if situation == "in vain" else PATIENT)
        visit = Cancelled(stay(guard), at, late)
        outcome = api(asyncio.wait_for(beside_others(both, visit, situation), PATIENT))
        expect_nothing_left(both, at)
        if not visit.reached:
            break

    assert at > 1
    assert isinstance(outcome, BulkheadFullError) if situation == "in vain" else outcome == "was inside"


@suspending
def test_a_waiter_that_is_cancelled_when_its_turn_has_come_hands_it_on(api: Api) -> None:
    both = bulkhead_of(api, "bulkhead")
    holder = both.bulkhead.guard()

    async def queue_up(number: int) -> asyncio.Task[str]:
        task = asyncio.create_task(stay(both.bulkhead.guard(timeout=PATIENT)))

        async def it_waits() -> bool:
            return await waiting(both) == number

        await until(it_waits)
        return task

    async def main() -> str:
        await holder.__aenter__()
        first, second = await queue_up(1), await queue_up(2)
        await holder.__aexit__(None, None, None)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    assert api(main()) == "was inside"
    expect_nothing_left(both, "its turn")


class Holder:
    """A call that is inside until another waits."""

    def __init__(self, both: Both) -> None:
        self._both = both
        self._permit = both.enter()

    def leave(self) -> None:
        if self._permit in self._both.guards:
            self._both.leave(self._permit)

    def leave_to(self, reply: Any) -> None:
        """Leaves if `reply` has told another to wait."""
        if getattr(reply, "state", "") == "waiting":
            self.leave()


@blocking
@pytest.mark.parametrize(
    ("way", "situation"),
    [*((way, situation) for way in WAYS for situation in ("at once", "waits", "in vain")), ("permits", "limited")],
)
def test_a_thread_that_is_interrupted_at_any_step_leaves_nothing_behind(api: Api, way: str, situation: str) -> None:
    both = bulkhead_of(api, way)
    for at in itertools.count(1):
        holder = Holder(both) if situation in ("waits", "in vain") else None
        if situation == "limited":
            api(both.limiter.reset())
            api(both.limiter.try_acquire(cost=10))
        outcome = "was inside"
        with Interrupted(both.backend, at) as interrupted:
            if holder is not None and situation == "waits":
                interrupted.after_command = holder.leave_to
            try:
                with guard_of(both, way, 0.005 if situation == "in vain" else PATIENT):
                    pass
            except (KeyboardInterrupt, BulkheadFullError) as error:
                outcome = type(error).__name__
        if holder is not None:
            holder.leave()
        expect_nothing_left(both, at)
        if not interrupted.reached:
            break
        assert outcome == "KeyboardInterrupt"

    assert at > {"at once": 4, "waits": 8, "in vain": 6, "limited": 8}[situation]
    assert outcome == ("BulkheadFullError" if situation == "in vain" else "was inside")


ASKED = ("admission.py", "holdings.py", "limiter.py", "permits.py", "reservation.py", "slot_guard.py")


@pytest.mark.parametrize("situation", ["at once", "waits"])
@pytest.mark.parametrize("way", WAYS)
def test_an_interruption_wherever_python_looks_for_signals_leaves_nothing_behind(way: str, situation: str) -> None:
    clock = ManualClock()
    api = Api("sync", local_runtime(clock, CheckedOptions()), clock)
    both = bulkhead_of(api, way)
    over = leaving = False

    def has_not_begun_to_leave(frame: FrameType) -> bool:
        nonlocal leaving
        leaving = over and (leaving or "let_go" in frame.f_code.co_name)
        return over and not leaving

    for at in itertools.count(1):
        over, holder = False, Holder(both) if situation == "waits" else None
        with Interrupted(both.backend, 0) as beside, Signalled(at, ASKED, has_not_begun_to_leave) as signalled:
            if holder is not None:
                beside.after_command = signalled.not_in(holder.leave_to)
            with suppress(KeyboardInterrupt), guard_of(both, way):
                over = True
        if holder is not None:
            holder.leave()
        expect_nothing_left(both, signalled.reached)
        if not signalled.reached:
            break
    api.close()

    assert at > 10


@suspending
def test_a_coroutine_that_is_closed_while_it_waits_leaves_the_queue(api: Api) -> None:
    both = bulkhead_of(api, "bulkhead")
    holder, guard = both.enter(), both.bulkhead.guard(timeout=60)

    async def wait_and_close() -> None:
        coroutine = guard.__aenter__()
        task = asyncio.ensure_future(coroutine)

        async def it_waits() -> bool:
            return await waiting(both) == 1

        await until(it_waits)
        coroutine.close()
        task.cancel()
        with pytest.raises(RuntimeError, match="cannot reuse"):  # of the task, whose coroutine is gone
            await task

    api(wait_and_close())
    both.leave(holder)
    expect_nothing_left(both, "the wait")


def test_a_coroutine_that_outlives_its_loop_is_closed_without_a_word() -> None:
    service = ResilienceService.local().aio
    bulkhead = service.get_or_create_bulkhead("payments", BulkheadConfig(1))
    loop = asyncio.new_event_loop()
    coroutine = bulkhead.guard().__aenter__()

    async def begin() -> None:
        await bulkhead.guard().__aenter__()
        coroutine.send(None)

    loop.run_until_complete(begin())
    loop.run_until_complete(service.close())
    loop.close()
    coroutine.close()


def test_where_no_thread_can_be_started_nothing_is_left_and_the_next_call_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock()
    api = Api("sync", local_runtime(clock, CheckedOptions()), clock)
    both = bulkhead_of(api, "bulkhead")

    def fail(attendant: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(ThreadAttendant, "_start", fail)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            both.enter()
        assert both.crowd == (0, 0)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            both.enter()
    permit = both.enter()
    clock.advance(20)
    api.runtime.backends.blocking.attendant().look_by(-math.inf)
    poll(lambda: permit.renewed == clock.monotonic(), "the lease to be renewed")
    api.close()


# What attendants do when they are cancelled.


@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "as it is woken"])
def test_an_attendant_that_is_cancelled_at_any_suspension_ends(
    server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """wait_for of Python 3.11 may swallow a cancellation while redis-py connects."""
    monkeypatch.setattr(attendant, "STEP", 0.005)

    async def cancelled_at(at: int) -> None:
        service = ResilienceService.from_url(server.url, prefix=f"{prefix}{at}", command_timeout=PATIENT).aio
        bulkhead = service.get_or_create_bulkhead("payments", BulkheadConfig(1))
        attends: Any = service._runtime.backends.suspending.attendant()
        run, ended = attends.run, asyncio.Event()

        async def cancelled_run() -> None:
            try:
                await Cancelled(run(), at, late)
            finally:
                ended.set()

        attends.run = cancelled_run
        async with bulkhead.guard():
            waiter = asyncio.ensure_future(stay(bulkhead.guard(timeout=60)))
            await ended.wait()
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        await service.close()

    async def main() -> None:
        for at in range(1, 13):
            await asyncio.wait_for(cancelled_at(at), PATIENT)

    asyncio.run(main())


# Replies that are lost.


@pytest.fixture
def lost(api: Api, place: str, redis_is_away: Callable[[], None]) -> Callable[[Bulkhead], Callable[[], None]]:
    """Loses the reply to the next command of a caller, and Redis with it; what is returned brings Redis back."""
    if place == "local":
        pytest.skip("there is no reply that could be lost")

    def lose(bulkhead: Bulkhead) -> Callable[[], None]:
        store = bulkhead.backend._store
        ask = store.ask

        async def ask_in_vain(command: Any) -> Any:
            reply = await ask(command)
            if command.operation.script == "bulkhead_upkeep":
                return reply
            store.ask = ask
            raise StoreError(RedisTimeoutError("no reply"), sent=True)

        store.ask = ask_in_vain
        return api.runtime.process.guard.recovered

    return lose


Lost = Callable[[Bulkhead], Callable[[], None]]


def crowd_of(service: ResilienceService, both: Bulkhead) -> tuple[int, int]:
    """How many are inside and wait according to Redis, whatever `both` may know or do meanwhile."""
    stats: Any = service.get_or_create_bulkhead(both.core.name, both.core.config).get_stats()
    return stats["inside"], stats["waiting"]


def test_a_slot_whose_reply_was_lost_is_given_back_when_redis_is_back(
    api: Api, other: ResilienceService, lost: Lost
) -> None:
    both = bulkhead_of(api, "bulkhead")
    both.leave(both.enter())
    bring_back = lost(both)
    permit = both.enter()
    both.leave(permit)
    before = crowd_of(other, both)
    bring_back()
    both.keep_up()

    assert (permit.source, permit.doubtful) == ("local", True)
    assert (before, both.crowd) == ((1, 0), (0, 0))


def test_a_call_inside_whose_reply_was_lost_has_one_slot_when_redis_is_back(api: Api, lost: Lost) -> None:
    both = bulkhead_of(api, "bulkhead")
    both.leave(both.enter())
    bring_back = lost(both)
    permit = both.enter()
    bring_back()
    both.keep_up()

    assert permit.source == "redis"
    assert both.crowd == (1, 0)
    both.leave(permit)
    assert both.crowd == (0, 0)


def test_a_slot_that_was_given_back_and_the_reply_lost_stays_given_back(api: Api, lost: Lost) -> None:
    both = bulkhead_of(api, "bulkhead")
    permit = both.enter()
    bring_back = lost(both)
    both.leave(permit)
    bring_back()
    other = both.enter()
    both.keep_up()

    assert both.crowd == (1, 0)
    assert not other.lost


@pytest.mark.parametrize(
    ("on_outage", "shadow"), [("deny", False), ("deny", True), ("raise", False)], ids=["denied", "in shadow", "raised"]
)
def test_a_call_that_is_refused_since_its_reply_was_lost_keeps_no_slot(
    api: Api, other: ResilienceService, lost: Lost, on_outage: Any, shadow: bool
) -> None:
    both = Both(api, TokenBucket(9, SLOW), config=BulkheadConfig(2, on_outage=on_outage, shadow=shadow))
    both.leave(both.enter())
    bring_back = lost(both)
    if shadow:
        assert both.enter().token == ""
    else:
        with pytest.raises((BulkheadFullError, StoreUnavailableError)):
            both.enter()
    before = crowd_of(other, both)
    bring_back()
    both.keep_up()

    assert (before, both.crowd) == ((1, 0), (0, 0))


def test_a_call_that_a_limit_refuses_since_its_reply_was_lost_keeps_no_slot(
    api: Api, other: ResilienceService, lost: Lost
) -> None:
    both = Both(api, TokenBucket(5, SLOW))
    both.leave(both.go_in())
    drain = both.limiter._core.commands.take(both.limiter._core.keys.of(("",)), 5)
    api.runtime.process.local.execute(drain)
    bring_back = lost(both)
    refused = both.refused()
    before = crowd_of(other, both)
    bring_back()
    both.keep_up()

    assert refused.decision.source == "local"
    assert (before, both.crowd) == ((1, 0), (0, 0))


@pytest.mark.parametrize("goes_in", [False, True], ids=["in vain", "and goes in"])
def test_a_waiter_whose_turn_came_in_a_reply_that_was_lost_keeps_no_slot_of_redis(
    api: Api, other: ResilienceService, lost: Lost, goes_in: bool
) -> None:
    both, local = bulkhead_of(api, "bulkhead"), api.runtime.process.local
    holder = other.get_or_create_bulkhead("orders", both.core.config).guard()
    holder.__enter__()
    beside = Call("another:1:30000", PriorityLevel.NORMAL, may_wait=False, place=None)
    bring_back: list[Callable[[], None]] = []

    def wait(seconds: float) -> bool:
        if bring_back:
            local.execute(both.core.commands.leave(beside.token))
            return goes_in
        local.execute(both.core.commands.enter(beside))  # so that there is no slot without Redis
        holder.__exit__(None, None, None)
        bring_back.append(lost(both))
        return True

    with both.waiting(wait):
        if goes_in:
            permit = both.enter(timeout=60)
            assert (permit.source, permit.doubtful) == ("local", True)
            both.leave(permit)
        else:
            with pytest.raises(BulkheadFullError):
                both.enter(timeout=60)
    before = crowd_of(other, both)
    bring_back[0]()
    both.keep_up()

    assert (before, both.crowd) == ((1, 0), (0, 0))
