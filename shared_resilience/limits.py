"""The twins of the scripts that decide several limits at once, made of the twins of the kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shared_resilience.commands import Argument, State, Step
from shared_resilience.leaky_bucket import LeakyBucket, Queue
from shared_resilience.overrides import Overrides
from shared_resilience.sliding_window import Log, SlidingWindow
from shared_resilience.token_bucket import Bucket, TokenBucket

Limit = TokenBucket | SlidingWindow | LeakyBucket


class Checked(Protocol):
    """A limit as it stands: what every kind can be asked and told. Times are in µs, costs in whole units."""

    rebased: bool
    stored: State
    ttl: int | None

    def wait(self, cost: int) -> int:
        """Until `cost` fits; 0: now, -1: never."""

    def delay(self) -> int:
        """Until a call that enters now may go on."""

    def reset_after(self) -> int:
        """Until it is as if unused."""

    def remaining(self) -> int:
        """What is left."""

    def size(self) -> int:
        """What there is at most."""

    def take(self, cost: int) -> None:
        """Charges `cost`, even beyond what is left."""

    def give(self, cost: int, since: int) -> None:
        """Gives back `cost`, which was taken at `since`."""

    def write(self) -> None:
        """Marks the state as to be written."""


KINDS: dict[str, type[Bucket] | type[Log]] = {"leaky_bucket": Queue, "sliding_window": Log, "token_bucket": Bucket}
PER_LIMIT = 5


def take(states: Sequence[State], now: int, cost: int, share: int, max_delay: int, *told: Argument) -> Step:
    """Twin of `rate_limiter.lua`."""
    overrides, limits = _check(states, now, share, told)
    left = overrides.paused(now)
    if left > 0:
        return _step(overrides, limits, _reply_paused(overrides, limits, left, now))
    keeper, wait = _longest_wait(limits, cost, max_delay)
    delay = max(limit.delay() for limit in limits)
    for limit in limits:
        if wait == 0:
            limit.take(cost)
        elif limit.rebased:
            limit.write()
    return _step(overrides, limits, _reply(overrides, limits, keeper, wait, delay, now))


def peek(states: Sequence[State], now: int, cost: int, share: int, max_delay: int, *told: Argument) -> Step:
    """Twin of `rate_limiter_peek.lua`."""
    overrides, limits = _check(states, now, share, told)
    left = overrides.paused(now)
    if left > 0:
        return Step(states, (None,) * len(states), _reply_paused(overrides, limits, left, now))
    keeper, wait = _longest_wait(limits, cost, max_delay)
    delay = max(limit.delay() for limit in limits)
    return Step(states, (None,) * len(states), _reply(overrides, limits, keeper, wait, delay, now))


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
    keeper, wait = _longest_wait(limits, 1, -1)
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


def _longest_wait(limits: Sequence[Checked], cost: int, max_delay: int) -> tuple[int, int]:
    keeper, longest = 0, 0
    for index, limit in enumerate(limits, start=1):
        wait = limit.wait(cost)
        if wait >= 0 and max_delay >= 0:
            wait = max(wait, limit.delay() - max_delay)
        if longest >= 0 and (wait < 0 or wait > longest):
            keeper, longest = index, wait
    return keeper, longest


def _tightest(limits: Sequence[Checked]) -> int:
    return min(range(1, len(limits) + 1), key=lambda index: limits[index - 1].remaining())


def _reply(
    overrides: Overrides, limits: Sequence[Checked], keeper: int, wait: int, delay: int, now: int
) -> tuple[int | str, ...]:
    index = keeper or _tightest(limits)
    limit = limits[index - 1]
    allowed = 1 if wait == 0 else 0
    rest = (limit.size(), limit.remaining(), wait, limit.reset_after(), delay, str(now), overrides.ignored)
    return allowed, index, *rest


def _reply_paused(overrides: Overrides, limits: Sequence[Checked], left: int, now: int) -> tuple[int | str, ...]:
    limit = limits[0]
    return 0, 0, limit.size(), limit.remaining(), left, left, 0, str(now), overrides.ignored
