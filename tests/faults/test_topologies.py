"""Failover by Sentinel, a cluster whose primary dies or whose slots move, replicas."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster, cluster_of
from fleets import Way, allowed_between, fleet, worst_excess
from measurements import Measured
from redis.cluster import LoadBalancingStrategy
from sentinels import Watched
from servers import PATIENT, Server, poll

from shared_resilience import ResilienceService, TokenBucket

BUCKET = TokenBucket(200, 200)
WORKERS = 3


def survive(
    way: Way, name: str, primary: Server, replica: Server, folder: Path, measured: Callable[[str], None]
) -> None:
    """Kills `primary` under load, and holds what was allowed until its replica decides against the bound."""
    with fleet(WORKERS, way, (name,), BUCKET, folder) as workers:
        began = workers.until_all_decide_by("redis", 0.0)
        workers.go_on(2.2)  # the heartbeats that tell each how many they are
        killed = time.monotonic()
        primary.kill()
        workers.until_all_decide_by("local", killed)
        poll(replica.leads, "the failover", 30)
        promoted = time.monotonic()
        last = workers.until_all_decide_by("redis", promoted)
        workers.go_on(1.0)  # in which a burst would show
        calls = workers.calls()
        ended = time.monotonic()
    first = min(call.asked for call in calls if call.source == "redis" and call.asked > promoted)
    excess = worst_excess(calls, BUCKET.capacity, BUCKET.refill_rate, began, ended)

    measured(
        f"{len(calls):,} calls, none raised; a successor after {promoted - killed:.1f} s, "
        f"the first shares {first - promoted:.1f} s later, the last {last - promoted:.1f} s; "
        f"worst excess {max(0.0, excess):.0f}, with a capacity of {BUCKET.capacity}"
    )
    assert excess <= BUCKET.capacity + BUCKET.refill_rate * (last - first)
    assert last - promoted < 5.0


@pytest.mark.fault(
    "the primary that Sentinel names dies under load",
    "nothing raised; decided locally until there is a successor, which then decides; "
    "too many at most: one capacity, and what those may alone who come back later than the first",
)
def test_failover(watched: Watched, tmp_path: Path, measured: Measured) -> None:
    way = Way("sentinel", str(watched.port), {"command_timeout": 0.5})
    folder = tmp_path / "calls"
    folder.mkdir()
    survive(way, "search", watched.primary, watched.replica, folder, measured)


@pytest.fixture(scope="module")
def cluster(real_binary: str) -> Iterator[Cluster]:
    """Three primaries, the first of which has a replica; it is the last test that kills one."""
    with cluster_of(real_binary, 3, replicas=1) as cluster:
        yield cluster


def name_in(cluster: Cluster, client: Any, primary: Server) -> str:
    """A name whose slot `primary` owns."""
    names = (f"resource-{number}" for number in range(1000))
    return next(name for name in names if cluster.owner(client.keyslot(f"{{{name}}}")) is primary)


@pytest.mark.fault(
    "the slot of a resource moves between primaries under load (resharding: ASK, TRYAGAIN, MOVED)",
    "nothing raised; its state moves with it; what is asked of no node meanwhile is decided locally",
)
def test_resharding(cluster: Cluster, tmp_path: Path, measured: Measured) -> None:
    with cluster.client() as client:
        name = name_in(cluster, client, cluster.primaries[1])
        slot = client.keyslot(f"{{{name}}}")
    way = Way("cluster", str(cluster.port), {"command_timeout": PATIENT})
    one, two = cluster.primaries[1:]
    with fleet(WORKERS, way, (name,), BUCKET, tmp_path) as workers:
        began = workers.until_all_decide_by("redis", 0.0)
        moved = 0
        for source, target in [(one, two), (two, one)] * 3:
            moved += cluster.move(slot, source, target)
            workers.go_on(0.3)  # of load
        workers.until_all_decide_by("redis", time.monotonic())
        calls = workers.calls()
        ended = time.monotonic()
    excess = worst_excess(calls, BUCKET.capacity, BUCKET.refill_rate, began, ended)
    local = sum(call.source == "local" for call in calls)

    measured(
        f"6 moves, {moved} keys, {len(calls):,} calls, none raised, {local} decided locally; "
        f"worst excess {max(0.0, excess):.0f} of {BUCKET.capacity}"
    )
    assert moved >= 6
    assert excess <= BUCKET.capacity
    assert allowed_between(calls, began, ended) >= 0.5 * BUCKET.refill_rate * (ended - began)


@pytest.mark.fault("`partitioned=True` in a cluster of three", "the keys of one limiter spread over all primaries")
def test_partitions_spread(cluster: Cluster, prefix: str, measured: Measured) -> None:
    with cluster.client() as client:
        service = ResilienceService(client, prefix=prefix, command_timeout=PATIENT)
        limiter = service.get_or_create_rate_limiter("search", BUCKET, partitioned=True)
        sources = Counter(limiter.try_acquire(f"user:{number}").source for number in range(300))
        whole = service.get_or_create_rate_limiter("whole", BUCKET)
        for number in range(300):
            whole.try_acquire(f"user:{number}")
        service.close()
    spread, together = [], []
    for primary in cluster.primaries:
        with primary.client() as client:
            spread.append(len(list(client.scan_iter(f"{prefix}:{{search/*:limit:*"))))
            together.append(len(list(client.scan_iter(f"{prefix}:{{whole}}:limit:*"))))

    measured(f"300 keys: {spread}, without it {together}")
    assert sources == {"redis": 300}
    assert sum(spread) == sum(together) == 300
    assert min(spread) > 60
    assert max(together) == 300


@pytest.mark.fault("the client is one for a replica, or prefers replicas", "no replica ever decides")
def test_replicas_decide_nothing(own_server: Server, cluster: Cluster, prefix: str, measured: Measured) -> None:
    with Server(own_server.binary, "--replicaof", "127.0.0.1", str(own_server.port)) as replica:
        with own_server.client() as admin:
            poll(lambda: admin.info("replication")["connected_slaves"] == 1, "the replica")
        with ResilienceService.from_url(replica.url, prefix=prefix, command_timeout=PATIENT) as service:
            limiter = service.get_or_create_rate_limiter("search", BUCKET)
            of_replica = {limiter.try_acquire(str(number)).source for number in range(20)}
    with cluster.client(load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN) as client:
        name = name_in(cluster, client, cluster.primaries[0])
        service = ResilienceService(client, prefix=prefix, command_timeout=PATIENT)
        limiter = service.get_or_create_rate_limiter(name, BUCKET, remember_refusals=False)
        remaining = [limiter.try_acquire("", 10).remaining for _ in range(10)]
        service.close()

    measured(
        f"of a replica: {', '.join(of_replica)}; of a cluster that reads from replicas: {remaining[-1]} of 200 left"
    )
    assert of_replica == {"local"}
    assert all(earlier > later for earlier, later in pairwise(remaining))


@pytest.mark.fault(
    "a primary of a Redis Cluster dies under load, and its replica takes its place",
    "nothing raised; decided locally meanwhile; "
    "too many at most: one capacity, and what those may alone who come back later than the first",
)
def test_a_primary_of_a_cluster_dies(cluster: Cluster, tmp_path: Path, measured: Measured) -> None:
    with cluster.client() as client:
        name = name_in(cluster, client, cluster.primaries[0])
    way = Way("cluster", str(cluster.primaries[1].port), {"command_timeout": 0.5})
    survive(way, name, cluster.primaries[0], cluster.replicas[0], tmp_path, measured)
