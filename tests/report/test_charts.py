"""The SVG: well-formed, escaped, every point where its numbers put it."""

from __future__ import annotations

import random
from xml.etree import ElementTree

import pytest

from frbio_lite.report.charts import (
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Frame,
    Line,
    Mark,
    Point,
    legend,
    line_chart,
    nice_ticks,
)

HOSTILE = '"><script>alert(1)</script>'


def frame(mark: Mark | None = None, text: str = "d") -> Frame:
    return Frame(text, text, str, ((0.0, text), (1.0, "1")), ((0.0, text),), mark)


def line(values: list[float], tone: str = "domain", text: str = "p", band: bool = False) -> Line:
    points = tuple(Point(i / max(len(values) - 1, 1), v, v - 0.1, v + 0.1, f"{text} {v}") for i, v in enumerate(values))
    return Line(text, tone, points, band=band)


def circles(svg: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg)
    found = [e for e in root.iter("circle") if e.get("class") == "marker"]
    return [(float(e.get("cx", "")), float(e.get("cy", ""))) for e in found]


def test_points_stand_in_proportion() -> None:
    values = [random.uniform(-5, 5) for _ in range(7)]
    at = circles(line_chart([line(values)], frame()))
    assert len(at) == 7
    assert (at[0][0], at[-1][0]) == (LEFT, WIDTH - RIGHT)
    slopes = [(at[i][1] - at[0][1]) / (values[i] - values[0]) for i in range(1, 7) if abs(values[i] - values[0]) > 0.5]
    assert all(s < 0 for s in slopes)  # higher values stand higher
    assert max(slopes) - min(slopes) == pytest.approx(0, abs=0.1)
    assert all(0 <= y <= HEIGHT for _, y in at)


def test_one_constant_point_is_drawn() -> None:
    point = Line("l", "domain", (Point(0.0, 3.0, 3.0, 3.0, "p"),))
    assert len(circles(line_chart([point], frame()))) == 1


def test_no_points_no_chart() -> None:
    assert line_chart([], frame()) == ""
    assert line_chart([Line("l", "other", ())], frame()) == ""


def test_the_chosen_ratio_is_marked_once_and_its_points_stand_out() -> None:
    svg = line_chart([line([1, 2, 3]), line([3, 2, 1], "general")], frame(Mark(0.5, "chosen: 0.5")))
    root = ElementTree.fromstring(svg)
    chosen = [e for e in root.iter("g") if e.get("class") == "chosen"]
    assert [e.get("data-chosen") for e in chosen] == ["0.5"]
    assert [e.get("aria-label") for e in root.iter("g") if e.get("class") == "point is-chosen"] == ["p 2", "p 2"]


def test_every_point_can_be_met_by_keyboard_and_says_its_numbers() -> None:
    root = ElementTree.fromstring(line_chart([line([1, 2, 3]), line([5, 6], band=True)], frame()))
    points = [e for e in root.iter("g") if (e.get("class") or "").startswith("point")]
    assert len(points) == 5
    assert all(e.get("tabindex") == "0" and e.get("aria-label") == e.findtext("title") for e in points)


def test_hostile_text_stays_text() -> None:
    lines = [line([1, 2], tone="general", text=HOSTILE)]
    for svg in (line_chart(lines, frame(Mark(0.5, HOSTILE), HOSTILE)), legend(lines)):
        root = ElementTree.fromstring(svg)
        assert not list(root.iter("script"))
        assert HOSTILE in "".join(root.itertext())


@pytest.mark.parametrize("attempt", range(50))
def test_ticks_enclose_and_are_round(attempt: int) -> None:
    chance = random.Random()
    scale = 10 ** chance.uniform(-6, 6)
    low, high = sorted((chance.uniform(-1, 1) * scale, chance.uniform(-1, 1) * scale))
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + step * 1e-6 and ticks[-1] >= high - step * 1e-6
    assert 2 <= len(ticks) <= 8
    assert ticks[0] > low - step and ticks[-1] < high + step  # no empty space beyond a step
    assert f"{step:.3e}"[:5] in {"1.000", "2.000", "5.000"}


def test_ticks_of_a_single_value() -> None:
    for value in (0.0, 7.0, -3.0):
        ticks = nice_ticks(value, value)
        assert ticks[0] < value < ticks[-1]
