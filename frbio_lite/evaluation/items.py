"""The items of a task: questions with their choices, texts to generate, or held-out documents.

    load_items(task, "validation", data=Path("benchmarks-data"))

Rows come from where `rows` finds them. What is missing or does not fit is an error that names task, item and column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from frbio_lite.artifacts import canonical_hash
from frbio_lite.errors import RequestError
from frbio_lite.evaluation.rows import FORMATS, Row, load_rows, named_columns, own_digests, published_rows
from frbio_lite.evaluation.tasks import OPTION, PLACEHOLDER, SplitName, Task, columns_of, edited, fill

__all__ = [
    "FORMATS",
    "Document",
    "Generation",
    "Item",
    "Question",
    "benchmark_texts",
    "load_items",
    "own_digests",
    "published_rows",
]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST_LABEL = 40  # characters; the label of a longer cluster, such as a passage, is its hash


@dataclass(frozen=True)
class Question:
    """An item with choices: prompt without examples, choices as they are scored, positions of the right ones."""

    id: str
    prompt: str
    choices: tuple[str, ...]
    golds: tuple[int, ...]  # ascending; exactly one but for multiple_answer
    text: str  # the question's own words, without template and choices
    cluster: str | None = None
    asks: tuple[str, ...] = ()  # where the prompt differs with the choice, that of each; `prompt` is the first
    rest: str = ""  # what is scored after each of `asks`, where it is not yes and no
    instruction: str = ""  # what stands before the examples
    part: str = ""  # examples are of the same
    options: tuple[str, ...] = ()  # what the choices say, where letters are scored too

    @property
    def gold(self) -> int:
        return self.golds[0]


@dataclass(frozen=True)
class Generation:
    """An item that is answered in the model's own words: prompt without examples, and the reference."""

    id: str
    prompt: str
    reference: str
    text: str
    cluster: str | None = None
    worked: str = ""  # the item as an example, where that is more than its prompt and its reference
    instruction: str = ""
    part: str = ""


@dataclass(frozen=True)
class Document:
    id: str
    text: str


Item = Question | Generation | Document


def load_items(
    task: Task,
    split: SplitName,
    *,
    documents: Path | None = None,
    data: Path | None = None,
    offline: bool = False,
    limit: int | None = None,
    turn: int = 0,
) -> list[Item]:
    """The first `limit` items of a split (all by default), in published order.

    `documents` is the directory of the Documents artifact, needed by `heldout` tasks; `data` holds local copies;
    `offline` forbids the Hub; the choices are rotated by `turn` places to the front. Raises RequestError when items are
    not reachable, missing or malformed.
    """
    if task.heldout is not None:
        made: Iterable[Item] = _documents(task, split, documents)
    else:
        made = _asked(task, load_rows(task, split, data, offline), turn)
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
    """What the tasks ask in validation and test, by task: the questions' texts without their choices, for
    decontamination. Tasks that read the corpus itself ask nothing."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        if task.heldout is not None:
            continue
        splits: list[SplitName] = [s for s in ("validation", "test") if getattr(task.splits, s) is not None]
        items = [item for split in splits for item in load_items(task, split, data=data, offline=offline)]
        found[task.name] = list(dict.fromkeys(item.text for item in items))
    return found


def _asked(task: Task, rows: Iterable[Row], turn: int) -> Iterator[Item]:
    for number, raw in enumerate(rows):
        row = named_columns(task, raw)
        id_ = str(number) if task.id is None else _text(task, row, task.id, f"row {number}")
        if any(not str(_cell(task, row, column, id_) or "").strip() for column in task.filled):
            continue
        if task.kind == "generative":
            yield _generation(task, row, id_)
            continue
        choices = _choices(task, row, id_)
        golds = _golds(task, row, id_, choices)
        if task.single_answer and len(golds) > 1:
            continue
        if len(golds) != 1 and (task.kind == "multiple_choice" or not golds):
            needed = "one is needed" if task.kind == "multiple_choice" else "one or more are needed"
            raise RequestError(
                f"task {task.name}, item {id_}: column '{task.gold}' holds {len(golds)} answers where {needed}"
            )
        yield _question(task, row, id_, choices, golds, turn % len(choices))


def _question(task: Task, row: Row, id_: str, choices: tuple[str, ...], golds: tuple[int, ...], turn: int) -> Question:
    """The question with its choices rotated: the choice at `turn` comes first, those before it last."""
    turned = choices[turn:] + choices[:turn]
    values = {c: _text(task, row, c, id_) for c in _question_columns(task)}
    asked = _published(row, values)
    if isinstance(task.choices, tuple):
        values |= dict(zip(task.choices, turned, strict=True))
    elif task.choices is not None:
        values[task.choices] = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, turned, strict=False))
    asks, rest = _asks(task, values, turned, id_)
    scored = turned
    if task.continuation == "letter":
        scored = tuple(LETTERS[: len(choices)])
    elif task.choice is not None:
        scored = tuple(_whole_choice(task, values, choice) for choice in turned)
    return Question(
        id=id_,
        prompt=asks[0] if asks else _prompt(task, values),
        choices=scored,
        golds=tuple(sorted((gold - turn) % len(choices) for gold in golds)),
        text=asked,
        cluster=_cluster(task, row, id_),
        asks=asks,
        rest=rest,
        instruction=_instruction(task, row, id_),
        part="" if task.shots_by is None else _text(task, row, task.shots_by, id_),
        options=turned,
    )


def _asks(task: Task, values: dict[str, str], choices: tuple[str, ...], id_: str) -> tuple[tuple[str, ...], str]:
    """Where the choice stands in the prompt: the prompts with each, and what follows all of them."""
    if task.form == "yes_no":
        return tuple(_prompt(task, values | {OPTION: choice}) for choice in choices), ""
    if task.continuation != "rest":
        return (), ""
    before, gap, after = _prompt(task, values).partition(str(task.gap))
    if not gap or not after.strip():
        raise RequestError(f"task {task.name}, item {id_}: nothing follows the gap '{task.gap}' in its prompt")
    return tuple(before + choice for choice in choices), after.strip()


def _whole_choice(task: Task, values: dict[str, str], choice: str) -> str:
    """What is scored of a choice: in the place of the gap, or behind a text that has none."""
    text = fill(str(task.choice), values | {OPTION: choice})
    if not task.gap:
        return text
    return text.replace(task.gap, choice) if task.gap in text else f"{text} {choice}"


def _instruction(task: Task, row: Row, id_: str) -> str:
    columns = columns_of(task.instruction)
    return fill(task.instruction or "", {c: _text(task, row, c, id_) for c in columns})


def content_free(task: Task, word: str) -> str:
    """The prompt with `word` in the place of every column: it asks nothing, so what is answered is the model's habit."""
    return fill(str(task.prompt), dict.fromkeys(task.prompt_columns, word)).lstrip()


def _generation(task: Task, row: Row, id_: str) -> Generation:
    values = {c: _text(task, row, c, id_) for c in task.prompt_columns}
    reference = _cell(task, row, str(task.gold), id_)
    if isinstance(reference, list | tuple | dict):
        raise RequestError(f"task {task.name}, item {id_}: column '{task.gold}' holds a list where a text is needed")
    return Generation(
        id=id_,
        prompt=_prompt(task, values),
        reference=_text(task, row, str(task.gold), id_),
        text=_published(row, values),
        cluster=_cluster(task, row, id_),
        worked=_worked(task, row, id_, values),
        instruction=_instruction(task, row, id_),
        part="" if task.shots_by is None else _text(task, row, task.shots_by, id_),
    )


def _worked(task: Task, row: Row, id_: str, values: dict[str, str]) -> str:
    """The row as a worked example; nothing where a column that only this needs is empty, as in most published tests."""
    further = [column for column in columns_of(task.example) if column not in values]
    if task.example is None or not all(_cell(task, row, column, id_) for column in further):
        return ""
    return _filled(task, task.example, values | {column: _text(task, row, column, id_) for column in further})


def _question_columns(task: Task) -> list[str]:
    """The columns of the prompt, and of what is scored, that are not choices."""
    choices = (task.choices,) if isinstance(task.choices, str) else task.choices or ()
    reserved = (OPTION,) if task.form == "yes_no" or task.choice is not None else ()
    shown = dict.fromkeys((*task.prompt_columns, *columns_of(task.choice)))
    return [column for column in shown if column not in (*choices, *reserved)]


def _prompt(task: Task, values: dict[str, str]) -> str:
    return _filled(task, str(task.prompt), values)


def _filled(task: Task, template: str, values: dict[str, str]) -> str:
    """A template filled; a line whose columns are all optional and empty here is left out."""
    lines = [line for line in template.split("\n") if not (c := PLACEHOLDER.findall(line)) or any(values[x] for x in c)]
    text = fill("\n".join(lines), values)
    return text.lstrip() if task.strip else text


def _cluster(task: Task, row: Row, id_: str) -> str | None:
    if task.cluster is None:
        return None
    value = _cell(task, row, task.cluster, id_)
    label = "" if value is None else str(value).strip()
    return (label if len(label) <= LONGEST_LABEL else canonical_hash(label)[:16]) or None


def _cell(task: Task, row: Row, column: str, id_: str) -> Any:
    if column not in row:
        has = ", ".join(sorted(map(str, row)))
        raise RequestError(f"task {task.name}, item {id_}: no column '{column}'; the data has {has}")
    return row[column]


def _published(row: Row, columns: Iterable[str]) -> str:
    """The texts of columns as published, for who looks for them elsewhere: a line each, without the empty ones."""
    found = ("" if row[column] is None else str(row[column]).strip() for column in columns)
    return "\n".join(text for text in found if text)


def _text(task: Task, row: Row, column: str, id_: str) -> str:
    value = _cell(task, row, column, id_)
    text = edited("" if value is None else str(value), task.edits.get(column, ()))
    if not text.strip() and column not in task.optional:
        raise RequestError(f"task {task.name}, item {id_}: column '{column}' is empty")
    return text.strip() if task.strip else text


def _choices(task: Task, row: Row, id_: str) -> tuple[str, ...]:
    if task.fixed_choices:
        return task.fixed_choices
    if isinstance(task.choices, tuple):
        return tuple(_text(task, row, column, id_) for column in task.choices)
    column = str(task.choices)
    value = _cell(task, row, column, id_)
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise RequestError(f"task {task.name}, item {id_}: column '{column}' is not a list of two or more choices")
    if len(value) > len(LETTERS):
        raise RequestError(
            f"task {task.name}, item {id_}: {len(value)} choices in column '{column}', more than letters"
        )
    edits = task.edits.get(column, ())
    choices = tuple(edited("" if choice is None else str(choice), edits) for choice in value)
    if not all(choice.strip() for choice in choices):
        raise RequestError(f"task {task.name}, item {id_}: a choice in column '{column}' is empty")
    return tuple(choice.strip() for choice in choices) if task.strip else choices


def _golds(task: Task, row: Row, id_: str, choices: tuple[str, ...]) -> tuple[int, ...]:
    """Positions of the right choices, ascending, each once."""
    value = _cell(task, row, str(task.gold), id_)
    if task.gold_flags:
        return _flagged(task, value, id_, len(choices))
    if isinstance(value, str) and not task.gold_labels:
        value = re.split(r"[\s,;]+", value.strip())  # several letters may be written in one text, as A,C,E
    answers = list(value) if isinstance(value, list | tuple) else [value]
    found = set()
    for answer in answers:
        gold = _label(answer, task.gold_labels) if task.gold_labels else _position(answer, task.gold_first)
        if gold is None or not 0 <= gold < len(choices):
            raise RequestError(
                f"task {task.name}, item {id_}: column '{task.gold}' is {answer!r}, "
                f"which is none of the {len(choices)} choices"
            )
        found.add(gold)
    return tuple(sorted(found))


def _flagged(task: Task, value: Any, id_: str, count: int) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) != count or any(flag not in (0, 1) for flag in value):
        raise RequestError(
            f"task {task.name}, item {id_}: column '{task.gold}' is not a list of {count} zeros and ones, one per choice"
        )
    return tuple(position for position, flag in enumerate(value) if flag)


def _label(answer: Any, labels: tuple[str, ...]) -> int | None:
    text = str(answer).strip()
    return labels.index(text) if text in labels else None


def _position(answer: Any, first: int) -> int | None:
    """Position of a letter (either case) or a number counted from `first`; None for anything else."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer - first
    text = str(answer).strip().upper()
    if len(text) == 1 and text in LETTERS:
        return LETTERS.index(text)
    return int(text) - first if text.isdecimal() and text.isascii() else None


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
