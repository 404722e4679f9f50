"""RESP2, the protocol of Redis, as far as it is needed here: requests as bytes, and a reader of replies."""

from __future__ import annotations

from typing import Any, Protocol

from redis.exceptions import InvalidResponse, ResponseError

try:
    import hiredis
except ImportError:
    hiredis = None  # type: ignore[assignment]  # absent is a value here

INCOMPLETE = False
"""What a reader returns until a whole reply has arrived; no reply of RESP2 is a boolean."""


class Reader(Protocol):
    """Makes bytes into replies: integers, bytes, None, lists of them, and `ResponseError` as a value."""

    def feed(self, data: bytes) -> object:
        """Takes in what has arrived."""

    def gets(self) -> Any:
        """The next reply, or `INCOMPLETE`. Raises `InvalidResponse` for what is no RESP2."""


def make_reader() -> Reader:
    """hiredis where it is installed."""
    if hiredis is not None:
        return hiredis.Reader(protocolError=InvalidResponse, replyError=ResponseError)
    return PlainReader()


def pack(parts: tuple[str | int | bytes, ...]) -> bytes:
    """A request as it is sent."""
    if hasattr(hiredis, "pack_command"):
        packed: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub means any number of parts
        return packed
    encoded = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"*%d\r\n" % len(encoded) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in encoded])


def pack_around(before: tuple[str | int | bytes, ...], after: tuple[str | int | bytes, ...]) -> tuple[bytes, bytes]:
    """What stands before and after one more part when `before`, that part and `after` are a request."""
    _, begin = pack(before).split(b"\r\n", 1)
    _, end = pack(after).split(b"\r\n", 1)
    return b"*%d\r\n" % (len(before) + 1 + len(after)) + begin, end


def pack_between(packed: tuple[bytes, bytes], text: str) -> bytes:
    """The request whose one part `pack_around` has left out is `text`."""
    part = text.encode()
    return b"%b$%d\r\n%b\r\n%b" % (packed[0], len(part), part, packed[1])


class PlainReader:
    """A reader without hiredis. An incomplete reply is read again from its start when more has arrived."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def gets(self) -> Any:
        try:
            reply, end = self._parse(0)
        except EOFError:
            return INCOMPLETE
        del self._buffer[:end]
        return reply

    def _parse(self, start: int) -> tuple[Any, int]:
        """The reply that begins at `start`, and where it ends. Raises `EOFError` while some of it is missing."""
        line_end = self._buffer.find(b"\r\n", start)
        if line_end < 0:
            raise EOFError
        kind, line, end = self._buffer[start : start + 1], bytes(self._buffer[start + 1 : line_end]), line_end + 2
        try:
            if kind == b"+":
                return line, end
            if kind == b"-":
                return ResponseError(line.decode("utf-8", "replace")), end
            if kind == b":":
                return int(line), end
            if kind == b"$":
                return self._bulk(int(line), end)
            if kind == b"*":
                return self._array(int(line), end)
        except ValueError as error:
            raise InvalidResponse(f"not a reply of Redis: {line[:40]!r}") from error
        raise InvalidResponse(f"not a reply of Redis: {bytes(kind) + line[:40]!r}")

    def _bulk(self, length: int, start: int) -> tuple[bytes | None, int]:
        if length < 0:
            return None, start
        end = start + length + 2
        if len(self._buffer) < end:
            raise EOFError
        return bytes(self._buffer[start : end - 2]), end

    def _array(self, length: int, start: int) -> tuple[list[Any] | None, int]:
        if length < 0:
            return None, start
        items = []
        for _ in range(length):
            item, start = self._parse(start)
            items.append(item)
        return items, start
