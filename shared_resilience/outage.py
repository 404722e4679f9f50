"""A circuit breaker while Redis is away: with what it goes on alone, and what it holds to afterwards."""

from __future__ import annotations

import math

from shared_resilience.backends.process import Process
from shared_resilience.circuit_commands import View
from shared_resilience.integers import MILLION


class Outage:
    """What one process keeps of the fleet's circuit, and the circuit that it opened alone and holds open."""

    def __init__(self, process: Process, key: str) -> None:
        self._process = process
        self._key = key
        self._kept = 0
        self.held_until = -math.inf
        self._held_under = 0

    def keep(self, view: View) -> None:
        """Has this process begin with the fleet's state should Redis be lost."""
        self._kept = view.generation
        fields = {"state": view.state, "generation": str(view.generation)}
        if view.mode:
            fields["mode"] = view.mode
        elif view.state != "closed":
            now, left = self._process.local.now_us(), _us(view.retry_after)
            times = {"opened_at_us": now - _us(view.age), "retry_at_us": now + left, "open_for_us": left}
            counts = {"evidence_calls": view.calls, "evidence_failures": view.failures, "evidence_slow": view.slow}
            numbers = {**times, **counts, "trips": view.trips, "backoff_us": _us(view.backoff)}
            fields |= {"state": "open", "evidence_workers": " ".join(view.workers)}
            fields |= {field: str(number) for field, number in numbers.items()}
        self._process.local.put(self._key, fields)

    def opened(self, alone: View) -> bool:
        """Whether the circuit of this process `alone` is open and opened since Redis was lost."""
        return alone.state == "open" and not alone.mode and alone.generation > self._kept

    def hold(self, until: float, view: View) -> None:
        """Keeps the circuit of this process open until its time, unless the fleet's changes from what `view` says."""
        self.held_until, self._held_under = until, view.generation

    def holds(self, view: View, now: float) -> bool:
        """Whether this process refuses calls that the fleet's circuit would not refuse."""
        return now < self.held_until and view.generation == self._held_under and view.state != "open" and not view.mode


def _us(seconds: float) -> int:
    return round(seconds * MILLION)
