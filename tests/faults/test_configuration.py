"""Redis answers, but not to this client: password, permissions, certificate, cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from measurements import Measured
from servers import PATIENT, Server, binary_of, free_port, poll

from shared_resilience import ResilienceService, StoreConfigurationError, TokenBucket, acl

BUCKET = TokenBucket(10, 0.001)


def refusal(url: str, prefix: str, form: str) -> str:
    """What a first call is told, and each one after it, and a check."""
    service: Any = ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT)
    api = service if form == "sync" else service.aio
    loop = asyncio.new_event_loop()

    def run(value: Any) -> Any:
        return loop.run_until_complete(value) if isinstance(value, Coroutine) else value

    def told(call: Callable[[], Any]) -> str:
        with pytest.raises(StoreConfigurationError) as caught:
            run(call())
        return str(caught.value)

    limiter = api.get_or_create_rate_limiter("search", BUCKET)
    first, second, _ = told(limiter.try_acquire), told(limiter.try_acquire), told(api.check)
    run(api.close())
    loop.close()
    assert first.rpartition(". ")[2] == second.rpartition(". ")[2]
    return first


@pytest.fixture
def locked(binary: str) -> Iterator[Server]:
    with Server(binary, "--requirepass", "correct") as server:
        yield server


@pytest.mark.fault("the password is wrong, or missing", "one `StoreConfigurationError` on every call, and what to do")
@pytest.mark.parametrize("given", [":wrong-secret@", "user:wrong-secret@", ""])
def test_password(locked: Server, prefix: str, measured: Measured, form: str, given: str) -> None:
    said = refusal(locked.url.replace("//", f"//{given}"), prefix, form)

    measured(said.rpartition(". ")[2])
    assert said.endswith("Check user and password, or the URL that names them.")
    assert "wrong-secret" not in said


@pytest.mark.fault("a permission is missing", "one `StoreConfigurationError` on every call, and what to do")
@pytest.mark.parametrize("missing", ["-evalsha", "-script -eval", "-hset", "-time"])
def test_permission(own_server: Server, prefix: str, measured: Measured, form: str, missing: str) -> None:
    with own_server.client() as admin:
        admin.execute_command(*f"ACL SETUSER w reset on >pw {acl.rules(prefix)} {missing}".split())
    said = refusal(own_server.url.replace("//", "//w:pw@"), prefix, form)

    measured(f"The user{said.partition('. The user')[2]}")
    assert said.endswith("`shared-resilience doctor` names them, `shared-resilience acl` prints them all.")


@pytest.fixture
def encrypted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The URL of a server whose certificate is for localhost, and who signed it."""
    binary = binary_of("redis-7.0")
    if request.config.getoption("--lanes") == "fakeredis" or binary is None:
        pytest.skip("needs Debian's redis-server, which speaks TLS")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    key, chain, signer = (tmp_path / name for name in ("key.pem", "chain.pem", "signer.pem"))
    certificate.private_key_pem.write_to_path(str(key))
    certificate.cert_chain_pems[0].write_to_path(str(chain))
    authority.cert_pem.write_to_path(str(signer))
    port = free_port()
    files = ("--tls-cert-file", str(key.with_name("chain.pem")), "--tls-key-file", str(key))
    options = ("--tls-port", str(port), *files, "--tls-ca-cert-file", str(signer), "--tls-auth-clients", "no")
    with Server(binary, *options):
        yield f"rediss://localhost:{port}/0", signer


@pytest.mark.fault(
    "the certificate is signed by somebody unknown, or for another host",
    "refused as a `StoreConfigurationError`; certificate and host name are verified unless the URL says otherwise",
)
def test_certificate(encrypted: tuple[str, Path], prefix: str, measured: Measured, form: str) -> None:
    url, signer = encrypted
    unknown = refusal(url, prefix, form)
    other_host = refusal(f"{url.replace('localhost', '127.0.0.1')}?ssl_ca_certs={signer}", prefix + "b", form)
    trusted = f"{url}?ssl_ca_certs={signer}"
    with ResilienceService.from_url(trusted, prefix=prefix + "c", command_timeout=PATIENT) as service:
        source = service.get_or_create_rate_limiter("search", BUCKET).try_acquire().source

    measured(f"{unknown.rpartition('. ')[2]} With that: decided by {source}")
    assert "CERTIFICATE_VERIFY_FAILED" in unknown
    assert "127.0.0.1" in other_host
    assert source == "redis"


@pytest.mark.fault(
    "a password is changed while processes run",
    "as an outage: decided locally, an ERROR in the log once a minute at most",
)
def test_later(own_server: Server, prefix: str, measured: Measured, caplog: pytest.LogCaptureFixture) -> None:
    service = ResilienceService.from_url(own_server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", BUCKET)
    assert limiter.try_acquire().source == "redis"
    with own_server.client() as admin, caplog.at_level(logging.ERROR):
        admin.config_set("requirepass", "new")
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        sources = set()

        def told() -> bool:
            sources.add(limiter.try_acquire().source)
            return "Redis refuses this client" in caplog.text

        poll(told, "the log to tell", 5.0)
        for _ in range(1000):
            sources.add(limiter.try_acquire().source)
        errors = caplog.text.count("Redis refuses this client")
        admin.config_set("requirepass", "")
    service.close()

    measured(f"{errors} line in the log")
    assert sources == {"local"}
    assert errors == 1
