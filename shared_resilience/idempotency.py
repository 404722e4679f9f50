"""Idempotency: a call that is made under a key is made once by the whole fleet, and its result is replayed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, cast

from shared_resilience import validation
from shared_resilience.backends import Backend, Backends, step
from shared_resilience.backends.bounded import straggler_of
from shared_resilience.claim import Claim
from shared_resilience.claims import Claims
from shared_resilience.functions import decorated, mirrors

P = ParamSpec("P")
T = TypeVar("T")
INSTEAD = "call execute() inside it instead"


def decorate(core: Claims, backends: Backends, function: Callable[P, T], key: Callable[..., object]) -> Callable[P, T]:
    """`function`, made once for each `key`, in its own form."""
    blocking, suspending = Idempotency(core, backends), AsyncIdempotency(core, backends)

    def once(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return blocking.execute(key(*args, **kwargs), function, *args, **kwargs)

    async def async_once(function: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        return await suspending.execute(key(*args, **kwargs), function, *args, **kwargs)

    return decorated(function, once, async_once, INSTEAD)


def text_of(key: object) -> str:
    """A key as a text. Raises `ValueError` for None: a call that has no key must not be taken for another."""
    if key is None:
        raise validation.wrong("key", key, "what tells this call from all others")
    return str(key)


def _let_go_after(error: BaseException, core: Claims, backend: Backend, claim: Claim) -> None:
    """Nobody knows what became of the call: its lease ends by itself, after a thread that still works on it."""
    straggler = straggler_of(error)
    if straggler is None:
        core.abandon(backend, claim)
    else:
        straggler.then(lambda: core.abandon(backend, claim))


class Idempotency:
    """Calls that are made once for each key; made by `ResilienceService.get_or_create_idempotency`.

    The first call under a key claims it and runs; whoever comes meanwhile, in whichever process, waits for its result
    or is refused; whoever comes later gets the same result again. A key is any text, or what `str()` makes one of.

    A call that raises lets its key go, and the next one is made. Of a call that was cancelled or has timed out nobody
    knows whether it did what it was to do: its key is kept until its lease ends. So is that of a process that dies.
    """

    def __init__(self, core: Claims, backends: Backends) -> None:
        self._core = core
        self._backend = backends.blocking
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, ttl={self._core.config.ttl})"

    @property
    def name(self) -> str:
        """The name of the resource."""
        return self._core.name

    def execute(self, key: object, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `function` unless it was called under `key` before; what it returns, or has returned then.

        Inside, `current_claim()` is the claim. Raises what `function` raises, `IdempotencyConflictError` if the key is
        in use, `EncodingError` for a result that cannot be kept (the call has run, and is not made again), `ValueError`
        for a key that is None, `StoreUnavailableError` while Redis is away, unless configured otherwise, and
        `TypeError` for a coroutine function: that is for `service.aio`.
        """
        core = self._core
        entered = step(core.claim(self._backend, text_of(key), core.fingerprint(function, args, kwargs)))
        if not isinstance(entered, Claim):
            return cast("T", core.replay(entered))
        try:
            with entered:
                result = function(*args, **kwargs)
                if result.__class__ is CoroutineType:
                    cast("CoroutineType[Any, Any, Any]", result).close()
                    raise TypeError(f"{function!r} is a coroutine function: use service.aio for it")
        except BaseException as error:
            if core.is_outcome_known(error):
                step(core.release(self._backend, entered))
            else:
                _let_go_after(error, core, self._backend, entered)
            raise
        codec, text, problem = core.write_down(entered, result)
        step(core.complete(self._backend, entered, codec, text))
        if problem is not None:
            raise problem
        return result

    def idempotent(self, key: Callable[..., object]) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """A decorator that makes a function once for each key, which `key` tells from its arguments."""
        if not callable(key):
            raise validation.wrong("key", key, "a function of the arguments")
        return lambda function: decorate(self._core, self._backends, function, key)

    def get_stats(self) -> dict[str, object]:
        """What this process and, as of its last heartbeat, the fleet have counted, and the configuration."""
        return self._core.known()


@mirrors(Idempotency)
class AsyncIdempotency:
    def __init__(self, core: Claims, backends: Backends) -> None:
        self._core = core
        self._backend = backends.suspending
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, ttl={self._core.config.ttl})"

    @property
    def name(self) -> str:
        return self._core.name

    async def execute(
        self, key: object, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        core, backend = self._core, self._backend
        entered = await core.claim(backend, text_of(key), core.fingerprint(function, args, kwargs))
        if not isinstance(entered, Claim):
            return cast("T", core.replay(entered))
        try:
            with entered:
                result = await function(*args, **kwargs)
        except BaseException as error:
            if core.is_outcome_known(error):
                await backend.finish(core.release(backend, entered))
            else:
                _let_go_after(error, core, backend, entered)
            raise
        codec, text, problem = core.write_down(entered, result)
        await backend.finish(core.complete(backend, entered, codec, text))
        if problem is not None:
            raise problem
        return result

    def idempotent(self, key: Callable[..., object]) -> Callable[[Callable[P, T]], Callable[P, T]]:
        if not callable(key):
            raise validation.wrong("key", key, "a function of the arguments")
        return lambda function: decorate(self._core, self._backends, function, key)

    async def get_stats(self) -> dict[str, object]:
        return self._core.known()
