"""The circuit breaker while Redis is away: the same decisions on the process's own evidence, and the way back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Lane, runtime_on
from load import Load
from servers import PATIENT, Server, free_port, poll

from shared_resilience import (
    AsyncResilienceService,
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    Event,
    ResilienceService,
    StoreUnavailableError,
)
from shared_resilience.backends import step
from shared_resilience.testing import ManualClock

CONFIG = CircuitBreakerConfig(jitter=0)


class DownError(Exception):
    """What the dependency raises."""


def down() -> None:
    raise DownError


def up() -> str:
    return "fine"


class Fleet:
    """Two processes of one fleet; each can lose Redis for itself."""

    def __init__(self, store: Lane, prefix: str, config: CircuitBreakerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock()
        self.runtimes = [runtime_on(store, prefix, self.clock) for _ in range(2)]
        self.services = [ResilienceService._of(runtime) for runtime in self.runtimes]
        self.breakers = [service.get_or_create_circuit_breaker("payments", config) for service in self.services]
        for runtime in self.runtimes:
            monkeypatch.setattr(runtime.process.guard, "launch", lambda start: None)
            runtime.backends.blocking.__dict__["_warned"] = True

    def close(self) -> None:
        for service in self.services:
            service.close()

    def lose_redis(self, which: int) -> None:
        self.runtimes[which].process.guard.usable = False

    def find_redis(self, which: int) -> None:
        self.runtimes[which].process.guard.recovered()

    def fail(self, which: int, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(DownError):
                self.breakers[which].call(down)

    def passes(self, which: int) -> bool:
        try:
            return self.breakers[which].call(up) == "fine"
        except CircuitBreakerOpenError:
            return False

    def seen(self, which: int) -> Any:
        return self.breakers[which].get_stats()["failures"]


@pytest.fixture
def fleet(store: Lane, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    fleet = Fleet(store, prefix, CONFIG, monkeypatch)
    yield fleet
    fleet.close()


@pytest.mark.fault(
    "the dependency breaks while Redis is away",
    "each process opens its own circuit, by the same rules, without a quorum",
)
def test_a_process_alone_opens_its_circuit_by_its_own_failures(fleet: Fleet) -> None:
    fleet.lose_redis(0)
    fleet.fail(0, 5)

    assert not fleet.passes(0)
    assert fleet.passes(1)


def test_alone_there_is_no_quorum(store: Lane, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(store, prefix, CircuitBreakerConfig(jitter=0, min_workers=2), monkeypatch)
    assert all(fleet.passes(which) for which in range(2))
    fleet.clock.advance(1)
    fleet.passes(0)
    fleet.lose_redis(0)
    fleet.fail(0, 5)
    passes = fleet.passes(0)
    fleet.close()

    assert not passes


def test_a_process_alone_recovers_by_probes_of_its_own(fleet: Fleet) -> None:
    fleet.lose_redis(0)
    fleet.fail(0, 5)
    fleet.clock.advance(60)

    assert [fleet.passes(0) for _ in range(4)] == [True] * 4
    assert fleet.breakers[0].state == "closed"


@pytest.mark.fault("Redis is lost while the circuit is open", "it stays open until its time")
def test_an_open_circuit_stays_open_until_its_time_when_redis_is_lost(fleet: Fleet) -> None:
    fleet.fail(0, 5)
    fleet.lose_redis(0)
    seen = []
    for _ in range(6):
        fleet.clock.advance(9.9)
        seen.append(fleet.passes(0))
    fleet.clock.advance(0.7)

    assert seen == [False] * 6
    assert fleet.passes(0)


@pytest.mark.parametrize("mode", ["force_open", "force_closed", "metrics_only"])
def test_a_forced_mode_holds_while_redis_is_away(fleet: Fleet, mode: str) -> None:
    getattr(fleet.breakers[0], mode)()
    fleet.clock.advance(1)
    fleet.passes(1)
    fleet.lose_redis(1)
    if mode != "force_open":
        fleet.fail(1, 9)
    fleet.clock.advance(5)

    assert fleet.passes(1) == (mode != "force_open")


def test_the_fleet_cannot_be_told_anything_while_redis_is_away(fleet: Fleet) -> None:
    fleet.lose_redis(0)

    for act in (fleet.breakers[0].force_open, fleet.breakers[0].reset, fleet.breakers[0].metrics_only):
        with pytest.raises(StoreUnavailableError):
            act()


@pytest.mark.fault(
    "Redis comes back after failures", "those still in the window are told, as ordinary evidence, and the fleet decides"
)
def test_failures_of_the_outage_that_are_still_in_the_window_are_reported_and_the_fleet_decides(fleet: Fleet) -> None:
    assert all(fleet.passes(which) for which in range(2))
    fleet.lose_redis(0)
    fleet.fail(0, 3)
    fleet.fail(1, 2)
    fleet.find_redis(0)
    fleet.clock.advance(1)
    for _ in range(3):
        fleet.passes(0)

    fleet.clock.advance(0.2)
    assert not fleet.passes(1)


def test_failures_that_left_the_window_meanwhile_are_not_reported(fleet: Fleet) -> None:
    assert all(fleet.passes(which) for which in range(2))
    fleet.lose_redis(0)
    fleet.fail(0, 5)
    fleet.clock.advance(59)
    fleet.find_redis(0)
    for _ in range(3):
        fleet.passes(0)
        fleet.clock.advance(0.2)

    assert fleet.seen(1) == 0


def test_what_was_seen_alone_is_reported_once(fleet: Fleet) -> None:
    assert fleet.passes(0)
    fleet.lose_redis(0)
    fleet.fail(0, 2)
    fleet.find_redis(0)
    for _ in range(10):
        assert fleet.passes(0)
        fleet.clock.advance(0.2)

    assert fleet.seen(1) == 2


def test_successes_of_the_outage_are_reported_too_so_that_the_rate_is_right(fleet: Fleet) -> None:
    assert fleet.passes(0)
    fleet.lose_redis(0)
    assert all(fleet.passes(0) for _ in range(20))
    fleet.fail(0, 5)
    fleet.clock.advance(0.2)
    fleet.find_redis(0)
    for _ in range(4):
        assert fleet.passes(0)
        fleet.clock.advance(0.2)
    stats = fleet.breakers[1].get_stats()

    assert (stats["state"], stats["failures"]) == ("closed", 5)
    assert 25 <= int(str(stats["calls"])) <= 30


def test_an_outage_without_failures_is_reported_too(fleet: Fleet) -> None:
    assert fleet.passes(0)
    fleet.lose_redis(0)
    assert all(fleet.passes(0) for _ in range(20))
    fleet.clock.advance(0.2)
    fleet.passes(0)
    fleet.find_redis(0)
    for _ in range(3):
        fleet.clock.advance(0.2)
        assert fleet.passes(0)
    calls = int(str(fleet.breakers[1].get_stats()["calls"]))

    assert 20 <= calls <= 25


def test_what_opened_a_circuit_alone_is_reported_while_it_is_in_the_window(fleet: Fleet) -> None:
    assert all(fleet.passes(which) for which in range(2))
    fleet.lose_redis(0)
    fleet.fail(0, 5)
    fleet.clock.advance(5)
    fleet.find_redis(0)
    for _ in range(2):
        fleet.clock.advance(1.0)
        fleet.passes(0)

    assert not fleet.passes(1)


def test_a_reopening_alone_is_the_next_in_the_row_of_the_fleet(fleet: Fleet) -> None:
    fleet.fail(0, 5)
    fleet.lose_redis(0)
    fleet.clock.advance(61)
    fleet.fail(0)

    assert fleet.breakers[0].get_stats()["trips"] == 2


def test_a_forced_mode_of_the_fleet_ends_what_a_process_holds_from_an_outage(fleet: Fleet) -> None:
    fleet.lose_redis(0)
    fleet.fail(0, 5)
    fleet.breakers[1].force_closed()
    fleet.find_redis(0)
    fleet.clock.advance(1)
    fleet.passes(0)

    assert fleet.passes(0)


def test_a_failure_that_finds_redis_back_is_not_lost(fleet: Fleet) -> None:
    assert fleet.passes(0)
    fleet.lose_redis(0)
    fleet.fail(0, 5)
    fleet.clock.advance(60)
    assert all(fleet.passes(0) for _ in range(3))
    fleet.find_redis(0)
    fleet.fail(0)
    fleet.clock.advance(0.2)
    fleet.passes(0)
    fleet.passes(0)

    assert fleet.seen(1) == 1


@pytest.mark.fault(
    "the circuit of one process has opened alone, the fleet's has not",
    "it stays open there until its time, unless it is reset",
)
def test_a_circuit_that_opened_alone_stays_open_until_its_time_though_the_fleets_is_closed(fleet: Fleet) -> None:
    fleet.lose_redis(0)
    fleet.fail(0, 5)
    fleet.clock.advance(20)
    fleet.find_redis(0)
    seen = []
    for _ in range(7):
        seen.append(fleet.passes(0))
        fleet.clock.advance(5.5)
    fleet.clock.advance(2)

    assert seen == [False] * 7
    assert fleet.passes(0)
    assert fleet.passes(1)


def test_a_reset_ends_what_a_process_holds_from_an_outage(fleet: Fleet) -> None:
    fleet.lose_redis(0)
    fleet.fail(0, 5)
    fleet.find_redis(0)
    fleet.clock.advance(1)
    held = fleet.passes(0)
    fleet.breakers[1].reset()
    fleet.clock.advance(1)

    assert not held
    assert fleet.passes(0)


def test_a_reset_during_the_outage_is_heard_by_a_process_whose_circuit_did_not_open_alone(fleet: Fleet) -> None:
    fleet.fail(0, 5)
    fleet.lose_redis(0)
    fleet.clock.advance(1)
    alone = fleet.passes(0)
    fleet.breakers[1].reset()
    fleet.find_redis(0)
    fleet.clock.advance(1)

    assert not alone
    assert fleet.passes(0)


def test_listeners_hear_of_the_fleets_circuit_when_the_one_opened_alone_is_held_no_longer(fleet: Fleet) -> None:
    heard: list[Event] = []
    fleet.passes(0)
    fleet.runtimes[0].process.events.add([heard.append])
    fleet.lose_redis(0)
    fleet.fail(0, 5)
    fleet.clock.advance(15)
    fleet.find_redis(0)
    for _ in range(3):
        fleet.clock.advance(1)
        fleet.passes(0)
    left = fleet.breakers[0].get_stats()["retry_after"]
    while_held = [event.name for event in heard if event.resource]
    fleet.clock.advance(43)
    fleet.passes(0)

    assert left == pytest.approx(42)
    assert while_held == ["breaker.opened"]
    assert [(event.name, event.details["observed"]) for event in heard if event.resource] == [
        ("breaker.opened", False),
        ("breaker.closed", True),
    ]


def test_the_open_time_goes_on_growing_alone(fleet: Fleet) -> None:
    fleet.fail(0, 5)
    fleet.clock.advance(60)
    fleet.fail(0)
    fleet.lose_redis(0)
    fleet.clock.advance(121)
    fleet.fail(0)
    stats = fleet.breakers[0].get_stats()

    assert (stats["trips"], stats["retry_after"]) == (3, pytest.approx(240))


def test_what_opened_the_fleets_circuit_is_known_alone_and_is_not_told_again(
    store: Lane, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(store, prefix, CONFIG, monkeypatch)
    fleet.fail(0, 5)
    fleet.lose_redis(0)
    fleet.clock.advance(1)
    fleet.passes(0)
    alone = fleet.breakers[0].get_stats()
    fleet.breakers[1].reset()
    fleet.find_redis(0)
    for _ in range(3):
        fleet.clock.advance(1)
        fleet.passes(0)
    fleet.clock.advance(0.2)
    fleet.passes(0)
    told = fleet.seen(1)
    fleet.close()

    assert (alone["failures"], alone["source"]) == (5, "local")
    assert told == 0


def test_what_was_seen_alone_is_owed_when_another_command_finds_redis_again(fleet: Fleet) -> None:
    assert fleet.passes(0)
    fleet.lose_redis(0)
    fleet.fail(0, 5)
    fleet.clock.advance(60)
    assert all(fleet.passes(0) for _ in range(3))
    assert all(fleet.passes(0) for _ in range(6))
    core = fleet.breakers[0]._core
    untold = core.evidence.tally.calls if core.evidence.tally else 0
    fleet.find_redis(0)
    step(core._ask_for_probe(fleet.runtimes[0].backends.blocking))
    fleet.clock.advance(0.2)
    fleet.passes(0)

    assert untold > 0
    assert int(str(fleet.breakers[1].get_stats()["calls"])) >= untold


def test_calls_in_shadow_are_counted_as_what_they_are_when_a_hold_ends(
    store: Lane, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(store, prefix, CircuitBreakerConfig(jitter=0, shadow=True), monkeypatch)
    fleet.passes(0)
    fleet.lose_redis(0)
    fleet.fail(0, 5)
    fleet.clock.advance(12)
    fleet.find_redis(0)
    fleet.passes(0)
    fleet.clock.advance(60)
    before = fleet.breakers[0].get_stats()["local"]
    assert all(fleet.passes(0) for _ in range(100))
    fleet.clock.advance(0.2)
    after: Any = fleet.breakers[0].get_stats()["local"]
    fleet.close()

    assert isinstance(before, dict)
    assert after["breaker.calls"] - before["breaker.calls"] == 100


class BreakerLoad(Load):
    """Calls through one breaker, and keeps how often and how long at most."""

    def __init__(self, form: str, url: str, prefix: str, **options: Any) -> None:
        self.calls = 0
        self.longest = 0.0
        super().__init__(form, url, prefix, **options)

    def _timed(self, began: float) -> None:
        self.longest = max(self.longest, time.monotonic() - began)
        self.calls += 1

    def call(self, service: ResilienceService) -> None:
        began = time.monotonic()
        try:
            service.get_or_create_circuit_breaker("payments").call(up)
        finally:
            self._timed(began)

    async def call_async(self, service: AsyncResilienceService) -> None:
        began = time.monotonic()
        try:
            async with service.get_or_create_circuit_breaker("payments").guard():
                pass
        finally:
            self._timed(began)

    def source(self) -> object:
        return self.service._runtime.breaker("payments", None).known().get("source")

    def until(self, source: str) -> None:
        poll(lambda: self.source() == source, f"decisions by {source}")


@pytest.fixture
def load(form: str, own_server: Server, prefix: str) -> Iterator[BreakerLoad]:
    load = BreakerLoad(form, own_server.url, prefix, command_timeout=PATIENT)
    yield load
    load.stop()


def test_a_restart_under_load_raises_nothing_and_is_shared_again(load: BreakerLoad, own_server: Server) -> None:
    load.until("redis")
    for _ in range(2):
        own_server.kill()
        load.until("local")
        own_server.start()
        load.until("redis")

    assert load.errors == []


def test_a_frozen_server_costs_one_command_timeout(own_server: Server, form: str, prefix: str) -> None:
    load = BreakerLoad(form, own_server.url, prefix, command_timeout=0.5)
    load.until("redis")
    load.longest = 0.0
    own_server.freeze()
    load.until("local")
    calls = load.calls
    poll(lambda: load.calls > calls + 1000, "calls at speed", seconds=2.0)
    longest = load.longest
    own_server.thaw()
    load.until("redis")
    load.stop()

    assert load.errors == []
    assert longest < 1.0


def test_a_redis_that_was_never_there_is_no_error(form: str, prefix: str) -> None:
    load = BreakerLoad(form, f"redis://127.0.0.1:{free_port()}", prefix)
    poll(lambda: load.calls > 500, "calls")
    load.stop()

    assert load.errors == []
    assert load.source() == "local"


def test_a_hash_of_the_wrong_type_is_decided_locally_and_reported(server: Server, prefix: str) -> None:
    events: list[Event] = []
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT, listeners=[events.append])
    breaker = service.get_or_create_circuit_breaker("payments", CONFIG)
    with server.client() as admin:
        admin.set(f"{prefix}:{{payments}}:breaker", "mine")
    for _ in range(5):
        with pytest.raises(DownError):
            breaker.call(down)

    with pytest.raises(CircuitBreakerOpenError):
        breaker.call(up)
    assert {event.name for event in events} == {"store.rejected", "breaker.opened"}
    service.close()
