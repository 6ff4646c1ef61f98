"""A synthetic run directory with real manifests: numbers made here, so that a test knows what the page must say."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frbio_lite.artifacts import Kind, writing
from frbio_lite.evaluation.compare import compare, write
from frbio_lite.recipe import load_recipe
from frbio_lite.report import LARGEST_PAGE, write_report

from .page import Page

TASKS = (
    ("demo-medical", "domain", "accuracy"),
    ("demo-general", "general", "accuracy"),
    ("heldout-domain", "domain", "bits_per_byte"),
    ("heldout-general", "general", "bits_per_byte"),
)
RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
CURVES = {
    "demo-medical": (0.12, 0.31, 0.86, 0.98, 1.0),
    "demo-general": (0.80, 0.79, 0.77, 0.55, 0.31),
    "heldout-domain": (1.029, 0.919, 0.803, 0.699, 0.673),
    "heldout-general": (0.889, 0.906, 0.95, 1.554, 2.576),
}
LAYERS = 4
# By part of a layer: ‖Δ‖/‖W‖ in the first layer, its growth per layer, the angle in degrees, the effective ratio.
MOVED = {
    "self_attn.q_proj": (0.02, 0.005, 1.2, 0.42),
    "self_attn.o_proj": (0.03, 0.005, 1.8, 0.44),
    "mlp.up_proj": (0.05, -0.01, 2.9, 0.39),
    "self_attn.q_norm": (0.001, 0.0, 0.05, 0.2),
    "input_layernorm": (0.0, 0.0, 0.0, None),
}
MakeRun = Callable[..., Path]
Render = Callable[..., Page]


def wilson(share: float, n: int) -> tuple[float, float]:
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def score(task: str, group: str, metric: str, value: float, split: str, items: int) -> dict[str, Any]:
    low, high = wilson(value, items) if metric == "accuracy" else (value - 0.03, value + 0.03)
    return {"task": task, "group": group, "split": split, "metric": metric, "value": value, "low": low, "high": high}


def results(ratio: float, items: int = 400) -> list[dict[str, Any]]:
    at = RATIOS.index(ratio)
    return [
        {**score(task, group, metric, CURVES[task][at], "test", items), "items": items, "shots": 3}
        for task, group, metric in TASKS
    ]


def put(
    directory: Path,
    kind: Kind,
    files: dict[str, str],
    figures: dict[str, Any],
    settings: dict[str, Any] | None = None,
    parents: dict[str, str] | None = None,
) -> None:
    """Write one finished artifact."""
    with writing(
        directory, kind, "a" * 64, settings=settings or {}, parents=parents or {}, seed=17, recipe_hash="b" * 64
    ) as writer:
        for name, text in files.items():
            (writer.path / name).write_text(text, encoding="utf-8")
        writer.figures = figures


def items(row: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    """The items behind a row: as many right as it says, at random places; documents around its bits per byte."""
    count = row["items"]
    if row["metric"] == "bits_per_byte":
        noise = rng.normal(1.0, 0.1, count)
        nats = 100 * math.log(2) * row["value"] * noise / noise.mean()
        scored: list[dict[str, Any]] = [{"nats": float(n), "bytes": 100} for n in nats]
    else:
        right = rng.permutation(count) < round(row["value"] * count)
        scored = [{"correct": bool(r)} for r in right]
    return [{"task": row["task"], "id": str(n), "prompt_hash": str(n), **line} for n, line in enumerate(scored)]


def put_results(run: Path, model: str, rows: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng([ord(letter) for letter in model])
    lines = [json.dumps(line) for row in rows for line in items(row, rng)]
    put(
        run / "eval" / model,
        "EvalResult",
        {"results.json": json.dumps({"model": model, "rows": rows}), "items.jsonl": "\n".join(lines)},
        {"stage_seconds": 12.5, "stage_peak_memory_bytes": 3 << 30},
    )


def put_comparison(run: Path) -> None:
    """What the pipeline writes after the evaluations, with fewer resamples."""
    models = [run / "eval" / model for model in ("base", "adapted", "merged")]
    write(compare([path for path in models if path.is_dir()], resamples=1000), run / "eval")


def put_ablation(run: Path, methods: tuple[str, ...] = ("slerp",), chosen: float = 0.5) -> None:
    rows = [
        {"method": method, "ratio": ratio, **score(task, group, metric, CURVES[task][i], "validation", 200)}
        for method in methods
        for i, ratio in enumerate(RATIOS)
        for task, group, metric in TASKS
    ]
    with (run / "ablation.csv.new").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["method", "ratio", "task", "group", "split", "metric", "value", "low", "high"])
        writer.writeheader()
        writer.writerows(rows)
    text = (run / "ablation.csv.new").read_text(encoding="utf-8")
    (run / "ablation.csv.new").unlink()
    gains = [
        {
            g: 100 * (CURVES[f"demo-{n}"][i] - CURVES[f"demo-{n}"][0])
            for g, n in (("domain", "medical"), ("general", "general"))
        }
        for i in range(len(RATIOS))
    ]
    choice = {
        "method": "slerp",
        "ratio": chosen,
        "rule": {"maximise": "domain", "retain": {"general": -5.0}},
        "candidates": [
            {"method": m, "ratio": r, "gains": gains[i], "eligible": gains[i]["general"] >= -5}
            for m in methods
            for i, r in enumerate(RATIOS)
        ],
    }
    files = {"ablation.csv": text, "choice.json": json.dumps(choice)}
    put(run / "ablation", "Ablation", files, {"stage_seconds": 200.0})


def funnel(*sources: str) -> dict[str, Any]:
    """What the corpus stage writes."""
    steps = []
    for i, step in enumerate(("read", "licensed", "cleaned", "deduplicated", "decontaminated")):
        counts = {
            name: {"documents": 2000 - 150 * i - 10 * j, "words": 300_000 - 20_000 * i, "bytes": 2_000_000 - 90_000 * i}
            for j, name in enumerate(sources)
        }
        total = {unit: sum(c[unit] for c in counts.values()) for unit in ("documents", "words", "bytes")}
        steps.append({"step": step, **total, "by_source": counts})
    return {
        "steps": steps,
        "rules": {name: {"repair_mojibake": 31 + i, "collapse_space": 812} for i, name in enumerate(sources)},
        "changes": {name: {"repair_mojibake": 77} for name in sources},
        "privacy": {"action": "mask", "found": {name: {"phone": 3 + i} for i, name in enumerate(sources)}},
        "sources": {
            name: {"digest": "d" * 32, "revision": None, "skipped": [{"where": "a.txt", "reason": "binary"}]}
            for name in sources
        },
        "dropped": {name: {"duplicate": 150, "benchmark question": 4} for name in sources},
        "contamination": {
            "documents": {name: {"demo-medical": 4} for name in sources},
            "ngram": 13,
            "questions": {"demo-medical": 240},
            "questions_found": {"demo-medical": ["0123456789abcdef", "fedcba9876543210"]},
        },
    }


def tensors() -> str:
    """tensors.csv: an embedding, a head that did not change and LAYERS layers."""
    lines = ["name,model,relative_change,angle_degrees,slerp_is_linear,effective_ratio"]
    lines.append("model.embed_tokens.weight,train,0.0061,0.35,true,0.401")
    for layer in range(LAYERS):
        for part, (first, growth, angle, kept) in MOVED.items():
            change = f"{first + growth * layer:.6g},{angle:g},{str(angle < 1.81).lower()}"
            lines.append(f"model.layers.{layer}.{part}.weight,train,{change},{'' if kept is None else kept}")
    lines.append("lm_head.weight,train,0,0,true,")
    return "\n".join(lines) + "\n"


def log_lines(steps: int) -> str:
    return "".join(
        json.dumps(
            {
                "step": s,
                "tokens": s * 4096,
                "loss": 1.2 + 2.0 * math.exp(-s / 40) + 0.05 * math.sin(s * 2.4),
                "learning_rate": 1e-3 * min(1.0, s / 8) * 0.5 * (1 + math.cos(math.pi * s / steps)),
                "grad_norm": 0.8,
                "tokens_per_second": 8000.0,
                "memory_bytes": 1 << 30,
            }
        )
        + "\n"
        for s in range(1, steps + 1)
    )


def fill_run(run: Path, overrides: tuple[str, ...], methods: tuple[str, ...]) -> None:
    """A finished run of the shipped recipe `demo`, changed by `overrides`."""
    recipe = load_recipe("demo", list(overrides))
    (run / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    sources = [source.name for source in recipe.corpus.sources]
    put(run / "corpus", "Documents", {"funnel.json": json.dumps(funnel(*sources))}, {"stage_seconds": 31.0})
    shares = {name: {"role": "domain", "tokens": 157_952, "share": 0.5} for name in sources}
    put(
        run / "packed",
        "PackedTokens",
        {},
        {"windows": 1234, "tokens": 315_904, "fill": 0.997, "sources": shares},
        {"packing": {"sequence_length": 256}},
    )
    put(
        run / "train",
        "TrainedWeights",
        {"log.jsonl": log_lines(146)},
        {"seconds": 104.2, "stage_seconds": 105.0, "steps": 146, "tokens": 598_016, "peak_memory_bytes": 1 << 30},
    )
    put_ablation(run, methods)
    put(
        run / "merge",
        "MergedModel",
        {"tensors.csv": tensors()},
        {
            "relative_change": 0.0443,
            "angle_degrees_max": 2.9,
            "slerp_is_linear_share": 13 / 17,
            "effective_ratio": 0.4034,
            "tensors": 22,
            "dtype": "bfloat16",
        },
        {"method": "slerp", "ratio": 0.5, "adapter_base": "bf16", "dtype": "auto", "profile": []},
    )
    for model, ratio in (("base", 0.0), ("adapted", 1.0), ("merged", 0.5)):
        put_results(run, model, results(ratio))
    put_comparison(run)


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Each asked-for run, made once."""

    @cache
    def made(overrides: tuple[str, ...], methods: tuple[str, ...]) -> Path:
        run = tmp_path_factory.mktemp("finished")
        fill_run(run, overrides, methods)
        return run

    return made


@pytest.fixture
def make_run(tmp_path: Path, finished_runs: MakeRun) -> MakeRun:
    """`make_run("name", overrides=(…))`: a finished run in tmp_path/name, free to change."""

    def make(name: str = "run", overrides: tuple[str, ...] = (), methods: tuple[str, ...] = ("slerp",)) -> Path:
        return Path(shutil.copytree(finished_runs(overrides, methods), tmp_path / name))

    return make


@pytest.fixture
def render(tmp_path: Path) -> Render:
    def of(*runs: Path) -> Page:
        output = tmp_path / "out" / "report.html"
        figures = write_report(runs, output)
        html = output.read_text(encoding="utf-8")
        assert figures["bytes"] == output.stat().st_size < LARGEST_PAGE
        assert html.startswith("<!DOCTYPE html>")
        return Page(html)

    return of
