"""The ground on which all are measured: one server of our own, and what it says about itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from servers import Server, binary_of

from shared_resilience import ResilienceService

KEY = "user:0000001"
"""A key of 12 bytes; `keys` makes more of them."""

PATIENT = 10.0
"""A command timeout: on a machine that is busy, a late reply is no outage."""

_LOOKS = 5


def key(number: int) -> str:
    return f"user:{number:07d}"


class Ground:
    """A server, and a connection to ask it about itself."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self.client: Any = redis.Redis(port=port, protocol=2, socket_timeout=120, decode_responses=True)

    def service(self, database: int = 0) -> ResilienceService:
        """A service of ours, as users make it."""
        url = f"redis://127.0.0.1:{self.port}/{database}"
        return ResilienceService.from_url(url, command_timeout=PATIENT, connect_timeout=PATIENT)

    def name(self) -> str:
        """What the server is."""
        facts = self.client.info("server")
        return f"{facts.get('server_name', 'redis').title()} {facts.get('valkey_version', facts['redis_version'])}"

    def cpu_us(self) -> float:
        """Microseconds of CPU that the server has used so far."""
        used = self.client.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"]) * 1e6

    def memory(self) -> int:
        """`used_memory` without what clients' buffers happen to hold: the least of a few looks."""
        looks = []
        for _ in range(_LOOKS):
            looks.append(int(self.client.info("memory")["used_memory"]))
            time.sleep(0.05)
        return min(looks)

    def keys(self) -> int:
        """How many keys there are in all databases."""
        return sum(int(facts["keys"]) for facts in self.client.info("keyspace").values())

    def clear(self) -> None:
        """No keys; scripts stay known."""
        self.client.flushall()


@contextmanager
def ground() -> Iterator[Ground]:
    """Debian's Redis where it is installed, else the embedded Valkey; it runs where this process may run."""
    binary = binary_of("redis-7.0") or str(binary_of("valkey"))
    with Server(binary, "--databases", "16", "--loglevel", "warning") as server:
        yield Ground(server.port)
