"""Scripts and twins of calls that are made once, and of last good values, are one algorithm."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from conftest import Lane
from histories import START, KeysHistory, compare_all, stem

from shared_resilience.commands import Command
from shared_resilience.fallback_cache import READ, STORE
from shared_resilience.records import CLAIM, RENEW, SETTLE

SECOND = 1_000_000
TOKENS = ["w1:a:3000", "w1:b:3000", "w2:a:60000", "w2:b", ""]
BATCH, STEPS = 200, 20_000
TTLS = [1, 999, SECOND, 1_234_400, 3600 * SECOND]


def clock(source: random.Random) -> Iterator[int]:
    """Times that mostly go on, by steps that meet the ends of leases to the microsecond."""
    now = START
    while True:
        now += source.choice([0, 1, 1000, SECOND, 3 * SECOND - 1, 3 * SECOND, 3 * SECOND + 1, 61 * SECOND])
        if source.random() < 0.05:
            now -= source.choice([1, SECOND, 100 * SECOND])
        yield now


def claims(lane: Lane, seed: int) -> KeysHistory:
    """Callers that claim two keys, renew what they have or have lost, and settle it."""
    source = random.Random(seed)
    root = stem()
    keys = [f"{root}:idempotency:{number}" for number in range(2)]
    history: list[tuple[int, Command[Any]]] = []
    for now in clock(source):
        key, token, fencing = source.choice(keys), source.choice(TOKENS), source.choice([0, 1, START, 2**53 - 1])
        fingerprint, ttl, kind = source.choice("fffg"), source.choice(TTLS), source.random()
        if kind < 0.5:
            command: Command[Any] = Command(CLAIM, (key,), (token, fingerprint, ttl))
        elif kind < 0.7:
            both = [item for _ in keys for item in (source.choice(TOKENS), fencing, source.choice("fg"))]
            command = Command(RENEW, tuple(keys), (ttl, *both))
        else:
            end = ("done", "json", source.choice(["7", '"é"', ""])) if source.random() < 0.4 else ("released", "", "")
            command = Command(SETTLE, (key,), (token, fencing, fingerprint, ttl, *end))
        history.append((now, command))
        if len(history) == BATCH:
            return KeysHistory(lane, keys, history)
    raise AssertionError("time has no end")


def caches(lane: Lane, seed: int) -> KeysHistory:
    """Values that are kept and looked for, at ages to the microsecond."""
    source = random.Random(seed)
    root = stem()
    keys = [f"{root}:cache:{currency}" for currency in ("EUR", "USD")]
    history: list[tuple[int, Command[Any]]] = []
    for now in clock(source):
        codec = source.choice(["json", "json", "other"])
        if source.random() < 0.4:
            chosen = tuple(source.sample(keys, source.choice([1, 2])))
            values = [source.choice(["1.08", '"é"', ""]) for _ in chosen]
            command: Command[Any] = Command(STORE, chosen, (source.choice(TTLS), codec, *values))
        else:
            oldest = source.choice([0, 1, 1000, SECOND, 3 * SECOND, 300 * SECOND])
            command = Command(READ, (source.choice(keys),), (codec, oldest))
        history.append((now, command))
        if len(history) == BATCH:
            return KeysHistory(lane, keys, history)
    raise AssertionError("time has no end")


def test_scripts_and_twins_of_claims_agree_over_twenty_thousand_steps(store: Lane, lane: str) -> None:
    compare_all(claims(store, seed) for seed in range(STEPS // BATCH if lane != "fakeredis" else 10))


def test_scripts_and_twins_of_caches_agree_over_twenty_thousand_steps(store: Lane, lane: str) -> None:
    compare_all(caches(store, seed) for seed in range(STEPS // BATCH if lane != "fakeredis" else 10))
