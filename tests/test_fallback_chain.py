"""Fallback chains: who is asked, in which order, what is kept, and what does not fall through."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import Api, Lane
from servers import PATIENT, Server
from test_heartbeat import commands_at, counted

from shared_resilience import (
    BulkheadFullError,
    CircuitBreakerOpenError,
    Event,
    FallbackChain,
    FallbackConfig,
    FallbackExhaustedError,
    FallbackLevel,
    FallbackResult,
    IdempotencyConflictError,
    ResilienceService,
    StoreUnavailableError,
    scripts,
)
from shared_resilience.fallback_config import falls_through

assert counted  # a fixture
PRIMARY, REPLICA, SHARED, LOCAL, BACKUP, DEFAULT = FallbackLevel
NO_CACHE = FallbackConfig(shared_max_age=0, local_max_age=0)


class Chain:
    """A chain in the form of `api`; its primary returns `value`, or raises it if it is an exception."""

    def __init__(self, api: Api, config: FallbackConfig | None = None, name: str = "rates") -> None:
        self.api = api
        self.chain = api.service.get_or_create_fallback_chain(name, config)
        self.core = self.chain._core
        self.value: Any = 1
        self.asked: list[str] = []
        self.handle(PRIMARY, lambda: self.value)

    def handle(self, level: FallbackLevel, value: Callable[[], Any]) -> None:
        def handler(*args: Any, **kwargs: Any) -> Any:
            self.asked.append(level.value)
            found = value()
            if isinstance(found, BaseException):
                raise found
            return found

        async def async_handler(*args: Any, **kwargs: Any) -> Any:
            return handler(*args, **kwargs)

        self.chain.register_handler(level, handler if self.api.form == "sync" else async_handler)

    def ask(self, *args: Any, **kwargs: Any) -> FallbackResult[Any]:
        result: FallbackResult[Any] = self.api(self.chain.execute(*args, **kwargs))
        return result

    def fails(self, error: BaseException | None = None) -> None:
        self.value = error or ConnectionError("no route")

    def later(self, seconds: float) -> None:
        self.api.clock.advance(seconds)

    def counted(self, *fields: str) -> list[int]:
        counted = self.core.resource.counted()
        return [counted.get(f"fallback.{field}", 0) for field in fields]


def test_the_primary_answers_while_it_can(api: Api) -> None:
    chain = Chain(api)

    assert chain.ask("EUR") == (1, PRIMARY, False, 0.0)
    assert chain.counted("primary") == [1]


@pytest.mark.parametrize("down", range(1, 6))
def test_levels_are_asked_in_their_order_until_one_answers(api: Api, down: int, events: list[Event]) -> None:
    chain, levels = Chain(api, NO_CACHE), list(FallbackLevel)
    chain.fails()
    for number, level in enumerate(levels[1:], 1):
        value = ConnectionError(level.value) if number < down else level.value
        chain.handle(level, lambda value=value: value)  # type: ignore[misc]  # bound now

    answer = chain.ask("EUR")
    assert answer == (levels[down].value, levels[down], True, 0.0)
    assert chain.asked == [level.value for level in levels[: down + 1]]
    assert [event.name for event in events] == ["fallback.failed"] * down + ["fallback.used"]
    assert [event.details["level"] for event in events] == [level.value for level in levels[: down + 1]]


@pytest.mark.parametrize("value", [0, "", None, False, [], {"rate": 1.1}])
def test_the_local_cache_has_the_last_good_value_for_the_same_arguments(api: Api, value: Any) -> None:
    chain = Chain(api, FallbackConfig(shared_max_age=0))
    chain.value = value
    chain.ask("EUR", date="today")
    chain.later(10)
    chain.fails()

    answer = chain.ask("EUR", date="today")
    assert answer == (value, LOCAL, True, answer.age)
    assert answer.age == pytest.approx(10)
    with pytest.raises(FallbackExhaustedError):
        chain.ask("EUR", date="tomorrow")


def test_the_fleet_has_the_last_good_value_of_any_of_its_processes(api: Api, other: ResilienceService) -> None:
    chain = Chain(api)
    chain.value = {"rate": 1.1}
    chain.ask("EUR")
    theirs = other.get_or_create_fallback_chain("rates")
    theirs.register_handler(PRIMARY, down)
    chain.later(7)

    answer = theirs.execute("EUR")
    assert answer[:3] == ({"rate": 1.1}, SHARED, True)
    assert answer.age == pytest.approx(7)


def down(*args: Any) -> Any:
    raise ConnectionError("no route")


def test_last_good_values_have_a_largest_age(api: Api, other: ResilienceService) -> None:
    chain = Chain(api, FallbackConfig(shared_max_age=60, local_max_age=100))
    chain.ask("EUR")
    chain.fails()
    chain.later(59.9)
    first = chain.ask("EUR").level
    chain.later(0.2)
    second = chain.ask("EUR").level
    chain.later(39.8)
    third = chain.ask("EUR").level
    chain.later(0.2)

    assert [first, second, third] == [SHARED, LOCAL, LOCAL]
    with pytest.raises(FallbackExhaustedError):
        chain.ask("EUR")


def test_redis_is_told_at_most_once_a_second_of_all_that_was_kept(counted: Server, prefix: str) -> None:
    sha = scripts.load("fallback_cache_store").sha
    with ResilienceService.from_url(counted.url, prefix=prefix, command_timeout=PATIENT) as service:
        chain = service.get_or_create_fallback_chain("rates")
        chain.register_handler(PRIMARY, str)
        for number in range(500):
            chain.execute(number % 50)
        during = [command for command in commands_at(counted) if command[1:2] == [sha]]
    told = [command for command in commands_at(counted) if command[1:2] == [sha]]

    assert len(during) <= 2
    assert len(told) <= 3  # and what was left when it was closed
    assert counted.client().exists(*(f"{prefix}:{{rates}}:cache:({number})" for number in range(50))) == 50


def test_a_value_is_kept_as_it_was_when_it_was_returned(api: Api) -> None:
    chain = Chain(api, FallbackConfig(shared_max_age=0))
    chain.value = {"rates": [1]}
    chain.ask("EUR").value["rates"].append(2)
    chain.fails()
    chain.ask("EUR").value["rates"].append(3)

    assert chain.ask("EUR").value == {"rates": [1]}


def test_a_key_is_written_again_after_a_second(api: Api) -> None:
    chain = Chain(api, FallbackConfig(shared_max_age=0))
    for value, seconds in [(1, 0.5), (2, 0.6), (3, 0.0)]:
        chain.value = value
        chain.ask("EUR")
        chain.later(seconds)
    chain.fails()

    assert chain.ask("EUR").value == 3


def test_the_local_cache_is_bounded_and_drops_what_was_used_longest_ago(api: Api) -> None:
    chain = Chain(api, FallbackConfig(shared_max_age=0, local_size=2))
    for key in ("a", "b", "a", "c"):
        chain.value = key
        chain.ask(key)
        chain.later(2)
    chain.fails()

    assert [chain.ask(key).value for key in ("a", "c")] == ["a", "c"]
    with pytest.raises(FallbackExhaustedError):
        chain.ask("b")


@pytest.mark.parametrize(
    ("one", "other_"),
    [
        (("1",), (1,)),
        ((1,), (1.5,)),
        (("a", "b"), ("a, b",)),
        (([1, 2],), ([1], 2)),
        (({"a": 1},), ({"a": 2},)),
        ((), ("",)),
    ],
)
def test_other_arguments_have_other_values(api: Api, one: tuple[Any, ...], other_: tuple[Any, ...]) -> None:
    chain = Chain(api)
    for number, args in enumerate([one, other_]):
        chain.value = number
        chain.ask(*args)
        chain.later(2)
    chain.fails()

    assert [chain.ask(*one).value, chain.ask(*other_).value] == [0, 1]


class Nobody:
    """Of whom nothing is known but an address."""


def test_calls_that_cannot_be_told_apart_are_not_kept(
    api: Api, caplog: pytest.LogCaptureFixture, events: list[Event]
) -> None:
    chain = Chain(api)
    with caplog.at_level(logging.WARNING, "shared_resilience"):
        chain.ask(Nobody())
        chain.ask([Nobody()])
    chain.fails()

    assert caplog.text.count("tell them apart by key=") == 1
    assert [event.name for event in events] == ["fallback.not_kept"] * 2
    with pytest.raises(FallbackExhaustedError):
        chain.ask(Nobody())


def test_a_key_of_the_users_tells_calls_apart(api: Api) -> None:
    chain = Chain(api, FallbackConfig(key=lambda user, currency: None if currency == "XXX" else currency))
    chain.ask(Nobody(), "EUR")
    chain.ask(Nobody(), "XXX")
    chain.fails()

    assert chain.ask(Nobody(), "EUR").value == 1
    with pytest.raises(FallbackExhaustedError):
        chain.ask(Nobody(), "XXX")


def test_what_json_cannot_carry_is_returned_and_not_kept(api: Api, events: list[Event]) -> None:
    chain = Chain(api)
    chain.value = Decimal("1.5")

    assert chain.ask("EUR").value == Decimal("1.5")
    assert [(event.name, "codec 'json' cannot carry a Decimal" in str(event.details["why"])) for event in events] == [
        ("fallback.not_kept", True)
    ]


def test_too_large_a_value_is_not_kept(api: Api) -> None:
    chain = Chain(api, FallbackConfig(max_size=10))
    chain.value = "x" * 20
    chain.ask("EUR")

    assert chain.counted("not_kept", "primary") == [1, 1]
    assert chain.core.known()["kept_here"] == 0


def test_an_entry_of_another_version_is_none(api: Api, place: str, stores: Callable[[str], Lane], prefix: str) -> None:
    if place == "local":
        pytest.skip("there is no Redis to write into")
    chain = Chain(api, FallbackConfig(local_size=0))
    client, key = stores(place).client, f"{prefix}:{{rates}}:cache:EUR"
    chain.ask("EUR")
    written = {field.decode(): value.decode() for field, value in client.hgetall(key).items()}
    chain.fails()
    assert chain.ask("EUR").value == 1
    assert (written["codec"], written["value"]) == ("json", "1")
    assert 295_000 < client.pttl(key) <= 300_000

    for damage in ({"codec": "json:2"}, {"stored_us": "x"}, {"value": "{"}):
        client.hset(key, mapping={**written, **damage})
        with pytest.raises(FallbackExhaustedError):
            chain.ask("EUR")
    client.delete(key)
    client.set(key, "a text")
    with pytest.raises(FallbackExhaustedError):
        chain.ask("EUR")


@pytest.mark.parametrize(
    ("error", "falls"),
    [
        (ConnectionError(), True),
        (TimeoutError(), True),
        (RuntimeError(), True),
        (CircuitBreakerOpenError("rates", 1.0), True),
        (BulkheadFullError("rates", 1, 0.0), True),
        (TypeError(), False),
        (KeyError(), False),
        (ZeroDivisionError(), False),
        (IdempotencyConflictError("rates", "a", "running", 1.0), False),
        (StoreUnavailableError(), False),
    ],
)
def test_bugs_conflicts_and_errors_of_the_store_do_not_fall_through(api: Api, error: Exception, falls: bool) -> None:
    chain = Chain(api, NO_CACHE)
    chain.handle(DEFAULT, lambda: "default")
    chain.fails(error)
    if falls:
        assert chain.ask("EUR").value == "default"
        return
    with pytest.raises(type(error)) as raised:
        chain.ask("EUR")
    assert raised.value is error
    assert chain.asked == ["primary"]


class HttpError(Exception):
    """As those of HTTP clients, with the response that they tell of."""

    def __init__(self, status: int) -> None:
        self.response = SimpleNamespace(status_code=status, headers={})


@pytest.mark.parametrize(
    ("status", "falls"), [(400, False), (404, False), (422, False), (408, True), (429, True), (500, True), (503, True)]
)
def test_requests_that_are_wrong_themselves_do_not_fall_through(status: int, falls: bool) -> None:
    assert falls_through(HttpError(status)) is falls


@pytest.mark.parametrize("choice", [(KeyError,), lambda error: isinstance(error, KeyError)])
def test_what_falls_through_is_the_users(api: Api, choice: Any) -> None:
    chain = Chain(api, FallbackConfig(falls_through=choice))
    chain.handle(DEFAULT, lambda: "default")
    chain.fails(KeyError("EUR"))
    assert chain.ask("EUR").value == "default"
    chain.fails(ConnectionError())
    with pytest.raises(ConnectionError):
        chain.ask("EUR")


def test_a_fallback_that_has_a_bug_says_so(api: Api) -> None:
    chain = Chain(api, NO_CACHE)
    chain.fails()
    chain.handle(REPLICA, lambda: TypeError("a bug"))
    chain.handle(DEFAULT, lambda: "default")

    with pytest.raises(TypeError, match="a bug"):
        chain.ask("EUR")


def test_an_exhausted_chain_raises_a_group_of_all_causes(api: Api, events: list[Event]) -> None:
    chain = Chain(api)
    first, second = ConnectionError("no route"), TimeoutError("late")
    chain.fails(first)
    chain.handle(BACKUP, lambda: second)
    with pytest.raises(FallbackExhaustedError) as exhausted:
        chain.ask("EUR")

    assert isinstance(exhausted.value, ExceptionGroup)
    assert exhausted.value.exceptions == (first, second)
    assert exhausted.value.name == "rates"
    assert "primary: ConnectionError, distributed_cache: nothing kept, local_cache: nothing kept" in str(
        exhausted.value
    )
    assert "backup_service: TimeoutError" in str(exhausted.value)
    assert [event.name for event in events][-1] == "fallback.exhausted"
    late, rest = exhausted.value.split(TimeoutError)
    assert late is not None
    assert rest is not None
    assert isinstance(late, FallbackExhaustedError)


def test_what_no_exception_is_ends_the_chain(api: Api) -> None:
    chain = Chain(api)
    chain.handle(DEFAULT, lambda: "default")
    chain.fails(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        chain.ask("EUR")


def test_a_replica_answers_for_the_primary_and_what_it_says_is_kept(api: Api) -> None:
    chain = Chain(api)
    answers: list[Any] = ["of the replica", ConnectionError()]
    chain.fails()
    chain.handle(REPLICA, lambda: answers.pop(0))

    assert [chain.ask("EUR").level for _ in range(2)] == [REPLICA, SHARED]


def test_a_handler_for_a_cache_takes_its_place(api: Api) -> None:
    chain = Chain(api)
    chain.ask("EUR")
    chain.fails()
    chain.handle(SHARED, lambda: "of the users own cache")

    assert chain.ask("EUR") == ("of the users own cache", SHARED, True, 0.0)


def test_without_a_primary_there_is_nothing_to_fall_back_from(api: Api) -> None:
    chain = api.service.get_or_create_fallback_chain("rates")
    chain.register_handler(DEFAULT, lambda: 0)
    with pytest.raises(LookupError, match=r"'rates' has no primary: register_handler\(FallbackLevel\.PRIMARY"):
        api(chain.execute("EUR"))


def test_a_level_has_one_handler(api: Api) -> None:
    chain = api.service.get_or_create_fallback_chain("rates")
    chain.register_handler(DEFAULT, down)
    chain.register_handler(DEFAULT, down)
    with pytest.raises(ValueError, match="level default of 'rates' has another handler"):
        chain.register_handler(DEFAULT, lambda: 0)
    with pytest.raises(ValueError, match="level is 'default', but must be a FallbackLevel"):
        chain.register_handler("default", down)
    with pytest.raises(ValueError, match="handler is 0, but must be a function"):
        chain.register_handler(PRIMARY, 0)


def test_as_a_decorator_it_makes_the_function_the_primary_and_returns_the_plain_value(api: Api) -> None:
    chain = api.service.get_or_create_fallback_chain("rates")
    values: list[Any] = [1.1, None]

    def rate(currency: str) -> Any:
        value = values.pop(0)
        if value is None:
            raise ConnectionError("no route")
        return value

    async def rate_async(currency: str) -> Any:
        return rate(currency)

    protected = chain(rate if api.form == "sync" else rate_async)
    assert [api(protected("EUR")) for _ in range(2)] == [1.1, 1.1]
    assert protected.__name__ in ("rate", "rate_async")


@pytest.mark.parametrize("timeout", [0.05, {PRIMARY: 0.05}])
def test_a_level_that_takes_too_long_is_given_up(api: Api, timeout: Any) -> None:
    chain = api.service.get_or_create_fallback_chain("rates", FallbackConfig(timeout=timeout))
    forever, cancelled = threading.Event(), []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    chain.register_handler(PRIMARY, (lambda: forever.wait(10)) if api.form == "sync" else wait)
    chain.register_handler(DEFAULT, lambda: "default")
    answer = api(chain.execute())
    forever.set()

    assert answer == ("default", DEFAULT, True, 0.0)
    assert cancelled == ([] if api.form == "sync" else [True])


def test_a_level_that_was_given_up_is_a_timeout_error_that_names_it(api: Api) -> None:
    chain = api.service.get_or_create_fallback_chain("rates", FallbackConfig(timeout={PRIMARY: 0.02}))
    forever = threading.Event()
    chain.register_handler(PRIMARY, (lambda: forever.wait(10)) if api.form == "sync" else asyncio.Event().wait)
    with pytest.raises(FallbackExhaustedError) as exhausted:
        api(chain.execute())
    forever.set()

    (cause,) = exhausted.value.exceptions
    assert isinstance(cause, TimeoutError)
    assert str(cause) == "primary of 'rates' has not answered within 0.02 s"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shared_max_age", -1),
        ("local_max_age", float("inf")),
        ("local_size", -1),
        ("timeout", 0),
        ("timeout", float("nan")),
        ("falls_through", (BaseException,)),
        ("falls_through", "all"),
        ("key", "currency"),
        ("codec", json),
        ("max_size", 0),
    ],
)
def test_a_wrong_configuration_names_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} is "):
        FallbackConfig(**{field: value})


def test_a_wrong_timeout_of_a_level_names_it() -> None:
    with pytest.raises(ValueError, match="timeout of replica is 0, but must be"):
        FallbackConfig(timeout={REPLICA: 0})
    with pytest.raises(ValueError, match="timeout is 'replica', but must be a mapping from FallbackLevel"):
        FallbackConfig(timeout=cast("Any", {"replica": 1}))


def test_without_redis_the_caches_of_the_process_go_on(api: Api, place: str, redis_is_away: Callable[[], None]) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    chain = Chain(api)
    redis_is_away()
    chain.ask("EUR")
    assert chain.core.cache.pending == 1
    chain.fails()

    assert chain.ask("EUR").level is LOCAL


def test_what_redis_could_not_be_told_is_told_when_it_is_back(
    api: Api, place: str, other: ResilienceService, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, chain = api.runtime.process.guard, Chain(api)
    monkeypatch.setattr(guard, "launch", lambda start: None)
    guard.usable = False
    chain.ask("EUR")
    guard.usable = True
    chain.later(1.1)
    chain.ask("USD")
    theirs = other.get_or_create_fallback_chain("rates")
    theirs.register_handler(PRIMARY, down)

    assert [theirs.execute(key).level for key in ("EUR", "USD")] == [SHARED, SHARED]


def test_what_waits_for_redis_is_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared_resilience.fallback_cache.MOST_PENDING_BYTES", 100)
    chain = Chain(api, FallbackConfig(local_size=0))
    cache = chain.core.cache
    cache._due = float("inf")
    chain.value = "x" * 28
    for number in range(10):
        chain.ask(number)

    assert list(cache._pending) == ["(7)", "(8)", "(9)"]
    assert cache._pending_bytes == 90


def test_so_is_their_number(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared_resilience.fallback_cache.MOST_PENDING", 2)
    chain = Chain(api, FallbackConfig(local_size=0))
    chain.core.cache._due = float("inf")
    for number in range(10):
        chain.ask(number)

    assert list(chain.core.cache._pending) == ["(8)", "(9)"]


def test_many_values_are_told_in_several_commands(api: Api, other: ResilienceService) -> None:
    chain = Chain(api)
    chain.core.cache._due = float("inf")
    for number in range(250):
        chain.ask(number)
    backends = api.runtime.backends
    if api.form == "sync":
        from shared_resilience.backends import step

        step(chain.core.before_close(backends.blocking))
    else:
        api(chain.core.before_close(backends.suspending))
    theirs = other.get_or_create_fallback_chain("rates")
    theirs.register_handler(PRIMARY, down)

    assert chain.core.cache.pending == 0
    assert {theirs.execute(number).level for number in range(250)} == {SHARED}


def test_a_coroutine_function_is_for_asyncio() -> None:
    chain = ResilienceService.local().get_or_create_fallback_chain("rates")

    async def rate() -> None:
        """Never runs."""

    chain.register_handler(PRIMARY, rate)
    with pytest.raises(TypeError, match=r"use the chain of service\.aio"):
        chain.execute()


def test_statistics_are_plain(api: Api) -> None:
    chain = Chain(api)
    chain.handle(DEFAULT, lambda: 0)
    chain.ask("EUR")
    chain.fails()
    chain.ask("USD")
    stats = json.loads(json.dumps(api(chain.chain.get_stats())))

    assert stats["levels"] == ["primary", "default"]
    assert stats["local"] == {"fallback.primary": 1, "fallback.primary_failed": 1, "fallback.default": 1}
    assert (stats["kept_here"], stats["untold_here"]) == (1, 0)


def test_a_forked_child_begins_with_nothing_kept(api: Api) -> None:
    chain = Chain(api, FallbackConfig(shared_max_age=0))
    chain.ask("EUR")
    chain.core.after_fork()
    chain.fails()

    with pytest.raises(FallbackExhaustedError):
        chain.ask("EUR")


def test_chains_of_one_name_are_one(api: Api) -> None:
    first: FallbackChain = api.service.get_or_create_fallback_chain("rates", NO_CACHE)
    assert api.service.get_or_create_fallback_chain("rates")._core is first._core
    with pytest.raises(ValueError, match="exists with another configuration"):
        api.service.get_or_create_fallback_chain("rates", FallbackConfig())
