"""The layers of a policy: what stands around a function, and in which order."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from operator import call as directly
from typing import Any, NamedTuple

from shared_resilience.cores import Asked, Cores
from shared_resilience.deadline import Deadline
from shared_resilience.functions import chosen, name_of
from shared_resilience.plan import Plan
from shared_resilience.runtime import Runtime

Layer = Callable[..., Any]


class Forms(NamedTuple):
    """The form of each component for one kind of functions."""

    limiter: Any
    breaker: Any
    bulkhead: Any
    permits: Any
    retry: Any
    timeout: Any
    once: Any
    chain: Any


class Planned:
    """What a policy is to be, and the parts that it is made of as soon as it is used."""

    _forms: Forms
    _or_else: Layer
    _in_time: Layer
    _once: Layer
    _within_limits: Layer
    _with_slot: Layer

    def __init__(
        self, plan: Plan, runtime: Callable[[], Runtime], function: Callable[..., object] | None = None
    ) -> None:
        self._plan = plan
        self._find_runtime = runtime
        self._function = "the function" if function is None else name_of(function)

    @property
    def name(self) -> str:
        """The name of the policy, and of all its parts that have no other."""
        return self._plan.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._plan.name!r})"

    def __str__(self) -> str:
        return self._plan.tree(self._function)

    @cached_property
    def _cores(self) -> Cores:
        return Cores.of(self._plan, self._find_runtime())

    @cached_property
    def _layers(self) -> list[Layer]:
        """What stands around the function, the innermost first."""
        cores, forms, backends, layers = self._cores, self._forms, self._cores.backends, list[Layer]()
        breaker, admitted = self._breaker, self._admitted
        if cores.latency is not None:
            layers.append(forms.timeout(cores.latency, backends).execute)
        if admitted is not None:
            layers.append(partial(self._admit, admitted, directly if breaker is None else breaker.call))
        elif breaker is not None:
            layers.append(breaker.call)
        if cores.retries is not None:
            layers.append(forms.retry(cores.retries, backends, self._plan.refusals()).execute_with_retry)
        if cores.claims is not None:
            layers.append(partial(self._once, forms.once(cores.claims, backends)))
        if self._plan.deadline is not None:
            layers.append(self._in_time)
        if cores.fallback is not None:
            layers.append(partial(self._or_else, forms.chain(cores.fallback, cores.fallback_backends)))
        return layers

    @cached_property
    def _breaker(self) -> Any:
        core = self._cores.breaker
        return None if core is None else self._forms.breaker(core, self._cores.backends)

    @cached_property
    def _admitted(self) -> Layer | None:
        """The layer of limits and bulkhead, which wants to know for whom it is first."""
        if self._slot is not None:
            return partial(self._with_slot, self._slot)
        return None if self._limit is None else partial(self._within_limits, self._limit)

    @cached_property
    def _limit(self) -> Callable[[Asked], Any] | None:
        core, wait = self._cores.limiter, self._plan.wait
        if core is None:
            return None
        limiter = self._forms.limiter(core, self._cores.backends)
        return lambda asked: limiter.acquire(asked[0], asked[1], wait, asked[2])

    @cached_property
    def _slot(self) -> Callable[[Asked], Any] | None:
        cores, wait = self._cores, math.inf if self._plan.wait is None else self._plan.wait
        if cores.permits is not None:
            both = self._forms.permits(cores.permits, cores.backends, cores.slot_backends)
            return lambda asked: both.guard(*asked, wait=wait)
        if cores.bulkhead is not None:
            bulkhead = self._forms.bulkhead(cores.bulkhead, cores.slot_backends)
            return lambda asked: bulkhead.guard(asked[2])
        return None

    def _asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Asked:
        plan = self._plan
        key, cost = chosen(plan.key, args, kwargs), chosen(plan.cost, args, kwargs)
        return self._cores.checked(key, cost, chosen(plan.priority, args, kwargs))

    def _admit(self, admitted: Layer, around: Layer, function: Layer, /, *args: Any, **kwargs: Any) -> Any:
        """Goes through `around`, the breaker, and then through `admitted`, the permits.

        For whom it is is asked before the breaker is: what goes wrong there is no failure of the dependency.
        """
        return around(partial(admitted, self._asked(args, kwargs), function), *args, **kwargs)

    def _key_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        return chosen(self._plan.idempotency_key, args, kwargs)

    def _deadline(self) -> Deadline:
        seconds = self._plan.deadline
        return Deadline(math.inf if seconds is None else seconds, self._cores.monotonic)

    def _refuse_to_guard(self) -> None:
        if parts := self._plan.unguardable():
            raise TypeError(
                f"{', '.join(parts)} of policy {self.name!r} cannot guard a block of code, which is not called again "
                "or instead: make it a function, and use call()"
            )


def wrapped(function: Layer, layers: list[Layer]) -> Layer:
    """`function` within all `layers`, the innermost first; it can be seen through them."""
    layer = function
    for around in layers:
        layer = partial(around, layer)
        layer.__wrapped__ = function  # type: ignore[attr-defined]  # for `inspect.signature`
    return layer
