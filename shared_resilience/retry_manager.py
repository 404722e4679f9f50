"""Retries: calls that fail are made again, after growing delays, out of a budget that the whole fleet shares."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import CoroutineType, TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast

from shared_resilience import validation
from shared_resilience.backends import Backend, Backends, step
from shared_resilience.errors import RetryBudgetExhaustedError
from shared_resilience.functions import decorated, mirrors
from shared_resilience.retries import NO_REFUSALS, Attempts, Refusals, Retries
from shared_resilience.retry_budget import Account, Budget

P = ParamSpec("P")
T = TypeVar("T")
INSTEAD = "use `for attempt in attempts():` inside it instead"


def decorate(core: Retries, backends: Backends, function: Callable[P, T]) -> Callable[P, T]:
    """`function` with retries, in its own form."""
    blocking, suspending = RetryManager(core, backends), AsyncRetryManager(core, backends)
    return decorated(function, blocking.execute_with_retry, suspending.execute_with_retry, INSTEAD)


class Attempt:
    """One attempt of a block of code; `number` counts from 1. An exception inside is kept for the next attempt."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.error: Exception | None = None

    def __repr__(self) -> str:
        return f"Attempt({self.number})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self.error = error
            return True
        return False


class _Block:
    """A block of code that is attempted until it passes."""

    def __init__(self, core: Retries, backend: Backend) -> None:
        self._core = core
        self._backend = backend
        self._attempts: Attempts | None = None
        self._last: Attempt | None = None

    async def _next(self) -> Attempt | None:
        """The next attempt; None if the last one has passed. Raises what it has raised if there is no other."""
        if self._attempts is None:
            began = self._core.begin()
            if self._core.is_beat_due(began):
                await self._backend.keep_up(self._core.resource)
            self._attempts = Attempts(self._core, began)
        else:
            error = None if self._last is None else self._last.error
            if error is None:
                return None
            if not await self._attempts.again_after(self._backend, error):
                raise error
        self._last = Attempt(self._attempts.made + 1)
        return self._last


class RetryAttempts(_Block):
    """Attempts for `for attempt in retry.attempts(): with attempt: …`; made by `RetryManager.attempts`."""

    def __iter__(self) -> Iterator[Attempt]:
        while (attempt := step(self._next())) is not None:
            yield attempt


class AsyncRetryAttempts(_Block):
    """Attempts for `async for attempt in retry.attempts(): with attempt: …`; made by `AsyncRetryManager.attempts`."""

    async def __aiter__(self) -> AsyncIterator[Attempt]:
        while (attempt := await self._next()) is not None:
            yield attempt


def _stats(account: Account) -> dict[str, object]:
    rate = account.retries / account.requests if account.requests else 0.0
    return {
        "requests": account.requests,
        "retries": account.retries,
        "rate": rate,
        "balance": account.balance,
        "refused": account.refused,
        "source": account.source,
    }


class RetryBudget:
    """The budget out of which the fleet retries; `RetryManager.retry_budget`."""

    def __init__(self, name: str, budget: Budget, backends: Backends) -> None:
        self._name = name
        self._budget = budget
        self._backend = backends.blocking

    def get_stats(self) -> dict[str, object]:
        """Requests, retries, their rate, the balance, and how many retries were refused, of the fleet; as of now.

        Of the requests of other processes those of the last second may be missing.
        """
        return _stats(step(self._budget.look(self._backend)))

    def withdraw(self) -> None:
        """Takes one retry out, for a retry made by hand. Raises `RetryBudgetExhaustedError` if there is none."""
        account = step(self._budget.withdraw(self._backend))
        if not account.taken:
            raise RetryBudgetExhaustedError(self._name, account.balance)

    def deposit(self, requests: int = 1) -> None:
        """Pays in for `requests` (1 to 10⁹) calls made by hand. Raises `ValueError` for another number."""
        step(self._budget.deposit(self._backend, validation.count("requests", requests)))


@mirrors(RetryBudget)
class AsyncRetryBudget:
    def __init__(self, name: str, budget: Budget, backends: Backends) -> None:
        self._name = name
        self._budget = budget
        self._backend = backends.suspending

    async def get_stats(self) -> dict[str, object]:
        return _stats(await self._budget.look(self._backend))

    async def withdraw(self) -> None:
        account = await self._budget.withdraw(self._backend)
        if not account.taken:
            raise RetryBudgetExhaustedError(self._name, account.balance)

    async def deposit(self, requests: int = 1) -> None:
        await self._budget.deposit(self._backend, validation.count("requests", requests))


class RetryManager:
    """Retries for one resource; made by `ResilienceService.get_or_create_retry_manager`.

    A call that fails is made again after a delay, if `RetryConfig` says that its error is worth it, if the delay ends
    before the deadline around the call, and if the fleet's budget has a retry left. Else its error is raised as it
    is, with the history in its notes. The first attempt costs no trip, a retry costs one.

    As a decorator it serves `def` and `async def`; generator functions raise `TypeError`: use `attempts()` inside them.
    """

    def __init__(self, core: Retries, backends: Backends, own_refusals: Refusals = NO_REFUSALS) -> None:
        self._core = core
        self._backend = backends.blocking
        self._backends = backends
        self._own_refusals = own_refusals

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, max_retries={self._core.config.max_retries})"

    @property
    def name(self) -> str:
        """The name of the resource."""
        return self._core.name

    @property
    def retry_budget(self) -> RetryBudget | None:
        """The budget of the fleet; None if there is none."""
        budget = self._core.budget
        return None if budget is None else RetryBudget(self._core.name, budget, self._backends)

    def execute_with_retry(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `function` until it passes, and returns what it returns or raises what it raised last.

        Raises `DeadlineExceeded` if the deadline has passed before the first attempt, `TypeError` for a coroutine
        function: that is for `service.aio`.
        """
        core, attempts = self._core, None
        began = core.begin()
        if core.is_beat_due(began):
            step(self._backend.keep_up(core.resource))
        while True:
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                attempts = attempts or Attempts(core, began, self._own_refusals)
                if not step(attempts.again_after(self._backend, error)):
                    raise
                continue
            if result.__class__ is CoroutineType:
                cast("CoroutineType[Any, Any, Any]", result).close()
                raise TypeError(f"{function!r} is a coroutine function: use the retries of service.aio for it")
            if not core.is_unwanted(result):
                return result
            attempts = attempts or Attempts(core, began, self._own_refusals)
            if not step(attempts.again_with(self._backend, result)):
                return result

    def attempts(self) -> RetryAttempts:
        """For blocks of code: `for attempt in retry.attempts(): with attempt: …` runs the block until it passes."""
        return RetryAttempts(self._core, self._backend)

    def get_stats(self) -> dict[str, object]:
        """What this process and, as of its last heartbeat, the fleet have counted, and the configuration."""
        return self._core.known()

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return decorate(self._core, self._backends, function)


@mirrors(RetryManager)
class AsyncRetryManager:
    def __init__(self, core: Retries, backends: Backends, own_refusals: Refusals = NO_REFUSALS) -> None:
        self._core = core
        self._backend = backends.suspending
        self._backends = backends
        self._own_refusals = own_refusals

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, max_retries={self._core.config.max_retries})"

    @property
    def name(self) -> str:
        return self._core.name

    @property
    def retry_budget(self) -> AsyncRetryBudget | None:
        budget = self._core.budget
        return None if budget is None else AsyncRetryBudget(self._core.name, budget, self._backends)

    async def execute_with_retry(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        core, attempts = self._core, None
        began = core.begin()
        if core.is_beat_due(began):
            await self._backend.keep_up(core.resource)
        while True:
            try:
                result = await function(*args, **kwargs)
            except Exception as error:
                attempts = attempts or Attempts(core, began, self._own_refusals)
                if not await attempts.again_after(self._backend, error):
                    raise
                continue
            if not core.is_unwanted(result):
                return result
            attempts = attempts or Attempts(core, began, self._own_refusals)
            if not await attempts.again_with(self._backend, result):
                return result

    def attempts(self) -> AsyncRetryAttempts:
        return AsyncRetryAttempts(self._core, self._backend)

    async def get_stats(self) -> dict[str, object]:
        return self._core.known()

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return decorate(self._core, self._backends, function)
