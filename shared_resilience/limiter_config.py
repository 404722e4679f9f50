"""The configuration of a rate limiter."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared_resilience import validation
from shared_resilience.backends import ON_OUTAGE, OnOutage
from shared_resilience.limit_commands import PAUSE
from shared_resilience.limits import Limit
from shared_resilience.priority import Reserved, checked_reserved
from shared_resilience.token_bucket import TokenBucket

LONGEST_PAUSE = 3600.0
LONGEST_LEASE = 60.0


@dataclass(frozen=True, slots=True)
class LimiterConfig:
    """What makes two rate limiters of one name the same."""

    limits: tuple[Limit, ...] = (TokenBucket(),)
    on_outage: OnOutage = "local"
    remember_refusals: bool = True
    shadow: bool = False
    partitioned: bool = False
    max_pause: float = 60.0
    lease_tokens: int | None = None
    lease_seconds: float = 0.5
    reserved: Reserved = field(default_factory=dict)

    def __post_init__(self) -> None:
        for limit in self.limits:
            if not isinstance(limit, Limit):
                raise ValueError(f"limit is {limit!r}, but must be a TokenBucket, SlidingWindow or LeakyBucket")
        labels = [limit.label for limit in self.limits]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"several limits have the label {twice[0]!r}; give each a label= of its own")
        if PAUSE in labels:
            raise ValueError(f"label is {PAUSE!r}, but that is what limits a paused resource")
        validation.choice("on_outage", self.on_outage, ON_OUTAGE)
        for flag in ("remember_refusals", "shadow", "partitioned"):
            validation.flag(flag, getattr(self, flag))
        object.__setattr__(self, "reserved", checked_reserved(self.reserved))
        validation.number("max_pause", self.max_pause, 0.001, LONGEST_PAUSE)
        validation.number("lease_seconds", self.lease_seconds, 0.001, LONGEST_LEASE)
        if self.lease_tokens is not None:
            self._check_lease()

    def _check_lease(self) -> None:
        if self.reserved:
            raise ValueError(
                "lease_tokens and reserved are both given, but leased tokens serve calls of all priorities"
            )
        for limit in self.limits:
            if not isinstance(limit, TokenBucket):
                raise ValueError(
                    f"lease_tokens is given, but {limit!r} is no TokenBucket, and only those can be leased"
                )
        validation.count("lease_tokens", self.lease_tokens, high=min(limit.most for limit in self.limits))
