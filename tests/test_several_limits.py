"""Several limits of one resource: decided together, all or nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
from conftest import Api, Operator

from shared_resilience import (
    LeakyBucket,
    SlidingWindow,
    TokenBucket,
)


@pytest.fixture
def limiter(api: Api) -> Any:
    return api.service.get_or_create_rate_limiter("search", TokenBucket(10, 5), remember_refusals=False)


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
