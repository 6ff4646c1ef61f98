"""Benchmark questions in the corpus: a document that shares a run of n words with a question is dropped.

Word n-gram overlap as in Brown et al., "Language Models are Few-Shot Learners" (2020), appendix C: case folded,
punctuation ignored, n = 13 by default. A question of fewer than n words counts as a whole if it has at least 8;
shorter ones are too common to mean anything and are counted as skipped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from frbio_lite.errors import RequestError

SHORTEST = 8
WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    return WORD.findall(unicodedata.normalize("NFC", text).casefold())


class Decontaminator:
    """`matches(text)`: the tasks whose questions the text shares words with.

    Raises RequestError when there is no question at all: the recipe asks for a check that could not find anything.
    """

    def __init__(self, benchmark_texts: Mapping[str, Sequence[str]], ngram: int) -> None:
        if not any(benchmark_texts.values()):
            raise RequestError(
                "corpus.decontaminate: its tasks have no question to look for; name other tasks or remove the section"
            )
        self.ngram = ngram
        self.head = min(ngram, SHORTEST)
        self.questions = {task: len(texts) for task, texts in benchmark_texts.items()}
        self.skipped = dict.fromkeys(benchmark_texts, 0)
        # first `head` words → [(all the words, task)]: one look-up per place of a document, whatever the lengths
        self.index: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        seen: set[tuple[tuple[str, ...], str]] = set()
        for task, texts in benchmark_texts.items():
            for text in texts:
                self._add(task, words_of(text), seen)

    def _add(self, task: str, words: list[str], seen: set[tuple[tuple[str, ...], str]]) -> None:
        length = min(len(words), self.ngram)
        if length < self.head:
            self.skipped[task] += 1
            return
        for start in range(len(words) - length + 1):
            gram = tuple(words[start : start + length])
            if (gram, task) not in seen:
                seen.add((gram, task))
                self.index.setdefault(" ".join(gram[: self.head]), []).append((gram, task))

    def matches(self, text: str) -> list[str]:
        """Sorted names of the tasks that the text shares an n-gram, or a short question, with."""
        words = words_of(text)
        found: set[str] = set()
        for start in range(len(words) - self.head + 1):
            for gram, task in self.index.get(" ".join(words[start : start + self.head]), ()):
                if task not in found and tuple(words[start : start + len(gram)]) == gram:
                    found.add(task)
        return sorted(found)
