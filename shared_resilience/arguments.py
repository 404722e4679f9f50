"""The arguments of a call as a text that is the same in every process."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from hashlib import sha256
from typing import Any

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
Opaque = Callable[[object], str]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def type_of(value: object) -> str:
    """The full name of its type, for objects of which nothing else can be told."""
    return f"<{type(value).__module__}.{type(value).__qualname__}>"


def in_words(value: object, opaque: Opaque) -> str:
    """`value` in words: those of its parts, in a fixed order, else its `repr`.

    What `opaque` says instead of a `repr` that tells of nothing but an address.
    """
    if isinstance(value, Mapping):
        pairs = sorted((in_words(key, opaque), in_words(one, opaque)) for key, one in value.items())
        return "{" + ", ".join(f"{key}: {one}" for key, one in pairs) + "}"
    if type(value) in (list, tuple):
        return "[" + ", ".join(in_words(one, opaque) for one in value) + "]"  # type: ignore[attr-defined]  # it is one
    if isinstance(value, AbstractSet):
        return "{" + ", ".join(sorted(in_words(one, opaque) for one in value)) + "}"
    words = repr(value)
    return opaque(value) if _ADDRESS.search(words) else words


def in_order(function: Callable[..., object], args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """The arguments of a call, the same whether they are given by position or by name, where `function` tells both."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return args, kwargs
    return bound.args, bound.kwargs


def fingerprint(value: object) -> str:
    """32 hexadecimal digits of SHA-256 that stand for `value`; objects without a `repr` count by their type."""
    return sha256(in_words(value, type_of).encode("utf-8", "backslashreplace")).hexdigest()[:32]
