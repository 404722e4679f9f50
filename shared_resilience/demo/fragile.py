"""The fragile side of the upstream: it can be broken and mended, and counts what it answered."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared_resilience.demo.messages import Message


class Fragile:
    """Answers 200 as long as it is whole and 503 while it is broken."""

    def __init__(self) -> None:
        self.reset(0.0)

    def reset(self, now: float) -> None:
        """Whole again; counts start anew."""
        self.broken = False
        self._reset_at = now
        self._seconds: list[list[int]] = []

    def answer(self, now: float) -> int:
        """The status for a call that arrives at `now`; counts it."""
        while len(self._seconds) <= int(now - self._reset_at):
            self._seconds.append([0, 0])
        self._seconds[-1][self.broken] += 1
        return 503 if self.broken else 200

    def counts(self) -> Message:
        """The answers with 200 and with 503, in total and as pairs per second."""
        whole, broken = (sum(second[index] for second in self._seconds) for index in (0, 1))
        return {"200": whole, "429": 0, "503": broken, "per_second": self._seconds}


def routes(fragile: Fragile, clock: Callable[[], float] = time.monotonic) -> list[Route]:
    """`GET /fragile`, `GET /fragile/counts`, `POST /fragile/break`, `POST /fragile/mend`."""

    async def call(request: Request) -> Response:
        return Response(status_code=fragile.answer(clock()))

    async def counts(request: Request) -> Response:
        return JSONResponse(fragile.counts())

    async def change(request: Request) -> Response:
        fragile.broken = request.url.path.endswith("break")
        return Response(status_code=204)

    return [
        Route("/fragile", call),
        Route("/fragile/counts", counts),
        Route("/fragile/break", change, methods=["POST"]),
        Route("/fragile/mend", change, methods=["POST"]),
    ]
