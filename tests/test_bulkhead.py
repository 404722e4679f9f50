"""Bulkheads: so many calls at once, the important ones first, and nothing left behind."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest
from bulkheads import Bulkhead, Waiters
from conftest import Api, Lane, runtime_on

from shared_resilience import (
    BulkheadConfig,
    BulkheadFullError,
    Event,
    PriorityLevel,
    ResilienceService,
    StoreUnavailableError,
)
from shared_resilience.bulkhead_commands import Call
from shared_resilience.testing import ManualClock

CRITICAL, HIGH, NORMAL, LOW, BACKGROUND = PriorityLevel
TWO = BulkheadConfig(2, 3)
RedisIsAway = Callable[[], None]


class BrokenError(Exception):
    """What the protected code raises."""


def refused(bulkhead: Bulkhead, priority: PriorityLevel = NORMAL, timeout: float = 0) -> BulkheadFullError:
    with pytest.raises(BulkheadFullError) as full:
        bulkhead.enter(priority, timeout)
    return full.value


def filled(bulkhead: Bulkhead, priority: PriorityLevel = NORMAL) -> int:
    """How many calls of `priority` go in until one is refused, or ten have."""
    for number in range(10):
        try:
            bulkhead.enter(priority)
        except BulkheadFullError:
            return number
    return 10


def test_no_more_go_in_than_there_are_slots_and_who_leaves_makes_room(api: Api) -> None:
    bulkhead = Bulkhead(api, TWO)
    first, second = bulkhead.enter(), bulkhead.enter()
    full = refused(bulkhead)
    bulkhead.leave(first)
    third = bulkhead.enter()

    assert (full.name, full.inside, full.waited, full.retry_after) == ("payments", 2, 0.0, 0.0)
    assert str(full) == "bulkhead 'payments' is full: 2 calls are inside"
    assert first.fencing < second.fencing < third.fencing
    assert bulkhead.crowd == (2, 0)


def test_an_error_says_how_long_it_has_waited_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(BulkheadFullError("payments", 3, 1.25)))  # our own

    assert str(error) == "bulkhead 'payments' is full: 3 calls are inside, and this one has waited 1.250 s"
    assert (error.name, error.inside, error.waited) == ("payments", 3, 1.25)


def test_execute_passes_all_arguments_but_the_priority_to_the_function(api: Api) -> None:
    bulkhead = Bulkhead(api, TWO)

    def blocking(*args: object, **kwargs: object) -> object:
        return args, kwargs, bulkhead.core.known()["inside_here"]

    async def suspending(*args: object, **kwargs: object) -> object:
        return blocking(*args, **kwargs)

    function: Any = blocking if api.form == "sync" else suspending
    result = api(bulkhead.bulkhead.execute(function, 5, "a", priority=HIGH, currency="EUR"))

    assert result == ((5, "a"), {"currency": "EUR"}, 1)
    assert bulkhead.crowd == (0, 0)


@pytest.mark.parametrize("error", [BrokenError(), KeyboardInterrupt(), StopIteration(5)])
def test_whatever_a_function_raises_passes_and_frees_its_slot(api: Api, error: BaseException) -> None:
    bulkhead = Bulkhead(api, TWO)

    def blocking() -> None:
        raise error

    async def suspending() -> None:
        raise error

    # Python makes a RuntimeError of a StopIteration that leaves a coroutine.
    expected = RuntimeError if api.form == "asyncio" and isinstance(error, StopIteration) else type(error)
    function: Any = blocking if api.form == "sync" else suspending
    with pytest.raises(expected):
        api(bulkhead.bulkhead.execute(function))

    assert bulkhead.crowd == (0, 0)


def test_the_decorator_serves_functions_and_coroutine_functions(api: Api) -> None:
    bulkhead = Bulkhead(api, TWO)
    inside = []

    @bulkhead.bulkhead  # type: ignore[untyped-decorator]
    def blocking(a: int, *, b: int) -> int:
        """Adds."""
        inside.append(bulkhead.core.known()["inside_here"])
        return a + b

    @bulkhead.bulkhead  # type: ignore[untyped-decorator]
    async def suspending(a: int, *, b: int) -> int:
        inside.append(bulkhead.core.known()["inside_here"])
        return a + b

    assert (blocking.__name__, blocking.__doc__) == ("blocking", "Adds.")
    assert blocking(1, b=2) == 3
    if api.form == "asyncio":
        assert api(suspending(1, b=2)) == 3
    assert set(inside) == {1}


def test_a_generator_function_cannot_be_decorated(api: Api) -> None:
    def numbers() -> Any:
        yield 1

    with pytest.raises(TypeError, match=r"use `with guard\(\):` inside it instead"):
        Bulkhead(api).bulkhead(numbers)


def test_a_coroutine_function_is_not_executed_by_the_blocking_form() -> None:
    async def suspending() -> None:
        raise AssertionError("ran")

    with ResilienceService.local() as service:
        bulkhead = service.get_or_create_bulkhead("payments")
        with pytest.raises(TypeError, match=r"is a coroutine function: use the bulkhead of service\.aio for it"):
            bulkhead.execute(cast("Callable[[], Any]", suspending))
        assert bulkhead.get_stats()["inside"] == 0


def test_waiters_go_in_by_priority_and_then_by_arrival(api: Api) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1, 10))
    inside, waiters = bulkhead.enter(), Waiters(bulkhead)
    waiters.wait("low", LOW)
    waiters.wait("first")
    waiters.wait("second")
    waiters.wait("critical", CRITICAL)
    waiters.wait("high", HIGH)
    bulkhead.leave(inside)
    waiters.finish()

    assert waiters.went_in == ["critical", "high", "first", "second", "low"]
    assert bulkhead.crowd == (0, 0)
    assert bulkhead.stats()["local"]["bulkhead.waited"] == 5


def test_a_newcomer_never_passes_a_waiter_of_its_priority_but_one_of_a_lower(api: Api) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1, 10))
    commands, inside = bulkhead.core.commands, bulkhead.enter()
    somebody = commands.enter(Call("somebody:x:30000", NORMAL, may_wait=True, place=None))
    entry = bulkhead.run(bulkhead.backend.run(somebody, bulkhead.core.resource))
    bulkhead.leave(inside)

    assert entry.state == "waiting"
    assert [refused(bulkhead, priority).inside for priority in (NORMAL, LOW)] == [0, 0]
    bulkhead.leave(bulkhead.enter(HIGH))
    api.clock.advance(2)
    assert bulkhead.enter()


def test_the_queue_is_bounded(api: Api) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1, 2))
    inside, waiters = bulkhead.enter(), Waiters(bulkhead)
    waiters.wait("a")
    waiters.wait("b")

    assert refused(bulkhead, CRITICAL, 60).waited == 0
    bulkhead.leave(inside)
    waiters.finish()
    assert waiters.went_in == ["a", "b"]


def test_who_waits_in_vain_is_refused_and_leaves_the_queue(api: Api) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1, 2))
    bulkhead.enter()
    waiters = Waiters(bulkhead)
    waiters.wait("a", timeout=0.2)
    waiters.finish()

    assert isinstance(waiters.raised["a"], BulkheadFullError)
    assert bulkhead.crowd == (1, 0)


def test_a_task_that_is_cancelled_while_it_waits_leaves_the_queue(api: Api) -> None:
    if api.form == "sync":
        pytest.skip("threads are not cancelled")
    bulkhead = Bulkhead(api, BulkheadConfig(1, 2))
    inside, waiters = bulkhead.enter(), Waiters(bulkhead)
    waiters.wait("a")
    waiters.cancel()
    waiters.finish()
    waiters.until(lambda: bulkhead.crowd == (1, 0))
    bulkhead.leave(inside)

    assert isinstance(waiters.raised["a"], asyncio.CancelledError)
    assert bulkhead.enter()


def test_slots_that_are_reserved_are_left_to_more_important_calls(api: Api) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(10, reserved={CRITICAL: 0.2, NORMAL: 0.3}))

    assert [filled(bulkhead, priority) for priority in reversed(PriorityLevel)] == [5, 0, 3, 0, 2]


def test_of_one_slot_nothing_can_be_reserved(api: Api) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1, reserved={CRITICAL: 0.9}))

    assert bulkhead.enter(BACKGROUND)


def test_in_shadow_mode_nothing_is_refused_and_nobody_waits(api: Api, events: list[Event]) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1, shadow=True))
    permits = [bulkhead.enter(timeout=60) for _ in range(3)]

    assert bulkhead.crowd == (1, 0)
    assert [event.name for event in events] == ["bulkhead.shadow_refused"] * 2
    assert not any(permit.lost for permit in permits)
    for permit in permits:
        bulkhead.leave(permit)
    assert bulkhead.crowd == (0, 0)
    counted = bulkhead.stats()["local"]
    assert (counted["bulkhead.entered"], counted["bulkhead.shadow_refused"]) == (1, 2)


def test_a_refusal_is_counted_and_told(api: Api, events: list[Event]) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1))
    bulkhead.enter()
    refused(bulkhead, HIGH)

    assert [(event.name, event.resource, dict(event.details)) for event in events] == [
        ("bulkhead.refused", "payments", {"priority": HIGH, "inside": 1, "waited": 0.0})
    ]
    assert bulkhead.stats()["local"]["bulkhead.refused"] == 1


def test_a_slot_whose_lease_is_over_is_another_s_and_the_permit_says_so(api: Api, place: str) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1, lease=10))
    permit = bulkhead.enter()
    api.clock.advance(9.9)
    refused(bulkhead)
    lost_before = permit.lost
    api.clock.advance(0.1)
    other = bulkhead.enter()
    bulkhead.leave(permit)

    assert not lost_before
    assert permit.lost is (place != "local")
    assert bulkhead.crowd == (1, 0)
    bulkhead.leave(other)
    assert bulkhead.crowd == (0, 0)


def test_leases_are_renewed_while_the_call_runs(api: Api) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1, lease=3))
    permit = bulkhead.enter()
    for _ in range(5):
        api.clock.advance(1)
        bulkhead.keep_up()
        refused(bulkhead)

    assert not permit.lost


def test_a_lease_that_another_has_taken_is_lost_and_told_of(api: Api, place: str, events: list[Event]) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1, lease=3))
    permit = bulkhead.enter()
    api.clock.advance(3)
    bulkhead.enter()
    bulkhead.keep_up()

    if place != "local":
        assert [(event.name, event.details["token"]) for event in events] == [("bulkhead.lost", permit.token)]
        assert bulkhead.stats()["local"]["bulkhead.lost"] == 1
    assert permit.lost is (place != "local")
    assert bulkhead.crowd == (1, 0)


def test_an_operator_changes_the_number_of_slots(api: Api) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(2, 1))
    api(api.service.set_override("payments", "bulkhead.max_concurrent_calls", 3))
    api(api.service.set_override("payments", "bulkhead.max_queue_size", 2))
    waiters = Waiters(bulkhead)

    assert filled(bulkhead) == 3
    waiters.wait("a", timeout=0.3)
    waiters.wait("b", timeout=0.3)
    assert refused(bulkhead, timeout=60).inside == 3
    waiters.finish()
    assert bulkhead.stats()["overrides"] == {"bulkhead.max_concurrent_calls": "3", "bulkhead.max_queue_size": "2"}
    api(api.service.clear_override("payments", "bulkhead.max_concurrent_calls"))
    refused(bulkhead)


@pytest.mark.parametrize("field", ["bulkhead.lease", "bulkhead.max", "max_queue_size"])
def test_what_cannot_be_overridden_is_named(api: Api, field: str) -> None:
    with pytest.raises(ValueError, match=f"field is '{field}', but "):
        api(api.service.set_override("payments", field, 1))


def test_a_size_that_is_no_count_is_refused(api: Api) -> None:
    with pytest.raises(ValueError, match=r"bulkhead\.max_queue_size is 1\.5, but must be an integer"):
        api(api.service.set_override("payments", "bulkhead.max_queue_size", 1.5))


def test_a_bulkhead_has_one_configuration(api: Api) -> None:
    bulkhead = Bulkhead(api, TWO)

    assert Bulkhead(api).core is bulkhead.core
    assert Bulkhead(api, BulkheadConfig(2, 3)).core is bulkhead.core
    with pytest.raises(ValueError, match=r"bulkhead 'payments' exists with another configuration: .*\(max_concurrent_"):
        Bulkhead(api, BulkheadConfig(3, 3))
    with pytest.raises(ValueError, match="config is 5, but must be a BulkheadConfig"):
        api.service.get_or_create_bulkhead("other", 5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_concurrent_calls", value) for value in (0, -1, 1.5, True, 10**6 + 1)),
        *(("max_queue_size", value) for value in (0, "5", 10**6 + 1)),
        *(("timeout", value) for value in (-1, float("nan"), "1")),
        *(("lease", value) for value in (0.99, 3601, 0, True)),
        *(("reserved", value) for value in ({HIGH: 1.0}, {BACKGROUND: 0.1}, 5)),
        *(("local", value) for value in (1, None)),
        ("on_outage", "maybe"),
        ("shadow", 0),
    ],
)
def test_a_wrong_value_is_named_with_its_field_and_range(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} is .*, but must be "):
        BulkheadConfig(**{field: value})


@pytest.mark.parametrize("priority", [0, 6, "HIGH", None])
def test_a_priority_that_is_none_is_refused(api: Api, priority: Any) -> None:
    with pytest.raises(ValueError, match=r"^priority is "):
        Bulkhead(api).bulkhead.guard(priority)


def test_a_wait_that_is_no_time_is_refused(api: Api) -> None:
    with pytest.raises(ValueError, match=r"^timeout is -1, but must be a number of seconds"):
        Bulkhead(api).bulkhead.guard(timeout=-1)


def test_a_local_bulkhead_is_one_of_this_process_alone(api: Api, place: str, stores: Any, prefix: str) -> None:
    bulkhead = Bulkhead(api, BulkheadConfig(1, local=True))
    bulkhead.enter()
    refused(bulkhead)

    assert bulkhead.crowd == (1, 0)
    if place != "local":
        assert not stores(place).client.exists(f"{prefix}:{{payments}}:bulkhead")


def test_two_processes_share_the_slots(api: Api, other: ResilienceService) -> None:
    bulkhead = Bulkhead(api, TWO)
    with other.get_or_create_bulkhead("payments", TWO).guard(timeout=0):
        permit = bulkhead.enter()
        refused(bulkhead)
    bulkhead.leave(permit)
    assert bulkhead.crowd == (0, 0)


def test_what_stands_in_redis_is_readable(store: Lane, prefix: str) -> None:
    service = ResilienceService._of(runtime_on(store, prefix, ManualClock()))
    bulkhead = service.get_or_create_bulkhead("payments", BulkheadConfig(1, lease=20, reserved={HIGH: 0.25}))
    with bulkhead.guard() as permit:
        (holder,) = store.client.zrange(f"{prefix}:{{payments}}:bulkhead", 0, -1, withscores=True)
        fencing = store.client.get(f"{prefix}:{{payments}}:fencing")
    config = store.client.hgetall(f"{prefix}:{{payments}}:config")
    service.close()

    token, end = holder
    assert token.decode() == permit.token
    assert token.decode().startswith(f"{service._runtime.process.heartbeat.worker_id}:")
    assert token.endswith(b":20000")
    assert int(end) == 1_000_020_000_000
    assert int(fencing) == permit.fencing == 1_000_000_000_000
    assert {field.decode(): float(value) for field, value in config.items()} == {
        "bulkhead.max_concurrent_calls": 1,
        "bulkhead.max_queue_size": 200,
        "bulkhead.timeout": 30,
        "bulkhead.lease": 20,
        "bulkhead.reserved.high": 0.25,
    }


@pytest.mark.parametrize(("on_outage", "enters"), [("allow", 10), ("deny", 0), ("local", 2)])
def test_without_redis_it_goes_on_as_it_was_told(
    api: Api, place: str, redis_is_away: RedisIsAway, on_outage: Any, enters: int
) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    bulkhead = Bulkhead(api, BulkheadConfig(2, on_outage=on_outage))
    redis_is_away()

    assert filled(bulkhead) == enters


def test_without_redis_it_raises_where_it_was_told_to(api: Api, place: str, redis_is_away: RedisIsAway) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    bulkhead = Bulkhead(api, BulkheadConfig(2, on_outage="raise"))
    permit = bulkhead.enter()
    redis_is_away()

    with pytest.raises(StoreUnavailableError):
        bulkhead.enter()
    bulkhead.leave(permit)


def test_slots_of_redis_count_for_the_share_while_it_is_away(api: Api, place: str, redis_is_away: RedisIsAway) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    bulkhead = Bulkhead(api, BulkheadConfig(3))
    held = [bulkhead.enter() for _ in range(2)]
    redis_is_away()
    local = bulkhead.enter()
    refused(bulkhead)
    bulkhead.leave(held[0])
    again = bulkhead.enter()

    assert (local.source, again.source) == ("local", "local")
    refused(bulkhead)


def test_who_leaves_while_redis_is_away_is_gone_when_it_is_back(
    api: Api, place: str, redis_is_away: RedisIsAway
) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    bulkhead = Bulkhead(api, BulkheadConfig(3))
    permit, other = bulkhead.enter(), bulkhead.enter()
    redis_is_away()
    bulkhead.leave(permit)
    api.runtime.process.guard.usable = True
    api.clock.advance(1)
    bulkhead.keep_up()

    assert bulkhead.crowd == (1, 0)
    assert not other.lost


def test_who_went_in_while_redis_was_away_leaves_here_too_when_it_is_back(
    api: Api, place: str, redis_is_away: RedisIsAway
) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    bulkhead = Bulkhead(api, BulkheadConfig(2))
    redis_is_away()
    permit = bulkhead.enter()
    api.runtime.process.guard.usable = True
    bulkhead.leave(permit)

    assert bulkhead.crowd == (0, 0)
    redis_is_away()
    assert filled(bulkhead) == 2


def test_redis_hears_of_who_went_in_while_it_was_away(api: Api, place: str, redis_is_away: RedisIsAway) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    bulkhead = Bulkhead(api, BulkheadConfig(2, lease=30))
    redis_is_away()
    permit = bulkhead.enter()
    api.runtime.process.guard.usable = True
    api.clock.advance(1)
    bulkhead.keep_up()

    assert (bulkhead.crowd, permit.source, permit.lost) == ((1, 0), "redis", False)
    api.clock.advance(30)
    assert permit.lost
