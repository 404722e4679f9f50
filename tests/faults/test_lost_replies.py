"""The reply is lost after a command has run: nothing is sent twice, nothing is held twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from measurements import Measured
from proxies import Proxy, pass_on, swallow
from servers import PATIENT, Server, poll

from shared_resilience import (
    BulkheadConfig,
    BulkheadFullError,
    IdempotencyConfig,
    LeakyBucket,
    ResilienceService,
    SlidingWindow,
    StoreUnavailableError,
    TokenBucket,
    scripts,
)

COST = 5
LIMITS = [TokenBucket(100, 0.001), LeakyBucket(100, 0.001), SlidingWindow(100, 3600), SlidingWindow(100, 3600, False)]
LEASE = 1.0


class Worker:
    """A service in either form, behind the proxy."""

    def __init__(self, form: str, proxy: Proxy, prefix: str) -> None:
        self._proxy = proxy
        self._service: Any = ResilienceService.from_url(proxy.url, prefix=prefix, command_timeout=0.2)
        self._loop = asyncio.new_event_loop() if form == "asyncio" else None
        self.api = self._service.aio if self._loop else self._service

    def __call__(self, value: Any) -> Any:
        return self._loop.run_until_complete(value) if self._loop and isinstance(value, Coroutine) else value

    def unheard(self, call: Callable[[], Any]) -> Any:
        """What `call` returns while the replies of Redis are lost."""
        self._proxy.treatment = swallow
        try:
            return self(call())
        finally:
            self._proxy.treatment = pass_on
            self._proxy.cut_all()

    def come_back(self) -> None:
        limiter = self.api.get_or_create_rate_limiter("another", TokenBucket(10**6, 10**6))
        poll(lambda: self(limiter.try_acquire()).source == "redis", "Redis to decide")

    def close(self) -> None:
        self(self.api.close())
        if self._loop:
            self._loop.close()


@pytest.fixture
def worker(form: str, proxy: Proxy, prefix: str) -> Iterator[Worker]:
    worker = Worker(form, proxy, prefix)
    worker.come_back()
    yield worker
    worker.close()


@pytest.fixture
def other(server: Server, prefix: str) -> Iterator[ResilienceService]:
    """Another worker of the fleet, whose replies arrive; it has introduced all scripts to Redis."""
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    with server.client() as admin:
        for name in scripts.names():
            admin.script_load(scripts.load(name).text)
    yield service
    service.close()


@pytest.mark.fault(
    "a limit has taken a cost, and its reply is lost",
    "decided again locally; charged twice at most: once by the command, once as what was taken alone",
)
@pytest.mark.parametrize("limit", LIMITS, ids=["token bucket", "leaky bucket", "window", "window by slots"])
def test_a_cost(worker: Worker, other: ResilienceService, limit: Any, measured: Measured) -> None:
    limiter = worker.api.get_or_create_rate_limiter("search", limit)
    worker(limiter.try_acquire())
    decision = worker.unheard(lambda: limiter.try_acquire("", COST))
    worker.come_back()
    taken = 100 - other.get_or_create_rate_limiter("search", limit).peek().remaining - 1

    measured(f"a cost of {COST}: {taken} charged")
    assert decision.source == "local"
    assert COST <= taken <= 2 * COST


@pytest.mark.fault(
    "a slot was given, and the reply is lost",
    "the call is refused or holds it alone; never one slot for two; free again",
)
@pytest.mark.parametrize("on_outage", ["deny", "local"])
def test_a_slot(worker: Worker, other: ResilienceService, on_outage: Any, measured: Measured) -> None:
    config = BulkheadConfig(1, lease=LEASE, timeout=0, on_outage=on_outage)
    bulkhead = worker.api.get_or_create_bulkhead("payments", config)
    theirs = other.get_or_create_bulkhead("payments", config)
    inside: list[bool] = []

    def work() -> str:
        inside.append(True)
        poll(lambda: _is_held(theirs), "Redis to know of the slot")
        return "done"

    async def async_work() -> str:
        return work()

    def call() -> Any:
        function: Any = async_work if worker.api is not worker._service else work
        return bulkhead.execute(function)

    try:
        worker.unheard(call)
    except BulkheadFullError:
        assert on_outage == "deny"
    began = time.monotonic()
    poll(lambda: not _is_held(theirs), "the slot to be free", 2 * LEASE + 3)

    measured(f"{len(inside)} inside; free after {time.monotonic() - began:.1f} s, of a lease of {LEASE} s")
    assert len(inside) == (on_outage == "local")


def _is_held(bulkhead: Any) -> bool:
    return bool(bulkhead.get_stats()["inside"])


@pytest.mark.fault(
    "a key was claimed, and the reply is lost", "the function has not run; it does, once, when the lease is over"
)
def test_a_claim(worker: Worker, other: ResilienceService, measured: Measured) -> None:
    config = IdempotencyConfig(lease=LEASE, wait_timeout=5.0)
    runs: list[str] = []

    def place(who: str) -> str:
        runs.append(who)
        return who

    async def async_place(who: str) -> str:
        return place(who)

    once = worker.api.get_or_create_idempotency("orders", config)
    function: Any = async_place if worker.api is not worker._service else place
    with pytest.raises(StoreUnavailableError):
        worker.unheard(lambda: once.execute("order-7", function, "one"))
    before, began = list(runs), time.monotonic()
    results = [other.get_or_create_idempotency("orders", config).execute("order-7", place, "one") for _ in range(2)]
    waited = time.monotonic() - began

    measured(f"{len(before)} runs, then {len(runs)} after {waited:.1f} s, of a lease of {LEASE} s")
    assert (before, runs, results) == ([], ["one"], ["one", "one"])


@pytest.mark.fault(
    "a call under a key has run, and the reply to its end is lost",
    "its caller has the result; whoever comes gets it too",
)
def test_an_end(worker: Worker, other: ResilienceService, measured: Measured, proxy: Proxy) -> None:
    config = IdempotencyConfig(lease=LEASE, wait_timeout=5.0)
    runs: list[str] = []

    def place(who: str) -> str:
        runs.append(who)
        proxy.treatment = swallow  # from here on nothing is heard of Redis
        return f"placed by {who}"

    async def async_place(who: str) -> str:
        return place(who)

    once = worker.api.get_or_create_idempotency("orders", config)
    function: Any = async_place if worker.api is not worker._service else place
    result = worker(once.execute("order-8", function, "one"))
    proxy.treatment = pass_on
    proxy.cut_all()
    again = other.get_or_create_idempotency("orders", config).execute("order-8", place, "one")

    measured(f"{len(runs)} run, both callers have its result")
    assert (result, again, runs) == ("placed by one", "placed by one", ["one"])
