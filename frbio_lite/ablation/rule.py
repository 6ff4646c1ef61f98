"""The rule that chooses among merges that were scored, in words, and what users write of it.

frbio ablate … --choose max-domain --retain general>=-1.0 --ratios 0:1:0.1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from frbio_lite import recipe
from frbio_lite.errors import RequestError

MOST_RATIOS = 1001
Point = tuple[str, float]  # method, ratio


@dataclass(frozen=True)
class Candidate:
    """A ratio that was scored: `gains` are points over the base, by group; `eligible` if each group keeps its bound."""

    method: str
    ratio: float
    gains: dict[str, float]
    eligible: bool


def candidate(point: Point, gains: Mapping[str, float], rule: recipe.Choose) -> Candidate:
    """A group that was not measured keeps its bound: the screen may measure fewer than the rule names."""
    eligible = all(gains.get(group, bound) >= bound for group, bound in rule.retain.items())
    return Candidate(point[0], point[1], dict(gains), eligible)


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that no other one beats: at least as good on every group and better on one (the Pareto front)."""

    def beats(a: Candidate, b: Candidate) -> bool:
        return a.gains != b.gains and all(a.gains[group] >= gain for group, gain in b.gains.items())

    return [c for c in candidates if not any(beats(other, c) for other in candidates)]


def ranked(candidates: Sequence[Candidate], rule: recipe.Choose) -> list[Candidate]:
    """The best first: those that keep the bounds, then by the gain in `rule.maximise`, then the smaller ratio."""
    return sorted(candidates, key=lambda c: (not c.eligible, -c.gains[rule.maximise], c.ratio))


def choose(candidates: Sequence[Candidate], rule: recipe.Choose) -> Candidate:
    """The eligible candidate with the highest gain in `rule.maximise`; of equals the smaller ratio, the earlier method.

    The base, ratio 0.0, must be among the candidates: it is the choice when no other qualifies.
    """
    base = next(c for c in candidates if c.ratio == 0.0)
    eligible = (c for c in candidates if c.eligible)
    return min(eligible, key=lambda c: (-c.gains[rule.maximise], c.ratio), default=base)


def explain(chosen: Candidate, candidates: Sequence[Candidate], rule: recipe.Choose) -> str:
    """One English sentence: what the choice gains and keeps, or why the base itself is the choice."""
    bounds = " and ".join(f"{group} at {bound:+.1f} points or more" for group, bound in rule.retain.items())
    others = [c for c in candidates if c.ratio > 0.0]
    eligible = sum(c.eligible for c in others)
    if chosen.ratio > 0.0:
        kept = ", ".join(f"{group} {chosen.gains[group]:+.1f}" for group in rule.retain if group != rule.maximise)
        among = f"the {eligible} of {len(others)} merges that keep {bounds}" if bounds else f"{len(others)} merges"
        gain = f"{chosen.gains[rule.maximise]:+.1f} points" + (f" ({kept})" if kept else "")
        return f"{chosen.method} at {chosen.ratio:g} has the highest {rule.maximise} gain, {gain}, among {among}."
    best = max(others, key=lambda c: (c.gains[rule.maximise], -c.ratio), default=None)
    if best is None:
        return "Only the base itself was scored."
    figures = ", ".join(f"{group} {gain:+.1f}" for group, gain in best.gains.items())
    tried = f"the best of {len(others)} for {rule.maximise}, {best.method} at {best.ratio:g}, has {figures}"
    if eligible:
        return (
            f"No merge that is allowed gains {rule.maximise} points over the base, so the base itself is kept; {tried}."
        )
    return f"No merge keeps {bounds}, so the base itself is kept; {tried}."


def parse_ratios(text: str) -> list[float]:
    """`0:1:0.1` (start, end, step; the end is included when a step falls on it) or `0,0.25,1`, as ascending ratios.

    Steps are decimal, so 0.3 is the float 0.3. Raises RequestError for anything that is not ratios between 0 and 1.
    """
    parts = text.split(":")
    if len(parts) == 1:
        values = [_decimal(part, text) for part in text.split(",")]
    elif len(parts) == 3:
        start, end, step = (_decimal(part, text) for part in parts)
        if step <= 0 or end < start or (end - start) / step >= MOST_RATIOS:
            raise RequestError(
                f"ratios {text}: START:END:STEP goes upward in steps above 0, with {MOST_RATIOS} ratios at most: "
                "write for example 0:1:0.1"
            )
        values = [start + step * i for i in range(int((end - start) / step) + 1)]
    else:
        raise RequestError(f"ratios {text}: write START:END:STEP, such as 0:1:0.1, or a list, such as 0,0.25,1")
    for value in values:
        if not 0 <= value <= 1:
            raise RequestError(f"ratios {text}: {value} is not between 0 (the base) and 1 (the adapted model)")
    return sorted({float(value) for value in values})


def _decimal(part: str, text: str) -> Decimal:
    try:
        value = Decimal(part.strip())
    except InvalidOperation as error:
        raise RequestError(f"ratios {text}: '{part}' is not a number") from error
    if not value.is_finite():
        raise RequestError(f"ratios {text}: '{part}' is not between 0 (the base) and 1 (the adapted model)")
    return value


def parse_retain(text: str) -> dict[str, float]:
    """`general>=-1.0,domain>=0` as {group: points}; an empty text is no bound. Raises RequestError on anything else."""
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        group, sign, bound = (p.strip() for p in part.partition(">="))
        try:
            points = Decimal(bound)
        except InvalidOperation as error:
            raise RequestError(f"retain '{part}': write GROUP>=POINTS, such as general>=-1.0") from error
        if not sign or not group or not points.is_finite() or group in found:
            raise RequestError(f"retain '{part}': write each GROUP>=POINTS once, such as general>=-1.0")
        found[group] = float(points)
    return found
