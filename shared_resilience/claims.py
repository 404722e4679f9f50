"""The core of calls that are made once, written once for sync and asyncio: who makes them, who waits, what is kept."""

from __future__ import annotations

import itertools
import logging
import math
import secrets
from collections.abc import Callable
from typing import Any

from shared_resilience import codecs
from shared_resilience.arguments import Args, Kwargs, fingerprint, in_order
from shared_resilience.backends import Backend, OnOutage
from shared_resilience.backends.parties import Parties
from shared_resilience.backends.process import Component, Process
from shared_resilience.claim import Claim
from shared_resilience.commands import Command
from shared_resilience.deadline import remaining
from shared_resilience.errors import (
    Conflict,
    DeadlineExceeded,
    EncodingError,
    IdempotencyConflictError,
    ResilienceError,
)
from shared_resilience.held_claims import HeldClaims
from shared_resilience.idempotency_config import IdempotencyConfig
from shared_resilience.integers import MILLION
from shared_resilience.records import CLAIM, SETTLE, Answer, Kept

logger = logging.getLogger("shared_resilience")

LOOK_AGAIN = 1.0
"""Seconds after which a waiter asks again, should word of the end have been lost."""

UNREADABLE = "!"
"""Begins the codec of a record whose call has run, and whose result could not be written down; the rest says why."""


class Claims(Component):
    """The calls of one resource that are made once, in one process."""

    def __init__(self, name: str, config: IdempotencyConfig, process: Process, on_outage: OnOutage) -> None:
        self.name = name
        self.config = config
        self.on_outage = on_outage
        self.resource = process.heartbeat.resource(name)
        self.resource.configure({f"idempotency.{field}": number for field, number in config.numbers().items()})
        self._process = process
        self._monotonic = process.clock.monotonic
        self._kept_for = max(config.ttl, config.lease)
        self._ttl_us = math.ceil(self._kept_for * MILLION)
        self._lease_ms = round(config.lease * 1000)
        self._era = 0
        self.after_fork()

    def after_fork(self) -> None:
        self._era += 1
        self._parties = Parties(self._new_held)
        self._stem, self._numbers = secrets.token_hex(6), itertools.count()

    def _new_held(self, backend: Backend) -> HeldClaims:
        return HeldClaims(backend, self.resource, self.config.lease, self._kept_for, self._lost)

    def fingerprint(self, function: Callable[..., object], args: Args, kwargs: Kwargs) -> str:
        """What stands for the arguments of a call; runs the user's `fingerprint`."""
        chosen = self.config.fingerprint
        return fingerprint(in_order(function, args, kwargs) if chosen is None else chosen(*args, **kwargs))

    # Before the call.

    async def claim(self, backend: Backend, key: str, its_fingerprint: str) -> Claim | Answer:
        """The claim of a call that is to be made, or the answer that says what it has returned before.

        Raises `IdempotencyConflictError`; `DeadlineExceeded` if it is the deadline that ends the wait.
        """
        if (until_deadline := remaining()) <= 0:
            raise DeadlineExceeded(self.name, 0.0)
        record, began = self.resource.keys.idempotency(key), backend.monotonic()
        token = f"{self._process.heartbeat.worker_id}:{self._stem}{next(self._numbers):x}:{self._lease_ms}"
        patience = math.inf if self.config.wait_timeout is None else self.config.wait_timeout
        end = began + min(patience, until_deadline)
        while True:
            asked_at = backend.monotonic()
            answer = await self._ask(backend, record, token, its_fingerprint)
            if answer.state == "claimed":
                return self._claimed(backend, answer, key, record, its_fingerprint, token, asked_at)
            if answer.state == "done":
                self.resource.count("idempotency.replayed")
                return answer
            left = end - backend.monotonic()
            if answer.state != "running" or self.config.on_conflict == "raise" or left <= 0:
                if left <= 0 and until_deadline < patience:
                    raise DeadlineExceeded(self.name, backend.monotonic() - began)
                raise self._conflict(key, answer)
            await self._wait(backend, record, min(left, LOOK_AGAIN, answer.microseconds / 1e6))

    async def _ask(self, backend: Backend, record: str, token: str, its_fingerprint: str) -> Answer:
        """Asks for the record. If the answer is lost, Redis is told that nobody wants it, lest nobody holds it."""
        command = Command(CLAIM, (record,), (token, its_fingerprint, self._ttl_us))
        asks_redis = backend.source() == "redis"
        try:
            answer = await backend.run(command, self.resource, self.on_outage)
        except BaseException:
            if asks_redis:
                self._parties.of(backend).tell_later(token, self._settle(record, token, 0, its_fingerprint, "released"))
            raise
        if asks_redis and answer.source == "local" and answer.state != "claimed":
            self._parties.of(backend).tell_later(token, self._settle(record, token, 0, its_fingerprint, "released"))
        return answer

    def _claimed(
        self, backend: Backend, answer: Answer, key: str, record: str, its_fingerprint: str, token: str, asked: float
    ) -> Claim:
        of = self.name, key, record, its_fingerprint
        claim = Claim(*of, token, answer.fencing, answer.source, self._era, asked, self._monotonic)
        self.resource.count("idempotency.claimed")
        claim.safe_until = asked + self.config.lease
        if answer.microseconds:  # it is one that was taken over
            self.resource.count("idempotency.taken_over")
            self._process.events.emit("idempotency.taken_over", self.name, key=key, fencing=answer.fencing)
        self._parties.of(backend).hold(claim)
        return claim

    def _conflict(self, key: str, answer: Answer) -> IdempotencyConflictError:
        reasons: dict[str, Conflict] = {"running": "running", "denied": "denied"}
        reason = reasons.get(answer.state, "other_arguments")
        self.resource.count(f"idempotency.{reason}")
        self._process.events.emit("idempotency.refused", self.name, key=key, reason=reason)
        left = {"running": answer.microseconds / 1e6, "denied": 0.0}.get(reason, math.inf)
        return IdempotencyConflictError(self.name, key, reason, left)

    async def _wait(self, backend: Backend, record: str, seconds: float) -> None:
        held, ticket, name = self._parties.of(backend), backend.ticket(), self._name_of(record)
        held.wait_for(name, ticket)
        try:
            await ticket.wait(seconds)
        finally:
            held.wait_no_more(name, ticket)

    # After the call.

    def replay(self, answer: Answer) -> Any:
        """The result of a call that was made before; runs the user's codec. Raises `EncodingError`."""
        if answer.codec.startswith(UNREADABLE):
            raise EncodingError(f"a call of {self.name!r} has run, and is not made again: {answer.codec[1:]}")
        return codecs.decode(self.config.codec, answer.codec, answer.result)

    def write_down(self, claim: Claim, result: object) -> tuple[str, str, EncodingError | None]:
        """The codec and the text of a result; what is wrong if there is none. Runs the user's codec."""
        try:
            return self.config.codec.name, codecs.encode(self.config.codec, result, self.config.max_size), None
        except EncodingError as error:
            told = EncodingError(f"the call of {self.name!r} under key {claim.key[:64]!r} has run, but {error}")
            told.result, told.__cause__ = result, error
            return f"{UNREADABLE}{error}"[:500], "", told

    def is_outcome_known(self, error: BaseException) -> bool:
        """Whether a call that has raised `error` may be made again at once: it has failed, and does nothing any more.

        Of a call that was cancelled or has timed out nobody knows. Clients have timeouts of their own, which are told
        by their names.
        """
        if not isinstance(error, Exception) or isinstance(error, TimeoutError):
            return False
        return not any("timeout" in kind.__name__.lower() for kind in type(error).__mro__)

    async def complete(self, backend: Backend, claim: Claim, codec: str, result: str) -> None:
        """Keeps the result of the call, for all who come later."""
        await self._end(backend, claim, "done", codec, result)

    async def release(self, backend: Backend, claim: Claim) -> None:
        """Lets the key go: the next call is made."""
        await self._end(backend, claim, "released", "", "")

    def abandon(self, backend: Backend, claim: Claim) -> None:
        """Lets the lease of a call end by itself."""
        self._parties.of(backend).let_go(claim)

    async def _end(self, backend: Backend, claim: Claim, state: str, codec: str, result: str) -> None:
        """What goes wrong is not its caller's affair, whose call has run."""
        if claim.era != self._era:
            return  # the parent of this forked process holds it
        held = self._parties.of(backend)
        held.let_go(claim)
        command = self._settle(claim.record, claim.token, claim.fencing, claim.fingerprint, state, codec, result)
        try:
            kept = await backend.run(command, self.resource, "local" if self.on_outage == "local" else "raise")
        except ResilienceError as error:
            logger.warning("the end of a call of %r could not be told yet: %s", self.name, error)
            self._process.events.emit("idempotency.untold", self.name, key=claim.key, error=str(error))
            held.tell_later(claim.token, command)
            return
        except BaseException:
            held.tell_later(claim.token, command)
            raise
        if kept.source != claim.source:
            if claim.source == "redis":
                held.tell_later(claim.token, command)
            else:
                self._process.local.execute(command)
        elif not kept.own[0]:
            self._lost(claim)
        self.tell(self._name_of(claim.record))

    def tell(self, name: str) -> None:
        """Wakes those of this process who wait for a record; others hear of it by Redis."""
        for held in self._parties:
            held.told(name)

    def _lost(self, claim: Claim) -> None:
        if claim.safe_until == -math.inf:
            return  # the attendant and the call itself may both find it
        claim.safe_until = -math.inf
        self.resource.count("idempotency.lost")
        self._process.events.emit("idempotency.lost", self.name, key=claim.key, fencing=claim.fencing)

    def _settle(
        self, record: str, token: str, fencing: int, its_fingerprint: str, state: str, codec: str = "", result: str = ""
    ) -> Command[Kept]:
        return Command(SETTLE, (record,), (token, fencing, its_fingerprint, self._ttl_us, state, codec, result))

    def _name_of(self, record: str) -> str:
        """What is told when the call that has the record is over."""
        return record[len(self.resource.keys.done) - len("done") :]

    # For operators.

    def known(self) -> dict[str, object]:
        """What this process knows without asking."""
        return {
            "running_here": sum(len(held.held) for held in self._parties),
            "untold_here": sum(len(held.untold) for held in self._parties),
            "config": self.config.numbers(),
            **self.resource.statistics("idempotency"),
        }
