"""Histories that the twins foresee, and Redis then takes: the two must agree."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol


class Foreseen(Protocol):
    """A history that the twins have taken."""

    def compare(self) -> None:
        """Has Redis take it."""


def compare_all(histories: Iterable[Foreseen]) -> None:
    """Compares each history, while the twins foresee the next: client and server have a core each."""
    with ThreadPoolExecutor(1) as redis:
        compared: Future[None] | None = None
        for history in histories:
            if compared is not None:
                compared.result()
            compared = redis.submit(history.compare)
        if compared is not None:
            compared.result()
