"""How figures of many runs of a test become one."""

from __future__ import annotations

from faults_page import Row, rows_of, spanned, table


def test_figures_that_are_alike_are_one_with_the_least_and_the_largest() -> None:
    assert spanned(["1,200 calls, 0.5 ms", "900 calls, 0.5 ms", "none", "none"]) == [
        "900 … 1,200 calls, 0.5 ms",
        "none",
    ]


def test_a_test_has_one_row_however_often_it_ran() -> None:
    rows = [
        Row(f"tests/faults/test_away.py::test_a[{case}]", "it breaks", "it holds", (f"{case} ms",)) for case in (1, 3)
    ]
    rows.append(Row("tests/test_clients.py::test_b", "another", "holds too", ()))

    text = table(rows_of(rows))

    assert "### Redis is down, refuses, or comes back\n" in text
    assert "| it breaks | it holds | 1 … 3 ms |" in text
    assert "| another | holds too | holds |" in text
