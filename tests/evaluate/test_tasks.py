"""Task files: what ships is whole, what is wrong is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from frbio_lite.errors import RequestError
from frbio_lite.evaluate.tasks import fill, load_tasks, parse_task, task_names

GOOD = """\
name: quiz
group: domain
kind: multiple_choice
metric: accuracy
dataset: somebody/quiz
splits: {test: "test[10:]", shots: "test[:10]"}
prompt: "{question}"
choices: options
gold: answer
license: cc0-1.0
"""


def test_shipped_tasks_and_the_set() -> None:
    assert {"demo-medical", "demo-general", "heldout-domain", "heldout-general"} <= set(task_names())
    core = load_tasks(["core-fr"])
    assert [t.name for t in core] == ["belebele-fra", "frenchmedmcqa", "global-mmlu-lite-fr", "mediqal-mcqu"]
    assert {t.group for t in core} == {"domain", "general"}
    for task in core:  # all the pipeline needs of a benchmark: choose, report, show examples
        assert None not in (task.splits.validation, task.splits.test, task.splits.shots, task.items)


def test_names_sets_and_files_each_once_in_order(tmp_path: Path) -> None:
    own = tmp_path / "quiz.yaml"
    own.write_text(GOOD, encoding="utf-8")
    names = [t.name for t in load_tasks(["mediqal-mcqu", str(own), "core-fr", "mediqal-mcqu", str(own)])]
    assert names == ["mediqal-mcqu", "quiz", "belebele-fra", "frenchmedmcqa", "global-mmlu-lite-fr"]


@pytest.mark.parametrize(
    "name, hint", [("demo-medica", "demo-medical"), ("core-frr", "core-fr"), ("zzzzzz", "there are belebele-fra")]
)
def test_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(RequestError, match=hint):
        load_tasks([name])


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(GOOD.replace("name: quiz", "name: belebele-fra"), encoding="utf-8")
    with pytest.raises(RequestError, match="two different tasks are called 'belebele-fra'"):
        load_tasks(["core-fr", str(own)])


def test_missing_file() -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        load_tasks(["nowhere/task.yaml"])


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("metric: accuracy", "metrics: accuracy", r"t.yaml:4: unknown key 'metrics'; did you mean 'metric'"),
        ("metric: accuracy", "metric: f1", "t.yaml:4: metric: should be"),
        ("metric: accuracy", "metric: bits_per_byte", "does not belong to kind"),
        ("group: domain\n", "", "'group' is missing"),
        ("gold: answer\n", "", "needs `gold`"),
        ("dataset: somebody/quiz", "note: none", "one of `dataset`, `demo` and `heldout`"),
        ("dataset: somebody/quiz", "dataset: a/b\ndemo: medical", "not dataset and demo"),
        ("dataset: somebody/quiz", "heldout: domain", "`heldout` goes with kind bits_per_byte"),
        ("dataset: somebody/quiz", "demo: medical\nrevision: abc", "belong to a Hub `dataset`"),
        ('"test[10:]"', '"test[5:]"', r"shots \(test\[:10\]\) and test \(test\[5:\]\) share rows"),
        ('"test[10:]"', "test", "share rows"),
        ('shots: "test[:10]"', "validation: test[10:20]", "not valid YAML"),
        ('shots: "test[:10]"', 'validation: "test[10:20]"', "validation .* and test .* share rows"),
        ('shots: "test[:10]"', 'train: "x"', "unknown key 'splits.train'"),
        ('"test[10:]"', '"test[ten:]"', "is not a split"),
        ("{question}", "{question!r}", "braces in a prompt"),
        ("{question}", "{0[question]}", "braces in a prompt"),
        ("{question}", "{question", "braces in a prompt"),
        ("group: domain", "group: domain\ngroup: general", "t.yaml:3: 'group' is given twice"),
        ("group: domain", "group: [", "not valid YAML"),
    ],
)
def test_malformed_task(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(RequestError, match=message):
        parse_task(GOOD.replace(old, new), "t.yaml")


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(RequestError, match=r"t.yaml:2: group.*t.yaml:4: metric") as error:
        parse_task(GOOD.replace("domain", "medical").replace("metric: accuracy", "metric: bleu"), "t.yaml")
    assert "\n" not in str(error.value)


def test_not_a_mapping() -> None:
    with pytest.raises(RequestError, match="a task is a mapping"):
        parse_task("- a\n- b\n", "t.yaml")


def test_fill_replaces_names_alone_and_once() -> None:
    values = {"a": "{b} {a.__class__} {0}", "b": "B", "c.d": "}{"}
    assert fill("{a}|{b}|{c.d}", values) == "{b} {a.__class__} {0}|B|}{"
