"""Live changes to limits, circuit breakers and bulkheads, and pauses: the twin of `lua/lib/overrides.lua`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import cast

from shared_resilience import validation
from shared_resilience.circuit_numbers import NUMBERS
from shared_resilience.commands import Argument, Arguments, State
from shared_resilience.integers import MILLION, to_integer
from shared_resilience.sliding_window import LONGEST_WINDOW, SHORTEST_WINDOW, SLOTS
from shared_resilience.validation import LARGEST_COUNT, LARGEST_RATE, SMALLEST_RATE

_DECIMAL = re.compile(r"[0-9]+\.?[0-9]*")
RATES = {"leaky_bucket": "leak_rate", "token_bucket": "refill_rate"}
Numbers = tuple[int, int, int]
PER_LIMIT = 5
"""Arguments by which scripts are told of a limit: kind, label, three numbers."""


BREAKER = "breaker."
BULKHEAD = "bulkhead."
SIZES = ("max_concurrent_calls", "max_queue_size")
"""The numbers of a bulkhead that can be overridden."""

_FIELD = re.compile(r"limit\.([A-Za-z0-9_.-]{1,64})\.(capacity|limit|refill_rate|leak_rate|window)")


def override_text(field: str, number: float) -> str:
    """`number` as the decimal text of the override `field`. Raises `ValueError` for what scripts would ignore."""
    if (breaker := NUMBERS.get(field.removeprefix(BREAKER))) and field.startswith(BREAKER):
        if breaker.finer == 1:
            return str(validation.count(field, number, int(breaker.low), int(breaker.high)))
        return f"{validation.number(field, number, breaker.low, breaker.high):.6f}"
    if field.startswith(BULKHEAD) and field.removeprefix(BULKHEAD) in SIZES:
        return str(validation.count(field, number))
    match = _FIELD.fullmatch(field)
    if not match:
        raise ValueError(
            f"field is {field!r}, but must be one like 'limit.<label>.refill_rate', 'breaker.window' or "
            "'bulkhead.max_concurrent_calls', as in `config`"
        )
    name = match[2]
    if name in ("capacity", "limit"):
        return str(validation.count(field, number))
    if name == "window":
        validation.number(field, number, SHORTEST_WINDOW, LONGEST_WINDOW)
    else:
        validation.rate(field, number)
    return f"{number:.6f}"


class Overrides:
    """The overrides of a resource as they stand; `stored` and `ttl` are what is to be written, `ttl` None: nothing."""

    def __init__(self, stored: State) -> None:
        self.stored: State = stored
        self.fields = cast("Mapping[str, str]", stored or {})
        self.ttl: int | None = None
        self.ignored = ""

    def number(self, field: str, low: float, high: float) -> float | None:
        """The number that overrides `field`; what is no decimal number from `low` to `high` is ignored and noted."""
        text = self.fields.get(field)
        if text is None:
            return None
        if _DECIMAL.fullmatch(text) and low <= float(text) <= high:
            return float(text)
        self._ignore(field)
        return None

    def _ignore(self, field: str) -> None:
        self.ignored = f"{self.ignored} {field}".strip()

    def count(self, field: str, low: float = 1, high: float = LARGEST_COUNT) -> int | None:
        """The integer from `low` to `high` that overrides `field`."""
        number = self.number(field, low, high)
        if number is not None and not number.is_integer():
            self._ignore(field)
            return None
        return None if number is None else int(number)

    def breaker(self, field: str) -> float | None:
        """The number that overrides `field` of the circuit breaker."""
        number = NUMBERS[field]
        read = self.count if number.finer == 1 else self.number
        return read(BREAKER + field, number.low, number.high)

    def rate(self, field: str) -> tuple[int | None, int | None]:
        """The rate that overrides `field`, as millionths per period."""
        rate = self.number(field, SMALLEST_RATE, LARGEST_RATE)
        if rate is None:
            return None, None
        per = 1_000_000 if rate <= 9000 else 1000
        return math.floor(rate * per + 0.5), per

    def in_force(self, kind: str, label: str, first: int, second: int, third: int) -> Numbers:
        """The three numbers of a limit: those of the caller, or what overrides them."""
        stem = f"limit.{label}."
        if kind == "sliding_window":
            window = self.number(stem + "window", SHORTEST_WINDOW, LONGEST_WINDOW)
            if window is not None:
                second = math.floor(window * MILLION + 0.5)
                third = -(-second // SLOTS) if third > 1 else 1
            return self.count(stem + "limit") or first, second, third
        refill, per = self.rate(stem + RATES[kind])
        return self.count(stem + "capacity") or first, refill or second, per or third

    def paused(self, now: int) -> int:
        """Microseconds for which the resource is still paused."""
        till, length = (to_integer(self.fields.get(field)) for field in ("paused_until_us", "paused_for_us"))
        if till is None:
            return 0
        left = till - now
        if length is None or left <= 0:
            self.write({"paused_until_us": "", "paused_for_us": ""})
            return 0
        if left > length:
            left = length
            self.write({"paused_until_us": str(now + length)})
        return left

    def write(self, fields: Mapping[str, str]) -> None:
        """Sets fields; the value "" clears one."""
        together = {**self.fields, **fields}
        self.fields = {field: value for field, value in together.items() if value != ""}
        self.stored, self.ttl = self.fields or None, 0  # for ever


def told_in_force(fields: Mapping[str, str], told: Arguments) -> tuple[Arguments, str]:
    """What scripts are told of limits, with the overrides in `fields` applied; and the fields that are ignored."""
    overrides, changed = Overrides(fields), list[Argument]()
    for start in range(0, len(told), PER_LIMIT):
        kind, label, *numbers = told[start : start + PER_LIMIT]
        changed += [kind, label, *overrides.in_force(str(kind), str(label), *map(int, numbers))]
    return tuple(changed), overrides.ignored


def fastest(told: Arguments) -> float:
    """Tokens per second of the fastest of buckets that scripts are told so."""
    rates = zip(told[3::PER_LIMIT], told[4::PER_LIMIT], strict=True)
    return max(int(refill) / int(per) for refill, per in rates)
