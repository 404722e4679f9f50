"""`python -m mutation`: all mutants of the scripts and of the core, or a part of them."""

from __future__ import annotations

import argparse
import sys
import time

from mutation import core, scripts_run, table


def main() -> int:
    """The exit code: 0 if at least 95 % of either kind are killed."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument(
        "--only",
        default="",
        help="one file, such as sliding_window.lua, or several of the core: limiter.py,refusals.py",
    )
    parser.add_argument("--limit", type=int, help="at most so many mutants of each script")
    parser.add_argument("--part", choices=["scripts", "core", "all"], default="all")
    options = parser.parse_args()
    started = time.monotonic()
    of_scripts: list[table.Result] = []
    of_core: list[table.Result] = []
    if options.part != "core" and not options.only.endswith(".py"):
        of_scripts = scripts_run.results(options.limit, options.only)
    if options.part != "scripts" and not options.only.endswith(".lua"):
        of_core = core.results(options.limit, options.only)
    for survivor in table.unexplained([*of_scripts, *of_core]):
        print(f"{survivor.file}:{survivor.line} {survivor.change}  survives unexplained in: {survivor.source}")
    if options.limit is None:
        table.write({"scripts": of_scripts, "core": of_core})
    shares = table.percentage(of_scripts), table.percentage(of_core)
    print(f"killed: {shares[0]:.1f} % of the scripts' mutants, {shares[1]:.1f} % of the core's;", end=" ")
    print(f"{time.monotonic() - started:.0f} s")
    return 0 if min(shares) >= table.GOAL else 1


sys.exit(main())
