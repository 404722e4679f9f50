"""The core of the rate limiter, written once for sync and asyncio: what to send before, what to remember after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from shared_resilience import validation
from shared_resilience.backends import ON_OUTAGE, Backend, OnOutage
from shared_resilience.backends.process import Component, Process
from shared_resilience.commands import Arguments, Command
from shared_resilience.decision import Decision
from shared_resilience.errors import RateLimitExceeded
from shared_resilience.keys import ResourceKeys
from shared_resilience.limit_commands import PAUSE, PAUSE_FOR, RESET, Answer, LimitCommands
from shared_resilience.limits import PER_LIMIT, Limit
from shared_resilience.lines import Lines
from shared_resilience.overrides import Overrides
from shared_resilience.refusals import Refusals
from shared_resilience.token_bucket import TokenBucket

Key = str | Mapping[str, str]
Texts = tuple[str, ...]
"""The keys of the limits, as users know them, in the order of the limits."""

LONGEST_PAUSE = 3600.0


@dataclass(frozen=True, slots=True)
class LimiterConfig:
    """What makes two rate limiters of one name the same."""

    limits: tuple[Limit, ...] = (TokenBucket(),)
    on_outage: OnOutage = "local"
    remember_refusals: bool = True
    shadow: bool = False
    partitioned: bool = False
    max_pause: float = 60.0

    def __post_init__(self) -> None:
        for limit in self.limits:
            if not isinstance(limit, Limit):
                raise ValueError(f"limit is {limit!r}, but must be a TokenBucket, SlidingWindow or LeakyBucket")
        labels = [limit.label for limit in self.limits]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"several limits have the label {twice[0]!r}; give each a label= of its own")
        if PAUSE in labels:
            raise ValueError(f"label is {PAUSE!r}, but that is what limits a paused resource")
        validation.choice("on_outage", self.on_outage, ON_OUTAGE)
        for field in ("remember_refusals", "shadow", "partitioned"):
            validation.flag(field, getattr(self, field))
        validation.number("max_pause", self.max_pause, 0.001, LONGEST_PAUSE)


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
        core, keys, told = self.core, self.core.keys(self.texts), self.core.told()
        if actual > self.cost:
            await core.run(backend, core.commands.charge(keys, actual - self.cost, told))
        elif backend.source() == self.answer.decision.source:
            since_us = self.answer.decided_us
            await core.run(backend, core.commands.give(keys, self.cost - actual, since_us, told))
            core.refusals.forget(self.texts)


class Limiter(Component):
    """The limits of one resource in one process."""

    def __init__(self, name: str, config: LimiterConfig, process: Process) -> None:
        self.name = name
        self.config = config
        self.resource = process.heartbeat.resource(name)
        self.commands = LimitCommands(config.limits)
        self.refusals = Refusals()
        self._lines = Lines()
        self._process = process
        self._events = process.events
        self._labels = tuple(limit.label for limit in config.limits)
        self._most = min(limit.most for limit in config.limits)
        self._ignored: set[str] = set()
        for limit in config.limits:
            self.resource.numbers |= {f"limit.{limit.label}.{field}": n for field, n in limit.numbers().items()}

    def after_fork(self) -> None:
        self.refusals = Refusals()
        self._lines = Lines()

    async def try_acquire(self, backend: Backend, key: Key, cost: int, max_delay: float = math.inf) -> Decision:
        texts = self._texts(key)
        return self._note((await self._decide(backend, texts, cost, max_delay)).decision, texts)

    async def acquire(self, backend: Backend, key: Key, cost: int, timeout: float) -> Decision:
        texts = self._texts(key)
        return (await self._acquire(backend, texts, cost, timeout)).decision

    async def reserve(self, backend: Backend, key: Key, cost: int, timeout: float) -> Reserved:
        texts = self._texts(key)
        answer = await self._acquire(backend, texts, cost, validation.timeout("timeout", timeout))
        decision = answer.decision
        charged = decision.source == "redis" or self.config.on_outage == "local"
        return Reserved(self, texts, cost, answer, charged and decision.limited_by is None)

    async def peek(self, backend: Backend, key: Key, cost: int) -> Decision:
        texts = self._texts(key)
        self.check_cost(cost)
        if (left := await self._pause_left(backend)) > 0:
            return self._paused(left, backend)
        return (await self.run(backend, self.commands.peek(self.keys(texts), cost, self.told()))).decision

    async def refund(self, backend: Backend, key: Key, cost: int) -> None:
        texts = self._texts(key)
        self.check_cost(cost)
        await self.run(backend, self.commands.give(self.keys(texts), cost, told=self.told()))
        self.refusals.forget(texts)

    async def pause(self, backend: Backend, seconds: float) -> None:
        validation.number("seconds", seconds, 0, self.config.max_pause)
        command = Command(PAUSE_FOR, (self.resource.keys.overrides,), (math.ceil(seconds * 1e6),))
        on_outage: OnOutage = "raise" if self.config.on_outage == "raise" else "local"
        left_us = await backend.run(command, self.resource, on_outage)
        self._process.local.execute(command)  # should Redis be lost before the heartbeat brings it
        self.resource.paused_until = backend.monotonic() + left_us / 1e6
        self.refusals.clear()

    async def reset(self, backend: Backend, key: Key) -> None:
        texts = self._texts(key)
        await backend.run(Command(RESET, self.keys(texts)[1:], ()), self.resource)
        self.refusals.forget(texts)

    async def reset_all(self, backend: Backend) -> None:
        if self.config.partitioned:
            raise TypeError(f"{self.name!r} is partitioned: its keys are spread over a cluster; reset them one by one")
        await self.reset(backend, "")
        for label in self._labels:
            await backend.forget_prefix(self.resource.keys.limit_prefix(label))
        self.refusals.clear()

    async def run(self, backend: Backend, command: Command[Answer]) -> Answer:
        answer = await backend.run(command, self.resource, self.config.on_outage)
        self._note_ignored(answer.ignored)
        return answer

    def _note_ignored(self, fields: str) -> None:
        for field in fields.split():
            if field not in self._ignored:
                self._ignored.add(field)
                self._events.emit("override.ignored", self.name, field=field)

    def keys(self, texts: Texts) -> tuple[str, ...]:
        keys = self.resource.keys
        if self.config.partitioned:
            keys = ResourceKeys(self._process.prefix, self.name, partition=texts[0])
        return keys.overrides, *map(keys.limit, self._labels, self._key_parts(texts))

    def _key_parts(self, texts: Texts) -> Texts:
        return ("",) * len(texts) if self.config.partitioned else texts

    def told(self) -> Arguments | None:
        """The limits as a partition is told them, which cannot see the overrides; None: as they are configured."""
        if not self.config.partitioned or not self.resource.overrides:
            return None
        overrides, told, changed = Overrides(self.resource.overrides), self.commands.told, []
        for start in range(0, len(told), PER_LIMIT):
            kind, label, *numbers = told[start : start + PER_LIMIT]
            changed += [kind, label, *overrides.in_force(str(kind), str(label), *map(int, numbers))]
        self._note_ignored(overrides.ignored)
        return tuple(changed)

    def check_cost(self, cost: int) -> None:
        validation.count("cost", cost, high=self._most)

    def stats(self) -> dict[str, object]:
        return {
            "limits": {limit.label: limit.numbers() for limit in self.config.limits},
            "overrides": dict(self.resource.overrides),
            "local": dict(self.resource.counted),
            "fleet": dict(self.resource.fleet),
            "workers": self.resource.workers,
        }

    async def _acquire(self, backend: Backend, texts: Texts, cost: int, timeout: float) -> Answer:
        end = backend.monotonic() + timeout
        if timeout <= 0:
            return await self._wait_for_room(backend, texts, cost, end)
        ticket = backend.ticket()
        place = (id(backend), texts)  # a thread that blocks an event loop must not wait for a task of that loop
        first = self._lines.join(place, ticket)
        try:
            if not first and not await ticket.wait(end - backend.monotonic()):
                raise self._exceeded(texts, self._out_of_patience(backend))
            answer = await self._wait_for_room(backend, texts, cost, end)
        finally:
            self._lines.leave(place, ticket)
        if answer.decision.delay > 0:
            await backend.sleep(answer.decision.delay)
        return answer

    async def _wait_for_room(self, backend: Backend, texts: Texts, cost: int, end: float) -> Answer:
        while True:
            left = end - backend.monotonic()
            answer = await self._decide(backend, texts, cost, max(0.0, left), exact=True)
            decision = answer.decision
            if decision.allowed:
                self._note(decision, texts)
                return answer
            # In a leaky bucket the turn comes no sooner by coming back later.
            soonest = max(decision.retry_after, decision.delay)
            if soonest == math.inf or soonest > end - backend.monotonic():
                raise self._exceeded(texts, decision)
            await backend.sleep(decision.retry_after)

    def _exceeded(self, texts: Texts, decision: Decision) -> RateLimitExceeded:
        return RateLimitExceeded(self.name, "/".join(dict.fromkeys(texts)), self._note(decision, texts))

    def _out_of_patience(self, backend: Backend) -> Decision:
        """The refusal of who stood behind others for as long as it could: nobody has asked when its turn would come."""
        return Decision(False, self._most, 0, 0.0, 0.0, 0.0, self._labels[0], backend.source())

    async def _decide(self, backend: Backend, texts: Texts, cost: int, max_delay: float, exact: bool = False) -> Answer:
        self.check_cost(cost)
        remember = self.config.remember_refusals
        if remember:
            known = self.refusals.find(texts, cost, max_delay, backend.monotonic(), exact)
            if known is not None:
                return Answer.of(known)
        if (left := await self._pause_left(backend)) > 0:
            return Answer.of(self._in_shadow(self._paused(left, backend)))
        max_delay_us = -1 if max_delay == math.inf else int(max_delay * 1e6)
        answer = await self.run(backend, self.commands.take(self.keys(texts), cost, max_delay_us, self.told()))
        if remember and not answer.decision.allowed and not self.config.shadow:
            self.refusals.add(texts, cost, max_delay, answer.decision, backend.monotonic())
        answer.decision = self._in_shadow(answer.decision)
        return answer

    async def _pause_left(self, backend: Backend) -> float:
        """Seconds for which a partitioned resource is paused; the script sees to that of the others."""
        if not self.config.partitioned:
            return 0.0
        await backend.keep_up(self.resource)
        return self.resource.paused_until - backend.monotonic()

    def _paused(self, left: float, backend: Backend) -> Decision:
        return Decision(False, self._most, 0, left, left, 0.0, PAUSE, backend.source())

    def _in_shadow(self, decision: Decision) -> Decision:
        """In shadow mode nothing is refused and nobody waits; `limited_by` tells who would have."""
        if not self.config.shadow:
            return decision
        return decision._replace(allowed=True, retry_after=0.0, delay=0.0)

    def _texts(self, key: Key) -> Texts:
        if not isinstance(key, Mapping):
            return (str(key),) * len(self._labels)
        if self.config.partitioned:
            raise ValueError(f"key is a mapping, but {self.name!r} is partitioned and has one key for all its limits")
        if unknown := sorted(set(key) - set(self._labels)):
            raise ValueError(f"key has the labels {unknown}, but {self.name!r} has only {list(self._labels)}")
        return tuple(str(key.get(label, "")) for label in self._labels)

    def _note(self, decision: Decision, texts: Texts) -> Decision:
        refused = decision.limited_by is not None
        shadowed = refused and decision.allowed
        self.resource.count("limit.shadow_refused" if shadowed else "limit.refused" if refused else "limit.allowed")
        if decision.source == "local":
            self.resource.count("limit.decided_locally")
        if refused:
            key = "/".join(dict.fromkeys(texts))
            event = "limit.shadow_refused" if shadowed else "limit.refused"
            self._events.emit(event, self.name, key=key, decision=decision)
        return decision
