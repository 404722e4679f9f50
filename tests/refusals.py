"""Servers that answer, but refuse: each as long as a block lasts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis
from servers import PATIENT, Server, free_port, poll


@contextmanager
def busy(server: Server) -> Iterator[None]:
    """A script that does not end."""
    with server.client() as admin, server.client() as loops:
        admin.config_set("lua-time-limit", 50)
        loops.connection_pool.connection_kwargs["socket_timeout"] = PATIENT

        def loop() -> None:
            with suppress(redis.RedisError):
                loops.eval("while true do end", 0)

        thread = threading.Thread(target=loop)
        thread.start()
        poll(lambda: refuses(admin, "BUSY"), "the script to be busy")
        yield
        admin.script_kill()
        thread.join()


def refuses(client: Any, word: str) -> bool:
    """Whether it refuses to write with such a word."""
    try:
        client.set("elsewhere", "x")
    except redis.RedisError as error:
        return word in f"{type(error).__name__} {error}"
    return False


@contextmanager
def full(server: Server) -> Iterator[None]:
    with server.client() as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", "1")
        yield
        admin.config_set("maxmemory", "0")


@contextmanager
def without_replicas(server: Server) -> Iterator[None]:
    with server.client() as admin:
        admin.config_set("min-replicas-to-write", 1)
        yield
        admin.config_set("min-replicas-to-write", 0)


@contextmanager
def unsaved(server: Server) -> Iterator[None]:
    """The last snapshot could not be written."""
    with server.client() as admin:
        (Path(admin.config_get("dir")["dir"]) / "dump.rdb").mkdir()  # what is renamed to it fails
        admin.config_set("save", "3600 1")
        admin.bgsave()
        poll(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err", "the snapshot to fail")
        yield
        admin.config_set("save", "")


@contextmanager
def demoted(server: Server) -> Iterator[None]:
    """It has become a replica, as after a failover."""
    with server.client() as admin:
        admin.replicaof("127.0.0.1", str(free_port()))
        yield
        admin.replicaof("NO", "ONE")


@contextmanager
def demoted_and_out_of_date(server: Server) -> Iterator[None]:
    with server.client() as admin:
        admin.config_set("replica-serve-stale-data", "no")
        with demoted(server):
            yield


@contextmanager
def locked(server: Server) -> Iterator[None]:
    """A password that nobody has told the client."""
    with server.client() as admin:
        admin.config_set("requirepass", "new")
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        yield
        admin.config_set("requirepass", "")


@contextmanager
def forbidden(server: Server) -> Iterator[None]:
    """The user has lost a permission."""
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-hset")
        yield
        admin.execute_command("ACL", "SETUSER", "default", "+hset")
