"""Interpolation of two tensors, for ablations: linear, or spherical (Shoemake 1985) as `frbio_lite.merging.methods.slerp` has it.

Products and their sum are rounded to fp32 one after the other, never fused, and then once to the output's dtype: with the same
two weights the bits are those of a merge on the CPU. Slerp's weights follow from three inner products, taken in a first pass.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from frbio_lite.kernels.interpolate import reference
from frbio_lite.kernels.launch import require_floating, require_one_device, usable

Method = Literal["linear", "slerp"]
PARALLEL = 0.9995  # |cosine| above which slerp is linear


def interpolate(
    base: Tensor, adapted: Tensor, ratio: float, out: Tensor | None = None, method: Method = "linear"
) -> Tensor:
    """The tensor at `ratio` of the way from base (0) to adapted (1), all of one shape, into `out` (else new, of base's dtype).

    `out` may be a live parameter, or base itself. Raises ValueError on tensors that do not fit together, and on a ratio beyond
    [0, 1]. Slerp waits for the device once. No gradients.
    """
    if not 0.0 <= ratio <= 1.0:  # false for NaN as well
        raise ValueError(f"ratio is {ratio}: 0 (the base) to 1 (the adapted tensor) is needed")
    if method not in ("linear", "slerp"):
        raise ValueError(f"method is {method!r}: linear or slerp is needed")
    _check(base, adapted, None)
    weights = slerp_weights(*_products(base, adapted), ratio) if method == "slerp" else (1.0 - ratio, ratio)
    return blend(base, adapted, weights, out)


def blend(base: Tensor, adapted: Tensor, weights: tuple[float, float], out: Tensor | None = None) -> Tensor:
    """weights[0] · base + weights[1] · adapted; a tensor of weight 0 takes no part. Otherwise as `interpolate`."""
    _check(base, adapted, out)
    if out is None:
        out = torch.empty(base.shape, dtype=base.dtype, device=base.device)
    base, adapted = base.detach(), adapted.detach()
    if 0.0 in weights or not out.is_contiguous() or not usable(base, adapted, out):
        with torch.no_grad():
            return out.copy_(reference.blend(base, adapted, weights))
    from frbio_lite.kernels.interpolate import kernel

    kernel.blend(base, adapted, weights, out.detach())
    torch.autograd.graph.increment_version(out)
    return out


def slerp_weights(base_base: float, base_step: float, step_step: float, ratio: float) -> tuple[float, float]:
    """sin((1−t)ω)/sin ω and sin(tω)/sin ω from the inner products of base and step = adapted − base.

    1 − t and t at the ends, for a zero vector, and where the two are nearly parallel or antiparallel.
    """
    angle = math.nan
    if base_base > 0.0 and base_base + 2.0 * base_step + step_step > 0.0:
        area = math.sqrt(max(0.0, base_base * step_step - base_step * base_step))
        angle = math.atan2(area, base_base + base_step)
    if ratio in (0.0, 1.0) or not abs(math.cos(angle)) <= PARALLEL:
        return 1.0 - ratio, ratio
    return math.sin((1.0 - ratio) * angle) / math.sin(angle), math.sin(ratio * angle) / math.sin(angle)


def _products(base: Tensor, adapted: Tensor) -> tuple[float, float, float]:
    base, adapted = base.detach(), adapted.detach()
    if not usable(base, adapted):
        return reference.products(base, adapted)
    from frbio_lite.kernels.interpolate import kernel

    return kernel.products(base, adapted)


def _check(base: Tensor, adapted: Tensor, out: Tensor | None) -> None:
    require_floating(base=base, adapted=adapted, out=out)
    require_one_device(base=base, adapted=adapted, out=out)
    for name, tensor in (("adapted", adapted), ("out", out)):
        if tensor is not None and tensor.shape != base.shape:
            raise ValueError(f"{name} {list(tensor.shape)} and base {list(base.shape)} differ in shape")
