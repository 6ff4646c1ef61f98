"""Controls: what else than knowledge moves a score. They are reported in the group `control`, which nothing counts.

permuted: each question again with its choices in every rotation, so that each choice stands once at each letter. The task
    NAME~permuted has the mean score over the rotated questions, `METRIC_averaged` with the published order among them
    (where a liking for one letter cancels out), and `moved`, the share of items of which some rotation changes the answer.
prior: how likely yes is where nothing is asked. NAME~prior has `yes_share`, the mean share of yes in the probability of
    yes and no over prompts whose columns hold "N/A", "[MASK]" or nothing; NAME~calibrated the scores with the mean
    probabilities of these prompts divided out (Zhao et al. 2021, "Calibrate before use").
contamination: items whose question the corpus stage found in a document, beside those it looked for and did not find;
    a question too short to look for counts as not found. The rows all~contaminated and all~clean pool the items of all
    tasks, NAME~contaminated and NAME~clean are a task's own where it has both. A corpus of an older version tells the
    tasks alone: then an item counts as found where any of its task was.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from frbio_lite.artifacts import canonical_hash
from frbio_lite.errors import RequestError
from frbio_lite.evaluation.items import Document, Item, Question, content_free, load_items
from frbio_lite.evaluation.lines import Line, answered, head, is_cut, line_of, score
from frbio_lite.evaluation.metrics import Row, mean_score
from frbio_lite.evaluation.prepared import (
    Contamination,
    Key,
    Prepared,
    PreparedItem,
    Prompts,
    prepare_questions,
    requests_of,
)
from frbio_lite.evaluation.scoring import Request
from frbio_lite.evaluation.tasks import YES_NO, SplitName, Task

PERMUTED, PRIOR, CALIBRATED, MOVED = "permuted", "prior", "calibrated", "moved"
CONTENT_FREE = ("N/A", "[MASK]", "")
POOLED, FOUND, CLEAN = "all", "contaminated", "clean"
KEY_LENGTH = 16  # of a question's hash, as the corpus stage writes it
Lines = dict[Key, Line]


def permutable(task: Task) -> bool:
    """Whether the prompt shows the choices under their letters: elsewhere their order changes nothing."""
    columns = (task.choices,) if isinstance(task.choices, str) else task.choices or ()
    return task.continuation == "letter" and any(column in task.prompt_columns for column in columns)


def answers_yes_no(task: Task) -> bool:
    """Whether the choices are yes and no, for all its items."""
    words = {word.casefold() for word in YES_NO[task.language]}
    scored = {choice.casefold() for choice in task.fixed_choices} if task.choice is None else set()
    return task.form == "yes_no" or scored == words


def check(controls: Sequence[str], tasks: Sequence[Task]) -> None:
    """Raise RequestError when none of the tasks is one that a control applies to."""
    if PERMUTED in controls and not any(map(permutable, tasks)):
        raise RequestError("control permuted: no task shows its choices under letters; leave it out, or add a task")
    if PRIOR in controls and not any(map(answers_yes_no, tasks)):
        raise RequestError("control prior: no task is answered by yes or no; leave it out, or add a task")


def permuted(
    task: Task,
    items: Sequence[Question],
    prompts: Prompts,
    split: SplitName,
    data: Path | None,
    offline: bool,
) -> Iterator[PreparedItem]:
    """The items, each with the questions of all its rotations but the published one as parts."""
    parts: list[list[PreparedItem]] = [[] for _ in items]
    for turn in range(1, max(len(item.choices) for item in items)):
        turned = load_items(task, split, data=data, offline=offline, limit=len(items), turn=turn)
        mine = [question for question in turned if isinstance(question, Question)]
        for kept, part in zip(parts, prepare_questions(task, mine, prompts), strict=True):
            if turn < len(part.choices):
                kept.append(part)
    for item, rotated in zip(items, parts, strict=True):
        yield PreparedItem(
            task=task,
            id=item.id,
            prompt_hash=canonical_hash([part.prompt_hash for part in rotated]),
            requests=tuple(request for part in rotated for request in part.requests),
            cluster=item.cluster,
            control=PERMUTED,
            parts=tuple(rotated),
        )


def prior(task: Task, prompts: Prompts) -> Iterator[PreparedItem]:
    """The prompts that ask nothing, each followed by yes or no."""
    words = list(YES_NO[task.language] if task.form == "yes_no" else task.fixed_choices)
    for word in CONTENT_FREE:
        pairs = [(prompts.whole(content_free(task, word), ""), [prompts.delimiter + answer for answer in words])]
        (requests,) = requests_of(task, prompts.tokenizer, [pairs])
        name = word or "empty"
        yield PreparedItem(task, name, canonical_hash(pairs), requests, choices=tuple(words), control=PRIOR)


def control_line(item: PreparedItem, requests: Sequence[Request], scores: Sequence[float]) -> Line:
    """The line of a control's item: of rotated questions the answers as positions in the published order."""
    if item.control == PRIOR:
        logs = np.array(line_of(replace(item, golds=(0,)), requests, scores)["log_likelihoods"])
        shares = np.exp(logs - np.logaddexp.reduce(logs))
        yes = YES_NO[item.task.language][0].casefold()
        at = [choice.casefold() for choice in item.choices].index(yes)
        return head(item) | {"log_likelihoods": list(scores), "score": float(shares[at])}
    start, answers, values = 0, [], []
    for turn, part in enumerate(item.parts, 1):
        count = len(part.requests)
        line = line_of(part, requests[start : start + count], scores[start : start + count])
        given = line["prediction"] if isinstance(line["prediction"], list) else [line["prediction"]]
        answers.append(sorted((position + turn) % len(part.choices) for position in given))
        values.append(score(line, item.task.metric, primary=True))
        start += count
    mean = math.fsum(values) / len(values)
    found = {"log_likelihoods": list(scores), "predictions": answers, "score": mean}
    return head(item) | found | {"truncated": is_cut(item, requests)}


def finish(prepared: Prepared, lines: Lines) -> Lines:
    """The lines of items and controls together: what needs the plain scores beside the control's is added here."""
    found = dict(lines)
    for task in prepared.tasks:
        mine = [item for item in prepared.items if item.task is task and not item.control]
        if (f"{task.name}~{PERMUTED}", mine[0].id) in lines:
            for item in mine:
                key = (f"{task.name}~{PERMUTED}", item.id)
                found[key] = lines[key] | {"scores": _moves(lines[item.key], lines[key], task)}
        priors = [lines[item.key] for item in prepared.items if item.task is task and item.control == PRIOR]
        for item in mine if priors else ():
            line = head(replace(item, control=CALIBRATED))
            shown = answered(item, lines[item.key]["log_likelihoods"], _mean_prior(priors))
            found[line["task"], item.id] = line | shown
    return found


def _pooled(lines: Lines, items: Sequence[PreparedItem], stratum: str) -> Iterator[Line]:
    """The items of one or several tasks as those of one; the clusters of different tasks stay apart."""
    for item in items:
        line: Line = {"task": stratum, "id": f"{item.task.name}/{item.id}"}
        line["score"] = score(lines[item.key], item.task.metric, primary=True)
        yield line if item.cluster is None else line | {"cluster": f"{item.task.name}/{item.cluster}"}


def _moves(plain: Line, rotated: Line, task: Task) -> dict[str, float]:
    published = plain["prediction"] if isinstance(plain["prediction"], list) else [plain["prediction"]]
    answers = rotated["predictions"]
    count, value = len(answers), score(plain, task.metric, primary=True)
    return {
        f"{task.metric}_averaged": (value + count * rotated["score"]) / (count + 1),
        MOVED: float(any(answer != published for answer in answers)),
    }


def _mean_prior(priors: Sequence[Line]) -> tuple[float, ...]:
    """Logarithms of the mean probabilities of the answers, each prompt's made to sum to one."""
    logs = np.array([line["log_likelihoods"] for line in priors])
    shares = np.exp(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))
    return tuple(float(value) for value in np.log(shares.mean(0)))


def rows(prepared: Prepared, lines: Lines, resamples: int, seed: int) -> list[Row]:
    """Rows of all controls, in the order of the tasks; of each the first is primary."""
    found: list[Row] = []
    for task in prepared.tasks:
        permuted_metrics = (task.metric, f"{task.metric}_averaged", MOVED)
        for control, metrics in ((PERMUTED, permuted_metrics), (PRIOR, ("yes_share",)), (CALIBRATED, None)):
            mine = [line for (name, _), line in lines.items() if name == f"{task.name}~{control}"]
            if mine:
                found += _rows(prepared, task, mine, metrics or (task.metric, *task.also), resamples, seed)
    for stratum, items in strata(prepared).items():
        mine, task = list(_pooled(lines, items, stratum)), items[0].task
        metric = "score" if stratum.startswith(f"{POOLED}~") else task.metric
        found += _rows(prepared, task, mine, (metric,), resamples, seed)
    return found


def _rows(
    prepared: Prepared, task: Task, mine: Sequence[Line], metrics: Sequence[str], resamples: int, seed: int
) -> Iterator[Row]:
    for number, metric in enumerate(metrics):
        scores = np.array([score(line, metric, primary=not number) for line in mine])
        value, low, high = mean_score(scores, clusters_of(mine), resamples, seed)
        if metric == "yes_share":  # prompts are chosen, not drawn
            low = high = None
        yield Row(
            task=mine[0]["task"],
            group="control",
            split=prepared.split,
            metric=metric,
            value=value,
            low=low,
            high=high,
            items=len(mine),
            shots=prepared.shots_of(task),
            primary=not number,
            shots_from_test=task.name in prepared.from_test,
        )


def clusters_of(lines: Sequence[Line]) -> list[str] | None:
    """The clusters of items, an item without one being its own; None where no two items share one."""
    labels = [f"cluster {line['cluster']}" if "cluster" in line else f"item {line['id']}" for line in lines]
    return labels if len(set(labels)) < len(labels) else None


def contamination(corpus: Path | None) -> Contamination:
    """What the corpus stage found of benchmarks, from its funnel.json.

    Raises RequestError when the corpus was not searched for benchmarks.
    """
    if corpus is None:
        raise RequestError("control contamination reads the report of a corpus, and none was given: pass --corpus DIR")
    path = corpus / "funnel.json"
    try:
        report: Any = json.loads(path.read_text(encoding="utf-8"))["contamination"]
        documents = dict.fromkeys(report["questions"], 0)
        for by_task in report["documents"].values():
            for name, count in by_task.items():
                documents[name] = documents.get(name, 0) + int(count)
        questions = None
        if "questions_found" in report:
            questions = {name: frozenset(keys) for name, keys in report["questions_found"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"control contamination: {path} tells nothing about benchmarks: its recipe has no corpus.decontaminate"
        ) from error
    return Contamination(documents, questions)


def with_items(known: Contamination | None, task: Task, items: Iterable[Item]) -> Contamination | None:
    """What is known, with those of a task's items added whose question was found."""
    if known is None or known.questions is None:
        return known
    keys = known.questions.get(task.name, frozenset())
    asked = (item for item in items if not isinstance(item, Document))
    found = {(task.name, item.id) for item in asked if canonical_hash(item.text)[:KEY_LENGTH] in keys}
    return replace(known, items=known.items | found)


def strata(prepared: Prepared) -> dict[str, list[PreparedItem]]:
    """Found and clean items, of all tasks with scores in [0, 1] that were looked for, then of each that has both."""
    known = prepared.contamination
    if known is None:
        return {}
    pooled: dict[str, list[PreparedItem]] = {}
    single: dict[str, list[PreparedItem]] = {}
    for task in prepared.tasks:
        if task.name not in known.documents or task.metric in ("bits_per_byte", "spearman"):
            continue
        mine: dict[str, list[PreparedItem]] = {FOUND: [], CLEAN: []}
        for item in prepared.items:
            if item.task is task and not item.control:
                found = known.documents[task.name] if known.questions is None else item.key in known.items
                mine[FOUND if found else CLEAN].append(item)
        for stratum, items in mine.items():
            if items:
                pooled.setdefault(f"{POOLED}~{stratum}", []).extend(items)
            if all(mine.values()):
                single[f"{task.name}~{stratum}"] = items
    return pooled | single


def contamination_report(prepared: Prepared) -> dict[str, Any]:
    """What results.json says of it: documents by task, items of each task in the strata, tasks that were not looked for."""
    known = prepared.contamination.documents if prepared.contamination else {}
    names = [task.name for task in prepared.tasks]
    return {
        "documents": {name: known[name] for name in names if name in known},
        "strata": {name: dict(Counter(i.task.name for i in items)) for name, items in strata(prepared).items()},
        "not_searched": [name for name in names if name not in known],
    }
