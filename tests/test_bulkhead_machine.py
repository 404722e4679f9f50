"""Script, twin and a model that knows neither go through the same histories of a crowd before a bulkhead.

The model keeps the callers in plain lists, by what the documents say of them. Where these leave it open, since a lease
that is over and a waiter that is dead are cleared away only when their places are needed, the model allows both, and
goes on with what it finds. Callers crash, come late and are forgotten; the server's clock steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import hypothesis.strategies as st
from conftest import Lane
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from models import ContinuousBucket

from shared_resilience import BulkheadConfig, PriorityLevel, TokenBucket
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.bulkhead_commands import BulkheadCommands, Call
from shared_resilience.commands import Command, State
from shared_resilience.keys import ResourceKeys
from shared_resilience.limit_commands import OVERRIDE, LimitCommands
from shared_resilience.permit_commands import PermitCommands

SECOND = 1_000_000
ALIVE = 2 * SECOND
LEASE = 3 * SECOND
PRIORITY = st.sampled_from(PriorityLevel)
OLD = BulkheadConfig(3, 2)
NEW = BulkheadConfig(4, 4, reserved={PriorityLevel.CRITICAL: 0.25, PriorityLevel.NORMAL: 0.25})
CONFIGS = st.sampled_from([OLD, NEW])
"""Two versions of one fleet's configuration, as during a deploy."""
BUCKETS = [TokenBucket(4, 1, label="user"), TokenBucket(6, 1, label="tenant")]
_numbers = itertools.count()


@dataclass
class Waiter:
    """Who waits: `arrival` in units of 10 µs."""

    priority: int
    arrival: int
    seen: int

    def alive(self, now: int) -> bool:
        return now - ALIVE < self.seen <= now

    @property
    def place(self) -> tuple[int, int]:
        return self.priority, self.arrival


class Model:
    """The bulkhead, by its definition."""

    def __init__(self) -> None:
        self.holders: dict[str, int] = {}
        self.waiters: dict[str, Waiter] = {}
        self.fencing = 0
        self.sizes: dict[str, int] = {}
        self.buckets = [ContinuousBucket(bucket.capacity, Fraction(bucket.refill_rate)) for bucket in BUCKETS]

    def size(self, config: BulkheadConfig) -> int:
        return self.sizes.get("max_concurrent_calls", config.max_concurrent_calls)

    def open_to(self, config: BulkheadConfig, priority: PriorityLevel) -> int:
        """The slots that calls of `priority` may take."""
        size = self.size(config)
        above = sum(Fraction(str(share)) for level, share in config.reserved.items() if level < priority)
        return max(1, size - math.ceil(size * above))

    def queue(self, now: int, *but: str) -> list[str]:
        """Who waits and is alive, in order."""
        alive = {token: one for token, one in self.waiters.items() if one.alive(now) and token not in but}
        return sorted(alive, key=lambda token: alive[token].place)

    def inside(self, now: int) -> int:
        """How many hold a slot whose lease is not over."""
        return sum(end > now for end in self.holders.values())

    def hold(self, token: str, now: int) -> None:
        self.holders[token] = now + LEASE
        self.waiters.pop(token, None)

    def arrivals(self, priority: PriorityLevel, now: int) -> range:
        """When somebody arrives now: later than all of its priority, of whom the dead may be gone already."""
        same = [one for one in self.waiters.values() if one.priority == priority]
        alive, all_of_them = (
            max([now // 10, *(one.arrival + 1 for one in those)])
            for those in ([one for one in same if one.alive(now)], same)
        )
        return range(alive, all_of_them + 1)

    def gone(self, token: str) -> None:
        self.holders.pop(token, None)
        self.waiters.pop(token, None)

    def clear(self, held: dict[str, int], waiting: dict[str, int], now: int) -> None:
        """Takes in what was cleared away; nothing else may have changed."""
        for token, end in list(self.holders.items()):
            found = held.pop(token, None)
            if found is None:
                assert end <= now
                del self.holders[token]
            elif found != end:
                assert end > now + LEASE == found  # after the clock went back
                self.holders[token] = found
        for token, waiter in list(self.waiters.items()):
            seen = waiting.pop(token, None)
            if seen is None:
                assert not waiter.alive(now)
                del self.waiters[token]
            else:
                assert seen == waiter.seen
        assert (held, waiting) == ({}, {})


class Crowd(RuleBasedStateMachine):
    """Calls of several priorities before one bulkhead, alone and together with two limits."""

    lane: ClassVar[Lane]
    visited: ClassVar[set[str]]

    @initialize()
    def begin(self) -> None:
        self.keys = ResourceKeys("machine", str(next(_numbers)))
        self.slots = {id(config): BulkheadCommands(self.keys, config, lambda: 0) for config in (OLD, NEW)}
        limits = LimitCommands(BUCKETS)
        self.permits = {number: PermitCommands(limits, slots) for number, slots in self.slots.items()}
        self.limit_keys = (self.keys.overrides, *(self.keys.limit(bucket.label, "") for bucket in BUCKETS))
        self.now = 1_763_880_000_000_000
        self.redis = RedisStore(self.lane.wire, lambda: self.now)
        self.states: dict[str, State] = {}
        self.model = Model()
        self.calls: dict[str, PriorityLevel] = {}
        self.places: dict[str, tuple[int, int]] = {}
        self.stepped_back = False

    def teardown(self) -> None:
        if hasattr(self, "keys"):
            self.lane.client.delete(*self.keys.slots, *self.limit_keys)

    def run(self, command: Command[Any]) -> list[Any]:
        """The reply of the script, which is that of the twin."""
        self.now += 10  # two calls never arrive in the same unit of time
        reply = [item.decode() if isinstance(item, bytes) else item for item in step(self.redis.execute(command))]
        outcome = command.operation.twin(tuple(map(self.states.get, command.keys)), self.now, *command.args)
        self.states.update(zip(command.keys, outcome.states, strict=True))
        assert reply == list(outcome.reply)
        return reply

    # Going in.

    @rule(priority=PRIORITY, config=CONFIGS, may_wait=st.sampled_from([True, True, True, False]))
    def come(self, priority: PriorityLevel, config: BulkheadConfig, may_wait: bool) -> None:
        token = f"w:{next(_numbers)}:{LEASE // 1000}"
        self.calls[token] = priority
        self.ask(token, config, may_wait)

    @precondition(lambda self: self.places)
    @rule(number=st.integers(0, 20), config=CONFIGS)
    def ask_again(self, number: int, config: BulkheadConfig) -> None:
        self.ask(self.chosen(self.places, number), config, may_wait=True)

    @precondition(lambda self: not self.stepped_back)
    @rule(priority=PRIORITY, config=CONFIGS, cost=st.integers(1, 4))
    def come_for_limits_too(self, priority: PriorityLevel, config: BulkheadConfig, cost: int) -> None:
        token = f"w:{next(_numbers)}:{LEASE // 1000}"
        self.calls[token] = priority
        self.ask(token, config, may_wait=True, cost=cost)

    @precondition(lambda self: self.places and not self.stepped_back)
    @rule(number=st.integers(0, 20), config=CONFIGS, cost=st.integers(1, 4))
    def ask_again_for_limits_too(self, number: int, config: BulkheadConfig, cost: int) -> None:
        self.ask(self.chosen(self.places, number), config, may_wait=True, cost=cost)

    def ask(self, token: str, config: BulkheadConfig, may_wait: bool, cost: int = 0) -> None:
        priority, before = self.calls[token], self.places.get(token)
        call = Call(token, priority, may_wait, None if before is None else before[0] * 10**15 + before[1])
        if cost:
            command = self.permits[id(config)].enter(self.limit_keys, cost, 0, call)
        else:
            command = self.slots[id(config)].enter(call)
        *_, state, place, fencing, inside, told = self.run(command)
        self.visited.add(state)

        model, now = self.model, self.now
        model.holders.pop(token, None)  # it asks because it does not know of it
        live, queue = model.inside(now), model.queue(now)
        fits = live < model.open_to(config, priority) and not self.ahead(token, before)
        next_one = self.after(token, queue) if before is not None and queue[:1] == [token] else ""
        if cost and any(bucket.first_fit(now, cost) > now for bucket in model.buckets):
            assert (state, fencing, told) == ("limited", 0, next_one)
            self.places[token] = self.place_of(place, priority, before)
            model.waiters.pop(token, None)
        elif fits:
            after = self.after(token, queue) if before is not None and inside < model.size(config) else ""
            assert (state, place, told) == ("inside", 0, after)
            assert fencing > model.fencing
            assert live < inside <= len(model.holders) + 1
            model.fencing = fencing
            model.hold(token, now)
            self.places.pop(token, None)
            for bucket in model.buckets if cost else []:
                bucket.take(now, cost)
        elif may_wait and (before is not None or self.is_there_room_in_the_queue(config, state == "waiting")):
            assert (state, fencing, told) == ("waiting", 0, "")
            self.places[token] = self.place_of(place, priority, before)
            model.waiters[token] = Waiter(*self.places[token], now)
        else:
            assert (state, place, fencing, told) == ("full", 0, 0, "")
            self.calls.pop(token)
        self.clear()

    def clear(self) -> None:
        client, (holders, queue, waiters, _) = self.lane.client, self.keys.slots
        held, waiting, signs = (
            {token.decode(): int(score) for token, score in client.zrange(key, 0, -1, withscores=True)}
            for key in (holders, queue, waiters)
        )
        assert waiting.keys() == signs.keys()
        assert not held.keys() & waiting.keys()
        self.model.clear(held, signs, self.now)

    def place_of(self, place: int, priority: PriorityLevel, before: tuple[int, int] | None) -> tuple[int, int]:
        """The place that was replied, as priority and arrival: not later than it was before."""
        arrivals = self.model.arrivals(priority, self.now)
        if before is not None:
            arrivals = range(min(before[1], arrivals[0]), min(before[1], arrivals[-1]) + 1)
        found = divmod(place, 10**15)
        assert found[0] == priority
        assert found[1] in arrivals
        return found

    def ahead(self, token: str, before: tuple[int, int] | None) -> bool:
        """Whether somebody alive waits before it."""
        mine = before or (self.calls[token], math.inf)
        return any(self.model.waiters[other].place < mine for other in self.model.queue(self.now, token))

    @staticmethod
    def after(token: str, queue: list[str]) -> str:
        """Who is the first when `token` is gone."""
        return next((other for other in queue if other != token), "")

    def is_there_room_in_the_queue(self, config: BulkheadConfig, found: bool) -> bool:
        """Whose sign of life is of a later clock may count or not, until somebody looks for the first."""
        longest = self.model.sizes.get("max_queue_size", config.max_queue_size)
        alive = len(self.model.queue(self.now))
        unclear = sum(one.seen > self.now for one in self.model.waiters.values())
        return alive < longest and (found or alive + unclear < longest)

    @staticmethod
    def chosen(tokens: Iterable[str], number: int) -> str:
        found = list(tokens)
        return found[number % len(found)]

    # Leaving, and what the attendant does.

    @precondition(lambda self: self.calls)
    @rule(number=st.integers(0, 20))
    def leave(self, number: int) -> None:
        token = self.chosen(self.calls, number)
        left, told = self.run(self.slots[id(OLD)].leave(token))

        model, now = self.model, self.now
        queue = model.queue(now)
        assert left == (token in model.holders)
        if left:
            assert told == self.after("", queue)
        elif queue[:1] == [token]:
            dead_before = any(one.place < model.waiters[token].place for one in model.waiters.values())
            assert told == self.after(token, queue) or (dead_before and told == "")
        else:
            assert told in ("", self.after(token, queue))
        self.forget(token)
        self.clear()

    def forget(self, token: str) -> None:
        self.model.gone(token)
        self.places.pop(token, None)
        self.calls.pop(token, None)

    @rule(
        verbs=st.lists(
            st.tuples(st.sampled_from(["renew", "renew", "wait", "wait", "drop", "adopt"]), st.integers(0, 20)),
            max_size=5,
        ),
        config=CONFIGS,
    )
    def keep_up(self, verbs: list[tuple[str, int]], config: BulkheadConfig) -> None:
        tokens = [*self.calls, "w:nobody:3000"]
        by_token = {tokens[number % len(tokens)]: verb for verb, number in verbs}
        self.kept_up([(verb, token) for token, verb in by_token.items()], config)

    @rule(config=CONFIGS)
    def all_give_signs_of_life(self, config: BulkheadConfig) -> None:
        renewed = [("renew", token) for token in self.model.holders]
        self.kept_up([*renewed, *(("wait", token) for token in self.model.waiters)], config)

    def kept_up(self, pairs: list[tuple[str, str]], config: BulkheadConfig) -> None:
        command = self.slots[id(config)].upkeep([text for pair in pairs for text in pair])
        inside, waiting, told, *missing = self.run(command)
        model, now = self.model, self.now
        for verb, token in pairs:
            self.one_kept_up(verb, token, missing)
        assert missing == []
        live, queue = model.inside(now), model.queue(now)
        assert (inside, waiting) == (live, len(queue))
        assert told == (self.after("", queue) if live < model.size(config) else "")
        self.clear()

    def one_kept_up(self, verb: str, token: str, missing: list[str]) -> None:
        """What it does, and that `missing` begins with the token if it was not found."""
        model, now = self.model, self.now
        if verb == "drop":
            self.forget(token)
        elif verb == "adopt":
            model.hold(token, now)
            self.places.pop(token, None)
            self.calls.setdefault(token, PriorityLevel.NORMAL)
        elif verb == "renew" and token in model.holders:
            model.holders[token] = now + LEASE
        elif verb == "wait" and token in model.waiters:
            model.waiters[token].seen = now
        else:
            assert missing.pop(0) == token

    # Operators, and time.

    @rule(
        field=st.sampled_from(["max_concurrent_calls", "max_queue_size"]), size=st.sampled_from([None, None, 1, 2, 5])
    )
    def override(self, field: str, size: int | None) -> None:
        self.run(Command(OVERRIDE, (self.keys.overrides,), (f"bulkhead.{field}", "" if size is None else str(size))))
        self.model.sizes.pop(field, None)
        if size is not None:
            self.model.sizes[field] = size

    @rule(us=st.one_of(st.integers(0, SECOND), st.sampled_from([SECOND, ALIVE - 10, ALIVE, LEASE - 10, LEASE])))
    def time_passes(self, us: int) -> None:
        self.now += us

    @precondition(lambda self: self.model.holders or self.model.waiters)
    @rule(number=st.integers(0, 20), early=st.sampled_from([-10, 0, 0, 10]))
    def time_passes_until_a_lease_or_a_waiter_ends(self, number: int, early: int) -> None:
        ends = [*self.model.holders.values(), *(one.seen + ALIVE for one in self.model.waiters.values())]
        self.now = max(self.now, ends[number % len(ends)] - 10 + early)

    @rule(us=st.integers(1, 10 * SECOND))
    def the_clock_steps_back(self, us: int) -> None:
        self.now -= us
        self.stepped_back = True


def test_script_twin_and_model_go_through_the_same_histories(store: Lane, lane: str) -> None:
    Crowd.lane, Crowd.visited = store, set()
    examples = 120 if lane != "fakeredis" else 30

    run_machine(
        Crowd,
        settings=settings(
            max_examples=examples, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

    assert Crowd.visited == {"inside", "waiting", "full", "limited"}
