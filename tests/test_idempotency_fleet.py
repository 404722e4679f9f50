"""Several real processes make one call: once, whoever is killed, stands still, or loses Redis on the way."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from processes import forkserver
from proxies import Proxy, pass_on, swallow
from servers import PATIENT, Server, poll
from test_heartbeat import commands_at, counted

from shared_resilience import (
    IdempotencyConfig,
    IdempotencyConflictError,
    ResilienceError,
    ResilienceService,
    current_claim,
    scripts,
)

assert counted  # a fixture
BUSY = 1.5
"""Seconds that a busy machine may take besides."""


def nothing(*args: object) -> str:
    """Compares no arguments: how long a call takes is no matter."""
    return ""


def place(url: str, prefix: str, config: IdempotencyConfig, form: str, folder: str, pipe: Connection) -> None:
    """Makes the calls that it is told of, `(key, seconds)`; says what each returned, or the error.

    Runs of the function are lines of a file that all processes write to.
    """
    log = os.open(Path(folder) / "runs", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    service = ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT)
    once = service.get_or_create_idempotency("orders", config)
    asynchronous = service.aio.get_or_create_idempotency("orders", config)

    def order(seconds: float) -> str:
        fencing = current_claim().fencing
        os.write(log, f"{current_claim().key} {fencing} {os.getpid()} {time.monotonic()}\n".encode())
        time.sleep(seconds)  # stands for a call that takes so long
        return f"placed by {os.getpid()}"

    async def order_async(seconds: float) -> str:
        return await asyncio.to_thread(order, seconds)

    pipe.send("ready")
    loop = asyncio.new_event_loop()
    with suppress(EOFError):
        while True:
            key, seconds = pipe.recv()
            try:
                if form == "sync":
                    pipe.send(once.execute(key, order, seconds))
                else:
                    pipe.send(loop.run_until_complete(asynchronous.execute(key, order_async, seconds)))
            except ResilienceError as error:
                pipe.send(error)


class Caller:
    """A process that makes calls."""

    def __init__(self, *arguments: Any) -> None:
        self.pipe, theirs = forkserver.Pipe()
        self.process = forkserver.Process(target=place, args=(*arguments, theirs), daemon=True)
        self.process.start()
        assert self.said(60) == "ready"

    def call(self, key: str, seconds: float = 0.0) -> None:
        self.pipe.send((key, seconds))

    def said(self, seconds: float = 10) -> Any:
        assert self.pipe.poll(seconds), f"it said nothing for {seconds} s"
        return self.pipe.recv()

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def close(self) -> None:
        self.process.kill()
        self.process.join(10)


class Fleet:
    """Callers of one resource, and the runs of the function in all of them."""

    def __init__(self, url: str, prefix: str, folder: Path) -> None:
        self.url, self.prefix, self.folder = url, prefix, folder
        self.callers: list[Caller] = []

    def callers_of(self, number: int, config: IdempotencyConfig, form: str = "sync") -> list[Caller]:
        made = [Caller(self.url, self.prefix, config, form, str(self.folder)) for _ in range(number)]
        self.callers += made
        return made

    def runs(self) -> list[tuple[str, int, int, float]]:
        """Key, fencing number, process and time of each run, in order."""
        path = self.folder / "runs"
        lines = path.read_text().splitlines() if path.exists() else []
        parts = [line.rsplit(" ", 3) for line in lines]
        return [(key, int(fencing), int(pid), float(at)) for key, fencing, pid, at in parts]

    def until_runs(self, number: int) -> None:
        poll(lambda: len(self.runs()) >= number, f"{number} runs")

    def close(self) -> None:
        for caller in self.callers:
            caller.close()


Make = Callable[[Server], Fleet]


@pytest.fixture
def fleets(prefix: str, tmp_path: Path) -> Iterator[Make]:
    made: list[Fleet] = []

    def make(server: Server) -> Fleet:
        made.append(Fleet(server.url, prefix, tmp_path))
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()


def test_eight_processes_with_one_key_run_the_function_once_and_all_return_the_same(
    server: Server, fleets: Make, form: str
) -> None:
    fleet = fleets(server)
    callers = fleet.callers_of(8, IdempotencyConfig(), form)
    for number in range(20):
        for caller in callers:
            caller.call(f"order-{number}", 0.02)
        said = {caller.said() for caller in callers}
        assert len(said) == 1
        assert said.pop().startswith("placed by")

    assert Counter(run[0] for run in fleet.runs()) == {f"order-{number}": 1 for number in range(20)}


def test_waiters_are_woken_when_the_call_is_over_and_ask_rarely_until_then(server: Server, fleets: Make) -> None:
    fleet = fleets(server)
    callers = fleet.callers_of(4, IdempotencyConfig())
    for caller in callers:
        caller.call("warm-up")
    for caller in callers:
        caller.said()
    before = server.client().info("commandstats")["cmdstat_evalsha"]["calls"]
    waits: list[float] = []
    for number in range(5):
        callers[0].call(f"order-{number}", 0.45)
        fleet.until_runs(number + 2)
        for caller in callers[1:]:
            caller.call(f"order-{number}", 0.45)
        callers[0].said()
        ended = time.monotonic()
        for caller in callers[1:]:
            caller.said()
        waits.append(time.monotonic() - ended)
    asked = server.client().info("commandstats")["cmdstat_evalsha"]["calls"] - before

    assert sorted(waits)[2] < 0.3  # the slow poll alone would take half a second and more
    assert asked < 5 * (2 + 3 * 4) + 60  # with heartbeats


@pytest.mark.fault("the owner of a key is killed", "another takes over when its lease is over, and not before")
def test_a_killed_owner_is_taken_over_when_its_lease_ends_and_not_before(server: Server, fleets: Make) -> None:
    fleet, lease = fleets(server), 1.5
    owner, waiter = fleet.callers_of(2, IdempotencyConfig(lease=lease, fingerprint=nothing))
    owner.call("order-7", 60)
    fleet.until_runs(1)
    waiter.call("order-7", 0)
    owner.close()
    killed = time.monotonic()

    assert waiter.said().startswith("placed by")
    first, second = fleet.runs()
    assert second[1] > first[1]
    assert second[3] - first[3] > lease - 0.05
    assert second[3] - killed < lease + BUSY


def test_the_lease_of_a_long_call_is_renewed_while_its_process_lives(server: Server, fleets: Make) -> None:
    fleet = fleets(server)
    owner, waiter = fleet.callers_of(2, IdempotencyConfig(lease=1.0))
    owner.call("order-7", 3.0)
    fleet.until_runs(1)
    waiter.call("order-7", 3.0)

    assert waiter.said() == owner.said()
    assert len(fleet.runs()) == 1


@pytest.mark.fault(
    "the owner of a key stands still for longer than its lease",
    "whoever took over decides; the late result changes nothing",
)
def test_who_stood_still_for_longer_than_its_lease_changes_nothing_any_more(server: Server, fleets: Make) -> None:
    fleet = fleets(server)
    owner, other = fleet.callers_of(2, IdempotencyConfig(lease=1.0))
    owner.call("order-7", 0.5)
    fleet.until_runs(1)
    owner.signal(signal.SIGSTOP)
    other.call("order-7", 0.5)
    by_other = other.said()
    owner.signal(signal.SIGCONT)
    owner.said()
    owner.call("order-7", 0.5)

    assert owner.said() == by_other
    assert [run[1] for run in fleet.runs()] == sorted({run[1] for run in fleet.runs()})
    assert len(fleet.runs()) == 2


@pytest.mark.fault("FLUSHALL under claims", "fencing numbers still grow")
def test_fencing_numbers_grow_though_redis_is_flushed(own_server: Server, fleets: Make) -> None:
    fleet = fleets(own_server)
    (caller,) = fleet.callers_of(1, IdempotencyConfig())
    for number in range(5):
        caller.call("order-7")
        caller.said()
        own_server.client().flushall()
        fleet.until_runs(number + 1)

    fencings = [run[1] for run in fleet.runs()]
    assert fencings == sorted(set(fencings))
    assert len(fencings) == 5


@pytest.mark.fault("a call ends while Redis is away", "its result is told when Redis is back, and replayed")
def test_a_result_that_redis_could_not_be_told_is_told_when_it_is_back(own_server: Server, fleets: Make) -> None:
    fleet = fleets(own_server)
    owner, other = fleet.callers_of(2, IdempotencyConfig(lease=2.0, wait_timeout=60))
    owner.call("order-7", 1.0)
    fleet.until_runs(1)
    own_server.kill()
    first = owner.said()
    own_server.start()

    def replayed() -> bool:
        other.call("order-7", 1.0)
        said = other.said(20)
        return not isinstance(said, ResilienceError)

    poll(lambda: own_server.client().hget(f"{fleet.prefix}:{{orders}}:idempotency:order-7", "state") == "done", "word")
    poll(replayed, "the other process to find Redis again")
    assert first.startswith("placed by")
    assert len(fleet.runs()) == 1


@pytest.mark.fault(
    "a call under a key while Redis is away",
    "`StoreUnavailableError`, and the call is not made, unless `on_outage` says otherwise",
)
def test_without_redis_a_call_is_not_made_and_says_so(own_server: Server, prefix: str) -> None:
    own_server.kill()
    with ResilienceService.from_url(own_server.url, prefix=prefix) as service:
        once = service.get_or_create_idempotency("orders")
        with pytest.raises(ResilienceError, match=r"Redis|Connection refused|connect"):
            once.execute("order-7", pytest.fail)


def test_a_lost_reply_makes_no_second_call_and_holds_the_key_for_nobody(
    server: Server, proxy: Proxy, prefix: str
) -> None:
    runs: list[int] = []
    with (
        ResilienceService.from_url(f"redis://127.0.0.1:{proxy.port}/0", prefix=prefix) as service,
        ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT) as other,
    ):
        once = service.get_or_create_idempotency("orders")
        once.execute("warm-up", lambda: None)
        proxy.treatment = swallow
        with pytest.raises(ResilienceError):
            once.execute("order-7", runs.append, 1)
        proxy.treatment = pass_on
        theirs = other.get_or_create_idempotency("orders", IdempotencyConfig(wait_timeout=20, lease=30))
        began = time.monotonic()
        theirs.execute("order-7", runs.append, 1)

    assert runs == [1]
    assert time.monotonic() - began < 15  # not only when the lease has ended


def test_one_trip_to_claim_and_one_to_complete(counted: Server, prefix: str) -> None:
    shas = {scripts.load(f"idempotency_{name}").sha: name for name in ("claim", "renew", "settle")}
    with ResilienceService.from_url(counted.url, prefix=prefix, command_timeout=PATIENT) as service:
        once = service.get_or_create_idempotency("orders")
        for number in range(10):
            once.execute(f"order-{number}", lambda: None)
        for number in range(10):
            once.execute(f"order-{number}", lambda: None)
        asked = Counter(shas[command[1]] for command in commands_at(counted) if command[1:2] and command[1] in shas)

    assert asked == {"claim": 20, "settle": 10}


@pytest.mark.fault("processes are killed at random under keys", "no key runs twice at once")
def test_processes_that_are_killed_at_random_never_run_a_key_twice_at_once(server: Server, fleets: Make) -> None:
    """Whoever runs a key after another has a greater number, and began after the other's lease or its end."""
    fleet, source, lease = fleets(server), random.Random(8), 1.0
    callers = fleet.callers_of(6, IdempotencyConfig(lease=lease, wait_timeout=60))
    died: dict[int, float] = {}
    end = time.monotonic() + 6
    for number in range(1000):
        if time.monotonic() > end:
            break
        for caller in callers:
            caller.call(f"order-{number}", source.uniform(0, 0.05))
        victim = source.randrange(6)
        time.sleep(source.uniform(0, 0.03))  # some moment
        died[callers[victim].process.pid or 0] = time.monotonic()
        callers[victim].close()
        for index, caller in enumerate(callers):
            if index != victim:
                assert caller.said(20)
        callers[victim : victim + 1] = fleet.callers_of(1, IdempotencyConfig(lease=lease, wait_timeout=60))

    runs = fleet.runs()
    assert len(died) >= 5
    for key in {run[0] for run in runs}:
        of_key = [run for run in runs if run[0] == key]
        assert [run[1] for run in of_key] == sorted({run[1] for run in of_key})
        for earlier, later in pairwise(of_key):
            assert earlier[2] in died  # only a killed call is made again
            assert later[3] - earlier[3] > lease - 0.05


def test_a_cancelled_task_keeps_its_key_and_one_that_waits_leaves_nothing(server: Server, prefix: str) -> None:
    async def main() -> None:
        async with ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT).aio as service:
            once = service.get_or_create_idempotency("orders", IdempotencyConfig(lease=2.0))
            forever = asyncio.Event()
            task = asyncio.create_task(once.execute("order-7", forever.wait))
            while not once._core.known()["running_here"]:  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0.001)
            waiter = asyncio.create_task(once.execute("order-7", forever.wait))
            await asyncio.sleep(0.05)
            for one in (waiter, task):
                one.cancel()
                with suppress(asyncio.CancelledError):
                    await one
        with ResilienceService.from_url(server.url, prefix=prefix, worker_id="another") as another:
            theirs = another.get_or_create_idempotency("orders", IdempotencyConfig(on_conflict="raise"))
            with pytest.raises(IdempotencyConflictError) as refused:
                theirs.execute("order-7", time.time)
            assert 0 < refused.value.retry_after <= 2.0

    asyncio.run(main())
