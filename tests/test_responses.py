"""What responses and exceptions of HTTP clients say about trying again."""

from __future__ import annotations

import time
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pytest

from shared_resilience import BulkheadFullError, RetryableError
from shared_resilience.responses import retry_after_of, status_of


def requests_like(status: int, **headers: str) -> Any:
    return SimpleNamespace(status_code=status, headers={name.replace("_", "-"): text for name, text in headers.items()})


def aiohttp_like(status: int, **headers: str) -> Any:
    return SimpleNamespace(status=status, headers={name.replace("_", "-"): text for name, text in headers.items()})


class HttpError(Exception):
    """As those of requests and httpx: the response is an attribute."""

    def __init__(self, response: Any) -> None:
        self.response = response


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (requests_like(503), 503),
        (aiohttp_like(429), 429),
        (HttpError(requests_like(404)), 404),
        (HttpError(None), None),
        (OSError("no route"), None),
        (None, None),
        (5, None),
        ({"status": 500}, None),
        (SimpleNamespace(status="active", headers={}), None),
        (SimpleNamespace(status=True, headers={}), None),
        (SimpleNamespace(status=500), None),
    ],
)
def test_a_status_is_found_wherever_a_client_puts_it(outcome: object, status: int | None) -> None:
    assert status_of(outcome) == status


def at(seconds: float) -> str:
    return formatdate(1_800_000_000 + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("outcome", "seconds"),
    [
        (requests_like(429, Retry_After="7"), 7.0),
        (aiohttp_like(503, retry_after=" 1.5 "), 1.5),
        (HttpError(requests_like(429, Retry_After="0")), 0.0),
        (requests_like(503, Retry_After=at(90), Date=at(0)), 90.0),
        (requests_like(503, Retry_After=at(-90), Date=at(0)), 0.0),
        (requests_like(503, Retry_After=at(366 * 86_400), Date=at(0)), 366 * 86_400.0),
        (RetryableError("busy", retry_after=2.5), 2.5),
        (RetryableError("busy"), None),
        (BulkheadFullError("reports", 5, 0.0), 0.0),
        (requests_like(200), None),
        (OSError(), None),
        (None, None),
        *(
            (requests_like(429, Retry_After=malformed), None)
            for malformed in ("", "soon", "-5", "nan", "inf", "1e999", "Wed, 99 Nov 2026 99:00:00 GMT", "12, 13", "٣٤x")
        ),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_clock_of_who_sent_it(outcome: object, seconds: float | None) -> None:
    assert retry_after_of(outcome) == seconds


def test_a_date_without_its_senders_clock_is_measured_by_our_own() -> None:
    response = requests_like(503, Retry_After=formatdate(time.time() + 100, usegmt=True))

    assert retry_after_of(response) == pytest.approx(100, abs=2)


def test_a_senders_clock_that_cannot_be_read_is_none() -> None:
    response = requests_like(503, Retry_After=formatdate(time.time() + 100, usegmt=True), Date="yesterday")

    assert retry_after_of(response) == pytest.approx(100, abs=2)


@pytest.mark.parametrize("headers", [{}, None, [], 5, SimpleNamespace(get=lambda name: b"7")])
def test_headers_that_are_none_say_nothing(headers: object) -> None:
    assert retry_after_of(SimpleNamespace(status_code=429, headers=headers)) is None
