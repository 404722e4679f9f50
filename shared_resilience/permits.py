"""All permits of a resource together: its limits and a slot of its bulkhead."""

from __future__ import annotations

import math
from typing import cast

from shared_resilience import validation
from shared_resilience.admission import Admission
from shared_resilience.backends import Backend, Backends, OnOutage
from shared_resilience.bulkhead_commands import Call, Entry
from shared_resilience.commands import Command, Mold
from shared_resilience.deadline import remaining
from shared_resilience.functions import mirrors
from shared_resilience.limit_commands import Answer
from shared_resilience.limiter import Limiter
from shared_resilience.limiter_keys import Key, Texts
from shared_resilience.permit import Permit
from shared_resilience.permit_commands import PermitCommands
from shared_resilience.priority import PriorityLevel
from shared_resilience.reservation import Reserved
from shared_resilience.sent_commands import SentCommands
from shared_resilience.slot_guard import AsyncSlotGuard, SlotGuard

Asked = tuple[Texts, int, PriorityLevel, bool]
"""The keys, the cost, the priority, and whether the call may wait."""

STRICTEST_FIRST: tuple[OnOutage, ...] = ("raise", "deny", "local", "allow")


class Composition:
    """The limiter and the bulkhead of one resource in one process, and how they are entered together.

    One trip takes all or nothing. Where that cannot be, the limits come first, and what they have given is given back
    if there is no slot: a leaky bucket, whose drop is waited for without a slot; a limiter with leased tokens, or one
    that is partitioned; either in shadow mode; a bulkhead of this process alone.
    """

    def __init__(self, limiter: Limiter, bulkhead: Admission) -> None:
        self.limiter, self.bulkhead = limiter, bulkhead
        self.commands = PermitCommands(limiter.commands, bulkhead.commands)
        self.sent: SentCommands[Asked, Mold[Entry]] = SentCommands()
        self.on_outage = min(limiter.config.on_outage, bulkhead.on_outage, key=STRICTEST_FIRST.index)
        of_limits = limiter.config
        apart = limiter.commands.may_delay or of_limits.shadow or of_limits.partitioned or of_limits.lease_tokens
        self.together = not (apart or bulkhead.config.shadow or bulkhead.config.local)


class LimitsAndSlot:
    """The way in for one key and cost; `limits_backend` decides what is asked of the limits alone.

    Limits are waited for during at most `wait` seconds beside the time for the slot; None: within that time.
    """

    def __init__(
        self, both: Composition, limits_backend: Backend, key: Key, cost: int, wait: float | None = None
    ) -> None:
        limiter = self._limiter = both.limiter
        limiter.check_cost(cost)
        self._both, self._bulkhead = both, both.bulkhead
        self._backend = limits_backend
        self._key, self._cost = key, cost
        self._texts = limiter.keys.texts(key)
        self._held_back = 0
        self.on_outage = both.on_outage
        self.waits_apart = wait is not None
        self._wait = 0.0 if wait is None else validation.timeout("wait", wait)

    async def enter(self, backend: Backend, priority: PriorityLevel, timeout: float) -> Permit:
        """A permit. Raises `RateLimitExceeded` or `BulkheadFullError`."""
        if not self._both.together:
            return await self._enter_apart(backend, priority, timeout)
        limiter, texts = self._limiter, self._texts
        held_back = self._held_back = limiter.held_back(priority)
        if texts in limiter.refusals:
            now = backend.monotonic()
            known = limiter.refusals.find(texts, self._cost, math.inf, held_back, now, exact=True)
            if known is not None and known.retry_after > self._longest_wait(timeout):
                raise limiter.exceeded(texts, known)
        return await self._bulkhead.enter(backend, priority, timeout, self)

    def command(self, call: Call) -> Command[Entry]:
        """As `Way.command`."""
        both, cost, held_back = self._both, self._cost, self._held_back
        if call.place is not None:
            return both.commands.enter(self._limiter.keys.of(self._texts), cost, held_back, call)
        asked = (self._texts, cost, call.priority, call.may_wait)
        mold = both.sent.get(asked)
        if mold is None:
            mold = both.commands.like(self._limiter.keys.of(self._texts), cost, held_back, call)
            both.sent.keep(asked, mold)
        return mold.cast(call.token)

    def limited(self, entry: Entry, left: float) -> float:
        """As `Way.limited`. Raises `RateLimitExceeded`."""
        decision = cast("Answer", entry.answer).decision
        self._limiter.remember(self._texts, self._cost, math.inf, self._held_back, decision)
        if decision.retry_after > self._longest_wait(left) or decision.retry_after == math.inf:
            raise self._limiter.exceeded(self._texts, decision)
        self._wait -= decision.retry_after
        return decision.retry_after

    def passed(self, entry: Entry) -> None:
        """As `Way.passed`."""
        answer = cast("Answer", entry.answer)
        self._limiter.debts.owe(answer, self._texts, self._cost)
        self._limiter.note(answer.decision, self._texts)

    def _longest_wait(self, left: float) -> float:
        """For how long limits may be waited for, if `left` seconds are left for the slot."""
        return min(self._wait if self.waits_apart else left, remaining())

    async def _enter_apart(self, backend: Backend, priority: PriorityLevel, timeout: float) -> Permit:
        began, wait = backend.monotonic(), self._wait if self.waits_apart else timeout
        reserved = await Reserved.of(self._limiter, self._backend, self._key, self._cost, wait, priority)
        try:
            waited = 0.0 if self.waits_apart else backend.monotonic() - began
            permit = await self._bulkhead.enter(backend, priority, max(0.0, timeout - waited))
        except Exception:
            await reserved.settle(self._backend, 0)
            raise
        except BaseException:
            self._backend.detach(reserved.settle(self._backend, 0))
            raise
        permit.decision = reserved.answer.decision
        return permit


class Permits:
    """The limits and the bulkhead of a resource, entered in one trip; made by `ResilienceService.permits`."""

    def __init__(self, both: Composition, limits: Backends, slots: Backends) -> None:
        self._both = both
        self._limits_backend = limits.blocking
        self._slots_backend = slots.blocking

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._both.limiter.name!r})"

    def guard(
        self,
        key: Key = "",
        cost: int = 1,
        priority: PriorityLevel = PriorityLevel.NORMAL,
        timeout: float | None = None,
        wait: float | None = None,
    ) -> SlotGuard:
        """A context manager that takes `cost` of all limits for `key` and a slot, all or nothing; `as` gives `Permit`.

        Waits for at most `timeout` seconds (None: as the bulkhead is configured) for both; with `wait`, the limits are
        waited for during at most so many seconds, beside the time for the slot. Whoever waits for a slot has been
        charged nothing. Raises `ValueError` for wrong arguments; entering raises `BulkheadFullError`, or
        `RateLimitExceeded` as soon as a limit refuses for longer than there is time.
        """
        way = LimitsAndSlot(self._both, self._limits_backend, key, cost, wait)
        return SlotGuard(way, self._both.bulkhead, self._slots_backend, priority, timeout)


@mirrors(Permits)
class AsyncPermits:
    def __init__(self, both: Composition, limits: Backends, slots: Backends) -> None:
        self._both = both
        self._limits_backend = limits.suspending
        self._slots_backend = slots.suspending

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._both.limiter.name!r})"

    def guard(
        self,
        key: Key = "",
        cost: int = 1,
        priority: PriorityLevel = PriorityLevel.NORMAL,
        timeout: float | None = None,
        wait: float | None = None,
    ) -> AsyncSlotGuard:
        way = LimitsAndSlot(self._both, self._limits_backend, key, cost, wait)
        return AsyncSlotGuard(way, self._both.bulkhead, self._slots_backend, priority, timeout)
