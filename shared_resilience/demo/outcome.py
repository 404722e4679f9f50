"""What happens in a scene, and what is kept of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from shared_resilience.demo.messages import Call, Message
from shared_resilience.demo.plan import OUTAGE, Plan


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene; `name` is the resource in Redis. `outage`: after how many seconds, and for how many, Redis is away.

    With `protected` workers call through a circuit breaker, and in the outage it is the upstream that is broken.
    """

    number: int
    name: str
    title: str
    seconds: float
    shared: bool = True
    outage: tuple[float, float] | None = None
    protected: bool = False


def scenes(plan: Plan) -> list[Scene]:
    """The scenes of a run."""
    alone = "Without sharing: each worker has the whole limit for itself"
    fleet = "With sharing: the workers keep one limit together"
    outage = "With sharing, and Redis goes away and comes back"
    return [
        Scene(1, "without-sharing", alone, plan.seconds, shared=False),
        Scene(2, "with-sharing", fleet, plan.seconds),
        Scene(3, "outage", outage, plan.long_seconds, outage=(plan.cut_after, OUTAGE)),
        Scene(
            4,
            "own-breakers",
            "The upstream breaks: each worker has a circuit breaker of its own",
            plan.seconds,
            shared=False,
            outage=plan.broken,
            protected=True,
        ),
        Scene(
            5,
            "one-breaker",
            "The upstream breaks: the workers share one circuit breaker",
            plan.seconds,
            outage=plan.broken,
            protected=True,
        ),
    ]


@dataclass(slots=True)
class Outcome:
    """A scene as it was recorded: each worker's calls by the clock, what failed, and what the upstream counted."""

    scene: Scene
    calls: list[list[Call]]
    began: float = math.inf
    until: float = math.inf
    cut_at: float | None = None
    restored_at: float | None = None
    refused: dict[int, int] = field(default_factory=dict)
    """For each worker how often it got no permit, or met an open circuit."""
    errors: list[str] = field(default_factory=list)
    answers: Message = field(default_factory=lambda: {"200": 0, "429": 0, "per_second": []})

    def __iter__(self) -> Iterator[Call]:
        return chain.from_iterable(self.calls)

    @property
    def granted(self) -> int:
        """The calls that the limiters granted."""
        return sum(map(len, self.calls))

    @property
    def duration(self) -> float:
        """From before any worker asked for the first time until the last grant: never less than what Redis saw."""
        return max((call.granted_at for call in self), default=self.began) - self.began if self.granted else 0.0

    def most(self, plan: Plan) -> int:
        """What one limit may grant in that time, rounded up to a whole call."""
        return math.ceil(plan.capacity + plan.limit * self.duration)

    def enough(self, plan: Plan) -> int:
        """What one limit grants to those who always want more, from the first call to the end of the scene."""
        return math.floor(plan.capacity + plan.limit * (self.until - self.began))

    def decided_locally(self) -> int:
        """How many calls were granted without Redis."""
        return sum(call.source == "local" for call in self)

    def failed(self) -> list[Call]:
        """The calls that met a broken upstream, in order."""
        return sorted(call for call in self if call.status == 503)

    def recoveries(self) -> list[float]:
        """For each worker that got through again: how long after the upstream was mended."""
        back = self.restored_at if self.restored_at is not None else math.inf
        firsts = (
            next((call.granted_at - back for call in calls if call.status == 200 and call.granted_at > back), None)
            for calls in self.calls
        )
        return [first for first in firsts if first is not None]

    def returns(self) -> list[float]:
        """For each worker that came back to Redis: how long after its return it got its first shared grant."""
        back = self.restored_at if self.restored_at is not None else math.inf
        firsts = (
            next((call.granted_at - back for call in calls if call.source == "redis" and call.granted_at > back), None)
            for calls in self.calls
        )
        return [first for first in firsts if first is not None]
