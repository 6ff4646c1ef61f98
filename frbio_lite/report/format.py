"""How numbers are written on the page: metrics, differences, durations, sizes, and figures of a manifest.

All are in the page's language: `82.1%` and `1.91 MiB`, in French `82,1 %` and `1,91 Mio`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from frbio_lite.report.language import _, integer, number, percent, percent_sign, significant

ABSENT = "–"
BITS_PER_BYTE = "bits_per_byte"
SMALLEST_PERCENT = 0.0001  # that is written out
LONGEST_VALUE = 200  # characters of a figure that is a list


def is_percent(metric: str) -> bool:
    """All metrics but bits per byte, of which less is better, are accuracies: shares of 1, shown in percent."""
    return metric != BITS_PER_BYTE


def family(metric: str) -> str:
    """Metrics of one family are averaged and drawn together: the accuracies, and bits per byte."""
    return "accuracy" if is_percent(metric) else BITS_PER_BYTE


def metric_name(metric: str) -> str:
    return _(metric.replace("_", " "))


def metric_value(metric: str, value: float | None) -> str:
    if value is None:
        return ABSENT
    return percent(value) if is_percent(metric) else number(value, 3)


def interval(metric: str, low: float | None, high: float | None) -> str:
    """`82.1–89.2`, without the unit, which the value beside it carries."""
    if low is None or high is None:
        return ""
    return "–".join(number(100 * bound) if is_percent(metric) else number(bound, 3) for bound in (low, high))


def share(value: float) -> str:
    """A share of 1 in percent: one decimal from 1 % on, below that the two digits that tell something."""
    of_100 = abs(100 * value)
    if of_100 == 0.0 or of_100 >= 1.0:
        return percent(value, 0 if f"{of_100:.1f}".endswith(".0") else 1)
    if of_100 < SMALLEST_PERCENT:
        return f"< {percent_sign(significant(SMALLEST_PERCENT))}"
    return percent(value, 1 - math.floor(math.log10(of_100)))


def signed(value: float | None, decimals: int = 1) -> str:
    """A number with its sign, a true minus, and no sign on what rounds to zero."""
    return ABSENT if value is None else number(value, decimals, sign=True)


def ratio(value: float) -> str:
    return significant(value)


def count(value: int | None) -> str:
    return ABSENT if value is None else integer(value)


def duration(seconds: float) -> str:
    if seconds < 0.05:
        return _("{seconds} s").format(seconds=f"< {number(0.1)}")
    if seconds < 60:
        return _("{seconds} s").format(seconds=number(seconds))
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return _("{minutes} min {seconds} s").format(minutes=minutes, seconds=f"{rest:02d}")
    return _("{hours} h {minutes} min").format(hours=integer(minutes // 60), minutes=f"{minutes % 60:02d}")


def size(value: float) -> str:
    """Bytes in units of 1,024."""
    for scale, unit in ((2**30, _("{number} GiB")), (2**20, _("{number} MiB")), (2**10, _("{number} KiB"))):
        if value >= scale:
            return unit.format(number=number(value / scale, 2))
    return _("{number} B").format(number=number(value, 0))


def figure(key: str, value: Any) -> str:
    """One measured figure; the unit follows from its name, as in `peak_memory_bytes` and `seconds`."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if isinstance(value, str):
        return _(value)
    if not isinstance(value, int | float):
        return json.dumps(value, ensure_ascii=False)[:LONGEST_VALUE]
    if not math.isfinite(value):
        return _("not a finite number")
    words = key.lower().replace(".", "_").split("_")
    if words[-1] == "seconds":
        return duration(value)
    if words[-1] == "bytes":
        return size(value)
    return integer(value) if isinstance(value, int) else significant(value)


def capitalized(text: str) -> str:
    """The text as a title or a sentence begins, whatever follows."""
    return text[:1].upper() + text[1:]


def label(name: str) -> str:
    """`peak_memory_bytes` → `peak memory`, `seconds` → `time`: the unit stands with the value."""
    if name.startswith("license "):  # a reason to leave documents out
        return _("license {name}").format(name=name.removeprefix("license "))
    words = ["size"] if name == "bytes" else name.split("_")
    if words[-1] == "bytes":
        words.pop()
    known, bracket, rest = " ".join("time" if word == "seconds" else word for word in words).partition(" (")
    return _(known) + bracket + rest
