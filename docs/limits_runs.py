"""A limit in this process, run by its twin at times that the caller tells: what the pictures and some figures show."""

from __future__ import annotations

from shared_resilience.commands import State
from shared_resilience.decision import Decision
from shared_resilience.leaky_bucket import LeakyBucket, Queue
from shared_resilience.limit_commands import LimitCommands
from shared_resilience.limits import Limit
from shared_resilience.sliding_window import Entry, Log, SlidingWindow
from shared_resilience.token_bucket import Bucket

MILLION = 1_000_000
START_US = 1_800_000_000 * MILLION
"""When a run begins; a whole second, so that slots of a window begin where the pictures do."""


class Run:
    """One limit, as if unused; times are seconds since the run began."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.state: State = None
        self._commands = LimitCommands((limit,))

    def take(self, seconds: float, cost: int = 1) -> Decision:
        """What `try_acquire` answers at `seconds`."""
        command = self._commands.take(("overrides", self.limit.label), cost)
        step = command.operation.twin((None, self.state), _at(seconds), *command.args)
        self.state = step.states[1]
        return command.operation.decode(step.reply, "local").decision

    def level(self, seconds: float) -> float:
        """Tokens that are there, calls that count, or drops in the queue, at `seconds`."""
        first, second, third = (int(number) for number in self.limit.arguments()[2:])
        if isinstance(self.limit, SlidingWindow):
            return Log(self.state, _at(seconds), first, second, third, share=1).used
        if isinstance(self.limit, LeakyBucket):
            queue = Queue(self.state, _at(seconds), first, second, third, share=1)
            return (queue.capacity - queue.available) / MILLION
        return Bucket(self.state, _at(seconds), first, second, third, share=1).available / MILLION

    def entries(self) -> list[tuple[float, int]]:
        """The log of a window: when each entry counts as made, in seconds, and its cost."""
        assert isinstance(self.state, tuple)
        return [((entry.time - START_US) / MILLION, entry.cost) for entry in self.state if isinstance(entry, Entry)]


def _at(seconds: float) -> int:
    return START_US + round(seconds * MILLION)
