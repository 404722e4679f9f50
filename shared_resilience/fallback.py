"""The core of fallback chains, written once for sync and asyncio: who is asked next, and what became of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from shared_resilience import validation
from shared_resilience.arguments import Args, Kwargs
from shared_resilience.backends import Backend
from shared_resilience.backends.process import Component, Process
from shared_resilience.errors import EncodingError, FallbackExhaustedError
from shared_resilience.fallback_cache import FallbackCache, Kept
from shared_resilience.fallback_config import FallbackConfig, FallbackLevel

logger = logging.getLogger("shared_resilience")
T = TypeVar("T")
Handler = Callable[..., Any]
LIVE = (FallbackLevel.PRIMARY, FallbackLevel.REPLICA)
"""Levels whose answers are kept as last good values."""

COUNTERS = {level: f"fallback.{level.value}" for level in FallbackLevel}


class FallbackResult(NamedTuple, Generic[T]):
    """What a chain has answered: the `value`, and which `level` it is from.

    `degraded` unless it is that of the primary; `age` is for how many seconds a cached value was kept, else 0.
    """

    value: T
    level: FallbackLevel
    degraded: bool
    age: float


class Fallback(Component):
    """The chain of one name in one process: its handlers, and its last good values."""

    def __init__(self, name: str, config: FallbackConfig, process: Process) -> None:
        self.name = name
        self.config = config
        self.handlers: dict[FallbackLevel, Handler] = {}
        self.resource = process.heartbeat.resource(name)
        self.resource.configure({f"fallback.{field}": number for field, number in config.numbers().items()})
        self.cache = FallbackCache(self.resource, config, process)
        self.keeps = self.cache.local or self.cache.shared
        self.monotonic = process.clock.monotonic
        self._timed = config.timeout is not None
        self._events = process.events
        self._due = process.heartbeat.due

    def after_fork(self) -> None:
        self.cache.restart()

    def register(self, level: FallbackLevel, handler: Handler) -> None:
        if not isinstance(level, FallbackLevel):
            raise validation.wrong("level", level, "a FallbackLevel")
        if not callable(handler):
            raise validation.wrong("handler", handler, "a function")
        known = self.handlers.setdefault(level, handler)
        if known is not handler:
            raise ValueError(f"level {level.value} of {self.name!r} has another handler, {known!r}, not {handler!r}")

    @property
    def primary(self) -> Handler:
        """The handler of the first level. Raises `LookupError` if there is none."""
        handler = self.handlers.get(FallbackLevel.PRIMARY)
        if handler is None:
            what = "register_handler(FallbackLevel.PRIMARY, …)"
            raise LookupError(f"fallback chain {self.name!r} has no primary: {what} makes a function its first level")
        return handler

    def timeout_of(self, level: FallbackLevel) -> float | None:
        """How long `level` may take."""
        return self.config.timeout_of(level) if self._timed else None

    def begin(self) -> bool:
        """Notes a call that begins; whether a heartbeat is due."""
        now = self.resource.last_used = self.monotonic()
        return self._due(now)

    def passed(self, args: Args, kwargs: Kwargs, value: object, level: FallbackLevel = FallbackLevel.PRIMARY) -> bool:
        """Counts and keeps a live answer; whether `cache.tell` has something to tell Redis."""
        self.resource.count(COUNTERS[level])
        return self.keeps and self.cache.keep(args, kwargs, value) and self.cache.pending > 0

    def failed(self, level: FallbackLevel, error: Exception) -> None:
        self.resource.count(f"fallback.{level.value}_failed")
        self._events.emit("fallback.failed", self.name, level=level.value, error=f"{type(error).__name__}: {error}")

    def answered(self, level: FallbackLevel, value: T, age: float = 0.0) -> FallbackResult[T]:
        """The answer of a level that is not the first."""
        self._events.emit("fallback.used", self.name, level=level.value, age=age)
        return FallbackResult(value, level, True, age)

    def cached(self, level: FallbackLevel, kept: Kept | None) -> FallbackResult[Any] | None:
        """The answer of a cache, if it has one that can be read; runs the user's codec."""
        if kept is None:
            return None
        try:
            value = self.cache.decode(kept)
        except EncodingError as error:
            logger.warning("fallback chain %r: %s", self.name, error)
            return None
        self.resource.count(COUNTERS[level])
        return self.answered(level, value, kept.age)

    async def look(self, backend: Backend, level: FallbackLevel, args: Args, kwargs: Kwargs) -> Kept | None:
        """What the cache of `level` has, if `level` is one."""
        is_shared = level is FallbackLevel.DISTRIBUTED_CACHE and self.cache.shared
        is_local = level is FallbackLevel.LOCAL_CACHE and self.cache.local
        key = self.cache.key_of(args, kwargs) if is_shared or is_local else None
        if key is None:
            return None
        return await self.cache.find_shared(backend, key) if is_shared else self.cache.find(key)

    def exhausted(self, causes: Sequence[Exception], failed: Sequence[FallbackLevel]) -> FallbackExhaustedError:
        what = {level: type(cause).__name__ for level, cause in zip(failed, causes, strict=True)}
        asked = [
            level
            for level in FallbackLevel
            if level in what
            or (level is FallbackLevel.DISTRIBUTED_CACHE and self.cache.shared)
            or (level is FallbackLevel.LOCAL_CACHE and self.cache.local)
        ]
        said = ", ".join(f"{level.value}: {what.get(level, 'nothing kept')}" for level in asked)
        self.resource.count("fallback.exhausted")
        self._events.emit("fallback.exhausted", self.name, levels=said)
        return FallbackExhaustedError(self.name, said, causes)

    async def before_close(self, backend: Backend) -> None:
        """Tells Redis what was kept."""
        await self.cache.tell_all(backend)

    def known(self) -> dict[str, object]:
        """What this process knows without asking."""
        return {
            "levels": [level.value for level in FallbackLevel if level in self.handlers],
            "kept_here": len(self.cache),
            "untold_here": self.cache.pending,
            "config": self.config.numbers(),
            **self.resource.statistics("fallback"),
        }
