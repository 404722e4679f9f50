"""Processes in one bulkhead, of which one after the other is killed or stands still for longer than its lease."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from crowds import Crowd, Stay, longest_without_newcomer, most_at_once, until_crowd_is

from benchmarks.ground import Ground
from shared_resilience import BulkheadConfig

CONFIG = BulkheadConfig(5, lease=1)
LONGEST_STAY = 0.5
RETURNS_WITHIN = CONFIG.lease + 1.0 + 1.5
"""Seconds: the lease, until a waiter looks, and what a busy machine may take besides."""

GOES_ON_WITHIN = 2 * (2.0 + 1.0) + 1.5
"""The same where the first of the queue was killed, who is thought dead two seconds after its last sign of life, and
then the next one too."""


class Course(NamedTuple):
    """How it went: in words, and what was wrong."""

    words: str
    wrong: list[str]


def run(ours: Ground, seconds: float) -> Course:
    """Eight processes come and go for so long."""
    with tempfile.TemporaryDirectory() as folder, ours.service() as service:
        crowd = Crowd(ours.url, "sr", CONFIG, Path(folder), LONGEST_STAY)
        try:
            done = crowd.disturb(seconds, CONFIG.lease, paused=0.2)
        finally:
            crowd.end()
        stays = crowd.stays()
        wrong = _wrong(stays)
        try:
            until_crowd_is(service.get_or_create_bulkhead("payments", CONFIG), 0, 0, RETURNS_WITHIN)
        except AssertionError as error:
            wrong.append(f"after all were killed: {error}")
    held, lost = [stay for stay in stays if not stay.lost], sum(stay.lost for stay in stays)
    words = (
        f"{len(stays):,} stays in {seconds:.0f} s, {done['killed']} processes killed and {done['paused']} stopped: "
        f"at most {most_at_once(held)} inside with a lease, {most_at_once(stays)} with the {lost} that had lost it; "
        f"the next went in after {longest_without_newcomer(stays):.1f} s at most"
    )
    return Course(words, wrong)


def _wrong(stays: list[Stay]) -> list[str]:
    wrong = []
    if (most := most_at_once(stay for stay in stays if not stay.lost)) != CONFIG.max_concurrent_calls:
        wrong.append(f"{most} were inside at once, but {CONFIG.max_concurrent_calls} is right")
    if (longest := longest_without_newcomer(stays)) > GOES_ON_WITHIN:
        wrong.append(f"nobody went in for {longest:.1f} s, but {GOES_ON_WITHIN} s is the bound")
    return wrong
