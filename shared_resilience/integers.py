"""Twin of `lua/lib/integers.lua`: what scripts and twins have in common about numbers."""

from __future__ import annotations

import re

_COUNT = re.compile("0|-?[1-9][0-9]{0,18}")

LARGEST = 2**53 - 1
"""The largest integer that scripts take."""

LONGEST_WAIT = 2**52
"""The longest time that is told or kept, 142 years, and the deepest debt: sums of larger ones are not exact in Lua."""

MILLION = 1_000_000


def to_integer(text: object) -> int | None:
    """The integer that `text` holds, else None; as Lua reads it."""
    try:
        number = float(str(text))
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def added_to_count(stored: object, by: int) -> int:
    """Twin of `lua/lib/count.lua`: what a count that was `stored` becomes, None being 0."""
    text = "0" if stored is None else str(stored)
    total = int(text) + by if _COUNT.fullmatch(text) else by
    return total if abs(total) <= 2**63 - 1 else by


def to_wait(microseconds: int) -> int:
    """`microseconds` as a reply may carry them: none below 0, none above `LONGEST_WAIT`."""
    return max(0, min(microseconds, LONGEST_WAIT))


def to_ttl(microseconds: int) -> int:
    """A time to live in milliseconds that covers `microseconds`: at least a second."""
    return max(1000, -(-microseconds // 1000))
