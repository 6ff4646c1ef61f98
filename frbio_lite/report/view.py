"""What the template shows of a run: words and formatted numbers, no markup but the charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from frbio_lite.artifacts import Manifest
from frbio_lite.report import contamination, curves, examples, memory, merging, verdict
from frbio_lite.report import format as fmt
from frbio_lite.report.details import Details, details, kernels
from frbio_lite.report.language import N_, _, integer, language, ngettext, number, significant
from frbio_lite.report.load import (
    COMPARISON,
    MEMORY,
    MODELS,
    STAGES,
    Choice,
    Count,
    Funnel,
    GroupDifference,
    Result,
    Run,
    TaskDifference,
    text_at,
)
from frbio_lite.report.means import main_family, mean_with_interval
from frbio_lite.report.verdict import group_name, mean_of

DEMO_BASE = "demo"
STAGE_NAMES = {
    "corpus": N_("Corpus"),
    "packed": N_("Packing"),
    "train": N_("Training"),
    "ablation": N_("Choice of the ratio"),
    "merge": N_("Merge"),
    "eval/base": N_("Evaluation of the base"),
    "eval/adapted": N_("Evaluation of the adapted model"),
    "eval/merged": N_("Evaluation of the merged model"),
}

MODEL_NAMES = {"base": N_("base"), "adapted": N_("adapted"), "merged": N_("merged")}
ADAPTED = ("merged", "adapted")  # what is compared with the base, the one that counts first
EVALUATED = {"eval/adapted": "train", "eval/merged": "merge"}  # whose digest an evaluation records as its `model`


def page(runs: Sequence[Run]) -> dict[str, Any]:
    """The whole context of the template."""
    title = runs[0].name if len(runs) == 1 else _("{n} runs compared").format(n=integer(len(runs)))
    return {
        "title": title,
        "language": language(),
        "models": {model: _(name) for model, name in MODEL_NAMES.items()},
        "runs": [_run(run, f"run-{i}") | {"examples": examples.part(run, len(runs))} for i, run in enumerate(runs, 1)],
        "comparison": [_summary(run, f"run-{i}") for i, run in enumerate(runs, 1)] if len(runs) > 1 else [],
    }


def _run(run: Run, anchor: str) -> dict[str, Any]:
    train, packed = (run.manifests.get(stage) for stage in ("train", "packed"))
    return {
        "id": anchor,
        "name": run.name,
        "directory": run.directory.resolve().name,
        "base": text_at(run.recipe, "base", "model"),
        "revision": text_at(run.recipe, "base", "revision"),
        "demo": text_at(run.recipe, "base", "model") == DEMO_BASE,
        "verdict": verdict.sentences(run),
        "unmerged": verdict.describe(run, "adapted") if "merged" in run.results else "",
        "margin": significant(run.margin),
        "glance": _glance(run),
        "groups": [_group(row, run.margin) for model in ADAPTED for row in run.groups_of(model)],
        "missing": [_(STAGE_NAMES[stage]) for stage in run.missing],
        "notes": _notes(run),
        "trade_off": curves.trade_off(run),
        "ablation": _ablation(run),
        "choice": _choice(run.choice),
        "merge": _merge(run),
        "task_heads": [_("Base"), _("Merged"), _("Merged − base"), _("Adapted"), _("Adapted − base")],
        "tasks": _tasks(run),
        "contamination": contamination.sentence(run),
        "training": curves.training(run),
        "memory": memory.part(run),
        "training_figures": _measured(train, ()),
        "lost_steps": sum(entry.loss is None for entry in run.log),
        "corpus": _corpus(run.funnel, _sources(run)) if run.funnel else None,
        "packing": _measured(packed, ("sequence_length",)),
        "recipe": run.recipe_text,
        "stages": [_stage(stage, run.manifests.get(stage)) for stage in STAGES],
        "versions": _versions(run),
    }


def _merge(run: Run) -> dict[str, Any] | None:
    """What the merge did, as far as it is known; None where nothing is."""
    manifest = run.manifests.get("merge")
    told = {
        "sentence": merging.sentence(run.merge_figures, _merge_ratio(run)),
        "models": list(dict.fromkeys(row.model for row in run.tensors)),
        "parts": merging.table(run.tensors),
        "charts": curves.depth(run),
        "adapter_base": merging.adapter_base(run.choice.adapter_base if run.choice else None),
        "screened": merging.screened(run),
        "scored_live": merging.scored_live(run),
        "figures": _measured(manifest, ("method", "ratio", "adapter_base", "dtype", "stochastic_rounding")),
        "profile": merging.profile(manifest.settings.get("profile")) if manifest else "",
    }
    return told if any(told.values()) else None


def _merge_ratio(run: Run) -> float | None:
    """The ratio that the merged model was made at."""
    merge = run.manifests.get("merge")
    ratio = _scalars(merge.settings, ("ratio",)).get("ratio") if merge else None
    return ratio if isinstance(ratio, int | float) else None


def _measured(manifest: Manifest | None, settings: Sequence[str]) -> Details | None:
    """The named settings of a stage and its figures, but those that the table of stages shows of all."""
    if manifest is None:
        return None
    figures = {name: value for name, value in manifest.figures.items() if not name.startswith("stage_")}
    figures.pop(MEMORY, None)  # which `memory.part` shows
    fused = kernels(figures.pop("kernels", None))
    return details({**_scalars(manifest.settings, settings), **figures, **fused})


def _scalars(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The named settings, wherever they stand in a stage's settings."""
    found = {name: settings[name] for name in names if name in settings}
    for value in settings.values():
        if isinstance(value, Mapping):
            found = {**_scalars(value, names), **found}
    return found


def _glance(run: Run) -> list[dict[str, Any]]:
    """By group, the mean test score of each model by the group's main metrics."""
    rows = [row for model in MODELS for row in run.results.get(model, ()) if row.split == "test" and row.counts]
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        metric = main_family([row for row in rows if row.group == group])
        means = {model: _mean(run, model, group, metric) for model in MODELS}
        tasks = sorted({row.task for row in rows if (row.group, fmt.family(row.metric)) == (group, metric)})
        lines.append(
            {
                "group": group_name(group),
                "metric": fmt.metric_name(metric),
                "tasks": tasks[0] if len(tasks) == 1 else mean_of(len(tasks)),
                "values": {model: fmt.metric_value(metric, mean) for model, mean in means.items()},
            }
        )
    return lines


def _mean(run: Run, model: str, group: str, metric: str) -> float | None:
    key = (group, metric, "test")
    mine = [row for row in run.results.get(model, ()) if row.counts]
    rows = [row for row in mine if (row.group, fmt.family(row.metric), row.split) == key]
    mean = mean_with_interval(rows)
    return mean[0] if mean else None


def _tasks(run: Run) -> list[dict[str, Any]]:
    """The test rows of the three models side by side, one line per task and metric.

    Lines that count for nothing, other metrics than a task's own and controls, carry no mark.
    """
    by_model = {m: {(r.task, r.metric): r for r in run.results.get(m, ()) if r.split == "test"} for m in MODELS}
    compared = {model: {(row.task, row.metric): row for row in run.tasks_of(model)} for model in ADAPTED}
    lines = []
    for key in dict.fromkeys(key for rows in by_model.values() for key in rows):
        found = [rows[key] for rows in by_model.values() if key in rows]
        counts = all(row.counts for row in found)
        lines.append(
            {
                "task": key[0],
                "control": contamination.control(key[0]),
                "group": group_name(found[0].group),
                "metric": fmt.metric_name(key[1]),
                "counts": counts,
                "item_counts": " / ".join(dict.fromkeys(fmt.count(row.items) for row in found)),
                "items_sort": found[0].items,
                "shots": " / ".join(dict.fromkeys(str(row.shots) for row in found)),
                "cells": [
                    _cell(by_model["base"].get(key)),
                    *[
                        cell
                        for m in compared
                        for cell in (
                            _cell(by_model[m].get(key)),
                            _compared(compared[m][key], counts)
                            if key in compared[m]
                            else _plain_difference(by_model["base"].get(key), by_model[m].get(key)),
                        )
                    ],
                ],
            }
        )
    return lines


def _cell(row: Result | None) -> dict[str, Any]:
    plain = {"mark": "", "outcome": ""}
    if row is None or row.value is None:
        return {**plain, "text": fmt.ABSENT, "note": "", "sort": ""}
    text, note = fmt.metric_value(row.metric, row.value), fmt.interval(row.metric, row.low, row.high)
    return {**plain, "text": text, "note": note, "sort": row.value}


def _compared(row: TaskDifference, counts: bool) -> dict[str, Any]:
    """The paired difference, marked with its verdict where it counts."""
    p = number(max(row.adjusted_p, 0.001), 3)
    certainty = f"p < {p}" if row.adjusted_p < 0.001 else f"p = {p}"
    return {
        "text": verdict.difference(row),
        "note": _(", ").join(filter(None, (verdict.span(row), certainty))),
        "mark": verdict.MARKS[row.verdict] if counts else "",
        "outcome": row.verdict if counts else "",
        "told": _(row.verdict),
        "sort": "" if row.difference is None else row.difference,
    }


def _plain_difference(base: Result | None, other: Result | None) -> dict[str, Any]:
    """What was not compared item by item: the difference of the two figures, which proves nothing."""
    plain = {"mark": "", "outcome": "", "note": ""}
    if base is None or other is None or base.value is None or other.value is None:
        return {**plain, "text": fmt.ABSENT, "sort": ""}
    change = other.value - base.value
    if fmt.is_percent(base.metric):
        return {**plain, "text": verdict.points(100 * change), "sort": 100 * change}
    return {**plain, "text": fmt.signed(change, 3), "sort": -100 * change}


def _group(row: GroupDifference, margin: float) -> dict[str, Any]:
    """A line of the verdicts by group."""
    good, bad = ("gained", "non-inferior"), ("lost", "degraded")
    counts = row.role != "control"
    return {
        "group": group_name(row.group),
        "model": _(MODEL_NAMES[row.model]),
        "asked": {
            "gain": _("is there a gain?"),
            "retain": _("is a loss of more than {margin} excluded?").format(margin=verdict.amount(margin, row)),
            "control": _("should not move"),
        }[row.role],
        "tasks": row.tasks,
        "difference": verdict.difference(row),
        "span": verdict.span(row) or _("too few items"),
        "verdict": _(row.verdict),
        "outcome": "gained" if counts and row.verdict in good else "lost" if counts and row.verdict in bad else "",
    }


def _choice(choice: Choice | None) -> dict[str, Any] | None:
    """The rule in words and what each candidate gained, with the chosen one marked."""
    if choice is None:
        return None
    groups = list(dict.fromkeys(group for c in choice.candidates for group in c.gains))
    return {
        "rule": verdict.rule_in_words(choice.rule),
        "groups": [group_name(group) for group in groups],
        "fronts": any(c.front is not None for c in choice.candidates),
        "candidates": [
            {
                "method": c.method,
                "ratio": fmt.ratio(c.ratio),
                "gains": [fmt.signed(c.gains.get(group)) for group in groups],
                "eligible": _("yes") if c.eligible else _("no"),
                "front": fmt.figure("front", c.front),
                "chosen": (c.method, c.ratio) == (choice.method, choice.ratio),
            }
            for c in choice.candidates
        ],
    }


def _ablation(run: Run) -> list[dict[str, str]]:
    return [
        {
            "method": row.method,
            "ratio": fmt.ratio(row.ratio),
            "task": row.task,
            "group": group_name(row.group),
            "metric": fmt.metric_name(row.metric),
            "value": fmt.metric_value(row.metric, row.value),
            "interval": fmt.interval(row.metric, row.low, row.high),
        }
        for row in run.ablation
        if row.split == "validation" and row.counts
    ]


def _sources(run: Run) -> dict[str, dict[str, str]]:
    """License, role and weight of the recipe's sources, by the name that the funnel counts them under."""
    corpus = run.recipe.get("corpus")
    sources = corpus.get("sources") if isinstance(corpus, Mapping) else None
    known = {}
    for source in sources if isinstance(sources, list) else []:
        config = text_at(source, "config")
        name = (
            f"{text_at(source, 'dataset')}:{config}"
            if config
            else text_at(source, "dataset") or text_at(source, "path")
        )
        known[name] = {
            "license": text_at(source, "license") or fmt.ABSENT,
            "role": _(text_at(source, "role")) or fmt.ABSENT,
            "weight": _weight(text_at(source, "weight")) or fmt.ABSENT,
        }
    return known


def _weight(text: str) -> str:
    try:
        return significant(float(text))
    except (ValueError, ArithmeticError):
        return text


def _corpus(funnel: Funnel, sources: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    names = list(dict.fromkeys([*sources, *(name for step in funnel.steps for name in step.by_source)]))
    unknown = dict.fromkeys(("license", "role", "weight"), fmt.ABSENT)
    rows = [
        {"name": name, **sources.get(name, unknown), "counts": [_counts(s.by_source.get(name)) for s in funnel.steps]}
        for name in names
    ]
    return {
        "steps": [_(step.step) for step in funnel.steps],
        "rows": rows,
        "total": [_counts(step) for step in funnel.steps],
        "details": details(funnel.details()),
    }


def _counts(count: Count | None) -> dict[str, str]:
    if count is None:
        return {"documents": fmt.ABSENT, "words": "", "bytes": ""}
    return {
        "documents": fmt.count(count.documents),
        "words": "" if count.words is None else _words(count.words),
        "bytes": "" if count.bytes is None else fmt.size(count.bytes),
    }


def _words(count: int) -> str:
    return ngettext("{n} word", "{n} words", count).format(n=integer(count))


def _stage(stage: str, manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {"name": _(STAGE_NAMES[stage]), "done": False}
    seconds, memory = (_first(manifest.figures, name) for name in ("stage_seconds", "peak_memory_bytes"))
    return {
        "name": _(STAGE_NAMES[stage]),
        "done": True,
        "seconds": fmt.figure("seconds", seconds),
        "memory": fmt.figure("bytes", memory),
        "seed": str(manifest.seed),
        "hashes": [manifest.recipe_hash, manifest.key, manifest.digest],
    }


def _first(figures: Mapping[str, Any], name: str) -> Any:
    """A figure of the stage, under its own name or the one that the pipeline gives it."""
    bare = name.removeprefix("stage_")
    return next((figures[key] for key in (name, bare, f"stage_{bare}") if key in figures), None)


def _versions(run: Run) -> list[tuple[str, str]]:
    """The version of each library; where stages ran with several, which stage ran with which."""
    stages: dict[str, dict[str, list[str]]] = {}
    for stage, manifest in run.manifests.items():
        for library, version in manifest.versions.items():
            stages.setdefault(library, {}).setdefault(version, []).append(stage)
    return [
        (library, "; ".join(v if len(found) == 1 else f"{v} ({', '.join(s)})" for v, s in found.items()))
        for library, found in sorted(stages.items())
    ]


def _notes(run: Run) -> list[str]:
    """What does not fit together: an artifact made from an older parent, a merge at another ratio than the chosen."""
    notes = [
        _("“{stage}” was made from an older state of “{parent}”: run the recipe again.").format(
            stage=_(STAGE_NAMES[stage]), parent=_(STAGE_NAMES[parent])
        )
        for stage, manifest in run.manifests.items()
        for name, digest in manifest.parents.items()
        if (parent := EVALUATED.get(stage, name) if name == "model" else name) in run.manifests
        and run.manifests[parent].digest != digest
    ]
    told = run.comparison.results if run.comparison else ()
    if run.comparison and any(model in run.results and model not in told for model in ADAPTED):
        told_by = _("{file} is not of all of these evaluations: {how}.")
        notes.append(told_by.format(file=COMPARISON, how=_(verdict.HOW_TO_COMPARE)))
    ratio = _merge_ratio(run)
    if run.choice and ratio is not None and ratio != run.choice.ratio:
        at = _("The merged model stands at {ratio}, not at the chosen {chosen}.")
        notes.append(at.format(ratio=fmt.ratio(ratio), chosen=fmt.ratio(run.choice.ratio)))
    return notes


def _summary(run: Run, anchor: str) -> dict[str, Any]:
    """A line of the comparison of several runs."""
    wanted = (run.choice.method, run.choice.ratio) if run.choice else None
    chosen = next((c for c in (run.choice.candidates if run.choice else ()) if (c.method, c.ratio) == wanted), None)
    groups = run.groups_of("merged")
    return {
        "id": anchor,
        "name": run.name,
        "directory": run.directory.resolve().name,
        "base": text_at(run.recipe, "base", "model") or fmt.ABSENT,
        "ratio": f"{fmt.ratio(run.choice.ratio)} ({run.choice.method})" if run.choice else _("not there yet"),
        "validation": [fmt.signed(chosen.gains.get(g) if chosen else None) for g in ("domain", "general")],
        "test": [verdict.group_gain(groups, g) for g in ("domain", "general")],
        "outcomes": verdict.outcomes(run, "merged"),
    }
