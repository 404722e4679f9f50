"""What the API protects: a bank that can be told to fail, a second bank, and everything that stands before them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from shared_resilience import (
    BulkheadConfig,
    CircuitBreakerConfig,
    FallbackConfig,
    FallbackLevel,
    IdempotencyConfig,
    RateLimitExceeded,
    RetryConfig,
    TimeoutConfig,
    TokenBucket,
    get_resilience_service,
    resilient,
)
from shared_resilience.fallback_config import falls_through

SIMULATIONS = ("ok", "slow", "rejected", "bank_down", "all_down")
"""What a request can ask the banks to do, so that everything can be seen at work."""

LIMIT = TokenBucket(20, 5)
service = get_resilience_service().aio


@dataclass(frozen=True)
class Order:
    """What is to be paid."""

    order_id: str
    amount: int
    simulate: str = "ok"


class RejectedError(Exception):
    """The bank refuses this payment: no fault of the bank, so not retried, not counted, not answered by another."""


async def _second_bank(client: str, key: str, order: Order) -> dict[str, Any]:
    if order.simulate == "all_down":
        raise ConnectionError("the second bank is down")
    return {"order_id": order.order_id, "state": "paid", "by": "second bank"}


async def _later(client: str, key: str, order: Order) -> dict[str, Any]:
    return {"order_id": order.order_id, "state": "accepted", "by": "nobody yet"}


def _may_be_answered_by_others(error: Exception) -> bool:
    return not isinstance(error, RateLimitExceeded | RejectedError) and falls_through(error)


banks = service.get_or_create_fallback_chain(
    "payments",
    FallbackConfig(shared_max_age=0, local_max_age=0, falls_through=_may_be_answered_by_others),
)
banks.register_handler(FallbackLevel.BACKUP_SERVICE, _second_bank)
banks.register_handler(FallbackLevel.DEFAULT, _later)


@resilient(
    "payments",
    rate_limits=[LIMIT],
    circuit_breaker_config=CircuitBreakerConfig(
        failure_threshold=5, timeout_seconds=5, ignored_exceptions=(RejectedError,)
    ),
    retry_config=RetryConfig(max_retries=2, base_delay=0.02, retry_on=(ConnectionError, TimeoutError)),
    bulkhead_config=BulkheadConfig(max_concurrent_calls=20, timeout=1.0),
    timeout_config=TimeoutConfig(floor=0.5, ceiling=1.0),
    deadline=5.0,
    idempotency_key=lambda client, key, order: f"{client}/{key}",
    idempotency_config=IdempotencyConfig(ttl=24 * 3600),
    key=lambda client, key, order: client,
    service=service,
)
async def pay(client: str, key: str, order: Order) -> dict[str, Any]:
    """Has the bank pay `order`, once for each key of the client."""
    if order.simulate == "slow":
        await asyncio.sleep(60)
    if order.simulate == "rejected":
        raise RejectedError("the bank refuses this payment")
    if order.simulate in ("bank_down", "all_down"):
        raise ConnectionError("the bank is down")
    return {"order_id": order.order_id, "state": "paid", "by": "bank"}


@resilient("greetings", rate_limits=[LIMIT], key=lambda client: client, service=service)
async def greet(client: str) -> dict[str, str]:
    """The short form: one decorator, one part."""
    return {"greeting": f"Hello, {client}"}


readiness = service.get_or_create_health_checker("banks")


@readiness.register
async def banks_are_reachable() -> dict[str, str]:
    """Stands for a call that costs the banks nothing."""
    return {"status": "up"}
