"""What a card tells, read from what a merge and a run recorded. Local paths are left out: only the last part of a name stays."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from frbio_lite.artifacts import MANIFEST, Kind, Manifest, read_manifest
from frbio_lite.errors import RequestError
from frbio_lite.export.licenses import License, license_of

MODELS = ("base", "adapted", "merged")
T = TypeVar("T")


class _Row(BaseModel):
    model_config = ConfigDict(allow_inf_nan=True, frozen=True)


class Score(_Row):
    """A row of results.json; `low` and `high` bound the 95 % interval, None where there are too few items."""

    task: str
    group: str
    split: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    items: int
    shots: int = 0
    primary: bool = True


class GroupVerdict(_Row):
    """A group of compare.json: a model beside the base, positive when better."""

    group: str
    model: str
    unit: str
    tasks: int
    difference: float
    low: float | None = None
    high: float | None = None
    verdict: str


class Comparison(_Row):
    results: dict[str, str]
    margin: float
    groups: list[GroupVerdict] = []


class Choice(_Row):
    why: str = ""
    adapter_base: dict[str, Any] = Field(default_factory=dict)


class _Results(_Row):
    rows: list[Score]


@dataclass(frozen=True)
class Source:
    """One source of the training text; `licenses` counts its documents."""

    name: str
    role: str
    licenses: Mapping[str, int]
    documents: int
    words: int
    dataset: str | None


@dataclass(frozen=True)
class Run:
    """What a run knows beside the merge. Parts that are not there yet, or are about another merge, are empty."""

    name: str
    seed: int
    language: str | None
    recipe: str  # YAML without local paths
    sources: tuple[Source, ...] = ()
    checks: str = ""  # what was found of personal data and of benchmarks
    training: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    results: Mapping[str, tuple[Score, ...]] = field(default_factory=dict)
    margin: float = 0.0
    verdicts: tuple[GroupVerdict, ...] = ()


@dataclass(frozen=True)
class Merged:
    """A merge. `models`: the base first; Hub ids as `owner/name at commit`, of directories their own names.

    `figures` are those of `merging.merge_models`; `notes` are further rows of the card; with a `configuration` (mergekit's)
    there is no single ratio.
    """

    models: tuple[str, ...]
    base_license: License
    figures: Mapping[str, Any]
    ratio: float | None
    notes: Mapping[str, str]
    configuration: str = ""


def hub_id(name: str) -> str | None:
    """`owner/name` of a Hub model, as `described` and recipes write it; None for a directory's name."""
    found = name.split(" at ")[0]
    return found if found.count("/") == 1 and not found.startswith((".", "~", "/")) else None


def public(name: str) -> str:
    """A path without the directories that lead to it."""
    return Path(name).name or name


def read_run(run: Path, merge: Manifest, base: Path | None = None) -> Run:
    """The facts of a run directory about its merged model. Raises RequestError when a file in it is damaged."""
    recipe = _yaml(run / "recipe.yaml")
    sources = _list(recipe, "corpus", "sources")
    results, digests = _results(run / "eval", merge)
    margin, verdicts = _verdicts(run / "eval" / "compare.json", digests)
    choice = run / "ablation" / "choice.json"
    funnel = _read(run / "corpus" / "funnel.json", dict) if _manifest(run / "corpus", "Documents") else {}
    return Run(
        name=str(recipe.get("name") or run.resolve().name),
        seed=merge.seed,
        language="fr" if any(s.get("language", "fr") == "fr" for s in sources) else None,
        recipe=yaml.safe_dump(_without_paths(recipe, base), sort_keys=False, allow_unicode=True, width=120),
        sources=_sources(run / "corpus", funnel, sources),
        checks=_checks(funnel),
        training=_training(run),
        why=_read(choice, Choice).why if choice.is_file() else "",
        results=results,
        margin=margin,
        verdicts=verdicts,
    )


def merged_in(run: Path, merge: Manifest, base: Path | None = None) -> Merged:
    """The merge of a run, told by its manifest and its recipe; the card in the directory `base` states the base's license."""
    recipe, settings = _yaml(run / "recipe.yaml"), merge.settings
    published, revision = _published(recipe, base), _at(recipe, "base", "revision")
    told = public(str(_at(recipe, "base", "model")))
    if published:
        told = f"{published} at {revision}" if revision else published
    license = license_of(published, base)
    notes = {"method": str(settings.get("method", "?"))}
    if profile := settings.get("profile"):
        notes["ratio, times"] = "; ".join(f"{p['filter']}: {', '.join(map(str, p['values']))}" for p in profile)
    if settings.get("adapter_base") == "nf4-dequant":
        notes["added to"] = "the weights as 4-bit training held them (NF4, dequantised)"
    if settings.get("stochastic_rounding"):
        notes["rounding"] = "stochastic, to bfloat16"
    return Merged((told, "train"), license, merge.figures, float(settings.get("ratio", 1.0)), notes)


def _published(recipe: Mapping[str, Any], base: Path | None) -> str | None:
    """The Hub id of a recipe's base; None for a directory, which `owner/name` may be as well."""
    name = str(_at(recipe, "base", "model"))
    return hub_id(name) if base is None or base != Path(name) else None


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _list(value: Any, *keys: str) -> list[dict[str, Any]]:
    found = _at(value, *keys)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read ({error}): run its stage again") from error


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not valid YAML: put back the recipe that the run was made from") from error
    return found if isinstance(found, dict) else {}


def _read(path: Path, model: type[T]) -> T:
    try:
        return TypeAdapter(model).validate_python(json.loads(_text(path)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise RequestError(f"{path} is damaged ({why}): remove it and run its stage again") from error


def _manifest(directory: Path, kind: Kind) -> Manifest | None:
    return read_manifest(directory, kind) if (directory / MANIFEST).is_file() else None


def _without_paths(recipe: dict[str, Any], base: Path | None) -> dict[str, Any]:
    """The recipe with the last parts of its paths."""
    told: dict[str, Any] = json.loads(json.dumps(recipe, default=str))
    if isinstance(_at(told, "base", "model"), str) and not _published(told, base):
        told["base"]["model"] = public(told["base"]["model"])
    for source in _list(told, "corpus", "sources"):
        for key in ("path", "dataset"):
            if isinstance(source.get(key), str) and not (key == "dataset" and hub_id(source[key])):
                source[key] = public(source[key])
    files = _at(told, "corpus", "decontaminate", "files")
    if isinstance(files, list):
        files[:] = [public(str(file)) for file in files]
    return told


def _sources(corpus: Path, funnel: Mapping[str, Any], listed: list[dict[str, Any]]) -> tuple[Source, ...]:
    """Documents and words of the training split, by the sources of the recipe."""
    if not funnel:
        return ()
    steps = {step["step"]: step for step in _list(funnel, "steps") if "step" in step}
    licenses = _licenses(corpus / "documents")
    found = []
    for number, source in enumerate(listed):
        dataset, config = source.get("dataset"), source.get("config")
        name = f"{dataset}:{config}" if dataset and config else str(dataset or source.get("path"))
        counts = _at(steps.get("train"), "by_source", name) or {}
        found.append(
            Source(
                name if dataset and hub_id(str(dataset)) else public(name),
                str(source.get("role", "domain")),
                licenses.get(number, Counter()),
                int(counts.get("documents", 0)),
                int(counts.get("words", 0)),
                dataset if isinstance(dataset, str) and hub_id(dataset) else None,
            )
        )
    return tuple(found)


def _checks(funnel: Mapping[str, Any]) -> str:
    """What the corpus stage found of personal identifiers and of benchmark questions, and did with it."""
    done = {"report": "left in the text", "mask": "masked", "drop": "dropped with their documents"}
    told = []
    if action := done.get(str(_at(funnel, "privacy", "action"))):
        found = _at(funnel, "privacy", "found")
        count = sum(n for kinds in found.values() for n in kinds.values()) if isinstance(found, dict) else 0
        told.append(f"Personal identifiers found by patterns: {count:,}{f', {action}' if count else ''}.")
    if documents := _at(funnel, "contamination", "documents"):
        count = sum(n for tasks in documents.values() for n in tasks.values())
        action = "dropped" if _at(funnel, "contamination", "action") == "drop" else "left in"
        told.append(f"Documents with questions of the benchmarks: {count:,}{f', {action}' if count else ''}.")
    return " ".join(told)


def _licenses(documents: Path) -> dict[int, Counter[str]]:
    """By place of the source in the recipe: training documents by license."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: dict[int, Counter[str]] = {}
    for file in sorted(documents.glob("*.parquet")):
        try:
            table = pq.read_table(file, columns=["recipe_source", "license", "split"])
        except (OSError, KeyError, pa.ArrowException) as error:
            raise RequestError(
                f"{file} cannot be read ({error}): remove {documents.parent} and run it again"
            ) from error
        trained = table.filter(pc.equal(table["split"], "train")).group_by(["recipe_source", "license"])
        for row in trained.aggregate([([], "count_all")]).to_pylist():
            found.setdefault(row["recipe_source"], Counter())[row["license"]] += row["count_all"]
    return found


def _training(run: Path) -> dict[str, str]:
    manifest = _manifest(run / "train", "TrainedWeights")
    if manifest is None:
        return {}
    train, figures = _at(manifest.settings, "train") or {}, manifest.figures
    optimizer, lora = train.get("optimizer") or {}, train.get("lora") or {}
    rows = {
        "method": train.get("method"),
        "adapter": f"rank {lora.get('rank')}, alpha {lora.get('alpha')}, on {_joined(lora.get('targets'))}"
        if train.get("method") != "full"
        else None,
        "tokens": _count(figures.get("tokens")),
        "steps": _count(figures.get("steps")),
        "tokens per step": _count(train.get("tokens_per_step")),
        "sequence length": _count(_at(manifest.settings, "packing", "sequence_length")),
        "optimizer": optimizer.get("name"),
        "learning rate": f"{optimizer.get('learning_rate'):g}, {optimizer.get('schedule')}, warm-up over "
        f"{100 * float(optimizer.get('warmup_ratio', 0)):g} % of the steps"
        if isinstance(optimizer.get("learning_rate"), int | float)
        else None,
        "weight decay": optimizer.get("weight_decay"),
        "precision": figures.get("precision"),
        "device": figures.get("device"),
    }
    return {key: str(value) for key, value in rows.items() if value is not None}


def _joined(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _count(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _results(place: Path, merge: Manifest) -> tuple[dict[str, tuple[Score, ...]], dict[str, str]]:
    """Scores of base, adapted and merged model, and the digests of these evaluations; those of other weights do not count."""
    weights = {"base": merge.parents.get("base"), "adapted": merge.parents.get("train"), "merged": merge.digest}
    results, digests = {}, {}
    for model in MODELS:
        manifest = _manifest(place / model, "EvalResult")
        if manifest is not None and weights[model] is not None and manifest.parents.get("model") == weights[model]:
            rows = _read(place / model / "results.json", _Results).rows
            results[model] = tuple(row for row in rows if row.primary)
            digests[model] = manifest.digest
    return (results, digests) if "merged" in results else ({}, {})


def _verdicts(path: Path, digests: Mapping[str, str]) -> tuple[float, tuple[GroupVerdict, ...]]:
    """The margin and the verdicts by group, if the comparison is one of these very evaluations."""
    if not path.is_file() or not digests:
        return 0.0, ()
    found = _read(path, Comparison)
    if found.results != digests:
        return 0.0, ()
    return found.margin, tuple(found.groups)
