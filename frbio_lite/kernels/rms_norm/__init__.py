"""RMSNorm of Llama, Mistral, Qwen3, SmolLM3 and Gemma: alone (`rms_norm`), or after adding the residual stream (`add_rms_norm`).

Rounding is that of transformers' modules. Llama and its kin: normalise in fp32, round to x's dtype, multiply by the weight; y
has the promoted dtype of x and weight, so fp32 weights under autocast give fp32. Gemma: multiply by 1 + w in fp32, then round to
x's dtype. Only x (or the sum h) and the weight are kept for the backward; dweight is summed in a fixed order.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from frbio_lite.kernels.launch import require_floating, require_one_device, usable
from frbio_lite.kernels.rms_norm import reference

LARGEST = 8192  # columns that a program holds in its registers; wider rows are read twice


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, gemma: bool = False) -> Tensor:
    """x [..., H] normalised over its last dimension, times weight [H]: [..., H].

    Raises ValueError on tensors that do not fit together.
    """
    _check(x, None, weight, eps)
    if not usable(x, weight):
        return reference.rms_norm(x, weight, eps, gemma)
    return cast(Tensor, _RmsNorm.apply(x, weight, eps, gemma))  # type: ignore[no-untyped-call]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6, *, gemma: bool = False
) -> tuple[Tensor, Tensor]:
    """(norm of h, h) with h = x + residual, all [..., H]; h has the promoted dtype of the two, and both carry gradients.

    Raises ValueError on tensors that do not fit together.
    """
    _check(x, residual, weight, eps)
    if not usable(x, residual, weight):
        hidden = x + residual
        return reference.rms_norm(hidden, weight, eps, gemma), hidden
    both = _AddRmsNorm.apply(x, residual, weight, eps, gemma)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], both)


def _check(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> None:
    require_floating(x=x, residual=residual, weight=weight)
    require_one_device(x=x, residual=residual, weight=weight)
    if x.ndim == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(f"weight {list(weight.shape)} does not fit x {list(x.shape)}: one weight a column is needed")
    if x.shape[-1] == 0:
        raise ValueError(f"x {list(x.shape)} has no columns: there is nothing to normalise over")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual {list(residual.shape)} and x {list(x.shape)} differ in shape")
    if not eps >= 0.0:
        raise ValueError(f"eps is {eps}: zero or more is needed")


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, gemma: bool) -> Tensor:
        from frbio_lite.kernels.rms_norm import kernel

        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.gemma = eps, gemma
        return kernel.forward(x, None, weight, eps, gemma)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from frbio_lite.kernels.rms_norm import kernel

        x, weight = ctx.saved_tensors
        dx, _, dweight = kernel.backward(
            gradients[0], None, x, weight, ctx.eps, ctx.gemma, (x.dtype,), ctx.needs_input_grad[1]
        )
        return dx, dweight, None, None


class _AddRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float, gemma: bool
    ) -> tuple[Tensor, Tensor]:
        from frbio_lite.kernels.rms_norm import kernel

        y, hidden = kernel.forward(x, residual, weight, eps, gemma)
        ctx.save_for_backward(hidden, weight)
        ctx.eps, ctx.gemma, ctx.dtypes = eps, gemma, (x.dtype, residual.dtype)
        return y, hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        from frbio_lite.kernels.rms_norm import kernel

        hidden, weight = ctx.saved_tensors
        dx, dresidual, dweight = kernel.backward(
            gradients[0], gradients[1], hidden, weight, ctx.eps, ctx.gemma, ctx.dtypes, ctx.needs_input_grad[2]
        )
        return dx, dresidual, dweight, None, None
