"""The example API over real HTTP: three worker processes that share everything, and answers that are true."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import Server, free_port, poll

WORKERS = 3
HEARD_WITHIN = 1.1
"""Seconds after which a worker asks anew how the circuit is."""

PROJECT = Path(__file__).parent.parent
_numbers = itertools.count()


@pytest.fixture(scope="module")
def url(server: Server) -> Iterator[str]:
    """Where the API is."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo_api", "--port", str(port), "--workers", str(WORKERS)],
        cwd=PROJECT,
        env={**os.environ, "REDIS_URL": f"redis://127.0.0.1:{server.port}/5", "PYTHONPATH": str(PROJECT)},
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/api/resilience"

    def all_workers() -> bool:
        with suppress(httpx.TransportError):
            return len(httpx.get(f"{url}/health").json()["workers"]) == WORKERS
        return False

    try:
        poll(all_workers, "the workers", 60)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Client:
    """A client of its own, whose limit nobody else has used; each request on a connection of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"client-{next(_numbers)}"

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"X-Client": self.name, **options.pop("headers", {})}
        return httpx.request(method, f"{self.url}/{path}", headers=headers, timeout=30, **options)

    def pay(self, key: str | None = None, simulate: str = "ok", amount: int = 3, order: str = "7") -> httpx.Response:
        """Pays with an idempotency key that is new unless it is given."""
        headers = {"Idempotency-Key": key or f"key-{next(_numbers)}"}
        body = {"order_id": order, "amount": amount, "simulate": simulate}
        return self.ask("POST", "protected-endpoint", headers=headers, json=body)


def modes(url: str) -> set[str | None]:
    """In which modes payments of somebody new are answered, by workers as chance has it."""
    somebody = Client(url)
    return {somebody.pay().headers.get("X-Degraded-Mode") for _ in range(6)}


@pytest.fixture
def client(url: str) -> Client:
    """Somebody new, after all workers have heard that the circuit is closed."""
    somebody = Client(url)
    somebody.pay()
    was_open = somebody.ask("GET", "stats/circuit_breaker/payments").json()["state"] != "closed"
    assert somebody.ask("POST", "reset/circuit_breaker/payments").status_code == 200
    if was_open:  # which a worker that chance passes over now still believes, until it asks anew
        heard = time.monotonic() + HEARD_WITHIN
        poll(lambda: time.monotonic() > heard, "the time to be over")
    poll(lambda: modes(url) == {None}, "all workers to hear of the reset")
    return Client(url)


def test_a_payment_is_made(client: Client) -> None:
    response = client.pay()

    assert response.status_code == 200
    assert (response.json()["state"], response.json()["by"]) == ("paid", "bank")
    assert "X-Degraded-Mode" not in response.headers


def test_workers_share_the_limit_and_the_headers_are_true(client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: client.ask("GET", "simple-protected"), range(40)))
    passed = [one for one in responses if one.status_code == 200]
    refused = [one for one in responses if one.status_code == 429]

    assert len(passed) + len(refused) == 40
    assert 20 <= len(passed) <= 20 + 5 * 3  # the burst, and what drips in during the seconds that a busy machine takes
    assert refused
    assert {one.headers["RateLimit-Limit"] for one in responses} == {"20"}
    assert all(0 <= int(one.headers["RateLimit-Remaining"]) < 20 for one in passed)
    for one in refused:
        assert one.headers["content-type"] == "application/problem+json"
        assert one.headers["RateLimit-Remaining"] == "0"
        assert one.headers["Retry-After"] == "1"  # five a second come back


def test_several_workers_answer(client: Client) -> None:
    found = set[int]()

    def more() -> bool:
        found.add(client.pay().json().get("worker", 0))
        return len(found - {0}) >= 2

    poll(more, "a second worker", 30)


def test_a_key_is_paid_once_and_other_payments_under_it_are_told_so(client: Client) -> None:
    first, again, other = client.pay("once"), client.pay("once"), client.pay("once", amount=4)

    assert first.status_code == again.status_code == 200
    assert {**first.json(), "worker": 0} == {**again.json(), "worker": 0}
    assert other.status_code == 422
    poll(
        lambda: client.ask("GET", "stats/idempotency/payments").json()["fleet"].get("idempotency.replayed"),
        "the count of the replay",
    )


def test_a_bank_that_is_down_is_replaced_and_the_answer_says_so(client: Client) -> None:
    second, nobody = client.pay(simulate="bank_down"), client.pay(simulate="all_down")

    assert (second.status_code, second.headers["X-Degraded-Mode"]) == (200, "backup_service")
    assert second.json()["by"] == "second bank"
    assert (nobody.status_code, nobody.headers["X-Degraded-Mode"]) == (202, "default")
    assert nobody.json()["state"] == "accepted"


def test_a_payment_that_the_bank_refuses_is_no_failure_of_the_bank(client: Client) -> None:
    responses = [client.pay(simulate="rejected") for _ in range(8)]

    assert {one.status_code for one in responses} == {402}
    assert client.ask("GET", "stats/circuit_breaker/payments").json()["state"] == "closed"


def test_a_bank_that_is_slow_is_given_up(client: Client) -> None:
    response = client.pay(simulate="slow")

    assert (response.status_code, response.headers["X-Degraded-Mode"]) == (200, "backup_service")
    assert response.elapsed.total_seconds() < 5.0 + 2.0  # the deadline, and a busy machine


def test_an_open_circuit_stops_all_workers_until_it_is_reset(client: Client) -> None:
    for _ in range(4):
        client.pay(simulate="bank_down")
    poll(lambda: modes(client.url) == {"backup_service"}, "all workers to hear of it")
    stats = client.ask("GET", "stats/circuit_breakers/payments").json()
    reset = client.ask("POST", "reset/circuit_breakers/payments")

    assert (stats["state"], stats["failures"] >= 5) == ("open", True)
    assert (reset.status_code, reset.json()) == (200, {"reset": "circuit_breakers/payments"})
    poll(lambda: modes(client.url) == {None}, "all workers to hear of the reset")


def test_a_reset_resets_a_limit(client: Client) -> None:
    def refused() -> bool:
        return client.ask("GET", "simple-protected").status_code == 429

    poll(refused, "the limit")
    assert client.ask("POST", "reset/rate_limiter/greetings").status_code == 200

    def passes() -> bool:
        return client.ask("GET", "simple-protected").status_code == 200

    poll(passes, "the limit to be as if unused", 1.0)
    assert int(client.ask("GET", "simple-protected").headers["RateLimit-Remaining"]) >= 15


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"{", {"Idempotency-Key": "a"}, 400, "the body is no JSON"),
        (b"\xff", {"Idempotency-Key": "a"}, 400, "the body is no JSON"),
        (b"{}", {}, 400, "Idempotency-Key is missing"),
        (b"[]", {"Idempotency-Key": "a"}, 422, "must be an object"),
        (b'{"amount": 3}', {"Idempotency-Key": "a"}, 422, "order_id must be a text"),
        (b'{"order_id": "7", "amount": -3}', {"Idempotency-Key": "a"}, 422, "amount must be an integer from 1"),
        (b'{"order_id": "7", "amount": 3, "simulate": "x"}', {"Idempotency-Key": "a"}, 422, "simulate must be one of"),
    ],
)
def test_what_is_wrong_with_a_request_is_its_own_fault(
    client: Client, body: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    response = client.ask("POST", "protected-endpoint", content=body, headers=headers)

    assert response.status_code == status
    assert said in response.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "stats/circuit_breaker/nobody", 404),
        ("GET", "stats/timestamp/x", 404),
        ("POST", "reset/bulkhead/nobody", 404),
        ("POST", "reset/bulkhead/payments", 422),
        ("GET", "health?type=dead", 400),
        ("GET", "protected-endpoint", 405),
        ("POST", "simple-protected", 405),
    ],
)
def test_what_there_is_not_is_told(client: Client, method: str, path: str, status: int) -> None:
    client.pay()
    assert client.ask(method, path).status_code == status


def test_health_is_real(client: Client) -> None:
    response = client.ask("GET", "health?type=deep")
    found = response.json()

    assert (response.status_code, found["status"], found["healthy"]) == (200, "up", True)
    assert set(found["checks"]) == {"banks", "store"}
    assert len({worker["pid"] for worker in found["workers"]}) == WORKERS
    assert {worker["health"] for worker in found["workers"]} == {"up"}


def test_statistics_are_live(client: Client) -> None:
    def paid() -> int:
        fleet = client.ask("GET", "stats").json()["rate_limiters"]["payments"]["fleet"]
        allowed: int = fleet["limit.allowed"]
        return allowed

    client.pay()
    poll(lambda: client.ask("GET", "stats").json()["rate_limiters"].get("payments", {}).get("fleet"), "a heartbeat")
    before = paid()
    client.pay()
    poll(lambda: paid() > before, "the count")
