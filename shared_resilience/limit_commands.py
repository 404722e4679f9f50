"""The commands of a limiter's limits, and what their replies mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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

Keys = tuple[str, ...]
ANY_DELAY = -1

REMEMBERED = -1
"""When an answer was decided that a process gives itself, out of its memory."""


class Answer(NamedTuple):
    """A reply, decoded: the decision, its time on the deciding clock in µs, and overrides that were ignored.

    `taken` is what a lease got, 0 for any other command.
    """

    decision: Decision
    decided_us: int = 0
    ignored: str = ""
    taken: int = 0


def _share(n: int, cost: int, share: int, *rest: Argument) -> Arguments:
    return cost, share * n, *rest


def _ramp(reply: Reply, left_us: int) -> Reply | None:
    allowed, index, limit, remaining, wait, *rest = reply
    if allowed:
        return None
    return (allowed, index, limit, remaining, min(int(wait), left_us) if int(wait) >= 0 else wait, *rest)


def _first(reply: Reply, source: Source) -> int:
    return int(reply[0])


RESET: Operation[int] = Operation("rate_limiter_reset", limits.reset, _first)
PAUSE_FOR: Operation[int] = Operation("rate_limiter_pause", limits.pause, _first)
OVERRIDE: Operation[int] = Operation("rate_limiter_override", limits.override, _first)


class LimitCommands:
    """The commands for one list of limits. Keys are the overrides' and then each limit's.

    `told` is what the scripts are told of the limits, where it differs from their configuration.
    """

    __slots__ = ("_give_or_take", "_lease", "_peek", "_take", "decode", "may_delay", "told")

    def __init__(self, configured: Sequence[Limit]) -> None:
        self.told = tuple(argument for limit in configured for argument in limit.arguments())
        self.decode = decode = decoder([PAUSE, *(limit.label for limit in configured)])
        kinds = {str(limit.arguments()[0]) for limit in configured}
        self.may_delay = "leaky_bucket" in kinds
        script = kinds.pop() if len(kinds) == 1 else "rate_limiter"
        twin = limits.take_tokens if script == "token_bucket" else limits.take
        self._take = Operation(script, twin, decode, _share, ALLOWED, DENIED, _ramp)
        of_leases = decoder_of_leases(decode)
        self._lease = Operation(
            "token_bucket_lease", limits.lease, of_leases, _share, (*ALLOWED, 0), (*DENIED, 0), _ramp
        )
        self._peek = Operation("rate_limiter_peek", limits.peek, decode, _share, ALLOWED, DENIED)
        self._give_or_take = Operation("rate_limiter_settle", limits.settle, decode, _share, ALLOWED, DENIED)

    def take(
        self, keys: Keys, cost: int, max_delay: int = ANY_DELAY, held_back: int = 0, told: Arguments | None = None
    ) -> Command[Answer]:
        """Takes `cost` if `held_back` millionths of each limit remain.

        And if a leaky bucket, should there be one, makes the caller wait no longer than `max_delay` µs.
        """
        return Command(self._take, keys, self.asked(cost, max_delay, held_back, told))

    def asked(
        self, cost: int, max_delay: int = ANY_DELAY, held_back: int = 0, told: Arguments | None = None
    ) -> Arguments:
        """The arguments of a script that takes."""
        return cost, 1, max_delay if self.may_delay else ANY_DELAY, held_back, *(told or self.told)

    def lease(self, keys: Keys, cost: int, most: int, back: int, told: Arguments | None = None) -> Command[Answer]:
        """Gives `back`, then takes `cost` at least and `most` at most. For token buckets alone."""
        return Command(self._lease, keys, (cost, 1, most, back, *(told or self.told)))

    def peek(self, keys: Keys, cost: int, held_back: int = 0, told: Arguments | None = None) -> Command[Answer]:
        """What taking `cost` would answer."""
        return Command(self._peek, keys, self.asked(cost, ANY_DELAY, held_back, told))

    def give(self, keys: Keys, cost: int, since_us: int = 0, told: Arguments | None = None) -> Command[Answer]:
        """Gives back `cost`, taken at `since_us` (0: unknown)."""
        return Command(self._give_or_take, keys, (cost, 1, "give", since_us, *(told or self.told)))

    def charge(self, keys: Keys, cost: int, told: Arguments | None = None) -> Command[Answer]:
        """Takes `cost` even where there is no room."""
        return Command(self._give_or_take, keys, (cost, 1, "take", 0, *(told or self.told)))


def decoder(labels: Sequence[str]) -> Callable[[Any, Source], Answer]:
    """Makes replies into answers; `labels` begins with that of the pause."""
    make = tuple.__new__  # a NamedTuple in half the time

    def decode(reply: Any, source: Source) -> Answer:
        allowed, index, limit, remaining, wait, reset_after, delay, decided_us, ignored = reply
        if allowed:
            fields = (True, limit, remaining, 0.0, reset_after / 1e6, delay / 1e6, None, source)
        else:
            retry_after = math.inf if wait < 0 else wait / 1e6
            fields = (False, limit, remaining, retry_after, reset_after / 1e6, delay / 1e6, labels[index], source)
        if ignored:
            ignored = ignored.decode("utf-8", "replace") if isinstance(ignored, bytes) else ignored
        return make(Answer, (make(Decision, fields), decided_us, ignored, 0))

    return decode


def decoder_of_leases(decode: Callable[[Any, Source], Answer]) -> Callable[[Any, Source], Answer]:
    """The same for replies that end with what was taken."""

    def decode_lease(reply: Any, source: Source) -> Answer:
        return decode(reply[:-1], source)._replace(taken=int(reply[-1]))

    return decode_lease
