"""States in this process, changed by the twins of the scripts: what decides when Redis does not."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from typing import TypeVar

from shared_resilience.backends.clock import Clock
from shared_resilience.commands import Command, Reply, State

R = TypeVar("R")
MOST_KEYS = 100_000
FOR_EVER = sys.maxsize


class LocalStore:
    """The states of one process: at most `most_keys`, the least recently used out first."""

    def __init__(self, clock: Clock, most_keys: int = MOST_KEYS) -> None:
        self._clock = clock
        self._most_keys = most_keys
        self._states: OrderedDict[str, tuple[State, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._states)

    def execute(self, command: Command[R]) -> Reply:
        """Runs the twin of `command` as one atomic step and returns the script's reply."""
        now = self.now_us()
        with self._lock:
            states = [self._live(key, now) for key in command.keys]
            step = command.operation.twin(states, now, *command.args)
            for key, before, after, ttl in zip(command.keys, states, step.states, step.ttls):  # noqa: B905  # twins align
                if after is None:
                    if before is not None:
                        del self._states[key]
                elif ttl is not None or after is not before:
                    self._write(key, after, ttl, now)
            return step.reply

    def look(self, keys: Sequence[str]) -> tuple[list[State], int]:
        """The states of `keys`, and the time."""
        now = self.now_us()
        with self._lock:
            return [self._live(key, now) for key in keys], now

    def put(self, key: str, state: State) -> None:
        """Sets a state that stays until it is changed; None drops it."""
        with self._lock:
            self._states.pop(key, None)
            if state is not None:
                self._write(key, state, 0, self.now_us())

    def now_us(self) -> int:
        """The time that twins are told."""
        return int(self._clock.monotonic() * 1e6)

    def forget_prefix(self, prefix: str) -> None:
        """Drops every key that starts with `prefix`."""
        with self._lock:
            for key in [key for key in self._states if key.startswith(prefix)]:
                del self._states[key]

    def _live(self, key: str, now: int) -> State:
        found = self._states.get(key)
        if found is None:
            return None
        if found[1] > now:
            return found[0]
        del self._states[key]
        return None

    def _write(self, key: str, state: State, ttl_ms: int | None, now: int) -> None:
        known = self._states.get(key)
        expires = now + ttl_ms * 1000 if ttl_ms else FOR_EVER
        if ttl_ms is None and known is not None:
            expires = known[1]
        self._states[key] = (state, expires)
        if known is not None:
            self._states.move_to_end(key)
        else:
            self._make_room(now)

    def _make_room(self, now: int) -> None:
        """For a key that is new: drops the two that were written longest ago if their time is over.

        So there are never many more keys than live ones. When there are too many, the oldest one goes all the same.
        """
        for key in list(islice(self._states, 2)):
            expires = self._states[key][1]
            if expires <= now:
                del self._states[key]
            elif expires == FOR_EVER:
                self._states.move_to_end(key)
        if len(self._states) > self._most_keys:
            self._states.popitem(last=False)
