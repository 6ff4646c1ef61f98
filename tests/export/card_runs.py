"""A run directory with real manifests and small invented figures, for the tests of its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from frbio_lite.artifacts import Kind, read_manifest, writing
from frbio_lite.recipe import load_recipe

MODELS = ("base", "adapted", "merged")
VALUES = {"base": 0.25, "adapted": 0.65, "merged": 0.615}
FIGURES = {
    "relative_change": 0.0123,
    "angle_degrees_max": 1.25,
    "slerp_is_linear_share": 1.0,
    "effective_ratio": 0.4875,
    "dtype": "bfloat16",
}


def artifact(place: Path, kind: Kind, files: dict[str, str], **how: Any) -> str:
    """Write an artifact and return its digest."""
    place.parent.mkdir(parents=True, exist_ok=True)
    figures = how.pop("figures", {})
    with writing(place, kind, "key", **{"settings": {}, "parents": {}, "seed": 17, **how}) as writer:
        for name, text in files.items():
            (writer.path / name).write_text(text, encoding="utf-8")
        writer.figures = figures
    return read_manifest(place, kind).digest


def score(task: str, group: str, metric: str, value: float) -> dict[str, Any]:
    known = {"task": task, "group": group, "metric": metric, "split": "test", "items": 80, "shots": 3, "primary": True}
    return {**known, "value": value, "low": value - 0.05, "high": value + 0.05}


def write_evaluations(run: Path, parents: dict[str, str], tasks: tuple[str, str] = ("anatomie", "capitales")) -> None:
    """results.json of the three models, and the comparison of just these."""
    digests = {}
    for model, value in VALUES.items():
        rows = [score(tasks[0], "domain", "accuracy", value), score(tasks[1], "general", "bits_per_byte", 1.5 - value)]
        text = json.dumps({"model": model, "rows": rows})
        place = run / "eval" / model
        digests[model] = artifact(place, "EvalResult", {"results.json": text}, parents={"model": parents[model]})
    verdict = {"group": "domain", "model": "merged", "unit": "points", "tasks": 1, "difference": 36.25, "low": 24.0,
               "high": 47.5, "verdict": "gained"}  # fmt: skip
    kept = {**verdict, "group": "general", "difference": -0.4, "low": -0.9, "high": None, "verdict": "non-inferior"}
    found = {"results": digests, "margin": 2.5, "groups": [verdict, kept]}
    (run / "eval" / "compare.json").write_text(json.dumps(found), encoding="utf-8")


def write_corpus(run: Path, recipe: dict[str, Any]) -> None:
    names = [s.get("dataset") or s["path"] for s in recipe["corpus"]["sources"]]
    by_source = {name: {"documents": 3 * (i + 1), "words": 4000 + i, "bytes": 9} for i, name in enumerate(names)}
    funnel = {
        "steps": [{"step": "train", "by_source": by_source}],
        "privacy": {"action": "mask", "found": {names[0]: {"nir": 4, "telephone": 3}}},
        "contamination": {"action": "drop", "documents": {names[0]: {"anatomie": 2}}},
    }
    artifact(run / "corpus", "Documents", {"funnel.json": json.dumps(funnel)})
    (run / "corpus" / "documents").mkdir()
    columns = {
        "recipe_source": pa.array([0, 0, 0, 0, 1], pa.int32()),
        "license": ["cc-by-4.0", "cc-by-4.0", "etalab-2.0", "secret-1.0", "cc0-1.0"],
        "split": ["train", "train", "train", "test", "train"],
    }
    pq.write_table(pa.table(columns), run / "corpus" / "documents" / "part-00000.parquet")


def make_run(run: Path, *overrides: str, evaluated: bool = True) -> Path:
    """A finished run of the demonstration's recipe, changed by `overrides`."""
    run.mkdir(parents=True)
    recipe = yaml.safe_load(load_recipe("demo", list(overrides)).to_yaml())
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    write_corpus(run, recipe)
    figures = {"tokens": 600064, "steps": 586, "precision": "bf16", "device": "cuda", "final_loss": 1.5}
    settings = {"train": recipe["train"], "packing": recipe["packing"]}
    train = artifact(run / "train", "TrainedWeights", {"log.jsonl": ""}, settings=settings, figures=figures)
    why = "slerp at 0.5 has the highest domain gain."
    artifact(run / "ablation", "Ablation", {"choice.json": json.dumps({"method": "slerp", "ratio": 0.5, "why": why})})
    merge = artifact(
        run / "merge",
        "MergedModel",
        {"config.json": "{}", "tensors.csv": "name\n"},
        settings={"method": "slerp", "ratio": 0.5, "adapter_base": "bf16", "profile": []},
        parents={"base": "base-digest", "train": train},
        figures=FIGURES,
    )
    if evaluated:
        write_evaluations(run, {"base": "base-digest", "adapted": train, "merged": merge})
    return run
