"""The errors of the library.

ResilienceError
├── RateLimitExceeded           a limit has no room; `.retry_after` says when it has
├── BulkheadFullError           all slots are taken, and so is the queue, or the wait for a slot has run out
├── CircuitBreakerOpenError     a circuit is open; `.retry_after` says when it may let a probe pass
├── DeadlineExceeded            the time of a block of code is over, or would be before anything could come of it
├── RetryBudgetExhaustedError   the fleet has retried enough; only for who takes out of the budget by hand
├── FallbackExhaustedError      no level of a fallback chain has answered; an exception group of all causes
├── IdempotencyConflictError    a key is in use: by a call that still runs, or for other arguments
├── EncodingError               a value cannot be written down in Redis, or cannot be read
├── StoreUnavailableError       Redis could not decide, and `on_outage="raise"` was asked for
└── StoreConfigurationError     Redis answers, but not to this configuration: password, permissions, cluster mode

`RetryableError` is none of them: it is for users to raise, inside a call that is to be retried.

A value outside its definition is a plain `ValueError` or `TypeError`, raised before anything is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from shared_resilience.decision import Decision


class ResilienceError(Exception):
    """Whatever this library raises on purpose, apart from `ValueError` and `TypeError` for wrong arguments."""


class RateLimitExceeded(ResilienceError):
    """A rate limit refused a call.

    `name` is the resource, `key` the limit's key, `decision` the whole refusal, `retry_after` the seconds until the
    call would pass (`inf`: never).
    """

    def __init__(self, name: str, key: str, decision: Decision) -> None:
        self.name = name
        self.key = key
        self.decision = decision
        self.retry_after = decision.retry_after
        for_key = f" for key {key[:64]!r}" if key else ""
        super().__init__(
            f"rate limit {name!r} ({decision.limited_by}) exceeded{for_key}: "
            f"retry after {decision.retry_after:.3f} s (limit {decision.limit}, decided by {decision.source})"
        )

    def __reduce__(self) -> tuple[type[RateLimitExceeded], tuple[str, str, Decision]]:
        return type(self), (self.name, self.key, self.decision)


class CircuitBreakerOpenError(ResilienceError):
    """A circuit breaker refused a call.

    `name` is the resource, `retry_after` the seconds until it may let a probe pass (`inf`: it was forced open).
    """

    def __init__(self, name: str, retry_after: float) -> None:
        self.name = name
        self.retry_after = retry_after

    def __str__(self) -> str:  # only when it is read: refusing is to cost next to nothing
        return f"circuit {self.name!r} is open: retry after {self.retry_after:.3f} s"


class BulkheadFullError(ResilienceError):
    """A bulkhead refused a call: nobody knows when a slot will be free, so `retry_after` is 0.

    `name` is the resource, `inside` how many calls were inside, `waited` for how many seconds this one has waited.
    """

    retry_after = 0.0

    def __init__(self, name: str, inside: int, waited: float) -> None:
        self.name = name
        self.inside = inside
        self.waited = waited

    def __str__(self) -> str:
        waited = f", and this one has waited {self.waited:.3f} s" if self.waited > 0 else ""
        return f"bulkhead {self.name!r} is full: {self.inside} calls are inside{waited}"

    def __reduce__(self) -> tuple[type[BulkheadFullError], tuple[str, int, float]]:
        return type(self), (self.name, self.inside, self.waited)


class DeadlineExceeded(ResilienceError, TimeoutError):
    """The deadline around a call has passed, or would before the call could be made; it is also a `TimeoutError`.

    `name` is the resource, or "the block"; `seconds` how long it was given, or has waited.
    """

    retry_after = 0.0

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds

    def __str__(self) -> str:
        return f"the deadline around {self.name!r} has passed after {self.seconds:.3f} s"

    def __reduce__(self) -> tuple[type[DeadlineExceeded], tuple[str, float]]:
        return type(self), (self.name, self.seconds)


class RetryBudgetExhaustedError(ResilienceError):
    """There is no retry left in the budget of the fleet. `name` is the resource, `balance` what was in it.

    Calls that are retried never raise it: they raise what the last attempt raised.
    """

    retry_after = 0.0

    def __init__(self, name: str, balance: float) -> None:
        self.name = name
        self.balance = balance

    def __str__(self) -> str:
        return f"the retry budget of {self.name!r} is exhausted: {self.balance:.2f} retries are left"

    def __reduce__(self) -> tuple[type[RetryBudgetExhaustedError], tuple[str, float]]:
        return type(self), (self.name, self.balance)


class FallbackExhaustedError(ResilienceError, ExceptionGroup[Exception]):
    """No level of a fallback chain has answered: the group of what each level raised, the first one first.

    `name` is the chain's.
    """

    name: str
    _what: str

    def __new__(cls, name: str, what: str, causes: Sequence[Exception]) -> Self:
        group = super().__new__(cls, f"fallback chain {name!r} is exhausted: {what}", causes)
        group.name, group._what = name, what
        return group

    def __init__(self, *args: object) -> None:
        """All is done where it is made."""

    def derive(self, excs: Sequence[Exception]) -> FallbackExhaustedError:  # type: ignore[override]  # of exceptions
        return FallbackExhaustedError(self.name, self._what, excs)

    def __reduce__(self) -> tuple[type[FallbackExhaustedError], tuple[str, str, list[Exception]]]:
        return type(self), (self.name, self._what, list(self.exceptions))


Conflict = Literal["running", "other_arguments", "denied"]
_CONFLICTS: dict[Conflict, str] = {
    "running": "a call under it is still running",
    "other_arguments": "it was used for other arguments",
    "denied": "Redis is away, and on_outage is 'deny'",
}


class IdempotencyConflictError(ResilienceError):
    """A call was not made, since its key is in use.

    `name` is the resource, `key` the key. `reason` is "running": another call has it, whose lease ends in `retry_after`
    seconds if it is not renewed; "other_arguments": it was used for other arguments, and is kept for a while; or
    "denied": Redis is away. Over HTTP the first is a 409, the second a 422, as the draft of the Idempotency-Key header
    has it (IETF, draft-ietf-httpapi-idempotency-key-header).
    """

    def __init__(self, name: str, key: str, reason: Conflict, retry_after: float) -> None:
        self.name = name
        self.key = key
        self.reason = reason
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"key {self.key[:64]!r} of {self.name!r} is in use: {_CONFLICTS[self.reason]}"

    def __reduce__(self) -> tuple[type[IdempotencyConflictError], tuple[str, str, Conflict, float]]:
        return type(self), (self.name, self.key, self.reason, self.retry_after)


class EncodingError(ResilienceError, ValueError):
    """A value cannot be written down, or what was written down cannot be read; says by which codec and why.

    If a call has returned the value, it has run, and `result` is what it returned.
    """

    result: object = None


class RetryableError(Exception):
    """For users to raise: this is worth a retry whatever the configuration says, in `retry_after` seconds or later."""

    def __init__(self, *args: object, retry_after: float | None = None) -> None:
        super().__init__(*args)
        self.retry_after = retry_after


class StoreUnavailableError(ResilienceError):
    """Redis could not be asked, or did not answer in time. What it holds is as before, or a little older."""


class StoreConfigurationError(ResilienceError):
    """Redis refuses this client: wrong password, missing permission, wrong cluster mode. Waiting does not help."""
