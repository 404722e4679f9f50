"""The scripts of the bulkhead and their twins are one algorithm: same replies, same states, whatever comes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
from conftest import Lane
from histories import compare_all

from shared_resilience import BulkheadConfig, LeakyBucket, PriorityLevel, SlidingWindow, TokenBucket
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.bulkhead_commands import BulkheadCommands, Call
from shared_resilience.commands import Command, State
from shared_resilience.keys import ResourceKeys
from shared_resilience.limit_commands import OVERRIDE, PAUSE_FOR, RESET, LimitCommands
from shared_resilience.permit_commands import PermitCommands

STEPS, BATCH = 40_000, 250
START = 1_763_880_000_000_000
CRITICAL, HIGH, NORMAL, LOW, BACKGROUND = PriorityLevel
CONFIGS = [
    BulkheadConfig(2, 3),
    BulkheadConfig(5, 1, reserved={CRITICAL: 0.2, NORMAL: 0.3}),
    BulkheadConfig(1, 4, reserved={HIGH: 0.9}),
    BulkheadConfig(3, 200, reserved={LOW: 0.5}),
]
OF_ALL_KINDS = LimitCommands([TokenBucket(4, 2), SlidingWindow(6, 3), LeakyBucket(5, 3)])
BUCKETS = LimitCommands([TokenBucket(4, 200), TokenBucket(9, 100 / 60, label="tenant")])
LEASES = ["1", "20", "3000", "30000", "x", ""]
VALUES = ["1", "2", "7", "0", "1000000000", "1.5", "many", ""]
_numbers = itertools.count()


def elapsed(source: random.Random) -> int:
    kind = source.random()
    if kind < 0.4:
        return source.randint(0, 12)
    if kind < 0.5:
        return source.choice([1000, 20_000, 2_000_000, 3_000_000, 30_000_000]) + source.choice([-1, 0, 1])
    if kind < 0.94:
        return int(10 ** source.uniform(0, 6))
    if kind < 0.97:
        return -int(10 ** source.uniform(0, 8))
    return int(10 ** source.uniform(6, 10))


class History:
    """A random history, taken by the twins while it is thought up, and then by Redis."""

    def __init__(self, lane: Lane, seed: int) -> None:
        self.client = lane.client
        self.source = random.Random(seed)
        self.now = START
        self.keys = ResourceKeys("slots", str(next(_numbers)))
        self.limit_keys = {
            limits: (self.keys.overrides, *(self.keys.limit(label, "") for label in labels))
            for limits, labels in [(OF_ALL_KINDS, "abc"), (BUCKETS, "de")]
        }
        self.slots = [BulkheadCommands(self.keys, config, lambda: 0) for config in CONFIGS]
        self.tokens = [f"w{number}:{LEASES[number % len(LEASES)]}" for number in range(12)]
        self.places: dict[str, int] = {}
        self.states: dict[str, State] = {}
        self.ttls: dict[str, int] = {}
        self.commands: list[Command[Any]] = []
        self.expected: list[list[Any]] = []
        self.asked: list[int] = []
        self.times: list[int] = []
        self.redis = RedisStore(lane.wire, lambda: self.times.pop(0))
        lane.load_scripts()

    def foresee(self, number: int) -> History:
        for _ in range(number):
            self.then(elapsed(self.source), self.command())
        return self

    def then(self, elapsed_us: int, command: Command[Any]) -> list[Any]:
        self.now = max(1, self.now + elapsed_us)
        outcome = command.operation.twin(tuple(map(self.states.get, command.keys)), self.now, *command.args)
        self.states.update(zip(command.keys, outcome.states, strict=True))
        self.ttls.update((key, ttl) for key, ttl in zip(command.keys, outcome.ttls, strict=True) if ttl is not None)
        reply = list(outcome.reply)
        self.commands.append(command)
        self.expected.append(reply)
        self.asked.append(self.now)
        if command.operation.script in ("bulkhead_enter", "permits_enter") and reply[-4]:
            self.places[str(command.args[-8])] = int(reply[-4])
        return reply

    def command(self) -> Command[Any]:
        source = self.source
        slots, token = source.choice(self.slots), source.choice(self.tokens)
        kinds: dict[Callable[[], Command[Any]], float] = {
            lambda: self.enter(slots, token): 30,
            lambda: self.permits(slots, token): 14,
            lambda: slots.leave(token): 20,
            lambda: slots.upkeep(self.pairs()): 22,
            self.steer: 3,
        }
        return source.choices(list(kinds), list(kinds.values()))[0]()

    def call(self, token: str) -> Call:
        source = self.source
        place = self.places.get(token) if source.random() < 0.6 else None
        return Call(token, source.choice(list(PriorityLevel)), source.random() < 0.9, place)

    def enter(self, slots: BulkheadCommands, token: str) -> Command[Any]:
        return self.divided(slots.enter(self.call(token)))

    def divided(self, command: Command[Any]) -> Command[Any]:
        """The same, now and then as of a process that decides alone."""
        if self.source.random() < 0.9:
            return command
        return command.with_arguments(
            (*command.args[:-2], self.source.choice([2, 3, 9]), self.source.choice([0, 1, 4]))
        )

    def permits(self, slots: BulkheadCommands, token: str) -> Command[Any]:
        held_back, cost = self.source.choice([0, 0, 250_000]), self.source.choice([1, 1, 2, 4])
        limits = self.source.choice([OF_ALL_KINDS, BUCKETS])
        permits = PermitCommands(limits, slots)
        command = self.divided(permits.enter(self.limit_keys[limits], cost, held_back, self.call(token)))
        share = self.source.choice([1, 1, 1, 3])
        return command.with_arguments((command.args[0], share, *command.args[2:]))

    def pairs(self) -> list[str]:
        verbs = self.source.choices(["renew", "wait", "adopt", "drop"], [10, 20, 2, 1], k=self.source.randint(0, 6))
        return [text for verb in verbs for text in (verb, self.source.choice(self.tokens))]

    def steer(self) -> Command[Any]:
        source = self.source
        if source.random() < 0.3:
            return Command(
                RESET, (*self.keys.slots, *(key for keys in self.limit_keys.values() for key in keys[1:])), ()
            )
        if source.random() < 0.3:
            return Command(PAUSE_FOR, (self.keys.overrides,), (source.choice([0, 1000, 500_000]),))
        field = source.choice(["bulkhead.max_concurrent_calls", "bulkhead.max_queue_size"])
        return Command(OVERRIDE, (self.keys.overrides,), (field, source.choice(VALUES)))

    def compare(self) -> None:
        """Has Redis take the steps that the twins took."""
        self.times[:] = self.asked
        replies = step(self.redis.execute_all(self.commands))
        for number, (reply, twin) in enumerate(zip(replies, self.expected, strict=True)):
            plain = [item.decode() if isinstance(item, bytes) else item for item in reply]
            assert plain == twin, f"step {number}: {self.commands[number]}"
        for key in (*self.keys.slots, self.keys.overrides):
            self._compare_state(key, self.states.get(key))
        self.client.delete(*self.states)

    def _compare_state(self, key: str, state: State) -> None:
        if state is None:
            assert not self.client.exists(key)
        elif isinstance(state, int):
            assert int(self.client.get(key)) == state
        elif key == self.keys.overrides:
            found = {field.decode(): value.decode() for field, value in self.client.hgetall(key).items()}
            assert found == state
            return
        else:
            found = {token.decode(): int(score) for token, score in self.client.zrange(key, 0, -1, withscores=True)}
            assert found == dict(cast("Mapping[str, int]", state))
        if state is not None:
            assert self.ttls[key] - 3000 < self.client.pttl(key) <= self.ttls[key]


def test_scripts_and_twins_agree_over_forty_thousand_random_steps(store: Lane, lane: str) -> None:
    steps = STEPS if lane != "fakeredis" else 2_000
    compare_all(History(store, seed).foresee(BATCH) for seed in range(steps // BATCH))


def slots_of(store: Lane, prefix: str) -> tuple[RedisStore, BulkheadCommands]:
    """A bulkhead with one slot and a queue of 200, at a time that stands still."""
    keys = ResourceKeys(prefix, "a")
    return RedisStore(store.wire, lambda: START), BulkheadCommands(keys, BulkheadConfig(1, 200), lambda: 0)


def come(redis: RedisStore, slots: BulkheadCommands, token: str) -> list[Any]:
    return list(step(redis.execute(slots.enter(Call(token, NORMAL, may_wait=True, place=None)))))


@pytest.mark.parametrize(("longest", "left"), [(200, 152), (151, 52), (52, 52), (51, 51)])
def test_the_dead_behind_a_living_waiter_are_cleared_away_only_when_the_queue_is_full_and_a_hundred_at_once(
    store: Lane, prefix: str, longest: int, left: int
) -> None:
    redis, slots = slots_of(store, prefix)
    for number in range(152):
        come(redis, slots, f"w:{number}:3000")  # the first is inside
    store.client.zadd(slots.keys[2], {f"w:{number}:3000": START - 2_000_000 for number in range(2, 152)})
    override = Command(OVERRIDE, (ResourceKeys(prefix, "a").overrides,), ("bulkhead.max_queue_size", str(longest)))
    step(redis.execute(override))

    state = come(redis, slots, "w:new:3000")[0]
    assert state == (b"full" if left == 51 else b"waiting")
    assert store.client.zcard(slots.keys[1]) == store.client.zcard(slots.keys[2]) == left


def test_who_leaves_tells_the_first_waiter(store: Lane, prefix: str, lane: str) -> None:
    if lane == "fakeredis":
        pytest.skip("needs a real server")
    redis, slots = slots_of(store, prefix)
    come(redis, slots, "w:1:3000")
    come(redis, slots, "w:2:3000")
    with store.client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(ResourceKeys(prefix, "a").wake)
        listener.get_message(timeout=5)
        left = step(redis.execute(slots.leave("w:1:3000")))
        message = listener.get_message(timeout=5)

    assert list(left) == [1, b"w:2:3000"]
    assert message is not None
    assert message["data"] == b"w:2:3000"


def test_the_upkeep_has_the_keys_live_on(store: Lane, prefix: str) -> None:
    redis, slots = slots_of(store, prefix)
    come(redis, slots, "w:1:3000")
    come(redis, slots, "w:2:3000")
    for key in slots.keys[:3]:
        store.client.pexpire(key, 5000)
    step(redis.execute(slots.upkeep(["wait", "w:2:3000"])))

    assert [store.client.pttl(key) > 50_000 for key in slots.keys[:3]] == [True] * 3


def test_a_fencing_number_beyond_which_there_is_none_begins_anew(store: Lane, prefix: str) -> None:
    redis, slots = slots_of(store, prefix)
    store.client.set(slots.keys[3], 2**53 - 2)

    fencing = [come(redis, slots, token)[2] for token in ("w:1:3000",)]
    step(redis.execute(slots.leave("w:1:3000")))
    fencing.append(come(redis, slots, "w:2:3000")[2])
    assert fencing == [2**53 - 1, START]
