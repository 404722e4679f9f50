"""`resilient`: a policy around a function, and the service that it uses by default."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack, cast, overload

from shared_resilience.functions import is_coroutine_function, name_of
from shared_resilience.plan import Parts, Plan
from shared_resilience.policy import INSTEAD, AsyncPolicy, Policy
from shared_resilience.service import AsyncResilienceService, ResilienceService

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
logger = logging.getLogger("shared_resilience")

_lock = threading.Lock()
_service: ResilienceService | None = None


def get_resilience_service() -> ResilienceService:
    """The service of this process for whoever names none: that of the environment variable `REDIS_URL`.

    Made when it is first asked for. Without `REDIS_URL` it is local to the process, and a warning is logged once.
    Raises `ValueError` for a URL that is none.
    """
    global _service  # one for the process
    with _lock:
        if _service is None:
            url = os.environ.get("REDIS_URL")
            if url:
                _service = ResilienceService.from_url(url)
            else:
                logger.warning("REDIS_URL is not set: limits and circuits are those of this process alone")
                _service = ResilienceService.local()
        return _service


os.register_at_fork(after_in_child=lambda: _renew_lock())


def _renew_lock() -> None:
    """Another thread of the parent may have held the lock when this process was forked."""
    global _lock
    _lock = threading.Lock()


class Resilient(Protocol[P, T_co]):
    """A function that `resilient` protects: it is called as before, as a method too, and has its policy at hand."""

    @property
    def policy(self) -> Policy | AsyncPolicy:
        """The parts around the function; `print` shows them."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...

    @overload
    def __get__(
        self: Resilient[Concatenate[Any, Q], T], instance: object, owner: type | None = None
    ) -> Callable[Q, T]: ...


class _Resilient(Protocol):
    """A decorator that leaves the signature of a function as it is."""

    def __call__(self, function: Callable[P, T], /) -> Resilient[P, T]: ...


def resilient(
    name: str | None = None,
    *,
    service: ResilienceService | AsyncResilienceService | None = None,
    **parts: Unpack[Parts],
) -> _Resilient:
    """A decorator that puts a policy around a function, `def` or `async def`; `function.policy` shows it.

    `parts` are those of `ResilienceService.policy`. Parts of the same name share their state, over functions and over
    processes; without a `name` it is `circuit_breaker_name`, else the function's module and qualified name. `service`
    is by default `get_resilience_service()`, which is asked for when the function is first called.

    Raises `ValueError` for a wrong part, without any, and for one that exists with another configuration; `TypeError`
    for a class, for a generator function (use `guard()` of a policy inside it), and for a function in a form that
    `service` has no client for. Those that only the service can tell come with the first call, if it is the default.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"resilient is called with its options first, @resilient(…), not with {name!r}")
    if service is not None and not isinstance(service, ResilienceService | AsyncResilienceService):
        raise TypeError(f"service is {service!r}, but must be a ResilienceService")
    plan = partial(Plan, **parts)
    plan(name or parts.get("circuit_breaker_name") or "checked")  # a wrong part is told where it is written

    def protect(function: Any) -> Any:
        if isinstance(function, classmethod | staticmethod):
            return type(function)(protect(function.__func__))
        return _protected(function, plan(name or parts.get("circuit_breaker_name") or name_of(function)), service)

    return cast("_Resilient", protect)


def _protected(
    function: Callable[..., Any], plan: Plan, service: ResilienceService | AsyncResilienceService | None
) -> Callable[..., Any]:
    suspends = is_coroutine_function(function, INSTEAD)
    policy = (AsyncPolicy if suspends else Policy)(
        plan, lambda: (service or get_resilience_service())._runtime, function
    )
    protected: Any = policy.protect(function) if service is not None else None

    def bound() -> Callable[..., Any]:
        nonlocal protected
        if protected is None:
            protected = policy.protect(function)
        return cast("Callable[..., Any]", protected)

    if suspends:

        @wraps(function)
        async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
            return await (protected or bound())(*args, **kwargs)

        wrapper: Any = async_wrapper
    else:

        @wraps(function)
        def plain_wrapper(*args: Any, **kwargs: Any) -> Any:
            return (protected or bound())(*args, **kwargs)

        wrapper = plain_wrapper
    wrapper.policy = policy
    return cast("Callable[..., Any]", wrapper)
