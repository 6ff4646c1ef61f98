"""The card of a merged model: README.md in the Hub's format, as complete as what is known at the time.

    write_card(directory, merged)     the merge alone
    update_card(run, base=directory)  with the data, the training and the results of its run

A card does not count in an artifact's digest (see `artifacts.CARD`): it is written again when results come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from frbio_lite.artifacts import CARD, MANIFEST, library_versions, read_manifest, write_text
from frbio_lite.errors import RequestError
from frbio_lite.export.facts import MODELS, GroupVerdict, Merged, Run, Score, Source, hub_id, merged_in, read_run
from frbio_lite.export.licenses import OTHER
from frbio_lite.export.markdown import ABSENT, Markdown, code, escape, line, render

BITS_PER_BYTE = "bits_per_byte"
DEMONSTRATION = "demo:"  # how sources of the embedded world begin
SHOWN_VERSIONS = ("frbio-lite", "torch", "transformers", "peft", "bitsandbytes")
TENSORS = "tensors.csv"
Rows = list[tuple[str, Any]]


def write_card(
    directory: Path, merged: Merged, run: Run | None = None, *, versions: Mapping[str, str] | None = None
) -> None:
    """Write README.md beside a merged model's files, whole or not at all; a card that would say the same is left alone."""
    text = card(merged, run, directory=directory, versions=versions or library_versions())
    path = directory / CARD
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def update_card(run: Path, base: Path | None = None) -> None:
    """Write the card of a run's merged model with all that the run knows by now.

    `base` is the base's directory, whose card states its license. Raises RequestError when `run` holds no merged model, or a
    file in it is damaged.
    """
    directory = run / "merge"
    if not (directory / MANIFEST).is_file():
        raise RequestError(f"{run} has no merged model yet: finish it with `frbio run RECIPE --out {run}`")
    manifest = read_manifest(directory, "MergedModel")
    write_card(directory, merged_in(run, manifest, base), read_run(run, manifest, base), versions=manifest.versions)


def card(merged: Merged, run: Run | None, *, directory: Path, versions: Mapping[str, str]) -> str:
    """The text of a card: YAML between `---` lines, then Markdown."""
    title = run.name if run else directory.resolve().name.removesuffix(".partial")
    body = render(
        "card.md.j2",
        title=title,
        summary=_summary(merged, run),
        rows=_rows(merged),
        movement=Markdown(movement(merged.figures)),
        has_tensors=(directory / TENSORS).is_file(),
        merged=merged,
        run=run,
        results=_results(run) if run and run.results else None,
        sources=[_source(source) for source in run.sources] if run else [],
        demonstration=any(s.name.startswith(DEMONSTRATION) for s in (run.sources if run else ())),
        versions=", ".join(f"{name} {versions[name]}" for name in SHOWN_VERSIONS if name in versions)
        or f"frbio-lite {version('frbio-lite')}",
    )
    return f"---\n{metadata(title, merged, run).to_yaml()}\n---\n\n{_tidy(body)}".encode(errors="replace").decode()


def metadata(title: str, merged: Merged, run: Run | None) -> ModelCardData:
    """The card's YAML: only what is known, and `license: other` where the base's license is not."""
    bases = [name for name in dict.fromkeys(map(hub_id, merged.models)) if name]
    datasets = list(dict.fromkeys(s.dataset for s in run.sources if s.dataset)) if run else []
    license = merged.base_license
    extra: dict[str, Any] = {"base_model_relation": "merge"} if bases else {}
    scores = run.results.get("merged", ()) if run else ()
    return ModelCardData(
        language=run.language if run else None,
        license=license.license,
        license_name=license.name if license.license == OTHER else None,
        license_link=license.link if license.license == OTHER else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["merge", "frbio_lite", *(["medical"] if run else [])],
        base_model=bases or None,
        **extra,
        datasets=datasets or None,
        model_name=line(title) if scores else None,
        eval_results=[_eval_result(row) for row in scores] or None,
    )


def _eval_result(row: Score) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=line(row.task),
        dataset_name=line(row.task),
        dataset_split=line(row.split),
        metric_type=line(row.metric),
        metric_value=round(row.value, 6),
        metric_name=f"{line(row.metric)}, 95% interval {_interval(row.metric, row.low, row.high)}"
        if row.low is not None
        else line(row.metric),
    )


def _summary(merged: Merged, run: Run | None) -> Markdown:
    base = code(merged.models[0])
    if not run:
        others = " and ".join(code(name) for name in merged.models[1:])
        return Markdown(f"{base} merged with {others}, weight by weight." if others else f"{base}, merged.")
    same = {0.0: ", which is the base itself", 1.0: ", which is the adapted model itself"}.get(merged.ratio or 0.0, "")
    return Markdown(
        f"{base} adapted to French medical text, then merged with the unadapted {base} by "
        f"{escape(merged.notes['method'])} at ratio {merged.ratio:.4g}{same}, "
        "to keep general ability that adaptation alone may lose."
    )


def _rows(merged: Merged) -> Rows:
    names = merged.models
    rows: Rows = [("base", code(names[0]))]
    rows += [(f"adapted{f' {i}' if len(names) > 2 else ''}", code(n)) for i, n in enumerate(names[1:], start=1)]
    rows.append(("license of the base", str(merged.base_license)))
    if merged.ratio is not None:
        rows.append(("ratio", f"{merged.ratio:g} (the share of the adapted model; 0 is the base, 1 the adapted model)"))
    rows.append(("dtype", merged.figures.get("dtype", ABSENT)))
    return [*rows, *merged.notes.items()]


def movement(figures: Mapping[str, Any]) -> str:
    """How far adaptation and merge moved the weights: ‖Δ‖/‖W‖, the largest angle, ‖written − base‖/‖Δ‖."""
    change, angle, kept = (figures.get(k) for k in ("relative_change", "angle_degrees_max", "effective_ratio"))
    if change is None:
        return "How far the weights moved was not measured."
    if change == 0.0:
        return "Adaptation changed no weight: the merged model is the base itself."
    text = f"Adaptation changed the weights by {100 * change:.3g} % of their length"
    if angle is not None:
        text += f" and turned no tensor by more than {angle:.3g}°"
    if kept is not None:
        text += f"; the merged model lies {kept:.3g} times that change away from the base, rounding included"
    linear = figures.get("slerp_is_linear_share")
    if linear:
        text += f"; for {100 * linear:.3g} % of the changed tensors slerp and linear are the same"
    return f"{text}."


def _results(run: Run) -> dict[str, Any]:
    """The scores side by side, and the verdicts."""
    models = [model for model in MODELS if model in run.results]
    by_task: dict[tuple[str, str], dict[str, Score]] = {}
    for model in models:
        for row in run.results[model]:
            by_task.setdefault((row.task, row.metric), {})[model] = row
    rows = []
    for found in by_task.values():
        first = next(iter(found.values()))
        cells = [_cell(found[model]) if model in found else ABSENT for model in models]
        metric = first.metric.replace("_", " ")
        rows.append({**first.model_dump(include={"task", "group", "items", "shots"}), "metric": metric, "cells": cells})
    unit = {"points": "points", "percent of bits": "% of bits"}
    verdicts = [
        {
            "group": v.group,
            "model": v.model,
            "difference": f"{v.difference:+.1f} {unit.get(v.unit, v.unit)}{_bounds(v)}",
            "verdict": v.verdict,
        }
        for v in sorted(run.verdicts, key=lambda v: v.model != "merged")
    ]
    return {"models": models, "rows": rows, "verdicts": verdicts, "margin": f"{run.margin:g}"}


def _bounds(v: GroupVerdict) -> str:
    return "" if v.low is None or v.high is None else f" ({v.low:+.1f} to {v.high:+.1f})"


def _cell(row: Score) -> str:
    value = f"{row.value:.3f}" if row.metric == BITS_PER_BYTE else f"{100 * row.value:.1f} %"
    bounds = _interval(row.metric, row.low, row.high)
    return f"{value} ({bounds})" if bounds else value


def _interval(metric: str, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f"{low:.3f}–{high:.3f}" if metric == BITS_PER_BYTE else f"{100 * low:.1f}–{100 * high:.1f}"


def _source(source: Source) -> dict[str, Any]:
    found: Sequence[tuple[str, int]] = sorted(source.licenses.items(), key=lambda item: -item[1])
    named = [(name or "unknown", count) for name, count in found]
    licenses = named[0][0] if len(named) == 1 else ", ".join(f"{name} ({count:,})" for name, count in named)
    return {
        "name": source.name,
        "role": source.role,
        "documents": f"{source.documents:,}",
        "words": f"{source.words:,}",
        "licenses": licenses or ABSENT,
    }


def _tidy(body: str) -> str:
    """Without the runs of empty lines that the template's conditions leave; code blocks hold none."""
    kept: list[str] = []
    for row in body.strip().split("\n"):
        if row or (kept and kept[-1]):
            kept.append(row)
    return "\n".join(kept) + "\n"
