"""The circuit breaker in both forms, on every server and without one."""

from __future__ import annotations

import asyncio
import inspect
import math
import pickle
from collections.abc import Iterator

import pytest
from circuits import Breaker, Dependency, DownError, awaited, enter, leave, names
from conftest import Api

from shared_resilience import (
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    CircuitState,
    Event,
    RateLimitExceeded,
    TokenBucket,
)


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
    assert asyncio.run(awaited(refund(5, fee=1))) == -6
    assert (charge.__name__, charge.__doc__) == ("charge", "Charges.")
    assert str(inspect.signature(charge)) == "(amount: 'int', *, currency: 'str' = 'EUR') -> 'str'"
    assert inspect.iscoroutinefunction(refund)


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


def test_slow_calls_between_two_syncs_add_up(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(slow_call_seconds=0.01, slow_call_rate=1, minimum_calls=100))
    breaker.dependency.seconds = 0.02
    breaker.succeed(3)

    assert breaker.stats()["slow_calls"] == 3


def test_statistics_tell_the_last_half_second_of_an_open_time(api: Api) -> None:
    breaker = Breaker(api)
    breaker.fail(5)
    api.clock.advance(59.5)

    assert breaker.stats()["retry_after"] == pytest.approx(0.5)


def test_who_is_refused_after_the_open_time_is_told_to_come_back_at_once(api: Api) -> None:
    breaker = Breaker(api)
    breaker.fail(5)
    api.clock.advance(100)

    with pytest.raises(CircuitBreakerOpenError) as refused:
        breaker.breaker._core.refuse()  # as by a caller that another has overtaken
    assert refused.value.retry_after == 0.0
