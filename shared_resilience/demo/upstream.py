"""The upstream that the workers call, and the referee: a small HTTP service with a quota of its own.

`GET /` is answered with 200 within the quota and with 429 beyond it. `GET /counts` says how many of both there were, in
total and per second; `POST /reset` fills the quota, forgets the counts and mends the fragile side (see `fragile`).

The quota is the limit that the workers are to keep, with a burst that is larger by a slack: a worker has at most one
call on its way, so at most one call per worker can be counted later than it was granted. `Plan.slack` has the reason.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared_resilience.demo import fragile
from shared_resilience.demo.messages import Message, encode


class Quota:
    """A token bucket in eight lines, apart from the library on purpose: a referee shares no code with the players."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self.reset(0.0)

    def reset(self, now: float) -> None:
        """Full again; counts start anew."""
        self._tokens = self._burst
        self._filled_at = self._reset_at = now
        self._seconds: list[list[int]] = []

    def admit(self, now: float) -> bool:
        """Whether a call that arrives at `now` is within the quota; counts it."""
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        admitted = self._tokens >= 1
        self._tokens -= admitted
        while len(self._seconds) <= int(now - self._reset_at):
            self._seconds.append([0, 0])
        self._seconds[-1][not admitted] += 1
        return admitted

    def counts(self) -> Message:
        """The answers with 200 and with 429, in total and as pairs per second."""
        admitted, refused = (sum(second[index] for second in self._seconds) for index in (0, 1))
        return {"200": admitted, "429": refused, "per_second": self._seconds}


def application(quota: Quota, clock: Callable[[], float] = time.monotonic) -> Starlette:
    """The HTTP service around a quota."""

    async def call(request: Request) -> Response:
        return Response(status_code=200 if quota.admit(clock()) else 429)

    async def counts(request: Request) -> Response:
        return JSONResponse(quota.counts())

    async def reset(request: Request) -> Response:
        quota.reset(clock())
        other_side.reset(clock())
        return Response(status_code=204)

    quota.reset(clock())
    other_side = fragile.Fragile()
    own = [Route("/", call), Route("/counts", counts), Route("/reset", reset, methods=["POST"])]
    return Starlette(routes=[*own, *fragile.routes(other_side, clock)])


def server(quota: Quota, host: str, port: int) -> uvicorn.Server:
    """A server that keeps connections for longer than any scene: an idle worker is not to meet a closed one."""
    return uvicorn.Server(
        uvicorn.Config(
            application(quota),
            host,
            port,
            access_log=False,
            lifespan="off",
            log_level="warning",
            timeout_keep_alive=120,
            timeout_graceful_shutdown=1,
        )
    )


def main() -> None:
    """The upstream of the demo: prints its port, and ends when its standard input does."""
    rate, burst = map(float, sys.argv[1:])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = server(Quota(rate, burst), "127.0.0.1", 0)
        threading.Thread(target=_end_with_input, args=(upstream,), daemon=True).start()
        sys.stdout.write(encode({"port": listener.getsockname()[1]}))
        sys.stdout.flush()
        upstream.run(sockets=[listener])


def _end_with_input(upstream: uvicorn.Server) -> None:
    sys.stdin.read()
    upstream.should_exit = True


if __name__ == "__main__":
    main()
