"""The shape of the project: mirrored classes, one-way dependencies, nouns that stand twice."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

import shared_resilience
from shared_resilience import (
    AdaptiveTimeout,
    AsyncAdaptiveTimeout,
    AsyncBulkhead,
    AsyncCircuitBreaker,
    AsyncFallbackChain,
    AsyncHealthChecker,
    AsyncIdempotency,
    AsyncPermits,
    AsyncRateLimiter,
    AsyncResilienceService,
    AsyncRetryBudget,
    AsyncRetryManager,
    Bulkhead,
    CircuitBreaker,
    FallbackChain,
    HealthChecker,
    Idempotency,
    Permits,
    RateLimiter,
    ResilienceService,
    RetryBudget,
    RetryManager,
    scripts,
)
from shared_resilience.circuit_breaker import AsyncGuard, Guard
from shared_resilience.policy import AsyncPolicy, AsyncPolicyGuard, Policy, PolicyGuard
from shared_resilience.reservation import AsyncReservation, Reservation
from shared_resilience.slot_guard import AsyncSlotGuard, SlotGuard

PACKAGE = Path(shared_resilience.__file__).parent
TWINS = [
    (AdaptiveTimeout, AsyncAdaptiveTimeout),
    (Bulkhead, AsyncBulkhead),
    (FallbackChain, AsyncFallbackChain),
    (HealthChecker, AsyncHealthChecker),
    (Idempotency, AsyncIdempotency),
    (CircuitBreaker, AsyncCircuitBreaker),
    (Guard, AsyncGuard),
    (Permits, AsyncPermits),
    (Policy, AsyncPolicy),
    (PolicyGuard, AsyncPolicyGuard),
    (RateLimiter, AsyncRateLimiter),
    (Reservation, AsyncReservation),
    (ResilienceService, AsyncResilienceService),
    (RetryBudget, AsyncRetryBudget),
    (RetryManager, AsyncRetryManager),
    (SlotGuard, AsyncSlotGuard),
]
# A context manager has other dunder methods for asyncio; only the sync service leads to the other one.
OWN_WAYS = {"__enter__", "__exit__", "__aenter__", "__aexit__", "aio"}


def public(kind: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in inspect.getmembers_static(kind)
        if (not name.startswith("_") or name in ("__init__", "__call__")) and name not in OWN_WAYS
    }


def plain(value: Any) -> Any:
    return getattr(value, "__func__", value)


@pytest.mark.parametrize(("sync", "asynchronous"), TWINS)
def test_a_class_and_its_asyncio_twin_have_the_same_methods_signatures_and_documentation(
    sync: type, asynchronous: type
) -> None:
    assert list(public(sync)) == list(public(asynchronous))
    for name, value in public(sync).items():
        here, there = plain(value), plain(public(asynchronous)[name])
        assert inspect.getdoc(here) == inspect.getdoc(there), name
        if isinstance(value, property):
            continue
        one, other = inspect.signature(here), inspect.signature(there)
        # What asyncio is given and gives is called Async…, and a function that it calls returns an awaitable.
        assert str(one) == str(other).replace("Async", "").replace("Awaitable[T]", "T"), name


@pytest.mark.parametrize("kind", [kind for pair in TWINS for kind in pair])
def test_every_public_method_is_documented(kind: type) -> None:
    assert kind.__doc__
    undocumented = [name for name, value in public(kind).items() if not plain(value).__doc__]
    assert set(undocumented) <= {"__init__", "__call__"}


def test_everything_that_is_exported_exists() -> None:
    assert sorted(shared_resilience.__all__) == shared_resilience.__all__
    assert all(hasattr(shared_resilience, name) for name in shared_resilience.__all__)


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


# Each may import from what stands before it, never from what stands after it.
LAYERS = [
    {"scripts", "events", "keys", "validation", "functions", "testing", "integers", "noted", "version"},
    {"circuit_numbers"},
    {"commands", "decision", "priority"},
    {"roster"},
    {"fleet"},
    {"errors"},
    {"deadline", "arguments", "codecs", "lease"},
    {"health", "health_config"},
    {"permit", "claim"},
    {"token_bucket"},
    {"leaky_bucket", "sliding_window"},
    {"overrides"},
    {"circuit", "circuit_config", "heartbeat", "limits", "slots"},
    {"backends", "circuit_commands", "leases", "refusals", "limit_commands"},
    {"retry_config", "responses", "timeout_config"},
    {"backoff", "retry_budget"},
    {
        "bulkhead_config",
        "evidence",
        "fallback_config",
        "idempotency_config",
        "limiter_config",
        "lines",
        "records",
        "sent_commands",
    },
    {"bulkhead_commands", "permit_commands"},
    {"fallback_cache", "held_claims", "holdings"},
    {"limiter_keys"},
    {"announcements", "debts", "outage"},
    {"admission", "breaker", "checkup", "claims", "fallback", "latency", "limiter", "retries"},
    {"reservation", "slot_guard"},
    {
        "adaptive_timeout",
        "bulkhead",
        "circuit_breaker",
        "fallback_chain",
        "health_checker",
        "idempotency",
        "rate_limiter",
        "retry_manager",
    },
    {"permits"},
    {"acl", "diagnosis"},
    {"doctor", "options"},
    {"runtime"},
    {"runtimes"},
    {"plan"},
    {"cores"},
    {"layers"},
    {"policy"},
    {"service"},
    {"decorator"},
    {"cli", "demo", "__main__"},
]


def test_dependencies_point_one_way() -> None:
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for path in PACKAGE.rglob("*.py"):
        noun = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if noun == "__init__":
            continue
        for module in imports_of(path):
            if module.startswith("shared_resilience."):
                imported = module.split(".")[1]
                if imported in level:
                    assert level[imported] <= level[noun], f"{path.name} imports {module}"


def test_components_know_no_other_component_and_asyncio_stays_in_the_backends() -> None:
    outside = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if "asyncio" in imports_of(path) and not {"backends", "demo"} & set(path.relative_to(PACKAGE).parts)
    ]
    assert outside == ["deadline.py"]  # whose `async with` cancels what is awaited


def test_every_script_has_its_noun_in_the_package_and_its_twin_where_it_says() -> None:
    nouns = {path.stem for path in PACKAGE.glob("*.py")}
    for name in scripts.names():
        assert any(name.startswith(noun) for noun in nouns), name
        header = (scripts.folder() / f"{name}.lua").read_text(encoding="utf-8")
        module, _, twin = header.split("Twin: ")[1].split("\n")[0].rpartition(".")
        assert callable(getattr(__import__(module, fromlist=[twin]), twin))


def test_files_stay_small_enough_to_be_one_noun() -> None:
    sizes = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 320} == {}


def test_the_package_imports_nothing_but_redis_and_the_standard_library() -> None:
    sources = [path for path in PACKAGE.rglob("*.py") if "demo" not in path.relative_to(PACKAGE).parts]
    imported = {(module.split(".")[0], path.name) for path in sources for module in imports_of(path)}
    foreign = {(module, name) for module, name in imported if module not in sys.stdlib_module_names}

    assert {module for module, _ in foreign} == {"redis", "shared_resilience", "hiredis"}
    assert [name for module, name in foreign if module == "hiredis"] == ["resp.py"]  # which does without it
