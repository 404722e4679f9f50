"""The memory of refusals: who has just been refused need not ask Redis again to be refused again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

from shared_resilience.decision import Decision

LONGEST = 1.0
MOST_KEYS = 10_000


class _Refusal(NamedTuple):
    decision: Decision
    cost: int
    max_delay: float
    held_back: int
    at: float
    until: float


class Refusals:
    """The last refusal per key, for min(retry_after, 1 s): what others give back acts within a second.

    It answers for the refused cost and for larger ones, for callers that would wait no longer, and for those that are
    no more important, from whom as much is held back. At most `MOST_KEYS` keys, the oldest out first. Every step is a
    single operation on the dict, so that threads need no lock.
    """

    def __init__(self) -> None:
        self._by_key: OrderedDict[Hashable, _Refusal] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._by_key

    def find(
        self, key: Hashable, cost: int, max_delay: float, held_back: int, now: float, exact: bool = False
    ) -> Decision | None:
        """The refusal that still stands for `cost` at `now`, with the time that is left of it.

        The time of a smaller cost is when to ask again, not when the larger one passes; `exact` does without it.
        """
        refusal = self._by_key.get(key)
        if refusal is None:
            return None
        if now >= refusal.until:
            self._by_key.pop(key, None)
            return None
        if cost < refusal.cost or max_delay > refusal.max_delay or held_back < refusal.held_back:
            return None
        if exact and (cost, max_delay, held_back) != refusal[1:4]:
            return None
        passed = now - refusal.at
        decision = refusal.decision
        return decision._replace(
            retry_after=decision.retry_after - passed,
            reset_after=max(0.0, decision.reset_after - passed),
            delay=max(0.0, decision.delay - passed),
        )

    def add(self, key: Hashable, cost: int, max_delay: float, held_back: int, decision: Decision, now: float) -> None:
        until = now + min(decision.retry_after, LONGEST)
        self._by_key[key] = _Refusal(decision, cost, max_delay, held_back, now, until)
        if len(self._by_key) > MOST_KEYS:
            self._by_key.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        self._by_key.pop(key, None)

    def clear(self) -> None:
        self._by_key.clear()
