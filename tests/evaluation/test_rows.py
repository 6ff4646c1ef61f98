"""Rows to items, one key of a task at a time, from a small file of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import yaml

from frbio_lite.errors import RequestError
from frbio_lite.evaluation.items import Generation, Question, benchmark_texts, load_items, own_digests, published_rows
from frbio_lite.evaluation.tasks import Task, parse_task


def own(tmp_path: Path, rows: list[dict[str, Any]] | None = None, **keys: Any) -> Task:
    """A task that reads rows.jsonl beside it: a question, a list of options, and the position of the right one."""
    if rows is not None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    given = {
        "name": "own",
        "group": "domain",
        "kind": "multiple_choice",
        "metric": "accuracy",
        "file": "rows.jsonl",
        "splits": {"test": "rows"},
        "prompt": "Q : {question}\nR :",
        "choices": "options",
        "gold": "answer",
        "license": "cc0-1.0",
    } | keys
    return parse_task(yaml.safe_dump({k: v for k, v in given.items() if v is not ...}), "own.yaml", tmp_path)


def row(answer: Any, **cells: Any) -> dict[str, Any]:
    return {"question": "Quel organe ?", "options": ["foie", "rein", "rate"], "answer": answer} | cells


def test_where_comes_before_the_slice(tmp_path: Path) -> None:
    rows = [row(0, id=n, part="abc"[n % 3], level=n % 2) for n in range(12)]
    keys = {
        "where": {"part": ["a", "b"], "level": "1"},
        "splits": {"test": "rows[1:3]", "shots": "rows[:1]"},
        "id": "id",
    }
    chosen = [n for n in range(12) if "abc"[n % 3] in "ab" and n % 2 == 1]
    assert [i.id for i in load_items(own(tmp_path, rows, **keys), "test")] == [str(n) for n in chosen[1:3]]
    assert [i.id for i in load_items(own(tmp_path, **keys), "shots")] == [str(chosen[0])]
    copy = tmp_path / "data" / "own"
    copy.mkdir(parents=True)
    (copy / "test.jsonl").write_text((tmp_path / "rows.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    # a copy holds its split alone: it is filtered and not sliced
    assert [i.id for i in load_items(own(tmp_path, **keys), "test", data=tmp_path / "data")] == [str(n) for n in chosen]
    with pytest.raises(RequestError, match="own: `where` names the column 'nothing', and the data has answer, id"):
        load_items(own(tmp_path, where={"nothing": "x"}), "test")
    with pytest.raises(RequestError, match="own: the test split has no items"):
        load_items(own(tmp_path, where={"part": "d"}), "test")


def test_where_and_hub_file_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(0, id=n, part="ab"[n % 2]) for n in range(10)]
    asked: list[Any] = []

    def load_dataset(*given: Any, **named: Any) -> datasets.Dataset:
        asked.append((given, named))
        return datasets.Dataset.from_list(rows)

    def download(name: str, file: str, *, repo_type: str, revision: str | None) -> str:
        return f"/cache/{repo_type}/{name}/{revision}/{file}"

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    keys: dict[str, Any] = {"file": ..., "dataset": "a/b", "revision": "abc", "id": "id", "where": {"part": "b"}}
    found = published_rows(own(tmp_path, splits={"test": "all[1:3]"}, **keys), "test")
    assert [r["id"] for r in found] == [3, 5] and isinstance(found, datasets.Dataset)
    archive = own(tmp_path, splits={"test": "all[:2]"}, hub_file="data.zip::in/fr.json", **keys)
    assert [i.id for i in load_items(archive, "test")] == ["1", "3"]
    plain = own(tmp_path, splits={"test": "all[4:]"}, hub_file="fr.jsonl", **(keys | {"revision": ...}))
    assert [i.id for i in load_items(plain, "test")] == ["9"]
    assert asked == [
        (("a/b", None), {"revision": "abc", "split": "all"}),
        (("json",), {"data_files": "zip://in/fr.json::/cache/dataset/a/b/abc/data.zip", "split": "train"}),
        (("json",), {"data_files": "/cache/dataset/a/b/None/fr.jsonl", "split": "train"}),
    ]


def test_a_file_per_split_and_its_absence(tmp_path: Path) -> None:
    task = own(tmp_path, file="{split}.json", splits={"test": "exam", "shots": "train[1:]"})
    (tmp_path / "exam.json").write_text(json.dumps([row(1)]), encoding="utf-8")
    (tmp_path / "train.json").write_text(json.dumps([row(0), row(2)]), encoding="utf-8")
    assert [i.gold for i in load_items(task, "test", offline=True)] == [1]
    assert [i.gold for i in load_items(task, "shots")] == [2]
    before = own_digests([task])
    assert list(before) == ["own exam.json", "own train.json"]
    (tmp_path / "exam.json").write_text(json.dumps([row(0)]), encoding="utf-8")
    after = own_digests([task])
    assert before["own exam.json"] != after["own exam.json"] and before["own train.json"] == after["own train.json"]
    (tmp_path / "exam.json").unlink()
    with pytest.raises(
        RequestError, match=r"task own: .*/exam.json is not there; put the test items in it, or in DIR/own"
    ):
        load_items(task, "test")
    with pytest.raises(RequestError, match=r"rows\.csv does not end in \.jsonl, \.json or \.parquet"):
        load_items(own(tmp_path, file="rows.csv"), "test")


def test_options_are_lettered_lines_and_are_not_the_question(tmp_path: Path) -> None:
    task = own(tmp_path, [row(1)], prompt="{question}\n{options}\nR :", continuation="letter")
    (item,) = load_items(task, "test")
    assert isinstance(item, Question)
    assert item.prompt == "Quel organe ?\nA. foie\nB. rein\nC. rate\nR :" and item.choices == ("A", "B", "C")
    assert benchmark_texts([task]) == {"own": ["Quel organe ?"]}
    (turned,) = load_items(task, "test", turn=2)
    assert isinstance(turned, Question)
    assert turned.prompt == "Quel organe ?\nA. rate\nB. foie\nC. rein\nR :" and turned.golds == (2,)
    assert turned.choices == item.choices and turned.text == item.text


def test_turned_columns_and_texts(tmp_path: Path) -> None:
    cells = {"a": "foie", "b": "rein", "c": "rate", "question": "Où ?", "answer": "B"}
    task = own(tmp_path, [cells], choices=["a", "b", "c"], prompt="{question} {a}/{b}/{c}")
    (turned,) = load_items(task, "test", turn=1)
    assert isinstance(turned, Question)
    assert (turned.prompt, turned.choices, turned.gold) == ("Où ? rein/rate/foie", ("rein", "rate", "foie"), 0)


def test_lines_of_empty_optional_columns_are_left_out(tmp_path: Path) -> None:
    prompt = "{case}\nQ : {question}\nA. {x}\nB. {y} {z}\nFin"
    task = own(tmp_path, [row(0, case="", x="un", y=None, z=" ")], prompt=prompt, optional=["case", "y", "z"])
    assert load_items(task, "test")[0].prompt == "Q : Quel organe ?\nA. un\nFin"  # type: ignore[union-attr]
    full = own(tmp_path, [row(0, case="Cas.", x="un", y="", z="deux")], prompt=prompt, optional=["case", "y", "z"])
    assert load_items(full, "test")[0].prompt == "Cas.\nQ : Quel organe ?\nA. un\nB.  deux\nFin"  # type: ignore[union-attr]


def test_fixed_choices_and_labels(tmp_path: Path) -> None:
    rows = [{"question": "q", "label": label} for label in (1, 0, "1")]
    keys = {"choices": ..., "fixed_choices": ["Oui", "Non"], "gold": "label", "gold_labels": ["1", "0"]}
    items = load_items(own(tmp_path, rows, **keys), "test")
    assert [(i.choices, i.golds) for i in items if isinstance(i, Question)] == [
        (("Oui", "Non"), (0,)),
        (("Oui", "Non"), (1,)),
        (("Oui", "Non"), (0,)),
    ]
    with pytest.raises(RequestError, match="own, item 0: column 'label' is 'maybe', which is none of the 2 choices"):
        load_items(own(tmp_path, [{"question": "q", "label": "maybe"}], **keys), "test")


@pytest.mark.parametrize(
    "gold, expected",
    [("A,C", (0, 2)), (["C", "A", "c"], (0, 2)), ([2], (2,)), ("b; a", (0, 1)), (1, (1,)), ("2", (2,))],
)
def test_several_answers(gold: Any, expected: tuple[int, ...], tmp_path: Path) -> None:
    keys = {"kind": "multiple_answer", "metric": "exact_set", "continuation": "letter"}
    (item,) = load_items(own(tmp_path, [row(gold)], **keys), "test")
    assert isinstance(item, Question) and item.golds == expected


@pytest.mark.parametrize(
    "gold, message",
    [([], "holds 0 answers where one or more are needed"), ("A,F", "is 'F', which is none"), ("", "is ''")],
)
def test_wrong_answers(gold: Any, message: str, tmp_path: Path) -> None:
    keys = {"kind": "multiple_answer", "metric": "exact_set", "continuation": "letter"}
    with pytest.raises(RequestError, match=f"task own, item 0: column 'answer' {message}"):
        load_items(own(tmp_path, [row(gold)], **keys), "test")


def test_yes_no_asks_about_each_choice(tmp_path: Path) -> None:
    keys = {"kind": "multiple_answer", "metric": "jaccard", "answers": "yes_no"}
    (item,) = load_items(own(tmp_path, [row([0, 2])], prompt="{question} {option} ?", **keys), "test")
    assert isinstance(item, Question) and item.golds == (0, 2) and item.text == "Quel organe ?"
    assert item.asks == ("Quel organe ? foie ?", "Quel organe ? rein ?", "Quel organe ? rate ?")


def test_gold_flags(tmp_path: Path) -> None:
    (item,) = load_items(own(tmp_path, [row([0, 0, 1])], gold_flags=True), "test")
    assert isinstance(item, Question) and item.golds == (2,)
    for flags, message in (
        ([0, 1], "not a list of 3 zeros and ones"),
        (2, "not a list"),
        ([0, 0, 0], "holds 0 answers"),
    ):
        with pytest.raises(RequestError, match=message):
            load_items(own(tmp_path, [row(flags)], gold_flags=True), "test")


@pytest.mark.parametrize(
    "options, message",
    [
        (["foie"], "not a list of two or more choices"),
        ([], "not a list of two or more choices"),
        ("foie", "not a list of two or more choices"),
        (["foie", " ", "rate"], "a choice in column 'options' is empty"),
        (["foie", None, "rate"], "a choice in column 'options' is empty"),
        ([str(n) for n in range(27)], "27 choices in column 'options', more than letters"),
    ],
)
def test_wrong_choices(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"task own, item 0: .*{message}"):
        load_items(own(tmp_path, [row(0, options=options)]), "test")


def test_zero_is_a_choice_like_others(tmp_path: Path) -> None:
    (item,) = load_items(own(tmp_path, [row(1, options=[1, 0])]), "test")
    assert isinstance(item, Question) and item.choices == ("1", "0")


def test_clusters(tmp_path: Path) -> None:
    long = "Un passage que plusieurs questions ont en commun. " * 3
    rows = [row(0, case=case) for case in ("c1", None, long, "c1", long, "  ")]
    labels = [i.cluster for i in load_items(own(tmp_path, rows, cluster="case"), "test") if isinstance(i, Question)]
    assert labels[0] == labels[3] == "c1" and labels[1] is labels[5] is None
    assert labels[2] == labels[4] and labels[2] not in (None, "c1") and len(labels[2] or "") < 20
    with pytest.raises(RequestError, match="own, item 0: no column 'case'"):
        load_items(own(tmp_path, [row(0)], cluster="case"), "test")


def generative(tmp_path: Path, rows: list[dict[str, Any]], **keys: Any) -> Task:
    return own(tmp_path, rows, kind="generative", metric=keys.pop("metric", "f1"), choices=..., **keys)


def test_generations(tmp_path: Path) -> None:
    task = generative(tmp_path, [row("le foie "), row(42)])
    items = load_items(task, "test")
    assert items == [
        Generation("0", "Q : Quel organe ?\nR :", "le foie", "Quel organe ?"),
        Generation("1", "Q : Quel organe ?\nR :", "42", "Quel organe ?"),
    ]
    assert benchmark_texts([task]) == {"own": ["Quel organe ?"]}
    with pytest.raises(RequestError, match="own, item 0: column 'answer' is empty"):
        load_items(generative(tmp_path, [row("")]), "test")
    with pytest.raises(RequestError, match="own, item 0: column 'answer' holds a list where a text is needed"):
        load_items(generative(tmp_path, [row(["a", "b"])]), "test")
