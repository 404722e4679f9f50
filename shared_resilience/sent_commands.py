"""Commands of a limiter that were sent before: checked and packed, to be sent again."""

from __future__ import annotations

from shared_resilience.commands import Command
from shared_resilience.limit_commands import Answer

MOST = 4096
"""Commands that are kept."""

FLOOD = 16 * MOST
"""Commands that find no place before all places are made free."""

Asked = tuple[tuple[str, ...], int, float, int]
"""The keys, the cost, the longest delay, and what is held back."""


class SentCommands(dict[Asked, Command[Answer]]):
    """The commands by what they ask. In a flood of keys few are kept, and those rarely change: that costs time, too."""

    def __init__(self) -> None:
        super().__init__()
        self._found_no_place = 0

    def keep(self, asked: Asked, command: Command[Answer]) -> None:
        """Keeps `command` if there is room."""
        if len(self) < MOST:
            self[asked] = command
            return
        self._found_no_place += 1
        if self._found_no_place > FLOOD:
            self.clear()
            self._found_no_place = 0
