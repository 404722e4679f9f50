"""Several real processes share one bulkhead in a real Redis: some are killed, some stand still, Redis goes away."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from crowds import Crowd, Visitor, longest_without_newcomer, most_at_once, until_crowd_is
from servers import PATIENT, Server, poll
from test_heartbeat import commands_at, counted

from shared_resilience import Bulkhead, BulkheadConfig, BulkheadFullError, PriorityLevel, ResilienceService, scripts

CRITICAL, HIGH, NORMAL, LOW, BACKGROUND = PriorityLevel
Visitors = Callable[[int], list[Visitor]]
assert counted  # a fixture

POLL = 1.0
"""Seconds after which a waiter looks whether a slot is free, should nobody wake it."""

DEAD = 2.0
"""Seconds after which a waiter is thought dead that gives no sign of life."""

BUSY = 1.5
"""Seconds that a busy machine may take besides."""


def upkeeps(server: Server) -> list[list[str]]:
    sha = scripts.load("bulkhead_upkeep").sha
    return [command for command in commands_at(server) if command[1:2] == [sha]]


class Ours:
    """The bulkhead of the test's own process, and processes beside it."""

    def __init__(
        self, server: Server, prefix: str, config: BulkheadConfig, exits: ExitStack, command_timeout: float = PATIENT
    ) -> None:
        self.server, self.prefix, self.config = server, prefix, config
        self.service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=command_timeout)
        exits.callback(self.service.close)
        self.bulkhead: Bulkhead = self.service.get_or_create_bulkhead("payments", config)
        self._exits = exits
        self._guards: list[Any] = []

    def enter(self, **how: Any) -> Any:
        guard = self.bulkhead.guard(**how)
        permit = guard.__enter__()
        self._guards.append(guard)
        return permit

    def leave(self) -> None:
        """Has the call leave that went in first."""
        self._guards.pop(0).__exit__(None, None, None)

    def visitor(self) -> Visitor:
        visitor = Visitor(self.server.url, self.prefix, self.config)
        self._exits.callback(visitor.close)
        return visitor

    def in_queue(self, *priorities: PriorityLevel) -> list[Visitor]:
        """Processes that wait, in this order."""
        visitors = [self.visitor() for _ in priorities]
        inside = len(self._guards)
        for number, (visitor, priority) in enumerate(zip(visitors, priorities, strict=True), 1):
            visitor.knock(priority=priority, timeout=60)
            until_crowd_is(self.bulkhead, inside, number)
        return visitors


Make = Callable[[BulkheadConfig], Ours]


@pytest.fixture
def exits() -> Iterator[ExitStack]:
    with ExitStack() as exits:
        yield exits


@pytest.fixture
def make(server: Server, prefix: str, exits: ExitStack) -> Make:
    """Makes a bulkhead of the test's own process."""
    return lambda config: Ours(server, prefix, config, exits)


@pytest.fixture
def make_on_own(own_server: Server, prefix: str, exits: ExitStack) -> Make:
    """The same on a server that the test may kill."""
    return lambda config: Ours(own_server, prefix, config, exits)


@pytest.mark.fault("processes are killed at random inside a bulkhead", "never more inside than the maximum")
def test_never_are_more_inside_than_the_maximum_while_processes_are_killed(
    server: Server, prefix: str, tmp_path: Path, make: Make
) -> None:
    config = BulkheadConfig(5, lease=2)
    crowd = Crowd(server.url, prefix, config, tmp_path, longest=1.0)
    crowd.disturb(8, config.lease, paused=0.1)
    crowd.end()
    stays = crowd.stays()

    assert len({stay.process for stay in stays}) > 5
    assert 4 <= most_at_once(stay for stay in stays if not stay.lost) <= 5
    assert longest_without_newcomer(stays) < 2 * (DEAD + POLL) + BUSY  # the first of the queue was killed, and the next
    until_crowd_is(make(config).bulkhead, 0, 0, config.lease + POLL + BUSY)


@pytest.mark.fault("all holders of slots are killed", "the slots are free when their leases are over")
def test_the_slots_of_killed_processes_come_back_when_their_leases_are_over(make: Make) -> None:
    ours = make(BulkheadConfig(5, lease=1))
    visitors = [ours.visitor() for _ in range(5)]
    for visitor in visitors:
        visitor.knock()
        visitor.went_in()
    for visitor in visitors:
        visitor.close()
    killed = time.monotonic()
    for _ in range(5):
        ours.enter(timeout=10)

    assert time.monotonic() - killed < ours.config.lease + POLL + BUSY


def test_order_is_by_priority_and_then_by_arrival_over_processes(make: Make) -> None:
    ours = make(BulkheadConfig(1))
    ours.enter()
    low, first, second, critical, high = ours.in_queue(LOW, NORMAL, NORMAL, CRITICAL, HIGH)
    ours.leave()
    for visitor in (critical, high, first, second, low):
        visitor.went_in()
        visitor.leave()


def test_a_freed_slot_is_handed_over_by_a_wake_up_not_found_by_looking(
    counted: Server, prefix: str, exits: ExitStack
) -> None:
    ours, rounds = Ours(counted, prefix, BulkheadConfig(1), exits), 50
    other, wake = ours.visitor(), ours.bulkhead._core.resource.keys.wake
    ours.enter()
    other.knock()
    with counted.client() as client:
        poll(lambda: client.pubsub_numsub(wake)[0][1], "the waiter to listen")
    for _ in range(rounds):
        until_crowd_is(ours.bulkhead, 1, 1)
        ours.leave()
        other.went_in()
        other.leave()
        ours.enter()
        other.knock()

    looks = [command for command in upkeeps(counted) if "wait" in command]
    assert len(looks) < rounds / 2


@pytest.mark.fault(
    "a holder stands still for longer than its lease", "`permit.lost` says so, and it frees nobody else's slot"
)
def test_a_holder_that_stood_still_for_longer_than_its_lease_knows_it_and_frees_nobody_elses_slot(make: Make) -> None:
    ours = make(BulkheadConfig(1, lease=1))
    holder = ours.visitor()
    holder.knock()
    holder.went_in()
    holder.pause()
    ours.enter(timeout=10)
    holder.resume()

    assert holder.leave() is True
    assert ours.bulkhead.get_stats()["inside"] == 1
    with pytest.raises(BulkheadFullError):
        ours.enter(timeout=0)


@pytest.mark.fault("the first of the queue is killed", "the next one goes in")
def test_when_the_first_of_the_queue_is_killed_the_next_goes_in(make: Make) -> None:
    ours = make(BulkheadConfig(1))
    ours.enter()
    first, second = ours.in_queue(NORMAL, NORMAL)
    first.close()
    ours.leave()

    second.went_in(DEAD + POLL + BUSY)


@pytest.mark.fault("Redis comes back empty under held slots", "as many again may go in, once")
def test_a_server_that_comes_back_empty_lets_one_more_maximum_in(make_on_own: Make, own_server: Server) -> None:
    ours = make_on_own(BulkheadConfig(5, lease=3))
    permits = [ours.enter() for _ in range(5)]
    visitors = [ours.visitor() for _ in range(6)]
    own_server.kill()
    own_server.start()
    for visitor in visitors[:5]:
        visitor.knock(timeout=10)
        visitor.went_in()
    visitors[5].knock(timeout=0)

    assert isinstance(visitors[5].went_in(), BulkheadFullError)
    poll(lambda: all(permit.lost for permit in permits), "the permits to be lost")
    for _ in permits:
        ours.leave()
    assert ours.bulkhead.get_stats()["inside"] == 5


@pytest.mark.fault(
    "Redis is away for a while under a bulkhead",
    "each process has its share of slots, and afterwards nothing is left over",
)
def test_while_redis_is_away_a_process_goes_on_with_its_share_and_afterwards_nothing_is_left(
    own_server: Server, prefix: str, exits: ExitStack
) -> None:
    ours = Ours(own_server, prefix, BulkheadConfig(3), exits, command_timeout=0.5)
    for _ in range(3):
        ours.enter()
    others = [Waiting(ours.bulkhead) for _ in range(2)]
    until_crowd_is(ours.bulkhead, 3, 2)
    own_server.freeze()
    ours.leave()
    ours.leave()
    assert all(other.inside.wait(10) for other in others)
    sources = [other.permit.source for other in others]
    own_server.thaw()

    assert sources == ["local", "local"]
    until_crowd_is(ours.bulkhead, 3, 0)
    assert [other.permit.source for other in others] == ["redis", "redis"]
    ours.leave()
    for other in others:
        other.leave()
    until_crowd_is(ours.bulkhead, 0, 0)


class Waiting:
    """A thread that wants to go in, and stays until it is told to leave."""

    def __init__(self, bulkhead: Bulkhead) -> None:
        self.inside, self.may_leave = threading.Event(), threading.Event()
        self.permit: Any = None
        self._thread = threading.Thread(target=self._work, args=(bulkhead,), daemon=True)
        self._thread.start()

    def _work(self, bulkhead: Bulkhead) -> None:
        with bulkhead.guard() as self.permit:
            self.inside.set()
            self.may_leave.wait(30)

    def leave(self) -> None:
        self.may_leave.set()
        self._thread.join(10)


@pytest.mark.parametrize("rule", ["-publish", "resetchannels"])
def test_a_user_who_may_not_publish_looks_instead(own_server: Server, prefix: str, exits: ExitStack, rule: str) -> None:
    with own_server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", rule)
    ours = Ours(own_server, prefix, BulkheadConfig(1), exits)
    ours.enter()
    (waiter,) = ours.in_queue(NORMAL)
    ours.leave()

    waiter.went_in(POLL + BUSY)


@pytest.mark.fault("the connection that hears of free slots is lost", "waiters look by themselves meanwhile")
def test_who_loses_the_connection_on_which_it_listens_looks_and_listens_again(
    make_on_own: Make, own_server: Server
) -> None:
    ours = make_on_own(BulkheadConfig(1))
    ours.enter()
    (waiter,) = ours.in_queue(NORMAL)
    with own_server.client() as client:
        poll(lambda: client.pubsub_numsub(ours.bulkhead._core.resource.keys.wake)[0][1], "somebody to listen")
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        ours.leave()
        waiter.went_in(POLL + BUSY)
        ours_waits = Waiting(ours.bulkhead)
        until_crowd_is(ours.bulkhead, 1, 1)
        waiter.leave()
        assert ours_waits.inside.wait(POLL + BUSY)
        ours_waits.leave()


def test_tasks_that_are_cancelled_at_any_point_leave_nothing_behind(server: Server, prefix: str) -> None:
    source = random.Random(7)

    async def come(bulkhead: Any) -> None:
        async with bulkhead.guard(PriorityLevel(source.randint(1, 5))):
            await asyncio.sleep(0.01 * source.random())

    async def crowd() -> tuple[int, int, int]:
        async with ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT).aio as service:
            bulkhead = service.get_or_create_bulkhead("payments", BulkheadConfig(5))
            tasks = [asyncio.create_task(come(bulkhead)) for _ in range(200)]
            for task in source.sample(tasks, 120):
                await asyncio.sleep(0.002 * source.random())
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            stats: Any = await bulkhead.get_stats()
            while stats["inside"] or stats["waiting"]:  # what was cancelled is given back in the background
                await asyncio.sleep(0.01)
                stats = await bulkhead.get_stats()
            return sum(map(bool, outcomes)), stats["inside_here"], stats["local"]["bulkhead.entered"]

    async def bounded() -> tuple[int, int, int]:
        return await asyncio.wait_for(crowd(), 30)

    cancelled, inside_here, entered = asyncio.run(bounded())
    assert cancelled >= 20
    assert entered >= 80
    assert inside_here == 0


class BrokenError(Exception):
    """What calls raise inside."""


def test_threads_that_raise_inside_leave_nothing_behind(make: Make) -> None:
    ours = make(BulkheadConfig(3))
    raised = Counter[str]()

    def work() -> None:
        for _ in range(20):
            try:
                with ours.bulkhead.guard(timeout=30):
                    raise BrokenError
            except BrokenError:
                raised["broken"] += 1

    threads = [threading.Thread(target=work, daemon=True) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert raised == {"broken": 200}
    until_crowd_is(ours.bulkhead, 0, 0)


def test_a_forked_child_holds_nothing_of_its_parents_and_leaves_it_alone(make: Make) -> None:
    ours = make(BulkheadConfig(2))
    reading, writing = os.pipe()
    with ours.bulkhead.guard() as permit:
        child = os.fork()
        if child == 0:
            with suppress(BaseException), ours.bulkhead.guard(timeout=5) as own:
                stats: Any = ours.bulkhead.get_stats()
                os.write(writing, f"{stats['inside']} {stats['inside_here']} {own.token != permit.token}".encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reading, 100) == b"2 1 True"
        assert ours.bulkhead.get_stats()["inside"] == 1


def test_many_that_wait_in_one_process_cost_it_few_commands(counted: Server, prefix: str, exits: ExitStack) -> None:
    ours = Ours(counted, prefix, BulkheadConfig(1), exits)
    ours.enter()
    waiting = [Waiting(ours.bulkhead) for _ in range(50)]
    until_crowd_is(ours.bulkhead, 1, 50)
    with counted.client() as client:
        client.slowlog_reset()
    poll(lambda: len(upkeeps(counted)) >= 3, "upkeeps")
    sent = [command for command in commands_at(counted) if command[0] == "EVALSHA"]

    assert 3 <= len([command for command in sent if f"{prefix}:{{payments}}:queue" in command]) <= 4
    ours.leave()
    for one in waiting:
        one.may_leave.set()
    until_crowd_is(ours.bulkhead, 0, 0)
