"""What a token bucket promises, checked against its definition rather than against its own code."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from conftest import Lane

from shared_resilience import TokenBucket
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.commands import Command, Reply, State
from shared_resilience.token_bucket import TOKEN, BucketCommands, as_period

START = 1_763_880_000_000_000
KEYS = ("sr:{a}:limit:token_bucket", "sr:{a}:overrides")
Run = Callable[[Command[Any], int], Reply]


def by_twin() -> Run:
    """Runs commands by the twin, on states of its own."""
    states: dict[str, State] = {}

    def run(command: Command[Any], now: int) -> Reply:
        outcome = command.operation.twin(tuple(map(states.get, command.keys)), now, *command.args)
        states.update(zip(command.keys, outcome.states, strict=True))
        return outcome.reply

    return run


@pytest.mark.parametrize("polls_per_second", [1 / 0.19, 30])
@pytest.mark.parametrize("rate", [10, 100 / 60, 1 / 3, 33.3333])
def test_an_hour_of_greedy_draining_yields_the_capacity_and_every_refilled_token(
    rate: float, polls_per_second: float
) -> None:
    run, take = by_twin(), BucketCommands(TokenBucket(1000, rate)).take(KEYS, 1)
    source = random.Random(7)
    granted, now, end = 0, START, START + 3_600_000_000
    while now < end:
        while run(take, now)[0]:
            granted += 1
        now = min(end, now + source.randint(0, int(2e6 / polls_per_second)))
    while run(take, end)[0]:
        granted += 1

    assert granted == 1000 + int(Fraction(rate).limit_denominator(10**6) * 3600)


def test_a_bucket_drained_every_190_ms_on_a_server_loses_nothing_to_rounding(store: Lane, prefix: str) -> None:
    times = [START + number // 3 * 190_000 for number in range(3 * 1000)]
    take = BucketCommands(TokenBucket(10, 10)).take((f"{prefix}:{{a}}:b", f"{prefix}:{{a}}:o"), 1)
    store.client.script_load(take.operation.loaded.text)
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False), iter(times).__next__)

    replies = step(redis_store.execute_all([take] * len(times)))

    # Three attempts every 190 ms, 1.9 tokens in between: all but the last fraction of a token are granted.
    assert sum(int(reply[0]) for reply in replies) == 10 + int(999 * 1.9)


def test_no_interval_ever_sees_more_than_its_capacity_and_rate() -> None:
    for seed in range(30):
        source = random.Random(seed)
        capacity, rate = source.randint(1, 20), source.choice([0.5, 3, 100 / 60, 1000])
        run, commands = by_twin(), BucketCommands(TokenBucket(capacity, rate))
        admitted: list[tuple[int, int]] = []
        now = START
        for _ in range(300):
            now += int(10 ** source.uniform(0, 6.5))
            cost = source.randint(1, capacity)
            if run(commands.take(KEYS, cost), now)[0]:
                admitted.append((now, cost))

        refill, per = as_period(rate)
        for first, (begin, _) in enumerate(admitted):
            total = 0
            for end, cost in admitted[first:]:
                total += cost * TOKEN
                assert total <= capacity * TOKEN + Fraction(refill, per) * (end - begin) + refill


def test_the_level_follows_a_continuous_bucket_to_the_millionth_of_a_token() -> None:
    """An independent model: exact fractions, refilled at every step."""
    for seed in range(20):
        source = random.Random(seed)
        capacity, rate = source.randint(1, 50), source.choice([0.07, 10, 100 / 60, 12345.678])
        refill, per = as_period(rate)
        run, commands = by_twin(), BucketCommands(TokenBucket(capacity, rate))
        level, last, now = Fraction(capacity * TOKEN), START, START
        for _ in range(500):
            now += int(10 ** source.uniform(0, 6))
            level, last = min(Fraction(capacity * TOKEN), level + Fraction(refill, per) * (now - last)), now
            cost = source.randint(1, capacity) * TOKEN
            allowed, _, remaining, retry_after, _ = run(commands.take(KEYS, cost // TOKEN), now)
            assert allowed == (level >= cost)
            if allowed:
                level -= cost
            else:
                assert isinstance(retry_after, int)
                assert level + Fraction(refill, per) * retry_after >= cost
                assert level + Fraction(refill, per) * (retry_after - 1) < cost
            assert remaining == level // TOKEN


def test_retry_after_is_the_first_moment_at_which_the_call_passes() -> None:
    run, commands = by_twin(), BucketCommands(TokenBucket(5, 100 / 60))
    run(commands.take(KEYS, 5), START)
    retry_after = int(run(commands.take(KEYS, 2), START + 1234)[3])

    assert run(commands.peek(KEYS, 2), START + 1234 + retry_after - 1)[0] == 0
    assert run(commands.take(KEYS, 2), START + 1234 + retry_after)[0] == 1


def test_a_clock_that_is_set_back_mints_nothing_and_stalls_nothing() -> None:
    run, commands = by_twin(), BucketCommands(TokenBucket(10, 10))
    run(commands.take(KEYS, 10), START)
    an_hour_back = START - 3_600_000_000

    assert run(commands.take(KEYS, 1), an_hour_back)[0] == 0
    assert run(commands.take(KEYS, 1), an_hour_back + 99_999)[0] == 0
    assert run(commands.take(KEYS, 1), an_hour_back + 100_000)[0] == 1


def test_a_clock_that_jumps_forward_mints_one_capacity_at_most() -> None:
    run, commands = by_twin(), BucketCommands(TokenBucket(10, 10))
    run(commands.take(KEYS, 10), START)
    later = START + 10**13

    assert [run(commands.take(KEYS, 1), later)[0] for _ in range(11)] == [1] * 10 + [0]


def test_a_burst_far_below_the_rate_is_still_enforced() -> None:
    run, take = by_twin(), BucketCommands(TokenBucket(10, 100)).take(KEYS, 1)

    assert sum(int(run(take, START + number * 1000)[0]) for number in range(300)) == 10 + 29


def test_two_configurations_of_one_bucket_stay_within_the_more_generous_one() -> None:
    run = by_twin()
    old, new = (BucketCommands(TokenBucket(10, rate)).take(KEYS, 1) for rate in (1, 5))
    granted = 0
    for number in range(10_000):
        granted += int(run(old if number % 3 else new, START + number * 1000)[0])

    assert 10 + 10 <= granted <= 10 + 5 * 10


def test_a_refund_never_overflows_and_is_usable_at_once() -> None:
    run, commands = by_twin(), BucketCommands(TokenBucket(10, 0.001))
    run(commands.take(KEYS, 4), START)

    assert run(commands.refund(KEYS, 3), START)[2] == 9
    assert run(commands.refund(KEYS, 10), START)[2] == 10


def test_a_peek_changes_nothing() -> None:
    run, commands = by_twin(), BucketCommands(TokenBucket(10, 1))
    run(commands.take(KEYS, 4), START)

    assert [run(commands.peek(KEYS, 6), START)[:3] for _ in range(3)] == [(1, 10, 6)] * 3


def test_a_share_divides_capacity_and_rate_and_lets_a_large_call_pass_on_debt() -> None:
    run, commands = by_twin(), BucketCommands(TokenBucket(100, 10))
    large = commands.take(KEYS, 50).share(4)

    assert run(large, START)[0] == 1
    # 25 - 50 = -25; the share is full again 50 tokens later, at 2.5 tokens a second.
    assert run(large, START)[3] == 20_000_000


def test_a_limit_below_the_number_of_workers_becomes_one_call_in_several_windows() -> None:
    run, take = by_twin(), BucketCommands(TokenBucket(1, 1)).take(KEYS, 1).share(10)

    assert run(take, START)[0] == 1
    assert run(take, START + 9_999_999)[0] == 0
    assert run(take, START + 10_000_000)[0] == 1


@pytest.mark.parametrize("rate", [1e-6, 0.3, 1 / 3, 100 / 60, 10, 12345.678, 1e6, 999_999_999.9, 1e9])
def test_a_rate_becomes_a_fraction_with_an_exact_product(rate: float) -> None:
    refill, per = as_period(rate)

    assert refill * per <= 2**53
    assert abs(Fraction(refill, per) / Fraction(rate) - 1) < Fraction(1, 10**6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, r"capacity is 0, but must be an integer from 1 to 1000000000"),
        ({"capacity": -1}, "capacity is -1"),
        ({"capacity": 10**9 + 1}, "capacity is 1000000001"),
        ({"capacity": 1.5}, "capacity is 1.5"),
        ({"capacity": True}, "capacity is True"),
        ({"refill_rate": 0}, "refill_rate is 0, but must be a number from 1e-06 to 1e\\+09"),
        ({"refill_rate": float("nan")}, "refill_rate is nan"),
        ({"refill_rate": float("inf")}, "refill_rate is inf"),
        ({"refill_rate": "10"}, "refill_rate is '10'"),
        ({"label": ""}, "label is ''"),
        ({"label": "a:b"}, "label is 'a:b'"),
    ],
)
def test_a_wrong_configuration_names_field_value_and_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenBucket(**arguments)
