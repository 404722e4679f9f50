"""A backend around two backends: Redis as long as it answers, else this process alone by the same rules."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from redis.exceptions import InvalidResponse

from shared_resilience.backends import OnOutage, step
from shared_resilience.backends.charges import BETWEEN_CHARGES, pay
from shared_resilience.backends.ears import Ear
from shared_resilience.backends.faults import Fault, StoreError
from shared_resilience.backends.forms import ForTasks, ForThreads
from shared_resilience.backends.process import Process
from shared_resilience.backends.redis import RedisStore
from shared_resilience.commands import Argument, Command, Reply, Source
from shared_resilience.errors import StoreUnavailableError
from shared_resilience.heartbeat import DECIDED_LOCALLY, Resource

R = TypeVar("R")
logger = logging.getLogger("shared_resilience")
HARMLESS = (Fault.SATURATED, Fault.REJECTED)
"""Faults of one command, which say nothing about the next."""


OF_ANOTHER_SHAPE = (TypeError, ValueError, IndexError)
"""What taking a reply apart raises that no script of ours can have sent."""


def _garbled(reply: object) -> StoreError:
    return StoreError(InvalidResponse(f"the server answered {str(reply)[:80]}"), sent=True)


class FallbackBackend(ForThreads):
    """Runs commands on Redis and carries the heartbeat there; decides locally, at once, while Redis is away.

    A local decision takes this process's share: the command's smaller self for one of n workers, where n is the
    number of live workers that the last heartbeat saw at the resource, else `expected_workers`, else 1.
    """

    def __init__(self, process: Process, store: RedisStore, expected_workers: int | None = None) -> None:
        super().__init__(process)
        self._store = store
        self._expected_workers = expected_workers
        self._warned = False

    async def run(self, command: Command[R], resource: Resource, on_outage: OnOutage = "local") -> R:
        process = self._process
        guard = process.guard
        now = resource.last_used = process.clock.monotonic()
        if not guard.usable:
            self._launch_prober()
            return self._decide_alone(command, resource, on_outage, None)
        of_share: Reply | None = None
        if guard.ramping and on_outage == "local" and command.operation.ramp and (left := guard.ramp_left(now)) > 0:
            of_share = process.local.execute(command.share(self._workers(resource)))
            if (refusal := command.operation.ramp(of_share, math.ceil(left * 1e6))) is not None:
                return self._locally(command, resource, refusal)
        era = guard.era
        try:
            if process.heartbeat.due(now):
                await self._beat_on_the_way()
            reply = await self._store.ask(command)
            if isinstance(reply, Exception):
                reply = await self._store.refused(command, reply)
            try:
                answer = command.operation.decode(reply, "redis")
            except OF_ANOTHER_SHAPE as error:
                raise _garbled(reply) from error
        except StoreError as error:
            error = await self._closer_look(error)
            self._note(error, resource, era)
            if of_share is not None:  # which has been asked
                return self._locally(command, resource, of_share)
            return self._decide_alone(command, resource, on_outage, error)
        guard.proven = True
        return answer

    async def _closer_look(self, error: StoreError) -> StoreError:
        """What is behind it if a server hangs up on the first caller: some do so on long commands before a password."""
        if self._process.guard.proven or not error.hung_up:
            return error
        try:
            (told,) = await self._store.inquire(self._process.prefix, [("TIME",)])
        except StoreError as closer:
            return closer
        return StoreError(told, sent=True) if isinstance(told, Exception) else error

    async def keep_up(self, resource: Resource) -> None:
        process = self._process
        now = resource.last_used = self.monotonic()
        era = process.guard.era
        if process.guard.usable and process.heartbeat.due(now):
            try:
                await self._beat_on_the_way()
            except StoreError as error:
                self._note(error, resource, era)

    def source(self) -> Source:
        return "redis" if self._process.guard.usable else "local"

    async def refresh(self) -> None:
        if self._process.guard.usable:
            try:
                await self._beat(force=True)
            except StoreError as error:
                logger.warning("the heartbeat failed: %s", error)

    def _ear(self) -> Ear | None:
        return self._store.ear()

    async def close(self) -> None:
        await self._dismiss()
        if self._process.guard.proven:  # else it would have to connect, for nothing that anybody waits for
            await self.refresh()
        await self._store.close()

    async def check(self) -> None:
        try:
            await self._come_back()
        except StoreError as error:
            raise (await self._closer_look(error)).public() from error

    async def inquire(self, key: str, questions: Sequence[tuple[Argument, ...]]) -> list[Any] | None:
        try:
            return await self._store.inquire(key, questions)
        except StoreError as error:
            raise (await self._closer_look(error)).public() from error

    async def _beat(self, force: bool) -> None:
        """Sends the heartbeat, if it is due or asked for. Raises `StoreError`."""
        beat = self._process.heartbeat.begin(self.monotonic(), force)
        if beat is None:
            return
        try:
            replies = await self._store.execute_all(beat.commands)
        except BaseException as error:
            beat.lost(isinstance(error, StoreError) and error.fault.ran_not)
            raise
        try:
            beat.arrived(replies, self.monotonic())
        except OF_ANOTHER_SHAPE as error:
            raise _garbled(replies) from error
        for resource in beat.resources:
            self._process.local.put(resource.keys.overrides, self._as_local(resource))
        self._process.guard.proven = True

    def _as_local(self, resource: Resource) -> dict[str, str] | None:
        """The overrides of the fleet on this process's clock, so that they stay in force when Redis is away."""
        fields = {field: value for field, value in resource.overrides.items() if not field.startswith("paused_")}
        if resource.paused_us > 0:
            until = self._process.local.now_us() + resource.paused_us
            fields |= {"paused_until_us": str(until), "paused_for_us": str(resource.paused_us)}
        return fields or None

    async def forget_prefix(self, prefix: str) -> None:
        self._process.local.forget_prefix(prefix)
        try:
            await self._store.forget_prefix(prefix)
        except StoreError as error:
            raise error.public() from error

    async def _beat_on_the_way(self) -> None:
        try:
            await self._beat(force=False)
        except StoreError as error:
            if error.fault not in HARMLESS:
                raise
            logger.warning("the heartbeat failed: %s", error)

    def _note(self, error: StoreError, resource: Resource, era: int) -> None:
        """Draws the consequences of a failed command. Raises only what no waiting can heal."""
        guard = self._process.guard
        if error.fault is Fault.CONFIGURATION and not guard.proven:
            raise error.public() from error
        if error.fault is Fault.REJECTED:
            logger.warning("Redis rejected a command for %r: %s", resource.name, error)
            self._process.events.emit("store.rejected", resource.name, error=str(error))
        if error.fault not in HARMLESS:
            guard.lost(error, era)
            self._launch_prober()

    def _decide_alone(
        self, command: Command[R], resource: Resource, on_outage: OnOutage, cause: StoreError | None
    ) -> R:
        if on_outage == "raise":
            if cause is not None:
                raise cause.public() from cause
            raise StoreUnavailableError("Redis is away and will be asked again by a probe; on_outage is 'raise'")
        if on_outage == "local":
            reply = self._process.local.execute(command.share(self._workers(resource)))
        else:
            reply = command.operation.allowed if on_outage == "allow" else command.operation.denied
        return self._locally(command, resource, reply)

    def _locally(self, command: Command[R], resource: Resource, reply: Reply) -> R:
        resource.count(DECIDED_LOCALLY)
        return command.operation.decode(reply, "local")

    def _workers(self, resource: Resource) -> int:
        workers = self._known_workers(resource)
        if workers is None and not self._warned:
            self._warned = True
            logger.warning(
                "Redis has never said how many workers there are: this one decides by the whole of each limit. "
                "Pass expected_workers= to divide from the start"
            )
        return workers or 1

    def _known_workers(self, resource: Resource) -> int | None:
        return resource.workers or self._expected_workers

    def _launch_prober(self) -> None:
        self._process.guard.launch(self._start_prober)

    def _start_prober(self, pause: float) -> Callable[[], bool]:
        weak = weakref.ref(self)
        sleep = self._process.clock.sleep

        def probe() -> None:
            sleep(pause)
            if backend := weak():
                step(backend._probe())

        thread = threading.Thread(target=probe, name="shared_resilience-probe", daemon=True)
        thread.start()
        return thread.is_alive

    async def _probe(self) -> None:
        """Asks Redis once, by a heartbeat; the next caller launches the next probe if that fails."""
        guard = self._process.guard
        try:
            await self._store.reconnect()
            await self._come_back()
        except StoreError as error:
            if error.fault in HARMLESS:
                guard.recovered()
            else:
                guard.lost(error, guard.era)

    async def _come_back(self) -> None:
        """Asks Redis; if it was away, charges it for what this process has taken alone. Raises `StoreError`."""
        guard, heartbeat = self._process.guard, self._process.heartbeat
        was_away, shares = not guard.usable, dict[Resource, int]()
        if was_away:
            heartbeat.outlast(self.monotonic())
            shares = {resource: self._known_workers(resource) or 1 for resource in heartbeat.resources()}
        await self._beat(force=True)  # which may tell another number of workers
        more = was_away and await pay(self._store, self._process, shares)
        guard.recovered()
        if more:
            self.background(self._pay_the_rest(shares))

    async def _pay_the_rest(self, shares: Mapping[Resource, int]) -> None:
        """Little by little, for all processes come back at about the same time."""
        while self._process.guard.usable and await pay(self._store, self._process, shares):
            await self.sleep(random.uniform(0, 2 * BETWEEN_CHARGES))


class AsyncFallbackBackend(ForTasks, FallbackBackend):
    """The same for asyncio: waiting and probing are tasks."""

    _prober: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._prober is not None and self._prober.get_loop() is asyncio.get_running_loop():
            self._prober.cancel()
        await super().close()

    def _start_prober(self, pause: float) -> Callable[[], bool]:
        async def probe() -> None:
            await self.sleep(pause)
            await self._probe()

        loop = asyncio.get_running_loop()
        task = self._prober = loop.create_task(probe(), name="shared_resilience-probe")
        return lambda: not task.done() and loop.is_running()
