"""Score models on tasks: prepare the items once, score many models on them, resume where one was interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from frbio_lite import recipe
from frbio_lite.artifacts import write_json, write_text
from frbio_lite.errors import RequestError
from frbio_lite.evaluation import controls
from frbio_lite.evaluation.generate import generate
from frbio_lite.evaluation.items import Document, Generation, Question, load_items
from frbio_lite.evaluation.lines import Line, generated_line, line_of, score
from frbio_lite.evaluation.metrics import Row, bits_per_byte, mean_score, spearman
from frbio_lite.evaluation.prepared import (
    Key,
    Prepared,
    PreparedItem,
    Prompts,
    prepare_documents,
    prepare_generations,
    prepare_questions,
)
from frbio_lite.evaluation.scoring import WINDOW, Request, iter_log_likelihoods, max_positions, truncated, windows
from frbio_lite.evaluation.tasks import Task
from frbio_lite.model import Model, Tokenizer
from frbio_lite.progress import Progress, say

ITEMS = "items.jsonl"
RESULTS = "results.json"
QUESTIONS = "questions.json"
SAVE_ANSWERS = 64  # texts that are generated between two writes to items.jsonl


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
    """Score a model on the `split` items of tasks: `prepare` and `evaluate_prepared` in one, and `questions.json` for
    who reads the answers."""
    prepared = prepare(tasks, tokenizer, split, settings, documents=documents, data=data, offline=offline)
    rows = evaluate_prepared(model, prepared, settings, directory, model_name, seed)
    write_text(directory / QUESTIONS, json.dumps(questions(prepared), ensure_ascii=False) + "\n")
    return rows


def questions(prepared: Prepared) -> dict[str, Any]:
    """What was asked, by task and item: the questions' own words and options, with their license and source.

    Held-out documents are no questions, and lie in the corpus.
    """
    return {
        task.name: {
            "license": task.license,
            "source": task.dataset or task.name,
            "language": task.language,
            "items": {
                item.id: {"text": item.text, "options": list(item.options)}
                for item in prepared.items
                if item.task is task and not item.control
            },
        }
        for task in prepared.tasks
        if task.kind != "bits_per_byte"
    }


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
    """Load and tokenise the items and those of the controls. `settings.shots` examples precede each question (documents
    have none).

    `documents` is the directory of the Documents artifact. Raises RequestError for items that are missing or malformed.
    """
    if not tasks:
        raise RequestError("no task to evaluate on: name one or more")
    controls.check(settings.controls, tasks)
    items: list[PreparedItem] = []
    added: list[PreparedItem] = []
    from_test = set()
    contamination = controls.contamination(documents) if "contamination" in settings.controls else None
    for task in tasks:
        loaded = load_items(task, split, documents=documents, data=data, offline=offline, limit=settings.limit)
        if task.kind == "bits_per_byte":
            items += prepare_documents(task, [i for i in loaded if isinstance(i, Document)], tokenizer)
            continue
        contamination = controls.with_items(contamination, task, loaded)
        prompts = Prompts(task, settings, tokenizer, loaded, data, offline)
        asked = [i for i in loaded if isinstance(i, Question)]
        items += prepare_questions(task, asked, prompts)
        items += prepare_generations(task, [i for i in loaded if isinstance(i, Generation)], prompts)
        if "permuted" in settings.controls and controls.permutable(task):
            added += controls.permuted(task, asked, prompts, split, data, offline)
        if "prior" in settings.controls and controls.answers_yes_no(task):
            added += controls.prior(task, prompts)
        if prompts.from_test:
            from_test.add(task.name)
    return Prepared(
        split=split,
        tasks=tuple(tasks),
        shots=settings.shots,
        items=(*items, *added),
        tokenizer=tokenizer,
        from_test=frozenset(from_test),
        contamination=contamination,
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
        for line in _lines(model, prepared.tokenizer, todo):
            file.write(_jsonl([line]))
            file.flush()
            lines[line["task"], line["id"]] = line
            bar.advance()
    _warn(lines)
    ordered = {item.key: lines[item.key] for item in prepared.items}  # whatever the order of scoring
    finished = controls.finish(prepared, ordered)
    write_text(path, _jsonl(finished.values()))
    rows = [row for task in prepared.tasks for row in _rows(task, prepared, lines, settings.bootstrap, seed)]
    rows += controls.rows(prepared, finished, settings.bootstrap, seed)
    results: dict[str, Any] = {"model": model_name, "rows": [asdict(row) for row in rows]}
    if prepared.contamination is not None:
        results["contamination"] = controls.contamination_report(prepared)
    write_json(directory / RESULTS, results)
    return rows


def _lines(model: Model, tokenizer: Tokenizer, items: Sequence[PreparedItem]) -> Iterator[Line]:
    """The lines of items as they are found, in whatever order; texts to generate come last, task by task."""
    positions = max_positions(model)
    if scored := [item for item in items if item.task.kind != "generative"]:
        yield from _scored_lines(model, scored, positions)
    written = [item for item in items if item.task.kind == "generative"]
    for _, group in groupby(written, key=lambda item: item.task.name):
        mine = sorted(
            group, key=lambda item: -len(item.requests[0].tokens)
        )  # what does not fit in memory fails at once
        for start in range(0, len(mine), SAVE_ANSWERS):
            yield from _generated_lines(model, tokenizer, mine[start : start + SAVE_ANSWERS], positions)


def _scored_lines(model: Model, items: Sequence[PreparedItem], positions: int | None) -> Iterator[Line]:
    fitted = [_fit(item, positions) for item in items]
    counts = np.array([len(requests) for requests in fitted], dtype=np.int64)
    ends = np.cumsum(counts)
    owners = np.repeat(np.arange(len(items)), counts)
    scores, left = np.full(len(owners), np.nan), counts.copy()
    # all in one call: what they have in common is found within it
    for done, found in iter_log_likelihoods(model, [request for requests in fitted for request in requests]):
        scores[done] = found
        np.subtract.at(left, owners[done], 1)
        for n in np.unique(owners[done]):
            if not left[n]:
                make = controls.control_line if items[n].control else line_of
                yield make(items[n], fitted[n], scores[ends[n] - counts[n] : ends[n]].tolist())


def _generated_lines(
    model: Model, tokenizer: Tokenizer, items: Sequence[PreparedItem], positions: int | None
) -> Iterator[Line]:
    """The lines of texts to generate, all of one task."""
    task, requests = items[0].task, [_room_for_answer(item, positions) for item in items]
    answers = generate(model, tokenizer, [request.tokens for request in requests], task.stop, task.max_new_tokens)
    yield from (generated_line(*each) for each in zip(items, requests, answers, strict=True))


def _fit(item: PreparedItem, positions: int | None) -> list[Request]:
    """The item's requests as the model can read them: a document in windows, a long question without its beginning."""
    if item.task.kind == "bits_per_byte":
        tokens = item.requests[0].tokens
        return windows(tokens[1:], tokens[0], min((positions or WINDOW) - 1, WINDOW))
    try:
        return [truncated(request, positions) for request in item.requests]
    except RequestError as error:
        raise RequestError(f"task {item.task.name}, item {item.id}: {error}") from error


def _room_for_answer(item: PreparedItem, positions: int | None) -> Request:
    (request,) = item.requests
    if positions is None:
        return request
    room = positions - item.task.max_new_tokens
    if room < 1:
        raise RequestError(
            f"task {item.task.name}: an answer of max_new_tokens {item.task.max_new_tokens} leaves no room for a prompt "
            f"in the model's {positions} positions"
        )
    return Request(request.tokens[-room:], 0)


def _warn(lines: dict[Key, Line]) -> None:
    """Say what was cut, and which answers hold no number where one is needed."""
    for key, what in (
        ("truncated", "prompts are longer than the model's context: they were scored without their beginning"),
        ("unread", "answers hold no number: they count as 0"),
    ):
        found = [task for (task, _), line in lines.items() if line.get(key)]
        for task in sorted(set(found)):
            say(f"{task}: {found.count(task)} {what}")


def _rows(task: Task, prepared: Prepared, lines: dict[Key, Line], resamples: int, seed: int) -> Iterator[Row]:
    """A row for each metric of a task, its own first."""
    mine = [lines[item.key] for item in prepared.items if item.task is task and not item.control]
    clusters = controls.clusters_of(mine)
    for metric in (task.metric, *task.also):
        if metric == "bits_per_byte":
            figures = bits_per_byte([m["nats"] for m in mine], [m["bytes"] for m in mine], resamples, seed)
        elif metric == "spearman":
            pairs = np.array([[m["number"], m["reference_number"]] for m in mine])
            figures = spearman(pairs[:, 0], pairs[:, 1], clusters, resamples, seed)
        else:
            scores = np.array([score(m, metric, primary=metric == task.metric) for m in mine])
            figures = mean_score(scores, clusters, resamples, seed)
        yield Row(
            task.name,
            task.group,
            prepared.split,
            metric,
            *figures,
            items=len(mine),
            shots=prepared.shots_of(task),
            primary=metric == task.metric,
            shots_from_test=task.name in prepared.from_test,
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
            whole = any(part in line for part in ("nats", "log_likelihoods", "answer"))
            if whole and expected.get(key) == line["prompt_hash"]:
                found[key] = line
        except (ValueError, KeyError, TypeError):
            continue
    return found
