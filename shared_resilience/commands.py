"""An operation is data: what Redis runs as a script, and this process runs as its twin.

An `Operation` is what all its commands have in common; a `Command` adds the keys and the arguments of one call. A
backend runs commands: Redis runs the script, the local backend runs the twin, and both give the same reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

from shared_resilience import scripts

R = TypeVar("R")
State = object | None
Argument = int | str
Arguments = tuple[Argument, ...]
Reply = Sequence[int | str | bytes]
Source = Literal["redis", "local"]


class Step(NamedTuple):
    """What a twin answers: the states after the step, their times to live in ms, and the reply of the script.

    States and times are aligned with the command's keys. A state of None is an absent key; a time of None keeps the
    one that the key has, 0 is for ever.
    """

    states: Sequence[State]
    ttls: Sequence[int | None]
    reply: Reply


Twin = Callable[..., Step]


def _the_whole(n: int, *args: Argument) -> Arguments:
    return args


@dataclass(frozen=True, slots=True)
class Operation(Generic[R]):
    """One kind of command.

    `twin(states, now_us, *args)` is the script as a pure function. `decode(reply, source)` makes a reply what callers
    see. `share(n, *args)` gives the arguments for one of `n` equal parts of the fleet. `allowed` and `denied` are the
    replies for when Redis is away and the user chose not to decide locally. Just after an outage, what has a `ramp`
    must also fit into the share of its process: `ramp(reply, left_us)` makes of the twin's reply None, which says that
    it does, or a refusal for at most so many microseconds.
    """

    script: str
    twin: Twin
    decode: Callable[[Reply, Source], R]
    share: Callable[..., Arguments] = _the_whole
    allowed: Reply = ()
    denied: Reply = ()
    ramp: Callable[[Reply, int], Reply | None] | None = None
    loaded: scripts.Script = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loaded", scripts.load(self.script))


class Command(Generic[R]):
    """An operation on some keys with some arguments. The backend appends the argument `now_us`.

    `request` is for the backend, which keeps there what it makes of a command that is sent again and again; `mold` is
    what the command was cast in.
    """

    __slots__ = ("args", "keys", "mold", "operation", "request")

    def __init__(
        self, operation: Operation[R], keys: tuple[str, ...], args: Arguments, mold: Mold[R] | None = None
    ) -> None:
        self.operation = operation
        self.keys = keys
        self.args = args
        self.mold = mold
        self.request: object | None = None

    def __repr__(self) -> str:
        return f"Command({self.operation.script!r}, {self.keys!r}, {self.args!r})"

    def with_arguments(self, args: Arguments) -> Command[R]:
        """The same with other arguments."""
        return Command(self.operation, self.keys, args)

    def share(self, n: int) -> Command[R]:
        """This command for one of `n` workers that each decide alone."""
        return self.with_arguments(self.operation.share(n, *self.args))


class Mold(Generic[R]):
    """Commands that are alike but for one text among their arguments, which stands between `before` and `after`.

    `packed` is for the backend, which keeps there what they have in common.
    """

    __slots__ = ("after", "before", "keys", "operation", "packed")

    def __init__(
        self, operation: Operation[R], keys: tuple[str, ...], before: Arguments = (), after: Arguments = ()
    ) -> None:
        self.operation = operation
        self.keys = keys
        self.before = before
        self.after = after
        self.packed: tuple[bytes, bytes] | None = None

    def cast(self, text: str) -> Command[R]:
        """The command with `text`."""
        return Command(self.operation, self.keys, (*self.before, text, *self.after), self)
