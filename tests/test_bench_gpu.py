"""The GPU benchmark's logic, at tiny size on a CPU: every operation and every training has a row with finite figures."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RUN = Path(__file__).parent.parent / "benchmarks" / "gpu" / "run.py"
OPS = {
    "rms_norm", "add_rms_norm", "rope", "qk_norm_rope", "swiglu", "nf4_dequantise", "linear_cross_entropy", "interpolate",
    "adamw4bit",
}  # fmt: skip
WITHOUT_BACKWARD = {"nf4_dequantise", "interpolate", "adamw4bit"}
LIBRARIES = ["gpu", "torch", "triton", "transformers", "peft", "bitsandbytes", "liger-kernel", "torchao", "unsloth"]
Rows = list[dict[str, str]]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, RUN, *options], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    out = tmp_path_factory.mktemp("bench")
    text = tmp_path_factory.mktemp("text") / "notes.txt"
    text.write_text(
        "\n\n".join(f"Le patient {i} reçoit {i} mg de métoprolol, 37,5 °C." for i in range(9)), encoding="utf-8"
    )
    done = run("--tiny", "--out", str(out), "--text", str(text))
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in out.glob("*.svg")} == {path.stem for path in out.glob("*.csv")}
    return {path.stem: list(csv.DictReader(path.open(encoding="utf-8"))) for path in out.glob("*.csv")}


@pytest.mark.slow
def test_every_operation_is_timed_beside_torch(tables: dict[str, Rows]) -> None:
    rows = tables["kernels"]
    assert list(rows[0]) == [
        "op", "direction", "implementation", "dtype", "shape", "seconds", "bytes", "copy_bytes_per_second", "share_of_copy",
        "note", *LIBRARIES,
    ]  # fmt: skip
    expected = {(op, "forward") for op in OPS} | {(op, "backward") for op in OPS - WITHOUT_BACKWARD}
    for implementation in ("ours", "torch eager"):
        timed = [row for row in rows if row["implementation"] == implementation]
        assert {(row["op"], row["direction"]) for row in timed} == expected
        assert len(timed) == len(expected)
        for row in timed:
            seconds, share = float(row["seconds"]), float(row["share_of_copy"])
            assert 0.0 < seconds < 10.0 and math.isfinite(seconds) and not row["note"]
            rate = float(row["copy_bytes_per_second"])
            assert share == pytest.approx(float(row["bytes"]) / seconds / rate, rel=1e-3, abs=1e-4)
    assert all(row["note"] for row in rows if not row["seconds"])
    assert all(row["torch"] == torch.__version__ and row["gpu"] for row in rows)


@pytest.mark.slow
def test_the_bytes_are_what_each_format_moves(tables: dict[str, Rows]) -> None:
    """At 32 tokens and fp32: 128 columns, an MLP of 256, 3 heads of 64; weights of 256 × 128."""
    ours = {(r["op"], r["direction"]): int(r["bytes"]) for r in tables["kernels"] if r["implementation"] == "ours"}
    hidden, inner, heads, weights = 4 * 32 * 128, 4 * 32 * 256, 4 * 32 * 3 * 64, 256 * 128
    assert ours["rms_norm", "forward"] == 2 * hidden and ours["rms_norm", "backward"] == 3 * hidden
    assert ours["swiglu", "forward"] == 3 * inner and ours["swiglu", "backward"] == 5 * inner
    assert ours["qk_norm_rope", "forward"] == 2 * heads and ours["qk_norm_rope", "backward"] == 3 * heads
    assert ours["adamw4bit", "forward"] == weights * (3 * 4 + 2 * 1.0625)
    assert ours["nf4_dequantise", "forward"] == pytest.approx(weights * 4.516, rel=1e-3)
    theirs = [r for r in tables["kernels"] if r["implementation"] == "bitsandbytes 8-bit"]
    assert [int(r["bytes"]) for r in theirs] == [weights * (3 * 4 + 4.0625)]


@pytest.mark.slow
def test_ours_and_the_plain_loop_train_alike(tables: dict[str, Rows]) -> None:
    rows = {(row["method"], row["implementation"]): row for row in tables["training"]}
    assert set(rows) == {(method, which) for method in ("qlora", "full") for which in ("ours", "plain")}
    assert list(tables["training"][0]) == [
        "part", "model", "method", "implementation", "text", "precision", "cap_gib", "sequence_length", "tokens_per_step",
        "micro_batch_size", "steps", "tokens_per_second", "slowest_turn", "fastest_turn", "peak_allocated", "peak_reserved",
        "predicted_reserved", "first_loss", "last_loss", "loss_gap", "status", *LIBRARIES,
    ]  # fmt: skip
    for row in (*rows.values(), *tables["fits"], *tables["fp16"]):
        assert row["status"] == "ok" and row["text"] == "notes.txt"
        assert 0.0 < float(row["slowest_turn"]) <= float(row["tokens_per_second"]) <= float(row["fastest_turn"])
    for method in (
        "qlora",
        "full",
    ):  # the same tokens and weights; ours has the head and the optimizer's states in 4 bits
        assert float(rows[method, "ours"]["predicted_reserved"]) > 0.0
        assert float(rows[method, "plain"]["loss_gap"]) == 0.0
        assert 0.0 < float(rows[method, "ours"]["loss_gap"]) < (5e-3 if method == "qlora" else 1e-3)
    for part in ("fits", "fp16"):
        assert {(row["method"], row["implementation"]) for row in tables[part]} == {("qlora", "ours"), ("full", "ours")}


@pytest.mark.slow
def test_each_step_of_a_training_has_its_loss(tables: dict[str, Rows]) -> None:
    for row in tables["training"]:
        same = ("model", "method", "implementation")
        curve = [r for r in tables["training_losses"] if all(r[name] == row[name] for name in same)]
        assert [int(r["step"]) for r in curve] == list(range(1, int(row["steps"]) + 1))
        assert (curve[0]["loss"], curve[-1]["loss"]) == (row["first_loss"], row["last_loss"])


def test_the_rate_is_that_of_the_median_turn_after_warming_up() -> None:
    sys.path.insert(0, str(RUN.parent))
    try:
        from training import TURN, TURNS, WARM_UP, gap, rate
    finally:
        sys.path.remove(str(RUN.parent))
    turns = [0.5, 4.0, 1.0, 2.0, 0.25]  # seconds of a step
    seconds = [100.0] * WARM_UP + [s for s in turns for _ in range(TURN)]
    assert len(turns) == TURNS
    assert rate(seconds, 100) == {"tokens_per_second": 100.0, "slowest_turn": 25.0, "fastest_turn": 400.0}
    assert (
        gap([2.0, 1.1], [2.0, 1.0]) == pytest.approx(0.1)
        and gap([1.0], []) == gap([], []) == gap([1.0, 2.0], [1.0]) == ""
    )


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "results"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "Error: there is no CUDA GPU here: nothing is measured (--tiny tries the logic on a CPU)"
    ]
    assert not (tmp_path / "results").exists()
