"""One connection of an event loop, on which all of its tasks ask Redis at the same time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, MaxConnectionsError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared_resilience.backends.faults import StoreError
from shared_resilience.backends.resp import INCOMPLETE, make_reader

MOST_IN_FLIGHT = 1024
"""Requests that are sent and not answered; so many are answered in a fraction of a command timeout."""
MOST_UNSENT = 100_000
"""Requests that wait to be sent; what comes on top is refused."""

Future = asyncio.Future[Any]


class Stream(asyncio.Protocol):
    """Takes over the transport of a connection that redis-py has made; speaks RESP2.

    What tasks ask within one tick of the loop goes out in one write, and Redis answers in order: a round trip is shared
    by all of them. A request that is cancelled before it was sent is never sent; after that its reply is dropped. Each
    request has a deadline, counted from when it is sent; one timer, for the oldest, serves them all.
    """

    def __init__(self, connection: Any, transport: asyncio.Transport, patience: float) -> None:
        self.connection = connection
        self.lost: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._patience = patience
        self._reader = make_reader()
        self._unsent: deque[tuple[bytes, Future]] = deque()
        self._sent: deque[tuple[Future, float]] = deque()
        self._flush_is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._before = transport.get_protocol()
        transport.set_protocol(self)

    def ask(self, data: bytes) -> Future:
        """The reply to come; fails with `StoreError`."""
        future = self._loop.create_future()
        if self.lost is not None:
            future.set_exception(StoreError(self.lost, sent=False))
        elif len(self._unsent) >= MOST_UNSENT:
            future.set_exception(StoreError(MaxConnectionsError(f"{MOST_UNSENT} requests wait"), sent=False))
        else:
            self._unsent.append((data, future))
            self._flush_soon()
        return future

    async def exchange(self, requests: Sequence[bytes]) -> list[Any]:
        """The replies to requests that are sent in one go. Raises `StoreError`."""
        replies = await asyncio.gather(*map(self.ask, requests), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, StoreError):
                raise reply
        return replies

    def _flush_soon(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Sends what has gathered during this tick."""
        self._flush_is_due = False
        deadline = self._loop.time() + self._patience
        batch = []
        while self._unsent and len(self._sent) < MOST_IN_FLIGHT:
            data, future = self._unsent.popleft()
            if not future.done():
                batch.append(data)
                self._sent.append((future, deadline))
        if batch:
            self._transport.write(b"".join(batch))
            if self._timer is None:
                self._timer = self._loop.call_at(deadline, self._expire)

    def data_received(self, data: bytes) -> None:
        reader, sent = self._reader, self._sent
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not INCOMPLETE:
                future, _ = sent.popleft()
                if not future.done():
                    future.set_result(reply)
        except (InvalidResponse, IndexError) as error:  # not RESP2, or an answer to nothing
            self._end(InvalidResponse(f"the server sent what it was not asked for ({error})"))
        if self._unsent:
            self._flush_soon()

    def _expire(self) -> None:
        """Fails what is overdue. Its place is kept: the reply may still come, before those to later requests."""
        self._timer = None
        now = self._loop.time()
        overdue = RedisTimeoutError(f"no reply within {self._patience} s")
        for future, deadline in self._sent:
            if future.done():
                continue
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._expire)
                return
            future.set_exception(StoreError(overdue, sent=True))
            self._fail_unsent(overdue)

    def _fail_unsent(self, cause: Exception) -> None:
        while self._unsent:
            _, future = self._unsent.popleft()
            if not future.done():
                future.set_exception(StoreError(cause, sent=False))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(RedisConnectionError(f"the connection is lost ({error or 'closed by the server'})"))
        self._before.connection_lost(None)  # redis-py waits for this when its user disconnects the pool

    def _end(self, cause: Exception) -> None:
        """Fails what is in flight, and what was not sent yet; each is told which of the two it was."""
        if self.lost is not None:
            return
        self.lost = cause
        self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        while self._sent:
            future, _ = self._sent.popleft()
            if not future.done():
                future.set_exception(StoreError(cause, sent=True))
        self._fail_unsent(cause)

    def close(self) -> None:
        """Ends the connection and everything on it."""
        self._end(RedisConnectionError("closed by this process"))
