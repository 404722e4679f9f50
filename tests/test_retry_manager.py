"""Retries: what is made again, when, how often, and what is raised when it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import Api

from shared_resilience import (
    CircuitBreakerOpenError,
    DeadlineExceeded,
    Jitter,
    RateLimitExceeded,
    ResilienceService,
    RetryableError,
    RetryBudgetExhaustedError,
    RetryConfig,
    RetryStrategy,
    StoreUnavailableError,
    TokenBucket,
    deadline,
)

PLAIN = RetryConfig(3, base_delay=1.0, jitter=Jitter.NONE)
FEW = RetryConfig(3, base_delay=0.0, floor=0.3, max_balance=3.0)
"""With a budget of three retries to begin with."""


class Work:
    """A function that raises or returns what it is told, one after the other; it notes when it was called."""

    def __init__(self, api: Api, *outcomes: object) -> None:
        self._api = api
        self._outcomes = list(outcomes)
        self.at: list[float] = []
        self.arguments: list[Any] = []

    def _blocking(self, *args: object, **kwargs: object) -> object:
        self.at.append(self._api.clock.monotonic())
        self.arguments.append((args, kwargs))
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def _suspending(self, *args: object, **kwargs: object) -> object:
        return self._blocking(*args, **kwargs)

    @property
    def function(self) -> Any:
        return self._blocking if self._api.form == "sync" else self._suspending

    @property
    def pauses(self) -> list[float]:
        """Seconds between two attempts."""
        return [round(later - earlier, 6) for earlier, later in zip(self.at, self.at[1:], strict=False)]


class Retry:
    """A retry manager in the form of `api`."""

    def __init__(self, api: Api, config: RetryConfig = PLAIN) -> None:
        self.api = api
        self.manager = api.service.get_or_create_retry_manager("payments", config)

    def run(self, *outcomes: object) -> tuple[Any, Work]:
        """What is returned, or raised, and what was done for it."""
        work = Work(self.api, *outcomes)
        try:
            return self.api(self.manager.execute_with_retry(work.function)), work
        except Exception as error:
            return error, work

    def budget(self) -> Any:
        return self.api(self.manager.retry_budget.get_stats())


def test_a_call_that_fails_is_made_again_after_growing_delays(api: Api) -> None:
    result, work = Retry(api).run(OSError("a"), OSError("b"), "done")

    assert (result, work.pauses) == ("done", [1.0, 2.0])


def test_arguments_reach_the_function_each_time(api: Api) -> None:
    retry, work = Retry(api), Work(api, OSError(), "done")

    assert api(retry.manager.execute_with_retry(work.function, 5, "a", currency="EUR", function=1)) == "done"
    assert work.arguments == [((5, "a"), {"currency": "EUR", "function": 1})] * 2


def test_the_last_error_is_raised_as_it_is_with_the_history_in_its_notes(api: Api) -> None:
    errors = [OSError(f"number {number}") for number in range(4)]
    error, work = Retry(api).run(*errors)

    assert error is errors[3]
    assert len(work.at) == 4
    assert error.__notes__ == [
        "attempt 1 failed after 0.000 s: OSError: number 0",
        "attempt 2 failed after 1.000 s: OSError: number 1",
        "attempt 3 failed after 3.000 s: OSError: number 2",
        "attempt 4 failed after 7.000 s: OSError: number 3",
        "payments: 4 attempts, there are no more",
    ]
    assert error.__cause__ is None


@pytest.mark.parametrize("retries", [0, 1])
def test_there_are_as_many_retries_as_configured(api: Api, retries: int) -> None:
    error, work = Retry(api, RetryConfig(retries, base_delay=0)).run(OSError())

    assert isinstance(error, OSError)
    assert len(work.at) == 1 + retries


class NarrowError(ValueError):
    """More specific than a programming error."""


@pytest.mark.parametrize(
    ("error", "config", "attempts"),
    [
        (OSError(), PLAIN, 4),
        *((kind("a"), PLAIN, 1) for kind in (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError)),
        (NarrowError(), RetryConfig(retry_on=(NarrowError,), base_delay=0), 4),
        (ValueError(), RetryConfig(retry_on=(ValueError,), base_delay=0), 4),
        (ValueError(), RetryConfig(retry_on=(NarrowError,), base_delay=0), 1),
        (ConnectionError(), RetryConfig(give_up_on=(ConnectionError,), base_delay=0), 1),
        (OSError(), RetryConfig(give_up_on=(ConnectionError,), base_delay=0), 4),
        (ConnectionError(), RetryConfig(retry_on=(ConnectionError,), base_delay=0), 4),
        (OSError(), RetryConfig(retry_on=(ConnectionError,), base_delay=0), 1),
        (RetryableError(), RetryConfig(retry_on=(), base_delay=0), 4),
    ],
)
def test_what_is_retried_is_said_by_the_most_specific_class(
    api: Api, error: Exception, config: RetryConfig, attempts: int
) -> None:
    found, work = Retry(api, config).run(error)

    assert found is error
    assert len(work.at) == attempts
    assert hasattr(error, "__notes__") is (attempts > 1)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(), GeneratorExit(), asyncio.CancelledError()])
def test_interruptions_are_never_retried(api: Api, interruption: BaseException) -> None:
    work = Work(api, interruption)

    with pytest.raises(type(interruption)):
        api(Retry(api).manager.execute_with_retry(work.function))
    assert len(work.at) == 1


def response(status: int, **headers: str) -> Any:
    return SimpleNamespace(status_code=status, headers={name.replace("_", "-"): text for name, text in headers.items()})


class HttpError(Exception):
    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(status)
        self.response = response(status, **headers)


@pytest.mark.parametrize("make", [response, HttpError])
@pytest.mark.parametrize(
    ("status", "headers", "pauses"),
    [
        (500, {}, [1, 2, 4]),
        (503, {"Retry_After": "10"}, [10, 10, 10]),
        (502, {"Retry_After": "0"}, [1, 2, 4]),
        (429, {"Retry_After": "5"}, [5, 5, 5]),
        (429, {}, []),
        (429, {"Retry_After": "soon"}, []),
        (404, {}, []),
        (400, {"Retry_After": "5"}, []),
        (503, {"Retry_After": "61"}, []),
    ],
)
def test_statuses_say_what_is_retried_and_retry_after_when(
    api: Api, make: Any, status: int, headers: dict[str, str], pauses: list[float]
) -> None:
    outcome = make(status, **headers)
    found, work = Retry(api).run(outcome)

    assert found is outcome
    assert work.pauses == pauses


def test_a_wait_that_was_asked_for_is_a_little_longer_so_that_not_all_come_back_at_once(api: Api) -> None:
    config = RetryConfig(100, base_delay=1.0, strategy=RetryStrategy.CONSTANT, floor=10, max_balance=1000)
    _, work = Retry(api, config).run(HttpError(429, Retry_After="10"))

    assert 10.5 <= min(work.pauses) < 10.6
    assert 11.4 < max(work.pauses) <= 11.5


def test_a_returned_value_may_be_unwanted(api: Api) -> None:
    retry = Retry(api, RetryConfig(2, base_delay=0, retry_on_result=lambda result: result is None))

    assert retry.run(None, None, "done")[0] == "done"
    result, work = retry.run(None)
    assert (result, len(work.at)) == (None, 3)


def test_a_predicate_that_raises_is_not_retried(api: Api) -> None:
    def broken(result: object) -> bool:
        raise ZeroDivisionError("in the predicate")

    error, work = Retry(api, RetryConfig(retry_on_result=broken)).run("done")

    assert isinstance(error, ZeroDivisionError)
    assert len(work.at) == 1


def test_a_strategy_that_raises_shows_the_error_that_it_was_asked_about(api: Api) -> None:
    def broken(retry: int) -> float:
        raise ZeroDivisionError("in the strategy")

    error, work = Retry(api, RetryConfig(strategy=broken)).run(OSError("down"))

    assert isinstance(error, ZeroDivisionError)
    assert isinstance(error.__context__, OSError)
    assert len(work.at) == 1


# Refusals of our own, and deadlines.


def refusals() -> list[Exception]:
    with ResilienceService.local() as service:
        limiter = service.get_or_create_rate_limiter("search", TokenBucket(1, 0.5))
        limiter.acquire()
        with pytest.raises(RateLimitExceeded) as refused:
            limiter.acquire(timeout=0)
    return [refused.value, CircuitBreakerOpenError("payments", 2.0)]


@pytest.mark.parametrize("refusal", refusals(), ids=lambda error: type(error).__name__)
def test_a_refusal_of_our_own_is_retried_only_if_it_fits_a_deadline(api: Api, refusal: Any) -> None:
    retry = Retry(api)
    without = retry.run(refusal, "done")
    with deadline(1.5, monotonic=api.clock.monotonic):
        short = retry.run(refusal, "done")
    with deadline(10, monotonic=api.clock.monotonic):
        long = retry.run(refusal, "done")

    assert [without[0], short[0], long[0]] == [refusal, refusal, "done"]
    assert long[1].pauses[0] == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize(
    "refusal", [CircuitBreakerOpenError("a", float("inf")), DeadlineExceeded("a", 1), StoreUnavailableError("away")]
)
def test_a_refusal_that_no_waiting_heals_is_never_retried(api: Api, refusal: Exception) -> None:
    with deadline(1000, monotonic=api.clock.monotonic):
        found, work = Retry(api).run(refusal)

    assert found is refusal
    assert len(work.at) == 1


def test_a_retry_that_would_come_after_the_deadline_is_not_made_nor_waited_for(api: Api) -> None:
    retry, began = Retry(api), api.clock.monotonic()
    with deadline(3.0, monotonic=api.clock.monotonic):
        error, work = retry.run(OSError("down"))

    assert work.pauses == [1.0]
    assert api.clock.monotonic() - began == 1.0
    assert error.__notes__[-1] == "payments: 2 attempts, the next would come after the deadline"


def test_when_the_deadline_has_passed_nothing_is_attempted(api: Api) -> None:
    with deadline(0):
        error, work = Retry(api).run("done")

    assert isinstance(error, DeadlineExceeded)
    assert work.at == []


# The budget.


def test_an_empty_budget_means_the_original_error_at_once(api: Api) -> None:
    retry = Retry(api, FEW)
    first, work = retry.run(OSError("a"))
    second, again = retry.run(OSError("b"))

    assert (len(work.at), len(again.at)) == (4, 1)
    assert second.__notes__ == [
        "attempt 1 failed after 0.000 s: OSError: b",
        "payments: 1 attempts, the retry budget of the fleet is exhausted",
    ]
    assert first.__notes__[-1] == "payments: 4 attempts, there are no more"
    assert retry.run("done")[0] == "done"  # first attempts are never touched
    stats = retry.budget()
    assert (stats["retries"], stats["refused"]) == (3, 1)
    assert retry.api(retry.manager.get_stats())["local"] == {
        "retry.requests": 3,
        "retry.retries": 3,
        "retry.refused": 1,
    }


def test_the_budget_can_be_used_by_hand(api: Api) -> None:
    budget = Retry(api, FEW).manager.retry_budget
    for _ in range(3):
        api(budget.withdraw())
    with pytest.raises(RetryBudgetExhaustedError, match=r"the retry budget of 'payments' is exhausted: 0\.00 retries"):
        api(budget.withdraw())
    api(budget.deposit(10))
    api(budget.withdraw())

    stats = api(budget.get_stats())
    assert (stats["requests"], stats["retries"], stats["refused"], stats["rate"]) == (10, 4, 1, 0.4)
    with pytest.raises(ValueError, match=r"^requests is 0, but must be an integer from 1"):
        api(budget.deposit(0))


def test_the_floor_comes_back_each_second(api: Api) -> None:
    retry = Retry(api, FEW)
    retry.run(OSError())
    api.clock.advance(3.5)
    _, work = retry.run(OSError())

    assert len(work.at) == 2


def test_without_a_budget_every_retry_is_made(api: Api) -> None:
    retry = Retry(api, RetryConfig(3, base_delay=0, retry_budget_percent=None))
    for _ in range(20):
        assert len(retry.run(OSError())[1].at) == 4
    assert retry.manager.retry_budget is None


def test_when_redis_is_lost_in_the_middle_the_rest_comes_out_of_the_share(
    api: Api, place: str, redis_is_away: Callable[[], None]
) -> None:
    if place == "local":
        pytest.skip("there is no Redis that could be away")
    retry = Retry(api)

    class LosesRedis(Work):
        def _blocking(self, *args: object, **kwargs: object) -> object:
            if len(self.at) == 2:
                redis_is_away()
            return super()._blocking(*args, **kwargs)

    work = LosesRedis(api, OSError("down"))
    with pytest.raises(OSError, match="down"):
        api(retry.manager.execute_with_retry(work.function))

    assert len(work.at) == 4
    assert retry.budget()["source"] == "local"
    assert retry.budget()["retries"] == 1


# The fleet's cooldown.


@pytest.mark.parametrize("status", [429, 503])
def test_with_cooldown_a_refusal_pauses_the_limits_of_the_resource(api: Api, status: int) -> None:
    retry = Retry(api, RetryConfig(0, cooldown=True))
    limiter = api.service.get_or_create_rate_limiter("payments", TokenBucket(100, 50))
    retry.run(HttpError(status, Retry_After="30"))

    assert api(limiter.try_acquire()).limited_by == "pause"
    api.clock.advance(31)
    assert api(limiter.try_acquire()).allowed


@pytest.mark.parametrize(
    ("cooldown", "status", "headers"),
    [(False, 429, {"Retry_After": "30"}), (True, 503, {}), (True, 500, {"Retry_After": "30"})],
)
def test_without_cooldown_or_retry_after_nothing_is_paused(
    api: Api, cooldown: bool, status: int, headers: dict[str, str]
) -> None:
    retry = Retry(api, RetryConfig(0, cooldown=cooldown))
    limiter = api.service.get_or_create_rate_limiter("payments", TokenBucket(100, 50))
    retry.run(HttpError(status, **headers))

    assert api(limiter.try_acquire()).allowed


def test_with_cooldown_other_retries_wait_for_the_end_of_the_pause(api: Api) -> None:
    retry = Retry(api, RetryConfig(1, base_delay=1.0, jitter=Jitter.NONE, cooldown=True))
    api.service.get_or_create_rate_limiter("payments", TokenBucket(100, 50))
    retry.run(HttpError(503, Retry_After="20"), "done")
    api(api.service.get_or_create_rate_limiter("payments").pause(10))
    _, work = retry.run(OSError(), "done")

    assert work.pauses == pytest.approx([10.0], abs=0.01)


# Forms.


def test_the_decorator_serves_functions_and_coroutine_functions(api: Api) -> None:
    retry, calls = Retry(api).manager, []

    @retry  # type: ignore[untyped-decorator]
    def blocking(a: int, *, b: int) -> int:
        """Adds."""
        calls.append(a)
        if len(calls) < 3:
            raise OSError
        return a + b

    @retry  # type: ignore[untyped-decorator]
    async def suspending(a: int, *, b: int) -> int:
        return blocking.__wrapped__(a, b=b)  # type: ignore[no-any-return]

    assert (blocking.__name__, blocking.__doc__) == ("blocking", "Adds.")
    assert (blocking(1, b=2), len(calls)) == (3, 3)
    if api.form == "asyncio":
        calls.clear()
        assert (api(suspending(1, b=2)), len(calls)) == (3, 3)


def test_a_generator_function_cannot_be_decorated(api: Api) -> None:
    def numbers() -> Any:
        yield 1

    with pytest.raises(TypeError, match=r"use `for attempt in attempts\(\):` inside it instead"):
        Retry(api).manager(numbers)


def test_a_coroutine_function_is_not_executed_by_the_blocking_form() -> None:
    async def suspending() -> None:
        raise AssertionError("ran")

    with ResilienceService.local() as service, pytest.raises(TypeError, match=r"use the retries of service\.aio"):
        service.get_or_create_retry_manager("payments").execute_with_retry(cast("Callable[[], Any]", suspending))


def block(api: Api, manager: Any, body: Callable[[Any], None]) -> None:
    """Runs `body` in the loop of attempts of either form."""
    if api.form == "sync":
        for attempt in manager.attempts():
            with attempt:
                body(attempt)
        return

    async def suspending() -> None:
        async for attempt in manager.attempts():
            with attempt:
                body(attempt)

    api(suspending())


def test_a_block_is_attempted_until_it_passes(api: Api) -> None:
    seen: list[tuple[int, float]] = []
    began = api.clock.monotonic()

    def body(attempt: Any) -> None:
        seen.append((attempt.number, api.clock.monotonic() - began))
        if attempt.number < 3:
            raise OSError

    block(api, Retry(api).manager, body)

    assert seen == [(1, 0.0), (2, 1.0), (3, 3.0)]


@pytest.mark.parametrize(
    ("error", "attempts"), [(OSError("down"), 4), (ValueError("bug"), 1), (KeyboardInterrupt(), 1)]
)
def test_a_block_raises_what_it_raised_last(api: Api, error: BaseException, attempts: int) -> None:
    seen: list[int] = []

    def body(attempt: Any) -> None:
        seen.append(attempt.number)
        raise error

    with pytest.raises(type(error)) as raised:
        block(api, Retry(api).manager, body)

    assert raised.value is error
    assert seen == list(range(1, attempts + 1))


def test_a_block_that_is_left_early_is_left(api: Api) -> None:
    if api.form == "asyncio":
        pytest.skip("the same")
    for attempt in Retry(api).manager.attempts():
        with attempt:
            break
    else:
        raise AssertionError("went on")


# Configuration and statistics.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_retries", value) for value in (-1, 101, 1.5, True)),
        *(("base_delay", value) for value in (-1, 61, float("nan"), "1")),
        *(("max_delay", value) for value in (-1, float("inf"), 86_401)),
        *(("strategy", value) for value in ("linear", 2, None)),
        ("jitter", "full"),
        *(("jitter_percent", value) for value in (-0.1, 1.1)),
        *(("retry_on", value) for value in (OSError, [OSError], (KeyboardInterrupt,), (5,))),
        ("give_up_on", (object,)),
        ("retry_on_result", 5),
        *(("retry_on_status", value) for value in (500, (99,), (600,), ("500",), (True,))),
        *(("retry_budget_percent", value) for value in (-1, 101, "10")),
        *(("floor", value) for value in (-1, 10_001)),
        *(("max_balance", value) for value in (9.9, 10**6 + 1)),
        ("cooldown", 1),
    ],
)
def test_a_wrong_value_is_named_with_its_field_and_range(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} is .*, but must be "):
        RetryConfig(**{field: value})


def test_retries_have_one_configuration(api: Api) -> None:
    retry = Retry(api)

    assert api.service.get_or_create_retry_manager("payments")._core is retry.manager._core
    assert Retry(api, RetryConfig(3, base_delay=1.0, jitter=Jitter.NONE)).manager._core is retry.manager._core
    with pytest.raises(ValueError, match=r"retry manager 'payments' exists with another configuration"):
        Retry(api, RetryConfig(2))
    with pytest.raises(ValueError, match="config is 5, but must be a RetryConfig"):
        api.service.get_or_create_retry_manager("other", 5)


def test_statistics_tell_of_retries(api: Api) -> None:
    retry = Retry(api)
    retry.run(OSError(), "done")
    stats = api(api.service.get_comprehensive_stats())["retry_managers"]["payments"]

    assert stats["local"] == {"retry.requests": 1, "retry.retries": 1}
    assert stats["config"]["max_retries"] == 3
    assert repr(retry.manager).endswith("RetryManager('payments', max_retries=3)")
    assert retry.manager.name == "payments"
