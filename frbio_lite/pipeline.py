"""A recipe's stages in order, each skipped when its artifact was made from the same inputs.

    run(load_recipe("demo"), Path("runs/demo"))      →  runs/demo/{corpus,packed,train,ablation,merge,eval,report}

Each stage's key hashes the parts of the recipe it reads and the digests of its parents, so a change reruns what depends on it
and nothing else, and whatever interrupts a run, the next call goes on from there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from frbio_lite import corpus, demo, evaluation, hub, merging, model, packing
from frbio_lite.ablation import ablate, check_rule
from frbio_lite.ablation.live import LORA_SCALE, merger_of, rounding_of
from frbio_lite.artifacts import (
    MANIFEST,
    Kind,
    canonical_hash,
    file_hash,
    is_current,
    locked,
    read_manifest,
    require_space,
    tree_digest,
    write_text,
    writing,
)
from frbio_lite.backends import check_backend
from frbio_lite.demo.base import write_untrained
from frbio_lite.device import peak_memory, pick_device, pick_dtype
from frbio_lite.errors import RequestError
from frbio_lite.evaluation import compare
from frbio_lite.export.card import update_card
from frbio_lite.memory import Job, disk
from frbio_lite.progress import say
from frbio_lite.recipe import Eval, Recipe, load_recipe
from frbio_lite.report import write_report
from frbio_lite.tracking import Tool, check_tool, tracker
from frbio_lite.training import LOG, train

# of `train`: they change nothing but rounding, so that a run which stopped for want of memory goes on with others
SAME_TRAINING = {"kernels", "micro_batch_size", "activation_checkpointing", "checkpoint"}
MERGE_SETTINGS = {"dtype", "stochastic_rounding", "profile", "density", "gamma", "epsilon"}  # what makes a merge
STAGES = ("corpus", "packed", "train", "ablation", "merge", "eval", "report")
DEMO, DEMO_UNTRAINED = "demo", "demo-untrained"
RECIPE_FILE = "recipe.yaml"
Split = Literal["validation", "test"]
Lang = Literal["en", "fr"]


def locate(name: str, revision: str | None = None) -> Path:
    """The directory of a model: a directory, a Hub id, or `demo`, which is trained the first time it is asked for."""
    cache = hub.cache_directory()
    if name == DEMO_UNTRAINED:
        world = tree_digest(Path(demo.__file__).parent, suffixes=(".py", ".yaml"))
        with locked(cache):
            make(cache / DEMO_UNTRAINED, "TrainedWeights", write_untrained, settings={}, parents={"world": world})
        return cache / DEMO_UNTRAINED
    if name == DEMO:
        if not (cache / DEMO / "train" / MANIFEST).is_file():
            say(f"the demonstration's base model is trained first, for a minute or two, and kept in {cache}")
        return run(load_recipe("demo-base"), cache / DEMO, until="train") / "train"
    return hub.fetch(name, revision)


def benchmark_digests(
    tasks: Sequence[evaluation.Task], data: Path | None, corpus_directory: Path | None = None
) -> dict[str, str]:
    """What an evaluation depends on beside the model: the tasks' definitions, local copies of their data, held-out text."""
    found = {"tasks": canonical_hash([task.model_dump(mode="json") for task in tasks]), **evaluation.own_digests(tasks)}
    if data is not None:
        found["data"] = tree_digest(data)
    if corpus_directory is not None:
        found["corpus"] = read_manifest(corpus_directory, "Documents").digest
    return found


def make(
    directory: Path,
    kind: Kind,
    work: Callable[[Path], Mapping[str, Any]],
    *,
    settings: Mapping[str, Any],
    parents: Mapping[str, str],
    seed: int = 0,
    recipe_hash: str = "",
    resumable: bool = False,
    measured: tuple[str, ...] = (),
    label: str = "",
    fresh: bool = False,
) -> str:
    """Make the artifact with `work`, unless it is there already; return its digest, what a child records as its parent.

    With `fresh` it is made in any case; the old one stays until the new one is whole.
    """
    key = canonical_hash({"kind": kind, "settings": dict(settings), "parents": dict(parents), "seed": seed})
    if fresh:
        shutil.rmtree(directory.with_name(f"{directory.name}.partial"), ignore_errors=True)
    elif is_current(directory, kind, key):
        return read_manifest(directory, kind).digest
    label = label or directory.name
    say(f"{label}: …")
    began = time.monotonic()
    with writing(
        directory,
        kind,
        key,
        settings=settings,
        parents=parents,
        seed=seed,
        recipe_hash=recipe_hash,
        resumable=resumable,
        measured=measured,
    ) as artifact:
        figures = dict(work(artifact.path))
        seconds = time.monotonic() - began
        artifact.figures = {**figures, "stage_seconds": seconds, "stage_peak_memory_bytes": peak_memory(pick_device())}
    say(f"{label}: done in {seconds:.1f} s")
    return read_manifest(directory, kind).digest


def scored_by(settings: Eval) -> dict[str, Any]:
    """The eval section without what only the verdict reads: another margin scores nothing again."""
    return settings.model_dump(mode="json", exclude={"retention_margin"})


def run(
    recipe: Recipe,
    out: Path,
    *,
    until: str = "report",
    fresh: bool = False,
    data: Path | None = None,
    workers: int | None = None,
    strict: bool = False,
    track: Tool | None = None,
    lang: Lang = "en",
) -> Path:
    """Run a recipe's stages up to `until` in the run directory `out`, and return it.

    `data` holds local copies of benchmark data; the corpus stage runs in `workers` processes and, if `strict`, ends at what
    it cannot read; the training's log goes to `track` as well; the report is written in `lang`. Raises RequestError for what
    cannot be run, before any long work.
    """
    if track is not None:
        check_tool(track)
    stages = _Stages(recipe, out, data, fresh, workers, strict, track, lang)
    stages.check(until)
    with locked(out):
        for name in STAGES[: STAGES.index(until) + 1]:
            getattr(stages, name)()
            if (
                name == "corpus"
            ):  # from here on the directory is this recipe's; before, a refused one leaves the old one's
                write_text(out / RECIPE_FILE, recipe.to_yaml())
    return out


class _Stages:
    """One method per stage; each brings its artifact up to date and remembers its digest for those that follow."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        data: Path | None,
        fresh: bool,
        workers: int | None,
        strict: bool,
        track: Tool | None,
        lang: Lang,
    ) -> None:
        self.recipe, self.out, self.data, self.fresh = recipe, out, data, fresh
        self.workers, self.strict, self.track, self.lang = workers, strict, track, lang
        self.digests: dict[str, str] = {}
        self.tasks = evaluation.load_tasks(recipe.eval.tasks)

    @cached_property
    def base(self) -> Path:
        return locate(self.recipe.base.model, self.recipe.base.revision)

    @cached_property
    def base_digest(self) -> str:
        return hub.digest(self.base)

    def check(self, until: str) -> None:
        """Everything that can be refused before the first hour of work; the demo's base has its shape before it is trained."""
        recipe = self.recipe
        pick_dtype(recipe.train.precision, pick_device())
        if until in STAGES[STAGES.index("train") :]:
            check_backend(recipe.base, recipe.train)
        self.source_digests = corpus.source_digests(recipe.corpus)
        roles = {s.role for s in recipe.corpus.sources}
        for task in self.tasks:
            if task.heldout is not None and task.heldout not in roles:
                raise RequestError(
                    f"eval.tasks: {task.name} reads held-out text and no source has `role: {task.heldout}`"
                )
        if until in STAGES[STAGES.index("ablation") :]:
            check_rule(recipe.merge, self.tasks)
            _check_merge(recipe)
        base = locate(DEMO_UNTRAINED if recipe.base.model == DEMO else recipe.base.model, recipe.base.revision)
        model.check_positions(hub.load_config(base), recipe.packing.sequence_length)
        model.load_tokenizer(base)
        if until in STAGES[STAGES.index("train") :] and not (self.out / "train" / MANIFEST).is_file():
            require_space(self.out, self._bytes_needed(base), "checkpoints, trained weights and the merged model")

    def _bytes_needed(self, base: Path) -> int:
        job = Job(hub.load_config(base), self.recipe.base, self.recipe.train, self.recipe.packing)
        parts = disk(job, pick_dtype(self.recipe.train.precision, pick_device()))
        return sum(size for name, size in parts.items() if name != "base")  # which is here already

    def _make(
        self,
        name: str,
        kind: Kind,
        work: Callable[[Path], Mapping[str, Any]],
        settings: Mapping[str, Any],
        parents: Mapping[str, str],
        **how: Any,
    ) -> None:
        how.setdefault("fresh", self.fresh)
        self.digests[name] = make(
            self.out / name,
            kind,
            work,
            settings=settings,
            parents=parents,
            seed=self.recipe.seed,
            recipe_hash=self.recipe.hash,
            label=f"{self.recipe.name}: {name}",
            **how,
        )

    def corpus(self) -> None:
        settings = self.recipe.corpus
        wanted = evaluation.load_tasks(settings.decontaminate.tasks) if settings.decontaminate else []

        earlier = _figures(self.out / "corpus", "Documents").get(corpus.SOURCES, {})
        left_out = any(source["skipped"] for source in earlier.values())

        def work(place: Path) -> Mapping[str, Any]:
            texts = evaluation.benchmark_texts(wanted, data=self.data)
            return corpus.build_corpus(
                settings,
                self.recipe.seed,
                place,
                texts,
                workers=self.workers,
                strict=self.strict,
                earlier=earlier,
            )

        self._make(
            "corpus",
            "Documents",
            work,
            self.recipe.section("corpus"),
            {**self.source_digests, **benchmark_digests(wanted, self.data)},
            fresh=self.fresh or (self.strict and left_out),
        )

    def packed(self) -> None:
        def work(place: Path) -> Mapping[str, Any]:
            tokenizer = model.load_tokenizer(self.base)
            return packing.pack(
                self.out / "corpus", tokenizer, self.recipe.packing, self.recipe.corpus.sources, self.recipe.seed, place
            )

        weights = {"weights": [(s.weight, s.max_passes) for s in self.recipe.corpus.sources]}
        self._make(
            "packed",
            "PackedTokens",
            work,
            {**self.recipe.section("packing"), **weights},
            {"corpus": self.digests["corpus"], "base": self.base_digest},
        )

    def train(self) -> None:
        loading = self.recipe.base.model_dump(include={"backend", "quantize_head"})  # which base: its digest says
        how = self.recipe.train.model_dump(mode="json", exclude=SAME_TRAINING)
        settings = {"train": how, **self.recipe.section("packing"), "base": loading}
        parents = {"packed": self.digests["packed"], "base": self.base_digest}

        def work(place: Path) -> Mapping[str, Any]:
            name = canonical_hash([settings, parents, self.recipe.seed])
            return train(
                self.base,
                packing.PackedTokens(self.out / "packed"),
                self.recipe.train,
                self.recipe.packing,
                self.recipe.seed,
                place,
                self.recipe.base,
                tracker(self.track, self.out, name),
            )

        self._make("train", "TrainedWeights", work, settings, parents, resumable=True, measured=(LOG,))

    def ablation(self) -> None:
        def work(place: Path) -> Mapping[str, Any]:
            return ablate(
                self.base,
                [self.out / "train"],
                self.recipe.merge,
                self.recipe.eval,
                self.tasks,
                place,
                nf4=self.recipe.train.method == "qlora",
                documents=self.out / "corpus",
                data=self.data,
                seed=self.recipe.seed,
            )

        self._make(
            "ablation",
            "Ablation",
            work,
            {**self.recipe.section("merge"), "eval": scored_by(self.recipe.eval)},
            {name: self.digests[name] for name in ("train", "corpus")}
            | {"base": self.base_digest, **benchmark_digests(self.tasks, self.data)},
            resumable=True,
        )

    def merge(self) -> None:
        choice = json.loads((self.out / "ablation" / "choice.json").read_text(encoding="utf-8"))
        method, ratio = choice["method"], choice["ratio"]
        adapter_base = choice.get("adapter_base", {"chosen": "bf16"})["chosen"]
        how = self.recipe.merge.model_dump(mode="json", include=MERGE_SETTINGS)
        settings = {"method": method, "ratio": ratio, "adapter_base": adapter_base, **how}

        def work(place: Path) -> Mapping[str, Any]:
            inputs = merging.open_inputs(self.base, [self.out / "train"], adapter_base=adapter_base)
            merger = merger_of(inputs, method, self.recipe.merge, self.recipe.seed)
            rounding = rounding_of(self.recipe.merge, self.recipe.seed)
            return merging.merge_models(merger, place, ratio=ratio, rounding=rounding, description={"method": method})

        self._make("merge", "MergedModel", work, settings, {"train": self.digests["train"], "base": self.base_digest})
        with suppress(RequestError):  # a comparison that is damaged: the next stage makes it again, and the card
            update_card(self.out, self.base)

    def eval(self) -> None:
        live = hub.is_adapter(self.out / "train")
        nf4 = self.recipe.train.method == "qlora"
        models: dict[str, tuple[Path, Path | None, bool]] = {
            "base": (self.base, None, False),
            "adapted": (self.base, self.out / "train", nf4) if live else (self.out / "train", None, False),
            "merged": (self.out / "merge", None, False),
        }
        parents = {"base": self.base_digest, "adapted": self.digests["train"], "merged": self.digests["merge"]}
        for name, (directory, adapter, quantized) in models.items():
            (self.out / "eval").mkdir(exist_ok=True)
            make(
                self.out / "eval" / name,
                "EvalResult",
                lambda place, d=directory, a=adapter, q=quantized, n=name: score(  # type: ignore[misc]
                    d,
                    a,
                    self.tasks,
                    self.recipe.eval,
                    place,
                    name=n,
                    nf4=q,
                    documents=self.out / "corpus",
                    data=self.data,
                    seed=self.recipe.seed,
                ),
                settings={"eval": scored_by(self.recipe.eval), "nf4": quantized},
                parents={
                    "model": parents[name],
                    "corpus": self.digests["corpus"],
                    **benchmark_digests(self.tasks, self.data),
                },
                seed=self.recipe.seed,
                recipe_hash=self.recipe.hash,
                resumable=True,
                label=f"{self.recipe.name}: eval {name}",
                fresh=self.fresh,
            )
        results = [self.out / "eval" / name for name in models]
        settings = self.recipe.eval
        compare.update(
            results,
            self.out / "eval",
            margin=settings.retention_margin,
            resamples=settings.bootstrap,
            seed=self.recipe.seed,
        )
        update_card(self.out, self.base)

    def report(self) -> None:
        def work(place: Path) -> Mapping[str, Any]:
            return write_report([self.out], place / "report.html", self.lang)

        digests = {
            f"eval-{n}": read_manifest(self.out / "eval" / n, "EvalResult").digest
            for n in ("base", "adapted", "merged")
        }
        digests["comparison"] = file_hash(self.out / "eval" / compare.JSON)
        self._make(
            "report", "Report", work, {"recipe": self.recipe.hash, "lang": self.lang}, {**self.digests, **digests}
        )
        say(f"report: {self.out / 'report' / 'report.html'}")


def _figures(directory: Path, kind: Kind) -> Mapping[str, Any]:
    """The figures of an artifact, empty where there is none."""
    try:
        return read_manifest(directory, kind).figures
    except RequestError:
        return {}


def _check_merge(recipe: Recipe) -> None:
    """Raise RequestError for merges that what the recipe trains cannot give."""
    method, base = recipe.train.method, recipe.merge.base
    if LORA_SCALE in recipe.merge.methods and method == "full":
        raise RequestError(
            "merge.methods: lora_scale scales an adapter, and `train.method: full` trains none: leave it out"
        )
    if base == "nf4-dequant" and method != "qlora":
        raise RequestError(
            f"merge.base: nf4-dequant is what `train.method: qlora` trains on, not {method}: leave it out or use bf16"
        )
    if base == "auto" and method == "qlora" and all(s.role != "domain" for s in recipe.corpus.sources):
        raise RequestError(
            "merge.base: auto measures held-out domain text, and no source has `role: domain`: use bf16 or nf4-dequant"
        )


def score(
    directory: Path,
    adapter: Path | None,
    tasks: list[evaluation.Task],
    settings: Eval,
    place: Path,
    *,
    name: str,
    seed: int,
    nf4: bool = False,
    split: Split = "test",
    documents: Path | None = None,
    data: Path | None = None,
    offline: bool = False,
) -> Mapping[str, Any]:
    """Load a model and its live adapter, if any, score it on one split, and return figures; the results go to `place`."""
    device = pick_device()
    tokenizer = model.load_tokenizer(directory)
    loaded = model.load_model(directory, dtype=pick_dtype("auto", device), device=device, nf4=nf4)
    if adapter is not None:
        loaded = model.load_adapter(loaded, directory, adapter)
    rows = evaluation.evaluate(
        loaded,
        tokenizer,
        tasks,
        split,
        settings,
        place,
        model_name=name,
        documents=documents,
        data=data,
        offline=offline,
        seed=seed,
    )
    return {"rows": len(rows), "items": sum(r.items for r in rows)}
