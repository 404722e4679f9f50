"""A worker that calls a fragile upstream through a circuit breaker."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx

from shared_resilience import CircuitBreakerConfig, CircuitBreakerOpenError, ResilienceService
from shared_resilience.demo.messages import Call, Order
from shared_resilience.demo.plan import FAILURES, PACE, SUCCESSES


class Protected:
    """A breaker and an HTTP client, made from an order; without a URL of Redis the breaker is this process's own."""

    def __init__(self, order: Order, service: ResilienceService, http: httpx.Client) -> None:
        config = CircuitBreakerConfig(
            failure_threshold=FAILURES,
            failure_rate=0.01,
            success_threshold=SUCCESSES,
            timeout_seconds=order.open_seconds,
            max_open_seconds=2 * order.open_seconds,
            half_open_max_calls=1,
            is_failure=lambda call: isinstance(call, Call) and call.status == 503,
        )
        self._breaker = service.get_or_create_circuit_breaker(order.name, config)
        self._source = "local" if order.redis_url is None else "redis"
        self._http = http

    def enrol(self) -> None:
        """Makes this worker known to the fleet."""
        self._breaker.get_stats()

    def calls(self, until: float) -> Iterator[Call | None]:
        """Calls at a steady pace until the clock shows `until`; None where the circuit refused."""
        while time.monotonic() < until:
            try:
                yield self._breaker.call(self._call)
            except CircuitBreakerOpenError:
                yield None
            time.sleep(PACE)

    def _call(self) -> Call:
        return Call(time.monotonic(), self._source, self._http.get("/fragile").status_code)
