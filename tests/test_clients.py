"""The ways to Redis: our own clients, the user's clients, clusters, forks and event loops."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis import asyncio as async_redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from servers import PATIENT, Server, binary_of, free_port

from shared_resilience import (
    AsyncResilienceService,
    Decision,
    ResilienceService,
    StoreConfigurationError,
    TokenBucket,
    acl,
)
from shared_resilience.backends.clients import redacted

BUCKET = TokenBucket(10, 0.001)


def take(service: ResilienceService, key: str = "") -> Decision:
    return service.get_or_create_rate_limiter("search", BUCKET).try_acquire(key)


async def take_async(service: AsyncResilienceService, key: str = "") -> Decision:
    return await service.get_or_create_rate_limiter("search", BUCKET).try_acquire(key)


def test_own_clients_wait_briefly_and_never_retry(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=0.25, connect_timeout=1.5)
    take(service)

    wire: Any = service._runtime.backends.blocking._store._wire  # type: ignore[attr-defined]
    connection = wire._pool.get_connection()
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (0.25, 1.5)
    assert connection.retry._retries == 0
    wire._pool.release(connection)
    service.close()


@pytest.mark.fault(
    "a user's client of RESP2 or RESP3, with or without `decode_responses`, with a pool of either kind", "used as it is"
)
@pytest.mark.parametrize("kind", [redis.ConnectionPool, redis.BlockingConnectionPool])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
def test_a_users_client_of_any_kind_is_used(
    server: Server, prefix: str, kind: Any, decode: bool, protocol: int
) -> None:
    pool = kind(port=server.port, decode_responses=decode, protocol=protocol)
    with redis.Redis(connection_pool=pool) as client:
        service = ResilienceService(client, prefix=prefix, command_timeout=PATIENT)

        assert [(decision.remaining, decision.source) for decision in (take(service), take(service))] == [
            (9, "redis"),
            (8, "redis"),
        ]
        assert service.get_comprehensive_stats()["rate_limiters"]["search"]["fleet"] == {"limit.allowed": 2}
    pool.disconnect()


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
def test_a_users_asyncio_client_is_used(server: Server, prefix: str, decode: bool, protocol: int) -> None:
    async def main() -> list[Decision]:
        client = async_redis.Redis(port=server.port, decode_responses=decode, protocol=protocol)
        service = AsyncResilienceService(async_client=client, prefix=prefix, command_timeout=PATIENT)
        decisions = [await take_async(service), await take_async(service)]
        await service.close()
        await client.aclose()
        return decisions

    assert [(decision.remaining, decision.source) for decision in asyncio.run(main())] == [(9, "redis"), (8, "redis")]


class CountingRetry(Retry):
    """A user's policy that says how often it was asked to retry."""

    def __init__(self) -> None:
        super().__init__(ConstantBackoff(0.001), 3)
        self.calls = 0

    def __deepcopy__(self, memo: Any) -> CountingRetry:
        return self

    def call_with_retry(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().call_with_retry(*args, **kwargs)


@pytest.mark.fault("a user's client that retries", "never for us: a command is sent once")
def test_a_users_client_never_retries_for_us_but_still_does_for_its_user(prefix: str) -> None:
    policy = CountingRetry()
    client = redis.Redis(port=free_port(), retry=policy)
    service = ResilienceService(client, prefix=prefix, command_timeout=PATIENT)

    assert take(service).source == "local"
    assert policy.calls == 0
    with pytest.raises(redis.ConnectionError):
        client.ping()
    assert policy.calls >= 1


def test_what_a_users_client_retries_on_is_unchanged(prefix: str) -> None:
    client = redis.Redis(retry=Retry(ConstantBackoff(0.001), 3), retry_on_error=[redis.ResponseError])
    ResilienceService(client, prefix=prefix).get_or_create_rate_limiter("search")

    connection = client.connection_pool.make_connection()

    assert redis.ResponseError in connection.retry.theirs._supported_errors  # type: ignore[attr-defined]


def test_a_frozen_server_costs_a_users_client_without_timeouts_one_command_timeout(
    own_server: Server, prefix: str
) -> None:
    client = redis.Redis(port=own_server.port, socket_timeout=None, socket_connect_timeout=None)
    service = ResilienceService(client, prefix=prefix, command_timeout=0.05)
    assert take(service).source == "redis"
    own_server.freeze()
    try:
        begin = time.monotonic()
        sources = [take(service).source for _ in range(50)]
        spent = time.monotonic() - begin
    finally:
        own_server.thaw()

    assert sources == ["local"] * 50
    assert spent < 1.0  # one timeout, not fifty
    client.close()


def test_clients_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match=r"client is a redis.asyncio.client.Redis, but must be a redis.Redis"):
        ResilienceService(async_redis.Redis())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"async_client is a redis.client.Redis, but must be a redis.asyncio.Redis"):
        ResilienceService(redis.Redis(), async_client=redis.Redis())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pass a client"):
        ResilienceService()


def test_what_is_missing_for_the_other_form_is_named() -> None:
    with pytest.raises(TypeError, match="asyncio needs async_client="):
        ResilienceService(redis.Redis()).aio.get_or_create_rate_limiter("a")
    with pytest.raises(TypeError, match="synchronous calls needs client="):
        AsyncResilienceService(async_client=async_redis.Redis()).get_or_create_rate_limiter("a")(print)


@pytest.mark.fault("a malformed URL", "`ValueError` in the constructor, without its secrets")
@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://localhost",
        "redis://localhost:port",
        "redis://localhost:70000",
        "redis://localhost/one",
        "redis://:secret@localhost?socket_timeout=soon",
        "redis://:secret@localhost?no_such_option=1",
        "redis://:sec/ret@localhost:x",
        None,
    ],
)
def test_a_malformed_url_is_refused_without_showing_its_secrets(url: Any) -> None:
    with pytest.raises(ValueError, match=r"url is .*, but must be") as caught:
        ResilienceService.from_url(url)

    assert "secret" not in str(caught.value)
    assert "sec/ret" not in str(caught.value)


def test_a_redacted_url_shows_neither_user_nor_password_nor_options() -> None:
    assert redacted("redis://user:p@ss@host:1/2?password=x") == "redis://***@host:1/2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": ""}, "prefix is ''"),
        ({"prefix": "a{b"}, "prefix is 'a{b'"),
        ({"on_outage": "panic"}, "on_outage is 'panic', but must be one of 'local', 'allow', 'deny', 'raise'"),
        ({"expected_workers": 0}, "expected_workers is 0"),
        ({"expected_workers": -1}, "expected_workers is -1"),
        ({"command_timeout": 0}, "command_timeout is 0"),
        ({"connect_timeout": float("inf")}, "connect_timeout is inf"),
        ({"worker_id": ""}, "worker_id is ''"),
    ],
)
def test_a_wrong_option_names_field_value_and_range(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResilienceService.from_url("redis://localhost", **options)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="no_such"):
        ResilienceService.from_url("redis://localhost", no_such=1)  # type: ignore[call-arg]


@pytest.fixture
def locked_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.config.getoption("--lanes") == "fakeredis":
        pytest.skip("needs a real server, and this is the quick lane")
    with Server(str(binary_of("valkey")), "--requirepass", "correct") as server:
        yield server


def test_a_wrong_password_is_one_clear_error_on_every_call(locked_server: Server, prefix: str) -> None:
    url = locked_server.url.replace("//", "//:wrong@")
    service = ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT)

    for _ in range(2):
        with pytest.raises(StoreConfigurationError, match="Check user and password") as caught:
            take(service)
        assert "wrong@" not in str(caught.value)
    with pytest.raises(StoreConfigurationError):
        service.check()
    assert take(ResilienceService.from_url(url.replace("wrong", "correct"), prefix=prefix + "b")).source == "redis"


def test_a_user_who_may_not_eval_gets_the_script_by_load(own_server: Server, prefix: str) -> None:
    with own_server.client() as admin:
        admin.execute_command(*f"ACL SETUSER w reset on >pw {acl.rules(prefix)}".split())
    service = ResilienceService.from_url(
        own_server.url.replace("//", "//w:pw@"), prefix=prefix, command_timeout=PATIENT
    )

    assert take(service).source == "redis"
    service.check()
    service.close()


@pytest.mark.fault("one service in several event loops, one after the other", "a connection for each")
def test_an_asyncio_service_lives_in_several_event_loops_one_after_the_other(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)

    async def main() -> Decision:
        decision = await take_async(service.aio)
        await service.aio.close()
        return decision

    assert [asyncio.run(main()).remaining for _ in range(3)] == [9, 8, 7]


def test_a_users_asyncio_client_survives_the_end_of_an_event_loop(server: Server, prefix: str) -> None:
    client = async_redis.Redis(port=server.port)
    service = AsyncResilienceService(async_client=client, prefix=prefix, command_timeout=PATIENT)

    async def main(last: bool) -> Decision:
        decision = await take_async(service)
        await client.connection_pool.disconnect()
        return decision

    assert [asyncio.run(main(last)).remaining for last in (False, True)] == [9, 8]


def test_a_thousand_tasks_share_a_few_connections(server: Server, prefix: str) -> None:
    service = AsyncResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(500, 0.001), remember_refusals=False)

    async def main() -> tuple[list[Decision], int]:
        decisions = await asyncio.gather(*(limiter.try_acquire() for _ in range(1000)))
        with server.client() as client:
            connections = len([c for c in client.client_list() if c["cmd"].startswith("evalsha")])
        await service.close()
        return decisions, connections

    decisions, connections = asyncio.run(main())
    assert sum(decision.allowed for decision in decisions) == 500
    assert {decision.source for decision in decisions} == {"redis"}
    assert connections <= 32


@pytest.mark.fault("tasks are cancelled while they wait for replies", "no reply ever answers another question")
def test_a_cancelled_task_leaves_no_reply_behind_for_another(server: Server, prefix: str) -> None:
    service = AsyncResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(10_000, 0.001))

    async def main() -> list[int]:
        await limiter.try_acquire("warm")
        for delay in range(60):
            task = asyncio.create_task(limiter.try_acquire("cancelled"))
            for _ in range(delay % 12):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        answers = [(await limiter.try_acquire(f"key{number}", number + 1)).remaining for number in range(20)]
        await service.close()
        return answers

    assert asyncio.run(main()) == [10_000 - number - 1 for number in range(20)]


def test_threads_share_one_service(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(500, 0.001), remember_refusals=False)
    granted = []

    def work() -> None:
        granted.append(sum(limiter.allow() for _ in range(100)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(granted) == 500
    counted = service.get_comprehensive_stats()["rate_limiters"]["search"]
    assert counted["local"] == counted["fleet"] == {"limit.allowed": 500, "limit.refused": 300}
    service.close()


@pytest.mark.fault("a process forks", "the child has its own worker id, connections and counts")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_with_nothing_of_its_parents(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", BUCKET)
    before = limiter.try_acquire()
    parent = service.get_comprehensive_stats()["fleet"]["worker_id"]
    read_end, write_end = os.pipe()

    child = os.fork()
    if child == 0:
        decision = limiter.try_acquire()
        stats = service.get_comprehensive_stats()
        counted = stats["rate_limiters"]["search"]["local"]["limit.allowed"]
        os.write(write_end, f"{decision.remaining} {decision.source} {counted} {stats['fleet']['worker_id']}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    remaining, source, counted, worker = os.read(read_end, 1000).decode().split()

    assert (before.remaining, remaining, source, counted) == (9, "8", "redis", "1")
    assert worker != parent
    assert limiter.try_acquire().remaining == 7
    assert service.get_comprehensive_stats()["fleet"]["workers"] == 2
    os.close(read_end)
    os.close(write_end)
    service.close()


def test_services_of_one_process_share_their_state_by_server_and_prefix(server: Server, prefix: str) -> None:
    one = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    same = ResilienceService.from_url(server.url.replace("/0", ""), prefix=prefix, command_timeout=PATIENT)
    other = ResilienceService.from_url(server.url, prefix=prefix + "x")

    assert one._runtime.process is same._runtime.process is one.aio._runtime.process
    assert one._runtime.process is not other._runtime.process
