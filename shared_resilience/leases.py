"""Leased tokens: what a process has taken from token buckets ahead of its calls, and serves from its memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

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


class Wanted(NamedTuple):
    """What to ask for: how many tokens at most, and how many of the last lease to give back."""

    most: int
    back: int


class Leases(Generic[K]):
    """The leases of one limiter, by its keys: at most `MOST_KEYS`, the least recently renewed out first.

    A lease ends `seconds` after the moment at which it was asked for, by the monotonic clock. The first one for a key
    is of the cost at hand; the next is of at most twice what was used of the one before, and never of more than
    `tokens`: whoever calls rarely takes little from the others. What is not used is given back by the next trip if that
    goes out before the lease ends, else it is lost: to give it back later could let pass more than is promised.
    """

    def __init__(self, tokens: int, seconds: float) -> None:
        self._tokens = tokens
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

    def take_out(self, key: K, cost: int, now: float) -> Wanted:
        """What to ask for on behalf of a call of `cost`. What is left of the lease is no longer served from here."""
        with self._lock:
            lease = self._by_key.get(key)
            if lease is None:
                return Wanted(cost, 0)
            back = lease.left if now < lease.ends else 0
            lease.left = 0
            return Wanted(max(cost, min(self._tokens, 2 * lease.used)), back)

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

    def unused(self, now: float) -> list[tuple[K, int]]:
        """Drops all leases; what can still be given back of them, by key."""
        with self._lock:
            left = [(key, lease.left) for key, lease in self._by_key.items() if lease.left > 0 and now < lease.ends]
            self._by_key.clear()
            return left
