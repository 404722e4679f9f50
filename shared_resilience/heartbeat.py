"""Once a second and process: who is alive, which resources are in use with which numbers, and what was counted.

The heartbeat has no thread of its own. It rides, as one pipeline, on the first command that finds it due; the other
callers of the process go on meanwhile. It brings back the number of live workers of each resource, which is what a
process divides limits by when Redis is away.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from shared_resilience.commands import Command, Operation, Reply, Source, State, Step
from shared_resilience.fleet import Roll
from shared_resilience.integers import added_to_count, to_integer
from shared_resilience.keys import ResourceKeys
from shared_resilience.noted import Noted
from shared_resilience.overrides import Overrides
from shared_resilience.roster import sight, time_to_live

INTERVAL = 1.0
FLEET_BEATS_PER_SECOND = 1000
LIVE_FOR_INTERVALS, LIVE_AT_LEAST = 5, 5.0
USED_WITHIN = 60.0
DAY_MS = 86_400_000
DECIDED_LOCALLY = "store.decided_locally"
"""Counts the commands for a resource that were decided without Redis."""


class Passenger(Protocol):
    """What rides on the heartbeats of a resource."""

    def command(self, counted: Mapping[str, int]) -> Command[Any] | None:
        """What is to be told beside what was `counted` since the last heartbeat; None: nothing."""

    def lost(self, command: Command[Any]) -> None:
        """Its command has certainly not run."""


class Resource:
    """A resource as this process uses it: its keys, what was counted, the numbers in force, the fleet's view."""

    def __init__(self, prefix: str, name: str) -> None:
        self.name = name
        self.keys = ResourceKeys(prefix, name)
        self.numbers: dict[str, float] = {}
        self.passengers: list[Passenger] = []
        self.restart()

    def configure(self, numbers: Mapping[str, float]) -> None:
        """Adds numbers in force. A heartbeat on its way keeps those that it has begun to read."""
        self.numbers = {**self.numbers, **numbers}

    def restart(self) -> None:
        """As in a process that has never used it."""
        self._taking = threading.Lock()
        self._noted: Noted[str] = Noted()
        self._reported: Counter[str] = Counter()
        self.workers: int | None = None
        self.fleet: dict[str, int] = {}
        self.overrides: dict[str, str] = {}
        self.paused_us = 0
        self.paused_until = 0.0
        self.last_used = float("-inf")

    def count(self, field: str, number: int = 1) -> None:
        """`number` more of `field`, here and, with the next heartbeat, in the fleet's counters."""
        if number == 1:
            self._noted.note(field)
        else:
            self._noted.add({field: number})

    def counted(self) -> dict[str, int]:
        """What this process has counted."""
        with self._taking:
            return dict(self._reported + self._noted.seen())

    def statistics(self, family: str) -> dict[str, object]:
        """What this process and, as of the last heartbeat, the fleet have counted of a kind of component."""

        def of_family(counters: Mapping[str, int]) -> dict[str, int]:
            return {field: number for field, number in counters.items() if field.startswith(family + ".")}

        return {"local": of_family(self.counted()), "fleet": of_family(self.fleet), "live_workers": self.workers}

    def take_pending(self) -> dict[str, int]:
        """What is to be reported; it counts as reported now."""
        with self._taking:
            pending = self._noted.take()
            self._reported.update(pending)
            return pending

    def put_back(self, pending: Mapping[str, int]) -> None:
        """What was not reported after all."""
        with self._taking:
            self._reported.subtract(pending)
            self._noted.add(pending)


class Heartbeat:
    """When the next heartbeat is due, what it sends, and what it brought back."""

    def __init__(self, prefix: str, worker_id: str) -> None:
        self.roll = Roll(prefix)
        self.whole_fleet = Resource(prefix, "fleet")
        """Stands for what is asked of no resource."""
        self._resources_key = f"{prefix}:resources"
        self._resources: dict[str, Resource] = {}
        self._prefix = prefix
        self.restart(worker_id)

    def restart(self, worker_id: str) -> None:
        """As in a fresh process."""
        self.worker_id = worker_id
        self.fleet_size: int | None = None
        self._lock = threading.Lock()
        self._next = self._outlasting_until = float("-inf")
        for resource in self._resources.values():
            resource.restart()

    def resource(self, name: str) -> Resource:
        """The resource `name`, from now on part of every heartbeat while it is in use."""
        with self._lock:
            return self._resources.setdefault(name, Resource(self._prefix, name))

    def resources(self) -> list[Resource]:
        with self._lock:
            return list(self._resources.values())

    def outlast(self, now: float) -> None:
        """Redis is back: until all had time to say that they are alive, there are as many as before."""
        self._outlasting_until = now + LIVE_AT_LEAST

    def counted(self, field: str) -> tuple[int, int]:
        """What this process and, as of the last heartbeat, the fleet have counted of `field` over all resources."""
        resources = self.resources()
        return sum(r.counted().get(field, 0) for r in resources), sum(r.fleet.get(field, 0) for r in resources)

    def workers(self, resource: Resource, seen: int, now: float) -> int:
        """How many are alive at `resource`, where `seen` have said so."""
        return max(seen, resource.workers or 0) if now < self._outlasting_until else seen

    def due(self, now: float) -> bool:
        return now >= self._next

    def begin(self, now: float, force: bool = False) -> Beat | None:
        """The beat that is due, for one caller; None for all others until the next one is due."""
        with self._lock:
            if now < self._next and not force:
                return None
            interval = self._interval()
            self._next = now + interval
            horizon_us = self._horizon_us(interval)
            used = [r for r in self._resources.values() if now - r.last_used <= USED_WITHIN]
        return Beat(self, used, horizon_us, self._resources_key)

    def enlist(self) -> Command[Reply]:
        """The command that says that this process is alive."""
        return self.roll.enlist(self.worker_id, self._horizon_us(self._interval()))

    def _interval(self) -> float:
        return max(INTERVAL, (self.fleet_size or 1) / FLEET_BEATS_PER_SECOND)

    def _horizon_us(self, interval: float) -> int:
        return int(max(LIVE_AT_LEAST, LIVE_FOR_INTERVALS * interval) * 1e6)


class Beat:
    """One heartbeat on its way: the commands, and what to do with their replies or their loss."""

    def __init__(self, heartbeat: Heartbeat, resources: list[Resource], horizon_us: int, resources_key: str) -> None:
        self._heartbeat = heartbeat
        self.resources = resources
        self._pending = [resource.take_pending() for resource in resources]
        worker = heartbeat.worker_id
        self.commands: list[Command[Any]] = [heartbeat.roll.enlist(worker, horizon_us)]
        if resources:
            names = tuple(resource.keys.name for resource in resources)
            self.commands.append(Command(ENROL, (resources_key,), (DAY_MS * 1000, *names)))
        for resource, pending in zip(resources, self._pending, strict=True):
            keys = resource.keys
            numbers = [text for field, number in resource.numbers.items() for text in (field, f"{number:.15g}")]
            counts = [item for pair in pending.items() for item in pair]
            args = (worker, horizon_us, len(resource.numbers), *numbers, *counts)
            self.commands.append(Command(BEAT, (keys.workers, keys.config, keys.stats, keys.overrides), args))
        self._passengers: list[tuple[Passenger, Command[Any]]] = []
        for resource, pending in zip(resources, self._pending, strict=True):
            for passenger in resource.passengers:
                command = passenger.command(pending)
                if command is not None:
                    self._passengers.append((passenger, command))
                    self.commands.append(command)

    def arrived(self, replies: Sequence[Reply], now: float) -> None:
        """Takes in the fleet's view; `now` is this process's own time."""
        self._heartbeat.fleet_size = int(replies[0][0])
        beats = replies[2 : 2 + len(self.resources)]
        for resource, reply in zip(self.resources, beats, strict=True):
            resource.workers = self._heartbeat.workers(resource, int(reply[0]), now)
            resource.paused_us = int(reply[1])
            resource.paused_until = now + resource.paused_us / 1e6
            split = 3 + 2 * int(reply[2])
            counters, overrides = reply[3:split], reply[split:]
            resource.fleet = {_text(field): to_integer(_text(value)) or 0 for field, value in _pairs(counters)}
            resource.overrides = {_text(field): _text(value) for field, value in _pairs(overrides)}

    def lost(self, ran_not: bool) -> None:
        """Keeps the counts for the next beat if they certainly did not arrive; counting twice would be worse."""
        if ran_not:
            for resource, pending in zip(self.resources, self._pending, strict=True):
                resource.put_back(pending)
            for passenger, command in self._passengers:
                passenger.lost(command)


def _text(value: int | str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _pairs(flat: Reply) -> Iterable[tuple[int | str | bytes, int | str | bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _as_sent(reply: Reply, source: Source) -> Reply:
    return reply


def beat(states: tuple[State, ...], now: int, worker: str, horizon: int, fields: int, *rest: int | str) -> Step:
    """Twin of `heartbeat.lua`."""
    workers, config, stats, stored = states
    last_field = 2 * fields
    workers = sight(workers, now, horizon, (worker,))
    config = {**_hash(config), **dict(zip(rest[:last_field:2], rest[1:last_field:2], strict=True))}
    stats = dict(_hash(stats))
    for field, increment in zip(rest[last_field::2], rest[last_field + 1 :: 2], strict=True):
        stats[field] = added_to_count(stats.get(field), int(increment))
    overrides = Overrides(stored)
    counters = [item for pair in stats.items() for item in pair]
    changes = [item for pair in overrides.fields.items() for item in pair]
    reply = (len(workers), overrides.paused(now), len(stats), *counters, *changes)
    states = (workers, config or None, stats or None, overrides.stored)
    return Step(states, (time_to_live(horizon), DAY_MS, DAY_MS, overrides.ttl), reply)


def enrol(states: tuple[State, ...], now: int, horizon: int, *members: str) -> Step:
    """Twin of `heartbeat_roster.lua`."""
    roster = sight(states[0], now, horizon, members)
    return Step((roster,), (time_to_live(horizon),), (len(roster),))


def _hash(state: State) -> Mapping[int | str, int | str]:
    return cast("Mapping[int | str, int | str]", state or {})


BEAT: Operation[Reply] = Operation("heartbeat", beat, _as_sent)
ENROL: Operation[Reply] = Operation("heartbeat_roster", enrol, _as_sent)
