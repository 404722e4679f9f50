"""Rosters: sorted sets of members by the time at which they were last seen. Twin of `lib/roster.lua`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from shared_resilience.commands import State


def sight(roster: State, now: int, horizon: int, members: Sequence[str]) -> dict[str, int]:
    """The roster after `members` were seen: without those that were not seen for `horizon` microseconds."""
    known = cast("Mapping[str, int]", roster or {})
    seen = {**known, **dict.fromkeys(members, now)}
    return {member: time for member, time in seen.items() if now - horizon <= time <= now}


def time_to_live(horizon: int) -> int:
    """For how many milliseconds a roster is kept."""
    return max(1000, -(-horizon // 1000))
