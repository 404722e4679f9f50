"""Partitions: keys that are spread over a cluster, with the overrides and pauses of their resource."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Api, Lane, Operator

from shared_resilience import (
    Event,
    ResilienceService,
    SlidingWindow,
    TokenBucket,
)
from shared_resilience.backends import Backends
from shared_resilience.backends.fallback import FallbackBackend
from shared_resilience.backends.process import Process
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.options import CheckedOptions
from shared_resilience.runtime import Runtime
from shared_resilience.testing import ManualClock


@pytest.fixture
def partitioned(api: Api) -> Any:
    limits = [TokenBucket(10, 5), SlidingWindow(20, 60)]
    return api.service.get_or_create_rate_limiter("search", *limits, partitioned=True, remember_refusals=False)


def test_a_partition_has_a_hash_tag_of_name_and_key(
    api: Api, partitioned: Any, place: str, stores: Callable[[str], Lane], prefix: str
) -> None:
    if place == "local":
        pytest.skip("keys of Redis")
    api(partitioned.try_acquire("user:{42}"))

    keys = {key.decode() for key in stores(place).client.scan_iter(f"{prefix}:*limit*")}
    tag = "{search/user:%7B42%7D}"
    assert keys == {f"{prefix}:{tag}:limit:token_bucket", f"{prefix}:{tag}:limit:sliding_window"}


def test_partitions_do_not_share_their_tokens(api: Api, partitioned: Any) -> None:
    api(partitioned.try_acquire("a", 10))

    assert not api(partitioned.allow("a"))
    assert api(partitioned.try_acquire("b", 10))
    api(partitioned.reset("a"))
    assert api(partitioned.try_acquire("a", 10))


def test_overrides_reach_partitions_within_a_second(api: Api, partitioned: Any, operator: Operator, place: str) -> None:
    if place == "local":
        pytest.skip("see the next test")
    api(partitioned.try_acquire("a"))
    operator.set("limit.token_bucket.capacity", "4")
    api.clock.advance(1.0)
    api(partitioned.try_acquire("a"))

    assert [api(partitioned.peek(key)).limit for key in ("a", "b")] == [4, 4]
    operator.delete("limit.token_bucket.capacity")
    api.clock.advance(1.0)
    api(partitioned.try_acquire("b"))
    assert api(partitioned.peek("b")).limit == 10


def test_overrides_reach_partitions_without_redis() -> None:
    clock = ManualClock()
    service = ResilienceService.local(clock=clock)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(10, 5), partitioned=True)
    service.set_override("search", "limit.token_bucket.capacity", 4)
    clock.advance(1.0)
    limiter.try_acquire("a")

    assert limiter.peek("a").limit == 4


def test_a_wrong_override_of_partitions_has_its_event(
    api: Api, partitioned: Any, operator: Operator, events: list[Event], place: str
) -> None:
    if place == "local":
        pytest.skip("see the test before")
    operator.set("limit.token_bucket.capacity", "many")
    for _ in range(3):
        api.clock.advance(1.0)
        api(partitioned.try_acquire("a"))

    assert [event.name for event in events] == ["override.ignored"]


def test_a_pause_reaches_partitions_of_this_process_at_once_and_of_others_within_a_second(
    api: Api, partitioned: Any, other: ResilienceService
) -> None:
    elsewhere = other.get_or_create_rate_limiter(
        "search", TokenBucket(10, 5), SlidingWindow(20, 60), partitioned=True, remember_refusals=False
    )
    assert elsewhere.try_acquire("a")
    api(partitioned.pause(20))

    refusal = api(partitioned.try_acquire("a"))
    assert (refusal.allowed, refusal.limited_by, refusal.retry_after) == (False, "pause", pytest.approx(20))
    assert api(partitioned.peek("b")).limited_by == "pause"
    api.clock.advance(1.0)
    elsewhere.try_acquire("a")  # carries the heartbeat that brings the news
    refusal = elsewhere.try_acquire("b")
    assert refusal.limited_by == "pause"
    assert refusal.retry_after == pytest.approx(19, abs=1e-4)
    api.clock.advance(19.001)
    assert elsewhere.try_acquire("a")
    assert api(partitioned.try_acquire("a"))


def test_the_end_of_a_pause_reaches_partitions_within_a_second(
    api: Api, partitioned: Any, other: ResilienceService
) -> None:
    elsewhere = other.get_or_create_rate_limiter(
        "search", TokenBucket(10, 5), SlidingWindow(20, 60), partitioned=True, remember_refusals=False
    )
    api(partitioned.pause(20))
    elsewhere.try_acquire("a")
    assert elsewhere.try_acquire("a").limited_by == "pause"
    api(partitioned.pause(0))
    for _ in range(3):
        api.clock.advance(1.0)
        elsewhere.try_acquire("a")

    assert elsewhere.try_acquire("a").allowed


def test_an_ended_pause_lets_partitions_of_this_process_go_on_at_once(api: Api, partitioned: Any) -> None:
    api(partitioned.pause(20))
    api(partitioned.pause(0))

    assert api(partitioned.try_acquire("a"))


def test_a_clock_set_back_prolongs_the_pause_of_partitions_by_its_own_length_at_most(
    lane: str, stores: Callable[[str], Lane], prefix: str
) -> None:
    """The clock of the server, that is; those of the processes never go back."""
    clock, server_clock = ManualClock(), ManualClock()
    process = Process(prefix, clock=clock)
    redis_store = RedisStore(PoolWire(stores(lane).pool, 5, theirs=False), lambda: int(server_clock.monotonic() * 1e6))
    backend = FallbackBackend(process, redis_store)
    service = ResilienceService._of(Runtime(process, Backends(lambda: backend, lambda: backend), CheckedOptions()))
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(10, 5), partitioned=True)
    limiter.try_acquire("a")
    limiter.pause(20)
    server_clock.advance(-3600)
    for _ in range(21):
        clock.advance(1.0)
        server_clock.advance(1.0)
        service.get_or_create_rate_limiter("another").try_acquire()  # carries the heartbeat

    assert limiter.try_acquire("a").allowed


@pytest.mark.parametrize("method", ["try_acquire", "acquire", "allow", "peek", "refund", "reserve", "reset"])
def test_partitions_have_one_key_for_all_limits(api: Api, partitioned: Any, method: str) -> None:
    with pytest.raises(ValueError, match="key is a mapping, but 'search' is partitioned"):
        api(getattr(partitioned, method)({"token_bucket": "a"}))


def test_partitions_are_reset_one_by_one(api: Api, partitioned: Any) -> None:
    with pytest.raises(TypeError, match="'search' is partitioned"):
        api(partitioned.reset_all())
