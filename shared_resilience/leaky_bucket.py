"""Leaky bucket: a queue that lets calls go on one by one; and the twin of `lua/lib/leaky_bucket.lua`.

The algorithm is the "leaky bucket as a queue" of J. Turner, "New directions in communications", IEEE Communications
Magazine 24 (10), 1986, with the queue kept as numbers: who enters is told how long to wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from shared_resilience import validation
from shared_resilience.commands import Argument, State
from shared_resilience.integers import to_ttl
from shared_resilience.token_bucket import Bucket, as_period


@dataclass(frozen=True, slots=True)
class LeakyBucket:
    """Calls leave one by one, `leak_rate` per second; up to `capacity` may be inside, the one that leaves included.

    A call enters while there is room and is told its `delay`, the seconds until its turn. `capacity` is an integer from
    1 to 10⁹, `leak_rate` a number from 10⁻⁶ to 10⁹. `label` names the limit: letters, digits, `_ . -`. Raises
    `ValueError` for any other value.
    """

    capacity: int
    leak_rate: float
    label: str = "leaky_bucket"

    def __post_init__(self) -> None:
        validation.count("capacity", self.capacity)
        validation.rate("leak_rate", self.leak_rate)
        validation.label("label", self.label)

    @property
    def most(self) -> int:
        """The largest cost that can ever pass."""
        return self.capacity

    def numbers(self) -> dict[str, float]:
        """The numbers in force, as they stand in clear in the resource's `config`."""
        return {"capacity": self.capacity, "leak_rate": self.leak_rate}

    def arguments(self) -> tuple[Argument, ...]:
        """What the scripts are told of it."""
        return ("leaky_bucket", self.label, self.capacity, *as_period(self.leak_rate))


class QueueState(NamedTuple):
    """The hash of a leaky bucket."""

    microlevel: int
    time_us: int


class Queue(Bucket):
    """A leaky bucket as it stands at `now`: its room are the tokens of a token bucket."""

    def __init__(self, stored: State, now: int, capacity: int, refill: int, per: int, share: int) -> None:
        super().__init__(stored, now, capacity, refill, per, share)
        self.delay = self.reset_after

    def _load(self, stored: State) -> tuple[int, int]:
        level, time = stored if isinstance(stored, QueueState) else (0, self.now)
        return self.capacity - level, time

    def _store(self) -> None:
        self.stored = QueueState(self.capacity - self.tokens, self.time)
        self.ttl = to_ttl(self.reset_after)
