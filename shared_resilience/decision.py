"""What a limiter answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from shared_resilience.commands import Reply, Source


class Decision(NamedTuple):
    """The answer of a rate limiter; true when the call may go on.

    `limit` is the largest burst, `remaining` how much of it is left, both as counts; in a local decision they are this
    process's share. `retry_after` is the seconds until the same call would pass (0 when allowed, `inf`: never),
    `reset_after` the seconds until the limit is as if unused, `delay` the seconds that an allowed call must wait before
    it goes on. `limited_by` is the label of the limit that refused, else None. `source` is who decided: `"redis"`
    (the whole fleet's state) or `"local"` (this process alone).
    """

    allowed: bool
    limit: int
    remaining: int
    retry_after: float
    reset_after: float
    delay: float
    limited_by: str | None
    source: Source

    def __bool__(self) -> bool:
        return self.allowed


ALLOWED: Reply = (1, 0, 0, 0, 0)
"""The reply of a limit script when Redis is away and calls are to pass unlimited."""

DENIED: Reply = (0, 0, 0, 1_000_000, 0)
"""The reply of a limit script when Redis is away and calls are to be refused: ask again in a second."""


def decoder(label: str) -> Callable[[Reply, Source], Decision]:
    """Makes replies of the scripts for the limit `label` into decisions."""

    def decode(reply: Reply, source: Source) -> Decision:
        allowed, limit, remaining, retry_after, reset_after = map(int, reply)
        if allowed:
            return Decision(True, limit, remaining, 0.0, reset_after / 1e6, 0.0, None, source)
        wait = math.inf if retry_after < 0 else retry_after / 1e6
        return Decision(False, limit, remaining, wait, reset_after / 1e6, 0.0, label, source)

    return decode
