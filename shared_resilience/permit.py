"""A permit: what a call holds while it is inside."""

from __future__ import annotations

from collections.abc import Callable

from shared_resilience.commands import Source
from shared_resilience.decision import Decision
from shared_resilience.lease import Lease


class Permit(Lease):
    """The slot that a call holds, until its block is left.

    `decision` is that of the limits that were asked in the same trip, if any.
    """

    __slots__ = ("decision", "doubtful")

    def __init__(
        self, token: str, fencing: int, source: Source, era: int, renewed: float, monotonic: Callable[[], float]
    ) -> None:
        super().__init__(token, fencing, source, era, renewed, monotonic)
        self.decision: Decision | None = None
        self.doubtful = False
        """Whether Redis may hold the slot too, since its answer was lost."""
