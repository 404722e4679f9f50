"""Channels: connections of redis-py in the hands of the wires, for synchronous callers.

redis-py has connected, authenticated and chosen the database; from then on requests and replies go past its command
methods. A total deadline bounds each exchange: a server that sends its reply in small pieces does not stretch it.
"""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared_resilience.backends.faults import FOREIGN
from shared_resilience.backends.resp import INCOMPLETE, make_reader

_CHUNK = 65536
_TRUSTED_FOR = 0.01
"""Seconds for which an idle connection is taken to be alive without a look at it."""


class Stale(Exception):
    """The connection was closed while it was idle; nothing was sent."""


class Channel(Protocol):
    """A connection, and one exchange at a time."""

    connection: Any

    def exchange(self, data: bytes, count: int) -> list[Any]:
        """Sends requests and returns their `count` replies, `ResponseError` among them as values.

        Raises `Stale`, or what redis-py or the socket raises; the connection is then good for nothing more.
        """

    def let_go(self) -> None:
        """Leaves the connection as redis-py made it."""


def channel_on(connection: Any, patience: float) -> Channel:
    """The fastest channel that `connection` allows; a reply is waited for `patience` seconds."""
    opened = getattr(connection, "_sock", None)
    if isinstance(opened, socket.socket) and str(connection.protocol) == "2":
        return SocketChannel(connection, opened, patience)
    return ClientChannel(connection, patience)


class SocketChannel:
    """RESP2 on the socket itself, past the layers of redis-py.

    A socket with a timeout polls before it sends and before it receives. A request almost always fits into the
    kernel's buffer, so that it is written to the file descriptor, without the first poll. Not so with TLS, nor with
    gevent, whose sockets are classes of their own.
    """

    def __init__(self, connection: Any, opened: socket.socket, patience: float) -> None:
        self.connection = connection
        self._socket = opened
        self._patience = patience
        self._reader = make_reader()
        self._before = opened.gettimeout()
        self._has_descriptor = type(opened).__module__ == "socket" and os.name == "posix"
        self._used_at = time.monotonic()
        opened.settimeout(patience)

    def exchange(self, data: bytes, count: int) -> list[Any]:
        begin = time.monotonic()
        if self.connection._sock is not self._socket:  # its pool was told to disconnect
            raise Stale
        if begin - self._used_at > _TRUSTED_FOR and self._has_something_to_say():
            raise Stale
        self._used_at = begin
        reader = self._reader
        if self._sends_at_once(data):
            reader.feed(self._socket.recv(_CHUNK))
        replies = []
        for _ in range(count):
            reply = reader.gets()
            replies.append(self._rest(begin) if reply is INCOMPLETE else reply)
        if reader.gets() is not INCOMPLETE:
            raise InvalidResponse("the server sent more than it was asked for")
        return replies

    def _sends_at_once(self, data: bytes) -> bool:
        """Sends `data`; whether that took no time."""
        sent = 0
        if self._has_descriptor:
            with suppress(BlockingIOError):
                sent = os.write(self._socket.fileno(), data)  # asked for each time: a closed one may be another's soon
        if sent < len(data):
            self._socket.sendall(data[sent:])
        return sent == len(data)

    def _rest(self, begin: float) -> Any:
        """The reply of which a part, or nothing, has come so far."""
        while (reply := self._reader.gets()) is INCOMPLETE:
            left = begin + self._patience - time.monotonic()
            if left <= 0:
                raise RedisTimeoutError(f"no whole reply within {self._patience} s")
            self._socket.settimeout(left)
            piece = self._socket.recv(_CHUNK)
            if not piece:
                raise RedisConnectionError("the server closed the connection")
            self._reader.feed(piece)
        self._socket.settimeout(self._patience)
        return reply

    def _has_something_to_say(self) -> bool:
        """What an idle connection has to say is that it is closed."""
        if not hasattr(select, "poll"):  # Windows
            return bool(select.select([self._socket], [], [], 0)[0])
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def let_go(self) -> None:
        if self.connection._sock is self._socket:
            self._socket.settimeout(self._before)


class ClientChannel:
    """Any other connection, such as one that speaks RESP3: by its own methods of redis-py."""

    def __init__(self, connection: Any, patience: float) -> None:
        self.connection = connection
        self._patience = patience

    def exchange(self, data: bytes, count: int) -> list[Any]:
        try:
            stale = self.connection.can_read(0)
        except FOREIGN as error:
            raise Stale from error
        if stale:
            raise Stale
        self.connection.send_packed_command([data], check_health=False)
        return [self._read() for _ in range(count)]

    def _read(self) -> Any:
        if not self.connection.can_read(self._patience):
            raise RedisTimeoutError(f"no reply within {self._patience} s")
        try:
            return self.connection.read_response()
        except ResponseError as refusal:
            return refusal

    def let_go(self) -> None:
        """Nothing was changed."""
