"""What is kept for each party: one for all threads of a process, one for each event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from shared_resilience.backends import Backend


class Kept(Protocol):
    """What is kept for a party."""

    def are_gone(self) -> bool:
        """Whether the party is, with its event loop."""


H = TypeVar("H", bound=Kept)


class Parties(Generic[H]):
    """One of something for each party, made by `make` when it is first asked for."""

    def __init__(self, make: Callable[[Backend], H]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._kept: dict[Hashable, H] = {}

    def of(self, backend: Backend) -> H:
        """That of the callers of `backend`."""
        party = backend.party()
        kept = self._kept.get(party)
        if kept is None:
            with self._lock:
                kept = self._kept.get(party)
                if kept is None:
                    for other in [party for party, one in self._kept.items() if one.are_gone()]:
                        del self._kept[other]
                    kept = self._kept[party] = self._make(backend)
        return kept

    def __iter__(self) -> Iterator[H]:
        return iter(list(self._kept.values()))
