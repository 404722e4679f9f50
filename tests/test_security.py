"""The threats of docs/security.md that no other test stands against."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, SECURITY, text_of
from servers import PATIENT, Server, free_port

import shared_resilience
from shared_resilience import (
    Event,
    FallbackConfig,
    FallbackLevel,
    ResilienceError,
    ResilienceService,
    TokenBucket,
)

PACKAGE = Path(shared_resilience.__file__).parent
FORBIDDEN = {"pickle", "marshal", "shelve", "eval", "exec", "compile", "__import__"}
SECRETS = ("s3cret-user", "s3cret-pass", "s3cret-option")


def test_the_package_neither_pickles_nor_evaluates() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found.add(node.func.id)

    assert found & FORBIDDEN == set()


def test_no_secret_of_a_url_is_shown_anywhere(
    own_server: Server, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong password, nobody there, malformed: in errors, logs, events, reprs and statistics."""
    shown: list[str] = []
    events: list[Event] = []
    with own_server.client() as admin:
        admin.config_set("requirepass", "another")
    urls = [f"redis://s3cret-user:s3cret-pass@127.0.0.1:{port}/0" for port in (own_server.port, free_port())]
    with caplog.at_level(logging.DEBUG):
        for number, url in enumerate(urls):
            service = ResilienceService.from_url(
                url, prefix=f"{prefix}{number}", command_timeout=PATIENT, listeners=[events.append]
            )
            limiter = service.get_or_create_rate_limiter("search", TokenBucket(10, 1))
            for call in (limiter.try_acquire, service.check):
                try:
                    shown.append(repr(call()))
                except ResilienceError as error:
                    shown.append(f"{error} {error!r}")
            shown += [repr(service), repr(limiter), repr(service.get_comprehensive_stats())]
        for malformed in (f"{urls[0]}?password=s3cret-option&nonsense=1", urls[0].replace("redis:", "http:")):
            with pytest.raises(ValueError, match="url") as caught:
                ResilienceService.from_url(malformed)
            shown.append(str(caught.value))
    everything = "\n".join([*shown, *map(repr, events), caplog.text])

    assert "Redis is away" in everything
    assert [secret for secret in SECRETS if secret in everything] == []


def test_a_flood_of_keys_leaves_a_process_small() -> None:
    """All maps by key: of the local store, refusals, leases, commands, debts, and last good values."""
    service = ResilienceService.local()
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(1, 0.001))
    leased = service.get_or_create_rate_limiter("leased", TokenBucket(10, 0.001), lease_tokens=5)
    chain = service.get_or_create_fallback_chain("rates", FallbackConfig(local_size=100, shared_max_age=60))
    chain.register_handler(FallbackLevel.PRIMARY, str)
    for number in range(110_000):
        limiter.try_acquire(str(number))
        limiter.try_acquire(str(number))
        if number < 15_000:
            leased.try_acquire(str(number))
            chain.execute(number)
    process = service._runtime.process
    found = [largest(one, process) for one in (limiter._core, leased._core, chain._core)]

    assert len(process.local) == 100_000
    assert found[:2] == [10_000, 10_000]
    assert found[2] <= 10_000


def largest(thing: Any, outside: object) -> int:
    """The size of the largest map that is reached from `thing`, but not by way of `outside`."""
    seen = {id(outside)}
    waiting, most = [thing], 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type) or callable(one):
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            most = max(most, len(one))
            waiting += list(one.values())[:100]
        elif type(one).__module__.startswith("shared_resilience"):
            slots = [name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())]
            waiting += [getattr(one, name, None) for name in slots] + list(getattr(one, "__dict__", {}).values())
        elif isinstance(one, list | tuple):
            waiting += list(one)[:100]
    return most


def test_each_line_of_the_table_names_tests_that_are_there() -> None:
    rows = re.findall(r"^\| (?!threat|---)(.+) \| (.+) \| (.+) \|$", text_of(SECURITY), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(test_\w+)`", row[2])]
    files = [name for row in rows for name in re.findall(r"`(tests/[\w/]+\.py)`", row[2])]
    everything = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))

    assert len(rows) >= 12
    assert [name for name in names if f"def {name}(" not in everything] == []
    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert all("test" in row[2] or "](" in row[2] for row in rows)
