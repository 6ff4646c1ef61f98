"""The verbs as functions, with the names and defaults of `frbio VERB --help`.

    from frbio_lite import evaluate, merge, run

    run("demo", out="runs/demo")
    merge(base="demo", model="runs/demo/train", ratio=0.5, out="merged")
    rows = evaluate(model="merged", tasks="frbio-fr-med", offline=True, out="scores/merged")

All raise RequestError for what cannot be done, before any long work, and continue where an earlier call was interrupted.
A model is a directory, a Hub id, or `demo`. The command line calls these functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frbio_lite.errors import RequestError
from frbio_lite.hub import digest_ahead, fetch
from frbio_lite.recipe import Eval, Merge, Recipe, Section, load_recipe
from frbio_lite.tracking import Tool

if TYPE_CHECKING:
    from frbio_lite.evaluation import Row
    from frbio_lite.evaluation.compare import Comparison

Name = str | Path
Names = str | Path | Sequence[str | Path]
Stage = Literal["corpus", "packed", "train", "ablation", "merge", "eval", "report"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]

# torch and transformers load only in the functions that need them


def run(
    recipe: Name | Recipe,
    *,
    out: Name | None = None,
    overrides: Mapping[str, object] | None = None,
    until: Stage = "report",
    fresh: bool = False,
    data: Name | None = None,
    workers: int | None = None,
    strict: bool = False,
    track: Tool | None = None,
    lang: Literal["en", "fr"] = "en",
) -> Path:
    """Run a recipe (a shipped name, a file, or a loaded one); returns the run's directory, by default runs/NAME.

    `overrides` changes values by dotted key, `{"train.tokens": 1_000_000}`; `until` is the last stage to run; `fresh` makes
    every stage anew; `data` holds local copies of benchmarks; the corpus stage uses `workers` processes and, if `strict`,
    ends at what it cannot read; `track` gives the training's log to that tool as well;
    `lang` is the report's language.
    """
    from frbio_lite import pipeline

    loaded = _recipe(recipe, overrides)
    place = Path(out) if out is not None else Path("runs") / loaded.name
    return pipeline.run(
        loaded,
        place,
        until=until,
        fresh=fresh,
        data=_path(data),
        workers=workers,
        strict=strict,
        track=track,
        lang=lang,
    )


def train(
    recipe: Name | Recipe,
    *,
    out: Name,
    overrides: Mapping[str, object] | None = None,
    track: Tool | None = None,
) -> Path:
    """Train as a recipe says, on its packed corpus in `out`, made first if missing; returns the trained weights' directory."""
    return run(recipe, out=out, overrides=overrides, until="train", track=track) / "train"


def merge(
    *,
    out: Name,
    base: Name | None = None,
    adapter: Name | None = None,
    model: Names = (),
    config: Name | None = None,
    method: str = "slerp",
    ratio: float = 0.5,
    profile: Sequence[str] = (),
    density: float = 0.5,
    gamma: float = 0.01,
    epsilon: float = 0.15,
    seed: int = 17,
    adapter_base: Literal["bf16", "nf4-dequant"] = "bf16",
    vocab: Literal["same", "base"] = "same",
    dtype: Dtype = "auto",
    stochastic_rounding: bool = False,
    shard_size: str = "5GB",
    verify: bool = False,
) -> Path:
    """Merge an adapter or adapted models into `base`, or as a mergekit configuration says, and write the result to `out`.

    `ratio` is the share of the adapted side; `profile` multiplies it over the layers, `["self_attn=0,0.5,1"]`.
    """
    shard_bytes = _bytes(shard_size)
    adapted = [] if config else _adapted(adapter, model)
    if config is None and base is None:
        raise RequestError("give the base, --base MODEL, or a mergekit configuration, --config FILE")
    if config is not None and (base is not None or adapter is not None or model):
        raise RequestError("a configuration says what is merged: give either --config, or --base with what is merged")
    directories = [] if config else [_directory(str(name)) for name in (base, *adapted)]
    digest_ahead(directories or _models_named(config))  # hashed by another thread while libraries load
    from frbio_lite.merging import Parameters, parse_profile
    from frbio_lite.merging.run import Output, merge_config, merge_to

    output = Output(Path(out), dtype, stochastic_rounding, seed, shard_bytes, verify)
    output.check()
    if config is not None:
        return merge_config(Path(config), output)
    return merge_to(
        directories[0],
        directories[1:],
        output,
        method=method,
        ratio=ratio,
        parameters=Parameters(density, gamma, epsilon, seed),
        profile=parse_profile(profile),
        adapter_base=adapter_base,
        vocabulary=vocab,
    )


def ablate(
    *,
    base: Name,
    tasks: Names,
    out: Name,
    adapter: Name | None = None,
    model: Names = (),
    methods: Names = "slerp",
    ratios: str | Sequence[float] = "0:1:0.25",
    choose: Literal["max-domain", "max-general"] = "max-domain",
    retain: str = "general>=-1.0",
    profile: Sequence[str] = (),
    shots: int | Literal["paper"] = 0,
    limit: int | None = None,
    nf4: bool = False,
    adapter_base: Literal["auto", "bf16", "nf4-dequant"] = "auto",
    seed: int = 17,
    test: bool = True,
    data: Name | None = None,
    corpus: Name | None = None,
    offline: bool = False,
    **merging: Any,
) -> dict[str, Any]:
    """Score many merge ratios with the models loaded once and none written; returns the choice made on validation items.

    `merging` is the rest of the recipe's `merge` section: screen, top, density, gamma, epsilon, dtype, stochastic_rounding.
    The choice, also in OUT/choice.json, holds `method`, `ratio`, `why` and `candidates`, with their gains in points by group.
    """
    from frbio_lite.ablation.rule import parse_ratios, parse_retain
    from frbio_lite.merging import parse_profile
    from frbio_lite.standalone import ablate_ratios

    settings = section(
        Merge,
        methods=_names(methods),
        ratios=parse_ratios(ratios) if isinstance(ratios, str) else list(ratios),
        choose={"maximise": choose.removeprefix("max-"), "retain": parse_retain(retain)},
        base=adapter_base,
        profile=[{"filter": part, "values": list(values)} for part, values in parse_profile(profile).entries],
        **merging,
    )
    place = ablate_ratios(
        str(base),
        _adapted(adapter, model),
        settings,
        section(Eval, tasks=_names(tasks), shots=shots, limit=limit),
        Path(out),
        nf4=nf4,
        test=test,
        corpus_directory=_path(corpus),
        data=_path(data),
        offline=offline,
        seed=seed,
    )
    choice: dict[str, Any] = json.loads((place / "choice.json").read_text(encoding="utf-8"))
    return choice


def evaluate(
    *,
    model: Name,
    tasks: Names,
    out: Name,
    adapter: Name | None = None,
    split: Literal["validation", "test"] = "test",
    shots: int | Literal["paper"] = 0,
    parity: bool = False,
    shots_from_test: bool = False,
    chat_template: bool = False,
    controls: Names = (),
    limit: int | None = None,
    data: Name | None = None,
    corpus: Name | None = None,
    offline: bool = False,
) -> list[Row]:
    """Score a model on tasks or sets of tasks; returns the rows of OUT/results.json, one per task and metric."""
    from frbio_lite.evaluation import Row
    from frbio_lite.standalone import evaluate_model

    settings = section(
        Eval,
        tasks=_names(tasks),
        shots=shots,
        parity=parity,
        shots_from_test=shots_from_test,
        chat_template=chat_template,
        controls=_names(controls),
        limit=limit,
    )
    place = evaluate_model(
        str(model),
        None if adapter is None else str(adapter),
        settings,
        Path(out),
        split=split,
        corpus_directory=_path(corpus),
        data=_path(data),
        offline=offline,
    )
    return [Row(**row) for row in json.loads((place / "results.json").read_text(encoding="utf-8"))["rows"]]


def compare(results: Sequence[Name], *, margin: float = 1.0, out: Name | None = None) -> Comparison:
    """Compare results of the same items, question by question, with the first of them.

    `margin`: points that may be lost and still count as kept. With `out`, compare.json and compare.csv are written there.
    """
    from frbio_lite.evaluation import compare as module

    found = module.compare([Path(result) for result in results], margin=margin)
    if out is not None:
        module.write(found, Path(out))
    return found


def section(kind: type[Section], **values: Any) -> Any:
    """A recipe section from single values, with the recipe's own checks. Raises RequestError for the first that is wrong."""
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option, message = ".".join(str(p) for p in first["loc"][:1]), first["msg"].removeprefix("Value error, ")
        raise RequestError(f"--{option}: {message}, not {first['input']!r}") from error


def _recipe(recipe: Name | Recipe, overrides: Mapping[str, object] | None) -> Recipe:
    if isinstance(recipe, Recipe):
        if overrides:
            raise RequestError("overrides change a recipe as it is loaded: give its name or file, or a changed recipe")
        return recipe
    # JSON is YAML, which is what the value of an override is read as
    return load_recipe(str(recipe), [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()])


def _path(name: Name | None) -> Path | None:
    return None if name is None else Path(name)


def _names(names: Names) -> list[str]:
    """A list, or names with commas between them."""
    if isinstance(names, str):
        return [part.strip() for part in names.split(",") if part.strip()]
    return [str(names)] if isinstance(names, Path) else [str(name) for name in names]


def _adapted(adapter: Name | None, model: Names) -> list[str]:
    models = [str(model)] if isinstance(model, str | Path) else [str(name) for name in model]
    if (adapter is None) == (not models):
        raise RequestError("give the adapted side: --adapter DIR, or --model DIR once or more")
    return models if adapter is None else [str(adapter)]


def _directory(name: str) -> Path:
    if name in ("demo", "demo-untrained"):
        from frbio_lite.pipeline import locate

        return locate(name)
    return fetch(name)


def _models_named(config: Name | None) -> list[Path]:
    """The directories that a mergekit configuration seems to name; whether it is one is found out later."""
    if config is None:
        return []
    try:
        text = Path(config).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RequestError(f"{config} cannot be read: {error.strerror}") from error
    named = re.findall(r"model:\s*['\"]?([^\s'\"#,}]+)", text)
    return [Path(name) for name in dict.fromkeys(named) if Path(name).is_dir()]


def _bytes(text: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    size = int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if size <= 0:
        raise RequestError(f"--shard-size {text}: write a size such as 500MB or 2GB")
    return size
