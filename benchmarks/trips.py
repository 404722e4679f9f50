"""Decisions that ask Redis: what they cost beside a bare script, called one by one and by many tasks at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import redis
from redis import asyncio as async_redis

from benchmarks.ground import KEY, Ground
from benchmarks.limiters import BUCKET, PLENTY, Limiter, ours, ours_of_many_keys
from benchmarks.peers import ASYNC_PEERS, SYNC_PEERS, installed
from benchmarks.rounds import TASKS, Case, Effort, block, rows, samples, tasks_block
from benchmarks.rows import RATIO, Row, Target

BARE = "EVALSHA of `return 1`"
SCRIPT = "return 1"
SYNC_TARGETS = {BUCKET: Target(RATIO, "≤", 0.80)}
ASYNC_TARGETS = {BUCKET: Target(RATIO, "≤", 0.30)}
CALLS_OF_A_TASK = 10
Chosen = Callable[[Case], bool]


def is_one(answer: object) -> bool:
    return answer == 1


def measure_sync(ground: Ground, effort: Effort, chosen: Chosen) -> list[Row]:
    """One caller. The baseline stands first."""
    ground.clear()
    with closing(redis.Redis(port=ground.port)) as client, ground.service() as service:
        sha: Any = client.script_load(SCRIPT)
        cases = [
            Case("redis-py", BARE, lambda: client.evalsha(sha, 0), is_one),
            Case("redis-py", "the same on a Connection, packed by hand", by_hand(ground, sha), is_one),
            *_cases([*ours(service, PLENTY, SYNC_TARGETS), ours_of_many_keys(service)]),
            *_cases(installed(SYNC_PEERS, ground, PLENTY)),
        ]
        wanted = [cases[0], *filter(chosen, cases[1:])]
        return rows(wanted, samples(ground, wanted, effort.rounds, effort.calls, block))


def by_hand(ground: Ground, sha: str) -> Callable[[], Any]:
    """What is left of redis-py when nothing but its connection is used."""
    connection: Any = redis.ConnectionPool(port=ground.port).get_connection()
    packed = connection.pack_command("EVALSHA", sha, 0)

    def call() -> Any:
        connection.send_packed_command(packed)
        return connection.read_response()

    return call


def _cases(limiters: Iterable[Limiter]) -> list[Case]:
    return [Case(one.library, one.work, one.bind(KEY), one.fine, one.target) for one in limiters]


def measure_asyncio(ground: Ground, effort: Effort, chosen: Chosen) -> list[Row]:
    """64 tasks on one event loop. The baseline stands first."""
    ground.clear()
    with asyncio.Runner() as runner:
        client: Any = async_redis.Redis(port=ground.port)
        service = ground.service().aio
        sha = runner.run(client.script_load(SCRIPT))
        cases = [
            Case("redis-py", BARE, lambda: client.evalsha(sha, 0), is_one),
            Case("redis-py", f"{TASKS} of them in a pipeline", pipeline(client, sha), decisions=TASKS),
            *_cases([*ours(service, PLENTY, ASYNC_TARGETS), ours_of_many_keys(service)]),
            *_cases(installed(ASYNC_PEERS, ground, PLENTY)),
        ]
        wanted = [cases[0], *filter(chosen, cases[1:])]
        found = samples(ground, wanted, max(3, effort.rounds // 3), TASKS * CALLS_OF_A_TASK, tasks_block(runner))
        runner.run(client.aclose())
        runner.run(service.close())
        return rows(wanted, found)


def pipeline(client: Any, sha: str) -> Callable[[], Any]:
    """What is left when a whole tick's commands are known beforehand."""

    async def call() -> Any:
        commands = client.pipeline(transaction=False)
        for _ in range(TASKS):
            commands.evalsha(sha, 0)
        return await commands.execute()

    return call
