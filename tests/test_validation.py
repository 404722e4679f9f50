"""What users pass in: what is taken, what is refused, and in which words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from shared_resilience import validation
from shared_resilience.integers import LONGEST_WAIT, to_integer, to_ttl, to_wait


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (lambda v: validation.count("f", v), [1, 2, 10**9]),
        (lambda v: validation.count("f", v, 0, 5), [0, 5]),
        (lambda v: validation.number("f", v, 0.5, 2), [0.5, 1, 2]),
        (lambda v: validation.rate("f", v), [1e-6, 7, 1e9]),
        (lambda v: validation.timeout("f", v), [0, 0.0, 3, math.inf]),
        (lambda v: validation.choice("f", v, ("a", "b")), ["a", "b"]),
        (lambda v: validation.flag("f", v), [True, False]),
        (lambda v: validation.text("f", v), ["x", " "]),
        (lambda v: validation.label("f", v), ["aZ09_.-", "x" * 64]),
        (lambda v: validation.prefix("f", v), ["sr:a/b", "x" * 64]),
    ],
)
def test_what_is_allowed_is_returned_as_it_is(check: Any, values: list[Any]) -> None:
    assert [check(value) for value in values] == values


def test_no_timeout_is_for_ever() -> None:
    assert validation.timeout("f", None) == math.inf


@pytest.mark.parametrize(
    ("check", "values", "allowed"),
    [
        (
            lambda v: validation.exceptions("f", v),
            [None, [ValueError], (int,), ("x",), (ValueError, BaseException)],
            "a tuple of subclasses of Exception",
        ),
        (lambda v: validation.count("f", v), [0, 10**9 + 1, True, 1.0, "1", None], "an integer from 1 to 1000000000"),
        (lambda v: validation.count("f", v, 0, 5), [-1, 6, False], "an integer from 0 to 5"),
        (lambda v: validation.number("f", v, 0.5, 2), [0.4, 2.1, math.nan, True, "1"], "a number from 0.5 to 2"),
        (lambda v: validation.rate("f", v), [0, 9e-7, 1.1e9, math.inf], "a number from 1e-06 to 1e+09"),
        (lambda v: validation.timeout("f", v), [-1, -0.1, math.nan, True, "1"], "a number of seconds >= 0, or None"),
        (lambda v: validation.choice("f", v, ("a", "b")), ["c", 1, None], "one of 'a', 'b'"),
        (lambda v: validation.flag("f", v), [0, 1, None, "True"], "True or False"),
        (lambda v: validation.text("f", v), ["", 1, None], "a text of at least one character"),
        (lambda v: validation.label("f", v), ["", "a b", "x" * 65, 1], "1 to 64 letters, digits, '_', '.' or '-'"),
        (
            lambda v: validation.prefix("f", v),
            ["", "a b", "a{", "x" * 65, 1],
            "1 to 64 characters without white space and { } % * ? [ ] \\",
        ),
    ],
)
def test_what_is_not_is_named_with_the_field_and_what_is_allowed(check: Any, values: list[Any], allowed: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=r"^f is ") as caught:
            check(value)
        assert str(caught.value) == f"f is {value!r}, but must be {allowed}"


@pytest.mark.parametrize(("length", "shown"), [(78, repr("x" * 78)), (79, repr("x" * 79)[:77] + "...")])
def test_a_long_value_is_shown_shortened(length: int, shown: str) -> None:
    with pytest.raises(ValueError, match=r"^f is ") as caught:
        validation.flag("f", "x" * length)

    assert str(caught.value) == f"f is {shown}, but must be True or False"


@pytest.mark.parametrize(
    ("text", "integer"), [("7", 7), ("-3", -3), (b"7", None), ("1.5", None), ("nan", None), ("", None), (None, None)]
)
def test_integers_are_read_as_lua_reads_them(text: object, integer: int | None) -> None:
    assert to_integer(text) == integer


def test_waits_and_times_to_live_stay_within_what_redis_can_be_told() -> None:
    assert [to_wait(number) for number in (-1, 0, 1, LONGEST_WAIT, LONGEST_WAIT + 1)] == [
        0,
        0,
        1,
        LONGEST_WAIT,
        LONGEST_WAIT,
    ]
    assert [to_ttl(number) for number in (0, 1_000_000, 1_000_001, 1_001_001)] == [1000, 1000, 1001, 1002]
