"""What operators do to a resource while it is in use: pauses, overrides, partitions, shadows."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Api

from shared_resilience import Event, LeakyBucket, RateLimitExceeded, SlidingWindow, TokenBucket
from shared_resilience.backends import step
from shared_resilience.commands import Command
from shared_resilience.limit_commands import OVERRIDE


@pytest.fixture
def limiter(api: Api) -> Any:
    return api.service.get_or_create_rate_limiter("search", TokenBucket(10, 1))


@pytest.fixture(params=[False, True], ids=["whole", "partitioned"])
def either(api: Api, request: pytest.FixtureRequest) -> Any:
    return api.service.get_or_create_rate_limiter("search", TokenBucket(10, 1), partitioned=request.param)


def test_a_pause_stops_every_key_and_is_over_in_time(api: Api, either: Any) -> None:
    api(either.pause(0.5))
    refused = [api(either.try_acquire(key)) for key in ("", "a")]
    seen = api(either.peek("a"))
    api.clock.advance(0.5)

    assert [(r.allowed, r.limited_by, r.limit, r.delay) for r in refused] == [(False, "pause", 10, 0.0)] * 2
    assert [(r.retry_after, r.reset_after) for r in (*refused, seen)] == [pytest.approx((0.5, 0.5))] * 3
    assert not seen.allowed
    assert api(either.try_acquire()).remaining == 9


def test_a_pause_can_be_ended_and_a_longer_one_stays(api: Api, either: Any) -> None:
    api(either.pause(30))
    api(either.pause(1))
    api.clock.advance(2)
    still = api(either.peek())
    api(either.pause(0))

    assert still.retry_after == pytest.approx(28)
    assert api(either.try_acquire()).allowed


def test_acquire_waits_for_the_end_of_a_pause(api: Api, either: Any) -> None:
    api(either.pause(0.25))
    before = api.clock.monotonic()

    assert api(either.acquire(timeout=1)).allowed
    assert api.clock.monotonic() - before == pytest.approx(0.25, abs=1e-4)
    api(either.pause(2))
    with pytest.raises(RateLimitExceeded, match=r"\(pause\) exceeded: retry after 2.000 s"):
        api(either.acquire(timeout=1))


@pytest.mark.parametrize("seconds", [-0.1, 60.1, float("nan"), "1", True])
def test_a_pause_is_no_longer_than_the_limiter_allows(api: Api, limiter: Any, seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"seconds is .*, but must be a number from 0 to 60"):
        api(limiter.pause(seconds))

    api(limiter.pause(60))
    assert api(limiter.peek()).retry_after == pytest.approx(60)


@pytest.mark.parametrize(
    ("limit", "field", "number", "seen"),
    [
        (TokenBucket(10, 1), "limit.token_bucket.capacity", 4, (4, 1.0)),
        (TokenBucket(10, 1), "limit.token_bucket.refill_rate", 0.25, (10, 4.0)),
        (LeakyBucket(10, 1), "limit.leaky_bucket.leak_rate", 2, (10, 0.5)),
        (SlidingWindow(10, 60), "limit.sliding_window.limit", 7, (7, 60.000001)),
        (SlidingWindow(10, 60), "limit.sliding_window.window", 2.5, (10, 2.500001)),
    ],
)
@pytest.mark.parametrize("partitioned", [False, True])
def test_an_override_is_in_force_until_it_is_cleared(
    api: Api, place: str, limit: Any, field: str, number: float, seen: tuple[int, float], partitioned: bool
) -> None:
    if partitioned and place == "local":
        pytest.skip("a partition learns of overrides by the heartbeat, and a local service has none")
    limiter = api.service.get_or_create_rate_limiter("search", limit, partitioned=partitioned)
    before = api(limiter.peek("b"))
    api(api.service.set_override("search", field, number))
    api(api.service.get_comprehensive_stats())
    changed = api(limiter.try_acquire("a"))
    api(api.service.clear_override("search", field))
    api(api.service.get_comprehensive_stats())

    assert (changed.limit, changed.reset_after) == (seen[0], pytest.approx(seen[1]))
    assert (before.limit, api(limiter.peek("b")).limit) == (10, 10)


@pytest.mark.parametrize(
    ("field", "number", "message"),
    [
        ("limit.a.speed", 1, r"field is 'limit.a.speed', but must be one like 'limit.<label>.refill_rate', as in"),
        ("limit..capacity", 1, "field is 'limit..capacity'"),
        ("capacity", 1, "field is 'capacity'"),
        ("limit.a.capacity", 0, "limit.a.capacity is 0, but must be an integer from 1"),
        ("limit.a.capacity", 1.5, "limit.a.capacity is 1.5"),
        ("limit.a.limit", 10**9 + 1, "limit.a.limit is 1000000001, but must be an integer"),
        ("limit.a.window", 0.0009, "limit.a.window is 0.0009, but must be a number from 0.001 to 3.16224e"),
        ("limit.a.window", 31622401, "limit.a.window is 31622401"),
        ("limit.a.refill_rate", 0, "limit.a.refill_rate is 0, but must be a number from 1e-06"),
        ("limit.a.leak_rate", 2e9, "limit.a.leak_rate is 2000000000.0"),
    ],
)
def test_an_override_that_scripts_would_ignore_is_refused(api: Api, field: str, number: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        api(api.service.set_override("search", field, number))


def test_an_override_that_is_no_number_is_ignored_and_told_once(api: Api, limiter: Any) -> None:
    told: list[Event] = []
    limiter._core._events.add([told.append])
    overrides = Command(OVERRIDE, (limiter._core.resource.keys.overrides,), ("limit.token_bucket.capacity", "many"))
    written = limiter._backend.run(overrides, limiter._core.resource)
    api(written) if api.form == "asyncio" else step(written)

    assert [api(limiter.try_acquire()).limit for _ in range(3)] == [10] * 3
    assert [(event.name, event.resource, dict(event.details)) for event in told] == [
        ("override.ignored", "search", {"field": "limit.token_bucket.capacity"})
    ]


def test_a_cost_above_an_override_is_never_allowed(api: Api, limiter: Any) -> None:
    api(api.service.set_override("search", "limit.token_bucket.capacity", 5))

    refused = api(limiter.try_acquire(cost=6))

    assert (refused.allowed, refused.retry_after) == (False, float("inf"))
    with pytest.raises(RateLimitExceeded):
        api(limiter.acquire(cost=6))


def test_keys_of_a_partitioned_resource_are_separate_and_reset_one_by_one(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("spread", TokenBucket(2, 0.001), partitioned=True)
    for key in ("a", "b", "b"):
        api(limiter.try_acquire(key))
    left = [api(limiter.peek(key)).remaining for key in ("a", "b", "c")]
    api(limiter.reset("b"))

    assert left == [1, 0, 2]
    assert [api(limiter.peek(key)).remaining for key in ("a", "b", "c")] == [1, 2, 2]
    with pytest.raises(TypeError, match="'spread' is partitioned: its keys are spread over a cluster; reset them one"):
        api(limiter.reset_all())
    with pytest.raises(ValueError, match="key is a mapping, but 'spread' is partitioned and has one key for all"):
        api(limiter.try_acquire({"token_bucket": "a"}))


def test_a_shadow_refuses_nothing_and_tells_what_it_would_have_refused(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("shadow", TokenBucket(2, 0.001), shadow=True)
    told: list[Event] = []
    limiter._core._events.add([told.append])
    decisions = [api(limiter.try_acquire("k")) for _ in range(4)]
    api(limiter.acquire("k", timeout=5))

    assert [(d.allowed, d.limited_by, d.retry_after) for d in decisions] == [
        (True, None, 0.0), (True, None, 0.0), (True, "token_bucket", 0.0), (True, "token_bucket", 0.0)
    ]  # fmt: skip
    assert [(event.name, event.resource, event.details["key"]) for event in told] == [
        ("limit.shadow_refused", "shadow", "k")
    ] * 3
    stats = api(api.service.get_comprehensive_stats())["rate_limiters"]["shadow"]["local"]
    assert (stats["limit.allowed"], stats["limit.shadow_refused"]) == (2, 3)


def test_a_shadow_lets_nobody_wait(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("shadow", LeakyBucket(3, 0.5), shadow=True)
    before = api.clock.monotonic()
    decisions = [api(limiter.acquire(timeout=60)) for _ in range(5)]

    assert [decision.delay for decision in decisions] == [0.0] * 5
    assert api.clock.monotonic() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limits": ["fast"]}, "limit is 'fast', but must be a TokenBucket, SlidingWindow or LeakyBucket"),
        (
            {"limits": [TokenBucket(1, 1, "x"), SlidingWindow(1, 1, True, "x")]},
            "several limits have the label 'x'; give each a label= of its own",
        ),
        ({"limits": [TokenBucket(label="pause")]}, "label is 'pause', but that is what limits a paused resource"),
        ({"shadow": 1}, "shadow is 1, but must be True or False"),
        ({"partitioned": "yes"}, "partitioned is 'yes', but must be True or False"),
        ({"remember_refusals": 0}, "remember_refusals is 0, but must be True or False"),
        ({"on_outage": "hope"}, "on_outage is 'hope', but must be one of 'local', 'allow', 'deny', 'raise'"),
        ({"max_pause": 0}, "max_pause is 0, but must be a number from 0.001 to 3600"),
        ({"max_pause": 3601}, "max_pause is 3601"),
    ],
)
def test_a_wrong_configuration_names_field_value_and_range(api: Api, arguments: dict[str, Any], message: str) -> None:
    options = {name: value for name, value in arguments.items() if name != "limits"}

    with pytest.raises(ValueError, match=message):
        api.service.get_or_create_rate_limiter("wrong", *arguments.get("limits", []), **options)
