"""Redis answers, but refuses: each word it refuses with, from real servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from measurements import Measured
from refusals import (
    busy,
    demoted,
    demoted_and_out_of_date,
    forbidden,
    full,
    locked,
    refuses,
    unsaved,
    without_replicas,
)
from servers import PATIENT, Server, free_port, poll

from shared_resilience import Event, ResilienceService, TokenBucket

PLENTY = TokenBucket(10**6, 10**6)


class Watch:
    """A service, what it decides by, and what it has said of Redis."""

    def __init__(self, url: str, prefix: str) -> None:
        self.events: list[Event] = []
        self.service = ResilienceService.from_url(
            url, prefix=prefix, command_timeout=PATIENT, listeners=[self.events.append]
        )
        self._limiter = self.service.get_or_create_rate_limiter("search", PLENTY, remember_refusals=False)

    def source(self) -> str:
        return self._limiter.try_acquire().source

    def faults(self) -> list[object]:
        return [event.details["fault"] for event in self.events if event.name == "store.lost"]

    def returns_within(self) -> float:
        """Seconds until Redis decides again."""
        began = time.monotonic()
        poll(lambda: self.source() == "redis", "Redis to decide", 2.5)
        return time.monotonic() - began


@contextmanager
def watching(server: Server, prefix: str) -> Iterator[Watch]:
    watch = Watch(server.url, prefix)
    assert watch.source() == "redis"
    yield watch
    watch.service.close()


def words(watch: Watch, seconds: float) -> str:
    return f"{' and '.join(map(str, dict.fromkeys(watch.faults())))}; shared again after {seconds:.2f} s"


REFUSALS: list[tuple[Callable[[Server], Any], str]] = [
    (busy, "NOT_NOW"),
    (full, "NOT_NOW"),
    (without_replicas, "NOT_NOW"),
    (unsaved, "NOT_NOW"),
    (demoted, "READ_ONLY"),
    (demoted_and_out_of_date, "NOT_NOW"),
    (locked, "UNKNOWN"),  # its connection was closed; what the probe is told is logged
    (forbidden, "CONFIGURATION"),
]


@pytest.mark.fault(
    "Redis refuses: BUSY, OOM, NOREPLICAS, MISCONF, READONLY, MASTERDOWN, NOAUTH, NOPERM, on each server",
    "nothing raised; decided locally; shared again within 2.5 s of its end",
)
@pytest.mark.parametrize(("refusing", "fault"), REFUSALS, ids=lambda value: getattr(value, "__name__", ""))
def test_refused(binary: str, prefix: str, measured: Measured, refusing: Any, fault: str) -> None:
    with Server(binary) as server, watching(server, prefix) as watch:
        with refusing(server):
            sources = {watch.source() for _ in range(20)}
        measured(words(watch, watch.returns_within()))

    assert sources == {"local"}
    assert set(watch.faults()) == {fault}


@pytest.mark.fault("Redis has restarted and still loads its data (LOADING)", "decided locally until it is done")
def test_loading(binary: str, lane: str, prefix: str, measured: Measured) -> None:
    if lane == "redis-6.2":
        pytest.skip("it cannot be told to answer while it loads so little")
    slowly = ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024", "--rdbcompression", "no")
    with Server(binary, *slowly) as server, server.client() as admin:
        for number in range(60):
            admin.set(f"filler:{number}", "x" * 4096)
        admin.save()
        server.kill()
        began = time.monotonic()
        server.launch()
        poll(lambda: refuses(admin, "Loading"), "Redis to load")
        watch = Watch(server.url, prefix)
        source = watch.source()
        watch.returns_within()
        seconds = time.monotonic() - began
        watch.service.close()

    measured(f"{watch.faults()[0]}; shared {seconds:.1f} s after its start, of which it loads for 1.2 s")
    assert source == "local"
    assert watch.faults() == ["NOT_NOW"]
    assert seconds > 60 * 0.02


@pytest.mark.fault("a cluster has lost its slots (CLUSTERDOWN)", "decided locally")
def test_cluster_down(own_server: Server, prefix: str, measured: Measured) -> None:
    with Server(own_server.binary, "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        admin: Any = server.client()
        admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        poll(lambda: admin.cluster("INFO")["cluster_state"] == "ok", "the cluster to form")
        with watching(server, prefix) as watch:
            admin.execute_command("CLUSTER", "DELSLOTSRANGE", 0, 16383)
            sources = {watch.source() for _ in range(20)}
        admin.close()

    measured(" and ".join(map(str, watch.faults())))
    assert sources == {"local"}
    assert watch.faults() == ["NOT_NOW"]
