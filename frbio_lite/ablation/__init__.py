"""Many merge ratios scored in one live model, none written; one is chosen on validation items by the recipe's rule.

Each ratio is computed anew from the base and the adapted tensors on disk and rounded as `merge_models` would write it,
so the model that is scored is, bit for bit, the one that the chosen ratio writes. Stepping from ratio to ratio would
add up rounding.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from frbio_lite import evaluation, hub, model, recipe
from frbio_lite.ablation.live import LORA_SCALE, Live, Merges, check_scalable, rounding_of
from frbio_lite.ablation.plot import pareto_svg
from frbio_lite.ablation.rule import Candidate, Point, candidate, choose, explain, front, ranked
from frbio_lite.artifacts import write_json, write_text
from frbio_lite.device import pick_device, pick_dtype
from frbio_lite.errors import RequestError
from frbio_lite.evaluation import Prepared, Row, Task
from frbio_lite.merging import METHODS, AdapterBase
from frbio_lite.progress import say

COLUMNS = ("method", "ratio", "task", "group", "split", "metric", "value", "low", "high")
ADAPTER_BASES: tuple[AdapterBase, ...] = ("bf16", "nf4-dequant")
MEASURED_DOCUMENTS = 200  # held-out documents on which the two are compared
Rows = dict[Point, list[Row]]


@dataclass(frozen=True)
class Plan:
    """Which points are scored, and which of them are one and the same model.

    Ratio 0.0 is the base for every method and, without a profile, 1.0 the adapted model for those that end there: each
    is scored once, under the first method that shares it. lora_scale scores a live adapter instead of merged weights.
    Its 1.0 is a model of its own; so is its 0.0 where the live base is in 4 bits or the merges are written in another
    dtype than the base's. It is then a control beside the others, which no rule chooses. Gains are always measured over
    the 0.0 of the first method that shares the base; over lora_scale's own where it is the only method.
    """

    settings: recipe.Merge
    models: int  # adapted ones
    nf4: bool

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(self.settings.methods))

    @property
    def points(self) -> list[Point]:
        return [(method, ratio) for method in self.methods for ratio in self.settings.ratios]

    @property
    def base(self) -> Point:
        """The point that gains are measured over."""
        return next((m for m in self.methods if self._shares_base(m)), LORA_SCALE), 0.0

    @property
    def adapted(self) -> Point:
        """The adapted model itself, or else the first method's ratio 1.0."""
        return next((p for p in self.points if self.is_end(p) and p[1] == 1.0), (self.methods[0], 1.0))

    def place(self, point: Point) -> Point:
        """The point under which a point is scored."""
        method, ratio = point
        if ratio == 0.0 and self._shares_base(method):
            return self.base
        if ratio == 1.0 and self._shares_adapted(method):
            return next(m for m in self.methods if self._shares_adapted(m)), 1.0
        return point

    def is_end(self, point: Point) -> bool:
        """Whether this is the base or the adapted model, merged or live: what the merges are compared with."""
        method, ratio = point
        return ratio == 0.0 or (ratio == 1.0 and (self._shares_adapted(method) or method == LORA_SCALE))

    def is_control(self, point: Point) -> bool:
        """Whether this is the live base of lora_scale beside another one."""
        return point[1] == 0.0 and self.place(point) != self.base

    def _shares_base(self, method: str) -> bool:
        return method != LORA_SCALE or (not self.nf4 and self.settings.dtype == "auto")

    def _shares_adapted(self, method: str) -> bool:
        ends = METHODS[method].ends_adapted and not self.settings.profile and self.models == 1
        return ends and method != LORA_SCALE


def ablate(
    model_dir: Path,
    adapted: Sequence[Path],
    settings: recipe.Merge,
    eval_settings: recipe.Eval,
    tasks: Sequence[Task],
    directory: Path,
    *,
    nf4: bool = False,
    test: bool = False,
    documents: Path | None = None,
    data: Path | None = None,
    offline: bool = False,
    seed: int,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Score each method and ratio of `settings` on validation items and choose one; see `Plan` for what is scored once.

    `model_dir` is the base; `adapted` are model directories or LoRA adapters; with `nf4` the one adapter was trained on
    the base in 4 bits. `dtype` and `device` are those of the evaluation (by default what this machine does best).
    Writes to `directory`: ablation.csv, choice.json, pareto.svg, and the results of each point to METHOD-RATIO/; a point
    that has its results there is not scored again. With `test`, base, adapted model and choice are then scored on test
    items, in test/{base,adapted,chosen}/. Returns `seconds`, `ratios` (models scored, those of earlier calls included)
    and `items` (scored in this call). Raises RequestError, before anything is scored, when the rule names a group that
    no task measures, the models do not belong together, or a method does not fit them.
    """
    started = time.monotonic()
    check_rule(settings, tasks)
    check_adapted(settings, adapted, nf4, documents)
    device = device or pick_device()
    live = Live(model_dir, adapted, nf4, dtype or pick_dtype("auto", device), device)
    plan = Plan(settings, len(adapted), nf4)
    scorer = _Scorer(plan, live, eval_settings, directory, seed)
    if LORA_SCALE in plan.methods:
        check_scalable(scorer.merges_into("bf16").inputs)
    tokenizer = model.load_tokenizer(model_dir)

    def prepare(
        tasks: Sequence[Task], split: Literal["validation", "test"], limit: int | None = eval_settings.limit
    ) -> Prepared:
        limited = eval_settings.model_copy(update={"limit": limit, "controls": []})  # they would be asked at each ratio
        return evaluation.prepare(tasks, tokenizer, split, limited, documents=documents, data=data, offline=offline)

    validation = prepare(tasks, "validation")
    unseen = prepare(tasks, "test") if test else None
    if nf4 and settings.base == "auto":
        limit = min(eval_settings.limit or MEASURED_DOCUMENTS, MEASURED_DOCUMENTS)
        scorer.choose_base(prepare(evaluation.load_tasks(["heldout-domain"]), "validation", limit))
    rows, screened_out = (
        _screened(scorer, validation) if settings.screen else (scorer.score(plan.points, validation), [])
    )
    chosen = _write_choice(plan, rows, screened_out, scorer.adapter_base, directory)
    if unseen is not None:
        _score_test(scorer, unseen, chosen)
    live.drop()
    return {"seconds": round(time.monotonic() - started, 3), "ratios": len(scorer.scored), "items": scorer.items}


def check_rule(settings: recipe.Merge, tasks: Sequence[Task]) -> None:
    """Raise RequestError when no task measures a group that the rule names, or that the screen must rank by."""
    measured = {task.group for task in tasks}
    for group in (settings.choose.maximise, *settings.choose.retain):
        if group not in measured:
            raise RequestError(f"merge.choose: no task measures the group {group}: add one or change the rule")
    if settings.screen and settings.choose.maximise not in {t.group for t in tasks if t.kind == settings.screen}:
        raise RequestError(
            f"merge.screen: no {settings.screen} task measures the group {settings.choose.maximise}, by which the rule "
            f"ranks: add heldout-{settings.choose.maximise} or leave the screen out"
        )


def check_adapted(settings: recipe.Merge, adapted: Sequence[Path], nf4: bool, documents: Path | None) -> None:
    """Raise RequestError when the adapted side is not what the settings need."""
    if settings.base == "nf4-dequant" and not nf4:
        raise RequestError(
            "nf4-dequant is for an adapter that was trained on a 4-bit base: say so with --nf4, or use bf16"
        )
    if nf4 and not (len(adapted) == 1 and hub.is_adapter(adapted[0])):
        held = f"{adapted[0]} is a full model" if len(adapted) == 1 else f"{len(adapted)} adapted models were given"
        raise RequestError(f"--nf4 says that one adapter was trained on a 4-bit base, and {held}: leave it out")
    if nf4 and settings.base == "auto" and documents is None:
        raise RequestError(
            "which base the adapter is added to is measured on held-out domain text: give the run's corpus (--corpus DIR), "
            "or choose bf16 or nf4-dequant (--adapter-base)"
        )


class _Scorer:
    """Scores points on prepared items, those of one kind of live model after another, and remembers them.

    `adapter_base` is what choice.json says of the weights that the adapter is added to: empty where there is no question.
    """

    def __init__(self, plan: Plan, live: Live, eval_settings: recipe.Eval, directory: Path, seed: int) -> None:
        self.plan, self.live, self.settings, self.eval_settings = plan, live, plan.settings, eval_settings
        self.directory, self.seed = directory, seed
        self.rounding = rounding_of(self.settings, seed)
        given: AdapterBase = "bf16" if self.settings.base == "auto" else self.settings.base
        self.merges = self.merges_into(given)
        self.adapter_base: dict[str, Any] = {"chosen": given} if plan.nf4 or given != "bf16" else {}
        self.scored: set[Point] = set()
        self.items = 0

    def merges_into(self, adapter_base: AdapterBase, **changes: Any) -> Merges:
        settings = self.settings.model_copy(update=changes)
        return Merges(self.live.base, self.live.adapted, adapter_base, settings, self.seed)

    def score(self, points: Iterable[Point], prepared: Prepared) -> Rows:
        """The rows of each point, in the points' order."""
        places = {point: self.plan.place(point) for point in points}
        found: Rows = {}
        for place in sorted(set(places.values()), key=lambda p: (p[0] == LORA_SCALE, self.plan.points.index(p))):
            self.scored.add(place)
            found[place] = self.rows(place, prepared, self.directory / f"{place[0]}-{place[1]}")
        return {point: found[place] for point, place in places.items()}

    def rows(self, point: Point, prepared: Prepared, where: Path, merges: Merges | None = None) -> list[Row]:
        """The results of a point in `where`: from an earlier call, or scored now."""
        known = _results(where)
        wanted = [task.name for task in prepared.tasks]
        if all(task in known for task in wanted):
            return [known[task] for task in wanted]
        method, ratio = point
        merger = (merges or self.merges).by(method)
        label = f"{method} {ratio:g}"
        if method == LORA_SCALE:
            scored = self.live.scaled(merger, ratio)
        else:
            scored = self.live.merged(merger, ratio, self.rounding, label)
        self.items += sum(item.task.name not in known for item in prepared.items)
        rows = evaluation.evaluate_prepared(scored, prepared, self.eval_settings, where, label, self.seed)
        return [row for row in rows if row.primary]

    def choose_base(self, prepared: Prepared) -> None:
        """Merge into the weights, stored or as NF4 holds them, that give fewer bits per byte on held-out text.

        The live adapter on its 4-bit base is measured beside them: it is what the better one is hoped to equal.
        """
        place = self.directory / "adapter-base"
        whole = {base: self.merges_into(base, methods=["linear"], profile=[]) for base in ADAPTER_BASES}
        found = {"live": self.rows((LORA_SCALE, 1.0), prepared, place / "live", whole["bf16"])[0].value}
        for base, merges in whole.items():
            found[base] = self.rows(("linear", 1.0), prepared, place / base, merges)[0].value
        chosen = min(ADAPTER_BASES, key=lambda base: found[base])  # of equals the stored weights
        say(f"adapter base {chosen}: " + ", ".join(f"{n} {v:.4f}" for n, v in found.items()) + " bits per byte")
        self.adapter_base = {"chosen": chosen, **found}
        self.merges = self.merges_into(chosen)


def _results(where: Path) -> dict[str, Row]:
    """The rows that count of an earlier call, by task; none when there are none that can be read."""
    try:
        rows = [Row(**row) for row in json.loads((where / "results.json").read_text(encoding="utf-8"))["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {row.task: row for row in rows if row.primary}


def _screened(scorer: _Scorer, prepared: Prepared) -> tuple[Rows, list[Candidate]]:
    """All points on the cheap tasks, then the ends and the best of the others on all; those that were left out."""
    plan, settings = scorer.plan, scorer.settings
    kept = tuple(task for task in prepared.tasks if task.kind == settings.screen)
    cheap = replace(prepared, tasks=kept, items=tuple(item for item in prepared.items if item.task in kept))
    rows = scorer.score(plan.points, cheap)
    between = [p for p in plan.points if not plan.is_end(p)]
    gains = {p: evaluation.gains(rows[p], rows[plan.base]) for p in between}
    order = ranked([candidate(p, gains[p], settings.choose) for p in between], settings.choose)
    out = {(c.method, c.ratio) for c in order[settings.top :]}
    say(
        f"screen: {len(order) - len(out)} of {len(order)} merges go on to all tasks, beside the base and the adapted model"
    )
    rows |= scorer.score([p for p in plan.points if p not in out], prepared)
    return rows, order[settings.top :]


def _write_choice(
    plan: Plan, rows: Rows, screened_out: Sequence[Candidate], adapter_base: Mapping[str, Any], directory: Path
) -> Candidate:
    """Choose; write ablation.csv, choice.json and pareto.svg."""
    settings, left = plan.settings, {(c.method, c.ratio) for c in screened_out}
    candidates = []
    for point in [p for p in plan.points if p not in left]:
        found = candidate(point, evaluation.gains(rows[point], rows[plan.base]), settings.choose)
        candidates.append(replace(found, eligible=found.eligible and not plan.is_control(point)))
    choosable = [c for c in candidates if not plan.is_control((c.method, c.ratio))]
    chosen, best = choose(choosable, settings.choose), front(candidates)
    choice: dict[str, Any] = {
        "method": chosen.method,
        "ratio": chosen.ratio,
        "rule": settings.choose.model_dump(mode="json"),
        "why": explain(chosen, choosable, settings.choose),
        "candidates": [{**asdict(c), "front": c in best} for c in candidates],
    }
    if adapter_base:
        choice["adapter_base"] = dict(adapter_base)
    if plan.nf4 and chosen.method == LORA_SCALE and chosen.ratio > 0.0:
        into = "the stored weights" if adapter_base["chosen"] == "bf16" else "what NF4 holds of the weights"
        choice["why"] += f" It was scored unmerged on the 4-bit base; what is written is its merge into {into}."
    if settings.screen:
        choice["screened_out"] = [{"method": c.method, "ratio": c.ratio, "gains": c.gains} for c in screened_out]
    _write_table(directory / "ablation.csv", rows)
    write_text(directory / "pareto.svg", pareto_svg(candidates, best, chosen, settings.choose))
    write_json(directory / "choice.json", choice)
    return chosen


def _score_test(scorer: _Scorer, prepared: Prepared, chosen: Candidate) -> None:
    """Base, adapted model and choice on test items; one that stands for two is scored once."""
    plan = scorer.plan
    wanted = {"base": plan.base, "adapted": plan.adapted, "chosen": plan.place((chosen.method, chosen.ratio))}
    done: dict[Point, Path] = {}
    for name, point in sorted(wanted.items(), key=lambda pair: pair[1][0] == LORA_SCALE):
        where = scorer.directory / "test" / name
        if point in done:
            shutil.copytree(done[point], where, dirs_exist_ok=True)
        else:
            scorer.rows(point, prepared, where)
            done[point] = where


def _write_table(path: Path, scored: Mapping[Point, Sequence[Row]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for (method, ratio), rows in scored.items():
        for row in rows:
            table.writerow([method, ratio, row.task, row.group, row.split, row.metric, row.value, row.low, row.high])
    write_text(path, text.getvalue())
