"""Token bucket: its configuration, and the twin of `lua/lib/token_bucket.lua`.

The algorithm is the "leaky bucket as a meter" of J. Turner, "New directions in communications", IEEE Communications
Magazine 24 (10), 1986. How no fraction of a token gets lost stands in `lua/lib/bucket.lua`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from shared_resilience import validation
from shared_resilience.commands import Argument, State, Step
from shared_resilience.integers import LONGEST_WAIT, MILLION, to_ttl


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """`capacity` tokens that come back at `refill_rate` per second; a full bucket is the burst.

    `capacity` is an integer from 1 to 10⁹, `refill_rate` a number from 10⁻⁶ to 10⁹. In any interval of t seconds at
    most `capacity + refill_rate × t` tokens are granted. `label` names the limit in keys, decisions and errors:
    letters, digits, `_ . -`. Raises `ValueError` for any other value.
    """

    capacity: int = 1000
    refill_rate: float = 100.0
    label: str = "token_bucket"

    def __post_init__(self) -> None:
        validation.count("capacity", self.capacity)
        validation.rate("refill_rate", self.refill_rate)
        validation.label("label", self.label)

    @property
    def most(self) -> int:
        """The largest cost that can ever pass."""
        return self.capacity

    def numbers(self) -> dict[str, float]:
        """The numbers in force, as they stand in clear in the resource's `config`."""
        return {"capacity": self.capacity, "refill_rate": self.refill_rate}

    def arguments(self) -> tuple[Argument, ...]:
        """What the scripts are told of it."""
        return ("token_bucket", self.label, self.capacity, *as_period(self.refill_rate))


def as_period(rate: float) -> tuple[int, int]:
    """A rate per second as (millionths of a token, microseconds): the nearest fraction with a product ≤ 2⁵³.

    A rate such as 100 / 60, which a float cannot hold, becomes the 5 millionths per 3 µs that were meant.
    """
    longest = min(10**9, math.isqrt(int(2**52 / rate)))
    period = Fraction(rate).limit_denominator(longest)
    return period.numerator, period.denominator


class BucketState(NamedTuple):
    """The hash of a bucket."""

    microtokens: int
    time_us: int


def refilled(tokens: int, time: int, now: int, capacity: int, refill: int, per: int) -> tuple[int, int, int]:
    """Twin of `refilled` in `lua/lib/bucket.lua`: tokens, their time, and what is available at `now`."""
    if time > now:
        time = now
    available = capacity
    if now - time < -(-(capacity - tokens) // refill) * per:
        periods = (now - time) // per
        tokens, time = tokens + periods * refill, time + periods * per
        available = tokens + (now - time) * refill // per
    if available >= capacity:
        return capacity, now, capacity
    return tokens, time, available


def until_it_holds(goal: int, tokens: int, time: int, now: int, refill: int, per: int) -> int:
    """Twin of `until_it_holds` in `lua/lib/bucket.lua`: µs from `now`."""
    periods, deficit = divmod(goal - tokens, refill)
    wait = periods * per - (-deficit * per // refill) - (now - time)
    return 0 if wait < 0 else wait if wait < LONGEST_WAIT else LONGEST_WAIT


class Bucket:
    """A bucket as it stands at `now`; `stored` and `ttl` are what is to be written, `ttl` None: nothing."""

    def __init__(self, stored: State, now: int, capacity: int, refill: int, per: int, share: int) -> None:
        self.stored: State = stored
        self.ttl: int | None = None
        self.now, self.refill, self.per = now, refill, per * share
        self.capacity = max(1, capacity * MILLION // share)
        self.divided = share > 1
        self.size = self.capacity // MILLION
        tokens, time = self._load(stored)
        self.rebased = time > now
        self.tokens, self.time, self.available = refilled(tokens, time, now, self.capacity, refill, self.per)
        self.delay = 0
        self._measure()

    def _load(self, stored: State) -> tuple[int, int]:
        return stored if isinstance(stored, BucketState) else (self.capacity, self.now)

    def _measure(self) -> None:
        self.remaining = max(0, self.available // MILLION)
        self.reset_after = self._until_it_holds(self.capacity)

    def _until_it_holds(self, goal: int) -> int:
        return until_it_holds(goal, self.tokens, self.time, self.now, self.refill, self.per)

    def wait(self, cost: int) -> int:
        need = cost * MILLION
        if need > self.capacity:
            if not self.divided:
                return -1
            need = self.capacity
        return self._until_it_holds(need)

    def take(self, cost: int) -> None:
        self.add(-cost)
        self._store()

    def give(self, cost: int, since: int) -> None:
        self.take(-cost)

    def deficit(self) -> int:
        return min(self.capacity, self.capacity - self.available)

    def add(self, tokens: int) -> None:
        """Without writing; what would overflow is dropped."""
        self.tokens = max(self.tokens + tokens * MILLION, -LONGEST_WAIT)
        self.available += tokens * MILLION
        if self.available >= self.capacity:
            self.tokens, self.available, self.time = self.capacity, self.capacity, self.now
        self._measure()

    def _store(self) -> None:
        self.stored = BucketState(self.tokens, self.time)
        self.ttl = to_ttl(self.reset_after)


def take(states: Sequence[State], now: int, told: Any) -> Step | None:
    """Twin of the first part of `token_bucket.lua`: one bucket, nothing overridden, enough tokens; else None.

    `told` are the arguments of the script. It spares the local store half of a decision's time, too.
    """
    overrides, stored = states
    cost, share, _, held_back, _, _, size, refill, per = told
    if overrides is not None or share != 1 or held_back != 0:
        return None
    capacity, need = size * MILLION, cost * MILLION
    tokens, time = stored if type(stored) is BucketState else (capacity, now)
    tokens, time, available = refilled(tokens, time, now, capacity, refill, per)
    if need > available:
        return None
    tokens, available = tokens - need, available - need
    reset_after = until_it_holds(capacity, tokens, time, now, refill, per)
    make = tuple.__new__  # a NamedTuple in half the time
    reply = (1, 1, size, available // MILLION, 0, reset_after, 0, now, "")
    return make(Step, ((None, make(BucketState, (tokens, time))), (None, to_ttl(reset_after)), reply))
