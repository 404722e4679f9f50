"""Scripts and twins of calls that are made once, and of last good values, are one algorithm."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Lane
from histories import START, KeysHistory, compare_all, stem

from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
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


def test_a_record_without_a_number_begins_at_the_time(store: Lane) -> None:
    """Somebody has written into it by hand."""
    key = f"{stem()}:idempotency:7"
    redis = RedisStore(store.wire, lambda: START)
    store.client.hset(key, mapping={"state": "running", "owner": "w1:a:3000", "lease_until_us": START + 1})
    store.client.hset(key, mapping={"fencing": "many", "fingerprint": "f"})

    assert step(redis.execute(Command(CLAIM, (key,), ("w1:b:3000", "f", SECOND)))) == [b"running", 0, 1, b"", b""]
    store.client.delete(key)


def test_those_who_wait_are_told_when_a_key_is_settled(store: Lane) -> None:
    root = stem()
    redis, record = RedisStore(store.wire, lambda: START), f"{root}:idempotency:7"
    channel = store.client.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(f"{root}:done")
    channel.get_message(timeout=5)
    step(redis.execute(Command(CLAIM, (record,), ("w1:a:3000", "f", SECOND))))
    step(redis.execute(Command(SETTLE, (record,), ("w1:a:3000", START, "f", SECOND, "done", "json", "7"))))

    message = channel.get_message(timeout=5)
    assert (message["channel"], message["data"]) == (f"{root}:done".encode(), b"idempotency:7")
    channel.close()
    store.client.delete(record)


def test_a_record_without_an_owner_is_nobodys(store: Lane) -> None:
    record = f"{stem()}:idempotency:7"
    store.client.hset(record, "state", "running")
    redis = RedisStore(store.wire, lambda: START)

    assert step(redis.execute(Command(RENEW, (record,), (SECOND, "w1:a:3000", 1, "f")))) == [0]
    store.client.delete(record)


@pytest.mark.parametrize("missing", ["codec", "value", "stored_us"])
def test_an_entry_that_lacks_something_is_none(store: Lane, missing: str) -> None:
    key = f"{stem()}:cache:EUR"
    entry = {"codec": "json", "value": "1.08", "stored_us": START}
    store.client.hset(key, mapping={field: value for field, value in entry.items() if field != missing})
    redis = RedisStore(store.wire, lambda: START)

    assert step(redis.execute(Command(READ, (key,), ("json", SECOND)))) == [0, 0, b""]
    store.client.delete(key)
