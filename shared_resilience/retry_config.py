"""The configuration of retries: what is retried, how often, after which delays, and out of which budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from shared_resilience import validation

PROGRAMMING_ERRORS: tuple[type[Exception], ...] = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NameError,
    AssertionError,
    NotImplementedError,
    ImportError,
    ArithmeticError,
)
"""Errors that are the same the next time."""

LONGEST_DELAY = 86_400.0
START = 10
"""A budget begins with so many seconds of its floor."""


class RetryStrategy(Enum):
    """How delays grow from one retry to the next: those of the first retries are, times `base_delay`…"""

    EXPONENTIAL_BACKOFF = "exponential"
    """…1, 2, 4, 8"""
    LINEAR = "linear"
    """…1, 2, 3, 4"""
    FIBONACCI = "fibonacci"
    """…1, 1, 2, 3, 5"""
    CONSTANT = "constant"
    """…1, 1, 1"""


class Jitter(Enum):
    """What of a delay is left to chance, so that those who fail together do not come back together.

    All are uniform, and never above `max_delay`. FULL, EQUAL and DECORRELATED are those of M. Brooker, "Exponential
    Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    PROPORTIONAL = "proportional"
    """The delay, up to `jitter_percent` of it shorter or longer."""
    FULL = "full"
    """From nothing to the delay."""
    EQUAL = "equal"
    """From half of the delay to the delay."""
    DECORRELATED = "decorrelated"
    """From `base_delay` to three times the delay before, whatever the strategy."""
    NONE = "none"
    """The delay itself."""


Strategy = RetryStrategy | Callable[[int], float]
"""A way to grow, or a function from the number of the retry (1, 2, …) to its delay in seconds."""


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """What is retried, and how. Times are in seconds.

    After the first attempt there are up to `max_retries` (0 to 100) more. The delay before the first of them is
    `base_delay`; it grows by `strategy`, is made to vary by `jitter` (PROPORTIONAL by `jitter_percent`, 0 to 1), and is
    never above `max_delay`.

    An exception is retried if it is one of `retry_on` and none of `give_up_on`; of the classes of an error the most
    specific that stands in either decides, one that stands in both is retried. An exception or a returned value with
    an HTTP status is retried if the status is in `retry_on_status`, or if it is 429 and says `Retry-After`; other
    values if `retry_on_result` says so. `RetryableError` always is.

    Retries of the whole fleet come out of one budget: each call pays in `retry_budget_percent` (0 to 100) hundredths of
    a retry, and `floor` retries come back each second, with ten times as many to begin with; `max_balance` is the
    largest balance. `retry_budget_percent=None`: no budget.

    With `cooldown` a 429 or 503 that says `Retry-After` pauses the limits of the resource for the whole fleet.

    Raises `ValueError` for a value outside its range.
    """

    max_retries: int = 3
    base_delay: float = 0.1
    max_delay: float = 60.0
    strategy: Strategy = RetryStrategy.EXPONENTIAL_BACKOFF
    jitter: Jitter = Jitter.PROPORTIONAL
    jitter_percent: float = 0.5
    retry_on: tuple[type[Exception], ...] = (Exception,)
    give_up_on: tuple[type[Exception], ...] = PROGRAMMING_ERRORS
    retry_on_result: Callable[[object], object] | None = None
    retry_on_status: Collection[int] = (500, 502, 503, 504)
    retry_budget_percent: float | None = 10.0
    floor: float = 1.0
    max_balance: float = 100.0
    cooldown: bool = False

    def __post_init__(self) -> None:
        validation.count("max_retries", self.max_retries, low=0, high=100)
        validation.number("max_delay", self.max_delay, 0, LONGEST_DELAY)
        validation.number("base_delay", self.base_delay, 0, self.max_delay)
        if not isinstance(self.strategy, RetryStrategy) and not callable(self.strategy):
            raise validation.wrong("strategy", self.strategy, "a RetryStrategy or a function of the retry's number")
        if not isinstance(self.jitter, Jitter):
            raise validation.wrong("jitter", self.jitter, "a Jitter")
        validation.number("jitter_percent", self.jitter_percent, 0, 1)
        validation.exceptions("retry_on", self.retry_on)
        validation.exceptions("give_up_on", self.give_up_on)
        if self.retry_on_result is not None and not callable(self.retry_on_result):
            raise validation.wrong("retry_on_result", self.retry_on_result, "a function of the returned value, or None")
        object.__setattr__(self, "retry_on_status", self._statuses())
        if self.retry_budget_percent is not None:
            validation.number("retry_budget_percent", self.retry_budget_percent, 0, 100)
        validation.number("floor", self.floor, 0, 10_000)
        validation.number("max_balance", self.max_balance, START * self.floor, 10**6)
        validation.flag("cooldown", self.cooldown)

    def _statuses(self) -> frozenset[int]:
        given = self.retry_on_status
        if isinstance(given, Collection) and all(type(one) is int and 100 <= one <= 599 for one in given):
            return frozenset(given)
        raise validation.wrong("retry_on_status", given, "a collection of HTTP statuses, 100 to 599")

    def numbers(self) -> dict[str, float]:
        """The numbers in force, as they stand in clear in the resource's `config`."""
        delays = {"max_retries": self.max_retries, "base_delay": self.base_delay, "max_delay": self.max_delay}
        if self.retry_budget_percent is None:
            return delays
        return {
            **delays,
            "retry_budget_percent": self.retry_budget_percent,
            "floor": self.floor,
            "max_balance": self.max_balance,
        }


def millionths(number: float) -> int:
    """As scripts are told of it."""
    return math.floor(number * 1e6 + 0.5)
