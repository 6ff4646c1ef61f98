"""Generated answers: cut out of what a model wrote, and compared with the reference."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any, Literal

Language = Literal["fr", "en"]

WORD = re.compile(r"\w+")
SPACE = "[ \u00a0\u202f']"  # between groups of three digits in French: also the no-break and the narrow one
NUMBERS: dict[Language, re.Pattern[str]] = {
    "fr": re.compile(rf"[-+\u2212]?(?:\d{{1,3}}(?:{SPACE}\d{{3}})+|\d+)(?:[.,]\d+)?"),
    "en": re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"),
}


def extracted(text: str, expression: str | None) -> str:
    """The last match of the expression, its first group that took part if it has groups; no match is an empty answer.

    Without an expression, the text itself.
    """
    if expression is None:
        return text.strip()
    matches = list(re.finditer(expression, text))
    if not matches:
        return ""
    groups = [group for group in matches[-1].groups() if group is not None]
    return (groups[0] if groups else matches[-1][0]).strip()


def number(text: str, language: Language) -> float | None:
    """The number that a whole text is, as the language writes it; None for anything else.

    French: a decimal comma (or point) and spaces between groups of three digits, 70 000,5. English: 70,000.5.
    """
    found = text.strip().rstrip(".,")
    if not NUMBERS[language].fullmatch(found):
        return None
    plain = re.sub(SPACE if language == "fr" else ",", "", found.replace("\u2212", "-"))
    return float(plain.replace(",", "."))


def normalised(text: str) -> str:
    """NFC, case folded, white space as single spaces, without punctuation at the ends."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split()).strip(" .,;:!?\"'«»()")


def words(text: str) -> list[str]:
    """The words of a text, NFC and case folded: letters with their accents, and digits."""
    return WORD.findall(normalised(text))


def exact_match(answer: str, reference: str, language: Language) -> bool:
    """The same number, where both are one; else the same text after `normalised`."""
    ours, theirs = number(answer, language), number(reference, language)
    if ours is not None and theirs is not None:
        return ours == theirs
    return normalised(answer) == normalised(reference)


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words in common, counted as often as both have them.

    Rajpurkar et al. 2016, "SQuAD". Two answers without a word are equal.
    """
    ours, theirs = Counter(words(answer)), Counter(words(reference))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004), by rouge-score with `words` as its tokenizer.

    Its own tokenizer cuts words at accents.
    """
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


@lru_cache(maxsize=1)
def _rouge() -> Any:
    from rouge_score import rouge_scorer  # type: ignore[import-untyped]  # a second to import

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return words(text)

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=Words())
