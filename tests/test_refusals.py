"""What a process remembers of refusals."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest

from shared_resilience import Decision, refusals
from shared_resilience.limit_commands import Answer
from shared_resilience.refusals import Refusals


def refused(retry_after: float, reset_after: float = 9.0) -> Decision:
    return Decision(False, 10, 3, retry_after, reset_after, 0.0, "token_bucket", "redis")


@pytest.fixture
def memory() -> Refusals:
    memory = Refusals()
    memory.add("k", 5, 2.0, 0, refused(0.5), 100.0)
    return memory


@pytest.mark.parametrize(("now", "left", "reset"), [(100.0, 0.5, 9.0), (100.25, 0.25, 8.75)])
def test_a_refusal_counts_down(memory: Refusals, now: float, left: float, reset: float) -> None:
    assert memory.find("k", 5, 2.0, 0, now) == refused(left, reset)


def test_a_refusal_is_forgotten_when_its_time_is_over(memory: Refusals) -> None:
    assert memory.find("k", 5, 2.0, 0, 100.5) is None
    assert memory.find("k", 5, 2.0, 0, 100.0) is None


@pytest.mark.parametrize("retry_after", [1.0, 60.0, math.inf])
def test_a_long_refusal_is_remembered_for_a_second(memory: Refusals, retry_after: float) -> None:
    memory.add("k", 5, 2.0, 0, refused(retry_after), 200.0)

    assert memory.find("k", 5, 2.0, 0, 200.99) is not None
    assert memory.find("k", 5, 2.0, 0, 201.0) is None


def test_what_is_left_until_the_reset_is_never_negative(memory: Refusals) -> None:
    memory.add("k", 5, 2.0, 0, refused(0.5, 0.1), 100.0)

    assert memory.find("k", 5, 2.0, 0, 100.25) == refused(0.25, 0.0)


@pytest.mark.parametrize(
    ("cost", "max_delay", "held_back", "exact", "known"),
    [
        (5, 2.0, 3, False, True),
        (6, 1.0, 4, False, True),
        (4, 2.0, 3, False, False),
        (5, 2.1, 3, False, False),
        (5, 2.0, 2, False, False),
        (5, 2.0, 3, True, True),
        (6, 2.0, 3, True, False),
        (5, 1.0, 3, True, False),
        (5, 2.0, 4, True, False),
    ],
)
def test_a_refusal_answers_for_larger_costs_shorter_delays_and_calls_that_are_no_more_important(
    cost: int, max_delay: float, held_back: int, exact: bool, known: bool
) -> None:
    memory = Refusals()
    memory.add("k", 5, 2.0, 3, refused(0.5), 100.0)

    assert (memory.find("k", cost, max_delay, held_back, 100.0, exact) is not None) is known


def test_a_refusal_answers_for_larger_costs_unless_it_must_be_exact(memory: Refusals) -> None:
    assert memory.find("k", 6, 2.0, 0, 100.0) == refused(0.5)


@pytest.mark.parametrize(("passed", "left"), [(0.25, 0.5), (0.875, 0.0)])
def test_the_delay_of_a_refusal_counts_down(memory: Refusals, passed: float, left: float) -> None:
    memory.add("k", 5, 2.0, 0, refused(0.9)._replace(delay=0.75), 100.0)
    known = memory.find("k", 5, 2.0, 0, 100.0 + passed)

    assert known is not None
    assert known.delay == left


def test_two_threads_may_find_at_once_that_the_time_of_a_refusal_is_over(memory: Refusals) -> None:
    class Forgotten(OrderedDict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            return self.pop(key, default)  # as the other thread is quicker

    memory._by_key = Forgotten(memory._by_key)

    assert memory.find("k", 5, 2.0, 0, 100.5) is None


def test_refusals_are_forgotten_one_by_one_or_together(memory: Refusals) -> None:
    memory.add("other", 1, 0.0, 0, refused(0.5), 100.0)
    memory.forget("k")
    memory.forget("k")

    assert memory.find("k", 5, 2.0, 0, 100.0) is None
    assert memory.find("other", 1, 0.0, 0, 100.0) is not None
    memory.clear()
    assert memory.find("other", 1, 0.0, 0, 100.0) is None


def test_the_oldest_of_too_many_refusals_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MOST_KEYS", 3)
    memory = Refusals()
    for number in range(4):
        memory.add(number, 1, 0.0, 0, refused(0.5), 100.0)

    assert [memory.find(number, 1, 0.0, 0, 100.0) is not None for number in range(4)] == [False, True, True, True]


def test_an_answer_of_this_process_has_a_decision_and_nothing_else() -> None:
    answer = Answer(refused(0.5))

    assert (answer.decision, answer.decided_us, answer.ignored) == (refused(0.5), 0, "")
