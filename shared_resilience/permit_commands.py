"""The command that asks for limits and a slot in one trip, what its reply means, and its twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared_resilience import limits
from shared_resilience.bulkhead_commands import FULL, INSIDE, BulkheadCommands, Call, Entry, entry_of
from shared_resilience.commands import Argument, Arguments, Command, Mold, Operation, Source, State, Step
from shared_resilience.limit_commands import ALLOWED, DENIED, Keys, LimitCommands
from shared_resilience.slots import TOLD, Slots, Want

OF_LIMITS = len(ALLOWED)
SLOT_KEYS = 4


def enter(states: Sequence[State], now: int, *told: Argument) -> Step:
    """Twin of `permits_enter.lua`."""
    cost, share, _, held_back, *of_limits = told[:-TOLD]
    call = limits.Call(states[:-SLOT_KEYS], now, int(share), of_limits, may_write=True)
    call.held_back = int(held_back)
    want = Want(Slots(states[-SLOT_KEYS:], now), call.overrides, told[-TOLD:])
    keeper, wait, delay = call.longest_wait(int(cost), -1)
    passes = wait == 0 and want.fits
    for limit in call.limits:
        if call.paused == 0 and (passes or limit.rebased):
            limit.take(int(cost) if passes else 0)
    entered = want.enter() if wait == 0 else want.limited()
    step = call.step(keeper, wait, delay, *entered)
    slots = want.slots
    return Step((*step.states, *slots.states), (*step.ttls, *slots.ttls), step.reply)


class PermitCommands:
    """The command for the limits and the bulkhead of one resource."""

    def __init__(self, of_limits: LimitCommands, of_slots: BulkheadCommands) -> None:
        self._limits, self._slots = of_limits, of_slots
        decode = of_limits.decode

        def decode_both(reply: Any, source: Source) -> Entry:
            return entry_of(reply[OF_LIMITS:], source, decode(reply[:OF_LIMITS], source))

        allowed, denied = (*ALLOWED, *INSIDE), (*DENIED, *FULL)
        self._enter = Operation("permits_enter", enter, decode_both, self._share, allowed, denied)

    def like(self, keys: Keys, cost: int, held_back: int, call: Call) -> Mold[Entry]:
        """Commands like `enter` for calls that are like this one but for their tokens."""
        asked = self._limits.asked(cost, held_back=held_back)
        return Mold(self._enter, (*keys, *self._slots.keys), asked, self._slots.asked(call))

    def enter(self, keys: Keys, cost: int, held_back: int, call: Call) -> Command[Entry]:
        """Takes `cost` of all limits and a slot, or a place in the queue."""
        return self.like(keys, cost, held_back, call).cast(call.token)

    def _share(self, n: int, cost: Argument, share: int, *rest: Argument) -> Arguments:
        return cost, share * n, *self._slots.share(n, *rest)
