"""What --track gives to a tool: every step once, whatever interrupts the run, and never a result or a run that depends on it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from frbio_lite import pipeline, tracking, training
from frbio_lite.errors import RequestError
from frbio_lite.packing import PackedTokens
from frbio_lite.recipe import Packing, Train, load_recipe
from frbio_lite.tracking import Tracker, tracker

Make = Callable[..., Path]
FIGURES = {"tokens", "loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes"}


def settings(**changes: Any) -> Train:
    values: dict[str, Any] = {
        "method": "lora", "tokens": 64 * 8, "tokens_per_step": 64, "micro_batch_size": 1,
        "optimizer": {"learning_rate": 1e-3}, "lora": {"rank": 4, "alpha": 8}, "checkpoint": {"every_minutes": 1e-9},
    }  # fmt: skip
    return Train.model_validate({**values, **changes})


def run(base: Path, packed: Path, out: Path, given: Tracker | None, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    data = PackedTokens(packed)
    return training.train(base, data, settings(**changes), Packing(sequence_length=64), 3, out, tracker=given)


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


class Recorder:
    """A tool that remembers, and fails when it is told to."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.steps: dict[int, Mapping[str, float]] = {}
        self.calls: list[str] = []
        self.fails = fails

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        if self.fails is not None and step == 3:
            raise self.fails
        assert step not in self.steps
        self.steps[step] = figures
        self.calls.append("write")

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(tracking, "say", lines.append)
    return lines


def dies_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends in the step after these, with a checkpoint one step older than the log."""
    real_update, real_save, calls = training.update, training.checkpoint.save, 0

    def update(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise ConnectionResetError("the power went")
        return real_update(*given)

    def save(directory: Path, step: int, *given: Any) -> None:
        if step < steps:
            real_save(directory, step, *given)

    monkeypatch.setattr(training, "update", update)
    monkeypatch.setattr(training.checkpoint, "save", save)


def test_a_writer_gets_every_figure_of_the_log(make_base: Make, make_packed: Make, tmp_path: Path) -> None:
    writer = Recorder()
    run(make_base(), make_packed(), tmp_path / "out", Tracker(lambda: writer))
    assert writer.steps == {
        line["step"]: {name: value for name, value in line.items() if name != "step"} for line in log(tmp_path / "out")
    }
    assert list(writer.steps) == [*range(1, 9)] and set(writer.steps[1]) == FIGURES
    assert writer.calls == ["write", "flush"] * 7 + ["write", "close"], "flushed with each checkpoint"


def test_what_was_not_measured_is_left_out() -> None:
    writer = Recorder()
    given = Tracker(lambda: writer)
    with given.following([{"step": 1, "loss": 2, "grad_norm": None}]):
        given.log({"step": 2, "loss": 1.5, "grad_norm": 0.5})
    assert writer.steps == {1: {"loss": 2.0}, 2: {"loss": 1.5, "grad_norm": 0.5}}


def test_an_interrupted_run_is_whole_in_the_tool(
    make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, packed = make_base(), make_packed()
    first, second = Recorder(), Recorder()
    with monkeypatch.context() as patch:
        dies_after(5, patch)
        with pytest.raises(ConnectionResetError):
            run(base, packed, tmp_path / "out", Tracker(lambda: first))
    assert first.calls[-1] == "close" and list(first.steps) == [1, 2, 3, 4, 5]
    assert run(base, packed, tmp_path / "out", Tracker(lambda: second))["resumed_at_step"] == 4
    assert list(second.steps) == [*range(1, 9)]
    assert [second.steps[s]["loss"] for s in range(1, 6)] == [first.steps[s]["loss"] for s in range(1, 6)]


@pytest.mark.parametrize("error", [OSError("No space left on device\nat 3"), ValueError()])
def test_a_tool_that_fails_is_said_once_and_stops_nothing(
    error: Exception, said: list[str], make_base: Make, make_packed: Make, tmp_path: Path
) -> None:
    base, packed, writer = make_base(), make_packed(), Recorder(error)
    assert run(base, packed, tmp_path / "out", Tracker(lambda: writer))["steps"] == 8
    told = (str(error) or "no message").splitlines()[0]
    assert said == [
        f"train: warning: tracking ends here ({type(error).__name__}: {told}); "
        "training goes on, and log.jsonl has every step"
    ]
    assert list(writer.steps) == [1, 2] and len(log(tmp_path / "out")) == 8


def test_a_tool_that_does_not_open_is_said_once(
    said: list[str], make_base: Make, make_packed: Make, tmp_path: Path
) -> None:
    def no_tool() -> Recorder:
        raise ImportError("libssl.so.3: cannot open shared object file")

    assert run(make_base(), make_packed(), tmp_path / "out", Tracker(no_tool))["steps"] == 8
    assert len(said) == 1 and "ImportError: libssl.so.3" in said[0]


@pytest.mark.parametrize("tool", tracking.TOOLS)
def test_a_tool_that_is_missing_is_refused_before_any_work(
    tool: tracking.Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == tool else real(name))
    with pytest.raises(RequestError, match=f"--track {tool}: {tool} is not installed: pip install {tool}, or leave"):
        pipeline.run(load_recipe("demo"), tmp_path / "run", track=tool)
    assert not (tmp_path / "run").exists()


def test_other_tools_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--track wandb: tensorboard and trackio are known"):
        pipeline.run(load_recipe("demo"), tmp_path / "run", track="wandb")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def scalars(directory: Path) -> dict[str, dict[int, float]]:
    """Of every tag, the values by step that TensorBoard shows."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = event_accumulator.EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    shown = {}
    for tag in found.Tags()["scalars"]:
        events = found.Scalars(tag)
        assert len({event.step for event in events}) == len(events), f"{tag} has a step twice"
        shown[tag] = {event.step: event.value for event in events}
    return shown


def test_tensorboard_shows_every_step_once(
    make_base: Make, make_packed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    pytest.importorskip("tensorboard")
    base, packed, out, place = make_base(), make_packed(), tmp_path / "train", tmp_path / "tensorboard"
    with monkeypatch.context() as patch:
        dies_after(5, patch)
        with pytest.raises(ConnectionResetError):
            run(base, packed, out, tracker("tensorboard", tmp_path, "0123456789"))
    (directory,) = place.iterdir()
    assert directory.name == f"{tmp_path.name}-01234567"
    assert set(scalars(directory)["train/loss"]) == {1, 2, 3, 4, 5}
    run(base, packed, out, tracker("tensorboard", tmp_path, "0123456789"))
    shown = scalars(directory)
    assert set(shown) == {f"train/{name}" for name in FIGURES}
    for name in FIGURES:
        assert shown[f"train/{name}"] == pytest.approx({line["step"]: line[name] for line in log(out)}, rel=1e-6)
    assert said == [f"train: tensorboard --logdir {place}"] * 2


TRACKIO = """
import sys
from pathlib import Path
from frbio_lite.tracking import tracker
for key, steps in (("0123456789", 5), ("0123456789", 8), ("other", 2)):
    given = tracker("trackio", Path("mine"), key)
    with given.following([{"step": s, "loss": 1.0 / s, "grad_norm": None} for s in range(1, steps)]):
        given.log({"step": steps, "loss": 1.0 / steps, "grad_norm": 0.5})
        given.flush()
"""


def test_trackio_has_every_step_once(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    local = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}

    def python(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], env=local, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("-c", TRACKIO) == "", "standard output is for results"

    def ask(*words: str) -> Any:
        command = [
            "-c",
            "import sys; from trackio.cli import main; main()",
            *words,
            "--project",
            "frbio-lite",
            "--json",
        ]
        return json.loads(python(*command))

    assert sorted(ask("list", "runs")["runs"]) == ["mine-01234567", "mine-other"]
    values = ask("get", "metric", "--run", "mine-01234567", "--metric", "loss")["values"]
    assert [(v["step"], v["value"]) for v in values] == [(s, 1.0 / s) for s in range(1, 9)]
