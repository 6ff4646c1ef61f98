"""What the stand-in Hub serves: random models under the names of our recipes, PARCOMED and web text, the tasks of core-fr.

Nothing is the published data: texts are the embedded world's or our own, in the columns, configurations, splits and file kinds
of the real repositories.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from hub_server import HubServer
from tiny import CLASSES, SHAPE, build_tokenizer

from frbio_lite.demo.world import documents
from frbio_lite.evaluation.rows import FORMATS, load_rows
from frbio_lite.evaluation.tasks import SplitName, Task, load_tasks, slice_of
from frbio_lite.recipe import load_recipe

FIXTURES = Path(__file__).parent / "evaluation" / "fixtures"
PARCOMED, FINEWEB = "HealthDataHub/PARCOMED", "epfml/FineWeb2-HQ"
COLLECTIONS = ("FRASIMED", "BDPM", "CAS")  # the last is for research only, and no recipe allows it
COMMIT = "c0ffee" + "0" * 34  # of what the recipes pin no revision of
WIDTH = 64  # bitsandbytes' blocks on a CPU
SPLITS: tuple[SplitName, ...] = ("validation", "test", "shots")


def add_model(hub: HubServer, folder: Path, name: str, commit: str, kind: str = "qwen3", gated: bool = False) -> Path:
    """A random model of two layers, `WIDTH` wide, with a tokenizer of French bytes."""
    config_class, model_class, extra = CLASSES[kind]
    torch.manual_seed(0)
    tokenizer = build_tokenizer([text for _, text in _world("medical", 40)], vocabulary=512)
    shape = SHAPE | {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "head_dim": 16,
        "max_position_embeddings": 4096,
    }
    end = tokenizer.eos_token_id
    ids = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    model = model_class(config_class(tie_word_embeddings=True, **ids, **shape, **extra)).to(torch.bfloat16)
    place = folder / "models" / name
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    (place / "README.md").write_text("---\nlicense: apache-2.0\n---\nA random model.\n", encoding="utf-8")
    hub.add("model", name, place, commit, gated)
    return place


def add_recipe_model(hub: HubServer, folder: Path, recipe: str, **how: Any) -> str:
    """The model that a shipped recipe names, at the revision that it pins; returns that revision."""
    base = load_recipe(recipe).base
    assert base.revision is not None
    add_model(hub, folder, base.model, base.revision, kind="gemma3" if "gemma" in base.model else "qwen3", **how)
    return base.revision


def add_corpus(hub: HubServer, folder: Path, count: int = 240) -> None:
    """PARCOMED in both configurations and FineWeb2-HQ in French, the latter in two files."""
    medical = [
        {"input": text, "source": COLLECTIONS[i % len(COLLECTIONS)], "document_type": kind}
        for i, (kind, text) in enumerate(_world("medical", count))
    ]
    asked = [{**row, "instruction": "Résumez.", "output": "Un résumé."} for row in medical[:5]]
    place = folder / "datasets" / PARCOMED
    _parquet(place / "finetuning" / "train-00000-of-00001.parquet", medical)
    _parquet(place / "instruction-tuning" / "train-00000-of-00001.parquet", asked)
    _card(place, {name: {"train": f"{name}/train-*"} for name in ("finetuning", "instruction-tuning")}, "finetuning")
    hub.add("dataset", PARCOMED, place, COMMIT)

    web = [
        {"text": text, "id": f"web-{i}", "quality_score": 0.9} for i, (_, text) in enumerate(_world("general", count))
    ]
    place = folder / "datasets" / FINEWEB
    for part in range(2):
        _parquet(place / "fra_Latn" / f"00{part}_00000.parquet", web[part::2])
    _card(place, {"fra_Latn": {"train": "fra_Latn/*"}, "deu_Latn": {"train": "fra_Latn/000_*"}})
    hub.add("dataset", FINEWEB, place, COMMIT)


def add_core_tasks(hub: HubServer, folder: Path) -> list[Task]:
    """The data sets of core-fr, from the tests' fixtures; the tasks that they serve."""
    tasks = [task for task in load_tasks(["core-fr"]) if task.dataset is not None]
    for task in tasks:
        assert task.dataset is not None and task.revision is not None
        place = folder / "datasets" / task.dataset
        splits = published(task)
        config = task.config or "default"
        if task.hub_file is not None:
            _archive(place, task.hub_file, splits)
            files = {}
        elif task.name == "belebele-fra":
            _jsonl(place / "data" / f"{config}.jsonl", splits["test"])
            files = {"test": f"data/{config}.jsonl"}
        else:
            for name, rows in splits.items():
                _parquet(place / config / f"{name}-00000-of-00001.parquet", rows)
            files = {name: f"{config}/{name}-*" for name in splits}
        _card(place, {config: files} if files else {})
        hub.add("dataset", task.dataset, place, task.revision)
    return tasks


def published(task: Task) -> dict[str, list[dict[str, Any]]]:
    """Rows by published split, so that each slice that the task takes of one holds rows of its fixture, repeated where short."""
    found: dict[str, list[dict[str, Any]]] = {}
    slices = sorted((slice_of(getattr(task.splits, s)), s) for s in SPLITS)
    for (name, start, stop), split in slices:
        rows = [dict(row) for row in load_rows(task, split, FIXTURES, offline=True)]
        if start == 0 and stop == float("inf"):  # a split of its own: all rows, those that `where` drops too
            found[name] = _fixture(task, split)
            continue
        length = int(stop - start) if stop != float("inf") else len(rows)
        for number in range(length):
            row = dict(rows[number % len(rows)])
            if task.id is not None:
                row[task.id] = f"{row[task.id]}-{split}-{number}"
            found.setdefault(name, []).append(row)
    return found


def _fixture(task: Task, split: str) -> list[dict[str, Any]]:
    path = next(p for f in FORMATS if (p := FIXTURES / task.name / f"{split}.{f}").is_file())
    text = path.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = (
        json.loads(text) if path.suffix == ".json" else [json.loads(t) for t in text.splitlines()]
    )
    return rows


def _world(part: Any, count: int) -> list[tuple[str, str]]:
    """(kind, text) of the first documents of the embedded world."""
    rows = [dict(row) for row in documents(part, 1, 20)]
    return [(str(row.get("document_type", "text")), str(row["text"])) for row in rows[:count]]


def _archive(place: Path, hub_file: str, splits: dict[str, list[dict[str, Any]]]) -> None:
    outer, _, inner = hub_file.partition("::")
    place.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place / outer, "w") as archive:
        for name, rows in splits.items():
            archive.writestr(inner.replace("{split}", name), json.dumps(rows, ensure_ascii=False))


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _card(place: Path, configs: dict[str, dict[str, str]], default: str | None = None) -> None:
    """README.md with what says which files are of which configuration and split."""
    entries: list[dict[str, Any]] = []
    for name, files in configs.items():
        listed = [{"split": split, "path": path} for split, path in files.items()]
        entries.append({"config_name": name, "data_files": listed} | ({"default": True} if name == default else {}))
    head = yaml.safe_dump({"license": "other", **({"configs": entries} if entries else {})}, sort_keys=False)
    place.mkdir(parents=True, exist_ok=True)
    (place / "README.md").write_text(f"---\n{head}---\n# A stand-in\n", encoding="utf-8")
