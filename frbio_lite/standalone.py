"""One step outside a run: the artifacts of `frbio eval` and `frbio ablate`, made, resumed and skipped as those of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from frbio_lite import evaluation, hub
from frbio_lite.ablation import ablate
from frbio_lite.errors import RequestError
from frbio_lite.evaluation.tasks import SplitName
from frbio_lite.pipeline import Split, benchmark_digests, locate, make, score, scored_by
from frbio_lite.progress import say
from frbio_lite.recipe import Eval, Merge


def _at_hand(tasks: list[evaluation.Task], settings: Eval, split: Split, data: Path | None) -> list[evaluation.Task]:
    splits: list[SplitName] = [split, "shots"] if settings.shots and not settings.shots_from_test else [split]
    named = [name for name in settings.tasks if name in evaluation.task_names()]
    kept = [t for t in tasks if t.name in named or evaluation.at_hand(t, splits, data)]
    if left := [t.name for t in tasks if t not in kept]:
        say(
            f"offline, without local data for {', '.join(left)}: left out "
            "(`frbio tasks fetch NAME --to DIR` copies them where there is a network, then --data DIR)"
        )
    return kept


def evaluate_model(
    name: str,
    adapter: str | None,
    settings: Eval,
    out: Path,
    *,
    split: Split,
    corpus_directory: Path | None,
    data: Path | None,
    offline: bool,
    seed: int = 17,
) -> Path:
    """`frbio eval`: one model, one split, an EvalResult artifact in `out`.

    Offline, the members of a set whose data are not at hand are left out, and said; a task that is named is needed.
    """
    tasks = evaluation.load_tasks(settings.tasks)
    if offline:
        tasks = _at_hand(tasks, settings, split, data)
    directory, live = locate(name), hub.fetch(adapter) if adapter else None
    if hub.is_adapter(directory):
        raise RequestError(f"{name} is an adapter: pass it as --adapter and the base it belongs to as --model")
    parents = benchmark_digests(tasks, data, corpus_directory) | {"model": hub.digest(directory)}
    if live is not None:
        parents["adapter"] = hub.digest(live)
    make(
        out,
        "EvalResult",
        lambda place: score(
            directory,
            live,
            tasks,
            settings,
            place,
            name=name,
            split=split,
            documents=corpus_directory,
            data=data,
            offline=offline,
            seed=seed,
        ),
        settings={"eval": scored_by(settings), "split": split},
        parents=parents,
        seed=seed,
        resumable=True,
    )
    return out


def ablate_ratios(
    base: str,
    adapted: Sequence[str],
    settings: Merge,
    eval_settings: Eval,
    out: Path,
    *,
    nf4: bool,
    test: bool,
    corpus_directory: Path | None,
    data: Path | None,
    offline: bool,
    seed: int = 17,
) -> Path:
    """`frbio ablate`: an Ablation artifact in `out`."""
    tasks = evaluation.load_tasks(eval_settings.tasks)
    base_directory, others = locate(base), [hub.fetch(name) for name in adapted]
    parents = benchmark_digests(tasks, data, corpus_directory) | {"base": hub.digest(base_directory)}
    names = ["train", *(f"train-{i}" for i in range(2, len(others) + 1))]
    parents |= {name: hub.digest(other) for name, other in zip(names, others, strict=True)}
    make(
        out,
        "Ablation",
        lambda place: ablate(
            base_directory,
            others,
            settings,
            eval_settings,
            tasks,
            place,
            nf4=nf4,
            test=test,
            documents=corpus_directory,
            data=data,
            offline=offline,
            seed=seed,
        ),
        settings={
            "merge": settings.model_dump(mode="json"),
            "eval": scored_by(eval_settings),
            "nf4": nf4,
            "test": test,
        },
        parents=parents,
        seed=seed,
        resumable=True,
    )
    return out
