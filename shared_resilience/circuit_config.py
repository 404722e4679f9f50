"""The configuration of a circuit breaker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shared_resilience import validation
from shared_resilience.circuit_numbers import LONGEST, NUMBERS
from shared_resilience.integers import MILLION

NEVER_SLOW = MILLION + 1
"""The argument for a slow-call rate that no window reaches."""


@dataclass(frozen=True, slots=True)
class CircuitBreakerConfig:
    """When a circuit opens for the whole fleet, for how long, and what closes it again. Times are in seconds.

    It opens when, of at least `minimum_calls` calls (None: `failure_threshold`) that the fleet made within the last
    `window`, at least `failure_threshold` failed, and they are at least the share `failure_rate` (0 to 1); and when at
    least `min_workers` distinct workers failed, or all live ones if there are fewer. Calls that took at least
    `slow_call_seconds` are slow (None: none is); with `slow_call_rate` (above 0, to 1) that share of slow calls opens
    it too.

    It stays open for `timeout_seconds`, each time in a row `open_multiplier` times longer, up to `max_open_seconds`,
    and by a random part of up to the share `jitter` longer. Then at most `half_open_max_calls` probes are in flight at
    once, over the fleet; each holds its place for at most `probe_lease`. `success_threshold` successes close the
    circuit, one failure opens it again; a slow success is a failure if there is a `slow_call_rate`.

    Exceptions of `expected_exceptions` are failures. Those of `ignored_exceptions`, this library's own refusals, and
    whatever is no `Exception` (`KeyboardInterrupt`, `CancelledError`, `GeneratorExit`) count as nothing; others are
    answers of a dependency that works. `is_failure(result)` may call a returned value a failure. With `shadow` the
    circuit lives as always, and this process refuses nothing.

    Raises `ValueError` for a value outside its range, and for what is no class of exceptions.
    """

    failure_threshold: int = 5
    failure_rate: float = 0.5
    window: float = 10.0
    minimum_calls: int | None = None
    slow_call_seconds: float | None = None
    slow_call_rate: float | None = None
    success_threshold: int = 3
    timeout_seconds: float = 60.0
    open_multiplier: float = 2.0
    max_open_seconds: float = 600.0
    jitter: float = 0.1
    half_open_max_calls: int = 3
    probe_lease: float = 30.0
    min_workers: int = 1
    expected_exceptions: tuple[type[Exception], ...] = (Exception,)
    ignored_exceptions: tuple[type[Exception], ...] = ()
    is_failure: Callable[[object], bool] | None = None
    shadow: bool = False

    def __post_init__(self) -> None:
        for field, number in NUMBERS.items():
            value = getattr(self, field)
            if value is None and field in ("minimum_calls", "slow_call_rate"):
                continue
            if number.finer == 1:
                validation.count(field, value, max(1, int(number.low)), int(number.high))
            else:
                validation.number(field, value, number.low, number.high)
        validation.number("max_open_seconds", self.max_open_seconds, self.timeout_seconds, LONGEST)
        if self.slow_call_seconds is not None:
            validation.number("slow_call_seconds", self.slow_call_seconds, 0.000001, LONGEST)
        elif self.slow_call_rate is not None:
            raise validation.wrong("slow_call_rate", self.slow_call_rate, "None where slow_call_seconds is None")
        validation.exceptions("expected_exceptions", self.expected_exceptions)
        validation.exceptions("ignored_exceptions", self.ignored_exceptions)
        if self.is_failure is not None and not callable(self.is_failure):
            raise validation.wrong("is_failure", self.is_failure, "a function of the result, or None")
        validation.flag("shadow", self.shadow)

    def numbers(self) -> dict[str, float]:
        """The numbers in force, as they stand in clear in the resource's `config`."""
        chosen = {field: getattr(self, field) for field in (*NUMBERS, "slow_call_seconds")}
        chosen["minimum_calls"] = self.failure_threshold if self.minimum_calls is None else self.minimum_calls
        return {field: number for field, number in chosen.items() if number is not None}

    def arguments(self) -> tuple[int, ...]:
        """What the scripts are told of it."""
        missing = {"minimum_calls": 0, "slow_call_rate": NEVER_SLOW}
        chosen = {field: getattr(self, field) for field in NUMBERS}
        return tuple(
            missing[field] if value is None else NUMBERS[field].argument(value) for field, value in chosen.items()
        )
