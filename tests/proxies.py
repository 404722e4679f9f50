"""A TCP proxy of our own in front of a real server, which does to replies what networks do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

Treatment = Callable[[socket.socket, bytes], None]
"""What to do with bytes that the server sends to a client."""


def pass_on(client: socket.socket, data: bytes) -> None:
    client.sendall(data)


def in_pieces(client: socket.socket, data: bytes) -> None:
    """One byte at a time, but as fast as they can be sent."""
    for index in range(len(data)):
        client.sendall(data[index : index + 1])


def slowly(client: socket.socket, data: bytes) -> None:
    """A byte every 20 ms: each read succeeds, the whole takes seconds."""
    for index in range(len(data)):
        client.sendall(data[index : index + 1])
        time.sleep(0.02)  # this is the fault, not a wait for anything


def swallow(client: socket.socket, data: bytes) -> None:
    """The reply is lost, the connection stays."""


def cut_in_the_middle(client: socket.socket, data: bytes) -> None:
    """Half of what was to be sent, and then the end."""
    client.sendall(data[: len(data) // 2])
    client.shutdown(socket.SHUT_RDWR)


def twice(client: socket.socket, data: bytes) -> None:
    """The reply, and once more."""
    client.sendall(data + data)


def cut(client: socket.socket, data: bytes) -> None:
    """The end, before any reply."""
    client.shutdown(socket.SHUT_RDWR)


def late(seconds: float) -> Treatment:
    """All of it, but after `seconds`."""

    def send(client: socket.socket, data: bytes) -> None:
        time.sleep(seconds)  # this is the fault
        client.sendall(data)

    return send


def instead(reply: bytes) -> Treatment:
    """Another reply than that of the server."""

    def send(client: socket.socket, data: bytes) -> None:
        client.sendall(reply)

    return send


class Proxy:
    """Passes everything on until it is told another `treatment` of the server's replies."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self.treatment: Treatment = pass_on
        self.reads = threading.Event()
        self.reads.set()
        self.accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._pairs: list[tuple[tuple[socket.socket, ...], list[threading.Thread]]] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which ends the wait for the next client
        self._acceptor.join(10)
        self._listener.close()
        self.reads.set()
        self.cut_all()
        for _, pumps in self._pairs:
            for pump in pumps:
                pump.join(10)
        self._forget_what_has_ended()

    def cut_all(self) -> None:
        """Ends all connections that there are."""
        for ends, _ in list(self._pairs):
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                self._forget_what_has_ended()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                try:
                    server = socket.create_connection(("127.0.0.1", self._server_port))
                except OSError:  # the server is down: so it is for the client
                    client.close()
                    continue
                self._begin(client, server)

    def _begin(self, *ends: socket.socket) -> None:
        pumps = [threading.Thread(target=pump, args=ends, daemon=True) for pump in (self._to_server, self._to_client)]
        self._pairs.append((ends, pumps))
        for pump in pumps:
            pump.start()

    def _forget_what_has_ended(self) -> None:
        for pair in [pair for pair in self._pairs if not any(pump.is_alive() for pump in pair[1])]:
            self._pairs.remove(pair)
            for end in pair[0]:
                end.close()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while self.reads.wait() and (data := client.recv(65536)):
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)

    def _to_client(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                self.treatment(client, data)
            client.shutdown(socket.SHUT_RDWR)
