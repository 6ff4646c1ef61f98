"""The training loop: packed windows in, an adapter or full weights out, resumable at any step.

A step takes `tokens_per_step` tokens in as many micro-batches as memory asks for; the loss is the mean over all target tokens
of the step, so the split into micro-batches changes nothing but rounding. Data order, learning rate and random state are
functions of the step and the seed: a run that was interrupted and resumed is the run that was not.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from frbio_lite import checkpoint, hub, recipe
from frbio_lite.backends import check_backend, load_unsloth
from frbio_lite.device import peak_memory, pick_device, pick_dtype
from frbio_lite.errors import RequestError
from frbio_lite.fuse import fuse, give_up
from frbio_lite.kernels.linear_cross_entropy import check_labels
from frbio_lite.memory import Job, card_at_hand, micro_batch_size, plan
from frbio_lite.model import (
    Model,
    attach_lora,
    causal_lm,
    check_positions,
    hidden_states,
    load_model,
    save_model,
    summed_loss,
)
from frbio_lite.nf4_head import quantize_head
from frbio_lite.offload import checkpoint_layers
from frbio_lite.optim import make_optimizer, trained_dtype
from frbio_lite.optim.release import GradientRelease
from frbio_lite.progress import Progress, say
from frbio_lite.tracking import Tracker

LOG = "log.jsonl"
CHECKPOINTS = "checkpoints"


class Windows(Protocol):
    """What training reads: `frbio_lite.packing.PackedTokens`, or anything of its shape."""

    windows: int
    sequence_length: int

    def batch(self, indices: Sequence[int], document_mask: bool = True) -> dict[str, Tensor]: ...

    def order(self, epoch: int, seed: int) -> Sequence[int]: ...


def train(
    base: Path,
    data: Windows,
    settings: recipe.Train,
    packing: recipe.Packing,
    seed: int,
    directory: Path,
    loading: recipe.Base | None = None,
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """Adapt `base` on packed windows; save an adapter (lora, qlora) or a model directory (full) in `directory`.

    `loading`: the recipe's `base`, for its backend and quantize_head; without it both are the default. `tracker`: is given
    each line of the log. Goes on from the newest whole checkpoint in `directory`. Returns measured figures: steps, tokens,
    seconds, rate, memory, kernels. Raises RequestError when the recipe cannot run here or a token is not in the vocabulary,
    RuntimeError when the loss stops being finite.
    """
    tracker = tracker or Tracker()
    device = pick_device()
    dtype = pick_dtype(settings.precision, device)
    check_positions(hub.load_config(base), packing.sequence_length)
    torch.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model, kernels = prepare_model(base, settings, packing, dtype, device, seed, loading)
    optimizer = make_optimizer(model, settings.optimizer, seed)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    steps = total_steps(settings, data)
    done = resume(directory, model, optimizer, scaler)
    micro = micro_batch_size(model, settings, packing, device, loading)
    release = gradient_release(settings, optimizer, scaler, micro * data.sequence_length)
    last_save = time.monotonic()
    final_loss = math.nan
    model.train()
    with (
        Progress("train", total_tokens(settings, data), "tokens", initial=done * settings.tokens_per_step) as bar,
        (directory / LOG).open("a", encoding="utf-8") as log,
        tracker.following(logged(directory / LOG)),
        stop_requests() as stop,
    ):
        for step in range(done, steps):
            began = time.monotonic()
            windows = step_windows(data, settings, step, seed)
            batch = data.batch(windows, document_mask=packing.document_mask)
            check_tokens(batch, model)
            rate = learning_rate(settings.optimizer, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            how = (settings.micro_batch_size == "auto", device, dtype, scaler, release, kernels)
            if release is not None and release.norm is None:
                with release.measuring():
                    _, micro = accumulate_fitting(model, batch, micro, *how)
            final_loss, micro = accumulate_fitting(model, batch, micro, *how)
            if not math.isfinite(final_loss):
                raise RuntimeError(
                    f"the loss is {final_loss} at step {step + 1}: lower train.optimizer.learning_rate, or set "
                    "train.precision: fp32"
                )
            norm = update(model, optimizer, scaler, settings.optimizer.max_grad_norm, release)
            tokens = len(windows) * data.sequence_length
            speed = tokens / (time.monotonic() - began)
            line = {
                "step": step + 1, "tokens": step * settings.tokens_per_step + tokens, "loss": final_loss, "learning_rate": rate,
                "grad_norm": norm, "tokens_per_second": speed, "memory_bytes": peak_memory(device),
            }  # fmt: skip
            log.write(json.dumps(line) + "\n")
            log.flush()
            tracker.log(line)
            bar.advance(tokens, loss=final_loss)
            due = time.monotonic() - last_save > settings.checkpoint.every_minutes * 60 and step + 1 < steps
            if stop.requested or due:
                checkpoint.save(directory / CHECKPOINTS, step + 1, model, optimizer, scaler, settings.checkpoint.keep)
                tracker.flush()
                last_save = time.monotonic()
            if stop.requested:
                raise KeyboardInterrupt
    save_weights(model, base, settings, directory)
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    if why := getattr(optimizer, "plain", None):
        kernels["plain"] = {**kernels["plain"], "adamw4bit": why}
    return {
        "steps": steps,
        "resumed_at_step": done,
        **pace(total_tokens(settings, data), directory / LOG),
        "final_loss": None if math.isnan(final_loss) else final_loss,
        "micro_batch_size": micro,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "kernels": kernels,
        **machine_figures(device, dtype),
        **memory_figures(model, settings, packing, device, micro, loading),
    }


def gradient_release(
    settings: recipe.Train, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, micro_batch_tokens: int
) -> GradientRelease | None:
    """What steps and frees each gradient as soon as it is there, where the recipe asks for it."""
    if not settings.gradient_release:
        return None
    if micro_batch_tokens < settings.tokens_per_step:
        say("train: gradients are kept until a step's last micro-batch; steps of one micro-batch keep one at a time")
    return GradientRelease(optimizer, scaler, settings.optimizer.max_grad_norm)


def pace(tokens: int, log: Path) -> dict[str, float]:
    seconds = logged_seconds(log)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


def memory_figures(
    model: Model,
    settings: recipe.Train,
    packing: recipe.Packing,
    device: torch.device,
    micro: int,
    loading: recipe.Base | None = None,
) -> dict[str, Any]:
    """On a GPU `memory`: the most that torch held since training began, and what the plan foresees for this micro-batch, by
    part (bytes), or `why_not`. Empty on a CPU."""
    card = card_at_hand() if device.type == "cuda" else None
    if card is None:
        return {}
    found: dict[str, Any] = {
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
        "allocated_bytes": torch.cuda.max_memory_allocated(device),
    }
    try:
        changed = settings.model_copy(update={"micro_batch_size": micro})
        job = Job(causal_lm(model).config, loading or recipe.Base(model=""), changed, packing)
        found["predicted"] = plan(job, card).parts
    except Exception as error:  # the plan runs any model's code; training is done whatever comes of it
        found |= {"predicted": None, "why_not": f"{type(error).__name__}: {error}"}
    return {"memory": found}


def machine_figures(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "peak_memory_bytes": peak_memory(device),
        "precision": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def accumulate_fitting(
    model: Model,
    batch: dict[str, Tensor],
    micro: int,
    may_shrink: bool,
    device: torch.device,
    dtype: torch.dtype,
    scaler: torch.amp.GradScaler,
    release: GradientRelease | None = None,
    kernels: dict[str, Any] | None = None,
) -> tuple[float, int]:
    """`accumulate`, again with half the micro-batch when the GPU's memory runs out: (loss, micro-batch that fitted).

    When a kernel fails it is done again in plain torch, and `kernels`, the figures of `fuse`, become what runs from then on.
    Raises RequestError when one window does not fit, the recipe fixes the micro-batch, or weights were released already.
    """
    while True:
        try:
            return accumulate(model, batch, micro, device, dtype, scaler, release), micro
        except torch.OutOfMemoryError as error:
            if micro == 1 or not may_shrink or (release is not None and release.begun):
                raise RequestError(
                    f"the GPU's memory does not hold a micro-batch of {micro}: set train.micro_batch_size lower or "
                    "train.activation_checkpointing: true, and the run goes on from its newest checkpoint; "
                    "with a shorter packing.sequence_length it starts anew"
                ) from error
            micro //= 2
            say(f"train: out of memory, going on with micro-batches of {micro}")
        except Exception as error:
            plain = give_up(model, error, device, stepped=release is not None and release.begun)
            if kernels is not None:
                kernels.update(plain)
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def accumulate(
    model: Model,
    batch: dict[str, Tensor],
    micro: int,
    device: torch.device,
    dtype: torch.dtype,
    scaler: torch.amp.GradScaler,
    release: GradientRelease | None = None,
) -> float:
    """Gradients of one step's mean loss per target token, over micro-batches of `micro` windows; returns that loss in nats.

    Dividing by the targets of the whole step, not of each micro-batch, is what makes the split immaterial. With `release`
    the last micro-batch steps the weights; a loss that is not finite leaves them as they were.
    """
    targets = max(1, int((batch["labels"] != -100).sum()))
    # no cache: it would keep a 16-bit copy of every fp32 weight to the end of the forward, also of layers that are recomputed
    mixed = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype, cache_enabled=False)
    total = 0.0
    windows = batch["input_ids"].shape[0]
    for start in range(0, windows, micro):
        part = {name: rows[start : start + micro].to(device) for name, rows in batch.items()}
        with mixed:
            hidden = hidden_states(model, part["input_ids"], part["position_ids"])
            loss = summed_loss(model, hidden, part["labels"]) / targets
        if release is not None:
            if not math.isfinite(float(loss.detach())):
                return float(loss.detach())
            release.begin(last=start + micro >= windows)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def check_tokens(batch: dict[str, Tensor], model: Model) -> None:
    """Raise RequestError on a token or label that is not in the model's vocabulary: a GPU would only say that it stopped."""
    vocabulary = int(causal_lm(model).config.get_text_config().vocab_size)
    try:
        check_labels(batch["labels"], vocabulary)
        check_labels(batch["input_ids"], vocabulary)
    except ValueError as error:
        raise RequestError(f"the packed tokens are not this model's: {error}; pack them with its tokenizer") from error


def update(
    model: Model,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    max_norm: float,
    release: GradientRelease | None = None,
) -> float | None:
    """One clipped optimizer step; returns the gradient norm before clipping, None when fp16 overflowed (the step is skipped).

    With `release` the backward has made the step, and only the norm is taken.
    """
    if release is not None:
        norm = release.finish()
        return norm if math.isfinite(norm) else None
    scaler.unscale_(optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], max_norm))
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm if math.isfinite(norm) else None


def prepare_model(
    base: Path,
    settings: recipe.Train,
    packing: recipe.Packing,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    loading: recipe.Base | None = None,
) -> tuple[Model, dict[str, Any]]:
    """The model, and which kernels it runs: all weights trained (full), in `trained_dtype`, or adapters in fp32 on a frozen
    base in `dtype` or NF4; autocast does the arithmetic in 16 bits. `loading`: the recipe's `base`, for its backend and
    quantize_head.
    """
    if loading is not None:
        check_backend(loading, settings)
        if loading.backend == "unsloth":
            own = {"swapped": {}, "plain": {"all": "unsloth's own"}}
            return load_unsloth(base, settings, packing, dtype, seed), own
    full = settings.method == "full"
    stored = trained_dtype(settings.optimizer, dtype) if full else dtype
    model = load_model(base, dtype=stored, device=device, nf4=settings.method == "qlora")
    if loading is not None and loading.quantize_head:
        quantize_head(model, dtype)
    if settings.activation_checkpointing:
        checkpoint_layers(model, offload=settings.activation_checkpointing == "offload")
    model = model if full else attach_lora(model, settings.lora, seed)
    return model, fuse(model, settings.kernels, dtype, device)


def total_windows(settings: recipe.Train, data: Windows) -> int:
    """Windows the whole training reads, repeats included."""
    if settings.tokens is not None:
        return max(1, math.ceil(settings.tokens / data.sequence_length))
    assert settings.epochs is not None
    return max(1, round(settings.epochs * data.windows))


def total_tokens(settings: recipe.Train, data: Windows) -> int:
    """Slots the whole training reads, the few of padding included."""
    return total_windows(settings, data) * data.sequence_length


def total_steps(settings: recipe.Train, data: Windows) -> int:
    return math.ceil(total_windows(settings, data) / (settings.tokens_per_step // data.sequence_length))


def step_windows(data: Windows, settings: recipe.Train, step: int, seed: int) -> list[int]:
    """The windows of a step: a pure function of step and seed, so that a resumed run reads what it would have read."""
    rows = settings.tokens_per_step // data.sequence_length
    first, last = step * rows, min((step + 1) * rows, total_windows(settings, data))
    epochs = range(first // data.windows, (last - 1) // data.windows + 1)
    orders = {epoch: data.order(epoch, seed) for epoch in epochs}
    return [int(orders[row // data.windows][row % data.windows]) for row in range(first, last)]


def learning_rate(settings: recipe.Optimizer, step: int, steps: int) -> float:
    """The rate of a step (counted from 0): linear warm-up, then cosine or linear decay to zero at the end, or constant."""
    warmup = math.ceil(settings.warmup_ratio * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    shape = {"cosine": 0.5 * (1.0 + math.cos(math.pi * done)), "linear": 1.0 - done, "constant": 1.0}[settings.schedule]
    return settings.learning_rate * shape


def resume(directory: Path, model: Model, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> int:
    """Restore the newest whole checkpoint, cut the log back to it, and return the steps already done."""
    found = checkpoint.latest(directory / CHECKPOINTS)
    done = checkpoint.step_of(found) if found else 0
    log = directory / LOG
    if log.exists():
        kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _logged_step(line) <= done]
        log.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    if found:
        checkpoint.restore(found, model, optimizer, scaler)
        say(f"train: continues after step {done}")
    return done


def logged_seconds(log: Path) -> float:
    """Time of all steps, those before an interruption included."""
    lines = logged(log)
    before = [0, *(line["tokens"] for line in lines)]
    return float(sum((line["tokens"] - b) / line["tokens_per_second"] for b, line in zip(before, lines, strict=False)))


def logged(log: Path) -> list[dict[str, Any]]:
    """The lines of a log, one for each step."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def _logged_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return math.inf  # a torn last line


def save_weights(model: Model, base: Path, settings: recipe.Train, directory: Path) -> None:
    """Adapter or full weights as safetensors, in the dtype they were trained in: rounding would cost a share of small updates."""
    if settings.method == "full":
        save_model(causal_lm(model), base, directory)
    else:
        model.save_pretrained(directory, save_embedding_layers=False)  # "auto" would ask the Hub


class _Stop:
    requested = False


@contextmanager
def stop_requests() -> Iterator[_Stop]:
    """While training, Ctrl-C and SIGTERM finish the step and write a checkpoint; a second one stops at once."""
    stop = _Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        say("train: finishing this step and saving a checkpoint; once more to stop at once")

    try:
        old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are its business
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
