"""Read the results of an evaluation back, item by item, and refuse to pair those of different items or prompts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frbio_lite.artifacts import MANIFEST, read_manifest
from frbio_lite.errors import RequestError
from frbio_lite.evaluation.run import ITEMS, RESULTS
from frbio_lite.evaluation.statistics import FloatArray, spearman_shares

NATS = math.log(2)  # of a bit
DERIVED = "~"  # in the name of such a control, and of no task


@dataclass(frozen=True)
class TaskResult:
    """A task as one model was scored on it: [N] items in the order of their ids."""

    task: str
    group: str
    split: str
    metric: str
    shots: int
    value: float
    ids: tuple[str, ...]
    prompts: tuple[str, ...]  # hashes
    clusters: tuple[str, ...] | None  # none where each item is its own
    scores: FloatArray  # their mean is the value; for bits per byte, nats
    sizes: FloatArray  # bytes of documents; else 1

    @property
    def in_bits(self) -> bool:
        return self.metric == "bits_per_byte"

    @property
    def binary(self) -> bool:
        return bool(np.isin(self.scores, (0.0, 1.0)).all()) and not self.in_bits


@dataclass(frozen=True)
class Result:
    model: str
    directory: Path
    tasks: dict[str, TaskResult]


def load(directory: Path) -> Result:
    """The result in `directory`: results.json and items.jsonl, which must agree.

    Of a task with several metrics the first row is read. Controls that score a task's own items again (NAME~permuted)
    are left out: they would count it twice, and one of two results may lack them.

    Raises RequestError for what is missing, torn or inconsistent.
    """
    if (directory / MANIFEST).is_file():
        read_manifest(directory, "EvalResult")
    path = directory / RESULTS
    try:
        found = json.loads(_text(path))
        model = str(found["model"])
        rows: dict[str, dict[str, Any]] = {}
        for row in found["rows"]:
            if DERIVED not in str(row["task"]):
                rows.setdefault(str(row["task"]), row)
        lines = _items(directory / ITEMS)
        tasks = {name: _task(row, lines.get(name, {}), directory) for name, row in rows.items()}
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path} is not the results of an evaluation: {error!r}; evaluate again") from error
    if not tasks:
        raise RequestError(f"{path} holds no task")
    return Result(model, directory, tasks)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}; name the directory that an evaluation wrote") from error


def _items(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The lines of items.jsonl by task and id."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for number, text in enumerate(_text(path).split("\n"), 1):
        if not text:
            continue
        try:
            line = json.loads(text)
            task = found.setdefault(str(line["task"]), {})
            id_ = str(line["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path}:{number}: not an item with task and id; evaluate again") from error
        if id_ in task:
            raise RequestError(f"{path}:{number}: task {line['task']} has item {id_} twice; evaluate again")
        task[id_] = line
    return found


def _task(row: dict[str, Any], lines: dict[str, dict[str, Any]], directory: Path) -> TaskResult:
    name, ids = str(row["task"]), tuple(sorted(lines))
    ordered = [lines[id_] for id_ in ids]
    if len(ids) != row["items"] or not ids:
        raise RequestError(
            f"task {name}: {directory / RESULTS} counts {row['items']} items and {ITEMS} has {len(ids)}; evaluate again"
        )
    in_bits = row["metric"] == "bits_per_byte"
    if row["metric"] == "spearman":
        pairs = np.array([[float(line["prediction"]), float(line["gold"])] for line in ordered])
        scores = spearman_shares(pairs[:, 0], pairs[:, 1])
    else:
        scores = np.array([_score(line, in_bits, directory) for line in ordered])
    sizes = np.array([float(line["bytes"]) if in_bits else 1.0 for line in ordered])
    value = float(scores.sum() / sizes.sum()) / (NATS if in_bits else 1.0)
    if not math.isclose(value, row["value"], rel_tol=1e-6, abs_tol=1e-9):
        raise RequestError(
            f"task {name}: {directory / RESULTS} says {row['metric']} {row['value']:.6g} and the items in {ITEMS} give "
            f"{value:.6g}; evaluate again"
        )
    # an item without a label is a cluster of its own; labels and ids must not meet
    labels = tuple(f"cluster {line['cluster']}" if "cluster" in line else f"item {line['id']}" for line in ordered)
    return TaskResult(
        task=name,
        group=str(row["group"]),
        split=str(row["split"]),
        metric=str(row["metric"]),
        shots=int(row["shots"]),
        value=value,
        ids=ids,
        prompts=tuple(str(line["prompt_hash"]) for line in ordered),
        clusters=labels if len(set(labels)) < len(labels) else None,
        scores=scores,
        sizes=sizes,
    )


def _score(line: dict[str, Any], in_bits: bool, directory: Path) -> float:
    value = float(line["nats"] if in_bits else line["score"] if "score" in line else line["correct"])
    if not math.isfinite(value) or value < 0 or (value > 1 and not in_bits) or (in_bits and not value):
        kind = "a number of nats above 0" if in_bits else "a score between 0 and 1"
        where = f"task {line['task']}, item {line['id']} in {directory / ITEMS}"
        raise RequestError(f"{where}: {value} is not {kind}; evaluate again")
    return value


def require_same(reference: Result, other: Result) -> None:
    """Raise RequestError, naming the task and what differs, unless both are of the same items, prompts and settings."""
    here, there = str(reference.directory), str(other.directory)
    for name in [*reference.tasks, *other.tasks]:
        missing = [place for place, r in ((here, reference), (there, other)) if name not in r.tasks]
        if missing:
            has = there if missing[0] == here else here
            raise RequestError(f"task {name} is in {has} and not in {missing[0]}: evaluate both on the same tasks")
        a, b = reference.tasks[name], other.tasks[name]
        differs = _differs(a, b, here, there)
        if differs:
            raise RequestError(f"task {name}: {differs}: evaluate both the same way")


def _differs(a: TaskResult, b: TaskResult, here: str, there: str) -> str:
    """What keeps two results of a task from being paired; empty if nothing does."""
    for what in ("group", "split", "metric", "shots"):
        if getattr(a, what) != getattr(b, what):
            return f"{what} is {getattr(a, what)} in {here} and {getattr(b, what)} in {there}"
    if a.ids != b.ids:
        alone = sorted(set(a.ids) ^ set(b.ids))
        has, lacks = (here, there) if alone[0] in set(a.ids) else (there, here)
        count = f"{len(alone)} items are" if len(alone) > 1 else "1 item is"
        return f"{count} in one result only, first {alone[0]}, in {has} and not in {lacks}"
    for what, mine, theirs in (("prompt", a.prompts, b.prompts), ("cluster", a.clusters, b.clusters)):
        if mine != theirs:
            pairs = zip(a.ids, mine or a.ids, theirs or a.ids, strict=True)
            changed = [id_ for id_, x, y in pairs if x != y]
            return f"{len(changed)} of {len(a.ids)} items differ in their {what}, first {changed[0]} ({here}, {there})"
    return ""
