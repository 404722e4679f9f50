"""What a self-check of Redis has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["fine", "unknown", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: its `subject`, how it is, in words, and what to do about it ("": nothing).

    `level` is "fine", "unknown" (this user may not look), "warning" or "error".
    """

    subject: str
    level: Level
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"\n           → {self.remedy}" if self.remedy else ""
        return f"{self.level:<8}   {self.subject}: {self.found}{remedy}"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a self-check has found. As a text it is one line for each finding, and one more for each remedy."""

    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The worst of all: "error", "warning", or "fine"."""
        levels = {finding.level for finding in self.findings}
        return "error" if "error" in levels else "warning" if "warning" in levels else "fine"

    def of(self, level: Level) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))
