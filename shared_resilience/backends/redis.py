"""Commands on Redis: scripts by their hash, over any wire."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from redis.exceptions import NoScriptError, ResponseError

from shared_resilience.backends.ears import Ear
from shared_resilience.backends.faults import Fault, StoreError
from shared_resilience.backends.resp import pack, pack_around, pack_between
from shared_resilience.commands import Argument, Command, Mold, Reply


class Request:
    """A request to Redis: its parts, the key by which a cluster routes it, and the bytes that are sent."""

    __slots__ = ("key", "packed", "parts")

    def __init__(self, key: str, parts: tuple[Argument | bytes, ...], packed: bytes | None = None) -> None:
        self.key = key
        self.parts = parts
        self.packed = packed or pack(parts)


_GLOB = re.compile(r"([*?\[\]\\])")
_KEYS_PER_SCAN = 1000


class Wire(Protocol):
    """A way to Redis: sends requests and returns their replies, errors among them as values."""

    def ask(self, request: Request) -> Awaitable[Any]:
        """The reply, a `ResponseError` if the server refused. Fails with `StoreError` when there is none."""

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """The replies in order to requests that are sent in one go, a `ResponseError` for each that was refused.

        Raises `StoreError` when there is no reply to some of them.
        """

    def ear(self) -> Ear | None:
        """What hears channels on the same server; None where that takes a connection too many, or a cluster."""

    async def reconnect(self) -> None:
        """Drops idle connections, so that the next request looks for the server anew.

        They may be dead without showing it, or lead to a server that is no longer the primary. Raises `StoreError`.
        """

    async def close(self) -> None:
        """Closes the connections of this service; a pool that is the user's gets them back."""


class RedisStore:
    """Runs commands on Redis. Nothing is ever sent twice unless the server has said that it did not run.

    `now_us` is for tests: the time that scripts are told instead of reading the server's clock.
    """

    def __init__(self, wire: Wire, now_us: Callable[[], int] | None = None) -> None:
        self._wire = wire
        self._now_us = now_us

    def ask(self, command: Command[Any]) -> Awaitable[Any]:
        """What the server answers: a reply, or an error for `refused`. Fails with `StoreError`."""
        return self._wire.ask(command.request or self._request(command))  # type: ignore[arg-type]  # made by `_request`

    async def execute(self, command: Command[Any]) -> Reply:
        """The reply of one command. Raises `StoreError`."""
        reply = await self.ask(command)
        return await self.refused(command, reply) if isinstance(reply, Exception) else reply

    async def execute_all(self, commands: Sequence[Command[Any]]) -> list[Reply]:
        """The replies of several commands, sent in one go. Raises `StoreError` for the first that failed."""
        if not commands:
            return []
        replies = await self._wire.exchange([self._request(command) for command in commands])
        for index, reply in enumerate(replies):
            if isinstance(reply, Exception):
                replies[index] = await self.refused(commands[index], reply)
        return replies

    async def try_all(self, commands: Sequence[Command[Any]]) -> list[Reply | StoreError]:
        """As `execute_all`, with an error for each command that failed. Raises `StoreError` if there are no replies."""
        replies: list[Any] = await self._wire.exchange([self._request(command) for command in commands])
        for index, reply in enumerate(replies):
            if isinstance(reply, Exception):
                try:
                    replies[index] = await self.refused(commands[index], reply)
                except StoreError as error:
                    replies[index] = error
        return replies

    async def inquire(self, key: str, questions: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """What the server that has `key` replies to plain commands, refusals among it. Raises `StoreError`."""
        return await self._wire.exchange([Request(key, question) for question in questions]) if questions else []

    async def close(self) -> None:
        """As `Wire.close`."""
        await self._wire.close()

    def ear(self) -> Ear | None:
        """As `Wire.ear`."""
        return self._wire.ear()

    async def reconnect(self) -> None:
        """As `Wire.reconnect`."""
        await self._wire.reconnect()

    async def forget_prefix(self, prefix: str) -> None:
        """Deletes every key that starts with `prefix`, with SCAN and UNLINK. Raises `StoreError`."""
        cursor, pattern = "0", _GLOB.sub(r"\\\1", prefix) + "*"
        while True:
            cursor, found = await self._ask(prefix, "SCAN", cursor, "MATCH", pattern, "COUNT", _KEYS_PER_SCAN)
            if isinstance(cursor, dict):  # RedisCluster answers with a cursor for each node, of which there is one
                (cursor,) = cursor.values()
            cursor = str(int(cursor))
            if found:
                await self._ask(prefix, "UNLINK", *found)
            if cursor == "0":
                return

    async def refused(self, command: Command[Any], refusal: Exception) -> Reply:
        """What to do about a refusal: a script that the server does not know yet is introduced to it."""
        if not isinstance(refusal, NoScriptError) and not str(refusal).startswith("NOSCRIPT"):
            raise StoreError(refusal, sent=True) from refusal
        script, key = command.operation.loaded, command.keys[0]
        reply = await self._wire.ask(self._run("EVAL", script.text, command))
        if isinstance(reply, ResponseError) and StoreError(reply, sent=True).fault is Fault.CONFIGURATION:
            await self._ask(key, "SCRIPT", "LOAD", script.text)  # all that some users may
            reply = await self._wire.ask(self._run("EVALSHA", script.sha, command))
        if isinstance(reply, Exception):
            raise StoreError(reply, sent=True) from reply
        return reply  # type: ignore[no-any-return]  # what the server sent

    async def _ask(self, key: str, *parts: Argument | bytes) -> Any:
        reply = await self._wire.ask(Request(key, parts))
        if isinstance(reply, Exception):
            raise StoreError(reply, sent=True) from reply
        return reply

    def _request(self, command: Command[Any]) -> Request:
        sha = command.operation.loaded.sha
        if command.mold is not None and self._now_us is None:
            return self._molded(command, command.mold, sha)
        request = self._run("EVALSHA", sha, command)
        if self._now_us is None:
            command.request = request
        return request

    def _molded(self, command: Command[Any], mold: Mold[Any], sha: str) -> Request:
        keys, args = command.keys, command.args
        before = len(mold.before)
        if mold.packed is None:
            head = ("EVALSHA", sha, len(keys), *keys, *mold.before)
            mold.packed = pack_around(head, (*mold.after, ""))
        packed = pack_between(mold.packed, str(args[before]))
        return Request(keys[0], ("EVALSHA", sha, len(keys), *keys, *args, ""), packed)

    def _run(self, verb: str, script: str, command: Command[Any]) -> Request:
        now = "" if self._now_us is None else self._now_us()
        keys = command.keys
        return Request(keys[0], (verb, script, len(keys), *keys, *command.args, now))
