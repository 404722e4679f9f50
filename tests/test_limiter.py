"""The core of the limiter: what it sends, for which keys, what it remembers, and how its callers wait."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any

import pytest
from conftest import Api, Lane, runtime_on
from servers import free_port

from shared_resilience import (
    LeakyBucket,
    RateLimitExceeded,
    ResilienceService,
    SlidingWindow,
    StoreUnavailableError,
    TokenBucket,
    sent_commands,
)
from shared_resilience.backends import step
from shared_resilience.commands import Command
from shared_resilience.keys import ResourceKeys
from shared_resilience.testing import ManualClock

TWO = [TokenBucket(10, 1), SlidingWindow(20, 60)]
OVERRIDDEN = ("token_bucket", "token_bucket", 4, 1, 1, "sliding_window", "sliding_window", 7, 60_000_000, 1)


class Told:
    """Stands between a limiter and its backend, and notes every command of limits."""

    def __init__(self, limiter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[Command[Any]] = []
        self._run = limiter._backend.run
        monkeypatch.setattr(limiter._backend, "run", self.run)

    async def run(self, command: Command[Any], *rest: Any) -> Any:
        self.commands.append(command)
        return await self._run(command, *rest)


def use_it_all(api: Api, limiter: Any) -> None:
    api(limiter.peek("k"))
    api(limiter.try_acquire("k"))
    api(limiter.refund("k"))
    api(api(limiter.reserve("k", 2)).settle(1))
    api(api(limiter.reserve("k", 2)).settle(3))


def test_a_partition_is_told_the_overrides_that_it_cannot_see(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", *TWO, partitioned=True)
    api(limiter.peek())  # and the heartbeat
    limiter._core.resource.overrides = {"limit.token_bucket.capacity": "4", "limit.sliding_window.limit": "7"}
    told = Told(limiter, monkeypatch)
    use_it_all(api, limiter)

    assert [command.operation.script for command in told.commands] == [
        "rate_limiter_peek", "rate_limiter", "rate_limiter_settle",
        *["rate_limiter", "rate_limiter_settle"] * 2,
    ]  # fmt: skip
    for command in told.commands:
        assert command.args[-10:] == OVERRIDDEN


def test_what_is_not_partitioned_is_told_what_was_configured(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", *TWO)
    limiter._core.resource.overrides = {"limit.token_bucket.capacity": "4"}
    told = Told(limiter, monkeypatch)
    use_it_all(api, limiter)

    assert all(command.args[-10:] == limiter._core.commands.told for command in told.commands)


def test_nothing_is_sent_to_settle_what_was_estimated_well(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", *TWO)
    reservation = api(limiter.reserve("k", 2))
    told = Told(limiter, monkeypatch)
    api(reservation.settle(2))

    assert told.commands == []


def test_keys_are_those_of_the_labels_or_of_the_partition(api: Api) -> None:
    whole = api.service.get_or_create_rate_limiter("r", *TWO)._core
    spread = api.service.get_or_create_rate_limiter("s", *TWO, partitioned=True)._core
    stem = ResourceKeys(whole._process.prefix, "r").overrides.removesuffix("overrides")

    assert whole.keys.texts({"sliding_window": "b"}) == ("", "b")
    assert whole.keys.of(("", "b")) == (
        f"{stem}overrides",
        f"{stem}limit:token_bucket",
        f"{stem}limit:sliding_window:b",
    )
    assert [key.partition(":")[2] for key in spread.keys.of(("a", "a"))] == [
        "{s/a}:overrides", "{s/a}:limit:token_bucket", "{s/a}:limit:sliding_window"
    ]  # fmt: skip


def test_the_numbers_in_force_are_told_for_each_limit(api: Api) -> None:
    limits = [TokenBucket(10, 2.5), SlidingWindow(20, 60), LeakyBucket(9, 0.5)]
    core = api.service.get_or_create_rate_limiter("r", *limits)._core
    core.resource.overrides = {"limit.token_bucket.capacity": "4"}

    assert core.resource.numbers == {
        "limit.token_bucket.capacity": 10, "limit.token_bucket.refill_rate": 2.5,
        "limit.sliding_window.limit": 20, "limit.sliding_window.window": 60,
        "limit.leaky_bucket.capacity": 9, "limit.leaky_bucket.leak_rate": 0.5,
    }  # fmt: skip
    assert core.known() == {
        "limits": {
            "token_bucket": {"capacity": 10, "refill_rate": 2.5},
            "sliding_window": {"limit": 20, "window": 60},
            "leaky_bucket": {"capacity": 9, "leak_rate": 0.5},
        },
        "overrides": {"limit.token_bucket.capacity": "4"}, "local": {}, "fleet": {}, "live_workers": None,
    }  # fmt: skip


def test_a_refusal_names_the_keys_of_all_labels_once(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(1, 0.001), SlidingWindow(9, 60))
    events: list[Any] = []
    api.runtime.process.events.add([events.append])
    keys = {"token_bucket": "a", "sliding_window": "b"}
    api(limiter.try_acquire(keys))
    refused = api(limiter.try_acquire(keys))

    with pytest.raises(RateLimitExceeded) as caught:
        api(limiter.acquire(keys, timeout=1))
    assert caught.value.key == events[0].details["key"] == "a/b"
    assert events[0].details["decision"] == refused


def test_decisions_of_this_process_are_counted_as_such(api: Api, place: str) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(1, 0.001))
    for _ in range(2):
        api(limiter.try_acquire())

    counted = limiter._core.known()["local"]
    locally = {"limit.decided_locally": 2} if place == "local" else {}
    assert counted == {"limit.allowed": 1, "limit.refused": 1, **locally}


def test_a_remembered_refusal_costs_no_trip_until_it_is_reset_or_the_process_forks(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(1, 0.001))
    told = Told(limiter, monkeypatch)
    sent = []
    for _ in range(4):
        api(limiter.try_acquire("k"))
        sent.append(len(told.commands))
    limiter._core.after_fork()
    forgotten = api(limiter.try_acquire("k"))

    assert sent == [1, 2, 2, 2]
    assert (forgotten.allowed, len(told.commands)) == (False, 3)
    api(limiter.reset("k"))
    assert api(limiter.try_acquire("k")).allowed


def test_a_refusal_of_a_larger_cost_is_answered_from_memory_but_never_waited_for(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(10, 2))
    api(limiter.try_acquire(cost=10))
    api(limiter.try_acquire(cost=1))
    told = Told(limiter, monkeypatch)

    assert api(limiter.try_acquire(cost=4)).retry_after == pytest.approx(0.5)
    assert told.commands == []
    assert api(limiter.acquire(cost=4, timeout=2.0)).allowed
    assert api.clock.monotonic() == pytest.approx(1_000_002, abs=1e-5)


def test_a_limiter_can_be_told_to_remember_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(1, 0.001), remember_refusals=False)
    told = Told(limiter, monkeypatch)
    for _ in range(4):
        api(limiter.try_acquire())

    assert len(told.commands) == 4


def test_a_queue_delays_whoever_enters(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("q", LeakyBucket(5, 10))
    delays = [api(limiter.try_acquire()).delay for _ in range(3)]
    before = api.clock.monotonic()

    assert delays == [0.0, 0.1, 0.2]
    assert api(limiter.peek()).allowed
    assert api(limiter.acquire(timeout=0.5)).delay == pytest.approx(0.3)
    assert api.clock.monotonic() - before == pytest.approx(0.3)


def test_who_cannot_wait_for_the_queue_does_not_enter(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("q", LeakyBucket(5, 10))
    for _ in range(3):
        api(limiter.try_acquire())

    refused = api(limiter.allow())
    before = api.clock.monotonic()

    assert not refused
    with pytest.raises(RateLimitExceeded):
        api(limiter.acquire(timeout=0.25))
    assert api.clock.monotonic() - before <= 0.25


def test_a_timeout_that_is_just_enough_is_enough(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(2, 2))
    api(limiter.try_acquire(cost=2))

    assert api(limiter.acquire(cost=2, timeout=1.0)).allowed


class Patience:
    """A ticket that notes how long its holder would wait, and is woken at once."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    def wake(self) -> None:
        raise AssertionError("nobody leaves the line")

    async def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        return True


def party(api: Api, limiter: Any) -> Hashable:
    """The callers that wait for each other."""

    async def here() -> Hashable:
        value: Hashable = limiter._backend.party()
        return value

    return api(here()) if api.form == "asyncio" else step(here())


@pytest.mark.parametrize(("timeout", "waited"), [(0, []), (0.5, [0.5]), (7, [7.0])])
def test_who_is_not_first_waits_for_its_turn_within_its_timeout(
    api: Api, monkeypatch: pytest.MonkeyPatch, timeout: float, waited: list[float]
) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(2, 2))
    ticket = Patience()
    limiter._core._lines.join((party(api, limiter), ("k",), 0), Patience())
    monkeypatch.setattr(limiter._backend, "ticket", lambda: ticket, raising=False)
    api(limiter.acquire("k", timeout=timeout))
    api(limiter.acquire("other", timeout=timeout))

    assert ticket.waited == waited


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_pause_tells_its_numbers(api: Api, place: str, partitioned: bool) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(10, 1), partitioned=partitioned)
    api(limiter.pause(2))

    refused = api(limiter.try_acquire())

    assert (refused.remaining, refused.source) == (0 if partitioned else 10, "local" if place == "local" else "redis")


def test_the_end_of_a_pause_is_seen_at_once_by_the_fleet(store: Lane, prefix: str) -> None:
    clock = ManualClock()
    one, other = (
        ResilienceService._of(runtime_on(store, prefix, clock)).get_or_create_rate_limiter("r", TokenBucket(10, 1))
        for _ in range(2)
    )
    one.pause(30)
    refused = other.try_acquire()
    other.pause(0)

    assert not refused.allowed
    assert one.try_acquire().allowed


def test_a_decision_of_redis_is_settled_whatever_would_be_done_without_it(store: Lane, prefix: str) -> None:
    service = ResilienceService._of(runtime_on(store, prefix, ManualClock()))
    limiter = service.get_or_create_rate_limiter("r", TokenBucket(10, 0.001), on_outage="allow")
    limiter.reserve(cost=8).cancel()

    assert limiter.peek().remaining == 10


def test_a_refund_of_unknown_age_is_given_back_by_a_window(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("w", SlidingWindow(10, 60))
    api(limiter.try_acquire(cost=7))
    api(limiter.refund(cost=5))

    assert api(limiter.peek()).remaining == 8


def nobody_comes(api: Api, monkeypatch: pytest.MonkeyPatch, limiter: Any) -> None:
    """Makes the limiter's callers wait in vain behind one that stays."""

    class InVain(Patience):
        async def wait(self, seconds: float) -> bool:
            return False

    limiter._core._lines.join((party(api, limiter), limiter._core.keys.texts("k"), 0), Patience())
    monkeypatch.setattr(limiter._backend, "ticket", InVain, raising=False)


def test_who_waited_in_vain_is_told_a_whole_decision(api: Api, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(5, 1), TokenBucket(7, 1, label="other"))
    nobody_comes(api, monkeypatch, limiter)
    with pytest.raises(RateLimitExceeded) as caught:
        api(limiter.acquire("k", timeout=1))

    source = "local" if place == "local" else "redis"
    assert caught.value.decision == (False, 5, 0, 0.0, 0.0, 0.0, "token_bucket", source)


def test_a_partition_in_a_pause_is_told_a_whole_decision(api: Api, place: str) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(5, 1), partitioned=True)
    api(limiter.pause(0.75))

    source = "local" if place == "local" else "redis"
    expected = (False, 5, 0, pytest.approx(0.75), pytest.approx(0.75), 0.0, "pause", source)
    assert tuple(api(limiter.try_acquire("k"))) == expected
    assert tuple(api(limiter.peek("k"))) == expected


def away(form: str, on_outage: Any, **options: Any) -> Any:
    """A limiter without a Redis, and how to get its values."""
    service: Any = ResilienceService.from_url(f"redis://127.0.0.1:{free_port()}", on_outage=on_outage)
    limiter = (service if form == "sync" else service.aio).get_or_create_rate_limiter("r", TokenBucket(5, 1), **options)
    return limiter, (lambda value: value) if form == "sync" else asyncio.run


def test_a_pause_and_a_look_without_redis_do_as_on_outage_says(form: str) -> None:
    raising, value = away(form, "raise")
    for method, arguments in [("pause", (1,)), ("peek", ()), ("refund", ()), ("try_acquire", ())]:
        with pytest.raises(StoreUnavailableError):
            value(getattr(raising, method)(*arguments))
    allowing, value = away(form, "allow")
    denying, other_value = away(form, "deny")

    assert value(allowing.peek()).allowed
    value(allowing.refund())
    assert not other_value(denying.peek()).allowed
    other_value(denying.refund())
    value(allowing.pause(1))  # by the process itself


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_outage": "panic"}, "on_outage is 'panic'"),
        ({"remember_refusals": 1}, "remember_refusals is 1"),
        ({"shadow": "yes"}, "shadow is 'yes'"),
        ({"partitioned": 0}, "partitioned is 0"),
        ({"max_pause": 0.0009}, "max_pause is 0.0009, but must be a number from 0.001 to 3600"),
        ({"max_pause": 3601}, "max_pause is 3601"),
        ({"lease_tokens": 6}, "lease_tokens is 6, but must be an integer from 1 to 5"),
        ({"lease_tokens": 5, "lease_seconds": 0.0009}, "lease_seconds is 0.0009"),
        ({"lease_seconds": 60.1}, "lease_seconds is 60.1"),
    ],
)
def test_a_wrong_option_of_a_limiter_names_field_value_and_range(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResilienceService.local().get_or_create_rate_limiter("r", TokenBucket(5, 1), **options)


def test_the_longest_and_the_shortest_of_every_option_are_taken() -> None:
    service = ResilienceService.local()
    for number, options in enumerate([
        {"max_pause": 0.001}, {"max_pause": 3600}, {"lease_tokens": 1}, {"lease_tokens": 5},
        {"lease_seconds": 0.001}, {"lease_seconds": 60},
    ]):  # fmt: skip
        assert service.get_or_create_rate_limiter(f"r{number}", TokenBucket(5, 1), **options).allow()  # type: ignore[arg-type]


def test_a_flood_of_keys_is_forgotten_and_decided_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent_commands, "MOST", 4)
    monkeypatch.setattr(sent_commands, "FLOOD", 8)
    limiter = ResilienceService.local().get_or_create_rate_limiter("r", TokenBucket(2, 0.001))
    kept = []
    for number in range(27):
        assert limiter.try_acquire(str(number)).remaining == 1
        kept.append(len(limiter._core._sent))

    assert kept == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 0] * 2 + [1]
    assert limiter.try_acquire("0").remaining == 0


@pytest.mark.parametrize("cost", [True, 1.0])
def test_a_cost_that_only_equals_an_integer_is_refused_though_that_one_was_sent_before(api: Api, cost: Any) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(5, 1))
    api(limiter.try_acquire("k", 1))

    with pytest.raises(ValueError, match="cost is"):
        api(limiter.try_acquire("k", cost))


def test_what_was_sent_before_is_sent_again_as_it_is(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", LeakyBucket(50, 10), remember_refusals=False)
    told = Told(limiter, monkeypatch)
    for _ in range(2):
        api(limiter.allow("k"))
    for timeout in (5, 6):
        api(limiter.acquire("k", timeout=timeout))
    for _ in range(2):
        api(limiter.try_acquire("k"))

    at_once, again, soon, later, whenever, repeated = told.commands
    assert at_once is again
    assert [soon.args[2], later.args[2]] == [5_000_000, 6_000_000]  # the patience of their callers, in µs
    assert whenever is repeated


def test_a_partition_keeps_no_commands_since_overrides_change_them(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(50, 10), partitioned=True)
    told = Told(limiter, monkeypatch)
    for _ in range(2):
        api(limiter.try_acquire("k"))

    assert told.commands[0] is not told.commands[1]


def test_callers_of_a_forked_process_can_wait(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(2, 2))
    limiter._core.after_fork()

    assert api(limiter.acquire(timeout=1)).allowed


def test_only_a_lease_says_what_it_has_taken(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(5, 1))

    assert api(limiter.reserve())._reserved.answer.taken == 0


def test_who_is_refused_by_a_queue_is_told_how_long_it_is(api: Api) -> None:
    limiter = api.service.get_or_create_rate_limiter("q", LeakyBucket(2, 10))
    api(limiter.try_acquire(cost=2))

    refused = api(limiter.try_acquire())
    assert (refused.allowed, refused.delay) == (False, 0.2)


class Text(str):
    """A text of a type of its own, as members of `StrEnum` are."""

    __slots__ = ()


@pytest.mark.parametrize("key", [Text("7"), 7])
def test_what_is_no_mapping_is_a_key_by_its_text(api: Api, key: Any) -> None:
    limiter = api.service.get_or_create_rate_limiter("r", TokenBucket(5, 0.001))
    api(limiter.try_acquire("7"))

    assert api(limiter.try_acquire(key)).remaining == 3


@pytest.mark.parametrize(("on_outage", "allowed"), [("allow", True), ("deny", False)])
def test_a_lease_without_redis_does_as_on_outage_says_and_takes_nothing(
    form: str, on_outage: Any, allowed: bool
) -> None:
    limiter, value = away(form, on_outage, lease_tokens=5)
    decision = value(limiter.try_acquire(cost=2))

    assert (decision.allowed, decision.remaining, decision.source) == (allowed, 0, "local")
