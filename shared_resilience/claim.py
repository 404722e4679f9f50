"""A claim: what a call holds that is made once under a key."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

from shared_resilience.commands import Source
from shared_resilience.lease import Lease


class Claim(Lease):
    """The key of a resource that a running call holds; `current_claim()` inside it."""

    __slots__ = ("__weakref__", "_around", "fingerprint", "key", "name", "record")

    def __init__(
        self,
        name: str,
        key: str,
        record: str,
        fingerprint: str,
        token: str,
        fencing: int,
        source: Source,
        era: int,
        renewed: float,
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(token, fencing, source, era, renewed, monotonic)
        self.name = name
        self.key = key
        self.record = record
        self.fingerprint = fingerprint
        self._around: Token[Claim | None] | None = None

    def __enter__(self) -> Self:
        self._around = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._around is not None:
            _current.reset(self._around)


_current: ContextVar[Claim | None] = ContextVar("shared_resilience.claim", default=None)


def current_claim() -> Claim:
    """The claim of the call that runs, which says its `key` and its `fencing` number, and whether it was `lost`.

    Raises `LookupError` outside of calls that are made once.
    """
    claim = _current.get()
    if claim is None:
        raise LookupError("no call that is made once runs here: current_claim() is for the functions of Idempotency")
    return claim
