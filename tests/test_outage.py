"""Redis away: decided locally, at once, by the same rules; shared again when it is back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from conftest import Api
from load import Load
from servers import PATIENT, Server, free_port, poll

from shared_resilience import (
    AsyncResilienceService,
    Event,
    ResilienceService,
    StoreUnavailableError,
    TokenBucket,
)
from shared_resilience.backends.faults import StoreError
from shared_resilience.backends.process import Process
from shared_resilience.testing import ManualClock

BUCKET = TokenBucket(100, 0.001)
PLENTY = TokenBucket(10**9, 10**9)


class LimiterLoad(Load):
    """Takes from one limiter, and keeps who decided."""

    def __init__(self, form: str, url: str, prefix: str, **options: Any) -> None:
        self.sources: list[str] = []
        super().__init__(form, url, prefix, **options)

    def call(self, service: ResilienceService) -> None:
        self.sources.append(service.get_or_create_rate_limiter("load", PLENTY).try_acquire().source)

    async def call_async(self, service: AsyncResilienceService) -> None:
        self.sources.append((await service.get_or_create_rate_limiter("load", PLENTY).try_acquire()).source)

    def until(self, source: str, seconds: float = 10.0) -> None:
        """Goes on until decisions come from `source`."""
        seen = len(self.sources)
        poll(lambda: source in self.sources[seen:], f"decisions by {source}", seconds)


@pytest.fixture
def load(form: str, own_server: Server, prefix: str) -> Iterator[LimiterLoad]:
    load = LimiterLoad(form, own_server.url, prefix, command_timeout=PATIENT)
    yield load
    load.stop()


def test_a_script_flush_under_load_is_not_noticed(load: LimiterLoad, own_server: Server) -> None:
    load.until("redis")
    with own_server.client() as admin:
        for _ in range(20):
            admin.script_flush()
            load.until("redis")

    assert load.errors == []
    assert set(load.sources) == {"redis"}


def test_a_restart_under_load_raises_nothing_and_is_shared_again_within_two_seconds(
    load: LimiterLoad, own_server: Server
) -> None:
    load.until("redis")
    for _ in range(2):
        own_server.kill()
        load.until("local")
        own_server.start()
        load.until("redis", seconds=2.0)

    assert load.errors == []
    assert load.names() == ["store.lost", "store.recovered"] * 2


def test_a_frozen_server_costs_one_command_timeout(own_server: Server, form: str, prefix: str) -> None:
    load = LimiterLoad(form, own_server.url, prefix)
    load.until("redis")
    own_server.freeze()
    load.until("local")
    decided = len(load.sources)
    poll(lambda: len(load.sources) > decided + 1000, "local decisions to go on at speed", seconds=2.0)
    own_server.thaw()
    load.until("redis", seconds=2.0)
    load.stop()

    assert load.errors == []


def test_a_redis_that_was_never_there_is_no_error_and_says_so_once(
    caplog: pytest.LogCaptureFixture, form: str, prefix: str
) -> None:
    load = LimiterLoad(form, f"redis://127.0.0.1:{free_port()}", prefix)
    poll(lambda: len(load.sources) > 500, "local decisions")
    load.stop()

    assert load.errors == []
    assert set(load.sources) == {"local"}
    assert caplog.text.count("Redis is away, each process decides alone") == 1
    assert caplog.text.count("has never said how many workers there are") == 1


def test_the_probe_asks_rarely_while_redis_is_away(prefix: str) -> None:
    """Counts connections at a listener that hangs up on everybody."""
    import socket

    attempts = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                attempts.append(time.monotonic())
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        load = LimiterLoad("sync", f"redis://127.0.0.1:{listener.getsockname()[1]}", prefix)
        begin = time.monotonic()
        poll(lambda: time.monotonic() - begin > 2.0, "two seconds of load")
        load.stop()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()

    assert load.errors == []
    # three threads and their first try, then pauses of 0.25, 0.5, 1, 1 s, jittered down by a quarter at most
    assert 3 <= len(attempts) <= 3 + 6


@pytest.mark.parametrize(
    ("on_outage", "allowed"), [("local", [True] * 3), ("allow", [True] * 3), ("deny", [False] * 3)]
)
def test_on_outage_says_how_to_decide(on_outage: Any, allowed: list[bool], prefix: str) -> None:
    service = ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}", prefix=prefix)
    limiter = service.get_or_create_rate_limiter("search", BUCKET, on_outage=on_outage)

    assert [limiter.try_acquire(str(number)).allowed for number in range(3)] == allowed
    assert limiter.try_acquire("again").source == "local"


def test_on_outage_may_raise_and_be_set_for_the_whole_service(prefix: str) -> None:
    service = ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}", prefix=prefix, on_outage="raise")
    limiter = service.get_or_create_rate_limiter("search", BUCKET)

    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            limiter.try_acquire()
    with pytest.raises(StoreUnavailableError):
        service.check()


def test_local_decisions_take_the_share_of_the_live_workers(own_server: Server, prefix: str) -> None:
    services = [
        ResilienceService.from_url(own_server.url, prefix=prefix, command_timeout=PATIENT, worker_id=f"w{number}")
        for number in range(4)
    ]
    limiters = [service.get_or_create_rate_limiter("search", BUCKET, remember_refusals=False) for service in services]
    for limiter in limiters:
        limiter.try_acquire()
    for service in services:
        assert service.get_comprehensive_stats()["rate_limiters"]["search"]["live_workers"] is not None
    own_server.kill()

    granted = [sum(limiter.allow() for _ in range(100)) for limiter in limiters]

    assert granted == [25, 25, 25, 25]
    for service in services:
        service.close()


def test_expected_workers_divide_until_redis_has_told(prefix: str) -> None:
    service = ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}", prefix=prefix, expected_workers=5)
    limiter = service.get_or_create_rate_limiter("search", BUCKET)

    assert sum(limiter.allow() for _ in range(100)) == 20


def test_a_key_of_the_wrong_type_is_decided_locally_and_reported(server: Server, prefix: str) -> None:
    events: list[Event] = []
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT, listeners=[events.append])
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(2, 0.001), remember_refusals=False)
    with server.client() as admin:
        admin.set(f"{prefix}:{{search}}:limit:token_bucket", "mine")

    decisions = [limiter.try_acquire() for _ in range(3)]

    assert [(decision.allowed, decision.source) for decision in decisions] == [
        (True, "local"),
        (True, "local"),
        (False, "local"),
    ]
    assert [event.name for event in events if event.name.startswith("store")] == ["store.rejected"] * 3
    assert "WRONGTYPE" in str(events[0].details["error"])
    assert limiter.try_acquire("another key").source == "redis"
    service.close()


def test_a_password_that_is_changed_later_is_an_outage_with_one_error_log(
    own_server: Server, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = ResilienceService.from_url(own_server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", BUCKET)
    assert limiter.try_acquire().source == "redis"
    with own_server.client() as admin:
        admin.config_set("requirepass", "new")
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    assert {limiter.try_acquire().source for _ in range(200)} == {"local"}
    assert caplog.text.count("Redis refuses this client") <= 1
    service.close()


def test_the_local_store_is_bounded_and_forgets_idle_keys() -> None:
    clock = ManualClock()
    service = ResilienceService.local(clock=clock)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(1, 1), remember_refusals=False)
    local = service._runtime.process.local
    local._most_keys = 100
    for number in range(1000):
        limiter.try_acquire(str(number))
    bounded = len(local)
    clock.advance(10)
    for number in range(60):
        limiter.try_acquire(f"new {number}")

    assert bounded == 100
    assert len(local) == 60


def test_closing_ends_a_probe_that_is_still_waiting(prefix: str) -> None:
    async def main() -> list[str]:
        service = AsyncResilienceService.from_url(f"redis://127.0.0.1:{free_port()}", prefix=prefix)
        await service.get_or_create_rate_limiter("search", BUCKET).try_acquire()
        await service.close()
        await asyncio.sleep(0)
        return [task.get_name() for task in asyncio.all_tasks() if "probe" in task.get_name()]

    assert asyncio.run(main()) == []


def test_asyncio_probing_ends_with_its_loop_and_goes_on_in_the_next(own_server: Server, prefix: str) -> None:
    service = AsyncResilienceService.from_url(own_server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", BUCKET)

    async def until(source: str) -> None:
        end = time.monotonic() + 5
        while (await limiter.try_acquire("", 1)).source != source:
            assert time.monotonic() < end
            await asyncio.sleep(0.001)
        await service.close()

    asyncio.run(until("redis"))
    own_server.kill()
    asyncio.run(until("local"))
    own_server.start()
    asyncio.run(until("redis"))


def test_refunds_and_resets_while_redis_is_away_act_here(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(2, 0.001))
    api.runtime.process.guard.usable = False
    monkeypatch.setattr(api.runtime.process.guard, "launch", lambda start: None)
    while api(limiter.allow()):
        pass
    api(limiter.refund())

    assert [api(limiter.allow()) for _ in range(2)] == [True, False]
    api(limiter.reset())
    assert [api(limiter.try_acquire()).source for _ in range(2)] == ["local"] * 2
    api.runtime.process.guard.usable = True


def test_a_failure_of_a_call_from_before_the_recovery_is_ignored() -> None:
    guard = Process("sr").guard
    late = StoreError(redis.TimeoutError("late"), sent=True)
    era = guard.era
    guard.lost(late, era)
    guard.recovered()

    guard.lost(late, era)

    assert guard.usable
