"""The fleet: the processes that were seen lately, on which hosts, in which version, and how healthy they are."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from shared_resilience.commands import Command, Operation, Reply, Source, State, Step
from shared_resilience.roster import sight, time_to_live
from shared_resilience.version import VERSION

FIELDS = ("host", "pid", "version", "health")
DAY_MS = 86_400_000
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Worker:
    """A process of the fleet: its id, host, process id, version of the library, and seconds since it was seen.

    `health` is "up", "degraded" or "down", or "unknown" while it checks nothing.
    """

    id: str
    host: str
    pid: int
    version: str
    seen: float
    health: str


def enlist(states: tuple[State, ...], now: int, horizon: int, worker: str, *known: str) -> Step:
    """Twin of `fleet_enlist.lua`."""
    roster = sight(states[0], now, horizon, (worker,))
    details = dict(cast("Mapping[str, str]", states[1] or {}))
    details |= {f"{worker}.{field}": value for field, value in zip(FIELDS, known, strict=True)}
    if len(details) > len(FIELDS) * (2 * len(roster) + 16):
        details = {field: value for field, value in details.items() if field.rpartition(".")[0] in roster}
    return Step((roster, details), (time_to_live(horizon), DAY_MS), (len(roster),))


def workers(states: tuple[State, ...], now: int) -> Step:
    """Twin of `fleet_workers.lua`."""
    roster, details = cast("Mapping[str, int]", states[0] or {}), cast("Mapping[str, str]", states[1] or {})
    reply: list[int | str] = []
    for worker in sorted(roster, key=lambda one: (roster[one], one), reverse=True):
        known = [details.get(f"{worker}.{field}", "") for field in FIELDS]
        reply += [worker, max(0, now - roster[worker]), *known]
    return Step(states, (None, None), tuple(reply))


def _as_sent(reply: Reply, source: Source) -> Reply:
    return reply


def _workers(reply: Reply, source: Source) -> list[Worker]:
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in reply]
    found = []
    for worker, seen, host, pid, version, health in zip(*(texts[field::6] for field in range(6)), strict=True):
        its_pid = int(pid) if pid.isdecimal() else 0
        found.append(Worker(worker, host, its_pid, version, int(seen) / 1e6, health or UNKNOWN))
    return found


ENLIST: Operation[Reply] = Operation("fleet_enlist", enlist, _as_sent)
WORKERS: Operation[list[Worker]] = Operation("fleet_workers", workers, _workers)


class Roll:
    """The list of the fleet's workers under one prefix, and what this process tells of itself."""

    def __init__(self, prefix: str) -> None:
        roster = f"{prefix}:fleet"
        self._keys = (roster, f"{prefix}:{{{roster}}}:workers")  # one slot of a cluster for both
        self.health = UNKNOWN

    def enlist(self, worker: str, horizon_us: int) -> Command[Reply]:
        """The command that says that `worker`, which is this process, is alive."""
        details = (socket.gethostname(), str(os.getpid()), VERSION, self.health)
        return Command(ENLIST, self._keys, (horizon_us, worker, *details))

    def workers(self) -> Command[list[Worker]]:
        """The command that asks who is alive."""
        return Command(WORKERS, self._keys, ())
