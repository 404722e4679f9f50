"""Limits by their definitions, slowly and exactly; they share no thought with the scripts and their twins.

Each model answers at what moment, not before `now`, a cost fits, and is told what was taken and given back. Times are
in µs of one clock that never goes back.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Protocol

from shared_resilience import LeakyBucket, SlidingWindow, TokenBucket
from shared_resilience.limits import Limit
from shared_resilience.sliding_window import SLOTS

SECOND = 1_000_000


class Model(Protocol):
    """What every model can be asked and told."""

    def first_fit(self, now: int, cost: int) -> int:
        """The first moment at which `cost` fits if nothing else happens until then."""

    def remaining(self, now: int) -> int:
        """The whole units that are left."""

    def delay(self, now: int) -> int:
        """How long a call that enters now has to wait for its turn."""

    def take(self, now: int, cost: int) -> None:
        """`cost` is taken, whether there is room or not."""

    def give(self, now: int, cost: int, since: int) -> None:
        """`cost`, which was taken at `since`, is given back."""


class ListOfCalls:
    """A sliding window: all calls that were ever made, searched from the beginning each time.

    With a slot above 1 each call counts as made at the end of its slot.
    """

    def __init__(self, limit: int, window: int, slot: int = 1) -> None:
        self.limit, self.window, self.slot = limit, window, slot
        self.calls: list[tuple[int, int]] = []

    def used(self, now: int) -> int:
        return sum(cost for time, cost in self.calls if now - self.window <= time)

    def fits(self, now: int, cost: int) -> bool:
        return self.used(now) + cost <= self.limit

    def first_fit(self, now: int, cost: int) -> int:
        moments = [now, *(time + self.window + 1 for time, _ in self.calls if time + self.window + 1 > now)]
        return next(moment for moment in sorted(moments) if self.fits(moment, cost))

    def remaining(self, now: int) -> int:
        return max(0, self.limit - self.used(now))

    def delay(self, now: int) -> int:
        return 0

    def take(self, now: int, cost: int) -> None:
        self.calls.append((math.ceil(Fraction(now, self.slot)) * self.slot, cost))

    def give(self, now: int, cost: int, since: int) -> None:
        if since < now - self.window:
            return
        left: list[tuple[int, int]] = []
        for time, taken in self.calls:
            back = min(cost, taken) if now - self.window <= time else 0
            cost -= back
            left.append((time, taken - back))
        self.calls = left


class ContinuousBucket:
    """A token bucket: a level in exact fractions of a token, refilled at every step."""

    def __init__(self, capacity: int, rate: Fraction) -> None:
        self.capacity, self.per_us = capacity, rate / SECOND
        self._level, self._at = Fraction(capacity), 0

    def level(self, now: int) -> Fraction:
        return min(Fraction(self.capacity), self._level + self.per_us * (now - self._at))

    def first_fit(self, now: int, cost: int) -> int:
        return now + max(0, math.ceil((cost - self.level(now)) / self.per_us))

    def remaining(self, now: int) -> int:
        return max(0, math.floor(self.level(now)))

    def delay(self, now: int) -> int:
        return 0

    def take(self, now: int, cost: int) -> None:
        self._level, self._at = self.level(now) - cost, now

    def give(self, now: int, cost: int, since: int) -> None:
        self._level, self._at = min(Fraction(self.capacity), self.level(now) + cost), now


class ListOfDepartures:
    """A leaky bucket: for each drop the moment at which the whole of it has fallen, one after the other."""

    def __init__(self, capacity: int, rate: Fraction) -> None:
        self.capacity, self.gap = capacity, SECOND / rate
        self.fallen_at: list[Fraction] = []

    def level(self, now: int) -> Fraction:
        """What is inside: whole drops, and what is left of the one that falls."""
        return sum((min(Fraction(1), (end - now) / self.gap) for end in self.fallen_at if end > now), Fraction(0))

    def first_fit(self, now: int, cost: int) -> int:
        return now + max(0, math.ceil((self.level(now) + cost - self.capacity) * self.gap))

    def remaining(self, now: int) -> int:
        return max(0, math.floor(self.capacity - self.level(now)))

    def delay(self, now: int) -> int:
        return max(0, math.ceil(self.fallen_at[-1] - now)) if self.fallen_at else 0

    def take(self, now: int, cost: int) -> None:
        self.fallen_at = [end for end in self.fallen_at if end > now]
        for _ in range(cost):
            before = self.fallen_at[-1] if self.fallen_at else Fraction(now)
            self.fallen_at.append(before + self.gap)

    def give(self, now: int, cost: int, since: int) -> None:
        live = [end for end in self.fallen_at if end > now]
        self.fallen_at = live[: max(0, len(live) - cost)]


def model_of(limit: Limit) -> Model:
    """A fresh model of `limit`."""
    if isinstance(limit, SlidingWindow):
        window = round(limit.window * SECOND)
        return ListOfCalls(limit.limit, window, 1 if limit.exact else math.ceil(Fraction(window, SLOTS)))
    if isinstance(limit, LeakyBucket):
        return ListOfDepartures(limit.capacity, Fraction(limit.leak_rate))
    assert isinstance(limit, TokenBucket)
    return ContinuousBucket(limit.capacity, Fraction(limit.refill_rate))
