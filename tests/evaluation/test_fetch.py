"""List, show, check and fetch: what a person sees of the benchmarks, and copies that replace the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from frbio_lite.errors import RequestError
from frbio_lite.evaluation import fetch
from frbio_lite.evaluation.fetch import Finding, check, describe, fetch_tasks, show
from frbio_lite.evaluation.items import load_items
from frbio_lite.evaluation.tasks import load_tasks, parse_task, task_names

FIXTURES = Path(__file__).parent / "fixtures"
SHA = "0123456789abcdef0123456789abcdef01234567"

QUIZ = """\
name: quiz
group: domain
kind: multiple_choice
metric: accuracy
file: quiz-{split}.jsonl
splits: {validation: validation, test: test}
id: id
prompt: "Question : {question}\\nRéponse :"
choices: options
gold: answer
license: cc0-1.0
"""


class Hub:
    """Stands for `datasets.load_dataset`: rows by dataset and split, sliced as the real one slices."""

    def __init__(self, rows: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
        self.rows = rows
        self.asked: list[tuple[str, str | None, str]] = []

    def __call__(self, path: str, config: str | None = None, *, split: str, **_: Any) -> datasets.Dataset:
        self.asked.append((path, config, split))
        name, _, cut = split.partition("[")
        if (path, name) not in self.rows:
            raise ConnectionError(f"Couldn't reach '{path}' on the Hub\nand a second line")
        rows = self.rows[path, name]
        if cut:
            start, _, stop = cut.rstrip("]").partition(":")
            rows = rows[int(start or 0) : int(stop) if stop else None]
        found = datasets.Dataset.from_list(rows)
        found.info.download_checksums = {f"hf://datasets/{path}@{SHA}/data/{name}.parquet": {}}
        return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def glianorex(count: int = 70) -> list[dict[str, Any]]:
    """Both languages in turn, as one published split."""
    return [
        {
            "question": f"Question {n} ?",
            "answer": "oui",
            "options": {"A": "oui", "B": "non", "C": f"à {n} %", "D": "jamais"},
            "answer_idx": "A",
            "language": "fr" if n % 2 else "en",
        }
        for n in range(2 * count)
    ]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub({("maximegmd/glianorex", "test"): glianorex()})
    monkeypatch.setattr(datasets, "load_dataset", found)
    return found


def test_describe() -> None:
    rows = {row.name: row for row in describe()}
    assert sorted(rows) == task_names()
    mediqal = rows["mediqal-mcqu"]
    assert (mediqal.group, mediqal.kind, mediqal.items) == ("domain", "multiple_choice", 4343)
    assert mediqal.license == "cc-by-4.0" and mediqal.origin == "ANR-MALADES/MediQAl (mcqu)"
    assert rows["frbio-fr-med"].origin == "this package" and rows["clister"].origin.startswith("file ")
    assert rows["demo-medical"].origin == "the demonstration"
    assert rows["heldout-domain"].origin == "the corpus of the recipe"
    assert [row.name for row in describe(["controls"])] == ["glianorex-en", "glianorex-fr"]
    with pytest.raises(RequestError, match="did you mean 'core-fr'"):
        describe(["core-f"])


def test_show(tmp_path: Path) -> None:
    assert parse_task(show("paws-x-fr"), "shown") == load_tasks(["paws-x-fr"])[0]
    assert show("paws-x-fr").startswith("# ")  # the file itself, comments and all
    own = tmp_path / "quiz.yaml"
    own.write_text(QUIZ, encoding="utf-8")
    assert show(str(own)) == QUIZ
    with pytest.raises(RequestError, match=r"'controls' is a set of tasks.*: glianorex-en, glianorex-fr"):
        show("controls")
    with pytest.raises(RequestError, match="did you mean 'paws-x-fr'"):
        show("paws-x")


def texts(findings: list[Finding], level: str) -> list[str]:
    return [f.text for f in findings if f.level == level]


def quiz(folder: Path, text: str = QUIZ, **rows: Any) -> Path:
    path = folder / "quiz.yaml"
    path.write_text(text, encoding="utf-8")
    row = {"id": "q1", "question": "Combien ?", "options": ["un", "deux"], "answer": 1} | rows
    for split in ("validation", "test"):
        (folder / f"quiz-{split}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


def test_check_a_good_file_shows_a_prompt(tmp_path: Path) -> None:
    findings = check(quiz(tmp_path))
    assert texts(findings, "error") == texts(findings, "warning") == []
    notes = texts(findings, "note")
    assert "no `shots` split: nothing to show as examples" in notes
    assert notes[-1] == "a prompt as the model sees it:\nQuestion : Combien ?\nRéponse :"


def test_check_names_every_error_of_the_yaml(tmp_path: Path) -> None:
    findings = check(quiz(tmp_path, QUIZ.replace("metric: accuracy", "metric: rouge").replace("license", "licence")))
    errors = texts(findings, "error")
    assert any("quiz.yaml:4: metric" in e for e in errors)
    assert any("unknown key 'licence'; did you mean 'license'?" in e for e in errors)
    assert any("'license' is missing" in e for e in errors)


@pytest.mark.parametrize(
    "rows, expected",
    [
        ({"answer": 2}, "column 'answer' is 2"),
        ({"options": []}, "column 'options'"),
        ({"question": " "}, "column 'question' is empty"),
    ],
)
def test_check_loads_the_data(tmp_path: Path, rows: dict[str, Any], expected: str) -> None:
    errors = texts(check(quiz(tmp_path, **rows)), "error")
    assert len(errors) == 2 and all(expected in e and "item q1" in e for e in errors)


def test_check_names_the_file_that_is_not_there(tmp_path: Path) -> None:
    path = quiz(tmp_path)
    (tmp_path / "quiz-test.jsonl").unlink()
    assert [e for e in texts(check(path), "error") if "quiz-test.jsonl is not there" in e]


def test_check_reads_data_for_a_hub_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(show("mediqal-mcqu"), encoding="utf-8")
    assert not [n for n in texts(check(path), "note") if "items load" in n]  # nothing is asked of the Hub
    notes = texts(check(path, FIXTURES), "note")
    assert {n.partition(":")[0] for n in notes if "items load" in n} == {"validation", "test", "shots"}
    assert notes[-1].endswith("E. le pancréas\nRéponse :")


def test_check_warns_of_what_is_unwise(tmp_path: Path) -> None:
    text = QUIZ.replace("{question}\\n", "{question} ({answer})\\n").replace("name: quiz", "name: paws-x-fr")
    found = texts(check(quiz(tmp_path, text + "continuation: letter\n")), "warning")
    assert found == [
        "a task that ships is called 'paws-x-fr' too: the two cannot be used together",
        "the prompt shows column 'answer', which holds the right answer",
        "letters are scored, and the prompt does not show options",
    ]


def test_check_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        check(tmp_path / "none.yaml")


def test_no_shipped_task_is_unwise() -> None:
    for name in task_names():
        task = load_tasks([name])[0]
        warned = [f.text for f in fetch._unwise(task) if f.level == "warning"]
        assert warned == [], name


def test_fetch_copies_filtered_and_sliced(hub: Hub, tmp_path: Path) -> None:
    done = fetch_tasks(["glianorex-fr"], tmp_path / "data")
    assert [(c.split, c.status, c.items) for c in done] == [
        ("validation", "copied", 50),
        ("test", "copied", 15),
        ("shots", "copied", 5),
    ]
    folder = tmp_path / "data" / "glianorex-fr"
    french = [row for row in glianorex() if row["language"] == "fr"]
    assert lines(folder / "shots.jsonl") == french[:5]
    assert lines(folder / "validation.jsonl") == french[5:55]
    assert lines(folder / "test.jsonl") == french[55:]
    task = load_tasks(["glianorex-fr"])[0]
    for split in fetch.SPLITS:
        assert load_items(task, split, data=tmp_path / "data", offline=True) == load_items(task, split)
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    assert "mit" in text and "datasets/maximegmd/glianorex" in text and f"commit {SHA}" in text
    assert not list(folder.glob("*.tmp"))


def test_fetch_keeps_what_is_complete(hub: Hub, tmp_path: Path) -> None:
    fetch_tasks(["glianorex-fr"], tmp_path, ["test"])
    asked = len(hub.asked)
    again = fetch_tasks(["glianorex-fr"], tmp_path, ["test"])
    assert [c.status for c in again] == ["kept"] and again[0].items == 15 and len(hub.asked) == asked
    path = tmp_path / "glianorex-fr" / "test.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # cut short by something
    assert [c.status for c in fetch_tasks(["glianorex-fr"], tmp_path, ["test"])] == ["copied"]
    assert path.read_bytes() == whole


def test_fetch_again_when_the_task_changed(hub: Hub, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(show("glianorex-fr"), encoding="utf-8")
    fetch_tasks([str(own)], tmp_path / "data", ["test"])
    own.write_text(show("glianorex-fr").replace('test: "test[55:]"', 'test: "test[60:]"'), encoding="utf-8")
    done = fetch_tasks([str(own)], tmp_path / "data", ["test"])
    assert [(c.status, c.items) for c in done] == [("copied", 10)]
    assert len(lines(tmp_path / "data" / "glianorex-fr" / "test.jsonl")) == 10


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "else/quiz"},
        {"config": "fr"},
        {"revision": SHA},
        {"hub_file": "quiz.json"},
        {"where": {"lang": "fr"}},
    ],
)
def test_a_copy_is_of_a_dataset_its_revision_file_and_rows(change: dict[str, Any]) -> None:
    given = yaml.safe_load(QUIZ) | {"dataset": "somebody/quiz"}
    del given["file"]
    made = [
        fetch._made_from(parse_task(yaml.safe_dump(given | more), "quiz.yaml", Path()), "test") for more in ({}, change)
    ]
    assert made[0] != made[1]


def test_fetch_interrupted_leaves_no_half_file(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_tasks(["glianorex-fr"], tmp_path, ["shots"])

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fetch, "write_text", stop)  # the last step before a file takes its name
        with pytest.raises(KeyboardInterrupt):
            fetch_tasks(["glianorex-fr"], tmp_path)
    left = sorted(p.name for p in (tmp_path / "glianorex-fr").iterdir())
    assert left == ["LICENSE.txt", "shots.jsonl", "source.json"]
    done = fetch_tasks(["glianorex-fr"], tmp_path)
    assert [(c.split, c.status) for c in done] == [("validation", "copied"), ("test", "copied"), ("shots", "kept")]


def test_fetch_overwrites_nobodys_file(hub: Hub, tmp_path: Path) -> None:
    mine = tmp_path / "glianorex-fr" / "test.json"
    mine.parent.mkdir()
    mine.write_text("[]", encoding="utf-8")
    with pytest.raises(RequestError, match=r"test\.json was not written by `frbio tasks fetch`"):
        fetch_tasks(["glianorex-fr"], tmp_path, ["test"])
    assert mine.read_text(encoding="utf-8") == "[]" and hub.asked == []


def test_fetch_without_a_network_is_one_line(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="Couldn't reach") as caught:
        fetch_tasks(["glianorex-en", "paws-x-fr"], tmp_path, ["test"])
    assert "\n" not in str(caught.value) and "paws-x-fr" in str(caught.value) and "second line" not in str(caught.value)
    assert (tmp_path / "glianorex-en" / "test.jsonl").is_file() and not (tmp_path / "paws-x-fr").exists()


def test_fetch_when_no_row_is_left(hub: Hub, tmp_path: Path) -> None:
    hub.rows["maximegmd/glianorex", "test"] = glianorex(20)
    with pytest.raises(RequestError, match="no row of maximegmd/glianorex serves as test"):
        fetch_tasks(["glianorex-fr"], tmp_path, ["test"])
    assert list((tmp_path / "glianorex-fr").iterdir()) == []


def test_fetch_of_what_needs_no_copy(hub: Hub, tmp_path: Path) -> None:
    done = fetch_tasks(["frbio-fr-gen", "demo-medical", "clister"], tmp_path)
    assert [c.task for c in done] == ["frbio-fr-gen", "demo-medical", "clister"] and {c.status for c in done} == {
        "none"
    }
    assert hub.asked == [] and [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_fetch_refuses_unknown_splits_and_places(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="'train' is not a split of a task: validation, test, shots are"):
        fetch_tasks(["glianorex-fr"], tmp_path, ["train"])
    taken = tmp_path / "taken"
    taken.write_text("", encoding="utf-8")
    with pytest.raises(RequestError, match="a file is in its place"):
        fetch_tasks(["glianorex-fr"], taken)
    (tmp_path / "glianorex-fr").mkdir()
    (tmp_path / "glianorex-fr" / "source.json").write_text("{", encoding="utf-8")
    with pytest.raises(RequestError, match=r"source\.json cannot be read"):
        fetch_tasks(["glianorex-fr"], tmp_path)
