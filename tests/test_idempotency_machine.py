"""Script, twin and a model that knows neither go through the same histories of calls that are made once.

The model keeps, for each key, who runs under it until when, and what was returned, by what the documents say. Callers
come twice, come late, are forgotten; Redis loses records; the server's clock steps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis.strategies as st
from conftest import Lane
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.commands import Command, Operation, State
from shared_resilience.records import CLAIM, RENEW, SETTLE

SECOND = 1_000_000
TTL = 3600 * SECOND
LEASES = {"a": 3 * SECOND, "b": 3 * SECOND, "c": 30 * SECOND, "d": 1 * SECOND}
TOKENS = st.sampled_from([f"w:{name}:{lease // 1000}" for name, lease in LEASES.items()])
KEYS = st.sampled_from([0, 1])
FINGERPRINTS = st.sampled_from(["one", "one", "one", "other"])
_numbers = itertools.count()


@dataclass
class Call:
    """The last call under a key."""

    token: str
    fingerprint: str
    fencing: int
    until: int = 0
    state: str = "running"
    result: str = ""
    stored: int = 0

    @property
    def lease(self) -> int:
        return LEASES[self.token[2]]


class Machine(RuleBasedStateMachine):
    lane: ClassVar[Lane]

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_763_880_000 * SECOND
        self.redis = RedisStore(self.lane.wire, lambda: self.now)
        stem = f"machine:{{{next(_numbers)}}}:idempotency:"
        self.keys = [f"{stem}{number}" for number in range(2)]
        self.states: dict[str, State] = {}
        self.calls: dict[int, Call] = {}
        self.fencings: dict[tuple[int, str], int] = {}
        self.greatest = [0, 0]
        self.may_shrink = [False, False]

    def ask(self, operation: Operation[Any], keys: list[str], *args: Any) -> list[Any]:
        outcome = operation.twin([self.states.get(key) for key in keys], self.now, *args)
        self.states.update(zip(keys, outcome.states, strict=True))
        reply = step(self.redis.execute(Command(operation, tuple(keys), args)))
        plain = [item.decode() if isinstance(item, bytes) else item for item in reply]
        assert plain == list(outcome.reply)
        return plain

    @rule(elapsed=st.one_of(st.integers(0, 20), st.integers(0, 40 * SECOND), st.sampled_from([SECOND, 3 * SECOND])))
    def time_passes(self, elapsed: int) -> None:
        self.now += elapsed

    @rule(back=st.integers(1, 100 * SECOND))
    def the_clock_steps_back(self, back: int) -> None:
        self.now -= back

    @rule(number=KEYS)
    def redis_loses_a_record(self, number: int) -> None:
        self.lane.client.delete(self.keys[number])
        self.states.pop(self.keys[number], None)
        self.calls.pop(number, None)
        self.may_shrink[number] = True  # unless the clock has gone on, which it may not have

    @rule(number=KEYS, token=TOKENS, fingerprint=FINGERPRINTS)
    def comes(self, number: int, token: str, fingerprint: str) -> None:
        state, fencing, extra, codec, result = self.ask(CLAIM, [self.keys[number]], token, fingerprint, TTL)
        call = self.calls.get(number)
        if call is not None and call.state != "released" and call.fingerprint != fingerprint:
            assert (state, fencing) == ("other_arguments", call.fencing)
            return
        if call is not None and call.state == "done":
            age = max(0, self.now - call.stored)
            assert (state, fencing, extra, codec, result) == ("done", call.fencing, age, "json", call.result)
            return
        running = call is not None and call.state == "running"
        if call is not None and running and call.token != token:
            left = min(call.until - self.now, call.lease)
            if left > 0:
                assert (state, fencing, extra) == ("running", call.fencing, left)
                call.until = self.now + left
                return
        again = call is not None and running and call.token == token
        taken_over = call is not None and running and not again
        assert (state, extra) == ("claimed", int(taken_over))
        if again:
            assert call is not None
            assert fencing == call.fencing
        else:
            assert fencing > self.greatest[number] or self.may_shrink[number]
            assert fencing >= self.now
            self.may_shrink[number] = False
            self.greatest[number] = max(self.greatest[number], fencing)
        self.fencings[number, token] = fencing
        self.calls[number] = Call(token, fingerprint, fencing, self.now + LEASES[token[2]])

    def owns(self, number: int, token: str) -> bool:
        call = self.calls.get(number)
        return call is None or (call.state == "running" and call.token == token)

    def told(self, number: int, token: str) -> tuple[str, int, str]:
        call = self.calls.get(number)
        fingerprint = call.fingerprint if call is not None and call.token == token else "one"
        return token, self.fencings.get((number, token), 0), fingerprint

    @rule(tokens=st.tuples(TOKENS, TOKENS))
    def renews(self, tokens: tuple[str, str]) -> None:
        told = [item for number, token in enumerate(tokens) for item in self.told(number, token)]
        reply = self.ask(RENEW, self.keys, TTL, *told)
        for number, token in enumerate(tokens):
            owns = self.owns(number, token)
            assert reply[number] == int(owns)
            if owns:
                _, fencing, fingerprint = self.told(number, token)
                self.calls[number] = Call(token, fingerprint, fencing, self.now + LEASES[token[2]])

    @rule(number=KEYS, token=TOKENS, result=st.text("abc", max_size=3))
    def returns(self, number: int, token: str, result: str) -> None:
        told = self.told(number, token)
        reply = self.ask(SETTLE, [self.keys[number]], *told, TTL, "done", "json", result)
        owns = self.owns(number, token)
        assert reply == [int(owns)]
        if owns:
            self.calls[number] = Call(*(told[0], told[2], told[1]), 0, "done", result, self.now)

    @rule(number=KEYS, token=TOKENS)
    def fails(self, number: int, token: str) -> None:
        reply = self.ask(SETTLE, [self.keys[number]], *self.told(number, token), TTL, "released", "", "")
        call = self.calls.get(number)
        owns = call is not None and self.owns(number, token)
        assert reply == [int(owns)]
        if call is not None and owns:
            call.state = "released"

    @invariant()
    def states_are_the_same(self) -> None:
        for key in self.keys:
            found = {field.decode(): value.decode() for field, value in self.lane.client.hgetall(key).items()}
            state: Any = self.states.get(key) or {}
            assert found == {field: str(value) for field, value in state.items()}
            if found:
                assert TTL // 1000 - 60_000 < self.lane.client.pttl(key) <= TTL // 1000

    def teardown(self) -> None:
        self.lane.client.delete(*self.keys)


def test_script_twin_and_model_agree_whatever_callers_do(store: Lane, lane: str) -> None:
    store.load_scripts()
    machine: Any = type("MachineOnALane", (Machine,), {"lane": store})
    run_machine(
        machine,
        settings=settings(
            max_examples=20 if lane == "fakeredis" else 120,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
