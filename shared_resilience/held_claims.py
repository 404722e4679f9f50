"""The claims that calls of one party hold, and those that they wait for, as its attendant looks after them."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

from shared_resilience.backends import Backend, Ticket
from shared_resilience.claim import Claim
from shared_resilience.commands import Command
from shared_resilience.errors import ResilienceError
from shared_resilience.heartbeat import Resource
from shared_resilience.integers import MILLION
from shared_resilience.records import RENEW, Kept

logger = logging.getLogger("shared_resilience")

TURN = 1.0
"""Seconds after which it is tried again to tell Redis what it could not be told."""

LISTENS_FOR = 5.0
"""Seconds for which an ear stays open after the last waiter."""

PAUSE = 0.1
"""Seconds between two looks at what is due."""

AT_ONCE = 250
"""Records in one command."""

MOST_UNTOLD = 10_000
"""Ends of calls that are kept until Redis can be told, the oldest out first."""


class HeldClaims:
    """Renews the claims of running calls when a third of their lease is over, and wakes those who wait for others.

    Claims are held weakly: nobody can run any more under one that is gone.

    `untold` are commands that Redis has not heard of, each with the time until which it is worth to try. `lost` is
    called with each claim that another has taken over.
    """

    def __init__(
        self, backend: Backend, resource: Resource, lease: float, ttl: float, lost: Callable[[Claim], None]
    ) -> None:
        self.channel = resource.keys.done
        self.held: WeakValueDictionary[str, Claim] = WeakValueDictionary()
        self.untold: dict[str, tuple[Command[Kept], float]] = {}
        self._tickets: dict[str, list[Ticket]] = {}
        self._unclaimed: deque[str] = deque(maxlen=AT_ONCE)
        self._resource = resource
        self._lease, self._third = lease, lease / 3
        self._ttl, self._ttl_us = ttl, math.ceil(ttl * MILLION)
        self._lost = lost
        self._monotonic = backend.monotonic
        self._looked = self._waited = -math.inf
        self._turn = math.inf
        self._lock = threading.Lock()
        self._attendant = backend.attendant()
        self._attendant.take_on(self)

    # For callers.

    def hold(self, claim: Claim) -> None:
        """From now on renews `claim`."""
        self.held[claim.token] = claim
        self._attendant.look_by(claim.renewed + self._third)

    def let_go(self, claim: Claim) -> None:
        """Renews it no more."""
        self.held.pop(claim.token, None)

    def tell_later(self, token: str, command: Command[Kept]) -> None:
        """Has Redis told as soon as it can be."""
        with self._lock:
            self.untold[token] = command, self._monotonic() + self._ttl
            if len(self.untold) > MOST_UNTOLD:
                del self.untold[next(iter(self.untold))]
                logger.error("the end of a call of %r is forgotten: Redis was away for too long", self._resource.name)
            turn = self._turn = min(self._turn, self._monotonic() + TURN)
        self._attendant.look_by(turn)

    def wait_for(self, record: str, ticket: Ticket) -> None:
        """Wakes `ticket` when word comes that the call that has `record` is over."""
        with self._lock:
            first = not self._tickets
            self._tickets.setdefault(record, []).append(ticket)
            told = record in self._unclaimed
            if told:
                self._unclaimed.remove(record)
        self._waited = self._monotonic()
        if told:
            ticket.wake()
        if first:
            self._attendant.look_by(-math.inf)  # it has to listen

    def wait_no_more(self, record: str, ticket: Ticket) -> None:
        with self._lock:
            waiting = self._tickets.get(record, [])
            if ticket in waiting:
                waiting.remove(ticket)
            if not waiting:
                self._tickets.pop(record, None)

    def told(self, token: str) -> bool:
        """Word has come that the call that has a record, told by the end of its key, is over; whether one waits."""
        with self._lock:
            waiting = self._tickets.get(token, []).copy()
            if not waiting and token not in self._unclaimed:
                self._unclaimed.append(token)  # its reply that it has to wait may not be here yet
        for ticket in waiting:
            ticket.wake()
        return bool(waiting)

    def are_gone(self) -> bool:
        """Whether the event loop of these callers is."""
        return self._attendant.is_gone()

    # For the attendant.

    def due(self) -> float:
        renewals = min((claim.renewed for claim in self.held.copy().values()), default=math.inf) + self._third
        return max(min(self._turn, renewals), self._looked + PAUSE)

    def listens(self) -> bool:
        return bool(self._tickets) or self._monotonic() < self._waited + LISTENS_FOR

    def missed(self) -> None:
        """Word may have been lost: all who wait ask again."""
        with self._lock:
            waiting = [ticket for tickets in self._tickets.values() for ticket in tickets]
        for ticket in waiting:
            ticket.wake()

    async def keep_up(self, backend: Backend) -> None:
        now = self._looked = self._monotonic()
        self._turn = math.inf
        try:
            await self._tell(backend, now)
            due = [claim for claim in self.held.copy().values() if self._is_due(claim, now, backend)]
            for start in range(0, len(due), AT_ONCE):
                await self._renew(backend, due[start : start + AT_ONCE], now)
        finally:
            if self.untold or any(claim.source == "local" for claim in self.held.copy().values()):
                with self._lock:
                    self._turn = min(self._turn, now + TURN)

    async def _tell(self, backend: Backend, now: float) -> None:
        for token, (command, until) in self.untold.copy().items():
            if now >= until:
                self.untold.pop(token, None)
            elif backend.source() == "redis":
                try:
                    kept = await backend.run(command, self._resource, "raise")
                except ResilienceError:
                    return
                if kept.source == "redis":
                    self.untold.pop(token, None)

    def _is_due(self, claim: Claim, now: float, backend: Backend) -> bool:
        if claim.source != backend.source():
            return claim.source == "local"  # Redis is back, and is told of it; or it is away, and is asked in a while
        return now >= claim.renewed + self._third / 2

    async def _renew(self, backend: Backend, claims: Sequence[Claim], now: float) -> None:
        told = [item for claim in claims for item in (claim.token, claim.fencing, claim.fingerprint)]
        records = tuple(claim.record for claim in claims)
        kept = await backend.run(Command(RENEW, records, (self._ttl_us, *told)), self._resource)
        for claim, own in zip(claims, kept.own, strict=True):
            if kept.source == "local" and claim.source == "redis":
                continue  # Redis was lost on the way, and is asked again
            if own:
                claim.source, claim.renewed, claim.safe_until = kept.source, now, now + self._lease
            else:
                self.held.pop(claim.token, None)
                self._lost(claim)
