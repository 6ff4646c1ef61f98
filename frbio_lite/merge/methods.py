"""Merging methods: pure functions of a base tensor, an adapted tensor of the same shape and a ratio.

The ratio is the share of the adapted model. Arithmetic is fp32 whatever the inputs' dtype: in bf16 a small change is
lost in the rounding of each operation. Dot products and norms are accumulated in fp64, in blocks, so no fp64 copy of a
tensor is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PARALLEL = 0.9995  # |cosine| above which slerp is linear (mergekit's threshold)
BLOCK = 1 << 16  # elements converted to fp64 at once: they stay in the CPU's cache


@dataclass(frozen=True)
class Comparison:
    """Two tensors as vectors: Euclidean norms of base, adapted and adapted − base, and the product base · adapted."""

    base_norm: float
    adapted_norm: float
    difference_norm: float
    dot: float

    @property
    def cosine(self) -> float:
        """Of the angle between them, in [-1, 1]; NaN when either is zero."""
        if self.base_norm == 0.0 or self.adapted_norm == 0.0:
            return math.nan
        return max(-1.0, min(1.0, self.dot / self.base_norm / self.adapted_norm))

    @property
    def slerp_is_linear(self) -> bool:
        return not abs(self.cosine) <= PARALLEL  # NaN, a zero vector, has no direction: linear as well


def compare(base: Tensor, adapted: Tensor) -> Comparison:
    """Norms and dot product of two float tensors of one shape, flattened, accumulated in fp64."""
    totals = torch.zeros(4, dtype=torch.float64)
    for b, a in zip(torch.split(base.reshape(-1), BLOCK), torch.split(adapted.reshape(-1), BLOCK), strict=True):
        b, a = b.double(), a.double()
        d = a - b
        totals += torch.stack([b.dot(b), a.dot(a), d.dot(d), b.dot(a)])
    base_square, adapted_square, difference_square, dot = totals.tolist()
    return Comparison(math.sqrt(base_square), math.sqrt(adapted_square), math.sqrt(difference_square), dot)


def linear(base: Tensor, adapted: Tensor, ratio: float) -> Tensor:
    """(1 − ratio) · base + ratio · adapted, in fp32, in the shape of the inputs; exact at ratio 0 and 1."""
    if ratio in (0.0, 1.0):
        return _end(base, adapted, ratio)
    return torch.lerp(base.float(), adapted.float(), ratio)


def slerp(base: Tensor, adapted: Tensor, ratio: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of two tensors taken as single vectors, fp32, in the shape of the inputs.

    sin((1−t)ω)/sin ω · base + sin(tω)/sin ω · adapted, with ω the angle between them and the weights applied to the
    vectors as they are, unnormalised, as mergekit does. Nearly parallel or antiparallel vectors (|cos ω| > 0.9995) and
    a zero vector are merged linearly. Exact at ratio 0 and 1.
    """
    if ratio in (0.0, 1.0):
        return _end(base, adapted, ratio)
    comparison = compare(base, adapted)
    if comparison.slerp_is_linear:
        return linear(base, adapted, ratio)
    angle = math.acos(comparison.cosine)
    base_share, adapted_share = (math.sin(part * angle) / math.sin(angle) for part in (1.0 - ratio, ratio))
    return (base.float() * base_share).add_(adapted.float(), alpha=adapted_share)


def _end(base: Tensor, adapted: Tensor, ratio: float) -> Tensor:
    return (base if ratio == 0.0 else adapted).float()


METHODS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"linear": linear, "slerp": slerp}
