"""What a process keeps of the fleet's circuit for an outage, and what it owes afterwards."""

from __future__ import annotations

import pytest

from shared_resilience import CircuitBreakerConfig, ResilienceService
from shared_resilience.backends import step
from shared_resilience.breaker import Breaker
from shared_resilience.circuit_commands import View
from shared_resilience.commands import Argument
from shared_resilience.evidence import Tally, of_the_window, report

OPEN = View(0, 0, "open", "", 7, 12.5, 3.25, 9, 8, 2, ("w1", "w2"), 3, 40.0, 0, 0, "", "redis")


@pytest.fixture
def core() -> Breaker:
    service = ResilienceService.local()
    core = service.get_or_create_circuit_breaker("payments")._core
    step(core.evidence.sync(service._runtime.backends.blocking))
    return core


def test_an_open_circuit_is_kept_with_all_that_is_known_of_it(core: Breaker) -> None:
    core._outage.keep(OPEN)
    alone = core.evidence.gathered_alone()

    assert alone.retry_after == pytest.approx(12.5, abs=0.1)
    assert alone.age == pytest.approx(3.25, abs=0.1)
    rest = ("state", "generation", "calls", "failures", "slow", "workers", "trips", "backoff")
    assert [getattr(alone, field) for field in rest] == [getattr(OPEN, field) for field in rest]


def test_a_half_open_circuit_is_kept_as_one_whose_open_time_is_over(core: Breaker) -> None:
    core._outage.keep(OPEN._replace(state="half_open", retry_after=0.0))
    alone = core.evidence.gathered_alone()

    assert (alone.state, alone.retry_after) == ("open", 0.0)


def test_a_forced_mode_is_kept_as_a_mode(core: Breaker) -> None:
    core._outage.keep(OPEN._replace(mode="forced_open", retry_after=float("inf")))
    alone = core.evidence.gathered_alone()

    assert (alone.state, alone.mode, alone.generation) == ("open", "forced_open", 7)
    assert not core._outage.opened(alone)


def test_a_circuit_is_held_until_its_time_while_the_fleets_does_not_change(core: Breaker) -> None:
    found = OPEN._replace(state="closed", generation=9)
    core._outage.hold(5.0, found)

    assert core._outage.holds(found, 4.9)
    assert not core._outage.holds(found, 5.0)
    others = [found._replace(generation=10), found._replace(state="open"), found._replace(mode="forced_closed")]
    assert not any(core._outage.holds(other, 4.9) for other in others)


def test_only_what_the_present_closed_circuit_would_count_is_owed(core: Breaker) -> None:
    evidence, view = core.evidence, core.evidence.view
    assert view is not None
    evidence.owe((0, 0, 0), view)
    evidence.owe((4, 3, 2), view._replace(state="open"))
    evidence.owe((4, 3, 2), view._replace(generation=view.generation + 1))
    nothing = evidence._owed
    evidence.owe((4, 3, 2), view)
    evidence.owe((1, 1, 1), view)

    assert nothing == (0, 0, 0)
    assert evidence._owed == (5, 4, 3)
    assert evidence.due == float("-inf")


def test_what_is_owed_to_a_circuit_is_owed_to_no_later_one(core: Breaker) -> None:
    evidence, view = core.evidence, core.evidence.view
    assert view is not None
    evidence.owe((4, 0, 0), view)
    untold = evidence.has_untold()
    evidence._take_in(2, view, 0.0)
    still = evidence._owed, evidence.due
    evidence._take_in(3, view._replace(generation=view.generation + 1), 0.0)

    assert untold
    assert still == ((4, 0, 0), 0.0)
    assert evidence._owed == (0, 0, 0)
    assert evidence.due == pytest.approx(0.1)
    assert not evidence.has_untold()


@pytest.mark.parametrize(
    ("later", "field", "back", "owed"),
    [
        (0, "shadow_refused", False, (3, 1, 0)),
        (1, "calls", True, (3, 1, 0)),
        (1, "calls", False, (0, 0, 0)),
        (1, "shadow_refused", True, (0, 0, 0)),
    ],
)
def test_what_is_counted_when_a_view_arrives_is_owed_to_the_same_circuit_or_after_an_outage(
    core: Breaker, later: int, field: str, back: bool, owed: tuple[int, int, int]
) -> None:
    view = core.evidence.view
    assert view is not None
    core.evidence.tally = tally = Tally(view.generation, True, core.monotonic(), field)
    tally.calls, tally.failures = 3, 1
    core.evidence.view = view._replace(generation=view.generation + later)
    core._count_calls_in(core.evidence.view, back)

    assert core.evidence._owed == owed


def test_who_is_alive_already_lives_no_longer_for_telling_of_itself() -> None:
    told: tuple[Argument, ...] = (*CircuitBreakerConfig(min_workers=2).arguments(), "w", 0, 0, 0, 0, 0)
    first = report((None, None, None), 10**15, *told)

    assert [first.ttls[2], report(first.states, 10**15 + 1, *told).ttls[2]] == [5000, None]


def test_what_was_seen_before_the_window_counts_as_a_share_and_what_lies_in_it_in_full() -> None:
    assert of_the_window((40, 20, 8), 20.0, 10.0, 10.0) == (40, 20, 8)
    assert of_the_window((40, 20, 8), 20.0, 10.1, 10.0) == (20, 10, 4)
    some = [of_the_window((1, 1, 1), 40.0, 40.0, 10.0) for _ in range(4000)]

    assert set(some) == {(0, 0, 0), (1, 1, 1)}
    assert 800 < sum(calls for calls, _, _ in some) < 1200
