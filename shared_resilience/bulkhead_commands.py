"""The commands of a bulkhead, and what their replies mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from shared_resilience import slots
from shared_resilience.bulkhead_config import BulkheadConfig
from shared_resilience.commands import Argument, Arguments, Command, Mold, Operation, Reply, Source
from shared_resilience.keys import ResourceKeys
from shared_resilience.limit_commands import Answer
from shared_resilience.priority import PriorityLevel, held_back

INSIDE: Reply = ("inside", 0, 0, 1, "")
"""The reply when Redis is away and calls are to pass."""

FULL: Reply = ("full", 0, 0, 0, "")
"""The reply when Redis is away and calls are to be refused."""


class Call(NamedTuple):
    """A call that wants a slot. It has a `place` in the queue if it has waited."""

    token: str
    priority: PriorityLevel
    may_wait: bool
    place: int | None


class Entry(NamedTuple):
    """A reply to a call that wants a slot.

    `state` is "inside", "waiting", "full" or "limited"; `told` is the token of the waiter that was told that it may be
    its turn. `answer` is that of the limits that were asked in the same trip.
    """

    state: str
    place: int
    fencing: int
    inside: int
    told: str
    source: Source
    answer: Answer | None


class Left(NamedTuple):
    """A reply to a call that gives its slot back."""

    told: str
    source: Source


class Kept(NamedTuple):
    """A reply to the upkeep: how many are inside and wait, who was told, and which tokens were not found."""

    inside: int
    waiting: int
    told: str
    missing: tuple[str, ...]
    source: Source


def text(value: Any) -> str:
    """A text in a reply."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def entry_of(reply: Any, source: Source, answer: Answer | None = None) -> Entry:
    """A reply, decoded, with the `answer` of the limits."""
    state, place, fencing, inside, told = reply
    return tuple.__new__(Entry, (text(state), place, fencing, inside, told and text(told), source, answer))


def _left_of(reply: Any, source: Source) -> Left:
    told = reply[1]
    return Left(told and text(told), source)


def _kept_of(reply: Any, source: Source) -> Kept:
    inside, waiting, told, *missing = reply
    return Kept(inside, waiting, text(told), tuple(map(text, missing)), source)


LEAVE: Operation[Left] = Operation("bulkhead_leave", slots.leave, _left_of)


class BulkheadCommands:
    """The commands for one bulkhead.

    `elsewhere` says how many slots this process holds by the word of Redis, which count for its share of the slots when
    Redis is away.
    """

    def __init__(self, keys: ResourceKeys, config: BulkheadConfig, elsewhere: Callable[[], int]) -> None:
        self.keys = keys.slots
        self._overrides = keys.overrides
        self._most, self._longest = config.max_concurrent_calls, config.max_queue_size
        self._held_back = held_back(config.reserved)
        self._elsewhere = elsewhere
        self._enter = Operation("bulkhead_enter", slots.enter, entry_of, self.share, INSIDE, FULL)
        self._upkeep = Operation("bulkhead_upkeep", slots.upkeep, _kept_of, self._share_of_upkeep)
        self._leave = Mold(LEAVE, self.keys[:3])
        self._newcomers = {
            (priority, may_wait): Mold(
                self._enter, (self._overrides, *self.keys), after=self.asked(Call("", priority, may_wait, None))
            )
            for priority in PriorityLevel
            for may_wait in (False, True)
        }

    def asked(self, call: Call) -> Arguments:
        """The arguments that tell of a call that wants a slot, behind its token."""
        _, priority, may_wait, place = call
        longest = self._longest if may_wait else 0
        before: Argument = "" if place is None else place
        return int(priority), before, self._most, longest, self._held_back[priority], 1, 0

    def share(self, n: int, *asked: Argument) -> Arguments:
        """What `asked` has made, last among other arguments, for one of `n` workers that each decide alone."""
        return *asked[:-2], n, self._elsewhere()

    def enter(self, call: Call) -> Command[Entry]:
        """Takes a slot, or a place in the queue."""
        token, priority, may_wait, place = call
        if place is None:
            return self._newcomers[priority, may_wait].cast(token)
        return Command(self._enter, (self._overrides, *self.keys), (token, *self.asked(call)))

    def leave(self, token: str) -> Command[Left]:
        """Gives back what `token` has: a slot, or a place in the queue."""
        return self._leave.cast(token)

    def upkeep(self, pairs: Iterable[str]) -> Command[Kept]:
        """Does what `bulkhead_upkeep.lua` does for pairs of a verb and a token."""
        return Command(self._upkeep, (self._overrides, *self.keys), (self._most, 1, 0, *pairs))

    def _share_of_upkeep(self, n: int, most: int, share: int, elsewhere: int, *pairs: Argument) -> Arguments:
        return most, n, self._elsewhere(), *pairs
