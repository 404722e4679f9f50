"""The synchronous way to Redis under faults: one deadline for all of a reply, and no reply for another's request."""

from __future__ import annotations

import os
import signal
import ssl
import threading
import time
from typing import Any

import pytest
import redis
from proxies import Proxy, cut_in_the_middle, in_pieces, instead, pass_on, slowly, swallow, twice
from servers import PATIENT, Server, binary_of, poll

from shared_resilience import Event, ResilienceService, TokenBucket
from shared_resilience.backends import channels, step
from shared_resilience.backends.redis import Request

BUCKET = TokenBucket(1000, 0.001)


def limiter_of(service: ResilienceService) -> Any:
    return service.get_or_create_rate_limiter("search", BUCKET)


def wire_of(service: ResilienceService) -> Any:
    return service._runtime.backends.blocking._store._wire  # type: ignore[attr-defined]


@pytest.mark.usefixtures("reader")
def test_replies_in_pieces_are_put_together(proxy: Proxy, prefix: str) -> None:
    service = ResilienceService.from_url(proxy.url, prefix=prefix, command_timeout=PATIENT)
    limiter = limiter_of(service)
    limiter.try_acquire()
    proxy.treatment = in_pieces

    assert [limiter.try_acquire().remaining for _ in range(3)] == [998, 997, 996]
    assert service.get_comprehensive_stats()["rate_limiters"]["search"]["fleet"] == {"limit.allowed": 4}
    service.close()


@pytest.mark.usefixtures("reader")
def test_a_reply_that_trickles_in_costs_one_command_timeout(proxy: Proxy, prefix: str) -> None:
    service = ResilienceService.from_url(proxy.url, prefix=prefix, command_timeout=0.2)
    limiter = limiter_of(service)
    limiter.try_acquire()
    proxy.treatment = slowly

    begin = time.monotonic()
    decision = limiter.try_acquire()
    spent = time.monotonic() - begin

    assert decision.source == "local"
    assert 0.15 < spent < 1.0  # every read succeeded, and the whole reply takes about 1.5 s
    service.close()


def test_a_lost_reply_is_nobody_elses(proxy: Proxy, prefix: str) -> None:
    service = ResilienceService.from_url(proxy.url, prefix=prefix, command_timeout=0.1)
    limiter = limiter_of(service)
    limiter.try_acquire()
    proxy.treatment = swallow
    lost = limiter.try_acquire("lost", 400)
    proxy.treatment = pass_on
    poll(lambda: limiter.try_acquire("other").source == "redis", "Redis to be asked again")

    assert lost.source == "local"
    assert limiter.peek("lost").remaining == 200  # it ran, once, and then it was decided here and charged
    assert limiter.peek("new").remaining == 1000
    service.close()


@pytest.mark.fault("a connection ends in the middle of a reply", "decided locally; that connection is not used again")
@pytest.mark.usefixtures("reader")
def test_a_connection_that_ends_in_the_middle_of_a_reply_is_not_used_again(proxy: Proxy, prefix: str) -> None:
    service = ResilienceService.from_url(proxy.url, prefix=prefix, command_timeout=PATIENT)
    limiter = limiter_of(service)
    limiter.try_acquire()
    proxy.treatment = cut_in_the_middle
    cut = limiter.try_acquire()
    proxy.treatment = pass_on
    poll(lambda: limiter.try_acquire().source == "redis", "Redis to be asked again")

    assert cut.source == "local"
    assert proxy.accepted >= 2
    service.close()


@pytest.mark.fault("something else than Redis answers", "decided locally, and told")
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    "reply",
    [b":1\r\n", b"$5\r\nhello\r\n", b"*2\r\n:1\r\n:1\r\n", b"*-1\r\n", b"$-1\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"],
)
def test_a_reply_of_another_shape_is_decided_locally_and_told(proxy: Proxy, prefix: str, reply: bytes) -> None:
    events: list[Event] = []
    service = ResilienceService.from_url(proxy.url, prefix=prefix, command_timeout=PATIENT, listeners=[events.append])
    limiter = limiter_of(service)
    limiter.try_acquire()
    proxy.treatment = instead(reply)

    decision = limiter.try_acquire()

    assert (decision.allowed, decision.source) == (True, "local")
    assert [event.name for event in events] == ["store.lost"]
    assert "InvalidResponse" in str(events[0].details["error"])
    service.close()


@pytest.mark.fault("a reply comes twice", "nobody takes the second for its own")
@pytest.mark.usefixtures("reader")
def test_a_surplus_reply_is_nobodys(proxy: Proxy, prefix: str) -> None:
    service = ResilienceService.from_url(proxy.url, prefix=prefix, command_timeout=PATIENT)
    limiter = limiter_of(service)
    limiter.try_acquire()
    proxy.treatment = twice
    limiter.try_acquire("a", 500)
    proxy.treatment = pass_on

    poll(lambda: limiter.try_acquire("other", 7).source == "redis", "Redis to be asked again")
    assert limiter.peek("b").remaining == 1000  # and not the answer to the call before
    service.close()


@pytest.mark.fault("signals arrive while a server is frozen", "one `command_timeout` all the same")
def test_signals_do_not_stretch_the_wait_for_a_frozen_server(own_server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(own_server.url, prefix=prefix, command_timeout=0.2)
    limiter = limiter_of(service)
    limiter.try_acquire()
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    own_server.freeze()
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        begin = time.monotonic()
        source = limiter.try_acquire().source
        spent = time.monotonic() - begin
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        own_server.thaw()

    assert source == "local"
    assert spent < 1.5
    service.close()


def test_a_timeout_of_a_reply_in_pieces_does_not_stay_on_the_connection(proxy: Proxy, prefix: str) -> None:
    service = ResilienceService.from_url(proxy.url, prefix=prefix, command_timeout=PATIENT)
    limiter = limiter_of(service)
    limiter.try_acquire()
    proxy.treatment = in_pieces
    limiter.try_acquire()
    (channel,) = wire_of(service)._idle

    assert channel._socket.gettimeout() == PATIENT
    service.close()


@pytest.mark.fault("a server that stops reading", "one `command_timeout`")
def test_a_server_that_stops_reading_costs_one_command_timeout(proxy: Proxy, prefix: str) -> None:
    service = ResilienceService.from_url(proxy.url, prefix=prefix, command_timeout=0.2)
    limiter = service.get_or_create_rate_limiter("r", *(TokenBucket(10**9, 1, label=f"l{n}") for n in range(500)))
    limiter.try_acquire("k" * 90)  # a request of some 100 kB
    proxy.reads.clear()

    begin = time.monotonic()
    decisions = [limiter.try_acquire("k" * 90).source for _ in range(100)]
    spent = time.monotonic() - begin

    assert decisions == ["local"] * 100
    assert 0.15 < spent < 5.0
    service.close()


def test_callers_at_once_have_a_connection_each_and_leave_no_more(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = limiter_of(service)

    def work() -> None:
        for _ in range(50):
            limiter.try_acquire()

    for _ in range(3):
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert 1 <= len(wire_of(service)._idle) <= 8
    service.close()
    assert not wire_of(service)._idle


@pytest.mark.fault("the server has closed an idle connection", "replaced, unnoticed")
def test_a_connection_that_the_server_closed_while_it_was_idle_is_replaced_unnoticed(
    server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_TRUSTED_FOR", 0.0)
    service = ResilienceService.from_url(f"{server.url}?client_name={prefix}", prefix=prefix, command_timeout=PATIENT)
    limiter = limiter_of(service)
    limiter.try_acquire()
    with server.client() as admin:
        (mine,) = [client for client in admin.client_list() if client["name"] == prefix]
        admin.client_kill_filter(_id=mine["id"])
        poll(lambda: not [c for c in admin.client_list() if c["name"] == prefix], "the connection to be gone")

    assert limiter.try_acquire().source == "redis"
    service.close()


def test_a_users_pool_keeps_three_quarters_of_its_connections(server: Server, prefix: str) -> None:
    pool = redis.ConnectionPool(port=server.port, protocol=2, max_connections=4)
    service = ResilienceService(redis.Redis(connection_pool=pool), prefix=prefix, command_timeout=PATIENT)
    limiter = limiter_of(service)
    barrier = threading.Barrier(3)

    def work() -> None:
        barrier.wait()
        for _ in range(50):
            assert limiter.try_acquire().source == "redis"

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(wire_of(service)._idle) == 1
    held = [pool.get_connection() for _ in range(3)]
    for connection in held:
        pool.release(connection)
    pool.disconnect()


def test_closing_gives_a_users_pool_all_its_connections_back(server: Server, prefix: str) -> None:
    pool = redis.ConnectionPool(port=server.port, protocol=2, max_connections=4)
    service = ResilienceService(redis.Redis(connection_pool=pool), prefix=prefix, command_timeout=PATIENT)
    limiter_of(service).try_acquire()
    assert len(wire_of(service)._idle) == 1
    service.close()

    held = [pool.get_connection() for _ in range(4)]
    for connection in held:
        pool.release(connection)
    pool.disconnect()


def test_a_probe_begins_with_connections_that_nobody_had_before(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter_of(service).try_acquire()
    wire = wire_of(service)
    (channel,) = wire._idle
    step(wire.reconnect())

    assert not wire._idle
    assert channel.connection._sock is None
    service.close()


class Interruption(BaseException):
    """As Ctrl-C raises."""


def test_a_call_that_is_interrupted_leaves_its_reply_to_nobody(
    own_server: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_TRUSTED_FOR", 60.0)  # so that no look at the connection saves the next call
    service = ResilienceService.from_url(own_server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = limiter_of(service)
    limiter.try_acquire()

    def interrupt(number: int, frame: Any) -> None:
        raise Interruption

    before = signal.signal(signal.SIGALRM, interrupt)
    own_server.freeze()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Interruption):
            limiter.try_acquire("interrupted", 400)
    finally:
        signal.signal(signal.SIGALRM, before)
        own_server.thaw()

    assert limiter.try_acquire("next").remaining == 999
    assert limiter.peek("interrupted").remaining == 600
    service.close()


def test_a_request_larger_than_the_buffers_of_the_kernel_is_sent_in_pieces(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    value = "v" * 30_000_000

    assert step(wire_of(service).ask(Request("k", ("ECHO", value)))) == value.encode()
    service.close()


def test_a_users_connections_come_back_as_they_were(server: Server, prefix: str) -> None:
    pool = redis.ConnectionPool(port=server.port, protocol=2, socket_timeout=7.5)
    service = ResilienceService(redis.Redis(connection_pool=pool), prefix=prefix, command_timeout=0.25)
    limiter_of(service).try_acquire()
    service.close()
    connection: Any = pool.get_connection()

    assert connection._sock.gettimeout() == 7.5
    client: Any = redis.Redis(connection_pool=pool)
    assert client.blpop([f"{prefix}:nothing"], 1) is None  # longer than 0.25 s
    pool.release(connection)
    pool.disconnect()


def test_a_service_that_is_dropped_gives_a_users_connections_back(server: Server, prefix: str) -> None:
    pool = redis.ConnectionPool(port=server.port, protocol=2, max_connections=8)
    client = redis.Redis(connection_pool=pool)
    for number in range(20):
        service = ResilienceService(client, prefix=f"{prefix}-{number}", command_timeout=PATIENT)
        assert limiter_of(service).try_acquire().source == "redis"
        del service
    pool.disconnect()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_never_reads_from_a_connection_of_its_parent(server: Server, prefix: str) -> None:
    service = ResilienceService.from_url(server.url, prefix=prefix, command_timeout=PATIENT)
    limiter = service.get_or_create_rate_limiter("search", TokenBucket(10**6, 0.001))
    limiter.try_acquire("warm")
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        right = all(limiter.try_acquire("child", 3).remaining == 10**6 - 3 - 3 * n for n in range(300))
        os.write(write_end, b"right" if right else b"wrong")
        os._exit(0)
    mine = [limiter.try_acquire("parent").remaining for _ in range(300)]
    os.waitpid(child, 0)

    assert mine == [10**6 - 1 - number for number in range(300)]
    assert os.read(read_end, 10) == b"right"
    os.close(read_end)
    os.close(write_end)
    service.close()


def test_unix_sockets_and_tls_take_the_same_way(tmp_path: Any, prefix: str, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--lanes") == "fakeredis":
        pytest.skip("needs a real server, and this is the quick lane")
    path = tmp_path / "s"
    with Server(str(binary_of("valkey")), "--unixsocket", str(path)):
        service = ResilienceService.from_url(f"unix://{path}", prefix=prefix, command_timeout=PATIENT)
        assert [limiter_of(service).try_acquire().remaining for _ in range(3)] == [999, 998, 997]
        (channel,) = wire_of(service)._idle
        assert isinstance(channel, channels.SocketChannel)
        service.close()


def test_a_tls_connection_is_read_on_its_socket_with_a_total_deadline(
    tmp_path: Any, prefix: str, request: pytest.FixtureRequest
) -> None:
    binary = binary_of("redis-7.0")
    if request.config.getoption("--lanes") == "fakeredis" or binary is None:
        pytest.skip("needs Debian's redis-server, which speaks TLS")
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    files = [("--tls-cert-file", "cert.pem"), ("--tls-key-file", "key.pem"), ("--tls-ca-cert-file", "ca.pem")]
    options = [word for option, name in files for word in (option, str(tmp_path / name))]
    with Server(binary) as plain:
        tls_port = plain.port
    with Server(binary, "--tls-port", str(tls_port), *options, "--tls-auth-clients", "no"):
        url = f"rediss://localhost:{tls_port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}"
        service = ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT)
        limiter = limiter_of(service)

        assert [limiter.try_acquire().remaining for _ in range(3)] == [999, 998, 997]
        (channel,) = wire_of(service)._idle
        assert isinstance(channel, channels.SocketChannel)
        assert isinstance(channel._socket, ssl.SSLSocket)
        service.close()
