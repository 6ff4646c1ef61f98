"""The questions that ship: enough of them, well formed, balanced, and without a giveaway."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from importlib import resources
from typing import Any

import pytest
from scipy.stats import binomtest, chisquare

from frbio_lite.evaluation.items import Question, benchmark_texts, load_items
from frbio_lite.evaluation.questions import digest, load_questions
from frbio_lite.evaluation.tasks import load_tasks

KEYS = {"id", "specialty", "difficulty", "question", "options", "answers", "justification", "split"}
PARTS = ("medical", "general")
LEVEL = 0.01  # of each test of balance

Row = dict[str, Any]


@pytest.fixture(scope="module", params=PARTS)
def rows(request: pytest.FixtureRequest) -> list[Row]:
    return load_questions(request.param)


def single(rows: list[Row]) -> list[Row]:
    return [row for row in rows if len(row["answers"]) == 1]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w{5,}", text.casefold()))


def test_enough_questions_of_enough_specialties(rows: list[Row]) -> None:
    assert len(rows) >= 300
    assert len({row["specialty"] for row in rows}) >= 12
    assert min(Counter(row["specialty"] for row in rows).values()) >= 10
    by_difficulty = Counter(row["difficulty"] for row in rows)
    assert set(by_difficulty) == {1, 2, 3} and min(by_difficulty.values()) >= 30


def test_medical_questions_with_several_answers() -> None:
    medical, general = load_questions("medical"), load_questions("general")
    several = Counter(len(row["answers"]) for row in medical if len(row["answers"]) > 1)
    assert several.total() >= 60 and set(several) == {2, 3, 4}
    assert len(single(medical)) >= 200
    assert len(single(general)) == len(general)  # frbio-fr-gen asks for one answer


def test_every_question_is_well_formed(rows: list[Row]) -> None:
    for row in rows:
        assert set(row) == KEYS, row
        texts = [row["question"], row["justification"], row["specialty"], *row["options"]]
        assert all(isinstance(t, str) and t.strip() == t and t and "\n" not in t for t in texts), row
        assert all(unicodedata.is_normalized("NFC", t) for t in texts), row
        assert len(row["options"]) == 5 == len({option.casefold() for option in row["options"]}), row
        assert row["answers"] == sorted(set(row["answers"])) and 1 <= len(row["answers"]) <= 4, row
        assert set(row["answers"]) <= set(range(5)), row
        assert row["difficulty"] in (1, 2, 3) and row["split"] in ("validation", "test"), row
        assert row["question"].endswith(("?", ":")), row
        assert not any(
            re.search(r"toutes les r|aucune des|réponses? [A-E]\b", o, re.IGNORECASE) for o in row["options"]
        ), row


def test_ids_and_questions_are_unique() -> None:
    every = [row for part in PARTS for row in load_questions(part)]
    assert len({row["id"] for row in every}) == len(every)
    assert len({re.sub(r"\W", "", row["question"].casefold()) for row in every}) == len(every)


def test_both_splits_have_all_specialties(rows: list[Row]) -> None:
    shares = {}
    for split in ("validation", "test"):
        mine = [row for row in rows if row["split"] == split]
        assert {row["specialty"] for row in mine} == {row["specialty"] for row in rows}
        assert {row["difficulty"] for row in mine} == {1, 2, 3}
        shares[split] = len(mine) / len(rows)
    assert 0.28 <= shares["validation"] <= 0.39


def test_right_answers_stand_at_every_place(rows: list[Row]) -> None:
    for mine in (rows, [r for r in rows if r["split"] == "validation"], [r for r in rows if r["split"] == "test"]):
        places = Counter(row["answers"][0] for row in single(mine))
        assert chisquare([places[n] for n in range(5)]).pvalue > LEVEL
    chosen = [row for row in rows if len(row["answers"]) > 1]
    if chosen:
        places = Counter(place for row in chosen for place in row["answers"])
        assert chisquare([places[n] for n in range(5)]).pvalue > LEVEL


def lengths(row: Row) -> list[int]:
    return [len(option) for option in row["options"]]


def in_common(row: Row) -> list[int]:
    return [len(words(row["question"]) & words(option)) for option in row["options"]]


def unlike_the_others(row: Row) -> list[int]:
    """Words that no other option has."""
    each = [words(option) for option in row["options"]]
    return [len(own - set().union(*each[:n], *each[n + 1 :])) for n, own in enumerate(each)]


def like_the_others(row: Row) -> list[int]:
    """Words in common with each of the other options, summed."""
    each = [words(option) for option in row["options"]]
    return [sum(len(own & other) for k, other in enumerate(each) if k != n) for n, own in enumerate(each)]


HABITS: dict[str, Callable[[Row], list[int]]] = {
    "the longest": lengths,
    "the shortest": lambda row: [-n for n in lengths(row)],
    "that of middle length": lambda row: [-abs(n - sorted(lengths(row))[2]) for n in lengths(row)],
    "with words of the question": in_common,
    "most unlike the others": unlike_the_others,
    "with fewest words of its own": lambda row: [-n for n in unlike_the_others(row)],
    "that shares most words with the others": like_the_others,
    "that shares a word with another": lambda row: [n > 0 for n in like_the_others(row)],
    "with a number": lambda row: [bool(re.search(r"\d", option)) for option in row["options"]],
    "with a hedge": lambda row: [bool(re.search(r"\b(souvent|parfois|peut|généralement)", o)) for o in row["options"]],
    "without always or never": lambda row: [
        not re.search(r"\b(toujours|jamais|uniquement)", o) for o in row["options"]
    ],
}


def guessed(habit: str, rows: list[Row]) -> tuple[float, int]:
    """How often a habit is right, one of equals being guessed, and how many questions it tells something of."""
    hits, asked = 0.0, 0
    for row in single(rows):
        values = HABITS[habit](row)
        best = [n for n, value in enumerate(values) if value == max(values)]
        if len(best) == 5:
            continue
        asked += 1
        hits += (row["answers"][0] in best) / len(best)
    return hits, asked


@pytest.mark.parametrize("habit", HABITS)
def test_no_habit_finds_the_answer(habit: str, rows: list[Row]) -> None:
    """Whoever takes the option of some form is right in one of five, where the form tells the options apart."""
    hits, asked = guessed(habit, rows)
    assert asked < 5 or binomtest(round(hits), asked, 0.2, alternative="greater").pvalue > LEVEL


def test_several_answers_are_not_the_long_ones() -> None:
    """Neither the number nor the length of the options tells which of several are right."""
    rows = [row for row in load_questions("medical") if len(row["answers"]) > 1]
    ranks = [sorted(range(5), key=lambda n: lengths(row)[n]).index(place) for row in rows for place in row["answers"]]
    assert chisquare([Counter(ranks)[n] for n in range(5)]).pvalue > LEVEL


def test_they_ship_and_load_as_tasks() -> None:
    folder = resources.files("frbio_lite.evaluation").joinpath("questions")
    assert {f.name for f in folder.iterdir()} >= {"medical", "general", "README.md"}
    sizes = {}
    for name, part in (("frbio-fr-med", "medical"), ("frbio-fr-med-multi", "medical"), ("frbio-fr-gen", "general")):
        (task,) = load_tasks([name])
        rows = {row["id"]: row for row in load_questions(part)}  # type: ignore[arg-type]
        for split in ("validation", "test", "shots"):
            items = load_items(task, split, offline=True)  # type: ignore[arg-type]
            sizes[name, split] = len(items)
            for item in items:
                row = rows[item.id]
                assert isinstance(item, Question) and list(item.golds) == row["answers"]
                assert row["split"] == ("test" if split == "test" else "validation")
                for letter, option in zip("ABCDE", row["options"], strict=True):
                    assert f"\n{letter}. {option}\n" in item.prompt
                assert item.text == row["question"] and row["justification"] not in item.prompt
    assert sizes["frbio-fr-gen", "test"] >= 200 and sizes["frbio-fr-med-multi", "test"] >= 200
    assert sizes["frbio-fr-med", "test"] >= 130
    texts = benchmark_texts(load_tasks(["frbio-fr-med", "frbio-fr-gen"]))
    assert {row["question"] for row in single(load_questions("medical")) if row["split"] == "test"} <= set(
        texts["frbio-fr-med"]
    )


def test_the_card_says_what_is_there() -> None:
    card = resources.files("frbio_lite.evaluation").joinpath("questions", "README.md").read_text(encoding="utf-8")
    found = [load_questions(part) for part in ("medical", "general")]
    places = [[Counter(row["answers"][0] for row in single(rows))[n] for n in range(5)] for rows in found]
    splits = [[sum(row["split"] == s for row in rows) for s in ("validation", "test")] for rows in found]
    levels = [[sum(row["difficulty"] == n for row in rows) for n in (1, 2, 3)] for rows in found]
    several = [sum(len(row["answers"]) == n for row in found[0]) for n in (2, 3, 4)]
    for name, values in (
        ("questions", [[len(rows)] for rows in found]),
        ("with one right answer", [[len(single(rows))] for rows in found]),
        ("with 2, 3, 4 right answers", [several, [0]]),
        ("validation, test", splits),
        ("difficulty 1, 2, 3", levels),
    ):
        assert "| ".join([f"| {name} ", *(f"{', '.join(map(str, v))} " for v in values)]) + "|" in card
    for mine in places:
        assert f" {', '.join(map(str, mine))} |" in card
    for line, habit in (
        ("the option with words of the question is right", "with words of the question"),
        ("the option that shares most words with the other options is right", "that shares most words with the others"),
        ("an option that shares a word with another is right", "that shares a word with another"),
        ("the option with fewest words of its own is right", "with fewest words of its own"),
    ):
        shares = [f"{round(100 * hits / asked)} % of {asked}" for hits, asked in (guessed(habit, r) for r in found)]
        assert f"| {line} | {' | '.join(shares)} | 20 % |" in card
    counted = Counter(row["specialty"] for rows in found for row in rows)
    flat = " ".join(card.split())
    assert all(f" {specialty} {count}" in flat for specialty, count in counted.items())


def test_the_first_questions_are_of_different_specialties(rows: list[Row]) -> None:
    for split in ("validation", "test"):
        first = [row["specialty"] for row in rows if row["split"] == split][:5]
        assert len(set(first)) == 5


def test_a_changed_caller_changes_no_question() -> None:
    before = digest("medical")
    load_questions("medical")[0]["id"] = "changed"
    assert digest("medical") == before != digest("general")
