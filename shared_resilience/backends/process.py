"""What one operating-system process knows about one store under one prefix.

All services of a process that name the same store and prefix share one `Process`: sync and asyncio callers then see
one guard, one heartbeat and one set of local states. A forked child starts with none of it.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from shared_resilience.backends.clock import Clock, SystemClock
from shared_resilience.backends.forks import begin_anew_after_forks
from shared_resilience.backends.guard import StoreGuard
from shared_resilience.backends.local_store import LocalStore
from shared_resilience.commands import Command
from shared_resilience.events import Events
from shared_resilience.heartbeat import Heartbeat, Resource
from shared_resilience.keys import encode_key

if TYPE_CHECKING:
    from shared_resilience.backends import Backend


class Process:
    """The state of this process for one store. `worker_id` None makes one of host, process id and a random part."""

    def __init__(self, prefix: str, worker_id: str | None = None, clock: Clock | None = None) -> None:
        self.prefix = prefix
        self.clock = clock or SystemClock()
        self.events = Events()
        self.components: dict[tuple[str, str], Component] = {}
        self._worker_id = worker_id
        self._fresh()
        self.heartbeat = Heartbeat(prefix, self._make_worker_id())
        begin_anew_after_forks(self)

    def _fresh(self) -> None:
        self.lock = threading.Lock()
        self.local = LocalStore(self.clock)
        self.guard = StoreGuard(self.events, self.clock)

    def _make_worker_id(self) -> str:
        chosen = self._worker_id or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        return encode_key(chosen)

    def after_fork(self) -> None:
        """Makes a forked child start with nothing of its parent's."""
        self._fresh()
        self.heartbeat.restart(self._make_worker_id())
        for component in self.components.values():
            component.after_fork()


class Bill(NamedTuple):
    """Commands that tell Redis what a process has taken alone; `put_back(index)` is for one that has not run."""

    commands: list[Command[Any]]
    put_back: Callable[[int], None]


class Component:
    """What a process keeps by kind and name: one for sync and asyncio callers."""

    async def before_close(self, backend: Backend) -> None:
        """Gives back and tells what it holds. Raises `ResilienceError` for what it cannot."""

    def bill(self, most: int, shares: Mapping[Resource, int]) -> Bill | None:
        """What Redis is to be told of what this process has decided alone, about `most` commands; None: that was all.

        `shares` says of each resource by how many this process has divided it.
        """
        return None

    def after_fork(self) -> None:
        """Drops what a forked child must not share with its parent."""

    def known(self) -> dict[str, object]:
        """What this process knows of it without asking; plain data."""
        return {}


_shared: weakref.WeakValueDictionary[Hashable, Process] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def shared_process(store: Hashable, prefix: str, worker_id: str | None) -> Process:
    """The one `Process` for this store, prefix and worker id."""
    key = (store, prefix, worker_id)
    with _shared_lock:
        process = _shared.get(key)
        if process is None:
            process = _shared[key] = Process(prefix, worker_id)
        return process


def _after_fork_in_child() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
