"""The corpus stage: sources → license gate → cleaning → deduplication → decontamination → splits.

    figures = build_corpus(recipe.corpus, recipe.seed, directory, benchmark_texts)

Texts stream through once and lie on disk, never all in memory; what is kept per document is its hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frbio_lite.artifacts import write_json
from frbio_lite.corpus.clean import clean, too_short
from frbio_lite.corpus.decontaminate import Decontaminator
from frbio_lite.corpus.deduplicate import Deduplicator
from frbio_lite.corpus.funnel import Funnel, size_of
from frbio_lite.corpus.licenses import LicenseGate
from frbio_lite.corpus.sources import Document, check_names, read_source, source_digests
from frbio_lite.corpus.split import SPLITS, TEST, VALIDATION, assign, rank
from frbio_lite.corpus.store import DocumentWriter, write_splits
from frbio_lite.errors import RequestError
from frbio_lite.progress import Progress
from frbio_lite.recipe import Corpus

__all__ = ["build_corpus", "source_digests"]


def build_corpus(
    settings: Corpus, seed: int, directory: Path, benchmark_texts: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Fill `directory` with `documents/part-*.parquet` and `funnel.json`, and return the funnel.

    Columns, all text but the last: text, source, document_type, license, id, split (train, validation, test),
    role (domain, replay), recipe_source (int32, the place of the source in the recipe). `benchmark_texts` maps a task
    to its questions. Raises RequestError for a source that cannot be read or may not be used, and when too few
    documents are left to hold some out.
    """
    check_names(settings.sources)
    gate = LicenseGate(settings)
    for source in settings.sources:  # what is wrong with the last source shows before the first is read
        gate.admits(next(read_source(source, seed)), source)
    stage = _Stage(settings, seed, gate, benchmark_texts)
    unsplit = directory / "unsplit.parquet"
    with DocumentWriter(unsplit) as writer, Progress("corpus", None, "documents") as bar:
        for index in range(len(settings.sources)):
            for document in stage.kept(index, bar):
                writer.add(document, settings.sources[index].role, index)
    write_splits(unsplit, stage.splits(), directory / "documents", stage.count_split)
    unsplit.unlink()
    figures = stage.figures()
    write_json(directory / "funnel.json", figures)
    return figures


class _Stage:
    """The steps and what they counted."""

    def __init__(
        self, settings: Corpus, seed: int, gate: LicenseGate, benchmark_texts: Mapping[str, Sequence[str]]
    ) -> None:
        self.settings, self.seed, self.gate = settings, seed, gate
        self.names = [source.name for source in settings.sources]
        self.deduplicator = Deduplicator(settings.deduplicate)
        self.decontaminator = (
            Decontaminator(benchmark_texts, settings.decontaminate.ngram) if settings.decontaminate else None
        )
        self.funnel = Funnel(self.names, ["read", "licensed", "cleaned", "deduplicated", "decontaminated", *SPLITS])
        self.ids: set[str] = set()
        self.ranks: list[list[bytes]] = [[] for _ in self.names]
        self.strata: list[list[str]] = [[] for _ in self.names]

    def kept(self, index: int, bar: Progress) -> Iterator[Document]:
        """The documents of one source that pass all steps, cleaned, with identifiers that no other document has."""
        for document in read_source(self.settings.sources[index], self.seed):
            bar.advance()
            if not self._passes(document, index):
                continue
            document.id = self._unique(document.id)
            self.ranks[index].append(rank(self.seed, document.text))
            self.strata[index].append(document.source)
            yield document

    def _passes(self, document: Document, index: int) -> bool:
        name, method, funnel = self.names[index], self.settings.clean, self.funnel
        size = size_of(document.text)
        funnel.count("read", name, size)
        if not self.gate.admits(document, self.settings.sources[index]):
            return funnel.drop(name, f"license {document.license}")
        funnel.count("licensed", name, size)
        document.text, changed = clean(document.text, method)
        funnel.cleaned(name, changed)
        if too_short(document.text, method):
            return funnel.drop(name, "too short")
        size = size_of(document.text)
        funnel.count("cleaned", name, size)
        if reason := self.deduplicator.reason(document.text):
            return funnel.drop(name, reason)
        funnel.count("deduplicated", name, size)
        if self.decontaminator and (tasks := self.decontaminator.matches(document.text)):
            return funnel.contaminated(name, tasks)
        funnel.count("decontaminated", name, size)
        return True

    def _unique(self, id: str) -> str:
        """`id`, or with ~2, ~3 … behind it when an earlier document has it already."""
        unique, n = id, 1
        while unique in self.ids:
            n += 1
            unique = f"{id}~{n}"
        self.ids.add(unique)
        return unique

    def splits(self) -> list[str]:
        """The split of each document, in order. Raises RequestError when a source or a held-out split is empty."""
        settings = self.settings
        found = [
            assign(ranks, strata, settings.validation_fraction, settings.test_fraction)
            for ranks, strata in zip(self.ranks, self.strata, strict=True)
        ]
        for name, splits in zip(self.names, found, strict=True):
            if not splits:
                raise RequestError(f"no document of the source {name} is left: {self.funnel.drops(name)}")
        roles: dict[str, list[str]] = {}
        for source, splits in zip(settings.sources, found, strict=True):
            roles.setdefault(source.role, []).extend(splits)
        for role, splits in roles.items():
            if VALIDATION not in splits or TEST not in splits:
                raise RequestError(
                    f"too few documents to hold some out: the sources of role {role} keep {len(splits)}, and one of "
                    "them needs at least 3 (training, validation, test); add documents or, for a .txt file, "
                    "see `document:`"
                )
        return [split for splits in found for split in splits]

    def count_split(self, split: str, index: int, text: str) -> None:
        self.funnel.count(split, self.names[index], size_of(text))

    def figures(self) -> dict[str, Any]:
        figures = self.funnel.figures()
        if self.decontaminator:
            figures["contamination"].update(
                ngram=self.decontaminator.ngram,
                questions=self.decontaminator.questions,
                questions_too_short=self.decontaminator.skipped,
            )
        return figures
