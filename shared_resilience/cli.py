"""The command line: `shared-resilience`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from shared_resilience import scripts
from shared_resilience.demo import command_line as demo


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(prog="shared-resilience", description="Limits that a fleet shares through Redis.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    script = commands.add_parser("script", help="print a composed Lua script, to read or to run with redis-cli --eval")
    script.add_argument("name", choices=scripts.names(), metavar="NAME", help=", ".join(scripts.names()))
    script.set_defaults(run=_script)
    demo.add_commands(commands)
    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _script(arguments: argparse.Namespace) -> int:
    sys.stdout.write(scripts.load(arguments.name).text)
    return 0
