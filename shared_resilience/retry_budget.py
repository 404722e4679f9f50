"""The budget out of which a whole fleet retries, and the twin of its script.

Each call pays in a part of a retry, each retry takes a whole one out: a dependency that fails for everybody gets a few
more calls than usual, not several times as many. The idea is that of Finagle's `RetryBudget` (Twitter, 2015).

What is paid in rides on the heartbeat; what is taken out is asked of Redis, which decides for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from shared_resilience.backends import Backend
from shared_resilience.commands import Argument, Arguments, Command, Operation, Reply, Source, State, Step
from shared_resilience.heartbeat import Resource
from shared_resilience.integers import MILLION, to_integer
from shared_resilience.retry_config import START, RetryConfig, millionths

REQUESTS = "retry.requests"
"""The counter of calls that pay in."""

DAY_MS = 86_400_000
MOST_AT_ONCE = 10**9
FIELDS = ("microbalance", "time_us", "requests", "retries", "refused")


def settle(
    states: Sequence[State], now: int, wanted: int, requests: int, share: int, part: int, floor: int, most: int
) -> Step:
    """Twin of `retry_budget.lua`."""
    (stored,) = states
    kept = {field: to_integer(value) for field, value in cast("Mapping[str, object]", stored or {}).items()}
    floor, most = floor // share, most // share
    start = min(START * floor, most)
    balance, time = kept.get("microbalance"), kept.get("time_us")
    if balance is None or time is None:
        balance, time = start, now
    time = min(time, now)
    passed_ms = (now - time) // 1000
    if balance < start:
        balance = min(start, balance + floor * min(passed_ms, 10_000) // 1000)
    balance = min(most, balance + part * min(requests, MOST_AT_ONCE))
    taken = int(wanted == 1 and balance >= MILLION)
    refused = 1 - taken if wanted == 1 else 0
    counters = [kept.get(field) or 0 for field in FIELDS[2:]]
    after = [count + more for count, more in zip(counters, (requests, taken, refused), strict=True)]
    if wanted == 1 or requests > 0:
        balance -= taken * MILLION
        stored = dict(zip(FIELDS, (balance, time + passed_ms * 1000, *after), strict=True))
    return Step((stored,), (DAY_MS if wanted == 1 or requests > 0 else None,), (taken, balance, *after))


class Account(NamedTuple):
    """How the budget stands: whether a retry was taken out just now, and what the fleet has counted."""

    taken: bool
    balance: float
    requests: int
    retries: int
    refused: int
    source: Source


def _account(reply: Reply, source: Source) -> Account:
    taken, balance, requests, retries, refused = map(int, reply)
    return Account(taken == 1, balance / MILLION, requests, retries, refused, source)


class Budget:
    """The budget of one resource, as one process uses it."""

    def __init__(self, resource: Resource, config: RetryConfig) -> None:
        self._resource = resource
        part, floor, most = config.retry_budget_percent or 0.0, config.floor, config.max_balance
        self._numbers = millionths(part / 100), millionths(floor), millionths(most)
        self._operation = Operation("retry_budget", settle, _account, self._share)
        self._keys = (resource.keys.retry_budget,)
        self.restart()
        resource.passengers.append(self)

    def restart(self) -> None:
        """As in a process that has made no call."""
        self._paid_in = 0

    async def withdraw(self, backend: Backend) -> Account:
        """Takes a retry out, if there is one."""
        return await self._ask(backend, 1, 0)

    async def look(self, backend: Backend) -> Account:
        """How it stands. What this process has not told yet is paid in with its next heartbeat."""
        return await self._ask(backend, 0, 0)

    async def deposit(self, backend: Backend, requests: int) -> Account:
        """Pays in for `requests` calls."""
        return await self._ask(backend, 0, requests)

    async def _ask(self, backend: Backend, wanted: int, requests: int) -> Account:
        if backend.source() == "local":
            requests += self._untold()
        return await backend.run(self._command(wanted, requests), self._resource)

    def _command(self, wanted: int, requests: int) -> Command[Account]:
        return Command(self._operation, self._keys, (wanted, requests, 1, *self._numbers))

    def _share(self, n: int, wanted: Argument, requests: int, share: int, *numbers: Argument) -> Arguments:
        return wanted, requests + self._untold(), n, *numbers

    def _untold(self) -> int:
        """The calls of this process that have paid in nowhere: without Redis, they do so here and now."""
        counted = self._resource.counted().get(REQUESTS, 0)
        untold, self._paid_in = max(0, counted - self._paid_in), counted
        return untold

    # On the heartbeat.

    def command(self, counted: Mapping[str, int]) -> Command[Account] | None:
        requests = counted.get(REQUESTS, 0)
        self._paid_in += requests
        return self._command(0, requests) if requests else None

    def lost(self, command: Command[Any]) -> None:
        self._paid_in -= int(command.args[1])  # they ride on the next one
