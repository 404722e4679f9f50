"""The core of the circuit breaker, written once for sync and asyncio: who may pass, and what is told of it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import Literal, NoReturn

from shared_resilience.backends import Backend
from shared_resilience.backends.process import Component, Process
from shared_resilience.circuit import CircuitState
from shared_resilience.circuit_commands import CONTROL, PROBE, SETTLE, View
from shared_resilience.circuit_config import CircuitBreakerConfig
from shared_resilience.circuit_numbers import NUMBERS
from shared_resilience.commands import Argument, Arguments, Command, Operation
from shared_resilience.errors import CircuitBreakerOpenError, ResilienceError
from shared_resilience.evidence import MILLIONTHS, Evidence, Tally, draw
from shared_resilience.overrides import BREAKER, Overrides

Outcome = Literal["success", "failure", "cancelled"]
"""What a call has shown of its dependency; "cancelled": nothing."""

REFRESH = 1.0
"""Seconds after which an open circuit is looked at again, so that a reset is heard."""

EVENTS = {"closed": "breaker.closed", "open": "breaker.opened", "half_open": "breaker.half_opened"}


class Probe:
    """The lease of one call while the circuit is half-open."""

    __slots__ = ("era", "generation", "token")
    plain = False

    def __init__(self, token: str, generation: int, era: int) -> None:
        self.token, self.generation, self.era = token, generation, era


Permit = Tally | Probe
"""With what a call has passed: where it is counted, or the probe that it is."""


class Breaker(Component):
    """The circuit breaker of one resource in one process.

    Plain methods decide before and after a call; the core runs only when a command is due.
    """

    def __init__(self, name: str, config: CircuitBreakerConfig, process: Process, sync_interval: float) -> None:
        self.name = name
        self.config = config
        self.resource = process.heartbeat.resource(name)
        self.resource.configure({BREAKER + field: number for field, number in config.numbers().items()})
        self.evidence = Evidence(self.resource, process, sync_interval, config.window, self)
        self.monotonic = self.evidence.monotonic
        self.timed = config.slow_call_seconds is not None
        self._plain = not self.timed and config.is_failure is None
        self._process = process
        self._arguments = config.arguments()
        self._era = 0
        self._restart()

    def _restart(self) -> None:
        self.state = CircuitState.CLOSED
        self._retry_at = math.inf
        self._rate = self.config.failure_rate
        self._refused = 0
        self._held_until, self._held_generation = -math.inf, 0
        self._announced = 0
        self._ignored: set[str] = set()

    def after_fork(self) -> None:
        self._era += 1
        self.evidence.restart()
        self._restart()

    # Before a call.

    async def admit(self, backend: Backend) -> Permit:
        """The permit of a call for which a command is due. Raises `CircuitBreakerOpenError`."""
        evidence, claimed = self.evidence, False
        if evidence.view is None:
            await evidence.tell(backend)
        elif (claimed := evidence.claim()) and self.monotonic() < self._retry_at:
            await evidence.sync(backend)
            claimed = False
        if self.monotonic() >= self._retry_at and (claimed or evidence.claim()):
            probe = await self._ask_for_probe(backend)
            if probe is not None:
                return probe
        return self.pass_or_refuse()

    def pass_or_refuse(self) -> Permit:
        """The permit of a call by the view that there is. Raises `CircuitBreakerOpenError`."""
        tally = self.evidence.tally
        if tally is None:
            self.refuse()
        return tally

    def refuse(self) -> NoReturn:
        """Raises `CircuitBreakerOpenError`, and counts it."""
        evidence = self.evidence
        with evidence.lock:
            self._refused += 1
            until = self._retry_at if self._retry_at > evidence.due else evidence.due
        left = until - self.monotonic()
        raise CircuitBreakerOpenError(self.name, left if left > 0 else 0.0)

    async def _ask_for_probe(self, backend: Backend) -> Probe | None:
        token = f"{self._process.heartbeat.worker_id}:{secrets.token_hex(6)}"
        view = await self.evidence.run(backend, self._command(PROBE, token))
        if not view.result:
            return None
        self.resource.count("breaker.probes")
        return Probe(token, view.generation, self._era)

    # After a call.

    def outcome_of(self, error: BaseException) -> Outcome:
        """What an exception says about the dependency."""
        if not isinstance(error, Exception) or isinstance(error, (ResilienceError, *self.config.ignored_exceptions)):
            return "cancelled"
        return "failure" if isinstance(error, self.config.expected_exceptions) else "success"

    def judge(self, result: object) -> Outcome:
        """What a returned value says about it; runs the user's `is_failure`."""
        is_failure = self.config.is_failure
        return "failure" if is_failure is not None and is_failure(result) else "success"

    def note(self, permit: Permit, outcome: Outcome, began: float) -> Outcome | None:
        """Counts a call that began at `began`; what is to be told before its caller goes on, None: nothing."""
        seconds = self.config.slow_call_seconds
        now = self.monotonic()
        slow = seconds is not None and outcome != "cancelled" and now - began >= seconds
        if isinstance(permit, Probe):
            if permit.era != self._era:
                return None  # the parent of this forked process holds it
            return "failure" if slow and self.config.slow_call_rate is not None else outcome
        if outcome == "cancelled":
            return None
        with self.evidence.lock:
            permit.touched = now
            permit.calls += 1
            permit.slow += slow
            if outcome == "success":
                return None
            permit.failures += 1
            return "failure" if now >= self.evidence.due or self._may_open(permit) else None

    def _may_open(self, tally: Tally) -> bool:
        """Whether the failures known here are at least half of what opens the circuit, so that they cannot wait."""
        view = self.evidence.view
        if view is None or tally is not self.evidence.tally or view.state != "closed" or view.mode:
            return False
        return 2 * (view.failures + tally.failures) >= self._rate * (view.calls + tally.calls)

    async def report(self, backend: Backend, permit: Permit, outcome: Outcome) -> None:
        """Tells what `note` said is to be told."""
        if isinstance(permit, Tally):
            await self.evidence.tell(backend)
            return
        worker = self._process.heartbeat.worker_id
        settle = self._command(SETTLE, worker, permit.token, permit.generation, outcome, draw())
        await self.evidence.run(backend, settle)

    # What comes back.

    def arguments(self) -> Arguments:
        return self._arguments

    def arrived(self, view: View, before: View | None, began: float) -> float:
        now = self.monotonic()
        came_back = before is not None and before.source == "local" and view.source == "redis"
        if came_back:
            self._come_back(view)
        if view.source == "redis" and (came_back or before is None or before.generation != view.generation):
            self._keep_for_outage(view)
        self._refused, refused = 0, self._refused
        if refused:
            self.resource.count("breaker.refused", refused)
        rate = Overrides(self.resource.overrides).number(BREAKER + "failure_rate", *NUMBERS["failure_rate"][1:])
        self._rate = self.config.failure_rate if rate is None else rate
        held = view.generation == self._held_generation and view.state != "open" and now < self._held_until
        self.state = CircuitState.OPEN if held else CircuitState(view.state)
        self._count_calls_in(view)
        if self.state is CircuitState.CLOSED:
            self._retry_at = math.inf
            return began + self.evidence.interval()
        if self.state is CircuitState.HALF_OPEN:
            self._retry_at = -math.inf
            return began if view.leases < self.config.half_open_max_calls else began + self.evidence.interval()
        self._retry_at = self._held_until if held else now + view.retry_after
        return min(self._retry_at, began + REFRESH)

    def _count_calls_in(self, view: View) -> None:
        """Where calls are counted from now on; nowhere while none may pass."""
        evidence, closed = self.evidence, self.state is CircuitState.CLOSED
        tally = evidence.tally
        if tally is not None and tally.generation != view.generation:
            evidence.taken(tally)
            tally = None
        if tally is None and (closed or self.config.shadow):
            field = "calls" if closed else "shadow_refused"
            tally = Tally(view.generation, self._plain, self.monotonic(), field)
        evidence.tally = tally if closed or self.config.shadow else None

    def _come_back(self, view: View) -> None:
        """Redis is back: a circuit that opened meanwhile stays open until its time, and what was seen is owed."""
        alone = self.evidence.gathered_alone()
        if alone.state == "closed" or alone.age < self.config.window:
            self.evidence.owe((alone.calls, alone.failures, alone.slow), view.generation)
        if self.state is CircuitState.OPEN and not view.mode and not alone.mode:
            self._held_until, self._held_generation = self._retry_at, view.generation

    def _keep_for_outage(self, view: View) -> None:
        """Has this process begin with the fleet's state should Redis be lost."""
        fields: dict[str, str] = {"state": view.state, "generation": str(view.generation)}
        if view.mode:
            fields["mode"] = view.mode
        elif view.state != "closed":
            now, left = self._process.local.now_us(), round(view.retry_after * MILLIONTHS)
            fields |= {"state": "open", "trips": str(view.trips)}
            fields |= {"retry_at_us": str(now + left), "open_for_us": str(left)}
        self._process.local.put(self.resource.keys.breaker, fields)

    def announce(self, view: View, before: View | None) -> None:
        for field in view.ignored.split():
            if field not in self._ignored:
                self._ignored.add(field)
                self._process.events.emit("override.ignored", self.name, field=field)
        quiet = view.state == "closed" and not view.mode and (before is None or before.state == "closed")
        if view.caused:
            self.resource.count(EVENTS[view.state])
        elif view.generation == self._announced or (quiet and (before is None or not before.mode)):
            return
        self._announced = view.generation
        self._process.events.emit(EVENTS[view.state], self.name, **self._details(view))

    def _details(self, view: View) -> Mapping[str, object]:
        return {
            "observed": not view.caused,
            "shadow": self.config.shadow,
            "mode": view.mode or None,
            "generation": view.generation,
            "retry_after": view.retry_after,
            "calls": view.calls,
            "failures": view.failures,
            "slow_calls": view.slow,
            "workers": view.workers,
            "trips": view.trips,
            "source": view.source,
        }

    # For operators.

    async def force(self, backend: Backend, mode: str) -> None:
        """Forces a mode on the fleet, "" ends it. Raises `StoreUnavailableError`."""
        await self.evidence.run(backend, self._command(CONTROL, mode), "raise")

    async def stats(self, backend: Backend) -> dict[str, object]:
        """The fleet's view, as of now."""
        await self.evidence.sync(backend)
        return self.known()

    def known(self) -> dict[str, object]:
        """The fleet's view as this process has last heard of it."""
        view, counts = self.evidence.view, {}
        if view is not None:
            counts = {**self._details(view), "workers": list(view.workers), "probes": view.leases}
            counts |= {"successes": view.successes}
            counts["retry_after"] = None if view.retry_after == math.inf else view.retry_after
            del counts["observed"]
        return {
            "state": self.state.value,
            "mode": None,
            **counts,
            "config": self.config.numbers(),
            "overrides": {f: text for f, text in self.resource.overrides.items() if f.startswith(BREAKER)},
            "local": self.resource.counted(),
            "fleet": dict(self.resource.fleet),
            "live_workers": self.resource.workers,
        }

    def _command(self, operation: Operation[View], *args: Argument) -> Command[View]:
        keys = self.resource.keys
        return Command(operation, (keys.overrides, keys.breaker), (*self._arguments, *args))
