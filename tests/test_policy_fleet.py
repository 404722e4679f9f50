"""Four processes with everything switched on, and a dependency that is down."""

from __future__ import annotations

import asyncio
import os
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import pytest
from processes import forkserver
from servers import PATIENT, Server

from shared_resilience import (
    BulkheadConfig,
    CircuitBreakerConfig,
    FallbackConfig,
    FallbackLevel,
    ResilienceService,
    RetryConfig,
    TimeoutConfig,
    TokenBucket,
    resilient,
)

PROCESSES, CALLS = 4, 250
RETRY = RetryConfig(max_retries=3, base_delay=0.001, retry_budget_percent=10, floor=1)


class Report(NamedTuple):
    """What a process has seen: answers, runs of the function, and what the fleet's counters say at the end."""

    answers: list[object]
    runs: int
    state: str
    counters: dict[str, int]


def work(url: str, prefix: str, limit: TokenBucket, threshold: int, form: str, pipe: Connection) -> None:
    """Makes the calls when told to, and reports when told that all have made theirs."""
    service = ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT)
    chain = service.get_or_create_fallback_chain("payments", FallbackConfig(shared_max_age=0, local_max_age=0))
    chain.register_handler(FallbackLevel.DEFAULT, lambda order: f"noted {order}")
    runs = 0
    protect = resilient(
        "payments",
        rate_limits=[limit],
        circuit_breaker_config=CircuitBreakerConfig(failure_threshold=threshold, window=60),
        retry_config=RETRY,
        bulkhead_config=BulkheadConfig(max_concurrent_calls=20),
        timeout_config=TimeoutConfig(),
        fallback_chain=chain,
        deadline=30.0,
        idempotency_key=lambda order: order,
        service=service,
    )

    def charge(order: str) -> str:
        nonlocal runs
        runs += 1
        raise ConnectionError("the bank is down")

    async def charge_async(order: str) -> str:
        return charge(order)

    async def all_calls() -> list[object]:
        charge_it = protect(charge_async)
        answers: list[object] = [await charge_it(f"{os.getpid()}:{number}") for number in range(CALLS)]
        await service.aio.get_comprehensive_stats()  # tells what it has counted
        return answers

    pipe.send("ready")
    pipe.recv()
    if form == "sync":
        charge_it = protect(charge)
        answers: list[object] = [charge_it(f"{os.getpid()}:{number}") for number in range(CALLS)]
        service.get_comprehensive_stats()
    else:
        answers = asyncio.run(all_calls())
    pipe.send("done")
    pipe.recv()
    breaker: Any = service.get_or_create_circuit_breaker("payments")
    state = breaker.get_stats()["state"]
    stats = service.get_comprehensive_stats()
    sections = ("rate_limiters", "circuit_breakers", "retry_managers")
    counters = {field: number for one in sections for field, number in stats[one]["payments"]["fleet"].items()}
    pipe.send((answers, runs, state, counters))
    service.close()


def reports(server: Server, prefix: str, limit: TokenBucket, threshold: int, form: str) -> tuple[list[Report], float]:
    """What all processes have seen, and for how many seconds they were at it."""
    pipes, processes = [], []
    for _ in range(PROCESSES):
        mine, theirs = forkserver.Pipe()
        process = forkserver.Process(target=work, args=(server.url, prefix, limit, threshold, form, theirs))
        process.start()
        pipes.append(mine)
        processes.append(process)

    def all_say() -> list[Any]:
        for pipe in pipes:
            assert pipe.poll(60), "a process said nothing for a minute"
        return [pipe.recv() for pipe in pipes]

    def tell_all() -> None:
        for pipe in pipes:
            pipe.send("go on")

    try:
        all_say()
        began = time.monotonic()
        tell_all()
        all_say()
        took = time.monotonic() - began
        tell_all()
        return [Report(*report) for report in all_say()], took
    finally:
        for process in processes:
            process.join(10)
            process.kill()


@pytest.mark.fault(
    "the dependency of a whole fleet is down",
    "calls are answered by the fallback, the circuit opens, retries stay in their budget",
)
@pytest.mark.parametrize("form", ["sync", "asyncio"])
@pytest.mark.parametrize("tight", [False, True], ids=["the breaker opens", "the limit refuses"])
def test_a_primary_that_is_down_is_spared_and_every_call_is_answered(
    server: Server, prefix: str, form: str, tight: bool
) -> None:
    limit, threshold = (TokenBucket(60, 0.001), 10**6) if tight else (TokenBucket(100_000, 9000), 50)
    all_reports, took = reports(server, prefix, limit, threshold, form)
    answers = [answer for report in all_reports for answer in report.answers]
    runs = sum(report.runs for report in all_reports)
    counters = all_reports[0].counters

    assert len(set(answers)) == PROCESSES * CALLS
    assert all(str(answer).startswith("noted ") for answer in answers)
    retries, budget = counters["retry.retries"], 0.1 * PROCESSES * CALLS + 10 * RETRY.floor + took * RETRY.floor
    assert 0 < retries <= budget
    assert counters["breaker.failures"] == runs
    if tight:
        assert runs == limit.capacity
        assert {report.state for report in all_reports} == {"closed"}
        assert counters["limit.refused"] > 0
    else:
        # What a process has under way when the circuit opens still reaches the primary.
        assert threshold <= runs <= threshold + PROCESSES - 1
        assert {report.state for report in all_reports} == {"open"}
        assert counters["breaker.refused"] > 0
