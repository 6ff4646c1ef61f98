"""The items of a task: questions with their choices, or held-out documents.

    load_items(task, "validation", data=Path("benchmarks-data"))

Rows come from the Hub, from local copies `DATA/NAME/{validation,test,shots}.{jsonl,parquet,json}` in the published
columns, from the embedded world, or from the corpus. What is missing or does not fit is an error that names task, item
and column.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from frbio_lite.demo import world
from frbio_lite.errors import RequestError
from frbio_lite.evaluate.tasks import SplitName, Task, fill

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FORMATS = ("jsonl", "parquet", "json")


@dataclass(frozen=True)
class Question:
    """A multiple-choice item: prompt without examples, choices as they are scored, position of the right one."""

    id: str
    prompt: str
    choices: tuple[str, ...]
    gold: int
    text: str  # the question's own words, without template and choices


@dataclass(frozen=True)
class Document:
    id: str
    text: str


Item = Question | Document
Row = dict[str, Any]


def load_items(
    task: Task,
    split: SplitName,
    *,
    documents: Path | None = None,
    data: Path | None = None,
    offline: bool = False,
    limit: int | None = None,
) -> list[Item]:
    """The first `limit` items of a split (all by default), in published order.

    `documents` is the directory of the Documents artifact, needed by `heldout` tasks; `data` holds local copies;
    `offline` forbids the Hub. Raises RequestError when items are not reachable, missing or malformed.
    """
    if task.heldout is not None:
        made: Iterable[Item] = _documents(task, split, documents)
    else:
        made = _questions(task, _rows(task, split, data, offline))
    items = list(islice(made, limit))
    if not items:
        raise RequestError(f"task {task.name}: the {split} split has no items")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise RequestError(
                f"task {task.name}: two items of the {split} split have the id '{item.id}' (column '{task.id or 'id'}')"
            )
        seen.add(item.id)
    return items


def benchmark_texts(tasks: Iterable[Task], *, data: Path | None = None, offline: bool = False) -> dict[str, list[str]]:
    """What the multiple-choice tasks ask in validation and test, by task: the questions' texts, for decontamination."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        if task.kind != "multiple_choice":
            continue
        splits: list[SplitName] = [s for s in ("validation", "test") if getattr(task.splits, s) is not None]
        items = [item for split in splits for item in load_items(task, split, data=data, offline=offline)]
        found[task.name] = list(dict.fromkeys(item.text for item in items))
    return found


def _questions(task: Task, rows: Iterable[Row]) -> Iterator[Question]:
    for number, raw in enumerate(rows):
        row = _named_columns(task, raw)
        id_ = str(number) if task.id is None else _text(task, row, task.id, f"row {number}")
        answers = _answers(task, row, id_)
        if task.single_answer and len(answers) > 1:
            continue
        yield _question(task, row, id_, answers)


def _question(task: Task, row: Row, id_: str, answers: list[Any]) -> Question:
    choices = _choices(task, row, id_)
    if len(answers) != 1:
        raise RequestError(
            f"task {task.name}, item {id_}: column '{task.gold}' holds {len(answers)} answers where one is needed"
        )
    gold = _position(answers[0], task.gold_first)
    if gold is None or not 0 <= gold < len(choices):
        raise RequestError(
            f"task {task.name}, item {id_}: column '{task.gold}' is {answers[0]!r}, "
            f"which is none of the {len(choices)} choices"
        )
    values = {column: _text(task, row, column, id_) for column in task.prompt_columns}
    asked = [values[c] for c in task.prompt_columns if c not in (task.choices or ()) and values[c]]
    prompt = fill(task.prompt or "", values).lstrip()  # an optional column that opens the prompt leaves its line empty
    scored = tuple(LETTERS[: len(choices)]) if task.continuation == "letter" else choices
    return Question(id_, prompt, scored, gold, "\n".join(asked))


def _named_columns(task: Task, raw: Row) -> Row:
    """Nested columns as `outer.inner`, then the task's renames."""
    flat: Row = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": v for inner, v in value.items()})
        else:
            flat[key] = value
    return {task.rename.get(key, key): value for key, value in flat.items()}


def _cell(task: Task, row: Row, column: str, id_: str) -> Any:
    if column not in row:
        has = ", ".join(sorted(map(str, row)))
        raise RequestError(f"task {task.name}, item {id_}: no column '{column}'; the data has {has}")
    return row[column]


def _text(task: Task, row: Row, column: str, id_: str) -> str:
    value = _cell(task, row, column, id_)
    text = "" if value is None else str(value).strip()
    if not text and column not in task.optional:
        raise RequestError(f"task {task.name}, item {id_}: column '{column}' is empty")
    return text


def _choices(task: Task, row: Row, id_: str) -> tuple[str, ...]:
    if isinstance(task.choices, tuple):
        return tuple(_text(task, row, column, id_) for column in task.choices)
    column = str(task.choices)
    value = _cell(task, row, column, id_)
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise RequestError(f"task {task.name}, item {id_}: column '{column}' is not a list of two or more choices")
    choices = tuple(str(choice or "").strip() for choice in value)
    if not all(choices):
        raise RequestError(f"task {task.name}, item {id_}: a choice in column '{column}' is empty")
    return choices


def _answers(task: Task, row: Row, id_: str) -> list[Any]:
    value = _cell(task, row, str(task.gold), id_)
    return list(value) if isinstance(value, list | tuple) else [value]


def _position(answer: Any, first: int) -> int | None:
    """Position of a letter (either case) or a number counted from `first`; None for anything else."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer - first
    text = str(answer).strip().upper()
    if len(text) == 1 and text in LETTERS:
        return LETTERS.index(text)
    return int(text) - first if text.isdecimal() and text.isascii() else None


def _rows(task: Task, split: SplitName, data: Path | None, offline: bool) -> Iterable[Row]:
    published = getattr(task.splits, split)
    if published is None:
        purpose = "examples (shots)" if split == "shots" else f"{split} split"
        raise RequestError(
            f"task {task.name} has no {purpose}" + ("; use --shots 0 for it" if split == "shots" else "")
        )
    if task.demo is not None:
        return [asdict(q) for q in world.questions(task.demo) if q.split == published]
    local = _local_file(task, split, data)
    if local is not None:
        return _read(local)
    if offline:
        place = f"{data}/{task.name}/{split}.jsonl" if data else f"--data DIR with DIR/{task.name}/{split}.jsonl"
        raise RequestError(
            f"task {task.name}: no local copy of its {split} items; put them in {place} (or .parquet, .json)"
        )
    return _from_hub(task, split, published)


def _local_file(task: Task, split: SplitName, data: Path | None) -> Path | None:
    if data is None:
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


def _from_hub(task: Task, split: SplitName, published: str) -> Iterable[Row]:
    import datasets  # a second to import, and only this path needs it

    try:
        return datasets.load_dataset(task.dataset, task.config, revision=task.revision, split=published)  # type: ignore[no-any-return]
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(
            f"task {task.name}: {task.dataset} cannot be loaded from the Hub ({reason}); "
            f"without a network pass --data DIR with a copy in DIR/{task.name}/{split}.jsonl"
        ) from error


def _documents(task: Task, split: SplitName, corpus: Path | None) -> Iterator[Document]:
    if split == "shots":
        raise RequestError(f"task {task.name} has no examples (shots)")
    if corpus is None:
        raise RequestError(f"task {task.name} reads the held-out documents of a corpus, and none was given")
    files = sorted((corpus / "documents").glob("*.parquet"))
    if not files:
        raise RequestError(f"task {task.name}: {corpus} holds no documents/*.parquet")
    for file in files:
        try:
            table = pq.read_table(
                file, columns=["id", "text"], filters=[("role", "==", task.heldout), ("split", "==", split)]
            )
        except (OSError, pa.ArrowException) as error:
            raise RequestError(f"task {task.name}: {file} cannot be read: {str(error).splitlines()[0]}") from error
        for row in table.to_pylist():
            if not row["text"]:
                raise RequestError(f"task {task.name}, item {row['id']}: column 'text' is empty")
            yield Document(str(row["id"]), row["text"])
