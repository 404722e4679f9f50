"""The configuration of calls that are made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from shared_resilience import validation
from shared_resilience.backends import ON_OUTAGE, OnOutage
from shared_resilience.codecs import JSON, Codec, is_codec

SHORTEST_LEASE, LONGEST_LEASE = 1.0, 3600.0
LONGEST_TTL = 366 * 86_400.0
LARGEST_RESULT = 64_000_000

OnConflict = Literal["wait", "raise"]


@dataclass(frozen=True, slots=True)
class IdempotencyConfig:
    """For how long a call that was made under a key is not made again, and what those get who come meanwhile.

    Times are in seconds. A result is replayed for `ttl` (1 second to 366 days). A call that runs holds its key by a
    lease of `lease` seconds (1 to 3600), which its process renews after a third of it; if the process dies, another
    call takes the key over when the lease is over.

    Who comes while the call runs waits for its result for at most `wait_timeout` (None: as long as it takes), or, with
    `on_conflict="raise"`, gets `IdempotencyConflictError` at once. Whoever comes with other arguments always does:
    those are compared by `fingerprint`, a function of the arguments that returns what is to be compared (None: all of
    them; objects whose `repr` is but an address count by their type).

    Results are written down by `codec` (JSON unless told otherwise), up to `max_size` bytes (1 to 64,000,000).
    `on_outage` (None: as the service, else `"raise"`) says what to do while Redis is away: `StoreUnavailableError`;
    `"local"`: once in each process; `"allow"`: make the call; `"deny"`: `IdempotencyConflictError`.

    Raises `ValueError` for a value outside its range.
    """

    ttl: float = 3600.0
    lease: float = 30.0
    on_conflict: OnConflict = "wait"
    wait_timeout: float | None = 30.0
    fingerprint: Callable[..., object] | None = None
    codec: Codec = JSON
    max_size: int = 1_000_000
    on_outage: OnOutage | None = None

    def __post_init__(self) -> None:
        validation.number("ttl", self.ttl, 1, LONGEST_TTL)
        validation.number("lease", self.lease, SHORTEST_LEASE, LONGEST_LEASE)
        validation.choice("on_conflict", self.on_conflict, get_args(OnConflict))
        validation.timeout("wait_timeout", self.wait_timeout)
        if self.fingerprint is not None and not callable(self.fingerprint):
            raise validation.wrong("fingerprint", self.fingerprint, "a function of the arguments, or None")
        if not is_codec(self.codec):
            raise validation.wrong("codec", self.codec, "an object with name, encode and decode")
        validation.count("max_size", self.max_size, high=LARGEST_RESULT)
        if self.on_outage is not None:
            validation.choice("on_outage", self.on_outage, ON_OUTAGE)

    def numbers(self) -> dict[str, float]:
        """The numbers in force, as they stand in clear in the resource's `config`."""
        patience = {} if self.wait_timeout is None else {"wait_timeout": self.wait_timeout}
        return {"ttl": self.ttl, "lease": self.lease, **patience, "max_size": self.max_size}
