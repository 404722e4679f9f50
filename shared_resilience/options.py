"""The options of a service."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from shared_resilience import validation
from shared_resilience.backends import ON_OUTAGE, OnOutage
from shared_resilience.events import Listener


class Options(TypedDict, total=False):
    """The options of a service; `ResilienceService` says what they mean."""

    prefix: str
    on_outage: OnOutage | None
    expected_workers: int | None
    command_timeout: float
    connect_timeout: float
    sync_interval: float
    worker_id: str | None
    listeners: Iterable[Listener]


class CheckedOptions:
    """Options, complete. Raises `ValueError` for a wrong one and `TypeError` for one that does not exist."""

    def __init__(
        self,
        prefix: str = "sr",
        on_outage: OnOutage | None = None,
        expected_workers: int | None = None,
        command_timeout: float = 0.1,
        connect_timeout: float = 2.0,
        sync_interval: float = 0.1,
        worker_id: str | None = None,
        listeners: Iterable[Listener] = (),
    ) -> None:
        self.prefix = validation.prefix("prefix", prefix)
        if on_outage is not None:
            validation.choice("on_outage", on_outage, ON_OUTAGE)
        if expected_workers is not None:
            validation.count("expected_workers", expected_workers)
        if worker_id is not None:
            validation.text("worker_id", worker_id)
        self.on_outage = on_outage
        self.expected_workers = expected_workers
        self.worker_id = worker_id
        self.command_timeout = validation.number("command_timeout", command_timeout, 0.001, 3600)
        self.connect_timeout = validation.number("connect_timeout", connect_timeout, 0.001, 3600)
        self.sync_interval = validation.number("sync_interval", sync_interval, 0.001, 60)
        self.listeners = tuple(listeners)
