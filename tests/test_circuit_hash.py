"""What the twin of the circuit makes of a hash that somebody wrote by hand."""

from __future__ import annotations

from typing import Any

import pytest

from shared_resilience import CircuitBreakerConfig
from shared_resilience.circuit import Circuit, probe, settle
from shared_resilience.commands import Argument
from shared_resilience.evidence import report
from shared_resilience.overrides import Overrides

NOW = 10**15
TOLD: tuple[Argument, ...] = CircuitBreakerConfig(failure_threshold=100).arguments()
CLOSED = {"state": "closed", "generation": "7"}


def circuit(**fields: str) -> Circuit:
    return Circuit(fields, NOW, Overrides(None), TOLD)


def told(fields: dict[str, str], worker: str, failures: int = 1) -> Any:
    """The hash after `worker` has told of failures."""
    step = report((None, fields, None), NOW, *TOLD, worker, 7, failures, failures, 0, 0)
    return step.states[1]


def test_a_mode_that_is_none_is_no_mode() -> None:
    assert (circuit(**CLOSED, mode="ajar").mode, circuit(**CLOSED, mode="ajar").state) == ("", "closed")


@pytest.mark.parametrize("state", ["closed", "half_open", "ajar"])
def test_a_forced_mode_tells_the_state_whatever_stands_there(state: str) -> None:
    it = circuit(state=state, generation="7", mode="forced_open")

    assert (it.mode, it.state) == ("forced_open", "open")


def test_a_forced_mode_alone_begins_a_circuit_of_its_own() -> None:
    it = circuit(mode="forced_open")

    assert (it.mode, it.state, it.generation) == ("forced_open", "open", NOW)


@pytest.mark.parametrize("lease", ["soon", "", "5", "+5", "5+"])
def test_a_probe_whose_lease_cannot_be_read_is_none(lease: str) -> None:
    it = circuit(state="half_open", generation="7", **{"probe.t": lease})

    assert (it.leases, it.stale) == (0, ["probe.t"])


@pytest.mark.parametrize(("marked", "kept"), [(15, True), (16, False)])
def test_of_so_many_workers_is_kept_who_failed(marked: int, kept: bool) -> None:
    fields = {**CLOSED, **{f"worker.{number}": str(NOW) for number in range(marked)}}

    assert ("worker.new" in told(fields, "new")) is kept


def test_what_is_stale_goes_together_with_workers_whose_failures_are_long_over() -> None:
    workers = {f"worker.{number}": "1" for number in range(16)}
    left = told({**CLOSED, "failures.1.1": "3", **workers}, "new")

    assert {field for field in left if field.startswith(("worker.", "failures.1."))} == {"worker.new"}


def test_what_is_stale_goes_with_a_probe_that_is_lent() -> None:
    fields = {"state": "half_open", "generation": "7", "probe.old": "1+1", "probe.older": "0+1"}
    step = probe((None, fields), NOW, *TOLD, "new")
    left: Any = step.states[1]

    assert [field for field in left if field.startswith("probe.")] == ["probe.new"]


def test_a_circuit_that_recovers_keeps_nothing_of_its_opening() -> None:
    opening = {"trips": "2", "backoff_us": "5", "evidence_calls": "9", "evidence_workers": "w", "successes": "2"}
    fields = {"state": "half_open", "generation": "7", "probe.t": f"{NOW}+5", **opening}
    step = settle((None, fields), NOW, *TOLD, "w", "t", 7, "success", 0)

    assert step.states[1] == {"state": "closed", "generation": str(NOW)}
    assert step.reply[7:13] == (0, 0, 0, "", 0, 0)
