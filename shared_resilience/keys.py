"""The names of keys in Redis: readable, injective, and never outside their prefix.

Resource names and limit keys may be any text. Only what would break a key apart is percent-encoded (`%`, braces,
control characters, white space, and `/` in resource names); what is then longer than 96 bytes becomes `%h` and its
SHA-256, which no encoded text can look like, since a real `%` is always followed by two upper-case hexadecimal digits.

The resource name is the hash tag of its keys, so that in a Redis Cluster all of a resource lives in one slot.
"""

from __future__ import annotations

import re
from hashlib import sha256

LONGEST = 96
_IN_KEYS = re.compile(r"[%{}\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_IN_NAMES = re.compile(r"[/%{}\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def _encode(text: str, special: re.Pattern[str]) -> str:
    encoded = special.sub(_percent, text)
    if len(encoded) * 4 <= LONGEST or len(encoded.encode()) <= LONGEST:
        return encoded
    return "%h" + sha256(encoded.encode()).hexdigest()


def encode_key(text: str) -> str:
    """`text` as the part of a key that a user chose, injectively."""
    return _encode(text, _IN_KEYS)


def encode_name(name: str) -> str:
    """`name` as the hash tag of a resource, injectively. Raises `ValueError` for the empty name."""
    if not name:
        raise ValueError("name is '', but must be a text of at least one character")
    return _encode(name, _IN_NAMES)


class ResourceKeys:
    """The keys of one resource, `sr:{payments}:config` and its like, or of one of its partitions."""

    __slots__ = ("_stem", "breaker", "config", "latency", "name", "overrides", "retry_budget", "stats", "workers")

    def __init__(self, prefix: str, name: str, partition: str | None = None) -> None:
        self.name = encode_name(name)
        if partition is not None:
            self.name += f"/{encode_key(partition)}"
        self._stem = f"{prefix}:{{{self.name}}}:"
        self.breaker = self._stem + "breaker"
        self.config = self._stem + "config"
        self.latency = self._stem + "latency"
        self.overrides = self._stem + "overrides"
        self.retry_budget = self._stem + "retry_budget"
        self.stats = self._stem + "stats"
        self.workers = self._stem + "workers"

    @property
    def slots(self) -> tuple[str, str, str, str]:
        """Those of the bulkhead: holders of slots, queue, waiters, fencing."""
        return self._stem + "bulkhead", self._stem + "queue", self._stem + "waiters", self._stem + "fencing"

    @property
    def wake(self) -> str:
        """The channel on which the first in the queue is told that it may be its turn."""
        return self._stem + "wake"

    @property
    def done(self) -> str:
        """The channel on which those who wait for a call made once are told that it is over."""
        return self._stem + "done"

    def idempotency(self, key: str) -> str:
        """The record of the call that is made once under a key."""
        return f"{self._stem}idempotency:{encode_key(key)}"

    def cache(self, key: str) -> str:
        """The last good value for a key."""
        return f"{self._stem}cache:{encode_key(key)}"

    def limit(self, label: str, key: str) -> str:
        """The state of the limit `label` for one of its keys."""
        stem = f"{self._stem}limit:{label}"
        return f"{stem}:{encode_key(key)}" if key else stem

    def limit_prefix(self, label: str) -> str:
        """What the states of all non-empty keys of the limit `label` start with."""
        return f"{self._stem}limit:{label}:"
