"""The scripts as they are sent: composed once, pinned, within what they declare, and never without a time to live."""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import Lane

from shared_resilience import TokenBucket, scripts
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.commands import Command
from shared_resilience.heartbeat import BEAT, ENROL
from shared_resilience.rate_limiter import RESET
from shared_resilience.token_bucket import BucketCommands

PINNED = {
    "heartbeat": "f2cdeba24ac88d26b92e573c4b727683f31964f5",
    "heartbeat_roster": "760c77731ad4b0721278d20e3a4f8c04c48ccae6",
    "rate_limiter_reset": "7d464f96293ffd0501311c4ee01f25860529d9a6",
    "token_bucket": "6e4d1dc1d8dd6b0fa59638ad1b9fb5e078c6285d",
    "token_bucket_peek": "804f2e6ef98b2c9ceaf2ff728f29d24b8fe24b63",
    "token_bucket_refund": "db5ef1990a5aa005baea1d79a0d8c581f7b669be",
}


def commands(prefix: str) -> dict[str, Command[Any]]:
    """A command of every script."""
    key, overrides = f"{prefix}:{{a}}:limit:token_bucket", f"{prefix}:{{a}}:overrides"
    bucket = BucketCommands(TokenBucket(10, 1))
    beat = (f"{prefix}:{{a}}:workers", f"{prefix}:{{a}}:config", f"{prefix}:{{a}}:stats")
    return {
        "token_bucket": bucket.take((key, overrides), 1),
        "token_bucket_peek": bucket.peek((key, overrides), 1),
        "token_bucket_refund": bucket.refund((key, overrides), 1),
        "rate_limiter_reset": Command(RESET, (key,), ()),
        "heartbeat": Command(BEAT, beat, ("w1", 5_000_000, 1, "limit.a.capacity", "10", "limit.allowed", 3)),
        "heartbeat_roster": Command(ENROL, (f"{prefix}:fleet",), (5_000_000, "w1")),
    }


def test_the_composed_scripts_are_the_pinned_ones() -> None:
    assert {name: scripts.load(name).sha for name in scripts.names()} == PINNED


def test_every_script_has_an_example_command_here() -> None:
    assert set(commands("p")) == set(scripts.names())


def test_a_fragment_is_included_once() -> None:
    assert scripts.load("token_bucket").text.count("local function to_integer") == 1
    assert "@include" not in "".join(scripts.load(name).text for name in scripts.names())


def test_an_unknown_script_is_an_error_that_names_those_that_exist() -> None:
    with pytest.raises(LookupError, match="there is no script 'nope'; there are heartbeat"):
        scripts.load("nope")


@pytest.mark.parametrize("name", scripts.names())
def test_no_script_needs_a_shebang_or_formats_numbers_by_concatenation(name: str) -> None:
    text = re.sub(r"--.*", "", scripts.load(name).text)

    assert not text.startswith("#!")
    assert "tostring" not in text
    assert "cjson" not in text


@pytest.mark.parametrize("name", scripts.names())
def test_a_script_touches_only_the_keys_that_it_declares_and_leaves_none_immortal(
    store: Lane, prefix: str, name: str
) -> None:
    command = commands(prefix)[name]

    step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(command))

    left = {key.decode() for key in store.client.scan_iter(f"{prefix}:*")}
    assert left <= set(command.keys)
    assert all(store.client.pttl(key) > 0 for key in left)


def test_a_script_is_known_again_after_a_flush(store: Lane, prefix: str) -> None:
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False))
    take = commands(prefix)["token_bucket"]
    step(redis_store.execute(take))
    store.client.script_flush()

    assert step(redis_store.execute(take))[2] == 8


def test_the_time_of_a_decision_is_the_servers(store: Lane, prefix: str) -> None:
    step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(commands(prefix)["token_bucket"]))

    seconds, micros = store.client.time()
    stored = int(store.client.hget(f"{prefix}:{{a}}:limit:token_bucket", "time_us"))
    assert 0 <= seconds * 1_000_000 + micros - stored < 10_000_000


def test_a_damaged_state_is_an_unused_one_and_is_mended_by_the_next_call(store: Lane, prefix: str) -> None:
    key = f"{prefix}:{{a}}:limit:token_bucket"
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False))
    for damage in ({"microtokens": "many"}, {"microtokens": "nan", "time_us": "nan"}, {"time_us": "inf"}):
        store.client.delete(key)
        store.client.hset(key, mapping=damage)

        assert step(redis_store.execute(commands(prefix)["token_bucket"]))[:3] == [1, 10, 9]
