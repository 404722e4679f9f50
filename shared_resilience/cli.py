"""The command line: `shared-resilience`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import redis

from shared_resilience import acl, scripts
from shared_resilience.backends import step
from shared_resilience.backends.clients import OwnClients
from shared_resilience.demo import command_line as demo
from shared_resilience.diagnosis import Diagnosis, Finding
from shared_resilience.doctor import examine
from shared_resilience.errors import StoreConfigurationError, StoreUnavailableError
from shared_resilience.options import CheckedOptions
from shared_resilience.runtime import Runtime
from shared_resilience.runtimes import own_runtime, users_runtime

HERE = "redis://localhost:6379/0"
EXIT_CODES = {"fine": 0, "warning": 1, "error": 2}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(prog="shared-resilience", description="Limits that a fleet shares through Redis.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    script = commands.add_parser("script", help="print a composed Lua script, to read or to run with redis-cli --eval")
    script.add_argument("name", choices=scripts.names(), metavar="NAME", help=", ".join(scripts.names()))
    script.set_defaults(run=_script)
    _add_doctor_and_acl(commands)
    demo.add_commands(commands)
    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _script(arguments: argparse.Namespace) -> int:
    sys.stdout.write(scripts.load(arguments.name).text)
    return 0


def _add_doctor_and_acl(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="look at a Redis: version, permissions, eviction, persistence, latency, …; what to do about what is wrong",
        epilog="Exit code: 0 if all is fine, 1 with warnings, 2 with errors or if Redis does not answer.",
    )
    doctor.add_argument("url", nargs="?", metavar="URL", help=f"of the Redis; default: REDIS_URL, else {HERE}")
    doctor.add_argument("--command-timeout", type=float, default=0.1, help="seconds, as services have it (%(default)s)")
    doctor.set_defaults(run=_doctor)
    permissions = commands.add_parser("acl", help="print the line that makes a user of Redis with what is needed")
    permissions.add_argument("--user", default="shared-resilience", help="its name (%(default)s)")
    permissions.add_argument("--operator", action="store_true", help="also for reset_all() and all of the doctor")
    permissions.set_defaults(run=_acl)
    for command in (doctor, permissions):
        command.add_argument("--prefix", default="sr", help="of the keys, as services have it (%(default)s)")
        command.add_argument("--cluster", action="store_true", help="it is a Redis Cluster")


def _acl(arguments: argparse.Namespace) -> int:
    line = acl.line(arguments.prefix, arguments.user, cluster=arguments.cluster, operator=arguments.operator)
    sys.stdout.write(line + "\n")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    url = arguments.url or os.environ.get("REDIS_URL") or HERE
    try:
        diagnosis = _examined(url, arguments)
    except (ValueError, StoreConfigurationError) as error:  # each says itself what to do
        diagnosis = _failed(error)
    except StoreUnavailableError as error:
        diagnosis = _failed(error, "is it up, not busy, and nearer than --command-timeout? else name another URL")
    sys.stdout.write(f"{diagnosis}\n")
    return EXIT_CODES[diagnosis.level]


def _examined(url: str, arguments: argparse.Namespace) -> Diagnosis:
    options = CheckedOptions(prefix=arguments.prefix, command_timeout=arguments.command_timeout)
    if not arguments.cluster:
        return _diagnosis(own_runtime(url, options), options)
    checked = OwnClients(url, options.command_timeout, options.connect_timeout)  # which shows no secrets
    try:
        client = redis.RedisCluster.from_url(url, **checked.timeouts)
    except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
        raise StoreUnavailableError(f"no cluster answers ({type(error).__name__}: {error})") from error
    with client:
        return _diagnosis(users_runtime(client, None, options), options)


def _diagnosis(runtime: Runtime, options: CheckedOptions) -> Diagnosis:
    backend = runtime.backends.blocking
    diagnosis = step(examine(backend, options.prefix, options.command_timeout))
    step(backend.close())
    return diagnosis


def _failed(error: Exception, remedy: str = "") -> Diagnosis:
    return Diagnosis((Finding("Redis", "error", str(error), remedy),))
