"""What the corpus stage counts, by source: documents, words and bytes after each step, changes by rule, and drops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

UNITS = ("documents", "words", "bytes")
Size = tuple[int, int, int]


def size_of(text: str) -> Size:
    """(1, words, bytes): words are separated by white space, bytes are those of UTF-8."""
    return 1, len(text.split()), len(text.encode("utf-8", "surrogatepass"))


class Funnel:
    """Counters by step and source; `figures` gives them as JSON values.

    The steps include the three splits, which divide what the last step left.
    """

    def __init__(self, sources: Sequence[str], steps: Sequence[str]) -> None:
        self.sources, self.steps = list(sources), list(steps)
        self.counts = {step: {name: dict.fromkeys(UNITS, 0) for name in sources} for step in steps}
        self.changed: dict[str, Counter[str]] = {name: Counter() for name in sources}
        self.dropped: dict[str, Counter[str]] = {name: Counter() for name in sources}
        self.tasks: dict[str, Counter[str]] = {name: Counter() for name in sources}

    def count(self, step: str, source: str, size: Size) -> None:
        """One document of this size at a step."""
        counts = self.counts[step][source]
        for unit, n in zip(UNITS, size, strict=True):
            counts[unit] += n

    def cleaned(self, source: str, rules: Sequence[str]) -> None:
        self.changed[source].update(rules)

    def drop(self, source: str, reason: str) -> Literal[False]:
        self.dropped[source][reason] += 1
        return False

    def contaminated(self, source: str, tasks: Sequence[str]) -> Literal[False]:
        """One document dropped because of one or more tasks: one drop, and one count for each task."""
        self.tasks[source].update(tasks)
        return self.drop(source, "benchmark question")

    def drops(self, source: str) -> str:
        """`12 too short, 3 duplicate`: why documents of a source were dropped."""
        return ", ".join(f"{n} {reason}" for reason, n in sorted(self.dropped[source].items())) or "none was read"

    def figures(self) -> dict[str, Any]:
        """`steps` in order, in total and `by_source`; `rules`, `dropped` and `contamination`: documents by source."""
        steps = [
            {
                "step": step,
                **{unit: sum(counts[unit] for counts in by_source.values()) for unit in UNITS},
                "by_source": by_source,
            }
            for step, by_source in self.counts.items()
        ]
        return {
            "steps": steps,
            "rules": {name: dict(sorted(self.changed[name].items())) for name in self.sources},
            "dropped": {name: dict(sorted(self.dropped[name].items())) for name in self.sources},
            "contamination": {"documents": {name: dict(sorted(self.tasks[name].items())) for name in self.sources}},
        }
