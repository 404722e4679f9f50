"""What a token bucket promises, checked against its definition rather than against its own code."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest
from conftest import Lane
from twins import START, Twin

from shared_resilience import TokenBucket, limits, token_bucket
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.integers import MILLION
from shared_resilience.limit_commands import LimitCommands
from shared_resilience.token_bucket import BucketState, as_period


@pytest.mark.parametrize("polls_per_second", [1 / 0.19, 30])
@pytest.mark.parametrize("rate", [10, 100 / 60, 1 / 3, 33.3333])
def test_an_hour_of_greedy_draining_yields_the_capacity_and_every_refilled_token(
    rate: float, polls_per_second: float
) -> None:
    bucket = Twin(TokenBucket(1000, rate))
    source = random.Random(7)
    granted, now, end = 0, START, START + 3_600_000_000
    while now < end:
        while bucket.take(now).allowed:
            granted += 1
        now = min(end, now + source.randint(0, int(2e6 / polls_per_second)))
    while bucket.take(end).allowed:
        granted += 1

    assert granted == 1000 + int(Fraction(rate).limit_denominator(10**6) * 3600)


def test_a_bucket_drained_every_190_ms_on_a_server_loses_nothing_to_rounding(store: Lane, prefix: str) -> None:
    times = [START + number // 3 * 190_000 for number in range(3 * 1000)]
    take = LimitCommands([TokenBucket(10, 10)]).take((f"{prefix}:{{a}}:o", f"{prefix}:{{a}}:b"), 1)
    store.client.script_load(take.operation.loaded.text)
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False), iter(times).__next__)

    replies = step(redis_store.execute_all([take] * len(times)))

    # Three attempts every 190 ms, 1.9 tokens in between: all but the last fraction of a token are granted.
    assert sum(int(reply[0]) for reply in replies) == 10 + int(999 * 1.9)


def test_no_interval_ever_sees_more_than_its_capacity_and_rate() -> None:
    for seed in range(30):
        source = random.Random(seed)
        capacity, rate = source.randint(1, 20), source.choice([0.5, 3, 100 / 60, 1000])
        bucket = Twin(TokenBucket(capacity, rate))
        admitted: list[tuple[int, int]] = []
        now = START
        for _ in range(300):
            now += int(10 ** source.uniform(0, 6.5))
            cost = source.randint(1, capacity)
            if bucket.take(now, cost).allowed:
                admitted.append((now, cost))

        refill, per = as_period(rate)
        for first, (begin, _) in enumerate(admitted):
            total = 0
            for end, cost in admitted[first:]:
                total += cost * MILLION
                assert total <= capacity * MILLION + Fraction(refill, per) * (end - begin)


def test_the_level_follows_a_continuous_bucket_to_the_millionth_of_a_token() -> None:
    """An independent model: exact fractions, refilled at every step."""
    for seed in range(20):
        source = random.Random(seed)
        capacity, rate = source.randint(1, 50), source.choice([0.07, 10, 100 / 60, 12345.678])
        per_us = Fraction(*as_period(rate))
        bucket = Twin(TokenBucket(capacity, rate))
        level, last, now = Fraction(capacity * MILLION), START, START
        for _ in range(500):
            now += int(10 ** source.uniform(0, 6))
            level, last = min(Fraction(capacity * MILLION), level + per_us * (now - last)), now
            cost = source.randint(1, capacity)
            answer = bucket.take(now, cost)
            assert answer.allowed == (level >= cost * MILLION)
            if answer.allowed:
                level -= cost * MILLION
            else:
                assert level + per_us * answer.retry_after >= cost * MILLION
                assert level + per_us * (answer.retry_after - 1) < cost * MILLION
            assert answer.remaining == level // MILLION


def test_retry_after_is_the_first_moment_at_which_the_call_passes() -> None:
    bucket = Twin(TokenBucket(5, 100 / 60))
    bucket.take(START, 5)
    passes = START + 1234 + bucket.take(START + 1234, 2).retry_after

    assert not bucket.peek(passes - 1, 2).allowed
    assert bucket.take(passes, 2).allowed


def test_a_clock_that_is_set_back_mints_nothing_and_stalls_nothing() -> None:
    bucket = Twin(TokenBucket(10, 10))
    bucket.take(START, 10)
    an_hour_back = START - 3_600_000_000

    assert not bucket.take(an_hour_back).allowed
    assert not bucket.take(an_hour_back + 99_999).allowed
    assert bucket.take(an_hour_back + 100_000).allowed


def test_a_clock_that_jumps_forward_mints_one_capacity_at_most() -> None:
    bucket = Twin(TokenBucket(10, 10))
    bucket.take(START, 10)

    assert [bucket.take(START + 10**13).allowed for _ in range(11)] == [1] * 10 + [0]


def test_a_burst_far_below_the_rate_is_still_enforced() -> None:
    bucket = Twin(TokenBucket(10, 100))

    assert sum(bucket.take(START + number * 1000).allowed for number in range(300)) == 10 + 29


def test_two_configurations_of_one_bucket_stay_within_the_more_generous_one() -> None:
    old = Twin(TokenBucket(10, 1))
    new = old.configured([TokenBucket(10, 5)])
    granted = 0
    for number in range(10_000):
        granted += (old if number % 3 else new).take(START + number * 1000).allowed

    assert 10 + 10 <= granted <= 10 + 5 * 10


def test_a_refund_never_overflows_and_is_usable_at_once() -> None:
    bucket = Twin(TokenBucket(10, 0.001))
    bucket.take(START, 4)

    assert bucket.give(START, 3).remaining == 9
    assert bucket.give(START, 10).remaining == 10


def test_a_peek_changes_nothing() -> None:
    bucket = Twin(TokenBucket(10, 1))
    bucket.take(START, 4)

    assert [bucket.peek(START, 6)[:4] for _ in range(3)] == [(1, 1, 10, 6)] * 3


def test_a_refusal_writes_nothing_while_the_clock_goes_on() -> None:
    bucket = Twin(TokenBucket(1, 1))
    bucket.take(START)
    take = bucket.commands.take(bucket.keys, 1)

    step_at = take.operation.twin(tuple(map(bucket.states.get, take.keys)), START, *take.args)
    assert step_at.ttls == (None, None)


def test_a_charge_beyond_what_is_left_leaves_debt_that_later_calls_wait_for() -> None:
    bucket = Twin(TokenBucket(10, 10))
    bucket.charge(START, 25)

    assert bucket.take(START).retry_after == 1_600_000


def test_a_share_divides_capacity_and_rate_and_lets_a_large_call_pass_on_debt() -> None:
    bucket = Twin(TokenBucket(100, 10))

    assert bucket.take(START, 50, share=4).allowed
    # 25 - 50 = -25; the share is full again 50 tokens later, at 2.5 tokens a second.
    assert bucket.take(START, 50, share=4).retry_after == 20_000_000


def test_a_limit_below_the_number_of_workers_becomes_one_call_in_several_windows() -> None:
    bucket = Twin(TokenBucket(1, 1))

    assert bucket.take(START, share=10).allowed
    assert not bucket.take(START + 9_999_999, share=10).allowed
    assert bucket.take(START + 10_000_000, share=10).allowed


@pytest.mark.parametrize("rate", [1e-6, 0.3, 1 / 3, 100 / 60, 10, 12345.678, 1e6, 999_999_999.9, 1e9])
def test_a_rate_becomes_a_fraction_with_an_exact_product(rate: float) -> None:
    refill, per = as_period(rate)

    assert refill * per <= 2**53
    assert abs(Fraction(refill, per) / Fraction(rate) - 1) < Fraction(1, 10**6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, r"capacity is 0, but must be an integer from 1 to 1000000000"),
        ({"capacity": -1}, "^capacity is -1"),
        ({"capacity": 10**9 + 1}, "capacity is 1000000001"),
        ({"capacity": 1.5}, "^capacity is 1.5"),
        ({"capacity": True}, "capacity is True"),
        ({"refill_rate": 0}, "refill_rate is 0, but must be a number from 1e-06 to 1e\\+09"),
        ({"refill_rate": float("nan")}, "^refill_rate is nan"),
        ({"refill_rate": float("inf")}, "refill_rate is inf"),
        ({"refill_rate": "10"}, "refill_rate is '10'"),
        ({"label": ""}, "^label is ''"),
        ({"label": "a:b"}, "label is 'a:b'"),
    ],
)
def test_a_wrong_configuration_names_field_value_and_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenBucket(**arguments)


@pytest.mark.parametrize(
    ("stored", "cost", "left"),
    [(None, 1, 9), (None, 10, 0), (BucketState(3_000_000, START), 3, 0), (BucketState(-1, START - 10_000_000), 9, 0)],
)
def test_the_first_part_of_the_twin_decides_a_usual_call_as_the_whole_does(
    stored: BucketState | None, cost: int, left: int
) -> None:
    told = (cost, 1, -1, 0, *TokenBucket(10, 1).arguments())

    usual = token_bucket.take((None, stored), START, told)

    assert usual is not None
    assert usual == limits.take((None, stored), START, *told)  # type: ignore[arg-type]  # as scripts are told
    assert (usual.reply[0], usual.reply[3]) == (1, left)


@pytest.mark.parametrize(
    ("overrides", "stored", "share"),
    [({"limit.token_bucket.capacity": "5"}, None, 1), (None, BucketState(999_999, START), 1), (None, None, 2)],
)
def test_the_first_part_of_the_twin_leaves_to_the_rest_what_is_not_usual(
    overrides: dict[str, str] | None, stored: BucketState | None, share: int
) -> None:
    told = (1, share, -1, 0, *TokenBucket(10, 1).arguments())

    assert token_bucket.take((overrides, stored), START, told) is None


@pytest.mark.parametrize(
    ("rate", "period"),
    [
        (math.pi, (80143857, 25510582)),
        (100 / 60, (5, 3)),
        (1e-6, (1, 1_000_000)),
        (1e-6 / 3, (1, 3_000_000)),
        (1e9, (1_000_000_000, 1)),
        (2 / 3, (2, 3)),
    ],
)
def test_a_rate_becomes_the_nearest_fraction_whose_product_a_double_holds(rate: float, period: tuple[int, int]) -> None:
    assert as_period(rate) == period
    assert period[0] * period[1] <= 2**53


def test_a_period_lasts_a_thousand_seconds_at_most() -> None:
    assert as_period(math.e * 1e-6) == (34, 12_507_901)


def test_what_remains_is_a_whole_number_in_the_middle_of_a_period() -> None:
    bucket = Twin(TokenBucket(10, 100 / 60))
    bucket.take(START, 10)

    assert repr(bucket.peek(START + 1_000_001).remaining) == "1"


def test_a_bucket_that_fills_for_decades_is_full_no_microsecond_too_soon() -> None:
    capacity, elapsed = 683_915_271_066_247, 2_338_171_866_893_152

    _, _, available = token_bucket.refilled(0, 0, elapsed, capacity, 117, 400)
    assert available == capacity - 1
