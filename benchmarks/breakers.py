"""Around a function that does nothing: circuit breakers, closed and open, and retries that are not needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import redis

from benchmarks.ground import Ground
from benchmarks.machine import version
from benchmarks.rounds import Case, Effort, block, rows, samples
from benchmarks.rows import MICROSECONDS, OURS, Row, Target
from benchmarks.tripless import NOTHING, nothing, without_ratio
from shared_resilience import ResilienceService

FAILURES, OPEN_SECONDS = 20, 3600
CLOSED, OPEN = "circuit breaker, closed", "circuit breaker, open"
ALONE, SHARED = ", of one process", ", shared"
Call = Callable[[], Any]


class FailureError(Exception):
    """What a dependency raises that is down."""


def failing() -> None:
    raise FailureError


def refusal_of(call: Call) -> Call:
    """`call`, of which a refusal is expected; returns what it raises."""

    def refused() -> Exception | None:
        try:
            call()
        except Exception as refusal:
            return refusal
        return None

    return refused


def is_refusal(answer: object) -> bool:
    return isinstance(answer, Exception) and not isinstance(answer, FailureError)


def tripped(decorate: Callable[[Call], Call]) -> Call:
    """A call through a breaker that has seen nothing but failures."""
    fail = refusal_of(decorate(failing))
    for _ in range(FAILURES):
        fail()
    return refusal_of(decorate(nothing))


def both(library: str, where: str, make: Callable[[str], Any]) -> Iterator[Case]:
    """A closed breaker and an open one. `make(name)` gives a decorator."""
    yield Case(library, CLOSED + where, make("closed")(nothing))
    yield Case(library, OPEN + where, tripped(make("open")), is_refusal)


def measure(ground: Ground, effort: Effort, chosen: Callable[[Case], bool]) -> list[Row]:
    """All in one process; those that are shared have this server."""
    ground.clear()
    with ground.service() as service:
        cases = [Case("Python", NOTHING, nothing), *_ours(service)]
        for name, make in PEERS.items():
            cases += make(ground) if version(name) else ()
        wanted = [cases[0], *filter(chosen, cases[1:])]
        return without_ratio(rows(wanted, samples(ground, wanted, effort.rounds, effort.calls, block)))


def _ours(service: ResilienceService) -> Iterator[Case]:
    closed = service.get_or_create_circuit_breaker("closed")(nothing)
    yield Case(OURS, CLOSED + SHARED, closed, target=Target(MICROSECONDS, "≤", 3))
    opened = service.get_or_create_circuit_breaker("open")
    opened.force_open()
    yield Case(OURS, OPEN + SHARED, refusal_of(opened(nothing)), is_refusal, Target(MICROSECONDS, "≤", 2))
    retry, timeout = service.get_or_create_retry_manager("retried"), service.get_or_create_adaptive_timeout("timed")
    yield Case(OURS, "retry with a shared budget, no failure", retry(nothing))
    yield Case(OURS, "adaptive timeout, shared", timeout(nothing))
    both_of_them = retry(timeout(nothing))
    yield Case(OURS, "retry with a budget and adaptive timeout", both_of_them, target=Target(MICROSECONDS, "≤", 6))


def of_pybreaker(ground: Ground) -> Iterator[Case]:
    module = importlib.import_module("pybreaker")
    options = {"fail_max": 5, "reset_timeout": OPEN_SECONDS}
    yield from both("pybreaker", ALONE, lambda name: module.CircuitBreaker(**options, name=name))
    client = redis.Redis(port=ground.port)

    def shared(name: str) -> Any:
        storage = module.CircuitRedisStorage(module.STATE_CLOSED, client, namespace=name)
        return module.CircuitBreaker(**options, name=name, state_storage=storage)

    yield from both("pybreaker", SHARED, shared)


def of_interlock(ground: Ground) -> Iterator[Case]:
    module = importlib.import_module("interlock")
    config = module.Config(wait_duration_in_open=OPEN_SECONDS)
    yield from both("interlock-cb", ALONE, lambda name: module.CircuitBreaker(name=name, config=config))
    storage = importlib.import_module("interlock.integrations.redis").RedisStorage(redis.Redis(port=ground.port))
    yield from both(
        "interlock-cb", SHARED, lambda name: module.CircuitBreaker(name=name, config=config, storage=storage)
    )


def of_circuitbreaker(ground: Ground) -> Iterator[Case]:
    make = importlib.import_module("circuitbreaker").CircuitBreaker
    yield from both("circuitbreaker", ALONE, lambda name: make(5, OPEN_SECONDS, name=name))


def of_nopanic(ground: Ground) -> Iterator[Case]:
    make = importlib.import_module("nopanic").circuit_breaker
    yield from both("nopanic", ALONE, lambda name: make(reset_timeout=OPEN_SECONDS, name=name))


def of_nopanic_redis(ground: Ground) -> Iterator[Case]:
    make, client = importlib.import_module("nopanic_redis").redis_circuit_breaker, redis.Redis(port=ground.port)
    yield from both("nopanic-redis", SHARED, lambda name: make(client, name=name, reset_timeout=OPEN_SECONDS))


def of_tenacity(ground: Ground) -> Iterator[Case]:
    module = importlib.import_module("tenacity")
    yield Case("tenacity", "retry, no failure", module.retry(stop=module.stop_after_attempt(3))(nothing))


def of_stamina(ground: Ground) -> Iterator[Case]:
    retry = importlib.import_module("stamina").retry
    yield Case("stamina", "retry, no failure", retry(on=FailureError, attempts=3)(nothing))


PEERS: dict[str, Callable[[Ground], Iterator[Case]]] = {
    "pybreaker": of_pybreaker,
    "interlock-cb": of_interlock,
    "circuitbreaker": of_circuitbreaker,
    "nopanic": of_nopanic,
    "nopanic-redis": of_nopanic_redis,
    "tenacity": of_tenacity,
    "stamina": of_stamina,
}
