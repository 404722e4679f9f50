"""Commands that were sent before: checked and packed, to be sent again."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MOST = 4096
"""Commands that are kept."""

FLOOD = 16 * MOST
"""Commands that find no place before all places are made free."""


class SentCommands(dict[K, V]):
    """Commands, or molds of them, by what they ask.

    In a flood of keys few are kept, and those rarely change: that costs time, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._found_no_place = 0

    def keep(self, asked: K, command: V) -> None:
        """Keeps `command` if there is room."""
        if len(self) < MOST:
            self[asked] = command
            return
        self._found_no_place += 1
        if self._found_no_place > FLOOD:
            self.clear()
            self._found_no_place = 0
