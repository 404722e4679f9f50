"""The schema of the statistics: what is told is documented, is plain data, and has all kinds of components."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Api
from documents import STATISTICS, text_of

from shared_resilience import (
    FallbackConfig,
    FallbackLevel,
    IdempotencyConfig,
    LeakyBucket,
    SlidingWindow,
    TokenBucket,
)
from shared_resilience.runtime import SECTIONS

NAME = "orders"
DOCUMENTED = set(re.findall(r"`([a-z_0-9.]+)`", text_of(STATISTICS)))
LABELS = {"token_bucket", "sliding_window", "leaky_bucket", NAME}


def use_everything(api: Api) -> None:
    """Calls that pass, fail and are refused, by every kind of component."""
    service = api.service

    async def fail(*args: object) -> None:
        raise ConnectionError

    def fail_now(*args: object) -> None:
        raise ConnectionError

    failing: Any = fail_now if api.form == "sync" else fail
    limiter = service.get_or_create_rate_limiter(NAME, TokenBucket(2, 1), SlidingWindow(9, 60), LeakyBucket(9, 1))
    for _ in range(3):
        api(limiter.try_acquire())
    calls = [
        service.get_or_create_circuit_breaker(NAME).call,
        service.get_or_create_bulkhead(NAME).execute,
        service.get_or_create_retry_manager(NAME).execute_with_retry,
        service.get_or_create_adaptive_timeout(NAME).execute,
    ]
    for call in calls:
        with pytest.raises(ConnectionError):
            api(call(failing))
    chain = service.get_or_create_fallback_chain(NAME, FallbackConfig())
    chain.register_handler(FallbackLevel.DEFAULT, lambda *args: "known")
    api(chain.answer(failing))
    once = service.get_or_create_idempotency(NAME, IdempotencyConfig())
    with pytest.raises(ConnectionError):
        api(once.execute("key", failing))
    api(service.get_or_create_health_checker(NAME).check(failing))
    api.clock.advance(2)


def keys_in(data: object) -> Iterator[str]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from keys_in(value)


def test_what_is_told_is_documented(api: Api) -> None:
    use_everything(api)
    stats = json.loads(json.dumps(api(api.service.get_comprehensive_stats()), allow_nan=False))
    configured = {key for section in SECTIONS.values() for key in stats[section][NAME].get("config", {})}

    assert set(stats) == {"timestamp", "store", "fleet", *SECTIONS.values()}
    assert set(keys_in(stats)) - LABELS - configured - DOCUMENTED == set()


def test_local_and_fleet_numbers_are_apart_and_of_their_own_kind(api: Api, place: str) -> None:
    use_everything(api)
    stats = api(api.service.get_comprehensive_stats())
    families = {
        "rate_limiters": {"limit.allowed": 2, "limit.refused": 1},
        "circuit_breakers": {"breaker.calls": 1, "breaker.failures": 1},
        "bulkheads": {"bulkhead.entered": 1},
        "fallback_chains": {"fallback.primary_failed": 1, "fallback.default": 1},
        "idempotency": {"idempotency.claimed": 1},
        "health_checkers": {"health.failed": 1},
    }

    for section, counters in families.items():
        found = stats[section][NAME]
        local = {field: number for field, number in found["local"].items() if not field.endswith("decided_locally")}
        assert local == counters
        assert found["fleet"] == (found["local"] if place != "local" else {})
        assert found["live_workers"] == (1 if place != "local" else None)
