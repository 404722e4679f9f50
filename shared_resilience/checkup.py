"""One health check in one process: what is asked, what was found, and whether that is healthy."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace

from shared_resilience.backends import Backend, Ticket
from shared_resilience.backends.bounded import OverdueError, straggler_of
from shared_resilience.backends.process import Component, Process
from shared_resilience.health import HealthCheckResult, found, overall
from shared_resilience.health_config import HealthCheckConfig, HealthCheckType
from shared_resilience.validation import wrong

logger = logging.getLogger("shared_resilience")
Check = Callable[[], object]
BEAT = 1.0
"""Seconds after which a check that is made in the background looks for a heartbeat that is due."""


class Round:
    """A check that is made again and again in the background, by callers of `backend`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.stopped = False
        self.ticket: Ticket | None = None

    def stop(self) -> None:
        self.stopped = True
        if self.ticket is not None:
            self.ticket.wake()


class Checkup(Component):
    """The health check `name`."""

    def __init__(self, name: str, config: HealthCheckConfig, process: Process) -> None:
        self.name = name
        self.config = config
        self.resource = process.heartbeat.resource(name)
        self.resource.configure({f"health.{field}": number for field, number in config.numbers().items()})
        self.check: Check | None = None
        self._process = process
        self._round: Round | None = None
        self._cut_off: Backend | None = None
        """In a forked child: who made the check in the background of the parent."""
        self._fresh()

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self.latest: HealthCheckResult | None = None
        self.healthy = self.config.check_type is HealthCheckType.LIVENESS
        """What is alive is taken to be so until it fails; what is to be ready has to show it first."""
        self._failures = 0
        self._passed = self.healthy
        self._hangs = False

    def after_fork(self) -> None:
        self._cut_off = self._round.backend if self._round is not None and self.in_background else None
        self._round = None
        self._fresh()

    def register(self, check: Check) -> None:
        if not callable(check):
            raise wrong("check", check, "a function without arguments")
        if self.check is not None and self.check != check:
            raise ValueError(f"health check {self.name!r} asks another function, {self.check!r}, not {check!r}")
        self.check = check

    async def ask(self, backend: Backend, check: Check | None = None) -> HealthCheckResult:
        """Makes the check now, and takes note of what it finds. Raises `LookupError` if there is nothing to ask."""
        asked = check or self.check
        if asked is None:
            raise LookupError(f"health check {self.name!r} has nothing to ask: register() a function, or pass one")
        if not callable(asked):
            raise wrong("check", asked, "a function without arguments")
        began, at = time.perf_counter(), time.time()
        result = await self._result(backend, asked)
        result = replace(result, latency=time.perf_counter() - began, checked_at=at)
        self._note(result)
        await backend.keep_up(self.resource)
        return result

    async def _result(self, backend: Backend, check: Check) -> HealthCheckResult:
        seconds = self.config.timeout
        if self._hangs:
            return HealthCheckResult(False, error="the check before still hangs")
        try:
            return found(await backend.within(check, seconds))
        except OverdueError as overdue:
            if (straggler := straggler_of(overdue)) is not None:
                self._hangs = True  # one thread that hangs is enough
                straggler.then(self._hangs_no_more)
            return HealthCheckResult(False, error=f"it has not answered within {seconds:g} s")
        except Exception as error:
            return HealthCheckResult(False, error=f"{type(error).__name__}: {error}")

    def _hangs_no_more(self) -> None:
        self._hangs = False

    def _note(self, result: HealthCheckResult) -> None:
        with self._lock:
            before, self.latest = self.healthy, result
            self._failures = 0 if result.healthy else self._failures + 1
            self._passed = self._passed or result.healthy
            self.healthy = self._passed and self._failures < self.config.grace
            after = self.healthy
        self.resource.count("health.passed" if result.healthy else "health.failed")
        self._process.heartbeat.roll.health = status_of(self._process)
        if before != after:
            name = "health.up" if after else "health.down"
            self._process.events.emit(name, self.name, check_type=self.config.check_type.value, error=result.error)

    # In the background.

    @property
    def in_background(self) -> bool:
        """Whether it is made again and again."""
        return self._round is not None and not self._round.stopped

    def revive(self, backend: Backend) -> None:
        """Begins again what a fork has cut off."""
        if self._cut_off is backend:
            self._cut_off = None
            self.start(backend)

    def start(self, backend: Backend) -> None:
        if self.check is None:
            raise LookupError(f"health check {self.name!r} has nothing to ask: register() a function first")
        with self._lock:
            if self.in_background:
                return
            self._round = Round(backend)
        backend.background(self._go_round(self._round))

    def stop(self) -> None:
        if self._round is not None:
            self._round.stop()

    async def _go_round(self, its_round: Round) -> None:
        backend = its_round.backend
        ticket = its_round.ticket = backend.ticket()
        due = backend.monotonic()
        while not its_round.stopped:
            try:
                if backend.monotonic() >= due:
                    due = backend.monotonic() + self.config.interval
                    await self.ask(backend)
                else:
                    self.resource.last_used = backend.monotonic()
                    await backend.keep_up(self.resource)
            except Exception:
                logger.exception("health check %r could not be made", self.name)
            await ticket.wait(max(0.0, min(BEAT, due - backend.monotonic())))

    async def before_close(self, backend: Backend) -> None:
        """Ends what callers of `backend` have begun."""
        if self._round is not None and self._round.backend is backend:
            self._round.stop()

    def known(self) -> dict[str, object]:
        """What this process knows without asking."""
        return {
            "check_type": self.config.check_type.value,
            "critical": self.config.critical,
            "healthy": self.healthy,
            "failures_in_a_row": self._failures,
            "in_background": self.in_background,
            "latest": None if self.latest is None else asdict(self.latest),
            "config": self.config.numbers(),
            **self.resource.statistics("health"),
        }


def checkups_of(process: Process) -> list[Checkup]:
    """All health checks of a process."""
    return [core for core in list(process.components.values()) if isinstance(core, Checkup)]


def status_of(process: Process) -> str:
    """What follows from all of them."""
    return overall((core.healthy, core.config.critical) for core in checkups_of(process))
