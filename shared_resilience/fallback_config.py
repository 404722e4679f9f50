"""The configuration of a fallback chain: its levels, for how long last good values are good, and what falls through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from shared_resilience import validation
from shared_resilience.codecs import JSON, Codec, is_codec
from shared_resilience.errors import (
    EncodingError,
    IdempotencyConflictError,
    ResilienceError,
    StoreConfigurationError,
    StoreUnavailableError,
)
from shared_resilience.responses import status_of
from shared_resilience.retry_config import PROGRAMMING_ERRORS

LONGEST_AGE = 366 * 86_400.0
LONGEST_TIMEOUT = 86_400.0
LARGEST_VALUE = 64_000_000
NOT_THE_CLIENTS_FAULT = (408, 425, 429)
"""Statuses among the 4xx that say nothing about the request itself."""

FINAL = (IdempotencyConflictError, StoreUnavailableError, StoreConfigurationError, EncodingError)
"""Refusals of ours that no other level may paper over."""


class FallbackLevel(Enum):
    """Who is asked, in this order, until one answers."""

    PRIMARY = "primary"
    REPLICA = "replica"
    DISTRIBUTED_CACHE = "distributed_cache"
    LOCAL_CACHE = "local_cache"
    BACKUP_SERVICE = "backup_service"
    DEFAULT = "default"


FallsThrough = tuple[type[Exception], ...] | Callable[[Exception], object]


def falls_through(error: Exception) -> bool:
    """Whether another level may answer for one that has raised `error`, unless configured otherwise.

    Not for bugs, nor for requests that are wrong themselves (4xx but for 408, 425, 429), nor for conflicts of
    idempotency keys or an unreachable store where those were to be raised.
    """
    if isinstance(error, ResilienceError):
        return not isinstance(error, FINAL)
    status = status_of(error)
    if status is not None:
        return not 400 <= status < 500 or status in NOT_THE_CLIENTS_FAULT
    return not isinstance(error, PROGRAMMING_ERRORS)


@dataclass(frozen=True, slots=True)
class FallbackConfig:
    """How a chain falls back. Times are in seconds.

    The last good value for each key is kept in Redis, and read for `shared_max_age`; and in the process, up to
    `local_size` of them (0 to 10⁶), for `local_max_age` (each from 0, which keeps none, to 366 days). They are written
    down by `codec` (JSON unless told otherwise), up to `max_size` bytes each (1 to 64,000,000); what cannot be is not
    kept, with a warning. `key`, a function of the arguments, tells values apart (None: the arguments themselves; calls
    with objects that have no `repr` but an address are not kept). A `key` that returns None keeps this one not.

    `timeout` is how long a level may take: for all, or by level; None: as long as it likes. Coroutines are cancelled
    after it, other functions left to themselves on a thread. `falls_through` says for which exceptions the next level
    is asked: a tuple of classes, or a function of the exception; None: for all but bugs (`TypeError`, `ValueError` and
    the like), requests that are wrong themselves (4xx), conflicts, and `StoreUnavailableError`.

    Raises `ValueError` for a value outside its range.
    """

    shared_max_age: float = 300.0
    local_max_age: float = 3600.0
    local_size: int = 1024
    timeout: float | Mapping[FallbackLevel, float] | None = None
    falls_through: FallsThrough | None = None
    key: Callable[..., object] | None = None
    codec: Codec = JSON
    max_size: int = 1_000_000

    def __post_init__(self) -> None:
        validation.number("shared_max_age", self.shared_max_age, 0, LONGEST_AGE)
        validation.number("local_max_age", self.local_max_age, 0, LONGEST_AGE)
        validation.count("local_size", self.local_size, low=0, high=10**6)
        self._check_timeout()
        if isinstance(self.falls_through, tuple):
            validation.exceptions("falls_through", self.falls_through)
        elif self.falls_through is not None and not callable(self.falls_through):
            raise validation.wrong("falls_through", self.falls_through, "a tuple of exceptions, a function, or None")
        if self.key is not None and not callable(self.key):
            raise validation.wrong("key", self.key, "a function of the arguments, or None")
        if not is_codec(self.codec):
            raise validation.wrong("codec", self.codec, "an object with name, encode and decode")
        validation.count("max_size", self.max_size, high=LARGEST_VALUE)

    def _check_timeout(self) -> None:
        if isinstance(self.timeout, Mapping):
            for level, seconds in self.timeout.items():
                if not isinstance(level, FallbackLevel):
                    raise validation.wrong("timeout", level, "a mapping from FallbackLevel to seconds")
                validation.number(f"timeout of {level.value}", seconds, 0.001, LONGEST_TIMEOUT)
        elif self.timeout is not None:
            validation.number("timeout", self.timeout, 0.001, LONGEST_TIMEOUT)

    def timeout_of(self, level: FallbackLevel) -> float | None:
        """How long `level` may take."""
        return self.timeout.get(level) if isinstance(self.timeout, Mapping) else self.timeout

    def lets_through(self, error: Exception) -> bool:
        """Whether the next level is asked after `error`; runs the user's `falls_through`."""
        chosen = self.falls_through
        if chosen is None:
            return falls_through(error)
        return isinstance(error, chosen) if isinstance(chosen, tuple) else bool(chosen(error))

    def numbers(self) -> dict[str, float]:
        """The numbers in force, as they stand in clear in the resource's `config`."""
        return {
            "shared_max_age": self.shared_max_age,
            "local_max_age": self.local_max_age,
            "local_size": self.local_size,
            "max_size": self.max_size,
        }
