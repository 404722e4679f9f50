"""Histories that the twins foresee, and Redis then takes: the two must agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from conftest import Lane

from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.commands import Command, Operation, State


class Foreseen(Protocol):
    """A history that the twins have taken."""

    def compare(self) -> None:
        """Has Redis take it."""


def compare_all(histories: Iterable[Foreseen]) -> None:
    """Compares each history, while the twins foresee the next: client and server have a core each."""
    with ThreadPoolExecutor(1) as redis:
        compared: Future[None] | None = None
        for history in histories:
            if compared is not None:
                compared.result()
            compared = redis.submit(history.compare)
        if compared is not None:
            compared.result()


Moves = Iterator[tuple[int, tuple[int, ...]]]
"""Microseconds that pass, and with which arguments the script is then asked."""

START = 1_763_880_000_000_000
_numbers = itertools.count()


class HashHistory:
    """A history of one script on one hash of integers; the twin takes it while it is thought up."""

    def __init__(self, lane: Lane, operation: Operation[Any], moves: Moves) -> None:
        self._client, self._times = lane.client, list[int]()
        self._redis = RedisStore(lane.wire, lambda: self._times.pop(0))
        self._key = f"history:{{{next(_numbers)}}}"
        self._state: State = None
        self._ttl = 0
        self._commands: list[Command[Any]] = []
        self._expected: list[list[int]] = []
        self._asked: list[int] = []
        lane.load_scripts()
        now = START
        for passed, told in moves:
            now = max(1, now + passed)
            outcome = operation.twin((self._state,), now, *told)
            (self._state,), (ttl,) = outcome.states, outcome.ttls
            self._ttl = ttl or self._ttl
            self._commands.append(Command(operation, (self._key,), told))
            self._expected.append([int(number) for number in outcome.reply])
            self._asked.append(now)

    def compare(self) -> None:
        self._times[:] = self._asked
        replies = step(self._redis.execute_all(self._commands))
        for number, (reply, twin) in enumerate(zip(replies, self._expected, strict=True)):
            assert list(reply) == twin, f"step {number}: {self._commands[number]}"
        found = {field.decode(): int(value) for field, value in self._client.hgetall(self._key).items()}
        assert found == self._state
        assert self._ttl - 5000 < self._client.pttl(self._key) <= self._ttl
        self._client.delete(self._key)


class KeysHistory:
    """A history of commands on some keys, hashes or sorted sets; the twins take it when it is made."""

    def __init__(self, lane: Lane, keys: Iterable[str], history: Iterable[tuple[int, Command[Any]]]) -> None:
        self._client, self._keys, self._times = lane.client, tuple(keys), list[int]()
        self._redis = RedisStore(lane.wire, lambda: self._times.pop(0))
        self._states: dict[str, State] = {}
        self._ttls: dict[str, int] = {}
        self._history = list(history)
        self._expected: list[list[str]] = []
        lane.load_scripts()
        for now, command in self._history:
            outcome = command.operation.twin(tuple(map(self._states.get, command.keys)), now, *command.args)
            self._states.update(zip(command.keys, outcome.states, strict=True))
            self._ttls.update({key: ttl for key, ttl in zip(command.keys, outcome.ttls, strict=True) if ttl})
            self._expected.append([str(one) for one in outcome.reply])

    def compare(self) -> None:
        """Has Redis take it."""
        self._client.delete(*self._keys)
        self._times[:] = [now for now, _ in self._history]
        replies = step(self._redis.execute_all([command for _, command in self._history]))
        for number, (reply, twin) in enumerate(zip(replies, self._expected, strict=True)):
            found = [one.decode() if isinstance(one, bytes) else str(one) for one in reply]
            assert found == twin, f"step {number}: {self._history[number]}"
        for key in self._keys:
            stored: Any = self._states.get(key)
            assert self._read(key) == {str(field): str(value) for field, value in (stored or {}).items()}
            if stored:
                assert self._ttls[key] - 5000 < self._client.pttl(key) <= self._ttls[key]
        self._client.delete(*self._keys)

    def _read(self, key: str) -> dict[str, str]:
        if self._client.type(key) == b"zset":
            pairs = self._client.zrange(key, 0, -1, withscores=True)
            return {member.decode(): str(int(score)) for member, score in pairs}
        return {field.decode(): value.decode() for field, value in self._client.hgetall(key).items()}


def stem() -> str:
    """What the keys of a history start with: its own, in one slot."""
    return f"history:{{{next(_numbers)}}}"
