"""Ears listen to channels of Redis, on connections of redis-py's pools."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from redis.asyncio.client import PubSub as AsyncPubSub
from redis.client import PubSub

from shared_resilience.backends.connecting import once
from shared_resilience.backends.faults import FOREIGN

BROKEN = (*FOREIGN, ValueError, TypeError, AttributeError)
"""What redis-py raises when a connection fails, or when another thread closes it at just that moment."""

DEAF_FOR = 1.0
"""Seconds after a failure during which nothing is heard, and nobody tries."""


class Ear(Protocol):
    """Hears what is published. It is deaf while Redis is away: whoever relies on it has to look now and then."""

    async def listen_to(self, channels: frozenset[str]) -> bool:
        """Listens to `channels` too; whether it has begun to listen to some just now."""

    async def hear(self, seconds: float) -> str | None:
        """The next message, waited for during at most `seconds`."""

    async def close(self) -> None:
        """Hears nothing any more, and gives the connection back."""


def _payload(message: dict[str, Any]) -> str:
    data = message["data"]
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data)


class _Heard:
    """What both ears remember."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._channels: frozenset[str] = frozenset()
        self._backlog: deque[str] = deque()
        self._deaf_until = 0.0

    def _new(self, channels: frozenset[str]) -> frozenset[str]:
        return channels - self._channels if time.monotonic() >= self._deaf_until else frozenset()

    def _note(self, message: dict[str, Any] | None) -> bool:
        """Keeps what was published; whether `message` confirms that a channel is listened to."""
        if message is None:
            raise TimeoutError("the server does not confirm a subscription")
        if message["type"] == "message":
            self._backlog.append(_payload(message))
        return bool(message["type"] == "subscribe")

    def _grow_deaf(self) -> None:
        self._channels = frozenset()
        self._deaf_until = time.monotonic() + DEAF_FOR


class PoolEar(_Heard):
    """Blocks a thread while it hears."""

    def __init__(self, pool: Any, patience: float) -> None:
        super().__init__(patience)
        self._pool = pool
        self._pubsub: PubSub | None = None

    async def listen_to(self, channels: frozenset[str]) -> bool:
        new = self._new(channels)
        if not new:
            return False
        try:
            with once():
                if self._pubsub is None:
                    self._pubsub = PubSub(self._pool)
                self._pubsub.subscribe(*new)
            confirmed = 0
            while confirmed < len(new):
                confirmed += self._note(self._pubsub.get_message(timeout=self._patience))
        except BROKEN:
            await self._fail()
            return False
        self._channels |= new
        return True

    async def hear(self, seconds: float) -> str | None:
        if self._backlog:
            return self._backlog.popleft()
        if self._pubsub is None:
            time.sleep(seconds)  # noqa: ASYNC251  # this form blocks
            return None
        try:
            with once():
                message = self._pubsub.get_message(timeout=seconds)
        except BROKEN:
            await self._fail()
            return None
        return _payload(message) if message is not None and message["type"] == "message" else None

    async def _fail(self) -> None:
        self._grow_deaf()
        await self.close()

    async def close(self) -> None:
        pubsub, self._pubsub, self._channels = self._pubsub, None, frozenset()
        if pubsub is not None:
            pubsub.close()


class AsyncPoolEar(_Heard):
    """Suspends a task while it hears."""

    def __init__(self, pool: Callable[[], Any], patience: float) -> None:
        super().__init__(patience)
        self._pool = pool
        self._pubsub: AsyncPubSub | None = None

    async def listen_to(self, channels: frozenset[str]) -> bool:
        new = self._new(channels)
        if not new:
            return False
        try:
            async with asyncio.timeout(self._patience):
                with once():
                    if self._pubsub is None:
                        self._pubsub = AsyncPubSub(self._pool())
                    await self._pubsub.subscribe(*new)
                confirmed = 0
                while confirmed < len(new):
                    confirmed += self._note(await self._pubsub.get_message(timeout=self._patience))
        except BROKEN:
            await self._fail()
            return False
        self._channels |= new
        return True

    async def hear(self, seconds: float) -> str | None:
        if self._backlog:
            return self._backlog.popleft()
        if self._pubsub is None:
            await asyncio.sleep(seconds)
            return None
        try:
            with once():
                message = await self._pubsub.get_message(timeout=seconds)
        except BROKEN:
            await self._fail()
            return None
        return _payload(message) if message is not None and message["type"] == "message" else None

    async def _fail(self) -> None:
        self._grow_deaf()
        await self.close()

    async def close(self) -> None:
        pubsub, self._pubsub, self._channels = self._pubsub, None, frozenset()
        if pubsub is not None:
            await pubsub.aclose()  # type: ignore[no-untyped-call]
