"""Interleaved rounds: every case runs a short block in every round, so that what disturbs one disturbs all."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

from benchmarks.ground import Ground
from benchmarks.rows import CLIENT, MICROSECONDS, PER_SECOND, RATIO, SERVER, Row, Target

TASKS = 64


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure; `quick` is for a look, not for figures."""

    rounds: int
    calls: int
    local_calls: int
    keys: int
    largest: int
    seconds: float


FULL = Effort(rounds=40, calls=256, local_calls=2000, keys=100_000, largest=10**6, seconds=0.5)
QUICK = Effort(rounds=7, calls=64, local_calls=1000, keys=5000, largest=10**4, seconds=0.1)


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: `call` makes `decisions` decisions, and its answer is `fine` if the work was really done."""

    library: str
    work: str
    call: Callable[[], Any]
    fine: Callable[[Any], bool] = lambda answer: True
    target: Target | None = None
    decisions: int = 1


class Sample(NamedTuple):
    """Microseconds per decision of one block: by the clock, and of the CPU of both sides."""

    clock: float
    client: float
    server: float


class UnfitError(Exception):
    """A case did not do what is being measured."""


Block = Callable[[Case, int], Any]


def block(case: Case, calls: int) -> Any:
    """Calls in a row; the last answer."""
    call, answer = case.call, None
    for _ in repeat(None, calls):
        answer = call()
    return answer


def tasks_block(runner: asyncio.Runner) -> Block:
    """The same by `TASKS` tasks at once, on one event loop that stays."""

    async def work(call: Callable[[], Awaitable[Any]], calls: int) -> Any:
        answer = None
        for _ in repeat(None, calls):
            answer = await call()
        return answer

    async def all_tasks(case: Case, calls: int) -> Any:
        each = max(1, calls // TASKS)
        return (await asyncio.gather(*(work(case.call, each) for _ in range(TASKS))))[-1]

    return lambda case, calls: runner.run(all_tasks(case, calls))


def samples(ground: Ground, cases: Sequence[Case], rounds: int, calls: int, run: Block) -> list[list[Sample]]:
    """For each case a sample of each round. Each round begins with another case."""
    found: list[list[Sample]] = [[] for _ in cases]
    for case in cases:  # connects, loads scripts, fills caches
        _check(case, run(case, calls))
    for number in range(rounds):
        for index in ((number + place) % len(cases) for place in range(len(cases))):
            found[index].append(_sample(ground, cases[index], calls, run))
    return found


def _sample(ground: Ground, case: Case, calls: int, run: Block) -> Sample:
    server, client, begin = ground.cpu_us(), time.process_time_ns(), time.perf_counter_ns()
    answer = run(case, calls)
    end, client_end = time.perf_counter_ns(), time.process_time_ns()
    server_end = ground.cpu_us()
    _check(case, answer)
    per_decision = 1 / (calls * case.decisions)
    spent = (end - begin) / 1000, (client_end - client) / 1000, server_end - server
    return Sample(*(part * per_decision for part in spent))


def _check(case: Case, answer: Any) -> None:
    if not case.fine(answer):
        raise UnfitError(f"{case.library}, {case.work}: {answer!r} is not the answer that is to be measured")


def rows(cases: Sequence[Case], found: Sequence[Sequence[Sample]]) -> list[Row]:
    """A row for each case. The ratio is the median of the rounds' ratios to the first case in the same round."""
    bare = found[0]
    return [
        Row(case.library, case.work, _figures(of_case, bare), case.target)
        for case, of_case in zip(cases, found, strict=True)
    ]


def _figures(of_case: Sequence[Sample], bare: Sequence[Sample]) -> dict[str, float]:
    clock = statistics.median(sample.clock for sample in of_case)
    ratios = [one.clock / other.clock for one, other in zip(of_case, bare, strict=True)]
    return {
        RATIO: statistics.median(ratios),
        MICROSECONDS: clock,
        CLIENT: statistics.median(sample.client for sample in of_case),
        SERVER: statistics.median(sample.server for sample in of_case),
        PER_SECOND: 1e6 / clock,
    }
