"""The records of calls that are made once under a key: twins of the scripts `idempotency_*.lua`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from shared_resilience.commands import Operation, Reply, Source, State, Step
from shared_resilience.integers import LARGEST, to_integer, to_ttl
from shared_resilience.lease import lease_of

Record = dict[str, int | str]


def _hold(record: Record, token: str, fencing: int, fingerprint: str, now: int) -> Record:
    held: Record = {"state": "running", "owner": token, "fencing": fencing, "fingerprint": fingerprint}
    return {**record, **held, "lease_until_us": now + lease_of(token)}


def _is_owner(record: Record, token: str) -> bool:
    return "state" not in record or (record["state"] == "running" and record.get("owner") == token)


def _copy(state: State) -> Record:
    return dict(cast("Mapping[str, int | str]", state or {}))


def claim(states: Sequence[State], now: int, token: str, fingerprint: str, ttl: int) -> Step:
    """Twin of `idempotency_claim.lua`."""
    record = _copy(states[0])
    state, owner, fencing = record.get("state"), record.get("owner"), to_integer(record.get("fencing")) or 0
    if state in ("running", "done") and record.get("fingerprint") != fingerprint:
        return Step((states[0],), (None,), ("other_arguments", fencing, 0, "", ""))
    if state == "done":
        stored = to_integer(record.get("stored_us"))
        age = 0 if stored is None else max(0, now - stored)
        return Step((states[0],), (None,), ("done", fencing, age, record.get("codec", ""), record.get("result", "")))

    if state == "running":
        left = min((to_integer(record.get("lease_until_us")) or 0) - now, lease_of(str(owner or "")))
        if left > 0 and owner != token:
            record["lease_until_us"] = now + left
            return Step((record,), (None,), ("running", fencing, left, "", ""))
    if state != "running" or owner != token:
        fencing = fencing + 1 if now <= fencing < LARGEST else now
    held = _hold(record, token, fencing, fingerprint, now)
    taken_over = int(state == "running" and owner != token)
    return Step((held,), (to_ttl(ttl),), ("claimed", fencing, taken_over, "", ""))


def renew(states: Sequence[State], now: int, ttl: int, *held: int | str) -> Step:
    """Twin of `idempotency_renew.lua`."""
    after, ttls, reply = list(states), list[int | None](), list[int]()
    for index, (token, fencing, fingerprint) in enumerate(zip(held[::3], held[1::3], held[2::3], strict=True)):
        record = _copy(states[index])
        mine = _is_owner(record, str(token))
        if mine:
            after[index] = _hold(record, str(token), int(fencing), str(fingerprint), now)
        ttls.append(to_ttl(ttl) if mine else None)
        reply.append(int(mine))
    return Step(after, ttls, reply)


def settle(
    states: Sequence[State],
    now: int,
    token: str,
    fencing: int,
    fingerprint: str,
    ttl: int,
    state: str,
    codec: str,
    result: str,
) -> Step:
    """Twin of `idempotency_settle.lua`."""
    record = _copy(states[0])
    is_lost = "state" not in record
    if not _is_owner(record, token) or (is_lost and state == "released"):
        return Step((states[0],), (None,), (0,))
    record.pop("lease_until_us", None)
    record["state"] = state
    if is_lost:
        record |= {"owner": token, "fencing": fencing, "fingerprint": fingerprint}
    if state == "done":
        record |= {"codec": codec, "result": result, "stored_us": now}
    return Step((record,), (to_ttl(ttl),), (1,))


class Answer(NamedTuple):
    """A reply to a call that wants a key.

    `state` is "claimed", "running", "done", "other_arguments", or "denied" where Redis is away and calls are to be
    refused. `microseconds` are what is left of the other's lease, or the age of the result; of a claim, 1 if it was
    taken over.
    """

    state: str
    fencing: int
    microseconds: int
    codec: str
    result: str
    source: Source


def _text(value: int | str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _answer(reply: Reply, source: Source) -> Answer:
    state, fencing, microseconds, codec, result = reply
    return Answer(_text(state), int(fencing), int(microseconds), _text(codec), _text(result), source)


class Kept(NamedTuple):
    """A reply to a renewal or an end: for each record, whether it was the token's own."""

    own: tuple[bool, ...]
    source: Source


def _kept(reply: Reply, source: Source) -> Kept:
    return Kept(tuple(int(one) == 1 for one in reply), source)


CLAIM: Operation[Answer] = Operation(
    "idempotency_claim", claim, _answer, allowed=("claimed", 0, 0, "", ""), denied=("denied", 0, 0, "", "")
)
RENEW: Operation[Kept] = Operation("idempotency_renew", renew, _kept)
SETTLE: Operation[Kept] = Operation("idempotency_settle", settle, _kept, allowed=(1,), denied=(1,))
