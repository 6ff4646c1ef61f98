"""The page as its reader uses it, in a real browser, in both languages: sorting, filtering, charts, sizes, print."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from frbio_lite.artifacts import MANIFEST
from frbio_lite.report import write_report

from .browser import CHROMIUM, Page, opened
from .conftest import MakeRun
from .page import with_json

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to show the page in")
LANGUAGES = pytest.mark.parametrize("lang", ["en", "fr"])
ROWS = "[...document.querySelectorAll('table.tasks tbody tr')]"
POINTS = ".chart .line.domain .point"


def middle(page: Page, selector: str, index: int) -> dict[str, float]:
    """Where an element stands in the window, once it is in view."""
    element = f"document.querySelectorAll({json.dumps(selector)})[{index}]"
    page.value(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    box = page.value(f"{element}.getBoundingClientRect().toJSON()")
    return {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}


def move(page: Page, to: dict[str, float]) -> None:
    page.call("Input.dispatchMouseEvent", type="mouseMoved", **to)


def tip(page: Page) -> str:
    """The tooltip's text; empty where it is hidden."""
    told: str = page.value("tip.hidden ? '' : tip.textContent")
    return told.replace("\u00a0", " ").replace("\u202f", " ")


@LANGUAGES
def test_the_page_is_whole_and_nothing_complains(lang: str, make_run: MakeRun, tmp_path: Path) -> None:
    write_report([make_run("a"), make_run("b")], tmp_path / "r.html", lang)
    with opened(tmp_path / "r.html") as page:
        assert page.value("document.documentElement.lang") == lang
        assert page.value("document.documentElement.dataset.ready") == "1"
        counts = page.value(
            "['article', 'svg.chart', 'table.comparison', 'table.tasks', 'table.funnel', '.glance', '.verdict', 'pre', 'h1']"
            ".map((name) => document.querySelectorAll(name).length)"
        )
        assert counts == [2, 10, 1, 2, 2, 2, 4, 2, 1]
        ticks = page.value("[...document.querySelectorAll('.chart .tick')].map((tick) => tick.textContent)")
        assert {"0,5", "100\u00a0%"} <= set(ticks) if lang == "fr" else {"0.5", "100%"} <= set(ticks)
        assert page.errors == []
        page.value("console.error('seen')")
        assert page.errors == ["['seen']"]


@LANGUAGES
def test_a_click_on_a_table_head_sorts_and_typing_filters(lang: str, make_run: MakeRun, tmp_path: Path) -> None:
    write_report([make_run()], tmp_path / "r.html", lang)
    with opened(tmp_path / "r.html") as page:
        head = "table.tasks th:nth-child(4)"
        keys = f"{ROWS}.map((row) => Number(row.cells[3].dataset.sort))"
        before = page.value(keys)
        page.click(f"{head} button")
        assert page.value(keys) == sorted(before) != before and len(set(before)) == 4
        assert page.value(f"document.querySelector('{head}').getAttribute('aria-sort')") == "ascending"
        page.click(f"{head} button")
        assert page.value(keys) == sorted(before, reverse=True)
        page.click("table.tasks th:nth-child(1) button")
        assert page.value(f"{ROWS}.map((row) => row.cells[0].dataset.sort)")[0] == "demo-general"

        page.click("input[data-filters]")
        page.call("Input.insertText", text="HÉLDOUT médical" if lang == "fr" else "HÉLDOUT medical")
        assert page.value(f"{ROWS}.filter((row) => !row.hidden).map((row) => row.cells[0].dataset.sort)") == [
            "heldout-domain"
        ]
        told = page.value("document.querySelector('.filter output').textContent")
        assert told == ("1 sur 4 affichées" if lang == "fr" else "1 of 4 shown")
        assert page.errors == []


@LANGUAGES
def test_a_point_tells_its_numbers(lang: str, make_run: MakeRun, tmp_path: Path) -> None:
    write_report([make_run()], tmp_path / "r.html", lang)
    told = {"en": "Medical tasks, ratio {}: {}%", "fr": "Tâches médicales, ratio {} : {} %"}[lang]
    at_half, at_base, at_quarter = (
        told.format(*(figure.replace(".", "," if lang == "fr" else ".") for figure in figures))
        for figures in (("0.5", "86.0"), ("0", "12.0"), ("0.25", "31.0"))
    )
    with opened(tmp_path / "r.html") as page:
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        move(page, middle(page, f"{POINTS} .marker", 2))
        assert tip(page).startswith(at_half)
        move(page, {"x": 1, "y": 1})
        assert tip(page) == ""
        page.value("document.activeElement.blur()")
        page.click(f"{POINTS}:nth-of-type(1) .marker")
        assert tip(page).startswith(at_base)
        page.press("ArrowRight")
        assert tip(page).startswith(at_quarter)
        assert page.value("document.activeElement.getAttribute('aria-label') === tip.textContent")
        page.press("Tab")  # one stop a chart: on to the next one
        stops = "document.querySelectorAll(\"svg.chart .point[tabindex='0']\").length"
        assert page.value(stops) == page.value("document.querySelectorAll('svg.chart').length") == 5
        assert (
            page.value("[...document.querySelectorAll('svg.chart')].indexOf(document.activeElement.closest('svg'))")
            == 1
        )
        assert page.errors == []


@pytest.mark.slow
@LANGUAGES
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_nothing_overflows_the_window(lang: str, width: int, dark: bool, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(overrides=("name=" + "long" * 40,))
    with_json(run / "merge" / MANIFEST, lambda v: v["figures"].update({"a" * 80: "b" * 80}))
    write_report([run], tmp_path / "r.html", lang)
    with opened(tmp_path / "r.html", width, dark=dark) as page:
        sizes = page.value("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert sizes == [width, width]
        paper = page.value("getComputedStyle(document.documentElement).backgroundColor")
        assert paper == ("rgb(20, 24, 27)" if dark else "rgb(253, 252, 249)")
        inside = page.value(
            "[...document.querySelectorAll('svg.chart text')].every((text) => { const r = text.getBoundingClientRect();"
            f"return r.left >= 0 && r.right <= {width}; }})"
        )
        assert inside
        cut = page.value(
            "[...document.querySelectorAll('h1, h2, h3, h4, p, dd, dt, figcaption')]"
            ".filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline').length"
        )
        assert cut == 0


def test_in_print_the_numbers_behind_the_curves_are_open(make_run: MakeRun, tmp_path: Path) -> None:
    write_report([make_run()], tmp_path / "r.html", "fr")
    with opened(tmp_path / "r.html") as page:
        closed = "document.querySelectorAll('details:not([open])').length"
        assert page.value(closed) > 0
        page.value(f"addEventListener('beforeprint', () => (window.closedInPrint = {closed}))")
        pdf = base64.b64decode(page.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])
        assert pdf.startswith(b"%PDF") and page.value("window.closedInPrint") == 0
        assert page.value(closed) > 0
        page.look(1280, paper=True)
        shown = page.value("['.filter', '#tip'].map((name) => getComputedStyle(document.querySelector(name)).display)")
        assert shown == ["none", "none"] and page.errors == []
