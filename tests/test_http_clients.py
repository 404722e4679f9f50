"""Retries of real calls over HTTP, by the clients that people use: what they raise and return is understood."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import aiohttp
import httpx
import pytest
import requests

from shared_resilience import Jitter, ResilienceService, RetryConfig
from shared_resilience.testing import ManualClock

CONFIG = RetryConfig(3, base_delay=0.25, jitter=Jitter.NONE)


class Upstream(HTTPServer):
    """Answers what it is told, one after the other."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.asked = 0
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Upstream

    def do_GET(self) -> None:
        self.server.asked += 1
        status, headers = self.server.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join(10)
    server.server_close()


def by_requests_raising(url: str) -> int:
    response = requests.get(url, timeout=5)
    response.raise_for_status()
    return response.status_code


def by_httpx_raising(url: str) -> int:
    response = httpx.get(url, timeout=5)
    response.raise_for_status()
    return response.status_code


def by_urllib(url: str) -> int:
    with urllib.request.urlopen(url, timeout=5) as response:
        status: int = response.status
    return status


RAISING: dict[str, Callable[[str], int]] = {
    "requests": by_requests_raising,
    "httpx": by_httpx_raising,
    "urllib": by_urllib,
}
RETURNING: dict[str, Callable[[str], Any]] = {
    "requests": lambda url: requests.get(url, timeout=5),
    "httpx": lambda url: httpx.get(url, timeout=5),
}
TOLD = [(503, {"Retry-After": "7"}), (429, {"Retry-After": "3"}), (500, {}), (200, {})]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def retry(clock: ManualClock) -> Iterator[Any]:
    with ResilienceService.local(clock=clock) as service:
        yield service.get_or_create_retry_manager("upstream", CONFIG)


@pytest.mark.parametrize("client", RAISING)
def test_what_a_client_raises_says_whether_and_when_to_try_again(
    upstream: Upstream, retry: Any, clock: ManualClock, client: str
) -> None:
    upstream.answers, began = list(TOLD), clock.monotonic()

    assert retry.execute_with_retry(RAISING[client], upstream.url) == 200
    assert upstream.asked == 4
    assert clock.monotonic() - began == pytest.approx(7 + 3 + 1.0)


@pytest.mark.parametrize("client", RETURNING)
def test_what_a_client_returns_says_it_too(upstream: Upstream, retry: Any, clock: ManualClock, client: str) -> None:
    upstream.answers, began = list(TOLD), clock.monotonic()

    assert retry.execute_with_retry(RETURNING[client], upstream.url).status_code == 200
    assert clock.monotonic() - began == pytest.approx(7 + 3 + 1.0)


@pytest.mark.parametrize("client", RAISING)
@pytest.mark.parametrize("status", [400, 404, 429])
def test_a_mistake_of_the_client_is_raised_at_once(upstream: Upstream, retry: Any, client: str, status: int) -> None:
    upstream.answers = [(status, {})]

    with pytest.raises(Exception, match=str(status)):
        retry.execute_with_retry(RAISING[client], upstream.url)
    assert upstream.asked == 1


@pytest.mark.parametrize("raising", [True, False])
def test_aiohttp_is_understood_likewise(upstream: Upstream, clock: ManualClock, raising: bool) -> None:
    upstream.answers, began = list(TOLD), clock.monotonic()

    async def fetch(session: aiohttp.ClientSession) -> Any:
        async with session.get(upstream.url) as response:
            if raising:
                response.raise_for_status()
            return response

    async def main() -> int:
        async with ResilienceService.local(clock=clock).aio as service, aiohttp.ClientSession() as session:
            retry = service.get_or_create_retry_manager("upstream", CONFIG)
            return (await retry.execute_with_retry(fetch, session)).status  # type: ignore[no-any-return]

    assert asyncio.run(main()) == 200
    assert clock.monotonic() - began == pytest.approx(7 + 3 + 1.0)
