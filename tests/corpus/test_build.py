"""The corpus stage as a whole: gate, duplicates, benchmark questions, splits, what is written and what is counted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from frbio_lite.corpus import build_corpus
from frbio_lite.corpus.decontaminate import Decontaminator
from frbio_lite.corpus.deduplicate import HASHES, RECALL, Deduplicator, bands_for
from frbio_lite.corpus.split import assign, rank
from frbio_lite.errors import RequestError
from frbio_lite.recipe import Corpus, Deduplicate

WORDS = [f"mot{i}" for i in range(3000)]


def words(n: int) -> str:
    return " ".join(random.choices(WORDS, k=n))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r if isinstance(r, dict) else {"text": r}) + "\n" for r in rows))
    return path


def settings(*sources: Any, **keys: Any) -> Corpus:
    made = [s if isinstance(s, dict) else {"path": str(s), "license": "CC BY 4.0"} for s in sources]
    return Corpus.model_validate({"sources": made, "licenses": {"allow": ["cc-by-4.0", "MIT"]}, **keys})


def build(
    where: Path, corpus: Corpus, seed: int = 17, questions: Any = None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    where.mkdir()
    figures = build_corpus(corpus, seed, where, questions or {})
    assert json.loads((where / "funnel.json").read_text()) == figures
    assert sorted(p.name for p in where.iterdir()) == ["documents", "funnel.json"]
    return pq.read_table(where / "documents").to_pylist(), figures


def step(figures: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in figures["steps"] if s["step"] == name)


def test_what_is_written_and_counted(tmp_path: Path) -> None:
    texts = [words(30) for _ in range(200)]
    notes = write(tmp_path / "notes.jsonl", [*texts, "trop court", texts[7] + "  "])
    other = write(tmp_path / "other.jsonl", [texts[3], *[words(20) for _ in range(20)]])
    corpus = settings(
        notes,
        {"path": str(other), "license": "mit", "role": "replay", "weight": 0.0},
        validation_fraction=0.05,
        test_fraction=0.1,
    )
    rows, figures = build(tmp_path / "out", corpus)
    assert list(rows[0]) == ["text", "source", "document_type", "license", "id", "split", "role", "recipe_source"]
    assert [r["text"] for r in rows[:200]] == texts
    assert {(r["role"], r["recipe_source"], r["license"]) for r in rows} == {
        ("domain", 0, "cc-by-4.0"),
        ("replay", 1, "mit"),
    }
    assert len({r["id"] for r in rows}) == len(rows) == 220
    held = {
        (s, i): sum(r["split"] == s and r["recipe_source"] == i for r in rows)
        for s in ("validation", "test")
        for i in (0, 1)
    }
    assert held == {("validation", 0): 10, ("test", 0): 20, ("validation", 1): 1, ("test", 1): 2}
    assert figures["dropped"] == {str(notes): {"duplicate": 1, "too short": 1}, str(other): {"duplicate": 1}}
    assert figures["rules"] == {str(notes): {"collapse_space": 1}, str(other): {}}
    assert (
        step(figures, "read")["documents"] == 223
        and step(figures, "cleaned")["by_source"][str(notes)]["documents"] == 201
    )
    last = step(figures, "decontaminated")
    splits = [step(figures, s) for s in ("train", "validation", "test")]
    for unit, value in (
        ("documents", 220),
        ("words", 200 * 30 + 20 * 20),
        ("bytes", sum(len(r["text"].encode()) for r in rows)),
    ):
        assert last[unit] == value == sum(s[unit] for s in splits) == sum(c[unit] for c in last["by_source"].values())


def test_same_seed_same_files_other_seed_other_split(tmp_path: Path) -> None:
    notes = write(tmp_path / "notes.jsonl", [words(30) for _ in range(300)])
    corpus = settings(notes, deduplicate={"method": "minhash"})
    (a, _), (b, _), (c, _) = (build(tmp_path / n, corpus, seed) for n, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert a == b
    assert (tmp_path / "a/documents/part-00000.parquet").read_bytes() == (
        tmp_path / "b/documents/part-00000.parquet"
    ).read_bytes()
    assert [r["split"] for r in a] != [r["split"] for r in c]


def test_the_split_of_a_source_does_not_depend_on_the_others(tmp_path: Path) -> None:
    notes = write(tmp_path / "notes.jsonl", [words(30) for _ in range(300)])
    more = write(tmp_path / "more.jsonl", [words(30) for _ in range(50)])
    alone, _ = build(tmp_path / "a", settings(notes))
    beside, _ = build(tmp_path / "b", settings(more, notes))
    assert [r["split"] for r in alone] == [r["split"] for r in beside if r["recipe_source"] == 1]


def test_many_parts_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frbio_lite.corpus.store.BATCH_DOCUMENTS", 7)
    monkeypatch.setattr("frbio_lite.corpus.store.PART_CHARACTERS", 3000)
    texts = [words(30) for _ in range(100)]
    rows, _ = build(tmp_path / "out", settings(write(tmp_path / "n.jsonl", texts)))
    assert [r["text"] for r in rows] == texts
    assert len(list((tmp_path / "out/documents").iterdir())) > 3


def test_identifiers_stay_and_clashes_are_numbered(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [{"text": words(9), "id": i} for i in ("x", "y", "x~2", "x")])
    b = write(tmp_path / "b.jsonl", [{"text": words(9), "id": i} for i in ("x", "z", "y")])
    rows, _ = build(tmp_path / "out", settings(a, b))
    assert [r["id"] for r in rows] == ["x", "y", "x~2", "x~3", "x~4", "z", "y~2"]


def test_licenses(tmp_path: Path) -> None:
    rows = [{"text": words(9), "license": name} for name in ("CC-BY-4.0", "cc by 4.0", "CC-BY-NC-4.0", "Mit", "")]
    mixed = write(tmp_path / "mixed.jsonl", rows)
    kept, figures = build(tmp_path / "out", settings(mixed))
    assert [r["license"] for r in kept] == ["cc-by-4.0", "cc-by-4.0", "mit", "cc-by-4.0"]
    assert figures["dropped"][str(mixed)] == {"license cc-by-nc-4.0": 1}
    with pytest.raises(RequestError, match=r"mixed\.jsonl#000004 .* no license.*corpus\.licenses\.allow"):
        build(tmp_path / "none", settings({"path": str(mixed)}))
    with pytest.raises(RequestError, match=r"mixed\.jsonl has the license 'CC-BY-NC-4.0'.*corpus\.licenses\.allow"):
        build(tmp_path / "nc", settings({"path": str(mixed), "license": "CC-BY-NC-4.0"}))


def test_a_bad_last_source_is_refused_before_the_first_is_read(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", [words(9) for _ in range(9)])
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{\n")
    with pytest.raises(RequestError, match=r"bad\.jsonl:1"):
        build(tmp_path / "out", settings(good, bad))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["un", "deux mots"], r"no document of the source .* is left: 2 too short"),
        (["un deux trois quatre", "un deux trois cinq"], "keep 2, and one of them needs at least 3"),
    ],
)
def test_too_little_is_left(tmp_path: Path, texts: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build(tmp_path / "out", settings(write(tmp_path / "n.jsonl", texts)))


def test_a_small_source_is_no_obstacle_beside_a_larger_one_of_its_role(tmp_path: Path) -> None:
    small = write(tmp_path / "small.jsonl", [words(9)])
    rows, _ = build(tmp_path / "out", settings(small, write(tmp_path / "n.jsonl", [words(9) for _ in range(3)])))
    assert rows[0]["split"] == "train"
    assert sorted(r["split"] for r in rows[1:]) == ["test", "train", "validation"]


@pytest.mark.parametrize("n", [3, 4, 5, 10, 99, 1000])
@pytest.mark.parametrize(("validation", "test"), [(0.01, 0.01), (0.05, 0.1), (0.499, 0.499)])
def test_split_sizes_and_strata(n: int, validation: float, test: float) -> None:
    ranks = [rank(random.getrandbits(32), str(random.random())) for _ in range(n)]
    strata = random.choices("abc", [70, 25, 5], k=n)
    splits = assign(ranks, strata, validation, test)
    wanted = {"validation": max(1, int(validation * n + 1e-9)), "test": max(1, int(test * n + 1e-9))}
    assert {s: splits.count(s) for s in wanted} == wanted and "train" in splits
    for name in "abc":
        share = strata.count(name) / n
        got = sum(s == "validation" and t == name for s, t in zip(splits, strata, strict=True))
        assert abs(got - share * wanted["validation"]) <= 1
    assert assign(ranks[:2], strata[:2], validation, test) == ["train", "train"]


# -- duplicates


def test_exact_duplicates_differ_in_white_space_alone() -> None:
    index = Deduplicator(Deduplicate(method="exact"))
    found = [index.reason(t) for t in ("CRP 5 mg", " CRP\n5  mg ", "CRP 5 mG", "CRP 5 mg", "CRP 5,mg")]
    assert found == ["", "duplicate", "", "duplicate", ""]
    assert Deduplicator(Deduplicate(method="none")).reason("a") == ""


def jaccard(a: list[str], b: list[str], n: int) -> float:
    x, y = ({tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (a, b))
    return len(x & y) / len(x | y)


def test_near_duplicates_are_those_above_the_threshold() -> None:
    """Estimates of 128 hashes have a standard error below 0.045: pairs two tenths away must be decided right."""
    for _ in range(60):
        base = random.choices(WORDS, k=300)
        index = Deduplicator(Deduplicate(method="minhash", threshold=0.8, ngram=5))
        assert index.reason(" ".join(base)) == ""
        near, far = list(base), list(base)
        near[150] = "autre"
        for place in range(0, 300, 15):
            far[place] = f"autre{place}"
        assert jaccard(base, near, 5) > 0.95 and jaccard(base, far, 5) < 0.6
        assert index.reason(" ".join(near)) == "near-duplicate"
        assert index.reason(" ".join(far)) == ""
        assert index.reason(" ".join(base).upper()) == "near-duplicate"


def test_short_texts_fall_back_to_exact() -> None:
    index = Deduplicator(Deduplicate(method="minhash", ngram=5))
    assert [index.reason(t) for t in ("un deux trois", "un deux quatre", "un  deux trois")] == ["", "", "duplicate"]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_miss_few_pairs_at_the_threshold(threshold: float) -> None:
    bands = bands_for(threshold)
    assert HASHES % bands == 0
    assert 1 - (1 - threshold ** (HASHES // bands)) ** bands >= RECALL


# -- benchmark questions


def test_questions_in_documents_are_found() -> None:
    question = words(25)
    checker = Decontaminator({"qcm": [question], "autre": [words(30)]}, 13)
    part = question.split()[7:20]
    assert checker.matches(f"{words(40)} {' '.join(part)} {words(5)}") == ["qcm"]
    assert checker.matches(" , ".join(part).upper() + " !") == ["qcm"]
    assert checker.matches(f"{words(40)} {' '.join(part[:12])} {words(5)}") == []
    assert checker.matches(" ".join(reversed(part))) == []


def test_short_questions_count_whole_or_not_at_all() -> None:
    eight, seven = "Quel est le traitement de l'asthme aigu grave", "Quel est le traitement de la goutte"
    checker = Decontaminator({"t": [eight, seven]}, 13)
    assert checker.skipped == {"t": 1} and checker.questions == {"t": 2}
    assert checker.matches(f"Question : {eight.lower()} ?") == ["t"]
    assert checker.matches(seven) == [] and checker.matches(eight[:-6]) == []
    short = Decontaminator({"t": ["un deux trois"]}, 3)
    assert short.matches("zéro un deux trois") == ["t"]


def test_contaminated_documents_are_dropped_and_counted(tmp_path: Path) -> None:
    shared, alone = words(20), words(20)
    texts = [words(50) for _ in range(30)]
    texts[4] += " " + shared
    texts[9] += " " + alone + " " + words(3)
    notes = write(tmp_path / "n.jsonl", texts)
    corpus = settings(notes, decontaminate={"tasks": ["a", "b"]})
    rows, figures = build(tmp_path / "out", corpus, questions={"a": [shared, alone], "b": [shared, "trop court"]})
    assert [r["text"] for r in rows] == [t for i, t in enumerate(texts) if i not in (4, 9)]
    assert figures["contamination"] == {
        "documents": {str(notes): {"a": 2, "b": 1}},
        "ngram": 13,
        "questions": {"a": 2, "b": 2},
        "questions_too_short": {"a": 0, "b": 1},
    }
    assert figures["dropped"][str(notes)] == {"benchmark question": 2}
    with pytest.raises(RequestError, match="no question"):
        build(tmp_path / "none", corpus, questions={"a": [], "b": []})


def test_the_demo_corpus(tmp_path: Path) -> None:
    from frbio_lite.recipe import load_recipe

    recipe = load_recipe("demo", ["corpus.sources.0.path=demo:medical:2", "corpus.sources.1.path=demo:general:2"])
    rows, figures = build(tmp_path / "out", recipe.corpus, questions={"demo-medical": ["a b c d e f g h i j k l m n"]})
    assert {(r["role"], r["split"]) for r in rows} == {
        (r, s) for r in ("domain", "replay") for s in ("train", "validation", "test")
    }
    assert sum(figures["rules"]["demo:medical:2"].values()) == 0  # the world's texts need no cleaning
