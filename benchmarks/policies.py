"""Policies around a function that does nothing: each part alone, and the whole, in both forms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.ground import Ground
from benchmarks.rounds import Block, Case, Effort, block, rows, samples
from benchmarks.rows import MICROSECONDS, OURS, Row, Target
from benchmarks.tripless import NOTHING, nothing, without_ratio
from shared_resilience import (
    BulkheadConfig,
    CircuitBreakerConfig,
    ResilienceService,
    RetryConfig,
    TimeoutConfig,
    TokenBucket,
    resilient,
)

PARTS: dict[str, dict[str, Any]] = {
    "circuit breaker": {"circuit_breaker_config": CircuitBreakerConfig()},
    "retry": {"retry_config": RetryConfig()},
    "adaptive timeout": {"timeout_config": TimeoutConfig()},
}
STACK = "circuit breaker, retry, adaptive timeout, fallback"
WITHIN: dict[str, Any] = {"rate_limits": [TokenBucket(10**9, 10**9)], "bulkhead_config": BulkheadConfig()}


async def nothing_async() -> None:
    """The same to be awaited."""


async def nothing_later() -> None:
    """The same, which lets others go first."""
    await asyncio.sleep(0)


def _cases(service: ResilienceService, function: Callable[[], Any], of: str, most: int | None) -> Iterator[Case]:
    """The parts and the whole around `function`, whose policies are named after it."""
    chain = service.get_or_create_fallback_chain(f"fallback{of}")
    parts = {**PARTS, "fallback": {"fallback_chain": chain}}
    decorate = partial(resilient, service=service)
    for part, options in parts.items():
        yield Case(OURS, f"policy of {part}{of}", decorate(f"{part}{of}", **options)(function))
    whole = {name: option for options in parts.values() for name, option in options.items()}
    target = None if most is None else Target(MICROSECONDS, "≤", most)
    yield Case(OURS, f"policy of {STACK}{of}", decorate(f"whole{of}", **whole)(function), target=target)
    yield Case(OURS, f"the same with limits and bulkhead{of}", decorate(f"within{of}", **whole, **WITHIN)(function))


def awaited(runner: asyncio.Runner) -> Block:
    """Calls that are awaited one after the other."""

    async def work(call: Callable[[], Any], calls: int) -> Any:
        answer = None
        for _ in range(calls):
            answer = await call()
        return answer

    return lambda case, calls: runner.run(work(case.call, calls))


def measure_sync(ground: Ground, effort: Effort, chosen: Callable[[Case], bool]) -> list[Row]:
    """Plain functions."""
    ground.clear()
    with ground.service() as service:
        cases = [Case("Python", NOTHING, nothing), *filter(chosen, _cases(service, nothing, "", 8))]
        return without_ratio(rows(cases, samples(ground, cases, effort.rounds, effort.calls, block)))


def measure_asyncio(ground: Ground, effort: Effort, chosen: Callable[[Case], bool]) -> list[Row]:
    """Coroutine functions, one call after the other; once more with one that has to wait, as a real call has."""
    ground.clear()
    with ground.service() as service, asyncio.Runner() as runner:
        cases = [
            Case("Python", NOTHING, nothing_async),
            *filter(chosen, _cases(service, nothing_async, "", 14)),
            Case("Python", f"{NOTHING}, after others", nothing_later),
            *filter(chosen, _cases(service, nothing_later, ", after others", None)),
        ]
        measured = rows(cases, samples(ground, cases, effort.rounds, effort.calls, awaited(runner)))
        runner.run(service.aio.close())
        return without_ratio(measured)
