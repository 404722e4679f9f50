"""The lanes: on which servers the tests run, and in which form they call the library."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from functools import cache, cached_property
from typing import Any
from zlib import crc32

import fakeredis
import pytest
import redis
from proxies import Proxy
from redis import asyncio as async_redis
from servers import WHERE_FROM, Server, binary_of

from shared_resilience import Event, scripts
from shared_resilience.backends import Backends, resp
from shared_resilience.backends.fallback import AsyncFallbackBackend, FallbackBackend
from shared_resilience.backends.process import Process
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.backends.wires_async import AsyncPoolWire, OwnPools
from shared_resilience.options import CheckedOptions
from shared_resilience.runtime import Runtime
from shared_resilience.runtimes import local_runtime
from shared_resilience.service import AsyncResilienceService, ResilienceService
from shared_resilience.testing import ManualClock

pytest_plugins = ("measurements", "sentinels")

REAL = ("valkey", "redis-7.0", "redis-6.2")
_prefixes = (f"t{number}" for number in itertools.count())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lanes", default=",".join(REAL), help="which servers to test on; 'fakeredis' for the quick lane")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    lanes = metafunc.config.getoption("--lanes").split(",")
    if "lane" in metafunc.fixturenames:
        metafunc.parametrize("lane", lanes)
    if "place" in metafunc.fixturenames:
        metafunc.parametrize("place", [*_shared_out(lanes, metafunc.definition.nodeid), "local"])


def _shared_out(lanes: list[str], test: str) -> list[str]:
    """The first lane, and one of the others: they share the tests of components, while scripts are tested on all."""
    others = lanes[1:]
    return lanes[:1] + ([others[crc32(test.encode()) % len(others)]] if others else [])


def _server(lane: str) -> Server:
    binary = None if lane == "fakeredis" else binary_of(lane)
    if binary is None:
        pytest.skip(f"no server for {lane}: it comes with {WHERE_FROM.get(lane)}")
    return Server(binary)


def _real_server(request: pytest.FixtureRequest) -> Server:
    if request.config.getoption("--lanes") == "fakeredis":
        pytest.skip("needs a real server, and this is the quick lane")
    return _server("valkey")


@pytest.fixture
def binary(lane: str) -> str:
    """The server of each lane in turn, to be started as a test wants it."""
    return _server(lane).binary


@pytest.fixture(scope="session")
def real_binary(request: pytest.FixtureRequest) -> str:
    """A real server, likewise."""
    return _real_server(request).binary


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A real server that tests must leave running; each test uses a prefix of its own."""
    with _real_server(request) as server:
        yield server


@pytest.fixture
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A real server that the test may kill, freeze and flush."""
    with _real_server(request) as server:
        yield server


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy in front of the server, which does to replies what the test tells it."""
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(params=["hiredis", "without hiredis"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies are read by hiredis, and without it."""
    if request.param == "without hiredis":
        monkeypatch.setattr(resp, "hiredis", None)
    elif importlib.util.find_spec("hiredis") is None:
        pytest.skip("hiredis is not installed")


@pytest.fixture
def prefix() -> str:
    return next(_prefixes)


class Lane:
    """A store of one lane: pools for it, and a client for the test's own questions."""

    def __init__(self, pool: redis.ConnectionPool, make_async_pool: Callable[[], async_redis.ConnectionPool]) -> None:
        self.pool = pool
        self.make_async_pool = make_async_pool
        self.client: Any = redis.Redis(connection_pool=pool)

    @cached_property
    def wire(self) -> PoolWire:
        """One for all stores that a test makes by the hundred: each wire keeps a connection."""
        return PoolWire(self.pool, 5, theirs=False)

    def load_scripts(self) -> None:
        """A script that is unknown in the middle of a pipeline would run out of order."""
        loaded = [scripts.load(name) for name in scripts.names()]
        if not all(self.client.script_exists(*(script.sha for script in loaded))):
            for script in loaded:
                self.client.script_load(script.text)


@pytest.fixture(scope="session")
def stores() -> Iterator[Callable[[str], Lane]]:
    """The store of a lane; its server is started when it is first asked for."""
    with ExitStack() as servers:

        @cache
        def store_of(lane: str) -> Lane:
            if lane == "fakeredis":
                fake = fakeredis.FakeServer()
                pool = fakeredis.FakeRedis(server=fake, protocol=2).connection_pool
                return Lane(pool, lambda: fakeredis.FakeAsyncRedis(server=fake, protocol=2).connection_pool)
            server = servers.enter_context(_server(lane))
            options: dict[str, Any] = {"port": server.port, "protocol": 2, "socket_timeout": 5}
            return Lane(redis.ConnectionPool(**options), lambda: async_redis.ConnectionPool(**options))

        yield store_of


@pytest.fixture
def store(lane: str, stores: Callable[[str], Lane]) -> Lane:
    """The store of each lane in turn."""
    return stores(lane)


class Api:
    """The library in one of its forms: sync or asyncio, on a store or local; on a clock that the test moves.

    `api(value)` gives a value that a method returned, whatever the form: it awaits what must be awaited.
    """

    def __init__(self, form: str, runtime: Runtime, clock: ManualClock) -> None:
        self.form = form
        self.clock = clock
        self.runtime = runtime
        self.service: Any
        if form == "sync":
            self.service = ResilienceService._of(runtime)
        else:
            self.service = AsyncResilienceService._of(runtime)
            self.loop = asyncio.new_event_loop()

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Coroutine):
            return self.loop.run_until_complete(value)
        return value

    def close(self) -> None:
        self(self.service.close())
        if self.form == "asyncio":
            self.loop.close()


def runtime_on(store: Lane, prefix: str, clock: ManualClock) -> Runtime:
    """A runtime whose scripts are told the time of `clock`."""
    process = Process(prefix, clock=clock)

    def now_us() -> int:
        return int(clock.monotonic() * 1e6)

    pools = OwnPools(store.make_async_pool)
    return Runtime(
        process,
        Backends(
            lambda: FallbackBackend(process, RedisStore(PoolWire(store.pool, 5, theirs=True), now_us)),
            lambda: AsyncFallbackBackend(process, RedisStore(AsyncPoolWire(pools, 5), now_us)),
        ),
        CheckedOptions(),
    )


FORMS = ("sync", "asyncio")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    form: str = request.param
    return form


@pytest.fixture
def api(form: str, place: str, stores: Callable[[str], Lane], prefix: str) -> Iterator[Api]:
    """One body for sync and asyncio, each lane's server and local."""
    clock = ManualClock()
    local = place == "local"
    runtime = local_runtime(clock, CheckedOptions()) if local else runtime_on(stores(place), prefix, clock)
    api = Api(form, runtime, clock)
    yield api
    api.close()


@pytest.fixture
def events(api: Api) -> list[Event]:
    heard: list[Event] = []
    api.runtime.process.events.add([heard.append])
    return heard


@pytest.fixture
def redis_is_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Makes Redis be away, without a probe."""
    guard = api.runtime.process.guard
    monkeypatch.setattr(guard, "launch", lambda start: None)

    def lose() -> None:
        guard.usable = False

    yield lose
    guard.usable = True


@pytest.fixture
def other(place: str, stores: Callable[[str], Lane], prefix: str, api: Api) -> Iterator[ResilienceService]:
    """Another worker of the same fleet."""
    if place == "local":
        pytest.skip("without Redis there is no fleet")
    service = ResilienceService._of(runtime_on(stores(place), prefix, api.clock))
    yield service
    service.close()


class Operator:
    """Somebody with redis-cli; without Redis, the service itself, whose checks are the same for what it lets pass."""

    def __init__(self, api: Api, place: str, stores: Callable[[str], Lane], prefix: str) -> None:
        self._key = f"{prefix}:{{search}}:overrides"
        self._client = None if place == "local" else stores(place).client
        self._local = api.runtime.process.local
        self._local_key = "sr:{search}:overrides"
        self._fields: dict[str, str] = {}

    def set(self, field: str, value: str) -> None:
        if self._client:
            self._client.hset(self._key, field, value)
            return
        self._fields[field] = value
        self._local.put(self._local_key, dict(self._fields))

    def delete(self, field: str) -> None:
        if self._client:
            self._client.hdel(self._key, field)
            return
        del self._fields[field]
        self._local.put(self._local_key, dict(self._fields) or None)


@pytest.fixture
def operator(api: Api, place: str, stores: Callable[[str], Lane], prefix: str) -> Operator:
    return Operator(api, place, stores, prefix)
