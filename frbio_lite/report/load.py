"""What a run directory holds, read back and checked: manifests, results, the ablation, the training log, the funnel."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field, RootModel, ValidationError

from frbio_lite.artifacts import MANIFEST, Kind, Manifest, read_manifest
from frbio_lite.errors import RequestError
from frbio_lite.report.language import _

MODELS = ("base", "adapted", "merged")
PAIRED = ("base", "merged")  # whose answers are read item by item
STAGES: dict[str, Kind] = {
    "corpus": "Documents",
    "packed": "PackedTokens",
    "train": "TrainedWeights",
    "ablation": "Ablation",
    "merge": "MergedModel",
    **{f"eval/{model}": "EvalResult" for model in MODELS},
}
RECIPE = "recipe.yaml"
COMPARISON = "eval/compare.json"
TENSORS = "tensors.csv"
ITEMS, QUESTIONS = "items.jsonl", "questions.json"
MEMORY = "memory"  # a figure of training
COUNTED = ("domain", "general")  # the groups that rules and verdicts count; any other one is shown beside them


def _finite_or_none(value: Any) -> Any:
    """An empty CSV cell, and a bound or loss that is not finite, are a value that is absent."""
    if value is None or value == "":
        return None
    number = float(value)
    return number if math.isfinite(number) else None


Measured = Annotated[float | None, BeforeValidator(_finite_or_none)]
Ratio = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class Score(BaseModel):
    """A task measured by one metric, with its 95 % interval. Of several metrics the `primary` one counts."""

    task: str
    group: str
    split: str
    metric: str
    value: Measured
    low: Measured = None
    high: Measured = None
    primary: bool = True

    @property
    def counts(self) -> bool:
        """Whether verdicts, gains and charts rest on it; the others stand beside them."""
        return self.primary and self.group in COUNTED


class Result(Score):
    """A row of results.json."""

    items: int
    shots: int = 0


class AblationScore(Score):
    """A row of ablation.csv."""

    method: str
    ratio: Ratio


class Rule(BaseModel):
    maximise: str = ""
    retain: dict[str, float] = {}


class Candidate(BaseModel):
    """A ratio that was tried: `gains` are points over the base, by group, on validation items."""

    method: str
    ratio: Ratio
    gains: dict[str, Measured] = {}
    eligible: bool
    front: bool | None = None  # on the Pareto front: no other candidate beats it


class ScreenedOut(BaseModel):
    """A merge that was tried on the quick tasks alone."""

    method: str
    ratio: Ratio


class AdapterBase(BaseModel):
    """The weights that an adapter of a 4-bit base is added to; bits per byte of held-out text where measured."""

    chosen: str
    live: Measured = None  # the adapter unmerged, on the 4-bit base that it was trained on
    bf16: Measured = None
    nf4_dequant: Measured = Field(default=None, alias="nf4-dequant")


class Choice(BaseModel):
    """`screened_out` is None where no screen was asked for."""

    method: str
    ratio: Ratio
    rule: Rule = Rule()
    candidates: list[Candidate] = []
    screened_out: list[ScreenedOut] | None = None
    adapter_base: AdapterBase | None = None


class Difference(BaseModel):
    """A model beside the base, from compare.json: positive when better, with the 95 % interval of paired differences."""

    group: str
    model: str
    unit: Literal["points", "percent of bits"]
    difference: Measured
    low: Measured
    high: Measured

    @property
    def in_bits(self) -> bool:
        return self.unit == "percent of bits"


class TaskDifference(Difference):
    task: str
    metric: str
    adjusted_p: float
    test: str = ""
    verdict: Literal["gained", "no difference shown", "lost"]

    @property
    def counts(self) -> bool:
        return self.group in COUNTED


class GroupDifference(Difference):
    role: Literal["gain", "retain", "control"]
    tasks: int
    verdict: Literal["gained", "no difference shown", "lost", "non-inferior", "degraded", "inconclusive"]


class Comparison(BaseModel):
    """What `frbio compare` found. `results`: what it compared, by the names it gives them, the reference first."""

    results: dict[str, str] = {}
    margin: float = 0.0
    tasks: list[TaskDifference] = []
    groups: list[GroupDifference] = []

    def named(self, digests: Mapping[str, str]) -> Comparison:
        """The part about a run's own evaluations, `digests` by model, under the run's names for them.

        Empty where the reference is not the run's base: nothing else can be told.
        """
        names: dict[str, str] = {}
        for label, digest in self.results.items():
            mine = next((m for m, d in digests.items() if d == digest and m not in names.values()), None)
            if mine is not None:
                names[label] = mine
        if next(iter(self.results), None) not in names or next(iter(names.values())) != MODELS[0]:
            return Comparison()
        return Comparison(
            results={name: self.results[label] for label, name in names.items()},
            margin=self.margin,
            tasks=[row.model_copy(update={"model": names[row.model]}) for row in self.tasks if row.model in names],
            groups=[row.model_copy(update={"model": names[row.model]}) for row in self.groups if row.model in names],
        )


class MergeFigures(BaseModel):
    """What the merge measured over all tensors: Δ is what adaptation changed in them, W the base."""

    relative_change: Measured = None  # ‖Δ‖/‖W‖
    slerp_is_linear_share: Measured = None  # of the tensors that changed
    effective_ratio: Measured = None  # ‖written − W‖/‖Δ‖, rounding included


Bytes = Annotated[int, Field(ge=0)]


class Memory(BaseModel):
    """What training recorded on a GPU. `predicted`: by part; None where no plan could be made, for the reason in `why_not`."""

    predicted: dict[str, Bytes] | None = None
    why_not: str = ""
    reserved_bytes: Bytes  # the most that torch held of the GPU
    allocated_bytes: Bytes  # the most of it that was in tensors


class MergedTensor(BaseModel):
    """A row of tensors.csv: a tensor as one adapted model changed it. The effective ratio is that of all models."""

    name: str
    model: str
    relative_change: Measured
    angle_degrees: Measured
    slerp_is_linear: bool
    effective_ratio: Measured


class Answer(BaseModel):
    """A line of items.jsonl, as far as the page shows it; `correct` only where an answer is right or wrong."""

    task: str
    id: str
    prompt_hash: str
    correct: bool | None = None
    prediction: int | list[int] | float | str | None = None  # positions of options, or a text
    gold: int | list[int] | float | str | None = None
    log_likelihoods: list[Annotated[float, Field(allow_inf_nan=False)]] = []
    answer: str = ""  # a text in the model's own words
    truncated: bool = False


class Asked(BaseModel):
    """A question's own words, and its options if it has any."""

    text: str
    options: list[str] = []


class Questions(BaseModel):
    """What a task asked, by item."""

    license: str
    source: str
    language: str
    items: dict[str, Asked]


class LoggedStep(BaseModel):
    """A line of log.jsonl, as far as the page shows it."""

    step: int
    tokens: int | None = None
    loss: Measured = None
    learning_rate: Measured = None


class Count(BaseModel):
    documents: int | None = None
    words: int | None = None
    bytes: int | None = None


class FunnelStep(Count):
    step: str = "?"
    by_source: dict[str, Count] = {}


class Funnel(BaseModel):
    """Counts by source and by rule, reason, kind of identifier or benchmark, shown as they are."""

    steps: list[FunnelStep] = []
    rules: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    dropped: dict[str, Any] = {}
    privacy: dict[str, Any] = {}
    contamination: dict[str, Any] = {}
    sources: dict[str, Any] = {}

    def details(self) -> dict[str, Any]:
        """All under the titles they stand under on the page, those that are known; long lists by their lengths."""
        told, privacy = _counted(self.contamination), dict(self.privacy)
        documents = told.pop("documents", {})
        questions = {name.replace("_", " "): value for name, value in told.items() if isinstance(value, Mapping)}
        others = {name: value for name, value in told.items() if not isinstance(value, Mapping)}
        found = {
            "mask": _("Personal identifiers found and masked"),
            "drop": _("Personal identifiers found, whose documents were left out"),
        }.get(str(privacy.get("action")), _("Personal identifiers found"))
        known = {
            _("Places changed, by rule"): self.changes,
            found: privacy.get("found", {}),
            _("Benchmark questions"): questions,
            _("Sources as they were read"): {name: _read(source) for name, source in self.sources.items()},
        }
        return {
            _("Documents changed, by rule"): self.rules,
            _("Documents dropped, by reason"): self.dropped,
            _("Documents with benchmark questions"): documents,
            **{title: value for title, value in known.items() if value},
            _("decontamination"): others,
        }


def _read(source: Any) -> Any:
    """Of a source what tells a person which content it had, and how many files or rows could not be read."""
    known = (
        {key: value for key, value in source.items() if key != "read_from"} if isinstance(source, Mapping) else source
    )
    return _counted(known)


def _counted(value: Any) -> Any:
    """A mapping with the lists in it replaced by their lengths."""
    if isinstance(value, Mapping):
        return {key: _counted(inner) for key, inner in value.items()}
    return len(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Run:
    """One run directory; what is not finished is absent from `manifests` and empty here."""

    directory: Path
    recipe_text: str
    recipe: Mapping[str, Any]
    manifests: Mapping[str, Manifest]
    funnel: Funnel | None = None
    log: tuple[LoggedStep, ...] = ()
    ablation: tuple[AblationScore, ...] = ()
    choice: Choice | None = None
    merge_figures: MergeFigures | None = None
    tensors: tuple[MergedTensor, ...] = ()
    results: Mapping[str, tuple[Result, ...]] = field(default_factory=dict)
    comparison: Comparison | None = None  # None: there is no compare.json
    answers: Mapping[str, tuple[Answer, ...]] = field(default_factory=dict)  # of base and merged
    questions: Mapping[str, Questions] = field(default_factory=dict)  # by task; none of an older evaluation
    memory: Memory | None = None  # none of a CPU

    @property
    def name(self) -> str:
        return text_at(self.recipe, "name") or self.directory.resolve().name

    @property
    def margin(self) -> float:
        return self.comparison.margin if self.comparison else 0.0

    def tasks_of(self, model: str) -> list[TaskDifference]:
        """The tasks of a model that was compared with the base."""
        return [row for row in self.comparison.tasks if row.model == model] if self.comparison else []

    def groups_of(self, model: str) -> list[GroupDifference]:
        return [row for row in self.comparison.groups if row.model == model] if self.comparison else []

    @property
    def missing(self) -> list[str]:
        return [stage for stage in STAGES if stage not in self.manifests]


def text_at(value: Any, *keys: str) -> str:
    """The text at a path of nested mappings, or an empty string where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""


def load_run(directory: Path) -> Run:
    """Read a run directory. Raises RequestError when it is none, or when a finished artifact in it is damaged."""
    finished = {stage: kind for stage, kind in STAGES.items() if (directory / stage / MANIFEST).is_file()}
    if not finished and not (directory / RECIPE).is_file():
        state = "has neither recipe.yaml nor a finished stage" if directory.is_dir() else "is not a directory"
        raise RequestError(f"{directory} is not a run: it {state}; give a directory that `frbio run --out` filled")
    text, recipe = _read_recipe(directory / RECIPE)
    manifests = {stage: read_manifest(directory / stage, kind) for stage, kind in finished.items()}
    merge = manifests.get("merge")
    compared = _read_json(directory / COMPARISON, Comparison) if (directory / COMPARISON).is_file() else None
    digests = {m: manifests[f"eval/{m}"].digest for m in MODELS if f"eval/{m}" in manifests}
    return Run(
        directory=directory,
        recipe_text=text,
        recipe=recipe,
        manifests=manifests,
        funnel=_read_json(directory / "corpus/funnel.json", Funnel) if "corpus" in finished else None,
        log=_read_log(directory / "train/log.jsonl") if "train" in finished else (),
        ablation=_read_table(directory / "ablation/ablation.csv", AblationScore) if "ablation" in finished else (),
        choice=_read_json(directory / "ablation/choice.json", Choice) if "ablation" in finished else None,
        merge_figures=_check(MergeFigures, merge.figures, directory / "merge" / MANIFEST, "figures") if merge else None,
        tensors=_read_table(directory / "merge" / TENSORS, MergedTensor) if merge and TENSORS in merge.files else (),
        results={m: _read_results(directory / f"eval/{m}/results.json") for m in digests},
        comparison=compared.named(digests) if compared else None,
        answers={m: _read_answers(directory / "eval" / m, manifests[f"eval/{m}"]) for m in PAIRED if m in digests},
        questions=_read_questions(directory / "eval/merged", manifests.get("eval/merged")),
        memory=_read_memory(directory / "train" / MANIFEST, manifests.get("train")),
    )


def _damaged(path: Path, what: object) -> RequestError:
    place = path if path.name == Path(COMPARISON).name else path.parent
    return RequestError(f"{path} cannot be read ({what}): remove {place} and run its stage again")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _read_recipe(path: Path) -> tuple[str, Mapping[str, Any]]:
    """The text and its mapping, all scalars as written; empty ones when the file is not there."""
    if not path.is_file():
        return "", {}
    text = _read_text(path)
    try:
        recipe = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not valid YAML: put back the recipe that the run was made from") from error
    if not isinstance(recipe, dict):
        raise RequestError(f"{path} is not a recipe: it holds no mapping of keys")
    return text, recipe


Model = TypeVar("Model", bound=BaseModel)


def _check(model: type[Model], value: Any, path: Path, where: str = "") -> Model:
    try:
        return model.model_validate(value)
    except (ValidationError, TypeError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        place = ".".join(map(str, first["loc"]))
        raise _damaged(path, f"{where}{': ' if where and place else ''}{place} {first['msg']}".strip()) from error


def _parse(text: str, path: Path, where: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{where} {error}".strip()) from error


def _read_json(path: Path, model: type[Model]) -> Model:
    return _check(model, _parse(_read_text(path), path), path)


class _Results(BaseModel):
    rows: list[Result]


def _read_results(path: Path) -> tuple[Result, ...]:
    return tuple(_read_json(path, _Results).rows)


def _read_lines(path: Path, model: type[Model]) -> Iterator[Model]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            yield _check(model, _parse(line, path, f"line {number}"), path, f"line {number}")


def _read_answers(directory: Path, manifest: Manifest) -> tuple[Answer, ...]:
    return tuple(_read_lines(directory / ITEMS, Answer)) if ITEMS in manifest.files else ()


def _read_questions(directory: Path, manifest: Manifest | None) -> Mapping[str, Questions]:
    path = directory / QUESTIONS
    if manifest is None or QUESTIONS not in manifest.files:
        return {}
    return _check(RootModel[dict[str, Questions]], _parse(_read_text(path), path), path).root


def _read_memory(path: Path, train: Manifest | None) -> Memory | None:
    return _check(Memory, train.figures[MEMORY], path, MEMORY) if train and MEMORY in train.figures else None


def _read_table(path: Path, model: type[Model]) -> tuple[Model, ...]:
    table = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    try:
        rows = tuple(_check(model, row, path, f"line {table.line_num}") for row in table)
    except csv.Error as error:
        raise _damaged(path, error) from error
    if not rows:
        raise _damaged(path, "it holds no rows")
    return rows


def _read_log(path: Path) -> tuple[LoggedStep, ...]:
    """The steps in order; where training resumed and wrote a step again, its last line counts."""
    steps = {entry.step: entry for entry in _read_lines(path, LoggedStep)}
    return tuple(steps[step] for step in sorted(steps))
