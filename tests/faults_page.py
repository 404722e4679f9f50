"""docs/faults.md: one row for each test of a fault, with what it has measured."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "faults.md"
BLOCK = re.compile(r"(<!-- faults: begin -->\n).*(<!-- faults: end -->)", re.DOTALL)


class Row(NamedTuple):
    """A fault, what is promised, the test that shows it and what that has measured."""

    test: str
    what: str
    promise: str
    figures: tuple[str, ...]

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]

    @property
    def name(self) -> str:
        return self.test.partition("::")[2].partition("[")[0]

    @property
    def case(self) -> str:
        """What a test is parametrized with, or nothing."""
        return self.test.partition("[")[2].rstrip("]")


def rows_of(rows: Iterable[Row]) -> list[Row]:
    """One row for each test, however often it ran: a figure says for which case it is."""
    merged: dict[str, Row] = {}
    for row in rows:
        figures = tuple(f"{row.case}: {figure}" if row.case else figure for figure in row.figures)
        known = merged.get(row.name)
        merged[row.name] = row._replace(figures=(*(known.figures if known else ()), *figures))
    return list(merged.values())


def headline(file: str) -> str:
    """What a file of tests is about: the first line of its text."""
    text = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).rstrip(".")


def table(rows: Iterable[Row]) -> str:
    """The tables of all files, one after the other."""
    lines, file = [], ""
    for row in rows:
        if row.file != file:
            file = row.file
            lines += ["", f"### {headline(file)}", "", f"In `{file}`.", ""]
            lines += ["| what happens | what holds | measured |", "|---|---|---|"]
        lines.append(f"| {row.what} | {row.promise} | {'; '.join(row.figures) or 'holds'} |")
    return "\n".join([*lines, ""]) + "\n"


def write(rows: Iterable[Row]) -> None:
    """Rewrites what the page has between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    new = table(rows)
    PAGE.write_text(BLOCK.sub(lambda match: f"{match[1]}{new}{match[2]}", text), encoding="utf-8")
