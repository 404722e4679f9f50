"""The scripts of the token bucket and their twins are one algorithm: same replies, same states, whatever comes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from conftest import Lane
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared_resilience import scripts
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.commands import Command, State
from shared_resilience.rate_limiter import RESET
from shared_resilience.token_bucket import BucketCommands, BucketState, TokenBucket

STEPS = 100_000
BATCH = 500
CONFIGURATIONS = [
    TokenBucket(capacity, rate)
    for capacity, rate in [
        (1, 1e-6),
        (1, 10),
        (3, 0.3),
        (5, 100 / 60),
        (10, 10),
        (10, 12345.678),
        (100, 10),
        (1000, 1 / 3),
        (10**6, 10**6),
        (10**9, 1e-6),
        (10**9, 1e9),
    ]
]
_batches = itertools.count()


class Move(NamedTuple):
    """One step of a history: who does what, and by how much the clock moves before."""

    elapsed_us: int
    operation: str
    key: int
    configuration: int
    cost: int
    fleet: int = 1


def elapsed(random: random.Random) -> int:
    kind = random.random()
    if kind < 0.3:
        return random.randint(0, 3)
    if kind < 0.9:
        return int(10 ** random.uniform(0, 8))
    if kind < 0.95:
        return -int(10 ** random.uniform(0, 9))
    return int(10 ** random.uniform(8, 12))


def moves(seed: int, number: int) -> Iterator[Move]:
    source = random.Random(seed)
    configuration = source.randrange(len(CONFIGURATIONS))
    for _ in range(number):
        if source.random() < 0.02:
            configuration = source.randrange(len(CONFIGURATIONS))
        capacity = CONFIGURATIONS[configuration].capacity
        cost = min(capacity, source.choice([1, 1, 1, 2, 5, max(1, capacity // 3), capacity]))
        operation = source.choices(["take", "peek", "refund", "reset"], [80, 8, 10, 2])[0]
        yield Move(elapsed(source), operation, source.randrange(3), configuration, cost, source.choice([1, 1, 1, 4]))


class Both:
    """Redis and twins that are told the same commands at the same times; twins know no expiry."""

    def __init__(self, lane: Lane) -> None:
        self.client = lane.client
        for name in scripts.names():  # a script that is unknown in the middle of a pipeline would run out of order
            self.client.script_load(scripts.load(name).text)
        self.batch = next(_batches)
        self.now = 1_763_880_000_000_000
        self.times: list[int] = []
        self.redis = RedisStore(PoolWire(lane.pool, 5, theirs=False), lambda: self.times.pop(0))
        self.states: dict[str, State] = {}
        self.ttls: dict[str, int] = {}

    def keys(self, key: int) -> tuple[str, str]:
        return f"twin:{{{self.batch}}}:{key}", f"twin:{{{self.batch}}}:overrides"

    def command(self, move: Move) -> Command[Any]:
        if move.operation == "reset":
            return Command(RESET, self.keys(move.key)[:1], ())
        commands = BucketCommands(CONFIGURATIONS[move.configuration])
        command: Command[Any] = getattr(commands, move.operation)(self.keys(move.key), move.cost)
        shared = command.share(move.fleet)
        return shared if int(shared.args[1]) * int(shared.args[2]) <= 2**53 else command

    def twin(self, command: Command[Any]) -> tuple[Any, ...]:
        outcome = command.operation.twin(tuple(map(self.states.get, command.keys)), self.now, *command.args)
        self.states.update(zip(command.keys, outcome.states, strict=True))
        self.ttls.update((key, ttl) for key, ttl in zip(command.keys, outcome.ttls, strict=True) if ttl is not None)
        return tuple(outcome.reply)

    def replay(self, history: list[Move]) -> None:
        commands, expected = [], []
        for move in history:
            self.now = max(1, self.now + move.elapsed_us)
            self.times.append(self.now)
            commands.append(self.command(move))
            expected.append(self.twin(commands[-1]))
        replies = [tuple(reply) for reply in step(self.redis.execute_all(commands))]

        for number, (reply, twin) in enumerate(zip(replies, expected, strict=True)):
            assert reply == twin, f"step {number}: {history[number]}"
        for key in range(3):
            self._compare_state(self.keys(key)[0])
        self.client.delete(*(self.keys(key)[0] for key in range(3)))

    def _compare_state(self, key: str) -> None:
        stored = {field.decode(): int(value) for field, value in self.client.hgetall(key).items()}
        state = self.states.get(key)
        if state is None:
            assert stored == {}
        else:
            assert isinstance(state, BucketState)
            assert stored == state._asdict()
            assert self.ttls[key] - 1000 < self.client.pttl(key) <= self.ttls[key]


def test_script_and_twin_agree_over_a_hundred_thousand_random_steps(store: Lane, lane: str) -> None:
    steps = STEPS if lane != "fakeredis" else 2_000
    for seed in range(steps // BATCH):
        Both(store).replay(list(moves(seed, BATCH)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(
        st.builds(
            Move,
            st.one_of(st.integers(0, 10), st.integers(-(10**9), 10**10)),
            st.sampled_from(["take", "peek", "refund", "reset"]),
            st.integers(0, 2),
            st.integers(0, len(CONFIGURATIONS) - 1),
            st.just(1),
            st.sampled_from([1, 3]),
        ),
        max_size=30,
    )
)
def test_script_and_twin_agree_on_what_hypothesis_thinks_up(store: Lane, history: list[Move]) -> None:
    Both(store).replay(history)


@pytest.mark.parametrize(
    ("operation", "position", "name"),
    [
        ("take", 0, "capacity"),
        ("take", 1, "refill"),
        ("take", 2, "per"),
        ("take", 3, "cost"),
        ("take", 4, "need"),
        ("peek", 3, "need"),
        ("refund", 3, "amount"),
    ],
)
@pytest.mark.parametrize("value", [0, -5_000_000, "nan", "inf", "-inf", "1.5", "", "tokens", 2**54])
def test_scripts_refuse_what_the_client_would_never_send(
    store: Lane, prefix: str, operation: str, position: int, name: str, value: int | str
) -> None:
    commands = BucketCommands(TokenBucket(10, 1))
    command = getattr(commands, operation)((f"{prefix}:{{a}}", f"{prefix}:{{a}}:o"), 1)
    args = (*command.args[:position], value, *command.args[position + 1 :])
    redis_store = RedisStore(PoolWire(store.pool, 5, theirs=False))

    with pytest.raises(Exception, match=f"{name} must be an integer"):
        step(redis_store.execute(command._replace(args=args)))

    assert store.client.exists(command.keys[0]) == 0
