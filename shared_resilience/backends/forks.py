"""What a forked child must not share with its parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """Something that a child has to begin anew."""

    def after_fork(self) -> None:
        """Drops, in the child, what is the parent's."""


_known: weakref.WeakSet[Forkable] = weakref.WeakSet()


def begin_anew_after_forks(thing: Forkable) -> None:
    """From now on every forked child calls `thing.after_fork()`, for as long as `thing` lives."""
    _known.add(thing)


def _in_child() -> None:
    for thing in list(_known):
        thing.after_fork()


os.register_at_fork(after_in_child=_in_child)
