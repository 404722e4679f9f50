"""The mutants of the Lua scripts: every place of every file, changed by one operator at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_TOKEN = re.compile(
    r"""(?P<comment>--[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<number>\d+(?:\.\d+)?)
      | (?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
      | (?P<operator>\.\.|[<>=~]=|[-+*/%<>=\#(){}\[\],;:.])""",
    re.VERBOSE,
)
_SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "~=", "~=": "==",
    "+": "-", "-": "+", "*": "/", "/": "*", "%": "*",
    "and": "or", "or": "and", "true": "false", "false": "true", "not": "",
    "math.floor": "math.ceil", "math.ceil": "math.floor", "math.max": "math.min", "math.min": "math.max",
}  # fmt: skip
_UNITS = {"1000000": "1000", "1000": "1000000", "MILLION": "1000"}
_WORDS = ("return", "and", "or", "not", "then", "else", "do", "in", "if", "while", "until")
_STATEMENT = re.compile(r"\s*(?!local |function |if |elseif |for |while |else|end|return nil$|--|[{}])\S")
_OPEN, _CLOSE = "({[", ")}]"


class Mutant(NamedTuple):
    """One change in one file: where, what, and what becomes of the line."""

    file: str
    line: int
    start: int
    end: int
    replacement: str
    change: str
    source: str

    def applied_to(self, text: str) -> str:
        return text[: self.start] + self.replacement + text[self.end :]


def files(folder: Path) -> list[Path]:
    """The scripts and their fragments, fragments first."""
    return [*sorted(folder.glob("lib/*.lua")), *sorted(folder.glob("*.lua"))]


def mutants(path: Path) -> list[Mutant]:
    """All mutants of the file, in the order of their places."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found = []
    for start, end, replacement in sorted({*_changed_tokens(text), *_dropped_statements(text)}):
        line = text.count("\n", 0, start) + 1
        original = " ".join(text[start:end].split())
        if not replacement and end - start > 3:
            change = f"drop `{original}`"
        else:
            change = f"`{original}` -> `{replacement}`" if replacement else f"drop `{original}`"
        found.append(Mutant(path.name, line, start, end, replacement, change, lines[line - 1].strip()))
    return found


def _changed_tokens(text: str) -> Iterator[tuple[int, int, str]]:
    before = ""
    for token in _TOKEN.finditer(text):
        if token.lastgroup == "comment":
            continue
        word = token[0]
        opens = before[-1:] in ("=", "(", ",", "{", "[", "<", ">", "+", "*", "/")
        unary = word == "-" and (opens or before in _WORDS)
        if unary:
            yield token.start(), token.end(), ""
        elif word in _SWAPS and token.lastgroup != "string":
            yield token.start(), token.end(), _SWAPS[word]
        if word in _UNITS:
            yield token.start(), token.end(), _UNITS[word]
        if token.lastgroup == "number":
            yield token.start(), token.end(), _one_more(word)
            if text[: token.start()].endswith(("(-", ", -", " -")) and word == "1":
                yield token.start() - 1, token.end(), "0"
        before = word


def _one_more(number: str) -> str:
    whole, point, rest = number.partition(".")
    return f"{int(whole) + 1}{point}{rest}"


def _dropped_statements(text: str) -> Iterator[tuple[int, int, str]]:
    """Statements that begin a line and may be left out: calls, assignments, early returns."""
    depth, begin = 0, -1
    position = 0
    for line in text.splitlines(keepends=True):
        code = re.sub(r'--.*|"(?:[^"\\]|\\.)*"', "", line)
        if depth == 0:
            begin = position + len(line) - len(line.lstrip()) if _STATEMENT.match(line) else -1
        depth += sum(map(code.count, _OPEN)) - sum(map(code.count, _CLOSE))
        position += len(line)
        if depth == 0 and begin >= 0:
            yield begin, position - 1, ""
