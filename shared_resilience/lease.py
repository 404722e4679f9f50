"""Leases: whatever a worker holds in Redis ends by itself, unless it is renewed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from shared_resilience.commands import Source

_LENGTH = re.compile(r":([0-9]+)$")


def lease_of(token: str) -> int:
    """The length of the lease of a token in microseconds: it ends with a colon and the milliseconds."""
    length = _LENGTH.search(token)
    return int(length[1]) * 1000 if length else 0


class Lease:
    """What a call holds by the word of `source`, under its own `token`.

    `fencing` is a number greater than that of any holder before: a store that refuses smaller numbers than it has seen
    is safe from a call that goes on after its lease is over. Those that were given while Redis was away are smaller
    than all of Redis.
    """

    __slots__ = ("_monotonic", "era", "fencing", "renewed", "safe_until", "source", "token")

    def __init__(
        self, token: str, fencing: int, source: Source, era: int, renewed: float, monotonic: Callable[[], float]
    ) -> None:
        self.token = token
        self.fencing = fencing
        self.source = source
        self.era = era
        """Of which process it is, counted by forks."""
        self.renewed = renewed
        self.safe_until = math.inf
        self._monotonic = monotonic

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.token!r}, fencing={self.fencing}, lost={self.lost})"

    @property
    def lost(self) -> bool:
        """Whether another may hold it by now: the lease could not be renewed in time.

        Such as when the process stood still for longer than its lease. Nobody stops the call; it should stop itself.
        """
        return self._monotonic() >= self.safe_until
