"""The core of the circuit breaker, written once for sync and asyncio: who may pass, and what is told of it."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Coroutine
from typing import Any, Literal, NoReturn

from shared_resilience.announcements import Announcements
from shared_resilience.backends import Backend
from shared_resilience.backends.process import Component, Process
from shared_resilience.circuit import CircuitState
from shared_resilience.circuit_commands import CONTROL, PROBE, SETTLE, View
from shared_resilience.circuit_config import CircuitBreakerConfig
from shared_resilience.commands import Argument, Arguments, Command, Operation
from shared_resilience.errors import CircuitBreakerOpenError, ResilienceError
from shared_resilience.evidence import Evidence, News, Tally, draw, found_again
from shared_resilience.outage import Outage
from shared_resilience.overrides import BREAKER, Overrides

logger = logging.getLogger("shared_resilience")

Outcome = Literal["success", "failure", "cancelled"]
"""What a call has shown of its dependency; "cancelled": nothing."""

REFRESH = 1.0
"""Seconds after which an open circuit is looked at again, so that a reset is heard."""


class Probe:
    """The lease of one call while the circuit is half-open."""

    __slots__ = ("answered", "era", "generation", "token", "wanted")
    plain = False

    def __init__(self, token: str, era: int) -> None:
        self.token, self.era = token, era
        self.generation = 0
        self.answered = False
        """Whether the asking for it is over, with or without a reply."""
        self.wanted = True
        """Whether the caller that asked for it still waits."""


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
        self._outage = Outage(self._process, self.resource.keys.breaker)
        self._announcements = Announcements(self.resource, self.config.shadow)
        self._held = False

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
            await backend.finish(evidence.sync(backend))
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
        probe = Probe(f"{self._process.heartbeat.worker_id}:{secrets.token_hex(6)}", self._era)
        try:
            return await backend.finish(self._borrow(backend, probe))
        except BaseException as error:
            probe.wanted = False
            if probe.answered and not isinstance(error, Exception):
                backend.detach(self.report(backend, probe, "cancelled"))
            raise

    async def _borrow(self, backend: Backend, probe: Probe) -> Probe | None:
        """Asks for `probe`, and gives it back if its caller was cancelled meanwhile.

        It could not be given back before the reply: the two commands might change places on their way.
        """
        try:
            view = await self.evidence.run(backend, self._command(PROBE, probe.token))
        finally:
            probe.answered = True
        if not view.result:
            return None
        probe.generation = view.generation
        self.resource.count("breaker.probes")
        if not probe.wanted:
            await self.report(backend, probe, "cancelled")
        return probe

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
        """Tells what `note` said is to be told. What goes wrong is not its caller's affair, whose call has run."""
        if isinstance(permit, Tally):
            await self._try(self.evidence.tell(backend))
            return
        worker = self._process.heartbeat.worker_id
        settle = self._command(SETTLE, worker, permit.token, permit.generation, outcome, draw())
        await self._try(backend.finish(self.evidence.run(backend, settle)))

    async def before_close(self, backend: Backend) -> None:
        """Tells what is untold."""
        if self.evidence.has_untold():
            await self._try(self.evidence.sync(backend))

    async def _try(self, telling: Coroutine[Any, Any, object]) -> None:
        try:
            await telling
        except Exception as error:
            logger.warning("the circuit %r could not be told: %s", self.name, error, exc_info=True)
            self._process.events.emit("breaker.untold", self.name, error=str(error))

    # What comes back.

    def arguments(self) -> Arguments:
        return self._arguments

    def arrived(self, view: View, before: View | None, began: float) -> float:
        now = self.monotonic()
        self._rate, self.evidence.window = self._in_force("failure_rate"), self._in_force("window")
        if back := found_again(view, before):
            self._come_back(view, now)
        if view.source == "redis" and (back or before is None or before.standing != view.standing):
            self._outage.keep(view)
        self._refused, refused = 0, self._refused
        if refused:
            self.resource.count("breaker.refused", refused)
        self._held = self._outage.holds(view, now)
        self.state = CircuitState.OPEN if self._held else CircuitState(view.state)
        self._count_calls_in(view, back)
        if self.state is CircuitState.CLOSED:
            self._retry_at = math.inf
            return began + self.evidence.interval()
        if self.state is CircuitState.HALF_OPEN:
            self._retry_at = -math.inf
            room = view.leases < self._in_force("half_open_max_calls")
            return began if room else began + self.evidence.interval()
        self._retry_at = self._outage.held_until if self._held else now + view.retry_after
        return min(self._retry_at, began + REFRESH)

    def _in_force(self, field: str) -> float:
        """A number of the configuration, or what overrides it."""
        override = Overrides(self.resource.overrides).breaker(field)
        configured: float = getattr(self.config, field)
        return configured if override is None else override

    def _count_calls_in(self, view: View, back: bool) -> None:
        """Where calls are counted from now on; nowhere while none may pass."""
        evidence, closed = self.evidence, self.state is CircuitState.CLOSED
        tally, field = evidence.tally, "calls" if closed else "shadow_refused"
        if tally is not None and (tally.generation != view.generation or tally.field != field):
            seen = evidence.taken(tally)
            if tally.generation == view.generation or (back and tally.field == "calls"):
                evidence.owe(seen, view)
            tally = None
        if tally is None and (closed or self.config.shadow):
            tally = Tally(view.generation, self._plain, self.monotonic(), field)
        evidence.tally = tally

    def _come_back(self, view: View, now: float) -> None:
        """Redis is back: a circuit that opened meanwhile stays open until its time, and what was seen is owed."""
        alone = self.evidence.gathered_alone()
        opened = self._outage.opened(alone)
        if alone.state == "closed" or (opened and alone.age < self.evidence.window):
            self.evidence.owe((alone.calls, alone.failures, alone.slow), view)
        if opened:
            self._outage.hold(now + alone.retry_after, view)

    def news(self, view: View, taken: bool) -> News:
        return self._announcements.of(view, taken, self._held)

    # For operators.

    async def force(self, backend: Backend, mode: str) -> None:
        """Forces a mode on the fleet, "" ends it. Raises `StoreUnavailableError`."""
        await self.evidence.run(backend, self._command(CONTROL, mode), "raise")

    async def stats(self, backend: Backend) -> dict[str, object]:
        """The fleet's view, as of now."""
        await backend.finish(self.evidence.sync(backend))
        return self.known()

    def known(self) -> dict[str, object]:
        """The fleet's view as this process has last heard of it."""
        view, counts = self.evidence.view, dict[str, object]()
        if view is not None:
            counts = {**self._announcements.details(view), "workers": list(view.workers), "probes": view.leases}
            left = self._outage.held_until - self.monotonic() if self._held else view.retry_after
            counts |= {"successes": view.successes, "retry_after": None if left == math.inf else max(0.0, left)}
        return {
            "state": self.state.value,
            "mode": None,
            **counts,
            "config": self.config.numbers(),
            "overrides": {f: text for f, text in self.resource.overrides.items() if f.startswith(BREAKER)},
            **self.resource.statistics("breaker"),
        }

    def _command(self, operation: Operation[View], *args: Argument) -> Command[View]:
        keys = self.resource.keys
        return Command(operation, (keys.overrides, keys.breaker), (*self._arguments, *args))
