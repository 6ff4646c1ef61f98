"""From tasks to results.json: figures recomputed by hand, interruption and resumption, bad requests."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from eval_models import POSITIONS, SENTENCES, make_model, reference
from eval_tasks import WORDS, quiz, read, settings, task_of, write_quiz

from frbio_lite.errors import RequestError
from frbio_lite.evaluation import evaluate, evaluate_prepared, load_tasks, prepare, run
from frbio_lite.evaluation.metrics import wilson

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_quiz(tmp_path / "data")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus" / "documents"
    folder.mkdir(parents=True)
    rng = np.random.default_rng()
    rows = [
        {
            "text": " ".join(rng.choice(SENTENCES, rng.integers(1, 6))),
            "id": f"d{n}",
            "split": "test",
            "role": ("domain", "replay")[n % 2],
            "source": "s",
            "document_type": "note",
            "license": "cc0-1.0",
        }
        for n in range(14)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet")
    return tmp_path / "corpus"


@pytest.mark.parametrize("metric, shots", [("accuracy", 0), ("accuracy_norm", 0), ("accuracy", 2)])
def test_multiple_choice_by_hand(
    metric: str, shots: int, data: Path, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rows = evaluate(
        model, tokenizer, [quiz(metric)], "test", settings(shots=shots), out, model_name="tiny", data=data, seed=1
    )
    examples = [json.loads(x) for x in (data / "quiz" / "shots.jsonl").read_text(encoding="utf-8").splitlines()][:shots]
    before = "".join(f"Q : {e['question']}\nR : {e['options'][e['answer']]}\n\n" for e in examples)
    right = 0
    questions = [json.loads(x) for x in (data / "quiz" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    for n, (question, line) in enumerate(zip(questions, read(out), strict=True)):
        scores = [
            reference(model, tokenizer, f"{before}Q : {question['question']}\nR :", " " + o)
            for o in question["options"]
        ]
        ranked = (
            [s / len(o) for s, o in zip(scores, question["options"], strict=True)]
            if metric == "accuracy_norm"
            else scores
        )
        best = ranked.index(max(ranked))
        np.testing.assert_allclose(line["log_likelihoods"], scores, atol=1e-5)
        assert (line["task"], line["id"], line["prediction"], line["gold"]) == (
            "quiz",
            str(n),
            best,
            question["answer"],
        )
        assert line["correct"] == (best == question["answer"])
        right += line["correct"]
    low, high = wilson(right, 23)
    expected = {
        "task": "quiz",
        "group": "domain",
        "split": "test",
        "metric": metric,
        "value": right / 23,
        "low": low,
        "high": high,
        "items": 23,
        "shots": shots,
        "primary": True,
        "shots_from_test": False,
    }
    assert asdict(rows[0]) == expected
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == {"model": "tiny", "rows": [expected]}


def test_bits_per_byte_by_hand(corpus: Path, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    tasks = load_tasks(["heldout-domain", "heldout-general"])
    rows = evaluate(
        model, tokenizer, tasks, "test", settings(shots=3), tmp_path / "out", model_name="m", documents=corpus, seed=1
    )
    documents = {d["id"]: d for d in pq.read_table(corpus / "documents" / "0.parquet").to_pylist()}
    totals = {"domain": [0.0, 0], "replay": [0.0, 0]}
    for line in read(tmp_path / "out"):
        text = documents[line["id"]]["text"]
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        nats = 0.0
        size = POSITIONS - 1
        for start in range(0, len(tokens), size):  # each window sees the token before it, no further
            scored = torch.tensor(tokens[start : start + size])
            part = [tokenizer.eos_token_id, *tokens[max(start - 1, 0) : start + size]]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([part[:-1]])).logits[0].float()[-len(scored) :]
            nats += torch.nn.functional.cross_entropy(logits, scored, reduction="sum").item()
        assert (
            line["nats"] == pytest.approx(nats, abs=1e-3)
            and line["bytes"] == len(text.encode())
            and line["tokens"] == len(tokens)
        )
        totals[documents[line["id"]]["role"]][0] += nats / math.log(2)
        totals[documents[line["id"]]["role"]][1] += len(text.encode())
    for row, role in zip(rows, ("domain", "replay"), strict=True):
        assert row.value == pytest.approx(totals[role][0] / totals[role][1], rel=1e-5)
        assert row.low < row.value < row.high and row.items == 7 and row.shots == 0 and row.metric == "bits_per_byte"


def test_the_core_set_scores_offline(tokenizer: Any, tmp_path: Path) -> None:
    tasks = load_tasks(["core-fr"])
    model, how = make_model(positions=1024), settings(shots=1, limit=2)
    rows = evaluate(
        model, tokenizer, tasks, "test", how, tmp_path / "o", model_name="m", data=FIXTURES, offline=True, seed=1
    )
    expected = [(t.name, m, m == t.metric) for t in tasks for m in (t.metric, *t.also)]
    assert [(r.task, r.metric, r.primary) for r in rows] == expected
    assert all(r.items in (1, 2) and r.shots == 1 and not r.shots_from_test for r in rows)


def test_equal_choices_go_to_the_first(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "quiz"
    folder.mkdir()
    (folder / "test.jsonl").write_text(
        '{"question": "a ?", "options": ["rein", "rein"], "answer": 1}', encoding="utf-8"
    )
    evaluate(model, tokenizer, [quiz()], "test", settings(), tmp_path / "o", model_name="m", data=tmp_path, seed=1)
    assert read(tmp_path / "o")[0]["prediction"] == 0


class Interrupted(Exception):
    pass


class Scorer:
    """Scores one request at a time, counts them, and stops when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 10**9) -> None:
        self.original, self.most, self.requests = run.iter_log_likelihoods, most, 0
        monkeypatch.setattr(run, "iter_log_likelihoods", self)

    def __call__(self, model: Any, requests: Any) -> Any:
        # the shortest first: items end in another order than they are given in
        for n in sorted(range(len(requests)), key=lambda n: len(requests[n].tokens)):
            if self.requests == self.most:
                raise Interrupted
            ((_, found),) = self.original(model, [requests[n]])
            self.requests += 1
            yield np.array([n]), found


def test_resume_scores_only_what_is_missing(
    data: Path, corpus: Path, model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [quiz(), *load_tasks(["heldout-domain"])]
    prepared = prepare(tasks, tokenizer, "test", settings(), documents=corpus, data=data)
    whole = evaluate_prepared(model, prepared, settings(), tmp_path / "whole", "m", 1)
    first = Scorer(monkeypatch, most=25)
    out = tmp_path / "cut"
    with pytest.raises(Interrupted):
        evaluate_prepared(model, prepared, settings(), out, "m", 1)
    done = {(line["task"], line["id"]) for line in read(out)}
    assert 0 < len(done) < len(prepared.items)
    assert not (out / "results.json").exists()
    text = (out / "items.jsonl").read_text(encoding="utf-8")
    (out / "items.jsonl").write_text(text[:-30], encoding="utf-8")  # the last line is torn
    torn = json.loads(text.splitlines()[-1])
    done -= {(torn["task"], torn["id"])}
    monkeypatch.setattr(run, "iter_log_likelihoods", first.original)
    second = Scorer(monkeypatch)
    resumed = evaluate_prepared(model, prepared, settings(), out, "m", 1)
    missing = [i for i in prepared.items if i.key not in done]
    assert second.requests == sum(len(run._fit(i, POSITIONS)) for i in missing)
    assert [(r.task, r.items) for r in resumed] == [(r.task, r.items) for r in whole]
    for a, b in zip(read(out), read(tmp_path / "whole"), strict=True):
        assert a["id"] == b["id"] and a["prompt_hash"] == b["prompt_hash"]
        np.testing.assert_allclose(
            a.get("log_likelihoods", a.get("nats")), b.get("log_likelihoods", b.get("nats")), atol=1e-4
        )
    before = second.requests
    assert evaluate_prepared(model, prepared, settings(), out, "m", 1) == resumed and second.requests == before


def test_changed_items_are_scored_again(
    data: Path, model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model, tokenizer, [quiz()], "test", settings(), tmp_path / "o", model_name="m", data=data, seed=1)
    path = data / "quiz" / "test.jsonl"
    rows = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()][:20]  # three items are gone
    rows[4]["question"] += " !"
    rows[9]["answer"] = (rows[9]["answer"] + 1) % 3
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    scorer = Scorer(monkeypatch)
    made: list[str] = []
    line_of = run.line_of
    monkeypatch.setattr(run, "line_of", lambda item, *given: (made.append(item.id), line_of(item, *given))[1])
    result = evaluate(model, tokenizer, [quiz()], "test", settings(), tmp_path / "o", model_name="m", data=data, seed=1)
    assert sorted(made) == ["4", "9"] and scorer.requests == 6
    assert result[0].items == 20 and len(read(tmp_path / "o")) == 20


def test_prepared_items_serve_many_models(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    prepared = prepare([quiz()], tokenizer, "test", settings(), data=data)
    for seed in (1, 2):
        mine = evaluate_prepared(make_model(seed), prepared, settings(), tmp_path / f"p{seed}", f"m{seed}", 1)
        alone = evaluate(
            make_model(seed),
            tokenizer,
            [quiz()],
            "test",
            settings(),
            tmp_path / f"e{seed}",
            model_name=f"m{seed}",
            data=data,
            seed=1,
        )
        assert mine == alone
        assert (tmp_path / f"p{seed}" / "items.jsonl").read_bytes() == (
            tmp_path / f"e{seed}" / "items.jsonl"
        ).read_bytes()
    assert (tmp_path / "p1" / "items.jsonl").read_bytes() != (tmp_path / "p2" / "items.jsonl").read_bytes()


def test_dropout_is_off(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    model = make_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    prepared = prepare([quiz()], tokenizer, "test", settings(), data=data)
    for name in ("a", "b"):
        model.train()
        evaluate_prepared(model, prepared, settings(), tmp_path / name, "m", 1)
    assert (tmp_path / "a" / "items.jsonl").read_bytes() == (tmp_path / "b" / "items.jsonl").read_bytes()


def test_truncation_is_counted_and_said(
    data: Path, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare([quiz()], tokenizer, "test", settings(shots=2), data=data)
    positions = sorted(max(len(r.tokens) for r in i.requests) for i in prepared.items)[11] - 2
    long = {i.id for i in prepared.items if any(len(r.tokens) > positions + 1 for r in i.requests)}
    assert 0 < len(long) <= 23
    evaluate_prepared(make_model(positions=positions), prepared, settings(), tmp_path / "o", "m", 1)
    assert {line["id"] for line in read(tmp_path / "o") if line["truncated"]} == long
    assert f"quiz: {len(long)} prompts are longer" in capsys.readouterr().err


def test_choice_longer_than_the_context(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"task quiz, item .* does not fit the model's 2 positions"):
        evaluate(
            make_model(positions=2),
            tokenizer,
            [quiz()],
            "test",
            settings(),
            tmp_path / "o",
            model_name="m",
            data=data,
            seed=1,
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_names_the_item(value: float, data: Path, tokenizer: Any, tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[3] = value
    with pytest.raises(RuntimeError, match=r"task quiz, item .* not finite"):
        evaluate(model, tokenizer, [quiz()], "test", settings(), tmp_path / "o", model_name="m", data=data, seed=1)
    assert not (tmp_path / "o" / "results.json").exists() and read(tmp_path / "o") == []


def test_bad_requests(data: Path, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has 2 examples where 3 shots are asked for"):
        prepare([quiz()], tokenizer, "test", settings(shots=3), data=data)
    with pytest.raises(RequestError, match="task quiz has no validation split"):
        prepare([quiz()], tokenizer, "validation", settings(), data=data)
    with pytest.raises(RequestError, match="no task to evaluate on"):
        prepare([], tokenizer, "test", settings())
    with pytest.raises(RequestError, match="the tokenizer has no chat template, and chat_template asks for one"):
        prepare([quiz()], tokenizer, "test", settings(chat_template=True), data=data)
    with pytest.raises(ValueError, match="shots is 0"):
        settings(shots_from_test=True)
    with pytest.raises(ValueError, match="names each control once"):
        settings(controls=["prior", "prior"])


def test_shots_are_not_test_items(data: Path, tokenizer: Any) -> None:
    """The hash of a prompt covers its examples: the same question after others is another item."""
    plain, shown = (prepare([quiz()], tokenizer, "test", settings(shots=n, limit=5), data=data) for n in (0, 2))
    assert len(plain.items) == len(shown.items) == 5
    assert all(a.prompt_hash != b.prompt_hash for a, b in zip(plain.items, shown.items, strict=True))
    assert all(
        len(b.requests[0].tokens) > len(a.requests[0].tokens) for a, b in zip(plain.items, shown.items, strict=True)
    )


def test_overhead_is_small(tokenizer: Any, tmp_path: Path) -> None:
    """500 items of five choices on a two-layer model: Python must not dominate."""
    folder = tmp_path / "quiz"
    folder.mkdir()
    row = {"question": " ".join(WORDS), "options": [f"{w} {w}" for w in WORDS[:5]], "answer": 1}
    (folder / "test.jsonl").write_text(
        "\n".join(json.dumps(row | {"question": f"{n} {row['question']}"}) for n in range(500))
    )
    prepared = prepare([quiz()], tokenizer, "test", settings(), data=tmp_path)
    start = time.perf_counter()
    evaluate_prepared(make_model(), prepared, settings(), tmp_path / "o", "m", 1)
    assert time.perf_counter() - start < 20


def test_the_questions_lie_beside_the_answers_for_a_person_to_read(
    data: Path, corpus: Path, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    letters = {"prompt": "{question}\n{options}\nR :", "continuation": "letter"}
    tasks = [
        quiz(license="cc-by-4.0", **letters),
        load_tasks(["heldout-domain"])[0],
    ]
    out, how = tmp_path / "out", settings(shots=1, controls=["permuted"])
    evaluate(model, tokenizer, tasks, "test", how, out, model_name="m", documents=corpus, data=data, seed=1)
    rows = [json.loads(x) for x in (data / "quiz" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    found = json.loads((out / "questions.json").read_text(encoding="utf-8"))
    assert list(found) == ["quiz"]  # held-out documents are no questions
    asked = found["quiz"].pop("items")
    assert found["quiz"] == {"license": "cc-by-4.0", "source": "somebody/quiz", "language": "fr"}
    # the options as published, not the letters that were scored, and no worked example before the question
    assert asked == {str(n): {"text": r["question"], "options": r["options"]} for n, r in enumerate(rows)}
    before = (out / "questions.json").read_text(encoding="utf-8")
    (out / "questions.json").unlink()
    evaluate(model, tokenizer, tasks, "test", how, out, model_name="m", documents=corpus, data=data, seed=1)
    assert (out / "questions.json").read_text(encoding="utf-8") == before


def test_of_texts_to_generate_the_question_is_kept_too(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"question": f"Quel organe, numéro {n} ?", "answer": "le rein"} for n in range(2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {"name": "free", "group": "domain", "kind": "generative", "metric": "exact_match", "file": "rows.jsonl"}
    given |= {"splits": {"test": "rows"}, "prompt": "Q : {question}\nR :", "gold": "answer", "license": "mit"}
    task = task_of(given | {"max_new_tokens": 2}, tmp_path)
    evaluate(model, tokenizer, [task], "test", settings(), tmp_path / "out", model_name="m", seed=1)
    found = json.loads((tmp_path / "out" / "questions.json").read_text(encoding="utf-8"))["free"]
    assert found["source"] == "free"
    assert found["items"] == {str(n): {"text": row["question"], "options": []} for n, row in enumerate(rows)}
