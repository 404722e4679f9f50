"""The slots of a bulkhead and the queue before them: twins of the scripts `bulkhead_*.lua`.

The bulkhead is M. Nygard's pattern, "Release It!", 2007; here its slots are leases, and one set for a whole fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from shared_resilience.commands import Argument, State, Step
from shared_resilience.integers import LARGEST, MILLION
from shared_resilience.lease import lease_of
from shared_resilience.overrides import BULKHEAD, Overrides

PRIORITY = 10**15
ALIVE_FOR = 2_000_000
DAY_MS, MINUTE_MS = 86_400_000, 60_000
DEAD_AT_ONCE = 100
TOLD = 8
"""Arguments by which scripts are told of a call that wants a slot."""

Entered = tuple[str, int, int, int, str]
"""State, place, fencing number, how many are inside, who was told."""


class Slots:
    """The slots and the queue as they stand at `now`; `states` and `ttls` are what is to be written."""

    def __init__(self, states: Sequence[State], now: int) -> None:
        holders, queue, waiters, *fencing = states
        self.now = now
        self.holders, self.queue, self.waiters = map(_copy, (holders, queue, waiters))
        self.fencing = cast("int | None", fencing[0]) if fencing else None
        self.size = 0
        self._ttls: list[int | None] = [None] * len(states)

    @property
    def states(self) -> tuple[State, ...]:
        states = (self.holders or None, self.queue or None, self.waiters or None, self.fencing)
        return states[: len(self._ttls)]

    @property
    def ttls(self) -> tuple[int | None, ...]:
        return tuple(self._ttls)

    def touch(self) -> None:
        """Has the sorted sets live on."""
        self._ttls[:3] = DAY_MS, MINUTE_MS, MINUTE_MS

    def set_size(self, overrides: Overrides, most: int, share: int, elsewhere: int) -> None:
        """Twin of `set_size`."""
        self.size = max(1, (overrides.count(BULKHEAD + "max_concurrent_calls") or most) // share) - elsewhere

    def count_inside(self, enough: int) -> int:
        """Twin of `count_inside`."""
        if len(self.holders) >= enough:
            self.holders = {token: end for token, end in self.holders.items() if end > self.now}
            while self.holders and (last := max(self.holders, key=self._end)) and self._seems_too_long(last):
                self.holders[last] = self.now + lease_of(last)
        return len(self.holders)

    def _end(self, token: str) -> tuple[int, str]:
        return self.holders[token], token

    def _seems_too_long(self, token: str) -> bool:
        return self.holders[token] > self.now + lease_of(token)

    def drop_waiter(self, token: str) -> None:
        self.queue.pop(token, None)
        self.waiters.pop(token, None)

    def _place(self, token: str) -> tuple[int, str]:
        return self.queue[token], token

    def first_waiter(self) -> str | None:
        """Twin of `first_waiter`."""
        while self.queue:
            first = min(self.queue, key=self._place)
            seen = self.waiters.get(first)
            if seen is not None and self.now - ALIVE_FOR < seen <= self.now:
                return first
            self.drop_waiter(first)
        return None

    def leave_queue(self, token: str) -> str:
        """Twin of `leave_queue`."""
        was_first = token in self.queue and token == min(self.queue, key=self._place)
        self.drop_waiter(token)
        return (self.first_waiter() or "") if was_first else ""

    def is_queue_full(self, longest: int) -> bool:
        """Twin of `is_queue_full`."""
        if len(self.queue) < longest:
            return False
        dead = sorted((seen, token) for token, seen in self.waiters.items() if seen <= self.now - ALIVE_FOR)
        for _, token in dead[:DEAD_AT_ONCE]:
            self.drop_waiter(token)
        return len(self.queue) >= longest

    def next_place(self, priority: int) -> int:
        """Twin of `next_place`."""
        first = priority * PRIORITY
        last = max((place for place in self.queue.values() if first <= place < first + PRIORITY), default=-1)
        return max(first + self.now // 10, last + 1)

    def next_fencing(self) -> int:
        """Twin of `next_fencing`."""
        stored, self.fencing = self.fencing, self.now
        if stored is not None and self.now <= stored < LARGEST:
            self.fencing = stored + 1
        self._ttls[3] = DAY_MS
        return self.fencing


def _copy(state: State) -> dict[str, int]:
    return dict(cast("Mapping[str, int]", state or {}))


class Want:
    """Twin of `check_slots`, `take_slot`, `join_queue` and `enter`: a call that wants a slot."""

    def __init__(self, slots: Slots, overrides: Overrides, told: Sequence[Argument]) -> None:
        token, priority, place, most, longest, held_back, share, elsewhere = told
        self.slots, self.token, self.priority = slots, str(token), int(priority)
        self.place = int(place) if place != "" else None
        if self.place is not None:
            slots.holders.pop(self.token, None)
        slots.set_size(overrides, int(most), int(share), int(elsewhere))
        self.longest = int(longest)
        if self.longest > 0:
            self.longest = overrides.count(BULKHEAD + "max_queue_size") or self.longest
        size = slots.size + int(elsewhere)
        mine = slots.size - min(-(-size * int(held_back) // MILLION), size - 1)
        self.inside = slots.count_inside(mine)
        first, before = slots.first_waiter(), self.place or (self.priority + 1) * PRIORITY
        passed_over = first is not None and first != self.token and slots.queue[first] < before
        self.fits = self.inside < mine and not passed_over

    def _take_slot(self) -> Entered:
        slots, told = self.slots, ""
        slots.holders[self.token] = slots.now + lease_of(self.token)
        slots._ttls[0] = DAY_MS
        if self.place is not None:
            slots.drop_waiter(self.token)
            told = (slots.first_waiter() or "") if self.inside + 1 < slots.size else ""
        return "inside", 0, slots.next_fencing(), self.inside + 1, told

    def _join_queue(self) -> bool:
        slots = self.slots
        if self.longest == 0 or (self.place is None and slots.is_queue_full(self.longest)):
            return False
        latest = slots.next_place(self.priority)
        self.place = min(self.place or latest, latest)
        slots.queue[self.token], slots.waiters[self.token] = self.place, slots.now
        slots._ttls[1:3] = MINUTE_MS, MINUTE_MS
        return True

    def enter(self) -> Entered:
        if self.fits:
            return self._take_slot()
        if self._join_queue():
            return "waiting", cast("int", self.place), 0, self.inside, ""
        return "full", 0, 0, self.inside, self.leave_queue()

    def limited(self) -> Entered:
        """What is replied to a call that a limit refuses."""
        told = self.leave_queue()
        return "limited", self.place or self.slots.next_place(self.priority), 0, self.inside, told

    def leave_queue(self) -> str:
        return self.slots.leave_queue(self.token) if self.place is not None else ""


def enter(states: Sequence[State], now: int, *told: Argument) -> Step:
    """Twin of `bulkhead_enter.lua`."""
    slots = Slots(states[1:], now)
    reply = Want(slots, Overrides(states[0]), told).enter()
    return Step((states[0], *slots.states), (None, *slots.ttls), reply)


def leave(states: Sequence[State], now: int, token: str) -> Step:
    """Twin of `bulkhead_leave.lua`."""
    slots = Slots(states, now)
    left, told = slots.holders.pop(token, None) is not None, ""
    if slots.queue:
        told = (slots.first_waiter() or "") if left else slots.leave_queue(token)
    return Step(slots.states, slots.ttls, (int(left), told))


def upkeep(states: Sequence[State], now: int, most: int, share: int, elsewhere: int, *pairs: str) -> Step:
    """Twin of `bulkhead_upkeep.lua`."""
    slots, missing, told = Slots(states[1:], now), list[str](), ""
    slots.set_size(Overrides(states[0]), most, share, elsewhere)
    for verb, token in zip(pairs[::2], pairs[1::2], strict=True):
        if verb == "drop":
            slots.holders.pop(token, None)
            slots.leave_queue(token)
        elif verb == "wait" and token in slots.queue:
            slots.waiters[token] = now
        elif verb == "adopt" or (verb == "renew" and token in slots.holders):
            slots.holders[token] = now + lease_of(token)
            if verb == "adopt":
                slots.drop_waiter(token)
        else:
            missing.append(token)
    slots.touch()
    if slots.count_inside(slots.size) < slots.size:
        told = slots.first_waiter() or ""
    inside = sum(end > now for end in slots.holders.values())
    waiting = sum(now - ALIVE_FOR < seen <= now for seen in slots.waiters.values())
    return Step((states[0], *slots.states), (None, *slots.ttls), (inside, waiting, told, *missing))
