"""The README is true: its examples run as they stand, and redis-cli prints what it shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import Server

from shared_resilience import ResilienceService, TokenBucket

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)


def test_the_readme_has_examples() -> None:
    assert len(EXAMPLES) >= 5
    assert len(CONSOLE) == 1


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.strip().splitlines()[-1][:40])
def test_an_example_runs_as_it_stands(own_server: Server, example: str) -> None:
    here = example.replace("localhost:6379", f"127.0.0.1:{own_server.port}")
    here = here.replace('host="localhost", port=6379', f'host="127.0.0.1", port={own_server.port}')

    done = subprocess.run([sys.executable, "-W", "error", "-c", here], capture_output=True, text=True, timeout=30)

    assert (done.returncode, done.stderr) == (0, "")


def test_redis_cli_prints_what_the_readme_shows(own_server: Server) -> None:
    redis_cli = shutil.which("redis-cli")
    if redis_cli is None:
        pytest.skip("no redis-cli here: it comes with Debian's package redis-tools")
    with ResilienceService.from_url(own_server.url) as service:
        limiter = service.get_or_create_rate_limiter("search", TokenBucket(100, 50))
        assert limiter.try_acquire("user:42", cost=3)
    shown = re.split(r"^\$ redis-cli (.*)\n", CONSOLE[0], flags=re.MULTILINE)[1:]
    for command, output in zip(shown[::2], shown[1::2], strict=True):
        printed = subprocess.run(
            f"{redis_cli} -p {own_server.port} --no-raw {command}", shell=True, capture_output=True, text=True
        ).stdout

        assert masked(printed) == masked(output), command


def masked(text: str) -> str:
    """Without the numbers that depend on the moment: times in µs and times to live in ms."""
    return re.sub(r"\(integer\) \d{1,4}$", "(integer) <ms>", re.sub(r"\d{16}", "<µs>", text.strip()))
