"""Health checks: what counts as healthy, real timeouts, grace, the background, and what follows for the whole."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from conftest import Api
from servers import PATIENT, Server, poll

from shared_resilience import (
    Event,
    Health,
    HealthCheckConfig,
    HealthCheckResult,
    HealthCheckType,
    ResilienceService,
)

LIVENESS, READINESS, DEEP = HealthCheckType
QUICK = HealthCheckConfig(timeout=0.05)


class Checker:
    """A checker in the form of `api`, whose check returns `answer`, or raises it if it is an exception."""

    def __init__(self, api: Api, name: str = "db", config: HealthCheckConfig | None = None) -> None:
        self.api = api
        self.checker = api.service.get_or_create_health_checker(name, config)
        self.answer: object = None
        self.checker.register(self.ask if api.form == "sync" else self.ask_async)

    def ask(self) -> object:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    async def ask_async(self) -> object:
        return self.ask()

    def says(self, answer: object) -> HealthCheckResult:
        self.answer = answer
        result: HealthCheckResult = self.api(self.checker.check())
        return result

    @property
    def healthy(self) -> bool:
        is_healthy: bool = self.checker.is_healthy
        return is_healthy


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """Checks hang until it is set."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize(
    "answer",
    [None, True, 0, 7, "", "up", "OK", {}, {"status": "up"}, {"healthy": True}, {"rows": 0}, HealthCheckResult(True)],
)
def test_what_is_healthy(api: Api, answer: object) -> None:
    result = Checker(api).says(answer)

    assert (result.healthy, result.error) == (True, None)
    assert abs(result.checked_at - time.time()) < 60
    assert 0 <= result.latency < 60


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (False, "it says False"),
        ("down", "it says 'down'"),
        ("DOWN", "it says 'DOWN'"),
        ("not_ready", "it says 'not_ready'"),
        ({"status": "Fail"}, "it says 'Fail'"),
        ({"status": False}, "it says False"),
        ({"healthy": False}, "it says False"),
        ({"status": "down", "error": "no disk"}, "no disk"),
        (HealthCheckResult(False, error="no disk"), "no disk"),
        (ConnectionError("no route"), "ConnectionError: no route"),
        (StopIteration(), "RuntimeError"),
    ],
)
def test_what_is_not(api: Api, answer: object, error: str) -> None:
    result = Checker(api).says(answer)

    assert not result.healthy
    assert result.error is not None
    assert result.error.startswith(error)


def test_details_are_plain_data(api: Api) -> None:
    details = {"status": "up", "rows": 7, 3: (1, None), "at": {"x": object}, "load": float("nan"), "of": {2, 1}}
    result = Checker(api).says(details)

    told = json.loads(json.dumps(asdict(result), allow_nan=False))
    assert told["details"] == {
        "status": "up",
        "rows": 7,
        "3": [1, None],
        "at": {"x": "<class 'object'>"},
        "load": "nan",
        "of": "{1, 2}",
    }


def test_a_check_that_hangs_is_unhealthy_when_its_time_is_over(api: Api, hanging: threading.Event) -> None:
    checker = api.service.get_or_create_health_checker("db", QUICK)
    result = api(checker.check(hanging.wait))
    again = api(checker.check(hanging.wait))

    assert (result.healthy, result.error) == (False, "it has not answered within 0.05 s")
    assert 0.05 <= result.latency < 10
    assert again.error == "the check before still hangs"
    hanging.set()
    poll(lambda: api(checker.check(lambda: True)).healthy, "the check to end")


def test_a_coroutine_that_hangs_is_cancelled(api: Api) -> None:
    cancelled = list[bool]()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    checker = api.service.get_or_create_health_checker("db", QUICK)
    result = api(checker.check(hang))
    if api.form == "sync":
        assert "use service.aio for it" in result.error
    else:
        assert (result.error, cancelled) == ("it has not answered within 0.05 s", [True])
        assert api(checker.check(lambda: asyncio.sleep(0, "down"))).error == "it says 'down'"


def test_what_was_healthy_has_grace(api: Api, events: list[Event]) -> None:
    checker = Checker(api)
    seen = []
    for answer in (True, False, False, True, False, False, False, False, True):
        checker.says(answer)
        seen.append(checker.healthy)

    assert seen == [True] * 6 + [False] * 2 + [True]
    assert [event.name for event in events] == ["health.up", "health.down", "health.up"]
    assert dict(events[1].details) == {"check_type": "readiness", "error": "it says False"}
    assert events[1].resource == "db"


@pytest.mark.parametrize("check_type", HealthCheckType)
def test_who_is_to_be_ready_has_to_show_it_first(api: Api, check_type: HealthCheckType) -> None:
    checker = Checker(api, config=HealthCheckConfig(check_type=check_type, grace=2))
    alive = check_type is LIVENESS
    before = checker.healthy
    checker.says(False)
    once = checker.healthy
    checker.says(False)

    assert (before, once, checker.healthy) == (alive, alive, False)


def health(api: Api, check_type: HealthCheckType = READINESS) -> Health:
    found: Health = api(api.service.health(check_type))
    return found


def test_each_type_includes_the_cheaper_ones(api: Api) -> None:
    for check_type in HealthCheckType:
        Checker(api, check_type.value, HealthCheckConfig(check_type=check_type))

    assert set(health(api, LIVENESS).checks) == {"liveness"}
    assert set(health(api, READINESS).checks) == {"liveness", "readiness", "store"}
    assert set(health(api, DEEP).checks) == {"liveness", "readiness", "deep", "store"}
    with pytest.raises(ValueError, match="check_type is 'deep'"):
        health(api, "deep")  # type: ignore[arg-type]


def test_only_what_is_critical_brings_the_whole_down(api: Api) -> None:
    database, mail = Checker(api, "db"), Checker(api, "mail", HealthCheckConfig(critical=False))
    all_well = health(api)
    mail.answer = False
    for _ in range(3):
        health(api)
    without_mail = health(api)
    database.answer = False
    in_grace = health(api)
    for _ in range(2):
        last = health(api)

    assert [(one.healthy, one.status) for one in (all_well, without_mail, in_grace, last)] == [
        (True, "up"),
        (True, "degraded"),
        (True, "degraded"),
        (False, "down"),
    ]
    assert not in_grace.checks["db"].healthy
    assert api(api.service.fleet())[0].health == "down"
    json.dumps(asdict(last), allow_nan=False)


def test_nothing_to_check_is_healthy_and_what_was_never_checked_is_not(api: Api) -> None:
    nothing = health(api, LIVENESS)
    api.service.get_or_create_health_checker("db")

    assert (nothing.status, dict(nothing.checks)) == ("up", {})
    assert (health(api).status, health(api).checks["db"].error) == ("down", "it has not been checked yet")


def test_checks_are_made_at_the_same_time(api: Api) -> None:
    barrier, names = threading.Barrier(4), [f"db{number}" for number in range(4)]

    def meet() -> None:
        barrier.wait(20)

    for name in names:
        api.service.get_or_create_health_checker(name).register(meet)

    assert [health(api).checks[name].error for name in names] == [None] * 4


def test_without_redis_a_process_is_degraded(api: Api, place: str) -> None:
    store = health(api).checks["store"]
    assert (store.healthy, store.details) == (True, {"decided_by": "local" if place == "local" else "redis"})


def test_a_redis_that_is_gone_shows(own_server: Server) -> None:
    with ResilienceService.from_url(own_server.url, command_timeout=PATIENT) as service:
        before = service.health()
        own_server.kill()
        after = service.health()

    assert (before.status, after.status, after.healthy) == ("up", "degraded", True)
    assert str(after.checks["store"].error).startswith("StoreUnavailableError")
    assert after.checks["store"].details == {"decided_by": "local"}


def test_a_checker_asks_one_function(api: Api) -> None:
    checker = api.service.get_or_create_health_checker("db")
    with pytest.raises(LookupError, match=r"register\(\)"):
        api(checker.check())
    with pytest.raises(LookupError, match=r"register\(\)"):
        checker.start()

    def ping() -> bool:
        return True

    assert checker.register(ping) is checker.register(ping) is ping
    with pytest.raises(ValueError, match="asks another function"):
        checker.register(lambda: True)
    for nothing in (7, "ping"):
        with pytest.raises(ValueError, match="a function without arguments"):
            checker.register(nothing)
        with pytest.raises(ValueError, match="a function without arguments"):
            api(checker.check(nothing))


def test_one_name_is_one_checker(api: Api) -> None:
    one = Checker(api)
    one.says(True)

    assert api.service.get_or_create_health_checker("db").is_healthy
    with pytest.raises(ValueError, match="exists with another configuration"):
        api.service.get_or_create_health_checker("db", QUICK)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("check_type", "readiness"),
        ("interval", 0),
        ("interval", float("nan")),
        ("timeout", 0),
        ("timeout", 3601),
        ("grace", 0),
        ("grace", 1.5),
        ("critical", 1),
    ],
)
def test_wrong_numbers_are_told(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        HealthCheckConfig(**{field: value})


def test_statistics(api: Api) -> None:
    checker = Checker(api)
    checker.says(True)
    checker.says(False)
    stats = api(api.service.get_comprehensive_stats())["health_checkers"]["db"]
    json.dumps(stats, allow_nan=False)

    assert (stats["healthy"], stats["failures_in_a_row"], stats["check_type"]) == (True, 1, "readiness")
    assert stats["local"] == {"health.passed": 1, "health.failed": 1}
    assert stats["latest"]["error"] == "it says False"
    assert stats["config"] == {"interval": 5.0, "timeout": 3.0, "grace": 3}
    assert api(checker.checker.get_stats())["in_background"] is False


# In the background, on real time.

OFTEN = HealthCheckConfig(interval=0.01)


def test_a_check_is_made_again_and_again_until_it_is_stopped() -> None:
    with ResilienceService.local() as service:
        checker, made, alive = service.get_or_create_health_checker("db", OFTEN), list[int](), threading.active_count()
        checker.register(lambda: made.append(threading.get_ident()))
        checker.start()
        checker.start()
        poll(lambda: len(made) >= 10, "ten checks")
        assert threading.active_count() <= alive + 2  # the round, and the check that it makes
        assert service.health().checks["db"].healthy
        assert threading.get_ident() not in made
        checker.stop()
        poll(lambda: threading.active_count() == alive, "the end")


def test_closing_a_service_ends_its_checks() -> None:
    alive = threading.active_count()
    with ResilienceService.local() as service:
        checker = service.get_or_create_health_checker("db", HealthCheckConfig(interval=1000))
        checker.register(lambda: True)
        checker.start()
        poll(lambda: checker.is_healthy, "a check")
    poll(lambda: threading.active_count() == alive, "the end")


def test_a_check_is_made_in_the_background_of_a_loop() -> None:
    async def work() -> None:
        async with ResilienceService.local().aio as service:
            checker, made = service.get_or_create_health_checker("db", OFTEN), asyncio.Queue[int]()

            @checker.register
            async def ping() -> None:
                made.put_nowait(threading.get_ident())

            checker.start()
            assert {await asyncio.wait_for(made.get(), 10) for _ in range(10)} == {threading.get_ident()}
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(work())


def test_what_is_checked_in_the_background_is_not_checked_again_for_the_whole() -> None:
    with ResilienceService.local() as service:
        checker = service.get_or_create_health_checker("db", HealthCheckConfig(interval=1000))
        made = list[bool]()
        checker.register(lambda: made.append(True))
        checker.start()
        poll(lambda: checker.is_healthy, "a check")
        assert service.health().healthy
        assert len(made) == 1


def test_a_worker_that_makes_no_calls_is_seen_by_its_checks(server: Server, prefix: str) -> None:
    with (
        ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT) as idle,
        ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT, worker_id="seer") as seer,
    ):
        checker = idle.get_or_create_health_checker("db", HealthCheckConfig(interval=1000))
        checker.register(lambda: False)
        checker.start()
        poll(lambda: {worker.health for worker in seer.fleet()} == {"down", "unknown"}, "its health")
        with server.client() as client:

            def seen() -> float:
                score: float = client.zscore(f"{prefix}:fleet", idle_id)
                return score

            idle_id = next(worker.id for worker in seer.fleet() if worker.id != "seer")
            first = seen()
            poll(lambda: seen() > first, "another beat")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_makes_the_checks_itself() -> None:
    fork = multiprocessing.get_context("fork")
    with ResilienceService.local() as service:
        checker = service.get_or_create_health_checker("db", OFTEN)
        checker.register(lambda: True)
        checker.start()
        poll(lambda: checker.is_healthy, "a check")
        mine, theirs = fork.Pipe()

        def see() -> None:
            before = checker.get_stats()["latest"]
            poll(lambda: checker.is_healthy, "a check")
            theirs.send((before, checker.get_stats()["in_background"]))

        child = fork.Process(target=see)
        child.start()
        assert mine.poll(30)
        assert mine.recv() == (None, True)
        child.join(10)
