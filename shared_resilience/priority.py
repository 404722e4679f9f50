"""Priorities of calls, and what is reserved for the more important ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import IntEnum

from shared_resilience.integers import MILLION
from shared_resilience.validation import wrong


class PriorityLevel(IntEnum):
    """How important a call is; the most important ones are served first."""

    CRITICAL = 1
    HIGH = 2
    NORMAL = 3
    LOW = 4
    BACKGROUND = 5


Reserved = Mapping[PriorityLevel, float]
"""The share, above 0 and below 1, that is kept for calls of a level and for more important ones."""

HeldBack = tuple[int, ...]
"""By priority, the millionths that its calls must leave to more important ones."""


def priority_of(priority: object) -> PriorityLevel:
    """`priority`, checked: a level, or its number."""
    if isinstance(priority, PriorityLevel):
        return priority
    if type(priority) is int and PriorityLevel.CRITICAL <= priority <= PriorityLevel.BACKGROUND:
        return PriorityLevel(priority)
    raise wrong("priority", priority, "a PriorityLevel, from CRITICAL (1) to BACKGROUND (5)")


def checked_reserved(reserved: object) -> dict[PriorityLevel, float]:
    """A copy of `reserved`, checked."""
    allowed = "a mapping from PriorityLevel, CRITICAL to LOW, to shares above 0 that add up to less than 1"
    if not isinstance(reserved, Mapping):
        raise wrong("reserved", reserved, allowed)
    copy: dict[PriorityLevel, float] = {}
    for level, share in reserved.items():
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not isinstance(level, PriorityLevel) or level == PriorityLevel.BACKGROUND or not number or not share > 0:
            raise wrong("reserved", reserved, allowed)
        copy[level] = float(share)
    if not sum(copy.values()) < 1:
        raise wrong("reserved", reserved, allowed)
    return copy


def held_back(reserved: Reserved) -> HeldBack:
    """What calls of each priority leave to more important ones, indexed by priority."""
    return 0, *(
        math.floor(MILLION * sum(share for level, share in reserved.items() if level < priority) + 0.5)
        for priority in PriorityLevel
    )
