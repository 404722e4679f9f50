"""Clients of redis-py: our own pools from a URL, and what a user's client tells about the store behind it."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from typing import Any
from urllib.parse import urlsplit

import redis
from redis import asyncio as async_redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

MOST_ASYNC_CONNECTIONS = 32


class OwnClients:
    """Pools from a URL, with total control of timeouts and retries: a command is sent once, and not waited for long.

    Raises `ValueError` for a URL that is not one, without connecting and without showing its secrets.
    """

    def __init__(self, url: str, command_timeout: float, connect_timeout: float) -> None:
        _check(url)
        self._url = url
        self._options: dict[str, Any] = {
            "socket_timeout": command_timeout,
            "socket_connect_timeout": connect_timeout,
            "protocol": 2,  # RESP3 turns on notifications that stretch timeouts
            "retry_on_timeout": False,
            "health_check_interval": 0,
        }
        if url.startswith("rediss:") and "ssl_check_hostname" not in url:
            self._options["ssl_check_hostname"] = True  # off by default before redis-py 6
        self._connect_timeout = connect_timeout
        self.identity = store_identity(self.pool().connection_kwargs)

    @property
    def timeouts(self) -> dict[str, float]:
        """Those of sockets, as redis-py names them."""
        return {name: self._options[name] for name in ("socket_timeout", "socket_connect_timeout")}

    def pool(self) -> redis.ConnectionPool:
        """A pool for synchronous callers."""
        pool: redis.ConnectionPool = self._pool(
            redis.ConnectionPool.from_url, Retry(NoBackoff(), 0), max_connections=2**31
        )
        return pool

    def async_pool(self) -> async_redis.ConnectionPool:
        """A pool for one event loop; callers queue for its connections."""
        pool: async_redis.ConnectionPool = self._pool(
            async_redis.BlockingConnectionPool.from_url,
            AsyncRetry(NoBackoff(), 0),
            max_connections=MOST_ASYNC_CONNECTIONS,
            timeout=self._connect_timeout,
        )
        return pool

    def _pool(self, from_url: Callable[..., Any], retry: object, **defaults: object) -> Any:
        try:
            pool = from_url(self._url, **self._options, **defaults)
            pool.connection_kwargs.update(self._options, retry=retry)  # whatever the URL says
            # For RESP3 only; redis-py 8 refuses it without hiredis.
            pool.connection_kwargs.pop("maint_notifications_config", None)
            pool.connection_class(**pool.connection_kwargs)  # an unknown option in the URL fails here, not at first use
        except (ValueError, TypeError) as error:
            raise _wrong(self._url, f"with options that redis-py knows ({error})") from None
        return pool


def redacted(url: str) -> str:
    """`url` without user, password and options."""
    return re.sub(r"//.*@", "//***@", url.partition("?")[0], flags=re.DOTALL)


def store_identity(connection_kwargs: dict[str, Any]) -> Hashable:
    """What makes two pools lead to one store. No secrets."""
    known = {"host": "localhost", "port": 6379, "path": None, "db": 0, "service_name": None, **connection_kwargs}
    return tuple(str(known[field]) for field in ("host", "port", "path", "db", "service_name"))


def client_identity(client: Any) -> Hashable:
    """As `store_identity`, for a user's client of any kind."""
    pool = getattr(client, "connection_pool", None)
    if pool is not None:
        service_name = getattr(pool, "service_name", None)
        return store_identity({**pool.connection_kwargs, "service_name": service_name})
    return ("cluster", *sorted(str(node) for node in client.nodes_manager.startup_nodes))


def _check(url: str) -> None:
    if not isinstance(url, str):
        raise ValueError(f"url is {url!r}, but must be a text")
    try:
        parts = urlsplit(url)
        database = parts.path.strip("/")
        fine = parts.scheme == "unix" or ((parts.scheme in ("redis", "rediss") and database.isdigit()) or not database)
        _ = parts.port  # raises for what is not a port
    except ValueError:
        fine = False
    if not fine or parts.scheme not in ("redis", "rediss", "unix"):
        raise _wrong(url, "redis://host:port/database, rediss://host:port/database or unix:///path")


def _wrong(url: str, allowed: str) -> ValueError:
    return ValueError(f"url is {redacted(url)!r}, but must be {allowed}")
