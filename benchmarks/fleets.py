"""One hot key and more and more processes, each trip by trip or with leases of tokens."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import repeat
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.ground import KEY, Ground
from benchmarks.limiters import LEASE, PLENTY, granted
from benchmarks.rounds import Case, Effort, UnfitError
from benchmarks.rows import OURS, PER_SECOND, SERVER, Row
from shared_resilience import TokenBucket

COUNTS = (1, 2, 4, 8)
TRIPS, LEASED = "a trip for each decision", "leases"
STARTED_TOGETHER = 0.05
READY = "ready"
_STEP = 100


class Order(NamedTuple):
    """What a process is to do: until when, on `time.perf_counter`, which all processes of a machine share."""

    begin: float
    end: float
    leased: bool


def work(port: int, orders: Connection) -> None:
    """The life of a process: decides as ordered and answers how often; ends with its orders."""
    with Ground(port).service() as service:
        make = service.get_or_create_rate_limiter
        bucket = TokenBucket(PLENTY.amount, PLENTY.amount / PLENTY.seconds)
        limiters = {False: make("hot", bucket), True: make("hot, leased", bucket, lease_tokens=LEASE)}
        for limiter in limiters.values():
            limiter.try_acquire(KEY)
        orders.send(READY)
        while order := orders.recv():
            orders.send(_decide(limiters[order.leased].try_acquire, order))


def _decide(call: Callable[[str], Any], order: Order) -> int:
    """How many decisions there were; -1 if one of them was not what it should be."""
    time.sleep(max(0.0, order.begin - time.perf_counter()))
    decisions = 0
    while time.perf_counter() < order.end:
        for _ in repeat(None, _STEP):
            answer = call(KEY)
        if not granted(answer):
            return -1
        decisions += _STEP
    return decisions


def name(processes: int, leased: bool) -> str:
    return f"{LEASED if leased else TRIPS}, {processes} process{'es' if processes > 1 else ''}"


def measure(ground: Ground, effort: Effort, chosen: Callable[[Case], bool]) -> list[Row]:
    """All on the one core that the server has too."""
    ground.clear()
    with ExitStack() as stack:
        fleet = [_start(ground, stack) for _ in range(max(COUNTS))]
        for process in fleet:
            process.recv()  # it is ready
        ways = [(leased, count) for leased in (False, True) for count in COUNTS]
        wanted = [way for way in ways if chosen(Case(OURS, name(way[1], way[0]), bool))]
        return [_row(ground, fleet[:count], leased, effort.seconds) for leased, count in wanted]


def _start(ground: Ground, stack: ExitStack) -> Connection:
    """A process that waits for orders, and ends when it is told None."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=work, args=(ground.port, there), daemon=True)
    process.start()
    there.close()
    stack.callback(process.join, 10)
    stack.callback(here.send, None)
    return here


def _row(ground: Ground, fleet: list[Connection], leased: bool, seconds: float) -> Row:
    begin = time.perf_counter() + STARTED_TOGETHER * len(fleet)
    for process in fleet:
        process.send(Order(begin, begin + seconds, leased))
    time.sleep(max(0.0, begin - time.perf_counter()))
    server = ground.cpu_us()
    decisions = [process.recv() for process in fleet]
    server = ground.cpu_us() - server
    if min(decisions) < 0:
        raise UnfitError(f"{name(len(fleet), leased)}: a decision was refused, or made without Redis")
    total = sum(decisions)
    return Row(OURS, name(len(fleet), leased), {PER_SECOND: total / seconds, SERVER: server / total})
