"""The steps of one training as each implementation takes them; training.py starts this file, one process a case.

`ours` is frbio_lite's own loading, optimizer and step. `plain` is what transformers, PEFT and bitsandbytes document: a model
loaded by `from_pretrained`, `prepare_model_for_kbit_training`, LoRA on all linear layers, gradient checkpointing, 8-bit AdamW,
`model(labels=...)` under autocast. `liger` is `plain` after `apply_liger_kernel_to_qwen3`. `unsloth` is its FastLanguageModel
with its own checkpointing, under the loop of `plain`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

if any('"unsloth"' in argument for argument in sys.argv[1:]):
    import unsloth  # noqa: F401  it changes transformers, so it comes before it

import torch
from common import first_line
from torch import Tensor
from training import Case, rate

from frbio_lite import recipe
from frbio_lite.demo.world import documents
from frbio_lite.device import pick_device, pick_dtype
from frbio_lite.errors import RequestError
from frbio_lite.memory import CONTEXT, GIB, Card, Job, Plan, card_at_hand, plan

WINDOWS = 64
RATES = {"qlora": 2e-4, "full": 2e-5}
RANK = 32
Step = Callable[[dict[str, Tensor]], float]  # a batch in, the loss out


class PackedText:
    """Windows of French text, a token a byte, the same for all: one document after the other, the last one cut off."""

    def __init__(self, length: int, file: str = "") -> None:
        self.tokens = torch.empty(WINDOWS, length, dtype=torch.int64)
        self.positions = torch.empty(WINDOWS, length, dtype=torch.int64)
        texts = cycle(text.encode() for text in (read(Path(file)) if file else embedded()))
        for tokens, positions in zip(self.tokens, self.positions, strict=True):
            start = 0
            while start < length:
                text = next(texts)[: length - start]
                tokens[start : start + len(text)] = torch.tensor(list(text))
                positions[start : start + len(text)] = torch.arange(len(text))
                start += len(text)

    def batch(self, step: int, windows: int) -> dict[str, Tensor]:
        """input_ids, position_ids and labels [windows, T]; a label is the next token of the same document, else -100."""
        rows = (torch.arange(windows) + step * windows) % WINDOWS
        ids, positions = self.tokens[rows], self.positions[rows]
        labels = ids.roll(-1, dims=1)
        labels[positions.roll(-1, dims=1) == 0] = -100
        return {"input_ids": ids, "position_ids": positions, "labels": labels}


def read(file: Path) -> list[str]:
    """The documents of a .txt file, which blank lines separate."""
    return [text for text in file.read_text(encoding="utf-8").split("\n\n") if text.strip()]


def embedded() -> list[str]:
    return [document["text"] for document in documents("medical", seed=0, copies=30)]


def settings(case: Case) -> tuple[recipe.Base, recipe.Train, recipe.Packing]:
    """The recipe of ours, with what it has for little memory."""
    qlora = case.method == "qlora"
    tokens = case.windows * case.sequence_length
    release = not qlora and pick_dtype(case.precision, pick_device()) != torch.float16
    train = recipe.Train(
        method="qlora" if qlora else "full", tokens=tokens * case.steps, tokens_per_step=tokens, activation_checkpointing=True,
        micro_batch_size=case.micro_batch_size or "auto", gradient_release=release, precision=case.precision,
        lora=recipe.Lora(rank=RANK, alpha=RANK), optimizer=recipe.Optimizer(name="adamw4bit", learning_rate=RATES[case.method]),
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


def load_plain(case: Case, base: Path, dtype: torch.dtype) -> Any:
    """The model as transformers, PEFT and bitsandbytes document it, patched by Liger-Kernel where the case says so."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    device = pick_device()
    if case.implementation == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3()
    if case.method == "full":
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        return model
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=nf4, device_map={"": device})
    loaded = prepare_model_for_kbit_training(
        loaded, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(loaded, lora)


def load_unsloth(case: Case, base: Path, dtype: torch.dtype) -> Any:
    """The model as unsloth's notebooks load it."""
    from unsloth import FastLanguageModel

    qlora = case.method == "qlora"
    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(base), max_seq_length=case.sequence_length, dtype=dtype, load_in_4bit=qlora, full_finetuning=not qlora,
        use_exact_model_name=True, trust_remote_code=False, use_gradient_checkpointing="unsloth",
    )  # fmt: skip
    if not qlora:
        return model
    return FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=RANK, lora_dropout=0.0, bias="none", use_gradient_checkpointing="unsloth", random_state=0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        max_seq_length=case.sequence_length,
    )  # fmt: skip


def theirs(case: Case, base: Path, dtype: torch.dtype, figures: dict[str, Any]) -> Step:
    """The step of a peer: its model, bitsandbytes' 8-bit AdamW, accumulation, clipping."""
    from bitsandbytes.optim import AdamW8bit

    device = pick_device()
    model = (load_unsloth if case.implementation == "unsloth" else load_plain)(case, base, dtype)
    model.config.use_cache = False
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AdamW8bit(trained, lr=RATES[case.method], weight_decay=0.05)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    figures["micro_batch_size"] = micro = case.micro_batch_size or case.windows
    model.train()

    def step(batch: dict[str, Tensor]) -> float:
        total, counted = 0.0, int((batch["labels"] != -100).sum())
        for start in range(0, case.windows, micro):
            part = {name: rows[start : start + micro].to(device) for name, rows in batch.items()}
            labels = part["input_ids"].masked_fill(part["position_ids"] == 0, -100)  # the model shifts them
            mine = int((labels[:, 1:] != -100).sum())
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                found = model(input_ids=part["input_ids"], position_ids=part["position_ids"], labels=labels).loss
            loss = found * (mine / counted)
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
    dtype = pick_dtype(case.precision, device)
    figures: dict[str, Any] = {}
    if case.cap_gib is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (case.cap_gib * GIB - CONTEXT) / total), device)
    data = PackedText(case.sequence_length, case.text)
    losses: list[float] = []
    seconds: list[float] = []
    try:
        step = (ours if case.implementation == "ours" else theirs)(case, base, dtype, figures)
        for number in range(case.steps):
            batch = data.batch(number, case.windows)
            _wait(device)
            began = time.perf_counter()
            losses.append(step(batch))
            _wait(device)
            seconds.append(time.perf_counter() - began)
        figures["status"] = "ok" if all(map(math.isfinite, losses)) else "the loss is not finite"
    except torch.OutOfMemoryError:
        figures["status"] = "out of memory"
    except (RequestError, ImportError) as error:  # ours says what lacks in words
        figures["status"] = "out of memory" if "memory" in str(error) else first_line(error)
    if device.type == "cuda":
        figures["peak_allocated"] = torch.cuda.max_memory_allocated(device)
        figures["peak_reserved"] = torch.cuda.max_memory_reserved(device)
    if figures["status"] == "ok":
        figures |= rate(seconds, case.windows * case.sequence_length)
        figures |= {"first_loss": losses[0], "last_loss": losses[-1], "losses": losses}
    return figures


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        print(json.dumps(measure(Case(**json.loads(argument)), Path(sys.argv[1]))), flush=True)  # noqa: T201
