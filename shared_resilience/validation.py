"""Checks of what users pass in: a wrong value is a `ValueError` that names the field, the value and the range."""

from __future__ import annotations

import math
import re

LARGEST_COUNT = 10**9
SMALLEST_RATE, LARGEST_RATE = 1e-6, 1e9
_LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PREFIX = re.compile(r"[^\s{}%*?\[\]\\\x00-\x1f\x7f]{1,64}")


def wrong(field: str, value: object, allowed: str) -> ValueError:
    """The error that says what `field` is and what it must be."""
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ValueError(f"{field} is {shown}, but must be {allowed}")


def count(field: str, value: object, low: int = 1, high: int = LARGEST_COUNT) -> int:
    """An `int` (not a `bool`) from `low` to `high`."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise wrong(field, value, f"an integer from {low} to {high}")


def number(field: str, value: object, low: float, high: float) -> float:
    """A finite `int` or `float` (not a `bool`) from `low` to `high`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise wrong(field, value, f"a number from {low:g} to {high:g}")


def rate(field: str, value: object) -> float:
    """A rate per second from 10⁻⁶ to 10⁹."""
    return number(field, value, SMALLEST_RATE, LARGEST_RATE)


def timeout(field: str, value: object) -> float:
    """Seconds to wait: a number ≥ 0, or None for as long as it takes (returned as `inf`)."""
    if value is None:
        return math.inf
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return value
    raise wrong(field, value, "a number of seconds >= 0, or None")


def choice(field: str, value: object, allowed: tuple[str, ...]) -> str:
    """One of a few words."""
    if isinstance(value, str) and value in allowed:
        return value
    raise wrong(field, value, "one of " + ", ".join(map(repr, allowed)))


def flag(field: str, value: object) -> bool:
    """True or False."""
    if isinstance(value, bool):
        return value
    raise wrong(field, value, "True or False")


def text(field: str, value: object) -> str:
    """A text of at least one character."""
    if isinstance(value, str) and value:
        return value
    raise wrong(field, value, "a text of at least one character")


def label(field: str, value: object) -> str:
    """The label of a limit: letters, digits, `_ . -`, 1 to 64 of them."""
    if isinstance(value, str) and _LABEL.fullmatch(value):
        return value
    raise wrong(field, value, "1 to 64 letters, digits, '_', '.' or '-'")


def prefix(field: str, value: object) -> str:
    """The prefix of all keys: 1 to 64 characters, no white space and none of `{ } % * ? [ ] \\`."""
    if isinstance(value, str) and _PREFIX.fullmatch(value):
        return value
    raise wrong(field, value, "1 to 64 characters without white space and { } % * ? [ ] \\")


def exceptions(field: str, value: object) -> tuple[type[Exception], ...]:
    """A tuple of classes of `Exception`."""
    if isinstance(value, tuple) and all(isinstance(kind, type) and issubclass(kind, Exception) for kind in value):
        return value
    raise wrong(field, value, "a tuple of subclasses of Exception")
