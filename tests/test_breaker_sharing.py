"""Two processes of one fleet, on one clock: what each learns of the other, and what stands in Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from circuits import Two
from conftest import Lane

from shared_resilience import (
    CircuitBreakerConfig,
    TokenBucket,
)


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while Two.made:
        Two.made.pop().close()


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


def test_what_was_seen_before_a_reset_is_told_of_no_later_circuit(store: Lane, prefix: str) -> None:
    two = Two(store, prefix)
    assert all(two.passes(0) for _ in range(20))
    two.fail(0, 3)  # which wait for the next sync
    two.breakers[1].reset()
    for _ in range(3):
        two.clock.advance(0.2)
        assert two.passes(0)
    stats = two.breakers[1].get_stats()

    assert (stats["failures"], int(str(stats["calls"])) <= 3) == (0, True)


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
    for act in ("reset", "force_closed", "reset", "reset", "force_open"):
        getattr(two.breakers[0], act)()
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
    assert [event.details["observed"] for event in two.events[0]] == [False] * 5
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
