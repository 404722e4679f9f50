"""The images of docs/performance.md: drawn by matplotlib, small, and legible on a dark page too."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.fleets import COUNTS, LEASED, TRIPS, name
from benchmarks.growth import GROWN
from benchmarks.page import spelled
from benchmarks.rows import BYTES, MICROSECONDS, OURS, PER_SECOND, RATIO, Row

IMAGES = Path(__file__).parent.parent / "docs" / "images"
CARD, TEXT, SOFT, GRID = "#ffffff", "#1f2328", "#59636e", "#d8dee4"
OUR_BLUE, THEIR_GREY, TARGET = "#0969da", "#8c959f", "#c4320a"
LINES = (OUR_BLUE, "#8250df", "#1a7f37", "#bf8700", "#cf222e", "#57606a")
DARK = {
    CARD: "#0d1117", TEXT: "#f0f6fc", SOFT: "#9198a1", GRID: "#2a313c", OUR_BLUE: "#58a6ff", THEIR_GREY: "#656c76",
    TARGET: "#ff7b5a", "#8250df": "#be8fff", "#1a7f37": "#3fb950", "#bf8700": "#d29922", "#cf222e": "#ff7b72",
    "#57606a": "#9198a1",
}  # fmt: skip
_NOTE: dict[str, Any] = {"color": TARGET, "fontsize": 8, "ha": "right", "va": "bottom"}
Rows = Mapping[str, Sequence[Row]]


def draw(rows: Rows) -> None:
    """Draws every image again."""
    for file, make in DRAWN.items():
        figure, title, description = make(rows)
        (IMAGES / f"{file}.svg").write_text(svg(figure, title, description), encoding="utf-8")


Drawn = tuple[Any, str, str]
"""A figure, its title, and what it shows."""


def ratios(section: str, title: str, rows: Rows) -> Drawn:
    """Bars of ratios, with a line at the bare script and one at our target."""
    figure, axes = bars(rows[section], RATIO, "time per decision, as a multiple of a bare EVALSHA (less is better)")
    top = axes.get_xaxis_transform()
    axes.axvline(1.0, color=TEXT, linewidth=1)
    axes.text(1.0, 1.0, " bare EVALSHA", transform=top, color=TEXT, fontsize=8, va="bottom")
    for row in rows[section]:
        if row.target:
            axes.axvline(row.target.bound, color=TARGET, linewidth=1, linestyle="--")
            axes.text(row.target.bound, 1.0, f"our target {row.target.bound:g} ", transform=top, **_NOTE)
    return figure, title, "Bars: each limiter's time per decision over that of a bare EVALSHA in the same run."


def of_breakers(rows: Rows) -> Drawn:
    figure, axes = bars(rows["breakers"], MICROSECONDS, "µs per call, logarithmic (less is better)")
    _logarithmic(axes, "x")
    return figure, "Around a function that does nothing", "Bars: microseconds per call through breakers and retries."


def of_tripless(rows: Rows) -> Drawn:
    figure, _ = bars(rows["tripless"], MICROSECONDS, "µs per decision (less is better)")
    return figure, "Decisions without a trip", "Bars: microseconds per decision made in the process."


def of_memory(rows: Rows) -> Drawn:
    figure, _ = bars(rows["memory"], BYTES, "bytes of used_memory per key (less is better)")
    return figure, "Memory per key", "Bars: bytes per key of the server's memory."


def bars(rows: Sequence[Row], quantity: str, label: str) -> tuple[Any, Any]:
    """Horizontal bars, the least on top, each with its figure."""
    ordered = sorted(rows, key=lambda row: -row.figures[quantity])
    figure, axes = canvas(0.9 + 0.22 * len(ordered))
    colours = [OUR_BLUE if row.library == OURS else THEIR_GREY for row in ordered]
    drawn = axes.barh(range(len(ordered)), [row.figures[quantity] for row in ordered], height=0.66, color=colours)
    figures = [spelled(quantity, row.figures[quantity]) for row in ordered]
    axes.bar_label(drawn, figures, padding=3, color=SOFT, fontsize=8)
    axes.set_yticks(range(len(ordered)), [f"{row.library}: {row.work}" for row in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.08)
    axes.set_xlabel(label)
    return figure, axes


def of_growth(rows: Rows) -> Drawn:
    """A line for each series, against its own size."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows["growth"]:
        work, _, size = row.work.rpartition(" ")
        if RATIO in row.figures and row.library == OURS and not row.work.startswith(GROWN):
            series.setdefault(work, []).append((int(size.replace(",", "")), row.figures[RATIO]))
    figure, axes = canvas(3.6)
    for colour, (work, points) in zip(LINES, series.items(), strict=False):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5, color=colour, label=work)
    _logarithmic(axes, "x")
    axes.set_ylim(bottom=0)
    axes.axhline(1.0, color=TEXT, linewidth=1)
    axes.set_xlabel("capacity, seconds, calls or keys, logarithmic")
    axes.set_ylabel("× a bare EVALSHA")
    _legend(axes)
    return figure, "What grows, and what it costs", "Lines: time per decision against the size of what grows."


def of_processes(rows: Rows) -> Drawn:
    found = {row.work: row.figures[PER_SECOND] for row in rows["processes"]}
    figure, axes = canvas(3.0)
    for colour, work, leased in ((THEIR_GREY, TRIPS, False), (OUR_BLUE, LEASED, True)):
        points = [(count, found[name(count, leased)]) for count in COUNTS if name(count, leased) in found]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.5, color=colour, label=work)
    _logarithmic(axes, "y")
    axes.set_ylim(bottom=1000)
    axes.set_xticks(COUNTS)
    axes.set_xlabel("processes, all on one core with the server")
    axes.set_ylabel("decisions per second, all together")
    _legend(axes)
    return figure, "One hot key, more and more processes", "Lines: decisions per second against processes."


def _legend(axes: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8, labelcolor=TEXT)


def _logarithmic(axes: Any, which: str) -> None:
    """With numbers as people write them, at powers of ten alone."""
    axes.set(**{f"{which}scale": "log"})
    axes.minorticks_off()
    getattr(axes, f"{which}axis").set_major_formatter("{x:,.10g}")


def canvas(height: float) -> tuple[Any, Any]:
    """An empty figure, `height` inches high."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "font.size": 9}):
        figure = Figure((8.0, height), layout="constrained", facecolor=CARD)
        axes = figure.subplots()
    axes.set_facecolor(CARD)
    axes.grid(axis="both", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, length=0, labelsize=8)
    axes.xaxis.label.set_color(SOFT)
    axes.yaxis.label.set_color(SOFT)
    axes.spines[:].set_visible(False)
    return figure, axes


DRAWN: dict[str, Callable[[Rows], Drawn]] = {
    "performance_trips": lambda rows: ratios("trips", "One caller: a trip for each decision", rows),
    "performance_asyncio": lambda rows: ratios("asyncio", "64 tasks of asyncio: a trip for each decision", rows),
    "performance_tripless": of_tripless,
    "performance_breakers": of_breakers,
    "performance_processes": of_processes,
    "performance_growth": of_growth,
    "performance_memory": of_memory,
}


def svg(figure: Any, title: str, description: str) -> str:
    """The figure as an image that names itself, follows the reader's colours, and has no byte that nobody needs."""
    from matplotlib import rc_context

    figure.suptitle(title, color=TEXT, fontsize=11, fontweight="bold", x=0.01, ha="left")
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = _smaller(buffer.getvalue())
    head = f"<title>{escape(title)}</title><desc>{escape(description)}</desc><style>{_style(text)}</style>"
    return re.sub(r"(<svg [^>]*>)", lambda opening: opening[1] + head, text, count=1)


def _style(text: str) -> str:
    """The reader's font, and what the colours that occur become in the dark."""
    rules = (
        f'[style*="{part}: {light}"]{{{part}:{dark}!important}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
        if f"{part}: {light}" in text
    )
    return f"text{{font-family:system-ui,sans-serif}}@media (prefers-color-scheme: dark){{{''.join(rules)}}}"


_NEEDLESS = (
    (r"<!--.*?-->|<metadata>.*?</metadata>", ""),
    (r" font-family: [^;\"]*;", ""),
    (r' clip-path="[^"]*"|<clipPath.*?</clipPath>', ""),  # nothing lies outside
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r'<g id="[^"]*"', "<g"),  # clips and markers, which are referred to, are no groups
    (r"\s*\n\s*", " "),
    (r"> <", "><"),
    (r"<g/>", ""),
    (r"<g>(<(?:path|text)[^>]*(?:/>|>[^<]*</text>))</g>", r"\1"),
)


def _smaller(text: str) -> str:
    """Without what nobody sees."""
    text = text[text.index("<svg") :]
    for pattern, replacement in _NEEDLESS:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", _tenths, text).strip() + "\n"


def _tenths(tag: re.Match[str]) -> str:
    """Coordinates to a tenth of a point; what stands between tags is for the reader."""
    return re.sub(r"(\d+\.\d)\d+", r"\1", tag[0])
