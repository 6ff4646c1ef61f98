"""Controls against what they stand for, recomputed by hand: order of choices, habit of yes, contaminated tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_models import make_model, reference
from eval_tasks import YES_NO, Writer, lines_of, quiz, read, settings, several, task_of, write_quiz, written

from frbio_lite.artifacts import canonical_hash
from frbio_lite.errors import RequestError
from frbio_lite.evaluation import benchmark_texts, evaluate, gains, load_tasks, prepare, run
from frbio_lite.evaluation.compare import compare
from frbio_lite.evaluation.metrics import Row, wilson
from frbio_lite.evaluation.results import load
from frbio_lite.evaluation.tasks import Task

LETTERED: dict[str, Any] = {"prompt": "Q : {question}\n{options}\nR :", "continuation": "letter"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_quiz(tmp_path / "data")


def by_metric(rows: list[Row], task: str) -> dict[str, Row]:
    return {row.metric: row for row in rows if row.task == task}


def lettered(question: str, options: list[str]) -> str:
    listed = "\n".join(f"{'ABCD'[k]}. {o}" for k, o in enumerate(options))
    return f"Q : {question}\n{listed}\nR :"


def of(directory: Path, task: str) -> list[dict[str, Any]]:
    return [line for line in read(directory) if line["task"] == task]


def test_permuted_by_hand(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    model, how = make_model(5, positions=256), settings(controls=["permuted"])
    rows = evaluate(
        model, tokenizer, [quiz(**LETTERED)], "test", how, tmp_path / "o", model_name="m", data=data, seed=1
    )
    moved, turned_right, all_right = [], [], []
    for question, line in zip(lines_of(data / "quiz" / "test.jsonl"), of(tmp_path / "o", "quiz~permuted"), strict=True):
        options, answers = question["options"], []
        for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
            prompt = lettered(question["question"], [options[k] for k in order])
            scores = [reference_of(model, tokenizer, prompt, f" {letter}") for letter in "ABC"]
            answers.append(order[scores.index(max(scores))])
        right = [answer == question["answer"] for answer in answers]
        moved.append(answers[1] != answers[0] or answers[2] != answers[0])
        turned_right.append(sum(right[1:]) / 2)
        all_right.append(sum(right) / 3)
        assert line["predictions"] == [[a] for a in answers[1:]] and line["score"] == turned_right[-1]
        assert line["scores"] == pytest.approx({"accuracy_averaged": all_right[-1], "moved": float(moved[-1])})
    found = by_metric(rows, "quiz~permuted")
    assert found["accuracy"].value == pytest.approx(np.mean(turned_right)) and found["accuracy"].primary
    assert found["accuracy_averaged"].value == pytest.approx(np.mean(all_right))
    assert found["moved"].value == pytest.approx(np.mean(moved)) and not found["moved"].primary
    assert (found["moved"].low, found["moved"].high) == wilson(sum(moved), 23)
    assert {row.group for row in found.values()} == {"control"} and all(r.items == 23 for r in found.values())


def reference_of(model: Any, tokenizer: Any, prompt: str, choice: str) -> float:
    """As `reference`, for prompts longer than its context."""
    import torch

    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tokens = tokenizer(prompt + choice, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        every = torch.log_softmax(model(input_ids=torch.tensor([tokens[:-1]])).logits[0].float(), -1)
    return sum(every[n - 1, tokens[n]].item() for n in range(len(head), len(tokens)))


def always_first(model: Any, requests: Any) -> Any:
    """Scores of a model that answers A whatever is asked."""
    first = [min(r.tokens[-1] for r in requests)] if requests else []
    alone = [r.tokens[-1] in first and r.scored == 1 for r in requests]
    yield np.arange(len(requests)), np.where(alone, -1.0, [-5.0 * r.scored for r in requests])


def test_a_liking_for_a_letter_shows(
    data: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever always says A is right for the share of A, and for one in three once the choices have taken all places."""
    monkeypatch.setattr(run, "iter_log_likelihoods", always_first)
    rows = evaluate(
        make_model(),
        tokenizer,
        [quiz(**LETTERED)],
        "test",
        settings(controls=["permuted"]),
        tmp_path / "o",
        model_name="m",
        data=data,
        seed=1,
    )
    found = by_metric(rows, "quiz~permuted")
    plain = [q["answer"] == 0 for q in lines_of(data / "quiz" / "test.jsonl")]
    assert rows[0].value == pytest.approx(np.mean(plain))
    assert found["accuracy_averaged"].value == pytest.approx(1 / 3) and found["moved"].value == 1.0


def test_permuted_sets(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions of three and of four choices side by side, with several right answers."""
    monkeypatch.setattr(run, "iter_log_likelihoods", always_first)
    rows = evaluate(
        make_model(positions=256),
        tokenizer,
        [several(tmp_path)],
        "test",
        settings(controls=["permuted"]),
        tmp_path / "o",
        model_name="m",
        seed=1,
    )
    every = lines_of(tmp_path / "rows.jsonl")[2:]
    for row, line in zip(every, of(tmp_path / "o", "several~permuted"), strict=True):
        count = len(row["options"])
        assert line["predictions"] == [[turn] for turn in range(1, count)]
        assert line["score"] == sum([turn] == row["answers"] for turn in range(1, count)) / (count - 1)
    assert list(by_metric(rows, "several~permuted")) == ["exact_set", "exact_set_averaged", "moved"]


def test_prior_and_calibration_by_hand(tokenizer: Any, tmp_path: Path) -> None:
    model = make_model(2, positions=256)
    task = several(tmp_path, **YES_NO)
    how = settings(controls=["prior"], shots=1)
    rows = evaluate(model, tokenizer, [task], "test", how, tmp_path / "o", model_name="m", seed=1)
    every = lines_of(tmp_path / "rows.jsonl")
    shown = f"Q : {every[0]['question']} {every[0]['options'][every[0]['answers'][0]]} ?\nR : Oui\n\n"
    shares = []
    for word in ("N/A", "[MASK]", ""):
        prompt = f"{shown}Q : {word} {word} ?\nR :"
        yes, no = (math.exp(reference_of(model, tokenizer, prompt, w)) for w in (" Oui", " Non"))
        shares.append(yes / (yes + no))
    prior = by_metric(rows, "several~prior")["yes_share"]
    assert (
        prior.value == pytest.approx(np.mean(shares), rel=1e-4) and prior.low is prior.high is None and prior.items == 3
    )
    assert [line["score"] for line in of(tmp_path / "o", "several~prior")] == pytest.approx(shares, rel=1e-4)
    threshold = math.log(np.mean(shares)) - math.log(1 - np.mean(shares))
    for row, plain, line in zip(
        every[2:], of(tmp_path / "o", "several"), of(tmp_path / "o", "several~calibrated"), strict=True
    ):
        pairs = np.array(plain["log_likelihoods"]).reshape(-1, 2)
        chosen = [k for k in range(len(row["options"])) if pairs[k, 0] - pairs[k, 1] > threshold]
        assert line["prediction"] == chosen and line["correct"] == (chosen == row["answers"])
    found = by_metric(rows, "several~calibrated")
    assert list(found) == ["exact_set", "jaccard"] and found["exact_set"].group == "control"
    assert found["jaccard"].value == pytest.approx(
        np.mean([line["scores"]["jaccard"] for line in of(tmp_path / "o", "several~calibrated")])
    )


def test_calibration_takes_a_habit_away(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows the answers and says yes too readily: 4 nats to yes, and only 1 to what is right."""
    task = several(tmp_path, 20, **YES_NO)
    right = {
        f"{row['question']} {option} ?": k in row["answers"]
        for row in lines_of(tmp_path / "rows.jsonl")
        for k, option in enumerate(row["options"])
    }

    def readily(model: Any, requests: Any) -> Any:
        texts = [tokenizer.decode(r.tokens) for r in requests]
        known = [right.get(text.rpartition("Q : ")[2].partition("\n")[0]) for text in texts]
        nats = {None: 0.0, True: 1.0, False: -1.0}
        yield (
            np.arange(len(texts)),
            np.array([-5 + (4 + nats[k]) * t.endswith(" Oui") for t, k in zip(texts, known, strict=True)]),
        )

    monkeypatch.setattr(run, "iter_log_likelihoods", readily)
    how, model = settings(controls=["prior"]), make_model(positions=256)
    rows = evaluate(model, tokenizer, [task], "test", how, tmp_path / "o", model_name="m", seed=1)
    every = lines_of(tmp_path / "rows.jsonl")[2:]
    assert rows[0].value == np.mean([len(row["answers"]) == len(row["options"]) for row in every])
    assert by_metric(rows, "several~calibrated")["exact_set"].value == 1.0
    assert by_metric(rows, "several~prior")["yes_share"].value == pytest.approx(1 / (1 + math.exp(-4)))


def passages(folder: Path) -> Task:
    rows = [{"question": f"{n} rein ?", "label": n % 2} for n in range(9)]
    (folder / "yes.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {
        "name": "passages",
        "group": "general",
        "kind": "multiple_choice",
        "metric": "accuracy",
        "file": "yes.jsonl",
        "splits": {"test": "yes"},
        "prompt": "{question}\n",
        "fixed_choices": ["Non", "Oui"],
        "delimiter": "",
        "gold": "label",
        "license": "cc0-1.0",
    }
    return task_of(given, folder)


def test_prior_of_fixed_yes_and_no(tokenizer: Any, tmp_path: Path) -> None:
    model = make_model(1)
    rows = evaluate(
        model,
        tokenizer,
        [passages(tmp_path)],
        "test",
        settings(controls=["prior"]),
        tmp_path / "o",
        model_name="m",
        seed=1,
    )
    logs = np.array(
        [[reference(model, tokenizer, f"{w}\n".lstrip(), c) for c in ("Non", "Oui")] for w in ("N/A", "[MASK]", "")]
    )
    shares = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    assert by_metric(rows, "passages~prior")["yes_share"].value == pytest.approx(shares[:, 1].mean(), rel=1e-4)
    right = 0
    for n, line in enumerate(of(tmp_path / "o", "passages~calibrated")):
        scores = [reference(model, tokenizer, f"{n} rein ?\n", c) for c in ("Non", "Oui")]
        best = int(np.argmax(np.array(scores) - np.log(shares.mean(0))))
        assert line["prediction"] == best
        right += best == n % 2
    assert by_metric(rows, "passages~calibrated")["accuracy"].value == pytest.approx(right / 9)


def funnel(folder: Path, contamination: Any) -> Path:
    folder.mkdir()
    (folder / "funnel.json").write_text(json.dumps({"steps": [], "contamination": contamination}), encoding="utf-8")
    return folder


def test_contamination_by_task(data: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"a": {"quiz": 3}, "b": {"quiz": 1, "other": 9}}
    questions = {"quiz": 23, "several": 10, "other": 5}
    corpus = funnel(tmp_path / "corpus", {"documents": counts, "questions": questions, "ngram": 13})
    Writer(monkeypatch, tokenizer, ["un", "deux"])
    tasks = [
        quiz(cluster="question"),
        several(tmp_path),
        passages(tmp_path),
        written(tmp_path, ["un", "un"], metric="f1"),
    ]
    how = settings(controls=["contamination"])
    rows = evaluate(
        make_model(), tokenizer, tasks, "test", how, tmp_path / "o", model_name="m", data=data, documents=corpus, seed=1
    )
    found = {row.task: row for row in rows if row.group == "control"}
    assert list(found) == ["all~contaminated", "all~clean"]
    plain = {row.task: row for row in rows if row.primary}
    assert (found["all~contaminated"].value, found["all~contaminated"].items) == (plain["quiz"].value, 23)
    assert (found["all~clean"].value, found["all~clean"].items) == (plain["several"].value, 10)
    report = json.loads((tmp_path / "o" / "results.json").read_text(encoding="utf-8"))["contamination"]
    assert report == {
        "documents": {"quiz": 4, "several": 0},
        "strata": {"all~contaminated": {"quiz": 23}, "all~clean": {"several": 10}},
        "not_searched": ["passages", "written"],
    }
    assert not of(tmp_path / "o", "all~contaminated")  # the items are in the file once


def key(question: str) -> str:
    """As the corpus stage names a question that it found."""
    return canonical_hash(question)[:16]


def test_contamination_by_item(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Some questions of one task were found, all of another, none of a third, and one was looked for in no corpus."""
    every = [row["question"] for row in lines_of(data / "quiz" / "test.jsonl")]
    tasks = [quiz(cluster="question"), several(tmp_path), passages(tmp_path)]
    whole = [row["question"] for row in lines_of(tmp_path / "rows.jsonl")[2:]]
    known = set(np.random.default_rng().choice(len(every), 9, replace=False).tolist())
    found_keys = {"quiz": [key(every[n]) for n in known] + ["0" * 16], "several": [key(q) for q in whole]}
    questions = {"quiz": 23, "several": 10, "passages": 9}
    # documents of the third task hold validation questions
    counts = {"a": {"quiz": 3, "several": 40, "passages": 2}}
    report = {"documents": counts, "questions": questions, "ngram": 13, "questions_found": found_keys}
    corpus, how = funnel(tmp_path / "corpus", report), settings(controls=["contamination"])
    rows = evaluate(
        make_model(), tokenizer, tasks, "test", how, tmp_path / "o", model_name="m", data=data, documents=corpus, seed=1
    )
    scored = {t.name: [float(line["correct"]) for line in of(tmp_path / "o", t.name)] for t in tasks}
    parts = {
        "quiz~contaminated": [s for n, s in enumerate(scored["quiz"]) if n in known],
        "quiz~clean": [s for n, s in enumerate(scored["quiz"]) if n not in known],
    }
    wanted = {
        "all~contaminated": parts["quiz~contaminated"] + scored["several"],
        "all~clean": parts["quiz~clean"] + scored["passages"],
        **parts,
    }
    strata = {row.task: row for row in rows if row.group == "control"}
    assert set(strata) == set(wanted)
    for name, scores in wanted.items():
        assert strata[name].items == len(scores) and strata[name].value == pytest.approx(np.mean(scores))
        assert strata[name].primary and strata[name].metric == ("score" if name.startswith("all") else "accuracy")
    assert len(parts["quiz~contaminated"]) == 9 and len(parts["quiz~clean"]) == 14
    told = json.loads((tmp_path / "o" / "results.json").read_text(encoding="utf-8"))["contamination"]
    assert told["strata"] == {
        "all~contaminated": {"quiz": 9, "several": 10},
        "all~clean": {"quiz": 14, "passages": 9},
        "quiz~contaminated": {"quiz": 9},
        "quiz~clean": {"quiz": 14},
    }
    assert set(load(tmp_path / "o").tasks) == {"quiz", "several", "passages"}  # a comparison leaves them out


def test_the_keys_are_those_of_the_texts_that_are_looked_for(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    """What `benchmark_texts` hands to the corpus stage and what is scored are known by the same keys."""
    tasks = load_tasks(["demo-medical", "frbio-fr-med"])
    texts = benchmark_texts(tasks)
    keys = {name: [key(text) for text in found] for name, found in texts.items()}
    report = {"documents": {}, "questions": {name: len(found) for name, found in texts.items()}}
    corpus = funnel(tmp_path / "corpus", report | {"questions_found": keys})
    prepared = prepare(tasks, tokenizer, "test", settings(controls=["contamination"]), documents=corpus)
    assert prepared.contamination is not None
    assert prepared.contamination.items == {item.key for item in prepared.items}


def test_nothing_found_is_all_clean(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    report = {"documents": {}, "questions": {"quiz": 23}, "questions_found": {}}
    how, corpus = settings(controls=["contamination"]), funnel(tmp_path / "corpus", report)
    rows = evaluate(
        make_model(), tokenizer, [quiz()], "test", how, tmp_path / "o", model_name="m", data=data, documents=corpus,
        seed=1,
    )  # fmt: skip
    assert [(row.task, row.items) for row in rows if row.group == "control"] == [("all~clean", 23)]


@pytest.mark.parametrize(
    "report", [{"documents": {}}, {}, None, {"documents": {}, "questions": {}, "questions_found": 3}]
)
def test_a_corpus_that_was_not_searched(report: Any, data: Path, tokenizer: Any, tmp_path: Path) -> None:
    how = settings(controls=["contamination"])
    with pytest.raises(RequestError, match="reads the report of a corpus, and none was given: pass --corpus DIR"):
        prepare([quiz()], tokenizer, "test", how, data=data)
    with pytest.raises(RequestError, match=r"funnel\.json tells nothing about benchmarks"):
        prepare([quiz()], tokenizer, "test", how, data=data, documents=funnel(tmp_path / "corpus", report))
    with pytest.raises(RequestError, match=r"funnel\.json tells nothing"):
        prepare([quiz()], tokenizer, "test", how, data=data, documents=tmp_path)


def test_controls_without_a_task_for_them(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="control permuted: no task shows its choices under letters"):
        prepare([quiz()], tokenizer, "test", settings(controls=["permuted"]), data=data)
    with pytest.raises(RequestError, match="control prior: no task is answered by yes or no"):
        prepare([quiz()], tokenizer, "test", settings(controls=["prior"]), data=data)
    with pytest.raises(ValueError, match="controls"):
        settings(controls=["order"])


def test_controls_resume_and_count_for_nothing(
    data: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [quiz(**LETTERED), several(tmp_path, **YES_NO)]
    how = settings(controls=["permuted", "prior"])

    def scored(seed: int, name: str) -> list[Row]:
        model = make_model(seed, positions=256)
        return evaluate(model, tokenizer, tasks, "test", how, tmp_path / name, model_name=name, data=data, seed=1)

    base, rows = scored(1, "base"), scored(2, "new")
    plain = [row for row in rows if row.task in ("quiz", "several") and row.primary]
    assert gains(rows, base) == gains(plain, [r for r in base if r.task in ("quiz", "several") and r.primary])
    text = (tmp_path / "new" / "items.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    dropped = next(line for line in text if '"quiz~permuted"' in line)
    (tmp_path / "new" / "items.jsonl").write_text("".join(x for x in text if x != dropped), encoding="utf-8")
    original, asked = run.iter_log_likelihoods, []
    monkeypatch.setattr(run, "iter_log_likelihoods", lambda m, r: (asked.append(len(r)), original(m, r))[1])
    assert scored(2, "new") == rows and asked == [6]
    # a comparison leaves them out
    assert set(load(tmp_path / "new").tasks) == {"quiz", "several"}
    comparison = compare([tmp_path / "base", tmp_path / "new"], resamples=200)
    assert {group.group: group.role for group in comparison.groups} == {"domain": "gain"}
