"""The configuration of an adaptive timeout."""

from __future__ import annotations

from dataclasses import dataclass

from shared_resilience import validation

LONGEST = 3600.0
ENFORCE = ("deadline", "thread")


@dataclass(frozen=True, slots=True)
class TimeoutConfig:
    """How long calls may take, by how long those of the whole fleet have taken. Times are in seconds.

    The timeout is `multiplier` (1 to 100) times the `percentile` (above 0, below 1) of the calls of the last `window`
    (1 to 3600), never below `floor` and never above `ceiling` (0.001 to 3600 both); with fewer than `min_samples` calls
    it is `ceiling`. `connect` and `read` bound the parts of it for clients that have both.

    A coroutine that takes longer is cancelled. A plain function cannot be: `enforce="deadline"` gives it a deadline to
    keep, `enforce="thread"` runs it on a thread of its own, which is left to itself when its time is over.

    Raises `ValueError` for a value outside its range.
    """

    percentile: float = 0.95
    multiplier: float = 1.5
    floor: float = 0.05
    ceiling: float = 60.0
    min_samples: int = 100
    window: float = 60.0
    connect: float = 3.0
    read: float = 30.0
    enforce: str = "deadline"

    def __post_init__(self) -> None:
        validation.number("percentile", self.percentile, 0.000_001, 0.999_999)
        validation.number("multiplier", self.multiplier, 1, 100)
        validation.number("ceiling", self.ceiling, 0.001, LONGEST)
        validation.number("floor", self.floor, 0.001, self.ceiling)
        validation.count("min_samples", self.min_samples)
        validation.number("window", self.window, 1, LONGEST)
        validation.number("connect", self.connect, 0.001, LONGEST)
        validation.number("read", self.read, 0.001, LONGEST)
        validation.choice("enforce", self.enforce, ENFORCE)

    def numbers(self) -> dict[str, float]:
        """The numbers in force, as they stand in clear in the resource's `config`."""
        names = ("percentile", "multiplier", "floor", "ceiling", "min_samples", "window", "connect", "read")
        return {name: getattr(self, name) for name in names}
