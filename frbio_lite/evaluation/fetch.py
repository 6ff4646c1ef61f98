"""Benchmarks at hand: list them, show one, check a task file, copy their data for work without a network.

    for row in describe(["medical-fr"]): print(row.name, row.items, row.license)
    print(show("mediqal-mcqu"))
    findings = check(Path("my-task.yaml"), data=Path("benchmarks-data"))
    fetch_tasks(["core-fr"], Path("benchmarks-data"))

What `fetch_tasks` writes is what `--data` reads: DIR/TASK/{validation,test,shots}.jsonl in the published columns.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from frbio_lite.artifacts import locked, write_json, write_text
from frbio_lite.errors import RequestError
from frbio_lite.evaluation import rows as rows_module
from frbio_lite.evaluation.items import Document, load_items
from frbio_lite.evaluation.rows import FORMATS
from frbio_lite.evaluation.tasks import SplitName, Task, load_tasks, parse_task, task_names
from frbio_lite.progress import Progress, say

SPLITS: tuple[SplitName, ...] = ("validation", "test", "shots")
RECORD = "source.json"  # in DIR/TASK: what each copy was made from, so that a rerun knows what is there
LICENSE = "LICENSE.txt"
LOOK = 5  # items of a split that `check` loads
COMMIT = re.compile(r"(?:@|/snapshots/)([0-9a-f]{40})/")


@dataclass(frozen=True)
class TaskRow:
    """A line of `frbio tasks list`."""

    name: str
    group: str
    language: str
    sets: tuple[str, ...]
    kind: str
    metric: str
    items: int | None  # published size of the test split
    license: str
    origin: str  # where the items come from


@dataclass(frozen=True)
class Finding:
    """What `check` has to say: an error (the task cannot run), a warning, or a note."""

    level: Literal["error", "warning", "note"]
    text: str


@dataclass(frozen=True)
class Copied:
    """What became of one split: `copied` now, `kept` from before, or `none` (nothing on the Hub to copy)."""

    task: str
    split: str
    status: Literal["copied", "kept", "none"]
    items: int | None
    where: str


def describe(names: Iterable[str] = ()) -> list[TaskRow]:
    """The tasks of these names, sets or files, all that ship by default. Raises RequestError for an unknown name."""
    return [
        TaskRow(t.name, t.group, t.language, t.sets, t.kind, t.metric, t.items, t.license, origin(t))
        for t in load_tasks(list(names) or task_names())
    ]


def origin(task: Task) -> str:
    """Where a task's items come from, in words short enough for a table."""
    if task.dataset is not None:
        return task.dataset + (f" ({task.config})" if task.config else "")
    if task.file is not None:
        return f"file {task.file}"
    if task.questions is not None:
        return "this package"
    return "the demonstration" if task.demo is not None else "the corpus of the recipe"


def show(name: str) -> str:
    """The YAML text of a task that ships, or of a file. Raises RequestError for an unknown name, or that of a set."""
    names = [task.name for task in load_tasks([name])]
    if Path(name).suffix in {".yaml", ".yml"}:
        return Path(name).read_text(encoding="utf-8")
    if names != [name]:
        raise RequestError(f"'{name}' is a set of tasks, and one is shown at a time: {', '.join(names)}")
    return resources.files("frbio_lite.evaluation").joinpath("tasks", f"{name}.yaml").read_text(encoding="utf-8")


def check(path: Path, data: Path | None = None) -> list[Finding]:
    """What is wrong or unwise about a task file; no finding of level `error` means that it can run.

    With `data`, or where the task reads a file of its own, the first items of each split are loaded and one prompt
    is shown. Raises RequestError when the file cannot be read at all.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"the task {path} cannot be read: {error}") from error
    try:
        task = parse_task(text, str(path), path.parent)
    except RequestError as error:
        return [Finding("error", part) for part in str(error).split(" | ")]
    findings = list(_unwise(task))
    reads_own = task.file is not None or task.questions is not None or task.demo is not None
    if data is not None or reads_own:
        findings += _looked_at(task, data)
    return findings


def _unwise(task: Task) -> Iterable[Finding]:
    known = task_names()
    if task.name in known and load_tasks([task.name])[0] != task:
        yield Finding("warning", f"a task that ships is called '{task.name}' too: the two cannot be used together")
    for split, purpose in (("test", "report on"), ("validation", "choose a ratio on"), ("shots", "show as examples")):
        if getattr(task.splits, split) is None and task.heldout is None:
            yield Finding("warning" if split == "test" else "note", f"no `{split}` split: nothing to {purpose}")
    if task.dataset is not None and task.revision is None:
        yield Finding("note", "no `revision`: the data may change on the Hub between two runs")
    if task.gold is not None and task.gold in task.prompt_columns:
        yield Finding("warning", f"the prompt shows column '{task.gold}', which holds the right answer")
    shown = set(task.prompt_columns)
    columns = task.choices if isinstance(task.choices, tuple) else (task.choices,) if task.choices else ()
    if task.continuation == "letter" and (hidden := [c for c in columns if c not in shown]):
        yield Finding("warning", f"letters are scored, and the prompt does not show {', '.join(hidden)}")


def _looked_at(task: Task, data: Path | None) -> Iterable[Finding]:
    """Load the first items of every split, and show how the first prompt of the last that loads reads."""
    prompt = None
    for split in SPLITS:
        if getattr(task.splits, split) is None:
            continue
        try:
            found = load_items(task, split, data=data, offline=True, limit=LOOK)
        except RequestError as error:
            yield Finding("error", str(error))
            continue
        yield Finding("note", f"{split}: the first {len(found)} items load")
        if prompt is None and not isinstance(found[0], Document):
            prompt = found[0].prompt
    if prompt is not None:
        yield Finding("note", f"a prompt as the model sees it:\n{prompt}")


def fetch_tasks(names: Iterable[str], to: Path, splits: Iterable[str] = SPLITS) -> list[Copied]:
    """Copy the data of tasks from the Hub to TO/TASK/SPLIT.jsonl, in the published columns and already sliced.

    Beside them go LICENSE.txt and source.json. Each file is written whole or not at all; what a former call copied from
    the same revision and rows is kept. Raises RequestError for an unknown name or split, for a file that this function
    did not write, and when the Hub cannot be reached (copies made until then stay).
    """
    wanted = [_split(s) for s in splits]
    tasks = load_tasks(names)
    done: list[Copied] = []
    with locked(to):
        for task in tasks:
            if task.dataset is None:
                say(f"{task.name}: nothing to copy, its items come from {origin(task)}")
                done.append(Copied(task.name, "", "none", None, origin(task)))
                continue
            done += [_copy(task, s, to / task.name) for s in wanted if getattr(task.splits, s) is not None]
    return done


def _split(name: str) -> SplitName:
    for split in SPLITS:
        if split == name:
            return split
    raise RequestError(f"'{name}' is not a split of a task: {', '.join(SPLITS)} are")


def _copy(task: Task, split: SplitName, folder: Path) -> Copied:
    path, made_from, record = folder / f"{split}.jsonl", _made_from(task, split), _record(folder)
    there = next((p for f in FORMATS if (p := folder / f"{split}.{f}").is_file()), None)
    before = record.get(split)
    if there is not None and (before is None or there != path):
        raise RequestError(f"{there} was not written by `frbio tasks fetch`: move it away, or choose another --to")
    if there is not None and before is not None and _same(before, made_from, there):
        return Copied(task.name, split, "kept", before["items"], str(path))
    rows = rows_module.published_rows(task, split)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".tmp")
    try:
        count = _write_rows(fresh, rows, f"{task.name} {split}")
        if not count:
            raise RequestError(
                f"task {task.name}: no row of {task.dataset} serves as {split}: look at the task's `splits` and `where`"
            )
        commit = _commit(rows) or task.revision or "unknown"
        now = {"commit": commit, "items": count, "bytes": fresh.stat().st_size, "date": date.today().isoformat()}
        record[split] = {"from": made_from, **now}
        # in this order an interruption leaves a record without its file, which the next call fetches again
        path.unlink(missing_ok=True)
        write_json(folder / RECORD, record)
        write_text(folder / LICENSE, _license(task, record))
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    say(f"{task.name}: {count:,} {split} items ({task.license}) in {path}")
    return Copied(task.name, split, "copied", count, str(path))


def _same(before: Mapping[str, Any], made_from: dict[str, Any], file: Path) -> bool:
    return bool(before["from"] == made_from and before["bytes"] == file.stat().st_size)


def _made_from(task: Task, split: SplitName) -> dict[str, Any]:
    """All that decides which rows a copy holds."""
    keys = ("dataset", "config", "revision", "hub_file", "where")
    return {"split": getattr(task.splits, split), **task.model_dump(mode="json", include=set(keys))}


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read ({error}): delete {folder} and fetch the task again") from error
    if not isinstance(found, dict):
        raise RequestError(f"{path} is not a record of copied data: delete {folder} and fetch the task again")
    return found


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]], label: str) -> int:
    """One JSON object a line; values that JSON lacks, such as dates, as their text. The number of rows."""
    total = len(rows) if isinstance(rows, Sized) else None
    count = 0
    with path.open("w", encoding="utf-8") as file, Progress(label, total, "item") as bar:
        for row in rows:
            file.write(json.dumps(dict(row), ensure_ascii=False, default=str) + "\n")
            count += 1
            bar.advance()
        file.flush()
        os.fsync(file.fileno())
    return count


def _commit(rows: object) -> str | None:
    """The commit that `datasets` read: the names that it keeps of its files, on the Hub or in the cache, hold it."""
    checksums = getattr(getattr(rows, "info", None), "download_checksums", None) or {}
    found = {m[1] for name in checksums if (m := COMMIT.search(str(name)))}
    return found.pop() if len(found) == 1 else None


def _license(task: Task, record: Mapping[str, Any]) -> str:
    lines = [
        f"Data of the task {task.name}, copied by frbio_lite from the Hugging Face Hub.",
        "",
        f"License:   {task.license}",
        f"Dataset:   https://huggingface.co/datasets/{task.dataset}",
        f"Config:    {task.config or 'default'}",
        f"Revision:  {task.revision or 'none pinned'}",
        "",
    ]
    for split, made in sorted(record.items()):
        rows = f"{made['items']:,} items from {made['from']['split']}"
        lines.append(f"{split}.jsonl: {rows}, commit {made['commit']}, copied {made['date']}")
    lines += ["", "The license is that of the data's authors; cite them when you publish results.", ""]
    return "\n".join(lines)
