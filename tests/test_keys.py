"""Keys are readable, injective, and never outside their prefix."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared_resilience.keys import LONGEST, ResourceKeys, encode_key, encode_name


def test_keys_are_readable() -> None:
    keys = ResourceKeys("sr", "payments")

    assert keys.limit("token_bucket", "") == "sr:{payments}:limit:token_bucket"
    assert keys.limit("user", "user:42") == "sr:{payments}:limit:user:user:42"
    assert keys.overrides == "sr:{payments}:overrides"
    assert keys.config == "sr:{payments}:config"
    assert keys.stats == "sr:{payments}:stats"
    assert keys.workers == "sr:{payments}:workers"


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("user:42", "user:42"),
        ("Größe/ключ", "Größe/ключ"),
        ("a b", "a%20b"),
        ("{a}", "%7Ba%7D"),
        ("100%", "100%25"),
        ("a\nb\x00\x7f\x85", "a%0Ab%00%7F%C2%85"),
        ("a\u00a0b\u2028", "a%C2%A0b%E2%80%A8"),
        ("\ud800", "%ED%A0%80"),
        ("x" * 96, "x" * 96),
        ("é" * 48, "é" * 48),
    ],
)
def test_only_what_would_break_a_key_is_encoded(text: str, encoded: str) -> None:
    assert encode_key(text) == encoded


@pytest.mark.parametrize("text", ["x" * 97, "é" * 49, " " * 33, "x" * 100_000])
def test_long_texts_become_a_hash(text: str) -> None:
    encoded = encode_key(text)

    assert encoded.startswith("%h")
    assert len(encoded) == 66


def test_a_slash_is_encoded_in_names_alone() -> None:
    assert (encode_name("a/b"), encode_key("a/b")) == ("a%2Fb", "a/b")


def test_the_empty_name_is_refused_and_the_empty_key_is_fine() -> None:
    with pytest.raises(ValueError, match=r"^name is '', but must be a text of at least one character$"):
        encode_name("")
    assert encode_key("") == ""


TEXTS = st.text(st.characters(), max_size=120) | st.text("%{} aB20h\n", max_size=12)


@given(TEXTS, TEXTS)
@example("%20", " ")
@example(encode_key("x" * 200), "x" * 200)
def test_different_texts_have_different_keys(one: str, other: str) -> None:
    assert (encode_key(one) == encode_key(other)) == (one == other)
    if one and other:
        assert (encode_name(one) == encode_name(other)) == (one == other)


@given(TEXTS.filter(bool), TEXTS)
def test_a_key_never_leaves_its_resource(name: str, key: str) -> None:
    whole = ResourceKeys("sr", name).limit("user", key)
    tag = whole[whole.index("{") + 1 : whole.index("}")]

    assert whole.startswith(f"sr:{{{encode_name(name)}}}:limit:user")
    assert tag == encode_name(name) != ""
    assert whole.count("{") == whole.count("}") == 1
    assert not any(character.isspace() for character in whole)
    assert len(whole.encode()) <= 2 * LONGEST + 40
