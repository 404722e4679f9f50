"""What a person sees: a live table on a terminal, plain lines elsewhere, and a summary at the end."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.table import Table

from shared_resilience.demo.messages import Call
from shared_resilience.demo.outcome import Outcome
from shared_resilience.demo.plan import Plan
from shared_resilience.demo.promises import Promise

WIDTH = 120
"""Of a line where there is no terminal to ask."""

LAG = 0.2
"""Workers report in batches; a second that ended this long ago is complete."""

MOST_NAMED = 8
"""Of more workers than this, a line shows the least and the most."""


class Screen(Console):
    """Standard output, whatever it can show and however long someone reads it."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a summary must not fail for want of a ≥
        super().__init__(width=None if sys.stdout.isatty() else WIDTH)

    def on_broken_pipe(self) -> None:
        """As rich does, but with an error that comes through an event loop in good order."""
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise BrokenPipeError("nobody reads the output any more")


class LiveDisplay:
    """A table that is drawn anew, a few times a second."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self._plan = plan
        self._live = Live(console=console, auto_refresh=False)

    def show(self, outcome: Outcome, now: float, seconds: float) -> None:
        if not self._live.is_started:
            self._live.start()
        self._live.update(self._table(outcome, now, seconds), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _table(self, outcome: Outcome, now: float, seconds: float) -> Table:
        title = f"{outcome.scene.number}. {outcome.scene.title}   {seconds:4.1f} s"
        table = Table(title=title, title_justify="left", min_width=len(title))
        table.add_column("worker")
        for heading in ("granted", "in the last second", _trouble(outcome)):
            table.add_column(heading, justify="right")
        table.add_column("decided by")
        _, rate, refused = _figures(list(outcome), now)
        state = f"limit {self._plan.limit:,}/s"
        if _is_cut(outcome) or outcome.scene.protected:
            state = _state(outcome)
        table.add_row("fleet", f"{outcome.granted:,}", f"{rate}/s", refused, state, style="bold", end_section=True)
        for number, calls in enumerate(outcome.calls, 1):
            table.add_row(str(number), *_figures(calls, now), _decider(calls))
        return table


class LineDisplay:
    """A line a second."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self._console = console
        self._plan = plan
        self._shown: tuple[int, int] | None = None
        self._was_cut = False

    def show(self, outcome: Outcome, now: float, seconds: float) -> None:
        if self._shown is None or self._shown[0] != outcome.scene.number:
            self._print(f"\n{outcome.scene.number}. {outcome.scene.title}")
            self._shown = (outcome.scene.number, 0)
        if self._was_cut != _is_cut(outcome):
            self._was_cut = not self._was_cut
            self._print(f"  {seconds:4.1f} s  {_state(outcome)}")
        if int(seconds) > self._shown[1]:
            self._shown = (outcome.scene.number, int(seconds))
            self._print(self._line(outcome, now, seconds))

    def close(self) -> None:
        self._was_cut = False

    def _line(self, outcome: Outcome, now: float, seconds: float) -> str:
        _, rate, refused = _figures(list(outcome), now)
        counts = [len(calls) for calls in outcome.calls]
        each = " + ".join(map(str, counts)) if len(counts) <= MOST_NAMED else f"{min(counts)} to {max(counts)} each"
        deciders = " and ".join(sorted({_decider(calls) for calls in outcome.calls}))
        if outcome.scene.protected:
            return (
                f"  {seconds:4.1f} s  {rate:>5}/s   passed {outcome.granted:,} = {each}   503s {refused}   "
                f"refused {sum(outcome.refused.values()):,}"
            )
        return (
            f"  {seconds:4.1f} s  {rate:>5}/s of {self._plan.limit:,}/s   granted {outcome.granted:,} = {each}   "
            f"429s {refused}   decided by {deciders}"
        )

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def _figures(calls: Sequence[Call], now: float) -> tuple[str, str, str]:
    recent = sum(now - LAG - 1.0 < call.granted_at <= now - LAG for call in calls)
    return f"{len(calls):,}", f"{recent:,}", f"{sum(call.status != 200 for call in calls):,}"


def _decider(calls: Sequence[Call]) -> str:
    return calls[-1].source if calls else "-"


def _is_cut(outcome: Outcome) -> bool:
    return outcome.cut_at is not None and outcome.restored_at is None


def _trouble(outcome: Outcome) -> str:
    return "503s" if outcome.scene.protected else "429s"


def _state(outcome: Outcome) -> str:
    """What is away, or back."""
    if outcome.scene.protected:
        return "the upstream is broken" if _is_cut(outcome) else "the upstream works"
    return "Redis is cut off" if _is_cut(outcome) else "Redis can be reached again"


def introduce(console: Console, plan: Plan, redis: str, prefix: str) -> None:
    """Prints who plays, by which numbers."""
    burst = plan.capacity + plan.slack
    lines = (
        f"{plan.workers} worker processes and one limit: {plan.limit:,} calls per second, bursts of {plan.capacity:,}.",
        f"Redis is {redis}; all keys start with {prefix}.",
        f"The referee is an upstream with a quota of its own: {plan.limit:,} per second, bursts of {burst:,}. "
        f"Its slack of {plan.slack} is for the calls that may be on their way to it: one per worker, and one more.",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def summarize(console: Console, outcomes: Sequence[Outcome], kept: Sequence[Promise], hint: str) -> None:
    """Prints what each scene promised and what was found, the upstream's answers per second, and what went wrong."""
    table = Table(title="What was promised, and what was found", title_justify="left")
    for heading in ("scene", "promised", "found", "held"):
        table.add_column(heading)
    scene = 0
    for promise in kept:
        if promise.scene != scene:
            table.add_section()
        number = str(promise.scene) if promise.scene != scene else ""
        scene = promise.scene
        table.add_row(number, promise.text, promise.found, "yes" if promise.held else "[bold red]NO[/]")
    console.print("", table, "", sep="\n")
    seconds = Table(
        min_width=64,
        title="What the upstream answered in each second: 200s + 429s, in the scenes in which it breaks 200s + 503s",
        title_justify="left",
        show_header=False,
    )
    for outcome in outcomes:
        pairs = "  ".join(f"{admitted}+{refused}" for admitted, refused in outcome.answers["per_second"])
        seconds.add_row(str(outcome.scene.number), pairs)
    console.print(seconds)
    for line in filter(None, (hint, *(error for outcome in outcomes for error in outcome.errors))):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
