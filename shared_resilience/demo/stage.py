"""The stage: starts the processes, plays the scenes, judges them, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
from redis.exceptions import RedisError
from rich.console import Console

from shared_resilience import ResilienceError
from shared_resilience.demo.children import Child, ChildError, started
from shared_resilience.demo.display import LineDisplay, LiveDisplay, Screen, introduce, summarize
from shared_resilience.demo.interruption import cancel_on_signals, enter_or_signal
from shared_resilience.demo.keyspace import Keyspace
from shared_resilience.demo.messages import Call, Order
from shared_resilience.demo.outcome import Outcome, Scene, scenes
from shared_resilience.demo.plan import Plan
from shared_resilience.demo.promises import hint, promises
from shared_resilience.demo.proxy import Proxy, route
from shared_resilience.demo.server import Server, server

HELD, BROKEN, IMPOSSIBLE, INTERRUPTED = 0, 1, 2, 130
FRAME = 0.2
PATIENCE = 60.0
"""How late a worker may report on a busy machine. What it reports carries its own times."""


def run(plan: Plan, redis_url: str | None) -> int:
    """Plays the demo. Returns 0 if every promise held, 1 if not, 2 if it could not be played, 130 after Ctrl-C."""
    try:
        return asyncio.run(_run(plan, redis_url))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("interrupted: processes are ended, keys are removed", file=sys.stderr)
        return INTERRUPTED
    except (ChildError, ResilienceError, RedisError, ValueError, OSError, httpx.HTTPError) as error:
        print(f"shared-resilience demo: {error}", file=sys.stderr)
        return IMPOSSIBLE


async def _run(plan: Plan, redis_url: str | None) -> int:
    cancel_on_signals()
    console = Screen()
    with server(redis_url) as redis:
        keyspace = Keyspace(redis)
        await keyspace.check()
        introduce(console, plan, redis.title, keyspace.prefix)
        async with _removal(keyspace, needed=not redis.embedded, keep=plan.keep):
            outcomes = await _play(plan, redis, keyspace.prefix, console)
            kept = promises(plan, outcomes)
            summarize(console, outcomes, kept, hint(plan, outcomes))
        if plan.keep:
            await _show_keys(console, redis, keyspace)
        return HELD if all(promise.held for promise in kept) else BROKEN


@asynccontextmanager
async def _removal(keyspace: Keyspace, needed: bool, keep: bool) -> AsyncIterator[None]:
    """Removes the keys on leaving; to keep them is for runs that came to their end. Raises `OSError` if it cannot."""
    ended = False
    try:
        yield
        ended = True
    finally:
        if needed and not (keep and ended):
            try:
                await keyspace.remove()
            except RedisError as error:
                raise OSError(f"the keys under {keyspace.prefix} remain: {error}") from error


async def _show_keys(console: Console, redis: Server, keyspace: Keyspace) -> None:
    lines = ["", f"Kept: the keys under {keyspace.prefix}. Most end by themselves, the last within a day.", ""]
    lines += keyspace.commands()
    by_hand = redis.embedded and console.is_terminal and sys.stdin.isatty()
    if redis.embedded and not by_hand:
        lines += ["", "The server ends now, so here they are:", *await keyspace.contents()]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if by_hand:
        console.print("\nThe server runs until you press Enter.")
        await enter_or_signal()


async def _play(plan: Plan, redis: Server, prefix: str, console: Console) -> list[Outcome]:
    display = LiveDisplay(console, plan) if console.is_terminal else LineDisplay(console, plan)
    way = route(redis.url)
    quota = str(plan.limit), str(plan.capacity + plan.slack)
    async with (
        Proxy(way.dial) as proxy,
        started("upstream", *quota) as (upstream,),
        started("worker", count=plan.workers) as workers,
        httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as http,
    ):
        upstream_url = f"http://127.0.0.1:{(await upstream.hear())['port']}"
        outcomes = []
        for scene in scenes(plan):
            through_proxy = scene.outage and not scene.protected
            url = None if not scene.shared else way.url(proxy.port) if through_proxy else redis.url
            open_seconds = plan.open_seconds if scene.protected else 0.0
            order = Order(upstream_url, url, prefix, scene.name, plan.capacity, plan.limit, open_seconds)
            outcomes.append(await Stage(scene, workers, proxy, http, display).play(order))
        return outcomes


class Stage:
    """Where one scene is played."""

    def __init__(
        self,
        scene: Scene,
        workers: Sequence[Child],
        proxy: Proxy,
        http: httpx.AsyncClient,
        display: LiveDisplay | LineDisplay,
    ) -> None:
        self._scene = scene
        self._workers = workers
        self._proxy = proxy
        self._http = http
        self._display = display
        self._outcome = Outcome(scene, [[] for _ in workers])

    async def play(self, order: Order) -> Outcome:
        """Has all workers carry out `order` together. Raises `ChildError` if one of them cannot begin."""
        await asyncio.gather(*(worker.tell(order.message()) for worker in self._workers))
        await asyncio.gather(*(worker.hear() for worker in self._workers))
        await self._http.post(f"{order.upstream_url}/reset")
        start = time.monotonic()
        try:
            side = f"{order.upstream_url}/fragile" if self._scene.protected else order.upstream_url
            async with _meanwhile(self._draw(start)), _meanwhile(self._cut_and_restore(start, side)):
                until = self._outcome.until = start + self._scene.seconds
                await asyncio.gather(*(self._follow(index, until) for index in range(len(self._workers))))
            self._outcome.answers = (await self._http.get(f"{side}/counts")).json()
            self._display.show(self._outcome, start + self._scene.seconds, self._scene.seconds)
        finally:
            self._display.close()
        return self._outcome

    async def _follow(self, index: int, until: float) -> None:
        """Lets a worker begin, and writes down what it reports until it is done."""
        worker, calls = self._workers[index], self._outcome.calls[index]
        await worker.tell({"until": until})
        try:
            while not (message := await worker.hear(self._scene.seconds + PATIENCE)).get("done"):
                self._outcome.began = min(self._outcome.began, message["began"])
                calls += [Call(*call) for call in message["calls"]]
                self._outcome.refused[index] = message["refused"]
        except ChildError as error:  # a broken promise, not the end of the scene
            self._outcome.errors.append(str(error))

    async def _draw(self, start: float) -> None:
        while True:
            now = time.monotonic()
            self._display.show(self._outcome, now, now - start)
            await asyncio.sleep(FRAME)

    async def _cut_and_restore(self, start: float, side: str) -> None:
        if self._scene.outage is None:
            return
        cut_after, seconds = self._scene.outage
        await asyncio.sleep(start + cut_after - time.monotonic())
        if self._scene.protected:
            await self._http.post(f"{side}/break")
        else:
            self._proxy.cut()
        self._outcome.cut_at = time.monotonic()
        await asyncio.sleep(seconds)
        if self._scene.protected:
            await self._http.post(f"{side}/mend")
        else:
            await self._proxy.restore()
        self._outcome.restored_at = time.monotonic()


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Does `work` beside the body, and drops what is left of it afterwards. Raises what it raised."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
