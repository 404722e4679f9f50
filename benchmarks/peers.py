"""The limiters of other libraries. Each is imported when it is measured, and left out where it is not installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import redis
from redis import asyncio as async_redis

from benchmarks.ground import Ground
from benchmarks.limiters import SOON, Limiter, Quota
from benchmarks.machine import version

Make = Callable[[Ground, Quota], Iterable[Limiter]]


def of_limits(ground: Ground, quota: Quota) -> Iterator[Limiter]:
    limits, strategies = importlib.import_module("limits"), importlib.import_module("limits.strategies")
    storage = importlib.import_module("limits.storage").storage_from_string(ground.url)
    yield from _of_limits(limits, strategies, storage, quota)


def of_limits_async(ground: Ground, quota: Quota) -> Iterator[Limiter]:
    limits, strategies = importlib.import_module("limits"), importlib.import_module("limits.aio.strategies")
    make = importlib.import_module("limits.storage").storage_from_string
    yield from _of_limits(limits, strategies, make(f"async+{ground.url}", implementation="redispy"), quota)


def _of_limits(limits: Any, strategies: Any, storage: Any, quota: Quota) -> Iterator[Limiter]:
    long, short = (limits.RateLimitItemPerSecond(*chosen) for chosen in (quota, SOON))
    kinds = {"fixed window": "FixedWindow", "sliding counter": "SlidingWindowCounter", "moving window": "MovingWindow"}
    for work, kind in kinds.items():
        hit, logs = getattr(strategies, f"{kind}RateLimiter")(storage).hit, kind == "MovingWindow"
        yield Limiter("limits", work, partial(partial, hit, short if logs else long), logs=logs)


def of_throttled(ground: Ground, quota: Quota) -> Iterator[Limiter]:
    yield from _of_throttled(importlib.import_module("throttled"), ground, quota)


def of_throttled_async(ground: Ground, quota: Quota) -> Iterator[Limiter]:
    yield from _of_throttled(importlib.import_module("throttled.asyncio"), ground, quota)


def _of_throttled(throttled: Any, ground: Ground, quota: Quota) -> Iterator[Limiter]:
    store = throttled.RedisStore(server=ground.url)
    period = timedelta(seconds=quota.seconds)
    theirs = importlib.import_module("throttled").per_duration(period, quota.amount, burst=quota.amount)
    for kind in ("token_bucket", "gcra", "fixed_window", "sliding_window", "leaking_bucket"):
        limit = throttled.Throttled(using=kind, quota=theirs, store=store).limit
        yield Limiter("throttled-py", kind.replace("_", " "), partial(partial, limit), lambda r: not r.limited)


def of_ratelimit_io(ground: Ground, quota: Quota) -> Iterator[Limiter]:
    yield from _of_ratelimit_io(redis.Redis(port=ground.port), "acquire_sync", quota)


def of_ratelimit_io_async(ground: Ground, quota: Quota) -> Iterator[Limiter]:
    yield from _of_ratelimit_io(async_redis.Redis(port=ground.port), "acquire", quota)


def _of_ratelimit_io(client: Any, method: str, quota: Quota) -> Iterator[Limiter]:
    module = importlib.import_module("ratelimit_io")
    for algorithm in module.Algorithm:
        logs = algorithm is module.Algorithm.SLIDING_WINDOW
        chosen = SOON if logs else quota
        limit = module.Limit(chosen.amount, seconds=chosen.seconds)
        acquire = getattr(module.RateLimiter(client, limit=limit, algorithm=algorithm), method)
        yield Limiter("ratelimit-io", algorithm.value.replace("_", " "), partial(partial, acquire), _is_none, logs=logs)


def _is_none(answer: object) -> bool:
    """ratelimit-io answers nothing, and raises when it refuses."""
    return answer is None


def of_nopanic(ground: Ground, quota: Quota) -> Iterator[Limiter]:
    client = redis.Redis(port=ground.port)
    yield Limiter("nopanic-redis", "token bucket", lambda key: _nopanic_bucket(client, key, quota)(lambda: True))


def of_nopanic_async(ground: Ground, quota: Quota) -> Iterator[Limiter]:
    client = async_redis.Redis(port=ground.port)

    async def granted() -> bool:
        return True

    yield Limiter("nopanic-redis", "token bucket", lambda key: _nopanic_bucket(client, key, quota)(granted))


def _nopanic_bucket(client: Any, key: str, quota: Quota) -> Any:
    """One policy for each key; what it decides for is a function that does nothing."""
    limit = importlib.import_module("nopanic_redis").redis_rate_limit
    return limit(client, name=key, rate=quota.amount, per=quota.seconds, max_wait=0.0, fail_open=False)


def of_pyrate(ground: Ground, quota: Quota) -> Iterator[Limiter]:
    yield from _of_pyrate(redis.Redis(port=ground.port), "try_acquire", quota)


def of_pyrate_async(ground: Ground, quota: Quota) -> Iterator[Limiter]:
    yield from _of_pyrate(async_redis.Redis(port=ground.port), "try_acquire_async", quota)


def _of_pyrate(client: Any, method: str, quota: Quota) -> Iterator[Limiter]:
    """Without the thread that cleans up in the background, which would run in the time of others."""
    module = importlib.import_module("pyrate_limiter")
    rate = module.Rate(quota.amount, quota.seconds * 1000)

    def bind(key: str, algorithm: Any) -> Callable[[], Any]:
        store = module.RedisStateStore(client, f"{type(algorithm).__name__}:{key}")
        bucket = module.StateBucket([rate], algorithm=algorithm, store=store)
        limiter = module.Limiter(module.SingleBucketFactory(bucket, schedule_leak=False))
        return partial(getattr(limiter, method), key, blocking=False)

    yield Limiter("pyrate-limiter", "token bucket", partial(bind, algorithm=module.TokenBucket()))
    yield Limiter("pyrate-limiter", "gcra", partial(bind, algorithm=module.GCRA()))


SYNC_PEERS: dict[str, Make] = {
    "limits": of_limits,
    "throttled-py": of_throttled,
    "ratelimit-io": of_ratelimit_io,
    "nopanic-redis": of_nopanic,
    "pyrate-limiter": of_pyrate,
}
ASYNC_PEERS: dict[str, Make] = {
    "limits": of_limits_async,
    "throttled-py": of_throttled_async,
    "ratelimit-io": of_ratelimit_io_async,
    "nopanic-redis": of_nopanic_async,
    "pyrate-limiter": of_pyrate_async,
}


def installed(peers: dict[str, Make], ground: Ground, quota: Quota) -> list[Limiter]:
    """The limiters of those peers that are installed."""
    return [limiter for name, make in peers.items() if version(name) for limiter in make(ground, quota)]
