"""The twins of the scripts that decide several limits at once, made of the twins of the kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from shared_resilience import token_bucket
from shared_resilience.commands import Argument, State, Step
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

    def take(self, cost: int) -> None:
        """Charges `cost`, even beyond what is left; 0 just writes."""

    def give(self, cost: int, since: int) -> None:
        """Gives back `cost`, which was taken at `since`."""


KINDS: dict[str, type[Bucket] | type[Log]] = {"leaky_bucket": Queue, "sliding_window": Log, "token_bucket": Bucket}


def take_tokens(states: Sequence[State], now: int, *told: Argument) -> Step:
    """Twin of `token_bucket.lua`."""
    usual = token_bucket.take(states, now, told) if len(states) == 2 else None
    return usual or take(states, now, *told)  # type: ignore[arg-type]  # as the script is told


def take(states: Sequence[State], now: int, cost: int, share: int, max_delay: int, *told: Argument) -> Step:
    """Twin of `rate_limiter.lua`, `sliding_window.lua` and `leaky_bucket.lua`."""
    overrides, limits = _check(states, now, share, told)
    left = overrides.paused(now)
    if left > 0:
        return _step(overrides, limits, _reply(overrides, limits, 0, left, 0, now))
    keeper, wait, delay = _longest_wait(limits, cost, max_delay)
    for limit in limits:
        if wait == 0 or limit.rebased:
            limit.take(cost if wait == 0 else 0)
    return _step(overrides, limits, _reply(overrides, limits, keeper, wait, delay, now))


def peek(states: Sequence[State], now: int, cost: int, share: int, max_delay: int, *told: Argument) -> Step:
    """Twin of `rate_limiter_peek.lua`."""
    overrides, limits = _check(states, now, share, told)
    left = overrides.paused(now)
    if left > 0:
        return Step(states, (None,) * len(states), _reply(overrides, limits, 0, left, 0, now))
    keeper, wait, delay = _longest_wait(limits, cost, max_delay)
    return Step(states, (None,) * len(states), _reply(overrides, limits, keeper, wait, delay, now))


def lease(states: Sequence[State], now: int, cost: int, share: int, most: int, back: int, *told: Argument) -> Step:
    """Twin of `token_bucket_lease.lua`."""
    overrides, limits = _check(states, now, share, told)
    buckets = cast("list[Bucket]", limits)
    for bucket in buckets:
        bucket.add(back)
    left = overrides.paused(now)
    keeper, wait, delay = _longest_wait(limits, cost, -1)
    taken = max(cost, most) if left == 0 and wait == 0 else 0
    for bucket in buckets:
        taken = min(taken, max(cost, bucket.remaining))
    for bucket in buckets:
        if taken + back > 0 or bucket.rebased:
            bucket.take(taken)
    reply = _reply(overrides, limits, 0 if left > 0 else keeper, left if left > 0 else wait, delay, now)
    return _step(overrides, limits, (*reply, taken))


def settle(
    states: Sequence[State], now: int, cost: int, share: int, direction: str, since: int, *told: Argument
) -> Step:
    """Twin of `rate_limiter_settle.lua`."""
    overrides, limits = _check(states, now, share, told)
    for limit in limits:
        if direction == "take":
            limit.take(cost)
        else:
            limit.give(cost, since or now)
    keeper, wait, _ = _longest_wait(limits, 1, -1)
    return _step(overrides, limits, _reply(overrides, limits, keeper, wait, 0, now))


def pause(states: Sequence[State], now: int, length: int) -> Step:
    """Twin of `rate_limiter_pause.lua`."""
    overrides = Overrides(states[0])
    if length == 0:
        overrides.write({"paused_until_us": "", "paused_for_us": ""})
        return _step(overrides, [], (0,))
    left = overrides.paused(now)
    if left < length:
        overrides.write({"paused_until_us": str(now + length), "paused_for_us": str(length)})
        left = length
    return _step(overrides, [], (left,))


def override(states: Sequence[State], now: int, *fields: str) -> Step:
    """Twin of `rate_limiter_override.lua`."""
    overrides = Overrides(states[0])
    overrides.write(dict(zip(fields[::2], fields[1::2], strict=True)))
    return _step(overrides, [], (len(fields) // 2,))


def reset(states: Sequence[State], now: int) -> Step:
    """Twin of `rate_limiter_reset.lua`."""
    held = sum(state is not None for state in states)
    return Step((None,) * len(states), (None,) * len(states), (held,))


def _check(states: Sequence[State], now: int, share: int, told: Sequence[Argument]) -> tuple[Overrides, list[Checked]]:
    overrides = Overrides(states[0])
    limits: list[Checked] = []
    for number, stored in enumerate(states[1:]):
        kind, label, *numbers = told[PER_LIMIT * number : PER_LIMIT * (number + 1)]
        in_force = overrides.in_force(str(kind), str(label), *map(int, numbers))
        limits.append(KINDS[str(kind)](stored, now, *in_force, share))
    return overrides, limits


def _step(overrides: Overrides, limits: Sequence[Checked], reply: Sequence[int | str]) -> Step:
    states = (overrides.stored, *(limit.stored for limit in limits))
    return Step(states, (0 if overrides.changed else None, *(limit.ttl for limit in limits)), reply)


def _longest_wait(limits: Sequence[Checked], cost: int, max_delay: int) -> tuple[int, int, int]:
    keeper, longest, delay = 0, 0, 0
    for index, limit in enumerate(limits, start=1):
        wait = limit.wait(cost)
        if wait >= 0 and max_delay >= 0:
            wait = max(wait, limit.delay - max_delay)
        if longest >= 0 and (wait < 0 or wait > longest):
            keeper, longest = index, wait
        delay = max(delay, limit.delay)
    return keeper, longest, delay


def _reply(
    overrides: Overrides, limits: Sequence[Checked], keeper: int, wait: int, delay: int, now: int
) -> tuple[int | str, ...]:
    if wait == 0:
        keeper = min(range(1, len(limits) + 1), key=lambda index: limits[index - 1].remaining)
    limit = limits[max(1, keeper) - 1]
    reset_after = limit.reset_after if keeper > 0 else wait
    return int(wait == 0), keeper, limit.size, limit.remaining, wait, reset_after, delay, now, overrides.ignored
