"""Memory of the server per key: `used_memory` over many keys of 12 bytes after one decision each, all included."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.ground import Ground, ground, key
from benchmarks.limiters import BUCKET, LASTING, Limiter, ours
from benchmarks.peers import SYNC_PEERS, installed
from benchmarks.rounds import Case, Effort, UnfitError
from benchmarks.rows import BYTES, Row, Target

TARGETS = {BUCKET: Target(BYTES, "≤", 220)}


def measure(_: Ground, effort: Effort, chosen: Callable[[Case], bool]) -> list[Row]:
    """One after the other, on a server that nothing else has used. Logs are left out: an entry for each call."""
    with ground() as fresh, fresh.service() as service:
        limiters = [*ours(service, LASTING, TARGETS), *installed(SYNC_PEERS, fresh, LASTING)]
        wanted = [one for one in limiters if not one.logs and chosen(Case(one.library, one.work, bool))]
        return [Row(one.library, one.work, {BYTES: _bytes(fresh, one, effort.keys)}, one.target) for one in wanted]


def _bytes(ground: Ground, limiter: Limiter, keys: int) -> float:
    limiter.bind(key(0))()  # connects, loads scripts
    ground.clear()
    before = ground.memory()
    for number in range(keys):
        limiter.bind(key(number))()
    if (left := ground.keys()) < keys:
        raise UnfitError(f"{limiter.library}, {limiter.work}: of {keys} keys, {left} are there")
    return (ground.memory() - before) / keys
