"""The numbers of a run, and why they are what they are."""

from __future__ import annotations

from dataclasses import dataclass

OUTAGE = 1.5
"""Seconds for which Redis is away: the first two probes of each worker ask in vain, a later one succeeds."""

RETURN = 2.5
"""Seconds until workers have noticed that Redis is back, and need not keep within their shares any more."""

FAILURES, SUCCESSES = 5, 2
"""After how many failed calls a circuit opens, and after how many successful probes it closes."""

PACE = 0.02
"""Seconds between two calls of a worker to the fragile upstream."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to show: `workers` processes, `limit` calls per second for all of them, scenes of `seconds`."""

    workers: int = 4
    limit: int = 50
    seconds: float = 5.0
    keep: bool = False

    @property
    def capacity(self) -> int:
        """The burst: what the limit gives in twice the outage, and four calls per worker at least."""
        return max(int(2 * OUTAGE * self.limit), 4 * self.workers)

    @property
    def extra(self) -> int:
        """What an outage may cost on top of the limit: one capacity, since shares start full when Redis is lost.

        What the shared bucket gains meanwhile is charged with what the workers took, when Redis is back.
        """
        return self.capacity

    @property
    def slack(self) -> int:
        """How much larger the upstream's burst is than the limit's.

        Calls are granted in Redis and counted by the upstream; what lies between may take any time on a busy machine.
        But a worker has at most one call on its way. So in no interval does the upstream see more than one call per
        worker that was granted before it. One more is for two clocks that differ by a hair.
        """
        return self.workers + 1

    @property
    def long_seconds(self) -> float:
        """The scene with the outage takes twice as long, and long enough to come back and to pay off a capacity."""
        return max(2 * self.seconds, (OUTAGE + RETURN + self.capacity / self.limit) / 0.7)

    @property
    def broken(self) -> tuple[float, float]:
        """After how many seconds, and for how many, the upstream is broken in the scenes with a circuit breaker."""
        return 0.2 * self.seconds, 0.5 * self.seconds

    @property
    def open_seconds(self) -> float:
        """How long a circuit stays open at first: several probes find the upstream broken, the next one mended."""
        return 0.06 * self.seconds

    @property
    def cut_after(self) -> float:
        """When Redis goes away in that scene."""
        return 0.3 * self.long_seconds
