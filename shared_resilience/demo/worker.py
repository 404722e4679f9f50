"""A worker: takes permits from the limiter and calls the upstream with each of them, over real HTTP."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import httpx

from shared_resilience import RateLimitExceeded, ResilienceService, TokenBucket
from shared_resilience.demo.messages import Call, Message, Order, encode
from shared_resilience.demo.protected import Protected

PATIENCE = 0.25
"""The longest wait for a permit in one go, so that a worker sees soon that Redis is gone or back."""

COMMAND_TIMEOUT = 2.0
"""Twenty times the default: a busy machine is not to look like an outage. A connection that is cut is seen at once."""

REPORT_EVERY = 0.1


class Worker:
    """A service, a limiter and an HTTP client, made from an order."""

    def __init__(self, order: Order) -> None:
        self.service = (
            ResilienceService.local(prefix=order.prefix)
            if order.redis_url is None
            else ResilienceService.from_url(order.redis_url, prefix=order.prefix, command_timeout=COMMAND_TIMEOUT)
        )
        limit = TokenBucket(order.capacity, order.refill_rate)
        self._limiter = self.service.get_or_create_rate_limiter(order.name, limit)
        self._http = httpx.Client(base_url=order.upstream_url, timeout=30.0, trust_env=False)
        self._protected = Protected(order, self.service, self._http) if order.open_seconds else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self.service.close()

    def enrol(self) -> None:
        """Makes this worker known to the fleet and opens its connections, before time counts."""
        if self._protected:
            self._protected.enrol()
        else:
            self._limiter.peek()
        self.service.check()
        self._http.get("/counts").raise_for_status()

    def calls(self, until: float = float("inf")) -> Iterator[Call | None]:
        """Calls as fast as the limiter lets it, until the clock shows `until`; None where there was no permit."""
        if self._protected:
            yield from self._protected.calls(until)
            return
        while (left := until - time.monotonic()) > 0:
            patience = min(left, PATIENCE)
            try:
                decision = self._limiter.acquire(timeout=patience)
            except RateLimitExceeded as refusal:
                time.sleep(min(refusal.retry_after, patience))
                yield None
            else:
                yield Call(time.monotonic(), decision.source, self._http.get("/").status_code)


def main() -> None:
    """A worker of the demo: plays the scenes that standard input orders, and ends with it."""
    library = logging.getLogger("shared_resilience")
    library.addHandler(logging.NullHandler())  # that Redis is away is shown by the demo's own table
    library.propagate = False
    while line := sys.stdin.readline():
        try:
            _play(Order(**json.loads(line)))
            _report({"done": True})
        except BrokenPipeError:
            os._exit(1)  # the demo is gone, and nobody is left to be told
        except Exception:
            _report({"done": True, "error": traceback.format_exc()})


def _play(order: Order) -> None:
    with Worker(order) as worker:
        worker.enrol()
        _report({"ready": True})
        until = json.loads(sys.stdin.readline())["until"]
        worker.service.get_comprehensive_stats()  # all have enrolled by now: from here on each knows how many they are
        _work(worker, until)


def _work(worker: Worker, until: float) -> None:
    began = reported = time.monotonic()
    batch: list[Call] = []
    refused = 0
    try:
        for call in worker.calls(until):
            batch += [call] if call else []
            refused += call is None
            if time.monotonic() - reported >= REPORT_EVERY:
                reported = time.monotonic()
                _report({"began": began, "calls": batch, "refused": refused})
                batch = []
    finally:
        _report({"began": began, "calls": batch, "refused": refused})


def _report(message: Message) -> None:
    sys.stdout.write(encode(message))
    sys.stdout.flush()


def run_forever(order: Order) -> None:
    """A worker by itself: prints what it did once a second, until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.basicConfig(format="%(levelname)s %(message)s")
    with Worker(order) as worker:
        while True:
            try:
                _print_every_second(worker.calls())
            except httpx.HTTPError as error:
                print(f"the upstream does not answer: {error!r}", flush=True)
                time.sleep(1.0)


def _print_every_second(calls: Iterator[Call | None]) -> None:
    second: list[Call] = []
    ends_at = time.monotonic() + 1.0
    for call in calls:
        second += [call] if call else []
        if time.monotonic() >= ends_at:
            ends_at = time.monotonic() + 1.0
            refused = sum(call.status == 429 for call in second)
            deciders = " and ".join(sorted({call.source for call in second})) or "nobody"
            print(f"granted {len(second):5}   429s {refused:5}   decided by {deciders}", flush=True)
            second = []


if __name__ == "__main__":
    main()
