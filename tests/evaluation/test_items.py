"""Items: every shipped benchmark loads from local copies in its published columns; what does not fit is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from frbio_lite.demo import world
from frbio_lite.errors import RequestError
from frbio_lite.evaluation.items import (
    Document,
    Generation,
    Question,
    benchmark_texts,
    load_items,
)
from frbio_lite.evaluation.tasks import Task, load_tasks, parse_task, task_names

FIXTURES = Path(__file__).parent / "fixtures"


def task(name: str) -> Task:
    return load_tasks([name])[0]


def local(name: str, split: Any, data: Path = FIXTURES, **how: Any) -> list[Question]:
    items = load_items(task(name), split, data=data, offline=True, **how)
    assert all(isinstance(i, Question) for i in items)
    return items  # type: ignore[return-value]


def test_mediqal() -> None:
    alone, case, empty = local("mediqal-mcqu", "validation")
    assert alone.prompt == (
        "Question : Quel organe sécrète l'insuline ?\n"
        "A. le foie\nB. la rate\nC. le rein\nD. le poumon\nE. le pancréas\nRéponse :"
    )
    assert alone.choices == ("A", "B", "C", "D", "E") and alone.gold == 4 and alone.id == "0"
    assert alone.text == "Quel organe sécrète l'insuline ?"
    assert case.prompt.startswith(
        "Mme L., 62 ans, consulte pour une toux sèche. Traitement : ramipril {5 mg}.\nQuestion : Quel médicament"
    )
    assert case.text.splitlines() == [
        "Mme L., 62 ans, consulte pour une toux sèche. Traitement : ramipril {5 mg}.",
        "Quel médicament explique le plus probablement cette toux ?",
    ]
    assert empty.prompt.startswith("Question : ") and (case.gold, empty.gold) == (1, 0)


def test_frenchmedmcqa_keeps_single_answers() -> None:
    items = local("frenchmedmcqa", "validation")
    assert [(i.id, i.gold) for i in items] == [("0", 1), ("2", 4)]
    assert items[0].prompt.endswith("D. la vitamine E\nE. la vitamine K\nRéponse :")
    assert [i.gold for i in local("frenchmedmcqa", "shots", limit=2)] == [1, 0]


def test_frenchmedmcqa_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its splits are files of one archive, at a commit."""
    rows = json.loads((FIXTURES / "frenchmedmcqa" / "validation.json").read_text(encoding="utf-8"))
    asked: list[Any] = []

    def load_dataset(*given: Any, **named: Any) -> datasets.Dataset:
        asked.append((given, named))
        return datasets.Dataset.from_list(rows)

    def download(name: str, file: str, *, repo_type: str, revision: str) -> str:
        return f"/cache/{repo_type}/{name}/{revision}/{file}"

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_items(task("frenchmedmcqa"), "validation") == local("frenchmedmcqa", "validation")
    archive = f"/cache/dataset/qanastek/frenchmedmcqa/{task('frenchmedmcqa').revision}/DEFT-2023-FULL.zip"
    assert asked == [(("json",), {"data_files": f"zip://dev.json::{archive}", "split": "train"})]


def test_frenchmedmcqa_in_the_columns_of_the_hubs_parquet(tmp_path: Path) -> None:
    """A copy of the Hub's conversion spells the choices answer_a…e and the answers as numbers; the items are the same."""
    rows = json.loads((FIXTURES / "frenchmedmcqa" / "validation.json").read_text(encoding="utf-8"))
    published = [
        {
            "id": r["id"],
            "question": r["question"],
            **{f"answer_{k}": v for k, v in r["answers"].items()},
            "correct_answers": ["abcde".index(a) for a in r["correct_answers"]],
            "number_correct_answers": len(r["correct_answers"]) - 1,
        }
        for r in rows
    ]
    (tmp_path / "frenchmedmcqa").mkdir()
    pq.write_table(pa.Table.from_pylist(published), tmp_path / "frenchmedmcqa" / "validation.parquet")
    assert local("frenchmedmcqa", "validation", tmp_path) == local("frenchmedmcqa", "validation")


def test_belebele_counts_answers_from_one() -> None:
    items = local("belebele-fra", "validation")
    assert [i.gold for i in items] == [1, 0] and items[0].choices == ("A", "B", "C", "D")
    assert items[0].prompt.startswith("P: Le phare de Kerlaz") and items[0].prompt.endswith("D: 1899\nAnswer:")
    assert [i.gold for i in local("belebele-fra", "test")] == [2, 3]


def test_global_mmlu_lite() -> None:
    items = local("global-mmlu-lite-fr", "test")
    assert [i.gold for i in items] == [2, 3]
    assert (
        items[1].prompt
        == "Quelle ville est la plus à l'est, « hors {Alsace} » ?\nA. Lyon\nB. Paris\nC. Rennes\nD. Metz\nAnswer:"
    )


@pytest.mark.parametrize("name", ["mediqal-mcqu", "frenchmedmcqa", "belebele-fra", "global-mmlu-lite-fr"])
@pytest.mark.parametrize("split", ["validation", "test", "shots"])
def test_jsonl_json_and_parquet_hold_the_same(name: str, split: Any, tmp_path: Path) -> None:
    source = next((FIXTURES / name).glob(f"{split}.*"))
    text = source.read_text(encoding="utf-8")
    rows = json.loads(text) if source.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    expected = local(name, split)
    assert expected
    for suffix in ("jsonl", "json", "parquet"):
        target = tmp_path / suffix / name / f"{split}.{suffix}"
        target.parent.mkdir(parents=True)
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), target)
        else:
            target.write_text(
                json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)), encoding="utf-8"
            )
        assert local(name, split, tmp_path / suffix) == expected


def test_limit_takes_the_first() -> None:
    assert local("mediqal-mcqu", "validation", limit=2) == local("mediqal-mcqu", "validation")[:2]


def changed(tmp_path: Path, name: str, **cells: Any) -> Path:
    """A copy of the fixtures with the second test row of one benchmark changed; `None` deletes a column."""
    shutil.copytree(FIXTURES / name, tmp_path / name)
    path = tmp_path / name / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[1] = {k: v for k, v in (rows[1] | cells).items() if v is not ...}
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "cells, message",
    [
        ({"option_c": ...}, "item geography/test/1: no column 'option_c'; the data has .*option_a"),
        ({"answer": ...}, "item geography/test/1: no column 'answer'"),
        ({"question": ...}, "item geography/test/1: no column 'question'"),
        ({"sample_id": ...}, "row 1: no column 'sample_id'"),
        ({"answer": "E"}, "item geography/test/1: column 'answer' is 'E', which is none of the 4 choices"),
        ({"answer": "?"}, "column 'answer' is '\\?'"),
        ({"answer": -1}, "column 'answer' is -1"),
        ({"answer": None}, "column 'answer' is None"),
        ({"answer": True}, "column 'answer' is True"),
        ({"answer": ["A", "B"]}, "column 'answer' holds 2 answers"),
        ({"answer": []}, "column 'answer' holds 0 answers"),
        ({"option_b": "  "}, "item geography/test/1: column 'option_b' is empty"),
        ({"option_b": None}, "column 'option_b' is empty"),
        ({"question": ""}, "column 'question' is empty"),
        (
            {"sample_id": "geography/test/0"},
            "two items of the test split have the id 'geography/test/0' .column 'sample_id'",
        ),
    ],
)
def test_bad_items_are_named(cells: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"task global-mmlu-lite-fr.*{message}"):
        local("global-mmlu-lite-fr", "test", changed(tmp_path, "global-mmlu-lite-fr", **cells))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("test.jsonl", '{"a": 1}\n{"a": ', "test.jsonl cannot be read as jsonl"),
        ("test.jsonl", "[1, 2]\n", "does not hold a list of items"),
        ("test.json", '{"data": []}', "does not hold a list of items"),
        ("test.parquet", "not parquet", "test.parquet cannot be read as parquet"),
        ("test.jsonl", "", "the test split has no items"),
        ("test.jsonl", b"\xff\xfe", "cannot be read"),
    ],
)
def test_broken_files(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "belebele-fra" / name
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=message):
        local("belebele-fra", "test", tmp_path)


def test_offline_without_a_copy_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--data DIR with DIR/belebele-fra/test.jsonl"):
        load_items(task("belebele-fra"), "test", offline=True)
    with pytest.raises(RequestError, match=f"{tmp_path}/belebele-fra/test.jsonl"):
        load_items(task("belebele-fra"), "test", data=tmp_path, offline=True)
    with pytest.raises(RequestError, match="is not a directory"):
        load_items(task("belebele-fra"), "test", data=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "failure", [ConnectionError("Couldn't reach\nthe Hub"), ValueError("Unknown split"), RuntimeError("scripts")]
)
def test_hub_failure_names_the_offline_way(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(RequestError, match=r"facebook/belebele cannot be loaded from the Hub.*--data DIR") as error:
        load_items(task("belebele-fra"), "test")
    assert "\n" not in str(error.value)


def test_split_that_a_task_lacks() -> None:
    with pytest.raises(RequestError, match=r"demo-medical has no examples .* --shots 0"):
        load_items(task("demo-medical"), "shots")


@pytest.mark.parametrize("part", ["medical", "general"])
def test_demo_questions(part: Any) -> None:
    made = {q.id: q for q in world.questions(part)}
    seen = set()
    for split in ("validation", "test"):
        for item in load_items(task(f"demo-{part}"), split):  # type: ignore[arg-type]
            question = made[item.id]
            assert isinstance(item, Question) and question.split == split
            assert item.prompt == f"Question : {question.question}\nRéponse :"
            assert item.choices == question.choices and item.gold == question.answer and item.text == question.question
            seen.add(item.id)
    assert seen == set(made)


def test_benchmark_texts() -> None:
    tasks = load_tasks(["mediqal-mcqu", "heldout-domain", "belebele-fra"])
    texts = benchmark_texts(tasks, data=FIXTURES, offline=True)
    assert list(texts) == ["mediqal-mcqu", "belebele-fra"]
    assert len(texts["mediqal-mcqu"]) == 5  # validation and test, not the examples
    assert "Quel organe sécrète l'insuline ?" in texts["mediqal-mcqu"]
    assert not any("le pancréas" in t or "Réponse" in t or "échanges gazeux" in t for t in texts["mediqal-mcqu"])


@pytest.mark.parametrize("name", [t for t in task_names() if (FIXTURES / t).is_dir()])
@pytest.mark.parametrize("split", ["validation", "test", "shots"])
def test_every_fixture_loads(name: str, split: Any) -> None:
    items = load_items(task(name), split, data=FIXTURES, offline=True)
    columns = [f"{{{column}}}" for column in task(name).prompt_columns]
    for item in items:
        assert isinstance(item, Question | Generation) and item.text and (item.prompt or task(name).choice)
        assert not any(column in item.prompt for column in columns)


def corpus(tmp_path: Path, rows: list[dict[str, Any]], files: int = 2) -> Path:
    folder = tmp_path / "corpus" / "documents"
    folder.mkdir(parents=True)
    for n in range(files):
        pq.write_table(pa.Table.from_pylist(rows[n::files]), folder / f"{n}.parquet")
    return tmp_path / "corpus"


def test_heldout_documents(tmp_path: Path) -> None:
    rows = [
        {
            "text": f"texte {n} é",
            "source": "s",
            "document_type": "note",
            "license": "cc0-1.0",
            "id": f"d{n}",
            "split": ("train", "validation", "test")[n % 3],
            "role": ("domain", "replay")[n % 2],
        }
        for n in range(24)
    ]
    place = corpus(tmp_path, rows)
    for name, role in (("heldout-domain", "domain"), ("heldout-general", "replay")):
        for split in ("validation", "test"):
            found = load_items(task(name), split, documents=place)  # type: ignore[arg-type]
            expected = {(r["id"], r["text"]) for r in rows if r["role"] == role and r["split"] == split}
            assert {(d.id, d.text) for d in found if isinstance(d, Document)} == expected and len(found) == 4
    assert len(load_items(task("heldout-domain"), "test", documents=place, limit=3)) == 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"role": "replay"}, "task heldout-domain: the test split has no items"),
        ({"text": ""}, "heldout-domain, item d0: column 'text' is empty"),
        ({"id": "same"}, "two items of the test split have the id 'same'"),
    ],
)
def test_bad_documents(change: dict[str, str], message: str, tmp_path: Path) -> None:
    rows = [{"text": "bon", "id": f"d{n}", "split": "test", "role": "domain"} | change for n in range(2)]
    with pytest.raises(RequestError, match=message):
        load_items(task("heldout-domain"), "test", documents=corpus(tmp_path, rows))


def test_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="none was given"):
        load_items(task("heldout-domain"), "test")
    with pytest.raises(RequestError, match=r"holds no documents/\*.parquet"):
        load_items(task("heldout-domain"), "test", documents=tmp_path)
    with pytest.raises(RequestError, match="cannot be read"):
        load_items(task("heldout-domain"), "test", documents=corpus(tmp_path, [{"text": "a", "id": "b"}], files=1))


def own(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> Task:
    """A task that reads rows.jsonl beside it: two options in columns, and the number of the right one."""
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    given = {
        "name": "own",
        "group": "general",
        "kind": "multiple_choice",
        "metric": "accuracy",
        "file": "rows.jsonl",
        "splits": {"test": "rows"},
        "prompt": "{text}",
        "choices": ["a", "b"],
        "gold": "gold",
        "license": "cc0-1.0",
    } | keys
    return parse_task(yaml.safe_dump({k: v for k, v in given.items() if v is not ...}), "own.yaml", folder)


def row(text: str, a: str = "Luc", b: str = "Jean", gold: int = 1) -> dict[str, Any]:
    return {"text": text, "a": a, "b": b, "gold": gold}


def test_what_follows_a_gap_is_scored_after_either_filling(tmp_path: Path) -> None:
    rows = [row("Luc aide Jean car _ est _ las. "), row("_ est las.", a=" Ève", gold=0)]
    first, second = load_items(own(tmp_path, rows, gap="_", continuation="rest"), "test")
    assert isinstance(first, Question) and isinstance(second, Question)
    assert first.asks == ("Luc aide Jean car Luc", "Luc aide Jean car Jean") and first.rest == "est _ las."
    assert (first.prompt, first.golds, first.text) == (first.asks[0], (1,), "Luc aide Jean car _ est _ las.")
    assert second.asks == ("Ève", "Jean") and second.gold == 0
    verbatim = own(tmp_path, rows, gap="_", continuation="rest", strip=False)
    assert [i.asks for i in load_items(verbatim, "test") if isinstance(i, Question)][1] == (" Ève", "Jean")
    for text in ("Luc aide Jean.", "Luc aide _ "):
        with pytest.raises(RequestError, match="own, item 0: nothing follows the gap '_' in its prompt"):
            load_items(own(tmp_path, [row(text)], gap="_", continuation="rest"), "test")


def test_choices_in_the_gaps_of_what_is_scored(tmp_path: Path) -> None:
    rows = [row("Le <> aime le <>."), row("Qui vient ?", gold=0)]
    first, second = load_items(own(tmp_path, rows, prompt="Phrase :\n", choice="{text}", gap="<>"), "test")
    assert isinstance(first, Question) and isinstance(second, Question)
    assert first.choices == ("Le Luc aime le Luc.", "Le Jean aime le Jean.") and first.golds == (1,)
    assert first.prompt == "Phrase :\n" and first.text == "Le <> aime le <>." and not first.asks
    assert second.choices == ("Qui vient ? Luc", "Qui vient ? Jean")
    (turned, _) = load_items(own(tmp_path, rows, prompt="", choice="{text}/{option}"), "test", turn=1)
    assert isinstance(turned, Question) and turned.prompt == "" and turned.gold == 0
    assert turned.choices == ("Le <> aime le <>./Jean", "Le <> aime le <>./Luc")


def test_edits_and_rows_with_nothing_to_ask(tmp_path: Path) -> None:
    rows = [row(" Un mot , ici . "), row("  "), row("Deux"), {**row("x"), "text": None}]
    task = own(tmp_path, rows, edits={"text": [[" ([,.])", "\\1"], "lower_first"]}, filled=["text"], strip=False)
    items = [i for i in load_items(task, "test") if isinstance(i, Question)]
    assert [(i.id, i.prompt, i.text) for i in items] == [
        ("0", " Un mot, ici. ", "Un mot , ici ."),
        ("2", "deux", "Deux"),
    ]
    stripped = own(tmp_path, rows, edits={"text": [["\\A\\s+", ""], "lower_first"]}, filled=["text"])
    assert [i.prompt for i in load_items(stripped, "test") if isinstance(i, Question)] == ["un mot , ici .", "deux"]
    with pytest.raises(RequestError, match="own, item 1: column 'text' is empty"):
        load_items(own(tmp_path, rows), "test")
    with pytest.raises(RequestError, match="own, item 0: column 'text' is empty"):
        load_items(own(tmp_path, rows, edits={"text": [["(?s).+", ""]]}), "test")
    with pytest.raises(RequestError, match="own, item 0: no column 'nothing'"):
        load_items(own(tmp_path, rows, filled=["nothing"]), "test")


def test_instruction_part_and_worked_example(tmp_path: Path) -> None:
    rows = [
        {"q": f"{n} ?", "why": why, "s": "µ" if n else "b", "gold": n} for n, why in enumerate(["A: car. 0", "", None])
    ]
    keys = {"kind": "generative", "metric": "f1", "choices": ..., "prompt": "Q {q}\nR: car", "example": "Q {q}\n{why}"}
    edits = {"why": [["^A", "R"]], "s": [["µ", "micro"]]}
    task = own(tmp_path, rows, **keys, edits=edits, instruction="Sur {s}.\n", shots_by="s")
    found = [i for i in load_items(task, "test") if isinstance(i, Generation)]
    assert [i.worked for i in found] == ["Q 0 ?\nR: car. 0", "", ""]  # what is only asked needs no reasoning
    assert [(i.instruction, i.part) for i in found] == [
        ("Sur b.\n", "b"),
        ("Sur micro.\n", "micro"),
        ("Sur micro.\n", "micro"),
    ]
    assert [i.text for i in found] == ["0 ?", "1 ?", "2 ?"]
    with pytest.raises(RequestError, match="own, item 0: no column 'why'"):
        load_items(own(tmp_path, [{"q": "?", "s": "b", "gold": 1}], **keys), "test")


def test_where_by_its_beginning(tmp_path: Path) -> None:
    rows = [row("un") | {"lang": lang} for lang in ("fr", "fr-FR", "french", "en", "f", "*")]
    kept = {wanted: load_items(own(tmp_path, rows, where={"lang": wanted}), "test") for wanted in ("fr*", "fr", "*")}
    assert {wanted: len(items) for wanted, items in kept.items()} == {"fr*": 3, "fr": 1, "*": 6}
    assert len(load_items(own(tmp_path, rows, where={"lang": ["fr-*", "en"]}), "test")) == 2
