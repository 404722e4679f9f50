"""The commands of a circuit, and the view that every one of their replies brings."""

from __future__ import annotations

import math
from typing import NamedTuple

from shared_resilience import circuit
from shared_resilience.commands import Operation, Reply, Source


class View(NamedTuple):
    """The circuit as a reply tells of it; times in seconds.

    `result` is 1 if what was asked for was done, `caused` 1 if the call changed the state. `retry_after` is the time
    until a probe may be asked for (`inf`: never), `age` the time since the circuit opened, `backoff` how long it did
    without jitter. `calls`, `failures` and `slow` are those of the fleet in the window; since it opened, those that
    opened it.
    """

    result: int
    caused: int
    state: str
    mode: str
    generation: int
    retry_after: float
    age: float
    calls: int
    failures: int
    slow: int
    workers: tuple[str, ...]
    trips: int
    backoff: float
    leases: int
    successes: int
    ignored: str
    source: Source

    @property
    def standing(self) -> tuple[str, str, int]:
        """What changes only when the circuit does: state, mode and generation."""
        return self.state, self.mode, self.generation


def view_of(reply: Reply, source: Source) -> View:
    """A reply, decoded."""
    result, caused, state, mode, generation, wait, age, calls, failures, slow, workers, *rest = reply
    trips, backoff, leases, successes, ignored = rest
    return View(
        int(result),
        int(caused),
        _text(state),
        _text(mode),
        int(generation),
        math.inf if int(wait) < 0 else int(wait) / 1e6,
        int(age) / 1e6,
        int(calls),
        int(failures),
        int(slow),
        tuple(_text(workers).split()),
        int(trips),
        int(backoff) / 1e6,
        int(leases),
        int(successes),
        _text(ignored),
        source,
    )


def _text(value: int | str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


PROBE: Operation[View] = Operation("circuit_breaker_probe", circuit.probe, view_of)
SETTLE: Operation[View] = Operation("circuit_breaker_settle", circuit.settle, view_of)
CONTROL: Operation[View] = Operation("circuit_breaker_control", circuit.control, view_of)
