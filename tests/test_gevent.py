"""Under gevent, which must patch the standard library before anything of ours is imported: in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from servers import Server

pytest.importorskip("gevent")

PROGRAM = """
from gevent import monkey

monkey.patch_all()

import os
import signal
import sys
import time

import gevent

from shared_resilience import ResilienceService, TokenBucket

url, prefix, server = sys.argv[1], sys.argv[2], int(sys.argv[3])
service = ResilienceService.from_url(url, prefix=prefix, command_timeout=0.3)
limiter = service.get_or_create_rate_limiter("search", TokenBucket(1000, 0.001))
greenlets = [gevent.spawn(lambda: [limiter.try_acquire() for _ in range(10)]) for _ in range(20)]
gevent.joinall(greenlets, raise_error=True)
print(min(decision.remaining for greenlet in greenlets for decision in greenlet.value))
print({decision.source for greenlet in greenlets for decision in greenlet.value})
os.kill(server, signal.SIGSTOP)
begin = time.monotonic()
print(limiter.try_acquire().source, time.monotonic() - begin < 2)
os.kill(server, signal.SIGCONT)
"""


@pytest.mark.fault("greenlets, and a frozen server", "one `command_timeout`")
def test_greenlets_share_a_limit_and_a_frozen_server_costs_them_one_command_timeout(
    own_server: Server, prefix: str
) -> None:
    assert own_server._process
    arguments = [own_server.url, prefix, str(own_server._process.pid)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout.splitlines()) == (0, ["800", "{'redis'}", "local True"]), done.stderr
