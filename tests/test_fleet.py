"""Several real processes share one limit in a real Redis."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import pytest
from servers import PATIENT, Server

from shared_resilience import ResilienceService, TokenBucket

WORKERS = 4
spawn = multiprocessing.get_context("spawn")


class Report(NamedTuple):
    """What one worker saw: the monotonic times just before and after each call that was granted, and who decided."""

    granted: list[tuple[float, float]]
    sources: set[str]


def hammer(url: str, prefix: str, bucket: TokenBucket, seconds: float, start: Any, out: Connection) -> None:
    """Takes from one shared limiter as fast as it can; the machine's monotonic clock is the same in all processes."""
    with ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT) as service:
        limiter = service.get_or_create_rate_limiter("search", bucket)
        service.check()
        granted: list[tuple[float, float]] = []
        sources: set[str] = set()
        start.wait()
        end = time.monotonic() + seconds
        while (before := time.monotonic()) < end:
            decision = limiter.try_acquire()
            sources.add(decision.source)
            if decision.allowed:
                granted.append((before, time.monotonic()))
    out.send(Report(granted, sources))


def run_fleet(url: str, prefix: str, bucket: TokenBucket, seconds: float) -> list[Report]:
    start = spawn.Barrier(WORKERS)
    pipes, processes = [], []
    for _ in range(WORKERS):
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=hammer, args=(url, prefix, bucket, seconds, start, sender))
        process.start()
        pipes.append(receiver)
        processes.append(process)
    reports = [receiver.recv() for receiver in pipes if receiver.poll(60)]
    for process in processes:
        process.join(10)
    return reports


def most_in_any_interval(granted: Iterable[tuple[float, float]], bucket: TokenBucket) -> float:
    """By how much the worst interval exceeds capacity + rate × its length; the interval as the callers saw it."""
    calls = sorted(granted)
    worst = float("-inf")
    for first, (begin, end) in enumerate(calls):
        latest = end
        for count, (_, end) in enumerate(calls[first:], start=1):
            latest = max(latest, end)
            worst = max(worst, count - bucket.capacity - bucket.refill_rate * (latest - begin))
    return worst


def test_four_processes_get_the_limit_no_more_and_nearly_all_of_it(server: Server, prefix: str) -> None:
    bucket = TokenBucket(100, 10)
    seconds = 5.0

    reports = run_fleet(server.url, prefix, bucket, seconds)

    assert len(reports) == WORKERS
    assert [report.sources for report in reports] == [{"redis"}] * WORKERS
    granted = [call for report in reports for call in report.granted]
    assert most_in_any_interval(granted, bucket) <= 1e-6
    assert len(granted) >= 0.97 * (100 + 10 * seconds)


def test_a_killed_worker_takes_nothing_with_it(server: Server, prefix: str) -> None:
    receiver, sender = spawn.Pipe(duplex=False)
    start = spawn.Barrier(2)
    process = spawn.Process(target=hammer, args=(server.url, prefix, TokenBucket(10, 10), 60.0, start, sender))
    process.start()
    start.wait(30)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()

    with ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT) as service:
        limiter = service.get_or_create_rate_limiter("search", TokenBucket(10, 10))
        assert limiter.acquire(cost=10, timeout=2.0).source == "redis"
    receiver.close()
    sender.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_heartbeat_counts_the_live_workers(server: Server, prefix: str, workers: int) -> None:
    services = [
        ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT, worker_id=f"worker {number}")
        for number in range(workers)
    ]
    for service in services:
        service.get_or_create_rate_limiter("search", TokenBucket(10, 1)).try_acquire()

    stats = [service.get_comprehensive_stats() for service in services]

    assert [one["rate_limiters"]["search"]["workers"] for one in stats] == [workers] * workers
    assert stats[-1]["fleet"] == {"workers": workers, "worker_id": f"worker%20{workers - 1}"}
    for service in services:
        service.close()
