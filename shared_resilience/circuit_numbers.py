"""The numbers of a circuit breaker's configuration, as scripts are told them and operators override them."""

from __future__ import annotations

from typing import NamedTuple

LONGEST = 86_400.0


class Number(NamedTuple):
    """By how much an argument of the scripts is finer than the field, and the field's least and greatest value."""

    finer: int
    low: float
    high: float

    def argument(self, value: float) -> int:
        """`value` as the scripts are told it."""
        return round(value * self.finer)


NUMBERS = {
    "failure_threshold": Number(1, 1, 10**9),
    "failure_rate": Number(1_000_000, 0, 1),
    "window": Number(1_000_000, 0.1, LONGEST),
    "minimum_calls": Number(1, 0, 10**9),
    "slow_call_rate": Number(1_000_000, 0.000001, 1),
    "success_threshold": Number(1, 1, 10**9),
    "timeout_seconds": Number(1_000_000, 0.001, LONGEST),
    "open_multiplier": Number(1000, 1, 100),
    "max_open_seconds": Number(1_000_000, 0.001, LONGEST),
    "jitter": Number(1_000_000, 0, 1),
    "half_open_max_calls": Number(1, 1, 1000),
    "probe_lease": Number(1_000_000, 0.001, LONGEST),
    "min_workers": Number(1, 1, 100),
}
"""In the order of the scripts' arguments. A minimum of 0 calls stands for `failure_threshold`."""
