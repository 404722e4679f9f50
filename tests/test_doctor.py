"""The self-check on real servers: what it finds, what it says to do, and that what it says to do helps."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from conftest import Api
from refusals import busy
from servers import PATIENT, Server, free_port, poll

from shared_resilience import (
    AsyncResilienceService,
    BulkheadConfig,
    Diagnosis,
    Finding,
    LeakyBucket,
    ResilienceService,
    RetryConfig,
    SlidingWindow,
    StoreConfigurationError,
    StoreUnavailableError,
    TokenBucket,
    acl,
    scripts,
)
from shared_resilience.cli import main
from shared_resilience.doctor import NO_SCRIPT, Facts, judged

SUBJECTS = [
    "decisions",
    "permissions",
    "latency",
    "clock",
    "version",
    "eviction",
    "persistence",
    "replication",
    "connections",
    "scripts",
    "keys",
    "cluster",
]
OF_MANY = sorted({*acl.commands_of_scripts(), "evalsha", "script|load"} - {"time"})


def of(diagnosis: Diagnosis, subject: str) -> Finding:
    (finding,) = [finding for finding in diagnosis.findings if finding.subject == subject]
    return finding


def check(server: Server, **options: Any) -> Diagnosis:
    with ResilienceService.from_url(server.url, command_timeout=PATIENT, **options) as service:
        return service.check()


def test_each_server_is_looked_at_in_every_way_and_in_either_form(api: Api, place: str) -> None:
    if place == "fakeredis":
        pytest.skip("it has no INFO")
    api(api.service.get_or_create_rate_limiter("search").try_acquire())
    diagnosis = api(api.service.check())

    if place == "local":
        assert [finding.subject for finding in diagnosis.findings] == ["Redis"]
        return
    assert [finding.subject for finding in diagnosis.findings] == SUBJECTS
    assert diagnosis.of("error") == diagnosis.of("unknown") == []
    assert of(diagnosis, "version").found.startswith("Valkey 9" if place == "valkey" else f"Redis {place[6:]}")
    assert "bytes on average" in of(diagnosis, "keys").found
    assert str(diagnosis).count("\n           → ") == len(diagnosis.of("warning"))


def test_it_leaves_nothing_behind(own_server: Server) -> None:
    check(own_server)

    with own_server.client() as admin:
        assert set(admin.keys("*")) == {"sr:fleet", "sr:{sr:fleet}:workers"}  # of the heartbeat


@pytest.fixture
def another(own_server: Server) -> Iterator[Any]:
    """A user of a few permissions, and the server's own client."""
    with own_server.client() as admin:

        def user(rules: str) -> Server:
            admin.execute_command(*f"ACL SETUSER w reset on >pw {rules}".split())
            own_server.url = f"redis://w:pw@127.0.0.1:{own_server.port}/0"
            return own_server

        user.admin = admin  # type: ignore[attr-defined]
        yield user


@pytest.mark.parametrize("command", OF_MANY)
def test_a_permission_that_is_missing_is_named_with_a_line_that_helps(another: Any, command: str) -> None:
    server = another(f"{acl.rules('sr', operator=True)} -{command}")
    with pytest.raises(StoreConfigurationError, match="permissions") as caught:
        check(server)
    line = str(caught.value).rpartition("→ ")[2]
    another.admin.execute_command(*line.split())

    assert f"may not: +{command} →" in str(caught.value)
    assert line.startswith("ACL SETUSER w ")
    assert check(server).of("error") == []


def test_keys_that_a_user_may_not_touch_are_a_missing_permission(another: Any) -> None:
    with pytest.raises(StoreConfigurationError, match=r"may not: \+"):
        check(another(acl.rules("other")))


def test_all_commands_of_the_scripts_can_be_tried() -> None:
    assert {*acl.PROBES} == {*acl.commands_of_scripts()} - {"time", "publish"}


def use_everything(service: ResilienceService) -> None:
    """A call through each component, and what its scripts do now and then."""
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(10, 1), SlidingWindow(10), LeakyBucket(100, 10))
    limiter.try_acquire("a", 2)
    limiter.refund("a", 1)
    limiter.reserve("a", 3, timeout=5.0).settle(5)
    limiter.peek("a")
    limiter.pause(0.001)
    limiter.reset("a")
    service.set_override("search", "limit.token_bucket.capacity", 20)
    service.clear_override("search", "limit.token_bucket.capacity")
    service.get_or_create_rate_limiter("leased", TokenBucket(10, 1), lease_tokens=5).try_acquire()
    breaker = service.get_or_create_circuit_breaker("search")
    breaker.force_open()
    breaker.reset()
    breaker.call(len, "a")
    service.get_or_create_bulkhead("search", BulkheadConfig(1, lease=1))
    with service.permits("search").guard("b"):
        pass
    with service.get_or_create_bulkhead("search").guard():
        pass
    service.get_or_create_retry_manager("search", RetryConfig(max_retries=1)).execute_with_retry(len, "a")
    service.get_or_create_adaptive_timeout("search").execute(len, "a")
    service.get_or_create_idempotency("search").execute("a", len, "a")
    service.get_or_create_fallback_chain("search")(len)("a")
    service.fleet()
    service.get_comprehensive_stats()


def test_the_printed_user_may_do_all_that_is_needed_and_the_server_has_refused_nothing(
    binary: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["acl", "--user", "w"]) == 0
    line = capsys.readouterr().out.replace("PASSWORD", "pw")
    with Server(binary) as server, server.client() as admin:
        admin.execute_command(*line.split())
        server.url = f"redis://w:pw@127.0.0.1:{server.port}/0"
        with ResilienceService.from_url(server.url, command_timeout=PATIENT) as service:
            use_everything(service)
            diagnosis = service.check()
        refused = {entry["object"] for entry in admin.acl_log()}
        admin.execute_command(*line.split(), *acl.rules("sr", operator=True).split())
        full = check(server)

    assert diagnosis.level == "fine"
    assert {finding.subject for finding in diagnosis.of("unknown")} == {
        "version, memory, persistence, replication",
        "scripts",
        "keys",
    }
    # by the self-check, which asks for more if it may, and redis-py, which introduces itself
    assert refused <= {"info", "dbsize", "acl|whoami", "acl", "script|exists", "script", "scan", "eval"} | OF_REDIS_PY
    assert full.of("unknown") == full.of("error") == []


OF_REDIS_PY = {"cluster|info", "cluster", "client|setinfo", "client", "memory|usage", "memory"}


def test_another_prefix_is_out_of_reach_of_that_user(another: Any) -> None:
    server = another(acl.rules("sr"))
    with redis.Redis.from_url(server.url) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.set("other:key", "x")


def test_eviction_is_a_warning_whose_remedy_helps(own_server: Server) -> None:
    with own_server.client() as admin:
        admin.config_set("maxmemory", "100mb")
        admin.config_set("maxmemory-policy", "volatile-lru")
        before = of(check(own_server), "eviction")
        admin.config_set("maxmemory-policy", "noeviction")
        after = of(check(own_server), "eviction")

    assert (before.level, after.level) == ("warning", "fine")
    assert before.found.startswith("volatile-lru")
    assert "CONFIG SET maxmemory-policy noeviction" in before.remedy


def test_persistence_is_a_warning_whose_remedy_helps(own_server: Server) -> None:
    with own_server.client() as admin:
        before = of(check(own_server), "persistence")
        admin.config_set("appendonly", "yes")
        after = of(check(own_server), "persistence")

    assert (before.level, after.level) == ("warning", "fine")
    assert before.remedy.endswith("CONFIG SET appendonly yes")


def test_a_replica_is_an_error_and_its_primary_knows_of_it(own_server: Server) -> None:
    with Server(own_server.binary, "--replicaof", "127.0.0.1", str(own_server.port)) as replica:
        with own_server.client() as admin:
            poll(lambda: admin.info("replication")["connected_slaves"] == 1, "the replica")
        with pytest.raises(StoreConfigurationError, match=f"replica of 127.0.0.1:{own_server.port}"):
            check(replica)
        assert "1 replicas" in of(check(own_server), "replication").found


def test_many_clients_are_a_warning(own_server: Server) -> None:
    with own_server.client() as admin:
        admin.config_set("maxclients", 50)
        clients = [redis.Redis(port=own_server.port) for _ in range(45)]
        for client in clients:
            client.ping()
        found = of(check(own_server), "connections")
        for client in clients:
            client.close()

    assert found.level == "warning"
    assert found.found.endswith("clients of 50")


def test_scripts_that_are_loaded_are_counted(own_server: Server) -> None:
    whole = len(scripts.names())
    with own_server.client() as admin:
        for name in scripts.names()[:3]:
            admin.script_load(scripts.load(name).text)
        assert admin.script_exists(NO_SCRIPT) == [False]
        assert of(check(own_server), "scripts").found.startswith(f"3 of {whole} are loaded")


def facts(**known: Any) -> list[Finding]:
    return list(judged(Facts("sr", 0.1, **known)))


@pytest.mark.parametrize(
    ("info", "subject", "level"),
    [
        ({"redis_version": "6.2.14"}, "version", "fine"),
        ({"redis_version": "6.0.16"}, "version", "error"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, "version", "fine"),
        ({"redis_version": ""}, "version", "error"),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "0"}, "eviction", "fine"),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": "100"}, "eviction", "warning"),
        ({"maxmemory_policy": "noeviction", "maxmemory": "100"}, "eviction", "fine"),
        ({"aof_enabled": "1", "aof_last_write_status": "err"}, "persistence", "error"),
        ({"connected_clients": "81", "maxclients": "100"}, "connections", "warning"),
        ({"connected_clients": "80", "maxclients": "100"}, "connections", "fine"),
    ],
)
def test_what_a_server_says_of_itself_is_judged(info: dict[str, str], subject: str, level: str) -> None:
    (finding,) = [finding for finding in facts(info=info) if finding.subject == subject]

    assert finding.level == level
    assert bool(finding.remedy) == (level != "fine")


@pytest.mark.parametrize(
    ("known", "subject", "level"),
    [
        ({"seconds": [0.001, 0.049]}, "latency", "fine"),
        ({"seconds": [0.001, 0.051]}, "latency", "warning"),
        ({"seconds": []}, "latency", "unknown"),
        ({"clock_ahead": 0.9}, "clock", "fine"),
        ({"clock_ahead": -1.1}, "clock", "warning"),
        ({"cluster": {"cluster_state": "fail", "cluster_slots_ok": "16384"}}, "cluster", "error"),
        ({"cluster": {"cluster_state": "ok", "cluster_slots_ok": "16383"}}, "cluster", "error"),
        ({"cluster": {"cluster_state": "ok", "cluster_slots_ok": "16384"}}, "cluster", "fine"),
        ({"elsewhere": True}, "cluster", "error"),
        ({"missing": ["hset"], "user": "w"}, "permissions", "error"),
    ],
)
def test_what_was_measured_is_judged(known: dict[str, Any], subject: str, level: str) -> None:
    (finding,) = [finding for finding in facts(**known) if finding.subject == subject]

    assert finding.level == level


def test_a_clock_is_told_with_its_direction(own_server: Server) -> None:
    found = [of(Diagnosis(tuple(facts(clock_ahead=ahead))), "clock").found for ahead in (2.5, -2.5)]

    assert found == ["2.500 s ahead of this machine's", "2.500 s behind this machine's"]
    assert abs(float(of(check(own_server), "clock").found.split()[0])) < 1


def test_the_worst_finding_is_the_level_of_all() -> None:
    fine, warning, error = (Finding("a", level, "") for level in ("fine", "warning", "error"))

    assert [Diagnosis(found).level for found in ((fine,), (fine, warning), (warning, error, fine))] == [
        "fine",
        "warning",
        "error",
    ]


def test_without_redis_a_check_raises(prefix: str) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailableError, match="no connection"):
        ResilienceService.from_url(url, prefix=prefix).check()

    async def main() -> None:
        await AsyncResilienceService.from_url(url, prefix=prefix).check()

    with pytest.raises(StoreUnavailableError, match="no connection"):
        asyncio.run(main())


def test_the_command_line_shows_all_and_its_exit_code_the_worst(
    own_server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout = ["--command-timeout", str(PATIENT)]
    codes = [main(["doctor", own_server.url, *timeout])]
    shown = capsys.readouterr().out
    with own_server.client() as admin:
        admin.config_set("appendonly", "yes")
        monkeypatch.setenv("REDIS_URL", own_server.url)
        codes.append(main(["doctor", *timeout]))
        admin.config_set("requirepass", "correct")
    codes.append(main(["doctor", f"redis://w:secret@127.0.0.1:{own_server.port}"]))
    own_server.kill()
    codes += [main(["doctor"]), main(["doctor", "http://w:secret@localhost"])]
    broken = capsys.readouterr().out

    assert codes == [1, 0, 2, 2, 2]
    assert [line.split()[1].rstrip(":") for line in shown.splitlines() if "→" not in line] == SUBJECTS
    assert "error      Redis: no connection" in broken
    assert "Check user and password" in broken
    assert "secret" not in broken


def test_the_permissions_are_printed_for_a_prefix_an_operator_and_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["acl", "--prefix", "app:sr", "--user", "limits", "--operator", "--cluster"]) == 0
    line = capsys.readouterr().out

    assert line.startswith(
        "ACL SETUSER limits reset on >PASSWORD ~app:sr:* resetchannels &app:sr:* +select +evalsha +script|load "
    )
    assert {"+cluster|slots", "+command", "+info", "+scan", "+zadd", "+publish"} <= set(line.split())
    assert not {"+@all", "+eval", "+keys", "+flushall", "+config", "~*", "&*"} & set(line.split())


def examined(server: Server, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    code = main(["doctor", server.url, "--command-timeout", str(PATIENT), *options])
    return code, capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "value", "word"), [("maxmemory", "1", "OutOfMemory|OOM"), ("min-replicas-to-write", "1", "NOREPLICAS")]
)
def test_a_redis_that_refuses_to_write_is_an_error(
    own_server: Server, capsys: pytest.CaptureFixture[str], setting: str, value: str, word: str
) -> None:
    with own_server.client() as admin:
        admin.config_set(setting, value)
        code, shown = examined(own_server, capsys)
        with pytest.raises(StoreUnavailableError, match=word):
            check(own_server)
        admin.config_set(setting, "0")

    assert code == 2
    assert re.search(f"error      decisions: .*({word})", shown)
    assert ("warning    eviction" in shown) == (setting == "maxmemory")


def test_a_busy_redis_is_no_missing_permission(own_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with busy(own_server):
        code, shown = examined(own_server, capsys)

    assert code == 2
    assert "BUSY" in shown
    assert "permissions" not in shown


def test_a_password_that_is_missing_is_told(binary: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(binary, "--requirepass", "correct") as server:
        code, shown = examined(server, capsys)

    assert code == 2
    assert "Check user and password" in shown


def test_the_printed_user_may_select_another_database(another: Any) -> None:
    server = another(acl.rules("sr"))
    server.url = server.url.replace("/0", "/1")

    assert check(server).level == "fine"


def test_a_secret_is_not_shown_where_a_cluster_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--cluster", "redis://app:se/cret@127.0.0.1:1"]) == 2
    assert main(["doctor", "--cluster", f"redis://app:se@127.0.0.1:{free_port()}"]) == 2
    shown = capsys.readouterr().out

    assert "url is" in shown
    assert "no cluster answers" in shown
    assert not {"se/", "'se'", "cret"} & set(shown.split())
    assert "app" not in shown
