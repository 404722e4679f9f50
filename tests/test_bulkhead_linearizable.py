"""What many processes did at once with one bulkhead is what one process could have done, one call after the other."""

from __future__ import annotations

import random
import time
from collections import Counter
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import pytest
from processes import forkserver
from servers import Server
from test_linearizable import assert_in_real_time, numbered

from shared_resilience import BulkheadConfig, PriorityLevel
from shared_resilience.backends import step
from shared_resilience.backends.clients import OwnClients
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.bulkhead_commands import BulkheadCommands, Call
from shared_resilience.commands import Arguments, Command, Operation, State
from shared_resilience.keys import ResourceKeys

PROCESSES, CALLS = 5, 500
CONFIG = BulkheadConfig(3, 6, reserved={PriorityLevel.CRITICAL: 0.3})
COMMANDS = BulkheadCommands(ResourceKeys("linear", "slots"), CONFIG, lambda: 0)


class Done(NamedTuple):
    """One command as its process saw it."""

    asked: float
    answered: float
    script: str
    args: Arguments
    reply: list[Any]
    now: int
    order: int


class Process:
    """Asks as fast as it can, in the name of a few calls, and notes what it sees."""

    def __init__(self, url: str, number: int) -> None:
        self._store = RedisStore(PoolWire(OwnClients(url, 5, 5).pool(), 5, theirs=False))
        self._source = random.Random(number)
        self._number = number
        self._operations: dict[str, Operation[Any]] = {}
        self._inside: list[str] = []
        self._waiting: dict[str, tuple[PriorityLevel, int]] = {}
        self.log: list[Done] = []

    def act(self) -> None:
        source, kind = self._source, self._source.random()
        if kind < 0.35 or not (self._inside or self._waiting):
            self._ask(f"w{self._number}:{len(self.log)}:1000", source.choice(list(PriorityLevel)), None)
        elif kind < 0.5 and self._waiting:
            token = source.choice(list(self._waiting))
            self._ask(token, *self._waiting.pop(token))
        elif kind < 0.9 and self._inside:
            self._run(COMMANDS.leave(self._inside.pop(source.randrange(len(self._inside)))))
        elif kind < 0.95 and self._waiting:
            token = source.choice(list(self._waiting))
            del self._waiting[token]
            self._run(COMMANDS.leave(token))
        else:
            pairs = [("renew", token) for token in self._inside] + [("wait", token) for token in self._waiting]
            self._run(COMMANDS.upkeep([text for pair in pairs for text in pair]))

    def _ask(self, token: str, priority: PriorityLevel, place: int | None) -> None:
        call = Call(token, priority, may_wait=self._source.random() < 0.8 or place is not None, place=place)
        state, place, *_ = self._run(COMMANDS.enter(call))
        if state == "inside":
            self._inside.append(token)
        elif state == "waiting":
            self._waiting[token] = priority, place

    def _run(self, command: Command[Any]) -> list[Any]:
        script = command.operation.script
        operation = self._operations.setdefault(script, numbered(command.operation, "linear:{slots}:order"))
        asked = time.monotonic()
        *found, now, order = step(self._store.execute(Command(operation, command.keys, command.args)))
        reply = [item.decode() if isinstance(item, bytes) else item for item in found]
        self.log.append(Done(asked, time.monotonic(), script, command.args, reply, int(now), int(order)))
        return reply


def act(url: str, number: int, start: Any, out: Connection) -> None:
    process = Process(url, number)
    start.wait(60)
    for _ in range(CALLS):
        process.act()
    out.send(process.log)


@pytest.fixture(scope="module")
def history(server: Server) -> list[Done]:
    """What all processes did, in the order in which Redis decided it."""
    with server.client() as client:
        client.delete(*COMMANDS.keys, "linear:{slots}:order")
    start, pipes, processes = forkserver.Barrier(PROCESSES), [], []
    for number in range(PROCESSES):
        receiver, sender = forkserver.Pipe(duplex=False)
        process = forkserver.Process(target=act, args=(server.url, number, start, sender))
        process.start()
        pipes.append(receiver)
        processes.append(process)
    logs = [receiver.recv() for receiver in pipes if receiver.poll(60)]
    for process in processes:
        process.join(10)
    assert len(logs) == PROCESSES
    return sorted((done for log in logs for done in log), key=lambda done: done.order)


def test_every_command_ran_exactly_once_in_an_order_that_agrees_with_real_time(history: list[Done]) -> None:
    assert [done.order for done in history] == list(range(1, PROCESSES * CALLS + 1))
    assert_in_real_time(history)


def test_the_history_is_one_that_can_go_wrong(history: list[Done]) -> None:
    states = Counter(done.reply[0] for done in history if done.script == "bulkhead_enter")
    scripts = Counter(done.script for done in history)
    told = sum(bool(done.reply[1]) for done in history if done.script == "bulkhead_leave")
    overlapping = sum(later.asked < earlier.answered for earlier, later in pairwise(history))

    assert min(states[state] for state in ("inside", "waiting", "full")) > 50
    assert scripts["bulkhead_upkeep"] > 20
    assert told > 50
    assert overlapping > len(history) / 3


def test_the_same_commands_one_after_the_other_are_answered_the_same_by_the_twins(history: list[Done]) -> None:
    operations: dict[str, Command[Any]] = {
        "bulkhead_enter": COMMANDS.enter(Call("t", PriorityLevel.NORMAL, True, None)),
        "bulkhead_leave": COMMANDS.leave("t"),
        "bulkhead_upkeep": COMMANDS.upkeep(()),
    }
    states: dict[str, State] = {}
    for done in history:
        like = operations[done.script]
        outcome = like.operation.twin(tuple(map(states.get, like.keys)), done.now, *done.args)
        states.update(zip(like.keys, outcome.states, strict=True))
        assert list(outcome.reply) == done.reply, done


def test_never_were_more_inside_than_there_are_slots(history: list[Done]) -> None:
    inside: dict[str, int] = {}
    for done in history:
        token = str(done.args[0])
        if done.script == "bulkhead_leave":
            inside.pop(token, None)
        elif done.script == "bulkhead_enter" and done.reply[0] == "inside":
            inside[token] = done.now + 1_000_000
        elif done.script == "bulkhead_upkeep":
            for verb, renewed in zip(done.args[3::2], done.args[4::2], strict=True):
                if verb == "renew" and renewed not in done.reply[3:]:
                    inside[str(renewed)] = done.now + 1_000_000
        assert sum(end > done.now for end in inside.values()) <= CONFIG.max_concurrent_calls
