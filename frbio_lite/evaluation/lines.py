"""From log-likelihoods, or a generated text, to an item's line in items.jsonl: what was answered, and how well.

A line has `task`, `id`, `prompt_hash`, and `cluster` where the item belongs to one. Its score is `correct` (true or
false), or `score` where that is a fraction; `scores` are the metrics beside. A document has `nats` and `bytes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from frbio_lite.evaluation.prepared import PreparedItem, letter_sets
from frbio_lite.evaluation.scoring import Request
from frbio_lite.evaluation.tasks import Metric
from frbio_lite.evaluation.texts import exact_match, extracted, f1, number, rouge_l

Line = dict[str, Any]
BINARY: tuple[Metric, ...] = (
    "accuracy",
    "accuracy_norm",
    "accuracy_bytes",
    "accuracy_tokens",
    "exact_set",
    "exact_match",
)


def line_of(item: PreparedItem, requests: Sequence[Request], scores: Sequence[float]) -> Line:
    """The line of an item whose `requests`, as the model read them, have these log-likelihoods in nats.

    Raises RuntimeError, naming the item, when one of them is not finite.
    """
    if not all(map(math.isfinite, scores)):
        raise RuntimeError(
            f"task {item.task.name}, item {item.id}: the model gives a log-likelihood that is not finite: {list(scores)}"
        )
    line = head(item)
    if item.task.form == "bits_per_byte":
        return line | {"nats": -math.fsum(scores), "bytes": item.bytes, "tokens": sum(r.scored for r in requests)}
    line |= {"log_likelihoods": list(scores)} | answered(item, scores)
    return line | {"truncated": is_cut(item, requests)}


def generated_line(item: PreparedItem, request: Request, answer: str) -> Line:
    """The line of an item that the model answered with a text."""
    found, task = extracted(answer, item.task.extract), item.task
    line = head(item) | {"answer": answer, "prediction": found, "gold": item.reference}
    metrics: dict[str, Callable[[], float]] = {
        "exact_match": lambda: float(exact_match(found, item.reference, task.language)),
        "f1": lambda: f1(found, item.reference),
        "rouge_l": lambda: rouge_l(found, item.reference),
    }
    line |= _scored(item, {m: metrics[m]() for m in (task.metric, *task.also) if m != "spearman"})
    if "spearman" in (task.metric, *task.also):
        read = number(found, task.language)
        # an answer without a number counts as 0, whatever the others are: saying nothing must not help
        line |= {"number": 0.0 if read is None else read, "unread": read is None}
        line |= {"reference_number": number(item.reference, task.language)}
    if task.metric == "spearman":
        line |= {"prediction": line["number"], "gold": line["reference_number"]}
    return line | {"truncated": is_cut(item, [request])}


def head(item: PreparedItem) -> Line:
    name, id_ = item.key
    line: Line = {"task": name, "id": id_, "prompt_hash": item.prompt_hash}
    return line if item.cluster is None else line | {"cluster": item.cluster}


def is_cut(item: PreparedItem, requests: Sequence[Request]) -> bool:
    return any(len(a.tokens) < len(b.tokens) for a, b in zip(requests, item.requests, strict=True))


def answered(item: PreparedItem, scores: Sequence[float], prior: tuple[float, ...] | None = None) -> Line:
    """`prediction`, `gold` and how well they agree. `prior`: log-probabilities of the answers before any question,
    which are subtracted (of yes/no tasks, and of those whose choices are always the same)."""
    if item.task.kind == "multiple_choice":
        return _one_choice(item, np.array(scores) - (0.0 if prior is None else np.array(prior)))
    chosen = _chosen_by_sets(item, scores) if item.task.form == "letter_sets" else _chosen_by_yes(scores, prior)
    right = set(item.golds)
    found: dict[str, float] = {
        "exact_set": float(chosen == right),  # nothing more either: all five letters are no answer to A, C, E
        "jaccard": len(chosen & right) / len(chosen | right),
    }
    scored = _scored(item, found)
    return {"prediction": sorted(chosen), "gold": list(item.golds)} | scored


def _one_choice(item: PreparedItem, scores: Any) -> Line:
    units: dict[str, list[int]] = {
        "accuracy": [1 for _ in item.choices],
        "accuracy_norm": [len(choice) for choice in item.choices],
        "accuracy_bytes": [len(choice.encode()) for choice in item.choices],
        "accuracy_tokens": [request.scored for request in item.requests],
    }
    metrics = (item.task.metric, *item.task.also)
    chosen = {metric: int(np.argmax(scores / np.array(units[metric]))) for metric in metrics}  # the first of equals
    right: dict[str, float] = {metric: float(best == item.golds[0]) for metric, best in chosen.items()}
    return {"prediction": chosen[item.task.metric], "gold": item.golds[0]} | _scored(item, right)


def _chosen_by_sets(item: PreparedItem, scores: Sequence[float]) -> set[int]:
    """The set of letters with the highest log-likelihood per token.

    The sum alone would all but always choose one letter, since every further letter costs; per token all sizes compete.
    The mean is not neutral either: the separators are easy to predict, which favours large sets. `yes_no` has neither
    bias, and a bias to yes or no instead.
    """
    means = [score / request.scored for score, request in zip(scores, item.requests, strict=True)]
    return set(letter_sets(len(item.choices))[int(np.argmax(means))])


def _chosen_by_yes(scores: Sequence[float], prior: tuple[float, ...] | None) -> set[int]:
    """The choices for which yes is more likely than no, beyond the prior if there is one."""
    yes, no = prior or (0.0, 0.0)
    return {n for n in range(len(scores) // 2) if scores[2 * n] - yes > scores[2 * n + 1] - no}


def _scored(item: PreparedItem, values: dict[str, float]) -> Line:
    """The score by the task's metric, and `scores` by those beside it."""
    line: Line = {}
    if (first := item.task.metric) in values:
        line = {"correct": bool(values[first])} if first in BINARY else {"score": values[first]}
    beside: dict[str, float] = {m: values[m] for m in item.task.also if m in values}
    return line | ({"scores": beside} if beside else {})


def score(line: Line, metric: str, primary: bool) -> float:
    """An item's score by one metric, in [0, 1]."""
    if not primary:
        return float(line["scores"][metric])
    return float(line["score"] if "score" in line else line["correct"])
