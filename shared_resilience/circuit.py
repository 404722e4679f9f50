"""The circuit: its states, what leads from one to the next, and the twin of `lua/lib/circuit.lua`.

The circuit breaker is M. Nygard's pattern, "Release It!", 2007; here it is one for a whole fleet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import cast

from shared_resilience.circuit_numbers import NUMBERS
from shared_resilience.commands import Argument, State, Step
from shared_resilience.integers import LARGEST, MILLION, to_integer, to_ttl, to_wait
from shared_resilience.overrides import Overrides

SLOTS, MOST_WORKERS, DAY_US = 10, 16, 86_400_000_000
SEEN = ("calls", "failures", "slow")
_SLOT = re.compile(r"([0-9]+)\.([0-9]+)")
_PROBE = re.compile(r"([0-9]+)\+([0-9]+)")


class CircuitState(StrEnum):
    """The state of a circuit: calls pass, calls are refused, or a few probes pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


TRANSITIONS: dict[str, dict[str, str]] = {
    "closed": {"tripped": "open"},
    "open": {"due": "half_open"},
    "half_open": {"failed": "open", "recovered": "closed"},
}
"""What leads from one state to the next."""

FORCED = {"forced_open": "open", "forced_closed": "closed", "metrics_only": "closed"}
"""The modes that an operator forces, and the state in each of them."""


class Circuit:
    """A circuit as it stands at `now`; `stored` and `ttl` are what is to be written, `ttl` None: nothing."""

    def __init__(self, stored: State, now: int, overrides: Overrides, told: Sequence[Argument]) -> None:
        self.stored, self.now, self.overrides = stored, now, overrides
        self.ttl: int | None = None
        self.numbers = _in_force(overrides, told)
        self.fields = {field: str(value) for field, value in cast("Mapping[str, object]", stored or {}).items()}
        self.writes: dict[str, str] = {}
        self.drops: list[str] = []
        self.stale: list[str] = []
        self.lapsed: list[str] = []
        self.failing: list[str] = []
        self.probes: set[str] = set()
        self.begun_again: dict[str, str] = {}
        self.caused = self.leases = self.successes = 0
        self.cleared = False
        mode = self.fields.get("mode", "")
        self.mode = mode if mode in FORCED else ""
        self.state = FORCED.get(self.mode, self.fields.get("state", ""))
        generation = to_integer(self.fields.get("generation"))
        self._forget()
        if self.state not in TRANSITIONS or generation is None or not 0 <= generation < LARGEST:
            self.generation = 0
            self._enter(FORCED.get(self.mode, "closed"), self.mode)
            return
        self.generation = generation
        self._see()
        if self.state != "closed":
            self._recall()

    def _put(self, field: str, value: int | str) -> None:
        self.writes[field] = str(value)

    def _see_slot(self, field: str, kind: str, rest: str) -> None:
        slot, count = _SLOT.fullmatch(rest), to_integer(self.fields[field])
        width, number = map(int, slot.groups()) if slot else (0, 0)
        begun = slot is not None and number * width <= self.now
        if not begun or count is None or (number + 1 + SLOTS) * width <= self.now:
            self.stale.append(field)
        elif (number + 1) * width > self.now - self.numbers["window"]:
            self.seen[kind] += count

    def _see_worker(self, field: str, worker: str) -> None:
        self.marked += 1
        if self._counts(field):
            self.failing.append(worker)
        else:
            self.lapsed.append(field)

    def _counts(self, field: str) -> bool:
        """Whether the worker's last failure lies in the window."""
        time = to_integer(self.fields.get(field))
        return time is not None and self.now - self.numbers["window"] < time <= self.now

    def _see_probe(self, field: str, token: str) -> None:
        lease = _PROBE.fullmatch(self.fields[field])
        begin, length = map(int, lease.groups()) if lease else (0, 0)
        if begin + length <= self.now:
            self.stale.append(field)
            return
        if begin > self.now:
            self.begun_again[token] = f"{self.now}+{length}"
        self.probes.add(token)
        self.leases += 1

    def _see(self) -> None:
        for field in self.fields:
            kind, _, rest = field.partition(".")
            if not rest:
                continue
            if kind in SEEN:
                self._see_slot(field, kind, rest)
            elif kind == "worker":
                self._see_worker(field, rest)
            elif kind == "probe":
                self._see_probe(field, rest)

    def _recall(self) -> None:
        def number(field: str) -> int:
            return to_integer(self.fields.get(field)) or 0

        self.trips, self.backoff, self.successes = number("trips"), number("backoff_us"), number("successes")
        self.opened_at, self.open_for, self.retry_at = map(number, ("opened_at_us", "open_for_us", "retry_at_us"))
        self.seen = {kind: number(f"evidence_{kind}") for kind in SEEN}
        workers = self.fields.get("evidence_workers")
        self.failing = [] if workers is None else [workers]
        if self.retry_at > self.now + self.open_for:
            self.retry_at = self.now + self.open_for
            self._put("retry_at_us", self.retry_at)
        if self.opened_at > self.now:
            self.opened_at = self.now
            self._put("opened_at_us", self.opened_at)

    def _enter(self, state: str, mode: str) -> None:
        self.state, self.mode, self.generation = state, mode, max(self.generation + 1, self.now)
        self.cleared, self.writes, self.probes, self.leases, self.successes = True, {}, set(), 0, 0
        self._put("state", state)
        self._put("generation", self.generation)
        if mode:
            self._put("mode", mode)

    def _forget(self) -> None:
        self.seen, self.marked = dict.fromkeys(SEEN, 0), 0
        self.failing = []
        self.trips = self.backoff = self.open_for = self.retry_at = 0
        self.opened_at = self.now

    def add(self, worker: str, counts: Mapping[str, int]) -> None:
        """Adds what a worker has seen to the present slot."""
        width = -(-self.numbers["window"] // SLOTS)
        slot = f".{width}.{self.now // width}"
        self.drops += self.stale
        for kind in SEEN:
            if counts[kind] > 0:
                self.seen[kind] += counts[kind]
                self._put(kind + slot, (to_integer(self.fields.get(kind + slot)) or 0) + counts[kind])
        if counts["failures"] > 0 or (counts["slow"] > 0 and self.numbers["slow_call_rate"] <= MILLION):
            self._blame(worker)

    def _blame(self, worker: str) -> None:
        field, room = f"worker.{worker}", max(MOST_WORKERS, self.numbers["min_workers"])
        if field not in self.fields and self.marked >= room:
            self.drops += self.lapsed
            self.marked, self.lapsed = self.marked - len(self.lapsed), []
        if field in self.fields or self.marked < room:
            if not self._counts(field):
                self.failing.append(worker)
            self._put(field, self.now)

    def is_tripped(self, live_workers: int) -> bool:
        """Whether what was seen opens the circuit."""
        numbers, seen = self.numbers, self.seen
        if self.mode or seen["calls"] < numbers["minimum_calls"]:
            return False
        failed = (
            seen["failures"] >= numbers["failure_threshold"]
            and seen["failures"] * MILLION >= numbers["failure_rate"] * seen["calls"]
        )
        if not failed and seen["slow"] * MILLION < numbers["slow_call_rate"] * seen["calls"]:
            return False
        return len(self.failing) >= min(numbers["min_workers"], live_workers)

    def follow(self, event: str) -> None:
        """Follows `event` to the next state."""
        self.caused = 1
        self._enter(TRANSITIONS[self.state][event], "")
        if self.state == "closed":
            self._forget()
            return
        self._put("trips", self.trips)
        self._put("backoff_us", self.backoff)
        self._put("opened_at_us", self.opened_at)
        for kind, count in self.seen.items():
            self._put(f"evidence_{kind}", count)
        self._put("evidence_workers", " ".join(self.failing))

    def open(self, event: str, draw: int) -> None:
        """Opens the circuit, for longer each time in a row."""
        numbers = self.numbers
        self.trips, self.opened_at = self.trips + 1, self.now
        longer = max(numbers["timeout_seconds"], self.backoff * numbers["open_multiplier"] // 1000)
        self.backoff = min(numbers["max_open_seconds"], longer)
        stretch = numbers["jitter"] * draw // 100_000_000
        self.open_for = self.backoff + self.backoff * stretch // 10_000
        self.retry_at = self.now + self.open_for
        self.follow(event)
        self._put("retry_at_us", self.retry_at)
        self._put("open_for_us", self.open_for)

    def lend(self, token: str) -> int:
        """Lends a probe to `token` if there is one; 1 if so, else 0."""
        if self.state != "half_open" or self.leases >= self.numbers["half_open_max_calls"]:
            return 0
        self.drops += self.stale
        self.leases += 1
        self._put(f"probe.{token}", f"{self.now}+{self.numbers['probe_lease']}")
        return 1

    def take_back(self, token: str) -> None:
        """Takes the probe of `token` back."""
        self.drops.append(f"probe.{token}")
        self.probes.remove(token)
        self.leases -= 1

    def succeed(self) -> None:
        """One more successful probe."""
        self.successes += 1
        if self.successes >= self.numbers["success_threshold"]:
            self.follow("recovered")
        else:
            self._put("successes", self.successes)

    def force(self, state: str, mode: str) -> None:
        """The operator's word."""
        self.caused = 1
        self._forget()
        self._enter(state, mode)

    def save(self) -> None:
        """Marks what has changed as to be written."""
        for token, lease in self.begun_again.items():
            if token in self.probes:
                self._put(f"probe.{token}", lease)
        if self.mode:
            self.ttl = 0
        if not self.writes and not self.drops:
            return
        left = {} if self.cleared else {field: text for field, text in self.fields.items() if field not in self.drops}
        self.stored = {**left, **self.writes}
        if not self.mode:
            self.ttl = to_ttl(DAY_US + self.open_for)

    def reply(self, result: int) -> tuple[int | str, ...]:
        """The view of the circuit after `result`."""
        wait = 0
        if self.state == "open":
            wait = -1 if self.mode else to_wait(self.retry_at - self.now)
        seen, failing = self.seen, " ".join(self.failing)
        now = (result, self.caused, self.state, self.mode, self.generation, wait, to_wait(self.now - self.opened_at))
        evidence = (seen["calls"], seen["failures"], seen["slow"], failing)
        openings = (self.trips, to_wait(self.backoff))
        return (*now, *evidence, *openings, self.leases, self.successes, self.overrides.ignored)

    def step(self, result: int, *others: State) -> Step:
        """The answer of a twin; `others` are the states of further keys, which stay as they are."""
        self.save()
        overrides = self.overrides.ttl
        ttls = (overrides, self.ttl, *(None for _ in others))
        return Step((self.overrides.stored, self.stored, *others), ttls, self.reply(result))


def _in_force(overrides: Overrides, told: Sequence[Argument]) -> dict[str, int]:
    """The numbers in force: those of the caller, or what overrides them."""
    numbers = {}
    for (name, number), argument in zip(NUMBERS.items(), told, strict=True):
        override = overrides.breaker(name)
        numbers[name] = int(argument) if override is None else math.floor(override * number.finer + 0.5)
    numbers["minimum_calls"] = numbers["minimum_calls"] or numbers["failure_threshold"]
    return numbers


def probe(states: Sequence[State], now: int, *args: Argument) -> Step:
    """Twin of `circuit_breaker_probe.lua`."""
    *told, token = args
    circuit = Circuit(states[1], now, Overrides(states[0]), told)
    if circuit.state == "open" and not circuit.mode and circuit.retry_at <= now:
        circuit.follow("due")
    return circuit.step(circuit.lend(str(token)))


def settle(states: Sequence[State], now: int, *args: Argument) -> Step:
    """Twin of `circuit_breaker_settle.lua`."""
    *told, worker, token, generation, outcome, draw = args
    circuit = Circuit(states[1], now, Overrides(states[0]), told)
    fenced = outcome == "cancelled" or generation == circuit.generation
    held = circuit.state == "half_open" and fenced and token in circuit.probes
    if held:
        circuit.take_back(str(token))
        if outcome == "failure":
            circuit.seen, circuit.failing = {"calls": 1, "failures": 1, "slow": 0}, [str(worker)]
            circuit.open("failed", int(draw))
        elif outcome == "success":
            circuit.succeed()
    return circuit.step(int(held))


def control(states: Sequence[State], now: int, *args: Argument) -> Step:
    """Twin of `circuit_breaker_control.lua`."""
    *told, mode = args
    circuit = Circuit(states[1], now, Overrides(states[0]), told)
    circuit.force(FORCED.get(str(mode), "closed"), str(mode))
    return circuit.step(1)
