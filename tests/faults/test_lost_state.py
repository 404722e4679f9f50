"""Redis has forgotten: scripts, keys, or all of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fleets import fleet, url, worst_excess
from measurements import Measured
from servers import PATIENT, Server

from shared_resilience import CircuitBreakerConfig, ResilienceService, TokenBucket

BUCKET = TokenBucket(200, 200)


@pytest.mark.fault("SCRIPT FLUSH, again and again under load", "not noticed")
def test_script_flush(own_server: Server, tmp_path: Path, measured: Measured) -> None:
    patient = url(own_server.url, command_timeout=PATIENT)
    with fleet(2, patient, ("search",), BUCKET, tmp_path) as workers, own_server.client() as admin:
        began = workers.until_all_decide_by("redis", 0.0)
        for _ in range(20):
            admin.script_flush()
            workers.go_on(0.05)  # of load
        calls = workers.calls()
    excess = worst_excess(calls, BUCKET.capacity, BUCKET.refill_rate, began, time.monotonic())

    measured(f"20 flushes in {len(calls):,} calls: {sum(c.source == 'local' for c in calls)} decided locally")
    assert {call.source for call in calls} == {"redis"}
    assert excess <= 0


@pytest.mark.fault("FLUSHALL under load", "nothing raised; one more burst at most, each time")
def test_flushall(own_server: Server, tmp_path: Path, measured: Measured) -> None:
    patient = url(own_server.url, command_timeout=PATIENT)
    with fleet(4, patient, ("search",), BUCKET, tmp_path) as workers, own_server.client() as admin:
        began = workers.until_all_decide_by("redis", 0.0)
        workers.go_on(1.0)  # until the first burst is used up
        admin.flushall()
        workers.go_on(1.5)
        calls = workers.calls()
    excess = worst_excess(calls, BUCKET.capacity, BUCKET.refill_rate, began, time.monotonic())

    measured(f"worst excess {max(0.0, excess):.0f}, of a capacity of {BUCKET.capacity}")
    assert {call.source for call in calls} == {"redis"}
    assert excess <= BUCKET.capacity


@pytest.mark.fault("Redis is full and evicts what it likes (allkeys-random)", "nothing raised; bursts, never an error")
def test_eviction(own_server: Server, prefix: str, measured: Measured) -> None:
    with (
        own_server.client() as admin,
        ResilienceService.from_url(own_server.url, prefix=prefix, command_timeout=PATIENT) as service,
    ):
        limiter = service.get_or_create_rate_limiter("search", TokenBucket(10, 0.001), remember_refusals=False)
        limiter.try_acquire()
        admin.config_set("maxmemory-policy", "allkeys-random")
        admin.config_set("maxmemory", admin.info("memory")["used_memory"] + 300_000)
        sources = {limiter.try_acquire(str(number % 4000)).source for number in range(8000)}
        evicted = admin.info("stats")["evicted_keys"]

    measured(f"{evicted:,} keys evicted in 8,000 calls for 4,000 keys, all decided by Redis")
    assert sources == {"redis"}
    assert evicted > 0


@pytest.mark.fault("FLUSHALL while a circuit is open", "it closes; new failures open it again; generations only grow")
def test_open_circuit(own_server: Server, prefix: str, measured: Measured) -> None:
    with (
        own_server.client() as admin,
        ResilienceService.from_url(own_server.url, prefix=prefix, command_timeout=PATIENT) as service,
    ):
        breaker = service.get_or_create_circuit_breaker("payments", CircuitBreakerConfig(failure_threshold=2))

        def fail_until_open() -> int:
            while breaker.state == "closed":
                with pytest.raises(ConnectionError):
                    breaker.call(_fails)
            return int(str(breaker.get_stats()["generation"]))

        before = fail_until_open()
        admin.flushall()
        breaker.get_stats()
        after = fail_until_open()

    measured("the generation has grown")
    assert after > before


def _fails() -> None:
    raise ConnectionError("the upstream hung up")


@pytest.mark.fault("a key of ours holds something else (WRONGTYPE)", "decided locally, told by `store.rejected`")
def test_wrong_type(server: Server, prefix: str, measured: Measured) -> None:
    events: list[str] = []
    service = ResilienceService.from_url(
        server.url, prefix=prefix, command_timeout=PATIENT, listeners=[lambda event: events.append(event.name)]
    )
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(2, 0.001), remember_refusals=False)
    with server.client() as admin:
        admin.set(f"{prefix}:{{search}}:limit:token_bucket", "mine")
    found = [(limiter.try_acquire().allowed, limiter.try_acquire("other").source) for _ in range(3)]
    rejected = events.count("store.rejected")
    service.close()

    measured(f"{rejected} calls told; other keys are still decided by Redis")
    assert found == [(True, "redis"), (True, "redis"), (False, "redis")]
    assert rejected == 3
    assert "store.lost" not in events


@pytest.mark.fault(
    "somebody writes bytes that are no text into `overrides` and `stats`",
    "they count as absent; Redis goes on deciding",
)
def test_binary_fields(server: Server, prefix: str, measured: Measured) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", BUCKET)
    limiter.try_acquire()
    with server.client() as admin:
        for key in ("overrides", "stats", "config"):
            admin.execute_command("HSET", f"{prefix}:{{search}}:{key}", b"\xff\xfe", b"\x80")
    service.get_comprehensive_stats()
    sources = [limiter.try_acquire(str(number)).source for number in range(5)]
    service.check()
    service.close()

    measured(f"decided by {', '.join(dict.fromkeys(sources))}")
    assert sources == ["redis"] * 5
