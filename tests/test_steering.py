"""What operators and services do to the limits of a running fleet: pauses, overrides, shadow mode, many limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Api, Lane, runtime_on
from servers import PATIENT, Server, free_port

from shared_resilience import (
    Event,
    LeakyBucket,
    RateLimitExceeded,
    ResilienceService,
    SlidingWindow,
    StoreUnavailableError,
    TokenBucket,
)
from shared_resilience.backends import Backends
from shared_resilience.backends.fallback import FallbackBackend
from shared_resilience.backends.process import Process
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.overrides import override_text
from shared_resilience.runtime import CheckedOptions, Runtime
from shared_resilience.testing import ManualClock

SLOW = 1e-6


@pytest.fixture
def limiter(api: Api) -> Any:
    return api.service.get_or_create_rate_limiter("search", TokenBucket(10, 5), remember_refusals=False)


@pytest.fixture
def events(api: Api) -> list[Event]:
    heard: list[Event] = []
    api.runtime.process.events.add([heard.append])
    return heard


@pytest.fixture
def redis_is_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Makes Redis be away, without a probe."""
    guard = api.runtime.process.guard
    monkeypatch.setattr(guard, "launch", lambda start: None)

    def lose() -> None:
        guard.usable = False

    yield lose
    guard.usable = True


@pytest.fixture
def other(place: str, stores: Callable[[str], Lane], prefix: str, api: Api) -> Iterator[ResilienceService]:
    """Another worker of the same fleet."""
    if place == "local":
        pytest.skip("without Redis there is no fleet")
    service = ResilienceService._of(runtime_on(stores(place), prefix, api.clock))
    yield service
    service.close()


class Operator:
    """Somebody with redis-cli; without Redis, the service itself, whose checks are the same for what it lets pass."""

    def __init__(self, api: Api, place: str, stores: Callable[[str], Lane], prefix: str) -> None:
        self._key = f"{prefix}:{{search}}:overrides"
        self._client = None if place == "local" else stores(place).client
        self._local = api.runtime.process.local
        self._local_key = "sr:{search}:overrides"
        self._fields: dict[str, str] = {}

    def set(self, field: str, value: str) -> None:
        if self._client:
            self._client.hset(self._key, field, value)
            return
        self._fields[field] = value
        self._local.put(self._local_key, dict(self._fields))

    def delete(self, field: str) -> None:
        if self._client:
            self._client.hdel(self._key, field)
            return
        del self._fields[field]
        self._local.put(self._local_key, dict(self._fields) or None)


@pytest.fixture
def operator(api: Api, place: str, stores: Callable[[str], Lane], prefix: str) -> Operator:
    return Operator(api, place, stores, prefix)


# Pauses


def test_a_paused_resource_refuses_every_key_and_says_until_when(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    api.clock.advance(5)

    for key in ("", "user:42"):
        decision = api(limiter.try_acquire(key))
        assert (decision.allowed, decision.limited_by, decision.limit) == (False, "pause", 10)
        assert decision.retry_after == pytest.approx(15, abs=1e-5)
    assert api(limiter.peek()).limited_by == "pause"
    with pytest.raises(RateLimitExceeded, match=r"'search' \(pause\) exceeded"):
        api(limiter.acquire(timeout=14.9))


def test_a_pause_takes_nothing_and_ends_by_itself(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    api(limiter.try_acquire(cost=10))
    api.clock.advance(20)

    assert api(limiter.try_acquire(cost=10)).remaining == 0


def test_who_may_wait_waits_for_the_end_of_the_pause(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    before = api.clock.monotonic()

    assert api(limiter.acquire(timeout=21)).allowed
    assert api.clock.monotonic() - before == pytest.approx(20, abs=1e-4)


def test_the_whole_fleet_sees_a_pause_and_its_end_at_once(api: Api, limiter: Any, other: ResilienceService) -> None:
    elsewhere = other.get_or_create_rate_limiter("search", TokenBucket(10, 5), remember_refusals=False)
    assert elsewhere.try_acquire().allowed
    api(limiter.pause(20))

    refusal = elsewhere.try_acquire()
    assert (refusal.limited_by, refusal.source) == ("pause", "redis")
    elsewhere.pause(0)
    assert api(limiter.try_acquire()).allowed


def test_a_longer_pause_stays_and_a_shorter_one_is_prolonged(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    api(limiter.pause(5))
    assert api(limiter.peek()).retry_after == pytest.approx(20, abs=1e-5)

    api.clock.advance(18)
    api(limiter.pause(5))
    assert api(limiter.peek()).retry_after == pytest.approx(5, abs=1e-5)


def test_a_pause_of_nothing_ends_the_pause_even_for_a_remembered_refusal(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(10, 5))
    api(limiter.pause(20))
    assert not api(limiter.allow())
    api(limiter.pause(0))

    assert api(limiter.allow())


@pytest.mark.parametrize("seconds", [60.1, -1, -0.001, math.nan, math.inf, "1", None, True])
def test_a_wrong_pause_is_refused(api: Api, limiter: Any, seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"seconds is .*, but must be a number from 0 to 60"):
        api(limiter.pause(seconds))

    assert api(limiter.allow())


def test_the_longest_pause_is_what_was_configured(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", max_pause=600.0)
    api(limiter.pause(600))

    assert api(limiter.peek()).retry_after == pytest.approx(600, abs=1e-5)
    with pytest.raises(ValueError, match="from 0 to 600"):
        api(limiter.pause(601))


@pytest.mark.parametrize("max_pause", [0, -1, math.nan, 3601, "60"])
def test_a_wrong_longest_pause_is_refused(api: Api, max_pause: Any) -> None:
    with pytest.raises(ValueError, match="max_pause is"):
        api.service.get_or_create_rate_limiter("search", max_pause=max_pause)


def test_a_clock_set_back_during_a_pause_prolongs_it_by_its_own_length_at_most(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    api.clock.advance(15)
    api.clock.advance(-3600)

    assert api(limiter.try_acquire()).retry_after == pytest.approx(20, abs=1e-5)
    api.clock.advance(19)
    assert api(limiter.try_acquire()).retry_after == pytest.approx(1, abs=1e-5)
    api.clock.advance(1.001)
    assert api(limiter.try_acquire()).allowed


def test_a_small_step_back_prolongs_a_pause_by_the_step(api: Api, limiter: Any) -> None:
    api(limiter.pause(20))
    api.clock.advance(15)
    api.clock.advance(-2)

    assert api(limiter.try_acquire()).retry_after == pytest.approx(7, abs=1e-5)


def test_a_pause_goes_on_while_redis_is_away(api: Api, limiter: Any, redis_is_away: Callable[[], None]) -> None:
    api(limiter.pause(20))
    api.clock.advance(1)
    api(limiter.try_acquire())
    redis_is_away()
    api.clock.advance(10)

    assert api(limiter.try_acquire()).limited_by == "pause"
    api.clock.advance(9.01)
    assert api(limiter.try_acquire()).allowed


def test_who_paused_does_not_forget_it_when_redis_is_lost_at_once(server: Server, prefix: str) -> None:
    with ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT) as service:
        limiter = service.get_or_create_rate_limiter("search", TokenBucket(10, 5))
        limiter.try_acquire()
        limiter.pause(20)
        guard = service._runtime.process.guard
        guard.launch = lambda start: None  # type: ignore[method-assign]  # no probe
        guard.usable = False

        decision = limiter.try_acquire()

    assert (decision.source, decision.limited_by) == ("local", "pause")


@pytest.mark.parametrize(
    "on_outage",
    [
        "local",
        "allow",
        "deny",
    ],
)
def test_a_pause_while_redis_is_away_is_no_error(prefix: str, on_outage: Any) -> None:
    service = ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}", prefix=prefix, on_outage=on_outage)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(10, 5))

    limiter.pause(20)


# Overrides


def test_an_override_acts_at_the_next_decision_and_ends_when_it_is_cleared(
    api: Api, limiter: Any, operator: Operator
) -> None:
    assert api(limiter.peek()).limit == 10
    operator.set("limit.token_bucket.capacity", "4")
    assert (api(limiter.try_acquire()).limit, api(limiter.peek()).remaining) == (4, 3)
    operator.delete("limit.token_bucket.capacity")

    assert api(limiter.peek()).limit == 10


KINDS = [
    (TokenBucket(10, 5), "limit.token_bucket.refill_rate", "0.5", 2.0),
    (LeakyBucket(10, 5), "limit.leaky_bucket.leak_rate", "0.5", 2.0),
    (SlidingWindow(10, 2), "limit.sliding_window.window", "7.5", 7.5),
    (SlidingWindow(10, 2, exact=False), "limit.sliding_window.window", "7.5", 7.5),
    (SlidingWindow(10, 2, label="per-minute"), "limit.per-minute.window", "7.5", 7.5),
]


@pytest.mark.parametrize(("limit", "field", "value", "retry_after"), KINDS)
def test_every_kind_has_numbers_that_can_be_overridden(
    api: Api, operator: Operator, limit: Any, field: str, value: str, retry_after: float
) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", limit, remember_refusals=False)
    api(limiter.try_acquire(cost=10))
    operator.set(field, value)

    refusal = api(limiter.try_acquire())
    assert not refusal.allowed
    assert refusal.retry_after == pytest.approx(retry_after, abs=retry_after / 50)


def test_the_limit_of_a_window_can_be_overridden(api: Api, operator: Operator) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", SlidingWindow(10, 60), remember_refusals=False)
    api(limiter.try_acquire(cost=4))
    operator.set("limit.sliding_window.limit", "5")

    assert [api(limiter.allow()) for _ in range(2)] == [True, False]


def test_the_service_sets_and_clears_overrides_for_the_fleet(
    api: Api, limiter: Any, other: ResilienceService, operator: Operator
) -> None:
    elsewhere = other.get_or_create_rate_limiter("search", TokenBucket(10, 5))
    api(api.service.set_override("search", "limit.token_bucket.capacity", 4))
    assert elsewhere.peek().limit == api(limiter.peek()).limit == 4
    other.clear_override("search", "limit.token_bucket.capacity")

    assert elsewhere.peek().limit == api(limiter.peek()).limit == 10


def test_the_service_sets_rates_as_exactly_as_they_are_configured(api: Api, events: list[Event]) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(1, 5), remember_refusals=False)
    api(limiter.try_acquire())
    api(api.service.set_override("search", "limit.token_bucket.refill_rate", 0.125))
    assert api(limiter.try_acquire()).retry_after == 8.0
    api(api.service.set_override("search", "limit.token_bucket.refill_rate", 1e-6))
    assert api(limiter.try_acquire()).retry_after == 1e6

    api(api.service.clear_override("search", "limit.token_bucket.refill_rate"))
    assert api(limiter.try_acquire()).retry_after == 0.2
    assert {event.name for event in events} == {"limit.refused"}


@pytest.mark.parametrize(
    ("field", "number"),
    [
        ("limit.token_bucket.capacity", 0),
        ("limit.token_bucket.capacity", 1.5),
        ("limit.token_bucket.capacity", 10**9 + 1),
        ("limit.token_bucket.refill_rate", 0),
        ("limit.token_bucket.refill_rate", math.nan),
        ("limit.token_bucket.refill_rate", math.inf),
        ("limit.token_bucket.refill_rate", "5"),
        ("limit.token_bucket.window", 0.0001),
        ("limit.token_bucket.color", 1),
        ("capacity", 1),
        ("paused_until_us", 1),
        ("limit.a b.capacity", 1),
    ],
)
def test_the_service_refuses_overrides_that_scripts_would_ignore(
    api: Api, limiter: Any, field: str, number: Any
) -> None:
    with pytest.raises(ValueError, match=r"(field|limit\.\S+) is .*, but must be"):
        api(api.service.set_override("search", field, number))

    assert api(limiter.peek()).limit == 10


@pytest.mark.parametrize(
    ("field", "number", "text"),
    [
        ("limit.x.capacity", 7, "7"),
        ("limit.x.limit", 7, "7"),
        ("limit.x.refill_rate", 7, "7.000000"),
        ("limit.x.window", 7, "7.000000"),
        ("breaker.failure_threshold", 7, "7"),
        ("breaker.half_open_max_calls", 1000, "1000"),
        ("breaker.window", 7, "7.000000"),
    ],
)
def test_counts_are_told_as_integers_and_other_overrides_to_the_millionth(field: str, number: int, text: str) -> None:
    assert override_text(field, number) == text


@pytest.mark.parametrize(
    ("field", "number", "allowed"),
    [
        ("limit.x.limit", 7.5, "an integer from 1 to 1000000000"),
        ("breaker.failure_threshold", 7.5, "an integer from 1 to 1000000000"),
        ("breaker.half_open_max_calls", 1001, "an integer from 1 to 1000"),
    ],
)
def test_an_override_of_a_count_is_an_integer_in_its_range(field: str, number: float, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} is {number}, but must be {allowed}$"):
        override_text(field, number)


def test_an_override_that_redis_cannot_be_told_is_an_error(prefix: str) -> None:
    service = ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}", prefix=prefix)

    with pytest.raises(StoreUnavailableError):
        service.set_override("search", "limit.token_bucket.capacity", 4)
    with pytest.raises(StoreUnavailableError):
        service.clear_override("search", "limit.token_bucket.capacity")


NO_NUMBERS = ["", "many", "-1", "-0", "0", "1e3", "nan", "inf", "0x10", " 7", "7 ", "+7", "1.5.2", "9" * 400]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("capacity", value) for value in [*NO_NUMBERS, "2.5", "0.9", "1000000001"]),
        *(("refill_rate", value) for value in [*NO_NUMBERS, "0.0000001", "1000000000.5"]),
    ],
)
def test_what_is_no_number_in_its_range_is_ignored_with_one_event(
    api: Api, limiter: Any, operator: Operator, events: list[Event], field: str, value: str
) -> None:
    operator.set(f"limit.token_bucket.{field}", value)

    decisions = [api(limiter.try_acquire(cost=10)) for _ in range(3)]

    assert [(decision.allowed, decision.limit) for decision in decisions] == [(True, 10), (False, 10), (False, 10)]
    assert decisions[-1].retry_after == pytest.approx(2.0)
    ignored = [event for event in events if event.name == "override.ignored"]
    assert [(event.resource, dict(event.details)) for event in ignored] == [
        ("search", {"field": f"limit.token_bucket.{field}"})
    ]


@pytest.mark.parametrize("value", ["0.0001", "0", "31622401", "-5", "a minute"])
def test_a_window_out_of_its_range_is_ignored(api: Api, operator: Operator, events: list[Event], value: str) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", SlidingWindow(1, 60), remember_refusals=False)
    operator.set("limit.sliding_window.window", value)
    api(limiter.try_acquire())

    assert api(limiter.try_acquire()).retry_after == pytest.approx(60, abs=1e-5)
    assert [event.name for event in events if event.name.startswith("override")] == ["override.ignored"]


def test_a_look_at_a_wrong_override_has_its_event(
    api: Api, limiter: Any, operator: Operator, events: list[Event]
) -> None:
    operator.set("limit.token_bucket.capacity", "many")
    api(limiter.peek())

    assert [dict(event.details) for event in events] == [{"field": "limit.token_bucket.capacity"}]


def test_each_of_several_wrong_overrides_has_an_event_of_its_own(
    api: Api, limiter: Any, operator: Operator, events: list[Event]
) -> None:
    fields = {"limit.token_bucket.capacity", "limit.token_bucket.refill_rate"}
    for field in fields:
        operator.set(field, "many")

    for _ in range(3):
        api(limiter.try_acquire())

    assert {event.details["field"] for event in events if event.name == "override.ignored"} == fields


def test_a_cost_above_an_overridden_capacity_never_passes(api: Api, limiter: Any, operator: Operator) -> None:
    operator.set("limit.token_bucket.capacity", "4")

    refusal = api(limiter.try_acquire(cost=5))
    assert (refusal.allowed, refusal.retry_after, refusal.limited_by) == (False, math.inf, "token_bucket")
    with pytest.raises(RateLimitExceeded, match="retry after inf s"):
        api(limiter.acquire(cost=5))
    assert api(limiter.try_acquire(cost=4)).allowed


def test_overrides_stay_in_force_while_redis_is_away(
    api: Api, limiter: Any, operator: Operator, redis_is_away: Callable[[], None]
) -> None:
    operator.set("limit.token_bucket.capacity", "4")
    api.clock.advance(1)
    api(limiter.try_acquire("before"))
    redis_is_away()

    decision = api(limiter.try_acquire("after"))
    assert (decision.source, decision.limit, decision.remaining) == ("local", 4, 3)


def test_statistics_show_the_overrides(api: Api, limiter: Any, operator: Operator, place: str) -> None:
    if place == "local":
        pytest.skip("without Redis there is no heartbeat")
    operator.set("limit.token_bucket.capacity", "4")
    api(limiter.try_acquire())

    stats = api(api.service.get_comprehensive_stats())

    assert stats["rate_limiters"]["search"]["overrides"] == {"limit.token_bucket.capacity": "4"}


# Shadow mode


def test_shadow_mode_refuses_nothing_and_tells_what_it_would_have_done(api: Api, events: list[Event]) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(2, SLOW), shadow=True)
    before = api.clock.monotonic()

    decisions = [api(limiter.try_acquire("a")) for _ in range(3)] + [api(limiter.acquire("a", timeout=5))]

    assert api(limiter.peek("a")) == decisions[2]
    assert [decision.allowed for decision in decisions] == [True] * 4
    assert [decision.limited_by for decision in decisions] == [None, None, "token_bucket", "token_bucket"]
    assert [(decision.retry_after, decision.delay) for decision in decisions] == [(0.0, 0.0)] * 4
    assert api.clock.monotonic() == before
    assert [(event.name, event.details["key"]) for event in events] == [("limit.shadow_refused", "a")] * 2
    counted = api.runtime.process.heartbeat.resource("search").counted()
    assert counted["limit.shadow_refused"] == counted["limit.allowed"] == 2
    assert "limit.refused" not in counted


def test_shadow_mode_makes_nobody_wait_for_a_turn_or_a_pause(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", LeakyBucket(5, 1), shadow=True)
    before = api.clock.monotonic()
    for _ in range(3):
        assert api(limiter.acquire(timeout=60)).delay == 0
    api(limiter.pause(30))

    assert api(limiter.acquire(timeout=60)).limited_by == "pause"
    assert api.clock.monotonic() == before


def test_shadow_mode_counts_what_passes_as_if_it_were_not_there(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("search", TokenBucket(2, 1), shadow=True)
    for _ in range(5):
        api(limiter.try_acquire())
    api.clock.advance(1)

    assert api(limiter.try_acquire()).limited_by is None
    assert api(limiter.try_acquire()).limited_by == "token_bucket"


# Several limits


def three_limits(api: Api) -> Any:
    return api.service.get_or_create_rate_limiter(
        "search",
        TokenBucket(4, 2, label="user"),
        SlidingWindow(6, 10, label="tenant"),
        LeakyBucket(8, 1, label="global"),
        remember_refusals=False,
    )


def left(api: Api, limiter: Any, **key: str) -> int:
    remaining: int = api(limiter.peek(key)).remaining
    return remaining


def test_a_refusal_by_any_limit_charges_none(api: Api) -> None:
    limiter = three_limits(api)
    api(limiter.try_acquire({"user": "ada", "tenant": "acme"}, 4))

    assert not api(limiter.try_acquire({"user": "bob", "tenant": "acme"}, 3))
    assert not api(limiter.try_acquire({"user": "ada", "tenant": "other"}, 1))
    assert left(api, limiter, user="bob", tenant="new") == 4  # all of bob's own; of 8 in the queue, 4
    assert left(api, limiter, user="eve", tenant="acme") == 2
    assert api(limiter.try_acquire({"user": "bob", "tenant": "other"}, 4))


def test_a_refusal_speaks_of_the_limit_that_keeps_it_longest(api: Api) -> None:
    limiter = three_limits(api)
    api(limiter.try_acquire({"user": "ada", "tenant": "acme"}, 4))

    by_user = api(limiter.try_acquire({"user": "ada"}, 4))
    by_tenant = api(limiter.try_acquire({"user": "ada", "tenant": "acme"}, 4))
    api(limiter.try_acquire({"user": "bob"}, 4))
    by_all = api(limiter.try_acquire({"user": "eve", "tenant": "other"}, 4))

    assert (by_user.limited_by, by_user.limit, by_user.retry_after) == ("user", 4, 2.0)
    assert (by_tenant.limited_by, by_tenant.limit) == ("tenant", 6)
    assert by_tenant.retry_after == pytest.approx(10, abs=1e-5)
    assert (by_all.limited_by, by_all.limit, by_all.retry_after) == ("global", 8, 4.0)


def test_a_limit_that_can_never_let_it_pass_keeps_it_longest(api: Api, operator: Operator) -> None:
    limiter = three_limits(api)
    api(limiter.try_acquire(cost=4))
    operator.set("limit.global.capacity", "2")

    refusal = api(limiter.try_acquire(cost=4))
    assert (refusal.limited_by, refusal.retry_after) == ("global", math.inf)


def test_retry_after_of_several_limits_is_when_the_call_passes(api: Api) -> None:
    limiter = three_limits(api)
    api(limiter.try_acquire({"user": "ada", "tenant": "acme"}, 4))
    refusal = api(limiter.try_acquire({"user": "ada", "tenant": "acme"}, 3))
    api.clock.advance(refusal.retry_after - 0.01)

    assert not api(limiter.try_acquire({"user": "ada", "tenant": "acme"}, 3))
    api.clock.advance(0.011)
    assert api(limiter.try_acquire({"user": "ada", "tenant": "acme"}, 3))


def test_an_allowed_call_speaks_of_the_limit_with_least_left(api: Api) -> None:
    limiter = three_limits(api)

    assert api(limiter.try_acquire({"user": "ada"}, 3))[:3] == (True, 4, 1)
    assert api(limiter.try_acquire({"user": "bob"}, 2))[:3] == (True, 6, 1)


def test_one_text_is_the_key_of_every_limit_and_a_label_left_out_stands_for_the_empty_key(api: Api) -> None:
    limiter = three_limits(api)
    api(limiter.try_acquire("acme", 4))

    assert left(api, limiter, user="acme") == 0
    assert left(api, limiter, tenant="acme") == 2
    assert left(api, limiter) == 4
    assert api(limiter.peek({})).remaining == api(limiter.peek("")).remaining == 4


def test_the_cost_is_at_most_the_smallest_of_the_limits(api: Api) -> None:
    with pytest.raises(ValueError, match="cost is 5, but must be an integer from 1 to 4"):
        api(three_limits(api).try_acquire(cost=5))


def test_a_refund_and_a_reset_reach_every_limit(api: Api) -> None:
    limiter = three_limits(api)
    key = {"user": "ada", "tenant": "acme", "global": "all"}
    api(limiter.try_acquire(key, 4))
    api(limiter.refund(key, 3))
    assert (left(api, limiter, **key), left(api, limiter, tenant="acme", user="bob")) == (3, 4)
    api(limiter.reset(key))

    assert api(limiter.try_acquire(key, 4))
    assert left(api, limiter, user="bob", tenant="acme") == 2


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((TokenBucket(1, 1), TokenBucket(2, 1)), "several limits have the label 'token_bucket'; give each a label="),
        ((TokenBucket(1, 1, label="a"), SlidingWindow(2, label="a")), "several limits have the label 'a'"),
        ((TokenBucket(1, 1, label="pause"),), "label is 'pause'"),
        ((10,), "limit is 10, but must be a TokenBucket, SlidingWindow or LeakyBucket"),
    ],
)
def test_limits_that_could_not_be_told_apart_are_refused(api: Api, limits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        api.service.get_or_create_rate_limiter("search", *limits)


@pytest.mark.parametrize("method", ["try_acquire", "acquire", "allow", "peek", "refund", "reserve", "reset"])
def test_a_label_that_no_limit_has_is_refused(api: Api, method: str) -> None:
    with pytest.raises(ValueError, match=r"key has the labels \['usr'\], but 'search' has only \['user', 'tenant', "):
        api(getattr(three_limits(api), method)({"usr": "ada", "tenant": "acme"}))


# Partitions


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
