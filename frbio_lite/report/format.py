"""How numbers are written on the page: metrics, differences, durations, sizes, and figures of a manifest."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

ABSENT = "–"
LOWER_IS_BETTER = frozenset({"bits_per_byte"})
LONGEST_VALUE = 200                       # characters of a figure that is a list
MOST_FIGURES = 60


def is_percent(metric: str) -> bool:
    """All metrics but bits per byte are shares of 1 and shown in percent."""
    return metric not in LOWER_IS_BETTER


def metric_name(metric: str) -> str:
    return metric.replace("_", " ")


def metric_value(metric: str, value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{100 * value:.1f}%" if is_percent(metric) else f"{value:.3f}".replace("-", "−")


def interval(metric: str, low: float | None, high: float | None) -> str:
    """`82.1–89.2`, without the unit, which the value beside it carries."""
    if low is None or high is None:
        return ""
    return f"{100 * low:.1f}–{100 * high:.1f}" if is_percent(metric) else f"{low:.3f}–{high:.3f}"


def signed(value: float | None, decimals: int = 1) -> str:
    """A number with its sign, a true minus, and no sign on what rounds to zero."""
    if value is None:
        return ABSENT
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def ratio(value: float) -> str:
    return f"{value:.4g}"


def count(value: int | None) -> str:
    return ABSENT if value is None else f"{value:,}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value:.0f} B"


def figure(key: str, value: Any) -> str:
    """One measured figure; the unit follows from its name, as in `peak_memory_bytes` and `seconds`."""
    if value is None or isinstance(value, bool | str):
        return {None: ABSENT, True: "yes", False: "no"}.get(value, str(value))
    if not isinstance(value, int | float):
        return json.dumps(value, ensure_ascii=False)[:LONGEST_VALUE]
    if not math.isfinite(value):
        return "not a finite number"
    words = key.lower().replace(".", "_").split("_")
    if words[-1] == "seconds":
        return duration(value)
    if words[-1] == "bytes":
        return size(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}".replace("-", "−")


def figures(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, text) of the figures of a manifest, nested ones joined by a dot; the first `MOST_FIGURES`."""
    flat = list(_flatten(values, ""))
    shown = [(name.replace("_", " "), figure(name, value)) for name, value in flat[:MOST_FIGURES]]
    left_out = len(flat) - len(shown)
    return [*shown, *([("not shown", f"{left_out} more")] if left_out else [])]


def _flatten(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, child in value.items():
        if isinstance(child, Mapping):
            yield from _flatten(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child
