"""What many processes did at once is what one process could have done, one call after the other.

Each process notes when it asked, what, when it was answered, and what. The scripts are sent inside a few lines of the
harness's own, which count a key up in the same atomic step and so number the decisions. A history is linearizable
(Herlihy and Wing, 1990) if that order agrees with real time, and the calls, made in that order, are answered so.
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from hashlib import sha1
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import pytest
from models import Model, model_of
from processes import forkserver
from servers import Server
from twins import Answered, Twin

from shared_resilience import LeakyBucket, SlidingWindow, TokenBucket
from shared_resilience.backends import step
from shared_resilience.backends.clients import OwnClients
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.commands import Argument, Command, Operation, Reply, Source
from shared_resilience.limit_commands import LimitCommands
from shared_resilience.limits import Limit
from shared_resilience.scripts import Script

PROCESSES = 5
CALLS = 1200
KEYS = ("a", "b")
RESOURCES: dict[str, list[Limit]] = {
    "token_bucket": [TokenBucket(20, 80)],
    "sliding_window": [SlidingWindow(12, 0.12)],
    "coarse_window": [SlidingWindow(12, 0.12, exact=False)],
    "leaky_bucket": [LeakyBucket(15, 80)],
    "several": [
        TokenBucket(10, 40, label="user"),
        SlidingWindow(12, 0.12, label="tenant"),
        LeakyBucket(14, 60, label="global"),
    ],
}


class Call(NamedTuple):
    """One call as its process saw it: asked and answered by the machine's monotonic clock."""

    asked: float
    answered: float
    resource: str
    key: str
    verb: str
    cost: int
    extra: int
    reply: Answered
    order: int


def _as_sent(reply: Reply, source: Source) -> Reply:
    return reply


def numbered(operation: Operation[Any], counter: str) -> Operation[Reply]:
    """The same operation, whose script appends to its reply its time, and how many decisions `counter` has seen."""
    text = (
        f"local function decide()\n{operation.loaded.text}\nend\nlocal reply = decide()\n"
        f'local time = redis.call("TIME")\nreply[#reply + 1] = time[1] * 1000000 + time[2]\n'
        f'reply[#reply + 1] = redis.call("INCR", "{counter}")\nreturn reply\n'
    )
    wrapped: Operation[Reply] = Operation(operation.script, operation.twin, _as_sent)
    script = Script(operation.script, text, sha1(text.encode(), usedforsecurity=False).hexdigest())
    object.__setattr__(wrapped, "loaded", script)
    return wrapped


def command_of(resource: str, key: str, verb: str, cost: int, extra: int, prefix: str) -> Command[Any]:
    """`extra` is the longest delay of a take and the moment since when something is given back."""
    limits = RESOURCES[resource]
    stem = f"{prefix}:{{{resource}}}"
    keys = (f"{stem}:overrides", *(f"{stem}:limit:{limit.label}:{key}" for limit in limits))
    commands = LimitCommands(limits)
    if verb == "take":
        return commands.take(keys, cost, extra)
    if verb == "give":
        return commands.give(keys, cost, extra)
    return commands.peek(keys, cost) if verb == "peek" else commands.charge(keys, cost)


def as_answered(reply: Reply) -> Answered:
    """A reply of Redis as twins give it."""
    plain: list[Argument] = [item.decode() if isinstance(item, bytes) else item for item in reply]
    return Answered(*plain)  # type: ignore[arg-type]  # as the script replies


def make_calls(url: str, prefix: str, seed: int, start: Any, out: Connection) -> None:
    """One process: asks as fast as it can and notes what it sees."""
    store = RedisStore(PoolWire(OwnClients(url, 5, 5).pool(), 5, theirs=False))
    source = random.Random(seed)
    log: list[Call] = []
    since: dict[tuple[str, str], int] = {}
    operations: dict[tuple[str, str], Operation[Reply]] = {}
    start.wait()
    for _ in range(CALLS):
        resource, key = source.choice(list(RESOURCES)), source.choice(KEYS)
        verb = source.choices(["take", "peek", "give", "charge"], [78, 8, 9, 5])[0]
        cost = source.choice([1, 1, 1, 2, 3, 5])
        extra = -1
        if verb == "take" and source.random() < 0.3:
            extra = source.randrange(0, 60_000)
        elif verb == "give":
            extra = source.choice([0, since.get((resource, key), 0)])
        command = command_of(resource, key, verb, cost, extra, prefix)
        wanted = numbered(command.operation, f"{prefix}:order")
        operation = operations.setdefault((verb, wanted.script), wanted)
        sent: Command[Any] = Command(operation, command.keys, command.args)
        asked = time.monotonic()
        *reply, _, order = step(store.execute(sent))
        answered = time.monotonic()
        answer = as_answered(reply)
        if verb == "take" and answer.allowed:
            since[resource, key] = int(answer.now)
        log.append(Call(asked, answered, resource, key, verb, cost, extra, answer, int(order)))
    out.send(log)


@pytest.fixture(scope="module")
def history(server: Server) -> list[Call]:
    """The calls of all processes, in the order in which Redis decided them."""
    start = forkserver.Barrier(PROCESSES)
    pipes, processes = [], []
    for number in range(PROCESSES):
        receiver, sender = forkserver.Pipe(duplex=False)
        process = forkserver.Process(target=make_calls, args=(server.url, "linear", number, start, sender))
        process.start()
        pipes.append(receiver)
        processes.append(process)
    logs = [receiver.recv() for receiver in pipes if receiver.poll(60)]
    for process in processes:
        process.join(10)
    assert len(logs) == PROCESSES
    return sorted((call for log in logs for call in log), key=lambda call: call.order)


def by_state(history: list[Call], resource: str) -> Iterator[list[Call]]:
    """The calls on each key of a resource, in order; keys have nothing to do with each other."""
    calls: defaultdict[str, list[Call]] = defaultdict(list)
    for call in history:
        if call.resource == resource:
            calls[call.key].append(call)
    assert set(calls) == set(KEYS)
    return iter(calls.values())


def test_every_call_ran_exactly_once(history: list[Call]) -> None:
    assert [call.order for call in history] == list(range(1, PROCESSES * CALLS + 1))


def test_what_was_answered_before_another_was_asked_was_decided_before_it(history: list[Call]) -> None:
    assert_in_real_time(history)


class Timed(Protocol):
    """A call, as its process saw it."""

    @property
    def asked(self) -> float: ...

    @property
    def answered(self) -> float: ...


def assert_in_real_time(history: Sequence[Timed]) -> None:
    first_answer_later = float("inf")
    for call in reversed(history):
        assert call.asked <= first_answer_later
        first_answer_later = min(first_answer_later, call.answered)


def test_the_history_is_one_that_can_go_wrong(history: list[Call]) -> None:
    """Most calls overlap with another, and in each resource a good part is admitted and a good part is not."""
    overlapping, last_answer = 0, 0.0
    for call in sorted(history):
        overlapping += call.asked < last_answer
        last_answer = max(last_answer, call.answered)
    takes = Counter((call.resource, call.reply.allowed) for call in history if call.verb == "take")
    others = Counter((call.resource, call.verb) for call in history)
    keepers = Counter(call.reply.keeper for call in history if call.resource == "several" and not call.reply.allowed)

    assert overlapping > len(history) / 2
    assert all(takes[resource, allowed] > 50 for resource in RESOURCES for allowed in (0, 1))
    assert all(others[resource, verb] > 20 for resource in RESOURCES for verb in ("peek", "give", "charge"))
    assert sum(call.reply.delay > 0 for call in history) > 100
    assert set(keepers) == {1, 2, 3}


@pytest.mark.parametrize("resource", RESOURCES)
def test_the_same_calls_one_after_the_other_are_answered_the_same_by_the_twins(
    history: list[Call], resource: str
) -> None:
    for calls in by_state(history, resource):
        twin = Twin()
        for call in calls:
            command = command_of(resource, call.key, call.verb, call.cost, call.extra, "twin")

            assert Answered(*twin.run(command, int(call.reply.now))) == call.reply, call  # type: ignore[arg-type]


class Expected(NamedTuple):
    """What the definitions of the limits say of one call."""

    allowed: bool
    retry_after: int
    delay: int
    remaining: list[int]


def decide(models: list[Model], call: Call) -> Expected:
    """Makes `call` on the models: all or nothing."""
    now = int(call.reply.now)
    if call.verb in ("give", "charge"):
        for model in models:
            model.give(now, call.cost, call.extra or now) if call.verb == "give" else model.take(now, call.cost)
        wait = max(model.first_fit(now, 1) - now for model in models)
        return Expected(wait == 0, wait, 0, [model.remaining(now) for model in models])
    delay = max(model.delay(now) for model in models)
    wait = max(model.first_fit(now, call.cost) - now for model in models)
    if call.verb == "take" and call.extra >= 0:
        wait = max(wait, delay - call.extra)
    if call.verb == "take" and wait == 0:
        for model in models:
            model.take(now, call.cost)
    return Expected(wait == 0, wait, delay, [model.remaining(now) for model in models])


@pytest.mark.parametrize("resource", RESOURCES)
def test_the_same_calls_one_after_the_other_are_decided_so_by_the_definitions(
    history: list[Call], resource: str
) -> None:
    for calls in by_state(history, resource):
        models = [model_of(limit) for limit in RESOURCES[resource]]
        for call in calls:
            expected = decide(models, call)

            reply = call.reply
            assert (bool(reply.allowed), reply.retry_after, reply.delay) == expected[:3], call
            assert reply.remaining == expected.remaining[reply.keeper - 1], call
            assert not reply.allowed or reply.remaining == min(expected.remaining), call
