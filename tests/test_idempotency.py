"""Calls that are made once: what they return, who waits, what is refused, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, cast

import pytest
from conftest import Api, Lane
from servers import poll

from shared_resilience import (
    DeadlineExceeded,
    EncodingError,
    Event,
    IdempotencyConfig,
    IdempotencyConflictError,
    RateLimitExceeded,
    ResilienceService,
    StoreUnavailableError,
    TimeoutConfig,
    TokenBucket,
    current_claim,
    deadline,
)
from shared_resilience.backends import step


class Once:
    """Calls of one resource in the form of `api`, and how often the function has run."""

    def __init__(self, api: Api, config: IdempotencyConfig | None = None) -> None:
        self.api = api
        self.once = api.service.get_or_create_idempotency("orders", config)
        self.core = self.once._core
        self.runs: list[Any] = []

    def call(self, key: Any, *args: Any, returns: Any = "placed", inside: Callable[[], Any] | None = None) -> Any:
        """A call under `key`; `inside` is what the function does."""

        def place(*args: Any) -> Any:
            self.runs.append(current_claim().fencing)
            if inside is not None:
                inside()
            return returns

        async def place_async(*args: Any) -> Any:
            return place(*args)

        return self.api(self.once.execute(key, place if self.api.form == "sync" else place_async, *args))

    def conflict(self, key: Any, *args: Any) -> IdempotencyConflictError:
        with pytest.raises(IdempotencyConflictError) as refused:
            self.call(key, *args)
        return refused.value

    def counted(self, *fields: str) -> list[int]:
        counted = self.core.resource.counted()
        return [counted.get(f"idempotency.{field}", 0) for field in fields]

    def keep_up(self) -> None:
        """Has the attendant's work done now."""
        backends = self.api.runtime.backends
        for held in self.core._parties:
            if self.api.form == "sync":
                step(held.keep_up(backends.blocking))
            else:
                self.api(held.keep_up(backends.suspending))


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize("value", [0, "", None, [], {}, False, "placed", {"id": [1, 2.5, "ß"]}])
def test_a_call_is_made_once_and_its_result_replayed_be_it_as_false_as_it_likes(api: Api, value: Any) -> None:
    once = Once(api)
    results = [once.call("order-7", 10, returns=value) for _ in range(3)]

    assert results == [value] * 3
    assert [type(result) for result in results] == [type(value)] * 3
    assert len(once.runs) == 1
    assert once.counted("claimed", "replayed") == [1, 2]


def test_each_key_has_a_call_of_its_own_whatever_text_it_is(api: Api) -> None:
    once = Once(api)
    keys = ["", "a", "A", "a b", "a%20b", "{a}", "ü" * 100, 7, "7 ", "x" * 500, "x" * 501]
    for key in keys:
        once.call(key, returns=str(key))

    assert [once.call(key) for key in keys] == [str(key) for key in keys]
    assert len(once.runs) == len(keys)


def test_a_key_that_is_none_is_no_key(api: Api) -> None:
    with pytest.raises(ValueError, match="key is None"):
        Once(api).call(None)


def test_other_arguments_under_a_key_are_refused(api: Api, events: list[Event]) -> None:
    once = Once(api)
    once.call("order-7", {"amount": 10, "to": "acme"})
    once.call("order-7", {"to": "acme", "amount": 10})
    refused = once.conflict("order-7", {"amount": 11, "to": "acme"})

    assert (refused.name, refused.key, refused.reason) == ("orders", "order-7", "other_arguments")
    assert refused.retry_after == float("inf")
    assert "used for other arguments" in str(refused)
    assert len(once.runs) == 1
    assert ("idempotency.refused", "other_arguments") in [(e.name, e.details.get("reason")) for e in events]


def test_what_is_compared_is_up_to_the_user(api: Api) -> None:
    once = Once(api, IdempotencyConfig(fingerprint=lambda order, at: order))
    once.call("order-7", "tea", "10:00")
    once.call("order-7", "tea", "10:01")

    assert len(once.runs) == 1
    assert once.conflict("order-7", "milk", "10:00").reason == "other_arguments"


def test_a_call_that_raises_lets_its_key_go_with_other_arguments_too(api: Api) -> None:
    once = Once(api)
    with pytest.raises(OSError, match="no route"):
        once.call("order-7", 10, inside=failing(OSError("no route")))

    assert once.call("order-7", 11) == "placed"
    assert len(once.runs) == 2
    assert once.runs[0] < once.runs[1]


class ReadTimeout(OSError):
    """As HTTP clients have them, which are no TimeoutError."""


@pytest.mark.parametrize(
    "error", [TimeoutError("late"), ReadTimeout("late"), asyncio.CancelledError(), DeadlineExceeded("payments", 1.0)]
)
def test_a_call_of_which_nobody_knows_what_became_keeps_its_key_until_its_lease_ends(
    api: Api, error: BaseException
) -> None:
    once = Once(api, IdempotencyConfig(lease=5.0, on_conflict="raise"))
    with pytest.raises(type(error)):
        once.call("order-7", inside=failing(error))
    api.clock.advance(4.9)
    refused = once.conflict("order-7")
    api.clock.advance(0.2)

    assert refused.reason == "running"
    assert refused.retry_after == pytest.approx(0.1)
    assert once.call("order-7") == "placed"
    assert once.runs[0] < once.runs[1]
    assert once.counted("taken_over") == [1]


def test_a_refusal_of_the_library_inside_lets_the_key_go(api: Api) -> None:
    limiter = ResilienceService.local().get_or_create_rate_limiter("payments", TokenBucket(1, 0.01))
    limiter.acquire()
    once = Once(api)
    with pytest.raises(RateLimitExceeded):
        once.call("order-7", inside=lambda: limiter.acquire(timeout=0))

    assert once.call("order-7") == "placed"


def test_who_comes_while_the_call_runs_is_refused_if_it_is_not_to_wait(api: Api) -> None:
    once = Once(api, IdempotencyConfig(lease=5.0, on_conflict="raise"))
    refusals: list[IdempotencyConflictError] = []
    other = api.runtime.claims("orders", None)

    def ask_meanwhile() -> None:
        api.clock.advance(2.0)
        backends = api.runtime.backends
        with pytest.raises(IdempotencyConflictError) as refused:
            step(other.claim(backends.blocking, "order-7", other.fingerprint(int, (), {})))
        refusals.append(refused.value)

    once.call("order-7", inside=ask_meanwhile)

    assert [refused.reason for refused in refusals] == ["running"]
    assert refusals[0].retry_after == pytest.approx(3.0)


class Crowd:
    """Callers beside each other: threads, or tasks of the test's loop."""

    def __init__(self, once: Once) -> None:
        self.once, self.api = once, once.api
        self.may_end, self.begun = threading.Event(), threading.Event()
        self.runs = 0

    def place(self) -> int:
        self.runs += 1
        self.begun.set()
        assert self.may_end.wait(10)
        return self.runs

    async def place_async(self) -> int:
        return await asyncio.to_thread(self.place)

    def results(self, number: int) -> list[Any]:
        """What so many calls under one key return, which begin together."""
        if self.api.form == "sync":
            with ThreadPoolExecutor(number + 1) as pool:
                futures = [pool.submit(self.once.once.execute, "order-7", self.place) for _ in range(number)]
                assert self.begun.wait(10)
                self.may_end.set()
                return [future.result(10) for future in futures]

        async def gather() -> list[Any]:
            execute = self.once.once.execute
            tasks = [asyncio.ensure_future(execute("order-7", self.place_async)) for _ in range(number)]
            assert await asyncio.to_thread(self.begun.wait, 10)
            self.may_end.set()
            return await asyncio.gather(*tasks)

        return self.api.loop.run_until_complete(gather())


def test_eight_callers_at_once_make_one_call_and_all_get_its_result(api: Api) -> None:
    crowd = Crowd(Once(api))

    assert crowd.results(8) == [1] * 8
    assert crowd.runs == 1


def test_who_waits_gives_up_after_its_timeout(api: Api) -> None:
    once = Once(api, IdempotencyConfig(wait_timeout=0.5))
    claims, blocking = once.core, api.runtime.backends.blocking
    held = step(claims.claim(blocking, "order-7", claims.fingerprint(int, (), {})))
    waits: list[float] = []
    passes_by_itself(api, waits)

    refused = once.conflict("order-7")
    assert refused.reason == "running"
    assert sum(waits) == pytest.approx(0.5)
    assert once.runs == []
    assert held


def passes_by_itself(api: Api, waits: list[float]) -> None:
    """Has each wait be over at once, by the clock of the test."""

    class Ticket:
        def wake(self) -> None:
            """Nobody has to be woken."""

        async def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            api.clock.advance(seconds)
            return False

    backends: Any = api.runtime.backends
    backends.blocking.ticket = Ticket
    backends.suspending.ticket = Ticket


def test_the_deadline_ends_the_wait_too(api: Api) -> None:
    once = Once(api, IdempotencyConfig(wait_timeout=30))
    claims, blocking = once.core, api.runtime.backends.blocking
    held = step(claims.claim(blocking, "order-7", claims.fingerprint(int, (), {})))
    passes_by_itself(api, [])
    began = api.clock.monotonic()

    with deadline(1.5, monotonic=api.clock.monotonic), pytest.raises(DeadlineExceeded):
        once.call("order-7")
    assert api.clock.monotonic() - began == pytest.approx(1.5)
    with deadline(0, monotonic=api.clock.monotonic), pytest.raises(DeadlineExceeded):
        once.call("order-8")
    assert (once.runs, bool(held)) == ([], True)


def test_who_waits_asks_once_a_second_or_when_the_lease_ends_and_then_takes_over(api: Api) -> None:
    once = Once(api, IdempotencyConfig(lease=2.5))
    claims, blocking = once.core, api.runtime.backends.blocking
    held = step(claims.claim(blocking, "order-7", claims.fingerprint(int, (), {})))
    claims.abandon(blocking, cast("Any", held))
    waits: list[float] = []
    passes_by_itself(api, waits)

    assert once.call("order-7") == "placed"
    assert waits == pytest.approx([1.0, 1.0, 0.5])
    assert once.counted("taken_over") == [1]


def test_a_call_that_takes_long_is_renewed(api: Api) -> None:
    once = Once(api, IdempotencyConfig(lease=3.0, on_conflict="raise"))
    claims, blocking = once.core, api.runtime.backends.blocking
    held: Any = step(claims.claim(blocking, "order-7", claims.fingerprint(int, (), {})))
    for _ in range(10):
        api.clock.advance(1.0)
        once.keep_up()

    assert once.conflict("order-7").retry_after == pytest.approx(3.0)
    assert not held.lost


def test_a_call_whose_lease_ran_out_is_taken_over_and_may_not_write_any_more(api: Api, events: list[Event]) -> None:
    once = Once(api, IdempotencyConfig(lease=3.0))
    claims, blocking = once.core, api.runtime.backends.blocking
    seen: list[bool] = []

    def stand_still() -> None:
        api.clock.advance(3.1)
        seen.append(current_claim().lost)
        taker: Any = step(claims.claim(blocking, "order-7", claims.fingerprint(int, (), {})))
        step(claims.complete(blocking, taker, *claims.write_down(taker, "by another")[:2]))

    assert once.call("order-7", returns="too late", inside=stand_still) == "too late"
    assert once.call("order-7") == "by another"
    assert seen == [True]
    assert once.counted("lost") == [1]
    assert "idempotency.lost" in [event.name for event in events]


def test_what_the_codec_cannot_carry_is_an_error_that_has_the_result_and_the_call_is_not_made_again(api: Api) -> None:
    once = Once(api)
    with pytest.raises(EncodingError, match="codec 'json' cannot carry a Decimal") as first:
        once.call("order-7", returns=Decimal("1.5"))
    with pytest.raises(EncodingError, match="is not made again: codec 'json' cannot carry a Decimal") as again:
        once.call("order-7")

    assert (first.value.result, again.value.result) == (Decimal("1.5"), None)
    assert isinstance(first.value, ValueError)
    assert len(once.runs) == 1


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes", object()])
def test_nothing_is_carried_that_json_does_not_have(api: Api, value: Any) -> None:
    with pytest.raises(EncodingError, match=type(value).__name__):
        Once(api).call("order-7", returns=value)


def test_results_have_a_largest_size(api: Api) -> None:
    once = Once(api, IdempotencyConfig(max_size=100))
    once.call("fits", returns="x" * 98)
    with pytest.raises(EncodingError, match="a str of 101 bytes is larger than max_size, 100 bytes"):
        once.call("order-7", returns="x" * 99)


class Cents:
    """A codec of the user's."""

    name = "cents"

    def encode(self, value: object) -> str:
        return str(int(cast("Decimal", value) * 100))

    def decode(self, text: str) -> object:
        return Decimal(text) / 100


def test_codecs_are_the_users(api: Api) -> None:
    once = Once(api, IdempotencyConfig(codec=Cents()))

    assert [once.call("order-7", returns=Decimal("1.5")) for _ in range(2)] == [Decimal("1.5")] * 2


def test_what_another_codec_has_written_is_not_read(api: Api, other: ResilienceService) -> None:
    other.get_or_create_idempotency("orders", IdempotencyConfig(codec=Cents())).execute("order-7", Decimal, "1.5")
    with pytest.raises(EncodingError, match="codec 'json' cannot read what codec 'cents' has written"):
        Once(api).call("order-7", "1.5")


def test_another_process_replays_what_this_one_has_called(api: Api, other: ResilienceService) -> None:
    once = Once(api)
    once.call("order-7", 10, returns=[1])

    def never(amount: int) -> list[int]:
        raise AssertionError

    assert other.get_or_create_idempotency("orders").execute("order-7", never, 10) == [1]


def test_as_a_decorator_it_serves_both_forms(api: Api) -> None:
    once = api.service.get_or_create_idempotency("orders")
    runs: list[str] = []

    if api.form == "sync":

        @once.idempotent(key=lambda order, amount: order)
        def place(order: str, amount: int) -> str:
            """Places it."""
            runs.append(order)
            return f"{order} for {amount}"
    else:

        @once.idempotent(key=lambda order, amount: order)
        async def place(order: str, amount: int) -> str:
            """Places it."""
            runs.append(order)
            return f"{order} for {amount}"

    assert [api(place("a", 1)), api(place("a", amount=1)), api(place(amount=1, order="a"))] == ["a for 1"] * 3
    assert api(place("b", 1)) == "b for 1"
    assert runs == ["a", "b"]
    assert (place.__name__, place.__doc__) == ("place", "Places it.")


def test_what_cannot_be_made_once_is_told(api: Api) -> None:
    once = api.service.get_or_create_idempotency("orders")

    def numbers() -> Any:
        yield 1

    with pytest.raises(TypeError, match="generator function"):
        once.idempotent(key=lambda: "a")(numbers)
    with pytest.raises(ValueError, match="key is 'a', but must be a function"):
        once.idempotent("a")


def test_a_coroutine_function_is_for_asyncio_and_its_key_is_let_go(prefix: str) -> None:
    once = ResilienceService.local().get_or_create_idempotency("orders")

    async def place() -> None:
        """Never runs."""

    with pytest.raises(TypeError, match=r"use service\.aio"):
        once.execute("order-7", cast("Callable[[], Any]", place))
    assert once.execute("order-7", lambda: 1) == 1


def test_outside_of_a_call_there_is_no_claim(api: Api) -> None:
    with pytest.raises(LookupError, match=r"current_claim\(\) is for"):
        current_claim()
    names: list[str] = []
    once = Once(api)
    once.call("order-7", inside=lambda: names.append(f"{current_claim().name} {current_claim().key}"))
    with pytest.raises(LookupError):
        current_claim()
    assert names == ["orders order-7"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ttl", 0.5),
        ("ttl", float("nan")),
        ("lease", 0.9),
        ("lease", 3601),
        ("on_conflict", "queue"),
        ("wait_timeout", -1),
        ("fingerprint", "order"),
        ("codec", "json"),
        ("max_size", 0),
        ("max_size", 64_000_001),
        ("on_outage", "maybe"),
    ],
)
def test_a_wrong_configuration_names_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value!r}, but must be"):
        IdempotencyConfig(**{field: value})


def test_another_configuration_of_the_same_name_is_refused(api: Api) -> None:
    Once(api, IdempotencyConfig(ttl=60))
    with pytest.raises(ValueError, match="exists with another configuration"):
        Once(api, IdempotencyConfig(ttl=61))


def test_while_redis_is_away_nothing_is_called_unless_it_is_to_be(
    api: Api, place: str, redis_is_away: Callable[[], None]
) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    redis_is_away()
    once = Once(api)
    with pytest.raises(StoreUnavailableError, match="on_outage is 'raise'"):
        once.call("order-7")
    assert once.runs == []


@pytest.mark.parametrize("on_outage", ["local", "allow", "deny"])
def test_what_is_done_while_redis_is_away_is_configured(
    api: Api, place: str, redis_is_away: Callable[[], None], on_outage: Any
) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    redis_is_away()
    once = Once(api, IdempotencyConfig(on_outage=on_outage))
    if on_outage == "deny":
        assert once.conflict("order-7").reason == "denied"
        assert once.runs == []
        return
    results = [once.call("order-7") for _ in range(2)]

    assert results == ["placed"] * 2
    assert len(once.runs) == (1 if on_outage == "local" else 2)


def test_an_end_that_redis_could_not_be_told_is_told_when_it_is_back(
    api: Api, place: str, other: ResilienceService, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, once = api.runtime.process.guard, Once(api)
    monkeypatch.setattr(guard, "launch", lambda start: None)

    def lose() -> None:
        guard.usable = False

    assert once.call("order-7", returns=5, inside=lose) == 5
    assert "idempotency.untold" in [event.name for event in events]
    assert once.core.known()["untold_here"] == 1
    once.keep_up()
    guard.usable = True
    once.keep_up()

    assert once.core.known()["untold_here"] == 0
    assert other.get_or_create_idempotency("orders").execute("order-7", lambda: 6) == 5


def test_a_claim_survives_that_redis_loses_everything(
    api: Api, place: str, stores: Callable[[str], Lane], prefix: str, other: ResilienceService
) -> None:
    once = Once(api)
    client, record = stores(place).client, f"{prefix}:{{orders}}:idempotency:order-7"
    theirs = other.get_or_create_idempotency("orders", IdempotencyConfig(on_conflict="raise"))
    refused: list[str] = []

    def lose_everything() -> None:
        client.delete(record)
        api.clock.advance(11)
        for held in once.core._parties:
            step(held.keep_up(api.runtime.backends.blocking))
        with pytest.raises(IdempotencyConflictError) as conflict:
            theirs.execute("order-7", lambda: "again")
        refused.append(conflict.value.reason)

    once.call("order-7", inside=lose_everything)
    assert refused == ["running"]
    assert theirs.execute("order-7", lambda: "again") == "placed"


def test_a_result_is_kept_though_its_claim_was_lost(
    api: Api, place: str, stores: Callable[[str], Lane], prefix: str, other: ResilienceService
) -> None:
    client, record = stores(place).client, f"{prefix}:{{orders}}:idempotency:order-7"
    Once(api).call("order-7", inside=lambda: client.delete(record))

    assert other.get_or_create_idempotency("orders").execute("order-7", lambda: "again") == "placed"


def test_the_record_can_be_read_with_redis_cli(
    api: Api, place: str, stores: Callable[[str], Lane], prefix: str
) -> None:
    if place == "local":
        pytest.skip("there is no Redis to look into")
    once = Once(api, IdempotencyConfig(ttl=100))
    client, record = stores(place).client, f"{prefix}:{{orders}}:idempotency:order-7"
    running: list[dict[bytes, bytes]] = []
    once.call("order-7", returns={"id": 7}, inside=lambda: running.append(client.hgetall(record)))
    done = client.hgetall(record)

    assert running[0][b"state"] == b"running"
    assert int(running[0][b"lease_until_us"]) == int((api.clock.monotonic() + 30) * 1e6)
    assert (done[b"state"], done[b"codec"], done[b"result"]) == (b"done", b"json", b'{"id":7}')
    assert int(done[b"fencing"]) == once.runs[0]
    assert b"lease_until_us" not in done
    assert 95_000 < client.pttl(record) <= 100_000


def test_statistics_are_plain(api: Api) -> None:
    once = Once(api)
    once.call("order-7")
    once.call("order-7")
    stats = api(once.once.get_stats())

    assert stats["local"] == {"idempotency.claimed": 1, "idempotency.replayed": 1}
    assert (stats["running_here"], stats["config"]["ttl"]) == (0, 3600.0)
    assert api(api.service.get_comprehensive_stats())["idempotency"]["orders"]["local"] == stats["local"]


def test_a_call_left_to_a_thread_keeps_its_key_and_its_slot_until_it_ends() -> None:
    service = ResilienceService.local()
    once = service.get_or_create_idempotency("orders", IdempotencyConfig(on_conflict="raise"))
    timeout = service.get_or_create_adaptive_timeout(
        "orders", TimeoutConfig(ceiling=0.05, floor=0.01, enforce="thread")
    )
    bulkhead = service.get_or_create_bulkhead("orders")
    may_end = threading.Event()

    def call() -> bool:
        with bulkhead.guard():
            return timeout.execute(may_end.wait, 10)

    with pytest.raises(TimeoutError):
        once.execute("order-7", call)
    inside = bulkhead.get_stats()["inside"], once.get_stats()["running_here"]
    may_end.set()

    assert inside == (1, 1)
    poll(lambda: bulkhead.get_stats()["inside"] == 0, "the slot")
    poll(lambda: once.get_stats()["running_here"] == 0, "the claim")
    with pytest.raises(IdempotencyConflictError):
        once.execute("order-7", call)
    service.close()


def test_a_forked_child_has_none_of_its_parents_claims(api: Api) -> None:
    once = Once(api)
    result = once.call("order-7", inside=once.core.after_fork)

    assert result == "placed"  # and nothing was written by who is no longer its owner
    assert Once(api, None).core.known()["running_here"] == 0


def test_a_lost_answer_leaves_nothing_behind(
    place: str, stores: Callable[[str], Lane], prefix: str, monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    if place == "local":
        pytest.skip("no answer is lost here")
    once = Once(api)
    backend: Any = api.runtime.backends.blocking if api.form == "sync" else api.runtime.backends.suspending
    run = backend.run

    async def lose(*args: Any) -> Any:
        await run(*args)
        raise StoreUnavailableError("lost")

    backend.run = lose
    with pytest.raises(StoreUnavailableError):
        once.call("order-7")
    backend.run = run
    once.keep_up()

    assert once.call("order-7") == "placed"
    assert once.counted("taken_over") == [0]
