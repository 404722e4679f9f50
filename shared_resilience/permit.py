"""A permit: what a call holds while it is inside."""

from __future__ import annotations

import math
from collections.abc import Callable

from shared_resilience.commands import Source
from shared_resilience.decision import Decision


class Permit:
    """The slot that a call holds, until its block is left.

    `fencing` is a number greater than that of any permit before: a store that refuses smaller numbers than it has seen
    is safe from a call that goes on after it has lost its slot. Permits that were given while Redis was away have
    smaller numbers than all of Redis. `decision` is that of the limits that were asked in the same trip, if any.
    """

    __slots__ = ("_monotonic", "decision", "doubtful", "era", "fencing", "renewed", "safe_until", "source", "token")

    def __init__(
        self, token: str, fencing: int, source: Source, era: int, renewed: float, monotonic: Callable[[], float]
    ) -> None:
        self.token = token
        self.fencing = fencing
        self.source = source
        self.decision: Decision | None = None
        self.doubtful = False
        """Whether Redis may hold the slot too, since its answer was lost."""
        self.era = era
        self.renewed = renewed
        self.safe_until = math.inf
        self._monotonic = monotonic

    def __repr__(self) -> str:
        return f"Permit({self.token!r}, fencing={self.fencing}, lost={self.lost})"

    @property
    def lost(self) -> bool:
        """Whether the slot may be another's by now: the lease could not be renewed in time.

        Such as when the process stood still for longer than its lease. Nobody stops the call; it should stop itself.
        """
        return self._monotonic() >= self.safe_until
