"""The embedded demonstration itself, as `frbio run demo` runs it: within its time and memory, and with the effect it shows."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = 300  # promised for two cores, the training of the base included
BYTES = 3 * 10**9

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, int]:
    """(run directory, seconds, peak resident bytes) of the first run on a fresh machine."""
    place = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, "FRBIO_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "frbio_lite.cli", "run", "demo", "--out", str(place / "run")]
    began = time.monotonic()
    with (place / "log").open("w") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, (place / "log").read_text(encoding="utf-8")
    return place / "run", time.monotonic() - began, usage.ru_maxrss * 1024


def test_it_stays_within_its_memory_and_says_its_time(demo: tuple[Path, float, int]) -> None:
    """Time is asserted with room for a busy machine; benchmarks/end_to_end holds what was measured."""
    _, seconds, peak = demo
    assert peak < BYTES
    assert seconds < 3 * SECONDS


def curve(out: Path, task: str) -> dict[float, tuple[float, float, float]]:
    """ratio → (value, low, high) on validation items."""
    with (out / "ablation" / "ablation.csv").open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["task"] == task]
    return {float(r["ratio"]): (float(r["value"]), float(r["low"]), float(r["high"])) for r in rows}


def test_the_adapted_model_gains_medicine_and_loses_the_rest_beyond_the_intervals(
    demo: tuple[Path, float, int],
) -> None:
    out = demo[0]
    gain, loss = curve(out, "demo-medical"), curve(out, "demo-general")
    assert gain[1.0][1] > gain[0.0][2]
    assert loss[1.0][2] < loss[0.0][1]
    domain, general = curve(out, "heldout-domain"), curve(out, "heldout-general")  # bits per byte: lower is better
    assert domain[1.0][2] < domain[0.0][1]
    assert general[1.0][1] > general[0.0][2]


def test_the_ratios_lie_between_their_ends(demo: tuple[Path, float, int]) -> None:
    for task in ("heldout-domain", "heldout-general"):
        points = curve(demo[0], task)
        values = [points[r][0] for r in sorted(points)]
        assert len(values) == 11
        ends = sorted((values[0], values[-1]))
        assert all(ends[0] - 0.05 <= v <= ends[1] + 0.05 for v in values)
    medical = curve(demo[0], "demo-medical")
    assert medical[0.5][0] < medical[0.9][0]


def test_the_test_items_say_the_same(demo: tuple[Path, float, int]) -> None:
    rows = {
        model: {
            r["task"]: r for r in json.loads((demo[0] / "eval" / model / "results.json").read_text("utf-8"))["rows"]
        }
        for model in ("base", "adapted", "merged")
    }
    assert rows["adapted"]["demo-medical"]["low"] > rows["base"]["demo-medical"]["high"]
    assert rows["adapted"]["demo-general"]["high"] < rows["base"]["demo-general"]["low"]
    assert rows["merged"]["demo-general"]["value"] > rows["adapted"]["demo-general"]["value"]


def test_the_report_shows_it_and_says_what_it_is(demo: tuple[Path, float, int]) -> None:
    page = (demo[0] / "report" / "report.html").read_text(encoding="utf-8")
    choice = json.loads((demo[0] / "ablation" / "choice.json").read_text(encoding="utf-8"))
    assert 0.0 < choice["ratio"] < 1.0
    assert f"chosen: {choice['ratio']:g}" in page
    assert "This is a demonstration, not a medical model." in page
    assert "demo-medical" in page and "Training loss" in page
