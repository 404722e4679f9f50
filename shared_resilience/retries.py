"""The core of retries, written once for sync and asyncio: whether, when, and out of which budget."""

from __future__ import annotations

import logging
import math
import random
from typing import Any

from shared_resilience.backends import Backend
from shared_resilience.backends.process import Component, Process
from shared_resilience.backoff import delay_before
from shared_resilience.commands import Command
from shared_resilience.deadline import remaining
from shared_resilience.errors import (
    DeadlineExceeded,
    ResilienceError,
    RetryableError,
    StoreConfigurationError,
    StoreUnavailableError,
)
from shared_resilience.limit_commands import PAUSE_FOR
from shared_resilience.responses import retry_after_of, status_of
from shared_resilience.retry_budget import REQUESTS, Budget
from shared_resilience.retry_config import Jitter, RetryConfig

logger = logging.getLogger("shared_resilience")
TOO_MANY, UNAVAILABLE = 429, 503
LONGEST_COOLDOWN = 3600.0
MOST_NOTES = 10
FINAL = (DeadlineExceeded, StoreConfigurationError, StoreUnavailableError)
"""Refusals of ours that no retry can heal."""


class Retries(Component):
    """The retries of one resource in one process."""

    def __init__(self, name: str, config: RetryConfig, process: Process) -> None:
        self.name = name
        self.config = config
        self.resource = process.heartbeat.resource(name)
        self.resource.configure({f"retry.{field}": number for field, number in config.numbers().items()})
        self.budget = Budget(self.resource, config) if config.retry_budget_percent is not None else None
        self.monotonic = process.clock.monotonic
        self._process = process
        self._random = random.Random()
        self._due = process.heartbeat.due
        self._specific = dict.fromkeys(config.retry_on, True)
        self._specific = {**dict.fromkeys(config.give_up_on, False), **self._specific}

    def after_fork(self) -> None:
        self._random = random.Random()
        if self.budget is not None:
            self.budget.restart()

    def begin(self) -> float:
        """Counts a call that begins, and when it does. Raises `DeadlineExceeded` if its deadline has passed."""
        if remaining() <= 0:
            raise DeadlineExceeded(self.name, 0.0)
        resource = self.resource
        resource.count(REQUESTS)
        resource.last_used = now = self.monotonic()
        return now

    def is_beat_due(self, now: float) -> bool:
        """Whether `backend.keep_up` has something to tell."""
        return self._due(now)

    # What is retried.

    def wants_again(self, error: Exception) -> bool:
        """Whether an exception is worth a retry, by its kind or by the status that it tells of."""
        if isinstance(error, RetryableError):
            return True
        if isinstance(error, ResilienceError):
            wait: float = getattr(error, "retry_after", math.inf)
            return not isinstance(error, (*FINAL, *self.config.give_up_on)) and wait <= remaining() < math.inf
        status = status_of(error)
        if status is not None:
            return self._is_status_again(status, error)
        return next((self._specific[kind] for kind in type(error).__mro__ if kind in self._specific), False)

    def is_unwanted(self, result: object) -> bool:
        """Whether a returned value is worth a retry; runs the user's `retry_on_result`."""
        judge = self.config.retry_on_result
        if judge is not None and judge(result):
            return True
        status = status_of(result)
        return status is not None and self._is_status_again(status, result)

    def _is_status_again(self, status: int, outcome: object) -> bool:
        return status in self.config.retry_on_status or (status == TOO_MANY and retry_after_of(outcome) is not None)

    # Statistics.

    def known(self) -> dict[str, object]:
        """What this process knows without asking."""
        return {
            "config": self.config.numbers(),
            **self.resource.statistics("retry"),
        }

    async def cool_down(self, backend: Backend, seconds: float) -> None:
        """Pauses the resource for the fleet. What goes wrong is not its caller's affair."""
        command = Command(PAUSE_FOR, (self.resource.keys.overrides,), (math.ceil(seconds * 1e6),))
        try:
            left_us = await backend.run(command, self.resource)
        except ResilienceError as error:
            logger.warning("the resource %r could not be paused: %s", self.name, error)
            return
        self._process.local.execute(command)  # should Redis be lost before the heartbeat brings it
        self.resource.paused_until = backend.monotonic() + left_us / 1e6

    def draw(self) -> float:
        """A random number from 0 to 1."""
        return self._random.random()


Refusals = frozenset[tuple[type[Exception], str]]
"""Refusals, by type and by the name of who refuses, that are not retried."""

NO_REFUSALS: Refusals = frozenset()


class Attempts:
    """The attempts of one call that began at `began`; it ends with one of its `own_refusals`."""

    def __init__(self, core: Retries, began: float, own_refusals: Refusals = NO_REFUSALS) -> None:
        self._core = core
        self._own_refusals = own_refusals
        self.made = 0
        self._began = began
        self._delay = 0.0
        self._history: list[str] = []

    async def again_after(self, backend: Backend, error: Exception) -> bool:
        """Whether there is another attempt after `error`, waited for. If not, `error` is told what has happened."""
        self._note(f"{type(error).__name__}: {error}")
        is_own = self._own_refusals and (type(error), getattr(error, "name", "")) in self._own_refusals
        if is_own or not self._core.wants_again(error):
            why = "it is not retried" if self.made == 1 else "this one is not retried"
        else:
            why = await self._wait(backend, error)
        if not why:
            return True
        if self.made > 1 or "budget" in why or "deadline" in why:
            for line in (*self._history[-MOST_NOTES:], f"{self._core.name}: {self.made} attempts, {why}"):
                error.add_note(line)
        return False

    async def again_with(self, backend: Backend, result: object) -> bool:
        """Whether there is another attempt after a returned value that is not wanted, waited for."""
        self._note(f"returned {type(result).__name__}")
        return not await self._wait(backend, result)

    def _note(self, what: str) -> None:
        self.made += 1
        after = self._core.monotonic() - self._began
        self._history.append(f"attempt {self.made} failed after {after:.3f} s: {what[:200]}")

    async def _wait(self, backend: Backend, outcome: Any) -> str:
        """Waits before the next attempt. Returns why there is none, "" if there is."""
        core, config = self._core, self._core.config
        asked_for = retry_after_of(outcome)
        if config.cooldown and asked_for and status_of(outcome) in (TOO_MANY, UNAVAILABLE):
            await core.cool_down(backend, min(asked_for, LONGEST_COOLDOWN))
        if self.made > config.max_retries:
            return "there are no more"
        delay = self._delay = delay_before(config, self.made, self._delay, core.draw())
        asked_for = max(asked_for or 0.0, core.resource.paused_until - backend.monotonic() if config.cooldown else 0.0)
        if asked_for > 0:
            delay = asked_for if config.jitter is Jitter.NONE else asked_for + delay
        if asked_for > config.max_delay:
            return f"the next would have to wait for {asked_for:.3f} s, longer than max_delay"
        if delay >= remaining():
            return "the next would come after the deadline"
        if core.budget is not None and not (await core.budget.withdraw(backend)).taken:
            core.resource.count("retry.refused")
            return "the retry budget of the fleet is exhausted"
        core.resource.count("retry.retries")
        if delay > 0:
            await backend.sleep(delay)
        return ""
