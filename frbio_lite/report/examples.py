"""Questions that one of base and merged model answered right and the other wrong: how many, and some of them to read.

Which ones are shown is drawn by the evaluation's seed from all that changed, alike in both directions.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import escape

from frbio_lite.report import format as fmt
from frbio_lite.report.language import N_, _, integer, ngettext, number, percent
from frbio_lite.report.load import Answer, Asked, Run

DIRECTIONS = {"lost": N_("right → wrong"), "gained": N_("wrong → right")}  # from base to merged
MOST = 24  # examples of a task and direction
BUDGET = 1_200_000  # bytes of all examples of a page, about: under half of the largest page
MARKUP, MARKUP_OF_OPTION = 500, 260  # bytes around the texts of an example, and of each of its options
# Licenses that let an item be shown to others; any other one, an unknown one too, does not.
OPEN = re.compile(
    r"(cc0|cc-zero|cc-by(-nc)?(-sa)?|apache|mit|bsd|odc-by|odbl|pddl|etalab|licence-ouverte|public-domain)"
    r"(-v?[\d.]+(-clause|-igo)?)?"
)
JOINED = re.compile(r"\s+(?:\+|&|and)\s+|,", re.IGNORECASE)  # all of them hold
PER_UNIT = {
    "accuracy_norm": N_("Chosen by log-likelihood per character, so the largest percentage is not always the choice."),
    "accuracy_bytes": N_("Chosen by log-likelihood per byte, so the largest percentage is not always the choice."),
    "accuracy_tokens": N_("Chosen by log-likelihood per token, so the largest percentage is not always the choice."),
}
Key = tuple[str, str]  # a task and a direction
Drawn = dict[Key, list[dict[str, Any]]]


@dataclass(frozen=True)
class Pair:
    """An item as both models answered it."""

    base: Answer
    merged: Answer

    @property
    def direction(self) -> str:
        """A key of DIRECTIONS; empty where both are right or both wrong."""
        if self.base.correct == self.merged.correct:
            return ""
        return "lost" if self.base.correct else "gained"


def shareable(license: str) -> bool:
    """Whether a license lets its items be shown on a page that others read."""
    parts = [re.sub(r"[\s_-]+", "-", part.strip().casefold()) for part in JOINED.split(license)]
    return all(OPEN.fullmatch(part) for part in parts)


def part(run: Run, pages: int = 1) -> dict[str, Any] | None:
    """What the page says of the answers that changed, the run being one of `pages` that share it.

    None where base and merged were not both evaluated, or their items are not there.
    """
    pairs = _pairs(run)
    if not pairs:
        return None
    changed = {(t, way): [p for p in mine if p.direction == way] for t, mine in pairs.items() for way in DIRECTIONS}
    readable = [key for key, found in changed.items() if found and _readable(run, key[0])]
    drawn = _drawn(run, {key: changed[key] for key in readable}, BUDGET // pages)
    tasks = list(dict.fromkeys(task for task, _way in readable))
    return {
        "rows": [_row(run, task, mine, drawn) for task, mine in pairs.items()],
        "directions": [(way, _(name)) for way, name in DIRECTIONS.items()],
        "tasks": tasks,
        "groups": [_group(run, t, w, len(changed[t, w]), drawn.get((t, w), [])) for t in tasks for w in DIRECTIONS],
        "old": not run.questions and any(changed.values()),
        "most": integer(MOST),
        "seed": run.manifests["eval/merged"].seed,
        "left_out": sorted({r.task for r in run.results["merged"] if r.primary and "~" not in r.task} - pairs.keys()),
    }


def _pairs(run: Run) -> dict[str, list[Pair]]:
    """By task the items that are right or wrong, asked of both models in the same way; controls (NAME~WHAT) left out."""
    merged = {(line.task, line.id, line.prompt_hash): line for line in run.answers.get("merged", ())}
    found: dict[str, list[Pair]] = {}
    for line in run.answers.get("base", ()):
        other = merged.get((line.task, line.id, line.prompt_hash))
        if other and "~" not in line.task and line.correct is not None and other.correct is not None:
            found.setdefault(line.task, []).append(Pair(line, other))
    return found


def _readable(run: Run, task: str) -> bool:
    return task in run.questions and shareable(run.questions[task].license)


def _drawn(run: Run, groups: dict[Key, list[Pair]], budget: int) -> Drawn:
    """Of each group up to MOST examples in an order drawn by the seed, one of each in turn while the bytes last."""
    seed, left = run.manifests["eval/merged"].seed, budget
    waiting: dict[Key, Iterator[Pair]] = {}
    for (task, way), found in groups.items():
        ordered = sorted(found, key=lambda pair: pair.base.id)
        waiting[task, way] = iter(random.Random(f"{seed} {task} {way}").sample(ordered, min(MOST, len(ordered))))
    drawn: Drawn = {key: [] for key in groups}
    while waiting:
        for key, pairs in list(waiting.items()):
            pair = next(pairs, None)
            asked = run.questions[key[0]].items.get(pair.base.id) if pair else None
            example = _example(pair, asked) if pair and asked else None
            size = _bytes(example) if example else 0
            if example and size <= left:
                drawn[key].append(example)
                left -= size
            else:
                del waiting[key]
    return drawn


def _bytes(example: dict[str, Any]) -> int:
    """About what an example takes on the page."""
    texts = [example["text"], *(o["text"] for o in example["options"]), *(text for _who, text in example["told"])]
    written = sum(len(escape(text).encode(errors="replace")) for text in texts)
    return MARKUP + MARKUP_OF_OPTION * len(example["options"]) + written


def _row(run: Run, task: str, pairs: Sequence[Pair], drawn: Drawn) -> dict[str, Any]:
    """A line of the table of counts."""
    asked = run.questions.get(task)
    counts = {way: sum(pair.direction == way for pair in pairs) for way in DIRECTIONS}
    tested = next((row for row in run.tasks_of("merged") if row.task == task and row.test), None)
    closed = asked is not None and not shareable(asked.license)
    return {
        "task": task,
        "license": asked.license if asked else "",
        "note": _("only counted: this license does not let items be shown") if closed else "",
        "items": integer(len(pairs)),
        "counts": [integer(counts[way]) for way in DIRECTIONS],
        "test": _(tested.test) if tested else fmt.ABSENT,
        "p": _p(tested.adjusted_p) if tested else "",
        "shown": integer(sum(len(drawn.get((task, way), [])) for way in DIRECTIONS)),
    }


def _p(value: float) -> str:
    return f"p < {number(0.001, 3)}" if value < 0.001 else f"p = {number(value, 3)}"


def _group(run: Run, task: str, way: str, count: int, examples: list[dict[str, Any]]) -> dict[str, Any]:
    asked = run.questions[task]
    text = ngettext("{n} question, {shown} shown", "{n} questions, {shown} shown", count)
    return {
        "task": task,
        "way": way,
        "title": f"{task}: {_(DIRECTIONS[way])}",
        "count": text.format(n=integer(count), shown=integer(len(examples))),
        "source": asked.source,
        "license": asked.license,
        "language": asked.language,
        "note": _note(run, task),
        "examples": examples,
    }


def _note(run: Run, task: str) -> str:
    """What the percentages are where they are not simply those of the options against each other."""
    pair = next((a for a in run.answers["merged"] if a.task == task), None)
    asked = run.questions[task].items.get(pair.id) if pair else None
    options, scores = (len(asked.options), len(pair.log_likelihoods)) if pair and asked else (0, 0)
    if options and scores == 2 * options:
        return _("Each option is asked about alone: the percentage is that of yes against no.")
    if options and scores != options:
        return _("Sets of options were scored, each as a whole: single options have no percentage.")
    metric = next((row.metric for row in run.results["merged"] if row.task == task and row.primary), "")
    return _(PER_UNIT.get(metric, ""))


def _example(pair: Pair, asked: Asked) -> dict[str, Any]:
    answers = (pair.base, pair.merged)
    shares = [option_shares(answer.log_likelihoods, len(asked.options)) for answer in answers]
    options = [
        {
            "text": text,
            "right": n in _positions(pair.base.gold),
            "picks": [
                {"share": percent(share[n]) if share else "", "picked": n in _positions(answer.prediction)}
                for answer, share in zip(answers, shares, strict=True)
            ],
        }
        for n, text in enumerate(asked.options)
    ]
    told = [] if options else [(_("reference"), str(pair.base.gold))]
    if not options:
        told += _told(_("base"), pair.base) + _told(_("merged"), pair.merged)
    cut = pair.base.truncated or pair.merged.truncated
    return {"id": pair.base.id, "text": asked.text, "options": options, "told": told, "cut": cut}


def _told(who: str, answer: Answer) -> list[tuple[str, str]]:
    """A text that a model wrote, and what was read in it where that is not the whole."""
    read = str(answer.prediction)
    found = [(who, answer.answer)]
    return found if read == answer.answer.strip() else [*found, (_("{model}, read as").format(model=who), read)]


def _positions(answer: Any) -> list[int]:
    return answer if isinstance(answer, list) else [answer] if isinstance(answer, int) else []


def option_shares(scores: Sequence[float], options: int) -> list[float]:
    """Of log-likelihoods in nats, each option's share: softmax over one score per option; of a yes and a no per option
    that of yes; nothing for any other number of scores."""
    if options and len(scores) == 2 * options:
        return [1 / (1 + math.exp(min(no - yes, 700.0))) for yes, no in zip(scores[::2], scores[1::2], strict=True)]
    if not options or len(scores) != options:
        return []
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]
