"""Fallback chains: when the first cannot answer, the next is asked, down to the last good value or a default."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, cast

from shared_resilience.arguments import Args, Kwargs
from shared_resilience.backends import Backends, step
from shared_resilience.backends.bounded import OverdueError, awaited, on_a_thread
from shared_resilience.deadline import Deadline
from shared_resilience.fallback import COUNTERS, LIVE, Fallback, FallbackResult
from shared_resilience.fallback_config import FallbackLevel
from shared_resilience.functions import decorated, mirrors

P = ParamSpec("P")
T = TypeVar("T")
INSTEAD = "call execute() inside it instead"
PRIMARY = FallbackLevel.PRIMARY
AFTER_PRIMARY = tuple(FallbackLevel)[1:]


def decorate(core: Fallback, backends: Backends, function: Callable[P, T]) -> Callable[P, T]:
    """`function` as the primary of the chain, in its own form."""
    blocking, suspending = FallbackChain(core, backends), AsyncFallbackChain(core, backends)

    def value(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return blocking.answer(function, *args, **kwargs).value

    async def async_value(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return (await suspending.answer(function, *args, **kwargs)).value

    return decorated(function, value, async_value, INSTEAD)


def _late(level: FallbackLevel, core: Fallback, overdue: OverdueError) -> TimeoutError:
    late = TimeoutError(f"{level.value} of {core.name!r} has not answered within {core.timeout_of(level)} s")
    late.straggler = overdue.straggler  # type: ignore[attr-defined]  # for `straggler_of`
    return late


class FallbackChain:
    """Levels that are asked one after the other; made by `ResilienceService.get_or_create_fallback_chain`.

    The order is that of `FallbackLevel`: handlers for the levels are registered; the two caches are there without one,
    and answer with the last good value of the same arguments: what primary or replica have returned, to any process of
    the fleet or to this one. Levels that have no handler are passed over.

    As a decorator it makes the function the primary, and returns the plain value.
    """

    def __init__(self, core: Fallback, backends: Backends) -> None:
        self._core = core
        self._backend = backends.blocking
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {[level.value for level in self._core.handlers]})"

    @property
    def name(self) -> str:
        """The name of the chain."""
        return self._core.name

    def register_handler(self, level: FallbackLevel, handler: Callable[..., object]) -> None:
        """Has `handler` answer for `level`; it gets the arguments of the call.

        Raises `ValueError` if the level has another handler, or for a wrong argument.
        """
        self._core.register(level, handler)

    def execute(self, *args: Any, **kwargs: Any) -> FallbackResult[Any]:
        """Asks the levels, with these arguments, until one answers.

        Raises `FallbackExhaustedError` with all causes if none does, what does not fall through as it is, `LookupError`
        if there is no primary, and `TypeError` if a handler is a coroutine function: those are for `service.aio`.
        """
        return self.answer(self._core.primary, *args, **kwargs)

    def answer(self, primary: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> FallbackResult[T]:
        """The same with `primary` for the first level."""
        core = self._core
        if core.begin():
            step(self._backend.keep_up(core.resource))
        try:
            value = self._call(PRIMARY, primary, args, kwargs)
        except Exception as error:
            if not core.config.lets_through(error):
                raise
            return self._fall(error, args, kwargs)
        if core.passed(args, kwargs, value):
            step(core.cache.tell(self._backend))
        return FallbackResult(value, PRIMARY, False, 0.0)

    def get_stats(self) -> dict[str, object]:
        """What this process and, as of its last heartbeat, the fleet have counted, and the configuration."""
        return self._core.known()

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return decorate(self._core, self._backends, function)

    def _call(self, level: FallbackLevel, handler: Callable[..., T], args: Args, kwargs: Kwargs) -> T:
        seconds = self._core.timeout_of(level)
        if seconds is None:
            value = handler(*args, **kwargs)
        else:
            with Deadline(seconds, self._core.monotonic):
                try:
                    value = on_a_thread(partial(handler, *args, **kwargs), seconds)
                except OverdueError as overdue:
                    raise _late(level, self._core, overdue) from None
        if value.__class__ is CoroutineType:
            cast("CoroutineType[Any, Any, Any]", value).close()
            raise TypeError(f"{handler!r} is a coroutine function: use the chain of service.aio for it")
        return value

    def _fall(self, error: Exception, args: Args, kwargs: Kwargs) -> FallbackResult[Any]:
        core, causes, failed = self._core, [error], [PRIMARY]
        core.failed(PRIMARY, error)
        for level in AFTER_PRIMARY:
            try:
                result = self._ask(level, args, kwargs)
            except Exception as another:
                if not core.config.lets_through(another):
                    raise
                core.failed(level, another)
                causes.append(another)
                failed.append(level)
            else:
                if result is not None:
                    return result
        raise core.exhausted(causes, failed) from error

    def _ask(self, level: FallbackLevel, args: Args, kwargs: Kwargs) -> FallbackResult[Any] | None:
        core, handler = self._core, self._core.handlers.get(level)
        if handler is None:
            return core.cached(level, step(core.look(self._backend, level, args, kwargs)))
        value = self._call(level, handler, args, kwargs)
        if level not in LIVE:
            core.resource.count(COUNTERS[level])
        elif core.passed(args, kwargs, value, level):
            step(core.cache.tell(self._backend))
        return core.answered(level, value)


@mirrors(FallbackChain)
class AsyncFallbackChain:
    def __init__(self, core: Fallback, backends: Backends) -> None:
        self._core = core
        self._backend = backends.suspending
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {[level.value for level in self._core.handlers]})"

    @property
    def name(self) -> str:
        return self._core.name

    def register_handler(self, level: FallbackLevel, handler: Callable[..., object]) -> None:
        self._core.register(level, handler)

    async def execute(self, *args: Any, **kwargs: Any) -> FallbackResult[Any]:
        return await self.answer(self._core.primary, *args, **kwargs)

    async def answer(
        self, primary: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> FallbackResult[T]:
        core = self._core
        if core.begin():
            await self._backend.keep_up(core.resource)
        try:
            value = await self._call(PRIMARY, primary, args, kwargs)
        except Exception as error:
            if not core.config.lets_through(error):
                raise
            return await self._fall(error, args, kwargs)
        if core.passed(args, kwargs, value):
            await core.cache.tell(self._backend)
        return FallbackResult(value, PRIMARY, False, 0.0)

    async def get_stats(self) -> dict[str, object]:
        return self._core.known()

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return decorate(self._core, self._backends, function)

    async def _call(self, level: FallbackLevel, handler: Callable[..., Any], args: Args, kwargs: Kwargs) -> Any:
        answer, seconds = handler(*args, **kwargs), self._core.timeout_of(level)
        if not isawaitable(answer):
            return answer
        if seconds is None:
            return await answer
        with Deadline(seconds, self._core.monotonic):
            try:
                return await awaited(answer, seconds)
            except OverdueError as overdue:
                raise _late(level, self._core, overdue) from None

    async def _fall(self, error: Exception, args: Args, kwargs: Kwargs) -> FallbackResult[Any]:
        core, causes, failed = self._core, [error], [PRIMARY]
        core.failed(PRIMARY, error)
        for level in AFTER_PRIMARY:
            try:
                result = await self._ask(level, args, kwargs)
            except Exception as another:
                if not core.config.lets_through(another):
                    raise
                core.failed(level, another)
                causes.append(another)
                failed.append(level)
            else:
                if result is not None:
                    return result
        raise core.exhausted(causes, failed) from error

    async def _ask(self, level: FallbackLevel, args: Args, kwargs: Kwargs) -> FallbackResult[Any] | None:
        core, handler = self._core, self._core.handlers.get(level)
        if handler is None:
            return core.cached(level, await core.look(self._backend, level, args, kwargs))
        value = await self._call(level, handler, args, kwargs)
        if level not in LIVE:
            core.resource.count(COUNTERS[level])
        elif core.passed(args, kwargs, value, level):
            await core.cache.tell(self._backend)
        return core.answered(level, value)
