"""Task files: what ships is whole, what is wrong is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from frbio_lite.errors import RequestError
from frbio_lite.evaluation.tasks import edited, fill, load_tasks, parse_task, task_names

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
    assert {"belebele-fra", "frenchmedmcqa", "mediqal-mcqu", "frbio-fr-med"} <= {t.name for t in core}
    assert {t.group for t in core} == {"domain", "general"}
    for task in core:  # all the pipeline needs of a benchmark: choose, report, show examples
        assert None not in (task.splits.validation, task.splits.test, task.splits.shots)


def test_names_sets_and_files_each_once_in_order(tmp_path: Path) -> None:
    own = tmp_path / "quiz.yaml"
    own.write_text(GOOD, encoding="utf-8")
    names = [t.name for t in load_tasks(["mediqal-mcqu", str(own), "core-fr", "mediqal-mcqu", str(own)])]
    others = [t.name for t in load_tasks(["core-fr"]) if t.name != "mediqal-mcqu"]
    assert names == ["mediqal-mcqu", "quiz", *others] and len(others) > 3


@pytest.mark.parametrize(
    "name, hint", [("demo-medica", "demo-medical"), ("core-frr", "core-fr"), ("zzzzzz", "there are belebele-")]
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
        ("metric: accuracy", "metric: bleu", "t.yaml:4: metric: should be"),
        ("metric: accuracy", "metric: f1", "metric f1 does not belong to kind multiple_choice: accuracy, "),
        ("metric: accuracy", "metric: accuracy\nalso: [jaccard]", "metric jaccard does not belong"),
        ("metric: accuracy", "metric: accuracy\nalso: [accuracy]", "name each metric once"),
        ("group: domain", "group: medical", "t.yaml:2: group: should be"),
        ("metric: accuracy", "metric: bits_per_byte", "does not belong to kind"),
        ("group: domain\n", "", "'group' is missing"),
        ("gold: answer\n", "", "needs `gold`"),
        ("dataset: somebody/quiz", "note: none", "one of `dataset`, `file`, `questions`, `demo`, `heldout`"),
        ("dataset: somebody/quiz", "dataset: a/b\ndemo: medical", "not dataset and demo"),
        ("dataset: somebody/quiz", "heldout: domain", "`heldout` goes with kind bits_per_byte"),
        ("dataset: somebody/quiz", "demo: medical\nrevision: abc", "belong to a Hub `dataset`"),
        ("dataset: somebody/quiz", "questions: medical\nhub_file: a.json", "belong to a Hub `dataset`"),
        ("dataset: somebody/quiz", "dataset: a/b\nhub_file: a.zip", "`hub_file` ends in one of .json"),
        ("dataset: somebody/quiz", "dataset: a/b\nhub_file: a.json\nconfig: fr", "has no `config`"),
        ("choices: options", "choices: options\nfixed_choices: [Oui, Non]", "not both"),
        ("choices: options", "fixed_choices: [Oui]", "two or more, all different"),
        ("choices: options", "fixed_choices: [Oui, Oui]", "two or more, all different"),
        ("choices: options", "fixed_choices: [Oui, Non]\ngold_labels: [a]", "1 `gold_labels` for 2 `fixed_choices`"),
        ("choices: options", "choices: options\ngold_first: 1\ngold_flags: true", "three ways to write gold"),
        ("choices: options\n", "", "needs `choices`"),
        ("choices: options", "choices: options\noptional: [case]", "`optional` names case, which the prompt does not"),
        ("gold: answer", "gold: answer\nextract: '\\d'", "multiple_choice task does not read `extract`"),
        ("gold: answer", "gold: answer\nanswers: yes_no", "multiple_choice task does not read `answers`"),
        (
            "kind: multiple_choice\nmetric: accuracy",
            "kind: generative\nmetric: f1",
            "a generative task does not read `choices`",
        ),
        (
            "kind: multiple_choice\nmetric: accuracy",
            "kind: multiple_answer\nmetric: jaccard",
            "letter_sets` scores sets of letters: write `continuation: letter`",
        ),
        (
            "kind: multiple_choice\nmetric: accuracy",
            "kind: multiple_answer\nmetric: jaccard\nanswers: yes_no",
            "write it as {option} in the prompt",
        ),
        (
            "kind: multiple_choice\nmetric: accuracy",
            "kind: multiple_answer\nmetric: jaccard\nsingle_answer: true",
            "multiple_answer task does not read `single_answer`",
        ),
        ('"test[10:]"', '"test[5:]"', r"shots \(test\[:10\]\) and test \(test\[5:\]\) share rows"),
        ('"test[10:]"', "test", "share rows"),
        ('shots: "test[:10]"', "validation: test[10:20]", "not valid YAML"),
        ('shots: "test[:10]"', 'validation: "test[10:20]"', "validation .* and test .* share rows"),
        ('shots: "test[:10]"', 'train: "x"', "unknown key 'splits.train'"),
        ('"test[10:]"', '"test[ten:]"', "is not a split"),
        ("choices: options", "choices: options\nchoice: 'R : {question}'", "`choice` holds no {option}"),
        (
            "choices: options",
            "choices: options\nchoice: '{option}'\ncontinuation: letter",
            "`choice` is a text to score",
        ),
        ("choices: options", "choices: options\ncontinuation: rest", "scores what follows the `gap`: say which"),
        ("choices: options", "choices: options\ngap: _", "`gap` is a mark in the text, and goes with"),
        ("choices: options", "choices: options\ngap: ''\nchoice: '{option}'", "`gap` is a mark in the text"),
        ('prompt: "{question}"', 'prompt: ""', "needs `prompt`"),
        ("choices: options", "choices: options\nexample: '{why}'", "multiple_choice task does not read `example`"),
        ("choices: options", "choices: options\nedits: {question: [['(', '']]}", "'\\(' to '' is not a replacement"),
        ("choices: options", "choices: options\nedits: {question: [['a', '\\1']]}", "'a' to .* is not a replacement"),
        ("choices: options", "choices: options\nedits: {question: [upper]}", "t.yaml:9: edits.question"),
        ("choices: options", "choices: options\nedits: {case: [lower_first]}", "`edits` names case, whose text is"),
        ("choices: options", "choices: options\ninstruction: '{'", "braces in a prompt"),
        ("choices: options", "choices: options\npaper_shots: -1", "greater than or equal to 0"),
        (
            "kind: multiple_choice\nmetric: accuracy",
            "kind: multiple_answer\nmetric: jaccard\ncontinuation: letter\ngap: _",
            "multiple_answer task does not read `gap`",
        ),
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


def test_yes_no_has_no_continuation() -> None:
    text = GOOD.replace("multiple_choice", "multiple_answer").replace("accuracy", "jaccard") + "answers: yes_no\n"
    assert parse_task(text.replace("{question}", "{question} {option}"), "t.yaml").form == "yes_no"
    with pytest.raises(RequestError, match="`continuation` is not read"):
        parse_task(text.replace("{question}", "{question} {option}") + "continuation: text\n", "t.yaml")


def test_extract_is_an_expression() -> None:
    text = GOOD.replace("multiple_choice", "generative").replace("accuracy", "f1").replace("choices: options\n", "")
    assert parse_task(text + "extract: '(a)'\n", "t.yaml").extract == "(a)"
    with pytest.raises(RequestError, match=r"t.yaml:10: extract: '.a' is not a regular expression"):
        parse_task(text + "extract: '(a'\n", "t.yaml")


def test_a_file_is_beside_its_task(tmp_path: Path) -> None:
    own = tmp_path / "quiz.yaml"
    own.write_text(GOOD.replace("dataset: somebody/quiz", "file: rows/{split}.jsonl"), encoding="utf-8")
    (task,) = load_tasks([str(own)])
    assert task.path("test") == tmp_path / "rows" / "test.jsonl"
    assert load_tasks([str(own), str(own)]) == [task]


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


def test_edits_go_in_turn() -> None:
    edits = (("b+", "a"), ("a", "é"), "lower_first")
    assert edited("ÀBbab", edits) == "àBééé" and edited("", edits) == ""  # type: ignore[arg-type]
    assert edited("Été", ()) == "Été"
