"""Counts that many threads add to, mostly without a lock."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Hashable, Mapping
from contextlib import suppress
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
MOST = 1000
"""Notes that are kept before they are added up."""


class Noted(Generic[K]):
    """What was noted how often since it was last taken.

    A call notes it without a lock, for appending and popping are single operations; now and then one adds up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: deque[K] = deque()
        self._counts: Counter[K] = Counter()

    def note(self, what: K) -> None:
        """One more of it."""
        self._notes.append(what)
        if len(self._notes) > MOST:
            with self._lock:
                self._add_up()

    def add(self, counts: Mapping[K, int]) -> None:
        """So many more of each."""
        with self._lock:
            self._counts.update(counts)

    def take(self) -> Counter[K]:
        """What there is; from now on there is nothing."""
        with self._lock:
            self._add_up()
            taken, self._counts = self._counts, Counter()
            return taken

    def seen(self) -> Counter[K]:
        """What there is."""
        with self._lock:
            self._add_up()
            return self._counts.copy()

    def _add_up(self) -> None:
        with suppress(IndexError):
            while True:
                self._counts[self._notes.popleft()] += 1
