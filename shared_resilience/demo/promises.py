"""What the demo promises, and whether it held. Exit code 0 means: all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shared_resilience.demo.outcome import Outcome
from shared_resilience.demo.plan import FAILURES, Plan

CLEARLY = 1.5
ENOUGH = 0.9


class Promise(NamedTuple):
    """A sentence about a scene, what was found, and whether that is as promised."""

    scene: int
    text: str
    found: str
    held: bool


def promises(plan: Plan, outcomes: Sequence[Outcome]) -> list[Promise]:
    """The promises about the scenes of a run."""
    alone, together, outage, own_breakers, one_breaker = outcomes
    return [
        *_without_sharing(plan, alone),
        *_with_sharing(plan, together),
        *_with_outage(plan, outage),
        *_with_own_breakers(plan, own_breakers),
        *_with_one_breaker(plan, one_breaker, own_breakers),
        *(promise for outcome in outcomes for promise in _soundness(outcome) if not promise.held),
    ]


def hint(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """What to change when this machine cannot make more calls than the limit allows, else nothing."""
    alone = outcomes[0]
    if plan.workers == 1 or alone.granted >= CLEARLY * alone.most(plan):
        return ""
    speed = alone.granted / max(alone.duration, 1e-6)
    return f"The workers made {speed:,.0f} calls per second here, too few to pass the limit: take a smaller --limit."


def _without_sharing(plan: Plan, outcome: Outcome) -> list[Promise]:
    granted, most, refused = outcome.granted, outcome.most(plan), outcome.answers["429"]
    if plan.workers == 1:
        return [Promise(1, f"one worker alone stays within the limit: {most:,}", f"{granted:,}", granted <= most)]
    times = granted / most
    text = f"clearly more calls (≥ {CLEARLY} ×) than the limit of {most:,}"
    return [
        Promise(1, text, f"{granted:,}: {times:.1f} ×", times >= CLEARLY),
        Promise(1, "the upstream answers 429", f"{refused:,} times", refused > 0),
    ]


def _with_sharing(plan: Plan, outcome: Outcome) -> list[Promise]:
    granted, most, refused = outcome.granted, outcome.most(plan), outcome.answers["429"]
    formula = f"{plan.capacity:,} + {plan.limit:,}/s × {outcome.duration:.2f} s = {most:,}"
    share = granted / outcome.enough(plan)
    return [
        Promise(2, f"never more than {formula} calls", f"{granted:,}", granted <= most),
        Promise(2, f"at least {ENOUGH:.0%} of what the limit gives", f"{share:.1%}", share >= ENOUGH),
        Promise(2, "no 429", f"{refused:,}", refused == 0),
    ]


def _with_outage(plan: Plan, outcome: Outcome) -> list[Promise]:
    granted, most, refused = outcome.granted, outcome.most(plan), outcome.answers["429"]
    bound = plan.extra
    alone, back = outcome.decided_locally(), outcome.returns()
    found = f"{len(back)} of {plan.workers} workers" + (f", the last after {max(back):.1f} s" if back else "")
    extra = f"{granted:,} = {most:,} {granted - most:+,}"
    within = granted <= most + bound
    return [
        _no_errors(outcome),
        Promise(3, "while Redis is away, workers go on with their shares", f"{alone:,} calls", alone > 0),
        Promise(3, "when it is back, they share again by themselves", found, bool(back)),
        Promise(3, f"at most one capacity of extra calls: {bound:,}", extra, within),
        Promise(3, f"at most as many 429s: {bound:,}", f"{refused:,}", refused <= bound),
    ]


def _with_own_breakers(plan: Plan, outcome: Outcome) -> list[Promise]:
    least = min(sum(call.status == 503 for call in calls) for calls in outcome.calls)
    text = f"every worker finds out for itself, by {FAILURES} failed calls or more"
    found = f"{len(outcome.failed())} failed, {sum(outcome.refused.values()):,} refused"
    return [Promise(4, text, found, least >= FAILURES)]


def _with_one_breaker(plan: Plan, outcome: Outcome, own: Outcome) -> list[Promise]:
    failed, refused = outcome.failed(), sum(outcome.refused.values())
    most = FAILURES + plan.workers - 1
    first = failed[0].granted_at if failed else 0.0
    at_once = sum(call.granted_at < first + plan.open_seconds for call in failed)
    back = outcome.recoveries()
    found = f"{len(back)} of {plan.workers} workers" + (f", the last after {max(back):.1f} s" if back else "")
    fewer = len(failed) < len(own.failed()) or plan.workers == 1
    return [
        Promise(
            5, f"{FAILURES} failed calls and those under way stop the fleet: ≤ {most}", f"{at_once}", at_once <= most
        ),
        Promise(
            5,
            "fewer failed calls than with breakers of their own, probes included",
            f"{len(failed)} instead of {len(own.failed())}, {refused:,} refused",
            fewer,
        ),
        Promise(5, "when the upstream works again, so do all workers", found, len(back) == plan.workers),
    ]


def _soundness(outcome: Outcome) -> list[Promise]:
    """What goes without saying, and is only said when it is broken."""
    answered = sum(outcome.answers.get(status, 0) for status in ("200", "429", "503"))
    found = f"{outcome.granted:,} granted, {answered:,} answered"
    text = "the upstream counted every call that was granted"
    agreement = Promise(outcome.scene.number, text, found, answered == outcome.granted)
    return [agreement] if outcome.scene.number == 3 else [agreement, _no_errors(outcome)]


def _no_errors(outcome: Outcome) -> Promise:
    return Promise(outcome.scene.number, "no error in any worker", f"{len(outcome.errors)}", not outcome.errors)
