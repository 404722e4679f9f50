"""The scripts of the circuit and their twins are one state machine: same replies, same states, whatever comes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
from conftest import Lane
from histories import compare_all
from servers import part_of

from shared_resilience import CircuitBreakerConfig
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.circuit_commands import CONTROL, PROBE, SETTLE
from shared_resilience.commands import Argument, Command, State
from shared_resilience.evidence import EVIDENCE
from shared_resilience.heartbeat import ENROL
from shared_resilience.limit_commands import OVERRIDE, RESET

STEPS, BATCH = 100_000, 250
FAMILIES: dict[str, list[CircuitBreakerConfig]] = {
    "defaults": [CircuitBreakerConfig()],
    "quick": [
        CircuitBreakerConfig(
            2, 0.5, 0.1, success_threshold=2, timeout_seconds=0.05, open_multiplier=1.5, max_open_seconds=3,
            half_open_max_calls=2, probe_lease=0.02,
        ),
        CircuitBreakerConfig(3, 0.4, 3, 5, timeout_seconds=1, jitter=1, half_open_max_calls=1, probe_lease=1),
    ],
    "slow and in company": [
        CircuitBreakerConfig(
            4, 0.25, 20, slow_call_seconds=1, slow_call_rate=0.3, min_workers=2, timeout_seconds=0.001,
            success_threshold=1, half_open_max_calls=4,
        ),
        CircuitBreakerConfig(1, 0, 60, min_workers=20, timeout_seconds=2, max_open_seconds=2, jitter=0.5),
        CircuitBreakerConfig(9, window=5, slow_call_seconds=1, slow_call_rate=1, timeout_seconds=2),
    ],
    "a crowd": [
        CircuitBreakerConfig(10**6, window=1),
        CircuitBreakerConfig(10**6, window=3, min_workers=18),
    ],
}  # fmt: skip
VALUES = [
    "1",
    "2",
    "3",
    "0.5",
    "0.25",
    "0",
    "100",
    "0.1",
    "101",
    "1.5",
    "86400",
    "nan",
    "1000000001",
    "86401",
    "1001",
    "0.100005",
    "0x10",
    "seven",
    "",
]
DAMAGE = ["", "open", "half_open", "broken", "forced_open", "forced_closed", "metrics_only"]
DAMAGE += ["0", "7", "nan", "1.5", "a+1", "5+0", "9000000000000000+5", "-7"]
FIELDS = ["state", "mode", "generation", "retry_at_us", "open_for_us", "opened_at_us", "backoff_us", "trips"]
FIELDS += ["successes", "evidence_calls", "calls.1.x", "probe.", "probe.x", "worker.x.y", "strange", "slow.0.0"]
FIELDS += ["failures.10000000000.0", "calls"]
_numbers = itertools.count()


def elapsed(source: random.Random) -> int:
    kind = source.random()
    if kind < 0.3:
        return source.randint(0, 3)
    if kind < 0.4:
        return source.choice([1000, 10_000, 20_000, 50_000, 1_000_000, 30_000_000]) + source.choice([-1, 0, 1])
    if kind < 0.93:
        return int(10 ** source.uniform(0, 7))
    if kind < 0.97:
        return -int(10 ** source.uniform(0, 9))
    return int(10 ** source.uniform(7, 10))


class History:
    """A random history, taken by the twins while it is thought up, and then by Redis."""

    def __init__(self, lane: Lane, family: str, seed: int) -> None:
        self.client = lane.client
        self.source = random.Random(f"{family} {seed}")
        self.configs = FAMILIES[family]
        self.crowded = family == "a crowd"
        stem = f"circuit:{{{next(_numbers)}}}"
        self.keys = (f"{stem}:overrides", f"{stem}:breaker", f"{stem}:workers")
        self.now = 1_763_880_000_000_000
        self.times: list[int] = []
        self.redis = RedisStore(lane.wire, lambda: self.times.pop(0))
        self.asked: list[int] = []
        self.commands: list[Command[Any]] = []
        self.expected: list[list[Any]] = []
        self.states: dict[str, State] = {}
        self.ttls: dict[str, int] = {}
        self.generations = [0]
        self.tokens = ["t"]
        lane.load_scripts()

    def foresee(self, number: int) -> History:
        for _ in range(number):
            self.now = max(1, self.now + (self.source.randint(0, 200_000) if self.crowded else elapsed(self.source)))
            self.take(self.command())
        return self

    def then(self, elapsed_us: int, command: Command[Any]) -> History:
        """One step of one's own."""
        self.now += elapsed_us
        self.take(command)
        return self

    def told(self, config: CircuitBreakerConfig, *counts: int, worker: str = "w") -> Command[Any]:
        return Command(EVIDENCE, self.keys, (*config.arguments(), worker, self.generations[-1], *counts, 0))

    def take(self, command: Command[Any]) -> list[Any]:
        before = tuple(map(self.states.get, command.keys))
        outcome = command.operation.twin(before, self.now, *command.args)
        self.states.update(zip(command.keys, outcome.states, strict=True))
        if command.operation is not OVERRIDE or before == (None,):  # which gives a new key no end, and keeps another's
            self.ttls.update((key, ttl) for key, ttl in zip(command.keys, outcome.ttls, strict=True) if ttl is not None)
        reply = comparable(outcome.reply)
        if command.operation not in (OVERRIDE, RESET, ENROL):
            self.generations = [*self.generations, reply[4]][-6:]
        self.asked.append(self.now)
        self.commands.append(command)
        self.expected.append(reply)
        return reply

    def command(self) -> Command[Any]:
        weights: dict[Callable[[], Command[Any]], float] = {
            self.evidence: 55,
            self.probe: 14,
            self.settle: 20,
            self.control: 1.5,
            self.override: 2,
            self.damage: 0.7,
            self.enrol: 2,
            self.reset: 0.5,
        }
        return self.source.choices(list(weights), list(weights.values()))[0]()

    def numbers(self) -> tuple[int, ...]:
        return self.source.choice(self.configs).arguments()

    def worker(self) -> str:
        return f"w{min(int(self.source.expovariate(0.03 if self.crowded else 0.3)), 40)}"

    def generation(self) -> int:
        return self.source.choice([self.generations[-1]] * 12 + self.generations)

    def evidence(self) -> Command[Any]:
        source = self.source
        calls = source.choice([0, 1, 1, 1, 2, 5, 1000])
        failures = min(calls, source.choice([0, 0, 1, 1, 2, 500]))
        slow = min(calls, source.choice([0, 0, 0, 1, 300]))
        draw = source.choice([0, 10**6, source.randint(0, 10**6)])
        counts = (calls, failures, slow, draw)
        return Command(EVIDENCE, self.keys, (*self.numbers(), self.worker(), self.generation(), *counts))

    def probe(self) -> Command[Any]:
        self.tokens = [*self.tokens, f"t{len(self.commands)}"][-5:]
        return Command(PROBE, self.keys[:2], (*self.numbers(), self.tokens[-1]))

    def settle(self) -> Command[Any]:
        outcome = self.source.choice(["success"] * 4 + ["failure", "cancelled"])
        token, generation = self.source.choice(self.tokens), self.generation()
        told: tuple[Argument, ...] = (self.worker(), token, generation, outcome)
        return Command(SETTLE, self.keys[:2], (*self.numbers(), *told, self.source.randint(0, 10**6)))

    def control(self) -> Command[Any]:
        mode = self.source.choice(["forced_open", "forced_closed", "metrics_only", "", "", ""])
        return Command(CONTROL, self.keys[:2], (*self.numbers(), mode))

    def override(self) -> Command[Any]:
        names = list(CircuitBreakerConfig(slow_call_seconds=1, slow_call_rate=1).numbers())
        return Command(
            OVERRIDE, self.keys[:1], (f"breaker.{self.source.choice(names)}", self.source.choice([*VALUES, "", ""]))
        )

    def damage(self) -> Command[Any]:
        return Command(OVERRIDE, self.keys[1:2], (self.source.choice(FIELDS), self.source.choice(DAMAGE)))

    def enrol(self) -> Command[Any]:
        return Command(ENROL, self.keys[2:], (5_000_000, self.worker()))

    def reset(self) -> Command[Any]:
        return Command(RESET, (self.source.choice(self.keys[:2]),), ())

    def compare(self) -> None:
        """Has Redis take the steps that the twins took."""
        self.times[:] = self.asked
        replies = [comparable(reply) for reply in step(self.redis.execute_all(self.commands))]

        for number, (reply, twin) in enumerate(zip(replies, self.expected, strict=True)):
            assert reply == twin, f"step {number}: {self.commands[number]}"
        breaker = self.keys[1]
        assert stored(self.client, breaker) == as_stored(self.states.get(breaker))
        if self.states.get(breaker) is not None:
            ttl, left = self.ttls[breaker], self.client.pttl(breaker)
            assert left == -1 if ttl == 0 else ttl - 1500 < left <= ttl
        members = self.client.zrange(self.keys[2], 0, -1, withscores=True)
        assert {member.decode(): int(time) for member, time in members} == (self.states.get(self.keys[2]) or {})
        self.client.delete(*self.keys)


def comparable(reply: Any) -> list[Any]:
    """A reply whose lists of workers are sets: Redis does not promise the order of a hash."""
    texts = [item.decode() if isinstance(item, bytes) else item for item in reply]
    return [*texts[:10], sorted(texts[10].split()), *texts[11:]] if len(texts) == 16 else texts


def as_stored(state: State) -> dict[str, Any]:
    texts = {field: str(value) for field, value in cast("Mapping[str, Any]", state or {}).items()}
    return {f: sorted(text.split()) if f == "evidence_workers" else text for f, text in texts.items()}


def stored(client: Any, key: str) -> dict[str, Any]:
    return as_stored({field.decode(): value.decode() for field, value in client.hgetall(key).items()})


@pytest.mark.parametrize("family", FAMILIES)
def test_script_and_twin_agree_over_a_hundred_thousand_random_steps(store: Lane, lane: str, family: str) -> None:
    seeds = range(-(-STEPS // len(FAMILIES) // BATCH))
    compare_all(History(store, family, seed).foresee(BATCH) for seed in part_of(lane, seeds))


@pytest.mark.parametrize("family", ["defaults", "quick", "slow and in company"])
def test_the_random_histories_visit_every_state_and_every_transition(store: Lane, family: str) -> None:
    seen = set()
    for seed in range(20):
        history = History(store, family, seed).foresee(BATCH)
        states = [reply[2] for reply in history.expected if len(reply) == 16 and reply[1]]
        seen |= set(itertools.pairwise(states))

    assert {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")} <= seen


WINDOW = CircuitBreakerConfig(100)


def test_script_and_twin_agree_on_when_a_slot_leaves_the_window(store: Lane) -> None:
    for age in (10_999_999, 11_000_000, 11_000_001, 20_999_999, 21_000_000):
        history = History(store, "defaults", 0)
        history.then(0, history.told(WINDOW, 0, 0, 0)).then(0, history.told(WINDOW, 3, 1, 1))
        history.then(age, history.told(CircuitBreakerConfig(100, window=20), 0, 0, 0))
        history.then(0, history.told(WINDOW, 0, 0, 0)).then(0, history.told(WINDOW, 1, 0, 0)).compare()


def test_script_and_twin_agree_on_when_a_slot_leaves_the_smaller_window_of_a_reader(store: Lane) -> None:
    reader = CircuitBreakerConfig(100, window=5)
    for age in (5_999_999, 6_000_000, 6_000_001):
        history = History(store, "defaults", 0)
        history.then(0, history.told(WINDOW, 0, 0, 0)).then(0, history.told(WINDOW, 3, 1, 1))
        history.then(age, history.told(reader, 0, 0, 0)).compare()


def test_script_and_twin_agree_on_when_the_open_time_is_over(store: Lane) -> None:
    config = CircuitBreakerConfig(1, timeout_seconds=1)
    for age in (999_999, 1_000_000):
        history = History(store, "defaults", 0)
        history.then(0, history.told(config, 0, 0, 0)).then(0, history.told(config, 1, 1, 0))
        history.then(age, Command(PROBE, history.keys[:2], (*config.arguments(), "t"))).compare()


def test_script_and_twin_agree_on_when_a_failing_worker_leaves_the_window(store: Lane) -> None:
    for age in (9_999_999, 10_000_000, 10_000_001):
        history = History(store, "defaults", 0)
        history.then(0, history.told(WINDOW, 0, 0, 0)).then(0, history.told(WINDOW, 1, 1, 0))
        history.then(age, history.told(WINDOW, 0, 0, 0)).then(0, history.told(WINDOW, 1, 1, 0)).compare()


def test_an_override_of_a_rate_means_what_it_says(store: Lane) -> None:
    config = CircuitBreakerConfig(10**9, minimum_calls=1, slow_call_seconds=1, slow_call_rate=1)
    history = History(store, "defaults", 0)
    history.then(0, Command(OVERRIDE, history.keys[:1], ("breaker.slow_call_rate", "0.5")))
    history.then(0, history.told(config, 0, 0, 0)).then(0, history.told(config, 2_000_000, 0, 1_000_000)).compare()

    assert history.expected[-1][2] == "open"


def test_a_closed_circuit_lives_for_a_day_and_an_open_one_beyond_its_end(store: Lane) -> None:
    history = History(store, "defaults", 0)
    left = []
    for failures in (0, 5):
        config = CircuitBreakerConfig(jitter=0)
        history.then(0, history.told(config, failures, failures, 0))
        history.times[:] = history.asked
        step(history.redis.execute(history.commands[-1]))
        left.append(history.client.pttl(history.keys[1]))

    assert 86_399_000 < left[0] <= 86_400_000
    assert 86_459_000 < left[1] <= 86_460_000


def test_a_mode_that_is_set_by_hand_holds_and_takes_the_end_from_the_hash(store: Lane) -> None:
    history = History(store, "defaults", 0)
    told = history.told(CircuitBreakerConfig(), 0, 0, 0)
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False), lambda: history.now)
    generation = comparable(step(redis_store.execute(told)))[4]
    history.client.hset(history.keys[1], "mode", "metrics_only")
    history.generations.append(generation)
    view = comparable(step(redis_store.execute(history.told(CircuitBreakerConfig(), 9, 9, 0))))

    assert (view[0], view[2], view[3], view[8]) == (1, "closed", "metrics_only", 9)
    assert history.client.pttl(history.keys[1]) == -1


def test_a_mode_that_is_set_by_hand_holds_for_ever_once_it_was_read(store: Lane) -> None:
    history = History(store, "defaults", 0)
    history.then(0, history.told(CircuitBreakerConfig(), 0, 0, 0))
    history.then(0, Command(OVERRIDE, history.keys[1:2], ("mode", "forced_open")))
    history.then(0, history.told(CircuitBreakerConfig(), 0, 0, 0))
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False), lambda: history.now)
    for command in history.commands:
        step(redis_store.execute(command))

    assert history.client.pttl(history.keys[1]) == -1
    assert history.ttls[history.keys[1]] == 0


def test_a_look_at_a_circuit_does_not_prolong_its_life_and_a_probe_that_is_given_back_does(store: Lane) -> None:
    config = CircuitBreakerConfig(1, timeout_seconds=1, jitter=0)
    history = History(store, "defaults", 0)
    history.then(0, history.told(config, 0, 0, 0)).then(0, history.told(config, 1, 1, 0))
    history.then(1_000_000, Command(PROBE, history.keys[:2], (*config.arguments(), "t")))
    look = history.told(config, 0, 0, 0)
    given_back = Command(SETTLE, history.keys[:2], (*config.arguments(), "w", "t", 0, "cancelled", 0))
    history.times[:] = [*history.asked, history.now, history.now]
    for command in history.commands:
        step(history.redis.execute(command))
    left = []
    for command in (look, given_back):
        history.client.pexpire(history.keys[1], 1_000_000)
        step(history.redis.execute(command))
        left.append(history.client.pttl(history.keys[1]))

    assert left[0] <= 1_000_000
    assert left[1] > 86_000_000


@pytest.mark.parametrize("generation", ["-1", str(2**53 - 1), str(2**53), "99999999999999999"])
def test_a_generation_that_no_worker_could_tell_is_as_none(store: Lane, generation: str) -> None:
    history = History(store, "defaults", 0)
    history.then(0, history.told(CircuitBreakerConfig(), 0, 0, 0))
    history.then(0, Command(OVERRIDE, history.keys[1:2], ("generation", generation)))
    history.then(5, history.told(CircuitBreakerConfig(), 0, 0, 0)).then(
        0, history.told(CircuitBreakerConfig(), 1, 1, 0)
    )
    history.compare()

    assert history.expected[-1][0] == 1
    assert history.expected[-1][4] == history.now


def test_the_last_generation_is_one_that_workers_can_tell(store: Lane) -> None:
    history = History(store, "defaults", 0)
    history.then(0, history.told(CircuitBreakerConfig(), 0, 0, 0))
    history.then(0, Command(OVERRIDE, history.keys[1:2], ("generation", str(2**53 - 2))))
    history.then(0, history.told(CircuitBreakerConfig(), 0, 0, 0)).then(
        0, history.told(CircuitBreakerConfig(), 1, 1, 0)
    )
    history.then(0, Command(CONTROL, history.keys[:2], (*CircuitBreakerConfig().arguments(), "")))
    history.then(0, history.told(CircuitBreakerConfig(), 1, 1, 0)).compare()

    assert [reply[0] for reply in history.expected[3:]] == [1, 1, 0]


def test_a_probe_is_given_back_by_its_token_alone_and_settled_only_in_its_generation(store: Lane) -> None:
    config = CircuitBreakerConfig(1, timeout_seconds=1, jitter=0)
    history = History(store, "defaults", 0)
    history.then(0, history.told(config, 0, 0, 0)).then(0, history.told(config, 1, 1, 0))
    history.then(1_000_000, Command(PROBE, history.keys[:2], (*config.arguments(), "t")))
    for outcome in ("success", "failure", "cancelled"):
        history.then(0, Command(SETTLE, history.keys[:2], (*config.arguments(), "w", "t", 0, outcome, 0)))
    history.compare()

    assert [(reply[0], reply[13]) for reply in history.expected[-3:]] == [(0, 1), (0, 1), (1, 0)]


def test_a_worker_is_alive_for_a_quorum_as_soon_as_it_tells_of_itself(store: Lane) -> None:
    config = CircuitBreakerConfig(min_workers=2)
    history = History(store, "defaults", 0)
    history.then(0, history.told(config, 0, 0, 0, worker="w1")).then(0, history.told(config, 0, 0, 0, worker="w2"))
    history.then(0, history.told(config, 5, 5, 0, worker="w1"))
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False), lambda: history.now)
    for command in history.commands[:2]:
        step(redis_store.execute(command))
    left = history.client.pttl(history.keys[2])
    history.client.delete(*history.keys)
    history.compare()

    assert history.expected[-1][2] == "closed"
    assert 0 < left <= 5000
    assert history.ttls[history.keys[2]] == 5000


def test_where_no_quorum_is_asked_for_nobody_enters_the_live_workers(store: Lane) -> None:
    history = History(store, "defaults", 0)
    history.then(0, history.told(CircuitBreakerConfig(), 5, 5, 0)).compare()

    assert history.states[history.keys[2]] is None


def test_open_times_are_whole_microseconds(store: Lane) -> None:
    config = CircuitBreakerConfig(1, timeout_seconds=0.001001, open_multiplier=1.5, jitter=0)
    history = History(store, "defaults", 0)
    history.then(0, history.told(config, 0, 0, 0)).then(0, history.told(config, 1, 1, 0))
    history.then(1001, Command(PROBE, history.keys[:2], (*config.arguments(), "t")))
    failure: tuple[Argument, ...] = (*config.arguments(), "w", "t", history.generations[-1], "failure", 0)
    history.then(0, Command(SETTLE, history.keys[:2], failure)).compare()

    assert [reply[5] for reply in history.expected] == [0, 1001, 0, 1501]
