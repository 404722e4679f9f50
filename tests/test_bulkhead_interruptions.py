"""The bulkhead when callers are cancelled or interrupted, when replies are lost, and when word comes early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from bulkheads import Bulkhead
from conftest import Api
from crowds import until_crowd_is
from proxies import Proxy, cut, pass_on
from servers import Server, poll

from shared_resilience import BulkheadConfig, BulkheadFullError, ResilienceService
from shared_resilience.holdings import TURN

CALLERS = ("bulkhead_enter", "bulkhead_leave")


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
    (holdings,) = bulkhead.core._holdings.values()
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
