"""The benchmark's arithmetic, its page, and that a run measures something. No time is judged here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import Server

from benchmarks import page, peers, soak, trips
from benchmarks.ground import Ground
from benchmarks.limiters import PLENTY
from benchmarks.machine import PEERS
from benchmarks.report import Report
from benchmarks.rounds import QUICK, Case, Sample, UnfitError, block, rows, samples
from benchmarks.rows import CLIENT, MICROSECONDS, PER_SECOND, RATIO, SERVER, Row, Target, median_of_runs
from benchmarks.samples import TOLERANCES, growth
from benchmarks.samples import Sample as Held
from benchmarks.sections import SECTIONS

ROOT = Path(__file__).parent.parent


class NoServer(Ground):
    """A ground whose server works for nothing."""

    def __init__(self) -> None:
        pass

    def cpu_us(self) -> float:
        return 0.0


def case(work: str, call: Callable[[], Any] = lambda: 1, **options: Any) -> Case:
    return Case("a library", work, call, **options)


def taking(*microseconds: float) -> list[Sample]:
    return [Sample(clock, clock / 2, clock / 4) for clock in microseconds]


def row(figure: float, target: Target | None = None) -> Row:
    return Row("a library", "work", {RATIO: figure}, target)


def test_a_ratio_is_the_median_of_the_ratios_within_each_round() -> None:
    bare, other = rows([case("bare"), case("other")], [taking(10, 20, 1000), taking(5, 30, 2000)])

    assert (bare.figures[RATIO], other.figures[RATIO]) == (1.0, 1.5)
    assert (other.figures[MICROSECONDS], other.figures[PER_SECOND]) == (30, 1e6 / 30)


def test_each_round_runs_every_case_and_begins_with_another() -> None:
    ran: list[str] = []

    def run(one: Case, calls: int) -> None:
        ran.append(one.work)

    found = samples(NoServer(), [case("a"), case("b"), case("c")], 3, 1, run)

    assert "".join(ran) == "abc" + "abc" + "bca" + "cab"
    assert [len(of_case) for of_case in found] == [3, 3, 3]


def test_a_case_that_answers_wrongly_ends_the_run() -> None:
    wrong = case("refuses", lambda: False, fine=bool)

    with pytest.raises(UnfitError, match="a library, refuses: False"):
        samples(NoServer(), [wrong], 1, 1, block)


@pytest.mark.parametrize(("sign", "found", "holds"), [("≤", 2.0, True), ("≤", 2.1, False), ("≥", 1.9, False)])
def test_a_target_holds_or_not(sign: Any, found: float, holds: bool) -> None:
    assert row(found, Target(RATIO, sign, 2.0)).holds is holds


def test_of_several_runs_the_median_counts() -> None:
    target = Target(RATIO, "≤", 2.0)

    (merged,) = median_of_runs([[row(1.0, target)], [row(9.0, target)], [row(1.5, target)]])

    assert merged.figures == {RATIO: 1.5}
    assert merged.holds


def test_a_report_shows_figures_targets_and_what_does_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    target = Target(RATIO, "≤", 2.0)

    report = Report([("CPU", "a fast one")], {"memory": [[row(1.0, target)], [row(3.0, target)], [row(2.5, target)]]})
    report.show()

    printed = capsys.readouterr().out
    assert "| CPU | a fast one |" in printed
    assert "| a library | work |" in printed
    assert "| memory | work | ≤ 2.00 × bare | 2.50 | 1.00 to 3.00 | **does not hold** |" in printed
    assert len(report.failed()) == 1


def test_a_report_tells_how_much_of_the_time_others_had() -> None:
    found = {RATIO: 1.0, MICROSECONDS: 40.0, CLIENT: 20.0, SERVER: 10.0}

    report = Report([], {"trips": [[Row("redis-py", "bare", found)]]})

    assert "taken by others | 25% |" in report.blocks()["machine"]


def test_a_page_gets_its_blocks_and_keeps_its_prose() -> None:
    text = "Before.\n<!-- figures: one -->\nold\n<!-- end -->\nAfter.\n"

    assert page.written(text, {"one": "new\n"}) == text.replace("old", "new")
    with pytest.raises(ValueError, match="two"):
        page.written(text, {"one": "new\n", "two": ""})


def test_the_page_has_a_block_for_each_section() -> None:
    blocks = [name for _, name, _ in page.BLOCK.findall(page.PAGE.read_text(encoding="utf-8"))]

    assert sorted(blocks) == sorted([*SECTIONS, "machine", "versions", "verdict"])


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "version", lambda name: None)

    assert set(peers.SYNC_PEERS) <= set(PEERS)
    assert peers.installed(peers.SYNC_PEERS, NoServer(), PLENTY) == []


def test_a_section_measures_our_limiters_on_a_real_server(own_server: Server) -> None:
    found = trips.measure_sync(Ground(own_server.port), QUICK, lambda one: one.library == "shared_resilience")

    assert found[0].figures[RATIO] == 1.0
    assert [one.work for one in found if one.target] == ["token bucket"]
    assert all(figure >= 0 for one in found for figure in one.figures.values())


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    folders = (ROOT, ROOT / "tests", ROOT / "tests" / "faults")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.usefixtures("server")  # where servers may run at all
def test_a_quick_run_of_a_part_prints_ratios() -> None:
    done = run("benchmarks", "--quick", "--only", "trips:packed by hand")

    lines = [line.split(" | ") for line in done.stdout.splitlines() if "redis-py" in line]
    assert (done.returncode, done.stderr) == (0, "")
    assert [float(line[2]) > 0 for line in lines if len(line) > 3] == [True, True]


@pytest.mark.usefixtures("server")
def test_a_short_soak_is_exact() -> None:
    short = ("--decisions", "20000", "--interval", "0.005", "--minutes", "0.05", "--storm", "0")
    done = run("benchmarks.soak", *short)  # a storm of half a minute is a test of its own

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.count("20,000 decisions") == 3


def test_what_grows_beyond_its_tolerance_is_named() -> None:
    steady = Held(*(100 * allowed for allowed in TOLERANCES))
    grown = steady._replace(connections=steady.connections + TOLERANCES.connections + 1)

    assert growth([steady] * 8) == []
    assert [fault.split()[0] for fault in growth([steady] * 6 + [grown] * 2)] == ["connections"]
    assert growth([steady] * 7) == ["only 7 samples, of which nothing can be told"]


class Maker:
    """A service whose limiters are never asked."""

    def get_or_create_rate_limiter(self, *arguments: object, **options: object) -> None:
        pass


def test_a_soak_finds_one_decision_too_many_one_too_few_and_one_made_alone() -> None:
    load = soak.Load(Maker(), 1000)
    one, other, *_ = load.keys
    tally = soak.Tally()
    tally.made, tally.local = 1000, 1
    tally.asked.update({one: 1000, other: 1})
    tally.allowed.update({one: 61})

    faults = load.wrong(tally, {one: 1})

    assert faults == [
        "1 decisions were made without Redis",
        f"{one}: 61 of 1,000 were allowed, but 60 is right",
        f"{one}: 1 are left, but -1 is right",
        f"{other}: 0 of 1 were allowed, but 1 is right",
    ]


def test_a_soak_with_leases_finds_only_what_is_too_much() -> None:
    load = soak.LeasedLoad(Maker(), 1000)
    one, other, *_ = load.keys
    tally = soak.Tally()
    tally.made = 1000
    tally.asked.update({one: 1000, other: 2})
    tally.allowed.update({one: 61, other: 1})

    assert load.wrong(tally, {other: 58}) == [f"{one}: 61 of 1,000 were allowed, but 60 is right"]
    assert load.wrong(tally, {other: 60})[1:] == [f"{other}: 60 are left, but 59 is right"]
