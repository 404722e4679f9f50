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
