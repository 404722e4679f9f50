"""Processes for tests: forked from a server that has imported all that they need, so that each begins at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver as _server

forkserver = multiprocessing.get_context("forkserver")
IMPORTED = [
    "crew",
    "crowds",
    "fleets",
    "test_breaker_fleet",
    "test_fleet",
    "test_idempotency_fleet",
    "test_retry_budget",
]
_MARK = "IMPORTED_BY_FORKSERVER"


def _start() -> None:
    """The server finds modules only by the environment in which it begins, whatever `sys.path` is here."""
    before = dict(os.environ)
    os.environ.update({_MARK: "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)})
    try:
        forkserver.set_forkserver_preload(IMPORTED)
        _server.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


if _MARK not in os.environ:  # nor in a child, which the server forks
    _start()
