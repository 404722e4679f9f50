"""Attendants look after what calls hold or wait for while the calls themselves are busy.

There is one for all threads of a process, a daemon thread, and one for each event loop, a task. It lives while there is
something to look after, and a little longer; it sleeps until a lease is to be renewed or a sign of life is due, and
listens for those who wait.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from typing import TYPE_CHECKING, Protocol

from shared_resilience.backends import step
from shared_resilience.backends.ears import Ear
from shared_resilience.backends.forks import begin_anew_after_forks
from shared_resilience.errors import ResilienceError

if TYPE_CHECKING:
    from shared_resilience.backends import Backend

logger = logging.getLogger("shared_resilience")
LINGER = 60.0
"""Seconds for which an attendant without work stays, so that the next call need not start one."""

STEP = 0.05
"""Seconds for which it listens at a stretch."""


class Charge(Protocol):
    """What an attendant looks after."""

    channel: str

    def due(self) -> float:
        """When it wants to be kept up, by this process's clock; `inf`: there is nothing to do."""

    def listens(self) -> bool:
        """Whether somebody waits for word from its channel."""

    def told(self, token: str) -> bool:
        """Word has come from a channel; whether it is meant for this one."""

    def missed(self) -> None:
        """Word may have been missed: it is due at once."""

    async def keep_up(self, backend: Backend) -> None:
        """Does what is due. Raises `ResilienceError`."""


class Attendant:
    """What attendants of both forms have in common. A forked child has to take its charges on anew."""

    def __init__(self, backend: Backend, ear: Ear | None) -> None:
        self._backend = backend
        self._ear = ear
        self._running = False
        self.after_fork()
        begin_anew_after_forks(self)

    def after_fork(self) -> None:
        self._charges: list[Charge] = []
        self._lock = threading.Lock()
        self._running = self._stopping = False
        self._wakes_at = -math.inf

    def take_on(self, charge: Charge) -> None:
        """From now on looks after `charge` too."""
        with self._lock:
            self._charges.append(charge)

    def look_by(self, due: float) -> None:
        """Sees to it that the charges are looked at when `due` has come."""
        if self._running and due >= self._wakes_at:
            return
        with self._lock:
            begin, self._running, self._stopping = not self._running, True, False
            self._wakes_at = -math.inf
        if not begin:
            self._poke()
            return
        try:
            self._start()
        except RuntimeError:  # no thread can be started now: whoever comes next tries again
            self._running = False
            raise

    def is_gone(self) -> bool:
        """Whether it can never work again."""
        return False

    def _start(self) -> None:
        raise NotImplementedError

    def _poke(self) -> None:
        raise NotImplementedError

    async def _pause(self, seconds: float) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        """Looks after the charges until there has been nothing to do for a while."""
        idle_since: float | None = None
        try:
            while True:
                due = await self._keep_up()
                now = self._backend.monotonic()
                idle_since = None if due < math.inf else now if idle_since is None else idle_since
                until = due if idle_since is None else idle_since + LINGER
                with self._lock:
                    if self._stopping or (idle_since is not None and now >= until):
                        return
                    self._wakes_at = until
                await self._listen(max(0.0, until - now))
        finally:
            self._running = False
            if self._ear is not None:
                await self._ear.close()

    async def _keep_up(self) -> float:
        """Keeps up what is due; when the next charge is."""
        charges = self._charges.copy()
        for charge in charges:
            if charge.due() <= self._backend.monotonic():
                try:
                    await charge.keep_up(self._backend)
                except ResilienceError as error:
                    logger.warning("what calls hold could not be kept up: %s", error)
                except Exception:  # the other charges need their attendant
                    logger.exception("what calls hold could not be kept up")
        return min((charge.due() for charge in charges), default=math.inf)

    async def _listen(self, seconds: float) -> None:
        listening = [charge for charge in self._charges.copy() if charge.listens()]
        if self._ear is None or not listening:
            await self._pause(seconds)
            return
        if await self._ear.listen_to(frozenset(charge.channel for charge in listening)):
            for charge in listening:
                charge.missed()
            return
        token = await self._ear.hear(min(seconds, STEP))
        if token is not None:
            for charge in listening:
                charge.told(token)


class ThreadAttendant(Attendant):
    """A daemon thread, for all threads of the process."""

    def after_fork(self) -> None:
        super().after_fork()
        self._poked = threading.Event()
        self._thread: threading.Thread | None = None

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="shared_resilience-attendant", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        step(self.run())

    def _poke(self) -> None:
        self._poked.set()

    async def _pause(self, seconds: float) -> None:
        self._poked.wait(min(seconds, threading.TIMEOUT_MAX))
        self._poked.clear()

    def stop(self) -> None:
        """Ends the thread; the next thing to look after begins another."""
        thread, self._stopping = self._thread, True
        if thread is not None and thread is not threading.current_thread():
            self._poke()
            thread.join(1.0)


class TaskAttendant(Attendant):
    """A task of an event loop."""

    def __init__(self, backend: Backend, ear: Ear | None) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(backend, ear)

    def is_gone(self) -> bool:
        return self._loop.is_closed()

    def after_fork(self) -> None:
        super().after_fork()
        self._poked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def _start(self) -> None:
        self._task = self._loop.create_task(self.run(), name="shared_resilience-attendant")

    def _poke(self) -> None:
        self._poked.set()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self._poked.wait()
        except TimeoutError:
            return
        finally:
            self._poked.clear()

    async def _listen(self, seconds: float) -> None:
        await super()._listen(seconds)
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError  # wait_for of Python 3.11 may swallow it while redis-py connects

    async def stop(self) -> None:
        """Ends the task; the next thing to look after begins another."""
        task = self._task
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=STEP)  # `wait_for` of Python 3.11 may swallow what redis-py should hear
