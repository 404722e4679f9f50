"""The core of the bulkhead, written once for sync and asyncio: who may go inside, who waits, and who leaves."""

from __future__ import annotations

import itertools
import logging
import math
import secrets
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Protocol

from shared_resilience.backends import Backend, OnOutage
from shared_resilience.backends.parties import Parties
from shared_resilience.backends.process import Component, Process
from shared_resilience.bulkhead_commands import BulkheadCommands, Call, Entry, Left
from shared_resilience.bulkhead_config import BulkheadConfig
from shared_resilience.commands import Command
from shared_resilience.deadline import remaining
from shared_resilience.errors import BulkheadFullError, DeadlineExceeded, ResilienceError
from shared_resilience.holdings import Holdings
from shared_resilience.overrides import BULKHEAD
from shared_resilience.permit import Permit
from shared_resilience.priority import PriorityLevel

logger = logging.getLogger("shared_resilience")


class Way(Protocol):
    """The way in: the command that asks for a slot, and perhaps for more in the same trip."""

    on_outage: OnOutage
    waits_apart: bool
    """Whether the time for which limits are waited for is beside that for the slot."""

    def command(self, call: Call) -> Command[Entry]:
        """The command that asks for `call`."""

    def limited(self, entry: Entry, left: float) -> float:
        """In how many seconds a limit that refused may be asked again. Raises if that is more than is `left`."""

    def passed(self, entry: Entry) -> None:
        """Takes note that the call goes in."""


class SlotAlone:
    """The way in of a bulkhead without limits."""

    waits_apart = False

    def __init__(self, commands: BulkheadCommands, on_outage: OnOutage) -> None:
        self.command = commands.enter
        self.on_outage = on_outage

    def limited(self, entry: Entry, left: float) -> float:
        raise AssertionError("there is no limit here")

    def passed(self, entry: Entry) -> None:
        """There is no limit here."""


class Admission(Component):
    """The bulkhead of one resource in one process."""

    def __init__(self, name: str, config: BulkheadConfig, process: Process, on_outage: OnOutage) -> None:
        self.name = name
        self.config = config
        self.on_outage = on_outage
        self.resource = process.heartbeat.resource(name)
        self.resource.configure({BULKHEAD + field: number for field, number in config.numbers().items()})
        self.commands = BulkheadCommands(self.resource.keys, config, self._held_by_redis)
        self._alone = SlotAlone(self.commands, on_outage)
        self.events = process.events
        self._process = process
        self._lease_ms = round(config.lease * 1000)
        self._monotonic = process.clock.monotonic
        self._era = 0
        self.after_fork()

    def after_fork(self) -> None:
        self._era += 1
        self._parties = Parties(self._new_holdings)
        self._stem, self._numbers = secrets.token_hex(6), itertools.count()

    # Going inside.

    def enter(
        self, backend: Backend, priority: PriorityLevel, timeout: float, way: Way | None = None
    ) -> Coroutine[Any, Any, Permit]:
        """A permit, waited for. Raises `BulkheadFullError`, and what a limit raises on the `way`."""
        token = f"{self._process.heartbeat.worker_id}:{self._stem}{next(self._numbers):x}:{self._lease_ms}"
        return Visit(self, backend, way or self._alone, priority, token, timeout).enter()

    async def withdraw(self, backend: Backend, token: str) -> None:
        try:
            left = await backend.run(self.commands.leave(token), self.resource)
        except ResilienceError as error:
            logger.warning("a place in the bulkhead %r could not be given back: %s", self.name, error)
        else:
            if left.told:
                self.tell(left.told)

    def holdings_of(self, backend: Backend) -> Holdings:
        """What callers of `backend` hold here."""
        return self._parties.of(backend)

    def _new_holdings(self, backend: Backend) -> Holdings:
        return Holdings(backend, self.resource, self.commands, self.config.lease, self._lost)

    def tell(self, token: str) -> None:
        """Wakes a waiter, should it be of this process; others hear of it by Redis."""
        any(holdings.told(token) for holdings in self._parties)

    def _held_by_redis(self) -> int:
        held = [permit for holdings in self._parties for permit in holdings.held.copy().values()]
        return sum(permit.source == "redis" for permit in held)

    def permit(self, token: str, entry: Entry, asked_at: float) -> Permit:
        """The permit that `entry` gives to who asked at `asked_at`."""
        permit = Permit(token, entry.fencing, entry.source, self._era, asked_at, self._monotonic)
        permit.decision = entry.answer.decision if entry.answer is not None else None
        if entry.source == "redis":
            permit.safe_until = asked_at + self.config.lease
        return permit

    # Leaving.

    async def leave(self, backend: Backend, permit: Permit) -> None:
        """Gives the slot back. What goes wrong is not its caller's affair, whose call has run."""
        if permit.era != self._era or not permit.token:
            return  # the parent of this forked process holds it; or there is none, in shadow mode
        holdings = self.holdings_of(backend)
        try:
            holdings.let_go(permit.token)
            leave = self.commands.leave(permit.token)
            left = await backend.run(leave, self.resource)
        except ResilienceError as error:
            logger.warning("a slot of the bulkhead %r could not be given back: %s", self.name, error)
            holdings.give_up(permit.token)
            return
        except BaseException:
            holdings.give_up(permit.token)
            raise
        if left.told:
            self.tell(left.told)
        if left.source != permit.source:
            self._leave_the_other(leave, permit, holdings)
        elif permit.doubtful and left.source == "local":
            holdings.give_up(permit.token)

    def _leave_the_other(self, leave: Command[Left], permit: Permit, holdings: Holdings) -> None:
        """Redis was lost or found while the call was inside: it left where it was not, now it leaves where it was."""
        if permit.source == "redis":
            holdings.give_up(permit.token)
            holdings.missed()
        else:
            left = leave.operation.decode(self._process.local.execute(leave), "local")
            if left.told:
                self.tell(left.told)

    def _lost(self, permit: Permit) -> None:
        self.resource.count("bulkhead.lost")
        self._process.events.emit("bulkhead.lost", self.name, token=permit.token)

    # For operators.

    async def stats(self, backend: Backend) -> dict[str, object]:
        """How many are inside and wait, as of now."""
        kept = await backend.run(self.commands.upkeep(()), self.resource)
        if kept.told:
            self.tell(kept.told)
        return {"inside": kept.inside, "waiting": kept.waiting, **self.known()}

    def known(self) -> dict[str, object]:
        """What this process knows without asking."""
        own = [holdings.held for holdings in self._parties]
        return {
            "inside_here": sum(map(len, own)),
            "config": self.config.numbers(),
            "overrides": {f: text for f, text in self.resource.overrides.items() if f.startswith(BULKHEAD)},
            **self.resource.statistics("bulkhead"),
        }


class Visit:
    """One call that wants a slot."""

    def __init__(
        self, core: Admission, backend: Backend, way: Way, priority: PriorityLevel, token: str, timeout: float
    ) -> None:
        self._core, self._backend, self._way = core, backend, way
        self._priority, self._token, self._timeout = priority, token, timeout
        self._until_deadline = remaining()
        self._may_hold = False
        """Whether the store may hold something in the name of this call."""
        self._doubtful = False
        """Whether Redis may hold something, since its last answer was lost."""
        self._waited = False

    async def enter(self) -> Permit:
        """The permit. Raises `BulkheadFullError`, and `DeadlineExceeded` if it is the deadline that ends the wait."""
        core, backend = self._core, self._backend
        if self._until_deadline <= 0:
            raise DeadlineExceeded(core.name, 0.0)
        try:
            return await self._ask_and_wait()
        except BaseException:
            if self._may_hold:
                with suppress(RuntimeError):  # its event loop is gone, or no thread can be started
                    core.holdings_of(backend).give_up(self._token)
                backend.detach(core.withdraw(backend, self._token))
            raise

    async def _ask_and_wait(self) -> Permit:
        core, backend = self._core, self._backend
        may_wait = self._timeout > 0 and not core.config.shadow
        began = asked_at = backend.monotonic()
        end, place = began + min(self._timeout, self._until_deadline), None
        while True:
            command = self._way.command(Call(self._token, self._priority, may_wait, place))
            self._may_hold, sent = True, backend.source() == "redis"
            entry = await backend.run(command, core.resource, self._way.on_outage)
            if entry.told:
                core.tell(entry.told)
            self._doubtful = entry.source == "local" and (sent or self._doubtful)
            if entry.state == "inside":
                return self._inside(entry, asked_at)
            self._may_hold = entry.state == "waiting" or self._doubtful
            place = entry.place or None
            left = end - backend.monotonic()
            if entry.state == "limited":
                seconds = self._way.limited(entry, left)
                await backend.sleep(seconds)
                if self._way.waits_apart:
                    end = min(end + seconds, began + self._until_deadline)
            elif entry.state == "full":
                return await self._refused(entry, began)
            elif not await self._wait(left):
                return await self._refused(entry, began, late=self._until_deadline < self._timeout)
            asked_at = backend.monotonic()

    async def _wait(self, seconds: float) -> bool:
        """Waits in the queue; whether its turn may have come."""
        self._waited = True
        holdings, ticket = self._core.holdings_of(self._backend), self._backend.ticket()
        holdings.wait_for(self._token, ticket)
        try:
            return seconds > 0 and await ticket.wait(seconds)
        finally:
            holdings.wait_no_more(self._token)

    def _inside(self, entry: Entry, asked_at: float) -> Permit:
        core = self._core
        self._way.passed(entry)
        permit = core.permit(self._token, entry, asked_at)
        permit.doubtful = self._doubtful
        core.resource.count("bulkhead.entered")
        if self._waited:
            core.resource.count("bulkhead.waited")
        if entry.source == "local":
            core.resource.count("bulkhead.decided_locally")
        core.holdings_of(self._backend).hold(permit)
        return permit

    async def _refused(self, entry: Entry, began: float, late: bool = False) -> Permit:
        core = self._core
        if self._may_hold:
            await core.withdraw(self._backend, self._token)
            if self._doubtful:
                core.holdings_of(self._backend).give_up(self._token)
            self._may_hold = False
        waited = self._backend.monotonic() - began
        outcome = "bulkhead.shadow_refused" if core.config.shadow else "bulkhead.refused"
        core.resource.count(outcome)
        core.events.emit(outcome, core.name, priority=self._priority, inside=entry.inside, waited=waited)
        if core.config.shadow:
            return core.permit("", entry, math.inf)
        if late:
            raise DeadlineExceeded(core.name, waited)
        raise BulkheadFullError(core.name, entry.inside, waited)
