"""Compare models that were scored on the same items, and say what was gained, lost and kept.

    comparison = compare([Path("run/eval/base"), Path("run/eval/merged")], margin=1.0)
    write(comparison, Path("run/eval"))

The first result is the reference. Differences are positive when better: points of the mean score, or, for bits per byte,
percent of the reference's bits that are saved; the margin is in the same unit. Each task has a paired difference with
its interval, test and verdict, each group the macro average over its tasks and a verdict. See `statistics` for how.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from frbio_lite.artifacts import MANIFEST, read_manifest, tree_digest, write_json, write_text
from frbio_lite.errors import RequestError
from frbio_lite.evaluation import statistics
from frbio_lite.evaluation.results import Result, TaskResult, load, require_same
from frbio_lite.evaluation.statistics import LEVEL, Change, Estimate, Retention, Units
from frbio_lite.progress import say

JSON, CSV = "compare.json", "compare.csv"
MARGIN = 1.0
RESAMPLES = 10_000
SEED = 17
Role = Literal["gain", "retain", "control"]
Unit = Literal["points", "percent of bits"]
ROLES: dict[str, Role] = {"domain": "gain", "general": "retain"}  # any other group is a control
ALL = "all"  # the ranks over the tasks of all groups but the controls
Bounds = tuple[float, float]


@dataclass(frozen=True)
class TaskDifference:
    """A task of a model beside the reference. Values are in the metric's unit; differences in `unit` (see above)."""

    task: str
    group: str
    metric: str
    model: str
    unit: Unit
    items: int
    units: int  # what was resampled: items, or clusters of them
    reference_value: float
    value: float
    difference: float
    low: float | None  # no interval with fewer than five units
    high: float | None
    test: Literal["McNemar", "sign-flip"]
    p: float
    adjusted_p: float  # Benjamini–Hochberg over all tasks and models
    verdict: Change  # gained or lost where the adjusted p is 0.05 or less
    detectable: float | None  # difference that the test would have found with a power of 80 %
    better: int  # items on which the model is better than the reference
    worse: int


@dataclass(frozen=True)
class GroupDifference:
    """The macro average over the tasks of a group, those with accuracies where it has any, and its verdict."""

    group: str
    role: Role
    model: str
    unit: Unit
    tasks: int
    difference: float
    low: float | None
    high: float | None
    verdict: Change | Retention


@dataclass(frozen=True)
class AverageRank:
    """A model's mean rank over the tasks of a group, or of `all` but the controls; 1 is the best."""

    group: str
    model: str
    tasks: int
    rank: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found, `verdict` in one sentence."""

    reference: str
    models: tuple[str, ...]  # without the reference
    results: dict[str, str]  # digests of what was compared, by model, the reference's first
    margin: float
    resamples: int
    seed: int
    tasks: tuple[TaskDifference, ...]
    groups: tuple[GroupDifference, ...]
    ranks: tuple[AverageRank, ...]
    verdict: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    directories: Sequence[Path], *, margin: float = MARGIN, resamples: int = RESAMPLES, seed: int = SEED
) -> Comparison:
    """Compare two or more EvalResult directories with the first. `margin`: what a retained group may lose.

    Raises RequestError for results that cannot be read, or that are not of the same items, prompts, shots and split.
    """
    if len(directories) < 2:
        raise RequestError("a comparison needs two or more results: the reference first, then what is compared with it")
    if not (math.isfinite(margin) and margin >= 0):
        raise RequestError(f"margin {margin}: write the points that may be lost, 0 or more, for example 1.0")
    results = _distinct([load(Path(directory)) for directory in directories])
    reference, *others = results
    for other in others:
        require_same(reference, other)
    names = list(reference.tasks)
    pairs: list[tuple[TaskDifference, Estimate | None]] = []
    for m, other in enumerate(others):
        for t, name in enumerate(names):
            rng = np.random.default_rng([seed, m, t])
            pairs.append(_difference(reference.tasks[name], other.tasks[name], other.model, resamples, rng))
    adjusted = statistics.adjusted([row.p for row, _ in pairs])
    pairs = [(_judged(row, p), estimate) for (row, estimate), p in zip(pairs, adjusted, strict=True)]
    groups = [group for other in others for group in _groups([p for p in pairs if p[0].model == other.model], margin)]
    return Comparison(
        reference=reference.model,
        models=tuple(other.model for other in others),
        results={result.model: _digest(result.directory) for result in results},
        margin=margin,
        resamples=resamples,
        seed=seed,
        tasks=tuple(row for row, _ in pairs),
        groups=tuple(groups),
        ranks=tuple(_ranks([reference, *others], resamples, seed)),
        verdict=_verdict(reference.model, groups, margin),
    )


def update(
    directories: Sequence[Path], place: Path, *, margin: float = MARGIN, resamples: int = RESAMPLES, seed: int = SEED
) -> None:
    """Write the comparison in `place`, unless the one there is of these very results and settings."""
    wanted = {"margin": margin, "resamples": resamples, "seed": seed}
    digests = [_digest(directory) for directory in directories]
    if (place / CSV).is_file() and _made_from(place / JSON) == (digests, wanted):
        return
    found = compare(directories, margin=margin, resamples=resamples, seed=seed)
    write(found, place)
    say(found.verdict)


def _made_from(path: Path) -> tuple[list[str], dict[str, Any]] | None:
    """The digests and settings of a comparison; None for a file that is not there, damaged, or of another version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.keys() != Comparison.__dataclass_fields__.keys():
            return None
        return list(found["results"].values()), {name: found[name] for name in ("margin", "resamples", "seed")}
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _digest(directory: Path) -> str:
    """As an artifact's manifest has it."""
    manifest = (directory / MANIFEST).is_file()
    return read_manifest(directory, "EvalResult").digest if manifest else tree_digest(directory)


def _distinct(results: list[Result]) -> list[Result]:
    """Results under names that differ: the directory is added where two models are called alike."""
    names = [result.model for result in results]
    labels = [n if names.count(n) == 1 else f"{n} ({r.directory})" for n, r in zip(names, results, strict=True)]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise RequestError(f"{twice} is given twice: a comparison needs results of different models")
    return [replace(r, model=label) for label, r in zip(labels, results, strict=True)]


def _difference(
    reference: TaskResult, other: TaskResult, model: str, resamples: int, rng: np.random.Generator
) -> tuple[TaskDifference, Estimate | None]:
    """A task's row, not yet adjusted, and its bootstrap; none with too few units."""
    if reference.in_bits:
        units = statistics.document_units(reference.scores, other.scores, reference.clusters)
        ahead = reference.scores - other.scores  # nats: fewer is better
    else:
        units = statistics.item_units(reference.scores, other.scores, reference.clusters)
        ahead = other.scores - reference.scores
    better, worse = int(np.count_nonzero(ahead > 0)), int(np.count_nonzero(ahead < 0))
    paired = reference.clusters is None and reference.binary and other.binary
    p = statistics.mcnemar(better, worse) if paired else statistics.sign_flip(units.gains, resamples, rng)
    estimate = statistics.bootstrap(units, resamples, rng) if len(units.gains) >= statistics.FEWEST else None
    bounds = _points(estimate)
    row = TaskDifference(
        task=reference.task,
        group=reference.group,
        metric=reference.metric,
        model=model,
        unit="percent of bits" if reference.in_bits else "points",
        items=len(ahead),
        units=len(units.gains),
        reference_value=reference.value,
        value=other.value,
        difference=100 * units.value,
        low=bounds[0] if bounds else None,
        high=bounds[1] if bounds else None,
        test="McNemar" if paired else "sign-flip",
        p=p,
        adjusted_p=p,
        verdict="no difference shown",
        detectable=_detectable(units, better + worse if paired else None),
        better=better,
        worse=worse,
    )
    return row, estimate


def _judged(row: TaskDifference, p: float) -> TaskDifference:
    """The row with its adjusted p and what that shows."""
    shown: Change = "no difference shown"
    if p <= LEVEL:
        shown = "gained" if row.difference > 0 else "lost"
    return replace(row, adjusted_p=p, verdict=shown)


def _detectable(units: Units, discordant: int | None) -> float | None:
    """In hundredths; by McNemar's test where the discordant pairs are given, else by the standard error."""
    count = len(units.gains)
    if discordant is not None:
        found = statistics.detectable_by_mcnemar(count, discordant)
    else:
        found = statistics.detectable(units.error, count - 1) if count >= statistics.FEWEST else None
    return None if found is None else 100 * found


def _points(estimate: Estimate | None) -> Bounds | None:
    if estimate is None:
        return None
    low, high = statistics.interval(estimate)
    return 100 * low, 100 * high


def _main(tasks: Sequence[Any]) -> list[Any]:
    """The tasks that stand for a group: those with accuracies where there are any, else bits per byte."""
    return [t for t in tasks if t.metric != "bits_per_byte"] or list(tasks)


def _by_role(groups: Sequence[str]) -> list[str]:
    """Each group once: those to gain, those to retain, then the controls."""
    order: list[Role] = ["gain", "retain", "control"]
    return sorted(dict.fromkeys(groups), key=lambda group: order.index(_role(group)))


def _role(group: str) -> Role:
    return ROLES.get(group, "control")


def _groups(pairs: Sequence[tuple[TaskDifference, Estimate | None]], margin: float) -> list[GroupDifference]:
    """The groups of one model, in the order of `_by_role`."""
    found = []
    for group in _by_role([row.group for row, _ in pairs]):
        rows = _main([row for row, _ in pairs if row.group == group])
        names = {row.task for row in rows}
        estimates = [estimate for row, estimate in pairs if row.task in names and estimate is not None]
        whole = len(estimates) == len(rows)
        bounds = _points(statistics.macro_average(estimates)) if whole else None
        role = _role(group)
        found.append(
            GroupDifference(
                group=group,
                role=role,
                model=rows[0].model,
                unit=rows[0].unit,
                tasks=len(rows),
                difference=sum(row.difference for row in rows) / len(rows),
                low=bounds[0] if bounds else None,
                high=bounds[1] if bounds else None,
                verdict=statistics.retention(bounds, margin) if role == "retain" else statistics.change(bounds),
            )
        )
    return found


def _ranks(results: Sequence[Result], resamples: int, seed: int) -> list[AverageRank]:
    tasks = list(results[0].tasks.values())
    by_group = {g: _main([t for t in tasks if t.group == g]) for g in _by_role([t.group for t in tasks])}
    wanted = [task for group, mine in by_group.items() if _role(group) != "control" for task in mine]
    found = []
    for number, (group, mine) in enumerate([*by_group.items(), (ALL, wanted)]):
        if not mine:
            continue
        columns = [_columns([result.tasks[task.task] for result in results]) for task in mine]
        ranks = statistics.average_ranks(columns, resamples, np.random.default_rng([seed, len(results), number]))
        enough = all(len(weights) >= statistics.FEWEST for _, weights in columns)
        for result, (rank, low, high) in zip(results, ranks, strict=True):
            bounds = (low, high) if enough else (None, None)
            found.append(AverageRank(group, result.model, len(mine), rank, *bounds))
    return found


def _columns(same: Sequence[TaskResult]) -> tuple[statistics.FloatArray, statistics.FloatArray]:
    """A task's scores by unit and model, higher better, and the units' weights."""
    first = same[0]
    scores = np.stack([-task.scores if task.in_bits else task.scores for task in same], 1)
    if not first.in_bits:
        return statistics.cluster_sums(scores, first.clusters)
    sums, _ = statistics.cluster_sums(np.concatenate([scores, first.sizes[:, None]], 1), first.clusters)
    return sums[:, :-1], sums[:, -1]


def _verdict(reference: str, groups: Sequence[GroupDifference], margin: float) -> str:
    clauses = []
    for model in dict.fromkeys(group.model for group in groups):
        mine = [group for group in groups if group.model == model]
        parts = [_part(group, margin) for group in mine if group.role != "control"]
        parts += [f"{g.verdict} on the control {_figures(g)}" for g in mine if g.role == "control" and _moved(g)]
        clauses.append(f"{model} {' and '.join(parts) or 'was scored on controls only, which do not differ'}")
    return f"Compared with {reference}, {'; '.join(clauses)}."


def _moved(group: GroupDifference) -> bool:
    return group.verdict != "no difference shown"


def _part(group: GroupDifference, margin: float) -> str:
    within = f"the margin of {_amount(margin, group.unit)}"
    sure = "" if group.high is not None and group.high < -margin else "possibly "
    phrases: dict[Change | Retention, str] = {
        "gained": f"gained on {_figures(group)}",
        "lost": f"lost on {_figures(group)}",
        "no difference shown": f"shows no difference on {_figures(group)}",
        "non-inferior": f"is non-inferior on {_figures(group)} within {within}",
        "degraded": f"is degraded on {_figures(group)}, {sure}by more than {within}",
        "inconclusive": f"is inconclusive on {_figures(group)}: a loss of more than {within} is not excluded",
    }
    return phrases[group.verdict]


def _amount(value: float, unit: Unit) -> str:
    if unit == "percent of bits":
        return f"{value:g} % of bits"
    return f"{value:g} point{'' if value == 1 else 's'}"


def _figures(group: GroupDifference) -> str:
    tasks = f"{group.tasks} task{'' if group.tasks == 1 else 's'}"
    bounds = _span(group.low, group.high) or "no interval"
    unit = "points" if group.unit == "points" else "% of bits saved"
    return f"{group.group} ({group.difference:+.1f} {unit}, {bounds}, {tasks})"


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:+.1f} to {high:+.1f}"


def _with_span(row: TaskDifference | GroupDifference) -> str:
    sign = "" if row.unit == "points" else "%"
    return f"{row.difference:+.1f}{sign}" + (f" ({span})" if (span := _span(row.low, row.high)) else "")


def task_table(comparison: Comparison) -> list[list[str]]:
    """Header and rows for a terminal: task by task; `p` is adjusted, `MDE` the minimum detectable effect.

    Differences are points but for those with a percent sign, which are percent of bits saved.
    """
    named = len(comparison.models) > 1
    rows = [["task", *(["model"] if named else []), "before", "after", "points (95 %)", "p", "MDE"]]
    for t in comparison.tasks:
        figures = [_value(t.metric, t.reference_value), _value(t.metric, t.value)]
        found = "" if t.detectable is None else f"{t.detectable:.1f}"
        model = [t.model] if named else []
        rows.append([t.task, *model, *figures, _with_span(t), _p(t.adjusted_p), found])
    return rows


def group_table(comparison: Comparison) -> list[list[str]]:
    """Header and rows for a terminal: group by group, with the verdicts and the average ranks."""
    named = len(comparison.models) > 1
    ranks = {(r.group, r.model): _rank(r) for r in comparison.ranks}
    rows = [["group", *(["model"] if named else []), "tasks", "points (95 %)", "average rank", "verdict"]]
    for g in comparison.groups:
        figures = [str(g.tasks), _with_span(g), ranks[g.group, g.model]]
        rows.append([g.group, *([g.model] if named else []), *figures, g.verdict])
    return rows


def _rank(rank: AverageRank) -> str:
    return f"{rank.rank:.1f}" + ("" if rank.low is None else f" ({rank.low:.1f} to {rank.high:.1f})")


def _value(metric: str, value: float) -> str:
    return f"{value:.3f}" if metric == "bits_per_byte" else f"{100 * value:.1f}"


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def write(comparison: Comparison, directory: Path) -> None:
    """Write `compare.json` and `compare.csv`, the latter with a line for each task, group and rank of each model."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        {"of": kind, **asdict(row)}
        for kind, rows in (("task", comparison.tasks), ("group", comparison.groups), ("rank", comparison.ranks))
        for row in rows
    ]
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    write_text(directory / CSV, text.getvalue())
    write_json(directory / JSON, comparison.to_json())  # last: it says what both were made from
