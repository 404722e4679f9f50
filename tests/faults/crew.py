"""What a worker of a storm does all the time, and what it writes down: one line for each thing, one call of the system
for each line, so that what is written survives a kill.

| line | meaning |
|---|---|
| `allowed ASKED ANSWERED SOURCE` | a limit let a call pass |
| `in TOKEN SAFE_UNTIL TIME`, `out TOKEN LOST TIME` | a call went into the bulkhead of one, and left it |
| `run KEY TIME`, `ran KEY TIME` | a call under a key began and ended |
| `lost TIME`, `recovered TIME` | Redis is away, and is back |
| `slow WHAT ASKED ANSWERED` | a decision took longer than it may |
| `wrong WHAT ERROR` | an exception that nobody has asked for |
| `now TIME SOURCE` | every now and then: it lives, and who decides |

Times are those of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from forms import Form

from shared_resilience import (
    BulkheadConfig,
    BulkheadFullError,
    CircuitBreakerConfig,
    Event,
    FallbackLevel,
    IdempotencyConfig,
    IdempotencyConflictError,
    ResilienceService,
    RetryConfig,
    StoreUnavailableError,
    TimeoutConfig,
    TokenBucket,
)

CREW = 4
BUCKET = TokenBucket(100, 100)
"""Of the fleet, which asks for many times as much."""

LEASE = 3.0
LOCK = BulkheadConfig(1, max_queue_size=50, timeout=0.5, lease=LEASE, on_outage="deny")
ORDERS = IdempotencyConfig(ttl=60, lease=LEASE, wait_timeout=2.0)
ORDERS_PER_SECOND = 5
TOO_SLOW = 1.0
"""Seconds for a decision: ten times `command_timeout`, for a machine that is busy."""

CALLERS = 2
"""Of each kind, in each worker."""


class Worker:
    """One of the crew."""

    def __init__(self, url: str, folder: str, seed: int, asynchronous: bool) -> None:
        self._form = Form(asynchronous)
        self._log = os.open(Path(folder) / str(os.getpid()), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._service: Any = ResilienceService.from_url(url, expected_workers=CREW, listeners=[self._hear])
        make: Any = self._service.aio if asynchronous else self._service
        self._limiter = make.get_or_create_rate_limiter("api", BUCKET)
        self._bulkhead = make.get_or_create_bulkhead("lock", LOCK)
        self._once = make.get_or_create_idempotency("orders", ORDERS)
        chain = make.get_or_create_fallback_chain("upstream")
        chain.register_handler(FallbackLevel.DEFAULT, self._form.function(_default))
        self._policy = make.policy(
            "upstream",
            fallback_chain=chain,
            retry_config=RetryConfig(max_retries=2, base_delay=0.001),
            circuit_breaker_config=CircuitBreakerConfig(failure_threshold=20, timeout_seconds=1.0),
            timeout_config=TimeoutConfig(),
        )
        self._random = random.Random(seed)
        self._source = "none"

    def _note(self, *words: object) -> None:
        os.write(self._log, (" ".join(map(str, words)) + "\n").encode())

    def _hear(self, event: Event) -> None:
        if event.name in ("store.lost", "store.recovered"):
            self._note(event.name.removeprefix("store."), time.monotonic())

    def work(self) -> None:
        """Never returns."""
        kinds = [self._limits, self._lock, self._orders, self._upstream]
        works = [self._again_and_again(kind) for kind in kinds for _ in range(CALLERS)]
        self._form.run([*works, self._again_and_again(self._tell)])

    def _again_and_again(
        self, kind: Callable[[], Coroutine[Any, Any, None]]
    ) -> Callable[[], Coroutine[Any, Any, None]]:
        async def loop() -> None:
            while True:
                try:
                    await kind()
                except Exception as error:
                    self._note("wrong", kind.__name__, repr(error).replace("\n", " "))
                    await self._form.pause(0.05)

        return loop

    async def _tell(self) -> None:
        self._note("now", time.monotonic(), self._source)
        await self._form.pause(0.2)

    async def _limits(self) -> None:
        asked = time.monotonic()
        decision = await self._form.value(self._limiter.try_acquire())
        answered = time.monotonic()
        self._source = decision.source
        if decision.allowed:
            self._note("allowed", asked, answered, decision.source)
        if answered - asked > TOO_SLOW:
            self._note("slow", "limits", asked, answered)
        await self._form.pause(0.004)

    async def _lock(self) -> None:
        try:
            async with self._form.entered(self._bulkhead.guard()) as permit:
                self._note("in", permit.token, permit.safe_until, time.monotonic())
                await self._form.pause(self._random.uniform(0.005, 0.03))
                out = time.monotonic()  # before it is looked whether the lease was kept
                self._note("out", permit.token, int(permit.lost), out)
        except BulkheadFullError:
            await self._form.pause(0.02)

    async def _orders(self) -> None:
        key = int(time.monotonic() * ORDERS_PER_SECOND) - self._random.randrange(3)

        async def place() -> int:
            self._note("run", key, time.monotonic())
            await self._form.pause(self._random.uniform(0.002, 0.02))
            self._note("ran", key, time.monotonic())
            return key

        try:
            result = await self._form.value(self._once.execute(key, self._form.function(place)))
        except (IdempotencyConflictError, StoreUnavailableError):
            await self._form.pause(0.05)
            return
        if result != key:
            self._note("wrong", "orders", f"the result of {key} is {result!r}")
        await self._form.pause(0.03)

    async def _upstream(self) -> None:
        async def fetch() -> str:
            if self._random.random() < 0.1:
                raise ConnectionError("the upstream hung up")
            return "fresh"

        await self._form.value(self._policy.call(self._form.function(fetch)))
        await self._form.pause(0.01)


async def _default() -> str:
    return "stale"


def serve(url: str, folder: str, seed: int, asynchronous: bool) -> None:
    """The whole life of a worker."""
    Worker(url, folder, seed, asynchronous).work()
