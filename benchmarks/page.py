"""Tables, and the page that holds them: docs/performance.md, of which a run rewrites every block of figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.rows import BYTES, PER_SECOND, RATIO, SPREAD, Row, range_of_runs

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- figures: ([a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_YES, _NO = "holds", "**does not hold**"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def written(page: str, blocks: Mapping[str, str]) -> str:
    """`page` with its blocks replaced. Raises `ValueError` unless the page and `blocks` have the same."""
    if different := set(blocks) ^ {name for _, name, _ in BLOCK.findall(page)}:
        raise ValueError(f"the page and the run do not have the same blocks: {', '.join(sorted(different))}")
    return BLOCK.sub(lambda match: f"{match[1]}{blocks[match[2]]}{match[3]}", page)


def spelled(quantity: str, value: float) -> str:
    """A figure with as many digits as it deserves."""
    if quantity in (RATIO, SPREAD):
        return f"{value:.2f}"
    if quantity in (PER_SECOND, BYTES):
        return f"{value if quantity == BYTES else _rounded(value):,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _rounded(value: float) -> float:
    """To three digits: more are noise."""
    return float(f"{value:.2e}")


def table_of(rows: Iterable[Row], quantities: Sequence[str]) -> str:
    """The rows of a section, with their targets."""
    lines = [(row.library, row.work, *(_cell(row, quantity) for quantity in quantities), target(row)) for row in rows]
    return table(("library", "what", *quantities, "target"), lines)


def _cell(row: Row, quantity: str) -> str:
    return spelled(quantity, row.figures[quantity]) if quantity in row.figures else ""


def target(row: Row) -> str:
    if row.target is None:
        return ""
    return f"{row.target.sign} {spelled(row.target.quantity, row.target.bound)}: {_YES if row.holds else _NO}"


def verdict(section: str, rows: Iterable[Row], runs: Sequence[Sequence[Row]]) -> list[Sequence[str]]:
    """For each row that has a target: what was found, between what the runs lay, and whether it holds."""
    lines: list[Sequence[str]] = []
    for row in rows:
        if row.target is not None:
            quantity, sign, bound = row.target
            least, most = (spelled(quantity, value) for value in range_of_runs(row, quantity, runs))
            reached = _YES if row.holds else _NO
            wanted = f"{sign} {spelled(quantity, bound)} {quantity}"
            lines.append((section, row.work, wanted, _cell(row, quantity), f"{least} to {most}", reached))
    return lines


VERDICT = ("section", "what", "target", "median of the runs", "the runs", "verdict")
