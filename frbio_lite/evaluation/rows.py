"""Where the rows of a task come from, in their published columns: the Hub, a file, the package, or a local copy.

    rows = load_rows(task, "test", data=Path("benchmarks-data"), offline=True)

A copy in `DATA/NAME/{validation,test,shots}.{jsonl,parquet,json}` comes before the Hub and before a task's own file. It
holds the rows of its split already; the task's `where` still applies to it, the slices of its `splits` do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from frbio_lite import hub
from frbio_lite.artifacts import file_hash
from frbio_lite.demo import world
from frbio_lite.errors import RequestError
from frbio_lite.evaluation import questions
from frbio_lite.evaluation.tasks import SplitName, Task, slice_of

FORMATS = ("jsonl", "parquet", "json")
Row = dict[str, Any]


def load_rows(task: Task, split: SplitName, data: Path | None = None, offline: bool = False) -> Iterable[Row]:
    """The rows of a split, in published order and columns. Raises RequestError when they are not to be had."""
    published = getattr(task.splits, split)
    if published is None:
        purpose = "examples (shots)" if split == "shots" else f"{split} split"
        raise RequestError(
            f"task {task.name} has no {purpose}" + ("; use --shots 0 for it" if split == "shots" else "")
        )
    local = _local_file(task, split, data)
    if local is not None:
        return _where(task, _read(local))
    if task.dataset is None:
        return _sliced(_where(task, _own_rows(task, split)), published)
    if offline:
        place = f"{data}/{task.name}/{split}.jsonl" if data else f"--data DIR with DIR/{task.name}/{split}.jsonl"
        raise RequestError(
            f"task {task.name}: no local copy of its {split} items; put them in {place} (or .parquet, .json)"
        )
    return published_rows(task, split)


def at_hand(task: Task, splits: Iterable[SplitName], data: Path | None) -> bool:
    """Whether a task's splits can be read without the Hub."""
    return task.dataset is None or all(_local_file(task, split, data) is not None for split in splits)


def _own_rows(task: Task, split: SplitName) -> list[Row]:
    """Rows that need no network: of the embedded world, of the package's questions, or of the task's own file."""
    name, _, _ = slice_of(getattr(task.splits, split))
    if task.demo is not None:
        return [asdict(q) for q in world.questions(task.demo) if q.split == name]
    if task.questions is not None:
        return [row for row in questions.load_questions(task.questions) if row["split"] == name]
    path = task.path(split)
    if path.suffix[1:] not in FORMATS:
        raise RequestError(f"task {task.name}: {path} does not end in .jsonl, .json or .parquet")
    if not path.is_file():
        raise RequestError(
            f"task {task.name}: {path} is not there; put the {split} items in it, or in DIR/{task.name}/{split}.jsonl "
            "and pass --data DIR"
        )
    return _read(path)


def own_digests(tasks: Iterable[Task]) -> dict[str, str]:
    """Hashes of the data that tasks bring along, by where it lies: their files, and the package's questions."""
    found: dict[str, str] = {}
    for task in tasks:
        if task.questions is not None:
            found[f"questions {task.questions}"] = questions.digest(task.questions)
        if task.file is not None:
            splits: list[SplitName] = [s for s in ("validation", "test", "shots") if getattr(task.splits, s)]
            paths = [path for split in splits if (path := task.path(split)).is_file()]
            found |= {f"{task.name} {path.name}": file_hash(path) for path in paths}
    return found


def named_columns(task: Task, raw: Mapping[str, Any]) -> Row:
    """A row with nested columns as `outer.inner`, then the task's renames."""
    flat: Row = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": v for inner, v in value.items()})
        else:
            flat[key] = value
    return {task.rename.get(key, key): value for key, value in flat.items()}


def _keeps(task: Task, raw: Mapping[str, Any]) -> bool:
    """Whether the row holds what the task's `where` asks for."""
    row = named_columns(task, raw)
    for column, wanted in task.where.items():
        if column not in row:
            has = ", ".join(sorted(map(str, row)))
            raise RequestError(f"task {task.name}: `where` names the column '{column}', and the data has {has}")
        if not any(_holds(str(row[column]), text) for text in ((wanted,) if isinstance(wanted, str) else wanted)):
            return False
    return True


def _holds(value: str, wanted: str) -> bool:
    """Whether a cell is `wanted`, or begins with what stands before its final `*`."""
    return value.startswith(wanted[:-1]) if wanted.endswith("*") else value == wanted


def _where(task: Task, rows: list[Row]) -> list[Row]:
    return [row for row in rows if _keeps(task, row)] if task.where else rows


def _sliced(rows: list[Row], published: str) -> list[Row]:
    _, start, stop = slice_of(published)
    return rows[start : min(len(rows), int(min(stop, len(rows))))]


def _local_file(task: Task, split: SplitName, data: Path | None) -> Path | None:
    if data is None or task.demo is not None or task.questions is not None:
        return None
    if not data.is_dir():
        raise RequestError(f"--data {data} is not a directory")
    return next((p for f in FORMATS if (p := data / task.name / f"{split}.{f}").is_file()), None)


def _read(path: Path) -> list[Row]:
    try:
        if path.suffix == ".parquet":
            rows: Any = pq.read_table(path).to_pylist()
        elif path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        else:
            # not splitlines(): it also cuts at U+2028 and the like, which JSON strings may hold
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RequestError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError(f"{path} does not hold a list of items with named columns")
    return rows


def published_rows(task: Task, split: SplitName) -> Sequence[Row]:
    """The rows on the Hub, after `where` and the slice of the split: a `datasets.Dataset`. Raises RequestError."""
    import datasets  # a second to import, and only this path needs it

    offline = hub.why_offline()
    datasets.disable_progress_bars()
    published = str(getattr(task.splits, split))
    name, start, stop = slice_of(published)
    try:
        if task.hub_file is None and not task.where:  # `datasets` slices by itself
            return datasets.load_dataset(task.dataset, task.config, revision=task.revision, split=published)  # type: ignore[no-any-return]
        if task.hub_file is None:
            rows = datasets.load_dataset(task.dataset, task.config, revision=task.revision, split=name)
        else:
            kind, address = _hub_file(task, name)
            rows = datasets.load_dataset(kind, data_files=address, split="train")
    except Exception as error:  # the library raises a different type for each way of not reaching a dataset
        raise RequestError(_fault(task, split, offline, error)) from error
    kept = [number for number, row in enumerate(rows) if _keeps(task, row)]
    return rows.select(kept[start : int(min(stop, len(kept)))])  # type: ignore[no-any-return]


def _hub_file(task: Task, split: str) -> tuple[str, str]:
    """What `datasets` reads a `hub_file` with, and the file in the Hub's cache; `data.zip::inner.json` is one in an archive."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    outer, _, inner = str(task.hub_file).replace("{split}", split).partition("::")
    kind = {"jsonl": "json"}.get(suffix := (inner or outer).rpartition(".")[2], suffix)
    try:
        path = hf_hub_download(str(task.dataset), outer, repo_type="dataset", revision=task.revision)
    except LocalEntryNotFoundError as error:  # its own words are about a variable that nobody may have set
        raise ConnectionError(f"{outer} is not in the local cache") from error
    return kind, f"zip://{inner}::{path}" if inner else path


def _fault(task: Task, split: str, offline: str | None, error: Exception) -> str:
    """What to say when rows cannot be had from the Hub: what it has against it, or the way without it."""
    copy = f"without a network pass --data DIR with a copy in DIR/{task.name}/{split}.jsonl"
    if not offline and (refused := hub.why_refused("dataset", str(task.dataset), task.revision)):
        return f"task {task.name}: {refused}"
    reason = "; ".join(filter(None, [offline, hub.first_line(error)]))
    return f"task {task.name}: {task.dataset} cannot be loaded from the Hub ({reason}); {copy}"
