"""The components that a policy is made of, in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shared_resilience.admission import Admission
from shared_resilience.backends import Backends
from shared_resilience.breaker import Breaker
from shared_resilience.claims import Claims
from shared_resilience.fallback import Fallback
from shared_resilience.latency import Latency
from shared_resilience.limiter import Limiter
from shared_resilience.limiter_keys import Key
from shared_resilience.permits import Composition
from shared_resilience.plan import Plan
from shared_resilience.priority import PriorityLevel, priority_of
from shared_resilience.retries import Retries
from shared_resilience.runtime import Runtime

Asked = tuple[Key, int, PriorityLevel]
"""For whom limits and bulkhead are asked: key, cost and priority."""


@dataclass(frozen=True)
class Cores:
    """What the parts of a plan are; None for those that it has not. `permits` are limits and bulkhead together."""

    monotonic: Callable[[], float]
    backends: Backends
    limiter: Limiter | None
    breaker: Breaker | None
    bulkhead: Admission | None
    permits: Composition | None
    retries: Retries | None
    latency: Latency | None
    claims: Claims | None
    fallback: Fallback | None
    fallback_backends: Backends
    slot_backends: Backends

    @classmethod
    def of(cls, plan: Plan, runtime: Runtime) -> Cores:
        """Those of `plan`, which are made or found. Raises `ValueError` if one exists with another configuration."""
        name, limits, of_bulkhead = plan.name, plan.rate_limits, plan.bulkhead_config
        limiter = runtime.limiter(name, tuple(limits)) if limits else None
        bulkhead = runtime.bulkhead(name, of_bulkhead) if of_bulkhead is not None else None
        breaker = runtime.breaker(plan.breaker_name, plan.circuit_breaker_config) if plan.has_breaker else None
        chain = plan.fallback_chain
        return cls(
            monotonic=runtime.process.clock.monotonic,
            backends=runtime.backends,
            limiter=limiter,
            breaker=breaker,
            bulkhead=bulkhead,
            permits=runtime.permits(name) if limiter is not None and bulkhead is not None else None,
            retries=runtime.retries(name, plan.retry_config) if plan.retry_config is not None else None,
            latency=runtime.latency(name, plan.timeout_config) if plan.timeout_config is not None else None,
            claims=runtime.claims(name, plan.idempotency_config) if plan.idempotency_key is not None else None,
            fallback=None if chain is None else chain._core,
            fallback_backends=runtime.backends if chain is None else chain._backends,
            slot_backends=runtime.backends if bulkhead is None else runtime.backends_of(bulkhead),
        )

    def checked(self, key: Key, cost: int, priority: PriorityLevel) -> Asked:
        """For whom limits and bulkhead are asked. Raises `ValueError` for what they would never let in."""
        if self.limiter is not None:
            self.limiter.check_cost(cost)
            self.limiter.keys.texts(key)
        return key, cost, priority_of(priority)
