"""For the tests of those who use this library."""

from __future__ import annotations


class ManualClock:
    """A clock that moves only when told to: sleeping moves it, and takes no time.

    ```python
    clock = ManualClock()
    service = ResilienceService.local(clock=clock)
    clock.advance(60)
    ```
    """

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Moves the clock on by `seconds` ≥ 0."""
        self._now += seconds

    sleep = advance

    async def async_sleep(self, seconds: float) -> None:
        self.advance(seconds)
