"""Score models on tasks: prepare the items once, score many models on them, resume where one was interrupted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from frbio_lite import recipe
from frbio_lite.artifacts import canonical_hash, write_json, write_text
from frbio_lite.errors import RequestError
from frbio_lite.evaluate.items import Document, Question, load_items
from frbio_lite.evaluate.metrics import Row, bits_per_byte, wilson
from frbio_lite.evaluate.scoring import (
    BATCH_TOKENS,
    WINDOW,
    Request,
    choice_requests,
    encode,
    log_likelihoods,
    max_positions,
    prefix_token,
    truncated,
    windows,
)
from frbio_lite.evaluate.tasks import Task
from frbio_lite.model import Model, Tokenizer
from frbio_lite.progress import Progress, say

ITEMS = "items.jsonl"
RESULTS = "results.json"
SAVE_TOKENS = 8 * BATCH_TOKENS  # items of about this many tokens are scored between two writes to items.jsonl

Line = dict[str, Any]
Key = tuple[str, str]  # task, item id


@dataclass(frozen=True)
class PreparedItem:
    """An item as tokens. `prompt_hash` covers all that the score depends on beside the model."""

    task: Task
    id: str
    prompt_hash: str
    requests: tuple[Request, ...]  # one per choice; for a document one that holds all its tokens
    gold: int = 0
    lengths: tuple[int, ...] = ()  # characters of the choices
    bytes: int = 0  # UTF-8 bytes of the document

    @property
    def key(self) -> Key:
        return self.task.name, self.id


@dataclass(frozen=True)
class Prepared:
    """Tokenised items of some tasks and one split, for models that share the tokenizer."""

    split: Literal["validation", "test"]
    tasks: tuple[Task, ...]
    shots: int
    items: tuple[PreparedItem, ...]


def evaluate(
    model: Model,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    split: Literal["validation", "test"],
    settings: recipe.Eval,
    directory: Path,
    *,
    model_name: str,
    documents: Path | None = None,
    data: Path | None = None,
    offline: bool = False,
    seed: int,
) -> list[Row]:
    """Score a model on the `split` items of tasks: `prepare` and `evaluate_prepared` in one."""
    prepared = prepare(tasks, tokenizer, split, settings, documents=documents, data=data, offline=offline)
    return evaluate_prepared(model, prepared, settings, directory, model_name, seed)


def prepare(
    tasks: Sequence[Task],
    tokenizer: Tokenizer,
    split: Literal["validation", "test"],
    settings: recipe.Eval,
    *,
    documents: Path | None = None,
    data: Path | None = None,
    offline: bool = False,
) -> Prepared:
    """Load and tokenise the items. `settings.shots` examples precede each question (documents have none).

    `documents` is the directory of the Documents artifact. Raises RequestError for items that are missing or malformed.
    """
    if not tasks:
        raise RequestError("no task to evaluate on: name one or more")
    items: list[PreparedItem] = []
    for task in tasks:
        loaded = load_items(task, split, documents=documents, data=data, offline=offline, limit=settings.limit)
        if task.kind == "bits_per_byte":
            items += _prepare_documents(task, [i for i in loaded if isinstance(i, Document)], tokenizer)
        else:
            shots = _shots(task, settings.shots, data, offline)
            items += _prepare_questions(task, [i for i in loaded if isinstance(i, Question)], shots, tokenizer)
    return Prepared(split, tuple(tasks), settings.shots, tuple(items))


def _shots(task: Task, count: int, data: Path | None, offline: bool) -> str:
    """The first `count` examples with their answers, each followed by a blank line."""
    if count == 0:
        return ""
    items = load_items(task, "shots", data=data, offline=offline, limit=count)
    if len(items) < count:
        raise RequestError(
            f"task {task.name} has {len(items)} examples where {count} shots are asked for: "
            f"use --shots {len(items)} or fewer"
        )
    examples = [i for i in items if isinstance(i, Question)]
    return "".join(f"{q.prompt}{task.delimiter}{q.choices[q.gold]}\n\n" for q in examples)


def _prepare_questions(
    task: Task, questions: Sequence[Question], shots: str, tokenizer: Tokenizer
) -> Iterator[PreparedItem]:
    prompts = [shots + q.prompt for q in questions]
    try:
        requests = choice_requests(tokenizer, prompts, [[task.delimiter + c for c in q.choices] for q in questions])
    except RequestError as error:
        raise RequestError(f"task {task.name}: {error}") from error
    for question, prompt, made in zip(questions, prompts, requests, strict=True):
        content = [task.kind, task.metric, prompt, task.delimiter, question.choices, question.gold]
        lengths = tuple(len(choice) for choice in question.choices)
        yield PreparedItem(task, question.id, canonical_hash(content), tuple(made), question.gold, lengths)


def _prepare_documents(task: Task, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[PreparedItem]:
    prefix = prefix_token(tokenizer)
    for document, tokens in zip(documents, encode(tokenizer, [d.text for d in documents]), strict=True):
        request = Request([prefix, *tokens], len(tokens))
        yield PreparedItem(
            task, document.id, canonical_hash([task.kind, document.text]), (request,), bytes=len(document.text.encode())
        )


def evaluate_prepared(
    model: Model, prepared: Prepared, settings: recipe.Eval, directory: Path, model_name: str, seed: int
) -> list[Row]:
    """Score a model on prepared items; write `items.jsonl` as they are scored, then `results.json`; return its rows.

    Items that an interrupted call of the same model left in `directory` are not scored again. `seed`: the bootstrap's.
    Puts the model in eval mode. Raises RuntimeError when the model gives a log-likelihood that is not finite.
    """
    model.eval()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ITEMS
    expected = {item.key: item.prompt_hash for item in prepared.items}
    lines = _read_lines(path, expected)
    write_text(path, _jsonl(lines.values()))
    todo = [item for item in prepared.items if item.key not in lines]
    with (
        Progress(f"evaluate {model_name}", len(expected), "item", initial=len(lines)) as bar,
        path.open("a", encoding="utf-8") as file,
    ):
        for batch in _portions(todo):
            made = _score(model, batch)
            file.write(_jsonl(made))
            file.flush()
            lines.update({item.key: line for item, line in zip(batch, made, strict=True)})
            bar.advance(len(batch))
    _warn_truncated(lines)
    write_text(
        path, _jsonl(lines[item.key] for item in prepared.items)
    )  # in the items' order, whatever the order of scoring
    rows = [_row(task, prepared, lines, settings.bootstrap, seed) for task in prepared.tasks]
    write_json(directory / RESULTS, {"model": model_name, "rows": [asdict(row) for row in rows]})
    return rows


def _portions(items: Sequence[PreparedItem]) -> Iterator[list[PreparedItem]]:
    """Items of about SAVE_TOKENS tokens at a time, longest first: what does not fit in memory fails at once."""
    portion: list[PreparedItem] = []
    size = 0
    for item in sorted(items, key=lambda i: -max(len(r.tokens) for r in i.requests)):
        portion.append(item)
        size += sum(len(r.tokens) for r in item.requests)
        if size >= SAVE_TOKENS:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _score(model: Model, items: Sequence[PreparedItem]) -> list[Line]:
    positions = max_positions(model)
    fitted = [_fit(item, positions) for item in items]
    scores = iter(log_likelihoods(model, [request for requests in fitted for request in requests]).tolist())
    return [
        _line(item, requests, [next(scores) for _ in requests]) for item, requests in zip(items, fitted, strict=True)
    ]


def _fit(item: PreparedItem, positions: int | None) -> list[Request]:
    """The item's requests as the model can read them: a document in windows, a long question without its beginning."""
    if item.task.kind == "bits_per_byte":
        tokens = item.requests[0].tokens
        return windows(tokens[1:], tokens[0], min((positions or WINDOW) - 1, WINDOW))
    try:
        return [truncated(request, positions) for request in item.requests]
    except RequestError as error:
        raise RequestError(f"task {item.task.name}, item {item.id}: {error}") from error


def _line(item: PreparedItem, requests: Sequence[Request], scores: list[float]) -> Line:
    if not all(map(math.isfinite, scores)):
        raise RuntimeError(
            f"task {item.task.name}, item {item.id}: the model gives a log-likelihood that is not finite: {scores}"
        )
    line: Line = {"task": item.task.name, "id": item.id, "prompt_hash": item.prompt_hash}
    if item.task.kind == "bits_per_byte":
        return line | {"nats": -math.fsum(scores), "bytes": item.bytes, "tokens": sum(r.scored for r in requests)}
    ranked = (
        [s / n for s, n in zip(scores, item.lengths, strict=True)] if item.task.metric == "accuracy_norm" else scores
    )
    prediction = int(np.argmax(ranked))  # the first of equals
    cut = any(len(a.tokens) < len(b.tokens) for a, b in zip(requests, item.requests, strict=True))
    return line | {
        "log_likelihoods": scores,
        "prediction": prediction,
        "gold": item.gold,
        "correct": prediction == item.gold,
        "truncated": cut,
    }


def _warn_truncated(lines: dict[Key, Line]) -> None:
    cut = [task for (task, _), line in lines.items() if line.get("truncated")]
    for task in sorted(set(cut)):
        say(
            f"{task}: {cut.count(task)} prompts are longer than the model's context: "
            "they were scored without their beginning"
        )


def _row(task: Task, prepared: Prepared, lines: dict[Key, Line], resamples: int, seed: int) -> Row:
    mine = [lines[item.key] for item in prepared.items if item.task is task]
    if task.kind == "bits_per_byte":
        value, low, high = bits_per_byte([m["nats"] for m in mine], [m["bytes"] for m in mine], resamples, seed)
        shots = 0
    else:
        right = sum(m["correct"] for m in mine)
        value, shots = right / len(mine), prepared.shots
        low, high = wilson(right, len(mine))
    return Row(
        task=task.name,
        group=task.group,
        split=prepared.split,
        metric=task.metric,
        value=value,
        low=low,
        high=high,
        items=len(mine),
        shots=shots,
    )


def _jsonl(lines: Any) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _read_lines(path: Path, expected: dict[Key, str]) -> dict[Key, Line]:
    """The lines of an interrupted call that still hold: whole, and of the same items and prompts."""
    if not path.is_file():
        return {}
    found: dict[Key, Line] = {}
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
            key = (line["task"], line["id"])
            if expected.get(key) == line["prompt_hash"] and ("nats" in line or "log_likelihoods" in line):
                found[key] = line
        except (ValueError, KeyError, TypeError):
            continue
    return found
