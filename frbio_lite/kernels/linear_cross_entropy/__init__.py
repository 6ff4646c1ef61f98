"""Output head and cross-entropy in one: logits exist for a chunk of rows at a time, and become their gradient where they stand.

A row has logits z = h Wᵀ + b, soft-capped or not, and a label y: loss = logsumexp(z) - z[y], dloss/dz = softmax(z) - onehot(y).
That gradient needs no more than the loss does, so the products with it follow at once and nothing is computed twice: a row of
dloss/dh only waits to be multiplied by what comes back for that row. The weight's gradient mixes rows: it is summed at once for
`reduction="sum"`; with single losses and a trained head the backward goes over the chunks again.

A chunk has as many rows as the budget holds, for each chunk reads the whole head. Products are cuBLAS's; rounding is that of a
linear layer (under autocast: in its dtype), its logits taken to fp32. In fp16, gradients are held at FP16_SCALE times their size.
The weight's gradient is summed in fp32; for a bf16 weight in bf16, where each further chunk rounds the sum once more (2⁻⁹).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from frbio_lite.kernels.launch import require_floating, require_one_device, usable
from frbio_lite.kernels.linear_cross_entropy import reference
from frbio_lite.kernels.linear_cross_entropy.head import Head, NF4Head, add_product

CHUNK_BYTES = 256 * 2**20  # of logits held at once
SMALLEST_CHUNK = 256  # rows; fewer leave the matrix product idle
TILE = 128  # rows that a matrix product takes together: a chunk is a multiple
FP16_SCALE = 256.0  # softmax below 2⁻³³ vanishes; overflow only where a weight of the head is above 128


@dataclass(frozen=True)
class _Options:
    dtype: torch.dtype  # of the products
    softcap: float | None
    ignore_index: int
    summed: bool
    chunk: int  # rows


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, bias: Tensor | None = None, softcap: float | None = None,
    ignore_index: int = -100, reduction: str = "none", chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:  # fmt: skip
    """Cross-entropy in nats of hidden [N, H] through weight [V, H] against labels [N] (int64): fp32 [N], or their sum.

    weight: floating-point, or a bitsandbytes Params4bit, which is dequantised in parts and has no gradient. softcap: logits
    become tanh(z / c) · c. `reduction` is "none" or "sum". Rows labelled ignore_index have loss and gradient 0.
    Raises ValueError on tensors that do not fit together. A label beyond the vocabulary: on a CPU ValueError; on a GPU, which
    that would make wait, the row's loss and gradients are NaN (`check_labels` on the labels, before they are moved, tells).
    """
    vocabulary = _check(hidden, weight, labels, bias, softcap, reduction)
    if labels.device.type == "cpu":
        check_labels(labels, vocabulary, ignore_index)
    dtype = _product_dtype(hidden, weight)
    rows = chunk_bytes // (vocabulary * dtype.itemsize)
    chunk = max(SMALLEST_CHUNK, rows - rows % TILE)
    options = _Options(dtype, softcap, ignore_index, reduction == "sum", chunk)
    if not torch.is_grad_enabled():  # autograd would still say which inputs require gradients
        losses = _run(hidden, weight, bias, labels, options, (False,) * 3, None)[0]
        return losses.sum() if options.summed else losses
    return cast(Tensor, _LinearCrossEntropy.apply(hidden, weight, bias, labels, options))  # type: ignore[no-untyped-call]


def log_probabilities(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Log-softmax of logits [R, V] at rows and columns [S] (int64), fp32 [S]. The logits may be overwritten; no gradient."""
    reached = logits[rows, columns].to(torch.promote_types(logits.dtype, torch.float32))
    if not usable(logits):
        return reached - reference.logsumexp_(logits)[rows]
    from frbio_lite.kernels.linear_cross_entropy import kernel

    return reached - kernel.logsumexp(logits)[rows]


def check_labels(labels: Tensor, vocabulary: int, ignore_index: int = -100) -> None:
    """Raise ValueError, with the value, on a label that is neither in the vocabulary nor ignore_index. On a GPU this waits."""
    wrong = labels[((labels < 0) | (labels >= vocabulary)) & (labels != ignore_index)]
    if wrong.numel():
        raise ValueError(f"label {int(wrong[0])} is not in the vocabulary of {vocabulary} (ignored: {ignore_index})")


def _check(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, softcap: float | None, reduction: str
) -> int:
    """The vocabulary's size, if everything fits together."""
    state = getattr(weight, "quant_state", None)
    require_floating(hidden=hidden, weight=None if state is not None else weight, bias=bias)
    require_one_device(hidden=hidden, weight=weight, labels=labels, bias=bias)
    shape = list(weight.shape if state is None else state.shape)
    if hidden.ndim != 2 or len(shape) != 2 or shape[1] != hidden.shape[1] or not shape[0]:
        raise ValueError(f"weight {shape} does not fit hidden {list(hidden.shape)}: [V, H] and [N, H] are needed")
    if labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}: int64 [{hidden.shape[0]}] is needed"
        )
    if bias is not None and list(bias.shape) != shape[:1]:
        raise ValueError(f"bias {list(bias.shape)} does not fit weight {shape}")
    if softcap is not None and not softcap > 0.0:
        raise ValueError(f"softcap is {softcap}: above zero or None is needed")
    if reduction not in ("none", "sum"):
        raise ValueError(f"reduction is {reduction!r}: 'none' or 'sum' is needed")
    return int(shape[0])


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Autocast's, where it is on; else the wider of hidden's and the weight's (hidden's alone on a quantised head)."""
    wide = torch.promote_types(hidden.dtype, weight.dtype) if weight.is_floating_point() else hidden.dtype
    kind = hidden.device.type
    if wide != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return wide


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, options: _Options
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        at_once = options.summed or not any(wanted[1:])
        ctx.options, ctx.wanted, ctx.at_once, ctx.spent = options, wanted, at_once, False
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        losses, found = _run(hidden, weight, bias, labels, options, wanted if at_once else (False,) * 3, None)
        if any(wanted):
            ctx.save_for_backward(*(found if at_once else (hidden, weight, bias, labels)))
        return losses.sum() if options.summed else losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError(
                "linear_cross_entropy hands out its gradients once: compute the loss again for a second backward"
            )
        if ctx.at_once:
            ctx.spent = True  # what was saved is overwritten below
            found = list(ctx.saved_tensors)
            factor = upstream / _scale(ctx.options.dtype)
        else:  # what comes back is brought to 1 at most, lest it leave fp16
            largest = F.pad(upstream.abs(), (0, 1), value=torch.finfo(upstream.dtype).tiny).amax()
            hidden, weight, bias, labels = ctx.saved_tensors
            _, found = _run(hidden, weight, bias, labels, ctx.options, ctx.wanted, upstream / largest)
            factor = largest / _scale(ctx.options.dtype)
        for number, (gradient, dtype) in enumerate(zip(found, ctx.dtypes, strict=True)):
            if gradient is not None:  # times the factor in fp32: it has a dimension, and so its dtype counts
                wide = gradient.to(torch.promote_types(gradient.dtype, dtype))
                found[number] = wide.mul_(factor.reshape(-1, 1) if wide.ndim == 2 else factor.reshape(-1)).to(dtype)
        return *found, None, None


def _run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, options: _Options,
    wanted: tuple[bool, ...], upstream: Tensor | None,
) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
    """Losses [N], and the gradients wanted of (hidden, weight, bias), times _scale: of the losses' sum, weighted by upstream [N]
    if given."""
    with torch.no_grad(), _no_autocast(hidden.device.type):
        dtype, rows = options.dtype, hidden.shape[0]
        wide = torch.promote_types(dtype, torch.float32)
        head = NF4Head(weight, bias, dtype) if hasattr(weight, "quant_state") else Head(weight, bias, dtype)
        hidden = hidden.to(dtype)
        losses = torch.empty(rows, dtype=wide, device=hidden.device)
        held = torch.empty(min(rows, options.chunk), head.vocabulary, dtype=dtype, device=hidden.device)
        dhidden = torch.empty(hidden.shape, dtype=dtype, device=hidden.device) if wanted[0] else None
        summing = torch.bfloat16 if weight.dtype == dtype == torch.bfloat16 else wide
        dweight = torch.zeros(weight.shape, dtype=summing, device=hidden.device) if wanted[1] else None
        dbias = torch.zeros(head.vocabulary, dtype=wide, device=hidden.device) if wanted[2] else None
        for start in range(0, rows, options.chunk):
            part = slice(start, start + options.chunk)
            logits = held[: len(hidden[part])]  # [C, V]
            head.logits(hidden[part], logits)
            losses[part] = _cross_entropy(logits, labels[part], options, any(wanted))
            if upstream is not None:
                logits.mul_(upstream[part, None])
            if dhidden is not None:
                head.backward(logits, dhidden[part])
            if dweight is not None:
                add_product(dweight, logits, hidden[part])
            if dbias is not None:
                dbias += logits.sum(0, dtype=wide)
        return losses, [dhidden, dweight, dbias]


def _cross_entropy(logits: Tensor, labels: Tensor, options: _Options, gradient: bool) -> Tensor:
    scale = _scale(options.dtype) if gradient else None
    if not usable(logits, labels):
        return reference.cross_entropy_(logits, labels, options.softcap, options.ignore_index, scale)
    from frbio_lite.kernels.linear_cross_entropy import kernel

    return kernel.cross_entropy_(logits, labels, options.softcap, options.ignore_index, scale)


def _no_autocast(kind: str) -> AbstractContextManager[Any]:
    available = torch.amp.is_autocast_available(kind)  # not for meta tensors
    return torch.autocast(kind, enabled=False) if available else nullcontext()


def _scale(dtype: torch.dtype) -> float:
    return FP16_SCALE if dtype == torch.float16 else 1.0
