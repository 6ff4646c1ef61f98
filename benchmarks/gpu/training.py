"""Which trainings are measured, each in a process of its own (trainers.py), and what is made of their figures.

All read the same packed tokens and take the same tokens a step; ours sizes its micro-batch by the memory plan, the others get the
largest power of two that runs. Weights are random; the text is a file or the French of the embedded world, a token a byte, its
documents apart in attention. The cap includes the CUDA context.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from frbio_lite.demo.base import make_tokenizer
from frbio_lite.device import pick_device
from frbio_lite.memory.bases import published

COLUMNS = (
    "part", "model", "method", "implementation", "text", "precision", "cap_gib", "sequence_length", "tokens_per_step",
    "micro_batch_size", "steps", "tokens_per_second", "slowest_turn", "fastest_turn", "peak_allocated", "peak_reserved",
    "predicted_reserved", "first_loss", "last_loss", "loss_gap", "status",
)  # fmt: skip
LOSS_COLUMNS = ("part", "model", "method", "implementation", "step", "loss")
QWEN = {size: f"Qwen/Qwen3-{size}-Base" for size in ("0.6B", "1.7B", "4B", "8B")}
TRAININGS = (*(("qlora", size) for size in QWEN), *(("full", size) for size in ("0.6B", "1.7B", "4B")))
FITS = {("full", "0.6B"): 4.0, ("full", "1.7B"): 8.0, ("full", "4B"): 16.0, ("qlora", "4B"): 6.0, ("qlora", "8B"): 10.0}
PLAIN = "plain"
PEERS = {
    PLAIN: "transformers",
    "ours": "frbio_lite",
    "liger": "liger_kernel",
    "unsloth": "unsloth",
}  # by what they import
WARM_UP, TURNS, TURN = 4, 5, 4  # steps that compile and fill the allocator; then turns, and the steps of one
TINY = {
    "model_type": "qwen3", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 256, "tie_word_embeddings": True, "max_position_embeddings": 4096,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    part: str
    model: str
    method: str  # qlora, full
    implementation: str
    cap_gib: float | None
    precision: str = "auto"
    sequence_length: int = 2048
    windows: int = 4  # of a step
    steps: int = WARM_UP + TURNS * TURN
    micro_batch_size: int | None = None  # None: the memory plan's
    text: str = ""  # a file; none: the embedded world


def run(part: str, tiny: bool, cap_gib: float | None, text: Path | None = None) -> Iterator[dict[str, Any]]:
    """Rows of COLUMNS, each with the `losses` of its steps."""
    file = str(text.absolute()) if text else ""
    with tempfile.TemporaryDirectory(prefix="frbio-bench-") as folder:
        plain: dict[tuple[str, str], list[float]] = {}
        made = [replace(case, text=file) for case in (_tiny(part) if tiny else _cases(part, cap_gib))]
        for cases in by_model(made):
            base = Path(folder) / cases[0].model.replace("/", "--")
            for old in Path(folder).glob("*/*.safetensors"):  # the disk need not hold two models
                old.unlink()
            write_base(base, TINY if tiny else published()[cases[0].model])
            for row in in_process(cases, base) if tiny else (run_fitting(case, base) for case in cases):
                training = row["model"], row["method"]
                if row["implementation"] == PLAIN and row["status"] == "ok":
                    plain[training] = row["losses"]
                yield {**row, "loss_gap": gap(row.get("losses", []), plain.get(training, []))}


def _cases(part: str, cap_gib: float | None) -> list[Case]:
    if part == "fits":  # one window a step: gradients are released only in steps of one micro-batch
        return [Case(part, QWEN[size], method, "ours", cap, windows=1) for (method, size), cap in FITS.items()]
    if part == "fp16":  # as on a T4
        return [Case(part, QWEN["0.6B"], method, "ours", cap_gib, "fp16", steps=200) for method in ("qlora", "full")]
    at_hand = [name for name, module in PEERS.items() if find_spec(module) is not None]
    return [Case(part, QWEN[size], method, name, cap_gib) for method, size in TRAININGS for name in at_hand]


def _tiny(part: str) -> list[Case]:
    names = (PLAIN, "ours") if part == "training" else ("ours",)
    case = Case(part, "tiny", "qlora", "ours", None, sequence_length=128, windows=2, steps=WARM_UP + TURNS)
    peer = replace(case, micro_batch_size=2)
    return [
        replace(case if name == "ours" else peer, method=method, implementation=name)
        for method in ("qlora", "full")
        for name in names
    ]


def by_model(cases: list[Case]) -> list[list[Case]]:
    """The cases of one model together, so that each is written once."""
    return [[c for c in cases if c.model == model] for model in dict.fromkeys(c.model for c in cases)]


def gap(losses: list[float], plain: list[float]) -> float | str:
    """The largest relative distance of two loss curves; empty where one lacks."""
    if not losses or len(losses) != len(plain):
        return ""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, plain, strict=True))


def write_base(directory: Path, configuration: dict[str, Any]) -> None:
    """A model directory of random bf16 weights in the shapes of a configuration, with a tokenizer that nothing here reads."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**configuration)
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    device = pick_device()
    torch.manual_seed(0)
    weights = {}
    for name, parameter in model.named_parameters():  # a tied head comes once
        value = torch.ones(parameter.shape) if parameter.ndim < 2 else torch.empty(parameter.shape, device=device)
        weights[name] = (value if parameter.ndim < 2 else value.normal_(0.0, 0.02)).to(torch.bfloat16).cpu()
    directory.mkdir(parents=True, exist_ok=True)
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    if device.type == "cuda":
        torch.cuda.empty_cache()  # this process stays beside the cases


def run_fitting(case: Case, base: Path) -> dict[str, Any]:
    """The row of a case; a peer starts with all windows at once and halves its micro-batch until it fits."""
    micro = None if case.implementation == "ours" else case.windows
    while True:
        row = in_process([replace(case, micro_batch_size=micro)], base)[0]
        if row["status"] != "out of memory" or not micro or micro == 1:
            return row
        micro //= 2


def in_process(cases: list[Case], base: Path) -> list[dict[str, Any]]:
    """The rows of cases that share a new process (several only where no memory is measured)."""
    command = [sys.executable, str(Path(__file__).with_name("trainers.py")), str(base)]
    command += [json.dumps(asdict(case)) for case in cases]
    done = subprocess.run(command, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]  # libraries print too
    said = done.stderr.strip().splitlines() or ["no message"]
    found += [{"status": f"exit {done.returncode}: {said[-1][:200]}"}] * (len(cases) - len(found))
    return [{**_row(case), **figures} for case, figures in zip(cases, found, strict=True)]


def _row(case: Case) -> dict[str, Any]:
    row = {name: value for name, value in asdict(case).items() if name in COLUMNS}
    tokens = case.windows * case.sequence_length
    text = Path(case.text).name or "embedded world"
    return {**row, "text": text, "tokens_per_step": tokens, "cap_gib": case.cap_gib or "", "micro_batch_size": ""}


def rate(seconds: list[float], tokens_per_step: int) -> dict[str, float]:
    """Tokens per second of the median turn of TURNS, the slowest and the fastest; warming up is not timed."""
    size = max(1, (len(seconds) - WARM_UP) // TURNS)
    timed = seconds[len(seconds) - size * TURNS :]
    rates = sorted(size * tokens_per_step / math.fsum(timed[i : i + size]) for i in range(0, len(timed), size))
    named = {"tokens_per_second": rates[len(rates) // 2], "slowest_turn": rates[0], "fastest_turn": rates[-1]}
    return {name: round(value, 1) for name, value in named.items()}
