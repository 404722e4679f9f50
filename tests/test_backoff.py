"""Delays before retries: how they grow, and that what is left to chance is spread evenly, below the cap and at it."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shared_resilience import Jitter, RetryConfig, RetryStrategy
from shared_resilience.backoff import delay_before

DRAWS = 4000


def plain(strategy: Any, retries: int = 6, **numbers: float) -> list[float]:
    config = RetryConfig(strategy=strategy, jitter=Jitter.NONE, **{"base_delay": 1.0, **numbers})  # type: ignore[arg-type]
    return [delay_before(config, retry, 0.0, 0.5) for retry in range(1, retries + 1)]


@pytest.mark.parametrize(
    ("strategy", "delays"),
    [
        (RetryStrategy.EXPONENTIAL_BACKOFF, [1, 2, 4, 8, 16, 32]),
        (RetryStrategy.LINEAR, [1, 2, 3, 4, 5, 6]),
        (RetryStrategy.FIBONACCI, [1, 1, 2, 3, 5, 8]),
        (RetryStrategy.CONSTANT, [1, 1, 1, 1, 1, 1]),
        (lambda retry: retry**2, [1, 4, 9, 16, 25, 36]),
    ],
)
def test_delays_grow_as_the_strategy_says_up_to_the_cap(
    strategy: RetryStrategy | Callable[[int], float], delays: list[float]
) -> None:
    assert plain(strategy) == delays
    assert plain(strategy, max_delay=4.5) == [min(delay, 4.5) for delay in delays]


def test_the_hundredth_retry_still_has_a_delay() -> None:
    assert plain(RetryStrategy.EXPONENTIAL_BACKOFF, 100)[-1] == 60.0
    assert plain(RetryStrategy.FIBONACCI, 100)[-1] == 60.0


@pytest.mark.parametrize("returned", [-1, float("nan"), math.inf, "1", None, True])
def test_a_strategy_of_ones_own_that_returns_no_delay_is_named(returned: Any) -> None:
    with pytest.raises(ValueError, match=r"^the delay that .* returns is .*, but must be a number from 0 to 86400"):
        plain(lambda retry: returned)


def drawn(config: RetryConfig, retry: int, previous: float = 0.0) -> list[float]:
    source = random.Random(11)
    return [delay_before(config, retry, previous, source.random()) for _ in range(DRAWS)]


RANGES: dict[tuple[Jitter, int], tuple[float, float]] = {
    (Jitter.PROPORTIONAL, 3): (2.0, 6.0),
    (Jitter.PROPORTIONAL, 5): (5.0, 10.0),  # 16 is cut to 10, of which half is 5
    (Jitter.FULL, 3): (0.0, 4.0),
    (Jitter.FULL, 5): (0.0, 10.0),
    (Jitter.EQUAL, 3): (2.0, 4.0),
    (Jitter.EQUAL, 5): (5.0, 10.0),
    (Jitter.DECORRELATED, 1): (1.0, 1.0),
    (Jitter.DECORRELATED, 3): (1.0, 6.0),
    (Jitter.DECORRELATED, 9): (1.0, 10.0),
}


@pytest.mark.parametrize(("jitter", "retry"), RANGES)
def test_what_is_left_to_chance_is_uniform_over_its_range_also_at_the_cap(jitter: Jitter, retry: int) -> None:
    low, high = RANGES[jitter, retry]
    found = drawn(
        RetryConfig(base_delay=1.0, max_delay=10.0, jitter=jitter), retry, previous={3: 2.0, 9: 9.0}.get(retry, 0)
    )
    width = high - low

    assert low <= min(found)
    assert max(found) <= high
    assert min(found) - low <= 0.01 * width
    assert high - max(found) <= 0.01 * width
    assert statistics.fmean(found) == pytest.approx((low + high) / 2, abs=0.03 * width)
    assert statistics.pstdev(found) == pytest.approx(width / math.sqrt(12), abs=0.03 * width)


@pytest.mark.parametrize(("percent", "low", "high"), [(0.0, 4.0, 4.0), (0.1, 3.6, 4.4), (1.0, 0.0, 8.0)])
def test_the_proportion_is_the_users(percent: float, low: float, high: float) -> None:
    found = drawn(RetryConfig(base_delay=1.0, jitter_percent=percent), 3)

    assert (min(found), max(found)) == pytest.approx((low, high), abs=0.01)


def test_decorrelated_delays_wander_between_base_and_cap() -> None:
    config, source = RetryConfig(base_delay=0.1, max_delay=2.0, jitter=Jitter.DECORRELATED), random.Random(3)

    def walk() -> Iterator[float]:
        previous = 0.0
        for retry in range(1, 2000):
            before, previous = previous, delay_before(config, retry, previous, source.random())
            assert previous <= max(0.1, 3 * before)
            yield previous

    delays = list(walk())
    assert delays[0] == 0.1
    assert min(delays) >= 0.1
    assert 1.9 < max(delays) <= 2.0
    assert sum(delay == 2.0 for delay in delays) == 0
