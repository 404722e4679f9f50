"""Limits run by their twins, on states of their own, at times that the test tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shared_resilience.commands import Command, Reply, State
from shared_resilience.limit_commands import LimitCommands
from shared_resilience.limits import Limit

START = 1_763_880_000_000_000
Run = Callable[[Command[Any], int], Reply]


class Answered(NamedTuple):
    """The reply of a limit script, by its names; times in µs."""

    allowed: int
    keeper: int
    limit: int
    remaining: int
    retry_after: int
    reset_after: int
    delay: int
    now: int
    ignored: str


class Twin:
    """Limits in this process."""

    def __init__(self, *limits: Limit) -> None:
        self.commands = LimitCommands(limits)
        self.keys = ("overrides", *(limit.label for limit in limits))
        self.states: dict[str, State] = {}

    def run(self, command: Command[Any], now: int) -> Reply:
        outcome = command.operation.twin(tuple(map(self.states.get, command.keys)), now, *command.args)
        self.states.update(zip(command.keys, outcome.states, strict=True))
        return outcome.reply

    def _limit(self, command: Command[Any], now: int, share: int) -> Answered:
        return Answered(*self.run(command.share(share), now))  # type: ignore[arg-type]  # as the script replies

    def take(self, now: int, cost: int = 1, share: int = 1, max_delay: int = -1) -> Answered:
        return self._limit(self.commands.take(self.keys, cost, max_delay), now, share)

    def peek(self, now: int, cost: int = 1, share: int = 1) -> Answered:
        return self._limit(self.commands.peek(self.keys, cost), now, share)

    def give(self, now: int, cost: int = 1, since: int = 0) -> Answered:
        return self._limit(self.commands.give(self.keys, cost, since), now, 1)

    def charge(self, now: int, cost: int = 1) -> Answered:
        return self._limit(self.commands.charge(self.keys, cost), now, 1)

    def configured(self, limits: Sequence[Limit]) -> Twin:
        """The same states, seen by a caller with other numbers."""
        other = Twin(*limits)
        other.states = self.states
        return other
