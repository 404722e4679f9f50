"""What is held against a mutant of the scripts: the tests that run scripts, called in this process on one server."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import redis
import test_breaker_forms
import test_breaker_sharing
import test_circuit_breaker
import test_circuit_twin
import test_fleet_list
import test_heartbeat
import test_latency
import test_leaky_bucket
import test_limits_twin
import test_records_twin
import test_retry_budget
import test_scripts
import test_sliding_window
import test_slots_twin
import test_token_bucket
from conftest import Lane
from servers import Server, binary_of
from test_limits_twin import FAMILIES, Both, moves

from shared_resilience import scripts
from shared_resilience.commands import Operation

MODULES = [test_scripts, test_heartbeat, test_token_bucket, test_sliding_window, test_leaky_bucket, test_limits_twin]
MODULES += [test_circuit_twin, test_circuit_breaker, test_breaker_sharing, test_breaker_forms, test_slots_twin]
MODULES += [test_retry_budget, test_latency, test_fleet_list, test_records_twin]
FIXTURES = {"store", "prefix", "lane"}
REPLACED = {
    "test_the_composed_scripts_are_the_pinned_ones",  # any change fails it, whatever the change does
    "test_script_and_twin_agree_over_a_hundred_thousand_random_steps",  # here as a check for each batch
    "test_scripts_and_twins_agree_over_forty_thousand_random_steps",  # likewise
    "test_script_and_twin_agree_over_twenty_thousand_random_steps",  # likewise
    "test_script_and_twin_agree_over_four_thousand_random_steps",  # likewise
    "test_scripts_and_twins_of_claims_agree_over_twenty_thousand_steps",  # likewise
    "test_scripts_and_twins_of_caches_agree_over_twenty_thousand_steps",  # likewise
    "test_the_random_histories_visit_every_state_and_every_transition",  # says nothing of the scripts
    "test_failures_of_many_tasks_share_their_reports_and_none_is_lost",  # needs a client for asyncio
    "test_script_and_twin_agree_on_what_hypothesis_thinks_up",  # chance, and slow to say no
}
BATCHES, BATCH = 40, 250
PATIENCE = 3.0
_prefixes = itertools.count()


class Check(NamedTuple):
    """A test, called with its arguments; it raises when it fails. `scripts` are those that it runs."""

    name: str
    run: Callable[[], object]
    scripts: frozenset[str]


class Place:
    """The server on which mutants run, and the scripts that it is sent instead of the real ones."""

    def __init__(self) -> None:
        self.server = Server(str(binary_of("valkey"))).start()
        self.pool = redis.ConnectionPool(
            port=self.server.port, protocol=2, socket_timeout=PATIENCE, max_connections=5000
        )  # what a test leaves open is closed when it is collected
        self.lane = Lane(self.pool, lambda: NotImplemented)
        self.sent = {name: scripts.load(name) for name in scripts.names()}
        self.asked: set[str] = set()

    def take_over(self) -> None:
        """From now on every operation of this process runs the scripts of `sent`."""

        def loaded(operation: Operation[Any]) -> scripts.Script:
            self.asked.add(operation.script)
            return self.sent[operation.script]

        # The operations of this process were made before there was a mutant.
        Operation.loaded = property(loaded, lambda operation, script: None)  # type: ignore[assignment, misc]

    def send(self, composed: dict[str, scripts.Script]) -> None:
        """Makes `composed` the scripts that run. Raises `redis.ResponseError` for one that does not compile."""
        self.sent = composed
        self.lane.client.flushall()
        self.lane.client.script_flush()
        self._load()

    def _load(self) -> None:
        for script in self.sent.values():
            self.lane.client.script_load(script.text)

    def run(self, test: Callable[[], object]) -> None:
        """Runs `test`, with all scripts known: the test before may have made the server forget them."""
        self._load()
        test()

    def heal(self) -> None:
        """Starts the server anew if a script keeps it busy."""
        self.pool.disconnect()
        try:
            self.lane.client.ping()
        except redis.RedisError:
            self.server.kill()
            self.server.start()
            self.pool.disconnect()

    def close(self) -> None:
        self.pool.disconnect()
        self.server.__exit__(None, None, None)


def checks(place: Place) -> list[Check]:
    """All evidence, each piece tried once on the scripts as they are."""
    found = []
    for name, run in [*_tests(place.lane), *_histories(place.lane)]:
        place.asked.clear()
        place.run(run)
        found.append(Check(name, run, frozenset(place.asked)))
    return found


def _histories(lane: Lane) -> Iterator[tuple[str, Callable[[], object]]]:
    """The random histories of the twins' test, with the twins' part done once for all mutants."""
    for seed in range(BATCHES):
        for family in FAMILIES:
            both = Both(lane, FAMILIES[family])
            both.foresee(list(moves(seed, BATCH, len(FAMILIES[family]))))
            yield f"history {family} {seed}", both.compare
        for circuits in test_circuit_twin.FAMILIES:
            history = test_circuit_twin.History(lane, circuits, seed).foresee(BATCH)
            yield f"history {circuits} {seed}", history.compare
        yield f"history retry_budget {seed}", test_retry_budget.history(lane, seed).compare
        yield f"history latency {seed}", test_latency.history(lane, seed).compare
        yield f"history claims {seed}", test_records_twin.claims(lane, seed).compare
        yield f"history caches {seed}", test_records_twin.caches(lane, seed).compare
        yield f"history slots {seed}", test_slots_twin.History(lane, seed).foresee(BATCH).compare


def _tests(lane: Lane) -> Iterator[tuple[str, Callable[[], object]]]:
    for module in MODULES:
        for name, test in _tests_of(module):
            for arguments in _cases(test):
                shown = " ".join(map(str, arguments.values()))
                yield f"{name} {shown}".strip(), _called(test, lane, arguments)


def _tests_of(module: ModuleType) -> Iterator[tuple[str, Callable[..., object]]]:
    """The tests that need a store, and nothing that only pytest could give."""
    for name, test in vars(module).items():
        if not name.startswith("test_") or name in REPLACED or not callable(test):
            continue
        asked = set(inspect.signature(test).parameters)
        told = {argument for arguments in _cases(test) for argument in arguments}
        if "store" in asked and asked - told <= FIXTURES:
            yield name, test


def _called(test: Callable[..., object], lane: Lane, arguments: dict[str, Any]) -> Callable[[], object]:
    asked = set(inspect.signature(test).parameters)

    def run() -> object:
        given = {"store": lane, "lane": "valkey", "prefix": f"m{next(_prefixes)}", **arguments}
        return test(**{name: given[name] for name in asked})

    return run


def _cases(test: Callable[..., object]) -> list[dict[str, Any]]:
    """The arguments that `pytest.mark.parametrize` gives the test, case by case."""
    cases: list[dict[str, Any]] = [{}]
    for mark in (mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"):
        names = mark.args[0].split(", ") if isinstance(mark.args[0], str) else list(mark.args[0])
        values = [value if len(names) > 1 else (value,) for value in mark.args[1]]
        cases = [{**case, **dict(zip(names, value, strict=True))} for case in cases for value in values]
    return cases
