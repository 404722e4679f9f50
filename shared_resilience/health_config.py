"""Configuration of health checks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from shared_resilience import validation


class HealthCheckType(Enum):
    """What a check is for, from the cheapest to the most thorough; each includes those before it.

    `LIVENESS`: is this process able to work at all? Whoever asks restarts it if not: ask nobody else in it.
    `READINESS`: can it serve calls now? Whoever asks sends it no calls if not.
    `DEEP`: is all that it needs in order? For operators.
    """

    LIVENESS = "liveness"
    READINESS = "readiness"
    DEEP = "deep"

    def includes(self, other: HealthCheckType) -> bool:
        """Whether a check of the type `other` belongs to those that are made for this one."""
        order = list(HealthCheckType)
        return order.index(other) <= order.index(self)


@dataclass(frozen=True)
class HealthCheckConfig:
    """How a health check is made. Raises `ValueError` for a wrong number.

    In the background it is made every `interval` seconds (0.01 to 86400). It fails when it has not answered after
    `timeout` seconds (0.001 to 3600). What was healthy is unhealthy only after `grace` failures (1 to 1000) in a row.
    When a `critical` check is unhealthy so is the whole; any other leaves it degraded.
    """

    check_type: HealthCheckType = HealthCheckType.READINESS
    interval: float = 5.0
    timeout: float = 3.0
    grace: int = 3
    critical: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.check_type, HealthCheckType):
            raise validation.wrong("check_type", self.check_type, "a HealthCheckType")
        validation.number("interval", self.interval, 0.01, 86_400)
        validation.number("timeout", self.timeout, 0.001, 3600)
        validation.count("grace", self.grace, high=1000)
        if not isinstance(self.critical, bool):
            raise validation.wrong("critical", self.critical, "True or False")

    def numbers(self) -> dict[str, float]:
        """The numbers in force, as they stand in clear in the resource's `config`."""
        return {"interval": self.interval, "timeout": self.timeout, "grace": self.grace}
