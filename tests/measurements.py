"""What each test of a fault promises and has measured; docs/faults.md is written from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from faults_page import Row, rows_of, write

_measured = pytest.StashKey[list[str]]()
_rows: pytest.StashKey[list[Row]] = pytest.StashKey()

Measured = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-page", action="store_true", help="write docs/faults.md from this run")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(what, promise): what goes wrong, and what then holds")
    config.stash[_rows] = []


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Takes and prints a figure of the test, for the page."""
    figures = request.node.stash.setdefault(_measured, [])

    def note(figure: str) -> None:
        print(figure)
        figures.append(figure)

    return note


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()  # type: ignore[attr-defined]  # of a hook wrapper
    marker = item.get_closest_marker("fault")
    if marker is not None and report.when == "call" and report.passed:
        figures = item.stash.get(_measured, [])
        if not figures and "/faults/" in item.nodeid:
            report.outcome, report.longrepr = "failed", "a fault without a figure"
        what, promise = marker.args
        item.config.stash[_rows].append(Row(item.nodeid, what, promise, tuple(figures)))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption("--faults-page") and exitstatus == 0:
        rows: list[Row] = session.config.stash[_rows]
        write(rows_of(rows))
