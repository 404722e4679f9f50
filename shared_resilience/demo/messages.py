"""What the demo and its workers tell each other: a line of JSON per message, on standard input and output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

Message = dict[str, Any]


def encode(message: Mapping[str, Any]) -> str:
    """A message as a line."""
    return json.dumps(message) + "\n"


class Call(NamedTuple):
    """A call that the limiter granted: when (`time.monotonic`, one clock for all processes), and who decided.

    `status` is what the upstream answered.
    """

    granted_at: float
    source: str
    status: int


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is to do: call `upstream_url` under this limit; without `redis_url` it shares it with nobody."""

    upstream_url: str
    redis_url: str | None
    prefix: str
    name: str
    capacity: int
    refill_rate: float
    open_seconds: float = 0.0
    """Above 0, the worker calls the fragile upstream, through a circuit breaker that stays open for so long at first.
    """

    def message(self) -> Message:
        return asdict(self)
