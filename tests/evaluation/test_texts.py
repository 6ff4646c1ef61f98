"""Generated answers: what is cut out, which numbers are equal, and how words are counted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frbio_lite.evaluation.texts import exact_match, extracted, f1, normalised, number, rouge_l, words


@pytest.mark.parametrize(
    "text, expression, expected",
    [
        (" un texte \n", None, "un texte"),
        ("2 puis 3 puis 45 fin", r"\d+", "45"),
        ("La réponse est (B), pas (C) ; la réponse est (D).", r"réponse est \(([A-E])\)", "D"),
        ("x=1", r"(a)|x=(\d)", "1"),
        ("rien", r"\d+", ""),
        ("", r"\d*", ""),
    ],
)
def test_extracted(text: str, expression: str | None, expected: str) -> None:
    assert extracted(text, expression) == expected


@pytest.mark.parametrize(
    "text, language, value",
    [
        ("70 000", "fr", 70000.0),
        ("70\u202f000,5", "fr", 70000.5),
        ("1\u00a0234\u00a0567", "fr", 1234567.0),
        ("3,5", "fr", 3.5),
        ("3.5", "fr", 3.5),
        ("-12", "fr", -12.0),
        ("\u221212", "fr", -12.0),
        ("18.", "fr", 18.0),
        ("1,000", "fr", 1.0),
        ("1,000", "en", 1000.0),
        ("70,000.25", "en", 70000.25),
        ("3,5", "en", None),
        ("70 00", "fr", None),
        ("70 000 g", "fr", None),
        ("1,5,2", "fr", None),
        ("", "fr", None),
        ("A", "en", None),
        ("²", "fr", None),
    ],
)
def test_number(text: str, language: Any, value: float | None) -> None:
    assert number(text, language) == value


@given(st.integers(-(10**12), 10**12))
def test_numbers_written_in_french_and_english_are_read(value: int) -> None:
    english = f"{value:,}"
    assert number(english, "en") == value == number(english.replace(",", "\u202f"), "fr") == number(str(value), "fr")


@pytest.mark.parametrize(
    "answer, reference, same",
    [
        ("L'INSULINE.", "l'insuline", True),
        ("E\u0301te\u0301", "Été", True),
        (" le   foie ", "le foie", True),
        ("« le foie »", "le foie", True),
        ("le foie", "le rein", False),
        ("70 000", "70000", True),
        ("7", "70", False),
        ("", "A", False),
        ("A", "A", True),
        ("straße", "STRASSE", True),
    ],
)
def test_exact_match(answer: str, reference: str, same: bool) -> None:
    assert exact_match(answer, reference, "fr") is same
    assert exact_match(reference, answer, "fr") is same


def test_f1_by_hand() -> None:
    assert f1("le foie et le rein", "le rein") == pytest.approx(2 * 1.0 * 0.4 / 1.4)
    assert f1("le le le", "le") == pytest.approx(0.5)
    assert f1("rate", "foie") == 0.0 and f1("", "foie") == 0.0 and f1("", "...") == 1.0
    assert f1("Hépatite", "hepatite") == 0.0  # an accent is part of the word


def test_rouge_l_by_hand() -> None:
    # longest common subsequence: le rein filtre sang, of 6 and 5 words
    answer, reference = "le rein droit filtre le sang", "le rein filtre du sang"
    assert rouge_l(answer, reference) == pytest.approx(2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5))
    assert rouge_l("hépatite", "hématome") == 0.0  # not a common h, as words cut at accents would have
    assert rouge_l("Été", "ÉTÉ") == 1.0 and rouge_l("", "foie") == 0.0


@given(st.text(max_size=30), st.text(max_size=30))
def test_scores_are_bounded_and_symmetric(a: str, b: str) -> None:
    assert 0.0 <= f1(a, b) <= 1.0 and f1(a, b) == pytest.approx(f1(b, a)) and f1(a, a) == 1.0
    assert 0.0 <= rouge_l(a, b) <= 1.0 and exact_match(a, a, "fr")
    assert normalised(normalised(a)) == normalised(a) and words(a) == words(normalised(a))
