"""What a fleet costs Redis that only calls through retries and adaptive timeouts: what is told once a second."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.ground import PATIENT, Ground
from benchmarks.rounds import Case, Effort
from benchmarks.rows import CORE, OURS, Row, Target
from shared_resilience import ResilienceService

WORKERS, CALLS = 100, 100
"""So many processes, which each make so many calls a second."""

NAME = "payments"


def measure(ground: Ground, effort: Effort, chosen: Callable[[Case], bool]) -> list[Row]:
    """The share of a core that the server uses while each worker tells what it has to tell in a second."""
    work = f"{WORKERS} workers of {CALLS} calls a second each, retries and adaptive timeout"
    if not chosen(Case(OURS, work, lambda: None)):
        return []
    ground.clear()
    source = random.Random(0)
    with ExitStack() as exits:
        workers = [_worker(ground, number, exits) for number in range(WORKERS)]
        _second(ground, workers, source)  # connects, and loads scripts
        before = ground.cpu_us()
        for _ in range(effort.rounds):
            _second(ground, workers, source)
        used = (ground.cpu_us() - before) / effort.rounds
    return [Row(OURS, work, {CORE: used / 1e6 * 100}, Target(CORE, "≤", 5))]


def _worker(ground: Ground, number: int, exits: ExitStack) -> ResilienceService:
    service = ResilienceService.from_url(
        ground.url, worker_id=f"w{number}", command_timeout=PATIENT, connect_timeout=PATIENT
    )
    exits.callback(service.close)
    return service


def _second(ground: Ground, workers: list[ResilienceService], source: random.Random) -> None:
    """What happens within a second: percentiles are worked out once."""
    ground.client.hdel(f"sr:{{{NAME}}}:latency", "computed_us")
    for service in workers:
        retry, timeout = service.get_or_create_retry_manager(NAME), service.get_or_create_adaptive_timeout(NAME)
        latency: Any = timeout._core
        for _ in range(CALLS):
            retry._core.begin()
            latency.note(source.lognormvariate(math.log(0.08), 0.8))
        timeout.get_stats()
        service.get_comprehensive_stats()  # sends the heartbeat
