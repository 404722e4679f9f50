"""The heartbeat: what it writes, when it is sent, and that script and twin agree."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from conftest import Lane, runtime_on
from servers import PATIENT, Server

from shared_resilience import ResilienceService, TokenBucket, scripts
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.commands import Command, State
from shared_resilience.heartbeat import BEAT, ENROL, Heartbeat
from shared_resilience.limit_commands import PAUSE_FOR
from shared_resilience.testing import ManualClock

START = 1_763_880_000_000_000


def commands_at(server: Server) -> list[list[str]]:
    """The commands that clients have sent since the slow log was emptied, in words; it holds every command."""
    with server.client() as client:
        entries = client.slowlog_get(100_000)
    return [entry["command"].decode().split(" ") for entry in entries]


@pytest.fixture
def counted(own_server: Server) -> Server:
    """A server that notes every command."""
    with own_server.client() as client:
        for name in scripts.names():
            client.script_load(scripts.load(name).text)
        client.config_set("slowlog-max-len", 100_000)
        client.config_set("slowlog-log-slower-than", 0)
        client.slowlog_reset()
    return own_server


def test_a_decision_is_one_trip_and_a_remembered_refusal_none(counted: Server, prefix: str) -> None:
    service = ResilienceService.from_url(counted.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(50, 0.001))
    for _ in range(500):
        limiter.try_acquire()

    sent = [command for command in commands_at(counted) if command[0] == "EVALSHA"]
    of_script = Counter(command[1] for command in sent)
    assert of_script[scripts.load("token_bucket").sha] == 51
    assert 1 <= of_script[scripts.load("heartbeat").sha] <= 2
    assert len(of_script) == 4  # and fleet_enlist and heartbeat_roster
    service.close()


def test_the_heartbeat_is_sent_once_a_second_and_process_whatever_the_number_of_calls(store: Lane, prefix: str) -> None:
    clock = ManualClock()
    service = ResilienceService._of(runtime_on(store, prefix, clock))
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(10**6, 1))
    seen = []
    for _ in range(80):
        limiter.try_acquire()
        seen.append(store.client.zscore(f"{prefix}:fleet", service._runtime.process.heartbeat.worker_id))
        clock.advance(0.125)

    assert len(set(seen)) == 10


def test_what_stands_in_redis_is_readable(store: Lane, prefix: str) -> None:
    clock = ManualClock()
    service = ResilienceService._of(runtime_on(store, prefix, clock))
    limiter = service.get_or_create_rate_limiter("pay ments", TokenBucket(10, 2.5, label="user"))
    limiter.try_acquire("user:42", 3)
    service.get_comprehensive_stats()

    def text(value: Any) -> Any:
        return {k.decode(): v.decode() for k, v in value.items()}

    stem = f"{prefix}:{{pay%20ments}}"
    assert text(store.client.hgetall(f"{stem}:limit:user:user:42")) == {
        "microtokens": "7000000",
        "time_us": "1000000000000",
    }
    assert text(store.client.hgetall(f"{stem}:config")) == {
        "limit.user.capacity": "10",
        "limit.user.refill_rate": "2.5",
    }
    assert text(store.client.hgetall(f"{stem}:stats")) == {"limit.allowed": "1"}
    worker = service._runtime.process.heartbeat.worker_id.encode()
    assert store.client.zrange(f"{stem}:workers", 0, -1) == [worker]
    assert store.client.zrange(f"{prefix}:fleet", 0, -1) == [worker]
    assert store.client.zrange(f"{prefix}:resources", 0, -1) == [b"pay%20ments"]


def test_silent_workers_no_longer_count_after_five_seconds(store: Lane, prefix: str) -> None:
    clock = ManualClock()
    services = [ResilienceService._of(runtime_on(store, prefix, clock)) for _ in range(3)]
    for service in services:
        service.get_or_create_rate_limiter("search", TokenBucket(10, 1)).try_acquire()
    clock.advance(4.9)
    still = services[0].get_comprehensive_stats()["fleet"]["workers"]
    clock.advance(0.2)
    left = services[0].get_comprehensive_stats()["fleet"]["workers"]

    assert (still, left) == (3, 1)


def test_a_large_fleet_beats_less_often() -> None:
    heartbeat = Heartbeat("sr", "w1")
    heartbeat.fleet_size = 4000

    first = heartbeat.begin(100.0)

    assert first is not None
    assert not heartbeat.due(103.9)
    assert heartbeat.due(104.0)
    assert first.commands[0].args[:2] == (20_000_000, "w1")


@pytest.mark.parametrize(("ran_not", "sent_again"), [(True, ("limit.allowed", 1)), (False, ())])
def test_only_counts_that_certainly_did_not_arrive_are_sent_again(ran_not: bool, sent_again: tuple[Any, ...]) -> None:
    heartbeat = Heartbeat("sr", "w1")
    resource = heartbeat.resource("search")
    resource.last_used = 0.0
    resource.count("limit.allowed")
    first = heartbeat.begin(0.0, force=True)
    assert first is not None
    first.lost(ran_not)

    second = heartbeat.begin(0.0, force=True)

    assert second is not None
    assert first.commands[2].args[3:] == ("limit.allowed", 1)
    assert second.commands[2].args[3:] == sent_again
    assert resource.counted() == {"limit.allowed": 1}


_numbers = itertools.count()


def random_beats(seed: int) -> list[tuple[int, Command[Any]]]:
    source = random.Random(seed)
    now = START
    history: list[tuple[int, Command[Any]]] = []
    stem = f"beat:{{{next(_numbers)}}}"
    keys = (f"{stem}:workers", f"{stem}:config", f"{stem}:stats", f"{stem}:overrides")
    for _ in range(200):
        now += source.choice([1, 1000, 1_000_000, 6_000_000, -2_000_000])
        worker, horizon = f"w{source.randrange(5)}", source.choice([1, 5_000_000])
        fields: list[tuple[str, int | str]] = [
            (f"limit.{source.choice('ab')}.x", "7") for _ in range(source.choice([0, 2]))
        ]
        counts: list[tuple[str, int | str]] = [
            (f"limit.{source.choice('xy')}", source.randrange(1, 9)) for _ in range(source.choice([0, 1, 3]))
        ]
        rest = [item for pair in (*fields, *counts) for item in pair]
        kind = source.random()
        if kind < 0.1:
            history.append((now, Command(PAUSE_FOR, keys[3:], (source.choice([0, 1, 3_000_000]),))))
        elif kind < 0.4:
            members = [f"w{source.randrange(9)}" for _ in range(source.randrange(1, 4))]
            history.append((now, Command(ENROL, keys[:1], (horizon, *members))))
        else:
            history.append((now, Command(BEAT, keys, (worker, horizon, len(fields), *rest))))
    return history


def as_counts(reply: Any) -> tuple[list[int], dict[str, str]]:
    """The numbers in front, and the pairs: Redis does not promise the order of a hash."""
    texts = [item.decode() if isinstance(item, bytes) else str(item) for item in reply]
    if len(texts) == 1:
        return [int(texts[0])], {}
    return [int(number) for number in texts[:3]], dict(zip(texts[3::2], texts[4::2], strict=True))


def test_scripts_and_twins_of_the_heartbeat_agree(store: Lane) -> None:
    for name in ("heartbeat", "heartbeat_roster", "rate_limiter_pause"):
        store.client.script_load(scripts.load(name).text)
    for seed in range(20):
        history = random_beats(seed)
        states: dict[str, State] = {}
        expected = []
        for now, command in history:
            outcome = command.operation.twin(tuple(map(states.get, command.keys)), now, *command.args)
            states.update(zip(command.keys, outcome.states, strict=True))
            expected.append(as_counts(outcome.reply))
        told = iter([now for now, _ in history])

        redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False), told.__next__)
        replies = step(redis_store.execute_all([command for _, command in history]))

        assert [as_counts(reply) for reply in replies] == expected


@pytest.mark.parametrize(("horizon", "ms"), [(1, 1000), (1_000_001, 1001), (1_234_400, 1235), (5_000_000, 5000)])
def test_a_roster_lives_as_long_as_its_horizon_and_what_was_counted_a_day(
    store: Lane, prefix: str, horizon: int, ms: int
) -> None:
    keys = tuple(f"{prefix}:{{a}}:{name}" for name in ("workers", "config", "stats", "overrides"))
    command = Command(BEAT, keys, ("w1", horizon, 1, "limit.a.capacity", "10", "limit.allowed", 1))
    arguments = (command.operation.loaded.sha, 4, *keys, *command.args, START)
    store.client.script_load(command.operation.loaded.text)
    seen = []
    for _ in range(20):
        pipeline = store.client.pipeline(transaction=False).evalsha(*arguments)
        seen.append(tuple(pipeline.pttl(keys[0]).pttl(keys[1]).pttl(keys[2]).pttl(keys[3]).execute()[1:]))

    # The longest of several: milliseconds may pass between writing and asking.
    assert tuple(map(max, zip(*seen, strict=True))) == (ms, 86_400_000, 86_400_000, -2)


def test_a_bad_horizon_is_refused_by_the_script(store: Lane, prefix: str) -> None:
    command = Command(ENROL, (f"{prefix}:fleet",), (0, "w1"))

    with pytest.raises(Exception, match="horizon must be an integer from 1"):
        step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(command))


def test_more_resources_cost_more_commands_but_one_exchange(store: Lane, prefix: str) -> None:
    wire = PoolWire(store.pool, 5, theirs=False)
    exchanges = []

    async def exchange(requests: Any) -> Any:
        exchanges.append(len(requests))
        return await PoolWire.exchange(wire, requests)

    clock = ManualClock()
    runtime = runtime_on(store, prefix, clock)
    service = ResilienceService._of(runtime)
    limiters = [service.get_or_create_rate_limiter(f"r{number}", TokenBucket(10, 1)) for number in range(5)]
    for limiter in limiters:
        limiter.try_acquire()
    backend: Any = runtime.backends.blocking
    backend._store._wire.exchange = exchange

    service.get_comprehensive_stats()

    assert exchanges == [2 + 5]
