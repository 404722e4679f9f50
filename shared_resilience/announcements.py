"""What listeners are told of a circuit breaker: each change once, with its evidence."""

from __future__ import annotations

from shared_resilience.circuit_commands import View
from shared_resilience.evidence import News
from shared_resilience.heartbeat import Resource

EVENTS = {"closed": "breaker.closed", "open": "breaker.opened", "half_open": "breaker.half_opened"}


class Announcements:
    """What the listeners of one breaker have been told."""

    def __init__(self, resource: Resource, shadow: bool) -> None:
        self._resource = resource
        self._shadow = shadow
        self._told: View | None = None
        self._ignored: set[str] = set()

    def of(self, view: View, taken: bool, held: bool) -> News:
        """What they are to be told after `view`.

        Of what others caused only if it was `taken` in and is not hidden by a circuit that is `held` open.
        """
        news: News = []
        for field in view.ignored.split():
            if field not in self._ignored:
                self._ignored.add(field)
                news.append(("override.ignored", {"field": field}))
        if view.caused:
            self._resource.count(EVENTS[view.state])
        elif not taken or held or not self._is_new(view):
            return news
        self._told = view
        details = {**self.details(view), "observed": not view.caused}
        news.append((EVENTS[view.state], details))
        return news

    def _is_new(self, view: View) -> bool:
        told = self._told
        if view.state == "closed" and not view.mode and (told is None or (told.state == "closed" and not told.mode)):
            return False
        if told is None or told.mode != view.mode:
            return True
        if told.source != view.source:
            return view.generation != told.generation
        return view.generation > told.generation

    def details(self, view: View) -> dict[str, object]:
        """The evidence of a change, or of the present state."""
        return {
            "shadow": self._shadow,
            "mode": view.mode or None,
            "generation": view.generation,
            "retry_after": view.retry_after,
            "calls": view.calls,
            "failures": view.failures,
            "slow_calls": view.slow,
            "workers": view.workers,
            "trips": view.trips,
            "source": view.source,
        }
