"""The asyncio way to Redis: one connection per event loop, shared by all tasks, whatever happens to some of them."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import time
from typing import Any

import pytest
from proxies import Proxy, cut, in_pieces, instead, pass_on, slowly, swallow
from redis import asyncio as async_redis
from servers import PATIENT, Server

from shared_resilience import AsyncResilienceService, Event, ResilienceService, TokenBucket
from shared_resilience.backends import stream
from shared_resilience.backends.faults import StoreError
from shared_resilience.backends.stream import Stream

BUCKET = TokenBucket(10**6, 0.001)


def limiter_of(service: AsyncResilienceService) -> Any:
    return service.get_or_create_rate_limiter("search", BUCKET)


def stream_of(service: AsyncResilienceService) -> Stream:
    wire: Any = service._runtime.backends.suspending._store._wire  # type: ignore[attr-defined]
    way: Stream = wire._ways[asyncio.get_running_loop()]
    return way


async def until(condition: Any) -> None:
    """Waits until `await condition()` holds, within bounds."""
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110  # in another process
            await asyncio.sleep(0.005)


def open_service(url: str, prefix: str, timeout: float = PATIENT, **options: Any) -> AsyncResilienceService:
    return AsyncResilienceService.from_url(url, prefix=prefix, command_timeout=timeout, **options)


def test_what_is_asked_in_one_tick_goes_out_in_one_write(server: Server, prefix: str) -> None:
    async def main() -> list[int]:
        async with open_service(server.url, prefix) as service:
            limiter = limiter_of(service)
            await limiter.try_acquire()
            transport = stream_of(service)._transport
            writes: list[int] = []

            class Counting:
                def write(self, data: bytes) -> None:
                    writes.append(data.count(b"EVALSHA"))
                    transport.write(data)

                def __getattr__(self, name: str) -> Any:
                    return getattr(transport, name)

            stream_of(service)._transport = Counting()  # type: ignore[assignment]  # looks on
            await asyncio.gather(*(limiter.try_acquire() for _ in range(50)))
            stream_of(service)._transport = transport
            return writes

    assert asyncio.run(main()) == [50]


@pytest.mark.usefixtures("reader")
def test_ten_thousand_tasks_at_once_are_all_decided_by_redis_on_one_connection(server: Server, prefix: str) -> None:
    async def main() -> tuple[int, set[str], int]:
        async with open_service(f"{server.url}?client_name={prefix}", prefix) as service:
            limiter = service.get_or_create_rate_limiter("r", TokenBucket(5000, 0.001), remember_refusals=False)
            decisions = await asyncio.gather(*(limiter.try_acquire() for _ in range(10_000)))
            with server.client() as client:
                connections = len([c for c in client.client_list() if c["name"] == prefix])
            return sum(d.allowed for d in decisions), {d.source for d in decisions}, connections

    assert asyncio.run(main()) == (5000, {"redis"}, 1)


def test_no_more_than_a_bounded_number_of_requests_is_in_flight(server: Server, prefix: str) -> None:
    async def main() -> int:
        async with open_service(server.url, prefix) as service:
            limiter = limiter_of(service)
            await limiter.try_acquire()
            line, most = stream_of(service), 0
            tasks = [asyncio.ensure_future(limiter.try_acquire()) for _ in range(5000)]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0)
                most = max(most, len(line._sent))
            return most

    assert 0 < asyncio.run(main()) <= stream.MOST_IN_FLIGHT


def test_too_many_waiting_requests_are_decided_locally_and_redis_is_not_taken_for_lost(
    server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MOST_UNSENT", 100)
    events: list[Event] = []

    async def main() -> list[str]:
        async with open_service(server.url, prefix, listeners=[events.append]) as service:
            limiter = limiter_of(service)
            await limiter.try_acquire()
            return [d.source for d in await asyncio.gather(*(limiter.try_acquire() for _ in range(150)))]

    assert asyncio.run(main()) == ["redis"] * 100 + ["local"] * 50
    assert events == []


@pytest.mark.usefixtures("reader")
def test_replies_in_pieces_are_put_together(proxy: Proxy, prefix: str) -> None:
    async def main() -> list[int]:
        async with open_service(proxy.url, prefix) as service:
            limiter = limiter_of(service)
            await limiter.try_acquire()
            proxy.treatment = in_pieces
            decisions = await asyncio.gather(*(limiter.try_acquire() for _ in range(20)))
            return [decision.remaining for decision in decisions]

    assert asyncio.run(main()) == [10**6 - 2 - number for number in range(20)]


@pytest.mark.parametrize("fault", [slowly, swallow])
def test_every_request_has_a_deadline_of_its_own(proxy: Proxy, prefix: str, fault: Any) -> None:
    async def main() -> list[str]:
        async with open_service(proxy.url, prefix, 0.2) as service:
            limiter = limiter_of(service)
            await limiter.try_acquire()
            proxy.treatment = fault
            early = [asyncio.ensure_future(limiter.try_acquire()) for _ in range(5)]
            await asyncio.sleep(0)  # they have asked
            stream_of(service)._patience = 1.0
            late = [asyncio.ensure_future(limiter.try_acquire()) for _ in range(5)]
            await asyncio.wait(early)
            assert not any(task.done() for task in late)
            async with asyncio.timeout(5):
                decisions = await asyncio.gather(*early, *late)
            proxy.treatment = pass_on
            return [decision.source for decision in decisions]

    assert asyncio.run(main()) == ["local"] * 10


def test_a_cancelled_task_disturbs_nobody_before_or_after_its_request_was_sent(server: Server, prefix: str) -> None:
    async def main() -> tuple[list[int], int]:
        async with open_service(server.url, prefix) as service:
            limiter = limiter_of(service)
            await limiter.try_acquire("warm")
            before = [asyncio.ensure_future(limiter.try_acquire("before")) for _ in range(10)]
            await asyncio.sleep(0)
            for task in before:  # asked, and not sent: the flush comes after this tick
                task.cancel()
            others = await asyncio.gather(*(limiter.try_acquire(f"key{n}", n + 1) for n in range(20)))
            await asyncio.gather(*before, return_exceptions=True)
            return [10**6 - d.remaining for d in others], 10**6 - (await limiter.peek("before")).remaining

    assert asyncio.run(main()) == ([number + 1 for number in range(20)], 0)


@pytest.mark.fault("the connection that many tasks share is lost", "exactly what was in flight is decided locally")
def test_a_lost_connection_fails_exactly_what_was_in_flight(proxy: Proxy, prefix: str) -> None:
    async def main() -> tuple[list[Any], list[bool], str]:
        async with open_service(proxy.url, prefix) as service:
            limiter = limiter_of(service)
            await limiter.try_acquire()
            line = stream_of(service)
            store: Any = service._runtime.backends.suspending._store  # type: ignore[attr-defined]
            command = limiter._core.commands.take(limiter._core.keys.of(("k",)), 1)
            proxy.treatment = cut
            sent = [asyncio.ensure_future(store.execute(command)) for _ in range(3)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(line._sent) == 3
            waiting = asyncio.get_running_loop().create_future()
            line._unsent.append((b"never sent", waiting, math.inf))
            failed = await asyncio.gather(*sent, return_exceptions=True)
            unsent = await asyncio.gather(waiting, return_exceptions=True)
            proxy.treatment = pass_on
            after = await limiter.try_acquire()
            ran_not = [error.fault.ran_not for error in [*failed, *unsent] if isinstance(error, StoreError)]
            return [type(error) for error in failed], ran_not, after.source

    failed, ran_not, after = asyncio.run(main())
    assert failed == [StoreError] * 3
    assert ran_not == [False] * 3 + [True]
    assert after == "redis"  # on a new connection


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("reply", [b":1\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b":1\r\n" * 50])
def test_a_reply_of_another_shape_is_decided_locally(proxy: Proxy, prefix: str, reply: bytes) -> None:
    events: list[Event] = []

    async def main() -> tuple[list[str], str]:
        async with open_service(proxy.url, prefix, 1.0, listeners=[events.append]) as service:
            limiter = limiter_of(service)
            await limiter.try_acquire()
            proxy.treatment = instead(reply)
            garbled = await asyncio.gather(*(limiter.try_acquire() for _ in range(5)))
            proxy.treatment = pass_on

            async def back() -> bool:
                return bool((await limiter.try_acquire()).source == "redis")

            await until(back)
            return [decision.source for decision in garbled], (await limiter.try_acquire()).source

    assert asyncio.run(main()) == (["local"] * 5, "redis")
    assert [event.name for event in events] == ["store.lost", "store.recovered"]


def test_a_server_that_stops_reading_costs_each_caller_one_command_timeout(proxy: Proxy, prefix: str) -> None:
    async def main() -> tuple[set[str], float, int]:
        async with open_service(proxy.url, prefix, 0.2) as service:
            limits = [TokenBucket(10**9, 1, label=f"l{number}") for number in range(500)]
            limiter = service.get_or_create_rate_limiter("r", *limits)
            await limiter.try_acquire("k" * 90)
            line = stream_of(service)
            proxy.reads.clear()
            begin = time.monotonic()
            decisions = await asyncio.gather(*(limiter.try_acquire("k" * 90) for _ in range(60)))
            spent = time.monotonic() - begin
            proxy.reads.set()
            return {decision.source for decision in decisions}, spent, len(line._sent) + len(line._unsent)

    sources, spent, held = asyncio.run(main())
    assert "local" in sources
    assert spent < 5.0
    assert held <= stream.MOST_IN_FLIGHT


def leave_in_the_middle_and_go_on(url: str, prefix: str) -> tuple[str, int]:
    """Who decides in the second of two event loops, the first of which ended with commands in flight; and its ways."""
    service = ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT)

    async def leave_in_the_middle() -> None:
        limiter = limiter_of(service.aio)
        await limiter.try_acquire()
        left = [asyncio.ensure_future(limiter.try_acquire()) for _ in range(20)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in left)

    async def go_on() -> tuple[str, int]:
        async with service.aio as aio:
            decision = await limiter_of(aio).try_acquire()
            wire: Any = aio._runtime.backends.suspending._store._wire  # type: ignore[attr-defined]
            return decision.source, len(wire._ways) + len(wire._pools._pools)

    asyncio.run(leave_in_the_middle())
    return asyncio.run(go_on())


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # nobody closed the first connection, as redis-py and asyncio say
def test_a_loop_that_ends_with_commands_in_flight_leaves_the_next_one_alone(server: Server, prefix: str) -> None:
    assert leave_in_the_middle_and_go_on(server.url, prefix) == ("redis", 2)
    gc.collect()  # here, where the warnings are expected


def test_whoever_connects_first_may_be_cancelled_without_the_others(server: Server, prefix: str) -> None:
    async def main() -> list[str]:
        async with open_service(server.url, prefix) as service:
            limiter = limiter_of(service)
            tasks = [asyncio.ensure_future(limiter.try_acquire()) for _ in range(5)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            decisions = await asyncio.gather(*tasks[1:])
            return [decision.source for decision in decisions]

    assert asyncio.run(main()) == ["redis"] * 4


@pytest.mark.parametrize(("most", "kept"), [(2, False), (8, True)])
def test_a_users_small_pool_keeps_its_connections_for_its_user(
    server: Server, prefix: str, most: int, kept: bool
) -> None:
    async def main() -> tuple[str, bool]:
        client = async_redis.Redis(port=server.port, protocol=2, max_connections=most)
        service = AsyncResilienceService(async_client=client, prefix=prefix, command_timeout=PATIENT)
        source = (await limiter_of(service).try_acquire()).source
        way: object = stream_of(service)
        await service.close()
        await client.aclose()
        return source, isinstance(way, Stream)

    assert asyncio.run(main()) == ("redis", kept)


@pytest.mark.fault("all callers of a frozen server have given up", "the next ones are held up by nothing")
def test_a_frozen_server_whose_callers_have_all_given_up_holds_nobody_else(proxy: Proxy, prefix: str) -> None:
    events: list[Event] = []

    async def main() -> tuple[str, float]:
        async with open_service(proxy.url, prefix, 0.3, listeners=[events.append]) as service:
            limiter = limiter_of(service)
            await limiter.try_acquire()
            proxy.treatment = swallow
            tasks = [asyncio.ensure_future(limiter.try_acquire()) for _ in range(stream.MOST_IN_FLIGHT + 50)]
            while len(stream_of(service)._sent) < stream.MOST_IN_FLIGHT:  # noqa: ASYNC110  # a few ticks
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            begin = time.monotonic()
            async with asyncio.timeout(5):
                source = (await limiter.try_acquire()).source
            proxy.treatment = pass_on
            return source, time.monotonic() - begin

    source, spent = asyncio.run(main())
    assert source == "local"
    assert spent < 2.0
    assert events[0].name == "store.lost"  # the server is late, not this process busy


def test_callers_of_a_small_pool_wait_for_its_connections_instead_of_deciding_alone(
    server: Server, prefix: str
) -> None:
    async def main() -> list[int]:
        client = async_redis.Redis(port=server.port, protocol=3, max_connections=10)
        service = AsyncResilienceService(async_client=client, prefix=prefix, command_timeout=PATIENT)
        limiter = service.get_or_create_rate_limiter("r", TokenBucket(200, 0.001), remember_refusals=False)
        decisions = await asyncio.gather(*(limiter.try_acquire() for _ in range(500)))
        await service.close()
        await client.aclose()
        return [sum(d.allowed for d in decisions), sum(d.source == "redis" for d in decisions)]

    assert asyncio.run(main()) == [200, 500]


async def closed_by_its_user(server: Server, prefix: str) -> str:
    client = async_redis.Redis(port=server.port, protocol=2)
    service = AsyncResilienceService(async_client=client, prefix=prefix, command_timeout=PATIENT)
    await limiter_of(service).try_acquire()
    async with asyncio.timeout(5):
        await client.connection_pool.disconnect()
    source = str((await limiter_of(service).try_acquire()).source)
    await service.close()
    await client.aclose()
    return source


def test_a_connection_that_is_lost_again_and_again_takes_no_more_of_a_users_pool(server: Server, prefix: str) -> None:
    async def main() -> list[str]:
        client = async_redis.Redis(port=server.port, protocol=2, max_connections=4)
        service = AsyncResilienceService(async_client=client, prefix=prefix, command_timeout=PATIENT)
        sources = []
        for _ in range(12):
            sources.append((await limiter_of(service).try_acquire()).source)
            stream_of(service).close()
        await service.close()
        await client.aclose()
        return sources

    assert asyncio.run(main()) == ["redis"] * 12


def test_a_user_may_disconnect_the_pool_from_which_the_connection_is_taken(server: Server, prefix: str) -> None:
    assert asyncio.run(closed_by_its_user(server, prefix)) == "redis"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_inside_a_loop_asks_on_a_connection_of_its_own(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    read_end, write_end = os.pipe()

    async def main() -> list[int]:
        limiter = limiter_of(service.aio)
        await limiter.try_acquire("warm")
        if os.fork() == 0:
            right = all(
                service.get_or_create_rate_limiter("search", BUCKET).try_acquire("child").remaining == 10**6 - 1 - n
                for n in range(100)
            )
            os.write(write_end, b"right" if right else b"wrong")
            os._exit(0)
        remaining = [(await limiter.try_acquire("parent")).remaining for _ in range(100)]
        os.wait()  # noqa: ASYNC222  # the test is over
        await service.aio.close()
        return remaining

    assert asyncio.run(main()) == [10**6 - 1 - number for number in range(100)]
    assert os.read(read_end, 10) == b"right"
    os.close(read_end)
    os.close(write_end)
