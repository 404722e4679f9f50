"""A primary and its replica that a sentinel watches."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from redis.sentinel import Sentinel
from servers import Server, binary_of, free_port, poll

sentinel_of: Any = Sentinel


class Watched(NamedTuple):
    """A primary, its replica, and the port of the sentinel that watches both."""

    primary: Server
    replica: Server
    port: int


@pytest.fixture
def watched(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    binary, sentinel = binary_of("redis-7.0"), shutil.which("redis-sentinel")
    if request.config.getoption("--lanes") == "fakeredis" or binary is None or sentinel is None:
        pytest.skip("needs Debian's redis-server and redis-sentinel")
    with Server(binary) as primary, Server(binary, "--replicaof", "127.0.0.1", str(primary.port)) as replica:
        port, file = free_port(), tmp_path / "sentinel.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 5000\n"
        )
        process = subprocess.Popen([sentinel, str(file)], stdout=subprocess.DEVNULL)
        try:
            asked = sentinel_of([("127.0.0.1", port)], socket_timeout=1)
            poll(lambda: _knows(asked), "the sentinel to know the replica", 20)
            yield Watched(primary, replica, port)
        finally:
            process.kill()
            process.wait()


def _knows(sentinel: Any) -> bool:
    try:
        return len(sentinel.discover_slaves("main")) == 1
    except Exception:
        return False
