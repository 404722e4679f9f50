"""Reservations: a cost that is estimated before the call and settled after it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from shared_resilience import validation
from shared_resilience.backends import Backend, step
from shared_resilience.decision import Decision
from shared_resilience.functions import mirrors
from shared_resilience.limit_commands import Answer
from shared_resilience.limiter import Limiter
from shared_resilience.limiter_keys import Key, Texts
from shared_resilience.priority import PriorityLevel


@dataclass(frozen=True, slots=True)
class Reserved:
    """What a reservation has taken: for which keys, how much, when, and by whose decision. Nothing if not `taken`."""

    core: Limiter
    texts: Texts
    cost: int
    answer: Answer
    taken: bool

    async def settle(self, backend: Backend, actual: int) -> None:
        """Takes or gives back the difference to `actual`; only where the reservation was made is something given."""
        if not self.taken or actual == self.cost:
            return
        core, keys, told = self.core, self.core.keys.of(self.texts), self.core.told()
        if actual > self.cost:
            more = actual - self.cost
            charged = await core.run(backend, core.commands.charge(keys, more, told))
            core.debts.owe(charged._replace(decision=charged.decision._replace(allowed=True)), self.texts, more)
        elif backend.source() == self.answer.decision.source:
            since_us = max(0, self.answer.decided_us)  # of what came out of a lease it is not known
            await core.run(backend, core.commands.give(keys, self.cost - actual, since_us, told))
            core.refusals.forget(self.texts)

    @classmethod
    async def of(
        cls, core: Limiter, backend: Backend, key: Key, cost: int, timeout: float, priority: PriorityLevel
    ) -> Reserved:
        """Takes `cost`, waiting for at most `timeout` seconds. Raises `RateLimitExceeded`."""
        texts, held_back = core.keys.texts(key), core.held_back(priority)
        answer = await core.obtain(backend, texts, cost, validation.timeout("timeout", timeout), held_back)
        decision = answer.decision
        charged = decision.source == "redis" or core.config.on_outage == "local"
        return cls(core, texts, cost, answer, charged and decision.limited_by is None)


class _Once:
    """A reservation that is settled or cancelled at most once."""

    def __init__(self, reserved: Reserved, backend: Backend) -> None:
        self._reserved = reserved
        self._backend = backend
        self._lock = threading.Lock()
        self._open = True

    def __repr__(self) -> str:
        state = "open" if self._open else "settled"
        return f"{type(self).__name__}({self._reserved.core.name!r}, cost={self._reserved.cost}, {state})"

    @property
    def decision(self) -> Decision:
        """The decision by which `cost` was taken."""
        return self._reserved.answer.decision

    @property
    def cost(self) -> int:
        """What was reserved."""
        return self._reserved.cost

    def _close(self) -> None:
        with self._lock:
            if not self._open:
                raise RuntimeError(f"{self!r} has been settled or cancelled before")
            self._open = False


class Reservation(_Once):
    """What `RateLimiter.reserve` has taken, until `settle` or `cancel`; each may be called once, together.

    As a context manager it is cancelled by an exception; without one, and without `settle`, the estimate stands.
    """

    def settle(self, actual: int) -> None:
        """Takes or gives back the difference to `actual`, an integer from 0 to 10⁹.

        What exceeds the estimate is taken even where there is no room, which leaves debt: later calls wait for it.
        Raises `RuntimeError` the second time, `ValueError` for another `actual`.
        """
        validation.count("actual", actual, low=0)
        self._close()
        step(self._reserved.settle(self._backend, actual))

    def cancel(self) -> None:
        """Gives everything back. Raises `RuntimeError` the second time."""
        self._close()
        step(self._reserved.settle(self._backend, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._open:
            self.cancel()


@mirrors(Reservation)
class AsyncReservation(_Once):
    async def settle(self, actual: int) -> None:
        validation.count("actual", actual, low=0)
        self._close()
        await self._reserved.settle(self._backend, actual)

    async def cancel(self) -> None:
        self._close()
        await self._reserved.settle(self._backend, 0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._open:
            await self.cancel()
