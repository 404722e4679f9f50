"""The rate limiter as users call it: one body for sync and asyncio, Redis and local."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import pytest
from conftest import Api

from shared_resilience import Decision, RateLimitExceeded, TokenBucket
from shared_resilience.commands import Source


@pytest.fixture
def limiter(api: Api) -> Any:
    return api.service.get_or_create_rate_limiter("search", TokenBucket(3, 2))


def drain(api: Api, limiter: Any, key: str = "") -> None:
    while api(limiter.try_acquire(key)):
        pass


def test_a_fresh_limiter_allows_its_capacity_and_then_refuses(api: Api, limiter: Any) -> None:
    decisions = [api(limiter.try_acquire("user:42")) for _ in range(4)]

    assert [bool(decision) for decision in decisions] == [True, True, True, False]
    assert [decision.remaining for decision in decisions] == [2, 1, 0, 0]


def test_a_decision_tells_all_there_is_to_know(api: Api, limiter: Any, place: str) -> None:
    source: Source = "local" if place == "local" else "redis"
    first = api(limiter.try_acquire(cost=2))
    refusal = api(limiter.try_acquire(cost=2))

    assert first == Decision(True, 3, 1, 0.0, 1.0, 0.0, None, source)
    assert refusal == Decision(False, 3, 1, 0.5, 1.0, 0.0, "token_bucket", source)


def test_keys_do_not_share_their_tokens(api: Api, limiter: Any) -> None:
    drain(api, limiter, "a")

    assert api(limiter.allow("b"))
    assert not api(limiter.allow("a"))


def test_a_key_may_be_named_by_the_label_of_the_limit(api: Api, limiter: Any) -> None:
    drain(api, limiter, "a")

    assert not api(limiter.allow({"token_bucket": "a"}))
    with pytest.raises(ValueError, match="key has the labels \\['tenant'\\]"):
        api(limiter.allow({"tenant": "a"}))


def test_tokens_come_back_with_time(api: Api, limiter: Any) -> None:
    drain(api, limiter)
    api.clock.advance(1.0)

    assert [api(limiter.allow()) for _ in range(3)] == [True, True, False]


def test_acquire_waits_for_room(api: Api, limiter: Any) -> None:
    drain(api, limiter)
    before = api.clock.monotonic()

    assert api(limiter.acquire(cost=2)).allowed
    assert api.clock.monotonic() - before == pytest.approx(1.0, abs=1e-5)


def test_acquire_gives_up_at_once_when_its_timeout_cannot_suffice(api: Api, limiter: Any) -> None:
    drain(api, limiter)
    before = api.clock.monotonic()

    with pytest.raises(RateLimitExceeded) as caught:
        api(limiter.acquire("", 2, timeout=0.9))

    assert api.clock.monotonic() == before
    assert caught.value.name == "search"
    assert caught.value.retry_after == pytest.approx(1.0, abs=1e-5)
    assert "retry after 1.000 s" in str(caught.value)


def test_peek_takes_nothing_and_asks_even_when_a_refusal_is_remembered(api: Api, limiter: Any) -> None:
    drain(api, limiter)
    api.clock.advance(0.6)

    assert api(limiter.peek()).allowed
    assert api(limiter.peek(cost=2)).retry_after == pytest.approx(0.4, abs=1e-5)
    assert api(limiter.allow())


def test_a_refund_is_usable_at_once_in_this_process(api: Api, limiter: Any) -> None:
    drain(api, limiter)
    api(limiter.refund(cost=2))

    assert [api(limiter.allow()) for _ in range(3)] == [True, True, False]


def test_reset_makes_one_key_as_new(api: Api, limiter: Any) -> None:
    drain(api, limiter, "a")
    drain(api, limiter, "b")
    api(limiter.reset("a"))

    assert api(limiter.peek("a")).remaining == 3
    assert not api(limiter.allow("b"))


def test_reset_all_makes_every_key_of_this_limiter_as_new_and_no_other(api: Api, limiter: Any) -> None:
    other = api.service.get_or_create_rate_limiter("search*", TokenBucket(3, 2))
    for key in ("", "a", "b*", "[c]"):
        drain(api, limiter, key)
        drain(api, other, key)
    api(limiter.reset_all())

    assert [api(limiter.peek(key)).remaining for key in ("", "a", "b*", "[c]")] == [3, 3, 3, 3]
    assert [api(other.peek(key)).remaining for key in ("", "a", "b*", "[c]")] == [0, 0, 0, 0]


@pytest.mark.parametrize("cost", [0, -1, 4, 1.0, True, "1", None, math.nan])
@pytest.mark.parametrize("method", ["try_acquire", "acquire", "allow", "peek", "refund"])
def test_a_wrong_cost_is_refused_before_anything_is_sent(api: Api, limiter: Any, method: str, cost: Any) -> None:
    with pytest.raises(ValueError, match=r"cost is .*, but must be an integer from 1 to 3"):
        api(getattr(limiter, method)("", cost))

    assert api.runtime.process.heartbeat.resource("search").counted() == {}


@pytest.mark.parametrize("timeout", [-1, math.nan, "1", True])
def test_a_wrong_timeout_is_refused(api: Api, limiter: Any, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout is"):
        api(limiter.acquire(timeout=timeout))


def test_a_remembered_refusal_counts_down_and_ends_with_retry_after(api: Api, limiter: Any) -> None:
    drain(api, limiter)
    first = api(limiter.try_acquire())
    api.clock.advance(0.2)
    second = api(limiter.try_acquire())
    api.clock.advance(0.3001)

    assert second.retry_after == pytest.approx(first.retry_after - 0.2, abs=1e-5)
    assert api(limiter.allow())


def test_a_refusal_of_a_large_cost_says_nothing_about_a_small_one(api: Api, limiter: Any) -> None:
    api(limiter.try_acquire(cost=2))

    assert not api(limiter.allow(cost=2))
    assert api(limiter.allow(cost=1))


def test_a_limiter_decorates_plain_functions_and_coroutine_functions(api: Api, limiter: Any) -> None:
    @limiter
    def plain(a: int, b: int = 2) -> int:
        """Adds."""
        return a + b

    @limiter
    async def coroutine(a: int, b: int = 2) -> int:
        return a + b

    if api.form == "asyncio":
        assert api(coroutine(1, b=4)) == 5
        assert inspect.iscoroutinefunction(coroutine)
    assert plain(1) == 3
    assert (plain.__name__, plain.__doc__) == ("plain", "Adds.")


def call(api: Api, function: Any, *args: Any) -> Any:
    return api(function(*args))


def function_of(api: Api) -> Any:
    """A function that returns its arguments, in the form under test."""
    if api.form == "sync":
        return lambda *args: args

    async def coroutine(*args: Any) -> Any:
        return args

    return coroutine


def test_a_decorated_function_is_refused_at_once_by_default(api: Api, limiter: Any) -> None:
    limited = limiter(function_of(api))
    drain(api, limiter)

    with pytest.raises(RateLimitExceeded):
        call(api, limited, 1)


def test_a_decorator_takes_key_and_cost_from_the_arguments_and_can_wait(api: Api, limiter: Any) -> None:
    limited = limiter.limit(key=lambda user, n: user, cost=lambda user, n: n, timeout=10)(function_of(api))
    before = api.clock.monotonic()
    call(api, limited, "ada", 3)

    assert call(api, limited, "bob", 3) == ("bob", 3)
    assert api.clock.monotonic() == before
    assert call(api, limited, "ada", 2) == ("ada", 2)
    assert api.clock.monotonic() - before == pytest.approx(1.0, abs=1e-5)


def test_stop_iteration_of_the_users_function_passes_unchanged(api: Api, limiter: Any) -> None:
    @limiter
    def exhausted() -> None:
        raise StopIteration("mine")

    if api.form == "sync":
        with pytest.raises(StopIteration, match="mine"):
            exhausted()


def test_a_partial_and_a_callable_object_can_be_decorated(api: Api, limiter: Any) -> None:
    class Adder:
        def __call__(self, a: int, b: int) -> int:
            return a + b

    assert limiter(functools.partial(Adder(), 1))(2) == 3
    assert limiter(Adder())(1, 2) == 3


def test_generator_functions_and_classes_cannot_be_decorated(api: Api, limiter: Any) -> None:
    def generator() -> Any:
        yield 1

    async def async_generator() -> Any:
        yield 1

    for function in (generator, async_generator, functools.partial(generator)):
        with pytest.raises(TypeError, match="generator function"):
            limiter(function)
    with pytest.raises(TypeError, match="is not a function"):
        limiter(dict)


def test_a_limiter_is_made_once_and_found_again_by_its_name(api: Api, limiter: Any) -> None:
    drain(api, limiter)

    again = api.service.get_or_create_rate_limiter("search")

    assert not api(again.allow())
    assert repr(again) == repr(limiter)


def test_another_configuration_under_the_same_name_is_an_error_that_shows_both(api: Api, limiter: Any) -> None:
    with pytest.raises(ValueError, match=r"capacity=3, .*capacity=4, "):
        api.service.get_or_create_rate_limiter("search", TokenBucket(4, 2))


def test_a_limiter_without_configuration_has_the_defaults(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("defaults")

    assert api(limiter.peek()).limit == 1000
    assert "refill_rate=100.0" in repr(limiter)


def test_statistics_tell_what_was_counted_here_and_in_the_fleet(api: Api, limiter: Any) -> None:
    drain(api, limiter)

    stats = api(api.service.get_comprehensive_stats())

    counted = stats["rate_limiters"]["search"]["local"]
    assert (counted["limit.allowed"], counted["limit.refused"]) == (3, 1)
    if stats["store"]["answered"]:
        assert stats["rate_limiters"]["search"]["fleet"] == counted
        assert stats["rate_limiters"]["search"]["live_workers"] == stats["fleet"]["workers"] == 1


def test_listeners_hear_of_refusals_and_cannot_break_the_call(api: Api, limiter: Any, caplog: Any) -> None:
    events: list[Any] = []
    api.runtime.process.events.add([lambda event: 1 / 0, events.append])
    drain(api, limiter, "user:42")

    assert [(event.name, event.resource, event.details["key"]) for event in events] == [
        ("limit.refused", "search", "user:42")
    ]
    assert "failed on limit.refused" in caplog.text


HOSTILE = [
    "a{b}c",
    "}",
    "{}",
    "a:b",
    "a\nb",
    "a b",
    "a%20b",
    "%",
    "%h" + "0" * 64,
    "x" * 10_000,
    "é" * 48,
    "é" * 49,
    "ключ",
    "🦀",
    "\ud800",
    "\x00",
    "*",
    "a*",
    "../..",
    "'; FLUSHALL",
]


def test_hostile_keys_and_names_work_and_never_share_a_state(api: Api) -> None:
    for number, name in enumerate(HOSTILE):
        limiter = api.service.get_or_create_rate_limiter(name, TokenBucket(len(HOSTILE) + 1, 0.001))
        for cost, key in enumerate(HOSTILE, start=1):
            assert api(limiter.try_acquire(key, cost)).remaining == len(HOSTILE) + 1 - cost, (number, key)
        for cost, key in enumerate(HOSTILE, start=1):
            assert api(limiter.peek(key)).remaining == len(HOSTILE) + 1 - cost
