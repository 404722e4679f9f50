"""Molds: commands that are alike but for one text are packed once, and sent as each would be by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared_resilience import BulkheadConfig, PriorityLevel, SlidingWindow, TokenBucket
from shared_resilience.backends import step
from shared_resilience.backends.redis import RedisStore, Request
from shared_resilience.backends.resp import pack, pack_around, pack_between
from shared_resilience.bulkhead_commands import BulkheadCommands, Call
from shared_resilience.commands import Command
from shared_resilience.keys import ResourceKeys
from shared_resilience.limit_commands import LimitCommands
from shared_resilience.limits import Limit
from shared_resilience.permit_commands import PermitCommands

LIMITS: list[Limit] = [TokenBucket(5, 1, label="user"), SlidingWindow(7, 3600, label="tenant")]
PARTS = st.lists(st.one_of(st.text(), st.integers(), st.binary()), max_size=4).map(tuple)
TEXTS = st.one_of(st.text(), st.sampled_from(["", "ü", "日本", "a b\r\n$1\r\n", "w1:3f:30000"]))
within_a_fixture = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.usefixtures("reader")
@within_a_fixture
@given(before=PARTS, after=PARTS, text=TEXTS)
def test_what_is_packed_around_a_text_is_the_request_with_it(
    before: tuple[Any, ...], after: tuple[Any, ...], text: str
) -> None:
    assert pack_between(pack_around(before, after), text) == pack((*before, text, *after))


class Recorder:
    """A wire that notes what would be sent."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def ask(self, request: Request) -> None:
        self.requests.append(request)


@pytest.mark.usefixtures("reader")
@within_a_fixture
@given(
    name=TEXTS.filter(len),
    key=TEXTS,
    tokens=st.lists(TEXTS, min_size=1, max_size=3),
    priority=st.sampled_from(PriorityLevel),
)
def test_a_command_that_was_cast_is_sent_as_it_would_be_without_a_mold(
    name: str, key: str, tokens: list[str], priority: PriorityLevel
) -> None:
    keys = ResourceKeys("sr", name)
    slots = BulkheadCommands(keys, BulkheadConfig(5, reserved={PriorityLevel.CRITICAL: 0.25}), lambda: 0)
    both = PermitCommands(LimitCommands(LIMITS), slots)
    texts = (keys.overrides, keys.limit("user", key), keys.limit("tenant", ""))
    like = both.like(texts, 3, 7, Call("", priority, True, None))
    wire = Recorder()
    store = RedisStore(wire)  # type: ignore[arg-type]  # as much of one as is needed
    for token in tokens:
        call = Call(token, priority, True, None)
        for cast in (slots.enter(call), slots.leave(token), like.cast(token), both.enter(texts, 3, 7, call)):
            plain: Command[Any] = Command(cast.operation, cast.keys, cast.args)
            step(store.ask(cast))  # type: ignore[arg-type]  # a coroutine, of this wire
            step(store.ask(plain))  # type: ignore[arg-type]
            assert cast.mold is not None
            assert token in cast.args

    assert len(wire.requests) == 8 * len(tokens)
    for cast_request, plain_request in zip(wire.requests[::2], wire.requests[1::2], strict=True):
        assert cast_request.packed == plain_request.packed == pack(cast_request.parts)
        assert (cast_request.key, cast_request.parts) == (plain_request.key, plain_request.parts)
