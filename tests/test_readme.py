"""The README is true: its examples run as they stand, and redis-cli prints what it shows."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from documents import README, examples, name_of, run_as_it_stands, text_of
from servers import Server

from shared_resilience import ResilienceService, TokenBucket

CONSOLE = re.findall(r"```console\n(.*?)```", text_of(README), re.DOTALL)


def test_the_readme_has_examples() -> None:
    assert len(examples(README)) >= 5
    assert len(CONSOLE) == 1


@pytest.mark.parametrize("example", examples(README), ids=name_of)
def test_an_example_runs_as_it_stands(own_server: Server, example: str) -> None:
    done = run_as_it_stands(example, own_server.port)

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
