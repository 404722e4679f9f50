"""Redis is down, refuses, or comes back."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
from fleets import allowed_between, fleet, percentile, url, worst_excess
from measurements import Measured
from servers import PATIENT, Server, free_port, poll

from shared_resilience import ResilienceService, StoreUnavailableError, TokenBucket

WORKERS = 4
BUCKET = TokenBucket(400, 400)
"""Of the fleet: a burst of a second."""

SHARE = BUCKET.capacity // WORKERS


@pytest.mark.fault(
    "Redis is killed under load, four processes at 400 calls a second; it comes back empty",
    "nothing is raised; each process goes on with its share; p99 of a decision stays below 10 ms; "
    "shared again within 2 s; at most one capacity too many",
)
def test_killed_under_load(own_server: Server, tmp_path: Path, measured: Measured) -> None:
    with fleet(WORKERS, url(own_server.url), ("search",), BUCKET, tmp_path) as workers:
        workers.until_all_decide_by("redis", 0.0)
        workers.go_on(2.2)  # the heartbeats that tell each how many they are
        killed = time.monotonic()
        own_server.kill()
        workers.until_all_decide_by("local", killed)
        workers.go_on(2.5)  # of an outage
        own_server.start()
        back = time.monotonic()
        shared = workers.until_all_decide_by("redis", back) - back
        workers.go_on(2.0)  # in which a burst would show
        calls = workers.calls()
        ended = time.monotonic()

    alone = [call for call in calls if killed <= call.asked and call.answered <= back and call.source == "local"]
    began, seconds = min(call.asked for call in alone), back - min(call.asked for call in alone)
    of_each = [sum(c.allowed for c in alone if c.process == process.pid) for process in workers.processes]
    late = percentile([call.seconds for call in alone], 99)
    usual = percentile([call.seconds for call in calls if call.answered < killed], 99)
    excess = worst_excess(calls, BUCKET.capacity, BUCKET.refill_rate, killed, ended)
    measured(
        f"{len(calls):,} calls, none raised; each process {min(of_each) / seconds:.0f} … {max(of_each) / seconds:.0f} "
        f"a second alone, its full share to begin with included; p99 {late * 1e3:.1f} ms, before {usual * 1e3:.1f} ms; "
        f"shared again after {shared:.1f} s; worst excess {max(0.0, excess):.0f} of {BUCKET.capacity}"
    )
    for granted in of_each:
        assert 0.8 * SHARE * seconds <= granted <= SHARE + SHARE * (seconds + 0.2)
    assert late - usual < 0.010  # a machine that is busy is so before, too
    assert shared < 2.0
    assert excess <= BUCKET.capacity
    assert allowed_between(calls, began, back) <= 2 * BUCKET.capacity + BUCKET.refill_rate * seconds


@pytest.mark.fault("Redis is not there when a process begins", "decided by the whole limit, one warning; or a share")
@pytest.mark.parametrize(("expected", "granted"), [(None, 100), (5, 20)])
def test_never_there(
    expected: int | None, granted: int, prefix: str, measured: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    service = ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}", prefix=prefix, expected_workers=expected)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(100, 0.001))
    with caplog.at_level(logging.WARNING):
        found = sum(limiter.allow() for _ in range(200))
    warnings = caplog.text.count("has never said how many workers there are")

    measured(f"{found} of 100 allowed, {warnings} warnings")
    assert found == granted
    assert warnings == (1 if expected is None else 0)


@pytest.mark.fault("the same, by `on_outage`", "`local`, `allow` and `deny` raise nothing; `raise` says so at once")
def test_by_choice(prefix: str, measured: Measured) -> None:
    service = ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}", prefix=prefix)

    def outcome(on_outage: Any) -> str:
        limiter = service.get_or_create_rate_limiter(on_outage, TokenBucket(2, 0.001), on_outage=on_outage)
        try:
            return f"{sum(limiter.allow() for _ in range(10))} of 10"
        except StoreUnavailableError as error:
            return type(error).__name__

    found = {choice: outcome(choice) for choice in ("local", "allow", "deny", "raise")}
    measured(", ".join(f"{choice}: {what}" for choice, what in found.items()))
    assert found == {"local": "2 of 10", "allow": "10 of 10", "deny": "0 of 10", "raise": "StoreUnavailableError"}


@pytest.mark.fault(
    "a limit below the number of workers, and a cost above the share, while Redis is away",
    "one call per window × n ÷ limit; what is larger passes when the share is full, and leaves debt",
)
def test_shares_that_are_small(own_server: Server, prefix: str, measured: Measured) -> None:
    services = [
        ResilienceService.from_url(own_server.url, prefix=prefix, command_timeout=PATIENT, worker_id=f"w{number}")
        for number in range(4)
    ]
    few = [one.get_or_create_rate_limiter("few", TokenBucket(2, 0.001), remember_refusals=False) for one in services]
    large = [one.get_or_create_rate_limiter("large", TokenBucket(100, 10), remember_refusals=False) for one in services]
    for limiter in (*few, *large):
        limiter.reset()
    for service in services * 2:  # the first round is seen by the second
        service.get_comprehensive_stats()
    own_server.kill()

    granted = [sum(limiter.allow() for _ in range(10)) for limiter in few]
    once = [limiter.try_acquire("", 60).allowed for limiter in large]
    then = large[0].try_acquire("", 60)
    measured(
        f"a limit of 2 over 4 workers: {granted}; a cost of 60 of a share of 25: once, then in {then.retry_after:.0f} s"
    )
    assert granted == [1, 1, 1, 1]
    assert once == [True] * 4
    # 25 − 60 = −35 tokens; the share of 25 is full again after 60 tokens at 2.5 a second
    assert then.retry_after == pytest.approx(24.0, abs=0.5)
    for service in services:
        service.close()


@pytest.mark.fault(
    "Redis is away for seconds while nobody calls",
    "the first call after its return is decided by it, or by the probe's next",
)
def test_nobody_calls_meanwhile(own_server: Server, prefix: str, measured: Measured) -> None:
    service = ResilienceService.from_url(own_server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", BUCKET)
    limiter.try_acquire()
    own_server.kill()
    assert limiter.try_acquire().source == "local"
    own_server.start()
    began = time.monotonic()
    poll(lambda: limiter.try_acquire().source == "redis", "Redis to decide", 2.0)

    measured(f"shared after {time.monotonic() - began:.2f} s")
    service.close()
