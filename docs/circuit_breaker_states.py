"""Draws docs/images/circuit_breaker.svg: the states of a circuit, and what leads from one to the next.

    python docs/circuit_breaker_states.py

The states and the arrows are those of the table in the code; a transition that is added there and has no place here is
an error.
"""

from __future__ import annotations

from limits_timelines import IMAGES, Picture

from shared_resilience.circuit import FORCED, TRANSITIONS

PLACES = {"closed": (40.0, 70.0), "open": (560.0, 70.0), "half_open": (300.0, 232.0)}
BOX = (160.0, 58.0)
SAYS = {"closed": "calls pass", "open": "calls are refused", "half_open": "a few probes pass"}
ARROWS = {
    ("closed", "tripped"): ((200, 92), (560, 92), (380, 82), "enough failures, rate and workers"),
    ("open", "due"): ((600, 128), (460, 246), (604, 198), "the open time is over"),
    ("half_open", "failed"): ((420, 232), (560, 114), (392, 170), "a probe fails: open for longer"),
    ("half_open", "recovered"): ((340, 232), (200, 128), (196, 206), "enough probes succeed"),
}


class Diagram(Picture):
    """A picture of boxes and arrows."""

    def box(self, state: str) -> None:
        x, y = PLACES[state]
        width, height = BOX
        self._parts.append(f"<rect class='area' x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='8'/>")
        self.text("text", x + width / 2, y + 25, state.replace("_", "-"), "middle")
        self.text("soft", x + width / 2, y + 44, SAYS[state], "middle")

    def arrow(self, state: str, event: str) -> None:
        (x1, y1), (x2, y2), (x, y), text = ARROWS[state, event]
        self._parts.append(f"<path class='curve' marker-end='url(#tip)' d='M{x1} {y1}L{x2} {y2}'/>")
        self.text("soft", x, y, text, "middle")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    what = "Closed, open and half-open, and the events that lead from one to the next."
    diagram = Diagram("The circuit of a fleet", what, 340, 0, 1)
    tip = "<path class='yes' d='M0 0L8 4L0 8Z'/>"
    diagram._parts.append(
        f"<marker id='tip' refX='8' refY='4' markerWidth='8' markerHeight='8' orient='auto'>{tip}</marker>"
    )
    for state in TRANSITIONS:
        diagram.box(state)
    for state, events in TRANSITIONS.items():
        for event in events:
            diagram.arrow(state, event)
    modes = ", ".join(f"{mode} ({state})" for mode, state in FORCED.items())
    diagram.text("soft", 40, 322, f"From any state, by an operator: {modes}; reset (closed).")
    diagram.write("circuit_breaker")


if __name__ == "__main__":
    main()
