"""Limiters to be measured, ours and the peers', in one shape: give it a key and get the call that is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

from benchmarks.ground import key
from benchmarks.rows import OURS, Target
from shared_resilience import LeakyBucket, SlidingWindow, TokenBucket
from shared_resilience.limits import Limit


class Quota(NamedTuple):
    """What all limiters of a comparison are to admit: `amount` within `seconds`, all of it at once if need be."""

    amount: int
    seconds: int


PLENTY = Quota(10**9, 3600)
"""Nothing is ever refused."""

LASTING = Quota(100, 86_400)
"""What one call has taken comes back so late that its key stays while many others are made."""

SOON = Quota(10**6, 1)
"""For exact logs, whatever the others have: an entry per call leaves after a second, so that none grows for ever."""


@dataclass(frozen=True, slots=True)
class Limiter:
    """A way to decide: `bind(key)` is the call that decides for that key. `logs`: its state grows with the calls."""

    library: str
    work: str
    bind: Callable[[str], Callable[[], Any]]
    fine: Callable[[Any], bool] = bool
    target: Target | None = None
    logs: bool = False


BUCKET = "token bucket"
EXACT = "sliding window, exact"


def _limits(quota: Quota) -> dict[str, tuple[str, tuple[Limit, ...]]]:
    """By what they do: the name of the resource, which is a part of each key, and its limits."""
    rate = quota.amount / quota.seconds
    bucket, window = TokenBucket(quota.amount, rate), SlidingWindow(*quota, exact=False)
    return {
        BUCKET: ("bucket", (bucket,)),
        "leaky bucket": ("queue", (LeakyBucket(quota.amount, rate),)),
        EXACT: ("log", (SlidingWindow(*SOON),)),
        "sliding window, not exact": ("window", (window,)),
        "token bucket and window, at once": ("both", (bucket, window)),
    }


LEASE = 1000
"""Tokens that a process may lease at once."""


def granted(decision: Any) -> bool:
    """Whether Redis allowed it, or a lease from Redis."""
    return bool(decision.allowed) and decision.source != "local"


MANY = 20_011
"""More keys than one run has calls, so that nothing is at hand from the call before for the same."""


def with_next(call: Callable[[str], Any], keys: Iterator[str]) -> Any:
    """`call` for the next of `keys`."""
    return call(next(keys))


def ours(service: Any, quota: Quota, targets: dict[str, Target]) -> list[Limiter]:
    """Our limiters, of either form of the service."""
    make = service.get_or_create_rate_limiter
    made = {work: make(name, *limits) for work, (name, limits) in _limits(quota).items()}
    return [
        Limiter(OURS, work, partial(partial, limiter.try_acquire), granted, targets.get(work), logs=work == EXACT)
        for work, limiter in made.items()
    ]


def ours_of_many_keys(service: Any) -> Limiter:
    """Our token bucket, told another key each time, whatever key it is bound to."""
    _, limits = _limits(PLENTY)[BUCKET]
    take = service.get_or_create_rate_limiter("many", *limits).try_acquire
    keys = cycle([key(number) for number in range(MANY)])
    return Limiter(OURS, f"{BUCKET}, another key each time", lambda _: partial(with_next, take, keys), granted)
