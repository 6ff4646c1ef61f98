"""Every task that ships: valid, described, and read as published, from a few items of our own in the true schema.

fixtures/TASK/{validation,test,shots}.jsonl hold those items; fixtures/prompts.txt shows what the model is asked. After a
change that is meant, `python tests/evaluation/test_shipped_tasks.py` writes the prompts anew: read the difference.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from frbio_lite.evaluation.items import Generation, Item, Question, load_items
from frbio_lite.evaluation.rows import FORMATS, load_rows
from frbio_lite.evaluation.tasks import SplitName, Task, load_tasks, slice_of, task_names

FIXTURES = Path(__file__).parent / "fixtures"
PROMPTS = FIXTURES / "prompts.txt"
SPLITS: tuple[SplitName, ...] = ("validation", "test", "shots")
ALL = {name: load_tasks([name])[0] for name in task_names()}
COPIED = sorted(n for n, t in ALL.items() if t.dataset or t.file)  # those with fixtures
ASKED = sorted(n for n, t in ALL.items() if t.heldout is None)
SETS = {
    "core-fr": {"belebele-fra", "frbio-fr-gen", "frbio-fr-med", "frenchmedmcqa", "global-mmlu-lite-fr", "mediqal-mcqu"},
    "medical-fr": {"domain"},
    "general-fr": {"general"},
    "medical-en": {"domain"},
    "general-en": {"general"},
    "controls": {"control"},
}
UNPINNED = {"french-bench-arc-challenge", "french-bench-topic-based-nli", "glianorex-en", "glianorex-fr"}
NON_COMMERCIAL = {"xnli-fr", "truthfulqa-fr-mc1", "e3c-ner"}


def split_file(task: str, split: str) -> Path:
    return next(p for f in FORMATS if (p := FIXTURES / task / f"{split}.{f}").is_file())


def rows(task: str, split: str) -> list[dict[str, Any]]:
    path = split_file(task, split)
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]  # type: ignore[no-any-return]


def items(name: str, split: SplitName) -> list[Item]:
    return load_items(ALL[name], split, data=FIXTURES, offline=True)


def form(value: Any) -> Any:
    """The type of a cell, deep enough to tell a list of texts from a text, and a number from its digits."""
    if isinstance(value, dict):
        return {key: form(v) for key, v in value.items()}
    return [form(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_a_file_is_named_after_its_task() -> None:
    folder = resources.files("frbio_lite.evaluation").joinpath("tasks")
    files = [f for f in folder.iterdir() if f.name.endswith(".yaml")]
    assert {f.name for f in files} == {f"{name}.yaml" for name in ALL}
    for file in files:
        assert file.read_text(encoding="utf-8").startswith("# "), f"{file.name} does not open with what it is"


def test_sets() -> None:
    assert {t.name for t in load_tasks(["core-fr"])} == SETS["core-fr"]
    for name in ("medical-fr", "general-fr", "medical-en", "general-en", "controls"):
        members = load_tasks([name])
        assert len(members) >= 2 and {t.group for t in members} == SETS[name]
        if name[-3:] in ("-fr", "-en"):
            assert {t.language for t in members} == {name[-2:]}
    assert {s for t in ALL.values() for s in t.sets} == set(SETS)
    # a set runs without asking anybody for data
    assert all(t.file is None for name in SETS for t in load_tasks([name]))
    assert SETS["core-fr"] <= {t.name for t in load_tasks(["medical-fr", "general-fr"])}


def test_core_has_all_the_pipeline_needs() -> None:
    """Choose, report, and show as many examples as the shipped recipes ask for."""
    for task in load_tasks(["core-fr"]):
        assert None not in (task.splits.validation, task.splits.test, task.splits.shots)
        if task.questions is not None:  # of the others the fixtures hold a few alone
            assert len(items(task.name, "shots")) >= 5, task.name


@pytest.mark.parametrize("name", sorted(ALL))
def test_described(name: str) -> None:
    task = ALL[name]
    assert task.license and (task.license == task.license.lower()) and task.note
    assert ("nc" in task.license.split("-")) == (name in NON_COMMERCIAL)
    assert ("commercial" in task.note) == (name in NON_COMMERCIAL)
    if task.dataset or task.file or task.questions:
        assert task.source and task.splits.validation and task.splits.test and task.splits.shots
    if task.revision is not None:
        assert re.fullmatch(r"[0-9a-f]{40}", task.revision)
    assert (task.dataset is not None and task.revision is None) == (name in UNPINNED)


def test_no_two_tasks_report_on_the_same_rows() -> None:
    seen: dict[Any, str] = {}
    for name in COPIED:
        task = ALL[name]
        where = json.dumps(task.where, sort_keys=True)
        key = (task.dataset, task.file, task.config, str(task.splits.test), where, task.form)
        assert key not in seen, f"{name} repeats {seen[key]}"
        seen[key] = name


@pytest.mark.parametrize("name", COPIED)
def test_fixtures_are_of_one_schema(name: str) -> None:
    """The same columns everywhere, and one type in each, or null."""
    if name not in SETS["core-fr"]:
        assert all(3 <= len(rows(name, split)) <= 6 for split in SPLITS)
    assert len({frozenset(row) for split in SPLITS for row in rows(name, split)}) == 1
    found = [row for split in SPLITS for row in load_rows(ALL[name], split, FIXTURES, offline=True)]
    for column in found[0]:
        kinds = {json.dumps(form(row[column])) for row in found} - {json.dumps("NoneType"), "[]"}
        assert len(kinds) <= 1, f"{column} holds {kinds}"


@pytest.mark.parametrize("name", ASKED)
def test_every_split_loads(name: str) -> None:
    task = ALL[name]
    golds = set()
    for split in SPLITS:
        if getattr(task.splits, split) is None:
            assert task.demo is not None
            continue
        found = items(name, split)
        assert len({item.id for item in found}) == len(found)
        for item in found:
            assert isinstance(item, Generation if task.kind == "generative" else Question)
            assert item.text and (item.prompt == item.prompt.lstrip() or not task.strip)
            assert item.prompt or task.choice
            if isinstance(item, Generation):
                golds.add(item.reference)
                continue
            golds.add(item.golds)
            assert len(item.choices) >= 2 and len(set(item.choices)) == len(item.choices)
            assert all(0 <= g < len(item.choices) for g in item.golds)
    # right answers in one place only would hide a gold that is read wrongly
    assert len(golds) >= 2 or task.gold_flags


@pytest.mark.parametrize("name", sorted(n for n, t in ALL.items() if t.dataset and t.where))
def test_where_drops_the_foreign_rows(name: str) -> None:
    for split in SPLITS:
        kept = list(load_rows(ALL[name], split, FIXTURES, offline=True))
        if name != "global-mmlu-lite-fr":
            assert len(kept) == len(rows(name, split)) - 1
        assert kept == [row for row in rows(name, split) if row in kept]  # as published, in published order


@pytest.mark.parametrize("name", COPIED)
def test_gold_is_what_the_fixture_says(name: str) -> None:
    """The words of the right choice, found in the row without the task's own reading of it."""
    task = ALL[name]
    kept = list(load_rows(task, "test", FIXTURES, offline=True))
    if task.single_answer:
        kept = [row for row in kept if len(row[str(task.gold)]) == 1]
    kept = [row for row in kept if all(row[column] for column in task.filled)]
    for row, item in zip(kept, items(name, "test"), strict=True):
        if isinstance(item, Generation):
            assert item.reference == str(row[str(task.gold)])
            continue
        assert isinstance(item, Question)
        assert [words(task, row, item)[g] for g in item.golds] == right_words(task, row)


def words(task: Task, row: dict[str, Any], item: Question) -> list[str]:
    if task.fixed_choices:
        return list(task.fixed_choices)
    if isinstance(task.choices, str):
        return list(row[task.choices])
    columns = [c.split(".") for c in task.choices or ()]
    assert len(columns) == len(item.choices)
    return [row[c[0]][c[1]] if len(c) == 2 else row[c[0]] for c in columns]


RIGHT = {  # of tasks whose gold is no letter
    "belebele-fra": lambda r: r[f"mc_answer{r['correct_answer_num']}"],
    "belebele-eng": lambda r: r[f"mc_answer{r['correct_answer_num']}"],
    "paws-x-fr": lambda r: ["Non", "Oui"][r["label"]],
    "xnli-fr": lambda r: ["en accord", "neutres entre elles", "en contradiction"][r["label"]],
    "xwinograd-fr": lambda r: r["option" + r["answer"]],
    "include-fr": lambda r: [r["option_a"], r["option_b"], r["option_c"], r["option_d"]][r["answer"]],
    "french-bench-boolqa": lambda r: "Oui" if r["label"] else "Non",
    "french-bench-topic-based-nli": lambda r: {"negatif": "négatif"}.get(r["polarity"], r["polarity"]),
    "truthfulqa-fr-mc1": lambda r: r["mc1_targets_choices"][0],
}  # fmt: skip


def right_words(task: Task, row: dict[str, Any]) -> list[str]:
    if task.name in RIGHT:
        return [RIGHT[task.name](row)]
    letters = row[str(task.gold)]
    letters = letters if isinstance(letters, list) else letters.split(",")
    return [at_letter(task, row, letter) for letter in letters]


def at_letter(task: Task, row: dict[str, Any], letter: str) -> str:
    """The choice under a letter, by the names that the published columns carry."""
    if isinstance(task.choices, str):
        return str(row[task.choices]["ABCDE".index(letter)])
    holder = str((task.choices or ("",))[0]).partition(".")
    if holder[1]:
        nested = row[holder[0]]
        return str(nested[letter] if letter in nested else nested[letter.lower()])
    stem = holder[0][:-1]  # answer_a, option_a, answerA
    return str(row[stem + letter] if stem + letter in row else row[stem + letter.lower()])


def test_clusters() -> None:
    clustered = {name for name, task in ALL.items() if task.cluster}
    assert clustered == {
        "belebele-eng", "belebele-fra", "french-bench-boolqa", "french-bench-reading-comp", "french-bench-topic-based-nli",
        "mediqal-mcqm", "mediqal-mcqm-yes-no", "mediqal-mcqu", "mediqal-oeq",
    }  # fmt: skip
    first, second, third = (i.cluster for i in items("belebele-eng", "validation") if isinstance(i, Question))
    assert first == second != third
    alone, *case = (i.cluster for i in items("mediqal-mcqm", "validation") if isinstance(i, Question))
    assert alone is None and case[0] is not None and case[0] == case[1]


def test_yes_no_asks_about_the_same_rows_as_the_sets_of_letters() -> None:
    """The same questions and right answers, asked in another way; in no set, so that nothing counts them twice."""
    for name in ("frbio-fr-med", "frenchmedmcqa", "mediqal-mcqm"):
        apart = f"{name}-yes-no"
        together = name if name == "mediqal-mcqm" else f"{name}-multi"
        assert ALL[apart].form == "yes_no" and not ALL[apart].sets and ALL[together].sets
        assert ALL[apart].metric == ALL[together].metric == "exact_set"
        for split in SPLITS:
            pairs = list(zip(items(apart, split), items(together, split), strict=True))
            for asked, lettered in pairs:
                assert isinstance(asked, Question) and isinstance(lettered, Question)
                assert (asked.id, asked.golds, asked.text) == (lettered.id, lettered.golds, lettered.text)
                assert len(asked.asks) == len(lettered.choices) == len(asked.choices)
                for ask, choice in zip(asked.asks, asked.choices, strict=True):
                    before, _, after = ask.partition("\nProposition : ")
                    assert after.startswith(f"{choice}\nCette") and before.endswith(asked.text.split("\n")[-1])
                    assert f". {choice}\n" in lettered.prompt
            assert len(pairs) >= 3


def test_shots_of_the_paper() -> None:
    """3 for tasks of medicine and the fictional organ, 4 for mathematics, else 5, and none where nothing can be shown."""
    for name, task in ALL.items():
        medical = name.startswith("mediqal") or any(part in name for part in ("med", "glianorex"))
        expected = 3 if medical else 4 if name == "mgsm-fr" else 5
        if task.splits.shots is None:
            expected = 0
        else:
            _, start, stop = slice_of(task.splits.shots)
            assert stop - start >= expected, f"{name} has too few examples"
        assert task.shot_count("paper") == expected, name
        assert task.shot_count(7) == (0 if task.kind == "bits_per_byte" else 7)


def test_our_own_questions() -> None:
    """Both parts load whole, and the splits share no question."""
    for name, least in (("frbio-fr-med", 230), ("frbio-fr-med-multi", 300), ("frbio-fr-gen", 300)):
        found = [i for split in SPLITS for i in items(name, split)]
        assert len(found) >= least and len({i.id for i in found}) == len(found)
        for item in found:
            assert isinstance(item, Question) and item.choices == tuple("ABCDE")
            lines = item.prompt.split("\n")
            assert lines[0].startswith("Question") and [line[:3] for line in lines[-6:-1]] == [
                "A. ",
                "B. ",
                "C. ",
                "D. ",
                "E. ",
            ]
        assert len(items(name, "test")) > len(items(name, "validation")) > 50
    found = [i for split in SPLITS for i in items("frbio-fr-med-multi", split)]
    assert sum(isinstance(i, Question) and len(i.golds) > 1 for i in found) >= 60


def shown(name: str) -> str:
    """The first test item of a task, as a person reads it; the second too where a line of the prompt may be missing."""
    task = ALL[name]
    return "\n".join(entry(task, item) for item in items(name, "test")[: 2 if task.optional else 1])


def entry(task: Task, item: Item) -> str:
    assert isinstance(item, Question | Generation)
    head = f"===== {task.name} ({task.form}, {task.metric}), test item {item.id}"
    head += "" if task.delimiter == " " else f", answer after {task.delimiter!r}"
    head += f"\n----- instruction: {item.instruction}" if item.instruction else ""
    if isinstance(item, Generation):
        return f"{head}\n{item.prompt}\n----- reference: {item.reference}\n"
    asked = "\n----- or\n".join(item.asks) or item.prompt
    golds = " ".join(item.choices[g] for g in item.golds)
    scored = f"what follows: {item.rest}" if item.rest else f"choices: {' | '.join(item.choices)}"
    return f"{head}\n{asked}\n----- {scored}\n----- right: {golds}\n"


def test_slices_of_one_split_cover_it() -> None:
    """Where one published split serves three times, no row is lost between examples, validation and test."""
    for task in ALL.values():
        parts = sorted((slice_of(s) for _, s in task.splits if s is not None), key=lambda part: part[1])
        if len({name for name, _, _ in parts}) == 1 and len(parts) == 3:
            assert parts[0][1] == 0 and parts[-1][2] == float("inf")
            assert parts[0][2] == parts[1][1] and parts[1][2] == parts[2][1], task.name


def test_prompts() -> None:
    golden = re.split(r"(?m)^(?====== )", PROMPTS.read_text(encoding="utf-8"))[1:]
    found = [e for name in COPIED for e in re.split(r"(?m)^(?====== )", shown(name) + "\n")[1:]]
    for now, expected in zip(found, golden, strict=True):
        assert now == expected


if __name__ == "__main__":
    PROMPTS.write_text("\n".join(shown(name) for name in COPIED) + "\n", encoding="utf-8")
