"""Leased tokens: what a process has taken from token buckets ahead of its calls, and serves from its memory."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from shared_resilience.commands import Source
from shared_resilience.decision import Decision

K = TypeVar("K", bound=Hashable)
MOST_KEYS = 10_000


@dataclass(slots=True)
class _Lease:
    """`left` tokens that may be served until `ends`; `decision` is that of the trip which took them."""

    decision: Decision
    left: int
    used: int
    begun: float
    ends: float

    def returnable(self, now: float, source: Source, rate: float) -> int:
        """How many tokens the bucket of `source`, which gets `rate` per second, may have back at `now`."""
        if now >= self.ends or source != self.decision.source:
            return 0
        return max(0, self.left - math.ceil(rate * (now - self.begun)))


class Wanted(NamedTuple):
    """What to ask for: how many tokens at most, and how many of the last lease to give back."""

    most: int
    back: int


class Leases(Generic[K]):
    """The leases of one limiter, by its keys: at most `MOST_KEYS`, the least recently renewed out first.

    A lease ends `seconds` after the moment at which it was asked for, by the monotonic clock. The first one for a key
    is of the cost at hand; the next is of at most twice what was used of the one before, and never of more than
    `tokens`: whoever calls rarely takes little from the others.

    What is not used is given back by the next trip to the same store, less what has come back to the bucket since the
    lease was taken: the bucket may have been full meanwhile, and would get the same tokens twice. So, used in any
    interval of t seconds, from all processes: at most capacity + rate × (t + `seconds`).
    """

    def __init__(self, tokens: int, seconds: float) -> None:
        self.tokens = tokens
        self._seconds = seconds
        self._by_key: OrderedDict[K, _Lease] = OrderedDict()
        self._lock = threading.Lock()

    def serve(self, key: K, cost: int, now: float) -> Decision | None:
        """The decision to let `cost` pass, if the lease for `key` holds so much at `now`."""
        with self._lock:
            lease = self._by_key.get(key)
            if lease is None or lease.left < cost or now >= lease.ends:
                return None
            lease.left -= cost
            lease.used += cost
            _, limit, remaining, _, reset_after, _, _, source = lease.decision
            fields = (True, limit, remaining + lease.left, 0.0, reset_after, 0.0, None, source)
            return tuple.__new__(Decision, fields)

    def take_out(self, key: K, cost: int, now: float, source: Source, rate: float) -> Wanted:
        """What to ask `source` for on behalf of a call of `cost`. What is left of the lease is served no longer."""
        with self._lock:
            lease = self._by_key.get(key)
            if lease is None:
                return Wanted(cost, 0)
            back = lease.returnable(now, source, rate)
            lease.left = 0
            return Wanted(max(cost, min(self.tokens, 2 * lease.used)), back)

    def put(self, key: K, cost: int, taken: int, decision: Decision, asked_at: float) -> None:
        """Keeps what a trip has taken and the call of `cost`, for which it was made, does not need."""
        with self._lock:
            self._by_key[key] = _Lease(decision, taken - cost, cost, asked_at, asked_at + self._seconds)
            self._by_key.move_to_end(key)
            if len(self._by_key) > MOST_KEYS:
                self._by_key.popitem(last=False)

    def forget(self, key: K) -> None:
        """Drops the lease for `key`, and what is left of it."""
        with self._lock:
            self._by_key.pop(key, None)

    def clear(self) -> None:
        """Drops all leases."""
        with self._lock:
            self._by_key.clear()

    def pop(self, now: float, source: Source, rate: float) -> tuple[K, int] | None:
        """Drops a lease; its key, and what can still be given back of it to `source`. None when there are no more."""
        with self._lock:
            if not self._by_key:
                return None
            key, lease = self._by_key.popitem()
            return key, lease.returnable(now, source, rate)
