"""`resilient` around functions of every kind, and the service that it finds by itself."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from typing import Any, assert_type

import pytest
import redis
from servers import Server

from shared_resilience import (
    AsyncPolicy,
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    FallbackLevel,
    Policy,
    RateLimitExceeded,
    ResilienceService,
    RetryConfig,
    TokenBucket,
    decorator,
    get_resilience_service,
    resilient,
)

BREAKER = CircuitBreakerConfig(failure_threshold=2)
TWICE = [TokenBucket(2, 0.001)]


@pytest.fixture
def service() -> Iterator[ResilienceService]:
    service = ResilienceService.local()
    yield service
    service.close()


@pytest.fixture
def no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no default service had been asked for yet."""
    monkeypatch.setattr(decorator, "_service", None)
    monkeypatch.delenv("REDIS_URL", raising=False)


def refused(call: Callable[[], object]) -> bool:
    """Whether the third of three calls is refused, after two that pass."""
    call()
    call()
    try:
        call()
    except RateLimitExceeded:
        return True
    return False


def test_a_function_keeps_its_signature_its_name_and_its_documentation(service: ResilienceService) -> None:
    @resilient("payments", circuit_breaker_config=BREAKER, service=service)
    def charge(order: str, amount: int = 1) -> tuple[str, int]:
        """Charges."""
        return order, amount

    assert_type(charge("7", amount=3), tuple[str, int])
    assert charge("7", amount=3) == ("7", 3)
    # Names that are those of the function at run time, whatever a checker knows of them.
    plain: Any = charge
    assert (plain.__name__, plain.__doc__) == ("charge", "Charges.")
    assert str(inspect.signature(charge)) == "(order: 'str', amount: 'int' = 1) -> 'tuple[str, int]'"
    assert isinstance(charge.policy, Policy)
    assert str(charge.policy).endswith(
        "└─ test_decorator.test_a_function_keeps_its_signature_its_name_and_its_documentation.<locals>.charge"
    )


def test_a_coroutine_function_is_protected(service: ResilienceService) -> None:
    @resilient("payments", rate_limits=TWICE, service=service)
    async def charge(order: str) -> str:
        return order

    async def three() -> bool:
        assert_type(await charge("7"), str)
        await charge("8")
        with pytest.raises(RateLimitExceeded):
            await charge("9")
        return True

    assert inspect.iscoroutinefunction(charge)
    assert isinstance(charge.policy, AsyncPolicy)
    assert asyncio.run(three())


def test_methods_of_every_kind_are_protected(service: ResilienceService) -> None:
    def key(*args: object) -> str:
        return str(args[-1])

    class Bank:
        name = "bank"

        @resilient("method", rate_limits=TWICE, key=key, service=service)
        def charge(self, order: str) -> str:
            return self.name + order

        @classmethod
        @resilient("inside", rate_limits=TWICE, key=key, service=service)
        def inside(cls, order: str) -> str:
            return cls.name + order

        @resilient("around", rate_limits=TWICE, key=key, service=service)  # checkers cannot follow; it works
        @classmethod
        def around(cls, order: str) -> str:
            return cls.name + order

        @staticmethod
        @resilient("still", rate_limits=TWICE, key=key, service=service)
        def still(order: str) -> str:
            return order

        @resilient("around still", rate_limits=TWICE, key=key, service=service)
        @staticmethod
        def around_still(order: str) -> str:
            return order

    assert_type(Bank().charge("6"), str)
    kind: Any = Bank
    bank = kind()
    methods = [bank.charge, bank.inside, kind.inside, bank.around, kind.around, kind.still, bank.around_still]
    for number, method in enumerate(methods):
        assert refused(functools.partial(method, f"order {number}")), number
    assert bank.charge("7") == bank.inside("7") == bank.around("7") == "bank7"
    assert bank.around.policy.name == "around"
    assert kind.charge.policy.name == "method"


def test_partials_and_callables_are_protected(service: ResilienceService) -> None:
    class Charge:
        def __call__(self, order: str) -> str:
            return order

    class ChargeLater:
        async def __call__(self, order: str) -> str:
            return order

    decorate = functools.partial(resilient, rate_limits=TWICE, service=service)
    through = decorate("partial")(functools.partial(Charge(), "7"))
    assert refused(through)
    assert refused(functools.partial(decorate("callable")(Charge()), "7"))
    unnamed = decorate()(functools.partial(Charge(), "7"))
    assert unnamed.policy.name == "test_decorator.test_partials_and_callables_are_protected.<locals>.Charge"
    later = decorate("later")(ChargeLater())
    assert asyncio.run(later("7")) == "7"
    assert isinstance(later.policy, AsyncPolicy)


def test_names(service: ResilienceService) -> None:
    def charge() -> None: ...

    decorate = functools.partial(resilient, circuit_breaker_config=BREAKER, service=service)
    own = "test_decorator.test_names.<locals>.charge"
    assert decorate("payments")(charge).policy.name == "payments"
    assert decorate("payments", circuit_breaker_name="bank")(charge).policy.name == "payments"
    assert decorate(circuit_breaker_name="bank")(charge).policy.name == "bank"
    assert decorate()(charge).policy.name == own
    assert set(service.get_comprehensive_stats()["circuit_breakers"]) == {"payments", "bank", own}


def test_functions_of_one_name_share_their_state_and_others_do_not(service: ResilienceService) -> None:
    def fail() -> None:
        raise ConnectionError

    @resilient("payments", circuit_breaker_config=BREAKER, retry_config=RetryConfig(max_retries=0), service=service)
    def one() -> None:
        fail()

    @resilient("payments", circuit_breaker_config=BREAKER, service=service)
    def same() -> str:
        return "same"

    @resilient("refunds", circuit_breaker_config=BREAKER, service=service)
    def other() -> str:
        return "other"

    for _ in range(2):
        with pytest.raises(ConnectionError):
            one()
    with pytest.raises(CircuitBreakerOpenError):
        same()
    assert other() == "other"


def test_each_name_has_retries_of_its_own(service: ResilienceService) -> None:
    """Not one manager, and one budget, for everything that is decorated."""

    def call() -> None: ...

    for name in ("payments", "refunds"):
        resilient(name, retry_config=RetryConfig(), service=service)(call)()
    stats = service.get_comprehensive_stats()["retry_managers"]
    assert {name: found["local"] for name, found in stats.items()} == {
        "payments": {"retry.requests": 1},
        "refunds": {"retry.requests": 1},
    }


def test_the_fallback_chain_gives_its_plain_value(service: ResilienceService) -> None:
    chain = service.get_or_create_fallback_chain("rates")
    chain.register_handler(FallbackLevel.DEFAULT, lambda currency: f"{currency} of yesterday")

    @resilient("rates", fallback_chain=chain, service=service)
    def rate(currency: str) -> str:
        raise ConnectionError

    @resilient("rates", fallback_chain=chain, service=service)
    async def rate_async(currency: str) -> str:
        raise ConnectionError

    assert rate("EUR") == asyncio.run(rate_async("EUR")) == "EUR of yesterday"


def generate() -> Iterator[int]:
    yield 1


async def generate_async() -> Any:
    yield 1


@pytest.mark.parametrize("generator", [generate, generate_async])
def test_generator_functions_are_sent_to_guard(generator: Any, service: ResilienceService) -> None:
    with pytest.raises(TypeError, match=r"generator function.*use guard\(\) of a policy"):
        resilient("payments", circuit_breaker_config=BREAKER, service=service)(generator)


def test_what_is_no_function_is_told(service: ResilienceService) -> None:
    for thing in (ResilienceService, 7):
        with pytest.raises(TypeError, match="is not a function"):
            resilient("payments", circuit_breaker_config=BREAKER, service=service)(thing)  # type: ignore[arg-type]


def test_without_parentheses_it_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"@resilient\(…\)"):
        resilient(lambda: None)  # type: ignore[arg-type]


def test_wrong_options_are_told_where_they_are_written() -> None:
    with pytest.raises(ValueError, match="has no part"):
        resilient("payments")
    with pytest.raises(ValueError, match="deadline is -1"):
        resilient("payments", deadline=-1)
    with pytest.raises(TypeError, match="service is 'redis"):
        resilient("payments", deadline=1, service="redis://")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="retries"):
        resilient("payments", retries=1)  # type: ignore[call-arg]


def test_another_configuration_of_a_service_is_told_where_it_is_written(service: ResilienceService) -> None:
    service.get_or_create_circuit_breaker("payments", CircuitBreakerConfig(failure_threshold=9))
    with pytest.raises(ValueError, match="exists with another configuration"):
        resilient("payments", circuit_breaker_config=BREAKER, service=service)(lambda: None)


def test_a_form_that_the_service_has_no_client_for_is_told() -> None:
    service = ResilienceService(redis.Redis())

    async def charge() -> None: ...

    with pytest.raises(TypeError, match="async_client="):
        resilient("payments", circuit_breaker_config=BREAKER, service=service)(charge)
    resilient("payments", circuit_breaker_config=BREAKER, service=service)(lambda: None)


def test_the_asyncio_twin_of_a_service_serves_too(service: ResilienceService) -> None:
    @resilient("payments", rate_limits=TWICE, service=service.aio)
    async def charge() -> int:
        return 7

    assert asyncio.run(charge()) == 7
    assert set(service.get_comprehensive_stats()["rate_limiters"]) == {"payments"}


def test_a_traceback_leads_from_the_caller_to_the_function(service: ResilienceService) -> None:
    @resilient("payments", circuit_breaker_config=BREAKER, deadline=1.0, service=service)
    def charge() -> None:
        raise ConnectionError("no route")

    try:
        charge()
    except ConnectionError as error:
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert frames[-1] == "charge"
    assert len(frames) <= 5


# The default service.


@pytest.mark.usefixtures("no_service")
def test_without_a_url_the_default_service_is_local_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    @resilient("payments", rate_limits=TWICE)
    def charge() -> int:
        return 7

    with caplog.at_level(logging.WARNING, "shared_resilience"):
        assert refused(charge)
        assert get_resilience_service() is get_resilience_service()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "REDIS_URL is not set" in said[0]


@pytest.mark.usefixtures("no_service")
def test_nobody_is_asked_for_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    @resilient("payments", rate_limits=TWICE)
    def charge() -> int:
        return 7

    assert decorator._service is None
    monkeypatch.setenv("REDIS_URL", "nonsense://")
    with pytest.raises(ValueError, match="nonsense"):
        charge()


def run(code: str, url: str) -> str:
    """What a fresh process with `REDIS_URL` prints."""
    environment = {**os.environ, "REDIS_URL": url}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_processes_share_by_the_url_of_their_environment(server: Server, prefix: str) -> None:
    code = f"""
        from shared_resilience import resilient, TokenBucket, RateLimitExceeded

        @resilient("payments-{prefix}", rate_limits=[TokenBucket(3, 0.001)])
        def charge():
            return "passed"

        for _ in range(2):
            try:
                print(charge())
            except RateLimitExceeded as error:
                print("refused by", error.decision.source)
    """
    assert run(code, server.url).split("\n") == ["passed", "passed", ""]
    assert run(code, server.url).split("\n") == ["passed", "refused by redis", ""]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_forked_children_share_with_their_parent(server: Server, prefix: str) -> None:
    code = f"""
        import asyncio, os
        from shared_resilience import resilient, TokenBucket, RateLimitExceeded

        @resilient("payments-{prefix}", rate_limits=[TokenBucket(3, 0.001)])
        def charge():
            return "passed"

        @resilient("payments-{prefix}", rate_limits=[TokenBucket(3, 0.001)])
        async def charge_async():
            return charge()

        print(charge(), flush=True)
        child = os.fork()
        if child == 0:
            try:
                print(asyncio.run(charge_async()), flush=True)  # takes two
                charge()
            except RateLimitExceeded as error:
                print("refused by", error.decision.source, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        try:
            charge()
        except RateLimitExceeded as error:
            print("refused by", error.decision.source, flush=True)
    """
    assert run(code, server.url).split("\n") == ["passed", "passed", "refused by redis", "refused by redis", ""]
