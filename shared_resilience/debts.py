"""What a limiter has taken while Redis was away, and Redis is charged for when it is back."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from typing import Any

from shared_resilience import limits
from shared_resilience.backends.process import Bill, Process
from shared_resilience.commands import Command
from shared_resilience.integers import MILLION
from shared_resilience.limit_commands import REMEMBERED, Answer, LimitCommands
from shared_resilience.limiter_config import LimiterConfig
from shared_resilience.limiter_keys import LimiterKeys, Texts
from shared_resilience.overrides import told_in_force

MOST = 10_000

Place = tuple[int, str]
"""The number of a limit, and a key of it."""


class Debts:
    """What this process has let pass alone, by limit and key: at most `most` of each limit, the longest unused out."""

    def __init__(self, config: LimiterConfig, keys: LimiterKeys, process: Process, most: int = MOST) -> None:
        self._limits = [LimitCommands((limit,)) for limit in config.limits]
        self._partitioned = config.partitioned
        self._keys = keys
        self._process = process
        self._most = most * len(self._limits)
        self.clear()

    def __len__(self) -> int:
        return len(self._taken)

    def clear(self) -> None:
        """As if nothing had been taken."""
        self._lock = threading.Lock()
        self._taken: OrderedDict[Place, int] = OrderedDict()

    def owe(self, answer: Answer, texts: Texts, cost: int) -> None:
        """Notes `cost`, or what a lease took, if `answer` says that it was taken here while Redis is away."""
        here = answer.decision.source == "local" and answer.decision.allowed and answer.decided_us != REMEMBERED
        if here and not self._process.guard.usable:
            self.note(texts, answer.taken or cost)

    def note(self, texts: Texts, cost: int) -> None:
        """`cost` was taken of each limit for its key."""
        with self._lock:
            for place in enumerate(texts):
                self._add(place, cost)

    def _add(self, place: Place, cost: int) -> None:
        self._taken[place] = self._taken.pop(place, 0) + cost
        if len(self._taken) > self._most:
            self._taken.popitem(last=False)

    def bill(self, most: int, share: int, overrides: dict[str, str]) -> Bill | None:
        """Charges for up to `most` of them, the last used first, which are then paid; None: that was all.

        Charged is what was taken, as far as it is still missing in this process's part, one of `share`: even beyond
        what Redis has left, so that the fleet pays off what it had too much. Fractions are charged by chance, so that
        on the whole none is lost.
        """
        with self._lock:
            taken = [self._taken.popitem() for _ in range(min(most, len(self._taken)))]
        if not taken:
            return None
        charges = [(place, cost, self._charge(place, cost, share, overrides)) for place, cost in taken]
        owed = [(place, cost, command) for place, cost, command in charges if command is not None]

        def put_back(index: int) -> None:
            place, cost, _ = owed[index]
            with self._lock:
                self._add(place, cost)

        return Bill([command for _, _, command in owed], put_back)

    def _charge(self, place: Place, taken: int, share: int, overrides: dict[str, str]) -> Command[Any] | None:
        number, text = place
        of_limit, keys = self._limits[number], self._keys.of((text,) * len(self._limits))
        pair = (keys[0], keys[1 + number])
        told = told_in_force(overrides, of_limit.told)[0] if self._partitioned else of_limit.told
        states, now = self._process.local.look(pair)
        (deficit,) = limits.deficits(states, now, share, *told)
        cost = int(min(deficit, taken * MILLION) / MILLION + random.random())
        return of_limit.charge(pair, cost, told) if cost > 0 else None
