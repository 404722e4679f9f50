"""Sliding window: its configuration, and the twin of `lua/lib/sliding_window.lua`."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

from shared_resilience import validation
from shared_resilience.commands import Argument, State
from shared_resilience.integers import LONGEST_WAIT, MILLION, to_ttl, to_wait

SHORTEST_WINDOW, LONGEST_WINDOW = 0.001, 366 * 86400.0
SLOTS = 58
"""Slots in a window that is not exact; with those that it touches at both ends, at most 60 entries."""


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """At most `limit` in every interval of `window` seconds, wherever it begins.

    `exact` keeps a log with an entry per call. Otherwise there are at most 60 entries, whatever the limit, and a call
    may count for up to a 58th of the window too long: never too many, at times a few too few. `limit` is an integer
    from 1 to 10⁹, `window` a number of seconds from 0.001 to 366 days. `label` names the limit: letters, digits,
    `_ . -`. Raises `ValueError` for any other value.
    """

    limit: int
    window: float = 60.0
    exact: bool = True
    label: str = "sliding_window"

    def __post_init__(self) -> None:
        validation.count("limit", self.limit)
        validation.number("window", self.window, SHORTEST_WINDOW, LONGEST_WINDOW)
        validation.flag("exact", self.exact)
        validation.label("label", self.label)

    @property
    def most(self) -> int:
        """The largest cost that can ever pass."""
        return self.limit

    def numbers(self) -> dict[str, float]:
        """The numbers in force, as they stand in clear in the resource's `config`."""
        return {"limit": self.limit, "window": self.window}

    def arguments(self) -> tuple[Argument, ...]:
        """What the scripts are told of it."""
        window_us = int(self.window * 1_000_000 + 0.5)
        return ("sliding_window", self.label, self.limit, window_us, 1 if self.exact else -(-window_us // SLOTS))


class Entry(NamedTuple):
    """An entry of the log: the time at which it counts as made, the sum of all costs up to its own, and its cost."""

    time: int
    sum: int
    cost: int


def _time(entry: Entry) -> int:
    return entry.time


def _sum(entry: Entry) -> int:
    return entry.sum


class Log:
    """A log as it stands at `now`; `stored` and `ttl` are what is to be written, `ttl` None: nothing."""

    def __init__(self, stored: State, now: int, limit: int, window: int, slot: int, share: int) -> None:
        self._share_of_limit = limit * MILLION // share
        if share > limit:
            window, limit = -(-window * share // limit), 1
        else:
            limit = limit // share
        self.now, self.size, self.window, self.slot, self.divided = now, limit, window, slot, share > 1
        self.delay, self.rebased = 0, False
        self.sum, self.used, self.start = 0, 0, 0
        self.entries: tuple[Entry, ...] = stored if isinstance(stored, tuple) else ()
        self.stored: State = stored
        self.ttl: int | None = None
        self.last = 0
        if self.entries:
            self.last, self.sum, last_cost = self.entries[-1]
            self.rebased = self.last > now + slot + self._debt(last_cost) + window
            self.start = self.sum
            live = self._first_live()
            if live < len(self.entries):
                self.start = self.entries[live].sum - self.entries[live].cost
                self.used = self.sum - self.start
        self._measure()

    def _debt(self, cost: int) -> int:
        return min(-(-self.window * (cost - self.size) // self.size), LONGEST_WAIT) if cost > self.size else 0

    def _measure(self) -> None:
        self.remaining = max(0, self.size - self.used)
        self.reset_after = 0
        if self.used > 0:
            self.reset_after = to_wait(self.window + 1 if self.rebased else self.last + self.window + 1 - self.now)

    def _first_live(self) -> int:
        return bisect_left(self.entries, self.now - self.window, key=_time)

    def _entry_that_frees(self, amount: int) -> int:
        return bisect_left(self.entries, self.start + amount, key=_sum, lo=self._first_live())

    def wait(self, cost: int) -> int:
        if cost > self.size:
            if not self.divided:
                return -1
            cost = self.size
        excess = self.used + cost - self.size
        if excess <= 0:
            return 0
        if self.rebased:
            return self.window + 1
        return to_wait(self.entries[self._entry_that_frees(excess)].time + self.window + 1 - self.now)

    def deficit(self) -> int:
        return min(self.used * MILLION, self._share_of_limit)

    def _tidy(self) -> None:
        if self.rebased:
            self.rebased, self.last = False, self.now
            self.entries = (Entry(self.now, self.sum, self.used),)
        else:
            self.entries = self.entries[self._first_live() :]

    def _store(self) -> None:
        self._measure()
        self.stored = self.entries or None
        self.ttl = to_ttl(self.reset_after)

    def _append(self, cost: int) -> None:
        time = max(-(-self.now // self.slot) * self.slot + self._debt(cost), self.last)
        self.sum, self.used = self.sum + cost, self.used + cost
        if self.slot > 1 and self.entries and time == self.last:
            cost += self.entries[-1].cost
            self.entries = self.entries[:-1]
        self.entries = (*self.entries, Entry(time, self.sum, cost))
        self.last = time

    def take(self, cost: int) -> None:
        self._tidy()
        if cost > 0:
            self._append(cost)
        self._store()

    def give(self, cost: int, since: int) -> None:
        cost = min(cost, self.used)
        if cost == 0 or since < self.now - self.window:
            return
        self._tidy()
        rank = self._entry_that_frees(cost)
        entry = self.entries[rank]
        self.entries = self.entries[rank + 1 :]
        self.start, self.used = self.start + cost, self.used - cost
        if entry.sum > self.start:
            self.entries = (Entry(entry.time, entry.sum, entry.sum - self.start), *self.entries)
        self._store()
