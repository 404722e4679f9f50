"""Several real processes share one circuit in a real Redis."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import pytest
from processes import forkserver
from servers import PATIENT, Server, poll
from test_heartbeat import commands_at

from shared_resilience import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerOpenError, ResilienceService, scripts

SYNC = 0.1
KNOWN_WITHIN = SYNC + 0.05
"""Seconds in which every process that calls knows that the circuit has opened."""


class DownError(Exception):
    """What the dependency raises."""


class Call(NamedTuple):
    """A call that a worker made: when it began and ended, by the clock of the machine, and what came of it."""

    began: float
    ended: float
    outcome: str


class Worker:
    """What the processes of the fleet do, and what they write down."""

    def __init__(self, url: str, prefix: str, config: CircuitBreakerConfig) -> None:
        self.service = ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT, sync_interval=SYNC)
        self.breaker = self.service.get_or_create_circuit_breaker("payments", config)
        self.calls: list[Call] = []

    def call(self, fails: bool = False, seconds: float = 0.0) -> str:
        """Calls a dependency that takes its time."""
        began, ended, outcome = time.monotonic(), None, "passed"
        try:
            with self.breaker.guard():
                began = time.monotonic()
                if seconds:
                    time.sleep(seconds)
                ended = time.monotonic()  # before the breaker hears of it: from then on another may pass
                if fails:
                    raise DownError
        except CircuitBreakerOpenError:
            outcome = "refused"
        except DownError:
            outcome = "failed"
        self.calls.append(Call(began, ended or time.monotonic(), outcome))
        return outcome

    def hammer(self, seconds: float, fails_every: int = 0, pause: float = 0.0, takes: float = 0.0) -> None:
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            number += 1
            self.call(bool(fails_every) and number % fails_every == 0, takes)
            if pause:
                time.sleep(pause)


def hammer(url: str, prefix: str, config: CircuitBreakerConfig, start: Any, out: Connection, **how: Any) -> None:
    worker = Worker(url, prefix, config)
    worker.breaker.get_stats()
    start.wait(60)
    worker.service.get_comprehensive_stats()  # from here on each knows how many they are
    worker.hammer(**how)
    worker.service.close()
    out.send(worker.calls)


class Fleet:
    """Processes that begin together; `calls` has what each wrote down."""

    def __init__(self, server: Server, prefix: str, config: CircuitBreakerConfig, hows: list[dict[str, Any]]) -> None:
        self.start = forkserver.Barrier(len(hows) + 1)
        self.processes, self._receivers = [], []
        for how in hows:
            receiver, sender = forkserver.Pipe(duplex=False)
            args = (server.url, prefix, config, self.start, sender)
            process = forkserver.Process(target=hammer, args=args, kwargs=how)
            process.start()
            self.processes.append(process)
            self._receivers.append(receiver)

    def begin(self) -> None:
        self.start.wait(60)

    def calls(self) -> list[list[Call]]:
        """Waits for all."""
        found: list[list[Call]] = [receiver.recv() for receiver in self._receivers if receiver.poll(90)]
        for process in self.processes:
            process.join(10)
        assert len(found) == len(self.processes)
        return found


def ran(server: Server, prefix: str, config: CircuitBreakerConfig, *hows: dict[str, Any]) -> list[list[Call]]:
    fleet = Fleet(server, prefix, config, list(hows))
    fleet.begin()
    return fleet.calls()


def of(calls: list[Call], outcome: str) -> list[Call]:
    return [call for call in calls if call.outcome == outcome]


@pytest.fixture
def breaker(server: Server, prefix: str) -> Iterator[CircuitBreaker]:
    """A breaker of the test's own process in the fleet."""
    worker = Worker(server.url, prefix, CircuitBreakerConfig(jitter=0))
    yield worker.breaker
    worker.service.close()


def test_at_most_the_threshold_and_the_calls_in_flight_reach_a_broken_dependency(server: Server, prefix: str) -> None:
    config = CircuitBreakerConfig(failure_threshold=5)

    fleet = ran(server, prefix, config, *[{"seconds": 1.0, "fails_every": 1}] * 4)

    failed = [call for calls in fleet for call in of(calls, "failed")]
    assert 5 <= len(failed) <= 5 + 3
    assert all(of(calls, "refused") for calls in fleet)


def test_every_process_knows_of_an_open_circuit_within_the_sync_interval_of_its_next_call(
    server: Server, prefix: str
) -> None:
    config = CircuitBreakerConfig(failure_threshold=5, failure_rate=0)

    broken, *fine = ran(
        server, prefix, config, {"seconds": 0.5, "fails_every": 1}, *[{"seconds": 1.5, "pause": 0.01}] * 3
    )

    opened = of(broken, "failed")[4].ended
    last = max(call.began for calls in fine for call in of(calls, "passed"))
    assert len(of(broken, "failed")) == 5
    assert last <= opened + KNOWN_WITHIN
    assert all(of(calls, "refused") for calls in fine)


def test_one_percent_of_failures_at_thousands_of_calls_a_second_never_opens_the_circuit(
    server: Server, prefix: str, breaker: CircuitBreaker
) -> None:
    fleet = ran(server, prefix, CircuitBreakerConfig(), *[{"seconds": 2.0, "fails_every": 100}] * 4)

    outcomes = Counter(call.outcome for calls in fleet for call in calls)
    stats = breaker.get_stats()
    assert outcomes["refused"] == 0
    assert outcomes["failed"] > 50
    assert outcomes.total() > 2 * 2000
    assert stats["failures"] == pytest.approx(outcomes["failed"], rel=0.2)


def test_one_broken_worker_among_many_does_not_open_a_circuit_that_asks_for_two(server: Server, prefix: str) -> None:
    config = CircuitBreakerConfig(min_workers=2, failure_rate=0.01)

    broken, *fine = ran(server, prefix, config, {"seconds": 1.5, "fails_every": 1}, *[{"seconds": 1.5}] * 3)

    assert len(of(broken, "failed")) > 20
    assert not any(of(calls, "refused") for calls in (broken, *fine))


def most_at_once(calls: list[Call]) -> int:
    changes = sorted([(call.began, 1) for call in calls] + [(call.ended, -1) for call in calls])
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def test_sixteen_processes_never_have_more_probes_in_flight_than_are_allowed(server: Server, prefix: str) -> None:
    config = CircuitBreakerConfig(success_threshold=10**6, timeout_seconds=0.5, jitter=0, half_open_max_calls=3)
    opener = Worker(server.url, prefix, config)
    for _ in range(5):
        opener.call(fails=True)
    fleet = Fleet(server, prefix, config, [{"seconds": 3.0, "takes": 0.02}] * 16)  # nobody has seen it closed
    fleet.begin()

    calls = [call for calls in fleet.calls() for call in calls]
    opener.service.close()

    probes = of(calls, "passed")
    assert most_at_once(probes) == 3
    assert len(probes) > 30
    assert len(of(calls, "refused")) > len(probes)


def hold_a_probe(url: str, prefix: str, config: CircuitBreakerConfig, out: Connection) -> None:
    """Takes the one probe and keeps it until it is told to fail."""
    worker = Worker(url, prefix, config)
    try:
        with worker.breaker.guard():
            out.send("holds")
            out.recv()
            raise DownError
    except DownError:
        worker.service.close()
        out.send("reported")


class Holder:
    """A process that holds the one probe of a half-open circuit."""

    def __init__(self, server: Server, prefix: str, config: CircuitBreakerConfig) -> None:
        self.worker = Worker(server.url, prefix, config)
        for _ in range(5):
            self.worker.call(fails=True)
        poll(lambda: float(str(self.worker.breaker.get_stats()["retry_after"])) == 0, "the end of the open time")
        self.pipe, other = forkserver.Pipe()
        self.process = forkserver.Process(target=hold_a_probe, args=(server.url, prefix, config, other))
        self.process.start()
        assert self.pipe.poll(30)
        assert self.pipe.recv() == "holds"

    def signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)


ONE_PROBE = CircuitBreakerConfig(
    timeout_seconds=0.1, jitter=0, half_open_max_calls=1, probe_lease=1.5, success_threshold=1
)


@pytest.mark.fault("the worker that has a probe is killed", "the next probe is lent when its lease is over")
def test_a_killed_probe_holder_delays_recovery_by_no_more_than_its_lease(server: Server, prefix: str) -> None:
    holder = Holder(server, prefix, ONE_PROBE)
    killed = time.monotonic()
    holder.signal(signal.SIGKILL)
    holder.process.join()

    refused = holder.worker.call()
    poll(lambda: holder.worker.call() == "passed", "the lease to end")

    assert refused == "refused"
    assert time.monotonic() - killed <= 1.5 + SYNC + 0.2
    assert holder.worker.breaker.state == "closed"
    holder.worker.service.close()


@pytest.mark.fault(
    "a worker stands still for longer than the lease of its probe",
    "its late report, of an earlier generation, changes nothing",
)
def test_what_a_worker_tells_that_was_paused_for_longer_than_its_lease_changes_nothing(
    server: Server, prefix: str
) -> None:
    holder = Holder(server, prefix, ONE_PROBE)
    holder.signal(signal.SIGSTOP)
    poll(lambda: holder.worker.call() == "passed", "the lease to end")
    before = holder.worker.breaker.get_stats()
    holder.signal(signal.SIGCONT)
    holder.pipe.send("fail")
    assert holder.pipe.poll(30)
    assert holder.pipe.recv() == "reported"
    after = holder.worker.breaker.get_stats()

    fields = ("state", "generation", "failures", "probes")
    assert [before[field] for field in fields] == [after[field] for field in fields]
    assert after["state"] == "closed"
    holder.process.join()
    holder.worker.service.close()


def fleet_counts(breaker: CircuitBreaker) -> Counter[str]:
    counts: Any = breaker.get_stats()["fleet"]
    return Counter(counts)


def test_a_reset_is_heard_by_all_within_a_second(server: Server, prefix: str, breaker: CircuitBreaker) -> None:
    breaker.force_open()
    fleet = Fleet(server, prefix, CircuitBreakerConfig(jitter=0), [{"seconds": 4.0, "pause": 0.002}] * 4)
    fleet.begin()
    poll(lambda: fleet_counts(breaker)["breaker.refused"] > 100, "all to be refused")
    asked = time.monotonic()
    breaker.reset()
    told = time.monotonic()

    firsts = [of(calls, "passed")[0] for calls in fleet.calls()]

    assert all(first.began >= asked for first in firsts)
    assert all(first.began <= told + 1.05 for first in firsts)


class Counted:
    """How often clients have run the evidence script, by the server's own log."""

    def __init__(self, server: Server) -> None:
        self._server = server
        with server.client() as client:
            for name in scripts.names():
                client.script_load(scripts.load(name).text)
            client.config_set("slowlog-max-len", 100_000)
            client.config_set("slowlog-log-slower-than", 0)
            client.slowlog_reset()

    def runs(self, script: str) -> int:
        sha = scripts.load(script).sha
        return sum(words[:2] == ["EVALSHA", sha] for words in commands_at(self._server))


def test_a_closed_circuit_costs_ten_syncs_a_second_and_process_and_one_per_failure_report(
    own_server: Server, prefix: str
) -> None:
    counted = Counted(own_server)

    fleet = ran(own_server, prefix, CircuitBreakerConfig(failure_threshold=10**6), *[{"seconds": 3.0}] * 2)

    first = 2 * 1  # get_stats, before time counts
    assert sum(len(of(calls, "passed")) for calls in fleet) > 10_000
    assert 2 * 15 <= counted.runs("evidence") <= 2 * (10 * 3.0 + 1) + first
    assert counted.runs("circuit_breaker_probe") == 0


def test_failures_cost_one_report_each_on_top(own_server: Server, prefix: str) -> None:
    counted = Counted(own_server)
    config = CircuitBreakerConfig(failure_threshold=10**6)

    fleet = ran(own_server, prefix, config, *[{"seconds": 2.0, "fails_every": 2, "pause": 0.005}] * 2)

    failed = sum(len(of(calls, "failed")) for calls in fleet)
    assert failed > 50
    assert failed <= counted.runs("evidence") <= failed + 2 * (10 * 2.0 + 1) + 2


def test_an_open_circuit_costs_one_refresh_a_second_and_process(own_server: Server, prefix: str) -> None:
    worker = Worker(own_server.url, prefix, CircuitBreakerConfig())
    worker.breaker.force_open()
    worker.service.close()
    counted = Counted(own_server)

    fleet = ran(own_server, prefix, CircuitBreakerConfig(), *[{"seconds": 3.5}] * 2)

    assert sum(len(of(calls, "refused")) for calls in fleet) > 10_000
    assert 2 * 3 <= counted.runs("evidence") <= 2 * (3.5 + 1) + 2 * 1
    assert counted.runs("circuit_breaker_probe") == 0
