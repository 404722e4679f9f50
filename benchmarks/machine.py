"""The machine of a run: the core to which all are pinned, and what must be told for figures to mean anything."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

CPUS = Path("/proc/cpuinfo")
PEERS = (
    "limits",
    "throttled-py",
    "pyrate-limiter",
    "ratelimit-io",
    "nopanic",
    "nopanic-redis",
    "pybreaker",
    "interlock-cb",
    "circuitbreaker",
    "tenacity",
    "stamina",
)


def pin() -> int | None:
    """Keeps this process, and all that it starts from now on, on one core; which one. None where that is impossible.

    Without it, the pauses in which idle cores wake up are longer than what is to be measured.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def version(distribution: str) -> str | None:
    """The installed version, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions() -> list[tuple[str, str]]:
    """Of the clients and of each peer."""
    return [(name, version(name) or "not installed") for name in ("redis", "hiredis", *PEERS)]


def facts(core: int | None) -> list[tuple[str, str]]:
    """Name and value of what the figures depend on."""
    return [
        ("CPU", f"{_cpu()}, {os.cpu_count()} cores"),
        ("pinned to", "no core, which this system cannot" if core is None else f"core {core}, clients and server"),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
    ]


def _cpu() -> str:
    if CPUS.exists() and (model := re.search(r"model name\s*: (.+)", CPUS.read_text(encoding="utf-8"))):
        return model[1].strip()
    return platform.processor() or "unknown"
