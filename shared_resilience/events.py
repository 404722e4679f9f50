"""What the library tells its listeners.

| event | when | details |
|---|---|---|
| `limit.refused` | a rate limiter refused a call | key, decision |
| `limit.shadow_refused` | a rate limiter in shadow mode would have refused a call | key, decision |
| `breaker.opened` | the circuit opened; in the process that caused it, and in each other when it hears of it | below |
| `breaker.half_opened` | the open time is over and a probe was lent, likewise | below |
| `breaker.closed` | the circuit closed, or was reset, likewise | below |
| `breaker.untold` | what calls have shown could not be told; the calls themselves know nothing of it | error |
| `bulkhead.refused` | no slot, and no place in the queue or no time left to wait | priority, inside, waited |
| `bulkhead.shadow_refused` | a bulkhead in shadow mode had no slot for a call | priority, inside, waited |
| `bulkhead.lost` | a lease ran out under a call that still runs, and its slot may be another's | token |
| `fallback.failed` | a level of a chain has raised, and the next one is asked | level, error |
| `fallback.used` | a level other than the primary has answered | level, age |
| `fallback.exhausted` | no level has answered | levels |
| `fallback.not_kept` | a value could not be kept as the last good one | why |
| `idempotency.taken_over` | a key was claimed whose holder has let its lease run out | key, fencing |
| `idempotency.refused` | a call was not made, since its key is in use | key, reason |
| `health.down`, `health.up` | a health check became unhealthy or healthy | check_type, error |
| `idempotency.lost` | a lease ran out under a call that still ran, and another has taken its key over | key, fencing |
| `idempotency.untold` | Redis could not be told yet how a call has ended | key, error |
| `override.ignored` | an override is no number in its range; once per process and field | field |
| `store.lost` | Redis cannot decide any more; this process decides alone | fault, error |
| `store.recovered` | Redis decides again | seconds_away |
| `store.rejected` | Redis answered a command with an error of its own, such as WRONGTYPE; decided locally | error |

Of a breaker the details are: `observed` (False in the one process of the fleet that caused it), `mode` (a forced mode
or None), `generation`, `retry_after` in seconds, the evidence that opened the circuit (`calls`, `failures`,
`slow_calls` and the failing `workers`), `trips` (openings in a row), `shadow` and `source`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

logger = logging.getLogger("shared_resilience")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: its `name`, the `resource` it happened to ("" for the store), and `details`."""

    name: str
    resource: str
    details: Mapping[str, object]


Listener = Callable[[Event], object]


class Events:
    """Hands events to listeners, in the thread or task in which they happen. A listener's error is logged, no more."""

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()

    def add(self, listeners: Iterable[Listener]) -> None:
        self._listeners += tuple(listeners)

    def emit(self, name: str, resource: str = "", **details: object) -> None:
        if not self._listeners:
            return
        event = Event(name, resource, MappingProxyType(details))
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("listener %r failed on %s", listener, name)
