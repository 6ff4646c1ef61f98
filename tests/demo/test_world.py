"""The embedded world: true to its data, learnable, and not answerable from the form of the answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest
from scipy.stats import binom

from frbio_lite.demo.world import OPTIONS, Question, documents, facts, fill, questions, relations

PARTS = ("medical", "general")
SPLITS = ("validation", "test")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


@pytest.mark.parametrize("part", PARTS)
def test_relations_can_be_asked_about(part: str) -> None:
    assert len(facts(part)) >= 250
    names = [r.name for p in PARTS for r in relations(p)]
    assert len(set(names)) == len(names)
    for relation in relations(part):
        objects = {f.object for f in relation.facts}
        assert len(objects) >= 10, relation.name
        subjects = [f.subject for f in relation.facts]
        assert len(set(subjects)) == len(subjects), relation.name
        assert len(relation.statements) >= 5 and len(relation.faq) >= 3 and len(relation.questions) >= 2
        for fact in relation.facts:
            assert set(fact.also) <= objects, fact
            assert fact.object.casefold() not in fact.subject.casefold(), fact
            assert len(objects - {fact.object, *fact.also}) >= OPTIONS - 1, fact


@pytest.mark.parametrize("part", PARTS)
def test_every_wording_becomes_clean_french(part: str) -> None:
    wrong = re.compile(
        r"[{}]|  |\bde les? |\bà les? |\bque [aeiouyéèêîô]|\bde [aeéèêiîoôu]\w|\ble [aeéèêiîoôu]\w|\bla [aeéèêiîoôu]\w",
        re.IGNORECASE,
    )
    allowed = re.compile(r"\b(de|le|la) (un|une|onze|huit|où|oui|uns|unes)\b", re.IGNORECASE)
    for relation in relations(part):
        for wording in (*relation.statements, *relation.faq, *relation.questions):
            for fact in relation.facts:
                text = fill(wording, fact)
                assert not wrong.search(allowed.sub("", text)), text
                assert text[:1] == text[:1].upper(), text
        assert all(w.endswith(" ?") for w in (*relation.faq, *relation.questions)), relation.name


@pytest.mark.parametrize("part", PARTS)
def test_each_pass_states_every_fact(part: str) -> None:
    by_relation = {r.name: r for r in relations(part)}
    texts = [d["text"] for d in documents(part, seed=5, copies=1)]
    for fact in facts(part):
        relation = by_relation[fact.relation]
        stated = {fill(w, fact) for w in relation.statements} | {
            f"{fill(w, fact)}\nRéponse : {fact.object}" for w in relation.faq
        }
        assert any(s in t for s in stated for t in texts), fact


@pytest.mark.parametrize("part", PARTS)
def test_documents_are_varied_and_reproducible(part: str) -> None:
    made = list(documents(part, seed=1, copies=6))
    assert made == list(documents(part, seed=1, copies=6))
    assert made[: len(made) // 6] != list(documents(part, seed=2, copies=1))
    assert len({d["id"] for d in made}) == len(made)
    assert len({d["text"] for d in made}) > 0.99 * len(made)
    assert len({d["document_type"] for d in made}) == 5
    assert {d["license"] for d in made} == {"cc0-1.0"}
    lengths = [len(d["text"].split()) for d in made]
    assert 25 < sum(lengths) / len(lengths) < 90


@pytest.mark.parametrize("part", PARTS)
def test_other_seeds_give_other_documents(part: str) -> None:
    """What a recipe holds out was not read, word for word, by the base."""
    read = {d["text"] for d in documents(part, seed=1, copies=60)}
    held = [d["text"] for d in documents(part, seed=17, copies=10)]
    assert sum(t in read for t in held) / len(held) < 0.01


@pytest.mark.parametrize("part", PARTS)
def test_questions_use_words_the_texts_do_not(part: str) -> None:
    asked = questions(part)
    text = "\n".join(d["text"] for d in documents(part, seed=1, copies=3))
    seen = shingles(text, 13)
    for question in asked:
        assert question.question not in text
        assert not shingles(question.question, 13) & seen
    for relation in relations(part):
        assert not set(relation.questions) & {*relation.statements, *relation.faq}


@pytest.mark.parametrize("part", PARTS)
def test_each_fact_is_asked_once_with_one_right_answer(part: str) -> None:
    asked = questions(part)
    assert asked == questions(part) and asked != questions(part, seed=18)
    assert sorted(q.id for q in asked) == sorted(f.id for f in facts(part))
    by_id = {f.id: f for f in facts(part)}
    for question in asked:
        fact = by_id[question.id]
        assert len(set(question.choices)) == OPTIONS
        assert question.choices[question.answer] == fact.object
        assert not set(question.choices) & set(fact.also)
    for split in SPLITS:
        assert sum(q.split == split for q in asked) >= 100


def test_the_splits_share_the_relations_in_proportion() -> None:
    for part in PARTS:
        for relation in relations(part):
            inside = [q.split for q in questions(part) if q.relation == relation.name]
            assert abs(inside.count("validation") / len(inside) - 0.4) < 0.06, relation.name


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("split", SPLITS)
def test_positions_are_balanced(part: str, split: str) -> None:
    asked = [q for q in questions(part) if q.split == split]
    counts = Counter(q.answer for q in asked)
    assert max(counts[i] for i in range(OPTIONS)) - min(counts[i] for i in range(OPTIONS)) <= 1


def most_frequent(asked: list[Question]) -> Callable[[Question], int]:
    counts = Counter(q.choices[q.answer] for q in asked)
    return lambda q: max(range(OPTIONS), key=lambda i: (counts[q.choices[i]], -i))


HEURISTICS: dict[str, Callable[[Question], int]] = {
    "longest": lambda q: max(range(OPTIONS), key=lambda i: len(q.choices[i])),
    "shortest": lambda q: min(range(OPTIONS), key=lambda i: len(q.choices[i])),
    "first in the alphabet": lambda q: min(range(OPTIONS), key=lambda i: q.choices[i]),
    "most words": lambda q: max(range(OPTIONS), key=lambda i: len(q.choices[i].split())),
    "middle length": lambda q: sorted(range(OPTIONS), key=lambda i: len(q.choices[i]))[2],
    "letters in common": lambda q: max(
        range(OPTIONS), key=lambda i: len(set(words(q.question)) & set(words(q.choices[i])))
    ),
    **{f"position {k}": lambda q, k=k: k for k in range(OPTIONS)},
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", sorted(HEURISTICS))
def test_the_form_of_the_answers_gives_nothing_away(part: str, name: str) -> None:
    asked = questions(part)
    right = sum(HEURISTICS[name](q) == q.answer for q in asked)
    assert right <= binom.ppf(0.995, len(asked), 1 / OPTIONS), f"{name}: {right / len(asked):.3f}"


@pytest.mark.parametrize("part", PARTS)
def test_frequent_answers_are_as_frequent_among_the_wrong_ones(part: str) -> None:
    """A guesser who knows how often each answer is right on the other split gains little."""
    asked = questions(part)
    guess = most_frequent([q for q in asked if q.split == "validation"])
    test = [q for q in asked if q.split == "test"]
    right = sum(guess(q) == q.answer for q in test)
    assert right <= binom.ppf(0.995, len(test), 1 / OPTIONS), right / len(test)
