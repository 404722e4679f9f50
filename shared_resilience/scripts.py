"""The Lua scripts: found, composed with their fragments, and hashed.

`lua/` stands at the top of the project and becomes `shared_resilience/lua` in a wheel; whichever is there is taken.
`--- @include "name"` on a line of its own stands for `lua/lib/name.lua`, once per script.
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import NamedTuple

_INCLUDE = re.compile(r'^--- @include "([a-z_]+)"\n', re.MULTILINE)


class Script(NamedTuple):
    """A composed script: its name, the text that is sent, and the SHA-1 by which Redis knows that text."""

    name: str
    text: str
    sha: str


def folder() -> Path:
    """The folder that holds the scripts: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).parent
    packaged = package / "lua"
    return packaged if packaged.is_dir() else package.parent / "lua"


def names() -> list[str]:
    """The names of all scripts."""
    return sorted(path.stem for path in folder().glob("*.lua"))


@cache
def load(name: str) -> Script:
    """The script `name`, composed. Raises `LookupError` for a name that is not one."""
    if name not in names():
        raise LookupError(f"there is no script {name!r}; there are {', '.join(names())}")
    text = _compose((folder() / f"{name}.lua").read_text(encoding="utf-8"), set())
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _compose(text: str, included: set[str]) -> str:
    def fragment(include: re.Match[str]) -> str:
        name = include[1]
        if name in included:
            return ""
        included.add(name)
        return _compose((folder() / "lib" / f"{name}.lua").read_text(encoding="utf-8"), included)

    return _INCLUDE.sub(fragment, text)
