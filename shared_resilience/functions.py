"""What decorators need to know about the functions they get, and how `AsyncX` keeps the documentation of `X`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


def is_coroutine_function(
    function: Callable[..., object], instead: str = "call try_acquire() or acquire() inside it instead"
) -> bool:
    """Whether calls of `function` must be awaited: an `async def`, a partial of one, an object with such a `__call__`.

    Raises `TypeError` for what a decorator could not protect: generator functions, whose body runs long after the
    call (`instead` says what to do), and classes.
    """
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"{function!r} is not a function; decorate its methods, or functions that use it")
    plain: Any = function
    while isinstance(plain, partial):
        plain = plain.func
    if not inspect.isroutine(plain):
        plain = type(plain).__call__
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise TypeError(
            f"{function!r} is a generator function: its body would run unprotected after the call; {instead}"
        )
    return inspect.iscoroutinefunction(plain)


def decorated(
    function: Callable[P, T],
    blocking: Callable[..., Any],
    suspending: Callable[..., Awaitable[Any]],
    instead: str,
) -> Callable[P, T]:
    """`function`, called by way of `blocking(function, …)`, or of `suspending` if calls of it must be awaited.

    Raises `TypeError` as `is_coroutine_function`.
    """
    if is_coroutine_function(function, instead):

        @wraps(function)
        async def async_wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
            return await suspending(function, *args, **kwargs)

        return cast("Callable[P, T]", async_wrapper)

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        result: T = blocking(function, *args, **kwargs)
        return result

    return wrapper


def chosen(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an option is for a call: what it returns for the arguments if it is a function, else itself."""
    return value(*args, **kwargs) if callable(value) else value


def name_of(function: Callable[..., object]) -> str:
    """The module and the qualified name of a function, of what a partial calls, or of the type of another callable."""
    plain: Any = function
    while isinstance(plain, partial):
        plain = plain.func
    if not hasattr(plain, "__qualname__"):
        plain = type(plain)
    return f"{plain.__module__}.{plain.__qualname__}"


def mirrors(original: type) -> Callable[[type[T]], type[T]]:
    """A class decorator for the asyncio twin of `original`: each method has the documentation of its namesake."""

    def copy_documentation(twin: type[T]) -> type[T]:
        twin.__doc__ = f"`{original.__name__}` for asyncio.\n\n{inspect.cleandoc(original.__doc__ or '')}"
        for name, attribute in vars(twin).items():
            namesake = vars(original).get(name)
            if namesake is not None and namesake.__doc__ and not name.startswith("_"):
                documented = attribute.__func__ if isinstance(attribute, classmethod) else attribute
                documented.__doc__ = namesake.__doc__
        return twin

    return copy_documentation
