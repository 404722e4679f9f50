"""Runs mutmut against the core in Python, in a copy of the project, and reads what it found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from mutation.table import Result, Survivor

ROOT = Path(__file__).parent.parent
COPIED = ["shared_resilience", "lua", "tests", "README.md", "LICENSE", "pyproject.toml"]
NOT_CHECKED = (None, 34)
SURVIVED, NO_TESTS = 0, 33
_SHOWN_EVERY = 10.0


def results(limit: int | None, only: str) -> list[Result]:
    """For each file the number of mutants and those that no test finds."""
    folder = Path(tempfile.mkdtemp(prefix="mutants-core-"))
    try:
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
        _run(folder, _chosen(only))
        return [_of_file(folder, meta, limit) for meta in sorted(folder.glob("mutants/**/*.py.meta"))]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _chosen(only: str) -> list[str]:
    return [f"shared_resilience.{Path(file).stem}.*" for file in only.split(",") if file]


def _environment() -> dict[str, str]:
    """Without the paths to the real sources, which must not be found before their mutants."""
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, "PYTHONHASHSEED": "0"}


def _run(folder: Path, chosen: list[str]) -> None:
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *chosen]
    running = subprocess.Popen(command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, text=True)
    assert running.stdout
    shown, last = time.monotonic(), deque[str](maxlen=20)
    for line in running.stdout:  # it ends its lines with \r, which is a new line here
        last.append(line)
        if "/" in line and time.monotonic() - shown > _SHOWN_EVERY:
            shown = time.monotonic()
            print("core:", line.strip()[1:].strip(), flush=True)
    if running.wait():
        raise SystemExit("mutmut failed:\n" + "".join(last))


def _of_file(folder: Path, meta: Path, limit: int | None) -> Result:
    found = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
    checked = {name: code for name, code in found.items() if code not in NOT_CHECKED}
    left = [name for name, code in checked.items() if code in (SURVIVED, NO_TESTS)][:limit]
    file = meta.name.removesuffix(".meta")
    survivors = [_survivor(folder, file, name) for name in left]
    print(f"{file}: {len(checked)} mutants, {len(left)} survive", flush=True)
    return Result(file, len(checked), survivors)


def _survivor(folder: Path, file: str, name: str) -> Survivor:
    command = [sys.executable, "-m", "mutmut", "show", name]
    shown = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=True).stdout
    changed = [line for line in shown.splitlines() if re.match(r"[-+](?![-+]{2} )", line)]
    before = " ".join(line[1:].strip() for line in changed if line[0] == "-")
    after = " ".join(line[1:].strip() for line in changed if line[0] == "+")
    return Survivor(file, _line_of(folder, file, before), f"`{after}`", before)


def _line_of(folder: Path, file: str, text: str) -> int:
    source = (folder / "shared_resilience" / file).read_text(encoding="utf-8").splitlines()
    return next((number for number, line in enumerate(source, 1) if line.strip() and line.strip() in text), 0)
