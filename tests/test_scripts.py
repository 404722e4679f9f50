"""The scripts as they are sent: composed once, pinned, within what they declare, and never without a time to live."""

from __future__ import annotations

import re
from hashlib import sha1
from typing import Any, NamedTuple

import pytest
from conftest import Lane

from shared_resilience import (
    BulkheadConfig,
    CircuitBreakerConfig,
    LeakyBucket,
    PriorityLevel,
    SlidingWindow,
    TokenBucket,
    scripts,
)
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.bulkhead_commands import BulkheadCommands, Call
from shared_resilience.circuit_commands import CONTROL, PROBE, SETTLE
from shared_resilience.commands import Command, Operation
from shared_resilience.evidence import EVIDENCE
from shared_resilience.fallback_cache import READ, STORE
from shared_resilience.fleet import ENLIST, WORKERS
from shared_resilience.heartbeat import BEAT, ENROL
from shared_resilience.keys import ResourceKeys
from shared_resilience.latency import record
from shared_resilience.limit_commands import OVERRIDE, PAUSE_FOR, RESET, LimitCommands
from shared_resilience.limits import Limit
from shared_resilience.permit_commands import PermitCommands
from shared_resilience.records import CLAIM, RENEW
from shared_resilience.records import SETTLE as SETTLE_RECORD
from shared_resilience.retry_budget import settle as settle_budget

PINNED = {
    "bulkhead_enter": "7be0a5ee076d37ed2096a39e18828e6223c116db",
    "bulkhead_leave": "f306d0b22cbb87cab2477cc264408f0a5d0822b3",
    "bulkhead_upkeep": "d6ace335f42b8cf464ed0a68299b60e7be95af14",
    "circuit_breaker_control": "fe5a717fed2174c709f90ec268f146ce1f283105",
    "circuit_breaker_probe": "93750d24a4a56312d6c2a036eace6d5d8c1afe7f",
    "circuit_breaker_settle": "20ec8ff7fb722409561ca9dc376216d38c3a438a",
    "evidence": "61e98b3b7f5312dde1274e9fc82d017841d723ce",
    "fallback_cache_read": "b33790c2d2bc1db412fa0d65f3e616393a235e7c",
    "fallback_cache_store": "4bd191781c43f649c839b286abaa7896cf6ba63d",
    "fleet_enlist": "f95e4cd5c63fa2c8f3f02056881297cc7d0fe65e",
    "fleet_workers": "1d717d93d4cdbf35decbb1269c7b775453cd1cfc",
    "heartbeat": "9559f572981b865745ffd9a1e814efed9011ea70",
    "heartbeat_roster": "859edac27708ed7d8a9aa002ea37c0facefe9707",
    "idempotency_claim": "10bb4aceaab97d2aa254136ad2218b6e7719244a",
    "idempotency_renew": "d3b0857f14749480f659769e960ba71ce4442103",
    "idempotency_settle": "dc29c611cc9502bbcc9456ff9e2f891c97629f69",
    "latency": "83af30428cdb3ab8f020bc83f19d88eb1c9d1154",
    "leaky_bucket": "1a59559652a0afb9a4039fa908b5ab01649f295f",
    "permits_enter": "4e450dbaef1da3ee68ee3fa3a3a56ca4bd18dd0f",
    "rate_limiter": "8dc4ecb832b54a1f6f3f60813faabba15f8f65d5",
    "rate_limiter_override": "c5823d1b977dca9d694ce039b85fd57bc47e6cfe",
    "rate_limiter_pause": "34bb2e46b9fd4e7ff0665d522046e9386ba661b1",
    "rate_limiter_peek": "b778db0cc1c938a70a9633ac5b3cb8896c135429",
    "rate_limiter_reset": "673cce9a8613b3ec93ba3e2bc0931ed28235b364",
    "rate_limiter_settle": "86daceb6cd9bc8ffa51d02a14a53db99e48bfbb7",
    "retry_budget": "0299b615eba6f21bffcd6db83bae572e36d514b6",
    "sliding_window": "2f48c0fae25cc59688eaa8efc75883a3463ace08",
    "token_bucket": "b17a54a51a01fa49b02465273aade494a763c174",
    "token_bucket_lease": "0accd0aaa49ca422184cae3a92e142aca68b0c76",
}


LATENCY: Operation[Any] = Operation("latency", record, lambda reply, source: reply)
RETRY_BUDGET: Operation[Any] = Operation("retry_budget", settle_budget, lambda reply, source: reply)
LIMITS: list[Limit] = [
    TokenBucket(10, 1),
    SlidingWindow(20, 60),
    SlidingWindow(30, 60, False, "coarse"),
    LeakyBucket(9, 1),
]


def commands(prefix: str) -> dict[str, Command[Any]]:
    """A command of every script."""
    stem = f"{prefix}:{{a}}"
    overrides = f"{stem}:overrides"
    keys = (overrides, *(f"{stem}:limit:{limit.label}" for limit in LIMITS))
    of_limits = LimitCommands(LIMITS)
    circuit = (overrides, f"{stem}:breaker", f"{stem}:workers")
    numbers = CircuitBreakerConfig().arguments()
    of_one_kind = [("token_bucket", LIMITS[0], keys[1]), ("sliding_window", LIMITS[1], keys[2])]
    of_one_kind += [("leaky_bucket", LIMITS[3], keys[4])]
    of_slots = BulkheadCommands(ResourceKeys(prefix, "a"), BulkheadConfig(), lambda: 0)
    wanted = Call("w1:a:30000", PriorityLevel.NORMAL, True, None)
    record = (f"{stem}:idempotency:order-7",)
    fleet = (f"{prefix}:fleet", f"{prefix}:{{{prefix}:fleet}}:workers")
    beat = (f"{stem}:workers", f"{stem}:config", f"{stem}:stats", overrides)
    return {
        "rate_limiter": of_limits.take(keys, 1),
        **{script: LimitCommands([limit]).take((overrides, key), 1) for script, limit, key in of_one_kind},
        "token_bucket_lease": LimitCommands(LIMITS[:1]).lease((overrides, keys[1]), 1, 5, 0),
        "rate_limiter_peek": of_limits.peek(keys, 1),
        "rate_limiter_settle": of_limits.charge(keys, 1),
        "rate_limiter_reset": Command(RESET, keys[1:], ()),
        "rate_limiter_pause": Command(PAUSE_FOR, keys[:1], (1_000_000,)),
        "rate_limiter_override": Command(OVERRIDE, keys[:1], ("limit.token_bucket.capacity", "5")),
        "evidence": Command(EVIDENCE, circuit, (*numbers, "w1", 0, 3, 1, 0, 500_000)),
        "circuit_breaker_probe": Command(PROBE, circuit[:2], (*numbers, "token")),
        "circuit_breaker_settle": Command(SETTLE, circuit[:2], (*numbers, "w1", "token", 1, "success", 500_000)),
        "circuit_breaker_control": Command(CONTROL, circuit[:2], (*numbers, "")),
        "bulkhead_enter": of_slots.enter(wanted),
        "bulkhead_leave": of_slots.leave("w1:a:30000"),
        "bulkhead_upkeep": of_slots.upkeep(["adopt", "w1:a:30000", "renew", "w1:b:30000", "drop", "w1:c:30000"]),
        "permits_enter": PermitCommands(of_limits, of_slots).enter(keys, 1, 0, wanted),
        "retry_budget": Command(RETRY_BUDGET, (f"{stem}:retry_budget",), (1, 3, 1, 100_000, 10**6, 10**8)),
        "latency": Command(LATENCY, (f"{stem}:latency",), (60_000_000, 950_000, 600, 3)),
        "fallback_cache_store": Command(STORE, (f"{stem}:cache:EUR", f"{stem}:cache:USD"), (10**6, "json", "1", "2")),
        "fallback_cache_read": Command(READ, (f"{stem}:cache:EUR",), ("json", 10**6)),
        "idempotency_claim": Command(CLAIM, record, ("w1:a:30000", "f", 3_600_000_000)),
        "idempotency_renew": Command(RENEW, record, (3_600_000_000, "w1:a:30000", 5, "f")),
        "idempotency_settle": Command(SETTLE_RECORD, record, ("w1:a:30000", 5, "f", 10**9, "done", "json", "7")),
        "heartbeat": Command(BEAT, beat, ("w1", 5_000_000, 1, "limit.a.capacity", "10", "limit.allowed", 3)),
        "heartbeat_roster": Command(ENROL, (f"{prefix}:resources",), (5_000_000, "search")),
        "fleet_enlist": Command(ENLIST, fleet, (5_000_000, "w1", "web", "7", "0.1.0", "up")),
        "fleet_workers": Command(WORKERS, fleet, ()),
    }


def one_bucket(prefix: str) -> Command[Any]:
    return LimitCommands([TokenBucket(10, 1)]).take((f"{prefix}:{{a}}:o", f"{prefix}:{{a}}:b"), 1)


def test_the_composed_scripts_are_the_pinned_ones() -> None:
    assert {name: scripts.load(name).sha for name in scripts.names()} == PINNED


def test_every_script_has_an_example_command_here() -> None:
    assert set(commands("p")) == set(scripts.names())


def test_a_fragment_is_included_once() -> None:
    assert scripts.load("rate_limiter").text.count("local function to_integer") == 1
    assert "@include" not in "".join(scripts.load(name).text for name in scripts.names())


def test_an_unknown_script_is_an_error_that_names_those_that_exist() -> None:
    with pytest.raises(LookupError, match="there is no script 'nope'; there are bulkhead_enter, "):
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
    assert all(store.client.pttl(key) > 0 for key in left - {f"{prefix}:{{a}}:overrides"})


def test_a_script_is_known_again_after_a_flush(store: Lane, prefix: str) -> None:
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False))
    take = one_bucket(prefix)
    step(redis_store.execute(take))
    store.client.script_flush()

    assert step(redis_store.execute(take))[3] == 8


def test_the_time_of_a_decision_is_the_servers(store: Lane, prefix: str) -> None:
    def now_us() -> int:
        seconds, micros = store.client.time()
        return int(seconds * 1_000_000 + micros)

    before = now_us()
    step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(one_bucket(prefix)))
    after = now_us()

    assert before <= int(store.client.hget(f"{prefix}:{{a}}:b", "time_us")) <= after


@pytest.mark.parametrize(
    "damage",
    [
        ("HSET", "microtokens", "many"),
        ("HSET", "microtokens", "nan", "time_us", "nan"),
        ("HSET", "time_us", "inf"),
        ("HSET", "microtokens", "5"),
        ("HSET", "time_us", "5"),
    ],
)
def test_a_damaged_bucket_is_an_unused_one_and_is_mended_by_the_next_call(
    store: Lane, prefix: str, damage: tuple[str, ...]
) -> None:
    take = one_bucket(prefix)
    store.client.execute_command(damage[0], take.keys[1], *damage[1:])

    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False))
    peek = LimitCommands([TokenBucket(10, 1)]).peek(take.keys, 1)
    assert step(redis_store.execute(peek))[:4] == [1, 1, 10, 10]
    assert step(redis_store.execute(take))[:4] == [1, 1, 10, 9]


@pytest.mark.parametrize("field", ["microlevel", "time_us"])
def test_a_damaged_queue_is_an_unused_one_and_is_mended_by_the_next_call(store: Lane, prefix: str, field: str) -> None:
    take = LimitCommands([LeakyBucket(10, 1)]).take((f"{prefix}:{{a}}:o", f"{prefix}:{{a}}:q"), 1)
    store.client.hset(take.keys[1], field, "5")

    assert step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(take))[:4] == [1, 1, 10, 9]


def test_the_largest_integer_that_a_double_holds_is_accepted(store: Lane, prefix: str) -> None:
    peek = LimitCommands([TokenBucket(10, 1)]).peek((f"{prefix}:{{a}}:o", f"{prefix}:{{a}}:b"), 2**53 - 1)

    assert step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(peek))[4] == -1


def test_a_damaged_log_is_an_unused_one_and_is_mended_by_the_next_call(store: Lane, prefix: str) -> None:
    take = LimitCommands([SlidingWindow(10, 60)]).take((f"{prefix}:{{a}}:o", f"{prefix}:{{a}}:w"), 4)
    store.client.zadd(take.keys[1], {"not an entry": 1e18})
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False))

    assert [step(redis_store.execute(take))[3] for _ in range(2)] == [6, 2]


@pytest.mark.parametrize(
    ("name", "position", "message"),
    [
        ("rate_limiter", 0, "cost must be an integer from 1"),
        ("rate_limiter", 1, "share must be an integer from 1"),
        ("rate_limiter", 2, "longest delay must be an integer from -1"),
        ("rate_limiter", 3, "held back must be an integer from 0"),
        ("rate_limiter", 6, "first number of a limit must be an integer from 1"),
        ("rate_limiter", 7, "second number of a limit must be"),
        ("rate_limiter", 8, "third number of a limit must be"),
        ("rate_limiter", 11, "first number of a limit must be"),
        ("rate_limiter", 23, "third number of a limit must be"),
        *(
            (name, position, message)
            for name in ("token_bucket", "sliding_window", "leaky_bucket")
            for position, message in (
                (0, "cost must be an integer from 1"),
                (1, "share must be an integer from 1"),
                (2, "longest delay must be an integer from -1"),
                (3, "held back must be an integer from 0"),
                (6, "first number of a limit must be an integer from 1"),
                (7, "second number of a limit must be an integer from 1"),
                (8, "third number of a limit must be an integer from 1"),
            )
        ),
        ("token_bucket_lease", 0, "cost must be an integer from 1"),
        ("token_bucket_lease", 2, "most must be an integer from 1"),
        ("token_bucket_lease", 3, "back must be an integer from 0"),
        ("token_bucket_lease", 6, "first number of a limit must be"),
        ("rate_limiter_peek", 0, "cost must be an integer from 1"),
        ("rate_limiter_peek", 2, "longest delay must be an integer from -1"),
        ("rate_limiter_peek", 3, "held back must be an integer from 0"),
        ("rate_limiter_settle", 0, "cost must be an integer from 1"),
        ("rate_limiter_settle", 3, "since must be an integer from 0"),
        ("rate_limiter_settle", 6, "first number of a limit must be an integer from 1"),
        ("rate_limiter_pause", 0, "length must be an integer from 0"),
        ("evidence", 0, "failure_threshold must be an integer from 1 to"),
        ("evidence", 2, "window must be an integer from 100000 to"),
        ("evidence", 4, "slow_call_rate must be an integer from 1 to"),
        ("evidence", 15, "calls must be an integer from 0"),
        ("evidence", 16, "failures must be an integer from 0"),
        ("evidence", 17, "slow calls must be an integer from 0"),
        ("evidence", 18, "draw must be an integer from 0"),
        ("evidence", 14, "generation must be an integer from 0"),
        ("circuit_breaker_probe", 7, "open_multiplier must be an integer from 1000 to"),
        ("circuit_breaker_probe", 11, "probe_lease must be an integer from 1000 to"),
        ("circuit_breaker_settle", 12, "min_workers must be an integer from 1"),
        ("circuit_breaker_settle", 15, "generation must be an integer from 0"),
        ("circuit_breaker_settle", 17, "draw must be an integer from 0"),
        ("circuit_breaker_control", 10, "half_open_max_calls must be an integer from 1"),
        ("bulkhead_enter", 1, "priority must be an integer from 1"),
        ("bulkhead_enter", 3, "slots must be an integer from 1"),
        ("bulkhead_enter", 4, "longest queue must be an integer from 0"),
        ("bulkhead_enter", 5, "held back slots must be an integer from 0"),
        ("bulkhead_enter", 6, "share of slots must be an integer from 1"),
        ("bulkhead_enter", 7, "slots elsewhere must be an integer from 0"),
        ("bulkhead_upkeep", 0, "slots must be an integer from 1"),
        ("bulkhead_upkeep", 1, "share of slots must be an integer from 1"),
        ("bulkhead_upkeep", 2, "slots elsewhere must be an integer from 0"),
        ("permits_enter", 0, "cost must be an integer from 1"),
        ("permits_enter", 3, "held back must be an integer from 0"),
        ("permits_enter", -5, "slots must be an integer from 1"),
        ("retry_budget", 0, "wanted must be an integer from 0"),
        ("retry_budget", 1, "requests must be an integer from 0"),
        ("retry_budget", 2, "share must be an integer from 1"),
        ("retry_budget", 3, "part must be an integer from 0"),
        ("retry_budget", 4, "floor must be an integer from 0"),
        ("retry_budget", 5, "most must be an integer from 0"),
        ("latency", 0, "window must be an integer from 6"),
        ("latency", 1, "percentile must be an integer from 1"),
        ("latency", 2, "bucket must be an integer from 0"),
        ("latency", 3, "calls must be an integer from 1"),
        ("heartbeat", 1, "horizon must be an integer from 1"),
        ("heartbeat", 2, "number of fields must be an integer from 0"),
        ("heartbeat_roster", 0, "horizon must be an integer from 1"),
        ("fallback_cache_store", 0, "time to live must be an integer from 1"),
        ("fallback_cache_read", 1, "age must be an integer from 0"),
        ("idempotency_claim", 2, "time to live must be an integer from 1"),
        ("idempotency_renew", 0, "time to live must be an integer from 1"),
        ("idempotency_renew", 2, "fencing must be an integer from 0"),
        ("idempotency_settle", 1, "fencing must be an integer from 0"),
        ("idempotency_settle", 3, "time to live must be an integer from 1"),
        ("idempotency_settle", 4, "state must be done or released"),
        ("fleet_enlist", 0, "horizon must be an integer from 1"),
    ],
)
@pytest.mark.parametrize("value", [-5_000_000, "nan", "inf", "-inf", "1.5", "", "tokens", 2**53])
def test_scripts_refuse_what_the_client_would_never_send(
    store: Lane, prefix: str, name: str, position: int, message: str, value: int | str
) -> None:
    command = commands(prefix)[name]
    args = list(command.args)
    args[position] = value

    with pytest.raises(Exception, match=message):
        step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(command.with_arguments(tuple(args))))

    assert not store.client.exists(*command.keys)


@pytest.mark.parametrize("positions", [(0, 6), (0, 7), (0, 8), (6, 7), (6, 8), (7, 8)])
def test_two_fractions_do_not_make_an_integer(store: Lane, prefix: str, positions: tuple[int, int]) -> None:
    command = one_bucket(prefix)
    args = tuple("1.5" if number in positions else argument for number, argument in enumerate(command.args))

    with pytest.raises(Exception, match=r"must be an integer"):
        step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(command.with_arguments(args)))


def only_usual(command: Command[Any]) -> Command[Any]:
    """The same, by a script that answers with an error what its first part does not decide."""
    first, rest = command.operation.loaded.text.split("\n-- Everything else.\n")
    assert len(rest) > len(first)
    text = first + '\nreturn redis.error_reply("ERR everything else")\n'
    operation = Operation(command.operation.script, command.operation.twin, lambda reply, source: reply)
    script = scripts.Script("usual", text, sha1(text.encode(), usedforsecurity=False).hexdigest())
    return Command(WithScript(operation, script), command.keys, command.args)  # type: ignore[arg-type]  # as far as used


class WithScript(NamedTuple):
    """An operation with another script."""

    operation: Operation[Any]
    loaded: scripts.Script


@pytest.mark.parametrize(
    ("limit", "costs"),
    [
        (TokenBucket(1, 1e-6), [1]),
        (TokenBucket(1, 1e9), [1, 1]),
        (TokenBucket(3, 1), [1, 2]),
        (TokenBucket(7, 3), [5, 1, 1]),
        (TokenBucket(10**9, 1 / 3), [10**9]),
        (TokenBucket(1001, 100 / 60, label="tenant"), [1, 3, 997]),
    ],
)
def test_a_usual_call_is_decided_by_the_first_part_of_its_script(
    store: Lane, prefix: str, limit: TokenBucket, costs: list[int]
) -> None:
    redis_store = usual_store(store)
    for cost in costs:
        take = LimitCommands([limit]).take((f"{prefix}:{{a}}:o", f"{prefix}:{{a}}:b"), cost)

        assert step(redis_store.execute(only_usual(take)))[0] == 1


def usual_store(store: Lane) -> RedisStore:
    times = iter([1_763_880_000_000_000 + number for number in range(0, 20_000, 1000)])
    return RedisStore(PoolWire(store.pool, 5, theirs=False), times.__next__)


@pytest.mark.parametrize(
    "limits",
    [
        [TokenBucket(3, 1)],
        [TokenBucket(3, 1), TokenBucket(10**9, 1 / 3, label="tenant")],
        [TokenBucket(3, 1), TokenBucket(3, 1, label="tenant"), TokenBucket(3, 1, label="all")],
    ],
)
def test_buckets_and_a_slot_are_usually_entered_by_the_first_part_of_the_script(
    store: Lane, prefix: str, limits: list[Limit]
) -> None:
    redis_store, keys = usual_store(store), ResourceKeys(prefix, "a")
    permits = PermitCommands(LimitCommands(limits), BulkheadCommands(keys, BulkheadConfig(3), lambda: 0))
    of_limits = (keys.overrides, *(keys.limit(limit.label, "") for limit in limits))
    for number in range(3):
        enter = permits.enter(of_limits, 1, 0, Call(f"w:{number}:3000", PriorityLevel.NORMAL, True, None))

        allowed, keeper, limit, remaining, *_, state, _, fencing, inside, told = step(
            redis_store.execute(only_usual(enter))
        )
        assert (allowed, keeper, limit, remaining) == (1, 1, 3, 2 - number)
        assert (state, inside, told) == (b"inside", number + 1, b"")
        assert fencing == int(store.client.get(keys.slots[3])) >= 1_763_880_000_000_000 + 1000 * number
    assert store.client.zcard(keys.slots[0]) == 3


@pytest.mark.parametrize("priority", [PriorityLevel.CRITICAL, PriorityLevel.BACKGROUND])
@pytest.mark.parametrize("may_wait", [True, False])
@pytest.mark.parametrize("most", [1, 4, 2**53 - 1])
def test_a_slot_is_usually_taken_and_given_back_by_the_first_parts_of_the_scripts(
    store: Lane, prefix: str, most: int, may_wait: bool, priority: PriorityLevel
) -> None:
    redis_store = usual_store(store)
    slots = BulkheadCommands(ResourceKeys(prefix, "a"), BulkheadConfig(1, 7), lambda: 0)
    calls = [Call(f"w:{number}:3000", priority, may_wait, None) for number in range(min(most, 4))]
    for number, call in enumerate(calls):
        enter = slots.enter(call)
        args = (*enter.args[:3], most, *enter.args[4:])

        state, _, _, inside, _ = step(redis_store.execute(only_usual(enter.with_arguments(args))))
        assert (state, inside) == (b"inside", number + 1)
    for call in calls:
        assert list(step(redis_store.execute(only_usual(slots.leave(call.token))))) == [1, b""]


@pytest.mark.parametrize("positions", [(1, 3), (1, 4), (3, 4)])
def test_two_fractions_do_not_make_an_integer_of_slots(store: Lane, prefix: str, positions: tuple[int, int]) -> None:
    command = commands(prefix)["bulkhead_enter"]
    args = tuple("1.5" if number in positions else argument for number, argument in enumerate(command.args))

    with pytest.raises(Exception, match=r"must be an integer"):
        step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(command.with_arguments(args)))


def test_a_refill_as_large_as_a_double_holds_is_usual_too(store: Lane, prefix: str) -> None:
    take = one_bucket(prefix)
    args = (*take.args[:7], 2**53 - 1, 1)

    assert step(usual_store(store).execute(only_usual(take.with_arguments(args))))[0] == 1


def test_a_refusal_that_the_oldest_call_ends_needs_no_search_in_the_log(store: Lane, lane: str, prefix: str) -> None:
    if lane == "fakeredis":
        pytest.skip("counts at a real server")
    take = LimitCommands([SlidingWindow(10, 60)]).take((f"{prefix}:{{a}}:o", f"{prefix}:{{a}}:w"), 1)
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False))
    allowed = [step(redis_store.execute(take))[0] for _ in range(10)]
    store.client.config_resetstat()
    refused = step(redis_store.execute(take))

    assert (allowed, refused[0]) == ([1] * 10, 0)
    assert "cmdstat_zcard" not in store.client.info("commandstats")


def test_a_script_refuses_a_kind_of_limit_that_does_not_exist(store: Lane, prefix: str) -> None:
    command = one_bucket(prefix)
    args = tuple("magic" if argument == "token_bucket" else argument for argument in command.args)

    with pytest.raises(Exception, match="no such kind of limit"):
        step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(command.with_arguments(args)))


def test_a_script_refuses_a_mode_that_does_not_exist(store: Lane, prefix: str) -> None:
    command = commands(prefix)["circuit_breaker_control"]
    args = (*command.args[:-1], "magic")

    with pytest.raises(Exception, match="no such mode"):
        step(RedisStore(PoolWire(store.pool, 5, theirs=False)).execute(command.with_arguments(args)))
