"""Reservations: what is taken as an estimate, and settled, cancelled or left as it is."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Api

from shared_resilience import LeakyBucket, RateLimitExceeded, SlidingWindow, TokenBucket


@pytest.fixture
def limiter(api: Api) -> Any:
    return api.service.get_or_create_rate_limiter("tokens", TokenBucket(100, 0.001))


@pytest.mark.parametrize(("actual", "left"), [(0, 100), (30, 70), (50, 50), (80, 20), (150, 0)])
def test_settling_takes_what_was_used_and_nothing_else(api: Api, limiter: Any, actual: int, left: int) -> None:
    reservation = api(limiter.reserve("user:42", 50))
    api(reservation.settle(actual))

    assert api(limiter.peek("user:42")).remaining == left
    assert api(limiter.peek()).remaining == 100


def test_what_exceeds_the_estimate_beyond_all_room_is_debt_that_later_calls_wait_for(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("tokens", TokenBucket(100, 10))
    api(api(limiter.reserve(cost=50)).settle(150))

    assert api(limiter.try_acquire()).retry_after == pytest.approx(5.1)


def test_a_reservation_tells_its_cost_its_decision_and_its_state(api: Api, limiter: Any) -> None:
    reservation = api(limiter.reserve(cost=40))
    before = repr(reservation)
    api(reservation.cancel())

    assert (reservation.cost, reservation.decision.remaining) == (40, 60)
    assert before == f"{type(reservation).__name__}('tokens', cost=40, open)"
    assert repr(reservation) == f"{type(reservation).__name__}('tokens', cost=40, settled)"


@pytest.mark.parametrize("first", ["settle", "cancel"])
@pytest.mark.parametrize("second", ["settle", "cancel"])
def test_a_reservation_ends_once(api: Api, limiter: Any, first: str, second: str) -> None:
    reservation = api(limiter.reserve(cost=40))
    ways = {"settle": lambda: reservation.settle(10), "cancel": lambda: reservation.cancel()}
    api(ways[first]())
    left = api(limiter.peek()).remaining

    with pytest.raises(RuntimeError, match="cost=40, settled\\) has been settled or cancelled before"):
        api(ways[second]())

    assert api(limiter.peek()).remaining == left


@pytest.mark.parametrize("actual", [-1, 1.5, True, "7", 10**9 + 1])
def test_a_wrong_actual_is_refused_and_the_reservation_stays_open(api: Api, limiter: Any, actual: Any) -> None:
    reservation = api(limiter.reserve(cost=40))

    with pytest.raises(ValueError, match=r"actual is .*, but must be an integer from 0 to 1000000000"):
        api(reservation.settle(actual))
    api(reservation.settle(0))

    assert api(limiter.peek()).remaining == 100


async def _managed(reservation: Any, actual: int | None, error: type[BaseException] | None) -> None:
    async with reservation:
        if actual is not None:
            await reservation.settle(actual)
        if error:
            raise error


def manage(api: Api, reservation: Any, actual: int | None, error: type[BaseException] | None) -> None:
    """Uses the reservation as a context manager."""
    if api.form == "asyncio":
        api(_managed(reservation, actual, error))
        return
    with reservation:
        if actual is not None:
            reservation.settle(actual)
        if error:
            raise error


@pytest.mark.parametrize(("actual", "left"), [(None, 60), (10, 90)])
def test_a_block_that_ends_well_leaves_the_estimate_or_what_was_settled(
    api: Api, limiter: Any, actual: int | None, left: int
) -> None:
    manage(api, api(limiter.reserve(cost=40)), actual, None)

    assert api(limiter.peek()).remaining == left


@pytest.mark.parametrize(("actual", "left"), [(None, 100), (10, 90)])
def test_a_block_that_fails_cancels_what_was_not_settled(api: Api, limiter: Any, actual: int | None, left: int) -> None:
    with pytest.raises(KeyError):
        manage(api, api(limiter.reserve(cost=40)), actual, KeyError)

    assert api(limiter.peek()).remaining == left


def test_a_reservation_without_room_is_refused_at_once(api: Api, limiter: Any) -> None:
    api(limiter.reserve("a", 100))
    before = api.clock.monotonic()

    with pytest.raises(RateLimitExceeded, match="rate limit 'tokens' \\(token_bucket\\) exceeded for key 'a'"):
        api(limiter.reserve("a", 40))

    assert api.clock.monotonic() == before


def test_a_reservation_can_wait_for_room(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("tokens", TokenBucket(10, 10))
    api(limiter.reserve(cost=10))
    before = api.clock.monotonic()

    assert api(limiter.reserve(cost=10, timeout=1.5)).decision.allowed
    assert api.clock.monotonic() - before == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="timeout is -1"):
        api(limiter.reserve(timeout=-1))


def test_what_is_given_back_can_be_taken_at_once_though_a_refusal_was_remembered(api: Api, limiter: Any) -> None:
    reservation = api(limiter.reserve(cost=100))
    refused = api(limiter.try_acquire())
    api(reservation.settle(60))

    assert not refused.allowed
    assert api(limiter.try_acquire()).allowed


def test_a_window_gives_back_only_what_it_still_counts(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("calls", SlidingWindow(10, 1))
    early = api(limiter.reserve(cost=10))
    api.clock.advance(1.5)
    api(limiter.try_acquire(cost=10))
    api(early.cancel())

    assert api(limiter.peek()).remaining == 0


def test_all_limits_of_a_resource_are_settled(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("both", TokenBucket(100, 0.001), LeakyBucket(50, 0.001))
    api(api(limiter.reserve({"token_bucket": "a", "leaky_bucket": "b"}, 40)).settle(10))

    assert api(limiter.peek({"token_bucket": "a"})).limit == 50
    assert api(limiter.peek({"token_bucket": "a", "leaky_bucket": "b"})).remaining == 40
    assert (
        api(
            limiter.peek({"token_bucket": "a", "leaky_bucket": "c"}),
        ).remaining
        == 50
    )


def test_a_reservation_in_shadow_that_would_have_been_refused_takes_and_gives_nothing(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("shadow", TokenBucket(10, 0.001), shadow=True)
    api(limiter.try_acquire(cost=8))
    refused = api(limiter.reserve(cost=5))
    api(refused.cancel())

    assert (refused.decision.allowed, refused.decision.limited_by) == (True, "token_bucket")
    assert api(limiter.peek()).remaining == 2
