"""The configuration of a circuit breaker: what is taken, and what is refused in which words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared_resilience import (
    CircuitBreakerConfig,
)


@pytest.mark.parametrize(
    ("field", "values", "allowed"),
    [
        ("failure_threshold", [0, -1, 1.5, True, "5", None, 10**9 + 1], "an integer from 1 to 1000000000"),
        ("failure_rate", [-0.1, 1.1, math.nan, None, True], "a number from 0 to 1"),
        ("window", [0, 0.05, math.inf, 86_401, "10"], "a number from 0.1 to 86400"),
        ("minimum_calls", [0, 2.0], "an integer from 1 to 1000000000"),
        ("slow_call_seconds", [0, -1, math.nan], "a number from 1e-06 to 86400"),
        ("slow_call_rate", [0, 1.1, 0.5], ""),
        ("success_threshold", [0], "an integer from 1 to"),
        ("timeout_seconds", [0, 86_401, math.nan], "a number from 0.001 to 86400"),
        ("open_multiplier", [0.9, 101], "a number from 1 to 100"),
        ("max_open_seconds", [0, 59, 86_401], "a number from"),
        ("jitter", [-0.1, 1.1], "a number from 0 to 1"),
        ("half_open_max_calls", [0, 1001], "an integer from 1 to 1000"),
        ("probe_lease", [0, 86_401], "a number from 0.001 to 86400"),
        ("min_workers", [0, 101], "an integer from 1 to 100"),
        (
            "expected_exceptions",
            [Exception, ("x",), (BaseException,), (KeyboardInterrupt,), [OSError], (OSError(),), None],
            "a tuple of subclasses of Exception",
        ),
        ("ignored_exceptions", [OSError, (int,)], "a tuple of subclasses of Exception"),
        ("is_failure", [5, "x"], "a function of the result, or None"),
        ("shadow", [1, None], "True or False"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_field_value_and_range(
    field: str, values: list[Any], allowed: str
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{field} is .*, but must be .*") as wrong:
            CircuitBreakerConfig(**{field: value})
        assert allowed in str(wrong.value)


def test_what_is_wrong_is_said_in_full() -> None:
    with pytest.raises(ValueError, match=r"^slow_call_rate is 0.5, but must be None where slow_call_seconds is None$"):
        CircuitBreakerConfig(slow_call_rate=0.5)
    with pytest.raises(ValueError, match=r"^is_failure is 5, but must be a function of the result, or None$"):
        CircuitBreakerConfig(is_failure=5)  # type: ignore[arg-type]


def test_a_minimum_of_calls_that_is_not_given_is_the_threshold() -> None:
    given, not_given = CircuitBreakerConfig(7, minimum_calls=9), CircuitBreakerConfig(7)

    assert (given.numbers()["minimum_calls"], not_given.numbers()["minimum_calls"]) == (9, 7)
    assert (given.arguments()[3], not_given.arguments()[3]) == (9, 0)


def test_the_least_and_the_greatest_values_are_taken() -> None:
    least = CircuitBreakerConfig(
        1, 0, 0.1, 1, 0.000001, 0.000001, 1, 0.001, 1, 0.001, 0, 1, 0.001, 1, expected_exceptions=()
    )
    greatest = CircuitBreakerConfig(
        10**9, 1, 86_400, 10**9, 86_400, 1, 10**9, 86_400, 100, 86_400, 1, 1000, 86_400, 100
    )

    assert least.arguments() == (1, 0, 100_000, 1, 1, 1, 1000, 1000, 1000, 0, 1, 1000, 1)
    assert greatest.arguments() == (
        10**9, 10**6, 86_400_000_000, 10**9, 10**6, 10**9, 86_400_000_000, 100_000, 86_400_000_000, 10**6, 1000,
        86_400_000_000, 100,
    )  # fmt: skip
