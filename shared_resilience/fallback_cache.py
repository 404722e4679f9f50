"""Last good values, in Redis for the fleet and in each process; twins of the scripts `fallback_cache_*.lua`.

Values are written down before they are kept, so that nobody who changes one changes what is kept. A key is written at
most once a second and process, and Redis is told of all that were, at most once a second.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, cast

from shared_resilience import codecs
from shared_resilience.arguments import Args, Kwargs, in_words
from shared_resilience.backends import Backend
from shared_resilience.backends.process import Process
from shared_resilience.commands import Command, Operation, Reply, Source, State, Step
from shared_resilience.errors import EncodingError, ResilienceError
from shared_resilience.fallback_config import FallbackConfig
from shared_resilience.heartbeat import Resource
from shared_resilience.integers import MILLION, to_integer, to_ttl

logger = logging.getLogger("shared_resilience")

EVERY = 1.0
"""Seconds for which a key need not be written again, and between two writes to Redis."""

AT_ONCE, BYTES_AT_ONCE = 100, 1_000_000
"""Keys, and bytes of values but for the last, in one command."""

MOST_PENDING, MOST_PENDING_BYTES = 10_000, 16_000_000
"""What waits to be written to Redis, the oldest out first."""


def store(states: Sequence[State], now: int, ttl: int, codec: str, *values: str) -> Step:
    """Twin of `fallback_cache_store.lua`."""
    kept = [{"codec": codec, "value": value, "stored_us": now} for value in values]
    return Step(kept, [to_ttl(ttl)] * len(kept), (1,))


def read(states: Sequence[State], now: int, codec: str, oldest: int) -> Step:
    """Twin of `fallback_cache_read.lua`."""
    kept, nothing = cast("Mapping[str, object]", states[0] or {}), Step(states, (None,), (0, 0, ""))
    stored = to_integer(kept.get("stored_us"))
    if kept.get("codec") != codec or "value" not in kept or stored is None:
        return nothing
    age = max(0, now - stored)
    return nothing if age > oldest else Step(states, (None,), (1, age, str(kept["value"])))


class Kept(NamedTuple):
    """A last good value, written down, and how many seconds ago."""

    text: str
    age: float


def _kept(reply: Reply, source: Source) -> Kept | None:
    found, age, value = reply
    return (
        Kept(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value), int(age) / MILLION)
        if found
        else None
    )


STORE: Operation[Reply] = Operation("fallback_cache_store", store, lambda reply, source: reply)
READ: Operation[Kept | None] = Operation("fallback_cache_read", read, _kept)


class Nameless(Exception):
    """A call has arguments of which nothing but an address is known."""


def _refuse(value: object) -> str:
    raise Nameless(type(value).__qualname__)


class FallbackCache:
    """The last good values of one chain in one process, and the way to those of the fleet."""

    def __init__(self, resource: Resource, config: FallbackConfig, process: Process) -> None:
        self._resource, self._config, self._process = resource, config, process
        self._monotonic = process.clock.monotonic
        self.shared = config.shared_max_age > 0
        self.local = config.local_max_age > 0 and config.local_size > 0
        self._most = max(1, config.local_size)
        self._warned = False
        self.restart()

    def restart(self) -> None:
        """As in a process that has kept nothing."""
        self._lock = threading.Lock()
        self._values: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._fresh: dict[Hashable, float] = {}
        self._pending: OrderedDict[str, str] = OrderedDict()
        self._pending_bytes = 0
        self._due = -math.inf

    def __len__(self) -> int:
        return len(self._values)

    @property
    def pending(self) -> int:
        """How many values Redis has not been told of yet."""
        return len(self._pending)

    def key_of(self, args: Args, kwargs: Kwargs) -> str | None:
        """The key of a call; None if its value is not kept. Runs the user's `key`.

        It is the argument itself if that is one text; else all arguments in words, in parentheses.
        """
        chosen = self._config.key
        if chosen is not None:
            key = chosen(*args, **kwargs)
            return None if key is None else str(key)
        if len(args) == 1 and not kwargs and type(args[0]) is str and not args[0].startswith("("):
            return args[0]
        try:
            return f"({in_words(args, _refuse)[1:-1]})" + (in_words(kwargs, _refuse) if kwargs else "")
        except Nameless as nameless:
            self._warn(f"calls with a {nameless} among their arguments are not kept: tell them apart by key=")
            return None

    def keep(self, args: Args, kwargs: Kwargs, value: object) -> bool:
        """Keeps the value of a call, unless its key was written just now; whether Redis is to be told now."""
        now, told = self._monotonic(), self._shorthand(args, kwargs)
        if told is None or now >= self._fresh.get(told, -math.inf):
            key = self.key_of(args, kwargs)
            told = key if told is None else told
            if told is not None and now >= self._fresh.get(told, -math.inf):
                self._write(told, key, value, now)
        return now >= self._due

    def _shorthand(self, args: Args, kwargs: Kwargs) -> Hashable:
        """What tells most calls apart faster than their key; None if there is nothing."""
        if kwargs or self._config.key is not None:
            return None
        try:
            hash(args)
        except TypeError:
            return None
        return args

    def _write(self, told: Hashable, key: str | None, value: object, now: float) -> None:
        text = None
        try:
            text = codecs.encode(self._config.codec, value, self._config.max_size) if key is not None else None
        except EncodingError as error:
            self._warn(f"a value is not kept: {error}")
        with self._lock:
            if len(self._fresh) >= 2 * self._most:
                self._fresh.clear()
            self._fresh[told] = now + EVERY
            if key is None or text is None:
                return
            if self.local:
                self._values[key] = text, now
                self._values.move_to_end(key)
                if len(self._values) > self._most:
                    self._values.popitem(last=False)
            if self.shared:
                self._pend(key, text)

    def _pend(self, key: str, text: str) -> None:
        self._pending_bytes += len(text) - len(self._pending.pop(key, ""))
        self._pending[key] = text
        while len(self._pending) > 1 and (
            len(self._pending) > MOST_PENDING or self._pending_bytes > MOST_PENDING_BYTES
        ):
            self._pending_bytes -= len(self._pending.popitem(last=False)[1])

    def _warn(self, what: str) -> None:
        self._resource.count("fallback.not_kept")
        self._process.events.emit("fallback.not_kept", self._resource.name, why=what)
        if not self._warned:
            self._warned = True
            logger.warning("fallback chain %r: %s", self._resource.name, what)

    def find(self, key: str) -> Kept | None:
        """What this process has kept for `key`, if it is not too old."""
        with self._lock:
            known = self._values.get(key)
            if known is not None:
                self._values.move_to_end(key)
        if known is None:
            return None
        text, stored = known
        age = self._monotonic() - stored
        return Kept(text, age) if age <= self._config.local_max_age else None

    def decode(self, kept: Kept) -> object:
        """The value itself; runs the user's codec. Raises `EncodingError`."""
        return codecs.decode(self._config.codec, self._config.codec.name, kept.text)

    # With Redis.

    async def find_shared(self, backend: Backend, key: str) -> Kept | None:
        """What the fleet has kept for `key`, if it is not too old; nothing while Redis is away."""
        oldest = math.floor(self._config.shared_max_age * MILLION)
        command = Command(READ, (self._resource.keys.cache(key),), (self._config.codec.name, oldest))
        try:
            return await backend.run(command, self._resource, "raise")
        except ResilienceError:
            return None

    async def tell(self, backend: Backend) -> None:
        """Tells Redis what was kept since it was last told; one caller at a time, at most once a second."""
        now = self._monotonic()
        with self._lock:
            if now < self._due or not self._pending:
                return
            self._due = now + EVERY
            told = self._take()
        ttl = math.ceil(self._config.shared_max_age * MILLION)
        keys = tuple(self._resource.keys.cache(key) for key in told)
        command = Command(STORE, keys, (ttl, self._config.codec.name, *told.values()))
        try:
            await backend.run(command, self._resource, "raise")
        except BaseException as error:
            with self._lock:
                for key, text in told.items():
                    if key not in self._pending:
                        self._pend(key, text)
            if not isinstance(error, ResilienceError):
                raise
        else:
            if self._pending:
                self._due = now

    def _take(self) -> dict[str, str]:
        told, size = dict[str, str](), 0
        while self._pending and len(told) < AT_ONCE and size < BYTES_AT_ONCE:
            key, text = self._pending.popitem(last=False)
            told[key] = text
            size += len(text)
        self._pending_bytes -= size
        return told

    async def tell_all(self, backend: Backend) -> None:
        """Tells Redis everything, before an end."""
        for _ in range(1 + len(self._pending) // AT_ONCE + self._pending_bytes // BYTES_AT_ONCE):
            self._due = -math.inf
            await self.tell(backend)
