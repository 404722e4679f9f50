"""Scripts that are told nonsense, or find it: they answer, or change nothing; no key of theirs is left immortal."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from conftest import Lane
from redis.exceptions import ResponseError
from servers import part_of
from test_scripts import commands

from shared_resilience import scripts

NONSENSE: list[Any] = [
    "", " ", "nan", "-nan", "inf", "-inf", "0x10", "1e400", "-5", "1.5", "-0", "9" * 30, "{", "}", "%", "\x00", "é",
    "ключ", "a b", "nil", "false", 0, -1, 1, 2**53 - 1, 2**53, 2**63, -(2**63), b"\xff\xfe", "x" * 3000,
]  # fmt: skip
CALLS = 6000


def told(source: random.Random, arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments of a call, some of them nonsense, one too few or one too many."""
    changed = list(arguments)
    for _ in range(source.choice([0, 1, 1, 2, 3])):
        if changed:
            changed[source.randrange(len(changed))] = source.choice(NONSENSE)
    if source.random() < 0.1 and changed:
        changed.pop(source.randrange(len(changed)))
    if source.random() < 0.1:
        changed.insert(source.randrange(len(changed) + 1), source.choice(NONSENSE))
    return changed


def spoil(client: Any, source: random.Random, key: str, kind: str) -> None:
    """Puts something into a key of ours that no script has written; it ends by itself, as all that is ours does."""
    value = source.choice(NONSENSE)
    if kind == "hash":
        fields = [field.decode("utf-8", "replace") for field in client.hkeys(key)]
        client.hset(key, source.choice(["microtokens", "time_us", "state", "generation", *fields]), value)
    elif kind == "zset":
        client.zadd(key, {str(value): source.choice([0, -1, 1e18, float("inf"), float("-inf"), 1.5])})
    client.pexpire(key, 60_000)


def held(client: Any, key: str) -> Any:
    """What is under a key, but for pauses, which are dropped when they are over."""
    kind = client.type(key)
    if kind == b"hash":
        return {field: value for field, value in client.hgetall(key).items() if not field.startswith(b"paused_")}
    return client.zrange(key, 0, -1, withscores=True) if kind == b"zset" else kind


def refused(client: Any, name: str, keys: tuple[str, ...], arguments: list[Any]) -> str:
    """Why a script refused its arguments, "" if it did not."""
    try:
        client.eval(scripts.load(name).text, len(keys), *keys, *arguments)
    except ResponseError as refusal:
        return str(refusal)
    return ""


def kinds_of(client: Any, prefix: str) -> dict[str, str]:
    """The type of each key that some script has, by what stands behind the prefix."""
    found = {}
    for name, command in commands(prefix).items():
        client.eval(scripts.load(name).text, len(command.keys), *command.keys, *command.args, "")
        for key in command.keys:
            found[key.removeprefix(prefix)] = client.type(key).decode()
    return found


@pytest.mark.fault(
    "scripts are told nonsense, or find it in their keys",
    "they answer, or refuse and change nothing; no key is left immortal",
)
def test_nonsense_is_refused_without_a_trace_or_healed(store: Lane, lane: str, prefix: str) -> None:
    outcomes, kinds = Counter[str](), kinds_of(store.client, f"{prefix}-")
    calls = part_of(lane, range(CALLS))
    for number in calls:
        source, stem = random.Random(number), f"{prefix}-{number % 7}"
        name = source.choice(scripts.names())
        command = commands(stem)[name]
        if source.random() < 0.3:
            key = source.choice(command.keys)
            spoil(store.client, source, key, kinds.get(key.removeprefix(stem), "none"))
        now = source.choice(["", "", "", 1_763_880_000_000_000, *NONSENSE])
        arguments = told(source, (*command.args, now))
        before = [held(store.client, key) for key in command.keys]
        refusal = refused(store.client, name, command.keys, arguments)
        outcomes["refused" if refusal else "replied"] += 1
        if refusal:
            after = [held(store.client, key) for key in command.keys]
            assert after == before, (number, name, arguments, refusal)
        for key in command.keys:  # overrides and forced modes have no end
            assert store.client.pttl(key) != -1 or key.endswith((":overrides", ":breaker")), (number, name, key)

    assert outcomes["replied"] > len(calls) // 20
    assert outcomes["refused"] > len(calls) // 20
    left = [key.decode() for key in store.client.scan_iter(f"{prefix}*", count=1000)]
    assert {key.partition(":")[0].rpartition("-")[0] for key in left} == {prefix}


@pytest.mark.fault("somebody has broken the fields of our keys", "the next calls are answered")
@pytest.mark.parametrize("name", scripts.names())
def test_what_nonsense_has_left_does_no_harm_to_sensible_calls(store: Lane, prefix: str, name: str) -> None:
    """Whatever its keys held, of the right type, a script answers again."""
    command = commands(prefix)[name]
    text = scripts.load(name).text
    store.client.eval(text, len(command.keys), *command.keys, *command.args, "")
    kinds = {key: store.client.type(key).decode() for key in command.keys}
    for number in range(60):
        source = random.Random(number)
        for key, kind in kinds.items():
            if kind == "hash":
                for field in store.client.hkeys(key):
                    if source.random() < 0.3:
                        store.client.hset(key, field, source.choice(NONSENSE))
            elif kind == "zset":
                for member in store.client.zrange(key, 0, -1):
                    store.client.zadd(key, {member: source.choice([0, -1, 1e18, float("inf"), 1.5])})
        assert store.client.eval(text, len(command.keys), *command.keys, *command.args, "") is not None
