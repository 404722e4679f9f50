"""Backends run commands: on Redis, on this process alone, or on Redis as long as it answers.

What talks to a backend is written once, as `async def`. asyncio awaits it; a synchronous caller steps it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from shared_resilience.commands import Argument, Command, Source
from shared_resilience.heartbeat import Resource

if TYPE_CHECKING:
    from shared_resilience.backends.attendant import Attendant

R = TypeVar("R")
OnOutage = Literal["local", "allow", "deny", "raise"]
ON_OUTAGE: tuple[OnOutage, ...] = ("local", "allow", "deny", "raise")


class Ticket(Protocol):
    """What a waiter of this process holds."""

    def wake(self) -> None:
        """Lets the waiter go on; from any thread."""

    async def wait(self, seconds: float) -> bool:
        """Waits until woken, for `seconds` at most; whether it was woken."""


class Backend(Protocol):
    """Where commands run."""

    def source(self) -> Source:
        """Who would decide now."""

    def ticket(self) -> Ticket:
        """A ticket for the present thread or task, with which it can wait for another of this process."""

    async def run(self, command: Command[R], resource: Resource, on_outage: OnOutage = "local") -> R:
        """Runs `command` for `resource`; `on_outage` says what to do when Redis cannot decide."""

    async def keep_up(self, resource: Resource) -> None:
        """Sends the heartbeat if it is due, for a decision that needs no command."""

    async def forget_prefix(self, prefix: str) -> None:
        """Drops every key that starts with `prefix`, which holds the hash tag of one resource; for operators."""

    async def refresh(self) -> None:
        """Reports what was counted and brings the fleet's view up to date, unless Redis is away."""

    async def check(self) -> None:
        """Asks Redis now. Raises `StoreUnavailableError` or `StoreConfigurationError`."""

    async def inquire(self, key: str, questions: Sequence[tuple[Argument, ...]]) -> list[Any] | None:
        """What the server that has `key` replies to plain commands, a refusal being an exception; None: there is none.

        Raises `StoreUnavailableError` or `StoreConfigurationError` where there is no reply.
        """

    async def close(self) -> None:
        """Reports what was counted and ends what still runs; the backend can be used again."""

    def attendant(self) -> Attendant:
        """Who looks after what callers of this party hold and wait for."""

    def party(self) -> Hashable:
        """Who may wait for each other here: all threads, or the tasks of the running event loop.

        A thread that blocks a loop must not wait for a task of it, nor a task for one of a loop that may stand still.
        """

    async def finish(self, work: Coroutine[Any, Any, R]) -> R:
        """What `work` returns; it goes on to its end even if its caller is cancelled."""

    def detach(self, work: Coroutine[Any, Any, None]) -> None:
        """Does `work` that a caller cannot wait for: at once, or on asyncio in a task of its own."""

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Does `work` beside all else, on a thread or in a task of its own; for what goes on for long."""

    async def within(self, call: Callable[[], Any], seconds: float) -> Any:
        """What `call`, code of a user, returns or raises. Gives it up after `seconds`: `OverdueError`."""

    async def together(self, works: Sequence[Coroutine[Any, Any, R]]) -> list[R]:
        """What each of `works` returns; they run at the same time."""

    async def sleep(self, seconds: float) -> None:
        """Waits, without polling."""

    def monotonic(self) -> float:
        """Seconds on this process's own clock, for deadlines."""


class Backends:
    """The two backends of a service, over one process state; each is made when it is first asked for."""

    def __init__(self, blocking: Callable[[], Backend], suspending: Callable[[], Backend]) -> None:
        self._make_blocking = blocking
        self._make_suspending = suspending

    @cached_property
    def blocking(self) -> Backend:
        """For synchronous callers. Raises `TypeError` where there is only an asyncio client."""
        return self._make_blocking()

    @cached_property
    def suspending(self) -> Backend:
        """For asyncio. Raises `TypeError` where there is only a synchronous client."""
        return self._make_suspending()


def step(core: Coroutine[Any, Any, R]) -> R:
    """Runs `core` to its end in this thread, without an event loop.

    A coroutine only needs an event loop to be resumed after it suspended. The synchronous backends never suspend: they
    block. So the first `send` runs the whole of `core`, and the StopIteration that ends it carries the result. A core
    that does suspend has been given an asyncio backend by mistake, and fails loudly. User code never runs in here: a
    StopIteration of its own would come out as RuntimeError (PEP 479).
    """
    try:
        core.send(None)
    except StopIteration as end:
        result: R = end.value
        return result
    core.close()
    raise RuntimeError("a synchronous call was given a backend that suspends")
