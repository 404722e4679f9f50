"""Where the limits of a resource have their states, for the keys that users name."""

from __future__ import annotations

from collections.abc import Mapping

from shared_resilience.keys import ResourceKeys
from shared_resilience.limiter_config import LimiterConfig

Key = str | Mapping[str, str]
"""One key for all limits, or a mapping from a limit's label to its key."""

Texts = tuple[str, ...]
"""The keys of the limits, as users know them, in the order of the limits."""


class LimiterKeys:
    """The keys in Redis of one limiter."""

    def __init__(self, keys: ResourceKeys, prefix: str, name: str, config: LimiterConfig) -> None:
        self._keys = keys
        self._prefix = prefix
        self._name = name
        self._partitioned = config.partitioned
        self._labels = tuple(limit.label for limit in config.limits)
        self._known = frozenset(self._labels)

    def texts(self, key: Key) -> Texts:
        """The key of each limit. Raises `ValueError` for a mapping with labels that are none, or of a partition."""
        if type(key) is str or not isinstance(key, Mapping):  # the first is quick to tell
            return (str(key),) * len(self._labels)
        if self._partitioned:
            raise ValueError(f"key is a mapping, but {self._name!r} is partitioned and has one key for all its limits")
        if unknown := key.keys() - self._known:
            raise ValueError(f"key has the labels {sorted(unknown)}, but {self._name!r} has only {list(self._labels)}")
        return tuple([str(key.get(label, "")) for label in self._labels])

    def of(self, texts: Texts) -> tuple[str, ...]:
        """The key of the overrides, and that of each limit; of a partition, they are in a slot of their own."""
        keys = self._keys
        if self._partitioned:
            keys, texts = ResourceKeys(self._prefix, self._name, partition=texts[0]), ("",) * len(texts)
        return keys.overrides, *map(keys.limit, self._labels, texts)
