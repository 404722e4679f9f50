"""Leased tokens: most calls cost no trip, the promised bound holds, and no end of a lease mints a token."""

from __future__ import annotations

import asyncio
import math
import os
import random
import threading
from collections import Counter
from functools import partial
from typing import Any

import pytest
from conftest import Api, Lane, runtime_on
from servers import PATIENT, Server, poll

from shared_resilience import (
    AsyncResilienceService,
    LeakyBucket,
    RateLimitExceeded,
    ResilienceService,
    SlidingWindow,
    TokenBucket,
    scripts,
)
from shared_resilience.backends import Backends, step
from shared_resilience.backends.local import LocalBackend
from shared_resilience.backends.process import Process
from shared_resilience.backends.tickets import TaskTicket
from shared_resilience.leases import Leases
from shared_resilience.options import CheckedOptions
from shared_resilience.runtime import Runtime
from shared_resilience.testing import ManualClock

SLOW = 0.001


def leased(api: Api, capacity: int = 1000, rate: float = SLOW, tokens: int = 100, **options: Any) -> Any:
    return api.service.get_or_create_rate_limiter("r", TokenBucket(capacity, rate), lease_tokens=tokens, **options)


def left_in_the_bucket(api: Api, limiter: Any, key: str = "") -> int:
    remaining: int = api(limiter.peek(key)).remaining
    return remaining


def test_leased_calls_take_no_more_than_the_limit_and_each_is_counted(api: Api) -> None:
    limiter = leased(api)
    decisions = [api(limiter.try_acquire()) for _ in range(1010)]

    assert [decision.allowed for decision in decisions] == [True] * 1000 + [False] * 10
    assert decisions[-1].limited_by == "token_bucket"
    counted = api.runtime.process.heartbeat.resource("r").counted()
    assert (counted["limit.allowed"], counted["limit.refused"]) == (1000, 10)


def test_a_lease_grows_with_use_up_to_what_was_allowed(api: Api) -> None:
    limiter = leased(api, tokens=16)
    left = []
    for _ in range(64):
        api(limiter.try_acquire())
        left.append(left_in_the_bucket(api, limiter))

    taken = [before - after for before, after in zip([1000, *left], left, strict=False) if before != after]
    assert taken == [1, 2, 4, 8, 16, 16, 16, 16]


def test_remaining_counts_what_the_process_holds(api: Api) -> None:
    limiter = leased(api)

    assert [api(limiter.try_acquire()).remaining for _ in range(50)] == [999 - number for number in range(50)]


def test_what_is_not_used_in_time_is_not_used_later(api: Api) -> None:
    limiter = leased(api, capacity=100, rate=SLOW, lease_seconds=0.5)
    for _ in range(20):
        api(limiter.try_acquire())
    held = 80 - left_in_the_bucket(api, limiter)
    api.clock.advance(0.5)
    allowed = sum(api(limiter.try_acquire()).allowed for _ in range(100))

    assert held == 11
    assert allowed == 80 - held


def test_a_cost_that_the_lease_does_not_hold_gives_it_back_and_takes_anew(api: Api) -> None:
    limiter = leased(api, capacity=100, tokens=10)
    for _ in range(4):
        api(limiter.try_acquire())  # 1, 2, then 4 of which 3 are left

    assert api(limiter.try_acquire(cost=9)).allowed
    assert left_in_the_bucket(api, limiter) == 100 - 4 - 9


def test_a_cost_above_a_lease_is_taken_directly(api: Api) -> None:
    limiter = leased(api, capacity=100, tokens=10)

    assert api(limiter.try_acquire(cost=90)).remaining == 10
    assert left_in_the_bucket(api, limiter) == 10


def test_closing_gives_back_what_is_held(api: Api) -> None:
    limiter = leased(api)
    for _ in range(10):
        api(limiter.try_acquire("a"))
    api(limiter.try_acquire("b"))
    held = 990 - left_in_the_bucket(api, limiter, "a")
    api(api.service.close())

    assert held > 0
    assert left_in_the_bucket(api, limiter, "a") == 990
    assert left_in_the_bucket(api, limiter, "b") == 999


def test_closing_later_than_the_lease_gives_nothing_back(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = leased(api, lease_seconds=0.5)
    for _ in range(10):
        api(limiter.try_acquire())
    left = left_in_the_bucket(api, limiter)
    api.clock.advance(0.5)
    told = Told(limiter, monkeypatch)
    api(api.service.close())

    assert told.commands == []
    assert left_in_the_bucket(api, limiter) == left < 990


def test_a_pause_and_a_reset_end_the_leases_of_this_process(api: Api) -> None:
    limiter = leased(api)
    for _ in range(5):
        api(limiter.try_acquire())
    api(limiter.pause(30))
    paused = api(limiter.try_acquire())
    api(limiter.pause(0))
    for _ in range(10):
        api(limiter.try_acquire())
    api(limiter.reset())
    after = api(limiter.try_acquire())

    assert (paused.allowed, paused.limited_by) == (False, "pause")
    assert after.remaining == 999


def test_several_buckets_are_leased_together_by_the_tightest(api: Api) -> None:
    limits = [TokenBucket(1000, SLOW, label="user"), TokenBucket(7, SLOW, label="tenant")]
    limiter = api.service.get_or_create_rate_limiter("r", *limits, lease_tokens=7)
    decisions = [api(limiter.try_acquire({"user": "u", "tenant": "t"})) for _ in range(10)]

    assert [decision.allowed for decision in decisions] == [True] * 7 + [False] * 3
    assert decisions[-1].limited_by == "tenant"


def test_allow_acquire_and_reservations_work_on_leased_tokens(api: Api) -> None:
    limiter = leased(api, capacity=100)
    assert api(limiter.allow())
    assert api(limiter.acquire(timeout=1)).allowed
    api(api(limiter.reserve("", 50)).settle(20))
    spent = 22
    allowed = sum(api(limiter.try_acquire()).allowed for _ in range(100))

    assert allowed == 100 - spent


def test_leases_work_in_shadow_mode_and_in_partitions(api: Api) -> None:
    shadow = api.service.get_or_create_rate_limiter("s", TokenBucket(5, SLOW), lease_tokens=5, shadow=True)
    spread = api.service.get_or_create_rate_limiter("p", TokenBucket(5, SLOW), lease_tokens=5, partitioned=True)

    assert [api(shadow.try_acquire()).limited_by for _ in range(7)] == [None] * 5 + ["token_bucket"] * 2
    assert [api(spread.try_acquire("u")).allowed for _ in range(7)] == [True] * 5 + [False] * 2


@pytest.mark.parametrize("tokens", [0, -1, 1001, 1.5, "10", True])
def test_wrong_numbers_of_tokens_are_refused(tokens: Any) -> None:
    with pytest.raises(ValueError, match=r"lease_tokens is .*, but must be an integer from 1 to 1000"):
        ResilienceService.local().get_or_create_rate_limiter("r", TokenBucket(1000, 1), lease_tokens=tokens)


@pytest.mark.parametrize("seconds", [0, -1, 61, float("nan"), "1"])
def test_wrong_lengths_are_refused(seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"lease_seconds is .*, but must be a number from 0.001 to 60"):
        ResilienceService.local().get_or_create_rate_limiter(
            "r", TokenBucket(1000, 1), lease_tokens=10, lease_seconds=seconds
        )


@pytest.mark.parametrize("limit", [SlidingWindow(10), LeakyBucket(10, 1)])
def test_only_token_buckets_can_be_leased(limit: Any) -> None:
    with pytest.raises(ValueError, match="only those can be leased"):
        ResilienceService.local().get_or_create_rate_limiter("r", TokenBucket(10, 1), limit, lease_tokens=5)


def test_a_lease_is_one_trip(store: Lane, lane: str, prefix: str) -> None:
    if lane == "fakeredis":
        pytest.skip("counts at a real server")
    service = ResilienceService._of(runtime_on(store, prefix, ManualClock()))
    limiter = service.get_or_create_rate_limiter("r", TokenBucket(10**6, 1), lease_tokens=1000)
    store.client.config_set("slowlog-log-slower-than", 0)
    store.client.config_set("slowlog-max-len", 10_000)
    store.client.slowlog_reset()
    for _ in range(5000):
        assert limiter.try_acquire().allowed
    ran = Counter(
        entry["command"].split()[1].decode()
        for entry in store.client.slowlog_get(10_000)
        if b"EVALSHA" in entry["command"]
    )
    store.client.config_set("slowlog-log-slower-than", 10_000)

    # 1, 2, 4 … 512, then 1000 at a time.
    assert ran[scripts.load("token_bucket_lease").sha] == 10 + 4
    assert ran[scripts.load("token_bucket").sha] == 0


def test_threads_and_tasks_that_find_nothing_left_take_one_lease_together(server: Server, prefix: str) -> None:
    async def main() -> tuple[int, int]:
        async with AsyncResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT) as service:
            limiter = service.get_or_create_rate_limiter("r", TokenBucket(10**6, SLOW), lease_tokens=64)
            for _ in range(200):
                await limiter.try_acquire()
            held_before = 10**6 - 200 - (await limiter.peek()).remaining
            for _ in range(held_before):
                await limiter.try_acquire()
            assert all(await asyncio.gather(*(limiter.try_acquire() for _ in range(64))))
            return held_before, 10**6 - 200 - held_before - 64 - (await limiter.peek()).remaining

    held_before, held_after = asyncio.run(main())
    assert 0 <= held_before < 64
    assert held_after < 64  # one lease was taken for all of them, not one for each


def test_threads_never_serve_a_token_twice(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter(
        "r", TokenBucket(5000, SLOW), lease_tokens=100, remember_refusals=False
    )
    granted: list[int] = []

    def work() -> None:
        granted.append(sum(limiter.allow() for _ in range(1500)))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(granted) <= 5000
    assert sum(granted) >= 4800
    service.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_serves_nothing_of_its_parents_lease(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("r", TokenBucket(300, SLOW), lease_tokens=100, lease_seconds=60)
    for _ in range(100):
        limiter.try_acquire()
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.write(write_end, str(sum(limiter.allow() for _ in range(300))).encode())
        os._exit(0)
    os.wait()
    child = int(os.read(read_end, 10))
    parent = sum(limiter.allow() for _ in range(300))

    assert child + parent + 100 <= 300
    assert child > 100
    os.close(read_end)
    os.close(write_end)
    service.close()


def test_the_memory_of_leases_is_bounded() -> None:
    leases: Leases[int] = Leases(10, 1.0)
    decision = ResilienceService.local().get_or_create_rate_limiter("r", TokenBucket(10, 1)).peek()
    for key in range(12_000):
        leases.put(key, 1, 5, decision, 0.0)

    assert leases.serve(1_999, 1, 0.5) is None
    assert leases.serve(2_000, 1, 0.5) is not None


def fleet(clock: ManualClock, bucket: TokenBucket, tokens: int, seconds: float, number: int) -> list[Any]:
    """Services of several processes, which have one state and leases of their own; and their limiters."""
    shared = Process("sr", clock=clock)
    workers = []
    for _ in range(number):
        process = Process("sr", clock=clock)
        process.local = shared.local
        backends = Backends(partial(LocalBackend, process), lambda: NotImplemented)
        service = ResilienceService._of(Runtime(process, backends, CheckedOptions()))
        limiter = service.get_or_create_rate_limiter("r", bucket, lease_tokens=tokens, lease_seconds=seconds)
        workers.append((service, limiter))
    return workers


def drain(limiter: Any) -> int:
    """How many tokens the process serves from its memory."""
    served = 0
    while limiter._core.leases.serve(("",), 1, limiter._core._monotonic()):
        served += 1
    return served


def test_what_is_given_back_at_the_last_moment_is_not_leased_twice() -> None:
    clock = ManualClock()
    (one, first), (_, second), (_, third), (_, fourth) = workers = fleet(clock, TokenBucket(100, 100), 100, 0.5, 4)
    for cost, (_, limiter) in zip([25, 50, 50, 50], workers, strict=True):
        limiter.try_acquire(cost=cost)  # so that the next lease may be twice as much
        clock.advance(5)
    first.try_acquire()  # takes 50, holds 49
    clock.advance(0.495)  # the bucket is full again
    second.try_acquire()  # takes all of it
    one.close()  # gives back
    third.try_acquire()  # takes what was given back
    clock.advance(0.49)  # and nearly half a bucket has come back

    used = int(fourth.try_acquire().allowed) + sum(drain(limiter) for _, limiter in workers)
    assert 100 < used <= 100 + 100 * 0.5


@pytest.mark.parametrize("seed", range(12))
def test_no_interval_sees_more_than_capacity_rate_and_lease(seed: int) -> None:
    source, clock = random.Random(seed), ManualClock()
    capacity, rate, length = source.choice([(100, 100, 0.5), (50, 400, 0.25), (20, 7, 1.0)])
    workers = fleet(clock, TokenBucket(capacity, rate), capacity, length, 3)
    used: list[tuple[float, int]] = []
    for _ in range(3000):
        clock.advance(source.choice([0.0, 0.0, source.expovariate(rate), length * source.choice([0.5, 0.9, 0.99])]))
        service, limiter = source.choice(workers)
        cost = source.choice([1, 1, 2, capacity // 4, capacity // 2])
        if limiter.allow(cost=cost):
            used.append((clock.monotonic(), cost))
        if source.random() < 0.1:
            service.close()  # gives back; it can be used again

    for first, (begin, _) in enumerate(used):
        total = 0
        for time, cost in used[first:]:
            total += cost
            assert total <= capacity + rate * (time - begin + length) + 1e-6
            if total > 4 * capacity:
                break


def test_a_fork_while_a_thread_serves_a_lease_does_not_hang(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter: Any = service.get_or_create_rate_limiter("r", TokenBucket(300, SLOW), lease_tokens=100)
    limiter.try_acquire()
    with limiter._core.leases._lock:  # as a thread holds it that is in the middle of a call
        child = os.fork()
        if child == 0:
            os._exit(0 if limiter.allow() else 1)
    poll(lambda: os.waitpid(child, os.WNOHANG)[0] == child, "the child to have decided")
    service.close()


def test_what_was_leased_without_redis_is_not_given_back_to_redis(own_server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(own_server.url, prefix=prefix)
    limiter = service.get_or_create_rate_limiter("r", TokenBucket(100, SLOW), lease_tokens=50, lease_seconds=60)
    while limiter.peek().remaining:
        limiter.reserve(cost=limiter.peek().remaining)
    own_server.freeze()
    local = [limiter.try_acquire().source for _ in range(20)]
    own_server.thaw()
    poll(lambda: limiter.peek().source == "redis", "Redis to be back")
    service.close()

    assert local == ["local"] * 20
    with ResilienceService.from_url(own_server.url, prefix=prefix, command_timeout=PATIENT) as other:
        assert other.get_or_create_rate_limiter("r", TokenBucket(100, SLOW)).peek().remaining == 0


def test_a_worker_that_serves_from_memory_stays_in_the_fleet(store: Lane, prefix: str) -> None:
    clock = ManualClock()
    busy, other = (ResilienceService._of(runtime_on(store, prefix, clock)) for _ in range(2))
    limiter = busy.get_or_create_rate_limiter("r", TokenBucket(10**6, SLOW), lease_tokens=1000, lease_seconds=60)
    for _ in range(200):
        limiter.try_acquire()
    for _ in range(12):
        clock.advance(1)
        limiter.try_acquire()

    assert other.get_comprehensive_stats()["fleet"]["workers"] == 2


def test_a_refusal_is_remembered_once_and_for_every_way_to_ask(api: Api) -> None:
    limiter = leased(api, capacity=1, tokens=1)
    api(limiter.try_acquire())
    core = api.service.get_or_create_rate_limiter("r")._core
    assert not api(limiter.try_acquire())
    known = core.refusals.find(("",), 1, math.inf, 0, api.clock.monotonic())
    api.clock.advance(0.9)
    assert not api(limiter.allow())
    with pytest.raises(RateLimitExceeded):
        api(limiter.acquire(timeout=0))
    api.clock.advance(0.2)

    assert known is not None
    assert core.refusals.find(("",), 1, math.inf, 0, api.clock.monotonic()) is None


class Told:
    """Notes the commands that a limiter has its backend run."""

    def __init__(self, limiter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[Any] = []
        self._run = limiter._backend.run
        monkeypatch.setattr(limiter._backend, "run", self.run)

    async def run(self, command: Any, *rest: Any) -> Any:
        self.commands.append(command)
        return await self._run(command, *rest)

    def scripts(self) -> list[str]:
        return [command.operation.script for command in self.commands]


def test_what_a_lease_holds_is_decided_without_any_backend(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = leased(api)
    for _ in range(40):  # the last lease is of 32
        api(limiter.try_acquire("k"))
    told = Told(limiter, monkeypatch)

    assert limiter._core.at_once("k", 1) == api(limiter.try_acquire("k"))._replace(remaining=959)
    assert limiter._core.at_once("k", 1).allowed
    assert limiter._core.at_once("other", 1) is None
    assert limiter._core.at_once("k", 90) is None
    assert told.commands == []
    with pytest.raises(ValueError, match="cost is 0"):
        limiter._core.at_once("k", 0)


def test_a_served_decision_says_all_that_a_decision_says(api: Api, place: str) -> None:
    limiter = leased(api, capacity=100, rate=100)
    for _ in range(2):
        api(limiter.try_acquire())  # takes 1, then 2; the third is served

    source = "local" if place == "local" else "redis"
    assert limiter._core.at_once("", 1)._replace(reset_after=0.0) == (True, 100, 97, 0.0, 0.0, 0.0, None, source)


def test_a_partition_is_told_the_overrides_when_it_leases_and_gives_back(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = leased(api, partitioned=True)
    api(limiter.peek("u"))  # and the heartbeat
    limiter._core.resource.overrides = {"limit.token_bucket.capacity": "40"}
    told = Told(limiter, monkeypatch)
    for _ in range(2):
        assert api(limiter.try_acquire("u")).limit == 40
    api(api.service.close())

    assert told.scripts() == ["token_bucket_lease", "token_bucket_lease", "rate_limiter_settle"]
    assert all(command.args[-3] == 40 for command in told.commands)


def test_less_is_given_back_where_an_override_makes_tokens_come_back_faster(api: Api) -> None:
    limiter = leased(api, capacity=1000, rate=SLOW)
    for _ in range(64):  # 63 were leased and used; the 64th is the first of 64
        api(limiter.try_acquire())
    limiter._core.resource.overrides = {"limit.token_bucket.refill_rate": "100"}
    api.clock.advance(0.25)
    before = left_in_the_bucket(api, limiter)
    giving = limiter._core.before_close(limiter._backend)
    if api.form == "asyncio":
        api(giving)
    else:
        step(giving)

    assert left_in_the_bucket(api, limiter) - before == 63 - 25


@pytest.mark.parametrize("form", ["asyncio"])
def test_tasks_that_find_nothing_left_take_one_lease_together(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = leased(api, tokens=64)
    for _ in range(127):  # 1, 2, 4 … 64: nothing is left
        api(limiter.try_acquire())
    told = Told(limiter, monkeypatch)

    async def all_at_once() -> list[Any]:
        return list(await asyncio.gather(*(limiter.try_acquire() for _ in range(64))))

    assert all(api(all_at_once()))
    assert told.scripts() == ["token_bucket_lease"]


@pytest.mark.parametrize("form", ["asyncio"])
def test_tasks_that_are_refused_together_ask_once_and_remember_it_no_longer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = leased(api, capacity=2, tokens=2)
    for _ in range(2):
        api(limiter.try_acquire())
    told = Told(limiter, monkeypatch)

    waits: list[float] = []

    class Late(TaskTicket):
        async def wait(self, seconds: float) -> bool:
            woken = await super().wait(seconds)
            waits.append(seconds)
            api.clock.advance(0.1)
            return woken

    monkeypatch.setattr(limiter._backend, "ticket", Late)

    async def all_at_once() -> list[Any]:
        return list(await asyncio.gather(*(limiter.allow() for _ in range(8))))

    assert api(all_at_once()) == [False] * 8
    assert told.scripts() == ["token_bucket_lease"]
    assert set(waits) <= {math.inf}
    api.clock.advance(1.01 - 0.1 * len(waits))  # a second after the trip, some of which they waited for each other
    assert limiter._core.refusals.find(("",), 1, math.inf, 0, api.clock.monotonic()) is None


def test_the_largest_cost_that_a_lease_may_hold_is_leased(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = leased(api, tokens=10)
    told = Told(limiter, monkeypatch)
    api(limiter.try_acquire(cost=10))
    api(limiter.try_acquire(cost=11))

    assert told.scripts() == ["token_bucket_lease", "token_bucket"]


def test_the_first_lease_gives_nothing_back(api: Api) -> None:
    limiter = leased(api, capacity=10, tokens=5)
    api(limiter.try_acquire(cost=9))  # directly
    api(limiter.try_acquire())

    assert left_in_the_bucket(api, limiter) == 0


def test_a_key_that_was_never_leased_can_be_reset(api: Api) -> None:
    limiter = leased(api)
    api(limiter.reset("never"))

    assert api(limiter.try_acquire("never")).remaining == 999


def test_a_forked_process_leases_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = leased(api)
    told = Told(limiter, monkeypatch)
    limiter._core.after_fork()
    api(limiter.try_acquire())

    assert told.scripts() == ["token_bucket_lease"]


@pytest.mark.parametrize("form", ["asyncio"])
def test_who_leases_for_one_key_does_not_wait_for_another(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = leased(api)
    run = limiter._backend.run
    done: list[str] = []

    async def main() -> None:
        asked, other_is_done = asyncio.Event(), asyncio.Event()

        async def slow(command: Any, *rest: Any) -> Any:
            if not asked.is_set():
                asked.set()
                await other_is_done.wait()
            return await run(command, *rest)

        async def acquire(key: str) -> None:
            await limiter.try_acquire(key)
            done.append(key)

        monkeypatch.setattr(limiter._backend, "run", slow)
        first = asyncio.create_task(acquire("slow"))
        await asked.wait()
        try:
            await asyncio.wait_for(acquire("quick"), PATIENT)
        finally:
            other_is_done.set()
            await first

    api(main())
    assert done == ["quick", "slow"]
