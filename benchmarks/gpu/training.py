"""Tokens per second and peak memory of twenty training steps, each case in a process of its own.

`ours` is frbio_lite's own loading, optimizer and step. `plain` is what transformers, PEFT and bitsandbytes document: a model
loaded by `from_pretrained`, `prepare_model_for_kbit_training`, LoRA on all linear layers, gradient checkpointing, 8-bit AdamW,
`model(labels=...)` under autocast. `liger` is `plain` after `apply_liger_kernel_to_qwen3`. All read the same packed tokens and
take the same tokens a step; ours sizes its micro-batch by the memory plan, the others get the largest power of two that runs.
Weights and tokens are random (documents of 64 to 1,024 tokens, apart in attention). The cap includes the CUDA context.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import first_line
from torch import Tensor

from frbio_lite import recipe
from frbio_lite.device import pick_device, pick_dtype
from frbio_lite.errors import RequestError
from frbio_lite.memory import CONTEXT, GIB, Card, Job, Plan, card_at_hand, plan
from frbio_lite.memory.bases import published

COLUMNS = (
    "part", "model", "method", "implementation", "cap_gib", "sequence_length", "tokens_per_step", "micro_batch_size", "steps",
    "tokens_per_second", "peak_allocated", "peak_reserved", "predicted_reserved", "first_loss", "last_loss", "status",
)  # fmt: skip
QWEN = {size: f"Qwen/Qwen3-{size}-Base" for size in ("0.6B", "1.7B", "4B", "8B")}
TRAININGS = (*(("qlora", size) for size in QWEN), *(("full", size) for size in ("0.6B", "1.7B", "4B")))
FITS = {("full", "0.6B"): 4.0, ("full", "1.7B"): 8.0, ("full", "4B"): 16.0, ("qlora", "4B"): 6.0, ("qlora", "8B"): 10.0}
IMPLEMENTATIONS = ("ours", "plain", "liger")
WARM_UP = 4  # steps that compile and fill the allocator; not timed
WINDOWS = 64
RATE = 1e-5
TINY = {
    "model_type": "qwen3", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 256, "tie_word_embeddings": True, "max_position_embeddings": 4096,
}  # fmt: skip


Step = Callable[[dict[str, Tensor]], float]  # a batch in, the loss out


@dataclass(frozen=True)
class Case:
    part: str
    model: str
    method: str  # qlora, full
    implementation: str
    cap_gib: float | None
    sequence_length: int = 2048
    windows: int = 4  # of a step
    steps: int = 20
    micro_batch_size: int | None = None  # None: the memory plan's


def run(tiny: bool, cap_gib: float | None, fits: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of COLUMNS: `fits` runs ours alone under the caps of FITS, else all implementations run under `cap_gib`."""
    with tempfile.TemporaryDirectory(prefix="frbio-bench-") as folder:
        for cases in _cases(tiny, cap_gib, fits):
            base = Path(folder) / cases[0].model.replace("/", "--")
            if not (base / "model.safetensors").exists():
                for old in Path(folder).glob("*/*.safetensors"):  # the disk need not hold two models
                    old.unlink()
                write_base(base, TINY if tiny else published()[cases[0].model])
            if tiny:
                yield from in_process(cases, base)
            else:
                yield from (run_fitting(case, base) for case in cases)


def _cases(tiny: bool, cap_gib: float | None, fits: bool) -> list[list[Case]]:
    """By model, so that each is written once."""
    if tiny:
        made = [
            Case("fits" if fits else "training", "tiny", method, which, None, 128, 2, 3, None if which == "ours" else 2)
            for method in ("qlora", "full")
            for which in (("ours",) if fits else IMPLEMENTATIONS[:2])
        ]
        return [made]
    if fits:
        # one window a step: gradients are released only in steps of one micro-batch
        return [[Case("fits", QWEN[size], method, "ours", cap, windows=1)] for (method, size), cap in FITS.items()]
    which = [name for name in IMPLEMENTATIONS if name != "liger" or _installed("liger_kernel")]
    by_model = {size: [method for method, s in TRAININGS if s == size] for size in QWEN}
    return [
        [Case("training", QWEN[size], method, name, cap_gib) for method in methods for name in which]
        for size, methods in by_model.items()
    ]


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def write_base(directory: Path, configuration: dict[str, Any]) -> None:
    """A model directory of random bf16 weights in the shapes of a configuration."""
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
    config.save_pretrained(directory)
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
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps([asdict(case) for case in cases]), str(base)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]  # libraries print too
    said = done.stderr.strip().splitlines() or ["no message"]
    found += [{"status": f"exit {done.returncode}: {said[-1][:200]}"}] * (len(cases) - len(found))
    return [{**_row(case), **figures} for case, figures in zip(cases, found, strict=True)]


def _row(case: Case) -> dict[str, Any]:
    row = {name: value for name, value in asdict(case).items() if name in COLUMNS}
    return {**row, "tokens_per_step": case.windows * case.sequence_length, "cap_gib": case.cap_gib or ""}


# In the child


class RandomWindows:
    """Packed windows of random tokens, the same for all: documents of 64 to 1,024 tokens, the last cut by the window's end."""

    def __init__(self, length: int, vocabulary: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.windows, self.sequence_length = WINDOWS, length
        self.tokens = torch.randint(vocabulary, (WINDOWS, length), generator=random)
        self.positions = torch.empty(WINDOWS, length, dtype=torch.int64)
        for row in self.positions:
            start = 0
            while start < length:
                size = min(int(torch.randint(64, 1025, (), generator=random)), length - start)
                row[start : start + size] = torch.arange(size)
                start += size

    def batch(self, step: int, windows: int) -> dict[str, Tensor]:
        """input_ids, position_ids and labels [windows, T]; a label is the next token of the same document, else -100."""
        rows = (torch.arange(windows) + step * windows) % self.windows
        ids, positions = self.tokens[rows], self.positions[rows]
        labels = ids.roll(-1, dims=1)
        labels[positions.roll(-1, dims=1) == 0] = -100
        return {"input_ids": ids, "position_ids": positions, "labels": labels}


def settings(case: Case) -> tuple[recipe.Base, recipe.Train, recipe.Packing]:
    """The recipe of ours, with what it has for little memory."""
    qlora = case.method == "qlora"
    tokens = case.windows * case.sequence_length
    release = not qlora and pick_dtype("auto", pick_device()) != torch.float16
    train = recipe.Train(
        method="qlora" if qlora else "full", tokens=tokens * case.steps, tokens_per_step=tokens, activation_checkpointing=True,
        micro_batch_size=case.micro_batch_size or "auto", gradient_release=release,
        optimizer=recipe.Optimizer(name="adamw4bit", learning_rate=RATE),
    )  # fmt: skip
    return (
        recipe.Base(model=case.model, quantize_head=qlora),
        train,
        recipe.Packing(sequence_length=case.sequence_length),
    )


def predict(case: Case, base: Path) -> Plan:
    """Our plan for a card of the cap's size, or for the whole one; on a CPU for a card with bf16, so that the plan is tried."""
    from frbio_lite import hub

    card = card_at_hand() or Card("none", 12 * GIB, 86)
    if case.cap_gib is not None:
        card = replace(card, memory=min(card.memory, int(case.cap_gib * GIB)))
    return plan(Job(hub.load_config(base), *settings(case)), card)


def ours(case: Case, base: Path, dtype: torch.dtype, figures: dict[str, Any]) -> Step:
    """The steps of `frbio_lite.training.train`, without its log and checkpoints; the memory plan goes into `figures`."""
    from frbio_lite.optim import make_optimizer
    from frbio_lite.optim.release import GradientRelease
    from frbio_lite.training import accumulate_fitting, prepare_model, update

    device = pick_device()
    loading, train, packing = settings(case)
    model, kernels = prepare_model(base, train, packing, dtype, device, 0, loading)
    if device.type == "cuda" and not kernels["swapped"]:
        raise RuntimeError(f"the fused kernels are off: {kernels['plain']}")
    optimizer = make_optimizer(model, train.optimizer, 0)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    norm = train.optimizer.max_grad_norm
    release = GradientRelease(optimizer, scaler, norm) if train.gradient_release else None
    planned = predict(case, base)
    micro = planned.micro_batch_size
    figures["predicted_reserved"] = planned.needed - CONTEXT
    model.train()

    def step(batch: dict[str, Tensor]) -> float:
        nonlocal micro
        if release is not None and release.norm is None:
            with release.measuring():
                _, micro = accumulate_fitting(model, batch, micro, True, device, dtype, scaler, release)
        loss, micro = accumulate_fitting(model, batch, micro, True, device, dtype, scaler, release)
        update(model, optimizer, scaler, norm, release)
        figures["micro_batch_size"] = micro
        return loss

    return step


def plain(case: Case, base: Path, dtype: torch.dtype, figures: dict[str, Any]) -> Step:
    """The same step with transformers, PEFT and bitsandbytes alone."""
    from bitsandbytes.optim import AdamW8bit
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    device = pick_device()
    if case.implementation == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3()
    if case.method == "qlora":
        nf4 = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        loaded = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, quantization_config=nf4, device_map={"": device}
        )
        loaded = prepare_model_for_kbit_training(
            loaded, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        lora = LoraConfig(r=32, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(loaded, lora)
    else:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW8bit(trained, lr=RATE, weight_decay=0.05)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    figures["micro_batch_size"] = micro = case.micro_batch_size or case.windows
    model.train()

    def step(batch: dict[str, Tensor]) -> float:
        total, parts = 0.0, math.ceil(case.windows / micro)
        for start in range(0, case.windows, micro):
            part = {name: rows[start : start + micro].to(device) for name, rows in batch.items()}
            labels = part["input_ids"].masked_fill(part["position_ids"] == 0, -100)  # the model shifts them
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = model(input_ids=part["input_ids"], position_ids=part["position_ids"], labels=labels).loss / parts
            scaler.scale(loss).backward()
            total += float(loss.detach())
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


def measure(case: Case, base: Path) -> dict[str, Any]:
    """The figures of a case, in this process."""
    device = pick_device()
    dtype = pick_dtype("auto", device)
    figures: dict[str, Any] = {}
    if case.cap_gib is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (case.cap_gib * GIB - CONTEXT) / total), device)
    vocabulary = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    data = RandomWindows(case.sequence_length, vocabulary)
    losses, seconds = [], []
    try:
        step = (ours if case.implementation == "ours" else plain)(case, base, dtype, figures)
        for number in range(case.steps):
            batch = data.batch(number, case.windows)
            _wait(device)
            began = time.perf_counter()
            losses.append(step(batch))
            _wait(device)
            seconds.append(time.perf_counter() - began)
        status = "ok" if all(map(math.isfinite, losses)) else "the loss is not finite"
    except torch.OutOfMemoryError:
        status = "out of memory"
    except RequestError as error:  # ours says so in words
        status = "out of memory" if "memory" in str(error) else first_line(error)
    figures["status"] = status
    if device.type == "cuda":
        figures["peak_allocated"] = torch.cuda.max_memory_allocated(device)
        figures["peak_reserved"] = torch.cuda.max_memory_reserved(device)
    if status == "ok":
        timed = seconds[min(WARM_UP, case.steps - 1) :]
        rate = case.windows * case.sequence_length / statistics.median(timed)
        figures |= {"tokens_per_second": round(rate, 1), "first_loss": losses[0], "last_loss": losses[-1]}
    return figures


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Cases in this process, a line of JSON each: run.py starts it.")
    parser.add_argument("cases")
    parser.add_argument("base", type=Path)
    given = parser.parse_args()
    for values in json.loads(given.cases):
        print(json.dumps(measure(Case(**values), given.base)), flush=True)  # noqa: T201
