"""What a limiter has taken while Redis was away, and Redis is charged for when it is back."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from shared_resilience import limits
from shared_resilience.backends.process import Bill, Process
from shared_resilience.commands import Command
from shared_resilience.integers import MILLION
from shared_resilience.limit_commands import LimitCommands
from shared_resilience.limiter_config import LimiterConfig
from shared_resilience.limiter_keys import LimiterKeys, Texts
from shared_resilience.overrides import told_in_force

MOST = 10_000

Debt = tuple[int, str]
"""The number of a limit, and a key of it."""


class Debts:
    """The keys of a limiter by which this process has decided alone: at most `most`, the longest unused out first.

    Each change is a single step of a dictionary, so that threads need no lock.
    """

    def __init__(self, config: LimiterConfig, keys: LimiterKeys, process: Process, most: int = MOST) -> None:
        self._limits = [LimitCommands((limit,)) for limit in config.limits]
        self._partitioned = config.partitioned
        self._keys = keys
        self._process = process
        self._most = most
        self._debts: OrderedDict[Debt, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._debts)

    def clear(self) -> None:
        """As if nothing had been taken."""
        self._debts = OrderedDict()

    def note(self, texts: Texts) -> None:
        """Something may have been taken, of each limit for its key."""
        debts = self._debts
        for debt in enumerate(texts):
            debts[debt] = None
            with suppress(KeyError):  # another thread has popped it
                debts.move_to_end(debt)
        while len(debts) > self._most:
            self._pop(last=False)

    def bill(self, most: int, share: int, overrides: dict[str, str]) -> Bill | None:
        """Charges for up to `most` of them, the last used first; None: that was all.

        Charged is what is missing now in this process's part, one of `share`, even beyond what Redis has left: so
        the fleet pays off what it had too much. Fractions are charged by chance, so that on the whole none is lost.
        """
        debts = list(self._some(most))
        if not debts:
            return None
        commands = [command for debt in debts for command in self._charges(debt, share, overrides)]
        return Bill(commands, partial(self._put_back, debts))

    def _some(self, most: int) -> Iterator[Debt]:
        for _ in range(most):
            debt = self._pop(last=True)
            if debt is None:
                return
            yield debt

    def _pop(self, last: bool) -> Debt | None:
        try:
            return self._debts.popitem(last)[0]
        except KeyError:
            return None

    def _put_back(self, debts: Iterable[Debt]) -> None:
        self._debts.update(dict.fromkeys(debts))

    def _charges(self, debt: Debt, share: int, overrides: dict[str, str]) -> Sequence[Command[Any]]:
        number, text = debt
        of_limit, keys = self._limits[number], self._keys.of((text,) * len(self._limits))
        pair = (keys[0], keys[1 + number])
        told = told_in_force(overrides, of_limit.told)[0] if self._partitioned else of_limit.told
        states, now = self._process.local.look(pair)
        (deficit,) = limits.deficits(states, now, share, *told)
        cost = int(deficit / MILLION + random.random())
        return [of_limit.charge(pair, cost, told)] if cost > 0 else []
