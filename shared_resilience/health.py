"""Health: what a check has found, and what follows from several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from shared_resilience.arguments import in_words, type_of

UP, DEGRADED, DOWN, UNKNOWN = "up", "degraded", "down", "unknown"
UNHEALTHY = frozenset(
    {"down", "error", "fail", "failed", "failing", "critical", "not ok", "not ready", "out of service", "unhealthy"}
)
"""Statuses, in whatever case, that say that something is not healthy."""


@dataclass(frozen=True)
class HealthCheckResult:
    """What one check has found: plain data, fit for JSON.

    `latency` is in seconds, `checked_at` in seconds since 1970; `error` says why it is not healthy.
    """

    healthy: bool
    latency: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    checked_at: float = 0.0


@dataclass(frozen=True)
class Health:
    """What follows from all checks: `status` "up", "degraded" (something that is not critical is down) or "down".

    `healthy` unless it is down. `checks` are the last results by the name of the check. `dataclasses.asdict` makes it
    plain data, fit for JSON.
    """

    healthy: bool
    status: str
    checks: Mapping[str, HealthCheckResult]


def found(answer: object) -> HealthCheckResult:
    """What a check says by what it returns.

    False, a status such as "down", and a mapping with such a "status" or with False for "healthy" are unhealthy;
    anything else, None too, is healthy. A mapping is told as the details.
    """
    if isinstance(answer, HealthCheckResult):
        return replace(answer, details=_plain(answer.details))
    if isinstance(answer, Mapping):
        status = answer.get("status", answer.get("healthy", True))
        told, details = answer.get("error"), _plain(answer)
    else:
        status, told, details = answer, None, {}
    if status is False or (isinstance(status, str) and _words(status) in UNHEALTHY):
        return HealthCheckResult(False, details=details, error=str(told or f"it says {status!r}"))
    return HealthCheckResult(True, details=details)


def overall(parts: Iterable[tuple[bool, bool]]) -> str:
    """The status that follows from what is (healthy, critical); "unknown" from nothing."""
    all_parts = list(parts)
    if not all_parts:
        return UNKNOWN
    if any(critical and not healthy for healthy, critical in all_parts):
        return DOWN
    return UP if all(healthy for healthy, _ in all_parts) else DEGRADED


def _words(status: str) -> str:
    return status.strip().lower().replace("_", " ").replace("-", " ")


def _plain(details: Mapping[Any, Any]) -> dict[str, Any]:
    """`details` as JSON can carry them: what it has no type for, in words."""

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
            return value
        if isinstance(value, Mapping):
            return {str(key): plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return in_words(value, type_of)

    return {str(key): plain(value) for key, value in details.items()}
