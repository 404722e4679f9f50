"""The fleet's list of workers: script and twin are one algorithm, and the list says who is alive."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
from multiprocessing.connection import Connection
from typing import Any

import pytest
from conftest import Api, Lane
from histories import START, KeysHistory, compare_all, stem
from processes import forkserver
from servers import PATIENT, Server

from shared_resilience import ResilienceService, TokenBucket, __version__
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.commands import Command
from shared_resilience.fleet import ENLIST, WORKERS
from shared_resilience.keys import encode_key

HORIZON = 5_000_000


def history(lane: Lane, seed: int) -> KeysHistory:
    """Workers that come, go silent and come back, more of them than a list keeps of the dead."""
    source, now = random.Random(seed), START
    fleet = f"{stem()}:fleet"
    keys = (fleet, f"{fleet}:workers")
    commands: list[tuple[int, Command[Any]]] = []
    for number in range(300):
        now += source.choice([0, 1000, 400_000, 6_000_000, -2_000_000])
        worker = f"host.{number if source.random() < 0.5 else source.randrange(6)}:1"
        known = (f"host.{number}", str(number), "0.1.0", source.choice(["up", "down", "unknown"]))
        if source.random() < 0.3:
            commands.append((now, Command(WORKERS, keys, ())))
        else:
            commands.append((now, Command(ENLIST, keys, (source.choice([1, HORIZON]), worker, *known))))
    return KeysHistory(lane, keys, commands)


def test_scripts_and_twins_agree(store: Lane) -> None:
    compare_all(history(store, seed) for seed in range(8))


def test_what_is_known_of_the_dead_is_forgotten(store: Lane, prefix: str) -> None:
    store.load_scripts()
    keys = (f"{prefix}:fleet", f"{prefix}:{{{prefix}:fleet}}:workers")
    now = iter(range(START, START + 10**12, HORIZON + 1))
    redis_store = RedisStore(store.wire, now.__next__)
    sizes = []
    for number in range(100):
        command = Command(ENLIST, keys, (HORIZON, f"w{number}", "host", "1", "0.1.0", "up"))
        assert step(redis_store.execute(command)) == [1]
        sizes.append(store.client.hlen(keys[1]))

    assert max(sizes) <= 4 * (2 + 16)
    assert store.client.hget(keys[1], "w99.host") == b"host"
    assert 86_300_000 < store.client.pttl(keys[1]) <= 86_400_000


def test_a_process_finds_itself(api: Api) -> None:
    (worker,) = api(api.service.fleet())

    assert (worker.host, worker.pid, worker.version) == (socket.gethostname(), os.getpid(), __version__)
    assert (worker.id, worker.health) == (api.runtime.process.heartbeat.worker_id, "unknown")
    assert 0 <= worker.seen < 1


def test_others_are_seen_until_they_have_been_silent_for_too_long(api: Api, other: ResilienceService) -> None:
    other.get_or_create_rate_limiter("search", TokenBucket(9, 1)).try_acquire()
    both = api(api.service.fleet())
    api.clock.advance(4)
    still = api(api.service.fleet())
    api.clock.advance(2)

    assert len(both) == len(still) == 2
    assert [round(worker.seen) for worker in still] == [0, 4]
    assert [worker.id for worker in api(api.service.fleet())] == [api.runtime.process.heartbeat.worker_id]


def test_while_redis_is_away_a_process_sees_itself_alone(
    api: Api, place: str, other: ResilienceService, redis_is_away: Any
) -> None:
    other.fleet()
    redis_is_away()

    assert [worker.pid for worker in api(api.service.fleet())] == [os.getpid()]


def beat(url: str, prefix: str, worker_id: str, pipe: Connection) -> None:
    service = ResilienceService.from_url(url, prefix=prefix, worker_id=worker_id, command_timeout=PATIENT)
    service.get_or_create_rate_limiter("search", TokenBucket(9, 1)).try_acquire()
    pipe.send(os.getpid())
    pipe.recv()


@pytest.mark.parametrize("worker_id", ["web.1", "à la carte: {1}"])
def test_a_worker_of_another_process_is_told_as_it_is(server: Server, prefix: str, worker_id: str) -> None:
    mine, theirs = forkserver.Pipe()
    process = forkserver.Process(target=beat, args=(server.url, prefix, worker_id, theirs))
    process.start()
    with ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT) as service:
        pid = mine.recv()
        others = [worker for worker in service.fleet() if worker.pid != os.getpid()]
        assert [(worker.id, worker.pid) for worker in others] == [(encode_key(worker_id), pid)]
        mine.send("enough")
        process.join(10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_is_a_worker_of_its_own(server: Server, prefix: str) -> None:
    fork = multiprocessing.get_context("fork")
    with ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT) as service:
        service.fleet()
        mine, theirs = fork.Pipe()

        def see() -> None:
            theirs.send(sorted(worker.pid for worker in service.fleet()))

        child = fork.Process(target=see)
        child.start()
        seen = mine.recv()
        child.join(10)

    assert set(seen) == {os.getpid(), child.pid}


def test_somebody_with_redis_cli_can_read_it(store: Lane, prefix: str) -> None:
    command = Command(
        ENLIST, (f"{prefix}:fleet", f"{prefix}:{{{prefix}:fleet}}:workers"), (HORIZON, "w1", "web", "7", "0.1.0", "up")
    )
    step(RedisStore(store.wire).execute(command))

    assert store.client.hgetall(command.keys[1]) == {
        b"w1.host": b"web",
        b"w1.pid": b"7",
        b"w1.version": b"0.1.0",
        b"w1.health": b"up",
    }
