"""Many merge ratios scored in one live model, none written; one is chosen on validation items by the recipe's rule.

Each ratio is computed anew from the base and the adapted tensors on disk and rounded as `merge_models` would write it,
so the model that is scored is, bit for bit, the one that the chosen ratio writes. Stepping from ratio to ratio would
add up rounding.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import torch

from frbio_lite import evaluate, model, recipe
from frbio_lite.artifacts import write_json, write_text
from frbio_lite.device import pick_device, pick_dtype
from frbio_lite.errors import RequestError
from frbio_lite.evaluate import Row, Task
from frbio_lite.merge import Pair, open_pair, output_dtype
from frbio_lite.progress import Progress

COLUMNS = ("method", "ratio", "task", "group", "split", "metric", "value", "low", "high")
MOST_RATIOS = 1001
Point = tuple[str, float]  # method, ratio


@dataclass(frozen=True)
class Candidate:
    """A ratio that was scored: `gains` are points over the base, by group; `eligible` if each group keeps its bound."""

    method: str
    ratio: float
    gains: dict[str, float]
    eligible: bool


def ablate(
    model_dir: Path,
    adapted: Path,
    settings: recipe.Merge,
    eval_settings: recipe.Eval,
    tasks: Sequence[Task],
    directory: Path,
    *,
    documents: Path | None = None,
    data: Path | None = None,
    offline: bool = False,
    seed: int,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Score each method and ratio of `settings` on validation items; write ablation.csv and choice.json to `directory`.

    `model_dir` is the base, `adapted` a model directory or a LoRA adapter; `dtype` and `device` are those of the
    evaluation (by default what this machine does best). Ratios 0 and 1 are the same weights for every method: scored
    once, listed under each. Results go to METHOD-RATIO/; a ratio that has its results there is not scored again.
    Returns `seconds`, `ratios` (models scored, those of earlier calls included) and `items` (scored in this call).
    Raises RequestError when the rule names a group that no task measures, or the two models do not belong together.
    """
    started = time.monotonic()
    _check_groups(settings.choose, tasks)
    pair = open_pair(model_dir, adapted)
    device = device or pick_device()
    prepared = evaluate.prepare(
        tasks,
        model.load_tokenizer(model_dir),
        "validation",
        eval_settings,
        documents=documents,
        data=data,
        offline=offline,
    )
    scorer = _Scorer(
        pair, prepared, settings, eval_settings, directory, seed, dtype or pick_dtype("auto", device), device
    )
    points: list[Point] = [(method, ratio) for method in dict.fromkeys(settings.methods) for ratio in settings.ratios]
    scored = {point: scorer.rows(_place(point, settings)) for point in points}
    base_rows = scored[points[0][0], 0.0]
    candidates = [_candidate(point, evaluate.gains(rows, base_rows), settings.choose) for point, rows in scored.items()]
    _write_table(directory / "ablation.csv", scored)
    chosen = choose(candidates, settings.choose)
    write_json(
        directory / "choice.json",
        {
            "method": chosen.method,
            "ratio": chosen.ratio,
            "rule": settings.choose.model_dump(mode="json"),
            "why": explain(chosen, candidates, settings.choose),
            "candidates": [asdict(c) for c in candidates],
        },
    )
    return {"seconds": round(time.monotonic() - started, 3), "ratios": len(scorer.known), "items": scorer.items}


class _Scorer:
    """One live model that takes the weights of any ratio; it is loaded when the first ratio has to be scored."""

    def __init__(
        self,
        pair: Pair,
        prepared: evaluate.Prepared,
        settings: recipe.Merge,
        eval_settings: recipe.Eval,
        directory: Path,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.pair, self.prepared, self.eval_settings = pair, prepared, eval_settings
        self.directory, self.seed, self.dtype, self.device = directory, seed, dtype, device
        self.output_dtype = output_dtype(settings.dtype)
        self.live: model.Model | None = None
        self.known: dict[Point, list[Row]] = {}
        self.items = 0

    def rows(self, point: Point) -> list[Row]:
        """The results of a method and ratio: from this call, from an earlier one, or scored now."""
        if point not in self.known:
            method, ratio = point
            place = self.directory / f"{method}-{ratio}"
            self.known[point] = _finished(place / "results.json", self.prepared) or self._score(method, ratio, place)
        return self.known[point]

    def _score(self, method: str, ratio: float, place: Path) -> list[Row]:
        if self.live is None:
            self.live = model.load_model(self.pair.base_directory, dtype=self.dtype, device=self.device)
        write_weights(self.live, self.pair, method, ratio, self.output_dtype)
        self.items += len(self.prepared.items)
        return evaluate.evaluate_prepared(
            self.live, self.prepared, self.eval_settings, place, model_name=f"{method} {ratio:g}", seed=self.seed
        )


def write_weights(live: model.Model, pair: Pair, method: str, ratio: float, dtype: torch.dtype | None) -> None:
    """Give each parameter of a live model the value it has when merged at `ratio`, written in `dtype` and loaded back.

    A tied head is the embedding's parameter and follows it. Raises RequestError when a parameter has no tensor.
    """
    parameters = dict(live.named_parameters())
    if missing := sorted(parameters.keys() - set(pair.names)):
        raise RequestError(
            f"{pair.base_directory} stores its tensors under other names than the model has in memory ({missing[0]}): "
            "merge one ratio with `frbio merge` and evaluate it"
        )
    with torch.no_grad(), Progress(f"merge {method} {ratio:g}", len(parameters), "tensor") as bar:
        for name, parameter in parameters.items():
            parameter.copy_(pair.merged(name, method, ratio, dtype))
            bar.advance()


def _place(point: Point, settings: recipe.Merge) -> Point:
    """The method and ratio under which a point is scored: at both ends the first method stands for all."""
    method, ratio = point
    return (settings.methods[0], ratio) if ratio in (0.0, 1.0) else (method, ratio)


def _finished(path: Path, prepared: evaluate.Prepared) -> list[Row] | None:
    """The rows of an earlier call, when they are there and cover these tasks."""
    try:
        rows = [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return rows if [row.task for row in rows] == [task.name for task in prepared.tasks] else None


def _check_groups(rule: recipe.Choose, tasks: Sequence[Task]) -> None:
    measured = {task.group for task in tasks}
    for group in (rule.maximise, *rule.retain):
        if group not in measured:
            raise RequestError(f"merge.choose: no task measures the group {group}: add one or change the rule")


def _candidate(point: Point, gains: Mapping[str, float], rule: recipe.Choose) -> Candidate:
    eligible = all(gains[group] >= bound for group, bound in rule.retain.items())
    return Candidate(point[0], point[1], dict(gains), eligible)


def choose(candidates: Sequence[Candidate], rule: recipe.Choose) -> Candidate:
    """The eligible candidate with the highest gain in `rule.maximise`; of equals the smaller ratio, the earlier method.

    The base, ratio 0.0, must be among the candidates: it is the choice when no other qualifies.
    """
    base = next(c for c in candidates if c.ratio == 0.0)
    eligible = (c for c in candidates if c.eligible)
    return min(eligible, key=lambda c: (-c.gains[rule.maximise], c.ratio), default=base)


def explain(chosen: Candidate, candidates: Sequence[Candidate], rule: recipe.Choose) -> str:
    """One English sentence: what the choice gains and keeps, or why the base itself is the choice."""
    bounds = " and ".join(f"{group} at {bound:+.1f} points or more" for group, bound in rule.retain.items())
    others = [c for c in candidates if c.ratio > 0.0]
    eligible = sum(c.eligible for c in others)
    if chosen.ratio > 0.0:
        kept = ", ".join(f"{group} {chosen.gains[group]:+.1f}" for group in rule.retain if group != rule.maximise)
        among = f"the {eligible} of {len(others)} merges that keep {bounds}" if bounds else f"{len(others)} merges"
        gain = f"{chosen.gains[rule.maximise]:+.1f} points" + (f" ({kept})" if kept else "")
        return f"{chosen.method} at {chosen.ratio:g} has the highest {rule.maximise} gain, {gain}, among {among}."
    best = max(others, key=lambda c: (c.gains[rule.maximise], -c.ratio), default=None)
    if best is None:
        return "Only the base itself was scored."
    figures = ", ".join(f"{group} {gain:+.1f}" for group, gain in best.gains.items())
    tried = f"the best of {len(others)} for {rule.maximise}, {best.method} at {best.ratio:g}, has {figures}"
    if eligible:
        return (
            f"No merge that is allowed gains {rule.maximise} points over the base, so the base itself is kept; {tried}."
        )
    return f"No merge keeps {bounds}, so the base itself is kept; {tried}."


def _write_table(path: Path, scored: Mapping[Point, Sequence[Row]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for (method, ratio), rows in scored.items():
        for row in rows:
            table.writerow([method, ratio, row.task, row.group, row.split, row.metric, row.value, row.low, row.high])
    write_text(path, text.getvalue())


def parse_ratios(text: str) -> list[float]:
    """`0:1:0.1` (start, end, step; the end is included when a step falls on it) or `0,0.25,1`, as ascending ratios.

    Steps are decimal, so 0.3 is the float 0.3. Raises RequestError for anything that is not ratios between 0 and 1.
    """
    parts = text.split(":")
    if len(parts) == 1:
        values = [_decimal(part, text) for part in text.split(",")]
    elif len(parts) == 3:
        start, end, step = (_decimal(part, text) for part in parts)
        if step <= 0 or end < start or (end - start) / step >= MOST_RATIOS:
            raise RequestError(
                f"ratios {text}: START:END:STEP goes upward in steps above 0, with {MOST_RATIOS} ratios at most: "
                "write for example 0:1:0.1"
            )
        values = [start + step * i for i in range(int((end - start) / step) + 1)]
    else:
        raise RequestError(f"ratios {text}: write START:END:STEP, such as 0:1:0.1, or a list, such as 0,0.25,1")
    for value in values:
        if not 0 <= value <= 1:
            raise RequestError(f"ratios {text}: {value} is not between 0 (the base) and 1 (the adapted model)")
    return sorted({float(value) for value in values})


def _decimal(part: str, text: str) -> Decimal:
    try:
        value = Decimal(part.strip())
    except InvalidOperation as error:
        raise RequestError(f"ratios {text}: '{part}' is not a number") from error
    if not value.is_finite():
        raise RequestError(f"ratios {text}: '{part}' is not between 0 (the base) and 1 (the adapted model)")
    return value


def parse_retain(text: str) -> dict[str, float]:
    """`general>=-1.0,domain>=0` as {group: points}; an empty text is no bound. Raises RequestError on anything else."""
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        group, sign, bound = (p.strip() for p in part.partition(">="))
        try:
            points = Decimal(bound)
        except InvalidOperation as error:
            raise RequestError(f"retain '{part}': write GROUP>=POINTS, such as general>=-1.0") from error
        if not sign or not group or not points.is_finite() or group in found:
            raise RequestError(f"retain '{part}': write each GROUP>=POINTS once, such as general>=-1.0")
        found[group] = float(points)
    return found
