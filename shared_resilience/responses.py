"""What responses of HTTP clients say about trying again, whichever client made them; none is imported.

requests and httpx call the status `status_code`, aiohttp and urllib `status`; their exceptions carry it themselves, or
a response that does. RFC 9110, 10.2.3: `Retry-After` is a number of seconds or a date.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def status_of(outcome: object) -> int | None:
    """The HTTP status of a response or of an exception that tells of one; None if there is none."""
    for one in (outcome, getattr(outcome, "response", None)):
        if one is not None and getattr(one, "headers", None) is not None:
            for name in ("status_code", "status"):
                status = getattr(one, name, None)
                if type(status) is int or (isinstance(status, int) and not isinstance(status, bool)):
                    return int(status)
    return None


def retry_after_of(outcome: object) -> float | None:
    """For how many seconds it asks not to be tried again: its attribute `retry_after`, or the header.

    0 for a time that has passed; None if it asks for nothing, or for nothing that can be understood.
    """
    told = getattr(outcome, "retry_after", None)
    if told is not None:
        return _seconds(str(told))
    for one in (outcome, getattr(outcome, "response", None)):
        headers = getattr(one, "headers", None)
        if headers is None:
            continue
        header = _header(headers, "Retry-After")
        if header is not None:
            seconds = _seconds(header)
            return _until(header, _header(headers, "Date")) if seconds is None else seconds
    return None


def _header(headers: object, name: str) -> str | None:
    get = getattr(headers, "get", None)
    if get is None:
        return None
    for spelling in (name, name.lower()):
        value = get(spelling)
        if isinstance(value, str):
            return value.strip()
    return None


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if seconds >= 0 and not math.isinf(seconds) else None


def _until(date: str, sent_at: str | None) -> float | None:
    """Seconds until `date` by the clock of who sent it, where it says what that shows; else by our own."""
    end = _moment(date)
    if end is None:
        return None
    now = _moment(sent_at) if sent_at is not None else None
    return max(0.0, end - (time.time() if now is None else now))


def _moment(date: str) -> float | None:
    try:
        moment: datetime = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
