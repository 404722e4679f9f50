"""Ways in which limiters have failed elsewhere, each as a test that ours passes. Others stand beside their subject."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Api, Lane
from servers import PATIENT, Server

from shared_resilience import LeakyBucket, ResilienceService, SlidingWindow, TokenBucket
from shared_resilience.backends import Backends, step
from shared_resilience.backends.fallback import FallbackBackend
from shared_resilience.backends.process import Process
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.limit_commands import LimitCommands
from shared_resilience.limits import Limit
from shared_resilience.options import CheckedOptions
from shared_resilience.runtime import Runtime
from shared_resilience.testing import ManualClock

EACH_KIND: list[Limit] = [
    TokenBucket(20, 0.001),
    SlidingWindow(20, 3600),
    SlidingWindow(20, 3600, False),
    LeakyBucket(20, 0.001),
]


@pytest.mark.parametrize("limit", EACH_KIND, ids=repr)
def test_four_workers_do_not_get_four_times_the_limit(server: Server, prefix: str, limit: Limit) -> None:
    workers = [
        ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT, worker_id=f"w{n}")
        for n in range(4)
    ]
    limiters = [worker.get_or_create_rate_limiter("search", limit) for worker in workers]

    granted = sum(limiters[number % 4].try_acquire().allowed for number in range(400))

    assert granted == 20
    for worker in workers:
        worker.close()


@pytest.mark.parametrize("limit", EACH_KIND, ids=repr)
def test_a_worker_whose_clock_is_ahead_gets_no_second_quota(store: Lane, prefix: str, limit: Limit) -> None:
    granted = 0
    for hours in (0, 1, -1):
        process = Process(prefix, clock=ManualClock(1e6 + hours * 3600))
        backend = FallbackBackend(process, RedisStore(PoolWire(store.pool, 5, theirs=False)))
        runtime = Runtime(process, Backends(lambda b=backend: b, lambda b=backend: b), CheckedOptions())  # type: ignore[misc]
        limiter = ResilienceService._of(runtime).get_or_create_rate_limiter("search", limit)
        granted += sum(limiter.try_acquire().allowed for _ in range(30))

    assert granted == 20


@pytest.mark.parametrize("limit", EACH_KIND, ids=repr)
def test_a_refusal_changes_nothing_in_redis_not_even_a_time_to_live(store: Lane, prefix: str, limit: Limit) -> None:
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False))
    key = f"{prefix}:{{a}}:limit"
    commands = LimitCommands([limit])
    step(redis_store.execute(commands.take((f"{prefix}:{{a}}:o", key), 20)))
    store.client.pexpire(key, 1_000_000)
    before = contents(store, key)

    refusals = [step(redis_store.execute(commands.take((f"{prefix}:{{a}}:o", key), 1)))[0] for _ in range(5)]

    assert refusals == [0] * 5
    assert contents(store, key) == before
    assert 900_000 < store.client.pttl(key) <= 1_000_000


def contents(store: Lane, key: str) -> Any:
    if store.client.type(key) == b"zset":
        return store.client.zrange(key, 0, -1, withscores=True)
    return store.client.hgetall(key)


def test_a_refusal_by_one_of_several_limits_charges_none_of_them(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter(
        "search", TokenBucket(2, 2, label="second"), SlidingWindow(3, 3600, label="hour"), remember_refusals=False
    )
    granted = sum(api(limiter.try_acquire()).allowed for _ in range(10))
    api.clock.advance(1.0)

    assert granted == 2
    assert [api(limiter.try_acquire()).limited_by for _ in range(2)] == [None, "hour"]


def test_a_large_cost_is_one_entry_in_the_log(store: Lane, prefix: str) -> None:
    key = f"{prefix}:{{a}}:limit"
    take = LimitCommands([SlidingWindow(10**6, 60)]).take((f"{prefix}:{{a}}:o", key), 50_000)

    step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(take))

    assert store.client.zcard(key) == 1


@pytest.mark.parametrize("limit", EACH_KIND, ids=repr)
@pytest.mark.parametrize("cost", [-100, 0])
def test_a_negative_cost_adds_nothing(limit: Limit, cost: Any) -> None:
    limiter = ResilienceService.local().get_or_create_rate_limiter("search", limit)
    limiter.try_acquire(cost=5)
    for method in (limiter.allow, limiter.try_acquire, limiter.refund, limiter.reserve):
        with pytest.raises(ValueError, match="cost is"):
            method("", cost)

    assert limiter.peek().remaining == 15


def test_a_leaky_bucket_lets_no_burst_through_at_once() -> None:
    limiter = ResilienceService.local(clock=ManualClock()).get_or_create_rate_limiter("search", LeakyBucket(10, 5))

    assert [limiter.allow() for _ in range(3)] == [True, False, False]
    assert [round(limiter.try_acquire().delay, 3) for _ in range(3)] == [0.2, 0.4, 0.6]
