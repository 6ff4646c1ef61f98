"""The corpus stage's look at single documents as datatrove pipeline steps, for what outgrows one machine.

    pip install datatrove[io]
    python -m frbio_lite.recipes.datatrove_corpus RECIPE INPUT_DIRECTORY OUTPUT_DIRECTORY [TASKS]

INPUT_DIRECTORY holds .jsonl(.gz) files of the recipe's first source, a document per line in `text` and `id`; each of TASKS
local processes takes its share of the files. On a cluster, give `steps(...)` to datatrove's SlurmPipelineExecutor instead,
and follow it with datatrove's MinHash steps: what is decided across documents (repeated lines, duplicates, splits) is not
done here. What is done is what `frbio corpus` does, by the same functions: cleaning, filters, language, personal data and
the search for benchmark questions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence

from datatrove.data import Document as Item
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from frbio_lite.corpus.batches import decide
from frbio_lite.corpus.clean import clean, rules_of
from frbio_lite.corpus.decontaminate import Decontaminator
from frbio_lite.corpus.sources import Document
from frbio_lite.corpus.words import hash_words
from frbio_lite.evaluation import benchmark_texts, load_tasks
from frbio_lite.recipe import Corpus, Source, load_recipe


class CleanAndDecide(PipelineStep):  # type: ignore[misc]
    """Cleans each document and leaves out those that the filters, the language or personal data rule out."""

    name = "frbio_lite: clean and decide"
    type = "filter"

    def __init__(self, settings: Corpus, source: Source) -> None:
        super().__init__()
        self.settings, self.source = settings, source

    def run(self, data: Iterator[Item], rank: int = 0, world_size: int = 1) -> Iterator[Item]:
        rules = rules_of(self.settings.clean)
        for item in data:
            text, changed = clean(item.text, rules)
            for rule, places in changed.items():
                self.stat_update(rule, value=places)
            document = Document(text, self.source.name, "", self.source.license or "", item.id)
            verdict = decide(document, self.settings, self.source, frozenset())
            self.stat_update(verdict.reason or "kept")
            if not verdict.reason:
                item.text = document.text
                yield item


class Decontaminate(PipelineStep):  # type: ignore[misc]
    """Leaves out each document that holds a question of a benchmark."""

    name = "frbio_lite: decontaminate"
    type = "filter"

    def __init__(self, texts: Mapping[str, Sequence[str]], ngram: int) -> None:
        super().__init__()
        self.texts, self.ngram = texts, ngram

    def run(self, data: Iterator[Item], rank: int = 0, world_size: int = 1) -> Iterator[Item]:
        benchmarks = Decontaminator(self.texts, self.ngram)
        for item in data:
            found = benchmarks.matches(hash_words([item.text]))
            for task in found.get(0, ()):
                self.stat_update(task)
            if not found:
                yield item


def steps(settings: Corpus, texts: Mapping[str, Sequence[str]]) -> list[PipelineStep]:
    """The steps for the first source of a recipe's corpus section; `texts` are the questions to look for, by task."""
    found: list[PipelineStep] = [CleanAndDecide(settings, settings.sources[0])]
    if settings.decontaminate:
        found.append(Decontaminate(texts, settings.decontaminate.ngram))
    return found


def write_corpus(settings: Corpus, texts: Mapping[str, Sequence[str]], inputs: str, outputs: str, tasks: int) -> None:
    """Run the steps over the .jsonl files of a directory; what is kept goes to OUTPUTS/documents, as .jsonl.gz."""
    LocalPipelineExecutor(
        [JsonlReader(inputs), *steps(settings, texts), JsonlWriter(f"{outputs}/documents")],
        tasks=tasks,
        logging_dir=f"{outputs}/logs",  # finished shares are remembered there and not done again
    ).run()


def main(recipe: str, inputs: str, outputs: str, tasks: str = "1") -> None:
    settings = load_recipe(recipe).corpus
    wanted = load_tasks(settings.decontaminate.tasks) if settings.decontaminate else []
    write_corpus(settings, benchmark_texts(wanted), inputs, outputs, int(tasks))


if __name__ == "__main__":
    main(*sys.argv[1:])
