"""Documents whose examples are run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
LIMITS = ROOT / "docs" / "limits.md"
BULKHEAD = ROOT / "docs" / "bulkhead.md"
CIRCUIT_BREAKER = ROOT / "docs" / "circuit_breaker.md"
RETRIES = ROOT / "docs" / "retries.md"
POLICIES = ROOT / "docs" / "policies.md"
FALLBACK = ROOT / "docs" / "fallback.md"
IDEMPOTENCY = ROOT / "docs" / "idempotency.md"
HEALTH = ROOT / "docs" / "health.md"
STATISTICS = ROOT / "docs" / "statistics.md"
FAULTS = ROOT / "docs" / "faults.md"
SECURITY = ROOT / "docs" / "security.md"
PERFORMANCE = ROOT / "docs" / "performance.md"


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def examples(document: Path) -> list[str]:
    """Its blocks of Python, in order."""
    return re.findall(r"```python\n(.*?)```", text_of(document), re.DOTALL)


def name_of(example: str) -> str:
    """How a test names an example: by its last line."""
    return example.strip().splitlines()[-1][:40]


def run_as_it_stands(example: str, port: int) -> subprocess.CompletedProcess[str]:
    """Runs an example in a process of its own, on the server at `port` instead of the one that it names."""
    here = example.replace("localhost:6379", f"127.0.0.1:{port}")
    here = here.replace('host="localhost", port=6379', f'host="127.0.0.1", port={port}')
    environment = {**os.environ, "REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    command = [sys.executable, "-W", "error", "-c", here]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
