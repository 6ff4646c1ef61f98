"""What the corpus stage counts: documents, words and bytes after each step, changes by rule, drops by reason, all by source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

UNITS = ("documents", "words", "bytes")


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

    def count(self, step: str, source: str, text: str) -> None:
        """One document at a step; words are separated by white space, bytes are those of UTF-8."""
        counts = self.counts[step][source]
        counts["documents"] += 1
        counts["words"] += len(text.split())
        counts["bytes"] += len(text.encode("utf-8", "surrogatepass"))

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
        """`steps` (in order, by source and in total), `cleaning`, `dropped` and `contamination` (documents by source and task)."""
        steps = [
            {
                "step": step,
                "sources": by_source,
                "total": {unit: sum(counts[unit] for counts in by_source.values()) for unit in UNITS},
            }
            for step, by_source in self.counts.items()
        ]
        return {
            "steps": steps,
            "cleaning": {name: dict(sorted(self.changed[name].items())) for name in self.sources},
            "dropped": {name: dict(sorted(self.dropped[name].items())) for name in self.sources},
            "contamination": {"documents": {name: dict(sorted(self.tasks[name].items())) for name in self.sources}},
        }
