"""What changes no result starts no training anew: how a step is computed, how often it is saved, who is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frbio_lite import pipeline, tracking, training
from frbio_lite.artifacts import read_manifest
from frbio_lite.errors import RequestError
from frbio_lite.recipe import Recipe, load_recipe

SMALL = [
    "corpus.sources.0.path=demo:medical:1", "corpus.sources.1.path=demo:general:1", "packing.sequence_length=64",
    "train.tokens=1024", "train.tokens_per_step=256", "train.lora.rank=4", "train.checkpoint.every_minutes=0.0000001",
]  # fmt: skip
FITTED = [
    "train.micro_batch_size=1",
    "train.activation_checkpointing=true",
    "train.kernels=off",
    "train.checkpoint.keep=1",
]


@pytest.fixture
def small(make_base: Callable[..., Path]) -> Callable[..., Recipe]:
    base = make_base()
    return lambda *overrides: load_recipe("demo", [f"base.model={base}", *SMALL, *overrides])


def test_a_run_that_did_not_fit_goes_on_when_it_is_made_to_fit(
    small: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = training.accumulate, 0

    def fills_up(*given: Any) -> float:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise RequestError("the GPU's memory does not hold a micro-batch of 4")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "accumulate", fills_up)
        with pytest.raises(RequestError, match="does not hold"):
            pipeline.run(small(), tmp_path / "run", until="train")
    out = pipeline.run(small(*FITTED), tmp_path / "run", until="train")
    manifest = read_manifest(out / "train", "TrainedWeights")
    assert manifest.figures["resumed_at_step"] == 2 and manifest.figures["micro_batch_size"] == 1
    assert (
        manifest.settings["packing"]["sequence_length"] == 64
        and not manifest.settings["train"].keys() & pipeline.SAME_TRAINING
    )
    pipeline.run(small("train.optimizer.learning_rate=1e-5"), tmp_path / "run", until="train")
    assert read_manifest(out / "train", "TrainedWeights").figures["resumed_at_step"] == 0


def test_tracking_is_part_of_no_key_and_no_digest(
    small: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    class Writer:
        def __init__(self, directory: Path) -> None:
            (directory).mkdir(parents=True)
            (directory / "events").write_text("one file", encoding="utf-8")

        def write(self, step: int, figures: dict[str, float]) -> None:
            steps.append(step)

        def flush(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(tracking, "TensorBoard", Writer)
    monkeypatch.setattr(pipeline, "check_tool", lambda tool: None)
    plain = pipeline.run(small(), tmp_path / "plain", until="train")
    tracked = pipeline.run(small(), tmp_path / "tracked", until="train", track="tensorboard")
    one, other = (read_manifest(out / "train", "TrainedWeights") for out in (plain, tracked))
    assert steps == [1, 2, 3, 4] and (one.key, one.digest, one.files.keys()) == (
        other.key,
        other.digest,
        other.files.keys(),
    )
    assert [p.name for p in (tracked / "tensorboard").iterdir()] != [] and not (plain / "tensorboard").exists()
    before = (plain / "train" / "manifest.json").stat().st_mtime_ns
    pipeline.run(small(), plain, until="train", track="tensorboard")
    assert (plain / "train" / "manifest.json").stat().st_mtime_ns == before and len(steps) == 4
    log = (tracked / "train" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]
