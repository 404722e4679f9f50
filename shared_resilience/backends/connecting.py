"""Who is connecting: a pool makes connections for the user's commands and for ours, and only theirs are retried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ours: ContextVar[bool] = ContextVar("shared_resilience_connects", default=False)


@contextmanager
def once() -> Iterator[None]:
    """Inside, a polite retry tries once."""
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)


def is_ours() -> bool:
    """Whether the connection being made is for a command of ours."""
    return _ours.get()
