"""What several runs have found: printed, and written into the page with its images."""

from __future__ import annotations

from benchmarks import page, plots
from benchmarks.machine import versions
from benchmarks.rows import CLIENT, MICROSECONDS, SERVER, Row, failed, median_of_runs
from benchmarks.sections import SECTIONS

Runs = dict[str, list[list[Row]]]
"""By section: the rows of each run."""


class Report:
    """The medians of `runs`; `about` says on what machine they were measured."""

    def __init__(self, about: list[tuple[str, str]], runs: Runs) -> None:
        self.rows = {name: median_of_runs(of_section) for name, of_section in runs.items()}
        self._about = about
        self._runs = runs

    def failed(self) -> list[Row]:
        """The rows whose target does not hold."""
        return [row for rows in self.rows.values() for row in failed(rows)]

    def blocks(self) -> dict[str, str]:
        """All tables, by the names of their blocks in the page."""
        tables = {name: page.table_of(rows, SECTIONS[name].quantities) for name, rows in self.rows.items()}
        lines = [line for name, rows in self.rows.items() for line in page.verdict(name, rows, self._runs[name])]
        return {
            "machine": page.table(("what", "which"), [*self._about, *self._lost()]),
            "versions": page.table(("package", "version"), versions()),
            **tables,
            "verdict": page.table(page.VERDICT, lines),
        }

    def _lost(self) -> list[tuple[str, str]]:
        """How much of a bare script's time neither side has worked: the core was idle, or others had it."""
        if "trips" not in self.rows:
            return []
        bare = self.rows["trips"][0].figures
        lost = max(0.0, 1 - (bare[CLIENT] + bare[SERVER]) / bare[MICROSECONDS])
        return [("of a bare script's time, taken by others", f"{lost:.0%}")]

    def show(self) -> None:
        """Prints the tables, the verdict last."""
        for name, text in self.blocks().items():
            print(f"\n{name}\n{text}", end="", flush=True)

    def write(self) -> None:
        """Rewrites the blocks of the page and its images. Raises `ValueError` where the page has others."""
        text = page.written(page.PAGE.read_text(encoding="utf-8"), self.blocks())
        page.PAGE.write_text(text, encoding="utf-8")
        plots.draw(self.rows)
