"""Redis is frozen, slow, or far away."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from fleets import percentile
from measurements import Measured
from proxies import Proxy, late, slowly, swallow
from servers import Server, poll

from shared_resilience import ResilienceService, TokenBucket

TIMEOUT = 0.2
"""`command_timeout` here, so that what a busy machine adds is small beside it."""

BUSY = 0.25
PLENTY = TokenBucket(10**6, 10**6)


class Caller:
    """One that asks, in either form, and keeps how long each answer took."""

    def __init__(self, form: str, url: str, prefix: str, **options: Any) -> None:
        self.service: Any = ResilienceService.from_url(url, prefix=prefix, **{"command_timeout": TIMEOUT, **options})
        self._loop = asyncio.new_event_loop() if form == "asyncio" else None
        self._api = self.service.aio if self._loop else self.service
        self.limiter = self._api.get_or_create_rate_limiter("search", PLENTY)

    def __call__(self, value: Any) -> Any:
        return self._loop.run_until_complete(value) if self._loop and isinstance(value, Coroutine) else value

    def ask(self) -> tuple[str, float]:
        """Who decided, and how long it took."""
        began = time.monotonic()
        decision = self(self.limiter.try_acquire())
        return decision.source, time.monotonic() - began

    def until(self, source: str) -> None:
        poll(lambda: self.ask()[0] == source, f"a decision by {source}")

    def close(self) -> None:
        self(self._api.close())
        if self._loop:
            self._loop.close()


@pytest.fixture
def caller(form: str, prefix: str) -> Any:
    made: list[Caller] = []

    def make(url: str, **options: Any) -> Caller:
        made.append(Caller(form, url, prefix, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[..., Caller]


@pytest.mark.fault("Redis is frozen (SIGSTOP)", "a caller loses one `command_timeout`, the next ones nothing")
def test_frozen(own_server: Server, caller: Make, measured: Measured, form: str) -> None:
    one = caller(own_server.url)
    one.until("redis")
    own_server.freeze()
    try:
        answers = [one.ask() for _ in range(300)]
    finally:
        own_server.thaw()
    first, rest = answers[0][1], [seconds for _, seconds in answers[1:]]
    thawed = time.monotonic()
    one.until("redis")

    measured(
        f"command_timeout {TIMEOUT * 1e3:.0f} ms: {first * 1e3:.0f} ms, then p99 {percentile(rest, 99) * 1e3:.2f} ms; "
        f"shared {time.monotonic() - thawed:.1f} s after it goes on"
    )
    assert {source for source, _ in answers} == {"local"}
    assert first < TIMEOUT + BUSY
    assert percentile(rest, 99) < TIMEOUT / 4
    assert time.monotonic() - thawed < 2.0


@pytest.mark.fault(
    "replies trickle, a byte every 20 ms: each read succeeds, and the whole takes seconds",
    "`command_timeout` is of the whole",
)
def test_trickling(proxy: Proxy, caller: Make, measured: Measured, form: str) -> None:
    one = caller(proxy.url)
    one.until("redis")
    proxy.treatment = slowly
    source, seconds = one.ask()

    measured(f"command_timeout {TIMEOUT * 1e3:.0f} ms: {seconds * 1e3:.0f} ms")
    assert source == "local"
    assert 0.9 * TIMEOUT < seconds < TIMEOUT + BUSY


@pytest.mark.fault("replies are lost, the connection stays (a black hole)", "one `command_timeout`")
def test_black_hole(proxy: Proxy, caller: Make, measured: Measured, form: str) -> None:
    one = caller(proxy.url)
    one.until("redis")
    proxy.treatment = swallow
    (source, seconds), (again, then) = one.ask(), one.ask()

    measured(f"command_timeout {TIMEOUT * 1e3:.0f} ms: {seconds * 1e3:.0f} ms, then {then * 1e3:.2f} ms")
    assert (source, again) == ("local", "local")
    assert seconds < TIMEOUT + BUSY
    assert then < 0.05


@pytest.mark.fault(
    "each reply is late, but within `command_timeout`", "still decided by Redis, and nothing is told lost"
)
def test_late(proxy: Proxy, caller: Make, measured: Measured, form: str) -> None:
    lost: list[str] = []
    one = caller(proxy.url, command_timeout=1.0, listeners=[lambda event: lost.append(event.name)])
    one.until("redis")
    proxy.treatment = late(0.05)
    answers = [one.ask() for _ in range(5)]

    measured(f"50 ms added: {percentile([seconds for _, seconds in answers], 50) * 1e3:.0f} ms")
    assert {source for source, _ in answers} == {"redis"}
    assert lost == []


@contextmanager
def deaf() -> Iterator[int]:
    """A port that never accepts: its queue of one is filled, and further packets are dropped."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port
        for filler in fillers:
            filler.close()


def test_closing_ends_a_connection_that_is_being_made(prefix: str) -> None:
    async def main(port: int) -> list[str]:
        service = ResilienceService.from_url(f"redis://127.0.0.1:{port}", prefix=prefix, connect_timeout=30.0).aio
        asking = asyncio.create_task(service.get_or_create_rate_limiter("search", PLENTY).try_acquire())
        for _ in range(3):  # its first steps, until it connects
            await asyncio.sleep(0)
        assert "shared_resilience-connect" in {task.get_name() for task in asyncio.all_tasks()}
        asking.cancel()
        await service.close()
        return [task.get_name() for task in asyncio.all_tasks() if task not in (asking, asyncio.current_task())]

    with deaf() as port:
        assert asyncio.run(main(port)) == []


@pytest.mark.fault(
    "nothing answers when connecting (a packet filter that drops)",
    "`connect_timeout` once for a process, by its first caller; from then on the probe alone waits",
)
def test_connects_into_nowhere(caller: Make, measured: Measured, form: str) -> None:
    connect_timeout = 0.4
    with deaf() as port:
        one = caller(f"redis://127.0.0.1:{port}", connect_timeout=connect_timeout)
        answers = [one.ask() for _ in range(200)]
        end = time.monotonic() + 1.5  # in which the probe tries twice
        later = []
        while time.monotonic() < end:
            later.append(one.ask()[1])
            time.sleep(0.001)
    first = answers[0][1]

    measured(
        f"connect_timeout {connect_timeout * 1e3:.0f} ms: {first * 1e3:.0f} ms for the first, "
        f"p99 {percentile(later, 99) * 1e3:.2f} ms while the probe waits"
    )
    assert {source for source, _ in answers} == {"local"}
    assert first < connect_timeout + TIMEOUT + BUSY
    assert percentile(later, 99) < connect_timeout / 8


@pytest.mark.fault(
    "a user's client without any timeout, or with ten retries",
    "one `command_timeout` all the same, and one command sent",
)
def test_a_users_client_that_would_wait_and_retry(own_server: Server, prefix: str, measured: Measured) -> None:
    client = redis.Redis(port=own_server.port, socket_timeout=None, socket_connect_timeout=None)
    service = ResilienceService(client, prefix=prefix, command_timeout=TIMEOUT)
    limiter = service.get_or_create_rate_limiter("search", PLENTY)
    assert limiter.try_acquire().source == "redis"
    own_server.freeze()
    began = time.monotonic()
    source = limiter.try_acquire("frozen", 7).source
    seconds = time.monotonic() - began
    own_server.thaw()
    poll(lambda: limiter.try_acquire().source == "redis", "Redis")
    with own_server.client() as admin:
        (left,) = admin.hmget(f"{prefix}:{{search}}:limit:token_bucket:frozen", "microtokens")

    measured(f"{seconds * 1e3:.0f} ms")
    assert source == "local"
    assert seconds < TIMEOUT + BUSY
    assert int(left) >= (10**6 - 2 * 7) * 10**6  # once by Redis, which went on, and once as what was taken alone
    service.close()
    client.close()


@pytest.mark.fault("a pool of connections is exhausted", "decided locally, and not taken for an outage")
def test_saturated(own_server: Server, prefix: str, measured: Measured) -> None:
    events: list[str] = []
    client = redis.Redis(connection_pool=redis.ConnectionPool(port=own_server.port, max_connections=1))
    service = ResilienceService(client, prefix=prefix, listeners=[lambda event: events.append(event.name)])
    limiter = service.get_or_create_rate_limiter("search", PLENTY)
    held = client.connection_pool.get_connection()
    while_held = limiter.try_acquire().source
    client.connection_pool.release(held)
    then = limiter.try_acquire().source

    measured(f"{while_held}, then {then}; {len(events)} events")
    assert (while_held, then, events) == ("local", "redis", [])
    service.close()
    client.close()
