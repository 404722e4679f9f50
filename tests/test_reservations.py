"""Reservations: a cost is estimated before a call and settled after it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from conftest import Api

from shared_resilience import LeakyBucket, RateLimitExceeded, SlidingWindow, TokenBucket

SLOW = 1e-6
LIMITS = [TokenBucket(10, SLOW), SlidingWindow(10, 3600), SlidingWindow(10, 3600, exact=False), LeakyBucket(10, SLOW)]
ids = ["token_bucket", "sliding_window", "coarse_window", "leaky_bucket"]


@pytest.fixture
def limiter(api: Api) -> Any:
    return api.service.get_or_create_rate_limiter("model", TokenBucket(10, SLOW))


@pytest.fixture(params=LIMITS, ids=ids)
def of_each_kind(request: pytest.FixtureRequest, api: Api) -> Any:
    return api.service.get_or_create_rate_limiter("model", request.param)


def inside(api: Api, reservation: Any, work: Any) -> None:
    """Calls `work(reservation)` inside the context manager of either form."""
    if api.form == "sync":
        with reservation as entered:
            work(entered)
        return

    async def body() -> None:
        async with reservation as entered:
            outcome = work(entered)
            if outcome is not None:
                await outcome

    api(body())


def test_a_reservation_takes_its_estimate_and_tells_the_decision(api: Api, of_each_kind: Any, place: str) -> None:
    reservation = api(of_each_kind.reserve("user:42", 4))

    assert (reservation.cost, reservation.decision.allowed, reservation.decision.remaining) == (4, True, 6)
    assert reservation.decision.source == ("local" if place == "local" else "redis")
    assert api(of_each_kind.peek("user:42")).remaining == 6
    assert api(of_each_kind.peek("user:43")).remaining == 10


@pytest.mark.parametrize(("actual", "remaining"), [(0, 10), (1, 9), (3, 7), (4, 6), (5, 5), (10, 0)])
def test_settling_leaves_what_the_call_has_really_used(
    api: Api, of_each_kind: Any, actual: int, remaining: int
) -> None:
    reservation = api(of_each_kind.reserve("a", 4))
    api(reservation.settle(actual))

    assert api(of_each_kind.peek("a")).remaining == remaining


def test_settling_leaves_what_others_have_taken_meanwhile(api: Api, of_each_kind: Any) -> None:
    reservation = api(of_each_kind.reserve(cost=4))
    api(of_each_kind.try_acquire(cost=3))
    api(reservation.settle(1))

    assert api(of_each_kind.peek()).remaining == 6


def test_cancelling_gives_everything_back(api: Api, of_each_kind: Any) -> None:
    reservation = api(of_each_kind.reserve(cost=10))
    assert not api(of_each_kind.allow())
    api(reservation.cancel())

    assert api(of_each_kind.try_acquire(cost=10)).allowed


@pytest.mark.parametrize("first", ["settle", "cancel"])
@pytest.mark.parametrize("second", ["settle", "cancel"])
def test_a_reservation_is_settled_once(api: Api, limiter: Any, first: str, second: str) -> None:
    reservation = api(limiter.reserve(cost=4))
    arguments = {"settle": (2,), "cancel": ()}
    api(getattr(reservation, first)(*arguments[first]))
    before = api(limiter.peek()).remaining

    with pytest.raises(RuntimeError, match=r"'model', cost=4, settled\) has been settled or cancelled before"):
        api(getattr(reservation, second)(*arguments[second]))
    assert api(limiter.peek()).remaining == before


def test_an_exception_cancels_and_passes(api: Api, limiter: Any) -> None:
    def fail(reservation: Any) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        inside(api, api(limiter.reserve(cost=4)), fail)

    assert api(limiter.peek()).remaining == 10


def test_without_an_exception_the_estimate_stands(api: Api, limiter: Any) -> None:
    reservation = api(limiter.reserve(cost=4))
    inside(api, reservation, lambda entered: None)

    assert api(limiter.peek()).remaining == 6
    api(reservation.settle(1))
    assert api(limiter.peek()).remaining == 9


def test_what_was_settled_inside_stays_settled_even_by_an_exception(api: Api, limiter: Any) -> None:
    reservation = api(limiter.reserve(cost=4))

    def settle(entered: Any) -> Any:
        assert entered is reservation
        return entered.settle(1)

    inside(api, reservation, settle)
    assert api(limiter.peek()).remaining == 9

    second = api(limiter.reserve(cost=4))
    api(second.settle(3))

    def fail(entered: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        inside(api, second, fail)
    assert api(limiter.peek()).remaining == 6


@pytest.mark.parametrize("exact", [True, False])
def test_a_window_gives_nothing_back_that_has_left_it(api: Api, exact: bool) -> None:
    limiter = api.service.get_or_create_rate_limiter("model", SlidingWindow(10, 10, exact))
    slow, quick = api(limiter.reserve(cost=6)), api(limiter.reserve(cost=4))
    api.clock.advance(9.0)
    api(quick.settle(1))
    api.clock.advance(2.0)
    api(limiter.try_acquire(cost=10))
    api(slow.settle(1))

    assert api(limiter.peek()).remaining == 0


def test_a_window_gives_back_what_it_still_counts(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("model", SlidingWindow(10, 10))
    reservation = api(limiter.reserve(cost=6))
    api.clock.advance(9.9)
    api(reservation.settle(1))

    assert api(limiter.peek()).remaining == 9
    api.clock.advance(0.2)
    assert api(limiter.peek()).remaining == 10


def test_a_bucket_that_is_full_again_does_not_overflow(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("model", TokenBucket(10, 1))
    reservation = api(limiter.reserve(cost=6))
    api.clock.advance(60)
    api(reservation.cancel())

    assert api(limiter.peek()).remaining == 10


@pytest.mark.parametrize(
    ("limit", "delay"),
    [
        (TokenBucket(10, 2), 5.5),  # 10 of debt and the one token that is asked for
        (SlidingWindow(10, 10), 20.0),  # two windows' worth: a window each
        (LeakyBucket(10, 2), 5.5),
    ],
    ids=["token_bucket", "sliding_window", "leaky_bucket"],
)
def test_what_exceeds_the_estimate_is_debt_that_later_calls_wait_for(api: Api, limit: Any, delay: float) -> None:
    limiter = api.service.get_or_create_rate_limiter("model", limit, remember_refusals=False)
    reservation = api(limiter.reserve(cost=10))
    api(reservation.settle(20))

    refusal = api(limiter.try_acquire())
    assert (refusal.allowed, refusal.remaining) == (False, 0)
    api.clock.advance(delay - 0.01)
    if not isinstance(limit, SlidingWindow):
        assert not api(limiter.try_acquire())
    api.clock.advance(0.02)
    assert api(limiter.try_acquire())


def test_one_charge_beyond_a_window_counts_for_as_many_windows(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("model", SlidingWindow(10, 10), remember_refusals=False)
    reservation = api(limiter.reserve(cost=10))
    api(reservation.settle(30))

    api.clock.advance(20.0)
    assert not api(limiter.try_acquire())
    api.clock.advance(0.01)
    assert api(limiter.try_acquire())


def test_a_refusal_that_is_remembered_ends_with_what_is_given_back(api: Api, limiter: Any) -> None:
    reservation = api(limiter.reserve(cost=10))
    assert not api(limiter.allow())
    api(reservation.settle(9))

    assert api(limiter.allow())


@pytest.mark.parametrize("actual", [-1, 1.0, True, None, "4", math.nan, math.inf, 10**9 + 1])
def test_a_wrong_actual_is_refused_and_the_reservation_stays_open(api: Api, limiter: Any, actual: Any) -> None:
    reservation = api(limiter.reserve(cost=4))

    with pytest.raises(ValueError, match=r"actual is .*, but must be an integer from 0 to 1000000000"):
        api(reservation.settle(actual))
    assert api(limiter.peek()).remaining == 6
    api(reservation.cancel())
    assert api(limiter.peek()).remaining == 10


@pytest.mark.parametrize("cost", [0, 11, 1.5, None])
def test_a_wrong_estimate_is_refused(api: Api, limiter: Any, cost: Any) -> None:
    with pytest.raises(ValueError, match=r"cost is .*, but must be an integer from 1 to 10"):
        api(limiter.reserve(cost=cost))


@pytest.mark.parametrize("timeout", [-1, math.nan, "1", True])
def test_a_wrong_timeout_is_refused(api: Api, limiter: Any, timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout is"):
        api(limiter.reserve(timeout=timeout))


def test_a_reservation_that_is_refused_raises_and_takes_nothing(api: Api, of_each_kind: Any) -> None:
    api(of_each_kind.try_acquire(cost=8))
    before = api.clock.monotonic()

    with pytest.raises(RateLimitExceeded) as caught:
        api(of_each_kind.reserve(cost=3))

    assert caught.value.decision.limited_by == of_each_kind._core.config.limits[0].label
    assert api.clock.monotonic() == before
    assert api(of_each_kind.peek()).remaining == 2


WAITS = [(TokenBucket(4, 2), 1.0), (SlidingWindow(4, 10), 10.0), (LeakyBucket(4, 2), 2.0)]
WAITED_FOR = ["token_bucket", "sliding_window", "leaky_bucket"]


@pytest.mark.parametrize(("limit", "wait"), WAITS, ids=WAITED_FOR)
def test_a_reservation_waits_for_room_and_for_its_turn(api: Api, limit: Any, wait: float) -> None:
    limiter = api.service.get_or_create_rate_limiter("model", limit)
    api(limiter.try_acquire(cost=4))
    before = api.clock.monotonic()

    reservation = api(limiter.reserve(cost=2, timeout=wait + 0.1))
    assert api.clock.monotonic() - before == pytest.approx(wait, abs=1e-4)
    assert reservation.decision.allowed


@pytest.mark.parametrize(("limit", "wait"), WAITS[:2], ids=WAITED_FOR[:2])
def test_a_reservation_does_not_wait_in_vain(api: Api, limit: Any, wait: float) -> None:
    limiter = api.service.get_or_create_rate_limiter("model", limit)
    api(limiter.try_acquire(cost=4))
    before = api.clock.monotonic()

    with pytest.raises(RateLimitExceeded):
        api(limiter.reserve(cost=2, timeout=wait - 0.1))
    assert api.clock.monotonic() == before


def test_nobody_waits_in_vain_for_a_turn_that_comes_after_the_timeout(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("model", LeakyBucket(4, 2))
    api(limiter.try_acquire(cost=3))  # there is room for one more, whose turn comes in 1.5 s
    before = api.clock.monotonic()

    with pytest.raises(RateLimitExceeded):
        api(limiter.reserve(timeout=1.4))
    assert api.clock.monotonic() == before


def test_a_reservation_on_several_limits_settles_each_under_its_own_key(api: Api) -> None:
    limits = [TokenBucket(10, SLOW, label="user"), SlidingWindow(20, 3600, label="tenant"), LeakyBucket(30, SLOW)]
    limiter = api.service.get_or_create_rate_limiter("model", *limits)
    key = {"user": "ada", "tenant": "acme"}
    reservation = api(limiter.reserve(key, 8))
    api(reservation.settle(3))

    def left(**key: str) -> int:
        remaining: int = api(limiter.peek(key)).remaining
        return remaining

    assert left(user="ada", tenant="acme") == 7
    api(limiter.try_acquire({"user": "bob", "tenant": "acme"}, 10))
    assert left(user="eve", tenant="acme") == 20 - 3 - 10
    assert left(user="ada", tenant="other") == 7


def test_what_was_reserved_while_redis_was_away_is_not_given_to_the_fleet(
    api: Api, limiter: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could come back")
    guard = api.runtime.process.guard
    monkeypatch.setattr(guard, "launch", lambda start: None)
    api(limiter.try_acquire(cost=10))
    guard.usable = False
    reservation = api(limiter.reserve(cost=10))
    guard.usable = True
    api(reservation.cancel())

    assert reservation.decision.source == "local"
    assert api(limiter.peek()).remaining == 0


def test_a_reservation_that_shadow_mode_let_pass_has_taken_nothing_to_give_back(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("model", TokenBucket(10, SLOW), shadow=True)
    api(limiter.try_acquire(cost=8))
    reservation = api(limiter.reserve(cost=5))
    api(reservation.cancel())

    assert reservation.decision.limited_by == "token_bucket"
    assert api(limiter.peek()).remaining == 2


def test_a_reservation_shows_whether_it_is_open(api: Api, limiter: Any) -> None:
    reservation = api(limiter.reserve(cost=4))
    name = "Reservation" if api.form == "sync" else "AsyncReservation"

    assert repr(reservation) == f"{name}('model', cost=4, open)"
    api(reservation.cancel())
    assert repr(reservation) == f"{name}('model', cost=4, settled)"
