"""The core of the rate limiter, written once for sync and asyncio: what to send before, what to remember after."""

from __future__ import annotations

import math
from collections.abc import Mapping

from shared_resilience import priority as priorities
from shared_resilience import validation
from shared_resilience.backends import Backend, OnOutage
from shared_resilience.backends.process import Bill, Component, Process
from shared_resilience.commands import Arguments, Command
from shared_resilience.deadline import remaining
from shared_resilience.debts import Debts
from shared_resilience.decision import Decision
from shared_resilience.errors import RateLimitExceeded
from shared_resilience.heartbeat import Resource
from shared_resilience.leases import Leases
from shared_resilience.limit_commands import ANY_DELAY, PAUSE, PAUSE_FOR, REMEMBERED, RESET, Answer, LimitCommands
from shared_resilience.limiter_config import LimiterConfig
from shared_resilience.limiter_keys import Key, LimiterKeys, Texts
from shared_resilience.lines import Lines
from shared_resilience.overrides import fastest, told_in_force
from shared_resilience.priority import PriorityLevel, priority_of
from shared_resilience.refusals import Refusals
from shared_resilience.sent_commands import SentCommands

Asked = tuple[Texts, int, float, int]
"""The keys, the cost, the longest delay, and what is held back."""


class Limiter(Component):
    """The limits of one resource in one process."""

    def __init__(self, name: str, config: LimiterConfig, process: Process) -> None:
        self.name = name
        self.config = config
        self.resource = process.heartbeat.resource(name)
        self.commands = LimitCommands(config.limits)
        self.keys = LimiterKeys(self.resource.keys, process.prefix, name, config)
        self.refusals = Refusals()
        self._lines = Lines()
        self.debts = Debts(config, self.keys, process)
        self._process = process
        self._events = process.events
        self._labels = tuple(limit.label for limit in config.limits)
        self._most = min(limit.most for limit in config.limits)
        self._ignored: set[str] = set()
        self._sent: SentCommands[Asked, Command[Answer]] = SentCommands()
        self._held_back = priorities.held_back(config.reserved)
        self.leases = self._no_leases()
        self._monotonic = process.clock.monotonic
        for limit in config.limits:
            self.resource.configure({f"limit.{limit.label}.{field}": n for field, n in limit.numbers().items()})

    def after_fork(self) -> None:
        self.refusals = Refusals()
        self._lines = Lines()
        self.debts.clear()
        self.leases = self._no_leases()

    def _no_leases(self) -> Leases[Texts] | None:
        tokens, seconds = self.config.lease_tokens, self.config.lease_seconds
        return None if tokens is None else Leases(tokens, seconds)

    async def before_close(self, backend: Backend) -> None:
        """Gives leased tokens back."""
        while self.leases and (unused := self.leases.pop(self._monotonic(), backend.source(), self._rate())):
            texts, tokens = unused
            if tokens > 0:
                await self.run(backend, self.commands.give(self.keys.of(texts), tokens, told=self.told()))

    def bill(self, most: int, shares: Mapping[Resource, int]) -> Bill | None:
        return self.debts.bill(most, shares.get(self.resource, 1), self.resource.overrides)

    def _rate(self) -> float:
        """Tokens per second of the fastest bucket, by the numbers in force."""
        return fastest(told_in_force(self.resource.overrides, self.commands.told)[0])

    def at_once(self, key: Key, cost: int) -> Decision | None:
        """The decision to let `cost` pass out of a lease, which needs no backend; None: ask one."""
        if self.leases is None:
            return None
        self.check_cost(cost)
        now = self.resource.last_used = self._monotonic()
        if self._process.heartbeat.due(now):
            return None
        decision = self.leases.serve(self.keys.texts(key), cost, now)
        if decision is not None:
            self.resource.count("limit.allowed")
        return decision

    async def try_acquire(
        self, backend: Backend, key: Key, cost: int, priority: PriorityLevel, max_delay: float = math.inf
    ) -> Decision:
        texts = self.keys.texts(key)
        answer = await self._decide(backend, texts, cost, max_delay, self.held_back(priority))
        return self.note(answer.decision, texts)

    async def acquire(self, backend: Backend, key: Key, cost: int, timeout: float, priority: PriorityLevel) -> Decision:
        texts = self.keys.texts(key)
        return (await self.obtain(backend, texts, cost, timeout, self.held_back(priority))).decision

    async def obtain(self, backend: Backend, texts: Texts, cost: int, timeout: float, held_back: int) -> Answer:
        """The answer that lets `cost` pass, waited for, until the deadline at most. Raises `RateLimitExceeded`."""
        timeout = min(timeout, remaining())
        end = backend.monotonic() + timeout
        if timeout <= 0:
            return await self._wait_for_room(backend, texts, cost, end, held_back)
        ticket = backend.ticket()
        place = (backend.party(), texts, held_back)
        first = self._lines.join(place, ticket)
        try:
            if not first and not await ticket.wait(end - backend.monotonic()):
                raise self.exceeded(texts, self._out_of_patience(backend))
            answer = await self._wait_for_room(backend, texts, cost, end, held_back)
        finally:
            self._lines.leave(place, ticket)
        if answer.decision.delay > 0:
            await backend.sleep(answer.decision.delay)
        return answer

    def held_back(self, priority: PriorityLevel) -> int:
        """Millionths of each limit that calls of `priority` leave to more important ones."""
        return self._held_back[priority_of(priority)]

    async def peek(self, backend: Backend, key: Key, cost: int, priority: PriorityLevel) -> Decision:
        texts, held_back = self.keys.texts(key), self.held_back(priority)
        self.check_cost(cost)
        if (paused := await self._paused(backend)) is not None:
            return self._in_shadow(paused)
        answer = await self.run(backend, self.commands.peek(self.keys.of(texts), cost, held_back, self.told()))
        return self._in_shadow(answer.decision)

    async def refund(self, backend: Backend, key: Key, cost: int) -> None:
        texts = self.keys.texts(key)
        self.check_cost(cost)
        await self.run(backend, self.commands.give(self.keys.of(texts), cost, told=self.told()))
        self.refusals.forget(texts)

    async def pause(self, backend: Backend, seconds: float) -> None:
        validation.number("seconds", seconds, 0, self.config.max_pause)
        command = Command(PAUSE_FOR, (self.resource.keys.overrides,), (math.ceil(seconds * 1e6),))
        on_outage: OnOutage = "raise" if self.config.on_outage == "raise" else "local"
        left_us = await backend.run(command, self.resource, on_outage)
        self._process.local.execute(command)  # should Redis be lost before the heartbeat brings it
        self.resource.paused_until = backend.monotonic() + left_us / 1e6
        self._forget_all()

    async def reset(self, backend: Backend, key: Key) -> None:
        texts = self.keys.texts(key)
        await backend.run(Command(RESET, self.keys.of(texts)[1:], ()), self.resource)
        self.refusals.forget(texts)
        if self.leases:
            self.leases.forget(texts)

    async def reset_all(self, backend: Backend) -> None:
        if self.config.partitioned:
            raise TypeError(f"{self.name!r} is partitioned: its keys are spread over a cluster; reset them one by one")
        await self.reset(backend, "")
        for label in self._labels:
            await backend.forget_prefix(self.resource.keys.limit_prefix(label))
        self._forget_all()

    def _forget_all(self) -> None:
        self.refusals.clear()
        if self.leases:
            self.leases.clear()

    async def run(self, backend: Backend, command: Command[Answer]) -> Answer:
        answer = await backend.run(command, self.resource, self.config.on_outage)
        if answer.ignored:
            self.note_ignored(answer.ignored)
        return answer

    def note_ignored(self, fields: str) -> None:
        """Tells listeners of overrides that are ignored, once of each."""
        for field in fields.split():
            if field not in self._ignored:
                self._ignored.add(field)
                self._events.emit("override.ignored", self.name, field=field)

    def told(self) -> Arguments | None:
        """The limits as a partition is told them, which cannot see the overrides; None: as they are configured."""
        if not self.config.partitioned or not self.resource.overrides:
            return None
        told, ignored = told_in_force(self.resource.overrides, self.commands.told)
        self.note_ignored(ignored)
        return told

    def check_cost(self, cost: int) -> None:
        if type(cost) is not int or not 1 <= cost <= self._most:
            validation.count("cost", cost, high=self._most)

    def known(self) -> dict[str, object]:
        return {
            "limits": {limit.label: limit.numbers() for limit in self.config.limits},
            "overrides": dict(self.resource.overrides),
            **self.resource.statistics("limit"),
        }

    async def _wait_for_room(self, backend: Backend, texts: Texts, cost: int, end: float, held_back: int) -> Answer:
        while True:
            left = end - backend.monotonic()
            answer = await self._decide(backend, texts, cost, max(0.0, left), held_back, exact=True)
            decision = answer.decision
            if decision.allowed:
                self.note(decision, texts)
                return answer
            # In a leaky bucket the turn comes no sooner by coming back later.
            soonest = max(decision.retry_after, decision.delay)
            if soonest == math.inf or soonest > end - backend.monotonic():
                raise self.exceeded(texts, decision)
            await backend.sleep(decision.retry_after)

    def exceeded(self, texts: Texts, decision: Decision) -> RateLimitExceeded:
        """The error that says so, noted."""
        return RateLimitExceeded(self.name, "/".join(dict.fromkeys(texts)), self.note(decision, texts))

    def _out_of_patience(self, backend: Backend) -> Decision:
        """The refusal of who stood behind others for as long as it could: nobody has asked when its turn would come."""
        return Decision(False, self._most, 0, 0.0, 0.0, 0.0, self._labels[0], backend.source())

    async def _decide(
        self, backend: Backend, texts: Texts, cost: int, max_delay: float, held_back: int, exact: bool = False
    ) -> Answer:
        if not self.commands.may_delay:
            max_delay = math.inf  # nothing waits for its turn, so that all callers are alike
        if texts in self.refusals:
            self.check_cost(cost)
            known = self.refusals.find(texts, cost, max_delay, held_back, self._monotonic(), exact)
            if known is not None:
                return Answer(known)
        command = self._sent.get((texts, cost, max_delay, held_back))
        if command is not None and type(cost) is int:
            answer = await backend.run(command, self.resource, self.config.on_outage)
        else:
            answer = await self._decide_anew(backend, texts, cost, max_delay, held_back)
        decision = answer.decision
        if answer.ignored:
            self.note_ignored(answer.ignored)
        self.debts.owe(answer, texts, cost)
        if self.config.shadow:
            return answer._replace(decision=self._in_shadow(decision))
        if not decision.allowed and answer.decided_us != REMEMBERED:
            self.remember(texts, cost, max_delay, held_back, decision)
        return answer

    def remember(self, texts: Texts, cost: int, max_delay: float, held_back: int, decision: Decision) -> None:
        """Has the next such call refused without asking, for a while."""
        if self.config.remember_refusals:
            self.refusals.add(texts, cost, max_delay, held_back, decision, self._monotonic())

    async def _decide_anew(self, backend: Backend, texts: Texts, cost: int, max_delay: float, held_back: int) -> Answer:
        self.check_cost(cost)
        if (paused := await self._paused(backend)) is not None:
            return Answer(paused)
        if self.leases is not None and cost <= self.leases.tokens:
            return await self._ask_for_lease(self.leases, backend, texts, cost)
        max_delay_us = ANY_DELAY if max_delay == math.inf else int(max_delay * 1e6)
        command = self.commands.take(self.keys.of(texts), cost, max_delay_us, held_back, self.told())
        if not self.config.partitioned and max_delay in (0, math.inf):
            self._sent.keep((texts, cost, max_delay, held_back), command)
        return await backend.run(command, self.resource, self.config.on_outage)

    async def _ask_for_lease(self, leases: Leases[Texts], backend: Backend, texts: Texts, cost: int) -> Answer:
        """Takes tokens ahead. One caller for a key does so at a time; the others are served from what it gets."""
        ticket = backend.ticket()
        place = (leases, backend.party(), texts)
        first = self._lines.join(place, ticket)
        try:
            if not first:  # each one before asks Redis once, which takes no longer than a command may
                await ticket.wait(math.inf)
            await backend.keep_up(self.resource)
            asked_at = self._monotonic()
            known = leases.serve(texts, cost, asked_at) or self.refusals.find(texts, cost, math.inf, 0, asked_at)
            if known is not None:
                return Answer(known, decided_us=REMEMBERED)
            wanted = leases.take_out(texts, cost, asked_at, backend.source(), self._rate())
            answer = await self.run(backend, self.commands.lease(self.keys.of(texts), cost, *wanted, self.told()))
            if not answer.taken:
                return answer
            leases.put(texts, cost, answer.taken, answer.decision, asked_at)
            remaining = answer.decision.remaining + answer.taken - cost
            return answer._replace(decision=answer.decision._replace(remaining=remaining))
        finally:
            self._lines.leave(place, ticket)

    async def _paused(self, backend: Backend) -> Decision | None:
        """The refusal of a partitioned resource that is paused; the script sees to the pauses of others."""
        if not self.config.partitioned:
            return None
        await backend.keep_up(self.resource)
        left = self.resource.paused_until - backend.monotonic()
        return Decision(False, self._most, 0, left, left, 0.0, PAUSE, backend.source()) if left > 0 else None

    def _in_shadow(self, decision: Decision) -> Decision:
        """In shadow mode nothing is refused and nobody waits; `limited_by` tells who would have."""
        if not self.config.shadow:
            return decision
        return decision._replace(allowed=True, retry_after=0.0, delay=0.0)

    def note(self, decision: Decision, texts: Texts) -> Decision:
        """Counts a decision, and tells listeners of a refusal."""
        if decision.source == "local":
            self.resource.count("limit.decided_locally")
        if decision.limited_by is None:
            self.resource.count("limit.allowed")
            return decision
        outcome = "limit.shadow_refused" if decision.allowed else "limit.refused"
        self.resource.count(outcome)
        self._events.emit(outcome, self.name, key="/".join(dict.fromkeys(texts)), decision=decision)
        return decision
