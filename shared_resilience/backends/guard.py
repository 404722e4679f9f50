"""The guard around Redis: whether it is asked at all, and by whom it is asked again."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from shared_resilience.backends.clock import Clock
from shared_resilience.backends.faults import Fault, StoreError
from shared_resilience.events import Events

logger = logging.getLogger("shared_resilience")
SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 1.0
RAMP = 1.5 * LONGEST_PAUSE
"""Seconds after the return of Redis by which the other processes have probably noticed it, too."""

ERROR_LOG_INTERVAL = 60.0


class StoreGuard:
    """Closed to callers from the first loss of Redis until a probe has succeeded.

    `usable` is read by every call, without a lock; `proven` says whether Redis has ever answered this process. `era`
    grows with every recovery: a failure of a call from an earlier era says nothing about the present one. While
    `ramping` Redis has just come back, and others may still decide alone: this process keeps within its share, too.
    """

    def __init__(self, events: Events, clock: Clock) -> None:
        self.usable = True
        self.proven = False
        self.era = 0
        self.ramping = False
        self._ramp_ends = 0.0
        self._events = events
        self._clock = clock
        self._lock = threading.Lock()
        self._pause = SHORTEST_PAUSE
        self.outages = 0
        self._lost_at = 0.0
        self._away = 0.0
        self._logged_at = float("-inf")
        self._prober_lives: Callable[[], bool] = lambda: False

    def lost(self, error: StoreError, era: int) -> None:
        """Redis could not decide a call that began in `era`: from now on nobody asks it but the probe."""
        with self._lock:
            if era != self.era:
                return
            was_usable, self.usable = self.usable, False
            if was_usable:
                self._lost_at, self._pause = self._clock.monotonic(), SHORTEST_PAUSE
                self.outages += 1
        self._log(error, was_usable)
        if was_usable:
            self._events.emit("store.lost", fault=error.fault.name, error=str(error))

    def recovered(self) -> None:
        """The probe has been answered."""
        with self._lock:
            was_usable, self.usable = self.usable, True
            self.era += 1
            seconds_away = self._clock.monotonic() - self._lost_at
            if not was_usable:
                self._away += seconds_away
                self.ramping, self._ramp_ends = True, self._clock.monotonic() + RAMP
        if not was_usable:
            logger.warning("Redis is back after %.1f s: limits are shared again", seconds_away)
            self._events.emit("store.recovered", seconds_away=seconds_away)

    def ramp_left(self, now: float) -> float:
        """For how many seconds it goes on; to be asked while `ramping`."""
        left = max(0.0, self._ramp_ends - now)
        self.ramping = left > 0
        return left

    def seconds_away(self) -> float:
        """For how long Redis has been away so far, in all outages together."""
        with self._lock:
            return self._away + (0.0 if self.usable else self._clock.monotonic() - self._lost_at)

    def launch(self, start: Callable[[float], Callable[[], bool]]) -> None:
        """Starts a prober unless one lives: `start(pause)` starts it and returns how to ask whether it lives."""
        with self._lock:
            if self.usable or self._prober_lives():
                return
            pause = self._pause * random.uniform(0.75, 1.0)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            self._prober_lives = start(pause)

    def _log(self, error: StoreError, first: bool) -> None:
        if error.fault is Fault.CONFIGURATION:
            now = self._clock.monotonic()
            if now - self._logged_at >= ERROR_LOG_INTERVAL:
                self._logged_at = now
                logger.error("Redis refuses this client, each process decides alone: %s", error)
        elif first:
            logger.warning("Redis is away, each process decides alone: %s", error)
