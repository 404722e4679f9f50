"""The self-check: what Redis is like, whether it suits, and what to do about what does not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared_resilience import acl, scripts
from shared_resilience.backends import Backend
from shared_resilience.backends.faults import StoreError
from shared_resilience.diagnosis import Diagnosis, Finding
from shared_resilience.errors import StoreConfigurationError, StoreUnavailableError

LOOKS = 20
SAMPLED_KEYS = 50
OLDEST = (6, 2)
CLOCK_TOLERANCE = 1.0
NO_SCRIPT = "0" * 40
SPARE = 0.8
"""Of the connections that a server takes, how many may be in use."""

FULL = 0.9
"""Of the memory that a server may take."""

DECISIONS = "decisions"


@dataclass(slots=True)
class Facts:
    """What was asked and answered; None where this user may not ask."""

    prefix: str
    command_timeout: float
    info: Mapping[str, str] | None = None
    seconds: list[float] = field(default_factory=list)
    clock_ahead: float = 0.0
    user: str | None = None
    missing: list[str] = field(default_factory=list)
    known_scripts: int | None = None
    keys: int | None = None
    bytes_of_keys: list[int] = field(default_factory=list)
    cluster: Mapping[str, str] | None = None
    refusal: StoreUnavailableError | StoreConfigurationError | None = None
    """Why Redis does not decide, though it answers."""
    elsewhere: bool = False
    """Whether some keys are on other nodes, to which this client does not go."""


async def examine(backend: Backend, prefix: str, command_timeout: float) -> Diagnosis:
    """Asks Redis about itself. Raises `StoreUnavailableError` or `StoreConfigurationError` if it does not answer."""
    return diagnosed(await facts_of(backend, prefix, command_timeout))


async def check(backend: Backend, prefix: str, command_timeout: float) -> Diagnosis:
    """Likewise, and raises for what keeps Redis from deciding, too."""
    facts = await facts_of(backend, prefix, command_timeout)
    diagnosis = diagnosed(facts)
    if errors := [one for one in diagnosis.of("error") if one.subject != DECISIONS]:
        raise StoreConfigurationError("; ".join(f"{one.subject}: {one.found} → {one.remedy}" for one in errors))
    if facts is not None and facts.refusal is not None:
        raise facts.refusal
    return diagnosis


def diagnosed(facts: Facts | None) -> Diagnosis:
    """What follows from the facts; None: there is no Redis."""
    if facts is None:
        return Diagnosis((Finding("Redis", "fine", "there is none: this process decides alone, as it was told"),))
    return Diagnosis(tuple(judged(facts)))


async def facts_of(backend: Backend, prefix: str, command_timeout: float) -> Facts | None:
    """What Redis answers to a few commands, none of which takes long; None: there is none."""
    if await backend.inquire(prefix, ()) is None:
        return None
    facts = Facts(prefix, command_timeout)
    key = f"{prefix}:{{{prefix}:check}}"  # of nobody's: no resource has a colon after its name
    for _ in range(1 + LOOKS):
        began, at = time.perf_counter(), time.time()
        (told,) = await _replies(backend, key, [("TIME",)])
        facts.seconds.append(time.perf_counter() - began)
        if _is_denial(told):
            facts.missing.append("time")
            break
        if isinstance(told, Exception):  # no password, or too busy
            raise StoreError(told, sent=True).public()
        facts.clock_ahead = int(told[0]) + int(told[1]) / 1e6 - at - facts.seconds[-1] / 2
    del facts.seconds[0]  # which may have had to connect
    facts.missing += [command for command in await _denied(backend, key) if command != "time"]
    shas = [scripts.load(name).sha for name in scripts.names()]
    info, user, known, keys, cluster = await _replies(
        backend, key, [("INFO",), ("ACL", "WHOAMI"), ("SCRIPT", "EXISTS", *shas), ("DBSIZE",), ("CLUSTER", "INFO")]
    )
    facts.info, facts.cluster = _fields(info), _fields(cluster)
    facts.user = None if isinstance(user, Exception) else _text(user)
    facts.known_scripts = None if isinstance(known, Exception) else sum(map(int, known))
    facts.keys = None if isinstance(keys, Exception) else int(keys)
    facts.bytes_of_keys = await _sizes(backend, key, prefix)
    try:
        await backend.check()
    except (StoreUnavailableError, StoreConfigurationError) as error:
        facts.refusal = error
    if not isinstance(cluster, Mapping):  # as clients for a cluster have it, who go everywhere
        elsewhere = [("EXISTS", f"{prefix}:{{{prefix}:check{number}}}") for number in range(LOOKS)]
        facts.elsewhere = any(str(reply).startswith("MOVED") for reply in await _replies(backend, key, elsewhere))
    return facts


async def _replies(backend: Backend, key: str, questions: Sequence[tuple[Any, ...]]) -> list[Any]:
    return await backend.inquire(key, questions) or []


async def _denied(backend: Backend, key: str) -> list[str]:
    questions: list[tuple[Any, ...]] = [("EVALSHA", NO_SCRIPT, 1, key), ("SCRIPT", "LOAD", "return 0")]
    questions += [("EVAL", "return 0", 1, key), ("PUBLISH", f"{key}:wake", "")]
    names = ["evalsha", "script|load", "eval", "publish"]
    for command, arguments in acl.PROBES.items():
        questions.append((command.upper(), key, *arguments))
        names.append(command)
    replies = await _replies(backend, key, questions)
    denied = [name for name, reply in zip(names, replies, strict=False) if _is_denial(reply)]
    if "eval" not in denied:
        return [name for name in denied if name != "script|load"]  # a script is introduced by either
    return [name for name in denied if name != "eval"]


async def _sizes(backend: Backend, key: str, prefix: str) -> list[int]:
    """The bytes of a few keys of ours, whichever come first."""
    cursor: Any = 0
    for _ in range(LOOKS):
        (found,) = await _replies(backend, key, [("SCAN", cursor, "MATCH", f"{prefix}:*", "COUNT", 500)])
        if isinstance(found, Exception):
            return []
        cursor, keys = found
        if isinstance(cursor, Mapping):  # of the one node of a cluster that was asked
            (cursor,) = cursor.values()
        if keys or not int(cursor):
            break
    sizes = await _replies(backend, key, [("MEMORY", "USAGE", one) for one in keys[:SAMPLED_KEYS]])
    return [int(size) for size in sizes if isinstance(size, int)]


def judged(facts: Facts) -> Iterator[Finding]:
    """What follows from the facts."""
    info = facts.info
    yield _decisions(facts)
    yield _permissions(facts)
    yield _latency(facts)
    yield _clock(facts)
    if info is None:
        remedy = "run `shared-resilience doctor` as a user who may INFO (`shared-resilience acl --operator`)"
        yield Finding("version, memory, persistence, replication", "unknown", "this user may not ask", remedy)
    else:
        yield _version(info)
        yield _eviction(info)
        yield _persistence(info)
        yield _replication(info)
        yield _connections(info)
    yield _scripts(facts)
    yield _keys(facts)
    yield _cluster(facts)


def _decisions(facts: Facts) -> Finding:
    if facts.refusal is None:
        return Finding(DECISIONS, "fine", "Redis decides")
    return Finding(
        DECISIONS, "error", str(facts.refusal), "until then each process decides alone; see below, and its log"
    )


def _permissions(facts: Facts) -> Finding:
    who = f"user {facts.user!r}" if facts.user else "this user"
    if not facts.missing:
        return Finding("permissions", "fine", f"{who} may do all that is needed")
    missing = " ".join(f"+{command}" for command in facts.missing)
    channels = f" {acl.channels(facts.prefix)}" if "publish" in facts.missing else ""
    remedy = f"ACL SETUSER {facts.user or 'USER'} ~{facts.prefix}:*{channels} {missing}"
    return Finding("permissions", "error", f"{who} may not: {missing}", remedy)


def _latency(facts: Facts) -> Finding:
    if not facts.seconds:
        return Finding("latency", "unknown", "this user may not ask")
    usual, worst = statistics.median(facts.seconds), max(facts.seconds)
    found = f"{usual * 1e3:.2f} ms, at worst {worst * 1e3:.2f} ms in {len(facts.seconds)} trips"
    if worst <= facts.command_timeout / 2:
        return Finding("latency", "fine", found)
    remedy = (
        f"command_timeout is {facts.command_timeout * 1e3:g} ms, and what takes longer is decided locally: "
        "bring Redis nearer, or give it more time"
    )
    return Finding("latency", "warning", found, remedy)


def _clock(facts: Facts) -> Finding:
    found = f"{abs(facts.clock_ahead):.3f} s {'ahead of' if facts.clock_ahead >= 0 else 'behind'} this machine's"
    if abs(facts.clock_ahead) <= CLOCK_TOLERANCE:
        return Finding("clock", "fine", found)
    return Finding(
        "clock", "warning", found, "limits go by the server's clock alone; logs are hard to compare: use NTP"
    )


def _version(info: Mapping[str, str]) -> Finding:
    valkey = info.get("valkey_version")
    version = valkey or info.get("redis_version", "")
    name = f"{'Valkey' if valkey else 'Redis'} {version}"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers >= OLDEST:
        return Finding("version", "fine", name)
    return Finding("version", "error", name, f"needed is Redis {'.'.join(map(str, OLDEST))} or newer, or Valkey")


def _eviction(info: Mapping[str, str]) -> Finding:
    policy, most = info.get("maxmemory_policy", "noeviction"), int(info.get("maxmemory", 0))
    used = f"{int(info.get('used_memory', 0)) / 1e6:.1f} MB"
    if policy == "noeviction" and most and int(info.get("used_memory", 0)) > FULL * most:
        remedy = "when it is full, calls are decided locally: CONFIG SET maxmemory to more"
        return Finding("eviction", "warning", f"noeviction; {used} used of {most / 1e6:.1f} MB", remedy)
    if policy == "noeviction":
        bound = f" of {most / 1e6:.1f} MB; when full, calls are decided locally" if most else ", without a bound"
        return Finding("eviction", "fine", f"noeviction; {used} used{bound}")
    found = f"{policy}; {used} used" + (f" of {most / 1e6:.1f} MB" if most else ", without a bound")
    if not most:
        return Finding("eviction", "fine", found)
    remedy = (
        "a full server forgets limits, slots and claims, which all carry a time to live: "
        "CONFIG SET maxmemory-policy noeviction, on a server that is no cache for others"
    )
    return Finding("eviction", "warning", found, remedy)


def _persistence(info: Mapping[str, str]) -> Finding:
    if info.get("aof_enabled") == "1":
        broken = info.get("aof_last_write_status", "ok") != "ok"
        found = "append-only file; a restart loses a second at most"
        if broken:
            return Finding("persistence", "error", "the append-only file cannot be written", "look at the server's log")
        return Finding("persistence", "fine", found)
    found = "no append-only file; a restart may begin empty, or with an older snapshot"
    remedy = (
        "fine for limits (one more burst), circuits (they close) and slots (as many again); "
        "with idempotency keys: CONFIG SET appendonly yes"
    )
    return Finding("persistence", "warning", found, remedy)


def _replication(info: Mapping[str, str]) -> Finding:
    if info.get("role", "master") != "master":
        found = f"this is a replica of {info.get('master_host')}:{info.get('master_port')}, which cannot decide"
        return Finding("replication", "error", found, "name the primary, or hand in a client made by Sentinel")
    replicas = int(info.get("connected_slaves", 0))
    if replicas == 0:
        return Finding("replication", "fine", "no replicas; while the server is down, each process decides alone")
    found = f"{replicas} replicas; a failover forgets what had not reached them"
    return Finding("replication", "fine", found)


def _connections(info: Mapping[str, str]) -> Finding:
    used, most = int(info.get("connected_clients", 0)), int(info.get("maxclients", 0))
    found = f"{used:,} clients" + (f" of {most:,}" if most else "")
    if most and used > SPARE * most:
        return Finding("connections", "warning", found, "CONFIG SET maxclients to more, or share connections")
    return Finding("connections", "fine", found)


def _scripts(facts: Facts) -> Finding:
    if facts.known_scripts is None:
        return Finding("scripts", "unknown", "this user may not ask; they are sent when they are first needed")
    whole = len(scripts.names())
    return Finding("scripts", "fine", f"{facts.known_scripts} of {whole} are loaded; the others are sent when needed")


def _keys(facts: Facts) -> Finding:
    if facts.keys is None:
        return Finding("keys", "unknown", "this user may not ask")
    found = f"{facts.keys:,} in this database"
    if facts.bytes_of_keys:
        usual = statistics.fmean(facts.bytes_of_keys)
        found += f"; {len(facts.bytes_of_keys)} of ours take {usual:.0f} bytes on average"
    return Finding("keys", "fine", found)


def _cluster(facts: Facts) -> Finding:
    if facts.elsewhere:
        found = "this is a node of a Redis Cluster, and the client is for one server"
        remedy = "ResilienceService(redis.RedisCluster(...)); shared-resilience doctor --cluster"
        return Finding("cluster", "error", found, remedy)
    if facts.cluster is None:
        return Finding("cluster", "fine", "no Redis Cluster, or one that this user may not ask")
    state, covered = facts.cluster.get("cluster_state"), int(facts.cluster.get("cluster_slots_ok", 0))
    found = f"{covered:,} of 16,384 slots are served by {facts.cluster.get('cluster_size')} primaries"
    if state == "ok" and covered == 16_384:
        return Finding("cluster", "fine", found)
    return Finding("cluster", "error", f"state {state}: {found}", "redis-cli --cluster check, and fix")


def _is_denial(reply: object) -> bool:
    return isinstance(reply, Exception) and ("NOPERM" in str(reply) or "no permissions" in str(reply).lower())


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _fields(reply: Any) -> dict[str, str] | None:
    """The lines of INFO; a cluster client has taken them apart already."""
    if isinstance(reply, Exception):
        return None
    if isinstance(reply, Mapping):
        return {str(name): str(value) for name, value in reply.items()}
    lines: Sequence[str] = _text(reply).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
