"""What a circuit breaker costs: how often a process asks Redis, and what it tells."""

from __future__ import annotations

from circuits import CONFIG, Breaker, Counting, DownError, enter, leave
from conftest import Api

from shared_resilience import (
    CircuitBreakerConfig,
)


def test_a_closed_circuit_costs_one_command_per_sync_interval_and_one_per_failure(api: Api) -> None:
    breaker, counting = Breaker(api), Counting(api)
    first = counting.of(lambda: breaker.succeed(20))
    api.clock.advance(0.11)
    second = counting.of(lambda: breaker.succeed(20))
    failing = counting.of(lambda: breaker.fail(3))
    within = counting.of(lambda: breaker.succeed(20))

    assert (first, second, failing, within) == (1, 1, 0, 0)
    api.clock.advance(1000)
    assert counting.of(lambda: breaker.fail(3)) == 1 + 3


def test_what_was_seen_before_the_window_is_told_as_far_as_it_says_something_of_the_window(api: Api) -> None:
    breaker = Breaker(api)
    breaker.succeed(50)
    breaker.fail(10)
    api.clock.advance(20)
    breaker.succeed()

    seen = breaker.stats()

    assert (seen["calls"], seen["failures"]) == (30 + 1, 5)


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


def test_a_failure_does_not_wait_once_the_view_is_old(api: Api) -> None:
    breaker, counting = Breaker(api), Counting(api)
    breaker.succeed(100)
    guard = enter(api, breaker)
    api.clock.advance(0.2)

    assert counting.of(lambda: leave(api, guard, DownError())) == 1


def test_closing_tells_what_is_untold_and_asks_nothing_otherwise(api: Api) -> None:
    Breaker(api, name="never asked")
    breaker, counting = Breaker(api), Counting(api)
    breaker.succeed(7)

    assert counting.of(lambda: api(api.service.close())) == 1
    assert counting.of(lambda: api(api.service.close())) == 0
    assert breaker.stats()["calls"] == 7


def test_overrides_of_window_and_places_say_what_is_old_and_who_may_ask(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(jitter=0, half_open_max_calls=3))
    api(api.service.set_override("payments", "breaker.half_open_max_calls", 1))
    api(api.service.set_override("payments", "breaker.window", 60))
    breaker.succeed(20)
    api.clock.advance(30)
    breaker.succeed()
    old = breaker.stats()["calls"]
    api(breaker.breaker.reset())
    breaker.half_open()
    enter(api, breaker)
    breaker.refusal()
    counting = Counting(api)

    assert old == 21
    assert counting.of(lambda: [breaker.refusal() for _ in range(50)]) == 0


def test_an_override_of_the_places_that_is_no_count_is_ignored_as_scripts_ignore_it(api: Api) -> None:
    breaker = Breaker(api, CircuitBreakerConfig(jitter=0, half_open_max_calls=1)).half_open()
    breaker.breaker._core.resource.overrides = {"breaker.half_open_max_calls": "2.5"}
    enter(api, breaker)

    assert Counting(api).of(lambda: [breaker.refusal() for _ in range(50)]) == 0
