"""The circuit breaker in both forms, on every server and without one."""

from __future__ import annotations

import asyncio
import inspect
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from conftest import Api, Lane, runtime_on

from shared_resilience import (
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    CircuitState,
    Event,
    RateLimitExceeded,
    ResilienceService,
    TokenBucket,
)
from shared_resilience.circuit_commands import View
from shared_resilience.testing import ManualClock

CONFIG = CircuitBreakerConfig(jitter=0)


class DownError(Exception):
    """What the dependency raises."""


class Dependency:
    """What is called: a function in the form of `api`, which raises or returns what it is told."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.calls = 0
        self.result: object = "fine"
        self.error: BaseException | None = None
        self.seconds = 0.0
        self.function: Callable[..., Any] = self._suspending if api.form == "asyncio" else self._blocking

    def _blocking(self, *args: object) -> object:
        self.calls += 1
        self.api.clock.advance(self.seconds)
        if self.error is not None:
            raise self.error
        return self.result

    async def _suspending(self, *args: object) -> object:
        return self._blocking(*args)


class Breaker:
    """A breaker around a dependency, and shorthands for what tests do with it."""

    def __init__(self, api: Api, config: CircuitBreakerConfig = CONFIG, name: str = "payments") -> None:
        self.api = api
        self.breaker = api.service.get_or_create_circuit_breaker(name, config)
        self.dependency = Dependency(api)
        self.clock = api.clock

    def call(self) -> Any:
        return self.api(self.breaker.call(self.dependency.function))

    def succeed(self, times: int = 1) -> None:
        self.dependency.error = None
        for _ in range(times):
            self.call()

    def fail(self, times: int = 1, error: BaseException | None = None) -> None:
        self.dependency.error = error or DownError()
        for _ in range(times):
            with pytest.raises(type(self.dependency.error)):
                self.call()
        self.dependency.error = None

    def refusal(self) -> CircuitBreakerOpenError:
        before = self.dependency.calls
        with pytest.raises(CircuitBreakerOpenError) as refused:
            self.call()
        assert self.dependency.calls == before
        return refused.value

    @property
    def state(self) -> str:
        return str(self.breaker.state.value)

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.api(self.breaker.get_stats())
        return stats

    def half_open(self, probes: int = 0) -> Breaker:
        self.fail(self.breaker._core.config.failure_threshold)
        self.clock.advance(self.breaker._core.config.timeout_seconds)
        self.succeed(probes)
        return self


@pytest.fixture
def events(api: Api) -> list[Event]:
    heard: list[Event] = []
    api.runtime.process.events.add([heard.append])
    return heard


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def test_a_closed_circuit_returns_what_the_function_returns_and_raises_what_it_raises(api: Api) -> None:
    breaker = Breaker(api)
    error = breaker.dependency.error = DownError("it was me")

    with pytest.raises(DownError) as raised:
        breaker.call()
    breaker.dependency.error = None

    assert raised.value is error
    assert breaker.call() == "fine"
    assert breaker.state == "closed"


def test_the_threshold_opens_the_circuit_and_refused_calls_do_not_reach_the_function(api: Api) -> None:
    breaker = Breaker(api)
    breaker.fail(4)
    before = breaker.breaker.state
    breaker.fail()

    refused = breaker.refusal()

    assert (before, breaker.breaker.state) == (CircuitState.CLOSED, CircuitState.OPEN)
    assert refused.name == "payments"
    assert refused.retry_after == pytest.approx(60)
    assert str(refused) == "circuit 'payments' is open: retry after 60.000 s"
    assert breaker.dependency.calls == 5


def test_a_refusal_survives_pickling() -> None:
    refused = pickle.loads(pickle.dumps(CircuitBreakerOpenError("payments", 1.5)))

    assert (type(refused), refused.name, refused.retry_after) == (CircuitBreakerOpenError, "payments", 1.5)


def test_few_failures_among_many_calls_never_open_the_circuit(api: Api) -> None:
    breaker = Breaker(api)
    for _ in range(20):
        breaker.succeed(99)
        breaker.fail()
        api.clock.advance(0.1)

    assert breaker.state == "closed"
    assert breaker.stats()["failures"] == 20


def test_failures_that_left_the_window_are_forgotten(api: Api) -> None:
    breaker = Breaker(api)
    breaker.fail(4)
    api.clock.advance(11)
    breaker.fail(4)

    assert breaker.state == "closed"


def test_fewer_calls_than_the_minimum_open_nothing(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(minimum_calls=8))
    breaker.fail(7)
    before = breaker.state
    breaker.fail()

    assert (before, breaker.state) == ("closed", "open")


def test_an_open_circuit_lets_probes_pass_when_its_time_is_over_and_their_success_closes_it(api: Api) -> None:
    breaker = Breaker(api)
    breaker.fail(5)
    api.clock.advance(59.9)
    still = breaker.refusal().retry_after
    api.clock.advance(0.1)

    breaker.succeed(2)
    after_two = breaker.state
    breaker.succeed()

    assert still == pytest.approx(0.1)
    assert (after_two, breaker.state) == ("half_open", "closed")


def test_a_failing_probe_opens_it_again_for_longer_each_time_up_to_a_limit(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(jitter=0, max_open_seconds=200))
    breaker.fail(5)
    waits = []
    for _ in range(4):
        waits.append(round(breaker.refusal().retry_after))
        api.clock.advance(waits[-1])
        breaker.fail()
    breaker.clock.advance(200)
    breaker.succeed(3)
    breaker.fail(5)

    assert waits == [60, 120, 200, 200]
    assert breaker.refusal().retry_after == pytest.approx(60)


def test_jitter_stretches_the_open_time_by_no_more_than_its_share(api: Api) -> None:
    waits = []
    for number in range(20):
        breaker = Breaker(api, CircuitBreakerConfig(jitter=0.5), name=f"r{number}")
        breaker.fail(5)
        waits.append(breaker.refusal().retry_after)

    assert min(waits) >= 60 - 1e-6
    assert max(waits) <= 90
    assert len(set(waits)) > 10


def enter(api: Api, breaker: Breaker) -> Any:
    """A guard that has been entered, as by a call that does not end."""
    guard = breaker.breaker.guard()
    api(guard.__enter__() if api.form == "sync" else guard.__aenter__())
    return guard


def leave(api: Api, guard: Any, error: BaseException | None = None) -> None:
    kind = None if error is None else type(error)
    api(guard.__exit__(kind, error, None) if api.form == "sync" else guard.__aexit__(kind, error, None))


def test_no_more_probes_than_allowed_are_in_flight(api: Api) -> None:
    breaker = Breaker(api).half_open()
    guards = [enter(api, breaker) for _ in range(3)]

    refused = breaker.refusal()
    leave(api, guards[0])
    breaker.succeed()

    assert 0 < refused.retry_after <= 0.1
    assert breaker.state == "half_open"
    leave(api, guards[1])
    assert breaker.state == "closed"


def test_a_probe_that_never_ends_frees_its_place_with_its_lease_and_its_late_result_changes_nothing(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(half_open_max_calls=1, success_threshold=2)).half_open()
    api.clock.advance(10)
    lost = enter(api, breaker)
    breaker.refusal()
    api.clock.advance(30)

    breaker.succeed()
    leave(api, lost, DownError())

    assert breaker.state == "half_open"
    breaker.succeed()
    assert breaker.state == "closed"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit(), SystemExit()])
def test_what_is_no_exception_counts_as_nothing_and_gives_the_probe_back(api: Api, error: BaseException) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(jitter=0, half_open_max_calls=1)).half_open()
    guard = enter(api, breaker)

    leave(api, guard, error)
    if api.form == "asyncio":
        api(asyncio.sleep(0.0))
        api(settled(breaker))

    assert breaker.stats()["probes"] == 0
    breaker.succeed(3)
    assert breaker.state == "closed"


async def settled(breaker: Breaker) -> None:
    """Waits for what the breaker does in the background."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    await asyncio.gather(*others)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), SystemExit()])
def test_what_is_no_exception_is_no_failure_of_a_closed_circuit(api: Api, error: BaseException) -> None:
    breaker = Breaker(api)
    for _ in range(6):
        leave(api, enter(api, breaker), error)

    assert (breaker.state, breaker.stats()["calls"]) == ("closed", 0)


def test_ignored_exceptions_count_as_nothing_and_unexpected_ones_as_answers(api: Api) -> None:
    config = CircuitBreakerConfig(expected_exceptions=(OSError,), ignored_exceptions=(FileNotFoundError,))
    breaker = Breaker(api, config)
    breaker.fail(6, FileNotFoundError())
    breaker.fail(6, ValueError())
    before = breaker.stats()
    breaker.fail(6, OSError())
    after = breaker.stats()

    assert (before["calls"], before["failures"]) == (6, 0)
    assert (after["state"], after["failures"]) == ("open", 6)


def test_refusals_of_this_library_are_no_failures_of_the_dependency(api: Api) -> None:
    breaker = Breaker(api)
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(1, 0.001))
    decision = api(limiter.try_acquire(cost=1))
    breaker.fail(9, RateLimitExceeded("search", "", decision))
    breaker.fail(9, CircuitBreakerOpenError("other", 1.0))

    assert (breaker.state, breaker.stats()["calls"]) == ("closed", 0)


def test_is_failure_judges_what_is_returned(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(is_failure=lambda result: result == 503))
    breaker.dependency.result = 503

    assert [breaker.call() for _ in range(5)] == [503] * 5
    assert breaker.state == "open"


def test_an_error_in_is_failure_counts_as_nothing(api: Api) -> None:
    def broken(result: object) -> bool:
        raise DownError

    breaker = Breaker(api, CircuitBreakerConfig(is_failure=broken))
    for _ in range(6):
        with pytest.raises(DownError):
            breaker.call()

    assert (breaker.state, breaker.stats()["calls"]) == ("closed", 0)


def test_slow_calls_open_the_circuit_by_their_rate(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(window=60, slow_call_seconds=2, slow_call_rate=0.5))
    breaker.succeed(5)
    breaker.dependency.seconds = 1.9
    breaker.succeed(1)
    breaker.dependency.seconds = 2.0
    for _ in range(4):
        breaker.succeed()
    breaker.clock.advance(0.2)
    fewer = breaker.stats()["state"]
    breaker.succeed(2)
    breaker.clock.advance(0.2)

    breaker.refusal()
    assert fewer == "closed"
    assert breaker.stats()["failures"] == 0


def test_a_slow_probe_has_failed_if_there_is_a_slow_call_rate(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(jitter=0, slow_call_seconds=2, slow_call_rate=0.5)).half_open()
    breaker.dependency.seconds = 2.0
    breaker.succeed()

    assert breaker.state == "open"


def test_a_quick_probe_has_succeeded_and_a_slow_one_too_where_no_rate_is_asked_for(api: Api) -> None:
    quick = Breaker(api, CircuitBreakerConfig(jitter=0, slow_call_seconds=2, slow_call_rate=0.5)).half_open(probes=3)
    slow = Breaker(api, CircuitBreakerConfig(jitter=0, slow_call_seconds=2), name="search").half_open()
    slow.dependency.seconds = 2.0
    slow.succeed(3)

    assert (quick.state, slow.state) == ("closed", "closed")


def test_a_slow_probe_that_is_cancelled_has_not_failed(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(jitter=0, slow_call_seconds=2, slow_call_rate=0.5)).half_open()
    guard = enter(api, breaker)
    api.clock.advance(3)
    leave(api, guard, KeyboardInterrupt())

    assert breaker.state == "half_open"


def test_shadow_mode_refuses_nothing_and_tells_what_would_have_been(api: Api, events: list[Event]) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(shadow=True, jitter=0))
    breaker.fail(5)
    breaker.succeed(4)
    state = breaker.state
    breaker.clock.advance(60)
    breaker.succeed(3)

    assert (state, breaker.state) == ("open", "closed")
    assert breaker.dependency.calls == 12
    assert [event.details["shadow"] for event in events if event.name == "breaker.opened"] == [True]
    assert breaker.stats()["local"]["breaker.shadow_refused"] == 4


def test_force_open_refuses_until_a_reset(api: Api) -> None:
    breaker = Breaker(api)
    api(breaker.breaker.force_open())
    breaker.clock.advance(10_000)

    refused = breaker.refusal()
    stats = breaker.stats()
    api(breaker.breaker.reset())
    breaker.succeed()

    assert refused.retry_after == math.inf
    assert (stats["state"], stats["mode"]) == ("open", "forced_open")
    assert breaker.stats()["mode"] is None


def test_force_closed_lets_everything_pass_and_counts_nothing(api: Api) -> None:
    breaker = Breaker(api)
    breaker.fail(5)
    api(breaker.breaker.force_closed())
    breaker.fail(9)
    breaker.clock.advance(1)
    stats = breaker.stats()

    assert (stats["state"], stats["mode"], stats["calls"]) == ("closed", "forced_closed", 0)


def test_metrics_only_lets_everything_pass_and_counts_it(api: Api) -> None:
    breaker = Breaker(api)
    api(breaker.breaker.metrics_only())
    breaker.fail(9)
    breaker.clock.advance(1)
    stats = breaker.stats()

    assert (stats["state"], stats["mode"], stats["failures"]) == ("closed", "metrics_only", 9)


def test_a_reset_forgets_what_was_seen(api: Api) -> None:
    breaker = Breaker(api)
    breaker.fail(4)
    api(breaker.breaker.reset())
    breaker.fail(4)

    assert (breaker.state, breaker.stats()["failures"]) == ("closed", 4)


def test_a_late_result_from_before_the_circuit_opened_changes_nothing(api: Api) -> None:
    breaker = Breaker(api)
    late = [enter(api, breaker) for _ in range(6)]
    breaker.half_open(probes=3)
    before = breaker.stats()
    for guard in late:
        leave(api, guard, DownError())
    after = breaker.stats()

    assert (before["state"], before["failures"]) == (after["state"], after["failures"]) == ("closed", 0)


def test_a_slow_block_is_a_slow_call(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(slow_call_seconds=2))
    for seconds, error in ((1.9, None), (2.0, None), (2.0, DownError())):
        guard = enter(api, breaker)
        api.clock.advance(seconds)
        leave(api, guard, error)
    stats = breaker.stats()

    assert (stats["calls"], stats["slow_calls"], stats["failures"]) == (3, 2, 1)
    assert stats["local"]["breaker.slow"] == 2


def test_guard_counts_a_block_as_a_call(api: Api) -> None:
    breaker = Breaker(api)
    for _ in range(5):
        leave(api, enter(api, breaker), DownError())

    with pytest.raises(CircuitBreakerOpenError):
        enter(api, breaker)


def test_the_decorator_serves_both_kinds_of_functions_and_keeps_what_they_are(api: Api) -> None:
    breaker = Breaker(api)
    service = api.service

    @service.get_or_create_circuit_breaker("payments")
    def charge(amount: int, *, currency: str = "EUR") -> str:
        """Charges."""
        return f"{amount} {currency}"

    @breaker.breaker
    async def refund(amount: int, *, fee: int = 0) -> int:
        return -amount - fee

    assert charge(5, currency="USD") == "5 USD"
    assert asyncio.run(_await(refund(5, fee=1))) == -6
    assert (charge.__name__, charge.__doc__) == ("charge", "Charges.")
    assert str(inspect.signature(charge)) == "(amount: 'int', *, currency: 'str' = 'EUR') -> 'str'"
    assert inspect.iscoroutinefunction(refund)


async def _await(value: Any) -> Any:
    return await value


def test_generator_functions_and_classes_are_refused_with_what_to_do_instead(api: Api) -> None:
    breaker = Breaker(api).breaker

    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"generator function.*guard\(\)"):
        breaker(rows)
    with pytest.raises(TypeError, match="is not a function"):
        breaker(Dependency)


def test_other_numbers_than_those_of_the_existing_breaker_are_an_error_that_shows_both(api: Api) -> None:
    breaker = Breaker(api)

    assert api.service.get_or_create_circuit_breaker("payments").name == breaker.breaker.name
    assert api.service.get_or_create_circuit_breaker("payments", CircuitBreakerConfig(jitter=0)).state == "closed"
    with pytest.raises(ValueError, match=r"exists with another configuration.*jitter=0.*failure_threshold=6"):
        api.service.get_or_create_circuit_breaker("payments", CircuitBreakerConfig(6))
    with pytest.raises(ValueError, match="config is 5, but must be a CircuitBreakerConfig"):
        api.service.get_or_create_circuit_breaker("payments", 5)


def test_an_override_changes_a_number_for_all_and_a_wrong_one_is_reported_once(api: Api, events: list[Event]) -> None:
    breaker = Breaker(api)
    api(api.service.set_override("payments", "breaker.failure_threshold", 2))
    breaker.fail(2)
    state = breaker.state
    api(breaker.breaker.reset())
    api(api.service.clear_override("payments", "breaker.failure_threshold"))
    breaker.fail(4)

    assert (state, breaker.state) == ("open", "closed")
    for field, number in [("breaker.failure_threshold", 0), ("breaker.jitter", 1.5), ("breaker.nothing", 1)]:
        with pytest.raises(ValueError, match=field):
            api(api.service.set_override("payments", field, number))


def test_events_tell_of_each_change_with_the_evidence(api: Api, events: list[Event]) -> None:
    breaker = Breaker(api)
    breaker.succeed(2)
    breaker.half_open(probes=3)

    assert names(events) == ["breaker.opened", "breaker.half_opened", "breaker.closed"]
    assert {event.resource for event in events} == {"payments"}
    opened = events[0].details
    assert (opened["calls"], opened["failures"], opened["trips"]) == (7, 5, 1)
    assert opened["workers"] == (api.runtime.process.heartbeat.worker_id,)
    assert opened["observed"] is False


def test_a_reopening_names_the_worker_whose_probe_failed(api: Api, events: list[Event]) -> None:
    Breaker(api).half_open().fail()

    opened = events[-1].details
    assert (opened["calls"], opened["failures"], opened["trips"]) == (1, 1, 2)
    assert opened["workers"] == (api.runtime.process.heartbeat.worker_id,)


OF_A_CHANGE = {"mode", "shadow", "generation", "retry_after", "calls", "failures", "slow_calls", "workers", "trips"}
OF_A_CHANGE |= {"source"}


def test_statistics_and_events_have_these_fields(api: Api, events: list[Event]) -> None:
    breaker = Breaker(api)
    before = breaker.breaker._core.known()
    breaker.half_open(probes=1)
    half_open = breaker.stats()
    breaker.fail()
    opened = breaker.stats()
    for _ in range(4):
        breaker.refusal()
    api.clock.advance(1)
    breaker.refusal()
    api(breaker.breaker.force_open())
    forced = breaker.stats()

    always = {"state", "mode", "config", "overrides", "local", "fleet", "live_workers"}
    assert set(before) == always
    assert set(opened) == always | OF_A_CHANGE | {"probes", "successes"}
    assert all(set(event.details) == OF_A_CHANGE | {"observed"} for event in events)
    assert (before["state"], before["mode"], half_open["successes"]) == ("closed", None, 1)
    assert half_open["workers"] == opened["workers"] == [api.runtime.process.heartbeat.worker_id]
    assert opened["retry_after"] == pytest.approx(120)
    assert forced["retry_after"] is None
    assert (forced["local"]["breaker.refused"], forced["local"]["breaker.probes"]) == (5, 2)
    assert events[0].details["retry_after"] == pytest.approx(60)


def test_statistics_show_the_overrides_of_the_breaker_alone(api: Api) -> None:
    api.service.get_or_create_rate_limiter("payments", TokenBucket(10, 1))
    breaker = Breaker(api)
    api(api.service.set_override("payments", "breaker.window", 20))
    api(api.service.set_override("payments", "limit.token_bucket.capacity", 20))

    assert breaker.stats()["overrides"] == {"breaker.window": "20.000000"}


def test_statistics_hold_the_circuit_the_counters_and_the_numbers(api: Api) -> None:
    breaker = Breaker(api)
    breaker.succeed(3)
    breaker.fail()
    stats = breaker.stats()
    comprehensive = api(api.service.get_comprehensive_stats())

    assert (stats["state"], stats["calls"], stats["failures"]) == ("closed", 4, 1)
    assert stats["local"] == {"breaker.calls": 4, "breaker.failures": 1}
    assert stats["config"]["failure_threshold"] == 5
    assert comprehensive["circuit_breakers"]["payments"]["calls"] == 4
    assert repr(breaker.breaker).endswith("CircuitBreaker('payments', closed)")


class Counting:
    """Counts the commands that a process sends."""

    def __init__(self, api: Api) -> None:
        self.backend = api.runtime.backends.blocking if api.form == "sync" else api.runtime.backends.suspending
        self.run, self.sent = self.backend.run, 0
        self.backend.run = self._run  # type: ignore[method-assign]

    async def _run(self, *args: Any, **kwargs: Any) -> Any:
        self.sent += 1
        return await self.run(*args, **kwargs)

    def of(self, act: Callable[[], object]) -> int:
        before = self.sent
        act()
        return self.sent - before


def test_a_closed_circuit_costs_one_command_per_sync_interval_and_one_per_failure(api: Api) -> None:
    breaker, counting = Breaker(api), Counting(api)
    first = counting.of(lambda: breaker.succeed(20))
    api.clock.advance(0.11)
    second = counting.of(lambda: breaker.succeed(20))
    failing = counting.of(lambda: breaker.fail(3))
    within = counting.of(lambda: breaker.succeed(20))

    assert (first, second, failing, within) == (1, 1, 0, 0)
    api.clock.advance(20)
    assert counting.of(lambda: breaker.fail(3)) == 1 + 3


def test_what_was_seen_before_the_last_window_is_told_to_nobody(api: Api) -> None:
    breaker = Breaker(api)
    breaker.succeed(50)
    api.clock.advance(10.1)
    breaker.succeed()

    assert breaker.stats()["calls"] == 1


def test_an_open_circuit_costs_one_command_a_second(api: Api) -> None:
    breaker = Breaker(api)
    breaker.fail(5)
    counting = Counting(api)

    def refuse_for_ten_seconds() -> None:
        for _ in range(1000):
            breaker.refusal()
            api.clock.advance(0.01)

    assert 9 <= counting.of(refuse_for_ten_seconds) <= 10


def test_a_refused_process_asks_for_a_probe_once_per_sync_interval(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(jitter=0, half_open_max_calls=1)).half_open()
    enter(api, breaker)
    counting = Counting(api)

    def refuse_for_a_second() -> None:
        for _ in range(100):
            breaker.refusal()
            api.clock.advance(0.01)

    assert 9 <= counting.of(refuse_for_a_second) <= 11


def test_a_large_fleet_syncs_less_often(api: Api) -> None:
    breaker, counting = Breaker(api), Counting(api)
    breaker.succeed()
    api.runtime.process.heartbeat.resource("payments").workers = 1000
    counting.sent = 0
    for _ in range(100):
        api.clock.advance(0.05)
        breaker.succeed()
        api.runtime.process.heartbeat.resource("payments").workers = 1000

    assert 9 <= counting.sent <= 16  # heartbeats say in between that there is but one


def test_failures_wait_for_the_next_sync_only_while_they_are_under_half_of_the_rate(api: Api) -> None:
    breaker, counting = Breaker(api), Counting(api)
    breaker.succeed(13)
    api.clock.advance(0.2)
    breaker.succeed()

    sent = [counting.of(breaker.fail) for _ in range(5)]

    assert sent == [0, 0, 0, 0, 1]  # 5 of 19 is a quarter


def test_a_failure_is_told_at_once_from_half_of_the_rate_on(api: Api) -> None:
    sent = []
    for successes in (3, 4):
        breaker = Breaker(api, name=f"after {successes}")
        breaker.succeed(successes)
        sent.append(Counting(api).of(breaker.fail))

    assert sent == [1, 0]


def test_an_override_of_the_rate_says_which_failures_can_wait(api: Api) -> None:
    breaker = Breaker(api)
    api(api.service.set_override("payments", "breaker.failure_rate", 0.02))
    breaker.succeed(20)
    api.clock.advance(0.2)
    breaker.succeed()

    assert Counting(api).of(breaker.fail) == 1


def test_one_caller_asks_when_a_command_is_due(api: Api) -> None:
    breaker = Breaker(api)
    breaker.succeed()
    api.clock.advance(0.2)
    evidence = breaker.breaker._core.evidence

    assert [evidence.claim(), evidence.claim()] == [True, False]


def test_a_failure_that_can_open_nothing_is_told_with_the_next_sync(api: Api) -> None:
    measured, late = Breaker(api), Breaker(api, CONFIG, "late")
    shadow = Breaker(api, CircuitBreakerConfig(shadow=True), "shadow")
    api(measured.breaker.metrics_only())
    shadow.fail(5)
    guard = enter(api, late)
    api(late.breaker.reset())
    counting = Counting(api)

    assert [counting.of(measured.fail), counting.of(shadow.fail)] == [0, 0]
    assert counting.of(lambda: leave(api, guard, DownError())) == 0


def test_a_call_that_began_before_a_fork_tells_nothing_in_the_child(api: Api) -> None:
    breaker = Breaker(api).half_open()
    probe = enter(api, breaker)
    breaker.breaker._core.after_fork()
    counting = Counting(api)

    leave(api, probe, DownError())

    assert counting.sent == 0


# Two processes on one server.


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while Two.made:
        Two.made.pop().close()


class Two:
    """Two processes of one fleet."""

    made: ClassVar[list[ResilienceService]] = []

    def __init__(self, store: Lane, prefix: str, config: CircuitBreakerConfig = CONFIG) -> None:
        self.clock = ManualClock()
        self.events: list[list[Event]] = [[], []]
        self.services = []
        for heard in self.events:
            runtime = runtime_on(store, prefix, self.clock)
            runtime.process.events.add([heard.append])
            self.services.append(ResilienceService._of(runtime))
        self.made.extend(self.services)
        self.breakers = [service.get_or_create_circuit_breaker("payments", config) for service in self.services]

    def fail(self, which: int, times: int = 1) -> None:
        def down() -> None:
            raise DownError

        for _ in range(times):
            with pytest.raises(DownError):
                self.breakers[which].call(down)

    def passes(self, which: int) -> bool:
        try:
            self.breakers[which].call(lambda: None)
        except CircuitBreakerOpenError:
            return False
        return True


def test_the_failures_of_two_processes_add_up_and_stop_both(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    two.passes(0)
    two.fail(0, 2)
    two.fail(1, 3)
    two.clock.advance(0.1)

    assert [two.passes(which) for which in range(2)] == [False, False]


def test_one_success_does_not_erase_the_failures_of_the_fleet(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    two.fail(0, 4)
    assert two.passes(1)
    two.fail(0)
    two.clock.advance(0.1)

    assert not two.passes(1)


def test_one_broken_worker_opens_nothing_where_two_are_asked_for(store: Lane, prefix: str) -> None:
    two = Two(store, prefix, CircuitBreakerConfig(min_workers=2, jitter=0))
    assert two.passes(0)
    assert two.passes(1)
    two.fail(0, 20)
    alone = two.breakers[0].state
    two.fail(1)

    assert (alone, two.breakers[1].state) == ("closed", "open")


def test_a_change_is_told_once_by_its_cause_and_as_observed_by_others_with_its_evidence(
    store: Lane, prefix: str
) -> None:
    two = Two(store, prefix)
    assert two.passes(1)
    two.fail(0, 5)
    for _ in range(3):
        two.clock.advance(10)
        two.passes(1)
    two.clock.advance(31)
    assert all(two.passes(0) for _ in range(3))
    two.clock.advance(1)
    two.passes(1)

    told = [[(event.name, event.details["observed"]) for event in heard] for heard in two.events]
    assert told == [
        [("breaker.opened", False), ("breaker.half_opened", False), ("breaker.closed", False)],
        [("breaker.opened", True), ("breaker.closed", True)],
    ]
    cause, observed = (heard[0].details for heard in two.events)
    assert [observed[field] for field in ("calls", "failures", "workers")] == [5, 5, cause["workers"]]


def test_a_reset_by_one_process_is_heard_by_another_within_a_second(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    two.breakers[0].force_open()
    assert not two.passes(1)
    two.breakers[0].reset()
    two.clock.advance(1.0)

    assert two.passes(1)


def test_a_mode_that_is_set_with_redis_cli_is_heard(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    before = two.passes(0)
    key = f"{prefix}:{{payments}}:breaker"
    store.client.hset(key, "mode", "forced_open")
    two.clock.advance(0.1)
    forced = two.passes(0)
    store.client.hdel(key, "mode")
    two.clock.advance(1)

    assert (before, forced, two.passes(0)) == (True, False, True)


def test_an_override_that_is_no_number_is_announced_once(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    store.client.hset(f"{prefix}:{{payments}}:overrides", "breaker.window", "soon")
    for _ in range(3):
        two.passes(0)
        two.clock.advance(0.2)

    assert [(event.name, event.resource, dict(event.details)) for event in two.events[0]] == [
        ("override.ignored", "payments", {"field": "breaker.window"})
    ]


def test_modes_are_announced_to_all_and_quiet_changes_to_nobody(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    assert two.passes(1)
    for act in (two.breakers[0].reset, two.breakers[0].force_closed, two.breakers[0].reset, two.breakers[0].force_open):
        act()
        two.clock.advance(1)
        two.passes(1)
    late = Two(store, prefix)
    late.clock.advance(10)
    late.passes(0)

    told = [(event.name, event.details["mode"], event.details["observed"]) for event in two.events[1]]
    assert told == [
        ("breaker.closed", "forced_closed", True),
        ("breaker.closed", None, True),
        ("breaker.opened", "forced_open", True),
    ]
    assert [event.details["observed"] for event in two.events[0]] == [False] * 4
    assert [event.name for event in late.events[0]] == ["breaker.opened"]


def test_two_versions_of_a_configuration_share_one_circuit(store: Lane, prefix: str) -> None:
    old, new = (
        Two(store, prefix, CircuitBreakerConfig(3, jitter=0)),
        Two(store, prefix, CircuitBreakerConfig(9, window=60)),
    )
    new.clock = old.clock
    assert all(two.passes(0) for two in (old, new))
    new.fail(0, 5)
    seen = new.breakers[0].state.value
    old.fail(0)
    opened = old.breakers[0].state.value

    assert (seen, opened) == ("closed", "open")


def test_a_clock_that_steps_back_stretches_an_open_time_by_no_more_than_itself(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    two.fail(0, 5)
    backend: Any = two.services[0]._runtime.backends.blocking
    now_us = backend._store._now_us
    backend._store._now_us = lambda: now_us() - 3_600_000_000
    two.clock.advance(1)
    two.passes(0)
    two.clock.advance(59)
    still = two.passes(0)
    two.clock.advance(1)

    assert not still
    assert two.passes(0)


def test_a_resource_shows_the_numbers_of_its_limits_and_of_its_breaker(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    two.services[0].get_or_create_rate_limiter("search", TokenBucket(10, 1))
    two.services[0].get_or_create_circuit_breaker("search").call(lambda: None)
    config = store.client.hgetall(f"{prefix}:{{search}}:config")

    assert {b"limit.token_bucket.capacity", b"breaker.window"} <= set(config)


def test_a_hash_that_is_deleted_by_hand_is_a_closed_circuit_and_counts_again(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    two.fail(0, 5)
    store.client.delete(f"{prefix}:{{payments}}:breaker")
    two.clock.advance(1.0)
    closed = [two.passes(which) for which in range(2)]
    two.fail(0, 5)

    assert (closed, two.breakers[0].state) == ([True, True], "open")


def test_what_stands_in_redis_is_readable(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    two.passes(0)
    two.clock.advance(0.2)
    two.fail(0, 2)
    key = f"{prefix}:{{payments}}:breaker"
    worker = two.services[0]._runtime.process.heartbeat.worker_id
    closed = {field.decode(): value.decode() for field, value in store.client.hgetall(key).items()}
    two.fail(0, 3)
    opened = {field.decode(): value.decode() for field, value in store.client.hgetall(key).items()}

    slot = "1000000.1000000"
    assert closed == {
        "state": "closed", "generation": "1000000000000", f"calls.{slot}": "3", f"failures.{slot}": "2",
        f"worker.{worker}": "1000000200000",
    }  # fmt: skip
    assert opened == {
        "state": "open", "generation": "1000000200000", "opened_at_us": "1000000200000", "open_for_us": "60000000",
        "retry_at_us": "1000060200000", "backoff_us": "60000000", "trips": "1", "evidence_calls": "6",
        "evidence_failures": "5", "evidence_slow": "0", "evidence_workers": worker,
    }  # fmt: skip
    assert 86_400_000 < store.client.pttl(key) <= 86_460_000


def test_a_forced_mode_has_no_time_to_live(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    two.breakers[0].force_open()

    assert store.client.pttl(f"{prefix}:{{payments}}:breaker") == -1


def test_the_numbers_in_force_stand_in_the_resources_config(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    two.passes(0)
    config = store.client.hgetall(f"{prefix}:{{payments}}:config")

    assert (config[b"breaker.failure_threshold"], config[b"breaker.timeout_seconds"]) == (b"5", b"60")


# One form only.


def test_stop_iteration_passes_through_a_synchronous_call_unchanged() -> None:
    breaker = ResilienceService.local().get_or_create_circuit_breaker("payments")

    with pytest.raises(StopIteration):
        breaker.call(lambda: next(iter([])))


def test_a_synchronous_call_of_a_coroutine_function_is_an_error_that_says_where_to_go() -> None:
    breaker = ResilienceService.local().get_or_create_circuit_breaker("payments")

    async def charge() -> None:
        """Never runs."""

    for _ in range(6):
        with pytest.raises(TypeError, match=r"service\.aio"):
            breaker.call(charge)  # type: ignore[unused-coroutine]  # there is none
    assert breaker.state == "closed"


def test_sync_and_asyncio_callers_of_one_process_share_one_view() -> None:
    service = ResilienceService.local()
    breaker = service.get_or_create_circuit_breaker("payments")

    async def fail() -> None:
        raise DownError

    async def main() -> None:
        for _ in range(5):
            with pytest.raises(DownError):
                await service.aio.get_or_create_circuit_breaker("payments").call(fail)

    asyncio.run(main())
    asyncio.run(_await(asyncio.sleep(0)))

    assert breaker.state == "open"
    with pytest.raises(CircuitBreakerOpenError):
        breaker.call(lambda: None)


def test_a_coroutine_that_is_closed_in_the_middle_gives_its_probe_back() -> None:
    service = ResilienceService.local()
    breaker = service.aio.get_or_create_circuit_breaker("payments", CircuitBreakerConfig(1, timeout_seconds=0.001))

    async def fail() -> None:
        raise DownError

    async def main() -> View | None:
        with pytest.raises(DownError):
            await breaker.call(fail)
        await asyncio.sleep(0.01)
        call = breaker.call(asyncio.Event().wait)
        call.send(None)
        assert (await breaker.get_stats())["probes"] == 1
        call.close()
        await breaker.get_stats()
        return breaker._core.evidence.view

    view = asyncio.run(main())

    assert view is not None
    assert (view.state, view.leases) == ("half_open", 0)


def test_failures_of_many_threads_share_their_reports_and_none_is_lost(store: Lane, prefix: str) -> None:
    two = Two(store, prefix, CircuitBreakerConfig(failure_threshold=10_000))
    backend: Any = two.services[0]._runtime.backends.blocking
    run, sent = backend.run, []

    async def counting(*args: Any, **kwargs: Any) -> Any:
        sent.append(1)
        return await run(*args, **kwargs)

    backend.run = counting
    barrier = threading.Barrier(16)

    def work() -> None:
        barrier.wait()
        two.fail(0, 10)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert two.breakers[1].get_stats()["failures"] == 160
    assert len(sent) <= 160 + 1


def test_failures_of_many_tasks_share_their_reports_and_none_is_lost(store: Lane, prefix: str) -> None:
    two = Two(store, prefix, CircuitBreakerConfig(failure_threshold=10_000))
    service = two.services[0].aio
    breaker = service.get_or_create_circuit_breaker("payments")
    backend: Any = service._runtime.backends.suspending
    run, sent = backend.run, []

    async def counting(*args: Any, **kwargs: Any) -> Any:
        sent.append(1)
        return await run(*args, **kwargs)

    async def fail() -> None:
        with pytest.raises(DownError):
            async with breaker.guard():
                raise DownError

    async def main() -> None:
        backend.run = counting
        await asyncio.gather(*(fail() for _ in range(50)))
        await service.close()

    asyncio.run(main())

    assert two.breakers[1].get_stats()["failures"] == 50
    assert len(sent) <= 6


class OneByOne:
    """A backend whose replies come when the test says so, in any order."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[View]] = []

    async def run(self, *args: object) -> View:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]


@pytest.mark.parametrize(("generation", "adopted"), [(4, 5), (5, 5), (6, 6)])
def test_of_two_replies_the_one_that_was_asked_for_later_stands_unless_the_other_is_of_a_later_generation(
    generation: int, adopted: int
) -> None:
    core = ResilienceService.local().get_or_create_circuit_breaker("payments")._core
    backend: Any = OneByOne()

    def view(generation: int) -> View:
        return View(1, 0, "closed", "", generation, 0.0, 0.0, generation, 0, 0, (), 0, 0, 0, "", "redis")

    async def main() -> None:
        tasks = [asyncio.create_task(core.evidence.sync(backend)) for _ in range(3)]
        await asyncio.sleep(0)
        for number, told in ((0, 3), (2, 5), (1, generation)):
            backend.asked[number].set_result(view(told))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(main())

    assert core.evidence.view is not None
    assert core.evidence.view.generation == adopted
    assert core.evidence.tally is not None
    assert core.evidence.tally.generation == adopted


@pytest.mark.parametrize(
    ("field", "values", "allowed"),
    [
        ("failure_threshold", [0, -1, 1.5, True, "5", None, 10**9 + 1], "an integer from 1 to 1000000000"),
        ("failure_rate", [-0.1, 1.1, math.nan, None, True], "a number from 0 to 1"),
        ("window", [0, 0.05, math.inf, 86_401, "10"], "a number from 0.1 to 86400"),
        ("minimum_calls", [0, 2.0], "an integer from 1 to 1000000000"),
        ("slow_call_seconds", [0, -1, math.nan], "a number from 1e-06 to 86400"),
        ("slow_call_rate", [0, 1.1, 0.5], ""),
        ("success_threshold", [0], "an integer from 1 to"),
        ("timeout_seconds", [0, 86_401, math.nan], "a number from 0.001 to 86400"),
        ("open_multiplier", [0.9, 101], "a number from 1 to 100"),
        ("max_open_seconds", [0, 59, 86_401], "a number from"),
        ("jitter", [-0.1, 1.1], "a number from 0 to 1"),
        ("half_open_max_calls", [0, 1001], "an integer from 1 to 1000"),
        ("probe_lease", [0, 86_401], "a number from 0.001 to 86400"),
        ("min_workers", [0, 101], "an integer from 1 to 100"),
        (
            "expected_exceptions",
            [Exception, ("x",), (BaseException,), (KeyboardInterrupt,), [OSError], (OSError(),), None],
            "a tuple of subclasses of Exception",
        ),
        ("ignored_exceptions", [OSError, (int,)], "a tuple of subclasses of Exception"),
        ("is_failure", [5, "x"], "a function of the result, or None"),
        ("shadow", [1, None], "True or False"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_field_value_and_range(
    field: str, values: list[Any], allowed: str
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{field} is .*, but must be .*") as wrong:
            CircuitBreakerConfig(**{field: value})
        assert allowed in str(wrong.value)


def test_what_is_wrong_is_said_in_full() -> None:
    with pytest.raises(ValueError, match=r"^slow_call_rate is 0.5, but must be None where slow_call_seconds is None$"):
        CircuitBreakerConfig(slow_call_rate=0.5)
    with pytest.raises(ValueError, match=r"^is_failure is 5, but must be a function of the result, or None$"):
        CircuitBreakerConfig(is_failure=5)  # type: ignore[arg-type]


def test_a_minimum_of_calls_that_is_not_given_is_the_threshold() -> None:
    given, not_given = CircuitBreakerConfig(7, minimum_calls=9), CircuitBreakerConfig(7)

    assert (given.numbers()["minimum_calls"], not_given.numbers()["minimum_calls"]) == (9, 7)
    assert (given.arguments()[3], not_given.arguments()[3]) == (9, 0)


def test_the_least_and_the_greatest_values_are_taken() -> None:
    least = CircuitBreakerConfig(
        1, 0, 0.1, 1, 0.000001, 0.000001, 1, 0.001, 1, 0.001, 0, 1, 0.001, 1, expected_exceptions=()
    )
    greatest = CircuitBreakerConfig(
        10**9, 1, 86_400, 10**9, 86_400, 1, 10**9, 86_400, 100, 86_400, 1, 1000, 86_400, 100
    )

    assert least.arguments() == (1, 0, 100_000, 1, 1, 1, 1000, 1000, 1000, 0, 1, 1000, 1)
    assert greatest.arguments() == (
        10**9, 10**6, 86_400_000_000, 10**9, 10**6, 10**9, 86_400_000_000, 100_000, 86_400_000_000, 10**6, 1000,
        86_400_000_000, 100,
    )  # fmt: skip
