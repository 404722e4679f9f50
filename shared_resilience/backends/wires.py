"""The synchronous ways to Redis: a pool of connections, or a cluster client.

Requests go out on redis-py's own connections, past its command methods: those would send a command again whose reply
was lost, and the user's client may be set up to do so ten times. Connecting, AUTH, TLS and Sentinel stay redis-py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from shared_resilience.backends.faults import FOREIGN, StoreError
from shared_resilience.backends.redis import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")
_ours: ContextVar[bool] = ContextVar("shared_resilience_connects", default=False)


@contextmanager
def once() -> Iterator[None]:
    """Inside, a polite retry tries once."""
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)


def is_ours() -> bool:
    """Whether the connection being made is for a command of ours."""
    return _ours.get()


class PoliteRetry(Retry):
    """The retries of a user's pool: as they are for the user's own commands, none for ours.

    A pool connects by its own policy, up to ten times with pauses, before we hold the connection. This stands in for
    that policy and asks who is connecting.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__(NoBackoff(), 0)
        self.theirs = theirs

    def get_retries(self) -> int:
        retries: int = self.theirs.get_retries()
        return retries

    def update_supported_errors(self, specified_errors: Any) -> None:
        self.theirs.update_supported_errors(specified_errors)

    def call_with_retry(self, do: Callable[[], T], fail: Callable[..., Any], *args: Any, **kwargs: Any) -> T:
        policy: Any = super() if is_ours() else self.theirs
        result: T = policy.call_with_retry(do, fail, *args, **kwargs)
        return result


class PoolWire:
    """One server, or a primary that Sentinel names, through a connection pool of redis-py.

    A user's pool keeps its own timeouts for its own commands; a reply to ours is waited for `command_timeout` at most.
    """

    def __init__(self, pool: redis.ConnectionPool, command_timeout: float, theirs: bool) -> None:
        self._pool = pool
        self._patience = command_timeout if theirs else None
        if theirs and (retry := pool.connection_kwargs.get("retry")) and not isinstance(retry, PoliteRetry):
            pool.set_retry(PoliteRetry(retry))

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        try:
            with once():
                connection: Any = self._pool.get_connection()
        except FOREIGN as error:
            raise StoreError(error, sent=False) from error
        try:
            connection.send_packed_command(
                connection.pack_commands([request for _, request in requests]), check_health=False
            )
            return [self._read(connection) for _ in requests]
        except BaseException as error:
            connection.disconnect()  # a reply that is still to come must never answer a later request
            if isinstance(error, FOREIGN):
                raise StoreError(error, sent=True) from error
            raise
        finally:
            self._pool.release(connection)

    def _read(self, connection: Any) -> Any:
        if self._patience is not None and not connection.can_read(self._patience):
            raise RedisTimeoutError(f"no reply within {self._patience} s")
        try:
            return connection.read_response()
        except ResponseError as refusal:
            return refusal

    async def reconnect(self) -> None:
        with suppress(TypeError):  # a BlockingConnectionPool before redis-py 6 cannot spare connections in use
            self._pool.disconnect(inuse_connections=False)


class ClusterWire:
    """A Redis Cluster, through the user's client. Naming the node switches its retries off; redirections stay."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        return [self._send(key, request) for key, request in requests]

    def _send(self, key: str, request: tuple[Any, ...]) -> Any:
        try:
            node = self._client.get_node_from_key(key)
            return self._client.execute_command(*request, target_nodes=node)
        except ResponseError as refusal:
            return refusal
        except FOREIGN as error:
            raise StoreError(error, sent=True) from error

    async def reconnect(self) -> None:
        try:
            self._client.nodes_manager.initialize()
        except FOREIGN as error:
            raise StoreError(error, sent=False) from error
