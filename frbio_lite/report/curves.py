"""The charts of a run: the trade-off over the merge ratio, what changed over depth, the loss and the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from frbio_lite.report import format as fmt
from frbio_lite.report import merging
from frbio_lite.report.charts import Frame, Line, Mark, Point, legend, line_chart, nice_ticks
from frbio_lite.report.language import _, integer, number, percent_sign, significant
from frbio_lite.report.load import AblationScore, Choice, LoggedStep, MergedTensor, Run
from frbio_lite.report.means import mean_with_interval
from frbio_lite.report.verdict import group_name, mean_of

MOST_POINTS = 120  # of a training curve; more steps share a point
MOST_RATIO_LABELS = 11
PART_STYLES = {
    "attention": ("attention", 0),
    "MLP": ("mlp", 1),
    "norms": ("other", 2),
}  # tone and dash of a part's line


@dataclass(frozen=True)
class Chart:
    title: str
    svg: Markup
    legend: Markup


def trade_off(run: Run) -> list[Chart]:
    """A chart of the accuracies and one of bits per byte: the mean of each group's validation rows over the ratio."""
    scores = [row for row in run.ablation if row.split == "validation" and row.counts]
    families = sorted({fmt.family(row.metric) for row in scores})
    return [_trade_off_chart(run, name, [row for row in scores if fmt.family(row.metric) == name]) for name in families]


def _trade_off_chart(run: Run, metric: str, scores: Sequence[AblationScore]) -> Chart:
    methods = list(dict.fromkeys(row.method for row in scores))
    groups = list(dict.fromkeys(row.group for row in scores))
    lines = [
        _ratio_line([r for r in scores if (r.method, r.group) == (method, group)], method, group, methods, run.choice)
        for group in groups
        for method in methods
    ]
    name = fmt.capitalized(fmt.metric_name(metric))
    title = name if fmt.is_percent(metric) else _("{metric} (lower is better)").format(metric=name)
    frame = Frame(
        description=_("{metric} over the merge ratio, validation items").format(metric=name),
        x_label=_("merge ratio"),
        y_text=_percent_tick if fmt.is_percent(metric) else significant,
        x_ticks=_ratio_ticks([row.ratio for row in scores]),
        x_notes=((0.0, _("base")), (1.0, _("adapted"))),
        mark=_mark(run.choice),
    )
    return Chart(title, line_chart(lines, frame), legend(lines))


def _mark(choice: Choice | None) -> Mark | None:
    if choice is None:
        return None
    return Mark(choice.ratio, _("chosen: {ratio}").format(ratio=fmt.ratio(choice.ratio)))


def _percent_tick(value: float) -> str:
    return percent_sign(significant(value))


def _ratio_line(
    rows: Sequence[AblationScore], method: str, group: str, methods: Sequence[str], choice: Choice | None
) -> Line:
    metric_scale = 100.0 if rows and fmt.is_percent(rows[0].metric) else 1.0
    several = len(methods) > 1
    name = group_name(group)
    label = _("{group}, {method}").format(group=name, method=method) if several else name
    points = []
    for ratio in sorted({row.ratio for row in rows}):
        here = [row for row in rows if row.ratio == ratio]
        mean = mean_with_interval(here)
        if mean is None:
            continue
        value, low, high = mean
        text = _("{line}, ratio {ratio}: {value}").format(
            line=label, ratio=fmt.ratio(ratio), value=fmt.metric_value(here[0].metric, value)
        )
        if span := fmt.interval(here[0].metric, low, high):
            text += " " + _("(95% interval {span})").format(span=span)
        text += f", {mean_of(len(here)) if len(here) > 1 else here[0].task}"
        bounds = (value if low is None else low, value if high is None else high)
        points.append(Point(ratio, value * metric_scale, bounds[0] * metric_scale, bounds[1] * metric_scale, text))
    tone = group if group in {"domain", "general"} else "other"
    chosen = choice is not None and choice.method == method
    return Line(label, tone, tuple(points), dash=methods.index(method), chosen=chosen)


def _ratio_ticks(ratios: Sequence[float]) -> tuple[tuple[float, str], ...]:
    values = sorted({0.0, *ratios, 1.0})
    if len(values) > MOST_RATIO_LABELS:
        values = [0.0, 0.25, 0.5, 0.75, 1.0]
    return tuple((value, significant(value, 2)) for value in values)


def depth(run: Run) -> list[Chart]:
    """How much each layer changed, a line per part of the model; no chart without at least two layers."""
    parts = merging.by_part(run.tensors).items()
    lines = [_depth_line(part, rows) for part, rows in parts if any(map(merging.changed, rows))]
    layers = [point.x for line in lines for point in line.points]
    if not layers or max(layers) == min(layers):
        return []
    ticks = [tick for tick in nice_ticks(0.0, max(layers), most=8) if tick <= max(layers) and tick.is_integer()]
    frame = Frame(
        description=_("How much the weights changed over the layers, by part of the model"),
        x_label=_("layer, from input to output"),
        y_text=_percent_tick,
        x_ticks=tuple((tick, f"{tick:.0f}") for tick in ticks),
    )
    title = _("‖Δ‖/‖W‖ over depth: median and range of the tensors that changed")
    return [Chart(title, line_chart(lines, frame), legend(lines))]


def _depth_line(part: str, rows: Sequence[MergedTensor]) -> Line:
    by_layer: dict[int, list[float]] = {}
    for row in rows:
        layer = merging.layer_of(row.name)
        if layer is not None and row.relative_change is not None:
            by_layer.setdefault(layer, []).append(row.relative_change)
    by_layer = {layer: [c for c in changes if c > 0.0] or [0.0] for layer, changes in by_layer.items()}
    name = fmt.capitalized(_(part))
    points = []
    for layer, changes in sorted(by_layer.items()):
        low, middle, high = min(changes), median(changes), max(changes)
        text = _("{part}, layer {layer}: {change}").format(part=name, layer=layer, change=fmt.share(middle))
        if len(changes) > 1:
            text += _(", tensors from {low} to {high}").format(low=fmt.share(low), high=fmt.share(high))
        points.append(Point(float(layer), 100 * middle, 100 * low, 100 * high, text))
    tone, dash = PART_STYLES.get(part, ("other", 3))
    return Line(name, tone, tuple(points), dash=dash, band=True)


def training(run: Run) -> list[Chart]:
    """The loss and the learning rate over the tokens seen."""
    return [
        chart
        for chart in (
            _training_chart(run.log, _("Training loss"), lambda e: e.loss, lambda v: number(v, 3)),
            _training_chart(run.log, _("Learning rate"), lambda e: e.learning_rate, lambda v: significant(v, 3)),
        )
        if chart.svg
    ]


def _training_chart(
    log: Sequence[LoggedStep], name: str, value_of: Callable[[LoggedStep], float | None], write: Callable[[float], str]
) -> Chart:
    by_tokens = all(entry.tokens is not None for entry in log)
    known = [(entry, value) for entry in log if (value := value_of(entry)) is not None]
    per_point = -(-len(known) // MOST_POINTS) or 1
    points = []
    for start in range(0, len(known), per_point):
        share = known[start : start + per_point]
        values = [value for _, value in share]
        last = share[-1][0]
        mean = sum(values) / len(values)
        steps = (_("step {last}") if len(share) == 1 else _("steps {first}–{last}")).format(
            first=integer(share[0][0].step), last=integer(last.step)
        )
        text = _("{curve}, {steps}: {value}").format(curve=name, steps=steps, value=write(mean))
        if by_tokens:
            text += _(", {tokens} tokens seen").format(tokens=fmt.count(last.tokens))
        x = last.tokens if by_tokens and last.tokens is not None else last.step
        points.append(Point(float(x), mean, min(values), max(values), text))
    xs = [p.x for p in points] or [0.0]
    frame = Frame(
        description=(
            _("{curve} over the tokens of training") if by_tokens else _("{curve} over the steps of training")
        ).format(curve=name),
        x_label=_("tokens seen") if by_tokens else _("steps"),
        y_text=significant,
        x_ticks=tuple((tick, _short(tick)) for tick in nice_ticks(0.0, max(xs), most=5) if tick <= max(xs)),
    )
    line = Line(name, "other", tuple(points), band=True)
    return Chart(name, line_chart([line], frame), Markup(""))


def _short(value: float) -> str:
    """1.5M, 200k: a tick of tokens."""
    for scale, unit in ((1e9, _("{number}G")), (1e6, _("{number}M")), (1e3, _("{number}k"))):
        if value >= scale:
            return unit.format(number=significant(value / scale))
    return significant(value)
