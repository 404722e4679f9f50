"""What a limiter answers."""

from __future__ import annotations

from typing import NamedTuple

from shared_resilience.commands import Source


class Decision(NamedTuple):
    """The answer of a rate limiter; true when the call may go on.

    `limit` is the largest burst, `remaining` how much of it is left, both as counts; in a local decision they are this
    process's share. `retry_after` is the seconds until the same call would pass (0 when allowed, `inf`: never),
    `reset_after` the seconds until the limit is as if unused, `delay` the seconds that an allowed call must wait before
    it goes on, and a refused one would have to at least. `limited_by` is the label of the limit that refused, or None.
    `source` is who decided: `"redis"` (the whole fleet's state) or `"local"` (this process alone).
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
