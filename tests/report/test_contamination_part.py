"""Test questions found in the corpus: what the page says of them, and of the rows of controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from frbio_lite.artifacts import MANIFEST
from frbio_lite.report import contamination

from .conftest import MakeRun, Render
from .page import with_json

Shares = dict[str, tuple[float, float, int]]  # by stratum: base, merged, items


def strata(run: Path, shares: Shares, **funnel: Any) -> Path:
    """The run with these control rows, and this in its corpus's report."""
    for at, model in enumerate(("base", "merged")):
        rows = [
            {
                "task": task,
                "group": "control",
                "split": "test",
                "metric": "score",
                "value": share[at],
                "items": share[2],
            }
            for task, share in shares.items()
        ]
        with_json(run / "eval" / model / "results.json", lambda v, rows=rows: v["rows"].extend(rows))  # type: ignore[misc]
    with_json(run / "corpus/funnel.json", lambda v: v["contamination"].update(funnel))
    return run


def test_found_and_clean_questions_are_told_apart(make_run: MakeRun, render: Render) -> None:
    shares = {"all~contaminated": (0.40, 0.75, 1200), "all~clean": (0.40, 0.425, 2800)}
    page = render(strata(make_run(), shares, action="report", questions_too_short={"quiz": 3}))
    said = page.said()
    assert "1,200 of 4,000 test questions were found in the corpus." in said
    assert "were kept for training" in said and "left out of training" not in said
    assert "moved by +35.0 points on them and by +2.5 points on the others" in said
    assert "too short to look for count as not found" in said
    assert page.row("all~contaminated")[0].endswith("questions found in the corpus")
    assert page.row("all~clean")[0].endswith("questions not found in the corpus")


def test_documents_that_were_dropped_and_no_other_questions(make_run: MakeRun, render: Render) -> None:
    run = strata(make_run(), {"all~contaminated": (0.5, 0.6, 7)}, action="drop", questions_too_short={"quiz": 0})
    said = render(run).said()
    assert "7 of 7 test questions were found" in said and "were left out of training" in said
    assert "on the others" not in said and "too short to look for" not in said


def test_nothing_found(make_run: MakeRun, render: Render) -> None:
    said = render(strata(make_run(), {"all~clean": (0.5, 0.6, 350)})).said()
    assert "None of 350 test questions was found in the corpus." in said and "From base to merged model the" not in said


def test_without_the_control_nothing_is_claimed(make_run: MakeRun, render: Render) -> None:
    assert "test questions were found" not in render(make_run("plain")).said()
    run = strata(make_run("bare"), {"all~contaminated": (0.5, 0.6, 7), "all~clean": (0.5, 0.6, 3)})
    (run / "corpus" / MANIFEST).unlink()  # no corpus to say what became of the documents
    said = render(run).said()
    assert "7 of 10 test questions" in said and "documents that hold them" not in said


@pytest.mark.parametrize("short", [None, [], "a", {"quiz": 0}])
def test_reports_of_other_shapes_do_no_harm(short: Any, make_run: MakeRun, render: Render) -> None:
    run = strata(make_run(), {"all~clean": (0.5, 0.6, 3)}, questions_too_short=short, action=["drop"])
    said = render(run).said()
    assert "None of 3 test questions" in said and "too short to look for" not in said


def test_every_control_has_words() -> None:
    assert contamination.control("quiz") == "" == contamination.control("quiz~new")
    for name in ("permuted", "prior", "calibrated", "contaminated", "clean"):
        assert contamination.control(f"quiz~{name}")
