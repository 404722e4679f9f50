"""The retry budget: script and twin are one algorithm, a model agrees, and a fleet that fails retries only so much."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from multiprocessing.connection import Connection
from typing import Any, cast

import pytest
from conftest import Lane, runtime_on
from histories import START, HashHistory, compare_all
from processes import forkserver
from servers import PATIENT, Server
from test_heartbeat import commands_at, counted

from shared_resilience import ResilienceService, RetryConfig, scripts
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.commands import Command, Operation, State
from shared_resilience.retry_budget import settle
from shared_resilience.testing import ManualClock

SETTLE: Operation[Any] = Operation("retry_budget", settle, lambda reply, source: reply)
BATCH, STEPS = 250, 20_000
MILLION = 1_000_000
CONFIGS = [
    (100_000, MILLION, 100 * MILLION),
    (0, 300_000, 3 * MILLION),
    (MILLION, 0, MILLION),
    (333_333, 10**10, 10**11),
]
assert counted  # a fixture


class Model:
    """A budget in exact fractions of a retry; it shares no thought with the script and its twin."""

    def __init__(self, now: int, floor: Fraction, most: Fraction) -> None:
        self.balance, self.at = min(10 * floor, most), now

    def pass_to(self, now: int, floor: Fraction, most: Fraction) -> None:
        seconds = Fraction(max(0, now - self.at), MILLION)
        if self.balance < min(10 * floor, most):
            self.balance = min(10 * floor, most, self.balance + floor * seconds)
        self.at = now


def moves(source: random.Random) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Microseconds that pass, and what is asked."""
    while True:
        kind = source.random()
        passed = source.randint(0, 1500) if kind < 0.5 else int(10 ** source.uniform(0, 7.5))
        if kind > 0.97:
            passed = -int(10 ** source.uniform(0, 8))
        wanted, share = int(source.random() < 0.6), source.choice([1] * 12 + [2, 3, 64])
        requests = 0 if source.random() < 0.5 else source.choice([1, 2, 7, 100, 10**6, 2**40])
        yield passed, (wanted, requests, share, *source.choice(CONFIGS[:3] if source.random() < 0.9 else CONFIGS))


def history(lane: Lane, seed: int) -> HashHistory:
    return HashHistory(lane, SETTLE, itertools.islice(moves(random.Random(seed)), BATCH))


def test_script_and_twin_agree_over_twenty_thousand_random_steps(store: Lane, lane: str) -> None:
    compare_all(history(store, seed) for seed in range((STEPS if lane != "fakeredis" else 1000) // BATCH))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_twin_and_a_model_in_fractions_agree(config: tuple[int, int, int]) -> None:
    part, floor, most = (Fraction(number, MILLION) for number in config)
    source, now = random.Random(5), START
    state: State = None
    model, rounding = Model(now, floor, most), (1 + floor) / 500
    for _ in range(4000):
        now += int(10 ** source.uniform(0, 6.3))
        wanted, requests = int(source.random() < 0.7), source.choice([0, 0, 1, 3])
        outcome = settle((state,), now, wanted, requests, 1, *config)
        (state,), (taken, balance, *_) = outcome.states, outcome.reply
        model.pass_to(now, floor, most)
        model.balance = min(most, model.balance + part * requests)
        before = Fraction(int(balance), MILLION) + int(taken)
        assert abs(before - model.balance) <= rounding
        assert not taken or wanted
        if wanted:
            assert model.balance >= 1 - rounding if taken else model.balance < 1 + rounding
        model.balance = before - int(taken)  # so that roundings do not add up


@pytest.mark.parametrize("damage", [{"microbalance": "x"}, {"time_us": "1.5"}, {"microbalance": ""}])
def test_a_damaged_budget_begins_anew(store: Lane, prefix: str, damage: dict[str, str]) -> None:
    redis, key = RedisStore(store.wire, lambda: START), f"{prefix}:{{a}}:retry_budget"
    told = (1, 0, 1, 100_000, MILLION, 100 * MILLION)
    step(redis.execute(Command(SETTLE, (key,), told)))
    store.client.hset(key, mapping=damage)

    assert list(step(redis.execute(Command(SETTLE, (key,), told)))) == [1, 9 * MILLION, 0, 2, 0]


def test_what_stands_in_redis_is_readable(store: Lane, prefix: str) -> None:
    service = ResilienceService._of(runtime_on(store, prefix, ManualClock()))
    retry = service.get_or_create_retry_manager("payments", RetryConfig(base_delay=0))
    outcomes = iter([OSError(), "done"])

    def work() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return cast("str", outcome)

    assert retry.execute_with_retry(work) == "done"
    service.close()  # which sends the last heartbeat
    budget = store.client.hgetall(f"{prefix}:{{payments}}:retry_budget")
    config = store.client.hgetall(f"{prefix}:{{payments}}:config")

    assert {field.decode(): int(value) for field, value in budget.items()} == {
        "microbalance": 9_100_000,
        "time_us": 1_000_000_000_000,
        "requests": 1,
        "retries": 1,
        "refused": 0,
    }
    assert {field.decode(): float(value) for field, value in config.items()} == {
        "retry.max_retries": 3,
        "retry.base_delay": 0,
        "retry.max_delay": 60,
        "retry.retry_budget_percent": 10,
        "retry.floor": 1,
        "retry.max_balance": 100,
    }


def test_a_call_that_passes_costs_no_trip_and_one_deposit_a_second(counted: Server, prefix: str) -> None:
    with ResilienceService.from_url(counted.url, prefix=prefix, command_timeout=PATIENT) as service:
        retry = service.get_or_create_retry_manager("payments")
        for _ in range(500):
            retry.execute_with_retry(str)
        sent = [command for command in commands_at(counted) if command[0] == "EVALSHA"]

        assert len(sent) <= 4 + 4  # a heartbeat, or two on a slow machine
    budget = [command for command in commands_at(counted) if command[1:2] == [scripts.load("retry_budget").sha]]
    assert sum(int(command[5]) for command in budget) == 500


class DownError(Exception):
    """What the dependency raises."""


def call_a_broken_dependency(url: str, prefix: str, calls: int, start: Any, out: Connection) -> None:
    """Makes calls while it is down, and then as many while it works; sends how many attempts reached it each time."""
    attempts = 0

    def fail() -> None:
        nonlocal attempts
        attempts += 1
        raise DownError

    def work() -> None:
        nonlocal attempts
        attempts += 1

    with ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT) as service:
        retry = service.get_or_create_retry_manager("payments", RetryConfig(3, base_delay=0))
        start.wait(60)
        for _ in range(calls):
            with suppress(DownError):
                retry.execute_with_retry(fail)
        failed, attempts = attempts, 0
        start.wait(60)
        for _ in range(calls):
            retry.execute_with_retry(work)
    out.send((failed, attempts))


def test_four_processes_whose_dependency_is_down_retry_a_tenth_and_afterwards_nothing_is_touched(
    server: Server, prefix: str
) -> None:
    calls, processes = 1500, 4
    start, (receiver, sender) = forkserver.Barrier(processes + 1), forkserver.Pipe(duplex=False)
    fleet = [
        forkserver.Process(target=call_a_broken_dependency, args=(server.url, prefix, calls, start, sender))
        for _ in range(processes)
    ]
    for process in fleet:
        process.start()
    start.wait(60)
    began = time.monotonic()
    start.wait(60)
    seconds = time.monotonic() - began
    found = [receiver.recv() for _ in fleet if receiver.poll(60)]
    for process in fleet:
        process.join(10)

    assert len(found) == processes
    attempts, made = sum(failed for failed, _ in found), calls * processes
    assert made + 10 <= attempts <= made * 1.1 + 10 + seconds
    assert [healthy for _, healthy in found] == [calls] * processes
