"""The commands of a limiter's limits, and what their replies mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from shared_resilience import limits
from shared_resilience.commands import Argument, Arguments, Command, Operation, Reply, Source
from shared_resilience.decision import Decision
from shared_resilience.limits import Limit

PAUSE = "pause"
"""What limits a resource that is paused."""

ALLOWED: Reply = (1, 1, 0, 0, 0, 0, 0, 0, "")
"""The reply when Redis is away and calls are to pass unlimited."""

DENIED: Reply = (0, 1, 0, 0, 1_000_000, 0, 0, 0, "")
"""The reply when Redis is away and calls are to be refused: ask again in a second."""


class Answer:
    """A reply, decoded: the decision, its time on the deciding clock in µs, and overrides that were ignored."""

    __slots__ = ("decided_us", "decision", "ignored")

    def __init__(self, reply: Reply, source: Source, labels: Sequence[str]) -> None:
        allowed, index, limit, remaining, retry_after, reset_after, delay, decided_us = map(int, reply[:8])
        wait = math.inf if retry_after < 0 else retry_after / 1e6
        reset_in, goes_on_in = reset_after / 1e6, delay / 1e6
        if allowed:
            self.decision = Decision(True, limit, remaining, 0.0, reset_in, goes_on_in, None, source)
        else:
            self.decision = Decision(False, limit, remaining, wait, reset_in, goes_on_in, labels[index], source)
        self.decided_us = decided_us
        self.ignored = reply[8].decode() if isinstance(reply[8], bytes) else str(reply[8])

    @classmethod
    def of(cls, decision: Decision) -> Answer:
        """The answer that this process gives itself."""
        answer = cls.__new__(cls)
        answer.decision, answer.decided_us, answer.ignored = decision, 0, ""
        return answer


def _share(n: int, cost: int, share: int, *rest: Argument) -> Arguments:
    return cost, share * n, *rest


def _first(reply: Reply, source: Source) -> int:
    return int(reply[0])


RESET: Operation[int] = Operation("rate_limiter_reset", limits.reset, _first)
PAUSE_FOR: Operation[int] = Operation("rate_limiter_pause", limits.pause, _first)
OVERRIDE: Operation[int] = Operation("rate_limiter_override", limits.override, _first)


class LimitCommands:
    """The commands for one list of limits. Keys are the overrides' and then each limit's."""

    __slots__ = ("_give_or_take", "_peek", "_take", "told")

    def __init__(self, configured: Sequence[Limit]) -> None:
        self.told = tuple(argument for limit in configured for argument in limit.arguments())
        decode = decoder([PAUSE, *(limit.label for limit in configured)])
        self._take = Operation("rate_limiter", limits.take, decode, _share, ALLOWED, DENIED)
        self._peek = Operation("rate_limiter_peek", limits.peek, decode, _share, ALLOWED, DENIED)
        self._give_or_take = Operation("rate_limiter_settle", limits.settle, decode, _share, ALLOWED, DENIED)

    def take(
        self, keys: tuple[str, ...], cost: int, max_delay: int = -1, told: Arguments | None = None
    ) -> Command[Answer]:
        """Takes `cost` if a leaky bucket makes the caller wait no longer than `max_delay` µs (-1: any time)."""
        return Command(self._take, keys, (cost, 1, max_delay, *(self.told if told is None else told)))

    def peek(self, keys: tuple[str, ...], cost: int, told: Arguments | None = None) -> Command[Answer]:
        return Command(self._peek, keys, (cost, 1, -1, *(self.told if told is None else told)))

    def give(
        self, keys: tuple[str, ...], cost: int, since_us: int = 0, told: Arguments | None = None
    ) -> Command[Answer]:
        return self._settle(keys, cost, "give", since_us, told)

    def charge(self, keys: tuple[str, ...], cost: int, told: Arguments | None = None) -> Command[Answer]:
        """Takes `cost` even where there is no room."""
        return self._settle(keys, cost, "take", 0, told)

    def _settle(
        self, keys: tuple[str, ...], cost: int, direction: str, since_us: int, told: Arguments | None
    ) -> Command[Answer]:
        arguments = (cost, 1, direction, since_us, *(self.told if told is None else told))
        return Command(self._give_or_take, keys, arguments)


def decoder(labels: Sequence[str]) -> Callable[[Reply, Source], Answer]:
    """Makes replies into answers; `labels` begins with that of the pause."""

    def decode(reply: Reply, source: Source) -> Answer:
        return Answer(reply, source, labels)

    return decode
