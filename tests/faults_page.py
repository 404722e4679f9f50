"""docs/faults.md: one row for each test of a fault, with what it has measured."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "faults.md"
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
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


def rows_of(rows: Iterable[Row]) -> list[Row]:
    """One row for each test, however often it ran."""
    merged: dict[tuple[str, str], Row] = {}
    for row in rows:
        place = (row.file, row.name)
        known = merged.get(place, row._replace(figures=()))
        merged[place] = known._replace(figures=(*known.figures, *row.figures))
    return list(merged.values())


def spanned(figures: Iterable[str]) -> list[str]:
    """Figures that are alike but for their numbers as one, with the least and the largest of each number."""
    alike: dict[str, list[list[str]]] = {}
    for figure in figures:
        alike.setdefault(NUMBER.sub("#", figure), []).append(NUMBER.findall(figure))
    return [_span(text, list(zip(*numbers, strict=True))) for text, numbers in alike.items()]


def _span(text: str, columns: list[tuple[str, ...]]) -> str:
    ranges = []
    for column in columns:
        ordered = sorted(set(column), key=lambda number: float(number.replace(",", "")))
        ranges.append(ordered[0] if len(ordered) == 1 else f"{ordered[0]} … {ordered[-1]}")
    filled = iter(ranges)
    return re.sub("#", lambda _: next(filled), text)


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
        lines.append(f"| {row.what} | {row.promise} | {'; '.join(spanned(row.figures)) or 'holds'} |")
    return "\n".join([*lines, ""]) + "\n"


def write(rows: Iterable[Row]) -> None:
    """Rewrites what the page has between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    new = table(rows)
    PAGE.write_text(BLOCK.sub(lambda match: f"{match[1]}{new}{match[2]}", text), encoding="utf-8")
