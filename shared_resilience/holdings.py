"""What calls of one process hold of a bulkhead and wait for, as its attendant looks after it."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from shared_resilience.backends import Backend, Ticket
from shared_resilience.bulkhead_commands import BulkheadCommands, Kept
from shared_resilience.heartbeat import Resource

if TYPE_CHECKING:
    from shared_resilience.permit import Permit

TURN = 1.0
"""Seconds after which a waiter gives a sign of life; scripts think it dead after two."""

LISTENS_FOR = 5.0
"""Seconds for which an ear stays open after the last waiter."""

PAUSE = 0.1
"""Seconds between two looks at what is due."""

AT_ONCE = 250
"""Tokens in one command."""

Pair = tuple[str, str]


class Holdings:
    """The slots that callers of one backend hold, those that they wait for, and those that nobody has told of yet.

    Slots are renewed when a third of their lease is over, together with those that soon will be. What cannot wait so
    long has a turn every second: signs of life of waiters, what was given up, and slots of which Redis is to be told as
    soon as it is back. `lost` is called with each permit whose slot was not found again.
    """

    def __init__(
        self,
        backend: Backend,
        resource: Resource,
        commands: BulkheadCommands,
        lease: float,
        lost: Callable[[Permit], None],
    ) -> None:
        self.channel = resource.keys.wake
        self.held: dict[str, Permit] = {}
        self._waiting: dict[str, Ticket] = {}
        self._given_up: dict[str, float] = {}
        self._unclaimed: deque[str] = deque(maxlen=AT_ONCE)
        self._resource, self._commands = resource, commands
        self._lease, self._third = lease, lease / 3
        self._lost = lost
        self._monotonic = backend.monotonic
        self._looked = self._waited = -math.inf
        self._turn = math.inf
        self._lock = threading.Lock()
        self._attendant = backend.attendant()
        self._attendant.take_on(self)

    # For callers.

    def hold(self, permit: Permit) -> None:
        """From now on renews the lease of `permit`."""
        self.held[permit.token] = permit
        if permit.source == "local":
            self._take_turn()
        else:
            self._attendant.look_by(permit.renewed + self._third)

    def let_go(self, token: str) -> None:
        self.held.pop(token, None)

    def wait_for(self, token: str, ticket: Ticket) -> None:
        """From now on gives signs of life of the waiter `token`, and wakes it when its turn may have come."""
        with self._lock:
            first, self._waiting[token] = not self._waiting, ticket
            told = token in self._unclaimed
            if told:
                self._unclaimed.remove(token)
        if told:
            ticket.wake()
        self._waited = self._monotonic()
        self._take_turn()
        if first:
            self._attendant.look_by(-math.inf)  # it has to listen

    def wait_no_more(self, token: str) -> None:
        with self._lock:
            self._waiting.pop(token, None)

    def give_up(self, token: str) -> None:
        """Has the store told, until it can have heard it, that nobody wants what `token` may have there."""
        self.let_go(token)
        self.wait_no_more(token)
        self._given_up[token] = self._monotonic() + self._lease
        self._take_turn()

    def told(self, token: str) -> bool:
        """Wakes the waiter `token`, if it is one of these; whether it is."""
        with self._lock:
            ticket = self._waiting.get(token)
            if ticket is None:
                if token not in self._unclaimed:  # a reply and a message may bring the same word
                    self._unclaimed.append(token)  # its reply that it has to wait may not be here yet
                return False
        ticket.wake()
        return True

    def are_gone(self) -> bool:
        """Whether the event loop of these callers is."""
        return self._attendant.is_gone()

    def _take_turn(self) -> None:
        with self._lock:
            turn = self._turn = min(self._turn, self._monotonic() + TURN)
        self._attendant.look_by(turn)

    # For the attendant.

    def due(self) -> float:
        renewals = min((permit.renewed for permit in self.held.copy().values()), default=math.inf) + self._third
        return max(min(self._turn, renewals), self._looked + PAUSE)

    def listens(self) -> bool:
        return bool(self._waiting) or self._monotonic() < self._waited + LISTENS_FOR

    def missed(self) -> None:
        self._turn = self._looked = -math.inf

    async def keep_up(self, backend: Backend) -> None:
        now = self._looked = self._monotonic()
        self._turn = math.inf
        try:
            pairs = list(self._pairs(backend, now))
            for start in range(0, len(pairs), AT_ONCE):
                part = pairs[start : start + AT_ONCE]
                command = self._commands.upkeep([text for pair in part for text in pair])
                kept = await backend.run(command, self._resource)
                self._take_in(kept, part, now)
        finally:
            if self._waiting or self._given_up or any(one.source == "local" for one in self.held.copy().values()):
                with self._lock:
                    self._turn = min(self._turn, now + TURN)

    def _pairs(self, backend: Backend, now: float) -> Iterable[Pair]:
        source = backend.source()
        for token, permit in self.held.copy().items():
            if permit.source != source:
                if source == "redis":
                    yield "adopt", token
            elif now >= permit.renewed + self._third / 2:
                yield "renew", token
        for token in self._waiting.copy():
            yield "wait", token
        for token, until in self._given_up.copy().items():
            if now >= until:
                self._given_up.pop(token, None)
            else:
                yield "drop", token

    def _take_in(self, kept: Kept, part: Sequence[Pair], now: float) -> None:
        missing = frozenset(kept.missing)
        for verb, token in part:
            permit = self.held.get(token)
            if verb == "wait":
                if token in missing:
                    self.told(token)  # the queue was lost, or it comes from another: it has to ask again
            elif verb == "drop":
                if kept.source == "redis":
                    self._given_up.pop(token, None)
            elif permit is not None and (verb == "adopt" or permit.source == kept.source):
                self._renewed(permit, kept, token in missing, now)
        if kept.told:
            self.told(kept.told)

    def _renewed(self, permit: Permit, kept: Kept, missing: bool, now: float) -> None:
        if kept.source == "local":
            permit.renewed = now
        elif missing:
            self.held.pop(permit.token, None)
            permit.safe_until = -math.inf
            self._lost(permit)
        else:
            permit.source, permit.renewed, permit.safe_until = "redis", now, now + self._lease
