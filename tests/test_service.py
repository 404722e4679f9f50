"""The service around the components."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest
from servers import PATIENT, Server, free_port

from shared_resilience import ResilienceService, StoreUnavailableError, TokenBucket, scripts
from shared_resilience.cli import main


def test_nothing_connects_before_the_first_call() -> None:
    service = ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}")
    service.get_or_create_rate_limiter("search", TokenBucket(10, 1))
    service.aio.get_or_create_rate_limiter("search")


def test_sync_and_asyncio_callers_of_one_process_share_limits_and_refusals(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(2, 0.001))

    async def take() -> tuple[bool, float]:
        decision = await service.aio.get_or_create_rate_limiter("search").try_acquire()
        await service.aio.close()
        return decision.allowed, decision.retry_after

    assert limiter.try_acquire().allowed
    assert asyncio.run(take()) == (True, 0.0)
    refusal = limiter.try_acquire()
    allowed, retry_after = asyncio.run(take())
    assert not allowed
    assert retry_after <= refusal.retry_after
    service.close()


def test_a_service_is_a_context_manager_in_both_forms(server: Server, prefix: str) -> None:
    async def take() -> str:
        async with ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT).aio as service:
            return (await service.get_or_create_rate_limiter("search").try_acquire()).source

    with ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT) as service:
        assert service.get_or_create_rate_limiter("search").try_acquire().source == "redis"
    assert asyncio.run(take()) == "redis"


def test_closing_reports_what_was_counted_and_the_service_can_be_used_again(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(10, 1))
    for _ in range(3):
        limiter.try_acquire()
    service.close()
    with server.client() as client:
        assert client.hgetall(f"{prefix}:{{search}}:stats") == {"limit.allowed": "3"}

    assert limiter.try_acquire().source == "redis"
    service.close()


def test_check_says_whether_redis_can_decide(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    service.check()
    asyncio.run(_check_and_close(service))
    service.close()
    with pytest.raises(StoreUnavailableError, match="nothing was sent"):
        ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}").check()


async def _check_and_close(service: ResilienceService) -> None:
    await service.aio.check()
    await service.aio.close()


def test_statistics_are_plain_data(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    service.get_or_create_rate_limiter("search", TokenBucket(10, 1)).try_acquire()

    stats = json.loads(json.dumps(service.get_comprehensive_stats()))

    kinds = {"rate_limiters", "circuit_breakers", "bulkheads", "retry_managers", "adaptive_timeouts"}
    kinds |= {"fallback_chains", "idempotency", "health_checkers"}
    assert set(stats) == {"timestamp", "store", "fleet", *kinds}
    assert stats["store"] == {
        "usable": True,
        "answered": True,
        "outages": 0,
        "seconds_away": 0.0,
        "decided_locally": 0,
        "decided_locally_by_fleet": 0,
    }
    assert stats["rate_limiters"]["search"]["limits"] == {"token_bucket": {"capacity": 10, "refill_rate": 1}}
    service.close()


@pytest.mark.parametrize("name", scripts.names())
def test_the_command_line_prints_a_script_that_is_sent_as_printed(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["script", name]) == 0
    assert capsys.readouterr().out == scripts.load(name).text


def test_the_command_line_knows_its_scripts() -> None:
    unknown = subprocess.run(
        [sys.executable, "-m", "shared_resilience", "script", "nope"], capture_output=True, text=True
    )
    assert unknown.returncode == 2
    assert "invalid choice: 'nope'" in unknown.stderr


def test_a_printed_script_runs_by_hand(server: Server, prefix: str) -> None:
    text = scripts.load("rate_limiter").text
    with server.client() as client:
        bucket = ("token_bucket", "user", 5, 1, 1)
        reply = client.eval(text, 2, f"{prefix}:o", f"{prefix}:b", 2, 1, -1, 0, *bucket, "")

    assert reply[:7] == [1, 1, 5, 3, 0, 2_000_000, 0]
