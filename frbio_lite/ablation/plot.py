"""The Pareto plot of an ablation as an SVG file of its own: what each merge gains on one group and keeps of the other."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from frbio_lite import recipe
from frbio_lite.ablation.rule import Candidate
from frbio_lite.report.charts import HEIGHT, WIDTH, Frame, Line, Mark, Point, element, line_chart, nice_ticks

CAPTION = 44  # user units above the chart, for the caption and what the marks mean
BOUND_DASHES = 2  # index of the bound's dashes among those of the charts
STYLE = """
svg { font-family: system-ui, sans-serif; background: #fdfcf9; }
text { font-size: 12px; fill: #59636c; }
.caption, .mark-label { fill: #1c2125; font-weight: 600; }
.grid { stroke: #dedbd3; }
.mark { stroke: #1c2125; stroke-dasharray: 2 3; }
.stroke { fill: none; stroke: currentColor; stroke-width: 2; }
.marker { fill: currentColor; stroke: #fdfcf9; }
.reach { fill: transparent; }
.line.domain { color: #0a5fa3; }
.line.other { color: #8b949b; }
.line.other .stroke { stroke: none; }
.line.general { color: #b85400; }
.line.bound { color: #9a2564; }
.line.bound .marker { fill: none; stroke: none; }
"""


def pareto_svg(
    candidates: Sequence[Candidate], best: Sequence[Candidate], chosen: Candidate, rule: recipe.Choose
) -> str:
    """The gain in `rule.maximise` over that in the other group (over the ratio, where only one group is measured).

    Diamonds are candidates that another one beats, circles joined by a line the Pareto front `best`, the square is the
    choice; a dashed line is the bound of the rule, where it lies in the picture. Each point tells its figures when met.
    """
    other = next((group for group in chosen.gains if group != rule.maximise), None)

    def point(c: Candidate) -> Point:
        x = c.ratio if other is None else c.gains[other]
        y = c.gains[rule.maximise]
        gains = ", ".join(f"{group} {gain:+.2f}" for group, gain in c.gains.items())
        return Point(x, y, y, y, f"{c.method} {c.ratio:g}: {gains}")

    beaten = [point(c) for c in candidates if c not in best]
    lines = [
        Line("beaten", "other", tuple(beaten), chosen=False),
        Line("front", "domain", tuple(point(c) for c in best), chosen=False),
        Line("chosen", "general", (point(chosen),)),
    ]
    xs = nice_ticks(min(p.x for line in lines for p in line.points), max(p.x for line in lines for p in line.points))
    ys = [p.y for line in lines for p in line.points]
    bound = next((points for group, points in rule.retain.items() if group == other), None)
    if bound is not None and xs[0] <= bound <= xs[-1]:
        text = f"the rule: {other} at {bound:+g} points or more"
        ends = tuple(Point(bound, y, y, y, text) for y in (min(ys), max(ys)))
        lines.insert(0, Line("bound", "bound", ends, dash=BOUND_DASHES, chosen=False))
    x_label = "ratio" if other is None else f"{other}, points over the base"
    caption = f"{rule.maximise} over {'the ratio' if other is None else other}, points over the base, validation items"
    frame = Frame(
        description=caption,
        x_label=x_label,
        y_text=lambda v: f"{v:+.4g}",
        x_ticks=tuple((x, f"{x:+.4g}" if other else f"{x:.4g}") for x in xs),
        mark=Mark(point(chosen).x, f"chosen: {chosen.method} {chosen.ratio:g}"),
    )
    return str(_document(caption, line_chart(lines, frame))) + "\n"


def _document(caption: str, chart: Markup) -> Markup:
    """The chart in a file of its own: namespace, size and colours, which the report's page would give it."""
    size = {"width": 2 * WIDTH, "height": 2 * (HEIGHT + CAPTION)}
    key = "line: Pareto front · diamonds: beaten · square: chosen · dashes: the rule's bound"
    return element(
        "svg",
        element("style", Markup(STYLE)),
        element("text", caption, x=8, y=18, class_="caption"),
        element("text", key, x=8, y=36),
        element("svg", chart, y=CAPTION, width=WIDTH, height=HEIGHT),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {HEIGHT + CAPTION}",
        **size,
    )
