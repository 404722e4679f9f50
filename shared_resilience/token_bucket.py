"""Token bucket: its configuration, and the twin of `lua/lib/token_bucket.lua`.

The algorithm is the "leaky bucket as a meter" of J. Turner, "New directions in communications", IEEE Communications
Magazine 24 (10), 1986. How no fraction of a token gets lost stands in the script.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from shared_resilience import validation
from shared_resilience.commands import Argument, State
from shared_resilience.integers import MILLION, to_ttl, to_wait


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


class Bucket:
    """A bucket as it stands at `now`; `stored` and `ttl` are what is to be written, `ttl` None: nothing."""

    def __init__(self, stored: State, now: int, capacity: int, refill: int, per: int, share: int) -> None:
        self.stored: State = stored
        self.ttl: int | None = None
        self.now, self.refill, self.per = now, refill, per * share
        self.capacity = max(1, capacity * MILLION // share)
        self.divided = share > 1
        tokens, time = self._load(stored)
        self.rebased = time > now
        if self.rebased:
            time = now
        available = self.capacity
        if now - time < -(-(self.capacity - tokens) // refill) * self.per:
            periods = (now - time) // self.per
            tokens, time = tokens + periods * refill, time + periods * self.per
            available = tokens + (now - time) * refill // self.per
        if available >= self.capacity:
            tokens, time, available = self.capacity, now, self.capacity
        self.tokens, self.time, self.available = tokens, time, available

    def _load(self, stored: State) -> tuple[int, int]:
        return stored if isinstance(stored, BucketState) else (self.capacity, self.now)

    def _until_it_holds(self, goal: int) -> int:
        deficit = goal - self.tokens
        periods = deficit // self.refill
        rest = -(-(deficit - periods * self.refill) * self.per // self.refill)
        return to_wait(periods * self.per + rest - (self.now - self.time))

    def wait(self, cost: int) -> int:
        need = cost * MILLION
        if need > self.capacity:
            if not self.divided:
                return -1
            need = self.capacity
        return 0 if self.available >= need else self._until_it_holds(need)

    def reset_after(self) -> int:
        return self._until_it_holds(self.capacity)

    def remaining(self) -> int:
        return max(0, self.available // MILLION)

    def size(self) -> int:
        return self.capacity // MILLION

    def delay(self) -> int:
        return 0

    def write(self) -> None:
        self.stored = BucketState(self.tokens, self.time)
        self.ttl = to_ttl(self.reset_after())

    def take(self, cost: int) -> None:
        self._add(-cost)

    def give(self, cost: int, since: int) -> None:
        self._add(cost)

    def _add(self, tokens: int) -> None:
        self.tokens, self.available = self.tokens + tokens * MILLION, self.available + tokens * MILLION
        if self.available >= self.capacity:
            self.tokens, self.available, self.time = self.capacity, self.capacity, self.now
        self.write()
