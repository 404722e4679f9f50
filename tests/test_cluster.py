"""A Redis Cluster: all of a resource in one slot, redirections followed, nothing retried."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis
from clusters import cluster_of
from redis import asyncio as async_redis
from servers import PATIENT, Server

from shared_resilience import AsyncResilienceService, ResilienceService, StoreConfigurationError, TokenBucket
from shared_resilience.cli import main

BUCKET = TokenBucket(10, 0.001)


@pytest.fixture(scope="module")
def cluster(real_binary: str) -> Iterator[list[Server]]:
    """Two primaries that own half of the slots each."""
    with cluster_of(real_binary, 2) as cluster:
        yield cluster.primaries


NAMES = [f"resource-{number}" for number in range(8)]  # spread over both primaries


def test_decisions_heartbeats_and_resets_work_in_a_cluster(cluster: list[Server], prefix: str) -> None:
    with redis.RedisCluster(host="127.0.0.1", port=cluster[0].port) as client:
        service = ResilienceService(client, prefix=prefix, command_timeout=PATIENT)
        for name in NAMES:
            limiter = service.get_or_create_rate_limiter(name, BUCKET)
            assert [(d.remaining, d.source) for d in (limiter.try_acquire("a"), limiter.try_acquire("a"))] == [
                (9, "redis"),
                (8, "redis"),
            ]
            limiter.reset_all()
            assert limiter.peek("a").remaining == 10
        stats = service.get_comprehensive_stats()["rate_limiters"]
        assert {name: stats[name]["fleet"] for name in NAMES} == {name: {"limit.allowed": 2} for name in NAMES}


def test_asyncio_decisions_work_in_a_cluster(cluster: list[Server], prefix: str) -> None:
    async def main() -> list[tuple[int, str]]:
        client = async_redis.RedisCluster(host="127.0.0.1", port=cluster[0].port)
        service = AsyncResilienceService(async_client=client, prefix=prefix, command_timeout=PATIENT)
        decisions = [await service.get_or_create_rate_limiter(name, BUCKET).try_acquire() for name in NAMES]
        await service.close()
        await client.aclose()
        return [(decision.remaining, decision.source) for decision in decisions]

    assert asyncio.run(main()) == [(9, "redis")] * len(NAMES)


@pytest.mark.fault("a slot has moved", "found by the same call")
def test_a_slot_that_has_moved_is_found_again_by_the_same_call(cluster: list[Server], prefix: str) -> None:
    with redis.RedisCluster(host="127.0.0.1", port=cluster[0].port) as client:
        service = ResilienceService(client, prefix=prefix, command_timeout=PATIENT)
        service.get_or_create_rate_limiter("other", BUCKET).try_acquire()
        slot = client.keyslot("{moving}")
        with cluster[0].client() as one, cluster[1].client() as two:
            owner, other = (one, two) if slot < 8192 else (two, one)
            new_home = other.execute_command("CLUSTER", "MYID")
            other.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_home)
            owner.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_home)

        assert service.get_or_create_rate_limiter("moving", BUCKET).try_acquire().source == "redis"


@pytest.mark.fault(
    "a client for one server meets a Redis Cluster", "`StoreConfigurationError`, which names `RedisCluster`"
)
def test_a_client_for_one_server_is_told_that_this_is_a_cluster(cluster: list[Server], prefix: str) -> None:
    errors = []
    for server in cluster:
        service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
        try:
            service.get_or_create_rate_limiter("search", BUCKET).try_acquire()
        except StoreConfigurationError as error:
            errors.append(str(error))

    assert errors
    assert all("RedisCluster client" in error for error in errors)


def test_the_doctor_tells_a_client_for_one_server_from_one_for_the_cluster(
    cluster: list[Server], prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with redis.RedisCluster(host="127.0.0.1", port=cluster[0].port) as client:
        diagnosis = ResilienceService(client, prefix=prefix, command_timeout=PATIENT).check()
    with pytest.raises(StoreConfigurationError, match="this is a node of a Redis Cluster, and the client is for one"):
        ResilienceService.from_url(cluster[0].url, prefix=prefix, command_timeout=PATIENT).check()
    codes = [main(["doctor", server.url, *by]) for server in cluster for by in ([], ["--cluster"])]
    shown = capsys.readouterr().out

    assert {finding.level for finding in diagnosis.findings} == {"fine", "warning"}  # no append-only file
    assert diagnosis.findings[-1].found == "16,384 of 16,384 slots are served by 2 primaries"
    assert codes == [2, 1] * 2
    assert shown.count("→ ResilienceService(redis.RedisCluster(...)); shared-resilience doctor --cluster") == 2


def test_asyncio_clients_of_a_cluster_are_examined_too(cluster: list[Server], prefix: str) -> None:
    async def main() -> str:
        client = async_redis.RedisCluster(host="127.0.0.1", port=cluster[0].port)
        service = AsyncResilienceService(async_client=client, prefix=prefix, command_timeout=PATIENT)
        diagnosis = await service.check()
        await service.close()
        await client.aclose()
        return diagnosis.findings[-1].found

    assert asyncio.run(main()) == "16,384 of 16,384 slots are served by 2 primaries"
