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

from frbio_lite.errors import RequestError
from frbio_lite.evaluate import evaluate, evaluate_prepared, load_tasks, prepare, run
from frbio_lite.evaluate.metrics import wilson
from frbio_lite.evaluate.tasks import Task, parse_task
from frbio_lite.recipe import Eval

FIXTURES = Path(__file__).parent / "fixtures"
WORDS = ["le", "rein", "rate", "du", "foie", "à", "où", "naît", "cœur", "µg", "6,8", "mmol/L", "patient", "Paris"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A benchmark of 23 fresh random questions with choices of very different lengths."""
    rng = np.random.default_rng()
    folder = tmp_path / "data" / "quiz"
    folder.mkdir(parents=True)

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
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path / "data"


def quiz(metric: str = "accuracy", **other: Any) -> Task:
    text = f"""
name: quiz
group: domain
kind: multiple_choice
metric: {metric}
dataset: somebody/quiz
splits: {{test: test, shots: train}}
prompt: "Q : {{question}}\\nR :"
choices: options
gold: answer
license: cc0-1.0
"""
    return parse_task(text, "quiz.yaml")


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


def settings(**how: Any) -> Eval:
    return Eval(tasks=["quiz"], bootstrap=200, **how)


def read(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "items.jsonl").read_text(encoding="utf-8").splitlines()]


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


def test_fixtures_of_the_real_benchmarks_score(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = evaluate(
        make_model(positions=1024),
        tokenizer,
        load_tasks(["core-fr"]),
        "test",
        settings(shots=1),
        tmp_path / "o",
        model_name="m",
        data=FIXTURES,
        offline=True,
        seed=1,
    )
    assert [(r.task, r.items, r.shots) for r in rows] == [
        ("belebele-fra", 2, 1),
        ("frenchmedmcqa", 1, 1),
        ("global-mmlu-lite-fr", 2, 1),
        ("mediqal-mcqu", 2, 1),
    ]


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


def test_resume_scores_only_what_is_missing(
    data: Path, corpus: Path, model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [quiz(), *load_tasks(["heldout-domain"])]
    prepared = prepare(tasks, tokenizer, "test", settings(), documents=corpus, data=data)
    whole = evaluate_prepared(model, prepared, settings(), tmp_path / "whole", "m", 1)
    monkeypatch.setattr(run, "SAVE_TOKENS", 100)
    original, calls = run._score, []

    def failing(given: Any, items: Any) -> Any:
        if len(calls) == 4:
            raise Interrupted
        calls.append([i.key for i in items])
        return original(given, items)

    monkeypatch.setattr(run, "_score", failing)
    out = tmp_path / "cut"
    with pytest.raises(Interrupted):
        evaluate_prepared(model, prepared, settings(), out, "m", 1)
    done = {(line["task"], line["id"]) for line in read(out)}
    assert done == {key for call in calls for key in call} and 0 < len(done) < len(prepared.items)
    assert not (out / "results.json").exists()
    text = (out / "items.jsonl").read_text(encoding="utf-8")
    (out / "items.jsonl").write_text(text[:-30], encoding="utf-8")  # the last line is torn
    torn = json.loads(text.splitlines()[-1])
    scored: list[Any] = []
    monkeypatch.setattr(run, "_score", lambda m, items: (scored.extend(i.key for i in items), original(m, items))[1])
    resumed = evaluate_prepared(model, prepared, settings(), out, "m", 1)
    assert set(scored) == {i.key for i in prepared.items} - done | {(torn["task"], torn["id"])}
    assert [(r.task, r.items) for r in resumed] == [(r.task, r.items) for r in whole]
    for a, b in zip(read(out), read(tmp_path / "whole"), strict=True):
        assert a["id"] == b["id"] and a["prompt_hash"] == b["prompt_hash"]
        np.testing.assert_allclose(
            a.get("log_likelihoods", a.get("nats")), b.get("log_likelihoods", b.get("nats")), atol=1e-4
        )
    scored.clear()
    assert evaluate_prepared(model, prepared, settings(), out, "m", 1) == resumed and not scored


def test_changed_items_are_scored_again(
    data: Path, model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model, tokenizer, [quiz()], "test", settings(), tmp_path / "o", model_name="m", data=data, seed=1)
    path = data / "quiz" / "test.jsonl"
    rows = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()][:20]  # three items are gone
    rows[4]["question"] += " !"
    rows[9]["answer"] = (rows[9]["answer"] + 1) % 3
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    original, scored = run._score, []
    monkeypatch.setattr(run, "_score", lambda m, items: (scored.extend(i.id for i in items), original(m, items))[1])
    result = evaluate(model, tokenizer, [quiz()], "test", settings(), tmp_path / "o", model_name="m", data=data, seed=1)
    assert sorted(scored) == ["4", "9"] and result[0].items == 20 and len(read(tmp_path / "o")) == 20


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
