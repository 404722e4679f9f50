"""Waiting lines: in one process, whoever comes first for a key is served first, and only the first asks Redis."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable

from shared_resilience.backends import Ticket


class Lines:
    """The lines of one limiter, by key; a key without waiters has none."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[Ticket]] = {}
        self._lock = threading.Lock()

    def join(self, key: Hashable, ticket: Ticket) -> bool:
        """Queues up; whether `ticket` is the first. If not, it is woken when it has become so."""
        with self._lock:
            line = self._lines.setdefault(key, deque())
            line.append(ticket)
            return line[0] is ticket

    def leave(self, key: Hashable, ticket: Ticket) -> None:
        """Leaves the line, from wherever in it, and wakes who has become the first."""
        with self._lock:
            line = self._lines[key]
            was_first = line[0] is ticket
            line.remove(ticket)
            if not line:
                del self._lines[key]
            elif was_first:
                line[0].wake()
