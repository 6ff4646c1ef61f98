"""The report: runs in, one self-contained HTML page out, for a clinician first and an engineer next.

    write_report([Path("runs/demo")], Path("report.html"), language="fr")

The page loads nothing: its style sheet, script and charts stand in it, and its content policy forbids any request.
All that comes from files is untrusted text and escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from frbio_lite.artifacts import write_text
from frbio_lite.errors import RequestError
from frbio_lite.report import verdict
from frbio_lite.report.language import LANGUAGES, _, ngettext, speaking
from frbio_lite.report.load import load_run
from frbio_lite.report.view import page

LARGEST_PAGE = 3_000_000  # bytes


def write_report(runs: Sequence[Path], output: Path, language: str = "en") -> dict[str, Any]:
    """Write the page of one run, or of several compared, to `output`, whole or not at all; `language` is en or fr.

    A run is a directory that `frbio run --out` filled; stages that are not finished are shown as not there yet.
    The folder of `output` is made if missing.
    Returns `bytes`, and for each run its `name`, `directory`, `verdict` (sentences) and `missing` (stages).
    Raises RequestError when there is no run, a directory is none or is damaged, the language is another one, the page
    would pass `LARGEST_PAGE`, or `output` cannot be written.
    """
    if language not in LANGUAGES:
        raise RequestError(f"no report in the language {language!r}: choose one of {', '.join(LANGUAGES)}")
    if not runs:
        raise RequestError("a report needs at least one run: give a directory that `frbio run --out` filled")
    if output.is_dir():
        raise RequestError(f"{output} is a directory: name the file to write, for example {output / 'report.html'}")
    loaded = [load_run(run) for run in runs]
    with speaking(language):
        html = _render(page(loaded)).encode(errors="replace").decode()  # JSON can hold halves of a surrogate pair
        verdicts = [verdict.sentences(run) for run in loaded]
    size = len(html.encode())
    if size > LARGEST_PAGE:
        raise RequestError(
            f"the page of {len(runs)} runs would take {size / 1e6:.1f} MB, over {LARGEST_PAGE / 1e6:.0f}: "
            "report fewer runs, or ablate fewer ratios and tasks"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, html)
    except OSError as error:
        raise RequestError(f"{output} cannot be written ({error.strerror}): choose another place with --out") from error
    return {
        "bytes": size,
        "runs": [
            {"name": run.name, "directory": str(run.directory), "verdict": told, "missing": run.missing}
            for run, told in zip(loaded, verdicts, strict=True)
        ],
    }


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("frbio_lite.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.policies["ext.i18n.trimmed"] = True  # a sentence may run over lines of the template
    environment.install_gettext_callables(_, ngettext)  # type: ignore[attr-defined]  # the extension's
    return environment


def _render(context: dict[str, Any]) -> str:
    style, script = _template_text("report.css"), _template_text("report.js")
    policy = f"default-src 'none'; style-src '{_source_hash(style)}'; script-src '{_source_hash(script)}'"
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            **context,
            style=Markup(style),
            script=Markup(script),
            policy=policy,
        )
    )


def _template_text(name: str) -> str:
    return resources.files("frbio_lite.report").joinpath("templates", name).read_text(encoding="utf-8")


def _source_hash(text: str) -> str:
    """How a content policy names an inline style or script (W3C CSP level 3, section 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
