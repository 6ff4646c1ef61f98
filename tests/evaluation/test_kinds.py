"""Every kind of task from its rows to results.json: several answers, generated texts, clusters, examples, chat templates."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_models import make_model, reference
from eval_tasks import YES_NO, Writer, lines_of, quiz, read, settings, several, task_of, write_quiz, written
from scipy.stats import spearmanr
from tokenizers.processors import TemplateProcessing

from frbio_lite.errors import RequestError
from frbio_lite.evaluation import evaluate, evaluate_prepared, prepare, run
from frbio_lite.evaluation.items import load_items
from frbio_lite.evaluation.metrics import wilson
from frbio_lite.evaluation.parity import parity_shots
from frbio_lite.evaluation.prepared import Prompts
from frbio_lite.evaluation.results import load


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_quiz(tmp_path / "data")


def test_all_accuracies_come_from_one_scoring(data: Path, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    task = quiz("accuracy_bytes", also=["accuracy", "accuracy_norm", "accuracy_tokens"])
    rows = evaluate(model, tokenizer, [task], "test", settings(), tmp_path / "o", model_name="m", data=data, seed=1)
    questions = [json.loads(x) for x in (data / "quiz" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    right = dict.fromkeys(("accuracy_bytes", "accuracy", "accuracy_norm", "accuracy_tokens"), 0)
    for question, line in zip(questions, read(tmp_path / "o"), strict=True):
        prompt = f"Q : {question['question']}\nR :"
        scores = [reference(model, tokenizer, prompt, " " + o) for o in question["options"]]
        before = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        units = {
            "accuracy": [1.0] * 3,
            "accuracy_norm": [len(o) for o in question["options"]],
            "accuracy_bytes": [len(o.encode()) for o in question["options"]],
            "accuracy_tokens": [
                len(tokenizer(f"{prompt} {o}", add_special_tokens=False)["input_ids"]) - before
                for o in question["options"]
            ],
        }
        for metric, sizes in units.items():
            means = [s / n for s, n in zip(scores, sizes, strict=True)]
            hit = means.index(max(means)) == question["answer"]
            right[metric] += hit
            assert hit == (line["correct"] if metric == "accuracy_bytes" else line["scores"][metric])
    assert [(r.metric, r.primary) for r in rows] == [(metric, n == 0) for n, metric in enumerate(right)]
    assert [r.value for r in rows] == pytest.approx([count / 23 for count in right.values()])
    assert all((r.low, r.high) == wilson(right[r.metric], 23) for r in rows)


def compared(chosen: set[int], right: set[int]) -> dict[str, float]:
    return {"exact_set": float(chosen == right), "jaccard": len(chosen & right) / len(chosen | right)}


def check_sets(rows: Any, lines: Any, expected: list[dict[str, float]]) -> None:
    for line, wanted in zip(lines, expected, strict=True):
        assert line["correct"] is bool(wanted["exact_set"]) and line["scores"] == {"jaccard": wanted["jaccard"]}
    exact, jaccard = rows
    assert (exact.metric, exact.primary, jaccard.metric, jaccard.primary) == ("exact_set", True, "jaccard", False)
    assert exact.value == pytest.approx(np.mean([e["exact_set"] for e in expected]))
    assert jaccard.value == pytest.approx(np.mean([e["jaccard"] for e in expected]))
    assert 0 <= jaccard.low <= jaccard.value <= jaccard.high <= 1 and jaccard.low < jaccard.high


@pytest.mark.parametrize("shots", [0, 1])
def test_letter_sets_by_hand(shots: int, tokenizer: Any, tmp_path: Path) -> None:
    model, task = make_model(3), several(tmp_path)
    how = settings(shots=shots)
    rows = evaluate(model, tokenizer, [task], "test", how, tmp_path / "o", model_name="m", seed=1)

    def asked(row: dict[str, Any]) -> str:
        listed = "\n".join(f"{'ABCD'[k]}. {o}" for k, o in enumerate(row["options"]))
        return f"Q : {row['question']}\n{listed}\nR :"

    every = lines_of(tmp_path / "rows.jsonl")
    example = asked(every[0]) + " " + ", ".join("ABCD"[k] for k in every[0]["answers"]) + "\n\n"
    expected = []
    for row, line in zip(every[2:], read(tmp_path / "o"), strict=True):
        prompt = (example if shots else "") + asked(row)
        before = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        best: tuple[float, set[int]] = (-math.inf, set())
        for mask in range(1, 2 ** len(row["options"])):
            chosen = [k for k in range(len(row["options"])) if mask >> k & 1]
            text = " " + ", ".join("ABCD"[k] for k in chosen)
            tokens = len(tokenizer(prompt + text, add_special_tokens=False)["input_ids"]) - before
            best = max(best, (reference(model, tokenizer, prompt, text) / tokens, set(chosen)))
        assert set(line["prediction"]) == best[1] and line["gold"] == row["answers"]
        assert len(line["log_likelihoods"]) == 2 ** len(row["options"]) - 1
        expected.append(compared(best[1], set(row["answers"])))
    check_sets(rows, read(tmp_path / "o"), expected)


def test_all_letters_are_not_some_letters(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers every letter has no exact set but where all are right, and a part of the Jaccard index."""
    task = several(tmp_path)

    def all_letters(model: Any, requests: Any) -> Any:
        longest: dict[tuple[int, ...], int] = {}
        for r in requests:
            prompt = tuple(r.tokens[: -r.scored])
            longest[prompt] = max(r.scored, longest.get(prompt, 0))
        every = [r.scored == longest[tuple(r.tokens[: -r.scored])] for r in requests]
        yield np.arange(len(requests)), np.where(every, -1.0, -90.0)

    monkeypatch.setattr(run, "iter_log_likelihoods", all_letters)
    model = make_model(positions=256)
    rows = evaluate(model, tokenizer, [task], "test", settings(), tmp_path / "o", model_name="m", seed=1)
    every = lines_of(tmp_path / "rows.jsonl")[2:]
    for line, row in zip(read(tmp_path / "o"), every, strict=True):
        assert line["prediction"] == list(range(len(row["options"])))
    share = [len(row["answers"]) / len(row["options"]) for row in every]
    assert rows[0].value == sum(s == 1.0 for s in share) / 10
    assert rows[1].value == pytest.approx(sum(share) / 10) and rows[1].value > rows[0].value


@pytest.mark.parametrize("shots", [0, 2])
def test_yes_no_by_hand(shots: int, tokenizer: Any, tmp_path: Path) -> None:
    task = several(tmp_path, **YES_NO)
    every = lines_of(tmp_path / "rows.jsonl")

    def asked(row: dict[str, Any], option: int) -> str:
        return f"Q : {row['question']} {row['options'][option]} ?\nR :"

    wrong = next(k for k in range(4) if k not in every[1]["answers"])
    shown = f"{asked(every[0], every[0]['answers'][0])} Oui\n\n{asked(every[1], wrong)} Non\n\n"
    model = make_model(4)
    rows = evaluate(model, tokenizer, [task], "test", settings(shots=shots), tmp_path / "o", model_name="m", seed=1)
    expected = []
    for row, line in zip(every[2:], read(tmp_path / "o"), strict=True):
        chosen = set()
        for k in range(len(row["options"])):
            prompt = (shown if shots else "") + asked(row, k)
            yes, no = (reference(model, tokenizer, prompt, word) for word in (" Oui", " Non"))
            chosen |= {k} if yes > no else set()
            np.testing.assert_allclose(line["log_likelihoods"][2 * k : 2 * k + 2], [yes, no], atol=1e-4)
        assert line["prediction"] == sorted(chosen)
        expected.append(compared(chosen, set(row["answers"])))
    check_sets(rows, read(tmp_path / "o"), expected)


def test_yes_no_chooses_where_yes_is_likelier(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, rng = several(tmp_path, 30, **YES_NO), np.random.default_rng()
    monkeypatch.setattr(run, "iter_log_likelihoods", lambda m, r: [(np.arange(len(r)), rng.normal(-3, 1, len(r)))])
    rows = evaluate(make_model(), tokenizer, [task], "test", settings(), tmp_path / "o", model_name="m", seed=1)
    expected = []
    for row, line in zip(lines_of(tmp_path / "rows.jsonl")[2:], read(tmp_path / "o"), strict=True):
        pairs = np.array(line["log_likelihoods"]).reshape(-1, 2)
        chosen = {k for k in range(len(row["options"])) if pairs[k, 0] > pairs[k, 1]}
        assert set(line["prediction"]) == chosen
        expected.append(compared(chosen, set(row["answers"])))
    assert len({len(line["prediction"]) for line in read(tmp_path / "o")}) > 1
    check_sets(rows, read(tmp_path / "o"), expected)
    assert rows[1].low < rows[1].value < rows[1].high


def test_english_asks_yes_and_no(tokenizer: Any, tmp_path: Path) -> None:
    prepared = prepare([several(tmp_path, **YES_NO, language="en")], tokenizer, "test", settings())
    ends = [tokenizer.decode(r.tokens[-r.scored :]) for r in prepared.items[0].requests]
    assert ends == [" Yes", " No"] * (len(ends) // 2)


def test_too_many_choices_for_sets(tokenizer: Any, tmp_path: Path) -> None:
    task = several(tmp_path)
    row = {"question": "q", "options": [str(n) for n in range(9)], "answers": [0]}
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 3), encoding="utf-8")
    with pytest.raises(RequestError, match=r"several, item 0: 9 choices have too many sets .*use `answers: yes_no`"):
        prepare([task], tokenizer, "test", settings())


def test_clusters_widen_the_interval(data: Path, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Items that stand or fall together count as one: the same 20 questions, each five times, in one cluster each."""
    path = data / "quiz" / "test.jsonl"
    rows = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines()][:20]
    path.write_text("\n".join(json.dumps(r | {"case": f"c{n}"}) for n, r in enumerate(rows) for _ in range(5)))
    found = {}
    for name, extra in (("alone", {}), ("together", {"cluster": "case"})):
        how = settings(bootstrap=2000)
        (row,) = evaluate(
            model, tokenizer, [quiz(**extra)], "test", how, tmp_path / name, model_name="m", data=data, seed=1
        )
        found[name] = row
    alone, together = found["alone"], found["together"]
    assert alone.value == together.value and alone.items == together.items == 100
    assert (alone.low, alone.high) == wilson(round(100 * alone.value), 100)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
    lines = read(tmp_path / "together")
    assert [line["cluster"] for line in lines[:6]] == ["c0"] * 5 + ["c1"]
    assert all("cluster" not in line for line in read(tmp_path / "alone"))


def test_examples_from_test_leave_the_item_out_and_are_flagged(
    data: Path, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    task = quiz(splits={"test": "test"})
    with pytest.raises(RequestError, match=r"quiz has no examples \(shots\); use --shots 0"):
        prepare([task], tokenizer, "test", settings(shots=2), data=data)
    how = settings(shots=2, shots_from_test=True)
    prepared = prepare([task], tokenizer, "test", how, data=data)
    questions = [json.loads(x)["question"] for x in (data / "quiz" / "test.jsonl").read_text().splitlines()]
    for n, item in enumerate(prepared.items):
        text = tokenizer.decode(item.requests[0].tokens)
        before = [k for k in (0, 1, 2) if k != n][:2]
        assert [text.count(f"Q : {q}\n") for q in questions] == [int(k in {*before, n}) for k in range(23)]
    (row,) = evaluate_prepared(model, prepared, how, tmp_path / "o", "m", 1)
    assert (
        row.shots_from_test and json.loads((tmp_path / "o" / "results.json").read_text())["rows"][0]["shots_from_test"]
    )
    with_split = prepare([quiz()], tokenizer, "test", how, data=data)
    assert not with_split.from_test  # a task that has examples shows those
    with pytest.raises(
        RequestError, match="quiz has 22 examples where 23 shots are asked for: use --shots 22 or fewer"
    ):
        prepare([task], tokenizer, "test", settings(shots=23, shots_from_test=True), data=data)


CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def test_chat_template(data: Path, tokenizer: Any, tmp_path: Path, model: Any) -> None:
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = CHAT
    prepared = prepare([quiz()], chatty, "test", settings(shots=1, chat_template=True), data=data)
    (example,) = [json.loads(x) for x in (data / "quiz" / "shots.jsonl").read_text().splitlines()][:1]
    row = json.loads((data / "quiz" / "test.jsonl").read_text().splitlines()[0])
    turns = f"<|user|>\nQ : {example['question']}\nR :<|end|>\n<|assistant|>\n{example['options'][example['answer']]}<|end|>\n"
    prompt = f"{turns}<|user|>\nQ : {row['question']}\nR :<|end|>\n<|assistant|>\n"
    request = prepared.items[0].requests[0]
    assert request.tokens == tokenizer(prompt + row["options"][0], add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(request.tokens[-request.scored :]).strip() == row["options"][0]
    plain = prepare([quiz()], chatty, "test", settings(shots=1), data=data)
    assert plain.items[0].prompt_hash != prepared.items[0].prompt_hash
    chatty.chat_template = "{{ raise_exception('no turns') }}"
    with pytest.raises(RequestError, match="chat template cannot write the prompt: no turns"):
        prepare([quiz()], chatty, "test", settings(chat_template=True), data=data)


def reasoned(folder: Path, subjects: str = "abab", **keys: Any) -> Any:
    """A task of questions with worked examples: three rows of each of two subjects, then a question of each letter."""
    shots = [
        {"question": f"e{n}", "why": f"A: car {n}. Donc {n}", "answer": str(n), "subject": "ab"[n // 3]}
        for n in range(6)
    ]
    asked = [{"question": f"q{n}", "why": "", "answer": str(n), "subject": s} for n, s in enumerate(subjects)]
    for name, rows in (("shots", shots), ("asked", asked)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {
        "name": "reasoned",
        "group": "general",
        "kind": "generative",
        "metric": "exact_match",
        "file": "{split}.jsonl",
        "splits": {"test": "asked", "shots": "shots"},
        "instruction": "Sujet {subject} :\n",
        "prompt": "Q : {question}\nR : car",
        "example": "Q : {question}\n{why}",
        "edits": {"why": [["^A", "R "]]},
        "shots_by": "subject",
        "gold": "answer",
        "license": "cc0-1.0",
    } | keys
    return task_of(given, folder)


def texts(task: Any, tokenizer: Any, **how: Any) -> list[str]:
    items = prepare([task], tokenizer, "test", settings(**how)).items
    return [tokenizer.decode(item.requests[0].tokens) for item in items]


def test_worked_examples_of_the_same_subject_after_an_instruction(tokenizer: Any, tmp_path: Path) -> None:
    task = reasoned(tmp_path)
    first, second, third, _ = texts(task, tokenizer, shots=2)
    assert first == "Sujet a :\nQ : e0\nR : car 0. Donc 0\n\nQ : e1\nR : car 1. Donc 1\n\nQ : q0\nR : car"
    assert second == "Sujet b :\nQ : e3\nR : car 3. Donc 3\n\nQ : e4\nR : car 4. Donc 4\n\nQ : q1\nR : car"
    assert third.replace("q2", "q0") == first
    assert texts(task, tokenizer)[1] == "Sujet b :\nQ : q1\nR : car"
    with pytest.raises(RequestError, match="reasoned has 3 examples with subject 'a' where 4 shots are asked for"):
        texts(task, tokenizer, shots=4)
    with pytest.raises(RequestError, match="reasoned has 0 examples with subject 'c' where 1 shots"):
        texts(reasoned(tmp_path, "ac"), tokenizer, shots=1)
    with pytest.raises(RequestError, match="reasoned, item 0: it serves as an example, and why is empty"):
        texts(reasoned(tmp_path, "aaa", splits={"test": "asked[1:]", "shots": "asked[:1]"}), tokenizer, shots=1)


def test_parity_draws_within_a_subject_unless_the_first_are_shown(tokenizer: Any, tmp_path: Path) -> None:
    plain = texts(reasoned(tmp_path, "abba" * 3), tokenizer, shots=2, parity=True)
    for subject, places in (("a", (0, 3)), ("b", (1, 2))):
        mine = [text for n, text in enumerate(plain) if n % 4 in places]
        numbers = "012" if subject == "a" else "345"
        for text, drawn in zip(mine, parity_shots(2, range(3), 6), strict=True):
            shown = [number for number in re.findall(r"Q : e(\d)", text)]
            assert shown == [numbers[place] for place in drawn] and text.startswith(f"Sujet {subject} :")
    first = reasoned(tmp_path, "abba" * 3, first_shots=True)
    assert texts(first, tokenizer, shots=2, parity=True) == texts(first, tokenizer, shots=2) != plain


def test_a_chat_has_the_instruction_as_its_system_turn(tokenizer: Any, tmp_path: Path) -> None:
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = CHAT
    text = texts(reasoned(tmp_path, "b"), chatty, shots=1, chat_template=True)[0]
    turns = (
        ("system", "Sujet b :\n"),
        ("user", "Q : e3\nR : car"),
        ("assistant", "3. Donc 3"),
        ("user", "Q : q0\nR : car"),
    )
    expected = "".join(f"<|{role}|>\n{words}<|end|>\n" for role, words in turns) + "<|assistant|>\n"
    assert text == tokenizer.decode(tokenizer(expected)["input_ids"])


def test_shots_of_the_paper_are_those_of_each_task(tokenizer: Any, tmp_path: Path) -> None:
    how = settings(shots=1).model_copy(update={"shots": "paper"})
    for task, count in ((reasoned(tmp_path, paper_shots=2), 2), (reasoned(tmp_path, paper_shots=0), 0)):
        found = Prompts(task, how, tokenizer, load_items(task, "test"), None, True)
        assert found.count == count and len(found.shown("1")) == count
    alone = reasoned(tmp_path, splits={"test": "asked"})  # nothing to show
    assert Prompts(alone, how, tokenizer, load_items(alone, "test"), None, True).shown("1") == []
    with pytest.raises(RequestError, match="reasoned has 3 examples with subject 'a' where 5 shots"):
        Prompts(task := reasoned(tmp_path), how, tokenizer, load_items(task, "test"), None, True)


def test_either_filling_of_a_gap_by_hand(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Log-likelihoods of one ending after two beginnings, with an example."""
    rows = [
        {"text": f"Le rein {n} aide le foie car _ est {'las' * n}.", "a": "le rein", "b": "le foie", "gold": n % 2}
        for n in range(1, 8)
    ]
    (tmp_path / "gaps.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = task_of(
        {
            "name": "gaps",
            "group": "general",
            "kind": "multiple_choice",
            "metric": "accuracy",
            "file": "gaps.jsonl",
            "splits": {"test": "gaps[1:]", "shots": "gaps[:1]"},
            "prompt": "{text}",
            "choices": ["a", "b"],
            "gap": "_",
            "continuation": "rest",
            "gold": "gold",
            "license": "cc0-1.0",
        },
        tmp_path,
    )
    for shots in (0, 1):
        out = tmp_path / f"o{shots}"
        evaluate(model, tokenizer, [task], "test", settings(shots=shots), out, model_name="m", seed=1)
        before = "Le rein 1 aide le foie car le foie est las.\n\n" if shots else ""
        for row, line in zip(rows[1:], read(out), strict=True):
            start, _, end = row["text"].partition("_")
            scores = [reference(model, tokenizer, before + start + row[c], " " + end.strip()) for c in "ab"]
            np.testing.assert_allclose(line["log_likelihoods"], scores, atol=1e-4)
            assert line["prediction"] == int(np.argmax(scores)) and line["gold"] == row["gold"]


def test_a_begin_of_text_token_comes_once(data: Path, tokenizer: Any) -> None:
    leading = copy.deepcopy(tokenizer)
    leading.add_special_tokens({"bos_token": "<|begin|>"})
    bos = leading.bos_token_id
    leading._tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", bos)])
    leading.chat_template = "{{ bos_token }}" + CHAT
    assert leading("a")["input_ids"][0] == bos
    for chat in (False, True):
        item = prepare([quiz()], leading, "test", settings(chat_template=chat), data=data).items[0]
        assert item.requests[0].tokens.count(bos) == 1 and item.requests[0].tokens[0] == bos


def test_exact_match_of_numbers(model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golds = [70000, "3,5", 12, "18", 7]
    answers = ["Il y a 2 + 3, donc 70 000.", "La réponse est 3.5", "de 12 à 13", "aucune idée", " 7 "]
    task = written(
        tmp_path, golds, metric="exact_match", also=["f1"], extract=r"-?\d+(?:[  ]\d{3})*(?:[.,]\d+)?", stop=["Q :"]
    )
    writer = Writer(monkeypatch, tokenizer, answers)
    monkeypatch.setattr(run, "SAVE_ANSWERS", 2)
    rows = evaluate(model, tokenizer, [task], "test", settings(), tmp_path / "o", model_name="m", seed=1)
    lines = read(tmp_path / "o")
    assert [line["correct"] for line in lines] == [True, True, False, False, True]
    assert [line["prediction"] for line in lines] == ["70 000", "3.5", "13", "", "7"]
    assert [line["answer"] for line in lines] == answers and lines[0]["gold"] == "70000"
    assert sorted(writer.asked) == [(f"Q : {n} ?\nR :", ("Q :",), 16) for n in range(5)]
    assert (rows[0].metric, rows[0].value, (rows[0].low, rows[0].high)) == ("exact_match", 0.6, wilson(3, 5))
    assert rows[1].metric == "f1" and not rows[1].primary


def test_generation_resumes(model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = written(tmp_path, ["un", "deux", "trois"], metric="f1")
    writer = Writer(monkeypatch, tokenizer, ["un", "deux ou trois", "trois"])
    first = evaluate(model, tokenizer, [task], "test", settings(), tmp_path / "o", model_name="m", seed=1)
    assert first[0].value == pytest.approx((1 + 0.5 + 1) / 3) and [x["score"] for x in read(tmp_path / "o")] == [
        1,
        0.5,
        1,
    ]
    lines = (tmp_path / "o" / "items.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "o" / "items.jsonl").write_text(lines[0] + lines[2], encoding="utf-8")
    again = evaluate(model, tokenizer, [task], "test", settings(), tmp_path / "o", model_name="m", seed=1)
    assert again == first and len(writer.asked) == 4 and writer.asked[-1][0] == "Q : 1 ?\nR :"


def test_generation_makes_room_for_the_answer(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = written(tmp_path, ["a", "b"], metric="f1", max_new_tokens=5, prompt="Bien avant, Q : {question}\nR :")
    whole = prepare([task], tokenizer, "test", settings()).items[0].requests[0].tokens
    writer = Writer(monkeypatch, tokenizer, ["a", "b"])
    model = make_model(positions=len(whole) + 5 - 2)  # two tokens too few
    evaluate(model, tokenizer, [task], "test", settings(), tmp_path / "o", model_name="m", seed=1)
    assert {text for text, _, _ in writer.asked} == {
        tokenizer.decode(item.requests[0].tokens[2:]) for item in prepare([task], tokenizer, "test", settings()).items
    }
    assert all(line["truncated"] for line in read(tmp_path / "o"))
    assert "written: 2 prompts are longer than the model's context" in capsys.readouterr().err
    with pytest.raises(RequestError, match=r"written: an answer of max_new_tokens 5 leaves no room .* 5 positions"):
        evaluate(make_model(positions=5), tokenizer, [task], "test", settings(), tmp_path / "x", model_name="m", seed=1)


def test_spearman(model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golds = [0.0, 1.5, 2, "2,5", 3, 4, 4.5, 5]
    answers = ["0", "2", "1,5", "3", "je ne sais pas", "5", "4", "4,5"]
    task = written(tmp_path, golds, metric="spearman", extract=r"\d(?:[.,]\d)?")
    Writer(monkeypatch, tokenizer, answers)
    (row,) = evaluate(model, tokenizer, [task], "test", settings(), tmp_path / "o", model_name="m", seed=1)
    expected = spearmanr([0, 2, 1.5, 3, 0, 5, 4, 4.5], [0, 1.5, 2, 2.5, 3, 4, 4.5, 5]).statistic
    assert row.metric == "spearman" and row.value == pytest.approx(expected) and row.low < row.value < row.high <= 1
    lines = read(tmp_path / "o")
    assert [line["unread"] for line in lines] == [a.startswith("je") for a in answers]
    assert (lines[2]["prediction"], lines[3]["gold"]) == (1.5, 2.5)
    found = load(tmp_path / "o").tasks["written"]  # what `frbio compare` reads
    assert found.value == pytest.approx(expected) and found.scores.mean() == pytest.approx(expected)
    with pytest.raises(RequestError, match="written, item 1: column 'answer' is 'deux', and spearman needs numbers"):
        prepare([written(tmp_path, [1, "deux"], metric="spearman")], tokenizer, "test", settings())


def test_compare_reads_every_kind(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Writer(monkeypatch, tokenizer, ["un", "deux", "quatre"])
    tasks = [
        several(tmp_path, metric="jaccard", also=["exact_set"]),
        written(tmp_path, ["un", "deux", "trois"], metric="rouge_l"),
    ]
    rows = evaluate(make_model(), tokenizer, tasks, "test", settings(), tmp_path / "o", model_name="m", seed=1)
    found = load(tmp_path / "o")
    assert {name: task.value for name, task in found.tasks.items()} == {
        row.task: pytest.approx(row.value) for row in rows if row.primary
    }
    assert {name: task.metric for name, task in found.tasks.items()} == {"several": "jaccard", "written": "rouge_l"}
