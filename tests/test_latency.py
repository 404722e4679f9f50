"""The histogram of latencies: script and twin are one algorithm, and its percentiles are those of the calls."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Lane
from histories import START, HashHistory, compare_all
from hypothesis import given
from hypothesis import strategies as st

from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.commands import Command, Operation, State
from shared_resilience.latency import LARGEST_BUCKET, bucket_of, length_of, record

RECORD: Operation[Any] = Operation("latency", record, lambda reply, source: reply)
SECOND, MINUTE = 1_000_000, 60_000_000
BATCH, STEPS = 100, 4000


def moves(source: random.Random) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Microseconds that pass, and what is told."""
    while True:
        kind = source.random()
        passed = source.randint(0, 300_000) if kind < 0.6 else int(10 ** source.uniform(3, 7.5))
        if kind > 0.97:
            passed = -int(10 ** source.uniform(0, 8))
        pairs = [
            number
            for _ in range(source.randint(0, 8))
            for number in (
                source.choice([0, 1, 500, 700, LARGEST_BUCKET, source.randint(0, 1400)]),
                source.randint(1, 50),
            )
        ]
        window = source.choice([MINUTE, MINUTE, MINUTE, SECOND, 7_000_001, 3600 * SECOND])
        yield passed, (window, source.choice([950_000, 950_000, 900_000, 1, 999_999]), *pairs)


def history(lane: Lane, seed: int) -> HashHistory:
    return HashHistory(lane, RECORD, itertools.islice(moves(random.Random(seed)), BATCH))


def test_script_and_twin_agree_over_four_thousand_random_steps(store: Lane, lane: str) -> None:
    compare_all(history(store, seed) for seed in range((STEPS if lane != "fakeredis" else 400) // BATCH))


@given(st.floats(min_value=1e-6, max_value=1000))
def test_a_bucket_stands_for_a_length_that_is_wrong_by_one_percent_at_most(seconds: float) -> None:
    assert length_of(bucket_of(seconds)) == pytest.approx(seconds * 1e6, rel=0.0101, abs=0.6)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9, 1e9, 1e300])
def test_every_length_has_a_bucket(seconds: float) -> None:
    assert 0 <= bucket_of(seconds) <= LARGEST_BUCKET


def lognormal(source: random.Random) -> float:
    return source.lognormvariate(math.log(0.08), 0.8)


def bimodal(source: random.Random) -> float:
    return source.gauss(0.005, 0.0005) if source.random() < 0.9 else source.gauss(1.2, 0.1)


def heavy_tailed(source: random.Random) -> float:
    return 0.01 * source.paretovariate(1.1)


class Told:
    """A state of the twin, which calls are told to."""

    def __init__(self, window: int = MINUTE) -> None:
        self.state: State = None
        self.now, self._window = START, window

    def tell(self, lengths: list[float]) -> list[int]:
        pairs = [number for seconds in lengths for number in (bucket_of(max(seconds, 0)), 1)]
        outcome = record((self.state,), self.now, self._window, 950_000, *pairs)
        (self.state,) = outcome.states
        return [int(number) for number in outcome.reply]


@pytest.mark.parametrize("draw", [lognormal, bimodal, heavy_tailed], ids=lambda draw: draw.__name__)
def test_percentiles_are_within_two_percent_of_exact(draw: Callable[[random.Random], float]) -> None:
    source, told = random.Random(17), Told()
    lengths = [draw(source) for _ in range(20_000)]
    samples, *percentiles = told.tell(lengths)

    exact = sorted(lengths)
    assert samples == len(lengths)
    for percentile, found in zip((0.5, 0.95, 0.99, 0.999), percentiles, strict=False):
        assert found / 1e6 == pytest.approx(exact[math.ceil(percentile * len(exact)) - 1], rel=0.02)


def test_a_slowdown_of_ten_times_is_learned_within_two_windows_and_forgotten_afterwards() -> None:
    told = Told()

    def minutes(number: int, seconds: float) -> list[int]:
        reply = [0]
        for _ in range(60 * number):
            told.now += SECOND
            reply = told.tell([seconds] * 10)
        return reply

    before, slow, after = minutes(1, 0.05)[2], minutes(2, 0.5)[2], minutes(2, 0.05)[2]

    assert before / 1e6 == pytest.approx(0.05, rel=0.02)
    assert slow / 1e6 == pytest.approx(0.5, rel=0.02)
    assert after / 1e6 == pytest.approx(0.05, rel=0.02)


def test_what_is_kept_stays_small() -> None:
    source, told = random.Random(2), Told()
    for _ in range(300):
        told.now += SECOND
        told.tell([lognormal(source) for _ in range(100)])

    assert isinstance(told.state, dict)
    assert len(told.state) < 7 * 300
    told.now += 2 * MINUTE
    assert told.tell([])[0] == 0
    assert len(told.state) == 6  # samples, the time, and the percentiles


def test_percentiles_are_worked_out_once_a_second() -> None:
    told = Told()
    told.tell([0.1] * 5)
    told.now += SECOND - 1
    again = told.tell([0.1] * 5)[0]
    told.now += 1

    assert (again, told.tell([])[0]) == (5, 10)


def test_two_windows_share_a_hash_during_a_deploy(store: Lane, prefix: str) -> None:
    redis, key = RedisStore(store.wire, lambda: START), f"{prefix}:{{a}}:latency"
    for window, calls in ((MINUTE, 3), (30 * SECOND, 4)):
        store.client.hdel(key, "computed_us")
        reply = step(redis.execute(Command(RECORD, (key,), (window, 950_000, 600, calls))))
        assert reply[0] == calls


@pytest.mark.parametrize("damage", [{"computed_us": "x"}, {"samples": ""}, {"p950000_us": "1.5"}])
def test_what_is_damaged_is_worked_out_anew(store: Lane, prefix: str, damage: dict[str, str]) -> None:
    redis, key = RedisStore(store.wire, lambda: START), f"{prefix}:{{a}}:latency"
    told = Command(RECORD, (key,), (MINUTE, 950_000, 600, 1))
    step(redis.execute(told))
    store.client.hset(key, mapping=damage)

    assert step(redis.execute(told))[0] == 2


def told(*pairs: int) -> tuple[int, ...]:
    return MINUTE, 950_000, *pairs


def test_percentiles_are_worked_out_again_after_exactly_a_second(store: Lane, prefix: str) -> None:
    moments = [START, START, START + SECOND - 1, START + SECOND, START + SECOND]
    times = iter([START, *moments])
    redis, key = RedisStore(store.wire, times.__next__), f"{prefix}:{{a}}:latency"
    store.load_scripts()
    step(redis.execute(Command(RECORD, (f"{key}:other",), told(600, 1))))
    replies = [step(redis.execute(Command(RECORD, (key,), told(600, 1)))) for _ in moments]

    assert [reply[0] for reply in replies] == [1, 1, 1, 4, 4]
    assert set(replies[0][1:]) == {length_of(600)}


def test_buckets_end_at_the_largest(store: Lane, prefix: str) -> None:
    redis, key = RedisStore(store.wire, lambda: START), f"{prefix}:{{a}}:latency"

    with pytest.raises(Exception, match="bucket must be an integer from 0 to 1400"):
        step(redis.execute(Command(RECORD, (key,), told(LARGEST_BUCKET + 1, 1))))
    assert not store.client.exists(key)
    assert step(redis.execute(Command(RECORD, (key,), told(LARGEST_BUCKET, 1, 0, 1))))[0] == 2


def test_everything_that_is_older_than_its_window_goes_at_once(store: Lane, prefix: str) -> None:
    redis, key = RedisStore(store.wire, lambda: START), f"{prefix}:{{a}}:latency"
    store.client.hset(key, mapping={f"1000.{number}.600": 1 for number in range(2500)})
    store.client.hset(key, mapping={"0.5.600": 1, f"{MINUTE // 6}.{START // (MINUTE // 6)}.601": "x"})

    assert step(redis.execute(Command(RECORD, (key,), told(600, 1))))[0] == 1
    assert store.client.hlen(key) == 1 + 1 + 6
