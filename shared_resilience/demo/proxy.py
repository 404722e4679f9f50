"""A way to Redis that can be cut: a TCP proxy on loopback. The server behind it is never touched."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import redis

LOOPBACK = "127.0.0.1"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[], Awaitable[Streams]]


class Route(NamedTuple):
    """How to reach the server of a URL, and who the workers say they are there."""

    dial: Dial
    credentials: str
    database: str

    def url(self, port: int) -> str:
        """The URL of the same server, user and database through a proxy that listens on `port`."""
        return f"redis://{self.credentials}{LOOPBACK}:{port}{self.database}"


def route(url: str) -> Route:
    """The way that `url` names: `redis://`, `rediss://` (the proxy speaks TLS and verifies) or `unix://`."""
    options: Mapping[str, Any] = redis.ConnectionPool.from_url(url).connection_kwargs
    user, password = (quote(options.get(field) or "", safe="") for field in ("username", "password"))
    credentials = f"{user}:{password}@" if user or password else ""
    database = f"/{options['db']}" if options.get("db") else ""
    return Route(_dial(url.partition(":")[0], options), credentials, database)


def _dial(scheme: str, options: Mapping[str, Any]) -> Dial:
    if scheme == "unix":
        return lambda: asyncio.open_unix_connection(options["path"])
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    if scheme == "rediss":
        context = tls(options)
        return lambda: asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    return lambda: asyncio.open_connection(host, port)


def tls(options: Mapping[str, Any]) -> ssl.SSLContext:
    """TLS as the `ssl_…` options of a URL want it; without any, certificate and host name are verified."""
    context = ssl.create_default_context(
        cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"), cadata=options.get("ssl_ca_data")
    )
    unverified = options.get("ssl_cert_reqs") in ("none", "optional")
    context.check_hostname = not unverified and options.get("ssl_check_hostname", True)
    if unverified:
        context.verify_mode = ssl.CERT_NONE if options["ssl_cert_reqs"] == "none" else ssl.CERT_OPTIONAL
    if certificate := options.get("ssl_certfile"):
        context.load_cert_chain(certificate, options.get("ssl_keyfile"), options.get("ssl_password"))
    return context


class Proxy:
    """Passes bytes on while it is open. `cut` stops accepting and drops all connections, `restore` opens it again."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # This socket never listens. It holds the port while the proxy is cut: else another program could take it, or
        # a connection attempt could meet itself, as it may on a free port of the range for outgoing connections.
        self._holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._holder.bind((LOOPBACK, 0))
        self.port: int = self._holder.getsockname()[1]

    async def __aenter__(self) -> Self:
        await self.restore()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._holder.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def restore(self) -> None:
        """Accepts connections, on the same port as ever."""
        self._listener = await asyncio.start_server(self._serve, LOOPBACK, self.port, reuse_port=True)

    def cut(self) -> None:
        """Refuses connections from now on, and resets those that there are."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with suppress(OSError):  # the server does not answer: neither does the proxy
                await self._join(reader, writer)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await self._dial()
        self._writers.add(server_writer)
        try:
            if not writer.transport.is_closing():  # it may have been cut meanwhile
                await asyncio.gather(_pump(reader, server_writer), _pump(server_reader, writer))
        finally:
            server_writer.transport.abort()
            self._writers.discard(server_writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(2**16):
            writer.write(chunk)
            await writer.drain()
    writer.close()
