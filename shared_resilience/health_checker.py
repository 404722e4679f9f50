"""Health checkers, in both forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from shared_resilience.backends import Backends, step
from shared_resilience.checkup import Check, Checkup
from shared_resilience.functions import mirrors
from shared_resilience.health import HealthCheckResult

C = TypeVar("C", bound=Callable[[], object])


class HealthChecker:
    """Asks whether something is healthy; made by `ResilienceService.get_or_create_health_checker`.

    A check is a function without arguments. It is unhealthy when it raises, has not answered in time, or returns False,
    a status such as "down", or a mapping with such a "status" or with False for "healthy".
    """

    def __init__(self, core: Checkup, backends: Backends) -> None:
        self._core = core
        self._backend = backends.blocking

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {'healthy' if self._core.healthy else 'unhealthy'})"

    @property
    def name(self) -> str:
        """The name of the check."""
        return self._core.name

    @property
    def is_healthy(self) -> bool:
        """Whether it is healthy as far as is known: it has passed, and has not failed `grace` times in a row since.

        What is to be alive is taken to be so until it fails.
        """
        self._core.revive(self._backend)
        return self._core.healthy

    def register(self, check: C) -> C:
        """Has `check` be what is asked, and returns it, so that it serves as a decorator.

        Raises `ValueError` if another function is, or if it is none.
        """
        self._core.register(check)
        return check

    def check(self, check: Check | None = None) -> HealthCheckResult:
        """Makes the check now: asks `check`, or what is registered. Whatever goes wrong there is in the result.

        Raises `LookupError` if there is nothing to ask.
        """
        return step(self._core.ask(self._backend, check))

    def start(self) -> None:
        """Makes the check every `interval` seconds in the background, until `stop` or the service is closed.

        A forked child goes on with it as soon as it is asked for `is_healthy` or the health of its service; on asyncio
        it must be started in each event loop. Raises `LookupError` if nothing is registered.
        """
        self._core.start(self._backend)

    def stop(self) -> None:
        """Ends what `start` has begun."""
        self._core.stop()

    def get_stats(self) -> dict[str, object]:
        """What was found last, what was counted, and the configuration; plain data."""
        return self._core.known()


@mirrors(HealthChecker)
class AsyncHealthChecker:
    def __init__(self, core: Checkup, backends: Backends) -> None:
        self._core = core
        self._backend = backends.suspending

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {'healthy' if self._core.healthy else 'unhealthy'})"

    @property
    def name(self) -> str:
        return self._core.name

    @property
    def is_healthy(self) -> bool:
        return self._core.healthy

    def register(self, check: C) -> C:
        self._core.register(check)
        return check

    async def check(self, check: Check | None = None) -> HealthCheckResult:
        return await self._core.ask(self._backend, check)

    def start(self) -> None:
        self._core.start(self._backend)

    def stop(self) -> None:
        self._core.stop()

    async def get_stats(self) -> dict[str, object]:
        return self._core.known()
