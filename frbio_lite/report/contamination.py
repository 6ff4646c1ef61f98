"""Test questions that stand in the corpus: how many, and whether the gain comes from them."""

from __future__ import annotations

from collections.abc import Mapping

from frbio_lite.report import format as fmt
from frbio_lite.report.language import N_, _, integer
from frbio_lite.report.load import Result, Run

FOUND, CLEAN = "all~contaminated", "all~clean"  # tasks of results.json: the questions of all tasks, by what was found
# What a control NAME~CONTROL of a task is.
CONTROLS = {
    "contaminated": N_("questions found in the corpus"),
    "clean": N_("questions not found in the corpus"),
    "permuted": N_("options in every other order"),
    "prior": N_("share of yes where nothing is asked"),
    "calibrated": N_("without the habit of saying yes or no"),
}


def control(task: str) -> str:
    """What the control of a task is, in words; empty for a task itself."""
    return _(CONTROLS.get(task.partition("~")[2], ""))


def sentence(run: Run) -> str:
    """What the strata of the merged model tell; empty where the evaluation made none."""
    rows = {model: {row.task: row for row in run.results.get(model, ())} for model in ("base", "merged")}
    found, clean = (rows["merged"].get(name) for name in (FOUND, CLEAN))
    if found is None and clean is None:
        return ""
    count = sum(row.items for row in (found, clean) if row)
    if found is None:
        told = [_("None of {all} test questions was found in the corpus.").format(all=integer(count))]
    else:
        told = [
            _("{found} of {all} test questions were found in the corpus.").format(
                found=integer(found.items), all=integer(count)
            ),
            _kept(run),
            _moved(rows["base"].get(FOUND), found, rows["base"].get(CLEAN), clean),
        ]
    short = run.funnel.contamination.get("questions_too_short") if run.funnel else None
    if isinstance(short, Mapping) and any(short.values()):
        told.append(_("Questions too short to look for count as not found."))
    return " ".join(filter(None, told))


def _kept(run: Run) -> str:
    action = run.funnel.contamination.get("action") if run.funnel else None
    return {
        "drop": _("The documents that hold them were left out of training."),
        "report": _("The documents that hold them were kept for training."),
    }.get(str(action), "")


def _moved(base_found: Result | None, found: Result, base_clean: Result | None, clean: Result | None) -> str:
    values = [row.value if row else None for row in (base_found, found, base_clean, clean)]
    if None in values:
        return ""
    a, b, c, d = (value or 0.0 for value in values)
    return _(
        "From base to merged model the score moved by {found} points on them and by {clean} points on the others: "
        "a gain on those found alone would point to memory, not to knowledge."
    ).format(found=fmt.signed(100 * (b - a)), clean=fmt.signed(100 * (d - c)))
