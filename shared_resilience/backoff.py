"""The delays before retries: how they grow, and what of them is left to chance."""

from __future__ import annotations

from shared_resilience import validation
from shared_resilience.retry_config import LONGEST_DELAY, Jitter, RetryConfig, RetryStrategy


def delay_before(config: RetryConfig, retry: int, previous: float, draw: float) -> float:
    """Seconds to wait before the retry with this number (1, 2, …), never above `max_delay`.

    `previous` is the delay before the retry before it, 0 for the first; `draw` a random number from 0 to 1. Raises
    `ValueError` if a strategy of the user's own returns no number of seconds.
    """
    jitter, most = config.jitter, config.max_delay
    if jitter is Jitter.DECORRELATED:
        lowest = config.base_delay
        return lowest + draw * (min(most, max(lowest, 3 * previous)) - lowest)
    delay = min(most, _grown(config, retry))
    if jitter is Jitter.NONE:
        return delay
    lowest, highest = 0.0, delay
    if jitter is Jitter.EQUAL:
        lowest = delay / 2
    elif jitter is Jitter.PROPORTIONAL:
        lowest, highest = delay * (1 - config.jitter_percent), min(most, delay * (1 + config.jitter_percent))
    return lowest + draw * (highest - lowest)


def _grown(config: RetryConfig, retry: int) -> float:
    base = config.base_delay
    match config.strategy:
        case RetryStrategy.EXPONENTIAL_BACKOFF:
            return base * 2.0 ** (retry - 1)
        case RetryStrategy.LINEAR:
            return base * retry
        case RetryStrategy.FIBONACCI:
            return base * _fibonacci(retry)
        case RetryStrategy.CONSTANT:
            return base
        case own:
            return validation.number(f"the delay that {own!r} returns", own(retry), 0, LONGEST_DELAY)


def _fibonacci(number: int) -> int:
    one, next_one = 1, 1
    for _ in range(number - 1):
        one, next_one = next_one, one + next_one
    return one
