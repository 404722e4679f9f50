"""How values are written down in Redis: as texts that everybody can read, never as pickles."""

from __future__ import annotations

import json
from typing import Protocol, cast

from shared_resilience.errors import EncodingError


class Codec(Protocol):
    """Makes texts of values and values of texts; `name` is kept beside the text."""

    @property
    def name(self) -> str:
        """What the codec is called, and its version if it has several."""

    def encode(self, value: object) -> str:
        """`value` as a text. Raises whatever it likes for what it cannot carry."""

    def decode(self, text: str) -> object:
        """The value that `text` holds. Likewise."""


class JsonCodec:
    """JSON: tuples come back as lists, keys of mappings as texts. NaN and infinity are refused."""

    name = "json"

    def __repr__(self) -> str:
        return "JSON"

    def encode(self, value: object) -> str:
        """`value` as JSON, in ASCII. Raises `TypeError`, `ValueError` or `RecursionError` for what it cannot carry."""
        return json.dumps(value, allow_nan=False, separators=(",", ":"))

    def decode(self, text: str) -> object:
        """The value that `text` holds. Raises `ValueError` if it is no JSON."""
        return cast("object", json.loads(text))


JSON = JsonCodec()


def encode(codec: Codec, value: object, max_size: int) -> str:
    """`value` as a text of at most `max_size` bytes. Raises `EncodingError`."""
    try:
        text = codec.encode(value)
        size = len(text.encode())
    except Exception as error:
        raise EncodingError(f"codec {codec.name!r} cannot carry a {type(value).__name__}: {error}") from error
    if size > max_size:
        raise EncodingError(f"a {type(value).__name__} of {size} bytes is larger than max_size, {max_size} bytes")
    return text


def decode(codec: Codec, name: str, text: str) -> object:
    """The value of a text that the codec `name` has made. Raises `EncodingError`."""
    if name != codec.name:
        raise EncodingError(f"codec {codec.name!r} cannot read what codec {name!r} has written")
    try:
        return codec.decode(text)
    except Exception as error:
        raise EncodingError(f"codec {codec.name!r} cannot read what is stored: {error}") from error


def is_codec(value: object) -> bool:
    """Whether it has what a codec has."""
    name, methods = getattr(value, "name", None), (getattr(value, "encode", None), getattr(value, "decode", None))
    return isinstance(name, str) and bool(name) and all(map(callable, methods))
