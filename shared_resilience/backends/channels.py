"""Channels: connections of redis-py in the hands of the wires, for synchronous callers.

redis-py has connected, authenticated and chosen the database; from then on requests and replies go past its command
methods. A total deadline bounds each exchange: a server that sends its reply in small pieces does not stretch it.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
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
    """RESP2 on the socket itself. Saves the poll before each read and the layers of redis-py: a sixth of a round trip.

    A plain socket blocks, and the kernel ends a wait (SO_RCVTIMEO); only a reply in several pieces needs a clock here.
    """

    def __init__(self, connection: Any, opened: socket.socket, patience: float) -> None:
        self.connection = connection
        self._socket = opened
        self._patience = patience
        self._reader = make_reader()
        self._before = opened.gettimeout()
        # The kernel knows nothing of TLS records, and Windows counts in other units.
        self._by_kernel = type(opened) is socket.socket and sys.platform != "win32"
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll:
            self._poll.register(opened, select.POLLIN)
        self._used_at = time.monotonic()
        if self._by_kernel:
            self._limit_waits(patience)
        self._by_rule()

    def _limit_waits(self, seconds: float) -> None:
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def _by_rule(self) -> None:
        self._socket.settimeout(None if self._by_kernel else self._patience)

    def exchange(self, data: bytes, count: int) -> list[Any]:
        begin = time.monotonic()
        if begin - self._used_at > _TRUSTED_FOR and not self._is_alive():
            raise Stale
        self._used_at = begin
        reader = self._reader
        try:
            self._socket.sendall(data)
            reader.feed(self._socket.recv(_CHUNK))
        except BlockingIOError as error:
            raise RedisTimeoutError(f"no reply within {self._patience} s") from error
        reply = reader.gets()
        if count == 1 and reply is not INCOMPLETE:
            return [reply]
        replies = [self._rest(begin) if reply is INCOMPLETE else reply]
        return replies + [self._rest(begin) for _ in range(count - 1)]

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
        self._by_rule()
        return reply

    def _is_alive(self) -> bool:
        # Its pool may have been told to disconnect; and what an idle connection has to say is that it is closed.
        return self.connection._sock is self._socket and not (self._poll and self._poll.poll(0))

    def let_go(self) -> None:
        if self.connection._sock is not self._socket:
            return
        if self._by_kernel:
            self._limit_waits(0)
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
