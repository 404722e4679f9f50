"""The evidence path: what this process has seen goes in, the fleet's view comes out, with one script.

Evidence only informs, so it is gathered here and sent on the entry of a call whose view is older than the sync
interval: one caller pays, the others go on meanwhile, and there is no thread. What may change the decision now is sent
before its caller goes on: one report at a time, and what is noted meanwhile joins the next one.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, cast

from shared_resilience.backends import Backend, OnOutage, Ticket
from shared_resilience.backends.process import Process
from shared_resilience.circuit import Circuit
from shared_resilience.circuit_commands import View, view_of
from shared_resilience.commands import Argument, Arguments, Command, Operation, State, Step
from shared_resilience.heartbeat import LIVE_AT_LEAST, Resource
from shared_resilience.integers import MILLION
from shared_resilience.overrides import Overrides

LIVE_FOR_MS = int(LIVE_AT_LEAST * 1000)
SYNCS_PER_SECOND = 2000
"""What one resource may cost Redis, however large the fleet."""

PATIENCE = 5.0
"""Seconds after which a caller that waits for another's report sends one itself."""

Counts = tuple[int, int, int]
"""Calls, failures among them, slow calls among them."""

NOTHING: Counts = (0, 0, 0)

News = list[tuple[str, Mapping[str, object]]]
"""Names and details of events."""


def report(states: Sequence[State], now: int, *args: Argument) -> Step:
    """Twin of `evidence.lua`."""
    *told, worker, generation, calls, failures, slow, draw = args
    circuit = Circuit(states[1], now, Overrides(states[0]), told)
    workers, live = states[2], cast("Mapping[str, int]", states[2] or {})
    unknown = circuit.numbers["min_workers"] > 1 and str(worker) not in live
    if unknown:
        workers = live = {**live, str(worker): now}
    counting = circuit.state == "closed" and circuit.mode != "forced_closed"
    counted = counting and generation == circuit.generation
    if counted and int(calls) > 0:
        circuit.add(str(worker), {"calls": int(calls), "failures": int(failures), "slow": int(slow)})
        if circuit.is_tripped(len(live)):
            circuit.open("tripped", int(draw))
    step = circuit.step(int(counted), workers)
    return step._replace(ttls=(*step.ttls[:2], LIVE_FOR_MS if unknown else None))


EVIDENCE: Operation[View] = Operation("evidence", report, view_of)


def draw() -> int:
    """A random number for the jitter of an open time: scripts draw none, so that their twins agree."""
    return random.randint(0, MILLION)


class Tally:
    """What was seen under one generation and has not been told. Changed under the lock of its `Evidence`."""

    __slots__ = ("calls", "failures", "field", "generation", "plain", "since", "slow", "touched")

    def __init__(self, generation: int, plain: bool, now: float, field: str) -> None:
        self.generation = generation
        self.plain = plain
        """Whether a call that returns is one call more and nothing else."""
        self.field = field
        """As what its calls stand in the fleet's counters."""
        self.calls = self.failures = self.slow = 0
        self.since = self.touched = now
        """When it was empty, and when the last call was counted that failed, or that was timed or judged."""

    def take(self, now: float) -> Counts:
        counts = self.calls, self.failures, self.slow
        self.calls = self.failures = self.slow = 0
        self.since = self.touched = now
        return counts


def of_the_window(seen: Counts, since: float, touched: float, window: float) -> Counts:
    """What `seen` says of the window: all of it, or a part if the last was seen before; all times are seconds ago.

    A worker that calls rarely tells late of what it saw. Were that dropped, the failures that are told at once would
    seem to be all that there is; were it told in full, the worker would seem to call more often than it does.
    """
    if touched <= window:
        return seen
    share, chance = window / since, random.random()
    calls, failures, slow = (math.floor(count * share + chance) for count in seen)
    return calls, failures, slow


def found_again(view: View, before: View | None) -> bool:
    """Whether Redis decides again, after this process did alone."""
    return before is not None and before.source == "local" and view.source == "redis"


def _sum(one: Counts, other: Counts) -> Counts:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


class Passenger(Protocol):
    """Whose evidence it is: tells the scripts its numbers, and draws the consequences of a view."""

    def arguments(self) -> Arguments:
        """The numbers of the configuration, as scripts are told them."""

    def arrived(self, view: View, before: View | None, began: float) -> float:
        """Takes in a view that was asked for at `began`, under the lock; when the next one is due."""

    def news(self, view: View, taken: bool) -> News:
        """What listeners are to be told, under the lock; a view that came too late was not `taken` in."""


class Evidence:
    """The evidence of one resource in this process, for callers of both forms, and the view that it brought.

    `due` is when a command is due, by this process's clock; `tally` is where calls are counted now, None while none
    may pass. Both are read by every call, without the lock. What was seen more than `window` seconds ago is told as
    far as it says something of the window.
    """

    def __init__(
        self, resource: Resource, process: Process, interval: float, window: float, passenger: Passenger
    ) -> None:
        self.resource = resource
        self.monotonic = process.clock.monotonic
        self._process = process
        self._interval = interval
        self.window = window
        self._passenger = passenger
        self.restart()

    def restart(self) -> None:
        """As in a process that has seen nothing."""
        self.lock = threading.RLock()  # a garbage collection may leave a block in the middle of anything
        self.due = float("-inf")
        self.tally: Tally | None = None
        self.view: View | None = None
        self._owed: Counts = NOTHING
        self._asked = self._answered = self._crossed = 0
        self._noted = self._told = 0
        self._waiting: dict[Hashable, list[Ticket]] = {}

    def interval(self) -> float:
        """Seconds for which a view is fresh; more in a large fleet."""
        return max(self._interval, (self.resource.workers or 1) / SYNCS_PER_SECOND)

    def claim(self) -> bool:
        """Whether this caller is the one that sends the command that is due."""
        with self.lock:
            now = self.monotonic()
            if now < self.due:
                return False
            self.due = now + self.interval()
            return True

    async def run(self, backend: Backend, command: Command[View], on_outage: OnOutage = "local") -> View:
        """Runs a command, and takes in its view unless there is a later one."""
        with self.lock:
            self._asked += 1
            number, began = self._asked, self.monotonic()
            if self.view is not None:  # else all callers have to wait for the first
                self.due = began + self.interval()
        view = await backend.run(command, self.resource, on_outage)
        with self.lock:
            taken = self._is_later(number, view)
            if taken:
                self._take_in(number, view, began)
            news = self._passenger.news(view, taken)
        for name, details in news:
            self._process.events.emit(name, self.resource.name, **details)
        return view

    def _is_later(self, number: int, view: View) -> bool:
        """Whether the answer to the request `number` is later than the view that there is.

        Requests that crossed may have run in any order, of which the generation tells more than their own order.
        """
        before = self.view
        if before is None or number > self._crossed:
            return True
        return (view.generation, number) > (before.generation, self._answered)

    def _take_in(self, number: int, view: View, began: float) -> None:
        before, self.view = self.view, view
        self._answered, self._crossed = number, self._asked
        if before is None or before.generation != view.generation:
            self._owed = NOTHING
        due = self._passenger.arrived(view, before, began)
        self.due = began if self._owed[0] else due

    async def sync(self, backend: Backend) -> None:
        """Tells what was seen until now, and brings the view up to date."""
        with self.lock:
            before, noted, seen = self.view, self._noted, self._owed
            self._owed = NOTHING
            if self.tally is not None:
                seen = _sum(seen, self.taken(self.tally))
        generation = before.generation if before is not None else 0
        view = await self.run(backend, self._command(generation, seen))
        with self.lock:
            self._told = max(self._told, noted)
            if found_again(view, before) and not view.result:
                self.owe(seen, view)

    def has_untold(self) -> bool:
        """Whether anything was seen that nobody was told of."""
        return bool(self._owed[0] or (self.tally is not None and self.tally.calls))

    async def tell(self, backend: Backend) -> None:
        """Returns when all that was noted until now has been told. Who comes meanwhile shares the next report.

        Whoever has waited in vain takes over: the one who reports may have been interrupted, or wait for us.
        """
        with self.lock:
            self._noted += 1
            mine = self._noted
        party = backend.party()
        while self._told < mine:
            ticket = self._board(party, backend)
            if ticket is None:
                await backend.finish(self._report(party, backend))
            elif not await ticket.wait(PATIENCE):
                self._land(party)

    async def _report(self, party: Hashable, backend: Backend) -> None:
        try:
            await self.sync(backend)
        finally:
            self._land(party)

    def _board(self, party: Hashable, backend: Backend) -> Ticket | None:
        """None: this caller sends the report. Else a ticket that is woken when the one in flight has been answered."""
        with self.lock:
            waiting = self._waiting.get(party)
            if waiting is None:
                self._waiting[party] = []
                return None
            ticket = backend.ticket()
            waiting.append(ticket)
            return ticket

    def _land(self, party: Hashable) -> None:
        with self.lock:
            waiting = self._waiting.pop(party, [])
        for ticket in waiting:
            ticket.wake()

    def owe(self, counts: Counts, view: View) -> None:
        """Has what was seen while Redis was away told of the circuit that was found there. Under the lock."""
        now = self.view
        if counts[0] and view.state == "closed" and now is not None and now.generation == view.generation:
            self._owed = _sum(self._owed, counts)
            self.due = float("-inf")

    def taken(self, tally: Tally) -> Counts:
        """What `tally` holds, which is now in the fleet's counters, as far as it is of the window. Under the lock."""
        now = self.monotonic()
        touched, since = tally.touched, tally.since
        seen = tally.take(now)
        for field, number in zip((tally.field, "failures", "slow"), seen, strict=True):
            if number:
                self.resource.count(f"breaker.{field}", number)
        return of_the_window(seen, now - since, now - touched, self.window)

    def gathered_alone(self) -> View:
        """The circuit as this process saw it while Redis was away."""
        return view_of(self._process.local.execute(self._command(0, NOTHING)), "local")

    def _command(self, generation: int, counts: Counts) -> Command[View]:
        keys = self.resource.keys
        worker = self._process.heartbeat.worker_id
        args = (*self._passenger.arguments(), worker, generation, *counts, draw())
        return Command(EVIDENCE, (keys.overrides, keys.breaker, keys.workers), args)
