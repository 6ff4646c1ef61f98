"""Benchmarks made here for the tests of evaluation: fresh random questions in files, and how to read results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from frbio_lite.evaluation import run
from frbio_lite.evaluation.tasks import Task, parse_task
from frbio_lite.recipe import Eval

WORDS = ["le", "rein", "rate", "du", "foie", "à", "où", "naît", "cœur", "µg", "6,8", "mmol/L", "patient", "Paris"]


def write_quiz(folder: Path) -> Path:
    """The directory of a benchmark of 23 questions and 2 examples, with choices of very different lengths."""
    rng = np.random.default_rng()
    place = folder / "quiz"
    place.mkdir(parents=True)

    def words(most: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, most)))

    for split, count in (("test", 23), ("shots", 2)):
        rows = [
            {
                "question": f"{n} {words(12)} ?",
                "options": [words(2), words(5), words(9)],
                "answer": int(rng.integers(3)),
            }
            for n in range(count)
        ]
        (place / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def quiz(metric: str = "accuracy", **keys: Any) -> Task:
    given = {
        "name": "quiz",
        "group": "domain",
        "kind": "multiple_choice",
        "metric": metric,
        "dataset": "somebody/quiz",
        "splits": {"test": "test", "shots": "train"},
        "prompt": "Q : {question}\nR :",
        "choices": "options",
        "gold": "answer",
        "license": "cc0-1.0",
    } | keys
    return task_of(given)


def task_of(given: dict[str, Any], folder: Path | None = None) -> Task:
    """The task of these keys; those with `...` are left out."""
    kept = {key: value for key, value in given.items() if value is not ...}
    return parse_task(yaml.safe_dump(kept), f"{given['name']}.yaml", folder)


def several(folder: Path, count: int = 12, **keys: Any) -> Task:
    """A task of questions with one to three right answers of three or four, in rows.jsonl; two are examples."""
    rng = np.random.default_rng()
    rows = []
    for n in range(count):
        options = [" ".join(rng.choice(WORDS, 2)) + f" {k}" for k in range(3 + n % 2)]
        golds = sorted(rng.choice(len(options), size=1 + n % 3, replace=False).tolist())
        rows.append({"question": f"{n} {' '.join(rng.choice(WORDS, 4))} ?", "options": options, "answers": golds})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {
        "name": "several",
        "group": "domain",
        "kind": "multiple_answer",
        "metric": "exact_set",
        "also": ["jaccard"],
        "file": "rows.jsonl",
        "splits": {"test": "rows[2:]", "shots": "rows[:2]"},
        "prompt": "Q : {question}\n{options}\nR :",
        "choices": "options",
        "continuation": "letter",
        "gold": "answers",
        "license": "cc0-1.0",
    } | keys
    return task_of(given, folder)


YES_NO = {"answers": "yes_no", "continuation": ..., "prompt": "Q : {question} {option} ?\nR :"}


def written(folder: Path, golds: list[Any], **keys: Any) -> Task:
    """A task of questions that are answered in words."""
    rows = [{"question": f"{n} ?", "answer": gold} for n, gold in enumerate(golds)]
    (folder / "written.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {
        "name": "written",
        "group": "general",
        "kind": "generative",
        "file": "written.jsonl",
        "splits": {"test": "written"},
        "prompt": "Q : {question}\nR :",
        "gold": "answer",
        "max_new_tokens": 16,
        "license": "cc0-1.0",
    } | keys
    return task_of(given, folder)


class Writer:
    """Stands for generation: the answer to the n-th question, and how it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokenizer: Any, answers: list[str]) -> None:
        self.tokenizer, self.answers, self.asked = tokenizer, answers, []
        monkeypatch.setattr(run, "generate", self)

    def __call__(self, model: Any, tokenizer: Any, prompts: Any, stop: Any, max_new_tokens: int) -> list[str]:
        texts = [self.tokenizer.decode(tokens) for tokens in prompts]
        self.asked += [(text, tuple(stop), max_new_tokens) for text in texts]
        return [self.answers[int(text.rpartition("Q : ")[2].split()[0])] for text in texts]


def settings(**how: Any) -> Eval:
    return Eval(**({"tasks": ["quiz"], "bootstrap": 200} | how))


def read(directory: Path) -> list[dict[str, Any]]:
    return lines_of(directory / "items.jsonl")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
