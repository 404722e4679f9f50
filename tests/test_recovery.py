"""Redis is back: it is charged for what a process has taken alone, once, and for no more than the share of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import redis
from conftest import Api, Lane, Operator
from servers import poll

from shared_resilience import BulkheadConfig, LeakyBucket, ResilienceService, SlidingWindow, TokenBucket
from shared_resilience.backends.faults import StoreError
from shared_resilience.debts import Debts
from shared_resilience.limiter import Limiter

LIMITS = [
    TokenBucket(10, 0.001),
    LeakyBucket(10, 0.001),
    SlidingWindow(10, 3600),
    SlidingWindow(10, 3600, exact=False),
]


@pytest.fixture(autouse=True)
def _with_redis(place: str) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could come back")


@pytest.fixture(params=LIMITS, ids=lambda limit: f"{limit.label}{'' if getattr(limit, 'exact', True) else ' by slots'}")
def limiter(api: Api, request: pytest.FixtureRequest) -> Any:
    return api.service.get_or_create_rate_limiter("search", request.param, remember_refusals=False)


def core_of(limiter: Any) -> Limiter:
    core: Limiter = limiter._core
    return core


def come_back(api: Api) -> None:
    """Redis answers the next time it is asked."""
    api(api.service.check())
    assert api.runtime.process.guard.usable


def remaining(api: Api, limiter: Any, key: Any = "") -> int:
    decision = api(limiter.peek(key))
    assert decision.source == "redis"
    left: int = decision.remaining
    return left


@pytest.mark.fault(
    "Redis comes back after a process has taken from a limit alone",
    "it is charged with what is missing in the share, once",
)
def test_what_was_taken_alone_is_charged_once(api: Api, limiter: Any, redis_is_away: Callable[[], None]) -> None:
    api(limiter.try_acquire("a", 2))
    redis_is_away()
    assert [api(limiter.try_acquire("a", 2)).source for _ in range(2)] == ["local"] * 2

    come_back(api)
    charged = remaining(api, limiter, "a")
    come_back(api)

    assert (charged, remaining(api, limiter, "a"), remaining(api, limiter, "b")) == (4, 4, 10)


@pytest.mark.fault("the same, after a cost above the share", "never more than the share is charged")
def test_never_more_than_the_share_is_charged(api: Api, limiter: Any, redis_is_away: Callable[[], None]) -> None:
    core_of(limiter).resource.workers = 5
    redis_is_away()
    assert api(limiter.try_acquire("", 7)).allowed  # above the share, which leaves debt here
    come_back(api)

    assert remaining(api, limiter) == 8


def test_what_has_come_back_meanwhile_is_not_charged(api: Api, redis_is_away: Callable[[], None]) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(10, 1))
    redis_is_away()
    api(limiter.try_acquire("", 5))
    api.clock.advance(3)
    come_back(api)

    assert remaining(api, limiter) == 8


def test_a_fleet_pays_off_what_it_had_too_much(
    api: Api, other: ResilienceService, redis_is_away: Callable[[], None]
) -> None:
    bucket = TokenBucket(10, 1)
    limiter = api.service.get_or_create_rate_limiter("search", bucket, remember_refusals=False)
    assert other.get_or_create_rate_limiter("search", bucket).try_acquire("", 9)
    redis_is_away()
    assert api(limiter.try_acquire("", 4)).source == "local"
    come_back(api)

    # 10 - 9 - 4 = -3 tokens, so that the next one is there after four seconds
    assert api(limiter.try_acquire()).retry_after == pytest.approx(4, abs=1e-5)


def test_of_several_limits_each_is_charged_for_its_key_and_a_common_one_once(
    api: Api, place: str, stores: Callable[[str], Lane], prefix: str, redis_is_away: Callable[[], None]
) -> None:
    limiter = api.service.get_or_create_rate_limiter(
        "search", TokenBucket(10, 0.001, label="user"), TokenBucket(100, 0.001, label="all")
    )
    redis_is_away()
    for user in "abc":
        api(limiter.try_acquire({"user": user}, 2))
    come_back(api)

    client = stores(place).client

    def tokens(key: str) -> int:
        return int(client.hget(f"{prefix}:{{search}}:limit:{key}", "microtokens")) // 1_000_000

    assert [tokens(f"user:{user}") for user in "abc"] == [8] * 3
    assert tokens("all") == 94


def test_partitions_are_charged_by_the_numbers_in_force(
    api: Api, operator: Operator, redis_is_away: Callable[[], None]
) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(10, 0.001), partitioned=True)
    operator.set("limit.token_bucket.capacity", "20")
    api(limiter.try_acquire("a"))
    api.clock.advance(2)
    api(limiter.try_acquire("a"))
    redis_is_away()
    assert api(limiter.try_acquire("a", 8)).remaining == 12
    come_back(api)

    assert remaining(api, limiter, "a") == 10


def test_limits_that_are_entered_with_a_slot_are_charged_too(api: Api, redis_is_away: Callable[[], None]) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(10, 0.001))
    api.service.get_or_create_bulkhead("search", BulkheadConfig(max_concurrent_calls=5))
    guard = api.service.permits("search").guard("a", 3)
    redis_is_away()
    if api.form == "sync":
        with guard:
            pass
    else:
        api(_inside(guard))
    come_back(api)

    assert remaining(api, limiter, "a") == 7


async def _inside(guard: Any) -> None:
    async with guard:
        pass


@pytest.mark.parametrize(("drawn", "charged"), [(0.0, 2), (0.49, 2), (0.51, 3), (0.999, 3)])
def test_fractions_are_charged_by_chance(
    api: Api, redis_is_away: Callable[[], None], monkeypatch: pytest.MonkeyPatch, drawn: float, charged: int
) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(10, 1))
    redis_is_away()
    api(limiter.try_acquire("", 5))
    api.clock.advance(2.5)
    monkeypatch.setattr(random, "random", lambda: drawn)
    come_back(api)

    assert remaining(api, limiter) == 10 - charged


@pytest.mark.parametrize("how", ["not sent", "no reply", "refused", "rejected"])
def test_a_charge_that_fails_is_made_once_and_keeps_nobody_away_from_redis(
    api: Api, limiter: Any, redis_is_away: Callable[[], None], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The next time, if it has certainly not run."""
    redis_is_away()
    api(limiter.try_acquire("", 4))
    backends = api.runtime.backends
    backend: Any = backends.blocking if api.form == "sync" else backends.suspending
    send = backend._store.try_all

    async def fail(commands: Any) -> Any:
        if how == "not sent":
            raise StoreError(redis.ConnectionError("refused"), sent=False)
        if how in ("refused", "rejected"):
            word = "OOM command not allowed" if how == "refused" else "WRONGTYPE of another kind"
            return [StoreError(redis.ResponseError(word), sent=True)] * len(commands)
        await send(commands)
        raise StoreError(redis.TimeoutError("late"), sent=True)

    with monkeypatch.context() as patch:
        patch.setattr(backend._store, "try_all", fail)
        come_back(api)
    redis_is_away()
    come_back(api)

    assert remaining(api, limiter) == (10 if how == "rejected" else 6)


def test_one_charge_that_is_rejected_leaves_the_others_alone(
    api: Api, redis_is_away: Callable[[], None], place: str, stores: Callable[[str], Lane], prefix: str
) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(10, 0.001))
    other = api.service.get_or_create_rate_limiter("other", TokenBucket(10, 0.001))
    redis_is_away()
    for key in ("a", "b", "c"):
        api(limiter.try_acquire(key, 4))
    api(other.try_acquire("", 4))
    stores(place).client.set(f"{prefix}:{{search}}:limit:token_bucket:c", "mine")
    come_back(api)

    assert [remaining(api, limiter, key) for key in ("a", "b")] == [6, 6]
    assert remaining(api, other) == 6


def test_what_was_charged_is_not_charged_again_after_the_next_outage(
    api: Api, limiter: Any, redis_is_away: Callable[[], None]
) -> None:
    for cost in (5, 1, 1):
        redis_is_away()
        assert api(limiter.try_acquire("", cost)).source == "local"
        come_back(api)

    assert remaining(api, limiter) == 3


def test_refusals_and_what_is_decided_while_ramping_are_not_charged(
    api: Api, limiter: Any, redis_is_away: Callable[[], None]
) -> None:
    redis_is_away()
    api(limiter.try_acquire("", 6))
    assert not api(limiter.try_acquire("", 6))
    come_back(api)
    assert api(limiter.try_acquire("", 2)).source == "redis"  # and out of the share, too
    redis_is_away()
    assert not api(limiter.try_acquire("", 5))
    come_back(api)

    assert remaining(api, limiter) == 2


def test_what_a_reservation_took_too_much_of_is_charged(api: Api, redis_is_away: Callable[[], None]) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(20, 0.001))
    redis_is_away()
    reservation = api(limiter.reserve("", 4))
    api(reservation.settle(7))
    come_back(api)

    assert remaining(api, limiter) == 13


def test_leased_tokens_are_charged_as_they_were_taken(api: Api, redis_is_away: Callable[[], None]) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(20, 0.001), lease_tokens=5)
    redis_is_away()
    for _ in range(6):
        assert api(limiter.try_acquire())
    come_back(api)

    assert remaining(api, limiter) == 13  # a first lease of 2, and one of 5


def test_a_charge_that_cannot_be_worked_out_keeps_nobody_away_from_redis(
    api: Api,
    limiter: Any,
    redis_is_away: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    redis_is_away()
    api(limiter.try_acquire("", 4))
    monkeypatch.setattr("shared_resilience.limits.deficits", None)
    come_back(api)

    assert remaining(api, limiter) == 10
    assert "could not be worked out" in caplog.text


def test_many_keys_are_charged_little_by_little(
    api: Api, redis_is_away: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared_resilience.backends.charges.CHARGES_AT_ONCE", 10)
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(10, 0.001))
    redis_is_away()
    for number in range(35):
        api(limiter.try_acquire(str(number)))
    come_back(api)
    last = [remaining(api, limiter, str(number)) for number in range(25, 35)]

    def paid() -> bool:
        return sum(remaining(api, limiter, str(number)) for number in range(35)) == 35 * 9

    poll(paid, "all keys to be charged")
    assert last == [9] * 10  # the last used first


def test_the_keys_that_are_known_are_bounded_and_the_longest_unused_go_first(api: Api) -> None:
    core = core_of(api.service.get_or_create_rate_limiter("search", TokenBucket(10, 0.001)))
    debts = Debts(core.config, core.keys, api.runtime.process, most=3)
    for key in ("a", "b", "c", "a", "d"):
        api.runtime.process.local.execute(core.commands.take(core.keys.of((key,)), 1))
        debts.note((key,), 1)

    assert len(debts) == 3
    bill = debts.bill(10, 1, {})
    assert bill is not None
    assert [command.keys[1].rpartition(":")[2] for command in bill.commands] == ["d", "a", "c"]
    assert debts.bill(10, 1, {}) is None


def test_without_an_outage_there_is_nothing_to_charge(api: Api, limiter: Any) -> None:
    api(limiter.try_acquire("", 3))
    come_back(api)

    assert remaining(api, limiter) == 7
    assert core_of(limiter).bill(10, {}) is None


@pytest.mark.fault("Redis is lost again just after it came back", "shares are still those of the whole fleet")
def test_until_all_had_time_to_say_so_there_are_as_many_workers_as_before(
    api: Api, redis_is_away: Callable[[], None]
) -> None:
    """Or the first one that is back would take the whole limit should Redis be lost again."""
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(10, 0.001))
    api(limiter.try_acquire())
    resource = core_of(limiter).resource
    resource.workers = 4
    redis_is_away()
    come_back(api)
    soon = resource.workers
    api.clock.advance(5.1)
    api(limiter.try_acquire())

    assert (soon, resource.workers) == (4, 1)


def test_time_and_decisions_without_redis_are_counted(api: Api, redis_is_away: Callable[[], None]) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(10, 0.001))
    guard = api.runtime.process.guard
    api(limiter.try_acquire())
    guard.lost(StoreError(redis.ConnectionError("gone"), sent=False), guard.era)
    for _ in range(3):
        api(limiter.try_acquire())
    api.clock.advance(7)
    during = api(api.service.get_comprehensive_stats())["store"]
    come_back(api)
    api.clock.advance(100)
    after = api(api.service.get_comprehensive_stats())["store"]

    assert during == {
        "usable": False,
        "answered": True,
        "outages": 1,
        "seconds_away": 7.0,
        "decided_locally": 3,
        "decided_locally_by_fleet": 0,
    }
    assert after == {**during, "usable": True, "decided_locally_by_fleet": 3}


@pytest.mark.fault(
    "some processes have noticed that Redis is back, others have not",
    "for 1.5 s those keep within their share too, so that there is no burst",
)
def test_just_after_an_outage_calls_have_to_fit_into_the_share_too(api: Api, redis_is_away: Callable[[], None]) -> None:
    """Until others are back as well, who have theirs."""
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(100, 4), remember_refusals=False)
    core_of(limiter).resource.workers = 4
    redis_is_away()
    while api(limiter.try_acquire()):
        pass
    come_back(api)
    api.clock.advance(1.0)
    soon = [api(limiter.try_acquire()) for _ in range(3)]
    api.clock.advance(1.0)
    later = [api(limiter.try_acquire()) for _ in range(3)]

    # the share of 25 is used up, and gets one token a second; in Redis there are 100 - 25 + 4
    assert [(decision.allowed, decision.source) for decision in soon] == [
        (True, "redis"),
        (False, "local"),
        (False, "local"),
    ]
    assert soon[1].retry_after == pytest.approx(0.5)  # what is left of it: then Redis is asked
    assert [(decision.allowed, decision.source) for decision in later] == [(True, "redis")] * 3


def test_a_call_that_fails_while_ramping_takes_its_share_once(
    api: Api, redis_is_away: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(100, 0.001), remember_refusals=False)
    redis_is_away()
    come_back(api)
    backends = api.runtime.backends
    backend: Any = backends.blocking if api.form == "sync" else backends.suspending

    async def saturated(command: Any) -> Any:
        raise StoreError(redis.exceptions.MaxConnectionsError("Too many connections"), sent=False)

    monkeypatch.setattr(backend._store, "ask", saturated)
    found = [api(limiter.try_acquire("", 60)) for _ in range(2)]

    assert [(decision.allowed, decision.remaining, decision.source) for decision in found] == [
        (True, 40, "local"),
        (False, 40, "local"),
    ]


@pytest.mark.parametrize("on_outage", ["allow", "deny", "raise"])
def test_who_did_not_decide_alone_has_no_share_to_keep_to(
    api: Api, redis_is_away: Callable[[], None], on_outage: Any
) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(100, 4), on_outage=on_outage)
    core_of(limiter).resource.workers = 100
    redis_is_away()
    come_back(api)

    assert [api(limiter.try_acquire()).source for _ in range(5)] == ["redis"] * 5
