"""Token bucket: its configuration, its commands, and the twins of its scripts.

The algorithm is the "leaky bucket as a meter" of J. Turner, "New directions in communications", IEEE Communications
Magazine 24 (10), 1986. All amounts in scripts and twins are integers, millionths of a token and microseconds; how no
fraction gets lost stands in `lua/lib/token_bucket.lua`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from shared_resilience import validation
from shared_resilience.commands import Arguments, Command, Operation, State, Step
from shared_resilience.decision import ALLOWED, DENIED, Decision, decoder

TOKEN = 1_000_000
LARGEST = 2**53 - 1


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

    def numbers(self) -> dict[str, float]:
        """The numbers in force, as they stand in clear in the resource's `config`."""
        return {"capacity": self.capacity, "refill_rate": self.refill_rate}


class BucketCommands:
    """The commands of one bucket; the numbers of its configuration are converted once."""

    __slots__ = ("_capacity", "_operations", "_per", "_refill")

    def __init__(self, bucket: TokenBucket) -> None:
        self._capacity = bucket.capacity * TOKEN
        self._refill, self._per = as_period(bucket.refill_rate)
        decode = decoder(bucket.label)
        self._operations = tuple(
            Operation(script, twin, decode, share, ALLOWED, DENIED)
            for script, twin, share in (
                ("token_bucket", take, share_of_take),
                ("token_bucket_peek", peek, share_of_peek),
                ("token_bucket_refund", refund, share_of_refund),
            )
        )

    def take(self, keys: tuple[str, ...], cost: int) -> Command[Decision]:
        need = cost * TOKEN
        return Command(self._operations[0], keys, (self._capacity, self._refill, self._per, need, need))

    def peek(self, keys: tuple[str, ...], cost: int) -> Command[Decision]:
        return Command(self._operations[1], keys, (self._capacity, self._refill, self._per, cost * TOKEN))

    def refund(self, keys: tuple[str, ...], cost: int) -> Command[Decision]:
        return Command(self._operations[2], keys, (self._capacity, self._refill, self._per, cost * TOKEN))


def as_period(rate: float) -> tuple[int, int]:
    """A rate per second as (millionths of a token, microseconds): the nearest fraction with a product ≤ 2⁵³.

    A rate such as 100 / 60, which a float cannot hold, becomes the 5 millionths per 3 µs that were meant.
    """
    longest = min(10**9, math.isqrt(int(2**52 / rate)))
    period = Fraction(rate).limit_denominator(longest)
    return period.numerator, period.denominator


def share_of_take(n: int, capacity: int, refill: int, per: int, cost: int, need: int) -> Arguments:
    """An n-th of the capacity at an n-th of the rate; a cost above it passes when it is full, and leaves debt."""
    share = max(1, capacity // n)
    return share, refill, per * n, cost, min(share, need)


def share_of_peek(n: int, capacity: int, refill: int, per: int, need: int) -> Arguments:
    """What `share_of_take` would ask of the share."""
    share = max(1, capacity // n)
    return share, refill, per * n, min(share, need)


def share_of_refund(n: int, capacity: int, refill: int, per: int, amount: int) -> Arguments:
    """The whole amount, to an n-th of the capacity."""
    return max(1, capacity // n), refill, per * n, amount


class BucketState(NamedTuple):
    """The hash of a bucket."""

    microtokens: int
    time_us: int


class _Bucket(NamedTuple):
    tokens: int
    time: int
    available: int
    rebased: bool


def take(states: tuple[State, ...], now: int, capacity: int, refill: int, per: int, cost: int, need: int) -> Step:
    """Twin of `token_bucket.lua`."""
    stored, overrides = states
    bucket = _check(stored, now, capacity, refill, per)
    allowed = bucket.available >= need
    ttl = None
    if allowed:
        bucket, stored, ttl = _take(bucket, now, capacity, refill, per, -cost)
    elif bucket.rebased:
        bucket, stored, ttl = _take(bucket, now, capacity, refill, per, 0)
    return Step((stored, overrides), (ttl, None), _reply(bucket, now, capacity, refill, per, need, allowed))


def peek(states: tuple[State, ...], now: int, capacity: int, refill: int, per: int, need: int) -> Step:
    """Twin of `token_bucket_peek.lua`."""
    bucket = _check(states[0], now, capacity, refill, per)
    return Step(states, (None, None), _reply(bucket, now, capacity, refill, per, need, bucket.available >= need))


def refund(states: tuple[State, ...], now: int, capacity: int, refill: int, per: int, amount: int) -> Step:
    """Twin of `token_bucket_refund.lua`."""
    stored, overrides = states
    bucket = _check(stored, now, capacity, refill, per)
    bucket, stored, ttl = _take(bucket, now, capacity, refill, per, amount)
    return Step((stored, overrides), (ttl, None), _reply(bucket, now, capacity, refill, per, amount, True))


def _check(stored: State, now: int, capacity: int, refill: int, per: int) -> _Bucket:
    tokens, time = stored if isinstance(stored, BucketState) else (capacity, now)
    rebased = time > now
    if rebased:
        time = now
    available = capacity
    if now - time < -(-(capacity - tokens) // refill) * per:
        periods = (now - time) // per
        tokens, time = tokens + periods * refill, time + periods * per
        available = tokens + (now - time) * refill // per
    if available >= capacity:
        tokens, time, available = capacity, now, capacity
    return _Bucket(tokens, time, available, rebased)


def _wait(bucket: _Bucket, now: int, refill: int, per: int, goal: int) -> int:
    deficit = goal - bucket.tokens
    periods = deficit // refill
    rest = -(-(deficit - periods * refill) * per // refill)
    return max(0, min(periods * per + rest - (now - bucket.time), LARGEST))


def _take(
    bucket: _Bucket, now: int, capacity: int, refill: int, per: int, change: int
) -> tuple[_Bucket, BucketState, int]:
    tokens, time, available, rebased = bucket
    bucket = _Bucket(tokens + change, time, available + change, rebased)
    if bucket.available >= capacity:
        bucket = _Bucket(capacity, now, capacity, rebased)
    ttl = max(1000, -(-_wait(bucket, now, refill, per, capacity) // 1000))
    return bucket, BucketState(bucket.tokens, bucket.time), ttl


def _reply(
    bucket: _Bucket, now: int, capacity: int, refill: int, per: int, need: int, allowed: bool
) -> tuple[int, int, int, int, int]:
    retry_after = 0
    if not allowed:
        retry_after = -1 if need > capacity else _wait(bucket, now, refill, per, need)
    return (
        1 if allowed else 0,
        capacity // TOKEN,
        max(0, bucket.available // TOKEN),
        retry_after,
        _wait(bucket, now, refill, per, capacity),
    )
