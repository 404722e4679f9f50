"""The configuration of a bulkhead."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared_resilience import validation
from shared_resilience.backends import ON_OUTAGE, OnOutage
from shared_resilience.priority import Reserved, checked_reserved

SHORTEST_LEASE, LONGEST_LEASE = 1.0, 3600.0
LARGEST = 1_000_000


@dataclass(frozen=True, slots=True)
class BulkheadConfig:
    """How many calls of the whole fleet may be inside at once, and how many may wait. Times are in seconds.

    At most `max_concurrent_calls` are inside; up to `max_queue_size` more wait, each for at most `timeout` (0: none
    waits; None: as long as it takes). A slot is a lease of `lease` seconds (1 to 3600), which the process of its holder
    renews after a third of it; a holder that dies keeps its slot for at most so long. Both sizes are from 1 to 10⁶.

    `reserved` keeps shares of the slots for more important calls: with `{PriorityLevel.CRITICAL: 0.2}` calls of any
    lower priority leave a fifth of the slots free. With `local` the slots are those of this process alone, without
    Redis. `on_outage` (None: as the service, else `"local"`) says how to decide while Redis is away. With `shadow`
    nothing is refused and nobody waits.

    Raises `ValueError` for a value outside its range.
    """

    max_concurrent_calls: int = 100
    max_queue_size: int = 200
    timeout: float | None = 30.0
    lease: float = 30.0
    reserved: Reserved = field(default_factory=dict)
    local: bool = False
    on_outage: OnOutage | None = None
    shadow: bool = False

    def __post_init__(self) -> None:
        validation.count("max_concurrent_calls", self.max_concurrent_calls, high=LARGEST)
        validation.count("max_queue_size", self.max_queue_size, high=LARGEST)
        validation.timeout("timeout", self.timeout)
        validation.number("lease", self.lease, SHORTEST_LEASE, LONGEST_LEASE)
        object.__setattr__(self, "reserved", checked_reserved(self.reserved))
        validation.flag("local", self.local)
        if self.on_outage is not None:
            validation.choice("on_outage", self.on_outage, ON_OUTAGE)
        validation.flag("shadow", self.shadow)

    def numbers(self) -> dict[str, float]:
        """The numbers in force, as they stand in clear in the resource's `config`."""
        patience = {} if self.timeout is None else {"timeout": self.timeout}
        sizes = {"max_concurrent_calls": self.max_concurrent_calls, "max_queue_size": self.max_queue_size}
        reserved = {f"reserved.{level.name.lower()}": share for level, share in self.reserved.items()}
        return {**sizes, **patience, "lease": self.lease, **reserved}
