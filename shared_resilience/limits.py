"""The twins of the scripts that decide several limits at once, made of the twins of the kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from shared_resilience import token_bucket
from shared_resilience.commands import Argument, State, Step
from shared_resilience.integers import MILLION
from shared_resilience.leaky_bucket import LeakyBucket, Queue
from shared_resilience.overrides import PER_LIMIT, Overrides
from shared_resilience.sliding_window import Log, SlidingWindow
from shared_resilience.token_bucket import Bucket, TokenBucket

Limit = TokenBucket | SlidingWindow | LeakyBucket


class Checked(Protocol):
    """A limit as it stands, as `lua/lib/kinds.lua` says. Times are in µs, costs in whole units."""

    stored: State
    ttl: int | None
    rebased: bool
    size: int
    remaining: int
    reset_after: int
    delay: int

    def wait(self, cost: int) -> int:
        """Until `cost` fits; 0: now, -1: never."""

    def deficit(self) -> int:
        """Millionths of what has been taken and has not come back; of a divided limit, its part at most."""

    def take(self, cost: int) -> None:
        """Charges `cost`, even beyond what is left; 0 just writes."""

    def give(self, cost: int, since: int) -> None:
        """Gives back `cost`, which was taken at `since`."""


KINDS: dict[str, type[Bucket] | type[Log]] = {"leaky_bucket": Queue, "sliding_window": Log, "token_bucket": Bucket}


def take_tokens(states: Sequence[State], now: int, *told: Argument) -> Step:
    """Twin of `token_bucket.lua`."""
    usual = token_bucket.take(states, now, told) if len(states) == 2 else None
    return usual or take(states, now, *told)  # type: ignore[arg-type]  # as the script is told


class Call:
    """Twin of `read_call` in `lua/lib/limits.lua`: the call at hand, and the limits as they stand."""

    def __init__(
        self, states: Sequence[State], now: int, share: int, told: Sequence[Argument], may_write: bool
    ) -> None:
        self.now = now
        self.held_back = 0
        self._states, self._may_write = states, may_write
        self.overrides = Overrides(states[0])
        self.limits: list[Checked] = []
        for number, stored in enumerate(states[1:]):
            kind, label, *numbers = told[PER_LIMIT * number : PER_LIMIT * (number + 1)]
            in_force = self.overrides.in_force(str(kind), str(label), *map(int, numbers))
            self.limits.append(KINDS[str(kind)](stored, now, *in_force, share))
        self.paused = self.overrides.paused(now)

    def _needed(self, limit: Checked, cost: int) -> int:
        """Twin of `needed`."""
        return max(cost, min(limit.size, cost - -limit.size * self.held_back // MILLION))

    def longest_wait(self, cost: int, max_delay: int) -> tuple[int, int, int]:
        """Twin of `longest_wait`."""
        if self.paused > 0:
            return 0, self.paused, 0
        keeper, longest, delay = 0, 0, 0
        for index, limit in enumerate(self.limits, start=1):
            wait = limit.wait(self._needed(limit, cost) if self.held_back else cost)
            if wait >= 0 and max_delay >= 0:
                wait = max(wait, limit.delay - max_delay)
            if longest >= 0 and (wait < 0 or wait > longest):
                keeper, longest = index, wait
            delay = max(delay, limit.delay)
        return keeper, longest, delay

    def step(self, keeper: int, wait: int, delay: int, *more: int | str) -> Step:
        """Twin of `reply_of`, and what is to be written."""
        limits = self.limits
        if wait == 0:
            keeper = min(range(1, len(limits) + 1), key=lambda index: limits[index - 1].remaining)
        limit = limits[max(1, keeper) - 1]
        reset_after = limit.reset_after if keeper > 0 else wait
        numbers = [int(wait == 0), keeper, limit.size, limit.remaining, wait, reset_after, delay, self.now]
        reply: tuple[int | str, ...] = (*numbers, self.overrides.ignored, *more)
        overrides, ttl = (self.overrides.stored, self.overrides.ttl) if self._may_write else (self._states[0], None)
        return Step((overrides, *(limit.stored for limit in limits)), (ttl, *(limit.ttl for limit in limits)), reply)


def take(
    states: Sequence[State], now: int, cost: int, share: int, max_delay: int, held_back: int, *told: Argument
) -> Step:
    """Twin of `rate_limiter.lua`, `sliding_window.lua` and `leaky_bucket.lua`."""
    call = Call(states, now, share, told, may_write=True)
    call.held_back = held_back
    keeper, wait, delay = call.longest_wait(cost, max_delay)
    for limit in call.limits:
        if call.paused == 0 and (wait == 0 or limit.rebased):
            limit.take(cost if wait == 0 else 0)
    return call.step(keeper, wait, delay)


def peek(
    states: Sequence[State], now: int, cost: int, share: int, max_delay: int, held_back: int, *told: Argument
) -> Step:
    """Twin of `rate_limiter_peek.lua`."""
    call = Call(states, now, share, told, may_write=False)
    call.held_back = held_back
    return call.step(*call.longest_wait(cost, max_delay))


def lease(states: Sequence[State], now: int, cost: int, share: int, most: int, back: int, *told: Argument) -> Step:
    """Twin of `token_bucket_lease.lua`."""
    call = Call(states, now, share, told, may_write=True)
    buckets = cast("list[Bucket]", call.limits)
    for bucket in buckets:
        bucket.add(back)
    keeper, wait, delay = call.longest_wait(cost, -1)
    taken = max(cost, most) if wait == 0 else 0
    for bucket in buckets:
        taken = min(taken, max(cost, bucket.remaining))
    for bucket in buckets:
        if taken + back > 0 or bucket.rebased:
            bucket.take(taken)
    return call.step(keeper, wait, delay, taken)


def settle(
    states: Sequence[State], now: int, cost: int, share: int, direction: str, since: int, *told: Argument
) -> Step:
    """Twin of `rate_limiter_settle.lua`."""
    call = Call(states, now, share, told, may_write=False)
    call.paused = 0
    for limit in call.limits:
        if direction == "take":
            limit.take(cost)
        else:
            limit.give(cost, since or now)
    keeper, wait, _ = call.longest_wait(1, -1)
    return call.step(keeper, wait, 0)


def deficits(states: Sequence[State], now: int, share: int, *told: Argument) -> list[int]:
    """The deficit of each limit, as one of `share` workers has left it."""
    return [limit.deficit() for limit in Call(states, now, share, told, may_write=False).limits]


def pause(states: Sequence[State], now: int, length: int) -> Step:
    """Twin of `rate_limiter_pause.lua`."""
    overrides = Overrides(states[0])
    if length == 0:
        overrides.write({"paused_until_us": "", "paused_for_us": ""})
        return _stored(overrides, 0)
    left = overrides.paused(now)
    if left < length:
        overrides.write({"paused_until_us": str(now + length), "paused_for_us": str(length)})
        left = length
    return _stored(overrides, left)


def override(states: Sequence[State], now: int, *fields: str) -> Step:
    """Twin of `rate_limiter_override.lua`."""
    overrides = Overrides(states[0])
    overrides.write(dict(zip(fields[::2], fields[1::2], strict=True)))
    return _stored(overrides, len(fields) // 2)


def reset(states: Sequence[State], now: int) -> Step:
    """Twin of `rate_limiter_reset.lua`."""
    held = sum(state is not None for state in states)
    return Step((None,) * len(states), (None,) * len(states), (held,))


def _stored(overrides: Overrides, reply: int) -> Step:
    return Step((overrides.stored,), (overrides.ttl,), (reply,))
