"""Several real processes share one limit in a real Redis."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import pytest
from processes import forkserver
from servers import PATIENT, Server

from shared_resilience import LeakyBucket, RateLimitExceeded, ResilienceService, SlidingWindow, TokenBucket
from shared_resilience.limits import Limit

WORKERS = 4


class Report(NamedTuple):
    """What one worker saw: the monotonic times just before and after each call that was granted, and who decided."""

    granted: list[tuple[float, float]]
    sources: set[str]


def hammer(url: str, prefix: str, limit: Limit, seconds: float, start: Any, out: Connection) -> None:
    """Takes from one shared limiter as fast as it can; the machine's monotonic clock is the same in all processes."""
    with ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT) as service:
        limiter = service.get_or_create_rate_limiter("search", limit)
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


def run_fleet(work: Callable[..., None], *args: Any) -> list[Any]:
    """What each of several processes sends that call `work(*args, start, out)`; they go on together from `start`."""
    start = forkserver.Barrier(WORKERS)
    pipes, processes = [], []
    for _ in range(WORKERS):
        receiver, sender = forkserver.Pipe(duplex=False)
        process = forkserver.Process(target=work, args=(*args, start, sender))
        process.start()
        pipes.append(receiver)
        processes.append(process)
    reports = [receiver.recv() for receiver in pipes if receiver.poll(60)]
    for process in processes:
        process.join(10)
    assert len(reports) == WORKERS
    return reports


def most_in_any_interval(granted: Iterable[tuple[float, float]], bucket: TokenBucket) -> float:
    """By how much the worst interval exceeds capacity + rate × its length; the interval as the callers saw it.

    It ends when the last of its calls was answered, which need not be the one that was asked last.
    """
    calls = sorted(granted)
    worst = float("-inf")
    for first, (begin, _) in enumerate(calls):
        last_answer = begin
        for count, (_, end) in enumerate(calls[first:], start=1):
            last_answer = max(last_answer, end)
            worst = max(worst, count - bucket.capacity - bucket.refill_rate * (last_answer - begin))
    return worst


def test_four_processes_get_the_limit_no_more_and_nearly_all_of_it(server: Server, prefix: str) -> None:
    bucket = TokenBucket(100, 10)
    seconds = 5.0

    reports = run_fleet(hammer, server.url, prefix, bucket, seconds)

    assert [report.sources for report in reports] == [{"redis"}] * WORKERS
    granted = sorted(call for report in reports for call in report.granted)
    length = granted[-1][1] - granted[0][0]
    assert most_in_any_interval(granted, bucket) <= 1e-6
    assert 0.97 * (100 + 10 * seconds) <= len(granted) <= 100 + 10 * max(seconds, length)


def serve_leases(url: str, prefix: str, limit: Limit, seconds: float, start: Any, out: Connection) -> None:
    """As `hammer`, with leased tokens; sends its process id first, and its calls in parts, since it may be killed."""
    out.send(os.getpid())
    service = ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", limit, lease_tokens=20, lease_seconds=LEASE)
    service.check()
    start.wait()
    end = time.monotonic() + seconds
    granted: list[tuple[float, float]] = []
    while (before := time.monotonic()) < end:
        if limiter.try_acquire().allowed:
            granted.append((before, time.monotonic()))
        if len(granted) >= 10 or (granted and before - granted[0][0] > 0.02):
            out.send(granted)
            granted = []
    out.send(granted)
    out.close()


LEASE = 0.25


@pytest.mark.fault(
    "a worker is killed with leased tokens in its memory", "the bound of leases holds; at most what it held is lost"
)
def test_leases_keep_their_bound_whichever_process_is_killed(server: Server, prefix: str) -> None:
    bucket = TokenBucket(100, 200)
    start = forkserver.Barrier(WORKERS)
    pipes, processes = [], []
    for _ in range(WORKERS):
        receiver, sender = forkserver.Pipe(duplex=False)
        process = forkserver.Process(target=serve_leases, args=(server.url, prefix, bucket, 3.0, start, sender))
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    pids = [receiver.recv() for receiver in pipes]
    granted: list[tuple[float, float]] = []
    killed = threading.Timer(1.5, os.kill, (pids[0], signal.SIGKILL))  # in the middle of its leases
    killed.start()
    for receiver in pipes:
        with suppress(EOFError):
            while True:
                granted += receiver.recv()
    for process in processes:
        process.join(10)

    slack = TokenBucket(round(bucket.capacity + bucket.refill_rate * LEASE), bucket.refill_rate)
    assert processes[0].exitcode == -signal.SIGKILL
    assert most_in_any_interval(granted, slack) <= 1e-6
    length = max(end for _, end in granted) - min(begin for begin, _ in granted)
    assert 0.7 * (100 + 200 * length) <= len(granted) <= 100 + 200 * (length + 0.05)


@pytest.mark.parametrize("exact", [True, False])
def test_no_window_ever_sees_more_than_its_limit_wherever_it_begins(server: Server, prefix: str, exact: bool) -> None:
    window = SlidingWindow(40, 0.4, exact)
    seconds = 2.0

    reports = run_fleet(hammer, server.url, prefix, window, seconds)

    assert [report.sources for report in reports] == [{"redis"}] * WORKERS
    granted = sorted(call for report in reports for call in report.granted)
    # Certainly within one window: asked after it began and answered before it ended, by a clock that may differ from
    # the server's by a thousandth.
    length = window.window * 0.999
    for begin, _ in granted:
        assert sum(begin <= before and after <= begin + length for before, after in granted) <= window.limit
    assert len(granted) > 1.5 * window.limit  # it has opened again


def queue_up(url: str, prefix: str, limit: Limit, seconds: float, start: Any, out: Connection) -> None:
    """Several threads enter a leaky bucket again and again; sends when each was to go on and did, by the server."""
    turns: list[tuple[int, int]] = []
    with ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT) as service:
        limiter = service.get_or_create_rate_limiter("search", limit)
        service.check()

        def enter_again_and_again() -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                with suppress(RateLimitExceeded):
                    answer = limiter.reserve(timeout=0.2)._reserved.answer
                    went_on = time.time_ns() // 1000
                    turns.append((answer.decided_us + round(answer.decision.delay * 1e6), went_on))
                    assert answer.decision.source == "redis"

        threads = [threading.Thread(target=enter_again_and_again) for _ in range(5)]
        start.wait()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    out.send(turns)


def test_calls_leave_a_leaky_bucket_one_by_one_over_the_whole_fleet(server: Server, prefix: str) -> None:
    queue = LeakyBucket(10, 200)
    seconds = 1.5

    turns = sorted(turn for turns in run_fleet(queue_up, server.url, prefix, queue, seconds) for turn in turns)

    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(turns)]
    assert min(gaps) >= 1_000_000 / queue.leak_rate
    assert all(went_on >= turn for turn, went_on in turns)
    assert len(turns) > 5 * queue.capacity


THREE = (
    TokenBucket(100, 1e-6, label="user"),
    SlidingWindow(200, 3600, label="tenant"),
    TokenBucket(370, 1e-6, label="everybody"),
)


class Attempts(NamedTuple):
    """What one worker was granted, by user and by tenant, and what refused it how often."""

    by_user: Counter[str]
    by_tenant: Counter[str]
    refused: Counter[str | None]


def take_for_users(url: str, prefix: str, start: Any, out: Connection) -> None:
    """Takes for random users of two tenants from three limits at once."""
    source = random.Random()
    attempts = Attempts(Counter(), Counter(), Counter())
    with ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT) as service:
        limiter = service.get_or_create_rate_limiter("api", *THREE, remember_refusals=False)
        service.check()
        start.wait()
        for _ in range(400):
            user, cost = source.choices(range(8), [1, 2, 1, 2, 1, 2, 1, 20])[0], source.randint(1, 3)
            names = {"user": f"u{user}", "tenant": f"t{user % 2}"}
            decision = limiter.try_acquire(names, cost)
            assert decision.source == "redis"
            if decision.allowed:
                attempts.by_user[names["user"]] += cost
                attempts.by_tenant[names["tenant"]] += cost
            else:
                attempts.refused[decision.limited_by] += 1
    out.send(attempts)


def test_several_limits_are_charged_for_what_was_admitted_and_for_nothing_else(server: Server, prefix: str) -> None:
    reports = run_fleet(take_for_users, server.url, prefix)

    by_user: Counter[str] = sum((report.by_user for report in reports), Counter())
    by_tenant: Counter[str] = sum((report.by_tenant for report in reports), Counter())
    refused: Counter[str | None] = sum((report.refused for report in reports), Counter())
    assert all(refused[limit.label] > 0 for limit in THREE)
    with server.client() as client:

        def tokens_taken_from(limit: TokenBucket, key: str) -> int:
            left = client.hget(f"{prefix}:{{api}}:limit:{limit.label}{key}", "microtokens")
            return limit.capacity - int(left or 0) // 1_000_000

        def logged(tenant: str) -> int:
            ((newest, _),) = client.zrange(f"{prefix}:{{api}}:limit:tenant:{tenant}", -1, -1, withscores=True)
            return int(newest.split(":")[0])

        user, _, everybody = THREE
        assert {name: tokens_taken_from(user, f":{name}") for name in by_user} == by_user
        assert {tenant: logged(tenant) for tenant in by_tenant} == by_tenant
        assert tokens_taken_from(everybody, "") == sum(by_user.values()) <= everybody.capacity
    assert max(by_user.values()) <= user.capacity
    assert max(by_tenant.values()) <= THREE[1].limit


@pytest.mark.fault("a worker is killed (kill -9) in the middle of its calls", "the limit goes on as if it had stopped")
def test_a_killed_worker_takes_nothing_with_it(server: Server, prefix: str) -> None:
    receiver, sender = forkserver.Pipe(duplex=False)
    start = forkserver.Barrier(2)
    process = forkserver.Process(target=hammer, args=(server.url, prefix, TokenBucket(10, 10), 60.0, start, sender))
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
        ResilienceService.from_url(server.url, prefix=prefix, worker_id=f"worker {number}", command_timeout=PATIENT)
        for number in range(workers)
    ]
    for service in services:
        service.get_or_create_rate_limiter("search", TokenBucket(10, 1)).try_acquire()

    stats = [service.get_comprehensive_stats() for service in services]

    assert [one["rate_limiters"]["search"]["live_workers"] for one in stats] == [workers] * workers
    assert stats[-1]["fleet"] == {"workers": workers, "worker_id": f"worker%20{workers - 1}"}
    for service in services:
        service.close()
