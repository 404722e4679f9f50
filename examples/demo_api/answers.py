"""What clients are told: plain JSON, true headers, and for each refusal the status that says whose fault it is."""

from __future__ import annotations

import math
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse

from shared_resilience import (
    BulkheadFullError,
    CircuitBreakerOpenError,
    Decision,
    FallbackExhaustedError,
    IdempotencyConflictError,
    RateLimitExceeded,
    StoreUnavailableError,
)


class BadRequestError(Exception):
    """The client's fault: `status` 4xx, and what is wrong."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as RFC 9457 has it."""
    body = {"status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def of_limit(decision: Decision) -> dict[str, str]:
    """The headers that tell how much of the limit is left, and in how many seconds it is whole again."""
    return {
        "RateLimit-Limit": str(decision.limit),
        "RateLimit-Remaining": str(decision.remaining),
        "RateLimit-Reset": _seconds(decision.reset_after),
    }


def refused(request: Request, error: Exception) -> JSONResponse:
    """What a client is told instead."""
    if isinstance(error, BadRequestError):
        return problem(error.status, str(error))
    if isinstance(error, RateLimitExceeded):
        return problem(429, str(error), {"Retry-After": _seconds(error.retry_after), **of_limit(error.decision)})
    if isinstance(error, IdempotencyConflictError):
        again = {"Retry-After": _seconds(error.retry_after)} if 0 < error.retry_after < math.inf else {}
        return problem({"running": 409, "other_arguments": 422}.get(error.reason, 503), str(error), again)
    if isinstance(error, CircuitBreakerOpenError) and 0 < error.retry_after < math.inf:
        return problem(503, str(error), {"Retry-After": _seconds(error.retry_after)})
    if isinstance(error, CircuitBreakerOpenError | BulkheadFullError | StoreUnavailableError):
        return problem(503, str(error))
    if isinstance(error, FallbackExhaustedError):
        return problem(502, str(error))
    return problem(504, str(error))


REFUSALS: tuple[type[Exception], ...] = (
    BadRequestError,
    RateLimitExceeded,
    IdempotencyConflictError,
    CircuitBreakerOpenError,
    BulkheadFullError,
    StoreUnavailableError,
    FallbackExhaustedError,
    TimeoutError,
)


def _seconds(seconds: float) -> str:
    """Whole seconds, rather too many: whoever waits for so long finds what was promised."""
    return str(math.ceil(seconds))
