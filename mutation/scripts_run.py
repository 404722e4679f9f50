"""Runs all evidence against every mutant of the Lua scripts."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import redis

from mutation import lua
from mutation.evidence import Check, Place, checks
from mutation.lua import Mutant
from mutation.table import Result, Survivor
from shared_resilience import scripts
from shared_resilience.scripts import Script


class Workshop:
    """A copy of the scripts, in which one file at a time has a mistake."""

    def __init__(self) -> None:
        self.real = scripts.folder()
        self._copy = Path(tempfile.mkdtemp(prefix="mutants-"))
        shutil.copytree(self.real, self._copy, dirs_exist_ok=True)
        scripts.folder = lambda: self._copy
        self.composed = self._compose()

    def composed_with(self, path: Path, mutant: Mutant) -> dict[str, Script]:
        """All scripts, those with the mistake in place of the real ones."""
        text = path.read_text(encoding="utf-8")
        place = self._copy / path.relative_to(self.real)
        place.write_text(mutant.applied_to(text), encoding="utf-8")
        composed = self._compose()
        place.write_text(text, encoding="utf-8")
        return composed

    def close(self) -> None:
        shutil.rmtree(self._copy)

    @staticmethod
    def _compose() -> dict[str, Script]:
        scripts.load.cache_clear()
        return {name: scripts.load(name) for name in scripts.names()}


class Trial:
    """The evidence, what was found by it last in front: neighbours are found by the same."""

    def __init__(self, place: Place, evidence: Sequence[Check]) -> None:
        self._place = place
        self._evidence = list(evidence)

    def killer(self, composed: dict[str, Script], changed: set[str]) -> str | None:
        """What kills the mutant, None: it survives."""
        try:
            self._place.send(composed)
        except redis.ResponseError:
            return "does not compile"
        for check in self._evidence:
            if not changed & check.scripts:
                continue
            try:
                self._place.run(check.run)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                self._place.heal()
                self._evidence.remove(check)
                self._evidence.insert(0, check)
                return check.name
        return None


def results(limit: int | None, only: str) -> list[Result]:
    """For each file the number of mutants and those that no evidence finds."""
    logging.disable()  # mutants fail in the middle of everything
    workshop = Workshop()
    place = Place()
    place.take_over()
    started = time.monotonic()
    print("scripts: trying the evidence on the scripts as they are", flush=True)
    try:
        trial = Trial(place, checks(place))
        print(f"scripts: ready after {time.monotonic() - started:.0f} s", flush=True)
        return [_of_file(path, workshop, trial, limit) for path in lua.files(workshop.real) if only in path.name]
    finally:
        place.close()
        workshop.close()


def _of_file(path: Path, workshop: Workshop, trial: Trial, limit: int | None) -> Result:
    started = time.monotonic()
    mutants = lua.mutants(path)[:limit]
    left = []
    for mutant in mutants:
        composed = workshop.composed_with(path, mutant)
        changed = {name for name, script in composed.items() if script.sha != workshop.composed[name].sha}
        if trial.killer(composed, changed) is None:
            left.append(Survivor(mutant.file, mutant.line, mutant.change, mutant.source))
    took = time.monotonic() - started
    print(f"{path.name}: {len(mutants)} mutants, {len(left)} survive, {took:.0f} s", flush=True)
    return Result(str(path.relative_to(workshop.real)), len(mutants), left)
