"""What was found, as numbers and as `docs/mutants.md`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
GOAL = 95.0
MISSING = "not explained: a test is missing"


class Survivor(NamedTuple):
    """A mutant that no test finds: where, what became of the line, and the line as it is."""

    file: str
    line: int
    change: str
    source: str


class Result(NamedTuple):
    """The mutants of one file."""

    file: str
    mutants: int
    survivors: Sequence[Survivor]

    @property
    def killed(self) -> int:
        return self.mutants - len(self.survivors)


def percentage(results: Sequence[Result]) -> float:
    """How many of a hundred mutants were found; 100 where there were none."""
    mutants = sum(result.mutants for result in results)
    return 100.0 * sum(result.killed for result in results) / mutants if mutants else 100.0


def reasons() -> dict[tuple[str, str, str], str]:
    """Why a survivor changes nothing that can be seen, by its file, line and change."""
    text = (Path(__file__).parent / "equivalents.toml").read_text(encoding="utf-8")
    known = {}
    for reason in tomllib.loads(text)["equivalent"]:
        for change in reason["changes"]:
            known[reason["file"], reason["source"], change] = reason["why"]
    return known


def unexplained(results: Sequence[Result]) -> list[Survivor]:
    known = reasons()
    return [s for result in results for s in result.survivors if (s.file, s.source, s.change) not in known]


RESULTS = Path(__file__).parent / "results.json"
HEADINGS = {"scripts": "Scripts", "core": "Core in Python"}
FOLDERS = {"scripts": ROOT / "lua", "core": ROOT / "shared_resilience"}
HEAD = (
    "# Mutants\n\n"
    "`make mutants` makes one small mistake at a time in the sources and runs the tests. A mutant that a test finds is"
    " killed;\nwhat survives is listed with the reason. At least 95 % must be killed. This page is written by `make"
    " mutants`, of a part\nor of all; the reasons stand in `mutation/equivalents.toml`.\n"
)


def write(ran: Mapping[str, Sequence[Result]]) -> None:
    """Writes `docs/mutants.md` of what was run now and, for the files that were not, what was found the last time."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    texts = []
    for part, heading in HEADINGS.items():
        files = {file: found for file, found in known.get(part, {}).items() if (FOLDERS[part] / file).exists()}
        known[part] = files
        files |= {result.file: [result.mutants, result.survivors] for result in ran.get(part, ()) if result.mutants}
        results = [Result(file, mutants, [Survivor(*s) for s in left]) for file, (mutants, left) in files.items()]
        texts.append(f"\n## {heading}\n\n{_section(sorted(results))}")
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs" / "mutants.md").write_text(HEAD + "".join(texts), encoding="utf-8")


def _section(results: Sequence[Result]) -> str:
    whole = Result("**all**", sum(r.mutants for r in results), [s for r in results for s in r.survivors])
    lines = ["| file | mutants | killed | survived | % |", "|---|--:|--:|--:|--:|"]
    lines += [
        f"| {r.file} | {r.mutants} | {r.killed} | {len(r.survivors)} | {percentage([r]):.1f} |"
        for r in (*results, whole)
    ]
    if whole.survivors:
        known = reasons()
        lines += ["", "| survivor | line | change | why it survives |", "|---|---|---|---|"]
        lines += [
            f"| {s.file}:{s.line} | {_code(s.source)} | {s.change.replace('|', chr(92) + '|')} "
            f"| {known.get((s.file, s.source, s.change), MISSING)} |"
            for s in whole.survivors
        ]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")
