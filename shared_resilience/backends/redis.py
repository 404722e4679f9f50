"""Commands on Redis: scripts by their hash, over any wire."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from redis.exceptions import NoScriptError, ResponseError

from shared_resilience.backends.faults import Fault, StoreError
from shared_resilience.commands import Argument, Command, Reply

Request = tuple[str, tuple[Argument, ...]]
"""The key by which a cluster routes the request, and the request."""

_GLOB = re.compile(r"([*?\[\]\\])")
_KEYS_PER_SCAN = 1000


class Wire(Protocol):
    """A way to Redis: sends requests in one go and returns their replies, errors among them as values."""

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """The replies in order, a `ResponseError` for each request that the server refused.

        Raises `StoreError` when there is no reply to some of them.
        """

    async def reconnect(self) -> None:
        """Drops idle connections, so that the next request looks for the server anew.

        They may be dead without showing it, or lead to a server that is no longer the primary. Raises `StoreError`.
        """


class RedisStore:
    """Runs commands on Redis. Nothing is ever sent twice unless the server has said that it did not run.

    `now_us` is for tests: the time that scripts are told instead of reading the server's clock.
    """

    def __init__(self, wire: Wire, now_us: Callable[[], int] | None = None) -> None:
        self._wire = wire
        self._now_us = now_us

    async def execute(self, command: Command[Any]) -> Reply:
        """The reply of one command. Raises `StoreError`."""
        return (await self.execute_all((command,)))[0]

    async def execute_all(self, commands: Sequence[Command[Any]]) -> list[Reply]:
        """The replies of several commands, sent in one go. Raises `StoreError` for the first that failed."""
        requests = [self._request("EVALSHA", command.operation.loaded.sha, command) for command in commands]
        replies = await self._wire.exchange(requests)
        for index, reply in enumerate(replies):
            if isinstance(reply, NoScriptError):
                reply = replies[index] = await self._introduce(commands[index])
            if isinstance(reply, Exception):
                raise StoreError(reply, sent=True) from reply
        return replies

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

    async def _introduce(self, command: Command[Any]) -> Reply | ResponseError:
        """Runs a script that the server does not know yet; where EVAL is forbidden, by SCRIPT LOAD."""
        script, key = command.operation.loaded, command.keys[0]
        (reply,) = await self._wire.exchange([self._request("EVAL", script.text, command)])
        if isinstance(reply, ResponseError) and StoreError(reply, sent=True).fault is Fault.CONFIGURATION:
            await self._ask(key, "SCRIPT LOAD", script.text)
            (reply,) = await self._wire.exchange([self._request("EVALSHA", script.sha, command)])
        answer: Reply | ResponseError = reply
        return answer

    async def _ask(self, key: str, *request: Argument) -> Any:
        (reply,) = await self._wire.exchange([(key, request)])
        if isinstance(reply, Exception):
            raise StoreError(reply, sent=True) from reply
        return reply

    def _request(self, verb: str, script: str, command: Command[Any]) -> Request:
        now = "" if self._now_us is None else self._now_us()
        return command.keys[0], (verb, script, len(command.keys), *command.keys, *command.args, now)
