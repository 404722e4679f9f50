"""Script, twin and a model that knows neither go through the same histories of a fleet.

The model keeps a list of everything that was ever told and lent, and works out from it what the circuit must be; the
scripts keep sums per slot. Workers crash, report late and hold probes for too long; the server's clock steps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import hypothesis.strategies as st
from conftest import Lane
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from test_circuit_twin import as_stored, comparable, stored

from shared_resilience import CircuitBreakerConfig
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.circuit_commands import CONTROL, PROBE, SETTLE
from shared_resilience.commands import Argument, Command, State
from shared_resilience.evidence import EVIDENCE

SECOND = 1_000_000
OLD = CircuitBreakerConfig(
    3, window=10, timeout_seconds=5, max_open_seconds=20, jitter=0, success_threshold=2, half_open_max_calls=2,
    probe_lease=3, min_workers=2, slow_call_seconds=1, slow_call_rate=0.75,
)  # fmt: skip
NEW = CircuitBreakerConfig(
    4, 0.25, window=2, minimum_calls=6, timeout_seconds=1, max_open_seconds=30, open_multiplier=3, jitter=0,
    success_threshold=1, half_open_max_calls=3, probe_lease=8,
)  # fmt: skip
"""Two versions of one fleet's configuration, as during a deploy."""
CONFIGS = st.sampled_from([OLD, NEW])
WORKERS = ["w0", "w1", "w2"]
WORKER = st.sampled_from(WORKERS)
_numbers = itertools.count()


@dataclass
class Told:
    """A report that counted: when, of how many calls, by slots of which width."""

    at: int
    width: int
    calls: int
    failures: int
    slow: int

    def slot(self) -> int:
        return self.at // self.width

    def exists(self, now: int) -> bool:
        """Whether its slot has begun and has not been over for ten slots."""
        return self.slot() * self.width <= now < (self.slot() + 11) * self.width

    def touches(self, now: int, window: int) -> bool:
        return self.exists(now) and (self.slot() + 1) * self.width > now - window


@dataclass
class Lease:
    begin: int
    length: int

    def lives(self, now: int) -> bool:
        return now < self.begin + self.length


@dataclass
class Model:
    """A circuit as its definition has it."""

    state: str = "closed"
    mode: str = ""
    generation: int = 0
    told: list[Told] = field(default_factory=list)
    failed_at: dict[str, int] = field(default_factory=dict)
    opened_by: tuple[int, int, int] = (0, 0, 0)
    openings: list[int] = field(default_factory=list)
    """The open times in a row."""
    ends_at: int = 0
    successes: int = 0
    leases: dict[str, Lease] = field(default_factory=dict)

    def look(self, now: int) -> None:
        """What every command does first: an absent circuit begins, and what lies too far ahead begins again."""
        if self.generation == 0:
            self.become("closed", now)
        if self.state == "open" and not self.mode:
            self.ends_at = min(self.ends_at, now + self.openings[-1])
        for lease in self.leases.values():
            lease.begin = min(lease.begin, now)

    def become(self, state: str, now: int, mode: str = "") -> None:
        self.generation = max(self.generation + 1, now)
        self.state, self.mode = state, mode
        self.leases, self.successes = {}, 0
        if state == "closed" or mode:
            self.told, self.failed_at, self.openings, self.opened_by = [], {}, [], (0, 0, 0)

    def open(self, config: CircuitBreakerConfig, now: int, by: tuple[int, int, int]) -> None:
        shortest, longest = round(config.timeout_seconds * SECOND), round(config.max_open_seconds * SECOND)
        wanted = int(self.openings[-1] * config.open_multiplier) if self.openings else shortest
        openings = [*self.openings, min(longest, max(shortest, wanted))]
        self.become("open", now)
        self.told, self.failed_at = [], {}
        self.openings, self.opened_by, self.ends_at = openings, by, now + openings[-1]

    def seen(self, config: CircuitBreakerConfig, now: int) -> tuple[int, int, int]:
        if self.state != "closed" or self.mode == "forced_closed":
            return self.opened_by
        live = [told for told in self.told if told.touches(now, round(config.window * SECOND))]
        return sum(t.calls for t in live), sum(t.failures for t in live), sum(t.slow for t in live)

    def failing(self, config: CircuitBreakerConfig, now: int) -> int:
        return sum(now - round(config.window * SECOND) < at <= now for at in self.failed_at.values())

    def report(self, config: CircuitBreakerConfig, now: int, worker: str, generation: int, told: Told) -> bool:
        counts = self.state == "closed" and self.mode != "forced_closed" and generation == self.generation
        if not counts or told.calls == 0:
            return counts
        self.told = [*(t for t in self.told if t.exists(now)), told]
        if told.failures or (told.slow and config.slow_call_rate is not None):
            self.failed_at[worker] = now
        calls, failures, slow = seen = self.seen(config, now)
        enough = calls >= (config.minimum_calls or config.failure_threshold)
        bad = failures >= config.failure_threshold and failures >= config.failure_rate * calls
        sluggish = config.slow_call_rate is not None and slow >= config.slow_call_rate * calls
        quorum = self.failing(config, now) >= min(config.min_workers, len(WORKERS))
        if enough and (bad or sluggish) and quorum and not self.mode:
            self.open(config, now, seen)
        return True

    def lend(self, config: CircuitBreakerConfig, now: int, token: str) -> bool:
        if self.state == "open" and not self.mode and now >= self.ends_at:
            self.become("half_open", now)
        live = {token: lease for token, lease in self.leases.items() if lease.lives(now)}
        if self.state != "half_open" or len(live) >= config.half_open_max_calls:
            return False
        self.leases = {**live, token: Lease(now, round(config.probe_lease * SECOND))}
        return True

    def settle(self, config: CircuitBreakerConfig, now: int, token: str, generation: int, outcome: str) -> bool:
        lease = self.leases.get(token)
        if generation != self.generation or lease is None or not lease.lives(now):
            return False
        del self.leases[token]
        if outcome == "failure":
            self.open(config, now, (1, 1, 0))
        elif outcome == "success":
            self.successes += 1
            if self.successes >= config.success_threshold:
                self.become("closed", now)
        return True

    def view(self, config: CircuitBreakerConfig, now: int) -> dict[str, Any]:
        waits = self.state == "open" and not self.mode
        left = max(0, self.ends_at - now) if waits else -1 if self.mode == "forced_open" else 0
        live = sum(lease.lives(now) for lease in self.leases.values())
        rest = {"trips": len(self.openings), "leases": live, "successes": self.successes}
        return {
            "state": self.state, "mode": self.mode, "generation": self.generation, "left": left,
            "seen": self.seen(config, now), **rest,
        }  # fmt: skip


def as_model(reply: list[Any]) -> dict[str, Any]:
    _, _, state, mode, generation, left, _, calls, failures, slow, _, trips, _, leases, successes, _ = reply
    seen = {"seen": (calls, failures, slow), "trips": trips, "leases": leases, "successes": successes}
    return {"state": state, "mode": mode, "generation": generation, "left": left, **seen}


class Fleet(RuleBasedStateMachine):
    """Several workers, of two versions, around one circuit."""

    lane: ClassVar[Lane]
    visited: ClassVar[set[tuple[str | None, str]]]

    @initialize()
    def begin(self) -> None:
        stem = f"machine:{{{next(_numbers)}}}"
        self.keys = (f"{stem}:overrides", f"{stem}:breaker", f"{stem}:workers")
        self.now = 1_763_880_000_000_000
        self.redis = RedisStore(self.lane.wire, lambda: self.now)
        self.states: dict[str, State] = {self.keys[2]: dict.fromkeys(WORKERS, self.now)}
        self.lane.client.zadd(self.keys[2], dict.fromkeys(WORKERS, 1))
        self.model = Model()
        self.known = dict.fromkeys(WORKERS, 0)
        """The generation that each worker has last heard of."""
        self.held: dict[str, list[tuple[str, int]]] = {worker: [] for worker in WORKERS}
        """The probes that each worker believes to hold."""
        self.late: list[tuple[str, int, CircuitBreakerConfig, Told]] = []
        self.before: dict[str, str] = {}

    def teardown(self) -> None:
        if hasattr(self, "keys"):
            self.lane.client.delete(*self.keys)

    def run(self, command: Command[Any], worker: str) -> list[Any]:
        """The reply of the script, which is that of the twin."""
        self.before = stored(self.lane.client, self.keys[1])
        reply = comparable(step(self.redis.execute(command)))
        outcome = command.operation.twin(tuple(map(self.states.get, command.keys)), self.now, *command.args)
        self.states.update(zip(command.keys, outcome.states, strict=True))

        self.visited.add((self.before.get("state"), reply[2]) if reply[1] else (reply[2], command.operation.script))
        assert reply == comparable(outcome.reply)
        assert stored(self.lane.client, self.keys[1]) == as_stored(self.states[self.keys[1]])
        self.known[worker] = int(reply[4])
        return reply

    def agrees(self, reply: list[Any], config: CircuitBreakerConfig, result: bool) -> None:
        assert as_model(reply) == self.model.view(config, self.now)
        assert reply[0] == int(result)

    def tell(self, worker: str, generation: int, config: CircuitBreakerConfig, told: Told) -> None:
        counts = (told.calls, told.failures, told.slow)
        args: tuple[Argument, ...] = (*config.arguments(), worker, generation, *counts, 0)
        reply = self.run(Command(EVIDENCE, self.keys, args), worker)
        self.model.look(self.now)
        self.agrees(reply, config, self.model.report(config, self.now, worker, generation, told))

    def made(self, config: CircuitBreakerConfig, calls: int, failures: int, slow: int) -> Told:
        width = -(-round(config.window * SECOND) // 10)
        return Told(self.now, width, calls, min(failures, calls), min(slow, calls))

    @rule(
        worker=WORKER, config=CONFIGS, calls=st.integers(0, 6), failures=st.sampled_from([0, 1, 1, 3, 6]),
        slow=st.sampled_from([0, 0, 2, 6]),
    )  # fmt: skip
    def report(self, worker: str, config: CircuitBreakerConfig, calls: int, failures: int, slow: int) -> None:
        self.tell(worker, self.known[worker], config, self.made(config, calls, failures, slow))

    @rule(config=CONFIGS, failures=st.integers(1, 3))
    def the_dependency_breaks_for_all(self, config: CircuitBreakerConfig, failures: int) -> None:
        for worker in WORKERS:
            self.tell(worker, self.known[worker], config, self.made(config, 0, 0, 0))
            self.tell(worker, self.known[worker], config, self.made(config, failures, failures, 0))

    @rule(worker=WORKER, config=CONFIGS, failures=st.integers(1, 6))
    def fail_and_be_slow_to_report(self, worker: str, config: CircuitBreakerConfig, failures: int) -> None:
        self.late.append((worker, self.known[worker], config, self.made(config, failures, failures, 0)))

    @rule(number=st.integers(0, 9))
    def a_late_report_arrives(self, number: int) -> None:
        if not self.late:
            return
        worker, generation, config, told = self.late.pop(number % len(self.late))
        told.at = self.now
        self.tell(worker, generation, config, told)
        if generation != int(self.before.get("generation", 0)):
            kept = {name: value for name, value in self.before.items() if not name.startswith("probe.")}
            now = stored(self.lane.client, self.keys[1])
            assert not self.before or kept.keys() <= now.keys()
            assert not self.before or now["state"] == self.before["state"]

    @rule(worker=WORKER, config=CONFIGS)
    def ask_for_a_probe(self, worker: str, config: CircuitBreakerConfig) -> None:
        token = f"{worker}:{next(_numbers)}"
        reply = self.run(Command(PROBE, self.keys[:2], (*config.arguments(), token)), worker)
        self.model.look(self.now)
        lent = self.model.lend(config, self.now, token)
        self.agrees(reply, config, lent)
        if lent:
            self.held[worker].append((token, self.known[worker]))

    @precondition(lambda self: self.model.state == "open" and not self.model.mode)
    @rule(worker=WORKER, config=CONFIGS, early=st.sampled_from([-1, 0, 0, 0, 1000]))
    def ask_when_the_open_time_is_over(self, worker: str, config: CircuitBreakerConfig, early: int) -> None:
        self.now += self.model.openings[-1] + early
        self.ask_for_a_probe(worker, config)

    @precondition(lambda self: any(self.held.values()))
    @rule(
        config=CONFIGS,
        number=st.integers(0, 9),
        outcome=st.sampled_from(["success", "success", "failure", "cancelled"]),
    )  # fmt: skip
    def settle_a_probe(self, config: CircuitBreakerConfig, number: int, outcome: str) -> None:
        probes = [(worker, *probe) for worker, held in self.held.items() for probe in held]
        worker, token, generation = probes[number % len(probes)]
        self.held[worker].remove((token, generation))
        self.settle(worker, config, token, generation, outcome)

    @precondition(lambda self: self.model.state == "half_open")
    @rule(worker=WORKER, config=CONFIGS, outcome=st.sampled_from(["success", "failure", "cancelled"]))
    def probe_at_once(self, worker: str, config: CircuitBreakerConfig, outcome: str) -> None:
        self.ask_for_a_probe(worker, config)
        token, generation = self.held[worker].pop() if self.held[worker] else ("never lent", self.known[worker])
        self.settle(worker, config, token, generation, outcome)

    def settle(self, worker: str, config: CircuitBreakerConfig, token: str, generation: int, outcome: str) -> None:
        args: tuple[Argument, ...] = (*config.arguments(), worker, token, generation, outcome, 0)
        reply = self.run(Command(SETTLE, self.keys[:2], args), worker)
        self.model.look(self.now)
        self.agrees(reply, config, self.model.settle(config, self.now, token, generation, outcome))

    @rule(worker=WORKER, mode=st.sampled_from(["crash", "delete", "", "forced_open", "forced_closed", "metrics_only"]))
    def something_rare(self, worker: str, mode: str) -> None:
        if mode == "crash":
            self.known[worker], self.held[worker] = 0, []
        elif mode == "delete":
            self.lane.client.delete(self.keys[1])
            self.states[self.keys[1]] = None
            self.model, self.before = Model(), {}
        else:
            self.control(worker, mode)

    @precondition(lambda self: self.model.mode)
    @rule(worker=WORKER)
    def end_the_mode(self, worker: str) -> None:
        self.control(worker, "")

    def control(self, worker: str, mode: str) -> None:
        reply = self.run(Command(CONTROL, self.keys[:2], (*OLD.arguments(), mode)), worker)
        self.model.look(self.now)
        self.model.become("open" if mode == "forced_open" else "closed", self.now, mode)
        self.agrees(reply, OLD, True)

    @rule(us=st.one_of(st.integers(0, SECOND // 2), st.sampled_from([SECOND, 3 * SECOND, 5 * SECOND, 20 * SECOND])))
    def time_passes(self, us: int) -> None:
        self.now += us

    @rule(us=st.one_of(st.integers(1, 3 * SECOND), st.integers(-60 * SECOND, 60 * SECOND)))
    def the_clock_steps(self, us: int) -> None:
        self.now += us

    @invariant()
    def probes_on_loan_are_never_more_than_are_allowed(self) -> None:
        if hasattr(self, "model"):
            most = max(OLD.half_open_max_calls, NEW.half_open_max_calls)
            assert sum(lease.lives(self.now) for lease in self.model.leases.values()) <= most

    @invariant()
    def the_generation_only_grows(self) -> None:
        if hasattr(self, "before") and self.before:
            now = stored(self.lane.client, self.keys[1])
            assert int(now["generation"]) >= int(self.before["generation"])

    @invariant()
    def an_open_circuit_ends(self) -> None:
        if hasattr(self, "model") and self.model.state == "open" and not self.model.mode:
            longest = max(OLD.max_open_seconds, NEW.max_open_seconds) * SECOND
            assert min(self.model.ends_at - self.now, self.model.openings[-1]) <= longest

    @invariant()
    def the_hash_stays_small(self) -> None:
        if hasattr(self, "keys"):
            assert self.lane.client.hlen(self.keys[1]) <= 12 + 3 * 2 * 12 + 2 * len(WORKERS)


def test_a_probe_that_is_given_back_after_the_clock_went_back_is_gone(store: Lane) -> None:
    Fleet.lane, Fleet.visited = store, set()
    fleet = Fleet()
    fleet.begin()
    fleet.the_dependency_breaks_for_all(OLD, 1)
    fleet.ask_when_the_open_time_is_over("w0", OLD, 0)
    fleet.the_clock_steps(-1)
    fleet.settle_a_probe(OLD, 0, "cancelled")

    fleet.tell("w0", 0, OLD, fleet.made(OLD, 0, 0, 0))
    fleet.teardown()


def test_a_circuit_that_fails_its_probe_and_then_heals_goes_through_all_states(store: Lane) -> None:
    Fleet.lane, Fleet.visited = store, set()
    fleet = Fleet()
    fleet.begin()
    fleet.the_dependency_breaks_for_all(OLD, 3)
    fleet.ask_when_the_open_time_is_over("w0", OLD, 0)
    fleet.settle_a_probe(OLD, 0, "failure")
    fleet.ask_when_the_open_time_is_over("w1", OLD, 0)
    fleet.settle_a_probe(OLD, 0, "success")
    for _ in range(OLD.success_threshold - 1):
        fleet.probe_at_once("w0", OLD, "success")

    assert Fleet.visited >= {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")}
    fleet.teardown()


def test_script_twin_and_model_go_through_the_same_histories(store: Lane, lane: str) -> None:
    Fleet.lane, Fleet.visited = store, set()
    examples = 60 if lane != "fakeredis" else 40

    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=examples, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

    assert Fleet.visited >= {("closed", "open"), ("open", "half_open")}
