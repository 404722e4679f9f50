"""The server's clock steps, while the library goes by nothing else."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from measurements import Measured
from servers import PATIENT, Server, binary_of

from shared_resilience import (
    BulkheadConfig,
    CircuitBreakerConfig,
    LeakyBucket,
    ResilienceService,
    SlidingWindow,
    TokenBucket,
)
from shared_resilience.limits import Limit

LIBRARIES = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]
HOUR = 3600
LIMITS: dict[str, Limit] = {
    "token bucket": TokenBucket(50, 50),
    "leaky bucket": LeakyBucket(50, 50),
    "window": SlidingWindow(50, 1.0),
    "window by slots": SlidingWindow(50, 1.0, exact=False),
}


class SteppedServer(Server):
    """A server whose clock can be set while it runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(binary_of("valkey")))
        self._offset = folder / "faketime"
        self.step(0)

    def step(self, seconds: int) -> None:
        """Sets its clock to so many seconds ahead of this machine's."""
        new = self._offset.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n", encoding="ascii")
        new.rename(self._offset)

    def launch(self) -> None:
        here = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        before = dict(os.environ)
        os.environ.update(here)
        try:
            super().launch()
        finally:
            for name in here:
                del os.environ[name]
            os.environ.update({name: before[name] for name in here if name in before})


@pytest.fixture
def stepped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SteppedServer]:
    if request.config.getoption("--lanes") == "fakeredis" or binary_of("valkey") is None or not LIBRARIES:
        pytest.skip("needs a real server and Debian's package faketime")
    with SteppedServer(tmp_path) as server:
        yield server


def ahead(server: Server) -> float:
    with server.client() as admin:
        seconds, microseconds = admin.time()
        return float(seconds + microseconds / 1e6 - time.time())


def granted(limiters: dict[str, Any], seconds: float) -> Counter[str]:
    """How many calls each limit lets pass of who asks all of them as fast as it can."""
    end, found = time.monotonic() + seconds, Counter[str]()
    while time.monotonic() < end:
        found.update(name for name, limiter in limiters.items() if limiter.allow())
    return found


@pytest.mark.fault(
    "the server's clock goes back, or ahead, by an hour, under each kind of limit",
    "back: mints nothing, stalls nothing; ahead: one capacity too many at most",
)
@pytest.mark.parametrize("direction", ["back", "ahead"])
def test_limits(stepped: SteppedServer, prefix: str, measured: Measured, direction: str) -> None:
    with ResilienceService.from_url(stepped.url, prefix=prefix, command_timeout=PATIENT) as service:
        limiters = {
            name: service.get_or_create_rate_limiter(name, limit, remember_refusals=False)
            for name, limit in LIMITS.items()
        }
        granted(limiters, 0.3)  # which uses the first burst up
        stepped.step(-HOUR if direction == "back" else HOUR)
        moved = ahead(stepped)
        began = time.monotonic()
        found = granted(limiters, 2.5)
        usual = 50 * (time.monotonic() - began)
        last = granted(limiters, 1.2)

    measured(", ".join(f"{name} {number}" for name, number in found.items()) + f", where {usual:.0f} are usual")
    assert abs(moved) == pytest.approx(HOUR, abs=5)
    for name in LIMITS:
        assert found[name] <= usual + 50 + 2
        assert found[name] >= usual - 50 - 10  # what was taken counts from the new time on: one window, or none
        assert last[name] >= 30


@pytest.mark.fault("the clock goes back by an hour under a slot whose holder dies", "free after its lease, no later")
def test_a_slot(stepped: SteppedServer, prefix: str, measured: Measured) -> None:
    config = BulkheadConfig(1, lease=1.0, timeout=5.0)
    dead = ResilienceService.from_url(stepped.url, prefix=prefix, command_timeout=PATIENT, worker_id="dead")
    with ResilienceService.from_url(stepped.url, prefix=prefix, command_timeout=PATIENT) as service:
        guard = dead.get_or_create_bulkhead("payments", config).guard()
        guard.__enter__()
        backend: Any = dead._runtime.backends.blocking
        backend._attendant.stop()  # from now on nobody renews
        stepped.step(-HOUR)
        began = time.monotonic()
        with service.get_or_create_bulkhead("payments", config).guard():
            waited = time.monotonic() - began

    measured(f"after {waited:.1f} s, of a lease of 1.0 s")
    assert waited < 1.0 + 2.5


@pytest.mark.fault("the clock goes back by an hour while a circuit is open", "probes begin when its open time is over")
def test_an_open_circuit(stepped: SteppedServer, prefix: str, measured: Measured) -> None:
    config = CircuitBreakerConfig(failure_threshold=1, timeout_seconds=1.0, jitter=0.0, success_threshold=1)
    with ResilienceService.from_url(stepped.url, prefix=prefix, command_timeout=PATIENT) as service:
        breaker = service.get_or_create_circuit_breaker("payments", config)
        with pytest.raises(ConnectionError):
            breaker.call(_fails)
        stepped.step(-HOUR)
        began = time.monotonic()
        tries = _until(lambda: breaker.call(len, "probe") == 5)
        seconds = time.monotonic() - began

    measured(f"closed {seconds:.1f} s after it opened, of an open time of 1.0 s; {tries:,} calls refused")
    assert seconds < 2.5
    assert tries > 10


def _fails() -> None:
    raise ConnectionError("the upstream hung up")


def _until(call: Callable[[], bool]) -> int:
    """How often `call` was refused before it was made."""
    tries, end = 0, time.monotonic() + 10
    while time.monotonic() < end:
        try:
            assert call()
        except Exception:
            tries += 1
            time.sleep(0.005)  # a caller has other things to do, too
        else:
            return tries
    raise AssertionError("the circuit has not closed")
