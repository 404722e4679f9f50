"""Draws docs/images/*.svg: what each limit did with some arrivals, as its twin decided them.

    python docs/limits_timelines.py

The arrivals are written below; every mark and curve is what the twin of the script answered.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from limits_runs import Run

from shared_resilience import LeakyBucket, SlidingWindow, TokenBucket
from shared_resilience.sliding_window import SLOTS

IMAGES = Path(__file__).parent / "images"
WIDTH, LEFT, RIGHT = 760.0, 112.0, 30.0
FONT = "font-family='system-ui, sans-serif' font-size='13'"
STYLE = """
.card { fill: #ffffff; stroke: #d0d7de }
.text { fill: #1f2328 }
.soft { fill: #59636e; font-size: 12px }
.axis { stroke: #8c959f }
.grid { stroke: #d8dee4 }
.bound { stroke: #59636e; stroke-dasharray: 5 4 }
.yes { fill: #0969da }
.count { fill: #ffffff; font-weight: 600 }
.no { stroke: #c4320a; stroke-width: 2.2; fill: none }
.curve { stroke: #0969da; stroke-width: 2; fill: none; stroke-linejoin: round }
.area { fill: #0969da; fill-opacity: .12 }
.join { stroke: #0969da; stroke-opacity: .55; stroke-width: 1.2; fill: none }
@media (prefers-color-scheme: dark) {
  .card { fill: #0d1117; stroke: #3d444d }
  .text { fill: #f0f6fc }
  .soft { fill: #9198a1 }
  .axis { stroke: #656c76 }
  .grid { stroke: #2a313c }
  .bound { stroke: #9198a1 }
  .yes { fill: #58a6ff }
  .count { fill: #0d1117 }
  .no { stroke: #ff7b5a }
  .curve { stroke: #58a6ff }
  .area { fill: #58a6ff; fill-opacity: .16 }
  .join { stroke: #58a6ff }
}
"""


class Picture:
    """A card with a title and one time axis from `begin` to `end` seconds."""

    def __init__(self, title: str, description: str, height: float, begin: float, end: float) -> None:
        self._title, self._description, self._height = title, description, height
        self._begin, self._end = begin, end
        self._parts: list[str] = []

    def x(self, seconds: float) -> float:
        return LEFT + (seconds - self._begin) / (self._end - self._begin) * (WIDTH - LEFT - RIGHT)

    def line(self, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self._parts.append(f"<path class='{kind}' d='M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}'/>")

    def across(self, kind: str, y: float) -> None:
        self.line(kind, LEFT, y, WIDTH - RIGHT, y)

    def text(self, kind: str, x: float, y: float, text: str, anchor: str = "start") -> None:
        self._parts.append(f"<text class='{kind}' x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{text}</text>")

    def lane(self, y: float, label: str, note: str = "") -> None:
        """A row's name, at the left."""
        self.text("text", LEFT - 14, y + (4 if not note else -2), label, "end")
        if note:
            self.text("soft", LEFT - 14, y + 13, note, "end")

    def dot(self, x: float, y: float, radius: float) -> None:
        self._parts.append(f"<circle class='yes' cx='{x:.1f}' cy='{y:.1f}' r='{radius:g}'/>")

    def cross(self, x: float, y: float) -> None:
        self._parts.append(f"<path class='no' d='M{x - 3.6:.1f} {y - 3.6:.1f}l7.2 7.2m0 -7.2l-7.2 7.2'/>")

    def allowed(self, seconds: float, y: float) -> None:
        self.dot(self.x(seconds), y, 4)

    def refused(self, seconds: float, y: float) -> None:
        self.cross(self.x(seconds), y)

    def curve(self, points: Sequence[tuple[float, float]], bottom: float) -> None:
        """A line through (x, y), and the area below it down to `bottom`."""
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        first, last = points[0][0], points[-1][0]
        self._parts.append(f"<path class='area' d='M{first:.1f} {bottom:.1f}L{path}L{last:.1f} {bottom:.1f}Z'/>")
        self._parts.append(f"<path class='curve' d='M{path}'/>")

    def seconds(self, y: float, ticks: Sequence[float], top: float) -> None:
        """The time axis at `y`, with grid lines up to `top`."""
        for tick in ticks:
            self.line("grid", self.x(tick), top, self.x(tick), y)
        self.across("axis", y)
        for tick in ticks:
            self.text("soft", self.x(tick), y + 18, f"{tick:g} s", "middle")

    def legend(self, y: float) -> None:
        self.dot(LEFT + 4, y - 4, 4)
        self.text("soft", LEFT + 14, y, "allowed")
        self.cross(LEFT + 80, y - 4)
        self.text("soft", LEFT + 91, y, "refused")

    def write(self, name: str) -> None:
        size = f"width='{WIDTH:g}' height='{self._height:g}' viewBox='0 0 {WIDTH:g} {self._height:g}'"
        head = (
            f"<svg xmlns='http://www.w3.org/2000/svg' {size} {FONT} role='img'>"
            f"<title>{self._title}</title><desc>{self._description}</desc><style>{STYLE}</style>"
            f"<rect class='card' x='.5' y='.5' width='{WIDTH - 1:g}' height='{self._height - 1:g}' rx='8'/>"
            f"<text class='text' x='20' y='28' font-weight='600'>{self._title}</text>"
        )
        path = IMAGES / f"{name}.svg"
        path.write_text(head + "\n".join(self._parts) + "</svg>\n", encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size:,} bytes")


def regular(begin: float, gap: float, number: int) -> list[float]:
    return [round(begin + gap * index, 6) for index in range(number)]


Place = Callable[[float, float], tuple[float, float]]
"""Where a moment and a level lie in a picture."""


def mark(picture: Picture, run: Run, arrivals: Sequence[float], y: float) -> list[float]:
    """Makes the calls, draws their marks, and returns when those were made that were allowed."""
    allowed = []
    for seconds in arrivals:
        if run.take(seconds):
            allowed.append(seconds)
            picture.allowed(seconds, y)
        else:
            picture.refused(seconds, y + 22)
    return allowed


def levels(run: Run, arrivals: Sequence[float], end: float, place: Place) -> list[tuple[float, float]]:
    """The level while `arrivals` come, looked at often, and on both sides of each of them."""
    points = [place(0, run.level(0))]
    for seconds in sorted({*arrivals, *regular(0, 0.01, round(end * 100) + 1)}):
        points.append(place(seconds, run.level(seconds)))
        for _ in range(list(arrivals).count(seconds)):
            run.take(seconds)
            points.append(place(seconds, run.level(seconds)))
    return corners(points)


def corners(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points at which a curve turns, to a tenth of a pixel."""
    kept = [points[0]]
    for point, after in itertools.pairwise(points[1:]):
        (x0, y0), (x1, y1), (x2, y2) = kept[-1], point, after
        length = math.hypot(x2 - x0, y2 - y0)
        if length > 0 and abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) > 0.1 * length:
            kept.append(point)
    return [*kept, points[-1]]


def token_bucket() -> None:
    limit, end = TokenBucket(capacity=8, refill_rate=2), 10.0
    arrivals = [*regular(0.6, 0.1, 11), *regular(2.4, 0.25, 11), *regular(8.2, 0.1, 9)]
    top, bottom, lane = 66.0, 216.0, 246.0
    title = "Token bucket: 8 tokens, 2 come back per second"
    picture = Picture(title, "Level of tokens over ten seconds, and which calls were allowed.", 330, 0, end)
    picture.seconds(290, regular(0, 1, 11), top)
    picture.across("bound", top)
    picture.across("axis", bottom)

    def place(seconds: float, tokens: float) -> tuple[float, float]:
        return picture.x(seconds), bottom - tokens / limit.capacity * (bottom - top)

    picture.lane(top, "8 tokens", "capacity")
    picture.lane(bottom, "0 tokens")
    picture.curve(levels(Run(limit), arrivals, end, place), bottom)
    picture.lane(lane + 11, "calls")
    mark(picture, Run(limit), arrivals, lane)
    picture.legend(48)
    picture.write("token_bucket")


def sliding_window() -> None:
    limit, end = SlidingWindow(limit=6, window=3), 10.0
    arrivals = [*regular(0.5, 0.15, 4), 1.7, *regular(2.1, 0.2, 9), *regular(4.25, 0.4, 12)]
    top, bottom, lane = 70.0, 178.0, 208.0
    title = "Sliding window: 6 calls in any 3 seconds"
    picture = Picture(title, "Calls that count over ten seconds, and which calls were allowed.", 352, 0, end)
    picture.seconds(312, regular(0, 1, 11), top)
    picture.across("bound", top)
    picture.across("axis", bottom)

    def place(seconds: float, calls: float) -> tuple[float, float]:
        return picture.x(seconds), bottom - calls / limit.limit * (bottom - top)

    picture.lane(top, "6 calls", "limit")
    picture.lane(bottom, "0 calls")
    picture.curve(levels(Run(limit), arrivals, end, place), bottom)
    picture.lane(lane + 11, "calls")
    allowed = mark(picture, Run(limit), arrivals, lane)
    picture.lane(276, "any 3 s")
    for row, begin in enumerate((0.5, 2.1, 4.9)):
        count = sum(begin <= moment <= begin + limit.window for moment in allowed)
        bracket(picture, begin, begin + limit.window, 262.0 + 16 * row, f"{count} calls")
    picture.legend(48)
    picture.write("sliding_window")


def bracket(picture: Picture, begin: float, end: float, y: float, text: str) -> None:
    left, right = picture.x(begin), picture.x(end)
    picture.line("axis", left, y, right, y)
    picture.line("axis", left, y - 4, left, y + 4)
    picture.line("axis", right, y - 4, right, y + 4)
    picture.text("soft", right + 8, y + 4, text)


def sliding_window_slots() -> None:
    limit = SlidingWindow(limit=1000, window=58, exact=False)
    slot, end = limit.window / SLOTS, 6.0
    arrivals = [0.15, 0.4, 0.55, 0.9, 1.3, 1.45, 2.6, 3.1, 3.2, 3.35, 3.5, 3.8, 5.2, 5.6]
    above, below = 92.0, 176.0
    title = "Window that is not exact: each call counts as made at the end of its slot"
    picture = Picture(title, "Calls in slots of one second, and the entries that they become.", 254, 0, end)
    picture.seconds(214, regular(0, slot, 7), above - 22)
    picture.lane(above, "calls")
    picture.lane(below, "entries", "with their cost")
    run = Run(limit)
    for seconds in arrivals:
        assert run.take(seconds)
        picture.allowed(seconds, above)
    for time, cost in run.entries():
        for seconds in arrivals:
            if time - slot < seconds <= time:
                picture.line("join", picture.x(seconds), above + 4, picture.x(time), below - 11)
        picture.dot(picture.x(time), below, 11)
        picture.text("count", picture.x(time), below + 4.5, str(cost), "middle")
    note = f"window {limit.window:g} s in {SLOTS} slots of {slot:g} s; six of them are shown"
    picture.text("soft", picture.x(0), 52, note)
    picture.write("sliding_window_slots")


def leaky_bucket() -> None:
    limit, end = LeakyBucket(capacity=5, leak_rate=2), 8.0
    arrivals = [*regular(0.5, 0.1, 8), 2.2, 2.3, 2.45, 4.9, 5.9, 5.95, 6.0]
    top, bottom, above, below = 72.0, 158.0, 208.0, 290.0
    title = "Leaky bucket: a queue of 5, one call goes on every half second"
    picture = Picture(title, "Calls in the queue over eight seconds, and when each of them goes on.", 366, 0, end)
    picture.seconds(326, regular(0, 1, 9), top)
    picture.across("bound", top)
    picture.across("axis", bottom)

    def place(seconds: float, calls: float) -> tuple[float, float]:
        return picture.x(seconds), bottom - calls / limit.capacity * (bottom - top)

    picture.lane(top, "5 inside", "capacity")
    picture.lane(bottom, "0 inside")
    picture.curve(levels(Run(limit), arrivals, end, place), bottom)
    run = Run(limit)
    for seconds in arrivals:
        decision = run.take(seconds)
        if decision:
            picture.line("join", picture.x(seconds), above + 4, picture.x(seconds + decision.delay), below - 4)
            picture.allowed(seconds, above)
            picture.allowed(seconds + decision.delay, below)
        else:
            picture.refused(seconds, above - 18)
    picture.lane(above, "arrive")
    picture.lane(below, "go on", "after delay")
    picture.legend(50)
    picture.write("leaky_bucket")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for draw in (token_bucket, sliding_window, sliding_window_slots, leaky_bucket):
        draw()


if __name__ == "__main__":
    main()
